//! Every family and shape of `tests/golden/families` against transformers: configuration, hidden states, logits,
//! log-probs, greedy generation, gradients of all weights; and soft-caps and windows in the closed form and in scores.

use super::*;
use crate::generate::cache::generate;
use crate::generate::sample::Sampling;
use crate::model::config::ModelConfig;
use crate::model::decoder::Extras;
use crate::model::lora::{LoraConfig, Module};
use crate::model::pack::{Pack, Want};
use crate::model::tangent::Direction;
use crate::model::tensor_file::TensorFile;
use crate::objective::loss::PreferenceLoss;
use crate::objective::method::{Part, Term};
use crate::objective::step::{self, Item, Policy, Settings, to_f64};
use crate::placement::Kernel;
use crate::score::direction::pack_scores;
use crate::text::Sequence;
use shared::keyed_random::KeyedRandom;

pub(super) const SETTINGS: Settings =
    Settings { beta: 0.3, epsilon: 0.0, alpha_kl: 0.7, loss: PreferenceLoss::Dpo, nll_weight: 0.0 };

/// A golden checkpoint with its values.
pub(super) struct Shape {
    pub(super) name: String,
    folder: PathBuf,
    golden: Value,
    values: TensorFile,
}

impl Shape {
    pub(super) fn named(name: &str) -> Shape {
        let folder = super::folder("../families").join(name);
        let golden = shared::input::read_json(&folder.join("golden.json")).unwrap();
        let values = TensorFile::open(&folder.join("golden.safetensors")).unwrap();
        Shape { name: name.to_owned(), folder, golden, values }
    }

    pub(super) fn decoder(&self, dtype: Kind) -> Decoder {
        Decoder::load(&self.folder, dtype, Device::Cpu).unwrap()
    }

    fn value(&self, name: &str) -> Vec<f64> {
        to_f64(&self.values.tensor(name).unwrap())
    }

    /// The golden sequences, every token but the first scored.
    fn sequences(&self) -> Vec<Sequence> {
        let lists: Vec<Vec<i64>> = integers(&self.golden["sequences"]);
        let whole = |tokens: Vec<i64>| {
            let scored: Vec<usize> = (1..tokens.len()).collect();
            Sequence { kl: (0..tokens.len() - 1).collect(), scored, prompt_len: 1, cut: 0, tokens }
        };
        lists.into_iter().map(whole).collect()
    }

    fn pack(&self) -> Pack {
        let sequences = self.sequences();
        Pack::new(&sequences.iter().map(|s| vec![(s, Want::LOG_PROB)]).collect::<Vec<_>>(), Device::Cpu)
    }

    pub(super) fn item(&self, term: Term, sequences: &[usize]) -> Item {
        let all = self.sequences();
        let sequences = sequences.iter().map(|&i| all[i].clone()).collect();
        Item { record: 0, term, weight: 1.0, sequences, reference: vec![-40.0, -20.0] }
    }

    /// The gradient of the sum of all log-probs by every weight, by name.
    fn gradients(&self, decoder: &Decoder) -> Vec<(String, Vec<f64>)> {
        let parameters = trained(decoder.named_parameters());
        // The mean negative log-likelihood times −m is the sum of log-probs.
        let items: Vec<Item> = (0..self.sequences().len())
            .map(|i| {
                let item = self.item(Term::Imitate, &[i]);
                Item { weight: -(item.sequences[0].scored.len() as f64), ..item }
            })
            .collect();
        let policy = Policy { decoder, adapter: None, reference: decoder, train_head: true, recompute: false };
        step::accumulate(policy, &items.iter().collect::<Vec<_>>(), &SETTINGS, 1.0, None).unwrap();
        parameters.into_iter().map(|(name, tensor)| (name, to_f64(&tensor.grad()))).collect()
    }

