//! Run files: what a user asks for, checked.
//!
//! A run file is TOML: `[run] [model] [base] [data] [oracle] [score] [train] [eval] [[variant]]`. A variant overrides
//! keys of score, train and eval; `--set key=value` overrides anything. All problems are found at once, each with its
//! line ([`problems`]). Keys that are options of the worker stand in one table ([`keys`]); what is left out of a file is
//! not passed, so defaults are the worker's own. Nothing here starts anything.

mod check;
mod document;
mod judging;
pub(crate) mod keys;
mod method;
mod oracle;
mod problems;
mod scoring;
mod sections;
mod values;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use shared::quality::{Filter, LEAST_WORDS};
use shared::weights::WeightNorm;

use crate::plan::Plan;
pub(crate) use judging::Judging;
pub(crate) use keys::Options;
pub(crate) use method::Method;
use problems::{Problems, Table};

/// The variant that is the deployed model itself: nothing is trained.
pub(crate) const BASE: &str = "base";

/// A checked run file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunFile {
    pub(crate) run: Run,
    pub(crate) model: Model,
    /// Training steps that make the deployed model, in order; none where the model is deployed as it is.
    pub(crate) base: Vec<BaseStep>,
    pub(crate) data: Data,
    pub(crate) oracle: Oracle,
    pub(crate) variants: Vec<Variant>,
}

/// The `[run]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) name: String,
    pub(crate) seed: u64,
    /// Workers of a training gang; 1 where the file does not say.
    pub(crate) world_size: Option<u32>,
    /// With how few of them training may go on; with no fewer where the file does not say.
    #[serde(default)]
    pub(crate) min_workers: Option<u32>,
}

/// A path: of the user's, or of a file that a stage of the run makes (`run:world/model`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Located {
    Outside(PathBuf),
    Run(PathBuf),
}

impl Located {
    /// Returns the path, given the run's folder.
    pub(crate) fn at(&self, run_dir: &Path) -> PathBuf {
        match self {
            Located::Outside(path) => path.clone(),
            Located::Run(path) => run_dir.join(path),
        }
    }
}

/// The `[model]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Model {
    pub(crate) path: Located,
    pub(crate) options: Options,
}

/// A step that makes the deployed model: full training of all weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct BaseStep {
    pub(crate) name: String,
    pub(crate) method: Method,
    pub(crate) data: Located,
    pub(crate) options: Options,
}

/// The `[data]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Data {
    pub(crate) source: Source,
    pub(crate) split: Option<Split>,
}

/// Where the pairs come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Source {
    /// The example world, a function of the seed.
    PolicyShift,
    /// Files of rows.
    Input { files: Vec<PathBuf>, num_samples: Option<u64> },
}

/// How the triaged pairs are cut.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Split {
    pub(crate) stratified: bool,
    pub(crate) group_by_prompt: bool,
    pub(crate) train1_size: u64,
    pub(crate) train2_size: u64,
}

/// The `[oracle]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Oracle {
    pub(crate) model: String,
    /// Of the API; none where `run --local` starts the mock.
    pub(crate) base_url: Option<String>,
    /// File with the policy's text; none where the mock answers.
    pub(crate) policy: Option<PathBuf>,
    pub(crate) mock: Option<Mock>,
    pub(crate) concurrency: u32,
    pub(crate) ckpt_every: u64,
    /// Judge the rejected response also where the chosen one complies.
    pub(crate) both: bool,
    pub(crate) corrections: bool,
    pub(crate) max_tokens: u32,
    /// Largest share of pairs or responses without a verdict, in percent.
    pub(crate) max_unlabelled_pct: f64,
    pub(crate) prices: Option<PathBuf>,
    /// Who answers: `online`, `batch` or `auto`; empty is `online`.
    #[serde(default)]
    pub(crate) mode: String,
    /// For `auto`: hours until a stage must be done; 0 for no deadline.
    #[serde(default)]
    pub(crate) deadline_h: f64,
    /// For `auto`: requests a minute that the online API takes; 0 is the service's own number.
    #[serde(default)]
    pub(crate) online_rpm: u32,
    /// What the run's questions may cost in all; the service pauses there.
    #[serde(default)]
    pub(crate) max_cost_usd: Option<f64>,
    #[serde(default)]
    pub(crate) requests_per_minute: Option<f64>,
    #[serde(default)]
    pub(crate) tokens_per_minute: Option<f64>,
    /// File of endpoints to ask instead of `base_url`.
    #[serde(default)]
    pub(crate) endpoints: Option<PathBuf>,
    /// How sure the judge must be of itself.
    #[serde(default)]
    pub(crate) judging: Judging,
}

/// What the mock answers by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mock {
    /// The new policy of the run's world.
    World,
    Rules(PathBuf),
}

/// A training recipe that is compared with the others, its overrides merged in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Variant {
    pub(crate) name: String,
    /// None for the base.
    pub(crate) method: Option<Method>,
    pub(crate) score: Score,
    pub(crate) train: Train,
    pub(crate) eval: Eval,
}

/// The `[score]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Score {
    /// A gold batch to use instead of drawing one.
    pub(crate) gold: Option<Located>,
    pub(crate) gold_batch_size: u64,
    pub(crate) gold_seed: u64,
    pub(crate) lamda: f64,
    pub(crate) weight_norm: WeightNorm,
    pub(crate) shard_records: u64,
    pub(crate) options: Options,
}

/// The `[train]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Train {
    /// Part of the split to train on.
    pub(crate) part: Part,
    pub(crate) options: Options,
}

/// A training part of a split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Part {
    Train1,
    Train2,
}

/// The `[eval]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Eval {
    pub(crate) prompts: Located,
    pub(crate) merge: bool,
    pub(crate) sample_size: Option<u64>,
    pub(crate) shard_prompts: u64,
    pub(crate) options: Options,
}

