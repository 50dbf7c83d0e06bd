//! Impact scores as directional derivatives (spec 5.6).
//!
//! g_J comes from one accumulated backward pass over the gold batch. A record's score ⟨g_J, g_i⟩ is then the
//! derivative of its loss when the adapter moves along g_J: every record of a pack gets a step length ε of its own,
//! zero, and one backward pass to the ε's gives all of them exactly. No gradient per record is ever formed.

use std::path::Path;

use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::model::decoder::{Decoder, Extras, Probe};
use crate::model::head;
use crate::model::lora::{Factors, Lora};
use crate::model::pack::{Pack, group_sums, spread};
use crate::model::recompute::inject;
use crate::model::tensor_file::{self, TensorFile};
use crate::objective::step::{self, Item, Policy, Settings, term_loss, to_f64};

/// Returns g_J: the gradient, at the adapter given, of the summed preference loss over the gold items, with the
/// adapter's own shape. The items' records are those of `file`.
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
    for (_, _, factors) in adapter.iter() {
        for tensor in [&factors.a, &factors.b] {
            let mut tensor = tensor.set_requires_grad(true);
            tensor.zero_grad();
        }
    }
    let policy = Policy { decoder, adapter: Some(adapter), reference: decoder, train_head: false, recompute: false };
    let result = gold.chunks(rows.max(1)).try_fold(0.0, |sum, items| {
        let items: Vec<&Item> = items.iter().collect();
        step::accumulate(policy, &items, settings, 1.0, None).map(|parts| sum + parts.total())
    });
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
    let objective = result.map_err(|bad| {
        bad.in_file(file, "it is in the gold batch: look at the record's text, and at the model's weights and --dtype")
    })?;
    Ok((objective, Lora { config: adapter.config.clone(), factors }))
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

/// Returns the raw score ⟨g_J, g_i⟩ of every item of one pack. `is_fresh` says that the adapter computes nothing yet
/// (B = 0), so that π_θ = π_ref and no reference pass is needed.
pub fn pack_scores(
    decoder: &Decoder,
    adapter: &Lora,
    direction: &Lora,
    items: &[&Item],
    settings: &Settings,
    is_fresh: bool,
) -> Vec<f64> {
    let device = decoder.device;
    let pack = Pack::new(&items.iter().map(|item| item.group()).collect::<Vec<_>>(), device);
    let epsilon = Tensor::zeros([items.len() as i64], (Kind::Float, device)).set_requires_grad(true);
    let probe = Probe { direction, epsilon_of_token: epsilon.index_select(0, &pack.group_of_token).unsqueeze(1) };
    let hidden = decoder.forward(&pack, Extras { adapter: Some(adapter), dropout: None, probe: Some(&probe) });
    let rows = hidden.index_select(0, &pack.scored_rows);
    let log_probs = head::pulled_log_probs(&rows.detach(), decoder.head(), &pack.targets);
    let s = group_sums(&to_f64(&log_probs.values), &pack.scored_counts);
    let s_ref = if is_fresh { s.clone() } else { step::log_prob_sums(decoder, None, &pack) };

    let (mut slopes, mut at) = (Vec::with_capacity(s.len()), 0);
    for item in items {
        let range = at..at + item.sequences.len();
        at = range.end;
        let scored = &pack.scored_counts[range.clone()];
        slopes.extend(term_loss(item.term, settings, &s[range.clone()], &s_ref[range], scored).slopes);
    }
    let slopes = Tensor::from_slice(&spread(&slopes, &pack.scored_counts)).to_device(device).unsqueeze(1);
    let surrogate = inject(&rows, &(log_probs.pulls * slopes));
    to_f64(&Tensor::run_backward(&[surrogate], &[&epsilon], false, false)[0])
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
