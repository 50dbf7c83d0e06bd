//! What a label rests on, as one JSON line a response: who judged, with which model snapshot and server fingerprint, how
//! sure, by which answers of the ledger, at what cost. The records themselves keep exactly the reference's fields.

use std::path::{Path, PathBuf};

use serde::Serialize;
use shared::output::{LinesWriter, stem};

use super::{Ballot, Judged, Said};
use crate::api::ledger::Answer;
use crate::api::request::Wording;
use crate::error::Result;
use crate::oracle::Decision;
use crate::review::Review;

/// Returns where the lines of an output lie: `<stem>_provenance.jsonl` beside it.
pub(crate) fn path_beside(output: &Path) -> PathBuf {
    output.with_file_name(format!("{}_provenance.jsonl", stem(output)))
}

/// Writes lines beside an output; nothing where there is nothing to tell.
pub(crate) struct Lines {
    path: PathBuf,
    writer: Option<LinesWriter>,
}

impl Lines {
    /// Begins the file; `kept` is false where rules decide and there is nothing to tell.
    ///
    /// # Errors
    /// The disk.
    pub(crate) fn create(output: &Path, kept: bool) -> Result<Lines> {
        let path = path_beside(output);
        let writer = if kept { Some(LinesWriter::create(&path)?) } else { None };
        Ok(Lines { path, writer })
    }

    /// Adds a line.
    ///
    /// # Errors
    /// The disk.
    pub(crate) fn push(&mut self, line: &impl Serialize) -> Result<()> {
        if let Some(writer) = &mut self.writer {
            writer.push(line)?;
        }
        Ok(())
    }

    /// Gives the file its name, or removes that of an earlier run.
    ///
    /// # Errors
    /// The disk.
    pub(crate) fn finish(self) -> Result<()> {
        match self.writer {
            Some(writer) => {
                writer.finish()?;
                Ok(())
            }
            None => crate::triage::remove(&self.path),
        }
    }
}

/// A line: one response of one record.
#[derive(Debug, Serialize)]
pub(crate) struct Line<'a> {
    /// Of the record in the input file, from 0.
    index: usize,
    field: &'a str,
    #[serde(flatten)]
    grounds: Grounds<'a>,
}

impl<'a> Line<'a> {
    pub(crate) fn new(index: usize, field: &'a str, judged: &'a Judged) -> Line<'a> {
        Line { index, field, grounds: Grounds::of(judged) }
    }
}

/// A verdict with what it rests on.
#[derive(Debug, Serialize)]
pub(crate) struct Grounds<'a> {
    item: &'a str,
    /// None where there is no verdict.
    verdict: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    confidence: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    review: Option<&'a Review>,
    /// Of its answers; an answer about both responses of a pair counts half for each.
    cost_usd: Option<f64>,
    votes: Vec<Vote<'a>>,
}

#[derive(Debug, Serialize)]
struct Vote<'a> {
    vote: u32,
    wording: Wording,
    said: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p_compliant: Option<f64>,
    answers: Vec<Given<'a>>,
}

/// An answer, without its text.
#[derive(Debug, Serialize)]
pub(crate) struct Given<'a> {
    key: &'a str,
    model: &'a str,
    fingerprint: Option<&'a str>,
    attempts: u32,
    cost_usd: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    batch: Option<&'a str>,
    at_ms: u64,
}

impl<'a> Given<'a> {
    pub(crate) fn of(key: &'a str, answer: &'a Answer) -> Given<'a> {
        Given {
            key,
            model: &answer.model,
            fingerprint: answer.fingerprint.as_deref(),
            attempts: answer.attempts,
            cost_usd: answer.cost_usd,
            batch: answer.batch.as_deref(),
            at_ms: answer.at_ms,
        }
    }
}

impl<'a> Grounds<'a> {
    pub(crate) fn of(judged: &'a Judged) -> Grounds<'a> {
        let (verdict, reason) = match &judged.decision {
            Decision::Compliant => (Some("COMPLIANT"), None),
            Decision::Violates => (Some("NON-COMPLIANT"), None),
            Decision::Uncertain(reason) | Decision::Dead(reason) | Decision::UnknownPrompt(reason) => {
                (None, Some(reason.as_str()))
            }
        };
        Grounds {
            item: &judged.item,
            verdict,
            reason,
            confidence: judged.confidence,
            review: judged.review.as_ref(),
            cost_usd: cost(&judged.ballots),
            votes: judged.ballots.iter().map(Vote::of).collect(),
        }
    }
}

impl Grounds<'_> {
    /// Returns the verdict, or why there is none.
    pub(crate) fn said(&self) -> &str {
        self.verdict.or(self.reason).unwrap_or_default()
    }
}

impl<'a> Vote<'a> {
    fn of(ballot: &'a Ballot) -> Vote<'a> {
        let (said, problem) = match &ballot.said {
            Said::Compliant => (Some("COMPLIANT"), None),
            Said::Violates => (Some("NON-COMPLIANT"), None),
            Said::Unclear(answer) => (None, Some(answer.as_str())),
            Said::Nothing(reason) => (None, Some(reason.as_str())),
        };
        Vote {
            vote: ballot.form.vote,
            wording: ballot.form.wording,
            said,
            problem,
            p_compliant: ballot.probability,
            answers: ballot.answers.iter().map(|(key, answer)| Given::of(key, answer)).collect(),
        }
    }
}

/// Returns what the answers of ballots cost; none where the price of one is not known.
pub(crate) fn cost(ballots: &[Ballot]) -> Option<f64> {
    let answers = ballots.iter().flat_map(|ballot| {
        let share = if ballot.shared { 0.5 } else { 1.0 };
        ballot.answers.iter().map(move |(_, answer)| answer.cost_usd.map(|cost| cost * share))
    });
    answers.sum()
}
