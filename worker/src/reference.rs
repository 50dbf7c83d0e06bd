//! Reference log-probs: log π_ref of every sequence whose loss is a function of log-ratios.
//!
//! They are kept by content: the weights, the type computed in, the tokens and which of them are scored. Scoring writes
//! those it computes into the records, training writes all it used into its folder; whoever needs one of these later
//! does not run the reference model for it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use serde_json::Value;
use shared::record::Record;
use shared::weights::REFERENCE_LOGPS as FIELD;

use crate::collective::{Collective, Op};
use crate::control::Control;
use crate::dataset;
use crate::error::{Error, Result};
use crate::fence::Attempt;
use crate::journal::Journal;
use crate::model::decoder::Decoder;
use crate::model::pack::Pack;
use crate::objective::step::{Item, log_prob_sums};
use crate::text::Sequence;

/// Names what the log-probs of sequences under a decoder depend on: weights, configuration, type, tokens, and which of
/// them are scored.
pub struct Keys {
    of_decoder: blake3::Hasher,
    /// The weights have a name; without one, keys mean nothing to another process.
    is_named: bool,
}

impl Keys {
    /// Prepares the keys of a decoder.
    pub fn of(decoder: &Decoder) -> Keys {
        let mut of_decoder = blake3::Hasher::new();
        of_decoder.update(decoder.content.as_bytes());
        of_decoder.update(format!("{:?}{:?}", decoder.config, decoder.dtype).as_bytes());
        Keys { of_decoder, is_named: !decoder.content.is_empty() }
    }

    /// Returns the key of a sequence.
    pub fn key(&self, sequence: &Sequence) -> String {
        let mut hasher = self.of_decoder.clone();
        for token in &sequence.tokens {
            hasher.update(&token.to_le_bytes());
        }
        hasher.update(b"scored");
        for position in &sequence.scored {
            hasher.update(&(*position as u64).to_le_bytes());
        }
        hasher.finalize().to_hex()[..20].to_owned()
    }
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

    fn get(&self, key: &str) -> Option<f64> {
        self.of.get(key).copied()
    }

    /// Opens the journal of a computation that was interrupted, or begins one, and adds what it holds.
    ///
    /// # Errors
    /// As [`Journal::open`].
    pub fn resume(&mut self, file: &Path, attempt: Option<&Attempt>) -> Result<Journal> {
        let (journal, lines) = Journal::open::<BTreeMap<String, f64>>(file, "reference log-probs", attempt)?;
        self.of.extend(lines.into_iter().flatten());
        Ok(journal)
    }
}

/// Puts log-probs into a record, in place of those it had.
pub fn keep(record: &mut Record, logps: &BTreeMap<String, f64>) {
    match logps.is_empty() {
        true => record.extra.remove(FIELD),
        false => record.extra.insert(FIELD.to_owned(), serde_json::json!(logps)),
    };
}

/// Returns the log-probs that items hold, by key, in a fixed order; none where keys mean nothing to another process.
pub fn by_key<'a>(keys: &Keys, items: impl Iterator<Item = &'a Item>) -> BTreeMap<String, f64> {
    if !keys.is_named {
        return BTreeMap::new();
    }
    let parts = items.flat_map(|item| item.sequences.iter().zip(&item.reference));
    parts.filter(|(_, value)| value.is_finite()).map(|(sequence, value)| (keys.key(sequence), *value)).collect()
}

