//! Triage: every pair is judged twice and labelled INVERT, PUNISH or RETAIN (spec 1.3).
//!
//! The output keeps input order and all fields; an INVERT record is stored swapped. Beside it lie the labels in original
//! order (`_triage`), the records that hold no text to judge (`_quarantine`), those with an answer that is no verdict
//! (`_uncertain`) and those without an answer (`_dead_letter`). Who judges is [`Oracle`]'s business.

mod checkpoints;

use std::path::{Path, PathBuf};

use futures::{StreamExt, TryStreamExt};
use serde::Serialize;
use shared::output::{ArrayWriter, sibling, write_json};
use shared::python_random::PythonRandom;
use shared::quarantine::Quarantine;
use shared::record::{Category, Record, Text};

use crate::api::engine::BillNow;
use crate::error::{Error, Result};
use crate::oracle::{Decision, Oracle, OracleArgs};
use crate::progress::{Progress, Shown, Sink};
use crate::{Outcome, table};
use checkpoints::Checkpoints;

/// Labels every pair INVERT, PUNISH or RETAIN under the new policy
///
/// INVERT: the old winner violates and the old loser complies. PUNISH: both violate. RETAIN: the old winner complies.
/// INVERT pairs are written with the compliant old loser as `chosen`. `<stem>_triage.json` holds the labels with all pairs
/// in their original order, `<stem>_quarantine.json` the records with empty text, `<stem>_uncertain.json` those whose
/// answer is no verdict, `<stem>_dead_letter.json` those without an answer, each with its reason. Exit code 3: some pairs
/// have no label. Run again, it pays only for what has no stored answer.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Pairs {prompt, chosen, rejected}: JSON array or JSON lines, .gz and .xz too
    #[arg(long, value_name = "FILE")]
    input_json: PathBuf,
    /// File for the labelled records
    #[arg(long, value_name = "FILE", default_value = "pku_dpo_gold.json")]
    output_json: PathBuf,
    #[command(flatten)]
    oracle: OracleArgs,
    /// Folder of checkpoint files under the reference's names, written while a model is asked
    #[arg(long, value_name = "DIR", default_value = "dpo_gold_checkpoints")]
    ckpt_dir: PathBuf,
    /// Pairs between checkpoints; 0 for none
    #[arg(long, value_name = "N", default_value_t = 1000)]
    ckpt_every: usize,
    /// Do not ask about the rejected response where the chosen one complies: fewer calls, and RETAIN records then have no
    /// rejected_violations
    #[arg(long)]
    second_if_needed: bool,
    /// Fail when more than this share of the pairs is left without a label; the outputs are written all the same
    #[arg(long, value_name = "PERCENT", default_value_t = 100.0)]
    max_unlabelled: f64,
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

/// What is to be done, by whomever it was asked.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) input: PathBuf,
    pub(crate) output: PathBuf,
    /// Folder and interval of checkpoint files.
    pub(crate) checkpoints: Option<(PathBuf, usize)>,
    pub(crate) both: bool,
    pub(crate) num_samples: Option<usize>,
    pub(crate) seed: u64,
}

/// What was done, for people and scripts.
#[derive(Debug, Serialize)]
pub(crate) struct Counts {
    total: usize,
    #[serde(rename = "INVERT")]
    invert: usize,
    #[serde(rename = "PUNISH")]
    punish: usize,
    #[serde(rename = "RETAIN")]
    retain: usize,
    pub(crate) uncertain: usize,
    pub(crate) dead_letter: usize,
    quarantined: usize,
    output: PathBuf,
    triage: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    quarantine: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bill: Option<BillNow>,
}

/// A label in the pair's original order.
#[derive(Clone, Serialize)]
struct Labelled<'a> {
    prompt: &'a Text,
    chosen: &'a Text,
    rejected: &'a Text,
    category: Category,
}

/// A pair without a label.
#[derive(Serialize)]
struct Unlabelled<'a> {
    /// Index in the input file, from 0.
    index: usize,
    field: &'static str,
    reason: String,
    record: &'a Record,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let endings = ["_triage", "_quarantine", "_uncertain", "_dead_letter"];
    let mut outputs = vec![args.output_json.clone()];
    outputs.extend(endings.map(|ending| sibling(&args.output_json, ending)));
    shared::output::check_all_spared(&outputs, &[("--input-json", args.input_json.as_path())])?;
    if !(0.0..=100.0).contains(&args.max_unlabelled) {
        let problem = format!("--max-unlabelled is {}; expected a share from 0 to 100", args.max_unlabelled);
        return Err(shared::Error::Config(problem).into());
    }
    let oracle = args.oracle.open()?;
    // Rules take no time, so there is nothing to go back to.
    let kept = matches!(oracle, Oracle::Model(_)) && args.ckpt_every > 0;
    let job = Job {
        input: args.input_json.clone(),
        output: args.output_json.clone(),
        checkpoints: kept.then(|| (args.ckpt_dir.clone(), args.ckpt_every)),
        both: !args.second_if_needed,
        num_samples: args.num_samples,
        seed: args.seed,
    };
    let shown = Shown::new("triage");
    let counts = crate::block_on(work(&job, &oracle, &|progress| shown.show(progress)));
    shown.finish();
    let counts = counts?;
    if args.json {
        table::print_json(&counts)?
    } else {
        counts.print()
    }
    counts.check(args.max_unlabelled)
}

