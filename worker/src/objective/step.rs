//! Loss and gradient of a pack of records, in closed form.
//!
//! Order of work: one forward pass to hidden states; log-probs, KLs and their gradients into the hidden states through
//! the head in chunks; losses and dL/dlog-prob as plain arithmetic (`loss.rs`); one backward pass from there.
//! Gradients are added to the `.grad` of whatever tensors require one. Nothing here knows about batches, optimisers or
//! files.
// `x += y` works in place on a tensor and would overwrite values that the backward pass still needs.
#![allow(clippy::assign_op_pattern)]

use std::path::Path;

use tch::{Kind, Tensor};

use super::loss::PreferenceLoss;
use super::method::{Part, Term};
use super::term::{TermLoss, term_loss};
use crate::error::Error;
use crate::measure::{Phases, timed};
use crate::model::decoder::{Decoder, Extras};
use crate::model::dropout::{Dropout, token_key};
use crate::model::head;
use crate::model::lora::Lora;
use crate::model::pack::{self, Pack, Want, group_sums, spread};
use crate::model::recompute::{Pass, inject};
use crate::model::units::{self, Stream};
use crate::placement;
use crate::text::Sequence;

/// A record as the objective sees it.
#[derive(Debug, Clone)]
pub struct Item {
    /// Index of the record in its file, for messages and dropout keys.
    pub record: usize,
    /// Its loss term.
    pub term: Term,
    /// w, the factor of a conflict term; 1 where the method has no weights.
    pub weight: f64,
    /// Token sequences of `term.parts()`, in that order.
    pub sequences: Vec<Sequence>,
    /// log π_ref of each sequence; empty where the term uses no ratios.
    pub reference: Vec<f64>,
}

impl Item {
    /// Returns the number of tokens that are computed for it: those of all its sequences, a shared prompt's once.
    pub fn tokens(&self) -> usize {
        pack::rows_of(&self.sequences)
    }

    /// Returns its sequences as a group of a pack.
    pub fn group(&self) -> Vec<(&Sequence, Want)> {
        self.sequences.iter().map(|sequence| (sequence, self.want())).collect()
    }

    /// Returns what the term asks of the pack for each of its sequences.
    pub fn want(&self) -> Want {
        if self.term == Term::Anchor { Want::KL } else { Want::LOG_PROB }
    }
}

/// Constants of the objective.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Settings {
    /// β of preference and punishment losses.
    pub beta: f64,
    /// ε of cDPO and rDPO.
    pub epsilon: f64,
    /// α_KL, factor of the anchor.
    pub alpha_kl: f64,
    /// Loss of preference terms.
    pub loss: PreferenceLoss,
    /// Factor of an added mean-token NLL on the preferred response of preference terms.
    pub nll_weight: f64,
}

/// The policy being trained or scored, and its reference.
#[derive(Clone, Copy)]
pub struct Policy<'a> {
    /// The decoder whose weights are θ or carry the adapter.
    pub decoder: &'a Decoder,
    /// The adapter, if θ is an adapter.
    pub adapter: Option<&'a Lora>,
    /// The decoder of π_ref: the same one (adapter off) or a frozen copy (full fine-tuning).
    pub reference: &'a Decoder,
    /// The LM head's weight is part of θ.
    pub train_head: bool,
    /// Layers are computed once more on the way back instead of being kept.
    pub recompute: bool,
}

/// Where dropout masks of a step come from.
#[derive(Debug, Clone, Copy)]
pub struct DropoutKey {
    /// Probability of dropping a feature.
    pub probability: f64,
    /// Seed of the run.
    pub seed: u64,
    /// Epoch, from 0.
    pub epoch: u64,
    /// Optimiser step, from 0.
    pub step: u64,
}

