//! Impact scores: against explicit per-sample gradients of PEFT and of our own, and the invariances of spec 5.6.

use super::*;
use crate::collective::Alone;
use crate::control::Control;
use crate::dataset::{self, GoldFile, gold_items, packs};
use crate::model::tangent::Direction;
use crate::objective::loss::PreferenceLoss;
use crate::objective::method::{Method, Recipe};
use crate::objective::step::{self, Item, Policy, Settings};
use crate::reference::{self, Keys, Known};
use crate::score::direction::pack_scores;
use crate::score::options::ScoreSpace;
use crate::score::point::Point;
use crate::score::pull;
use shared::quality::Filter;
use shared::weights::{WeightNorm, weights};

fn settings(beta: f64) -> Settings {
    Settings { beta, epsilon: 0.0, alpha_kl: 0.0, loss: PreferenceLoss::Dpo, nll_weight: 0.0 }
}

fn items(method: Method, records: Vec<Record>) -> Vec<Item> {
    let recipe = Recipe { method, alpha_kl: 0.0, filter: Filter::default() };
    data_set(records).items(&encoder(MaskMode::Exact), &recipe, 256).unwrap().into_iter().flatten().collect()
}

fn gold_direction(decoder: &Decoder, adapter: &Lora, beta: f64, rows: usize) -> Lora {
    let mut gold = gold_items(&encoder(MaskMode::Exact), &gold(), GoldFile::Given(Path::new("gold")), 256).unwrap();
    reference::fill(
        decoder,
        &mut gold.iter_mut().collect::<Vec<_>>(),
        &Known::default(),
        None,
        dataset::PACK_TOKENS,
        &Control::default(),
        &mut Alone,
    )
    .unwrap();
    gold_gradient(decoder, adapter, &gold, &settings(beta), rows)
}

fn is_fresh(adapter: &Lora) -> bool {
    adapter.iter().all(|(_, _, f)| f.b.count_nonzero(None).int64_value(&[]) == 0)
}

fn raw(decoder: &Decoder, adapter: &Lora, direction: &Lora, items: &[Item], beta: f64, budget: usize) -> Vec<f64> {
    packs(items.iter(), budget)
        .iter()
        .flat_map(|pack| {
            pack_scores(decoder, adapter, Direction::Adapter(direction), pack, &settings(beta), is_fresh(adapter)).raw
        })
        .collect()
}

/// At the fresh start (all ratios 0) and at a trained adapter (real ratios, A-blocks count too).
#[test]
fn raw_scores_are_those_of_per_sample_gradients_in_peft() {
    let golden = golden();
    let decoder = decoder("tied");
    for name in ["adapter-start", "adapter"] {
        let adapter = adapter(&decoder, name);
        assert_eq!(is_fresh(&adapter), name == "adapter-start");
        let direction = gold_direction(&decoder, &adapter, 0.3, 2);
        let ours = raw(&decoder, &adapter, &direction, &items(Method::Trace, records()), 0.3, dataset::PACK_TOKENS);
        close(name, &ours, &floats(&golden["scores"][name]), 1e-4);
    }
}

/// What scoring finds on its way is what training would compute, at a fresh adapter and at a trained one.
#[test]
fn scoring_knows_the_reference_log_probs() {
    let decoder = decoder("tied");
    for name in ["adapter-start", "adapter"] {
        let adapter = adapter(&decoder, name);
        let direction = gold_direction(&decoder, &adapter, 0.3, 2);
        let mut items = items(Method::Trace, records());
        let all: Vec<&Item> = items.iter().collect();
        let scores =
            pack_scores(&decoder, &adapter, Direction::Adapter(&direction), &all, &settings(0.3), is_fresh(&adapter));
        let mut all: Vec<&mut Item> = items.iter_mut().collect();
        reference::fill(&decoder, &mut all, &Known::default(), None, 300, &Control::default(), &mut Alone).unwrap();
        let computed: Vec<f64> = items.iter().flat_map(|item| item.reference.clone()).collect();
        close(name, &scores.reference, &computed, TIGHT);
    }
}

