//! What each stage reads, writes and depends on: the layout of a run's folder, in one place.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use shared::Result;
use shared::output::sibling;

use super::files::Artifact::{self, File, Model, Optional};
use super::manifest::Paths;
use super::{Context, args, oracle};
use crate::plan::Work;
use crate::run_file::{BASE, Method, Part, Source, Variant};

/// A stage's dependencies.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Spec {
    pub(super) inputs: Vec<Artifact>,
    pub(super) outputs: Vec<Artifact>,
    /// Everything else that shapes its outputs.
    pub(super) parameters: Value,
    /// A folder that belongs to this stage but for other stages' outputs in it.
    pub(super) folder: Option<PathBuf>,
}

impl Context {
    pub(super) fn paths(&self, stage: usize) -> Paths {
        Paths::new(&self.run_dir, &self.plan.stages[stage].name)
    }

    pub(super) fn variant(&self, index: usize) -> &Variant {
        &self.file.variants[index]
    }

    /// Returns a path in the run's folder.
    pub(super) fn at(&self, path: &str) -> PathBuf {
        self.run_dir.join(path)
    }

    /// Returns a file of a variant.
    pub(super) fn of_variant(&self, variant: usize, file: &str) -> PathBuf {
        self.run_dir.join(&self.variant(variant).name).join(file)
    }

    /// Returns the pairs to be labelled.
    pub(super) fn pairs(&self) -> PathBuf {
        self.at(if self.file.in_world() { "world/pairs.json" } else { "data/pairs.json" })
    }

    /// Returns the labelled pairs, with corrections where the run has them.
    pub(super) fn labelled(&self) -> PathBuf {
        self.at(if self.file.corrects() { "triage/corrected.json" } else { "triage/gold.json" })
    }

    /// Returns the records a variant is trained on, before scoring.
    pub(super) fn records(&self, variant: usize) -> PathBuf {
        if self.file.data.split.is_none() {
            return self.labelled();
        }
        let variant = self.variant(variant);
        let kind = if variant.method.is_some_and(Method::takes_plain_pairs) { "dpo" } else { "trace" };
        let part = match variant.train.part {
            Part::Train1 => "train1",
            Part::Train2 => "train2",
        };
        self.at(&format!("splits/{kind}/{part}.json"))
    }

    /// Returns the records a variant is trained on.
    pub(super) fn training_data(&self, variant: usize) -> PathBuf {
        match self.variant(variant).is_scored() {
            true => self.of_variant(variant, "weighted_dataset.json"),
            false => self.records(variant),
        }
    }

    /// Returns the model variants start from.
    pub(super) fn deployed(&self) -> PathBuf {
        self.file.deployed().at(&self.run_dir)
    }

    /// Returns the model a base step starts from.
    pub(super) fn base_start(&self, step: usize) -> PathBuf {
        match step.checked_sub(1) {
            None => self.file.model.path.at(&self.run_dir),
            Some(before) => self.base_folder(before),
        }
    }

    /// Returns the run folder of a base step; the last one's is the deployed model.
    pub(super) fn base_folder(&self, step: usize) -> PathBuf {
        if step + 1 == self.file.base.len() {
            return self.at(BASE);
        }
        self.at("pretrain").join(&self.file.base[step].name)
    }

    /// Returns model and adapter a variant's responses come from.
    pub(super) fn answering(&self, variant: usize) -> (PathBuf, Option<PathBuf>) {
        let settings = self.variant(variant);
        let own = self.run_dir.join(&settings.name);
        if settings.method.is_none() {
            (self.deployed(), None)
        } else if settings.train.options.is_on("full") {
            (own, None)
        } else if settings.is_merged() {
            (own.join("merged"), None)
        } else {
            (self.deployed(), Some(own))
        }
    }
}