impl RunFile {
    /// Returns how many workers train together.
    pub(crate) fn world_size(&self) -> u32 {
        self.run.world_size.unwrap_or(1)
    }

    /// Returns with how few workers training may go on, where that is fewer than all.
    pub(crate) fn min_workers(&self) -> Option<u32> {
        self.run.min_workers.filter(|&least| least < self.world_size())
    }

    /// Returns whether PUNISH records get corrections: asked for, or needed by a variant.
    pub(crate) fn corrects(&self) -> bool {
        self.oracle.corrections
            || self.variants.iter().any(|variant| variant.method.is_some_and(Method::needs_corrections))
    }

    /// Returns whether the run is one in the example world.
    pub(crate) fn in_world(&self) -> bool {
        self.data.source == Source::PolicyShift
    }

    /// Returns the model that variants start from.
    pub(crate) fn deployed(&self) -> Located {
        if self.base.is_empty() { self.model.path.clone() } else { Located::Run(BASE.into()) }
    }
}

impl Located {
    /// Returns whether it is made of labelled pairs.
    fn needs_records(&self) -> bool {
        matches!(self, Located::Run(path) if path.starts_with("triage") || path.starts_with("splits"))
    }
}

impl BaseStep {
    /// Returns whether it trains on labelled pairs.
    pub(crate) fn needs_records(&self) -> bool {
        self.data.needs_records() || self.options.training_files().any(Located::needs_records)
    }
}

impl Eval {
    /// Returns whether its prompts are labelled pairs.
    pub(crate) fn needs_records(&self) -> bool {
        self.prompts.needs_records()
    }
}

impl Variant {
    /// Returns whether its records are weighted by impact scores.
    pub(crate) fn is_scored(&self) -> bool {
        self.method.is_some_and(Method::is_weighted) && !self.train.options.is_on("uniform_weights")
    }

    /// Returns whether its training looks at the gold batch that its records were scored with, from round to round.
    pub(crate) fn needs_gold_in_training(&self) -> bool {
        let rounds = ["u2a_top", "u2a_rounds", "rescore_every"];
        self.is_scored() && rounds.into_iter().any(|key| self.train.options.has(key))
    }

    /// Returns whether its scores take the curvature of the records' loss into account.
    pub(crate) fn is_curved(&self) -> bool {
        scoring::is_curved(&self.score.options)
    }

    /// Returns the name under which its weights are kept: that of the loss terms they were made for.
    pub(crate) fn scored_as(&self, method: Method) -> String {
        let name = method.scored_as().name();
        if !method.promotes() {
            return name.to_owned();
        }
        let options = &self.train.options;
        let mode = options.text("quality_filter").and_then(|mode| mode.parse().ok()).unwrap_or_default();
        let least_words = options.text("quality_min_words").and_then(|words| words.parse().ok());
        Filter { mode, least_words: least_words.unwrap_or(LEAST_WORDS) }.marked(name)
    }

    /// Returns whether its adapter is merged into a model of its own.
    pub(crate) fn is_merged(&self) -> bool {
        self.eval.merge && self.method.is_some() && !self.train.options.is_on("full")
    }
}

/// Reads a run file's text. `file` is its name for messages, `folder` where relative paths start, `set` are key=value
/// overrides. Returns all problems at once, each with its line.
pub(crate) fn parse(text: &str, file: &str, folder: &Path, set: &[String]) -> Result<RunFile, Vec<String>> {
    let mut problems = Problems::new(file, set);
    let mut root = match document::parse(text) {
        Ok(root) => root,
        Err(errors) => {
            errors.into_iter().for_each(|(place, problem)| problems.add(place, "", problem));
            return Err(problems.into_messages());
        }
    };
    for (index, text) in set.iter().enumerate() {
        if let Err(problem) = document::set(&mut root, text, index) {
            problems.add(document::Place::Set(index), "", problem);
        }
    }
    let root = Table { path: String::new(), node: &root };
    let read = sections::read(&root, folder, &mut problems);
    match read {
        Some(file) if problems.is_empty() => Ok(file),
        _ => Err(problems.into_messages()),
    }
}

/// Returns overrides with the relative paths in them made to start at `folder`: on a command line they are meant from
/// where it is given, in a run file from the file's folder.
pub(crate) fn set_from(folder: &Path, set: &[String]) -> Vec<String> {
    let from_here = |text: &str| {
        let is_relative = Path::new(text).is_relative() && !text.starts_with(values::RUN_PREFIX);
        if is_relative { folder.join(text).display().to_string() } else { text.to_owned() }
    };
    let absolute = |text: &String| {
        let (key, value) = text.split_once('=')?;
        if !sections::PATH_KEYS.contains(&key.trim().rsplit('.').next()?) {
            return None;
        }
        // What cannot be read is left as it is: its problem is told when the overrides are applied.
        match document::override_value(value.trim(), document::Place::Set(0)).ok()?.value {
            // A path from the root needs no quotes.
            document::Value::String(path) => Some(format!("{key}={}", from_here(&path))),
            document::Value::Array(paths) => {
                let path = |node: document::Node| match node.value {
                    document::Value::String(path) => Some(toml::Value::String(from_here(&path)).to_string()),
                    _ => None,
                };
                let paths: Option<Vec<String>> = paths.into_iter().map(path).collect();
                Some(format!("{key}=[{}]", paths?.join(", ")))
            }
            _ => None,
        }
    };
    set.iter().map(|text| absolute(text).unwrap_or_else(|| text.clone())).collect()
}

/// Returns the stages of a run.
pub(crate) fn plan(file: &RunFile) -> Plan {
    crate::plan::of(file)
}

#[cfg(test)]
mod tests;
