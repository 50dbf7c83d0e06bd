//! What the stages of a run do: begin (is it done already? which tasks?), carry out, finish (join, manifest).
//!
//! Every kind of stage goes the same way. `begin` compares the manifest with parameters, inputs and outputs: where all
//! match, the stage is done. Else, if it was begun before with the same parameters and inputs, what it left stays and the
//! work goes on; if not, its outputs are stale and removed first. `finish` joins and writes the manifest, last. Each may be
//! called again after a crash.

mod args;
pub(crate) mod asking;
mod curvature;
mod files;
mod generate;
mod local;
mod manifest;
mod oracle;
mod score;
pub(crate) mod scored;
mod shards;
mod spec;
mod summary;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shared::Result;
use tokio_util::sync::CancellationToken;

use crate::plan::{Kind, Place, Plan, Task, Work};
use crate::run_file::RunFile;
pub(crate) use args::CURVATURE_REPORT;
use files::Artifact;
use manifest::{Found, Paths};
use spec::Spec;

/// What a stage needs to know of its surroundings.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    /// Folder of this run: `ARTIFACTS/RUN`.
    pub(crate) run_dir: PathBuf,
    pub(crate) file: Arc<RunFile>,
    pub(crate) plan: Arc<Plan>,
    /// Of the oracle service; a stage that needs it and finds none fails with a clear error.
    pub(crate) oracle: Option<OracleAddress>,
    /// Names this submission of the run: what an earlier one did is told as such.
    pub(crate) incarnation: u64,
}

/// How to reach the oracle service.
#[derive(Debug, Clone)]
pub(crate) struct OracleAddress {
    pub(crate) url: String,
    pub(crate) token: Option<shared::net::Token>,
    /// Of the mock of the API that runs may ask for, where this cluster has one.
    pub(crate) mock: Option<String>,
}

/// What beginning a stage found out.
#[derive(Debug)]
pub(crate) enum Begun {
    /// Its manifest matches inputs, outputs and parameters: nothing is to be done.
    Done(Outcome),
    /// To be carried out; the tasks of a stage on workers, none elsewhere.
    Todo(Vec<Task>),
}

/// What a finished stage left, for status and report.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Outcome {
    /// Wall time of the work when it was done.
    pub(crate) seconds: f64,
    pub(crate) cost_usd: f64,
    /// What people should know of its outputs.
    pub(crate) warning: Option<String>,
}

/// How far a stage on the coordinator or the oracle service is.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Progress {
    pub(crate) done: u64,
    pub(crate) total: u64,
    pub(crate) cost_usd: f64,
    pub(crate) note: String,
}

/// What questions to the oracle cost; reused answers cost nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Bill {
    pub(crate) calls: u64,
    reused: u64,
    prompt_tokens: u64,
    /// Of the prompt tokens, those the API had in its cache.
    #[serde(default)]
    cached_tokens: u64,
    completion_tokens: u64,
    cost_usd: f64,
    /// Source and date of the prices.
    prices: String,
}

impl Bill {
    fn add(&mut self, other: &Bill) {
        self.calls += other.calls;
        self.reused += other.reused;
        self.prompt_tokens += other.prompt_tokens;
        self.cached_tokens += other.cached_tokens;
        self.completion_tokens += other.completion_tokens;
        self.cost_usd += other.cost_usd;
        if self.prices.is_empty() {
            self.prices.clone_from(&other.prices);
        }
    }
}

impl Context {
    /// Returns a path in the run's folder as it stands in a plan.
    fn relative(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.run_dir).unwrap_or(path).to_owned()
    }
}

/// Begins a stage: compares its manifest, else cuts its tasks. Blocks.
pub(crate) fn begin(context: &Context, stage: usize) -> Result<Begun> {
    let work = context.plan.stages[stage].work;
    if work == Work::Report {
        // Made of everything, and quickly: always anew.
        return Ok(Begun::Todo(Vec::new()));
    }
    let spec = spec::of(context, work)?;
    let paths = context.paths(stage);
    let (found, inputs) = manifest::find(&spec, &paths, &context.run_dir)?;
    let is_stale = match found {
        Found::Done(outcome) => return Ok(Begun::Done(outcome)),
        Found::Begun => false,
        Found::Stale => true,
    };
    if is_stale {
        clear(context, stage, &spec, &paths)?;
    }
    let tasks = tasks(context, work, &paths)?;
    if is_stale {
        manifest::begin(&spec, &paths, inputs, tasks.iter().map(|task| task.name.clone()).collect())?;
    }
    Ok(Begun::Todo(tasks))
}

