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
use crate::in_flight::{self, InFlight};
use crate::journal::{self, Journal};
use crate::model::adapter_file;
use crate::model::config::ModelConfig;
use crate::model_folder;
use crate::options::{ModelArgs, TextArgs};

/// Generates a response to every prompt.
///
/// Prompts are objects with a "prompt" (string or chat turns); all their fields are kept. Writes {"metadata",
/// "results"}: every result is the item with "model_response" and "finished" (it ended by itself). Interrupted, the
/// same command goes on. Items with an empty prompt are set aside in <out>_quarantine.json with a warning; the exit code
/// is 0 all the same.
#[derive(Debug, Clone, Args)]
#[command(allow_negative_numbers = true)]
pub struct GenerateCommand {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// An adapter folder to switch on.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Prompts: JSON array or JSON lines of objects with "prompt", .gz and .xz too.
    #[arg(long, visible_alias = "test-json", value_name = "FILE")]
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
    /// Options of the reference's vLLM script.
    #[command(flatten)]
    pub vllm: VllmArgs,
}

/// Options of the reference's vLLM script that have nothing to set here: accepted, so that its command lines run.
#[derive(Debug, Clone, Args)]
pub struct VllmArgs {
    /// GPUs of one model.
    #[arg(long, hide = true)]
    pub tensor_parallel_size: Option<u32>,
    /// Share of a GPU's memory.
    #[arg(long, hide = true)]
    pub gpu_memory_utilization: Option<f64>,
    /// Room for prompt and response.
    #[arg(long, hide = true)]
    pub max_model_len: Option<u32>,
}

