//! What a stage leaves to show that it is done, and what it leaves before it begins.
//!
//! ```text
//! RUN/stages/<stage>.begun.json   parameters and inputs it was begun with: equal ones go on, others start anew
//! RUN/stages/<stage>.bill.json    what its questions to the oracle have cost so far
//! RUN/stages/<stage>/             inputs and outputs of its shards
//! RUN/stages/<stage>.json         the manifest, written last: where it matches, the stage is done
//! ```

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use shared::output::write_json;
use shared::{Error, Result, input};

use super::files::{self, FileState};
use super::spec::Spec;
use super::{Bill, Outcome};
use crate::driver::now_ms;

/// Of the manifests' own layout and of what stages do; another one makes a stage be done again.
const FORMAT: u32 = 1;

/// A stage that is done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Manifest {
    format: u32,
    pub(super) stage: String,
    pub(super) parameters: Value,
    pub(super) inputs: Vec<FileState>,
    pub(super) outputs: Vec<FileState>,
    /// Tasks it was cut into, on workers.
    tasks: Vec<String>,
    code_version: String,
    /// Wall time of its work.
    pub(super) seconds: f64,
    pub(super) cost_usd: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) bill: Option<Bill>,
    /// The submission of the run that did it.
    pub(super) incarnation: u64,
}

/// What a stage was begun with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    format: u32,
    parameters: Value,
    inputs: Vec<FileState>,
    pub(super) tasks: Vec<String>,
    /// Name of the bill that all its questions to the oracle go on; none was kept by older versions.
    #[serde(default)]
    bill: String,
}

/// Names of a stage's files.
#[derive(Debug, Clone)]
pub(super) struct Paths {
    folder: PathBuf,
    stage: String,
}

impl Paths {
    pub(super) fn new(run_dir: &Path, stage: &str) -> Paths {
        Paths { folder: run_dir.join("stages"), stage: stage.to_owned() }
    }

    pub(super) fn manifest(&self) -> PathBuf {
        self.folder.join(format!("{}.json", self.stage))
    }

    pub(super) fn begun(&self) -> PathBuf {
        self.folder.join(format!("{}.begun.json", self.stage))
    }

    pub(super) fn bill(&self) -> PathBuf {
        self.folder.join(format!("{}.bill.json", self.stage))
    }

    /// Name of the run.
    fn run(&self) -> String {
        let run_dir = self.folder.parent().and_then(Path::file_name);
        run_dir.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// Folder of the shards.
    pub(super) fn shards(&self) -> PathBuf {
        self.folder.join(&self.stage)
    }
}

/// How far a stage is, by the files it left.
pub(super) enum Found {
    Done(Outcome),
    /// It was begun with the same parameters and inputs: what is there may stay.
    Begun,
    /// Not begun, or with others, or its outputs were changed: what is there is stale.
    Stale,
}

/// Compares what is there with what is wanted.
///
/// # Errors
/// An input is missing.
pub(super) fn find(spec: &Spec, paths: &Paths, run_dir: &Path) -> Result<(Found, Vec<FileState>)> {
    let manifest: Option<Manifest> = read(&paths.manifest());
    let begun: Option<Record> = read(&paths.begun());
    let known: Vec<FileState> = [manifest.as_ref().map(|m| &m.inputs), begun.as_ref().map(|b| &b.inputs)]
        .into_iter()
        .flatten()
        .flatten()
        .cloned()
        .collect();
    let inputs = files::look(&spec.inputs, run_dir, &known)?;
    let is_wanted = |format: u32, parameters: &Value, recorded: &[FileState]| {
        format == FORMAT && *parameters == spec.parameters && files::content(recorded) == files::content(&inputs)
    };
    if let Some(manifest) = manifest {
        let mut same = is_wanted(manifest.format, &manifest.parameters, &manifest.inputs);
        for output in &manifest.outputs {
            same = same && files::is_same(output, run_dir)?;
        }
        let outcome = Outcome { seconds: manifest.seconds, cost_usd: manifest.cost_usd, warning: None };
        return Ok((if same { Found::Done(outcome) } else { Found::Stale }, inputs));
    }
    let resumed = begun.is_some_and(|begun| is_wanted(begun.format, &begun.parameters, &begun.inputs));
    Ok((if resumed { Found::Begun } else { Found::Stale }, inputs))
}

/// Notes that a stage begins.
pub(super) fn begin(spec: &Spec, paths: &Paths, inputs: Vec<FileState>, tasks: Vec<String>) -> Result<()> {
    // A name for this beginning alone: what an earlier one paid is none of its cost.
    let bill = format!("{}/{}@{}", paths.run(), paths.stage, now_ms());
    write_json(&paths.begun(), &Record { format: FORMAT, parameters: spec.parameters.clone(), inputs, tasks, bill })
}

/// Returns the name of the bill of a stage that has begun.
pub(super) fn bill_name(paths: &Paths) -> String {
    read::<Record>(&paths.begun()).map(|begun| begun.bill).unwrap_or_default()
}

/// Notes that a stage is done, with the inputs it was begun with.
///
/// # Errors
/// An output is missing.
pub(super) fn finish(
    spec: &Spec,
    paths: &Paths,
    run_dir: &Path,
    stage: &str,
    (seconds, incarnation): (f64, u64),
) -> Result<Outcome> {
    let Some(begun) = read::<Record>(&paths.begun()) else {
        // Finished in an earlier life, which died before it could say so.
        let manifest: Manifest = input::read_json(&paths.manifest())?;
        return Ok(Outcome { seconds: manifest.seconds, cost_usd: manifest.cost_usd, warning: None });
    };
    let outputs = files::look(&spec.outputs, run_dir, &[])
        .map_err(|error| Error::Config(format!("stage {stage} ended without its output: {error}")))?;
    let bill: Option<Bill> = read(&paths.bill());
    let cost_usd = bill.as_ref().map_or(0.0, |bill| bill.cost_usd);
    let manifest = Manifest {
        format: FORMAT,
        stage: stage.to_owned(),
        parameters: begun.parameters,
        inputs: begun.inputs,
        outputs,
        tasks: begun.tasks,
        code_version: env!("CARGO_PKG_VERSION").to_owned(),
        seconds,
        cost_usd,
        bill,
        incarnation,
    };
    write_json(&paths.manifest(), &manifest)?;
    for file in [paths.begun(), paths.bill()] {
        remove(&file)?;
    }
    Ok(Outcome { seconds, cost_usd, warning: None })
}

/// Reads a stage's manifest; none where it is not done.
pub(super) fn of(run_dir: &Path, stage: &str) -> Option<Manifest> {
    read(&Paths::new(run_dir, stage).manifest())
}

/// Removes a file or folder, if it is there.
pub(super) fn remove(path: &Path) -> Result<()> {
    let removed = match path.symlink_metadata() {
        Ok(data) if data.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(_) => return Ok(()),
    };
    removed.map_err(|source| Error::io("remove", path, source))
}

/// Reads a file of this module's; one that is not there or of another form says nothing.
fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Option<T> {
    path.exists().then(|| input::read_json(path).ok()).flatten()
}
