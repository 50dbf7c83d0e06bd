//! Reference log-probs: log π_ref of every sequence whose loss is a function of log-ratios.
//!
//! They are kept by content: the weights, the type computed in, the tokens and which of them are scored. Scoring writes
//! those it computes into the records, training writes all it used into its folder; whoever needs one of these later
//! does not run the reference model for it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde_json::Value;
use shared::record::Record;
use shared::weights::REFERENCE_LOGPS as FIELD;

use crate::collective::Collective;
use crate::control::Control;
use crate::dataset;
use crate::error::{Error, Result};
use crate::journal::Journal;
use crate::model::decoder::Decoder;
use crate::model::pack::Pack;
use crate::objective::step::{Item, log_prob_sums};
use crate::text::Sequence;

/// Returns what a sequence's log-prob under a decoder depends on, as a short name; `None` for a decoder whose weights
/// have no name (drawn from a seed).
pub fn key(decoder: &Decoder, sequence: &Sequence) -> Option<String> {
    if decoder.fingerprint.is_empty() {
        return None;
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(decoder.fingerprint.as_bytes());
    hasher.update(format!("{:?}{:?}", decoder.config, decoder.dtype).as_bytes());
    for token in &sequence.tokens {
        hasher.update(&token.to_le_bytes());
    }
    hasher.update(b"scored");
    for position in &sequence.scored {
        hasher.update(&(*position as u64).to_le_bytes());
    }
    Some(hasher.finalize().to_hex()[..20].to_owned())
}

/// Log-probs known beforehand.
#[derive(Debug, Default, Clone)]
pub struct Known {
    of: HashMap<String, f64>,
}

impl Known {
    /// Adds those that records bring.
    ///
    /// # Errors
    /// A record's field is no object of numbers; the record is named, by its `index` in `file`.
    pub fn add_records(&mut self, records: &[Record], index: impl Fn(usize) -> usize, file: &Path) -> Result<()> {
        for (at, record) in records.iter().enumerate() {
            let Some(value) = record.extra.get(FIELD) else { continue };
            self.add(value).map_err(|problem| {
                Error::record(file, index(at), format!("field {FIELD:?} {problem}; remove it, or score again"))
            })?;
        }
        Ok(())
    }

    /// Adds those of a file that a training wrote, if it is there.
    ///
    /// # Errors
    /// It is damaged.
    pub fn add_file(&mut self, file: &Path) -> Result<()> {
        if !file.exists() {
            return Ok(());
        }
        let bytes = std::fs::read(file).map_err(|e| Error::model(file, e.to_string()))?;
        let damaged = |problem: String| Error::model(file, format!("{problem}; remove it to have them computed anew"));
        let value: Value = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        self.add(&value).map_err(damaged)
    }

    fn add(&mut self, value: &Value) -> std::result::Result<(), String> {
        let object = value.as_object().ok_or("is no object of log-probs")?;
        for (key, value) in object {
            let value = value.as_f64().filter(|v| v.is_finite() && *v <= 0.0);
            let value = value.ok_or_else(|| format!("holds something under {key:?} that is no log-prob"))?;
            self.of.insert(key.clone(), value);
        }
        Ok(())
    }

    /// Returns these and others, in the order of their keys.
    pub fn with(self, others: BTreeMap<String, f64>) -> BTreeMap<String, f64> {
        self.of.into_iter().chain(others).collect()
    }

    fn get(&self, decoder: &Decoder, sequence: &Sequence) -> Option<f64> {
        if self.of.is_empty() {
            return None;
        }
        self.of.get(&key(decoder, sequence)?).copied()
    }
}

/// Puts log-probs into a record, in place of those it had.
pub fn keep(record: &mut Record, logps: &BTreeMap<String, f64>) {
    match logps.is_empty() {
        true => record.extra.remove(FIELD),
        false => record.extra.insert(FIELD.to_owned(), serde_json::json!(logps)),
    };
}

/// Returns the log-probs that items hold, by key, in a fixed order.
pub fn by_key<'a>(decoder: &Decoder, items: impl Iterator<Item = &'a Item>) -> BTreeMap<String, f64> {
    let parts = items.flat_map(|item| item.sequences.iter().zip(&item.reference));
    let finite = parts.filter(|(_, value)| value.is_finite());
    finite.filter_map(|(sequence, value)| Some((key(decoder, sequence)?, *value))).collect()
}

/// Where log-probs come from besides the model, and where finished packs are kept until all are done.
#[derive(Debug, Default)]
pub struct Sources<'a> {
    /// Those that need not be computed.
    pub known: Known,
    /// Kept by the first rank; gone when [`fill`] returns.
    pub journal: Option<&'a Path>,
}

