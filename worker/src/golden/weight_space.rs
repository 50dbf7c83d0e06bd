//! Scores in the space of a model's own weights: against explicit gradients by all parameters in every family, and against
//! scores in the space of fresh adapters, which they are the mean of but for a factor (spec 5.6).

use super::families::{SETTINGS, Shape, shapes};
use super::*;
use crate::model::lora::{LoraConfig, Module};
use crate::model::tangent::Direction;
use crate::model::weight_space::{Space, Weights};
use crate::objective::step::{self, Policy};
use crate::score::direction::{pack_scores, weight_gradient};

fn adapter_of(decoder: &Decoder, is_fresh: bool) -> Lora {
    let config = LoraConfig { r: 3, alpha: 6.0, dropout: 0.0, targets: Module::ALL.into_iter().collect() };
    let adapter = Lora::fresh(config, &decoder.config, 1, Device::Cpu);
    if !is_fresh {
        super::scores::give_b_values(&adapter);
    }
    adapter
}

/// A gold pair, and items of every kind that is scored; the first is the gold pair itself.
fn gold_and_items(shape: &Shape, decoder: &Decoder) -> (Item, Vec<Item>) {
    let gold = with_references(decoder, vec![shape.pair()]).remove(0);
    let others = vec![
        shape.item(Term::Prefer(Part::Chosen, Part::Rejected), &[1, 0]),
        shape.item(Term::PunishBoth, &[0, 1]),
        shape.item(Term::PunishOne(Part::Rejected), &[1]),
    ];
    let items = std::iter::once(gold.clone()).chain(with_references(decoder, others)).collect();
    (gold, items)
}

/// The gradient of an item's loss by every parameter, by automatic differentiation of the naive objective.
fn explicit(policy: Policy<'_>, parameters: &[(String, Tensor)], item: &Item) -> Vec<(String, Tensor)> {
    let loss = naive::total(policy, &[item], &SETTINGS, None);
    let tensors: Vec<&Tensor> = parameters.iter().map(|(_, t)| t).collect();
    let gradients = Tensor::run_backward(&[loss], &tensors, false, false);
    parameters.iter().zip(gradients).map(|((name, _), gradient)| (name.clone(), gradient)).collect()
}

fn dot(a: &Tensor, b: &Tensor) -> f64 {
    (a.to_kind(Kind::Double) * b.to_kind(Kind::Double)).sum(Kind::Double).double_value(&[])
}

/// In every family, at a fresh adapter and at a trained one, over all parameters and over linear layers alone.
#[test]
fn scores_are_dot_products_of_gradients_of_weights_in_every_family() {
    for (shape, is_fresh) in shapes().iter().flat_map(|shape| [(shape, true), (shape, false)]) {
        let (decoder, frozen) = (shape.decoder(Kind::Float), shape.decoder(Kind::Float));
        let adapter = adapter_of(&frozen, is_fresh);
        let (gold, items) = gold_and_items(shape, &frozen);
        let parameters = trained(decoder.named_parameters());
        let policy = Policy {
            decoder: &decoder,
            adapter: Some(&adapter),
            reference: &frozen,
            train_head: true,
            recompute: false,
        };
        let of_gold = explicit(policy, &parameters, &gold);
        let of_items: Vec<_> = items.iter().map(|item| explicit(policy, &parameters, item)).collect();
        let some = Space::Targets([Module::Q, Module::V, Module::Down].into_iter().collect());
        for space in [Space::Full, Space::Targets(Module::ALL.into_iter().collect()), some] {
            let what = format!("{}, fresh: {is_fresh}, {space:?}", shape.name);
            let all = std::slice::from_ref(&gold);
            let (value, direction) =
                weight_gradient(&frozen, &adapter, &space, all, &SETTINGS, 1, &mut || Ok(())).unwrap();
            close(&what, &[value], &[naive::total(policy, &[&gold], &SETTINGS, None).double_value(&[])], TIGHT);
            let moving = direction.named();
            let is_full = space == Space::Full;
            assert_eq!(moving.len() == parameters.len(), is_full, "{what}");
            assert_eq!(moving.iter().any(|(name, _)| !name.ends_with("_proj.weight")), is_full, "{what}");
            let flat = |of: &[(String, Tensor)]| -> Vec<f64> {
                let held = of.iter().filter(|(name, _)| moving.iter().any(|(own, _)| own == name));
                held.flat_map(|(_, t)| step::to_f64(t)).collect()
            };
            close(&format!("{what}: gradient"), &flat(&moving), &flat(&of_gold), TIGHT);
            let expected: Vec<f64> =
                of_items.iter().map(|item| flat(item).iter().zip(flat(&of_gold)).map(|(a, b)| a * b).sum()).collect();
            let all: Vec<&Item> = items.iter().collect();
            let ours = pack_scores(&frozen, &adapter, Direction::Weights(&direction), &all, &SETTINGS, is_fresh);
            close(&format!("{what}: scores"), &ours.raw, &expected, TIGHT);
        }
    }
}

