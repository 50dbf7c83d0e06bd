//! `worker generate`: responses to prompts, batched, with a key-value cache, resumable per item.
//!
//! Batches are cut from the prompts in order of length, whatever is finished already, so that an interrupted run
//! leaves the same bytes as an undisturbed one. Sampling draws from (seed, item, position) alone.

pub mod cache;
pub mod sample;

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use shared::python_random::PythonRandom;
use shared::quarantine::Quarantine;
use shared::record::Text;

use crate::control::Control;
use crate::error::{Error, Result};
use crate::journal::{self, Journal};
use crate::model::adapter_file;
use crate::model_folder;
use crate::options::{ModelArgs, TextArgs};

/// Generates a response to every prompt.
///
/// Prompts are objects with a "prompt" (string or chat turns); all their fields are kept. Writes {"metadata",
/// "results"}: every result is the item with "model_response" and "finished" (it ended by itself). Interrupted, the
/// same command goes on.
#[derive(Debug, Clone, Args)]
pub struct GenerateCommand {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// An adapter folder to switch on.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Prompts: JSON array or JSON lines of objects with "prompt", .gz and .xz too.
    #[arg(long, alias = "test-json", value_name = "FILE")]
    pub prompts: PathBuf,
    /// Where the responses go [default: OUTPUT_DIR/<prompts>_<model>[_<adapter>]_<number of responses>.json].
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Folder of responses without --out.
    #[arg(long, value_name = "DIR", default_value = "benchmark_TPA", conflicts_with = "out")]
    pub output_dir: PathBuf,
    /// Longest response in tokens.
    #[arg(long, default_value_t = 256)]
    pub max_new_tokens: usize,
    /// Prompts computed together.
    #[arg(long, default_value_t = 8)]
    pub batch_size: usize,
    /// Takes a random sample of so many prompts.
    #[arg(long)]
    pub sample_size: Option<usize>,
    /// 0 takes the likeliest token; above, samples from the distribution at that temperature.
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f64,
    /// Samples among the likeliest tokens that together have this probability.
    #[arg(long, default_value_t = 1.0)]
    pub top_p: f64,
    /// Seed of sample and sampling.
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Number of the first prompt in a larger file of which this is a part: sampling then draws as for the whole.
    #[arg(long, default_value_t = 0)]
    pub item_offset: u64,
    /// Prints the summary as JSON.
    #[arg(long)]
    pub json: bool,
    /// Text options.
    #[command(flatten)]
    pub text: TextArgs,
}

/// Runs the command. Returns a summary.
///
/// # Errors
/// Options, model or prompts are unusable, or the output cannot be written.
pub fn run(args: &GenerateCommand, control: &Control) -> Result<Value> {
    let started = Instant::now();
    for (name, value) in [("--max-new-tokens", args.max_new_tokens), ("--batch-size", args.batch_size)] {
        if value == 0 {
            return Err(Error::Config(format!("{name} is 0; expected at least 1")));
        }
    }
    let sampling = sample::Sampling::new(args.temperature, args.top_p, args.seed)?;
    let decoder = args.model.load()?;
    let encoder = args.text.encoder(&args.model.model_name_or_path, &decoder)?;
    let adapter = match &args.adapter {
        Some(dir) => Some(adapter_file::load(dir, &decoder.config, &decoder.fingerprint, decoder.device)?),
        None => None,
    };
    let (items, encoded, quarantine) = prompts(args, &encoder)?;
    let out = args.out.clone().unwrap_or_else(|| default_out(args, items.len()));
    shared::output::check_spared("--out", &out, &[("--prompts", Some(&args.prompts))])?;
    let longest = encoded.iter().map(Vec::len).max().unwrap_or(0) + args.max_new_tokens;
    if longest as i64 > decoder.config.max_position_embeddings {
        tracing::warn!(
            "prompt and response reach {longest} tokens, the model was made for {}",
            decoder.config.max_position_embeddings
        );
    }
    let key = json!({
        "model": decoder.fingerprint, "folder": model_folder::content_hash(&args.model.model_name_or_path)?, "dtype": format!("{:?}", decoder.dtype), "text": args.text,
        "adapter": args.adapter.as_deref().map(adapter_file::content_hash).transpose()?,
        "max_new_tokens": args.max_new_tokens, "batch_size": args.batch_size, "temperature": args.temperature,
        "top_p": args.top_p, "seed": args.seed, "item_offset": args.item_offset, "items": &items,
    });
    if let Some(dir) = out.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir).map_err(|e| Error::model(dir, e.to_string()))?;
    }
    let journal_path = journal::beside(&out);
    if let Some(path) = quarantine.write_beside(&out)? {
        tracing::warn!("{} items with an empty prompt were set aside in {}", quarantine.len(), path.display());
    }
    let set_aside = quarantine.len();
    let (mut journal, lines) = Journal::open::<Line>(&journal_path, &crate::score::shared_hash(&key))?;
    let mut finished: Vec<Option<Line>> = vec![None; items.len()];
    for line in lines {
        let item = line.item;
        *finished.get_mut(item).ok_or_else(|| Error::model(&journal_path, "names an item that is not there"))? =
            Some(line);
    }

    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|&i| (encoded[i].len(), i));
    let bar = control.bar("generate", items.len() as u64);
    let mut generated = 0;
    for batch in order.chunks(args.batch_size) {
        if batch.iter().any(|&i| finished[i].is_none()) {
            control.pass("generate.batch");
            control.go_on()?;
            let prompts: Vec<(u64, &[i64])> =
                batch.iter().map(|&i| (args.item_offset + i as u64, encoded[i].as_slice())).collect();
            let responses = cache::generate(
                &decoder,
                adapter.as_ref(),
                &prompts,
                encoder.stop_ids(),
                encoder.pad_id(),
                args.max_new_tokens,
                &sampling,
            )?;
            let mut new = Vec::with_capacity(batch.len());
            for (&item, response) in batch.iter().zip(&responses) {
                generated += response.tokens.len();
                let text = encoder.decode(&response.tokens);
                new.push(Line { item, text, finished: response.finished });
            }
            journal.append(&new)?;
            for line in new {
                let item = line.item;
                finished[item] = Some(line);
            }
        }
        bar.inc(batch.len() as u64);
    }
    bar.finish_and_clear();

    let results: Vec<Map<String, Value>> = items
        .into_iter()
        .zip(finished)
        .map(|(mut item, line)| {
            let line = line.expect("every batch was computed");
            item.insert("model_response".into(), json!(line.text));
            item.insert("finished".into(), json!(line.finished));
            item
        })
        .collect();
    let unfinished = results.iter().filter(|item| item["finished"] == json!(false)).count();
    let metadata = json!({
        "model_path": args.model.model_name_or_path.display().to_string(),
        "adapter": args.adapter.as_ref().map(|dir| dir.display().to_string()),
        "test_json": args.prompts.display().to_string(),
        "sample_size": results.len(), "seed": args.seed, "max_new_tokens": args.max_new_tokens,
        "temperature": args.temperature, "top_p": args.top_p, "bin_counts": bin_counts(&results),
    });
    let count = results.len();
    shared::output::write_json(&out, &json!({ "metadata": metadata, "results": results }))?;
    journal.remove()?;
    let seconds = started.elapsed().as_secs_f64();
    Ok(json!({
        "out": out.display().to_string(), "responses": count, "set_aside": set_aside, "unfinished": unfinished, "tokens": generated, "seconds": seconds,
        "tokens_per_s": generated as f64 / seconds, "peak_rss_gib": crate::measure::peak_rss_gib(),
    }))
}

