//! The gold batch: the pairs whose gradient stands for "obey the new policy" (spec 5.2, Algorithm 2).
//!
//! Drawing is one pure function of records, size and seed, with Python's generator in a fixed order: the RETAIN sample,
//! the INVERT sample, the PUNISH sample, then one compliant response per PUNISH pair, in sample order. The same inputs
//! give the same batch on every rank and in every restart. Files hold `[{prompt, chosen, rejected, origin}]`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::python_random::PythonRandom;
use crate::record::{Category, Record, Text};
use crate::{input, output};

/// One pair of the gold batch: `chosen` complies, `rejected` violates or is worse.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GoldPair {
    /// x
    pub prompt: Text,
    /// The response to prefer.
    pub chosen: String,
    /// The response to avoid.
    pub rejected: String,
    /// Where the pair was drawn from; absent in batches made by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// Where a gold pair comes from. Indices count the records that were drawn from, from 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Category of the record that gave prompt and rejected response.
    pub category: Category,
    /// Index of that record.
    pub record: usize,
    /// Where the chosen response comes from, if not from the same pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen_from: Option<ChosenFrom>,
}

/// Source of the chosen response of a PUNISH pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChosenFrom {
    /// The oracle's correction of the same record.
    Correction,
    /// The compliant response of this unrelated record.
    Record(usize),
}

/// What to draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GoldOptions {
    /// B, the number of pairs wanted.
    pub size: usize,
    /// Seed of Python's generator.
    pub seed: u64,
    /// Pairs a PUNISH record with its correction where it has one, instead of an unrelated compliant response.
    pub use_corrections: bool,
}

impl Default for GoldOptions {
    fn default() -> Self {
        Self { size: 64, seed: 42, use_corrections: false }
    }
}

/// Draws the gold batch. It is shorter than asked for where the records do not give more; the caller should say so.
///
/// Fails where not a single pair can be drawn, and on a record without category or, if it is drawn, without rejected
/// response.
pub fn draw(records: &[Record], options: GoldOptions) -> Result<Vec<GoldPair>> {
    let bins = Bins::of(records)?;
    let compliant: Vec<usize> = [&bins.retain[..], &bins.invert].concat();
    let mut generator = PythonRandom::new(options.seed);
    let mut as_stored = take(&mut generator, &bins.retain, options.size / 3);
    as_stored.extend(take(&mut generator, &bins.invert, options.size / 3));
    let mut pairs = as_stored.into_iter().map(|index| stored_pair(records, index)).collect::<Result<Vec<_>>>()?;

    let correction = |index: usize| records[index].correction().filter(|_| options.use_corrections);
    let punish: Vec<usize> = if compliant.is_empty() {
        bins.punish.into_iter().filter(|index| correction(*index).is_some()).collect()
    } else {
        bins.punish
    };
    for index in take(&mut generator, &punish, options.size - pairs.len()) {
        // Drawn even where a correction replaces it, so that corrections change no other pair.
        let unrelated = generator.choice(&compliant);
        let (chosen, source) = match (correction(index), unrelated) {
            (Some(text), _) => (text.to_owned(), ChosenFrom::Correction),
            (None, Some(other)) => (records[*other].chosen.response(), ChosenFrom::Record(*other)),
            (None, None) => continue,
        };
        pairs.push(GoldPair {
            prompt: records[index].prompt.clone(),
            chosen,
            rejected: records[index].chosen.response(),
            origin: Some(Origin { category: Category::Punish, record: index, chosen_from: Some(source) }),
        });
    }
    if pairs.is_empty() {
        return Err(Error::Config(format!(
            "no gold pair can be drawn: {} records, size {}; RETAIN or INVERT records are needed, or PUNISH records with \
             corrections",
            records.len(),
            options.size
        )));
    }
    Ok(pairs)
}

/// Reads a gold batch and refuses empty prompts and responses.
pub fn read(path: &Path) -> Result<Vec<GoldPair>> {
    let pairs: Vec<GoldPair> = input::read_all(path)?;
    for (index, pair) in pairs.iter().enumerate() {
        for (field, is_empty) in [
            ("prompt", pair.prompt.is_empty()),
            ("chosen", pair.chosen.trim().is_empty()),
            ("rejected", pair.rejected.trim().is_empty()),
        ] {
            if is_empty {
                return Err(Error::field(path, index, field, "is empty; a gold pair needs text in all three fields"));
            }
        }
    }
    Ok(pairs)
}

/// Writes a gold batch.
pub fn write(path: &Path, pairs: &[GoldPair]) -> Result<()> {
    output::write_json(path, pairs)
}

/// Indices of the records by category, in file order.
#[derive(Default)]
struct Bins {
    retain: Vec<usize>,
    invert: Vec<usize>,
    punish: Vec<usize>,
}

impl Bins {
    fn of(records: &[Record]) -> Result<Self> {
        let mut bins = Bins::default();
        for (index, record) in records.iter().enumerate() {
            match record.category {
                Some(Category::Retain) => bins.retain.push(index),
                Some(Category::Invert) => bins.invert.push(index),
                Some(Category::Punish) => bins.punish.push(index),
                None => {
                    return Err(Error::Config(format!(
                        "record {index} has no category; the records must be triaged first"
                    )));
                }
            }
        }
        Ok(bins)
    }
}

/// Takes up to `count` items of a bin without replacement, in draw order.
fn take(generator: &mut PythonRandom, bin: &[usize], count: usize) -> Vec<usize> {
    let count = count.min(bin.len());
    generator.sample(bin.len(), count).into_iter().map(|at| bin[at]).collect()
}

/// RETAIN pairs and, swapped by the triage already, INVERT pairs are used as they are stored.
fn stored_pair(records: &[Record], index: usize) -> Result<GoldPair> {
    let record = &records[index];
    let missing = || Error::Config(format!("record {index} has no rejected response; a gold pair needs one"));
    Ok(GoldPair {
        prompt: record.prompt.clone(),
        chosen: record.chosen.response(),
        rejected: record.rejected.as_ref().ok_or_else(missing)?.response(),
        origin: record.category.map(|category| Origin { category, record: index, chosen_from: None }),
    })
}

#[cfg(test)]
mod tests;
