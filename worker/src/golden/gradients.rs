//! Losses and gradients: PEFT's adapter gradient, the naive objective's, finite differences, and packing.

use super::*;
use crate::model::head;
use crate::objective::loss::PreferenceLoss;
use crate::objective::method::{Part, Term};
use crate::objective::step::{self, DropoutKey, Item, LossParts, Policy, Settings};
use shared::keyed_random::KeyedRandom;

fn settings(loss: PreferenceLoss) -> Settings {
    let epsilon = if matches!(loss, PreferenceLoss::Cdpo | PreferenceLoss::Rdpo) { 0.1 } else { 0.0 };
    Settings { beta: 0.3, epsilon, alpha_kl: 0.7, loss, nll_weight: 0.0 }
}

fn gradients_of(
    policy: Policy<'_>,
    parameters: &[(String, Tensor)],
    items: &[&Item],
    settings: &Settings,
    dropout: Option<DropoutKey>,
) -> (LossParts, Vec<f64>) {
    let parts = step::accumulate(policy, items, settings, 1.0, dropout).unwrap();
    (parts, take_gradients(parameters))
}

/// Compares loss and gradient of the engine with the naive objective's value and automatic gradient.
pub(super) fn check_against_naive(
    what: &str,
    policy: Policy<'_>,
    parameters: &[(String, Tensor)],
    items: &[&Item],
    settings: &Settings,
) -> Vec<f64> {
    let (parts, ours) = gradients_of(policy, parameters, items, settings, None);
    let value = naive::total(policy, items, settings, None);
    close(&format!("{what}: loss"), &[parts.total()], &[value.double_value(&[])], TIGHT);
    let tensors: Vec<&Tensor> = parameters.iter().map(|(_, t)| t).collect();
    let automatic: Vec<f64> =
        Tensor::run_backward(&[value], &tensors, false, false).iter().flat_map(step::to_f64).collect();
    close(&format!("{what}: gradient"), &ours, &automatic, TIGHT);
    ours
}

/// As [`check_against_naive`], and compares with central differences of the naive value too: at the entry with the
/// largest gradient of each adapter factor, the embedding, the head, the final norm and one norm of a block.
fn check_by_differences(
    what: &str,
    policy: Policy<'_>,
    parameters: &[(String, Tensor)],
    item: &Item,
    settings: &Settings,
) {
    const TENSORS: [&str; 5] = ["lora_", "embed_tokens", "lm_head", "model.norm", "layers.1.input_layernorm"];
    let ours = check_against_naive(what, policy, parameters, &[item], settings);
    let loss = || naive::total(policy, &[item], settings, None).double_value(&[]);
    let largest = ours.iter().fold(0.0f64, |m, g| m.max(g.abs()));
    let mut start = 0;
    for (name, tensor) in parameters {
        let own = &ours[start..start + tensor.numel()];
        start += tensor.numel();
        if !TENSORS.iter().any(|part| name.contains(part)) {
            continue;
        }
        let entry = (0..own.len()).max_by(|&a, &b| own[a].abs().total_cmp(&own[b].abs())).unwrap();
        let numeric = tch::no_grad(|| central_difference(tensor, entry as i64, loss));
        let error = (numeric - own[entry]).abs() / largest;
        assert!(error < 1e-3, "{what}: {name}[{entry}]: {} by formula, {numeric} by differences", own[entry]);
    }
}

/// Central differences at two widths, combined so that the error of third order cancels: forward passes in f32 leave
/// noise of about 1e-6 of the loss, so the step must be wide.
fn central_difference(tensor: &Tensor, entry: i64, loss: impl Fn() -> f64) -> f64 {
    let flat = tensor.detach().view(-1);
    let at = flat.double_value(&[entry]);
    let difference = |h: f64| {
        let value = |x: f64| {
            let _ = flat.get(entry).fill_(x);
            (loss(), flat.double_value(&[entry]))
        };
        let ((above, x1), (below, x0)) = (value(at + h), value(at - h));
        let _ = flat.get(entry).fill_(at);
        (above - below) / (x1 - x0)
    };
    (4.0 * difference(4e-3) - difference(8e-3)) / 3.0
}