impl VllmArgs {
    fn note(&self) {
        for (option, is_given, why) in [
            ("--tensor-parallel-size", self.tensor_parallel_size.is_some(), "a model is computed by one process"),
            ("--gpu-memory-utilization", self.gpu_memory_utilization.is_some(), "memory is taken as it is needed"),
            ("--max-model-len", self.max_model_len.is_some(), "the cache is as long as prompt and --max-new-tokens"),
        ] {
            if is_given {
                tracing::info!("{option} has no effect here: {why}");
            }
        }
    }
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
    args.vllm.note();
    if let Some(out) = &args.out {
        shared::output::check_target("--out", out)?;
        shared::output::check_spared("--out", out, &[("--prompts", Some(&args.prompts))])?;
    }
    cache::check_length(args.max_new_tokens, &ModelConfig::load(&args.model.model_name_or_path)?)?;
    let decoder = args.model.load()?;
    let encoder = args.text.encoder(&args.model.model_name_or_path, &decoder)?;
    let adapter = match &args.adapter {
        Some(dir) => Some(adapter_file::load(dir, &decoder.config, &decoder.fingerprint, decoder.device)?),
        None => None,
    };
    let Prompts { items, index, encoded, quarantine } = prompts(args, &encoder)?;
    let out = args.out.clone().unwrap_or_else(|| default_out(args, items.len()));
    if args.out.is_none() {
        shared::output::check_target("--output-dir", &out)?;
        shared::output::check_spared("--output-dir", &out, &[("--prompts", Some(&args.prompts))])?;
    }
    let too_long = warn_of_long(args, &decoder.config, &index, &encoded);
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
    let key = crate::score::shared_hash(&key);
    let (mut journal, lines) = Journal::open::<Line>(&journal_path, &key, control.attempt())?;
    let mut in_flight = InFlight::open(&journal::in_flight(&journal_path), &key, &args.prompts)?;
    let mut finished: Vec<Option<Line>> = vec![None; items.len()];
    for line in lines {
        let item = line.item;
        *finished.get_mut(item).ok_or_else(|| Error::model(&journal_path, "names an item that is not there"))? =
            Some(line);
    }

    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|&i| (encoded[i].len(), i));
    let is_finished = |batch: &[usize], finished: &[Option<Line>]| batch.iter().all(|&i| finished[i].is_some());
    let kept: usize =
        order.chunks(args.batch_size).filter(|batch| is_finished(batch, &finished)).map(<[usize]>::len).sum();
    let bar = control.bar_from(kept as u64, "generate", items.len() as u64);
    let mut generated = 0;
    for (number, batch) in order.chunks(args.batch_size).enumerate() {
        if !is_finished(batch, &finished) {
            control.go_on()?;
            in_flight.at(in_flight::Kind::Batch, number as u64 + 1, batch.iter().map(|&i| index[i]))?;
            control.pass("generate.batch");
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
            );
            let responses = responses.map_err(|bad| bad.in_file(&args.prompts, index[batch[bad.row]]))?;
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
            bar.inc(batch.len() as u64);
        }
    }
    bar.finish_and_clear();
    in_flight.done();

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
        "model_path": model_folder::full_name(&args.model.model_name_or_path),
        "adapter": args.adapter.as_ref().map(|dir| dir.display().to_string()),
        "test_json": args.prompts.display().to_string(),
        "sample_size": results.len(), "seed": args.seed, "max_new_tokens": args.max_new_tokens,
        "temperature": args.temperature, "top_p": args.top_p, "bin_counts": bin_counts(&results),
    });
    let count = results.len();
    journal.check()?;
    shared::output::write_json(&out, &json!({ "metadata": metadata, "results": results }))?;
    journal.remove()?;
    let seconds = started.elapsed().as_secs_f64();
    Ok(json!({
        "out": out.display().to_string(), "responses": count, "set_aside": set_aside, "unfinished": unfinished,
        "too_long": too_long, "tokens": generated, "seconds": seconds,
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

/// The prompts to answer, one entry each, and those without text.
struct Prompts {
    items: Vec<Map<String, Value>>,
    /// Place in the file.
    index: Vec<usize>,
    encoded: Vec<Vec<i64>>,
    quarantine: Quarantine,
}

/// Reads, samples and tokenises the prompts; items with an empty one are kept apart.
fn prompts(args: &GenerateCommand, encoder: &crate::text::Encoder) -> Result<Prompts> {
    let mut items: Vec<Map<String, Value>> = shared::input::read_all(&args.prompts)?;
    let mut index: Vec<usize> = (0..items.len()).collect();
    if let Some(size) = args.sample_size.filter(|&size| size < items.len()) {
        index = PythonRandom::new(args.seed).sample(items.len(), size);
        items = index.iter().map(|&i| items[i].clone()).collect();
    }
    let (mut kept, mut kept_index, mut encoded) = (Vec::new(), Vec::new(), Vec::new());
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
        kept_index.push(i);
    }
    if kept.is_empty() {
        return Err(shared::error::Error::file(&args.prompts, "holds no prompt that is not empty").into());
    }
    Ok(Prompts { items: kept, index: kept_index, encoded, quarantine })
}

/// Names the first prompt that, with its response, is longer than what the model was made for; returns how many are.
fn warn_of_long(args: &GenerateCommand, config: &ModelConfig, index: &[usize], encoded: &[Vec<i64>]) -> usize {
    let limit = config.max_position_embeddings;
    let is_long = |tokens: &Vec<i64>| (tokens.len() + args.max_new_tokens) as i64 > limit;
    let count = encoded.iter().filter(|tokens| is_long(tokens)).count();
    if let Some(first) = encoded.iter().position(is_long) {
        tracing::warn!(
            "{count} prompts with their responses may be longer than the {limit} tokens that the model was made for, \
             first: record {} ({}), {} tokens and --max-new-tokens {}",
            index[first],
            args.prompts.display(),
            encoded[first].len(),
            args.max_new_tokens
        );
    }
    count
}

fn bin_counts(results: &[Map<String, Value>]) -> Value {
    let mut counts: std::collections::BTreeMap<&str, usize> = std::collections::BTreeMap::new();
    for category in results.iter().filter_map(|item| item.get("category")).filter_map(Value::as_str) {
        *counts.entry(category).or_default() += 1;
    }
    json!(counts)
}
