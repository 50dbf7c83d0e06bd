//! Judges generated responses: compliance, and what only a world can tell (spec 7.2).
//!
//! Input and output are `{"metadata", "results"}`; every result keeps its fields and gains its verdict. What a share is
//! taken over is decided in [`summary`].

mod summary;

use std::path::{Path, PathBuf};

use futures::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use shared::output::{sibling, write_json};
use shared::record::{Category, Text};
use shared::rules::{Judge, Verdict, WorldVerdict};
use shared::{Error, input};

use crate::error::Result;
use crate::judging::Judged;
use crate::judging::provenance::{Line, Lines};
use crate::oracle::{Decision, Oracle, OracleArgs};
use crate::progress::{Progress, Shown, Sink};
use crate::{Outcome, table};
use summary::Summary;

/// Judges every response of a `worker generate` output
///
/// Each result gains `compliant`; in a world, a response to a task also gains `garbled` and `attack_success`, an answer to
/// a skill question `garbled` and `correct`. The metadata gain the agreement with the policy, overall and by category. A
/// response without a verdict gains `undecided` with the reason instead, counts for nothing, and the exit code is 3.
/// `<stem>_provenance.jsonl` tells what each verdict of a model rests on.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Responses: {"metadata": {…}, "results": [{"prompt", "model_response", "finished", …}]}
    #[arg(long, value_name = "FILE")]
    responses_json: PathBuf,
    /// File for the judged responses [default: <responses>_oracle.json]
    #[arg(long, value_name = "FILE")]
    output_json: Option<PathBuf>,
    #[command(flatten)]
    oracle: OracleArgs,
    /// Rule file of the world the prompts are of, where a model judges: garbled text, attacks and skill answers are then
    /// told by the world's own code, and a garbled response complies with nothing without being asked about
    #[arg(long, value_name = "FILE", conflicts_with = "rules")]
    world: Option<PathBuf>,
    /// Accepted for the reference's command lines: what is answered already is never asked again
    #[arg(long)]
    resume: bool,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

/// What is to be done, by whomever it was asked.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) responses: PathBuf,
    pub(crate) output: PathBuf,
    /// Rule file of a world, for its predicates.
    pub(crate) world: Option<PathBuf>,
}

/// What was done.
pub(crate) struct Done {
    pub(crate) summary: Summary,
    pub(crate) undecided: usize,
}

#[derive(Debug, Serialize, Deserialize)]
struct Responses {
    #[serde(default)]
    metadata: Map<String, Value>,
    results: Vec<Map<String, Value>>,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let output = args.output_json.clone().unwrap_or_else(|| sibling(&args.responses_json, "_oracle"));
    let inputs = [("--responses-json", Some(args.responses_json.as_path()))];
    shared::output::check_spared("--output-json", &output, &inputs)?;
    let oracle = args.oracle.open()?;
    let job = Job { responses: args.responses_json.clone(), output, world: args.world.clone() };
    let shown = Shown::new("judge");
    let done = crate::block_on(work(&job, &oracle, &|progress| shown.show(progress)));
    shown.finish();
    let done = done?;
    if args.json {
        table::print_json(&done.summary)?;
    } else {
        done.summary.print();
        if done.undecided > 0 {
            println!("{} responses have no verdict; their field \"undecided\" says why", done.undecided);
        }
        if let Some(bill) = oracle.bill() {
            table::print_bill(&bill);
        }
        println!("written: {}", job.output.display());
    }
    Ok(if done.undecided == 0 { Outcome::Complete } else { Outcome::Incomplete })
}