/// Labels the pairs of a job. Everything answered is in the ledger, however this ends.
pub(crate) async fn work(job: &Job, oracle: &Oracle, sink: Sink<'_>) -> Result<Counts> {
    let input = &job.input;
    let records: Vec<Record> = shared::input::read_all(input)?;
    let mut quarantine = Quarantine::of("triage");
    let mut pairs = Vec::with_capacity(records.len());
    for index in order(records.len(), job.num_samples, job.seed) {
        let record = &records[index];
        let Some(rejected) = &record.rejected else {
            return Err(shared::Error::field(input, index, "rejected", "is missing").into());
        };
        match unreadable_field(record, rejected) {
            Some(field) => quarantine.push(input, index, field, "is empty", record)?,
            None => pairs.push((index, record, rejected)),
        }
    }

    let triage_path = sibling(&job.output, "_triage");
    let mut gold = ArrayWriter::create(&job.output)?;
    let mut labels = ArrayWriter::create(&triage_path)?;
    let mut checkpoints = job.checkpoints.as_ref().map(|(folder, every)| Checkpoints::new(folder, *every));
    let (mut uncertain, mut dead) = (Vec::new(), Vec::new());
    let mut by_category = [0usize; 3];
    let total = pairs.len() as u64;
    let mut decided = futures::stream::iter(pairs)
        .map(|(index, record, rejected)| async move {
            let decisions = decide(oracle, record, rejected, job.both).await?;
            Ok::<_, Error>((index, record, rejected, decisions))
        })
        .buffered(oracle.window());
    let mut done = 0;
    while let Some((index, record, rejected, decisions)) = decided.try_next().await? {
        done += 1;
        sink(Progress { done, total, bill: oracle.bill(), waiting: oracle.waiting() });
        match label(&decisions) {
            Label::Violations(violations) => {
                let category = violations.category();
                by_category[category as usize] += 1;
                let labelled = Labelled { prompt: &record.prompt, chosen: &record.chosen, rejected, category };
                labels.push(&labelled)?;
                let relabelled = relabelled(record.clone(), violations);
                gold.push(&relabelled)?;
                if let Some(checkpoints) = &mut checkpoints {
                    checkpoints.push(&relabelled, &labelled)?;
                }
            }
            Label::Uncertain(field, answer) => {
                let reason = format!("the answer is no verdict: {answer:?}");
                uncertain.push(Unlabelled { index, field, reason, record });
            }
            Label::Dead(field, reason) => dead.push(Unlabelled { index, field, reason, record }),
            Label::UnknownPrompt(problem) => {
                return Err(shared::Error::field(input, index, "prompt", problem).into());
            }
        }
        if let Some(checkpoints) = &mut checkpoints {
            checkpoints.reached(done as usize)?;
        }
    }
    drop(decided);
    labels.finish()?;
    let total = gold.finish()?;
    write_or_remove(&sibling(&job.output, "_uncertain"), &uncertain)?;
    write_or_remove(&sibling(&job.output, "_dead_letter"), &dead)?;
    Ok(Counts {
        total,
        invert: by_category[Category::Invert as usize],
        punish: by_category[Category::Punish as usize],
        retain: by_category[Category::Retain as usize],
        uncertain: uncertain.len(),
        dead_letter: dead.len(),
        quarantined: quarantine.len(),
        output: job.output.clone(),
        triage: triage_path,
        quarantine: quarantine.write_beside(&job.output)?,
        bill: oracle.bill(),
    })
}

/// Writes a list, or removes that of an earlier run where there is nothing to list.
fn write_or_remove<T: Serialize>(path: &Path, list: &[T]) -> Result<()> {
    if !list.is_empty() {
        return Ok(write_json(path, list)?);
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(shared::Error::io("remove", path, error).into())
        }
        _ => Ok(()),
    }
}

