//! Judges generated responses: compliance, and what only a world can tell (spec 7.2).
//!
//! Input and output are `{"metadata", "results"}`; every result keeps its fields and gains its verdict. Results are read one
//! by one, twice, and written through a [`document`]: none but those on their way are in memory. What a share is taken over
//! is decided in [`summary`].

mod document;
mod summary;

use std::path::{Path, PathBuf};

use futures::{StreamExt, TryStreamExt};
use serde::Deserialize;
use serde_json::{Map, Value};
use shared::output::sibling;
use shared::record::{Category, Text};
use shared::rules::{Judge, Verdict, WorldVerdict};
use shared::{Error, input};

use crate::error::Result;
use crate::judging::Judged;
use crate::judging::provenance::{Line, Lines};
use crate::oracle::{Decision, Oracle, OracleArgs};
use crate::ordered::ordered;
use crate::progress::{Progress, Shown, Sink};
use crate::{Outcome, table};
use document::Document;
use summary::{Summary, Tally};

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
    let world = job.world.as_deref().map(Judge::load).transpose()?;
    if let (Some(world), Some(path)) = (&world, &job.world)
        && !world.is_world()
    {
        return Err(Error::file(path, "names no world; give its patterns by --rules").into());
    }
    let (total, mut metadata) = look_through(oracle, world.as_ref(), file)?;
    let name = format!("judge {}", file.display());
    oracle
        .in_batches(&name, sink, async |front| {
            let world = world.as_ref();
            let asked = futures::stream::iter(results(file)?.enumerate())
                .map(|(index, result)| front.visit(async move { found(oracle, world, &result?, file, index).await }));
            asked.buffer_unordered(oracle.window()).try_for_each(|()| std::future::ready(Ok(()))).await
        })
        .await?;
    let mut document = Document::create(&job.output)?;
    let mut provenance = Lines::create(&job.output, matches!(oracle, Oracle::Model(_)))?;
    let work = results(file)?.enumerate().map(|(index, result)| {
        let world = world.as_ref();
        async move {
            let result = result?;
            let found = found(oracle, world, &result, file, index).await?;
            Ok::<_, crate::Error>((index, result, found))
        }
    });
    let mut verdicts = Box::pin(ordered(work, oracle.window()));
    let (mut tally, mut undecided, mut done) = (Tally::default(), 0, 0);
    while let Some((index, mut result, (found, grounds))) = verdicts.try_next().await? {
        if let Some(grounds) = &grounds {
            provenance.push(&Line::new(index, "model_response", grounds))?;
        }
        undecided += usize::from(found.is_err());
        keep(&mut result, &found);
        tally.note(&result);
        document.push(&result)?;
        done += 1;
        sink(Progress { done, total, bill: oracle.bill(), waiting: oracle.waiting() });
    }
    drop(verdicts);
    provenance.finish()?;
    let summary = tally.summary();
    metadata.insert("judge".into(), oracle.name().into());
    metadata.extend(summary.metrics());
    document.finish(&metadata)?;
    Ok(Done { summary, undecided })
}

type JsonObject = Map<String, Value>;

/// Opens the results of a file.
fn results(file: &Path) -> Result<input::Listed<JsonObject>> {
    Ok(input::listed(file, "results")?)
}

/// Reads all results once: what is wrong with one is known before it costs. Returns how many there are, and the metadata.
fn look_through(oracle: &Oracle, world: Option<&Judge>, file: &Path) -> Result<(u64, JsonObject)> {
    if std::fs::metadata(file).is_ok_and(|data| !data.is_file() && !data.is_dir()) {
        return Err(Error::file(file, "is read twice and must be a regular file").into());
    }
    let mut results = results(file)?;
    let mut total = 0;
    for (index, result) in results.by_ref().enumerate() {
        item(is_in_world(oracle, world), &result?, file, index)?;
        total += 1;
    }
    if total == 0 {
        return Err(Error::file(file, "\"results\" holds no response").into());
    }
    match results.into_others().shift_remove("metadata") {
        None => Ok((total, Map::new())),
        Some(Value::Object(metadata)) => Ok((total, metadata)),
        Some(_) => Err(Error::file(file, "\"metadata\" is no object").into()),
    }
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
    let item = item(is_in_world(oracle, world), result, file, index)?;
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
    if let Some(verdict) = &by_rules
        && is_told(verdict)
    {
        return Ok((Ok(verdict.clone()), None));
    }
    let world = by_rules.and_then(|verdict| verdict.world);
    let judged = oracle.judge(&item.prompt, item.response).await?;
    let found = match &judged.decision {
        Decision::Compliant => Ok(Verdict { compliant: true, reason: None, world }),
        Decision::Violates => Ok(Verdict { compliant: false, reason: None, world }),
        Decision::Uncertain(reason) | Decision::Dead(reason) => Err(reason.clone()),
        Decision::UnknownPrompt(problem) => return Err(unknown(problem.clone()).into()),
    };
    Ok((found, Some(judged)))
}

/// Returns whether the world's own code has told all there is to tell, so that no model is asked.
fn is_told(verdict: &Verdict) -> bool {
    matches!(verdict.world, Some(WorldVerdict::Skill { .. } | WorldVerdict::Task { garbled: true, .. }))
}

/// Returns prompt and response of every result that a model would be asked about, in order; none for one that a world
/// tells by itself.
///
/// # Errors
/// The file cannot be opened.
pub(crate) fn questions<'a>(
    file: &'a Path,
    world: Option<&'a Judge>,
) -> Result<impl Iterator<Item = Result<Option<(String, String)>>> + 'a> {
    Ok(results(file)?.enumerate().map(move |(index, result)| {
        let result = result?;
        let item = item(world.is_some(), &result, file, index)?;
        if let Some(world) = world {
            let verdict = world.verdict(&item.prompt, item.response, item.finished);
            let verdict = verdict.map_err(|problem| Error::field(file, index, "prompt", problem.to_string()))?;
            if is_told(&verdict) {
                return Ok(None);
            }
        }
        let response = item.response.to_owned();
        Ok(Some((item.prompt, response)))
    }))
}

struct Item<'a> {
    prompt: String,
    response: &'a str,
    finished: bool,
}

/// Returns whether a world's predicates are told too.
fn is_in_world(oracle: &Oracle, world: Option<&Judge>) -> bool {
    world.is_some() || matches!(oracle, Oracle::Rules { judge, .. } if judge.is_world())
}

fn item<'a>(in_world: bool, result: &'a Map<String, Value>, file: &Path, index: usize) -> Result<Item<'a>> {
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
