//! The objective of spec 4 written out: one sequence at a time, whole softmaxes, automatic differentiation.
//!
//! Shares the decoder with the engine and nothing else, so that an error in the closed-form head, in packing, in the
//! bookkeeping of slopes or in the losses' derivatives cannot be in both.

use tch::{Kind, Tensor};

use crate::model::decoder::{Decoder, Extras};
use crate::model::dropout::{Dropout, token_key};
use crate::model::lora::Lora;
use crate::model::pack::{Pack, Want};
use crate::objective::loss::PreferenceLoss;
use crate::objective::method::Term;
use crate::objective::step::{DropoutKey, Item, Policy, Settings};
use crate::text::Sequence;

/// Logits of every position of a sequence: [t, V], f64.
pub fn logits(decoder: &Decoder, adapter: Option<&Lora>, sequence: &Sequence, dropout: Option<&Dropout>) -> Tensor {
    let pack = Pack::new(&[vec![(sequence, Want::LOG_PROB)]], decoder.device);
    let hidden = decoder.forward(&pack, Extras { adapter, dropout });
    let z = hidden.to_kind(Kind::Double).matmul(&decoder.head().weight.to_kind(Kind::Double).tr());
    match decoder.config.final_softcap {
        None => z,
        Some(cap) => (z / cap).tanh() * cap,
    }
}

/// Log-probs of the scored tokens: [m, 1], f64.
pub fn token_log_probs(
    decoder: &Decoder,
    adapter: Option<&Lora>,
    sequence: &Sequence,
    dropout: Option<&Dropout>,
) -> Tensor {
    let table = logits(decoder, adapter, sequence, dropout).log_softmax(-1, Kind::Double);
    let rows: Vec<i64> = sequence.scored.iter().map(|&t| t as i64 - 1).collect();
    let targets: Vec<i64> = sequence.scored.iter().map(|&t| sequence.tokens[t]).collect();
    table.index_select(0, &Tensor::from_slice(&rows)).gather(1, &Tensor::from_slice(&targets).unsqueeze(1), false)
}

/// Σ weight·ℓ over the items, as a scalar that can be differentiated.
pub fn total(policy: Policy<'_>, items: &[&Item], settings: &Settings, dropout: Option<DropoutKey>) -> Tensor {
    let terms: Vec<Tensor> = items.iter().map(|item| item_loss(policy, item, settings, dropout)).collect();
    Tensor::stack(&terms, 0).sum(Kind::Double)
}

/// The masks of one sequence: the prompt's are those of branch 0, the response's those of its part.
fn masks(item: &Item, i: usize, key: DropoutKey) -> Dropout {
    let (sequence, part) = (&item.sequences[i], item.term.parts()[i]);
    let key_of = |position: usize| {
        let branch = if position < sequence.prompt_len { 0 } else { 1 + part as u64 };
        token_key(key.seed, key.epoch, key.step, item.record as u64, branch, position as u64)
    };
    let token_keys = (0..sequence.tokens.len()).map(key_of).collect();
    Dropout { probability: key.probability, token_keys, device: tch::Device::Cpu }
}

fn item_loss(policy: Policy<'_>, item: &Item, settings: &Settings, dropout: Option<DropoutKey>) -> Tensor {
    let Policy { decoder, adapter, reference, .. } = policy;
    let beta = settings.beta;
    let masks: Vec<Option<Dropout>> =
        (0..item.sequences.len()).map(|i| dropout.map(|key| masks(item, i, key))).collect();
    let log_probs = |i: usize| token_log_probs(decoder, adapter, &item.sequences[i], masks[i].as_ref());
    let ratio = |i: usize| {
        let reference = tch::no_grad(|| token_log_probs(reference, None, &item.sequences[i], None).sum(Kind::Double));
        log_probs(i).sum(Kind::Double) - reference
    };
    let mean_nll = |i: usize| -log_probs(i).mean(Kind::Double);
    match item.term {
        Term::Prefer(..) => {
            let delta = ratio(0) - ratio(1);
            let (right, wrong) = (-(&delta * beta).log_sigmoid(), -(&delta * -beta).log_sigmoid());
            let e = settings.epsilon;
            let loss = match settings.loss {
                PreferenceLoss::Dpo => right,
                PreferenceLoss::Ipo => (delta - 1.0 / (2.0 * beta)).square(),
                PreferenceLoss::Cdpo => right * (1.0 - e) + wrong * e,
                PreferenceLoss::Rdpo => (right * (1.0 - e) - wrong * e) / (1.0 - 2.0 * e),
            };
            loss * item.weight + mean_nll(0) * settings.nll_weight
        }
        Term::PunishOne(_) => -(ratio(0) * -beta).log_sigmoid() * item.weight,
        Term::PunishBoth => (-(ratio(0) * -beta).log_sigmoid() - (ratio(1) * -beta).log_sigmoid()) * item.weight,
        Term::Imitate => mean_nll(0) * item.weight,
        Term::Anchor => {
            let sequence = &item.sequences[0];
            let p = logits(decoder, adapter, sequence, masks[0].as_ref()).softmax(-1, Kind::Double);
            let p_ref = tch::no_grad(|| logits(reference, None, sequence, None).softmax(-1, Kind::Double));
            let table = &p_ref * ((&p_ref + 1e-12).log() - (p + 1e-12).log());
            let rows: Vec<i64> = sequence.kl.iter().map(|&t| t as i64).collect();
            let sum = table.index_select(0, &Tensor::from_slice(&rows)).sum(Kind::Double);
            sum / (rows.len() as f64 + 1e-8) * settings.alpha_kl
        }
    }
}
