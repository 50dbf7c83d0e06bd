//! Corrections: a compliant response for every PUNISH record, judged before it is accepted (spec 4.3).

use std::path::PathBuf;

use serde::Serialize;
use shared::output::ArrayWriter;
use shared::record::{Category, Record};
use shared::rules::Judge;

use crate::error::Result;
use crate::{JudgeArgs, Outcome, progress, table};

/// Adds a compliant response to every PUNISH record
///
/// Every record gains `oracle_response`, which is empty for INVERT and RETAIN. Each correction is judged before it is accepted; where the judge rejects it, `oracle_response` stays empty, the record
/// is counted and the exit code is 3.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Triaged records: JSON array or JSON lines, .gz and .xz too
    #[arg(long, value_name = "FILE")]
    input_json: PathBuf,
    /// File for the records with their corrections
    #[arg(long, value_name = "FILE")]
    output_json: PathBuf,
    #[command(flatten)]
    judge: JudgeArgs,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Counts {
    total: usize,
    punish: usize,
    corrected: usize,
    not_accepted: usize,
    output: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let (rules, judge) = args.judge.load()?;
    if !judge.can_correct() {
        return Err(shared::Error::file(rules, "the key correction is missing; there is no text to offer").into());
    }
    let input = &args.input_json;
    let records: Vec<Record> = shared::input::read_all(input)?;
    let mut output = ArrayWriter::create(&args.output_json)?;
    let (mut punish, mut corrected) = (0, 0);
    let bar = progress::bar("correct", records.len());
    for (index, mut record) in records.into_iter().enumerate() {
        bar.inc(1);
        let Some(category) = record.category else {
            let problem = "is missing; triage the records first";
            return Err(shared::Error::field(input, index, "category", problem).into());
        };
        let mut response = String::new();
        if category == Category::Punish {
            punish += 1;
            let correction = correction(&judge, &record.prompt.prompt_text())
                .map_err(|problem| shared::Error::field(input, index, "prompt", problem))?;
            corrected += usize::from(correction.is_some());
            response = correction.unwrap_or_default();
        }
        record.oracle_response = Some(response);
        output.push(&record)?;
    }
    bar.finish_and_clear();
    let total = output.finish()?;
    let not_accepted = punish - corrected;
    let counts = Counts { total, punish, corrected, not_accepted, output: args.output_json.clone() };
    if args.json {
        table::print_json(&counts)?
    } else {
        counts.print()
    }
    Ok(if not_accepted == 0 { Outcome::Complete } else { Outcome::Incomplete })
}

impl Counts {
    fn print(&self) {
        println!("{:<22} {:>8}", "records", self.total);
        println!("{:<22} {:>8}", "PUNISH", self.punish);
        println!("{:<22} {:>8}", "corrected", self.corrected);
        println!("{:<22} {:>8}", "rejected by the judge", self.not_accepted);
        println!("written: {}", self.output.display());
    }
}

/// Returns a correction that the judge accepts, none where it rejects what was written.
fn correction(judge: &Judge, prompt: &str) -> std::result::Result<Option<String>, String> {
    let Some(text) = judge.correct(prompt) else {
        return Err(shared::rules::UnknownPrompt.to_string());
    };
    let verdict = judge.verdict(prompt, &text, true).map_err(|unknown| unknown.to_string())?;
    Ok(verdict.compliant.then_some(text))
}

#[cfg(test)]
mod tests;