/// Sets `reference` of all items that use ratios: as known, else computed in packs cut by content. Equal sequences get
/// equal numbers. The ranks of a gang share the packs and exchange their sums, so that every rank has all of them; what
/// the first rank knows counts, and its journal gets every pack that is finished.
///
/// # Errors
/// A rank was told to stop, a member of the gang is gone, or the journal cannot be written.
pub fn fill(
    decoder: &Decoder,
    items: &mut [&mut Item],
    known: &Known,
    mut journal: Option<&mut Journal>,
    pack_tokens: usize,
    control: &Control,
    gang: &mut dyn Collective,
) -> Result<()> {
    let keys = Keys::of(decoder);
    let mut items: Vec<(&mut Item, Vec<String>)> = items
        .iter_mut()
        .filter(|item| item.term.uses_ratios())
        .map(|item| {
            let keys = item.sequences.iter().map(|sequence| keys.key(sequence)).collect();
            (&mut **item, keys)
        })
        .collect();
    let mut values = shared_by_first(known, items.iter().flat_map(|(_, keys)| keys), gang)?;

    // One that repeats what another brings is not computed. So the packs after those in the journal are the same as if
    // there had been no interruption.
    let mut covered: HashSet<&str> = values.keys().map(String::as_str).collect();
    let mut needing = Vec::new();
    for (item, keys) in &items {
        if keys.iter().any(|key| !covered.contains(key.as_str())) {
            covered.extend(keys.iter().map(String::as_str));
            needing.push((&**item, keys));
        }
    }
    let packs = dataset::packs(needing.iter().map(|(item, _)| *item), pack_tokens);
    let mut keys_of_packs = needing.iter().map(|(_, keys)| *keys);
    let bar = control.bar("reference log-probs", needing.len() as u64);
    let world_size = gang.world_size();
    for turn in packs.chunks(world_size) {
        control.pass("reference.pack");
        let mut sums = Vec::new();
        for (rank, pack) in turn.iter().enumerate() {
            if rank == gang.rank() {
                let groups: Vec<_> = pack.iter().map(|item| item.group()).collect();
                sums.extend(log_prob_sums(decoder, None, &Pack::new(&groups, decoder.device)));
            } else {
                sums.resize(sums.len() + pack.iter().map(|item| item.sequences.len()).sum::<usize>(), 0.0);
            }
        }
        // All obey at the same pack.
        sums.push(f64::from(u8::from(control.stop().is_some())));
        gang.all_reduce(sums.as_mut_slice().into(), Op::Sum)?;
        if sums.pop() != Some(0.0) {
            return Err(Error::Stopped);
        }
        let of_turn = keys_of_packs.by_ref().take(turn.iter().map(Vec::len).sum()).flatten();
        let mut found = BTreeMap::new();
        for (key, sum) in of_turn.zip(sums) {
            // The log of a probability near 1 may round to above 0.
            let sum = if sum > 0.0 { 0.0 } else { sum };
            if !values.contains_key(key) {
                values.insert(key.clone(), sum);
                found.insert(key.as_str(), sum);
            }
        }
        // What is not finite is told with its record when its loss is computed, now or when the command is given again.
        found.retain(|_, sum| sum.is_finite());
        if let Some(journal) = &mut journal {
            journal.append(&[found])?;
        }
        bar.inc(turn.iter().map(Vec::len).sum::<usize>() as u64);
    }
    bar.finish_and_clear();
    for (item, keys) in &mut items {
        item.reference = keys.iter().map(|key| values[key]).collect();
    }
    Ok(())
}

/// Returns what the first rank knows of keys, on every rank.
fn shared_by_first<'k>(
    known: &Known,
    keys: impl Iterator<Item = &'k String> + Clone,
    gang: &mut dyn Collective,
) -> Result<HashMap<String, f64>> {
    let is_first = gang.rank() == 0;
    let found = keys.clone().map(|key| known.get(key).filter(|_| is_first));
    let mut found: Vec<f64> =
        found.flat_map(|value| [f64::from(u8::from(value.is_some())), value.unwrap_or(0.0)]).collect();
    gang.broadcast(found.as_mut_slice().into(), 0)?;
    let pairs = keys.zip(found.chunks_exact(2));
    Ok(pairs.filter(|(_, pair)| pair[0] == 1.0).map(|(key, pair)| (key.clone(), pair[1])).collect())
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
