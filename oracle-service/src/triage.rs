//! Triage: every pair is judged twice and labelled INVERT, PUNISH or RETAIN (spec 1.3).
//!
//! The output keeps input order and all fields; an INVERT record is stored swapped. Beside it lie the labels in original
//! order (`_triage`), the records that hold no text to judge (`_quarantine`), those without a sure verdict (`_uncertain`,
//! and by response `_review`) and those without an answer (`_dead_letter`). Who judges is [`Oracle`]'s business.

mod beside;
mod checkpoints;
mod pairs;

use std::path::{Path, PathBuf};

use futures::{StreamExt, TryStreamExt};
use serde::Serialize;
use shared::output::{ArrayWriter, ListWriter, sibling};
use shared::record::{Category, Record, Text};

use crate::api::engine::BillNow;
use crate::error::{Error, Result};
use crate::judging::{PairForm, PairJudged};
use crate::oracle::{Decision, Oracle, OracleArgs};
use crate::ordered::ordered;
use crate::progress::{Progress, Shown, Sink};
use crate::{Outcome, relabel, table};
use beside::Beside;
use checkpoints::Checkpoints;
use pairs::{Pair, Pairs};

/// Labels every pair INVERT, PUNISH or RETAIN under the new policy
///
/// INVERT: the old winner violates and the old loser complies. PUNISH: both violate. RETAIN: the old winner complies.
/// INVERT pairs are written with the compliant old loser as `chosen`. `<stem>_triage.json` holds the labels with all pairs
/// in their original order, `<stem>_quarantine.json` the records with empty text, `<stem>_uncertain.json` those without a
/// sure verdict, `<stem>_dead_letter.json` those without an answer, each with its reason. `<stem>_review.json` lists the
/// unsure responses for people, see `review import`; `<stem>_provenance.jsonl` tells what each verdict of a model rests on.
/// Exit code 3: some pairs have no label. Run again, it pays only for what has no stored answer; another model or form of
/// the question asks for everything anew and wants --relabel.
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
    skip_rejected_when_chosen_complies: bool,
    /// Judge both responses of a pair in one call, answered by a JSON object: half the calls; measure what it changes by
    /// `judge-agreement`
    #[arg(long, conflicts_with = "skip_rejected_when_chosen_complies")]
    one_call_per_pair: bool,
    /// Label by this judge although the ledger holds labels of this input by another
    #[arg(long)]
    relabel: bool,
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
    pub(crate) pairs: PairForm,
    /// Label though another judge has.
    pub(crate) relabel: bool,
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
    let endings = ["_triage", "_quarantine", "_uncertain", "_dead_letter", "_review"];
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
        pairs: match (args.one_call_per_pair, args.skip_rejected_when_chosen_complies) {
            (true, _) => PairForm::OneCall,
            (_, true) => PairForm::SkipRejected,
            _ => PairForm::Both,
        },
        relabel: args.relabel,
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
    if let Oracle::Model(asker) = oracle {
        relabel::check(asker, input, job.pairs, job.relabel).await?;
    }
    let pairs = Pairs::look_through(input, job.num_samples, job.seed)?;
    let total = pairs.total;
    let name = format!("triage {}", input.display());
    oracle
        .in_batches(&name, sink, async |front| {
            let asked = futures::stream::iter(pairs.iter(input)?)
                .map(|pair| async { front.visit(judged(oracle, &pair?, job.pairs)).await });
            asked.buffer_unordered(oracle.window()).try_for_each(|()| std::future::ready(Ok(()))).await
        })
        .await?;
    let triage_path = sibling(&job.output, "_triage");
    let mut gold = ArrayWriter::create(&job.output)?;
    let mut labels = ArrayWriter::create(&triage_path)?;
    let mut beside = Beside::create(&job.output, oracle)?;
    let checkpoints = job.checkpoints.as_ref().map(|(folder, every)| Checkpoints::new(folder, *every));
    let mut checkpoints = checkpoints.transpose()?;
    let mut uncertain = ListWriter::new(&sibling(&job.output, "_uncertain"));
    let mut dead = ListWriter::new(&sibling(&job.output, "_dead_letter"));
    let mut by_category = [0usize; 3];
    let work = pairs.iter(input)?.map(|pair| async move {
        let pair = pair?;
        let judged = judged(oracle, &pair, job.pairs).await?;
        Ok::<_, Error>((pair, judged))
    });
    let mut decided = Box::pin(ordered(work, oracle.window()));
    let mut done = 0;
    while let Some((Pair { index, record, rejected }, judged)) = decided.try_next().await? {
        done += 1;
        sink(Progress { done, total, bill: oracle.bill(), waiting: oracle.waiting() });
        beside.push(index, &record, &rejected, &judged)?;
        match label(&judged) {
            Label::Violations(violations) => {
                let category = violations.category();
                by_category[category as usize] += 1;
                let relabelled = relabelled(record.clone(), violations);
                gold.push(&relabelled)?;
                let (prompt, chosen) = (&record.prompt, &record.chosen);
                let labelled = Labelled { prompt, chosen, rejected: &rejected, category };
                labels.push(&labelled)?;
                if let Some(checkpoints) = &mut checkpoints {
                    checkpoints.push(&relabelled, &labelled)?;
                }
            }
            Label::Uncertain(field, reason) => {
                uncertain.push(&Unlabelled { index, field, reason, record: &record })?;
            }
            Label::Dead(field, reason) => dead.push(&Unlabelled { index, field, reason, record: &record })?,
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
    beside.finish()?;
    let total = gold.finish()?;
    Ok(Counts {
        total,
        invert: by_category[Category::Invert as usize],
        punish: by_category[Category::Punish as usize],
        retain: by_category[Category::Retain as usize],
        uncertain: uncertain.finish()?,
        dead_letter: dead.finish()?,
        quarantined: pairs.quarantine.len(),
        output: job.output.clone(),
        triage: triage_path,
        quarantine: pairs.quarantine.write_beside(&job.output)?,
        bill: oracle.bill(),
    })
}

async fn judged(oracle: &Oracle, pair: &Pair, form: PairForm) -> Result<PairJudged> {
    let (prompt, chosen) = (pair.record.prompt.prompt_text(), pair.record.chosen.response());
    oracle.judge_pair(&prompt, &chosen, &pair.rejected.response(), form).await
}

/// Removes a file of an earlier run, if it is there.
pub(crate) fn remove(path: &Path) -> Result<()> {
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
fn label(judged: &PairJudged) -> Label {
    let (chosen, rejected) = (&judged.chosen.decision, judged.rejected.as_ref().map(|judged| &judged.decision));
    let named = [("chosen", Some(chosen)), ("rejected", rejected)];
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
        if let Some(Decision::Uncertain(reason)) = decision {
            return Label::Uncertain(field, reason.clone());
        }
    }
    let violates = |decision: &Decision| *decision == Decision::Violates;
    Label::Violations(Violations { chosen: violates(chosen), rejected: rejected.map(violates) })
}

/// Which responses of a pair, in its original order, violate the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Violations {
    chosen: bool,
    /// None where it was not asked; the chosen response complies then.
    rejected: Option<bool>,
}

impl Violations {
    fn category(self) -> Category {
        category(self.chosen, self.rejected)
    }
}

/// Returns the category of a pair by which of its responses violate: the truth table of spec 1.3. A pair of two compliant
/// responses carries no signal and is kept with RETAIN.
pub(crate) fn category(chosen_violates: bool, rejected_violates: Option<bool>) -> Category {
    match (chosen_violates, rejected_violates) {
        (true, Some(true)) => Category::Punish,
        (true, _) => Category::Invert,
        (false, _) => Category::Retain,
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