    /// Two responses to one prompt, which is longer than the windows.
    pub(super) fn pair(&self) -> Item {
        let all = self.sequences();
        let item = self.item(Term::Prefer(Part::Chosen, Part::Rejected), &[0, 0]);
        let response = |mut sequence: Sequence, tokens: &[i64]| {
            sequence.prompt_len = 12;
            sequence.tokens.truncate(12);
            sequence.tokens.extend(tokens);
            sequence.scored = (12..sequence.tokens.len()).collect();
            sequence
        };
        let [first, second] = [&all[0].tokens[12..], &all[1].tokens].map(|t| response(all[0].clone(), t));
        Item { sequences: vec![first, second], ..item }
    }
}

pub(super) fn shapes() -> Vec<Shape> {
    let mut names: Vec<String> = std::fs::read_dir(folder("../families"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names.len(), 10);
    names.iter().map(|name| Shape::named(name)).collect()
}

fn rms_error(ours: &[f64], theirs: &[f64]) -> f64 {
    let square = |sum: f64, (a, b): (&f64, &f64)| sum + (a - b).powi(2);
    (ours.iter().zip(theirs).fold(0.0, square) / theirs.len() as f64).sqrt()
}

/// With the kernels of the CPU and those of a GPU, which the CPU computes, too.
#[test]
fn hidden_states_logits_and_log_probs_are_those_of_transformers() {
    for (shape, kernel) in shapes().iter().flat_map(|shape| [(shape, Kernel::Products), (shape, Kernel::Fused)]) {
        let mut decoder = shape.decoder(Kind::Float);
        decoder.kernel = kernel;
        let pack = shape.pack();
        let hidden = tch::no_grad(|| decoder.forward(&pack, Extras::default()));
        close(&format!("{} hidden", shape.name), &to_f64(&hidden), &shape.value("hidden"), TIGHT);
        let logits = tch::no_grad(|| decoder.head().logits(&hidden));
        close(&format!("{} logits", shape.name), &to_f64(&logits), &shape.value("logits"), TIGHT);
        let ours = step::token_log_probs(&decoder, None, &pack);
        close(&format!("{} log-probs", shape.name), &ours, &shape.value("log_probs"), TIGHT);
    }
}

/// Over all shapes, bf16 is no further from f32 than transformers' own bf16 is. Of a single shape there are few numbers,
/// and two roundings of the same differ by luck: a half more is allowed there, to f32 and to that other bf16.
#[test]
fn bf16_is_as_near_to_f32_as_that_of_transformers() {
    let mut ratios = Vec::new();
    for shape in shapes() {
        let decoder = shape.decoder(Kind::BFloat16);
        let hidden = tch::no_grad(|| decoder.forward(&shape.pack(), Extras::default()));
        let ours = to_f64(&tch::no_grad(|| decoder.head().logits(&hidden)));
        let (exact, theirs) = (shape.value("logits"), shape.value("logits_bf16"));
        let own = rms_error(&theirs, &exact);
        let (to_exact, to_theirs) = (rms_error(&ours, &exact) / own, rms_error(&ours, &theirs) / own);
        println!("{}: {own:.2e} apart; ours {to_exact:.2} of that from f32, {to_theirs:.2} from theirs", shape.name);
        assert!(to_exact <= 1.5 && to_theirs <= 1.5, "{}: {to_exact}, {to_theirs}", shape.name);
        assert!(to_exact > 0.1, "{}: bf16 was not computed in bf16", shape.name);
        ratios.push(to_exact);
    }
    mean_at_most("logits", &ratios, 1.1);
}

/// The same for hidden states, log-probs and the gradient of all weights, as shares of transformers' own bf16 errors.
#[test]
fn bf16_states_log_probs_and_gradients_are_as_near_to_f32() {
    let mut ratios = [const { Vec::new() }; 3];
    for shape in shapes() {
        let decoder = shape.decoder(Kind::BFloat16);
        let hidden = to_f64(&tch::no_grad(|| decoder.forward(&shape.pack(), Extras::default())));
        let log_probs = step::token_log_probs(&decoder, None, &shape.pack());
        let gradients = shape.gradients(&decoder);
        let all = |of: &dyn Fn(usize) -> Vec<f64>| (0..gradients.len()).flat_map(of).collect::<Vec<f64>>();
        let ours = all(&|i| gradients[i].1.clone());
        let exact = all(&|i| shape.value(&format!("grad.{}", gradients[i].0)));
        let norm = (exact.iter().map(|g| g * g).sum::<f64>() / exact.len() as f64).sqrt();
        let errors = [
            rms_error(&hidden, &shape.value("hidden")),
            rms_error(&log_probs, &shape.value("log_probs")),
            rms_error(&ours, &exact) / norm,
        ];
        for (i, name) in ["hidden", "log_probs", "gradient"].into_iter().enumerate() {
            let own = shape.golden["bf16_errors"][name].as_f64().unwrap();
            println!("{} {name}: {own:.2e} theirs, ours {:.2} of that", shape.name, errors[i] / own);
            assert!(errors[i] <= 2.0 * own && errors[i] >= 0.1 * own, "{} {name}: {}", shape.name, errors[i] / own);
            ratios[i].push(errors[i] / own);
        }
    }
    // A shape's gradient is ruled by few large numbers, so luck counts for more.
    for ((name, limit), ratios) in [("hidden", 1.1), ("log_probs", 1.1), ("gradient", 1.2)].into_iter().zip(&ratios) {
        mean_at_most(name, ratios, limit);
    }
}

#[track_caller]
fn mean_at_most(what: &str, ratios: &[f64], limit: f64) {
    let mean = ratios.iter().sum::<f64>() / ratios.len() as f64;
    println!("{what}: mean {mean:.3}");
    assert!(mean <= limit, "{what}: {mean}");
}

#[test]
fn both_spellings_describe_the_same_model() {
    let mut compared = 0;
    for shape in shapes() {
        let old = shape.folder.join("config-old-spelling.json");
        if !old.exists() {
            continue;
        }
        let mut old = ModelConfig::parse(&old, &std::fs::read(&old).unwrap()).unwrap();
        let mut new = ModelConfig::load(&shape.folder).unwrap();
        for layer in 0..new.layers {
            assert_eq!(old.attention(layer), new.attention(layer), "{}, layer {layer}", shape.name);
        }
        // The windows are written in different ways, and were just compared.
        (old.window, new.window) = (None, None);
        assert_eq!(old, new, "{}", shape.name);
        compared += 1;
    }
    assert_eq!(compared, 9);
}

#[test]
fn greedy_tokens_are_those_of_transformers() {
    for shape in shapes() {
        let decoder = shape.decoder(Kind::Float);
        let rows = shape.golden["greedy"].as_array().unwrap();
        let prompts: Vec<Vec<i64>> = rows.iter().map(|row| integers(&row["prompt"])).collect();
        let asked: Vec<(u64, &[i64])> = prompts.iter().map(|p| (0, p.as_slice())).collect();
        let expected: Vec<Vec<i64>> = rows.iter().map(|row| integers(&row["generated"])).collect();
        let generated = |asked: &[(u64, &[i64])]| -> Vec<Vec<i64>> {
            let sampling = Sampling::greedy();
            let responses = generate(&decoder, None, asked, &[], 0, expected[0].len(), &sampling).unwrap();
            responses.into_iter().map(|response| response.tokens).collect()
        };
        assert_eq!(generated(&asked), expected, "{}", shape.name);
        for (prompt, expected) in asked.iter().zip(&expected) {
            assert_eq!(&generated(&[*prompt])[0], expected, "{}, alone", shape.name);
        }
    }
}

#[test]
fn gradients_of_all_weights_are_those_of_transformers() {
    for (shape, kernel) in shapes().iter().flat_map(|shape| [(shape, Kernel::Products), (shape, Kernel::Fused)]) {
        let mut decoder = shape.decoder(Kind::Float);
        decoder.kernel = kernel;
        let gradients = shape.gradients(&decoder);
        for (name, ours) in &gradients {
            let theirs = shape.value(&format!("grad.{name}"));
            if theirs.iter().all(|x| x.abs() < 1e-3) {
                continue; // A bias on keys shifts all scores of a query alike: rounding is all that is left.
            }
            close(&format!("{} {name}", shape.name), ours, &theirs, 1e-4);
        }
        assert_eq!(shape.values.infos().len(), gradients.len() + 4, "{}", shape.name);
    }
}

/// With soft-caps and windows: KL and preference losses of the closed form against automatic differentiation, all
/// weights trained, away from π_ref.
#[test]
fn closed_form_gradients_hold_under_soft_caps() {
    for name in ["gemma2", "gemma2-untied-listed", "qwen2-window"] {
        let shape = Shape::named(name);
        let (decoder, frozen) = (shape.decoder(Kind::Float), shape.decoder(Kind::Float));
        let mut random = KeyedRandom::new(&[5]);
        for (_, tensor) in decoder.named_parameters() {
            let noise: Vec<f32> = (0..tensor.numel()).map(|_| (random.normal() * 0.02) as f32).collect();
            let _ = tensor.shallow_clone().g_add_(&Tensor::from_slice(&noise).view(tensor.size().as_slice()));
        }
        let parameters = trained(decoder.named_parameters());
        let policy =
            Policy { decoder: &decoder, adapter: None, reference: &frozen, train_head: true, recompute: false };
        let mut items = [shape.item(Term::Anchor, &[0]), shape.pair(), shape.item(Term::Imitate, &[1])];
        let sequences = &items[1].sequences;
        items[1].reference = sequences.iter().map(|s| naive_sum(&frozen, None, s)).collect();
        let items: Vec<&Item> = items.iter().collect();
        for recompute in [false, true] {
            let policy = Policy { recompute, ..policy };
            super::gradients::check_against_naive(name, policy, &parameters, &items, &SETTINGS);
        }
    }
}

fn naive_sum(decoder: &Decoder, adapter: Option<&Lora>, sequence: &Sequence) -> f64 {
    tch::no_grad(|| naive::token_log_probs(decoder, adapter, sequence, None)).sum(Kind::Double).double_value(&[])
}

/// The score of a record is the dot product of two gradients, for adapters on all linear layers, fresh and trained.
#[test]
fn scores_are_dot_products_of_gradients_in_every_family() {
    for (name, is_fresh) in ["gemma2", "qwen2-tied", "llama31"].into_iter().flat_map(|n| [(n, true), (n, false)]) {
        let shape = Shape::named(name);
        let decoder = shape.decoder(Kind::Float);
        let config = LoraConfig { r: 3, alpha: 6.0, dropout: 0.0, targets: Module::ALL.into_iter().collect() };
        let adapter = Lora::fresh(config, &decoder.config, 1, Device::Cpu);
        if !is_fresh {
            super::scores::give_b_values(&adapter);
        }
        let with_reference = |item: Item| {
            let reference = item.sequences.iter().map(|s| naive_sum(&decoder, None, s)).collect();
            Item { reference, ..item }
        };
        let item = with_reference(shape.item(Term::Prefer(Part::Chosen, Part::Rejected), &[1, 0]));
        let gold = with_reference(shape.pair());
        let direction = gold_gradient(&decoder, &adapter, std::slice::from_ref(&gold), &SETTINGS, 1);
        let ours = pack_scores(&decoder, &adapter, Direction::Adapter(&direction), &[&item], &SETTINGS, is_fresh);
        let gradient = |item: &Item| {
            let parameters = trained(adapter.named_parameters());
            let policy = Policy {
                decoder: &decoder,
                adapter: Some(&adapter),
                reference: &decoder,
                train_head: false,
                recompute: false,
            };
            let loss = naive::total(policy, &[item], &SETTINGS, None);
            let tensors: Vec<&Tensor> = parameters.iter().map(|(_, t)| t).collect();
            let all = Tensor::run_backward(&[loss], &tensors, false, false);
            all.iter().flat_map(to_f64).collect::<Vec<f64>>()
        };
        let product: f64 = gradient(&gold).iter().zip(gradient(&item)).map(|(a, b)| a * b).sum();
        close(&format!("{name}, fresh: {is_fresh}"), &ours.raw, &[product], 1e-4);
    }
}
