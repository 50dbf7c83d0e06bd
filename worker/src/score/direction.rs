//! Impact scores as directional derivatives (spec 5.6).
//!
//! g_J comes from one accumulated backward pass over the gold batch, by an adapter's factors or by the model's own
//! weights. A record's score ⟨g_J, g_i⟩ is then the derivative of its loss when these move along g_J: one forward pass
//! that carries the derivative of the hidden states gives those of the log-probs (see [`head::log_probs_along`]), and with
//! the slopes of the loss the scores of a whole pack, exactly. No backward pass, and no gradient per record, is ever formed.

use std::collections::BTreeMap;
use std::path::Path;

use tch::Tensor;

use crate::error::{Error, Result};
use crate::model::decoder::Decoder;
use crate::model::head;
use crate::model::lora::{Factors, Lora};
use crate::model::pack::{Pack, group_sums};
use crate::model::tangent::{Direction, Move};
use crate::model::weight_space::{Space, Weights};
use crate::objective::step::{self, Item, NotFinite, Policy, Settings, to_f64};
use crate::objective::term::term_loss;

/// Why there is no gradient.
#[derive(Debug)]
pub enum NoGradient {
    /// A loss, or what it is computed of, is not finite.
    NotFinite(NotFinite),
    /// Whoever was told of every step did not want another.
    Told(Error),
}

impl From<NotFinite> for NoGradient {
    fn from(bad: NotFinite) -> Self {
        NoGradient::NotFinite(bad)
    }
}

impl NoGradient {
    /// Returns the error about the record in its file; `advice` says what to do.
    pub fn in_file(self, file: &Path, advice: &str) -> Error {
        match self {
            NoGradient::NotFinite(bad) => bad.in_file(file, advice),
            NoGradient::Told(error) => error,
        }
    }
}

/// Gradients keep the inputs of layers and compute each layer once more: a gold batch takes a third longer, but no more
/// memory than the pass that scores the records, of which there are many more. The same bits (see `model::recompute`).
const RECOMPUTE: bool = true;

/// Returns the items' summed loss and its gradient at the adapter given, with the adapter's own shape; `rows` items are
/// computed together, and `beat` is called after them.
///
/// # Errors
/// A loss that is not finite, or what `beat` says.
pub fn gradient(
    decoder: &Decoder,
    adapter: &Lora,
    items: &[Item],
    settings: &Settings,
    rows: usize,
    beat: &mut dyn FnMut() -> Result<()>,
) -> std::result::Result<(f64, Lora), NoGradient> {
    let (sum, gradient) =
        of_adapter(decoder, adapter, |policy, taken| summed(policy, items, settings, rows, taken, beat));
    Ok((sum?, gradient))
}

/// Returns the items' summed loss and its gradient by the decoder's own weights in a space, at the adapter given, which
/// is fixed; summed in f32. `rows` items are computed together, and `beat` is called after them.
///
/// # Errors
/// A loss that is not finite, or what `beat` says.
pub fn weight_gradient(
    decoder: &Decoder,
    adapter: &Lora,
    space: &Space,
    items: &[Item],
    settings: &Settings,
    rows: usize,
    beat: &mut dyn FnMut() -> Result<()>,
) -> std::result::Result<(f64, Weights), NoGradient> {
    let (sum, gradient) =
        of_weights(decoder, adapter, space, |policy, taken| summed(policy, items, settings, rows, taken, beat));
    Ok((sum?, gradient))
}

/// Returns the gradient of Σ slopes·s at the adapter given, s the summed log-probs of all sequences of the items.
pub fn log_prob_gradient(decoder: &Decoder, adapter: &Lora, items: &[&Item], slopes: &[f64]) -> Lora {
    of_adapter(decoder, adapter, |policy, _| step::accumulate_log_probs(policy, items, slopes)).1
}

/// As [`log_prob_gradient`], by the decoder's own weights in a space.
pub fn log_prob_weight_gradient(
    decoder: &Decoder,
    adapter: &Lora,
    space: &Space,
    items: &[&Item],
    slopes: &[f64],
) -> Weights {
    let backward = |policy: Policy<'_>, taken: &mut dyn FnMut()| {
        step::accumulate_log_probs(policy, items, slopes);
        taken();
    };
    of_weights(decoder, adapter, space, backward).1
}

/// Returns the items' summed loss, and adds its gradient to whatever tensors require one; `taken` and `beat` are called
/// after every `rows` items.
fn summed(
    policy: Policy<'_>,
    items: &[Item],
    settings: &Settings,
    rows: usize,
    taken: &mut dyn FnMut(),
    beat: &mut dyn FnMut() -> Result<()>,
) -> std::result::Result<f64, NoGradient> {
    items.chunks(rows.max(1)).try_fold(0.0, |sum, items| {
        let items: Vec<&Item> = items.iter().collect();
        let parts = step::accumulate(policy, &items, settings, 1.0, None)?;
        taken();
        beat().map_err(NoGradient::Told)?;
        Ok(sum + parts.total())
    })
}