/// The move of each parameter alone is the share of that parameter in the whole derivative, so that an error in a small
/// one cannot hide behind the embedding's.
#[test]
fn every_parameter_has_its_own_tangent() {
    for name in ["gemma2-untied-listed", "gemma2", "llama-linear-biases", "qwen2-tied"] {
        let shape = Shape::named(name);
        let (decoder, frozen) = (shape.decoder(Kind::Float), shape.decoder(Kind::Float));
        let adapter = adapter_of(&frozen, false);
        let (_, items) = gold_and_items(&shape, &frozen);
        let parameters = trained(decoder.named_parameters());
        let policy = Policy {
            decoder: &decoder,
            adapter: Some(&adapter),
            reference: &frozen,
            train_head: true,
            recompute: false,
        };
        let gradients: Vec<_> = items.iter().map(|item| explicit(policy, &parameters, item)).collect();
        for (at, (parameter, weight)) in parameters.iter().enumerate() {
            let direction = Weights::of(&frozen, Space::Full);
            tch::manual_seed(at as i64);
            let drawn = Tensor::randn(weight.size(), (Kind::Float, Device::Cpu));
            direction.named()[at].1.shallow_clone().copy_(&drawn);
            let all: Vec<&Item> = items.iter().collect();
            let ours = pack_scores(&frozen, &adapter, Direction::Weights(&direction), &all, &SETTINGS, false).raw;
            let expected: Vec<f64> = gradients.iter().map(|of| dot(&of[at].1, &drawn)).collect();
            let largest = expected.iter().fold(0.0f64, |m, x| m.max(x.abs()));
            if largest < 1e-4 {
                // A bias on keys shifts all scores of a query alike: rounding is all that is left.
                assert!(parameter.ends_with("k_proj.bias"), "{name} {parameter}: {expected:?}");
                assert!(ours.iter().all(|score| score.abs() < 1e-4), "{name} {parameter}: {ours:?}");
                continue;
            }
            close(&format!("{name} {parameter}"), &ours, &expected, 1e-4);
        }
    }
}

/// Under an adapter that computes, all weights and the adapter get their gradients, layers kept or computed once more.
#[test]
fn weights_under_an_adapter_have_their_naive_gradients() {
    for name in ["gemma2", "qwen2-window"] {
        let shape = Shape::named(name);
        let (decoder, frozen) = (shape.decoder(Kind::Float), shape.decoder(Kind::Float));
        let adapter = adapter_of(&frozen, false);
        let (_, items) = gold_and_items(&shape, &frozen);
        let parameters = trained(decoder.named_parameters().into_iter().chain(adapter.named_parameters()).collect());
        for recompute in [false, true] {
            let policy =
                Policy { decoder: &decoder, adapter: Some(&adapter), reference: &frozen, train_head: true, recompute };
            let items: Vec<&Item> = items.iter().collect();
            super::gradients::check_against_naive(name, policy, &parameters, &items, &SETTINGS);
        }
    }
}