impl Counts {
    fn print(&self) {
        println!("{:<11} {:>8} {:>7}", "category", "pairs", "share");
        for (name, count) in [("INVERT", self.invert), ("PUNISH", self.punish), ("RETAIN", self.retain)] {
            println!("{name:<11} {count:>8} {:>6.1}%", table::percent(count, self.total));
        }
        println!("{:<11} {:>8}", "total", self.total);
        for (name, count) in [("uncertain", self.uncertain), ("dead letter", self.dead_letter)] {
            if count > 0 {
                println!("{name:<11} {count:>8}");
            }
        }
        if let Some(path) = &self.quarantine {
            println!("{} records hold no text to judge: {}", self.quarantined, path.display());
        }
        if let Some(bill) = &self.bill {
            table::print_bill(bill);
        }
        println!("written: {} and {}", self.output.display(), self.triage.display());
    }

    /// Returns how the triage ended; too many pairs without a label are an error.
    pub(crate) fn check(&self, max_unlabelled_percent: f64) -> Result<Outcome> {
        let without = self.uncertain + self.dead_letter;
        if without == 0 {
            return Ok(Outcome::Complete);
        }
        let share = table::percent(without, without + self.total);
        if share > max_unlabelled_percent {
            return Err(Error::TooManyUnlabelled(format!(
                "{without} pairs ({share:.1} %) have no label, more than the {max_unlabelled_percent} % allowed: {} \
                 uncertain, {} without an answer; see {} and {}",
                self.uncertain,
                self.dead_letter,
                sibling(&self.output, "_uncertain").display(),
                sibling(&self.output, "_dead_letter").display(),
            )));
        }
        Ok(Outcome::Incomplete)
    }
}

/// What was decided about a pair; the second is none where it was not asked.
type Decisions = (Decision, Option<Decision>);

async fn decide(oracle: &Oracle, record: &Record, rejected: &Text, both: bool) -> Result<Decisions> {
    let prompt = record.prompt.prompt_text();
    let (chosen, rejected) = (record.chosen.response(), rejected.response());
    if both {
        let (chosen, rejected) =
            futures::try_join!(oracle.decide(&prompt, &chosen), oracle.decide(&prompt, &rejected))?;
        return Ok((chosen, Some(rejected)));
    }
    let chosen = oracle.decide(&prompt, &chosen).await?;
    let needed = chosen == Decision::Violates;
    let rejected = if needed { Some(oracle.decide(&prompt, &rejected).await?) } else { None };
    Ok((chosen, rejected))
}

/// What a pair's decisions amount to.
#[derive(Debug, PartialEq, Eq)]
enum Label {
    Violations(Violations),
    Uncertain(&'static str, String),
    Dead(&'static str, String),
    UnknownPrompt(String),
}

/// Reads a pair's decisions. Without a verdict on either response there is no label; a missing answer outweighs an unclear
/// one.
fn label((chosen, rejected): &Decisions) -> Label {
    let named = [("chosen", Some(chosen)), ("rejected", rejected.as_ref())];
    for (_, decision) in named {
        if let Some(Decision::UnknownPrompt(problem)) = decision {
            return Label::UnknownPrompt(problem.clone());
        }
    }
    for (field, decision) in named {
        if let Some(Decision::Dead(reason)) = decision {
            return Label::Dead(field, reason.clone());
        }
    }
    for (field, decision) in named {
        if let Some(Decision::Uncertain(answer)) = decision {
            return Label::Uncertain(field, answer.clone());
        }
    }
    let violates = |decision: &Decision| *decision == Decision::Violates;
    Label::Violations(Violations { chosen: violates(chosen), rejected: rejected.as_ref().map(violates) })
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

/// Which responses of a pair, in its original order, violate the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Violations {
    chosen: bool,
    /// None where it was not asked; the chosen response complies then.
    rejected: Option<bool>,
}

impl Violations {
    /// The truth table of spec 1.3; a pair of two compliant responses carries no signal and is kept with RETAIN.
    fn category(self) -> Category {
        match (self.chosen, self.rejected) {
            (true, Some(true)) => Category::Punish,
            (true, _) => Category::Invert,
            (false, _) => Category::Retain,
        }
    }
}

/// Labels a record and swaps an INVERT pair. Violation lists name the one policy by its index 0. What an earlier label
/// was the ground of, scores and corrections, no longer holds and goes.
fn relabelled(mut record: Record, violations: Violations) -> Record {
    let list = |violates: bool| if violates { vec![0] } else { Vec::new() };
    let category = violations.category();
    record.category = Some(category);
    record.chosen_violations = Some(list(violations.chosen));
    record.rejected_violations = violations.rejected.map(list);
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