/// Sets `reference` of all items that use ratios: as known, else computed in packs cut by content. The ranks of a gang
/// share the packs and exchange their sums, so that every rank has all of them; what the first rank knows counts.
///
/// # Errors
/// The command was told to stop, a member of the gang is gone, or the journal cannot be used.
pub fn fill(
    decoder: &Decoder,
    items: &mut [&mut Item],
    sources: &Sources<'_>,
    pack_tokens: usize,
    control: &Control,
    gang: &mut dyn Collective,
) -> Result<()> {
    let is_first = gang.rank() == 0;
    let sequences = items.iter().filter(|item| item.term.uses_ratios()).flat_map(|item| &item.sequences);
    let known = sequences.map(|sequence| sources.known.get(decoder, sequence).filter(|_| is_first));
    let mut known: Vec<f64> =
        known.flat_map(|value| [f64::from(u8::from(value.is_some())), value.unwrap_or(0.0)]).collect();
    gang.all_reduce_f64(&mut known)?;
    let mut known = known.chunks_exact(2).map(|pair| (pair[0] == 1.0).then_some(pair[1]));
    for item in items.iter_mut().filter(|item| item.term.uses_ratios()) {
        let values: Vec<Option<f64>> = known.by_ref().take(item.sequences.len()).collect();
        item.reference = values.into_iter().collect::<Option<Vec<f64>>>().unwrap_or_default();
    }
    let is_needed = |item: &Item| item.term.uses_ratios() && item.reference.is_empty();
    let needing: Vec<&Item> = items.iter().map(|item| &**item).filter(|item| is_needed(item)).collect();
    let packs = dataset::packs(needing.iter().copied(), pack_tokens);
    let mut sums = computed(decoder, &packs, sources.journal, control, gang)?.into_iter();
    for item in items.iter_mut().filter(|item| is_needed(item)) {
        item.reference = sums.by_ref().take(item.sequences.len()).collect();
    }
    Ok(())
}

/// Computes the sums of all sequences of packs, one pack a rank at a time.
fn computed(
    decoder: &Decoder,
    packs: &[Vec<&Item>],
    journal: Option<&Path>,
    control: &Control,
    gang: &mut dyn Collective,
) -> Result<Vec<f64>> {
    if packs.is_empty() {
        return Ok(Vec::new());
    }
    let counts: Vec<usize> = packs.iter().map(|pack| pack.iter().map(|item| item.sequences.len()).sum()).collect();
    let is_named = !decoder.fingerprint.is_empty();
    let (mut journal, finished) = match journal.filter(|_| gang.rank() == 0 && is_named) {
        Some(file) => {
            let (journal, finished) = Journal::open::<Vec<f64>>(file, &name(decoder, packs), control.attempt())?;
            if finished.len() > packs.len() || finished.iter().zip(&counts).any(|(sums, n)| sums.len() != *n) {
                return Err(Error::model(file, "does not fit these records; remove it to start over"));
            }
            (Some(journal), finished)
        }
        None => (None, Vec::new()),
    };
    // The first rank alone has what was finished before; all go on from there.
    let done = gang.first_of(finished.len() as f64)? as usize;
    let mut sums: Vec<f64> = finished.concat();
    sums.resize(counts[..done].iter().sum(), 0.0);
    gang.all_reduce_f64(&mut sums)?;

    let bar = control.bar("reference log-probs", packs.iter().map(Vec::len).sum::<usize>() as u64);
    bar.start_at(packs[..done].iter().map(Vec::len).sum::<usize>() as u64);
    let mut at = done;
    while at < packs.len() {
        control.pass("reference.pack");
        control.go_on()?;
        let turn = at..(at + gang.world_size()).min(packs.len());
        let mut of_turn = Vec::new();
        for (rank, i) in turn.clone().enumerate() {
            if rank == gang.rank() {
                let groups: Vec<_> = packs[i].iter().map(|item| item.group()).collect();
                of_turn.extend(log_prob_sums(decoder, None, &Pack::new(&groups, decoder.device)));
            } else {
                of_turn.resize(of_turn.len() + counts[i], 0.0);
            }
        }
        gang.all_reduce_f64(&mut of_turn)?;
        if let Some(journal) = &mut journal {
            let mut rest = of_turn.as_slice();
            let lines: Vec<&[f64]> = turn
                .clone()
                .map(|i| {
                    let (own, tail) = rest.split_at(counts[i]);
                    rest = tail;
                    own
                })
                .collect();
            journal.append(&lines)?;
        }
        sums.extend(of_turn);
        bar.inc(packs[turn.clone()].iter().map(Vec::len).sum::<usize>() as u64);
        at = turn.end;
    }
    bar.finish_and_clear();
    if let Some(journal) = journal {
        journal.remove()?;
    }
    Ok(sums)
}

/// Returns what the sums of packs depend on.
fn name(decoder: &Decoder, packs: &[Vec<&Item>]) -> String {
    let mut hasher = blake3::Hasher::new();
    for pack in packs {
        for sequence in pack.iter().flat_map(|item| &item.sequences) {
            hasher.update(key(decoder, sequence).unwrap_or_default().as_bytes());
        }
        hasher.update(b"pack");
    }
    hasher.finalize().to_hex()[..32].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_no_log_prob_is_refused_with_its_record() {
        let with = |value: Value| {
            let mut record = Record::default();
            record.extra.insert(FIELD.to_owned(), value);
            record
        };
        let mut known = Known::default();
        known.add_records(&[with(json!({"a": -1.5, "b": 0.0}))], |at| at, Path::new("f")).unwrap();
        assert_eq!(known.of["a"], -1.5);
        for bad in [json!(3), json!({"a": "x"}), json!({"a": 0.1}), json!([1.0])] {
            let records = [Record::default(), with(bad)];
            let error = known.add_records(&records, |at| at + 7, Path::new("f")).unwrap_err().to_string();
            assert!(error.contains("record 8") && error.contains(FIELD), "{error}");
        }
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("r.json");
        let mut known = Known::default();
        known.add_file(&file).unwrap();
        std::fs::write(&file, "{\"a\": -1").unwrap();
        assert!(known.add_file(&file).unwrap_err().to_string().contains("r.json"));
    }
}
