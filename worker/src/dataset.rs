//! Records of a file as the objective sees them: read, checked, set aside where empty, tokenised.

use std::path::{Path, PathBuf};

use shared::gold::GoldPair;
use shared::quarantine::Quarantine;
use shared::record::Record;

use crate::error::{Error, Result};
use crate::objective::method::{Method, Part, Recipe, Term};
use crate::objective::step::Item;
use crate::text::{Encoder, Sequence};

/// The usable records of a file, in its order.
#[derive(Debug)]
pub struct DataSet {
    /// The file.
    pub file: PathBuf,
    /// Usable records.
    pub records: Vec<Record>,
    /// Each record's index in the file.
    pub index: Vec<usize>,
    /// Records with an empty prompt or response.
    pub quarantine: Quarantine,
}

impl DataSet {
    /// Reads a file of records. Those with an empty prompt or response are kept apart; see [`DataSet::set_aside`].
    ///
    /// # Errors
    /// The file cannot be read, a record is malformed, or none is usable.
    pub fn read(file: &Path, method: Method) -> Result<Self> {
        Self::read_first(file, method, usize::MAX)
    }

    /// As [`DataSet::read`], of the first records of a file alone.
    ///
    /// # Errors
    /// As there.
    pub fn read_first(file: &Path, method: Method, count: usize) -> Result<Self> {
        let mut quarantine = Quarantine::of("worker");
        let (mut records, mut index) = (Vec::new(), Vec::new());
        for (i, record) in shared::input::records::<Record>(file)?.take(count).enumerate() {
            let record = record?;
            if method != Method::Sft && record.rejected.is_none() {
                return Err(shared::error::Error::field(file, i, "rejected", "is missing").into());
            }
            match empty_field(&record, method) {
                Some(field) => quarantine.push(file, i, field, "is empty", &record)?,
                None => {
                    records.push(record);
                    index.push(i);
                }
            }
        }
        if records.is_empty() {
            let problem = format!("holds no usable record: all {} have an empty prompt or response", quarantine.len());
            return Err(shared::error::Error::file(file, problem).into());
        }
        Ok(DataSet { file: file.to_owned(), records, index, quarantine })
    }

    /// Writes the unusable records with their reasons to `<stem>_quarantine.json` beside `output`, and says so.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set_aside(&self, output: &Path) -> Result<()> {
        if let Some(path) = self.quarantine.write_beside(output)? {
            let count = self.quarantine.len();
            tracing::warn!("{count} records with an empty field were set aside in {}", path.display());
        }
        Ok(())
    }

    /// Says of which categories no record gets a weight; `raw` are the records' scores.
    pub fn warn_of_clamped(&self, raw: &[Option<f64>]) {
        if let Some(warning) = shared::weights::clamped_warning(self.records.iter().zip(raw.iter().copied())) {
            tracing::warn!("{}: {warning}", self.file.display());
        }
    }

    /// Tokenises every record the recipe has a term for: one entry a record, `None` where it has none. Weights are 1
    /// and reference log-probs empty.
    ///
    /// # Errors
    /// A record cannot be tokenised or lacks its category; the record is named.
    pub fn items(&self, encoder: &Encoder, recipe: &Recipe, max_length: usize) -> Result<Vec<Option<Item>>> {
        let mut items = Vec::with_capacity(self.records.len());
        for (record, &index) in self.records.iter().zip(&self.index) {
            let named = |problem: String| Error::record(&self.file, index, problem);
            let item = match recipe.decide(record).map_err(named)?.term {
                Some(term) => Some(Item {
                    record: index,
                    term,
                    weight: 1.0,
                    sequences: sequences(encoder, record, term, max_length).map_err(named)?,
                    reference: Vec::new(),
                }),
                None => None,
            };
            items.push(item);
        }
        Ok(items)
    }
}

fn sequences(
    encoder: &Encoder,
    record: &Record,
    term: Term,
    max_length: usize,
) -> std::result::Result<Vec<Sequence>, String> {
    term.parts()
        .iter()
        .map(|part| encoder.pair(&record.prompt, &part.of(record), max_length).map_err(|e| e.of_field(part.field())))
        .collect()
}

