//! The fast path against the naive objective, over every loss, mask mode and option together: shared and separate
//! prompts, dropout, packs of any size, recomputed layers, an adapter and all weights, weight 0 and α_KL 0.

use super::*;
use crate::model::lora::{LoraConfig, Module};
use crate::model::pack::rows_of;
use crate::objective::loss::PreferenceLoss;
use crate::objective::step::{self, DropoutKey, LossParts, Policy, Settings};

/// One line of the table.
#[derive(Debug, Clone, Copy)]
struct Case {
    loss: PreferenceLoss,
    nll_weight: f64,
    alpha_kl: f64,
    mask: MaskMode,
    max_length: usize,
    dropout: f64,
}

const LOSSES: [PreferenceLoss; 4] =
    [PreferenceLoss::Dpo, PreferenceLoss::Ipo, PreferenceLoss::Cdpo, PreferenceLoss::Rdpo];

/// Every loss with every mask mode, and the options in turn.
fn cases(dropout: &[f64]) -> Vec<Case> {
    let mut cases = Vec::new();
    for loss in LOSSES {
        // At 30 tokens exact mode takes a different part of the prompt for each response.
        for (mask, max_length) in [(MaskMode::Exact, 256), (MaskMode::Exact, 30), (MaskMode::Reference, 256)] {
            for &dropout in dropout {
                let turn = cases.len();
                let (nll_weight, alpha_kl) = ([0.0, 0.5][turn % 2], [0.7, 0.7, 0.0][turn % 3]);
                cases.push(Case { loss, nll_weight, alpha_kl, mask, max_length, dropout });
            }
        }
    }
    cases
}

/// Loss and gradient of a case in packs of at most `budget` tokens.
fn fast(
    policy: Policy<'_>,
    parameters: &[(String, Tensor)],
    items: &[Item],
    settings: &Settings,
    dropout: Option<DropoutKey>,
    budget: usize,
) -> (f64, Vec<f64>) {
    let mut parts = LossParts::default();
    for pack in crate::dataset::packs(items.iter(), budget) {
        parts.add(&step::accumulate(policy, &pack, settings, 1.0, dropout).unwrap());
    }
    (parts.total(), take_gradients(parameters))
}

fn check(policy: Policy<'_>, parameters: &[(String, Tensor)], case: Case) {
    let epsilon = if matches!(case.loss, PreferenceLoss::Cdpo | PreferenceLoss::Rdpo) { 0.1 } else { 0.0 };
    let Case { loss, nll_weight, alpha_kl, .. } = case;
    let settings = Settings { beta: 0.3, epsilon, alpha_kl, loss, nll_weight };
    let dropout = (case.dropout > 0.0).then_some(DropoutKey { probability: case.dropout, seed: 3, epoch: 1, step: 2 });
    let mut items = all_terms(case.mask, case.max_length);
    // A record of weight 0 adds nothing, wherever it lies.
    items.insert(1, item(case.mask, case.max_length, 3, Term::PunishBoth, 0.0));
    let items = with_references(policy.reference, items);

    let value = naive::total(policy, &items.iter().collect::<Vec<_>>(), &settings, dropout);
    let tensors: Vec<&Tensor> = parameters.iter().map(|(_, t)| t).collect();
    let loss = value.double_value(&[]);
    let automatic: Vec<f64> =
        Tensor::run_backward(&[value], &tensors, false, false).iter().flat_map(step::to_f64).collect();
    let mut gradients = Vec::new();
    for (recompute, budget) in [(false, 4096), (true, 4096), (false, 1), (true, 100)] {
        let policy = Policy { recompute, ..policy };
        let (ours, gradient) = fast(policy, parameters, &items, &settings, dropout, budget);
        let what = format!("{case:?}, recompute {recompute}, packs of {budget}");
        close(&format!("{what}: loss"), &[ours], &[loss], TIGHT);
        close(&format!("{what}: gradient"), &gradient, &automatic, TIGHT);
        gradients.push(gradient);
    }
    assert!(gradients[0] == gradients[1], "{case:?}: layers computed once more give other bits");
}

/// Moves tensors a little, so that π is not π_ref and no factor is zero.
#[test]
fn the_cases_hold_shared_and_separate_prompts() {
    let shared = |mask, max_length| {
        let items = all_terms(mask, max_length);
        let pairs = items.iter().filter(|item| item.sequences.len() == 2);
        pairs
            .map(|item| item.sequences.iter().map(|s| s.tokens.len()).sum::<usize>() > rows_of(&item.sequences))
            .collect()
    };
    let (long, short): (Vec<bool>, Vec<bool>) = (shared(MaskMode::Exact, 256), shared(MaskMode::Exact, 30));
    assert_eq!(long, [true; 3]);
    assert!(short.contains(&false), "{short:?}");
    assert_eq!(shared(MaskMode::Reference, 256), [true; 3]);
}

#[test]
fn adapters_have_the_naive_loss_and_gradient_in_every_case() {
    let decoder = decoder("tied");
    let everywhere = LoraConfig { r: 3, alpha: 5.0, dropout: 0.0, targets: Module::ALL.into_iter().collect() };
    let fresh = Lora::fresh(everywhere, &decoder.config, 1, Device::Cpu);
    shake(&fresh.named_parameters());
    for adapter in [adapter(&decoder, "adapter"), fresh] {
        let parameters = trained(adapter.named_parameters());
        let policy = Policy {
            decoder: &decoder,
            adapter: Some(&adapter),
            reference: &decoder,
            train_head: false,
            recompute: false,
        };
        cases(&[0.0, 0.25]).into_iter().for_each(|case| check(policy, &parameters, case));
    }
}

#[test]
fn full_models_have_the_naive_loss_and_gradient_in_every_case() {
    for name in ["tied", "untied"] {
        let (decoder, frozen) = (decoder(name), decoder(name));
        shake(&decoder.named_parameters());
        let parameters = trained(decoder.named_parameters());
        let policy =
            Policy { decoder: &decoder, adapter: None, reference: &frozen, train_head: true, recompute: false };
        cases(&[0.0]).into_iter().for_each(|case| check(policy, &parameters, case));
    }
}