#[test]
fn the_gradient_of_a_log_prob_is_that_of_peft() {
    let golden = golden();
    let decoder = decoder("tied");
    let adapter = adapter(&decoder, "adapter");
    let parameters = trained(adapter.named_parameters());
    let mut item = item(MaskMode::Exact, 256, 0, Term::Imitate, 0.0);
    // The mean negative log-likelihood times −m is the sum of log-probs.
    item.weight = -(item.sequences[0].scored.len() as f64);
    let policy =
        Policy { decoder: &decoder, adapter: Some(&adapter), reference: &decoder, train_head: false, recompute: false };
    let (parts, ours) = gradients_of(policy, &parameters, &[&item], &settings(PreferenceLoss::Dpo), None);
    close("sum", &[parts.total()], &[golden["adapter"]["sum"].as_f64().unwrap()], TIGHT);
    let file = crate::model::tensor_file::TensorFile::open(&folder("gradients.safetensors")).unwrap();
    assert_eq!(file.infos().len(), parameters.len());
    let theirs: Vec<f64> = parameters
        .iter()
        .flat_map(|(name, _)| step::to_f64(&file.tensor(&format!("base_model.model.{name}")).unwrap()))
        .collect();
    close("gradient", &ours, &theirs, TIGHT);
}

#[test]
fn every_loss_of_an_adapter_has_its_naive_value_and_gradient() {
    let decoder = decoder("tied");
    let adapter = adapter(&decoder, "adapter");
    let parameters = trained(adapter.named_parameters());
    let policy =
        Policy { decoder: &decoder, adapter: Some(&adapter), reference: &decoder, train_head: false, recompute: false };
    let items = with_references(&decoder, all_terms(MaskMode::Exact, 256));
    for item in &items {
        let settings = settings(PreferenceLoss::Dpo);
        check_by_differences(&format!("{:?}", item.term), policy, &parameters, item, &settings);
    }
    for loss in [PreferenceLoss::Ipo, PreferenceLoss::Cdpo, PreferenceLoss::Rdpo] {
        check_by_differences(&format!("{loss:?}"), policy, &parameters, &items[0], &settings(loss));
    }
    let with_nll = Settings { nll_weight: 0.5, ..settings(PreferenceLoss::Dpo) };
    check_by_differences("DPO + NLL", policy, &parameters, &items[0], &with_nll);
    check_against_naive("all terms", policy, &parameters, &items.iter().collect::<Vec<_>>(), &with_nll);
}

/// All weights trained, away from π_ref: embedding, norms and head get their gradients, tied (both uses of the one
/// matrix add up) and untied.
#[test]
fn every_weight_of_a_full_model_has_its_naive_gradient() {
    for name in ["tied", "untied"] {
        let (decoder, frozen) = (decoder(name), decoder(name));
        let mut random = KeyedRandom::new(&[23]);
        for (_, tensor) in decoder.named_parameters() {
            let noise: Vec<f32> = (0..tensor.numel()).map(|_| (random.normal() * 0.01) as f32).collect();
            let _ = tensor.shallow_clone().g_add_(&Tensor::from_slice(&noise).view(tensor.size().as_slice()));
        }
        let parameters = trained(decoder.named_parameters());
        assert_eq!(parameters.iter().any(|(n, _)| n == "lm_head.weight"), name == "untied");
        let policy =
            Policy { decoder: &decoder, adapter: None, reference: &frozen, train_head: true, recompute: false };
        let items = with_references(&frozen, all_terms(MaskMode::Exact, 256));
        let settings = settings(PreferenceLoss::Dpo);
        for item in [&items[4], &items[5]] {
            check_by_differences(&format!("{name} {:?}", item.term), policy, &parameters, item, &settings);
        }
        check_against_naive(name, policy, &parameters, &items.iter().collect::<Vec<_>>(), &settings);
    }
}