/// Returns what a stage depends on.
///
/// # Errors
/// A file that shapes the parameters cannot be read.
pub(super) fn of(context: &Context, work: Work) -> Result<Spec> {
    let file = &context.file;
    let spec = |inputs, outputs, parameters| Spec { inputs, outputs, parameters, folder: None };
    Ok(match work {
        Work::World => {
            let files = ["world.json", "rules_new.toml", "rules_old.toml", "pairs.json", "skill_sft.json"];
            let more = ["corpus_sft.json", "old_pairs_dpo.json", "prompts_val.json", "prompts_test.json"];
            let world = context.at("world");
            let mut outputs: Vec<Artifact> = files.iter().chain(&more).map(|name| File(world.join(name))).collect();
            outputs.push(Model(world.join("model")));
            spec(vec![], outputs, json!({"seed": file.run.seed}))
        }
        Work::Prepare => {
            let Source::Input { files, num_samples } = &file.data.source else {
                unreachable!("a world is not prepared")
            };
            let output = context.pairs();
            let outputs = vec![Optional(sibling(&output, "_quarantine")), File(output)];
            spec(files.iter().cloned().map(File).collect(), outputs, json!({"num_samples": num_samples}))
        }
        Work::Triage => {
            let output = context.at("triage/gold.json");
            let mut outputs = vec![File(sibling(&output, "_triage"))];
            outputs.extend(["_uncertain", "_dead_letter", "_quarantine"].map(|kind| Optional(sibling(&output, kind))));
            outputs.push(File(output));
            let parameters = json!({"oracle": oracle::identity(context)?, "both": file.oracle.both});
            spec(vec![File(context.pairs())], outputs, parameters)
        }
        Work::Correct => spec(
            vec![File(context.at("triage/gold.json"))],
            vec![File(context.at("triage/corrected.json"))],
            json!({"oracle": oracle::identity(context)?, "max_tokens": file.oracle.max_tokens}),
        ),
        Work::Split => {
            let parts = ["trace", "dpo"].into_iter().flat_map(|kind| {
                ["train1", "train2", "test"].map(|part| File(context.at(&format!("splits/{kind}/{part}.json"))))
            });
            let parameters = json!({"split": file.data.split, "seed": file.run.seed});
            spec(vec![File(context.labelled())], parts.collect(), parameters)
        }
        Work::Base(step) => {
            let settings = &file.base[step];
            let mut inputs = vec![Model(context.base_start(step)), File(settings.data.at(&context.run_dir))];
            inputs.extend(settings.options.training_files().map(|path| File(path.at(&context.run_dir))));
            let folder = context.base_folder(step);
            let parameters = training_parameters(context, &args::base(context, step));
            Spec { inputs, outputs: trained(&folder), parameters, folder: Some(folder) }
        }
        Work::Gold(variant) => {
            let settings = &context.variant(variant).score;
            let draws = settings.gold.is_none() || context.variant(variant).is_curved();
            let mut inputs = vec![Model(context.deployed())];
            inputs.extend(settings.gold.iter().map(|gold| File(gold.at(&context.run_dir))));
            inputs.extend(draws.then(|| File(context.records(variant))));
            inputs.extend(start_adapter(context, variant));
            let drawn = json!({"size": settings.gold_batch_size, "seed": settings.gold_seed});
            let parameters = json!({
                "args": told(context, &args::gold(context, variant)),
                "drawn": if draws { drawn } else { Value::Null },
            });
            spec(inputs, gold_files(context, variant), parameters)
        }
        Work::Score(variant) => {
            let mut inputs = vec![Model(context.deployed()), File(context.records(variant))];
            inputs.extend(gold_files(context, variant));
            inputs.extend(start_adapter(context, variant));
            let output = context.of_variant(variant, "weighted_dataset.json");
            let settings = &context.variant(variant).score;
            let parameters = json!({
                "args": told(context, &args::score(context, variant)), "lamda": settings.lamda,
                "weight_norm": settings.weight_norm, "shard_records": settings.shard_records,
            });
            spec(inputs, vec![Optional(sibling(&output, "_quarantine")), File(output)], parameters)
        }
        Work::Train(variant) => {
            let mut inputs = vec![Model(context.deployed()), File(context.training_data(variant))];
            let options = &context.variant(variant).train.options;
            inputs.extend(options.training_files().map(|path| File(path.at(&context.run_dir))));
            inputs.extend(start_adapter(context, variant));
            if context.variant(variant).needs_gold_in_training() {
                inputs.push(File(context.of_variant(variant, "gold.json")));
            }
            let folder = context.run_dir.join(&context.variant(variant).name);
            let parameters = training_parameters(context, &args::train(context, variant));
            Spec { inputs, outputs: trained(&folder), parameters, folder: Some(folder) }
        }
        Work::Merge(variant) => {
            let own = context.run_dir.join(&context.variant(variant).name);
            let merged = own.join("merged");
            let inputs = vec![Model(context.deployed()), Model(own)];
            Spec { inputs, outputs: vec![Model(merged.clone())], parameters: json!({}), folder: Some(merged) }
        }
        Work::Generate(variant) => {
            let (model, adapter) = context.answering(variant);
            let eval = &context.variant(variant).eval;
            let mut inputs = vec![Model(model), File(eval.prompts.at(&context.run_dir))];
            inputs.extend(adapter.map(Model));
            let output = context.of_variant(variant, "responses_test.json");
            let parameters = json!({
                "args": told(context, &args::generate(context, variant)), "sample_size": eval.sample_size,
                "shard_prompts": eval.shard_prompts,
            });
            spec(inputs, vec![Optional(sibling(&output, "_quarantine")), File(output)], parameters)
        }
        Work::Judge(variant) => {
            let mut inputs = vec![File(context.of_variant(variant, "responses_test.json"))];
            if file.in_world() {
                inputs.extend(["world.json", "rules_new.toml"].map(|name| File(context.at("world").join(name))));
            }
            let outputs = vec![File(context.of_variant(variant, "judged_test.json"))];
            spec(inputs, outputs, json!({"oracle": oracle::identity(context)?}))
        }
        Work::Report => spec(vec![], vec![], Value::Null),
    })
}

