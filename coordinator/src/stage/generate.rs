//! Generation in shards of a fixed number of prompts; the responses are joined in the prompts' order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value, json};
use shared::output::{ArrayWriter, write_json};
use shared::python_random::PythonRandom;
use shared::quarantine::Quarantine;
use shared::record::Text;
use shared::{Error, Result, input};

use super::{Context, args};
use crate::plan::{Kind, Task};

type Item = Map<String, Value>;

/// Reads the prompts to answer, those without text kept apart.
fn prompts(context: &Context, variant: usize) -> Result<(PathBuf, Vec<Item>, Quarantine)> {
    let eval = &context.variant(variant).eval;
    let file = eval.prompts.at(&context.run_dir);
    let items: Vec<Item> = input::read_all(&file)?;
    let mut index: Vec<usize> = (0..items.len()).collect();
    if let Some(size) = eval.sample_size.map(|size| size as usize).filter(|size| *size < items.len()) {
        // As `worker generate --sample-size` draws.
        let seed = eval.options.text("seed").and_then(|seed| seed.parse().ok()).unwrap_or(context.file.run.seed);
        index = PythonRandom::new(seed).sample(items.len(), size);
    }
    let mut kept = Vec::with_capacity(index.len());
    let mut quarantine = Quarantine::of("generate");
    for index in index {
        let item = &items[index];
        let wrong = |problem: &str| Error::field(&file, index, "prompt", problem);
        let prompt = item.get("prompt").ok_or_else(|| wrong("is missing"))?;
        let prompt = Text::deserialize(prompt).map_err(|_| wrong("is neither a string nor a list of chat turns"))?;
        if prompt.is_empty() {
            quarantine.push(&file, index, "prompt", "is empty", item)?;
        } else {
            kept.push(item.clone());
        }
    }
    if kept.is_empty() {
        return Err(Error::file(&file, "holds no prompt that is not empty"));
    }
    Ok((file, kept, quarantine))
}

/// Cuts a variant's prompts into shards; returns the tasks of those that have no responses yet.
pub(super) fn begin(context: &Context, variant: usize, shards: &Path) -> Result<Vec<Task>> {
    let (_, items, _) = prompts(context, variant)?;
    let size = context.variant(variant).eval.shard_prompts as usize;
    let mut tasks = Vec::new();
    for (number, part) in items.chunks(size).enumerate() {
        let (prompts_file, out) = shard_files(shards, number);
        if out.exists() {
            continue;
        }
        let mut writer = ArrayWriter::create(&prompts_file)?;
        part.iter().try_for_each(|item| writer.push(item))?;
        writer.finish()?;
        let mut args = args::generate(context, variant);
        args.extend(args::generate_shard(&prompts_file, &out, number * size));
        tasks.push(Task {
            name: format!("shard-{number:04}"),
            kind: Kind::Generate,
            args,
            world_size: 1,
            min_workers: None,
            outputs: vec![context.relative(&out)],
        });
    }
    Ok(tasks)
}

#[derive(Deserialize)]
struct Responses {
    metadata: Map<String, Value>,
    results: Vec<Item>,
}

/// Joins the shards' responses, with the metadata `worker generate` would write for all of them.
pub(super) fn finish(context: &Context, variant: usize, shards: &Path) -> Result<()> {
    let (file, items, quarantine) = prompts(context, variant)?;
    let size = context.variant(variant).eval.shard_prompts as usize;
    let mut metadata = None;
    let mut results = Vec::with_capacity(items.len());
    for (number, part) in items.chunks(size).enumerate() {
        let (_, out) = shard_files(shards, number);
        let shard: Responses = input::read_json(&out)?;
        if shard.results.len() != part.len() {
            let problem = format!("holds {} responses to {} prompts", shard.results.len(), part.len());
            return Err(Error::file(&out, problem));
        }
        if let Some(at) = part.iter().zip(&shard.results).position(|(item, result)| item["prompt"] != result["prompt"])
        {
            return Err(Error::record(&out, at, "answers another prompt than the one that was asked"));
        }
        metadata.get_or_insert(shard.metadata);
        results.extend(shard.results);
    }
    let mut metadata = metadata.unwrap_or_default();
    metadata.insert("test_json".into(), json!(file.display().to_string()));
    metadata.insert("sample_size".into(), json!(results.len()));
    let mut bins: BTreeMap<&str, usize> = BTreeMap::new();
    for category in results.iter().filter_map(|item| item.get("category")).filter_map(Value::as_str) {
        *bins.entry(category).or_default() += 1;
    }
    metadata.insert("bin_counts".into(), json!(bins));
    let output = context.of_variant(variant, "responses_test.json");
    write_json(&output, &json!({"metadata": metadata, "results": results}))?;
    quarantine.write_beside(&output)?;
    Ok(())
}

fn shard_files(shards: &Path, number: usize) -> (PathBuf, PathBuf) {
    (shards.join(format!("prompts-{number:04}.json")), shards.join(format!("responses-{number:04}.json")))
}
