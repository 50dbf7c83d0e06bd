//! Triage: every pair is judged twice and labelled INVERT, PUNISH or RETAIN (spec 1.3).
//!
//! The output keeps input order and all fields; an INVERT record is stored swapped. Beside it lie the labels in original
//! order (`_triage`) and the records that hold no text to judge (`_quarantine`). Judging is `shared::rules`' business.

use std::path::{Path, PathBuf};

use serde::Serialize;
use shared::output::{ArrayWriter, sibling};
use shared::python_random::PythonRandom;
use shared::quarantine::Quarantine;
use shared::record::{Category, Record, Text};
use shared::rules::Judge;

use crate::error::Result;
use crate::{JudgeArgs, Outcome, progress, table};

/// Labels every pair INVERT, PUNISH or RETAIN under the new policy
///
/// INVERT: the old winner violates and the old loser complies. PUNISH: both violate. RETAIN: the old winner complies.
/// INVERT pairs are written with the compliant old loser as `chosen`. `<stem>_triage.json` holds the labels with all pairs
/// in their original order, `<stem>_quarantine.json` the records with empty text and their reason.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Pairs {prompt, chosen, rejected}: JSON array or JSON lines, .gz and .xz too
    #[arg(long, value_name = "FILE")]
    input_json: PathBuf,
    /// File for the labelled records
    #[arg(long, value_name = "FILE", default_value = "pku_dpo_gold.json")]
    output_json: PathBuf,
    #[command(flatten)]
    judge: JudgeArgs,
    /// Draw this many pairs at random, without replacement, instead of taking all
    #[arg(long, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    num_samples: Option<usize>,
    /// Seed of the draw
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// What was done, for people and scripts.
#[derive(Debug, Serialize)]
struct Counts {
    total: usize,
    #[serde(rename = "INVERT")]
    invert: usize,
    #[serde(rename = "PUNISH")]
    punish: usize,
    #[serde(rename = "RETAIN")]
    retain: usize,
    quarantined: usize,
    output: PathBuf,
    triage: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    quarantine: Option<PathBuf>,
}

/// A label in the pair's original order.
#[derive(Serialize)]
struct Labelled<'a> {
    prompt: &'a Text,
    chosen: &'a Text,
    rejected: &'a Text,
    category: Category,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let (_, judge) = args.judge.load()?;
    let input = &args.input_json;
    let records: Vec<Record> = shared::input::read_all(input)?;
    let order = order(records.len(), args.num_samples, args.seed);

    let triage_path = sibling(&args.output_json, "_triage");
    let mut gold = ArrayWriter::create(&args.output_json)?;
    let mut labels = ArrayWriter::create(&triage_path)?;
    let mut quarantine = Quarantine::default();
    let mut by_category = [0usize; 3];
    let bar = progress::bar("triage", order.len());
    for index in order {
        bar.inc(1);
        let record = &records[index];
        let Some(rejected) = &record.rejected else {
            return Err(shared::Error::field(input, index, "rejected", "is missing").into());
        };
        if let Some(field) = unreadable_field(record, rejected) {
            quarantine.push(input, index, field, "is empty", record)?;
            continue;
        }
        let violations = Violations {
            chosen: violates(&judge, record, &record.chosen, input, index)?,
            rejected: violates(&judge, record, rejected, input, index)?,
        };
        let category = violations.category();
        by_category[category as usize] += 1;
        labels.push(&Labelled { prompt: &record.prompt, chosen: &record.chosen, rejected, category })?;
        gold.push(&relabelled(record.clone(), violations))?;
    }
    bar.finish_and_clear();
    labels.finish()?;
    let total = gold.finish()?;
    let counts = Counts {
        total,
        invert: by_category[Category::Invert as usize],
        punish: by_category[Category::Punish as usize],
        retain: by_category[Category::Retain as usize],
        quarantined: quarantine.len(),
        output: args.output_json.clone(),
        triage: triage_path,
        quarantine: quarantine.write_beside(&args.output_json)?,
    };
    if args.json {
        table::print_json(&counts)?
    } else {
        counts.print()
    }
    Ok(Outcome::Complete)
}

impl Counts {
    fn print(&self) {
        println!("{:<8} {:>8} {:>7}", "category", "pairs", "share");
        for (name, count) in [("INVERT", self.invert), ("PUNISH", self.punish), ("RETAIN", self.retain)] {
            println!("{name:<8} {count:>8} {:>6.1}%", table::percent(count, self.total));
        }
        println!("{:<8} {:>8}", "total", self.total);
        if let Some(path) = &self.quarantine {
            println!("{} records hold no text to judge: {}", self.quarantined, path.display());
        }
        println!("written: {} and {}", self.output.display(), self.triage.display());
    }
}

/// Returns the records to take, in order: all, or a draw without replacement in the order drawn (spec 1.3, A.1).
fn order(records: usize, samples: Option<usize>, seed: u64) -> Vec<usize> {
    match samples {
        Some(samples) if samples < records => PythonRandom::new(seed).sample(records, samples),
        _ => (0..records).collect(),
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

fn violates(judge: &Judge, record: &Record, response: &Text, file: &Path, index: usize) -> Result<bool> {
    let verdict = judge.verdict(&record.prompt.prompt_text(), &response.response(), true);
    let verdict = verdict.map_err(|unknown| shared::Error::field(file, index, "prompt", unknown.to_string()))?;
    Ok(!verdict.compliant)
}

/// Which responses of a pair, in its original order, violate the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Violations {
    chosen: bool,
    rejected: bool,
}

impl Violations {
    /// The truth table of spec 1.3; a pair of two compliant responses carries no signal and is kept with RETAIN.
    fn category(self) -> Category {
        match (self.chosen, self.rejected) {
            (true, false) => Category::Invert,
            (true, true) => Category::Punish,
            (false, _) => Category::Retain,
        }
    }
}

/// Labels a record and swaps an INVERT pair. Violation lists name the one policy by its index 0. What an earlier label
/// was the ground of, scores and corrections, no longer holds and goes.
fn relabelled(mut record: Record, violations: Violations) -> Record {
    let list = |violates: bool| Some(if violates { vec![0] } else { Vec::new() });
    let category = violations.category();
    record.category = Some(category);
    record.chosen_violations = list(violations.chosen);
    record.rejected_violations = list(violations.rejected);
    record.oracle_response = None;
    record.raw_score = None;
    record.impact_score = None;
    if category == Category::Invert
        && let Some(rejected) = record.rejected.take()
    {
        record.rejected = Some(std::mem::replace(&mut record.chosen, rejected));
        std::mem::swap(&mut record.chosen_violations, &mut record.rejected_violations);
    }
    record
}

#[cfg(test)]
mod tests;