/// Returns what a training leaves that others read.
fn trained(folder: &Path) -> Vec<Artifact> {
    let files = ["metrics.jsonl", "train_summary.json", "run.json"].map(|name| File(folder.join(name)));
    [Model(folder.to_owned()), Optional(folder.join("quality.json"))].into_iter().chain(files).collect()
}

/// What the gold stage of a variant leaves for its scoring.
fn gold_files(context: &Context, variant: usize) -> Vec<Artifact> {
    let curvature =
        [args::CURVATURE, args::CURVATURE_REPORT].into_iter().filter(|_| context.variant(variant).is_curved());
    let names = ["gold.json", args::GOLD_GRADIENT].into_iter().chain(curvature);
    names.map(|name| File(context.of_variant(variant, name))).collect()
}

fn start_adapter(context: &Context, variant: usize) -> Option<Artifact> {
    let options = &context.variant(variant).train.options;
    options.path("init_adapter").map(|path| Model(path.at(&context.run_dir)))
}

fn training_parameters(context: &Context, args: &[String]) -> Value {
    json!({"args": told(context, args), "world_size": context.file.world_size()})
}

/// Returns options with paths in the run's folder told as such, so that a run that was moved stays done.
fn told(context: &Context, args: &[String]) -> Vec<String> {
    let inside = |arg: &String| {
        let path = Path::new(arg).strip_prefix(&context.run_dir).ok()?;
        Some(format!("run:{}", path.display()))
    };
    args.iter().map(|arg| inside(arg).unwrap_or_else(|| arg.clone())).collect()
}

/// Returns options that were [`told`] with their paths where the run's folder lies now.
pub(super) fn untold(run_dir: &Path, args: &[String]) -> Vec<String> {
    let whole = |arg: &String| match arg.strip_prefix("run:") {
        Some(path) => run_dir.join(path).display().to_string(),
        None => arg.clone(),
    };
    args.iter().map(whole).collect()
}

/// Returns whether a file of a run's folder, by its path in it, is one of those that [`Context::records`] names.
pub(super) fn is_of_records(path: &Path) -> bool {
    path.starts_with("triage") || path.starts_with("splits")
}