/// Other chunks of gold items give the same gradient; whatever happens, the decoder is left as it was.
#[test]
fn a_gradient_of_weights_is_summed_over_chunks_and_leaves_the_decoder_alone() {
    let shape = Shape::named("gemma2");
    let decoder = shape.decoder(Kind::Float);
    let adapter = adapter_of(&decoder, true);
    let (_, items) = gold_and_items(&shape, &decoder);
    let flat = |rows: usize| {
        let mut beats = 0;
        let (value, sum) = weight_gradient(&decoder, &adapter, &Space::Full, &items, &SETTINGS, rows, &mut || {
            beats += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!(beats, items.len().div_ceil(rows));
        let gradient: Vec<f64> = sum.named().iter().flat_map(|(_, t)| step::to_f64(t)).collect();
        (value, gradient)
    };
    let (value, gradient) = flat(items.len());
    let (other, in_chunks) = flat(1);
    close("loss", &[other], &[value], TIGHT);
    close("gradient", &in_chunks, &gradient, TIGHT);
    let bad = Item { reference: vec![f64::NAN; 2], ..items[0].clone() };
    assert!(weight_gradient(&decoder, &adapter, &Space::Full, &[bad], &SETTINGS, 1, &mut || Ok(())).is_err());
    for (name, weight) in decoder.named_parameters() {
        assert!(!weight.requires_grad() && !weight.grad().defined(), "{name}");
    }
}

/// A bf16 model's gradient is summed in f32. Its scores are about as near to those in f32 as products of gradients that
/// bf16 backward passes give.
#[test]
fn bf16_scores_along_weights_are_as_near_to_f32_as_products_of_bf16_gradients() {
    let (mut own, mut explicit) = (Vec::new(), Vec::new());
    for shape in shapes() {
        let scores = |kind: Kind| {
            let decoder = shape.decoder(kind);
            let adapter = adapter_of(&decoder, false);
            let (_, items) = gold_and_items(&shape, &decoder);
            let gradients: Vec<Weights> = items
                .iter()
                .map(|item| {
                    let item = std::slice::from_ref(item);
                    weight_gradient(&decoder, &adapter, &Space::Full, item, &SETTINGS, 1, &mut || Ok(())).unwrap().1
                })
                .collect();
            assert!(gradients[0].named().iter().all(|(_, moved)| moved.kind() == Kind::Float));
            let all: Vec<&Item> = items.iter().collect();
            let direction = Direction::Weights(&gradients[0]);
            let along = pack_scores(&decoder, &adapter, direction, &all, &SETTINGS, false).raw;
            let product = |other: &Weights| -> f64 {
                gradients[0].named().iter().zip(other.named()).map(|((_, a), (_, b))| dot(a, &b)).sum()
            };
            (along, gradients.iter().map(product).collect::<Vec<f64>>())
        };
        let (exact, _) = scores(Kind::Float);
        let (along, products) = scores(Kind::BFloat16);
        let errors = [relative_error(&along, &exact), relative_error(&products, &exact)];
        println!("{}: bf16 scores {:.1e} off, products of bf16 gradients {:.1e}", shape.name, errors[0], errors[1]);
        own.push(errors[0]);
        explicit.push(errors[1]);
    }
    let mean = |errors: &[f64]| errors.iter().sum::<f64>() / errors.len() as f64;
    println!("mean {:.1e} and {:.1e}", mean(&own), mean(&explicit));
    assert!(mean(&own) <= 1.5 * mean(&explicit), "{own:?} against {explicit:?}");
}

/// Spec 5.6: over the draws of A, scores in the space of a fresh adapter have the mean (α/r)²·(r/(3·d_in)) times the score
/// in the space of the weights it sits on: 4 standard errors of the mean hold it, and not a factor that is a tenth off.
#[test]
fn adapters_project_the_scores_of_the_weights_they_sit_on() {
    const SEEDS: u64 = 300;
    let (r, alpha) = (64, 96.0);
    let shape = Shape::named("llama31");
    let decoder = shape.decoder(Kind::Float);
    // Both take the residual stream in.
    let targets: std::collections::BTreeSet<Module> = [Module::Q, Module::V].into_iter().collect();
    let (gold, items) = gold_and_items(&shape, &decoder);
    let (gold, items) = (std::slice::from_ref(&gold), items.iter().collect::<Vec<_>>());
    let fresh = |seed| {
        let config = LoraConfig { r, alpha, dropout: 0.0, targets: targets.clone() };
        Lora::fresh(config, &decoder.config, seed, Device::Cpu)
    };

    let space = Space::Targets(targets.clone());
    let adapter = fresh(0);
    let (_, direction) = weight_gradient(&decoder, &adapter, &space, gold, &SETTINGS, 1, &mut || Ok(())).unwrap();
    let of_weights = pack_scores(&decoder, &adapter, Direction::Weights(&direction), &items, &SETTINGS, true).raw;
    let factor = (alpha / r as f64).powi(2) * r as f64 / (3.0 * decoder.config.hidden_size as f64);

    let of_adapters: Vec<Vec<f64>> = (0..SEEDS)
        .map(|seed| {
            let adapter = fresh(seed);
            let direction = gold_gradient(&decoder, &adapter, gold, &SETTINGS, 1);
            pack_scores(&decoder, &adapter, Direction::Adapter(&direction), &items, &SETTINGS, true).raw
        })
        .collect();
    let count = SEEDS as f64;
    for (i, of_weights) in of_weights.iter().enumerate() {
        let mean = of_adapters.iter().map(|scores| scores[i]).sum::<f64>() / count;
        let variance = of_adapters.iter().map(|scores| (scores[i] - mean).powi(2)).sum::<f64>() / (count - 1.0);
        let error = (variance / count).sqrt();
        let apart = |expected: f64| (mean - expected) / error;
        let expected = factor * of_weights;
        println!(
            "item {i}: {mean:.4e} ± {error:.1e}, {expected:.4e} expected: {:+.1} standard errors",
            apart(expected)
        );
        assert!(apart(expected).abs() < 4.0, "item {i}: {mean:e} ± {error:e}, {expected:e} expected");
        // The last item is nearly orthogonal to the gold pair, and its mean the least certain.
        for wrong in [0.9, 1.1].into_iter().filter(|_| i < 3) {
            assert!(apart(wrong * expected).abs() > 4.0, "item {i}: {wrong} times the factor would pass");
        }
    }
}