/// Where the pairs of a gold batch stand, for messages.
#[derive(Debug, Clone, Copy)]
pub enum GoldFile<'a> {
    /// In a file of their own.
    Given(&'a Path),
    /// Drawn from the records of this file; every pair says from which.
    DrawnFrom(&'a Path),
}

impl<'a> GoldFile<'a> {
    /// Returns the file.
    pub fn path(self) -> &'a Path {
        match self {
            GoldFile::Given(file) | GoldFile::DrawnFrom(file) => file,
        }
    }

    /// Returns the index in the file of a pair of the batch.
    fn index(self, pair: &GoldPair, at: usize) -> usize {
        match (self, &pair.origin) {
            (GoldFile::DrawnFrom(_), Some(origin)) => origin.record,
            _ => at,
        }
    }
}

/// Tokenises the gold batch as preference items.
///
/// # Errors
/// A pair cannot be tokenised; it is named.
pub fn gold_items(encoder: &Encoder, gold: &[GoldPair], file: GoldFile<'_>, max_length: usize) -> Result<Vec<Item>> {
    gold.iter()
        .enumerate()
        .map(|(at, pair)| {
            let record = file.index(pair, at);
            let encode = |part: Part, text: &str| {
                let encoded = encoder.gold(&pair.prompt, text, max_length);
                encoded.map_err(|e| {
                    Error::record(file.path(), record, format!("as a gold pair: {}", e.of_field(part.field())))
                })
            };
            Ok(Item {
                record,
                term: Term::Prefer(Part::Chosen, Part::Rejected),
                weight: 1.0,
                sequences: vec![encode(Part::Chosen, &pair.chosen)?, encode(Part::Rejected, &pair.rejected)?],
                reference: Vec::new(),
            })
        })
        .collect()
}

/// Records that were cut to the longest sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Truncated {
    /// How many.
    pub records: usize,
    /// The first one's index in its file.
    pub first: Option<usize>,
}

impl Truncated {
    /// Counts a record whose sequences may have been cut.
    pub fn count<'a>(&mut self, record: usize, sequences: impl IntoIterator<Item = &'a Sequence>) {
        if sequences.into_iter().any(|sequence| sequence.cut > 0) {
            self.records += 1;
            self.first = self.first.or(Some(record));
        }
    }

    /// Counts the records of items.
    pub fn of<'a>(items: impl IntoIterator<Item = &'a Item>) -> Self {
        let mut truncated = Truncated::default();
        items.into_iter().for_each(|item| truncated.count(item.record, &item.sequences));
        truncated
    }

    /// Says so, if there are any.
    pub fn warn(self, file: &Path, max_length: usize) {
        if let Some(first) = self.first {
            tracing::warn!(
                "{} records truncated to {max_length} tokens, first: record {first} ({})",
                self.records,
                file.display()
            );
        }
    }
}

fn empty_field(record: &Record, method: Method) -> Option<&'static str> {
    record.empty_field().filter(|field| method != Method::Sft || *field != "rejected")
}

/// Cuts items into packs of at most `budget` tokens, in their order, so that packs depend on content alone. A longer
/// item gets a pack to itself.
pub fn packs<'a>(items: impl Iterator<Item = &'a Item>, budget: usize) -> Vec<Vec<&'a Item>> {
    let mut packs: Vec<Vec<&Item>> = Vec::new();
    let mut filled = usize::MAX;
    for item in items {
        let tokens = item.tokens();
        if filled.saturating_add(tokens) > budget {
            packs.push(Vec::new());
            filled = 0;
        }
        filled += tokens;
        packs.last_mut().expect("a pack was just begun").push(item);
    }
    packs
}

/// Default token budget of a pack.
pub const PACK_TOKENS: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncated_records_are_counted_once_and_the_first_is_named() {
        let sequence = |cut| Sequence { tokens: vec![1, 2], scored: vec![1], kl: vec![0], prompt_len: 1, cut };
        let item = |record, cuts: [usize; 2]| Item {
            record,
            term: Term::PunishBoth,
            weight: 1.0,
            sequences: cuts.map(sequence).to_vec(),
            reference: Vec::new(),
        };
        let items = [item(0, [0, 0]), item(4, [0, 3]), item(7, [1, 1])];
        assert_eq!(Truncated::of(&items), Truncated { records: 2, first: Some(4) });
        assert_eq!(Truncated::of(&items[..1]), Truncated::default());
    }

    #[test]
    fn a_blank_rejected_response_matters_to_all_but_sft() {
        let record = Record { prompt: "x".into(), chosen: "a".into(), rejected: Some(" ".into()), ..Record::default() };
        assert_eq!(empty_field(&record, Method::Dpo), Some("rejected"));
        assert_eq!(empty_field(&record, Method::Sft), None);
    }
}