/// Returns where the responses go when nothing is said: the reference's name (spec 7.2), with the adapter's where there
/// is one.
fn default_out(args: &GenerateCommand, responses: usize) -> PathBuf {
    let name = |path: &Path| model_folder::base_name(path);
    let mut file = format!("{}_{}", shared::output::stem(&args.prompts), name(&args.model.model_name_or_path));
    if let Some(adapter) = &args.adapter {
        file += &format!("_{}", name(adapter));
    }
    args.output_dir.join(format!("{file}_{responses}.json"))
}

/// One finished response in the journal.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Line {
    item: usize,
    text: String,
    finished: bool,
}

type Prompts = (Vec<Map<String, Value>>, Vec<Vec<i64>>, Quarantine);

/// Reads, samples and tokenises the prompts; items with an empty one are kept apart.
fn prompts(args: &GenerateCommand, encoder: &crate::text::Encoder) -> Result<Prompts> {
    let mut items: Vec<Map<String, Value>> = shared::input::read_all(&args.prompts)?;
    let mut index: Vec<usize> = (0..items.len()).collect();
    if let Some(size) = args.sample_size.filter(|&size| size < items.len()) {
        index = PythonRandom::new(args.seed).sample(items.len(), size);
        items = index.iter().map(|&i| items[i].clone()).collect();
    }
    let (mut kept, mut encoded) = (Vec::with_capacity(items.len()), Vec::with_capacity(items.len()));
    let mut quarantine = Quarantine::of("generate");
    for (item, &i) in items.into_iter().zip(&index) {
        let field = |problem: String| shared::error::Error::field(&args.prompts, i, "prompt", problem);
        let value = item.get("prompt").ok_or_else(|| field("is missing".into()))?;
        let prompt: Text = serde_json::from_value(value.clone())
            .map_err(|_| field("is neither a string nor a list of {role, content} turns".into()))?;
        if prompt.is_empty() {
            quarantine.push(&args.prompts, i, "prompt", "is empty", &item)?;
            continue;
        }
        encoded.push(encoder.prompt(&prompt).map_err(|e| field(e.to_string()))?);
        kept.push(item);
    }
    if kept.is_empty() {
        return Err(shared::error::Error::file(&args.prompts, "holds no prompt that is not empty").into());
    }
    Ok((kept, encoded, quarantine))
}

fn bin_counts(results: &[Map<String, Value>]) -> Value {
    let mut counts: std::collections::BTreeMap<&str, usize> = std::collections::BTreeMap::new();
    for category in results.iter().filter_map(|item| item.get("category")).filter_map(Value::as_str) {
        *counts.entry(category).or_default() += 1;
    }
    json!(counts)
}
