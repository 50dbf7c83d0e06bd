//! The gold batch: the pairs whose gradient stands for "obey the new policy" (spec 5.2, Algorithm 2).
//!
//! Drawing is one pure function of records, size and seed, with Python's generator in a fixed order: the RETAIN sample,
//! the INVERT sample, the PUNISH sample, then one compliant response per PUNISH pair, in sample order. The same inputs
//! give the same batch on every rank and in every restart. Files hold `[{prompt, chosen, rejected, origin}]`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::python_random::PythonRandom;
use crate::record::{Category, CategoryCounts, Record, Text};
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

/// Where a gold pair comes from. Indices are those of the file that was drawn from, from 0.
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

/// The usable records of a file, which a gold batch is drawn from.
#[derive(Debug, Clone, Copy)]
pub struct Pool<'a> {
    /// The file, for messages.
    pub file: &'a Path,
    /// Its usable records, in order.
    pub records: &'a [Record],
    /// Place in the file of each of them, which is what a person looks up.
    pub index: &'a [usize],
}

/// A gold batch with what people should know of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Drawn {
    /// The batch; shorter than asked for where the records do not give more.
    pub pairs: Vec<GoldPair>,
    /// As [`warnings`] tells.
    pub warnings: Vec<String>,
}

/// Draws the gold batch.
///
/// # Errors
/// Not a single pair can be drawn; a record has no category or, if it is drawn, no rejected response.
pub fn draw(pool: Pool<'_>, options: GoldOptions) -> Result<Drawn> {
    let records = pool.records;
    let bins = Bins::of(pool)?;
    let counts = CategoryCounts::of(records.iter().filter_map(|record| record.category));
    let compliant: Vec<usize> = [&bins.retain[..], &bins.invert].concat();
    let mut generator = PythonRandom::new(options.seed);
    let mut as_stored = take(&mut generator, &bins.retain, options.size / 3);
    as_stored.extend(take(&mut generator, &bins.invert, options.size / 3));
    let mut pairs = as_stored.into_iter().map(|at| stored_pair(pool, at)).collect::<Result<Vec<_>>>()?;

    let correction = |at: usize| records[at].correction().filter(|_| options.use_corrections);
    let punish: Vec<usize> = if compliant.is_empty() {
        bins.punish.into_iter().filter(|at| correction(*at).is_some()).collect()
    } else {
        bins.punish
    };
    for at in take(&mut generator, &punish, options.size - pairs.len()) {
        // Drawn even where a correction replaces it, so that corrections change no other pair.
        let unrelated = generator.choice(&compliant);
        let (chosen, source) = match (correction(at), unrelated) {
            (Some(text), _) => (text.to_owned(), ChosenFrom::Correction),
            (None, Some(other)) => (records[*other].chosen.response(), ChosenFrom::Record(pool.index[*other])),
            (None, None) => continue,
        };
        let origin = Origin { category: Category::Punish, record: pool.index[at], chosen_from: Some(source) };
        pairs.push(GoldPair {
            prompt: records[at].prompt.clone(),
            chosen,
            rejected: records[at].chosen.response(),
            origin: Some(origin),
        });
    }
    if pairs.is_empty() {
        let size = options.size;
        let problem = format!(
            "no gold pair can be drawn: {} records ({counts}), size {size}; RETAIN or INVERT records are needed, or PUNISH \
             records with corrections",
            records.len()
        );
        return Err(Error::file(pool.file, problem));
    }
    let warnings = warnings(counts, &pairs, options.size);
    Ok(Drawn { pairs, warnings })
}

/// Says what is wanting in a batch drawn from records of these counts: a category without records, pairs that were asked
/// for and could not be drawn. Nothing where nothing is wanting.
pub fn warnings(records: CategoryCounts, pairs: &[GoldPair], asked: usize) -> Vec<String> {
    let mut warnings = Vec::new();
    let empty: Vec<&str> =
        Category::ALL.into_iter().filter(|category| records.get(*category) == 0).map(Category::name).collect();
    if !empty.is_empty() {
        warnings.push(format!(
            "there is no {} record among those that the gold batch is drawn from ({records}): the batch says nothing of \
             what such records teach; look at the triage, or give a gold batch",
            empty.join(" and no ")
        ));
    }
    if pairs.len() < asked {
        let drawn = CategoryCounts::of(pairs.iter().filter_map(|pair| Some(pair.origin.as_ref()?.category)));
        warnings.push(format!(
            "the gold batch has {} of the {asked} pairs asked for ({drawn}): the records give no more ({records}); ask for \
             fewer, or draw from more records",
            pairs.len()
        ));
    }
    warnings
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

/// Places in the pool by category, in its order.
#[derive(Default)]
struct Bins {
    retain: Vec<usize>,
    invert: Vec<usize>,
    punish: Vec<usize>,
}

impl Bins {
    fn of(pool: Pool<'_>) -> Result<Self> {
        let mut bins = Bins::default();
        for (at, record) in pool.records.iter().enumerate() {
            match record.category {
                Some(Category::Retain) => bins.retain.push(at),
                Some(Category::Invert) => bins.invert.push(at),
                Some(Category::Punish) => bins.punish.push(at),
                None => {
                    let problem = "is missing, so no gold batch can be drawn; triage the records, or give --gold";
                    return Err(Error::field(pool.file, pool.index[at], "category", problem));
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
fn stored_pair(pool: Pool<'_>, at: usize) -> Result<GoldPair> {
    let (record, index) = (&pool.records[at], pool.index[at]);
    let missing = || Error::field(pool.file, index, "rejected", "is missing; a gold pair needs one");
    Ok(GoldPair {
        prompt: record.prompt.clone(),
        chosen: record.chosen.response(),
        rejected: record.rejected.as_ref().ok_or_else(missing)?.response(),
        origin: record.category.map(|category| Origin { category, record: index, chosen_from: None }),
    })
}

#[cfg(test)]
mod tests;
