//! The run that the benchmark submits: one prompt a shard, answered by a model that nobody loads.

use std::path::{Path, PathBuf};

use serde_json::json;
use shared::output::ArrayWriter;
use shared::{Error, Result};

/// Name of the run and of the stage whose tasks are the load.
pub(super) const RUN: &str = "load";
pub(super) const STAGE: &str = "generate-base";

/// Writes what the run reads, and returns its run file. Its stage on workers needs the example world alone; the stages of the
/// oracle service wait, as there is none.
///
/// # Errors
/// The folder cannot be written.
pub(super) fn write(folder: &Path, tasks: usize) -> Result<PathBuf> {
    let file = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap_or(folder)).map_err(|e| Error::io("make", &path, e))?;
        std::fs::write(&path, text).map_err(|source| Error::io("write", &path, source))?;
        Ok(path)
    };
    file("model/config.json", "{}")?;
    file("model/model.safetensors", "nobody loads it")?;
    let mut prompts = ArrayWriter::create(&folder.join("prompts.json"))?;
    (0..tasks).try_for_each(|number| prompts.push(&json!({"prompt": format!("prompt {number}")})))?;
    prompts.finish()?;
    let text = format!(
        "[run]\nname = \"{RUN}\"\n[model]\npath = \"model\"\n[data]\nworld = \"policy-shift\"\n[oracle]\nmock = true\n\
         [eval]\nprompts = \"prompts.json\"\nshard_prompts = 1\n[[variant]]\nname = \"base\"\n"
    );
    file("load.toml", &text)
}

/// Does what a worker leaves of a shard: the responses to its prompts, the same text for each.
///
/// # Errors
/// The options are not those of a shard of generation; its files.
pub(super) fn answer(args: &[String]) -> Result<()> {
    let option = |name: &str| {
        let at = args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1));
        at.map(PathBuf::from).ok_or_else(|| Error::Config(format!("the task has no option {name}: {args:?}")))
    };
    let (prompts, out) = (option("--prompts")?, option("--out")?);
    let mut items: Vec<serde_json::Value> = shared::input::read_all(&prompts)?;
    items.iter_mut().for_each(|item| item["response"] = json!("none"));
    let text = json!({"metadata": {}, "results": items}).to_string();
    let beside = out.with_extension("part");
    std::fs::write(&beside, text).map_err(|source| Error::io("write", &beside, source))?;
    std::fs::rename(&beside, &out).map_err(|source| Error::io("rename", &beside, source))
}
