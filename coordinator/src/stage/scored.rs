//! How the records of a variant were scored: told by the manifest of that stage, to those who look at scores later.
//!
//! Only reads, so it can be asked while a coordinator works on the run. The manifest holds the very options that the
//! workers were given; a run file may have changed since.

use std::path::{Path, PathBuf};

use shared::{Error, Result};

use super::manifest::{self, Manifest};
use super::{args, files, spec};
use crate::run_file::Method;

/// The scoring of a variant that is done.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Scored {
    /// The variant's name.
    pub(crate) variant: String,
    /// Whose loss terms were scored.
    pub(crate) method: Method,
    /// The records that were scored, as the split or the triage left them.
    pub(crate) records: PathBuf,
    /// The same records with scores and weights, but those that were set aside.
    pub(crate) weighted: PathBuf,
    /// The model that they were scored with.
    pub(crate) model: PathBuf,
    /// Options of `worker score`, files of a shard apart.
    args: Vec<String>,
    run_dir: PathBuf,
    manifest: Manifest,
}

/// Returns the names of the variants whose records are scored.
pub(crate) fn variants(run_dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(run_dir.join("stages")).into_iter().flatten().flatten();
    let name = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let variant = name.strip_prefix(STAGE)?.strip_suffix(".json")?.to_owned();
        // The manifests of stages stand among notes on what they are at.
        manifest::of(run_dir, &stage(&variant)).is_some().then_some(variant)
    };
    let mut names: Vec<String> = entries.filter_map(name).collect();
    names.sort();
    names
}

const STAGE: &str = "score-";

fn stage(variant: &str) -> String {
    format!("{STAGE}{variant}")
}

/// Returns how a variant's records were scored.
///
/// # Errors
/// They are not, or not yet; the records or the scores were changed since.
pub(crate) fn of(run_dir: &Path, variant: &str) -> Result<Scored> {
    let Some(manifest) = manifest::of(run_dir, &stage(variant)) else {
        return Err(not_scored(run_dir, variant));
    };
    let of_another_version = || Error::file(run_dir, format!("stage {} is of another version", stage(variant)));
    let told = manifest.parameters["args"].as_array().ok_or_else(of_another_version)?;
    let told: Vec<String> = told.iter().filter_map(|arg| arg.as_str().map(str::to_owned)).collect();
    let args = spec::untold(run_dir, &told);
    let option = |name: &str| {
        let at = args.iter().position(|arg| arg == name)?;
        args.get(at + 1)
    };
    let records = manifest.inputs.iter().find(|input| spec::is_of_records(&input.path)).map(|input| &input.path);
    let scored = Scored {
        variant: variant.to_owned(),
        method: option("--method").and_then(|name| Method::named(name)).ok_or_else(of_another_version)?,
        records: run_dir.join(records.ok_or_else(of_another_version)?),
        weighted: run_dir.join(variant).join("weighted_dataset.json"),
        model: option("--model-name-or-path").map(PathBuf::from).ok_or_else(of_another_version)?,
        args,
        run_dir: run_dir.to_owned(),
        manifest,
    };
    for (state, path) in [(&scored.manifest.inputs, &scored.records), (&scored.manifest.outputs, &scored.weighted)] {
        let state = state.iter().find(|state| run_dir.join(&state.path) == *path);
        if !state.map_or(Ok(false), |state| files::is_same(state, run_dir))? {
            return Err(Error::file(path, CHANGED));
        }
    }
    Ok(scored)
}

const CHANGED: &str = "is not there any more, or not as it was when the records were scored; submit the run again, then \
                       they are scored anew";

fn not_scored(run_dir: &Path, variant: &str) -> Error {
    let how_far = match manifest::Paths::new(run_dir, &stage(variant)).begun().exists() {
        true => "is being scored; ask again when that is done",
        false => "has no scores: it is scored later, or its method weighs no records, or the run has no such variant",
    };
    let scored = match &variants(run_dir)[..] {
        [] => "no variant has scores yet".to_owned(),
        some => format!("scored are: {}", some.join(", ")),
    };
    Error::file(run_dir, format!("variant {variant} {how_far} ({scored})"))
}

impl Scored {
    /// Returns the options with which `worker score` explains the record of an index.
    pub(crate) fn explain_args(&self, index: usize) -> Vec<String> {
        args::explain(&self.args, &self.records, index)
    }

    /// Checks that all that shaped the scores is there and as it was.
    ///
    /// # Errors
    /// Something is not; the message names it.
    pub(crate) fn check_inputs(&self) -> Result<()> {
        if !self.model.exists() {
            let problem = format!("is missing; the scores of {} were made with this model", self.variant);
            return Err(Error::file(&self.model, problem));
        }
        for input in &self.manifest.inputs {
            if !files::is_same(input, &self.run_dir)? {
                return Err(Error::file(&self.run_dir.join(&input.path), CHANGED));
            }
        }
        Ok(())
    }
}