/// The pulls of the gold pairs add up to the score, for every kind of term, at a fresh adapter and at a trained one.
#[test]
fn pulls_of_gold_pairs_add_up_to_the_score() {
    let decoder = decoder("tied");
    for name in ["adapter-start", "adapter"] {
        let adapter = adapter(&decoder, name);
        let point =
            Point { decoder: &decoder, adapter: &adapter, is_fresh: is_fresh(&adapter), space: ScoreSpace::Adapter };
        let direction = gold_direction(&decoder, &adapter, 0.3, 2);
        for method in [Method::Trace, Method::NoTriage] {
            let mut items = items(method, records());
            let scores = raw(&decoder, &adapter, &direction, &items, 0.3, dataset::PACK_TOKENS);
            let mut gold =
                gold_items(&encoder(MaskMode::Exact), &gold(), GoldFile::Given(Path::new("g")), 256).unwrap();
            let mut all: Vec<&mut Item> = items.iter_mut().chain(&mut gold).collect();
            reference::fill(&decoder, &mut all, &Known::default(), None, 300, &Control::default(), &mut Alone).unwrap();
            let pulls = |item: &Item| {
                let own = point.gradient(std::slice::from_ref(item), &settings(0.3), 1, &mut || Ok(())).unwrap().1;
                pull::along(point, &own, &gold, &settings(0.3), 300)
            };
            let sums: Vec<f64> = items.iter().map(|item| pulls(item).iter().sum()).collect();
            close(&format!("{name} {method:?}"), &sums, &scores, TIGHT);
        }
    }
}

/// A pack whose log-probs are all known is not computed: a made-up value stays.
#[test]
fn known_reference_log_probs_are_taken_by_content() {
    let decoder = decoder("tied");
    let mut items = items(Method::Trace, records());
    let keys = Keys::of(&decoder);
    let (key, other) = (keys.key(&items[1].sequences[0]), keys.key(&items[1].sequences[1]));
    let mut record = Record::default();
    record.extra.insert(shared::weights::REFERENCE_LOGPS.to_owned(), serde_json::json!({key: -1.25, other: -2.5}));
    let mut known = Known::default();
    known.add_records(&[record], |at| at, Path::new("records")).unwrap();
    let mut all: Vec<&mut Item> = items.iter_mut().collect();
    reference::fill(&decoder, &mut all, &known, None, 300, &Control::default(), &mut Alone).unwrap();
    assert_eq!(items[1].reference, [-1.25, -2.5]);
    assert!(items[0].reference.iter().all(|logp| *logp < 0.0 && *logp != -1.25));
    let mut cut = items[1].sequences[0].clone();
    cut.scored.pop();
    assert_ne!(keys.key(&cut), keys.key(&items[1].sequences[0]), "other tokens scored");
}

#[test]
fn pack_sizes_and_orders_change_scores_by_rounding_only() {
    let decoder = decoder("tied");
    for name in ["adapter-start", "adapter"] {
        let adapter = adapter(&decoder, name);
        let direction = gold_direction(&decoder, &adapter, 0.3, 2);
        let one_pack = raw(&decoder, &adapter, &direction, &items(Method::Trace, records()), 0.3, 1 << 20);
        for budget in [1, 300, 500] {
            let direction = gold_direction(&decoder, &adapter, 0.3, budget);
            let other = raw(&decoder, &adapter, &direction, &items(Method::Trace, records()), 0.3, budget);
            close(&format!("{name}, packs of {budget}"), &other, &one_pack, TIGHT);
        }
        let backwards = items(Method::Trace, records().into_iter().rev().collect());
        let mut other = raw(&decoder, &adapter, &direction, &backwards, 0.3, 300);
        other.reverse();
        close(&format!("{name}, backwards"), &other, &one_pack, TIGHT);
    }
}

