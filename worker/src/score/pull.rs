//! Which gold pairs pull a record's score, and how much: ⟨g_j, g_i⟩ for every gold pair j and one record i.
//!
//! g_J is the sum of the g_j, so these are the parts a score is made of. The product is symmetric: one backward pass gives
//! the record's own gradient, and one forward pass along it the products with all gold pairs at once.

use std::path::Path;

use shared::gold::GoldPair;
use shared::record::Record;

use super::direction::{self, pack_scores};
use crate::collective::Alone;
use crate::control::Control;
use crate::dataset::{self, DataSet};
use crate::error::Result;
use crate::model::decoder::Decoder;
use crate::model::lora::Lora;
use crate::model::tangent::Direction;
use crate::objective::step::{Item, Settings};
use crate::reference::{self, Known};

/// A model at which records are scored.
#[derive(Clone, Copy)]
pub struct Point<'a> {
    /// The model.
    pub decoder: &'a Decoder,
    /// θ
    pub adapter: &'a Lora,
    /// B = 0 everywhere.
    pub is_fresh: bool,
}

/// Returns ⟨g_j, g_i⟩ of every gold item j with one item i of `file`; their sum is the item's raw score. All must have
/// their reference log-probs.
///
/// # Errors
/// The item's gradient is zero or not finite.
pub fn of_gold_items(
    point: Point<'_>,
    item: &Item,
    gold: &[&Item],
    settings: &Settings,
    pack_tokens: usize,
    file: &Path,
) -> Result<Vec<f64>> {
    let Point { decoder, adapter, is_fresh } = point;
    let (_, own) = direction::gradient(decoder, adapter, std::slice::from_ref(item), settings, 1, &mut || ())
        .map_err(|bad| bad.in_file(file, "look at the record's text, and at the model's weights and --dtype"))?;
    let packs = dataset::packs(gold.iter().copied(), pack_tokens);
    let scores =
        packs.iter().map(|pack| pack_scores(decoder, adapter, Direction::Adapter(&own), pack, settings, is_fresh));
    Ok(scores.flat_map(|scores| scores.raw).collect())
}

/// Takes each record's own gold pairs out of its raw score: what is left is ⟨Σ g_j, g_i⟩ over the pairs of others, so that
/// a record is not favoured for having been drawn. `raw` are the scores of `items`, whose records are `positions` of the
/// set; `gold` is tokenised already, and `beat` is called after every record. Returns how many scores changed.
///
/// # Errors
/// As [`of_gold_items`]; the command was told to stop.
#[allow(clippy::too_many_arguments)]
pub fn leave_own_out(
    point: Point<'_>,
    set: &DataSet,
    items: &[&Item],
    raw: &mut [f64],
    (pairs, gold): (&[GoldPair], &[Item]),
    settings: &Settings,
    pack_tokens: usize,
    control: &Control,
    beat: &mut dyn FnMut() -> Result<()>,
) -> Result<usize> {
    let mut changed = 0;
    for (item, raw) in items.iter().zip(raw) {
        let Ok(position) = set.index.binary_search(&item.record) else { continue };
        let own = own_pairs(&set.records[position], pairs);
        if own.is_empty() {
            continue;
        }
        control.go_on()?;
        let mut item = (*item).clone();
        let mut gold: Vec<Item> = own.iter().map(|&at| gold[at].clone()).collect();
        let mut all: Vec<&mut Item> = std::iter::once(&mut item).chain(&mut gold).collect();
        reference::fill(point.decoder, &mut all, &Known::default(), None, pack_tokens, control, &mut Alone)?;
        let gold: Vec<&Item> = gold.iter().collect();
        *raw -= of_gold_items(point, &item, &gold, settings, pack_tokens, &set.file)?.iter().sum::<f64>();
        beat()?;
        changed += 1;
    }
    Ok(changed)
}

/// Returns the gold pairs that were made of a record: its prompt, and one of its own responses as the one to avoid.
pub fn own_pairs(record: &Record, gold: &[GoldPair]) -> Vec<usize> {
    let responses = [Some(record.chosen.response()), record.rejected.as_ref().map(|text| text.response())];
    let is_own = |pair: &GoldPair| {
        pair.prompt == record.prompt && responses.iter().flatten().any(|response| *response == pair.rejected)
    };
    gold.iter().enumerate().filter(|(_, pair)| is_own(pair)).map(|(at, _)| at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_a_records_own_by_its_text() {
        let record = Record { prompt: "p".into(), chosen: "a".into(), rejected: Some("b".into()), ..Record::default() };
        let pair = |prompt: &str, rejected: &str| GoldPair {
            prompt: prompt.into(),
            chosen: "c".into(),
            rejected: rejected.into(),
            origin: None,
        };
        let gold = [pair("q", "a"), pair("p", "b"), pair("p", "c"), pair("p", "a")];
        assert_eq!(own_pairs(&record, &gold), [1, 3]);
    }
}