/// Sums over the items of a step, before division by the batch size.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LossParts {
    /// Σ w·ℓ of preference terms on `chosen` over `rejected`.
    pub invert: f64,
    /// Σ w·ℓ of punishment terms, corrected ones included.
    pub punish: f64,
    /// Σ α_KL·KL
    pub kl: f64,
    /// Σ of NLL terms, with their factors.
    pub nll: f64,
    /// Σ Δ over preference terms.
    pub margin: f64,
    /// Preference terms with Δ > 0.
    pub accurate: usize,
    /// Preference terms.
    pub preferences: usize,
    /// KL terms.
    pub anchors: usize,
    /// Tokens computed.
    pub tokens: usize,
}

impl LossParts {
    /// How many numbers [`LossParts::numbers`] gives.
    pub const NUMBERS: usize = 9;

    /// Returns the total loss.
    pub fn total(&self) -> f64 {
        self.invert + self.punish + self.kl + self.nll
    }

    /// Returns the sums as numbers, to be added over ranks.
    pub fn numbers(&self) -> [f64; LossParts::NUMBERS] {
        let counts = [self.accurate, self.preferences, self.anchors, self.tokens].map(|count| count as f64);
        [self.invert, self.punish, self.kl, self.nll, self.margin, counts[0], counts[1], counts[2], counts[3]]
    }

    /// Makes sums of their numbers.
    pub fn from_numbers(numbers: [f64; LossParts::NUMBERS]) -> Self {
        let [invert, punish, kl, nll, margin, accurate, preferences, anchors, tokens] = numbers;
        let count = |number: f64| number as usize;
        LossParts {
            invert,
            punish,
            kl,
            nll,
            margin,
            accurate: count(accurate),
            preferences: count(preferences),
            anchors: count(anchors),
            tokens: count(tokens),
        }
    }

    /// Adds another pack's sums.
    pub fn add(&mut self, other: &LossParts) {
        self.invert += other.invert;
        self.punish += other.punish;
        self.kl += other.kl;
        self.nll += other.nll;
        self.margin += other.margin;
        self.accurate += other.accurate;
        self.preferences += other.preferences;
        self.anchors += other.anchors;
        self.tokens += other.tokens;
    }
}

/// A loss that is NaN or infinite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotFinite {
    /// The item's record.
    pub record: usize,
    /// Whose loss it is.
    pub term: Term,
}

impl NotFinite {
    /// Returns the error about the record in its file; `advice` says what to do.
    pub fn in_file(self, file: &Path, advice: &str) -> Error {
        Error::record(file, self.record, format!("its {} is not finite; {advice}", self.term))
    }
}

/// Returns the summed log-prob of every sequence of a pack under a decoder, without gradients: one number each.
pub fn log_prob_sums(decoder: &Decoder, adapter: Option<&Lora>, pack: &Pack) -> Vec<f64> {
    group_sums(&token_log_probs(decoder, adapter, pack), &pack.scored_counts)
}

/// Returns the log-prob of every scored token of a pack, in pack order, without gradients.
pub fn token_log_probs(decoder: &Decoder, adapter: Option<&Lora>, pack: &Pack) -> Vec<f64> {
    tch::no_grad(|| {
        let hidden = decoder.forward(pack, Extras { adapter, ..Extras::default() });
        let rows = hidden.index_select(0, &pack.scored_rows);
        to_f64(&head::log_probs(&rows, decoder.head(), &pack.targets))
    })
}

/// Copies a tensor to the host, and waits for it.
pub fn to_f64(tensor: &Tensor) -> Vec<f64> {
    let tensor = tensor.detach().to_device(tch::Device::Cpu).to_kind(Kind::Double).contiguous();
    let mut values = vec![0.0; tensor.numel()];
    tensor.copy_data(&mut values, tensor.numel());
    values
}

/// Adds the gradient of `scale · Σ_items weight·ℓ` to the trained tensors and returns the unscaled loss sums.
///
/// # Errors
/// A loss that is not finite.
pub fn accumulate(
    policy: Policy<'_>,
    items: &[&Item],
    settings: &Settings,
    scale: f64,
    dropout: Option<DropoutKey>,
) -> Result<LossParts, NotFinite> {
    accumulate_timed(policy, items, settings, scale, dropout, &mut Phases::default())
}

