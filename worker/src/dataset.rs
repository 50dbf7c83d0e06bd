//! Records of a file as the objective sees them: read, checked, set aside where empty, tokenised.

use std::path::{Path, PathBuf};

use shared::gold::GoldPair;
use shared::quarantine::Quarantine;
use shared::record::Record;

use crate::error::{Error, Result};
use crate::objective::method::{Method, Part, Term};
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
        let all: Vec<Record> = shared::input::read_all(file)?;
        let mut quarantine = Quarantine::of("worker");
        let (mut records, mut index) = (Vec::with_capacity(all.len()), Vec::with_capacity(all.len()));
        for (i, record) in all.into_iter().enumerate() {
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

    /// Tokenises every record the method has a term for: one entry a record, `None` where it has none. Weights are 1
    /// and reference log-probs empty.
    ///
    /// # Errors
    /// A record cannot be tokenised or lacks its category; the record is named.
    pub fn items(
        &self,
        encoder: &Encoder,
        method: Method,
        alpha_kl: f64,
        max_length: usize,
    ) -> Result<Vec<Option<Item>>> {
        let mut items = Vec::with_capacity(self.records.len());
        for (record, &index) in self.records.iter().zip(&self.index) {
            let named = |problem: String| Error::record(&self.file, index, problem);
            let item = match method.term(record, alpha_kl).map_err(named)? {
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
        .map(|part| {
            let (name, text) = match part {
                Part::Chosen => ("chosen", record.chosen.response()),
                Part::Rejected => ("rejected", record.rejected.as_ref().map(|t| t.response()).unwrap_or_default()),
                Part::Correction => ("oracle_response", record.correction().unwrap_or_default().to_owned()),
            };
            encoder.pair(&record.prompt, &text, max_length).map_err(|e| format!("field {name:?}: {e}"))
        })
        .collect()
}

/// Tokenises the gold batch as preference items.
///
/// # Errors
/// A pair cannot be tokenised; it is named.
pub fn gold_items(encoder: &Encoder, gold: &[GoldPair], max_length: usize) -> Result<Vec<Item>> {
    gold.iter()
        .enumerate()
        .map(|(i, pair)| {
            let encode = |text: &str| {
                encoder.gold(&pair.prompt, text, max_length).map_err(|e| Error::Config(format!("gold pair {i}: {e}")))
            };
            Ok(Item {
                record: i,
                term: Term::Prefer(Part::Chosen, Part::Rejected),
                weight: 1.0,
                sequences: vec![encode(&pair.chosen)?, encode(&pair.rejected)?],
                reference: Vec::new(),
            })
        })
        .collect()
}

fn empty_field(record: &Record, method: Method) -> Option<&'static str> {
    if record.prompt.is_empty() {
        Some("prompt")
    } else if record.chosen.response().is_empty() {
        Some("chosen")
    } else if method != Method::Sft && record.rejected.as_ref().is_some_and(|text| text.response().is_empty()) {
        Some("rejected")
    } else {
        None
    }
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