/// For every method that scores: the directional derivative equals the dot product with the item's own gradient.
#[test]
fn scores_equal_explicit_gradients_for_every_weighted_method() {
    let decoder = decoder("untied");
    let base = decoder_of_untied_adapter(&decoder);
    let direction = gold_direction(&decoder, &base, 0.3, 2);
    let along: Vec<f64> = direction.named_parameters().iter().flat_map(|(_, t)| step::to_f64(t)).collect();
    let corrected = || {
        let mut records = records();
        for record in &mut records {
            record.oracle_response = Some("Ask at the desk.".into());
            // So that U2A, too, has a term for every record.
            record.rejected_violations = Some(vec![0]);
        }
        records
    };
    for method in [Method::Trace, Method::OraclePunish, Method::NoKl, Method::NoTriage, Method::U2a] {
        let mut items = items(method, corrected());
        assert_eq!(items.len(), records().len());
        let ours = raw(&decoder, &base, &direction, &items, 0.3, dataset::PACK_TOKENS);
        reference::fill(
            &decoder,
            &mut items.iter_mut().collect::<Vec<_>>(),
            &Known::default(),
            None,
            dataset::PACK_TOKENS,
            &Control::default(),
            &mut Alone,
        )
        .unwrap();
        let parameters = trained(base.named_parameters());
        let policy = Policy {
            decoder: &decoder,
            adapter: Some(&base),
            reference: &decoder,
            train_head: false,
            recompute: false,
        };
        let explicit: Vec<f64> = items
            .iter()
            .map(|item| {
                step::accumulate(policy, &[item], &settings(0.3), 1.0, None).unwrap();
                take_gradients(&parameters).iter().zip(&along).map(|(g, d)| g * d).sum()
            })
            .collect();
        for (_, tensor) in parameters {
            let _ = tensor.set_requires_grad(false);
        }
        close(&format!("{method:?}"), &ours, &explicit, 1e-4);
    }
}

/// An adapter on every layer of the untied model, neither factor zero.
fn decoder_of_untied_adapter(decoder: &Decoder) -> Lora {
    use crate::model::lora::{LoraConfig, Module};
    let config = LoraConfig { r: 2, alpha: 3.0, dropout: 0.0, targets: Module::ALL.into_iter().collect() };
    let adapter = Lora::fresh(config, &decoder.config, 5, Device::Cpu);
    give_b_values(&adapter);
    adapter
}

/// Makes a fresh adapter one that computes something.
pub(super) fn give_b_values(adapter: &Lora) {
    let mut random = shared::keyed_random::KeyedRandom::new(&[17]);
    for (_, _, factors) in adapter.iter() {
        let values: Vec<f32> = (0..factors.b.numel()).map(|_| (random.normal() * 0.05) as f32).collect();
        factors.b.shallow_clone().copy_(&Tensor::from_slice(&values).view(factors.b.size().as_slice()));
    }
}

/// γ is covered where weights are made; here β, the scale of g_J and α/r, at a fresh adapter.
#[test]
fn weights_do_not_depend_on_beta_or_scale_at_a_fresh_adapter() {
    let decoder = decoder("tied");
    let weights_of = |adapter: &Lora, direction: &Lora, beta: f64| {
        let raw = raw(&decoder, adapter, direction, &items(Method::Trace, records()), beta, dataset::PACK_TOKENS);
        weights(&raw, 1.0, WeightNorm::Mean1, Path::new("records"), |i| i).unwrap()
    };
    let mut adapter = adapter(&decoder, "adapter-start");
    let expected = weights_of(&adapter, &gold_direction(&decoder, &adapter, 0.3, 2), 0.3);
    assert!(expected.iter().filter(|w| **w > 0.0).count() >= 2, "{expected:?}");
    for beta in [0.05, 2.0] {
        let direction = gold_direction(&decoder, &adapter, beta, 2);
        close(&format!("β = {beta}"), &weights_of(&adapter, &direction, beta), &expected, TIGHT);
    }
    let direction = gold_direction(&decoder, &adapter, 0.3, 2);
    for (_, _, factors) in direction.iter() {
        let _ = factors.b.shallow_clone().g_mul_scalar_(1.0 / 14.0);
        assert_eq!(factors.a.count_nonzero(None).int64_value(&[]), 0, "with B = 0 the A-blocks have no gradient");
    }
    close("mean instead of sum", &weights_of(&adapter, &direction, 0.3), &expected, TIGHT);
    adapter.config.alpha *= 3.0;
    let direction = gold_direction(&decoder, &adapter, 0.3, 2);
    close("α/r tripled", &weights_of(&adapter, &direction, 0.3), &expected, TIGHT);
}
