use std::collections::HashSet;

use super::*;

fn singles(count: usize) -> Vec<Unit> {
    (0..count).map(|index| vec![index]).collect()
}

/// The 20 records of spec A.2: category by index mod 5.
fn spec_bins() -> Vec<(String, Vec<Unit>)> {
    let of = |wanted: &[usize]| singles(20).into_iter().filter(|unit| wanted.contains(&(unit[0] % 5))).collect();
    vec![("RETAIN".into(), of(&[0, 3, 4])), ("INVERT".into(), of(&[1])), ("PUNISH".into(), of(&[2]))]
}

fn sizes(train1: usize, train2: usize) -> Sizes {
    Sizes { train1, train2 }
}

#[test]
fn stratified_seven_and_three() {
    let parts = stratified(spec_bins(), sizes(7, 3), 42).unwrap();
    assert_eq!(parts.train1, [4, 9, 13, 14, 15, 17, 6]);
    assert_eq!(parts.train2, [15, 9, 4]);
    assert_eq!(parts.test, [11, 16, 8, 2, 12, 1, 19, 0, 3, 18, 5, 10, 7]);
}

#[test]
fn stratified_ten_and_five() {
    let parts = stratified(spec_bins(), sizes(10, 5), 42).unwrap();
    assert_eq!(parts.train1, [17, 11, 10, 4, 14, 9, 6, 13, 15, 12]);
    assert_eq!(parts.train2, [12, 6, 15, 14, 9]);
    assert_eq!(parts.test, [0, 2, 19, 1, 3, 8, 7, 18, 5, 16]);
}

#[test]
fn uniform_seven_and_three() {
    let parts = uniform(singles(20), sizes(7, 3), 42).unwrap();
    assert_eq!(parts.train1, [19, 5, 14, 4, 9, 13, 15]);
    assert_eq!(parts.train2, [9, 5, 15]);
    assert_eq!(parts.test, [18, 6, 12, 17, 10, 1, 11, 2, 16, 7, 8, 0, 3]);
}

#[test]
fn rounding_drift_goes_to_the_first_bins() {
    let names: Vec<String> = ["A", "B", "C", "D"].map(String::from).to_vec();
    let quotas = |size, counts: &[usize]| quotas("--train1-size", size, counts, counts.iter().sum(), &names);
    assert_eq!(quotas(7, &[12, 4, 4]).unwrap(), [5, 1, 1]);
    // A third each rounds to 0: one too few in all.
    assert_eq!(quotas(1, &[5, 5, 5]).unwrap(), [1, 0, 0]);
    // 3.5, 1.75 and 1.75 round to 4, 2 and 2: one too many in all.
    assert_eq!(quotas(7, &[10, 5, 5]).unwrap(), [3, 2, 2]);
    // 0.5 and 1.5 are ties and go to the even neighbour.
    assert_eq!(quotas(10, &[1, 3, 16]).unwrap(), [0, 2, 8]);
    // 0.2 rounds to 0, three times 1.6 to 2: the one too many would be taken from nothing.
    let message = quotas(5, &[1, 8, 8, 8]).unwrap_err().to_string();
    assert!(message.contains("leaves -1 records to A"), "{message}");
}

#[test]
fn sizes_that_cannot_be_met_are_refused() {
    let message = uniform(singles(5), sizes(6, 1), 1).unwrap_err().to_string();
    assert!(message.starts_with("--train1-size 6 exceeds the 5 usable records"), "{message}");
    let message = uniform(singles(5), sizes(3, 4), 1).unwrap_err().to_string();
    assert!(message.starts_with("--train2-size 4 exceeds the 3 records of train1"), "{message}");
    let message = stratified(spec_bins(), sizes(25, 3), 42).unwrap_err().to_string();
    assert!(message.contains("needs 15 RETAIN records"), "{message}");
}

#[test]
fn train2_of_a_small_train1_is_all_of_it() {
    let mut parts = stratified(spec_bins(), sizes(5, 50), 42).unwrap();
    parts.train1.sort_unstable();
    parts.train2.sort_unstable();
    assert_eq!(parts.train1, parts.train2);
}

#[test]
fn units_stay_whole_and_every_record_is_dealt_once() {
    let mut total = 0;
    let units: Vec<Unit> = (0..50)
        .map(|unit| {
            let start = total;
            total += 1 + unit % 4;
            (start..total).collect()
        })
        .collect();
    let bins = vec![("A".to_owned(), units[..30].to_vec()), ("B".to_owned(), units[30..].to_vec())];
    for parts in [uniform(units.clone(), sizes(60, 20), 7), stratified(bins, sizes(60, 20), 7)] {
        let parts = parts.unwrap();
        let train1: HashSet<usize> = parts.train1.iter().copied().collect();
        let test: HashSet<usize> = parts.test.iter().copied().collect();
        assert_eq!((parts.train1.len() + parts.test.len(), train1.len() + test.len()), (total, total));
        assert!(train1.is_disjoint(&test));
        assert!(units.iter().all(|unit| unit.iter().all(|index| train1.contains(index) == train1.contains(&unit[0]))));
        assert!(parts.train2.len() == 20 && parts.train2.iter().all(|index| train1.contains(index)));
        // A bin goes over its share by less than its largest unit.
        assert!((60..=66).contains(&parts.train1.len()), "{}", parts.train1.len());
    }
}