/// Carries out a stage of the coordinator or the oracle service; ends early, with an error, once `stop` is cancelled.
pub(crate) async fn carry_out(
    context: &Context,
    stage: usize,
    progress: &(dyn Fn(Progress) + Send + Sync),
    stop: CancellationToken,
) -> Result<()> {
    match context.plan.stages[stage].place {
        Place::Oracle => oracle::carry_out(context, stage, progress, stop).await,
        Place::Coordinator | Place::Workers => local::carry_out(context, stage, progress, stop).await,
    }
}

/// Finishes a stage whose work is done: joins shards, checks outputs, writes the manifest. Blocks.
///
/// `seconds` is the wall time of its work, since it began last; what went before a pause or a restart is not in it.
pub(crate) fn finish(context: &Context, stage: usize, seconds: f64) -> Result<Outcome> {
    let work = context.plan.stages[stage].work;
    if work == Work::Report {
        return Ok(Outcome { seconds, ..Outcome::default() });
    }
    let paths = context.paths(stage);
    let warning = match work {
        Work::Correct => crate::corrections::count(&context.at("triage/corrected.json"))?.warning(),
        Work::Gold(variant) => score::gold_warning(context, variant)?,
        Work::Score(variant) => score::finish(context, variant, &paths.shards())?,
        Work::Generate(variant) => {
            generate::finish(context, variant, &paths.shards())?;
            None
        }
        _ => None,
    };
    let spec = spec::of(context, work)?;
    let name = &context.plan.stages[stage].name;
    let outcome = manifest::finish(&spec, &paths, &context.run_dir, name, (seconds, context.incarnation))?;
    Ok(Outcome { warning, ..outcome })
}

/// Cuts a stage into its tasks; none for stages of the coordinator and the oracle service.
fn tasks(context: &Context, work: Work, paths: &Paths) -> Result<Vec<Task>> {
    let (world_size, min_workers) = (context.file.world_size(), context.file.min_workers());
    let one = |name: &str, kind: Kind, args: Vec<String>, world_size: u32, output: &Path| {
        let outputs = vec![context.relative(output)];
        let min_workers = min_workers.filter(|_| kind == Kind::Train);
        vec![Task { name: name.to_owned(), kind, args, world_size, min_workers, outputs }]
    };
    Ok(match work {
        Work::World | Work::Prepare | Work::Triage | Work::Correct | Work::Split | Work::Judge(_) | Work::Report => {
            Vec::new()
        }
        Work::Base(step) => {
            let summary = context.base_folder(step).join("train_summary.json");
            one("train", Kind::Train, args::base(context, step), world_size, &summary)
        }
        Work::Gold(variant) => score::begin_gold(context, variant)?,
        Work::Score(variant) => score::begin(context, variant, &paths.shards())?,
        Work::Train(variant) => {
            let summary = context.of_variant(variant, "train_summary.json");
            one("train", Kind::Train, args::train(context, variant), world_size, &summary)
        }
        Work::Merge(variant) => {
            one("merge", Kind::Merge, args::merge(context, variant), 1, &context.of_variant(variant, "merged"))
        }
        Work::Generate(variant) => generate::begin(context, variant, &paths.shards())?,
    })
}

/// Removes what a stage left with other parameters or inputs. What says that it was begun or done goes first.
fn clear(context: &Context, stage: usize, spec: &Spec, paths: &Paths) -> Result<()> {
    for path in [paths.manifest(), paths.begun(), paths.bill(), paths.shards()] {
        manifest::remove(&path)?;
    }
    for output in &spec.outputs {
        match output {
            Artifact::File(path) | Artifact::Optional(path) => manifest::remove(path)?,
            // Removed with its folder below; a world's model lies among files that are written anew.
            Artifact::Model(_) => {}
        }
    }
    match &spec.folder {
        Some(folder) => clear_folder(context, stage, folder),
        None => Ok(()),
    }
}

/// Removes everything in a training's folder but what other stages put there.
fn clear_folder(context: &Context, stage: usize, folder: &Path) -> Result<()> {
    assert!(folder.starts_with(&context.run_dir), "a stage's folder lies in the run's");
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(()) };
    let mut others: Vec<PathBuf> = Vec::new();
    for (index, other) in context.plan.stages.iter().enumerate() {
        if index != stage {
            let outputs = spec::of(context, other.work)?.outputs;
            others.extend(outputs.iter().map(|output| output.path().to_owned()));
        }
    }
    for entry in entries.flatten() {
        if !others.contains(&entry.path()) {
            manifest::remove(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod oracle_tests;
#[cfg(test)]
mod tests;