#[test]
fn packing_changes_losses_and_gradients_by_rounding_only() {
    let decoder = decoder("tied");
    let adapter = adapter(&decoder, "adapter");
    let parameters = trained(adapter.named_parameters());
    let policy =
        Policy { decoder: &decoder, adapter: Some(&adapter), reference: &decoder, train_head: false, recompute: false };
    let items = with_references(&decoder, all_terms(MaskMode::Exact, 256));
    let settings = settings(PreferenceLoss::Dpo);
    let key = |step| DropoutKey { probability: 0.25, seed: 3, epoch: 1, step };
    let mut seen = Vec::new();
    for dropout in [None, Some(key(0)), Some(key(1))] {
        let all: Vec<&Item> = items.iter().collect();
        let (whole, gradient) = gradients_of(policy, &parameters, &all, &settings, dropout);
        let mut sum = LossParts::default();
        let mut backwards: Vec<&Item> = items.iter().rev().collect();
        for pack in crate::dataset::packs(backwards.drain(..), 1) {
            assert_eq!(pack.len(), 1);
            sum.add(&step::accumulate(policy, &pack, &settings, 1.0, dropout).unwrap());
        }
        close("gradient", &take_gradients(&parameters), &gradient, TIGHT);
        let list = |p: &LossParts| [p.invert, p.punish, p.kl, p.nll, p.margin];
        close("losses", &list(&sum), &list(&whole), TIGHT);
        assert_eq!((sum.accurate, sum.preferences, sum.tokens), (whole.accurate, whole.preferences, whole.tokens));
        seen.push(whole.total());
    }
    assert!(seen[0] != seen[1] && seen[1] != seen[2], "dropout must matter, and differ from step to step: {seen:?}");
}

/// The two responses of a pair share the mask of their prompt, in one pack as alone: with equal responses Δ is 0.
#[test]
fn dropout_of_the_prompt_is_one_for_both_responses() {
    let decoder = decoder("tied");
    let adapter = adapter(&decoder, "adapter");
    let _ = trained(adapter.named_parameters());
    let policy =
        Policy { decoder: &decoder, adapter: Some(&adapter), reference: &decoder, train_head: false, recompute: false };
    let mut item = item(MaskMode::Exact, 256, 0, Term::Prefer(Part::Chosen, Part::Rejected), 1.0);
    item.reference = vec![0.0, 0.0];
    // One scored token each, predicted from the last prompt token: only the shared prompt plays a part.
    for sequence in &mut item.sequences {
        sequence.tokens.truncate(sequence.prompt_len + 1);
        sequence.tokens[sequence.prompt_len] = 7;
        sequence.scored = vec![sequence.prompt_len];
    }
    let dropout = Some(DropoutKey { probability: 0.5, seed: 3, epoch: 0, step: 0 });
    let parts = step::accumulate(policy, &[&item], &settings(PreferenceLoss::Dpo), 1.0, dropout).unwrap();
    assert!(parts.margin.abs() < 1e-5, "{}", parts.margin);
}

/// Spec A.3: with the identity as head, hidden states are logits.
#[test]
fn kl_has_the_value_of_spec_a3_and_its_gradient() {
    let eye = Tensor::eye(3, (Kind::Float, Device::Cpu));
    let identity = head::Head { weight: &eye, softcap: None };
    let row = |values: [f32; 3]| Tensor::from_slice(&values).view([1, 3]);
    let reference = row([1.0, 0.0, -1.0]);
    let pulled = |policy: [f32; 3]| head::pulled_kl((&row(policy), identity), (&reference, identity));
    let kl = |policy: [f32; 3]| pulled(policy).values.double_value(&[0]);
    let at = [0.5, 0.2, -0.7f32];
    assert!((kl(at) - 0.062995455).abs() < 1e-7, "{}", kl(at));
    assert!(kl([1.0, 0.0, -1.0]).abs() < 1e-7);
    let two = Tensor::from_slice(&[2f32]);
    let of_head = head::kl_weight_gradient((&row(at), identity), (&reference, identity), &two);
    let ours = step::to_f64(&(pulled(at).pulls * two));
    let numeric: Vec<f64> = (0..3)
        .map(|i| {
            let (mut above, mut below) = (at, at);
            above[i] += 0.01;
            below[i] -= 0.01;
            2.0 * (kl(above) - kl(below)) / f64::from(above[i] - below[i])
        })
        .collect();
    close("KL gradient", &ours, &numeric, 1e-3);
    // dL/dW = (dL/dlogits)ᵀ·h for one row.
    let outer = row([ours[0] as f32, ours[1] as f32, ours[2] as f32]).tr().matmul(&row(at));
    close("KL gradient of the head", &step::to_f64(&of_head), &step::to_f64(&outer), TIGHT);
}