/// Judges the responses of a job.
pub(crate) async fn work(job: &Job, oracle: &Oracle, sink: Sink<'_>) -> Result<Done> {
    let file = &job.responses;
    let Responses { mut metadata, results } = input::read_json(file)?;
    if results.is_empty() {
        return Err(Error::file(file, "\"results\" holds no response").into());
    }
    let world = job.world.as_deref().map(Judge::load).transpose()?;
    if let (Some(world), Some(path)) = (&world, &job.world)
        && !world.is_world()
    {
        return Err(Error::file(path, "names no world; give its patterns by --rules").into());
    }
    let name = format!("judge {}", file.display());
    oracle
        .in_batches(&name, sink, async |front| {
            let world = world.as_ref();
            let found = |(index, result)| front.visit(found(oracle, world, result, file, index));
            let asked = futures::stream::iter(results.iter().enumerate()).map(found).buffered(oracle.window());
            asked.try_for_each(|()| std::future::ready(Ok(()))).await
        })
        .await?;
    let total = results.len() as u64;
    let mut judged = Vec::with_capacity(results.len());
    let mut undecided = 0;
    let mut provenance = Lines::create(&job.output, matches!(oracle, Oracle::Model(_)))?;
    let mut verdicts = futures::stream::iter(results.into_iter().enumerate())
        .map(|(index, result)| {
            let world = world.as_ref();
            async move {
                let found = found(oracle, world, &result, file, index).await?;
                Ok::<_, crate::Error>((index, result, found))
            }
        })
        .buffered(oracle.window());
    while let Some((index, mut result, (found, grounds))) = verdicts.try_next().await? {
        if let Some(grounds) = &grounds {
            provenance.push(&Line::new(index, "model_response", grounds))?;
        }
        undecided += usize::from(found.is_err());
        keep(&mut result, &found);
        judged.push(result);
        sink(Progress { done: judged.len() as u64, total, bill: oracle.bill(), waiting: oracle.waiting() });
    }
    drop(verdicts);
    provenance.finish()?;
    let summary = Summary::of(&judged);
    metadata.insert("judge".into(), oracle.name().into());
    metadata.extend(summary.metrics());
    write_json(&job.output, &Responses { metadata, results: judged })?;
    Ok(Done { summary, undecided })
}

/// A verdict, or why there is none.
type Found = std::result::Result<Verdict, String>;

/// Judges one result; what a model's verdict rests on comes with it.
async fn found(
    oracle: &Oracle,
    world: Option<&Judge>,
    result: &Map<String, Value>,
    file: &Path,
    index: usize,
) -> Result<(Found, Option<Judged>)> {
    let item = item(oracle, world, result, file, index)?;
    let unknown = |unknown: String| Error::field(file, index, "prompt", unknown);
    let by_rules = match oracle {
        Oracle::Rules { judge, .. } => Some(&**judge),
        Oracle::Model(_) => world,
    };
    let by_rules = by_rules.map(|judge| judge.verdict(&item.prompt, item.response, item.finished)).transpose();
    let by_rules = by_rules.map_err(|problem| unknown(problem.to_string()))?;
    if matches!(oracle, Oracle::Rules { .. }) {
        return Ok((Ok(by_rules.expect("rules always decide")), None));
    }
    let world = by_rules.and_then(|verdict| verdict.world.map(|world| (verdict, world)));
    if let Some((verdict, WorldVerdict::Skill { .. } | WorldVerdict::Task { garbled: true, .. })) = world {
        return Ok((Ok(verdict), None));
    }
    let world = world.map(|(_, world)| world);
    let judged = oracle.judge(&item.prompt, item.response).await?;
    let found = match &judged.decision {
        Decision::Compliant => Ok(Verdict { compliant: true, reason: None, world }),
        Decision::Violates => Ok(Verdict { compliant: false, reason: None, world }),
        Decision::Uncertain(reason) | Decision::Dead(reason) => Err(reason.clone()),
        Decision::UnknownPrompt(problem) => return Err(unknown(problem.clone()).into()),
    };
    Ok((found, Some(judged)))
}

struct Item<'a> {
    prompt: String,
    response: &'a str,
    finished: bool,
}

fn item<'a>(
    oracle: &Oracle,
    world: Option<&Judge>,
    result: &'a Map<String, Value>,
    file: &Path,
    index: usize,
) -> Result<Item<'a>> {
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
    let in_world = world.is_some() || matches!(oracle, Oracle::Rules { judge, .. } if judge.is_world());
    let finished = match result.get("finished") {
        Some(Value::Bool(finished)) => *finished,
        Some(_) => return Err(wrong("finished", "is neither true nor false").into()),
        // In a world the stop token is part of compliance, so nothing may be assumed.
        None if in_world => {
            return Err(wrong("finished", "is missing; it must say whether the response ended by itself").into());
        }
        None => true,
    };
    if let Some(category) = result.get("category") {
        // The summary counts by it, so one it cannot count is an error and not left out.
        Category::deserialize(category).map_err(|_| wrong("category", "is none of INVERT, PUNISH and RETAIN"))?;
    }
    Ok(Item { prompt: prompt.prompt_text(), response, finished })
}

/// Writes a verdict into its result, in place of the verdict of an earlier judge.
fn keep(result: &mut Map<String, Value>, found: &Found) {
    for field in ["compliant", "garbled", "attack_success", "correct", "undecided"] {
        result.shift_remove(field);
    }
    let verdict = match found {
        Ok(verdict) => verdict,
        Err(reason) => {
            result.insert("undecided".into(), reason.clone().into());
            return;
        }
    };
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
