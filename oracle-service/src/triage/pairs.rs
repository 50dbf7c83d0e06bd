//! The pairs of a triage: looked through once before anything is asked, then read again one by one.
//!
//! What is wrong with the input is known before it costs, and how many pairs there are; only a drawn sample is kept in
//! memory.

use std::collections::HashMap;
use std::path::Path;

use shared::python_random::PythonRandom;
use shared::quarantine::Quarantine;
use shared::record::{Record, Text};

use crate::error::Result;

/// A pair that can be judged, with its place in the input.
#[derive(Clone)]
pub(super) struct Pair {
    pub(super) index: usize,
    pub(super) record: Record,
    pub(super) rejected: Text,
}

/// What a first look through the input tells.
pub(super) struct Pairs {
    pub(super) quarantine: Quarantine,
    /// Pairs that can be judged.
    pub(super) total: u64,
    /// The drawn pairs in the order drawn, where some were drawn.
    sample: Option<Vec<Pair>>,
}

impl Pair {
    /// Takes a record as a pair; where a field holds no text, returns the record with the field's name.
    fn of(input: &Path, index: usize, record: Record) -> Result<std::result::Result<Pair, (Record, &'static str)>> {
        let Some(rejected) = record.rejected.clone() else {
            return Err(shared::Error::field(input, index, "rejected", "is missing").into());
        };
        Ok(match unreadable_field(&record, &rejected) {
            Some(field) => Err((record, field)),
            None => Ok(Pair { index, record, rejected }),
        })
    }
}

impl Pairs {
    /// Reads the input once: all of it, or a draw of so many records without replacement (spec 1.3, A.1).
    ///
    /// # Errors
    /// A record is malformed, or the input cannot be read twice.
    pub(super) fn look_through(input: &Path, num_samples: Option<usize>, seed: u64) -> Result<Pairs> {
        if std::fs::metadata(input).is_ok_and(|data| !data.is_file() && !data.is_dir()) {
            return Err(shared::Error::file(input, "is read twice and must be a regular file").into());
        }
        let drawn = match num_samples {
            Some(samples) => {
                let records = shared::input::for_each(input, |_, _: serde::de::IgnoredAny| Ok(()))?;
                (samples < records).then(|| PythonRandom::new(seed).sample(records, samples))
            }
            None => None,
        };
        match drawn {
            Some(drawn) => Pairs::sampled(input, &drawn),
            None => Pairs::counted(input),
        }
    }

    fn counted(input: &Path) -> Result<Pairs> {
        let mut pairs = Pairs { quarantine: Quarantine::of("triage"), total: 0, sample: None };
        for (index, record) in shared::input::records::<Record>(input)?.enumerate() {
            match Pair::of(input, index, record?)? {
                Ok(_) => pairs.total += 1,
                Err((record, field)) => pairs.quarantine.push(input, index, field, "is empty", &record)?,
            }
        }
        Ok(pairs)
    }

    fn sampled(input: &Path, drawn: &[usize]) -> Result<Pairs> {
        // Places in the draw by index, so that the sample can be put in its order.
        let places: HashMap<usize, usize> = drawn.iter().enumerate().map(|(place, index)| (*index, place)).collect();
        let mut kept = Vec::with_capacity(drawn.len());
        for (index, record) in shared::input::records::<Record>(input)?.enumerate() {
            let record = record?;
            if let Some(place) = places.get(&index) {
                kept.push((*place, index, Pair::of(input, index, record)?));
            }
        }
        kept.sort_by_key(|(place, ..)| *place);
        let (mut quarantine, mut sample) = (Quarantine::of("triage"), Vec::with_capacity(kept.len()));
        for (_, index, pair) in kept {
            match pair {
                Ok(pair) => sample.push(pair),
                Err((record, field)) => quarantine.push(input, index, field, "is empty", &record)?,
            }
        }
        Ok(Pairs { quarantine, total: sample.len() as u64, sample: Some(sample) })
    }

    /// Returns the pairs, one by one.
    ///
    /// # Errors
    /// The input cannot be opened.
    pub(super) fn iter<'a>(&'a self, input: &'a Path) -> Result<Box<dyn Iterator<Item = Result<Pair>> + 'a>> {
        if let Some(sample) = &self.sample {
            return Ok(Box::new(sample.iter().cloned().map(Ok)));
        }
        let records = shared::input::records::<Record>(input)?.enumerate();
        Ok(Box::new(records.filter_map(move |(index, record)| match record {
            Ok(record) => Pair::of(input, index, record).map(std::result::Result::ok).transpose(),
            Err(error) => Some(Err(error.into())),
        })))
    }
}

/// Returns the first field without text. A conversation can hold turns and still no response.
fn unreadable_field(record: &Record, rejected: &Text) -> Option<&'static str> {
    if record.prompt.prompt_text().trim().is_empty() {
        Some("prompt")
    } else if record.chosen.response().trim().is_empty() {
        Some("chosen")
    } else if rejected.response().trim().is_empty() {
        Some("rejected")
    } else {
        None
    }
}
