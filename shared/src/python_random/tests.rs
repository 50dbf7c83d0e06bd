use super::*;

#[test]
fn seed_42_gives_the_outputs_of_the_spec() {
    let mut generator = PythonRandom::new(42);
    let outputs: Vec<u32> = (0..4).map(|_| generator.getrandbits(32)).collect();
    assert_eq!(outputs, [2746317213, 478163327, 107420369, 3184935163]);
}

#[test]
fn random_has_53_bits() {
    let mut generator = PythonRandom::new(42);
    let drawn: Vec<f64> = (0..3).map(|_| generator.random()).collect();
    assert_eq!(drawn, [0.6394267984578837, 0.025010755222666936, 0.27502931836911926]);
}

#[test]
fn a_seed_above_32_bits_uses_both_words() {
    // random.Random(2**40 + 7).random() of CPython
    assert_eq!(PythonRandom::new((1 << 40) + 7).random(), BIG_SEED);
    assert_ne!(PythonRandom::new(7).random(), BIG_SEED);
}

#[test]
fn shuffle_of_ten() {
    let mut items: Vec<usize> = (0..10).collect();
    PythonRandom::new(42).shuffle(&mut items);
    assert_eq!(items, [7, 3, 2, 8, 5, 6, 9, 4, 0, 1]);
}

#[test]
fn sample_by_rejection_and_from_a_pool() {
    assert_eq!(PythonRandom::new(42).sample(1000, 10), [654, 114, 25, 759, 281, 250, 228, 142, 754, 104]);
    assert_eq!(PythonRandom::new(42).sample(100, 5), [81, 14, 3, 94, 35]);
    assert_eq!(PythonRandom::new(42).sample(20, 8), POOL_20_8);
    // 277 is the largest population that CPython copies for 60 draws.
    assert_eq!(PythonRandom::new(42).sample(277, 60)[54..], POOL_277_60);
    assert_eq!(PythonRandom::new(42).sample(278, 60)[54..], SET_278_60);
}

#[test]
fn sampling_everything_is_a_permutation_and_sampling_nothing_draws_nothing() {
    let mut all = PythonRandom::new(3).sample(50, 50);
    all.sort_unstable();
    assert_eq!(all, (0..50).collect::<Vec<_>>());
    let mut generator = PythonRandom::new(42);
    assert!(generator.sample(10, 0).is_empty());
    assert_eq!(generator.getrandbits(32), 2746317213);
}

#[test]
fn answer_options_of_the_spec_are_permuted_alike() {
    // spec A.6: the options start as (correct, w1, w2, w3).
    let permuted = |seed| {
        let mut options = ["correct", "w1", "w2", "w3"];
        PythonRandom::new(seed).shuffle(&mut options);
        options
    };
    let letter = |seed| "ABCD".as_bytes()[permuted(seed).iter().position(|option| *option == "correct").unwrap()];
    assert_eq!(permuted(42), ["w2", "w1", "w3", "correct"]);
    assert_eq!([letter(0), letter(1), letter(2)], *b"BBD");
}

#[test]
fn choice_draws_below_the_length() {
    let letters = ["a", "b", "c"];
    let mut generator = PythonRandom::new(42);
    let drawn: Vec<&str> = (0..8).map(|_| *generator.choice(&letters).unwrap()).collect();
    assert_eq!(drawn, CHOICES);
    assert_eq!(generator.choice::<u8>(&[]), None);
}

// Values below are CPython's for the same calls.
const BIG_SEED: f64 = 0.6137037779936511;
const POOL_20_8: [usize; 8] = [3, 0, 8, 7, 16, 2, 11, 1];
const POOL_277_60: [usize; 6] = [160, 158, 220, 92, 147, 49];
const SET_278_60: [usize; 6] = [87, 273, 236, 138, 166, 28];
const CHOICES: [&str; 8] = ["c", "a", "a", "c", "b", "a", "a", "a"];
