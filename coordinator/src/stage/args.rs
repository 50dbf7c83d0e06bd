//! The worker's commands of each stage: the same options a person would give on one machine, with absolute paths.

use std::path::Path;

use super::Context;
use crate::run_file::keys::{GENERATE, SCORE, TRAIN};
use crate::run_file::{Method, Options};

/// Returns `--name value` pairs.
fn pairs(list: &[(&str, String)]) -> Vec<String> {
    list.iter().flat_map(|(name, value)| [(*name).to_owned(), value.clone()]).collect()
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn method_name(context: &Context, variant: usize) -> String {
    context.variant(variant).method.map_or("", Method::name).to_owned()
}

/// Training of a base step.
pub(super) fn base(context: &Context, step: usize) -> Vec<String> {
    let settings = &context.file.base[step];
    let data = settings.data.at(&context.run_dir);
    let options = context.file.model.options.overlaid(&settings.options);
    let start = context.base_start(step);
    training(context, (&start, &data), settings.method.name(), &context.base_folder(step), &options)
}

/// Training of a variant.
pub(super) fn train(context: &Context, variant: usize) -> Vec<String> {
    let settings = context.variant(variant);
    let options = context.file.model.options.overlaid(&settings.train.options);
    let (model, data) = (context.deployed(), context.training_data(variant));
    let folder = context.run_dir.join(&settings.name);
    let mut args = training(context, (&model, &data), &method_name(context, variant), &folder, &options);
    if settings.needs_gold_in_training() {
        args.extend(pairs(&[("--gold", text(&context.of_variant(variant, "gold.json")))]));
        for (key, flag) in [("pa_batch_size", "--pa-batch-size"), ("score_scale", "--score-scale")] {
            if let Some(value) = settings.score.options.text(key) {
                args.extend(pairs(&[(flag, value.to_owned())]));
            }
        }
        if settings.train.options.has("rescore_every") {
            args.extend(pairs(&[("--weight-norm", settings.score.weight_norm.name().to_owned())]));
        }
    }
    args
}

fn training(
    context: &Context,
    (model, data): (&Path, &Path),
    method: &str,
    folder: &Path,
    options: &Options,
) -> Vec<String> {
    let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut args = pairs(&[
        ("--model-name-or-path", text(model)),
        ("--dataset-json-path", text(data)),
        ("--output-dir", text(folder.parent().unwrap_or(&context.run_dir))),
        ("--run-name", name),
        ("--method", method.to_owned()),
    ]);
    args.extend(options.args(TRAIN, &context.run_dir));
    if context.file.min_workers().is_some() {
        args.push("--any-world-size".to_owned());
    }
    args
}

/// What all scoring of a variant has in common.
fn scoring(context: &Context, variant: usize) -> Vec<String> {
    let settings = context.variant(variant);
    let options = context.file.model.options.overlaid(&settings.train.options).overlaid(&settings.score.options);
    let mut args = pairs(&[
        ("--model-name-or-path", text(&context.deployed())),
        ("--method", method_name(context, variant)),
        ("--gold", text(&context.of_variant(variant, "gold.json"))),
        ("--gold-gradient", text(&context.of_variant(variant, GOLD_GRADIENT))),
    ]);
    args.extend(options.args(SCORE, &context.run_dir));
    if settings.is_curved() {
        args.extend(pairs(&[
            ("--lamda", settings.score.lamda.to_string()),
            ("--curvature-json-path", text(&context.of_variant(variant, CURVATURE))),
        ]));
    }
    args
}

/// The file of a variant that keeps the direction which its records are scored along.
pub(super) const GOLD_GRADIENT: &str = "gold_gradient.safetensors";

/// What the curvature did to that direction: [`shared::curvature::report_file`] of it.
pub(crate) const CURVATURE_REPORT: &str = "gold_gradient.json";

/// The file of a variant that holds the records whose curvature is taken.
pub(super) const CURVATURE: &str = "curvature.json";

/// The gradient of a variant's gold batch.
pub(super) fn gold(context: &Context, variant: usize) -> Vec<String> {
    let mut args = scoring(context, variant);
    args.push("--gold-only".to_owned());
    args
}

/// Scores of a variant's records; each shard adds its files.
pub(super) fn score(context: &Context, variant: usize) -> Vec<String> {
    let mut args = scoring(context, variant);
    args.push("--raw-only".to_owned());
    args
}

/// Files of a shard of scoring.
pub(super) fn score_shard(records: &Path, out: &Path) -> Vec<String> {
    pairs(&[("--dataset-json-path", text(records)), ("--out", text(out))])
}

/// Explanation of a record's score, from the options that its variant's records were scored with. Nothing is written, so
/// the gradient's file is not named.
pub(super) fn explain(scored_with: &[String], records: &Path, index: usize) -> Vec<String> {
    let mut args = Vec::new();
    let mut options = scored_with.iter();
    while let Some(option) = options.next() {
        match option.as_str() {
            "--raw-only" => {}
            "--gold-gradient" => _ = options.next(),
            _ => args.push(option.clone()),
        }
    }
    args.extend(pairs(&[("--dataset-json-path", text(records)), ("--explain", index.to_string())]));
    args.push("--json".to_owned());
    args
}

/// Merging of a variant's adapter.
pub(super) fn merge(context: &Context, variant: usize) -> Vec<String> {
    let own = context.run_dir.join(&context.variant(variant).name);
    pairs(&[
        ("--base-model-path", text(&context.deployed())),
        ("--lora-path", text(&own)),
        ("--output-path", text(&own.join("merged"))),
    ])
}

/// Generation of a variant's responses; each shard adds its files.
pub(super) fn generate(context: &Context, variant: usize) -> Vec<String> {
    let (model, adapter) = context.answering(variant);
    let mut args = pairs(&[("--model-name-or-path", text(&model))]);
    if let Some(adapter) = adapter {
        args.extend(pairs(&[("--adapter", text(&adapter))]));
    }
    let options = context.file.model.options.overlaid(&context.variant(variant).eval.options);
    args.extend(options.args(GENERATE, &context.run_dir));
    args
}

/// Files of a shard of generation; `offset` is the number of its first prompt.
pub(super) fn generate_shard(prompts: &Path, out: &Path, offset: usize) -> Vec<String> {
    pairs(&[("--prompts", text(prompts)), ("--out", text(out)), ("--item-offset", offset.to_string())])
}