/// As [`accumulate`], adding the time of each phase to `phases`.
///
/// # Errors
/// As there.
pub fn accumulate_timed(
    policy: Policy<'_>,
    items: &[&Item],
    settings: &Settings,
    scale: f64,
    dropout: Option<DropoutKey>,
    phases: &mut Phases,
) -> Result<LossParts, NotFinite> {
    accumulate_with(policy, None, items, settings, scale, dropout, phases)
}

/// Where a pass of full fine-tuning takes weights from and sends gradients to.
#[derive(Clone, Copy)]
pub struct Streams<'a> {
    /// The policy's weights and gradients.
    pub policy: &'a dyn Stream,
    /// The weights of π_ref, where they are shared out, too.
    pub reference: Option<&'a dyn Stream>,
    /// Some rank's pack of this pass has anchors, so that every rank fetches the weights of π_ref.
    pub has_anchors: bool,
}

/// As [`accumulate`], gradients going to a stream; a rank without a pack of its own for a pass takes part all the same.
///
/// # Errors
/// As there; the other ranks wait for this one then.
pub fn stream(
    policy: Policy<'_>,
    streams: Streams<'_>,
    items: &[&Item],
    settings: &Settings,
    scale: f64,
) -> Result<LossParts, NotFinite> {
    if items.is_empty() {
        let reference = streams.reference.filter(|_| streams.has_anchors);
        Pass::idle(policy.decoder, policy.recompute, streams.policy, || {
            if let Some(stream) = reference {
                units::fetch_ends(stream);
                units::forward(Some(stream), policy.reference.config.layers, |_| {});
            }
        });
        if let Some(stream) = reference {
            units::release_ends(stream);
        }
        return Ok(LossParts::default());
    }
    accumulate_with(policy, Some(streams), items, settings, scale, None, &mut Phases::default())
}

fn accumulate_with(
    policy: Policy<'_>,
    streams: Option<Streams<'_>>,
    items: &[&Item],
    settings: &Settings,
    scale: f64,
    dropout: Option<DropoutKey>,
    phases: &mut Phases,
) -> Result<LossParts, NotFinite> {
    let stream = streams.map(|streams| streams.policy);
    let of_reference = streams.filter(|streams| streams.has_anchors).and_then(|streams| streams.reference);
    let device = policy.decoder.device;
    let pack = Pack::new(&items.iter().map(|item| item.group()).collect::<Vec<_>>(), device);
    let dropout = dropout.map(|key| masks(items, &pack, key, device));
    let extras = Extras { adapter: policy.adapter, dropout: dropout.as_ref() };
    let head = policy.decoder.head();

    let pass = timed(&mut phases.forward, || Pass::forward(policy.decoder, &pack, extras, policy.recompute, stream));
    let scored = pass.hidden.index_select(0, &pack.scored_rows);
    let log_probs = timed(&mut phases.head, || head::pulled_log_probs(&scored.detach(), head, &pack.targets));
    if let Some(stream) = of_reference {
        units::fetch_ends(stream);
    }
    let anchor = Anchor::compute(policy, of_reference, items, &pack, &pass.hidden, phases);
    // The one read of a pack: whoever computes on a GPU waits for it here.
    let values = to_f64(&Tensor::cat(&[&log_probs.values, &anchor.values], 0));
    let (of_tokens, of_positions) = values.split_at(pack.targets.size()[0] as usize);
    let (s, kl_sums) = (group_sums(of_tokens, &pack.scored_counts), group_sums(of_positions, &anchor.counts));

    let (parts, Slopes { log_prob, kl }) = losses(items, &pack, &s, &kl_sums, settings, scale)?;
    let mut surrogate = with_slopes(policy, &pack, &scored, log_probs.pulls, &log_prob, phases);
    if let Some((rows, ref_rows, pulls)) = &anchor.rows {
        let slopes = placement::upload(&spread(&kl, &pack.kl_counts), device);
        surrogate = surrogate + inject(rows, &(pulls * slopes.unsqueeze(1)));
        if policy.train_head {
            let reference = (ref_rows, policy.reference.head());
            let gradient =
                timed(&mut phases.head, || head::kl_weight_gradient((&rows.detach(), head), reference, &slopes));
            surrogate = surrogate + inject(head.weight, &gradient);
        }
    }
    timed(&mut phases.backward, || pass.backward(&surrogate));
    if let Some(stream) = of_reference {
        units::release_ends(stream);
    }
    Ok(parts)
}

