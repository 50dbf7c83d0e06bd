//! Corrections: a compliant response for every PUNISH record, judged before it is accepted and written again where it is
//! not (spec 4.3). What every try came to is in `<stem>_provenance.jsonl`.

use std::path::PathBuf;

use futures::{StreamExt, TryStreamExt};
use serde::Serialize;
use shared::output::ArrayWriter;
use shared::record::{Category, Record};

use crate::api::engine::BillNow;
use crate::error::{Error, Result};
use crate::judging::correcting::{Corrected, Correction, CorrectionLimit};
use crate::judging::provenance::{Given, Grounds, Lines};
use crate::oracle::{Oracle, OracleArgs};
use crate::ordered::ordered;
use crate::progress::{Progress, Shown, Sink};
use crate::{Outcome, table};

/// How often a correction is written, unless told otherwise.
pub(crate) const CORRECTION_TRIES: u32 = 3;

/// Adds a compliant response to every PUNISH record
///
/// Every record gains `oracle_response`, which is empty for INVERT and RETAIN. Each correction is judged before it is
/// accepted, and written again where it is not; where no try is accepted, `oracle_response` stays empty (training falls back
/// to punishing both responses of that record), the record is counted and the exit code is 3. `<stem>_provenance.jsonl`
/// tells for each PUNISH record what was tried and why it was not accepted.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Triaged records: JSON array or JSON lines, .gz and .xz too
    #[arg(long, value_name = "FILE")]
    input_json: PathBuf,
    /// File for the records with their corrections
    #[arg(long, value_name = "FILE")]
    output_json: PathBuf,
    #[command(flatten)]
    oracle: OracleArgs,
    /// Longest correction in tokens
    #[arg(long, value_name = "N", default_value_t = 512)]
    oracle_max_tokens: u32,
    /// Write a correction at most this often, until the judge accepts one
    #[arg(long, value_name = "N", default_value_t = CORRECTION_TRIES, value_parser = clap::value_parser!(u32).range(1..=20))]
    correction_tries: u32,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// What is to be done, by whomever it was asked.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) input: PathBuf,
    pub(crate) output: PathBuf,
    pub(crate) limit: CorrectionLimit,
}

/// What was done, for people and scripts.
#[derive(Debug, Serialize)]
pub(crate) struct Counts {
    total: usize,
    punish: usize,
    corrected: usize,
    pub(crate) not_accepted: usize,
    output: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    bill: Option<BillNow>,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let inputs = [("--input-json", Some(args.input_json.as_path()))];
    shared::output::check_spared("--output-json", &args.output_json, &inputs)?;
    let oracle = args.oracle.open()?;
    let limit = CorrectionLimit { max_tokens: args.oracle_max_tokens, tries: args.correction_tries };
    let job = Job { input: args.input_json.clone(), output: args.output_json.clone(), limit };
    let shown = Shown::new("correct");
    let counts = crate::block_on(work(&job, &oracle, &|progress| shown.show(progress)));
    shown.finish();
    let counts = counts?;
    if args.json {
        table::print_json(&counts)?
    } else {
        counts.print()
    }
    Ok(if counts.not_accepted == 0 { Outcome::Complete } else { Outcome::Incomplete })
}

/// Corrects the records of a job.
pub(crate) async fn work(job: &Job, oracle: &Oracle, sink: Sink<'_>) -> Result<Counts> {
    if let Oracle::Rules { file, judge } = oracle
        && !judge.can_correct()
    {
        return Err(shared::Error::file(file, "the key correction is missing; there is no text to offer").into());
    }
    let input = &job.input;
    // A first look: what is wrong with the input is known before it costs.
    let mut punish = 0;
    for (index, record) in shared::input::records::<Record>(input)?.enumerate() {
        let Some(category) = record?.category else {
            let problem = "is missing; triage the records first";
            return Err(shared::Error::field(input, index, "category", problem).into());
        };
        punish += usize::from(category == Category::Punish);
    }
    let correct = async |record: &Record| {
        let (prompt, violating) = (record.prompt.prompt_text(), record.chosen.response());
        oracle.correct(&prompt, &violating, job.limit).await
    };
    let correct = &correct;
    let name = format!("correct {}", input.display());
    oracle
        .in_batches(&name, sink, async |front| {
            let records = shared::input::records::<Record>(input)?;
            let visits = futures::stream::iter(records).map(|record| {
                front.visit(async move {
                    let record = record?;
                    if record.category == Some(Category::Punish) {
                        correct(&record).await?;
                    }
                    Ok(())
                })
            });
            let asked = visits.buffer_unordered(oracle.window());
            asked.try_for_each(|()| std::future::ready(Ok(()))).await
        })
        .await?;
    let mut output = ArrayWriter::create(&job.output)?;
    let mut provenance = Lines::create(&job.output, matches!(oracle, Oracle::Model(_)))?;
    let (mut corrected, mut not_accepted, mut done) = (0, 0, 0);
    let work = shared::input::records::<Record>(input)?.enumerate().map(|(index, record)| async move {
        let record = record?;
        let correction = match record.category {
            Some(Category::Punish) => Some(correct(&record).await?),
            _ => None,
        };
        Ok::<_, Error>((index, record, correction))
    });
    let mut answered = Box::pin(ordered(work, oracle.window()));
    while let Some((index, mut record, correction)) = answered.try_next().await? {
        let mut response = String::new();
        if let Some(correction) = correction {
            done += 1;
            sink(Progress { done, total: punish as u64, bill: oracle.bill(), waiting: oracle.waiting() });
            provenance.push(&Line::of(index, &correction))?;
            match correction.correction {
                Correction::Accepted(text) => {
                    corrected += 1;
                    response = text;
                }
                Correction::NotAccepted(reason) => {
                    not_accepted += 1;
                    tracing::debug!("{}: record {index}: no correction: {reason}", input.display());
                }
                Correction::UnknownPrompt(problem) => {
                    return Err(shared::Error::field(input, index, "prompt", problem).into());
                }
            }
        }
        record.oracle_response = Some(response);
        output.push(&record)?;
    }
    drop(answered);
    provenance.finish()?;
    let total = output.finish()?;
    Ok(Counts { total, punish, corrected, not_accepted, output: job.output.clone(), bill: oracle.bill() })
}

/// What was tried for a PUNISH record.
#[derive(Serialize)]
struct Line<'a> {
    /// Of the record in the input file, from 0.
    index: usize,
    accepted: bool,
    tries: Vec<TryLine<'a>>,
}

#[derive(Serialize)]
struct TryLine<'a> {
    reply: Option<Given<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<&'a str>,
    judged: Option<Grounds<'a>>,
}

impl<'a> Line<'a> {
    fn of(index: usize, corrected: &'a Corrected) -> Line<'a> {
        let tries = corrected.tries.iter().map(|one| TryLine {
            reply: one.reply.as_ref().map(|(key, answer)| Given::of(key, answer)),
            problem: one.problem.as_deref(),
            judged: one.judged.as_ref().map(Grounds::of),
        });
        let accepted = matches!(corrected.correction, Correction::Accepted(_));
        Line { index, accepted, tries: tries.collect() }
    }
}

impl Counts {
    fn print(&self) {
        println!("{:<22} {:>8}", "records", self.total);
        println!("{:<22} {:>8}", "PUNISH", self.punish);
        println!("{:<22} {:>8}", "corrected", self.corrected);
        println!("{:<22} {:>8}", "not accepted", self.not_accepted);
        if let Some(bill) = &self.bill {
            table::print_bill(bill);
        }
        println!("written: {}", self.output.display());
    }
}

#[cfg(test)]
mod tests;