/// Returns what `backward` does and the gradient that it leaves in the adapter's factors.
fn of_adapter<T>(
    decoder: &Decoder,
    adapter: &Lora,
    backward: impl FnOnce(Policy<'_>, &mut dyn FnMut()) -> T,
) -> (T, Lora) {
    for (_, _, factors) in adapter.iter() {
        for tensor in [&factors.a, &factors.b] {
            let mut tensor = tensor.set_requires_grad(true);
            tensor.zero_grad();
        }
    }
    let policy =
        Policy { decoder, adapter: Some(adapter), reference: decoder, train_head: false, recompute: RECOMPUTE };
    let result = backward(policy, &mut || ());
    let taken = |tensor: &Tensor| {
        let gradient = tensor.grad();
        let copy = if gradient.defined() { gradient.copy() } else { tensor.zeros_like() };
        let mut tensor = tensor.set_requires_grad(false);
        tensor.zero_grad();
        copy
    };
    let factors: Vec<[Option<Factors>; 7]> = adapter
        .factors
        .iter()
        .map(|modules| modules.each_ref().map(|f| f.as_ref().map(|f| Factors { a: taken(&f.a), b: taken(&f.b) })))
        .collect();
    (result, Lora { config: adapter.config.clone(), factors })
}

/// Returns what `backward` does and the gradient that it leaves in the decoder's own weights of a space, summed in f32;
/// it calls its second argument whenever a part of the gradient is there.
fn of_weights<T>(
    decoder: &Decoder,
    adapter: &Lora,
    space: &Space,
    backward: impl FnOnce(Policy<'_>, &mut dyn FnMut()) -> T,
) -> (T, Weights) {
    let adapter = &adapter.detached();
    let sum = Weights::of(decoder, space.clone());
    let mut sums: BTreeMap<String, Tensor> = sum.named().into_iter().collect();
    // Same weights, gradients of its own: they are gone with it.
    let trained = decoder.trained(|name| sums.contains_key(name));
    let own = trained.named_parameters();
    let train_head = sum.head().is_some();
    let policy =
        Policy { decoder: &trained, adapter: Some(adapter), reference: &trained, train_head, recompute: RECOMPUTE };
    let result = backward(policy, &mut || {
        for (name, weight) in &own {
            let gradient = weight.grad();
            if let Some(sum) = sums.get_mut(name).filter(|_| gradient.defined()) {
                let _ = tch::no_grad(|| sum.g_add_(&gradient));
                weight.shallow_clone().zero_grad();
            }
        }
    });
    (result, sum)
}

/// What to do about a gold pair whose loss is not finite.
pub const IN_GOLD: &str = "it is in the gold batch: look at the record's text, and at the model's weights and --dtype";

/// Makes sure that a gradient of a gold batch, of this squared norm, means something.
///
/// # Errors
/// It is not finite, or zero everywhere.
pub fn check(square: f64, file: &Path) -> Result<()> {
    if !square.is_finite() || square == 0.0 {
        return Err(Error::model(
            file,
            format!(
                "the gradient of the gold batch has squared norm {square}; scores along it would mean nothing. Check \
                 the gold pairs and the model"
            ),
        ));
    }
    Ok(())
}

/// What scoring finds out about the items of one pack.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct PackScores {
    /// ⟨g_J, g_i⟩ of every item.
    pub raw: Vec<f64>,
    /// log π_ref of every sequence, item by item.
    pub reference: Vec<f64>,
}

/// Returns the raw score ⟨g_J, g_i⟩ of every item of one pack. `is_fresh` says that the adapter computes nothing yet
/// (B = 0), so that π_θ = π_ref and no reference pass is needed.
pub fn pack_scores(
    decoder: &Decoder,
    adapter: &Lora,
    direction: Direction<'_>,
    items: &[&Item],
    settings: &Settings,
    is_fresh: bool,
) -> PackScores {
    let pack = Pack::new(&items.iter().map(|item| item.group()).collect::<Vec<_>>(), decoder.device);
    let (s, moved) = moved_log_probs(decoder, adapter, direction, &pack, is_fresh);
    let s_ref = if is_fresh { s.clone() } else { step::log_prob_sums(decoder, None, &pack) };

    let (mut raw, mut at) = (Vec::with_capacity(items.len()), 0);
    for item in items {
        let range = at..at + item.sequences.len();
        at = range.end;
        let scored = &pack.scored_counts[range.clone()];
        let slopes = term_loss(item.term, settings, &s[range.clone()], &s_ref[range.clone()], scored).slopes;
        raw.push(slopes.iter().zip(&moved[range]).map(|(slope, moved)| slope * moved).sum());
    }
    PackScores { raw, reference: s_ref }
}

/// Returns the summed log-prob s of every sequence of a pack, and ds/dε along the direction.
pub fn moved_log_probs(
    decoder: &Decoder,
    adapter: &Lora,
    direction: Direction<'_>,
    pack: &Pack,
    is_fresh: bool,
) -> (Vec<f64>, Vec<f64>) {
    let along = decoder.forward_along(pack, Move { adapter, direction, is_fresh });
    // d(log-prob)/dε of every scored token.
    let (log_probs, moved) =
        head::log_probs_along(&along.hidden, &along.tangent, decoder.head(), direction.head(), &pack.targets);
    let of_sequences = |tokens: &Tensor| group_sums(&to_f64(tokens), &pack.scored_counts);
    (of_sequences(&log_probs), of_sequences(&moved))
}