/// Adds the gradient of `Σ slopes·s` to the trained tensors, s the summed log-probs of all sequences of the items.
pub fn accumulate_log_probs(policy: Policy<'_>, items: &[&Item], slopes: &[f64]) {
    let pack = Pack::new(&items.iter().map(|item| item.group()).collect::<Vec<_>>(), policy.decoder.device);
    let extras = Extras { adapter: policy.adapter, ..Extras::default() };
    let pass = Pass::forward(policy.decoder, &pack, extras, policy.recompute, None);
    let scored = pass.hidden.index_select(0, &pack.scored_rows);
    let pulls = head::pulled_log_probs(&scored.detach(), policy.decoder.head(), &pack.targets).pulls;
    let surrogate = with_slopes(policy, &pack, &scored, pulls, slopes, &mut Phases::default());
    pass.backward(&surrogate);
}

/// Returns a scalar with the gradient of `Σ slopes·s`, one slope a sequence; `scored` are the hidden states of the scored
/// tokens, `pulls` the gradients of their log-probs.
fn with_slopes(
    policy: Policy<'_>,
    pack: &Pack,
    scored: &Tensor,
    pulls: Tensor,
    slopes: &[f64],
    phases: &mut Phases,
) -> Tensor {
    let head = policy.decoder.head();
    let slopes = placement::upload(&spread(slopes, &pack.scored_counts), policy.decoder.device);
    let surrogate = inject(scored, &(pulls * slopes.unsqueeze(1)));
    if !policy.train_head {
        return surrogate;
    }
    let gradient =
        timed(&mut phases.head, || head::log_prob_weight_gradient(&scored.detach(), head, &pack.targets, &slopes));
    surrogate + inject(head.weight, &gradient)
}

/// Returns the unscaled loss sums of a pack of records, without dropout and without a gradient.
///
/// # Errors
/// A loss that is not finite.
pub fn evaluate(policy: Policy<'_>, items: &[&Item], settings: &Settings) -> Result<LossParts, NotFinite> {
    let pack = Pack::new(&items.iter().map(|item| item.group()).collect::<Vec<_>>(), policy.decoder.device);
    let (s, sums) = tch::no_grad(|| {
        let hidden = policy.decoder.forward(&pack, Extras { adapter: policy.adapter, ..Extras::default() });
        let rows = hidden.index_select(0, &pack.scored_rows);
        let values = to_f64(&head::log_probs(&rows, policy.decoder.head(), &pack.targets));
        let anchor = Anchor::compute(policy, None, items, &pack, &hidden, &mut Phases::default());
        (group_sums(&values, &pack.scored_counts), group_sums(&to_f64(&anchor.values), &anchor.counts))
    });
    losses(items, &pack, &s, &sums, settings, 1.0).map(|(parts, _)| parts)
}

/// Derivatives of `scale` times a pack's loss, one number a sequence.
struct Slopes {
    /// With respect to the summed log-prob.
    log_prob: Vec<f64>,
    /// With respect to the summed KL.
    kl: Vec<f64>,
}

