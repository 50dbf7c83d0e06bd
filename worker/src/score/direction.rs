//! Impact scores as directional derivatives (spec 5.6).
//!
//! g_J comes from one accumulated backward pass over the gold batch, by an adapter's factors or by the model's own
//! weights. A record's score ⟨g_J, g_i⟩ is then the derivative of its loss when these move along g_J: one forward pass
//! that carries the derivative of the hidden states gives those of the log-probs (see [`head::log_probs_along`]), and with
//! the slopes of the loss the scores of a whole pack, exactly. No backward pass, and no gradient per record, is ever formed.

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::model::decoder::Decoder;
use crate::model::head;
use crate::model::lora::{Factors, Lora};
use crate::model::pack::{Pack, group_sums};
use crate::model::tangent::{Direction, Move};
use crate::model::tensor_file::{self, TensorFile};
use crate::model::weight_space::{Space, Weights};
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
    for (_, _, factors) in adapter.iter() {
        for tensor in [&factors.a, &factors.b] {
            let mut tensor = tensor.set_requires_grad(true);
            tensor.zero_grad();
        }
    }
    let result = summed(decoder, adapter, false, items, settings, rows, beat);
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
    result.map(|value| (value, Lora { config: adapter.config.clone(), factors }))
}

/// Returns the items' summed loss and its gradient by the decoder's own weights in a space, at the adapter given, which
/// is fixed; summed in f32. `rows` items are computed together, and `beat` is called after them.
///
/// # Errors
/// A loss that is not finite.
pub fn weight_gradient(
    decoder: &Decoder,
    adapter: &Lora,
    space: &Space,
    items: &[Item],
    settings: &Settings,
    rows: usize,
    beat: &mut dyn FnMut(),
) -> std::result::Result<(f64, Weights), NotFinite> {
    let adapter = &adapter.detached();
    let sum = Weights::of(decoder, space.clone());
    let mut sums: BTreeMap<String, Tensor> = sum.named().into_iter().collect();
    // Same weights, gradients of its own: they are gone with it.
    let trained = decoder.trained(|name| sums.contains_key(name));
    let own = trained.named_parameters();
    let value = summed(&trained, adapter, sum.head().is_some(), items, settings, rows, &mut || {
        for (name, weight) in &own {
            let gradient = weight.grad();
            if let Some(sum) = sums.get_mut(name).filter(|_| gradient.defined()) {
                let _ = tch::no_grad(|| sum.g_add_(&gradient));
                weight.shallow_clone().zero_grad();
            }
        }
        beat();
    })?;
    Ok((value, sum))
}

/// Returns the items' summed loss, and adds its gradient to whatever tensors require one; `taken` is called after every
/// `rows` items.
fn summed(
    decoder: &Decoder,
    adapter: &Lora,
    train_head: bool,
    items: &[Item],
    settings: &Settings,
    rows: usize,
    taken: &mut dyn FnMut(),
) -> std::result::Result<f64, NotFinite> {
    let policy = Policy { decoder, adapter: Some(adapter), reference: decoder, train_head, recompute: false };
    items.chunks(rows.max(1)).try_fold(0.0, |sum, items| {
        let items: Vec<&Item> = items.iter().collect();
        let parts = step::accumulate(policy, &items, settings, 1.0, None)?;
        taken();
        Ok(sum + parts.total())
    })
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
    let (_, direction) = objective_gradient(decoder, adapter, gold, settings, rows, file)?;
    check(&direction, file)?;
    Ok(direction)
}

/// Returns J, the summed preference loss over the gold items, and its gradient, at the adapter given. No items give zeros.
///
/// # Errors
/// A loss is not finite.
pub fn objective_gradient(
    decoder: &Decoder,
    adapter: &Lora,
    gold: &[Item],
    settings: &Settings,
    rows: usize,
    file: &Path,
) -> Result<(f64, Lora)> {
    gradient(decoder, adapter, gold, settings, rows, &mut || ()).map_err(|bad| bad.in_file(file, IN_GOLD))
}

/// Makes sure that a gradient of a gold batch means something.
///
/// # Errors
/// It is not finite, or zero everywhere.
pub fn check(direction: &Lora, file: &Path) -> Result<()> {
    let square: f64 =
        direction.named_parameters().iter().map(|(_, t)| t.square().sum(Kind::Double).double_value(&[])).sum();
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

impl PackScores {
    /// Returns the first item of the pack with a number that is not finite.
    pub fn first_not_finite(&self, items: &[&Item]) -> Option<usize> {
        let mut reference = self.reference.iter();
        items.iter().zip(&self.raw).position(|(item, raw)| {
            let own = reference.by_ref().take(item.sequences.len());
            // All parts are taken, also where the score itself is not finite.
            own.filter(|logp| !logp.is_finite()).count() > 0 || !raw.is_finite()
        })
    }
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
    let along = decoder.forward_along(&pack, Move { adapter, direction, is_fresh });
    // d(log-prob)/dε of every scored token.
    let (log_probs, moved) =
        head::log_probs_along(&along.hidden, &along.tangent, decoder.head(), direction.head(), &pack.targets);
    let of_sequences = |tokens: &Tensor| group_sums(&to_f64(tokens), &pack.scored_counts);
    let (s, moved) = (of_sequences(&log_probs), of_sequences(&moved));
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

/// The key of what a kept gradient was computed from.
const KEY: &str = "trace_key";

/// Keeps g_J in a file, for other parts of the same scoring.
///
/// # Errors
/// The file cannot be written.
pub fn write(file: &Path, key: &str, direction: &Lora) -> Result<()> {
    let key_bytes: Vec<i64> = key.bytes().map(i64::from).collect();
    let mut tensors = direction.named_parameters();
    tensors.push((KEY.to_owned(), Tensor::from_slice(&key_bytes)));
    tensor_file::write(file, &tensors)
}

/// Reads a kept g_J, with the shape of `adapter`; none where there is no such file, or one of another computation, which
/// is replaced.
///
/// # Errors
/// The file is there and damaged.
pub fn read(file: &Path, key: &str, adapter: &Lora) -> Result<Option<Lora>> {
    if !file.exists() {
        return Ok(None);
    }
    let tensors = TensorFile::open(file)?;
    let stored: Vec<i64> = Vec::try_from(tensors.tensor(KEY)?)?;
    if !stored.iter().copied().eq(key.bytes().map(i64::from)) {
        tracing::warn!("{}: is of another model, adapter or gold batch; it is made anew", file.display());
        return Ok(None);
    }
    let direction = adapter.zeros_like();
    for (name, mut own) in direction.named_parameters() {
        let stored = tensors.tensor(&name)?;
        if stored.size() != own.size() {
            return Err(Error::model(file, format!("{name} has shape {:?}, not {:?}", stored.size(), own.size())));
        }
        tch::no_grad(|| own.copy_(&stored));
    }
    Ok(Some(direction))
}
