//! A record by its index, with the oracle's verdicts on its responses.
//!
//! The record itself says which responses violate; what the verdicts rest on stands in `triage/gold_provenance.jsonl`, by
//! the places of the pairs before triage. The pair is found there by its text, since splits reorder records and the triage
//! swaps INVERT pairs; equal texts have equal verdicts.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;
use shared::record::{Category, Record, Text};
use shared::{Error, Result, input};

/// A record and its verdicts.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Found {
    /// The file that the index counts in.
    pub(super) file: PathBuf,
    pub(super) record: usize,
    pub(super) prompt: Text,
    pub(super) category: Option<Category>,
    /// Of the responses as the record has them: in an INVERT record `chosen` is the one that was not preferred before.
    pub(super) verdicts: [Verdict; 2],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) correction: Option<String>,
}

/// What the oracle said of one response.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Verdict {
    pub(super) field: &'static str,
    pub(super) response: String,
    /// `COMPLIANT` or `NON-COMPLIANT`; none where it was not asked.
    pub(super) verdict: Option<&'static str>,
    /// Policies that it violates, by their indices.
    pub(super) violations: Vec<i64>,
    /// What the verdict rests on, as the triage wrote it: votes, confidence, answers; none where it left nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) grounds: Option<Value>,
}

/// Finds a record, and its position among the usable records of its file.
///
/// # Errors
/// There is none of that index, or it was set aside.
pub(super) fn of(run_dir: &Path, file: &Path, index: usize) -> Result<(Found, usize)> {
    let mut position = 0;
    let mut count = 0;
    for (at, record) in input::records::<Record>(file)?.enumerate() {
        let record = record?;
        let empty = record.empty_field();
        if at < index {
            position += usize::from(empty.is_none());
        } else if let Some(field) = empty {
            let problem = "is empty, so the record was set aside and has no score";
            return Err(Error::field(file, index, field, problem));
        } else {
            return Ok((found(run_dir, file, index, record)?, position));
        }
        count = at + 1;
    }
    let problem =
        format!("there is no record {index}: it holds {count} records, from 0 to {}", count.saturating_sub(1));
    Err(Error::file(file, problem))
}

fn found(run_dir: &Path, file: &Path, index: usize, record: Record) -> Result<Found> {
    let responses = [record.chosen.response(), record.rejected.as_ref().map(Text::response).unwrap_or_default()];
    let mut grounds = grounds(run_dir, &record, &responses)?;
    if record.category == Some(Category::Invert) {
        grounds.reverse();
    }
    let correction = record.correction().map(str::to_owned);
    let violations = [record.chosen_violations, record.rejected_violations];
    let [chosen, rejected] = responses;
    let verdict = |field, response, violations: Option<Vec<i64>>, grounds: &mut Option<Value>| Verdict {
        field,
        response,
        verdict: violations.as_ref().map(|list| if list.is_empty() { "COMPLIANT" } else { "NON-COMPLIANT" }),
        violations: violations.unwrap_or_default(),
        grounds: grounds.take(),
    };
    let [of_chosen, of_rejected] = violations;
    let [grounds_chosen, grounds_rejected] = &mut grounds;
    let verdicts = [
        verdict("chosen", chosen, of_chosen, grounds_chosen),
        verdict("rejected", rejected, of_rejected, grounds_rejected),
    ];
    Ok(Found {
        file: file.to_owned(),
        record: index,
        prompt: record.prompt,
        category: record.category,
        verdicts,
        correction,
    })
}

/// Returns what the verdicts on a pair rest on, in the order the responses had before triage.
fn grounds(run_dir: &Path, record: &Record, responses: &[String; 2]) -> Result<[Option<Value>; 2]> {
    let mut grounds = [None, None];
    let told = run_dir.join("triage/gold_provenance.jsonl");
    let pairs = ["world/pairs.json", "data/pairs.json"].map(|name| run_dir.join(name));
    let Some(pairs) = pairs.iter().find(|file| file.exists()).filter(|_| told.exists()) else { return Ok(grounds) };
    let before = match record.category {
        Some(Category::Invert) => [&responses[1], &responses[0]],
        _ => [&responses[0], &responses[1]],
    };
    let mut place = None;
    for (at, pair) in input::records::<Record>(pairs)?.enumerate() {
        let pair = pair?;
        let is_it = pair.prompt == record.prompt
            && pair.chosen.response() == *before[0]
            && pair.rejected.is_some_and(|text| text.response() == *before[1]);
        if is_it {
            place = Some(at);
            break;
        }
    }
    let Some(place) = place else { return Ok(grounds) };
    for line in input::records::<Value>(&told)? {
        let line = line?;
        if line["index"].as_u64() == Some(place as u64) {
            let side = usize::from(line["field"] == "rejected");
            grounds[side] = Some(line);
        }
    }
    Ok(grounds)
}
