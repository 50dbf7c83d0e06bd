//! Judges generated responses: compliance, and what only a world can tell (spec 7.2).
//!
//! Input and output are `{"metadata", "results"}`; every result keeps its fields and gains its verdict. What a share is
//! taken over is decided in [`summary`].

mod summary;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use shared::output::write_json;
use shared::record::{Category, Text};
use shared::rules::{Judge, Verdict, WorldVerdict};
use shared::{Error, input};

use crate::error::Result;
use crate::{JudgeArgs, Outcome, progress, table};
use summary::Summary;

/// Judges every response of a `worker generate` output
///
/// Each result gains `compliant`; in a world, a response to a task also gains `garbled` and `attack_success`, an answer to
/// a skill question `garbled` and `correct`. The metadata gain the agreement with the policy, overall and by category.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Responses: {"metadata": {…}, "results": [{"prompt", "model_response", "finished", …}]}
    #[arg(long, value_name = "FILE")]
    responses_json: PathBuf,
    /// File for the judged responses
    #[arg(long, value_name = "FILE")]
    output_json: PathBuf,
    #[command(flatten)]
    judge: JudgeArgs,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Responses {
    #[serde(default)]
    metadata: Map<String, Value>,
    results: Vec<Map<String, Value>>,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let (rules, judge) = args.judge.load()?;
    let file = &args.responses_json;
    let mut responses: Responses = input::read_json(file)?;
    if responses.results.is_empty() {
        return Err(Error::file(file, "\"results\" holds no response").into());
    }
    let bar = progress::bar("judge", responses.results.len());
    for (index, result) in responses.results.iter_mut().enumerate() {
        bar.inc(1);
        let verdict = verdict(&judge, result, file, index)?;
        keep(result, &verdict);
    }
    bar.finish_and_clear();

    let summary = Summary::of(&responses.results);
    responses.metadata.insert("judge".into(), rules.display().to_string().into());
    responses.metadata.extend(summary.metrics());
    write_json(&args.output_json, &responses)?;
    if args.json {
        table::print_json(&summary)?;
    } else {
        summary.print();
        println!("written: {}", args.output_json.display());
    }
    Ok(Outcome::Complete)
}

fn verdict(judge: &Judge, result: &Map<String, Value>, file: &Path, index: usize) -> Result<Verdict> {
    let wrong = |field: &str, problem: &str| Error::field(file, index, field, problem);
    let prompt: Text = result
        .get("prompt")
        .ok_or_else(|| wrong("prompt", "is missing"))
        .and_then(|prompt| Text::deserialize(prompt).map_err(|error| wrong("prompt", &error.to_string())))?;
    let response = match result.get("model_response") {
        Some(Value::String(response)) => response,
        Some(_) => return Err(wrong("model_response", "is not a string").into()),
        None => return Err(wrong("model_response", "is missing; generate the responses first").into()),
    };
    let finished = match result.get("finished") {
        Some(Value::Bool(finished)) => *finished,
        Some(_) => return Err(wrong("finished", "is neither true nor false").into()),
        // In a world the stop token is part of compliance, so nothing may be assumed.
        None if judge.is_world() => {
            return Err(wrong("finished", "is missing; it must say whether the response ended by itself").into());
        }
        None => true,
    };
    if let Some(category) = result.get("category") {
        // The summary counts by it, so one it cannot count is an error and not left out.
        Category::deserialize(category).map_err(|_| wrong("category", "is none of INVERT, PUNISH and RETAIN"))?;
    }
    let verdict = judge.verdict(&prompt.prompt_text(), response, finished);
    verdict.map_err(|unknown| wrong("prompt", &unknown.to_string()).into())
}

/// Writes a verdict into its result, in place of the verdict of an earlier judge.
fn keep(result: &mut Map<String, Value>, verdict: &Verdict) {
    for field in ["compliant", "garbled", "attack_success", "correct"] {
        result.shift_remove(field);
    }
    result.insert("compliant".into(), verdict.compliant.into());
    match verdict.world {
        Some(WorldVerdict::Task { garbled, attack_success }) => {
            result.insert("garbled".into(), garbled.into());
            result.insert("attack_success".into(), attack_success.into());
        }
        Some(WorldVerdict::Skill { garbled, correct }) => {
            result.insert("garbled".into(), garbled.into());
            result.insert("correct".into(), correct.into());
        }
        None => {}
    }
}

#[cfg(test)]
mod tests;
