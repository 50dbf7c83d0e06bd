//! Impact scores as directional derivatives (spec 5.6).
//!
//! g_J comes from one accumulated backward pass over the gold batch. A record's score ⟨g_J, g_i⟩ is then the derivative
//! of its loss when the adapter moves along g_J: one forward pass that carries the derivative of the hidden states gives
//! those of the log-probs, ḣ·(W[y] − Σ_v p_v W[v]), and with the slopes of the loss the scores of a whole pack, exactly.
//! No backward pass, and no gradient per record, is ever formed.

use std::path::Path;

use tch::{Kind, Tensor};

use super::vector::Vector;
use crate::error::{Error, Result};
use crate::model::decoder::Decoder;
use crate::model::head;
use crate::model::lora::{Factors, Lora};
use crate::model::pack::{Pack, group_sums};
use crate::model::tangent::Move;
use crate::objective::step::{self, Item, NotFinite, Policy, Settings, term_loss, to_f64};

/// Returns the items' summed loss and its gradient at the adapter given, with the adapter's own shape; `rows` items are
/// computed together, and `beat` is called after them.
///
/// # Errors
/// A loss that is not finite.
pub fn gradient(
    decoder: &Decoder,
    adapter: &Lora,
    items: &[Item],
    settings: &Settings,
    rows: usize,
    beat: &mut dyn FnMut(),
) -> std::result::Result<(f64, Lora), NotFinite> {
    let (sum, gradient) = accumulated(decoder, adapter, |policy| {
        items.chunks(rows.max(1)).try_fold(0.0, |sum, items| {
            let items: Vec<&Item> = items.iter().collect();
            let parts = step::accumulate(policy, &items, settings, 1.0, None)?;
            beat();
            Ok(sum + parts.total())
        })
    });
    Ok((sum?, gradient))
}

/// Returns the gradient of Σ slopes·s at the adapter given, s the summed log-probs of all sequences of the items.
pub fn log_prob_gradient(decoder: &Decoder, adapter: &Lora, items: &[&Item], slopes: &[f64]) -> Lora {
    accumulated(decoder, adapter, |policy| step::accumulate_log_probs(policy, items, slopes)).1
}

/// Returns what `backward` does and the gradient that it leaves in the adapter's factors.
fn accumulated<T>(decoder: &Decoder, adapter: &Lora, backward: impl FnOnce(Policy<'_>) -> T) -> (T, Lora) {
    for (_, _, factors) in adapter.iter() {
        for tensor in [&factors.a, &factors.b] {
            let mut tensor = tensor.set_requires_grad(true);
            tensor.zero_grad();
        }
    }
    let policy = Policy { decoder, adapter: Some(adapter), reference: decoder, train_head: false, recompute: false };
    let result = backward(policy);
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

/// What to do about a gold pair whose loss is not finite.
pub const IN_GOLD: &str = "it is in the gold batch: look at the record's text, and at the model's weights and --dtype";

/// Returns g_J: the [`gradient`] of the summed preference loss over the gold items. Their records are those of `file`.
///
/// # Errors
/// The gradient is not finite, or zero everywhere.
pub fn gold_gradient(
    decoder: &Decoder,
    adapter: &Lora,
    gold: &[Item],
    settings: &Settings,
    rows: usize,
    file: &Path,
) -> Result<Lora> {
    let (_, direction) =
        gradient(decoder, adapter, gold, settings, rows, &mut || ()).map_err(|bad| bad.in_file(file, IN_GOLD))?;
    let direction = Vector::Adapter(direction);
    check(&direction, file)?;
    let Vector::Adapter(direction) = direction;
    Ok(direction)
}

/// Makes sure that a gradient of a gold batch means something.
///
/// # Errors
/// It is not finite, or zero everywhere.
pub fn check(direction: &Vector, file: &Path) -> Result<()> {
    let square = direction.dot(direction);
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
    direction: &Lora,
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
    direction: &Lora,
    pack: &Pack,
    is_fresh: bool,
) -> (Vec<f64>, Vec<f64>) {
    let along = decoder.forward_along(pack, Move { adapter, direction, is_fresh });
    let log_probs = head::pulled_log_probs(&along.hidden, decoder.head(), &pack.targets);
    // d(log-prob)/dε of every scored token, summed over those of a sequence.
    let moved = (log_probs.pulls * along.tangent.to_kind(Kind::Float)).sum_dim_intlist(-1, false, Kind::Float);
    let sums = |tokens: &Tensor| group_sums(&to_f64(tokens), &pack.scored_counts);
    (sums(&log_probs.values), sums(&moved))
}