/// Losses of a pack from its summed log-probs `s` and KLs, and their slopes.
fn losses(
    items: &[&Item],
    pack: &Pack,
    s: &[f64],
    kl_sums: &[f64],
    settings: &Settings,
    scale: f64,
) -> Result<(LossParts, Slopes), NotFinite> {
    let mut parts = LossParts { tokens: pack.rows.len(), ..LossParts::default() };
    let mut slopes = Slopes { log_prob: vec![0.0; s.len()], kl: vec![0.0; s.len()] };
    let mut at = 0;
    for item in items {
        let range = at..at + item.sequences.len();
        at = range.end;
        if item.term == Term::Anchor {
            let (sum, count) = (kl_sums[range.start], pack.kl_counts[range.start] as f64 + 1e-8);
            parts.kl += settings.alpha_kl * sum / count;
            parts.anchors += 1;
            slopes.kl[range.start] = scale * settings.alpha_kl / count;
        } else {
            let scored = &pack.scored_counts[range.clone()];
            let l = term_loss(item.term, settings, &s[range.clone()], &item.reference, scored);
            book(&mut parts, item, &l);
            for (slope, part) in l.slopes.iter().zip(range.clone()) {
                slopes.log_prob[part] = scale * item.weight * slope;
            }
            if settings.nll_weight != 0.0 && matches!(item.term, Term::Prefer(..)) {
                let count = scored[0].max(1) as f64;
                parts.nll += settings.nll_weight * -s[range.start] / count;
                slopes.log_prob[range.start] -= scale * settings.nll_weight / count;
            }
        }
        if !parts.total().is_finite() {
            return Err(NotFinite { record: item.record, term: item.term });
        }
    }
    Ok((parts, slopes))
}

fn book(parts: &mut LossParts, item: &Item, l: &TermLoss) {
    let value = item.weight * l.value;
    match item.term {
        Term::Prefer(Part::Chosen, _) => parts.invert += value,
        Term::Prefer(..) | Term::PunishOne(_) | Term::PunishBoth => parts.punish += value,
        Term::Imitate => parts.nll += value,
        Term::Anchor => {}
    }
    if let Some(delta) = l.delta {
        parts.margin += delta;
        parts.accurate += usize::from(delta > 0.0);
        parts.preferences += 1;
    }
}

/// The KL side of a pack: the KL of each position, and the rows they came from with the reference's rows and the pulls.
struct Anchor {
    /// [k], f32; empty where no KL was asked for
    values: Tensor,
    /// Positions of each sequence; sums to k.
    counts: Vec<usize>,
    rows: Option<(Tensor, Tensor, Tensor)>,
}

impl Anchor {
    fn compute(
        policy: Policy<'_>,
        reference: Option<&dyn Stream>,
        items: &[&Item],
        pack: &Pack,
        hidden: &Tensor,
        phases: &mut Phases,
    ) -> Anchor {
        let anchored: Vec<_> = items.iter().filter(|item| item.term == Term::Anchor).map(|item| item.group()).collect();
        if anchored.is_empty() {
            if let Some(stream) = reference {
                units::forward(Some(stream), policy.reference.config.layers, |_| {});
            }
            let values = Tensor::zeros([0], (Kind::Float, policy.decoder.device));
            return Anchor { values, counts: vec![0; pack.sequences], rows: None };
        }
        let ref_rows = timed(&mut phases.reference, || {
            tch::no_grad(|| {
                let pack = Pack::new(&anchored, policy.decoder.device);
                let hidden = policy.reference.forward_fetching(&pack, Extras::default(), reference);
                hidden.index_select(0, &pack.kl_rows)
            })
        });
        let rows = hidden.index_select(0, &pack.kl_rows);
        let own = (&rows.detach(), policy.decoder.head());
        let reference = (&ref_rows, policy.reference.head());
        let kl = timed(&mut phases.head, || head::pulled_kl(own, reference));
        Anchor { values: kl.values, counts: pack.kl_counts.clone(), rows: Some((rows, ref_rows, kl.pulls)) }
    }
}

fn masks(items: &[&Item], pack: &Pack, key: DropoutKey, device: tch::Device) -> Dropout {
    let of_row = |row: &pack::Row| {
        let item = items[row.group];
        let in_prompt = row.position < item.sequences[row.sequence].prompt_len;
        let branch = if in_prompt { 0 } else { 1 + item.term.parts()[row.sequence] as u64 };
        token_key(key.seed, key.epoch, key.step, item.record as u64, branch, row.position as u64)
    };
    Dropout { probability: key.probability, token_keys: pack.rows.iter().map(of_row).collect(), device }
}
