//! `worker bench`: pairs and tokens a second of scoring, plain inference, the update and generation, and the speed of a
//! gang's calls.

mod collective;
mod flops;
mod gang;
mod score;
mod update;

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use shared::quality::Filter;
use shared::quarantine::Quarantine;
use shared::record::{Category, Record};
use tch::{Device, Kind, Tensor};

use crate::control::Control;
use crate::dataset::DataSet;
use crate::error::{Error, Result};
use crate::generate::{cache, sample::Sampling};
use crate::measure;
use crate::model::decoder::Decoder;
use crate::model::lora::Lora;
use crate::objective::loss::PreferenceLoss;
use crate::objective::method::{Method, Recipe};
use crate::objective::step::{Item, Settings};
use crate::options::{LoraArgs, ModelArgs, TextArgs};
use crate::placement;
use crate::score::options::ScoreSpace;
use crate::text::Encoder;
use collective::CollectiveBench;
use gang::GangBench;

/// Measures one kind of work. On real pairs, every pair counts as INVERT, but for --case mix.
#[derive(Debug, Clone, Subcommand)]
#[allow(clippy::large_enum_variant)]
pub enum BenchCommand {
    /// Impact scores of INVERT pairs at a fresh adapter, of all and by length; the gold gradient is timed apart. See
    /// --space.
    Score(ModelBench),
    /// Log-probs of the same pairs in the same packs by plain inference: what the time and memory of `score` are
    /// measured against.
    Forward(ModelBench),
    /// Updates, dropout 0; see --case.
    Train(ModelBench),
    /// Greedy responses with a key-value cache.
    Generate(ModelBench),
    #[allow(missing_docs)]
    Collective(CollectiveBench),
    #[allow(missing_docs)]
    Gang(GangBench),
}

/// Work of a model that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Score,
    Forward,
    Train,
    Generate,
}

impl What {
    fn name(self) -> &'static str {
        match self {
            What::Score => "score",
            What::Forward => "forward",
            What::Train => "train",
            What::Generate => "generate",
        }
    }
}

impl BenchCommand {
    /// Returns the options of what a model does; none of a gang's calls.
    pub fn of_model(&self) -> Option<&ModelBench> {
        self.work().map(|(_, args)| args)
    }

    /// As [`BenchCommand::of_model`], to be changed.
    pub fn of_model_mut(&mut self) -> Option<&mut ModelBench> {
        match self {
            BenchCommand::Score(args)
            | BenchCommand::Forward(args)
            | BenchCommand::Train(args)
            | BenchCommand::Generate(args) => Some(args),
            BenchCommand::Collective(_) | BenchCommand::Gang(_) => None,
        }
    }

    fn work(&self) -> Option<(What, &ModelBench)> {
        match self {
            BenchCommand::Score(args) => Some((What::Score, args)),
            BenchCommand::Forward(args) => Some((What::Forward, args)),
            BenchCommand::Train(args) => Some((What::Train, args)),
            BenchCommand::Generate(args) => Some((What::Generate, args)),
            BenchCommand::Collective(_) | BenchCommand::Gang(_) => None,
        }
    }

    /// Returns whether JSON is asked for.
    pub fn json(&self) -> bool {
        match self {
            BenchCommand::Collective(args) => args.json,
            BenchCommand::Gang(args) => args.json,
            other => other.of_model().is_some_and(|args| args.json),
        }
    }
}

/// On what, and how.
#[derive(Debug, Clone, Args)]
#[command(allow_negative_numbers = true)]
pub struct ModelBench {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Pairs {prompt, chosen, rejected}: JSON array or JSON lines; pairs with an empty or missing field are left out
    /// and counted as "left_out".
    #[arg(long, value_name = "FILE")]
    pub pairs: PathBuf,
    /// Pairs measured.
    #[arg(long, default_value_t = 48)]
    pub n: usize,
    /// Whose gradients the scores of `score` are products of.
    #[arg(long, value_enum, default_value = "adapter")]
    pub space: ScoreSpace,
    /// What an update is measured on.
    #[arg(long, value_enum, default_value = "invert")]
    pub case: update::Case,
    /// Computes layers once more on the way back instead of keeping them.
    #[arg(long)]
    pub recompute: bool,
    /// Longest sequence in tokens.
    #[arg(long, default_value_t = 256)]
    pub max_length: usize,
    /// Pairs an update, and gold pairs of the score.
    #[arg(long, default_value_t = 4)]
    pub batch_size: usize,
    /// Tokens computed together at most.
    #[arg(long, default_value_t = 1024)]
    pub pack_tokens: usize,
    /// Tokens generated a prompt.
    #[arg(long, default_value_t = 64)]
    pub max_new_tokens: usize,
    /// Prints JSON instead of lines.
    #[arg(long)]
    pub json: bool,
    /// Text options.
    #[command(flatten)]
    pub text: TextArgs,
    /// Adapter options.
    #[command(flatten)]
    pub lora: LoraArgs,
}

/// Runs the benchmark and returns its figures.
///
/// # Errors
/// Model or pairs are unusable, or a ring does not form.
pub fn run(command: &BenchCommand, control: &Control) -> Result<Value> {
    match command {
        BenchCommand::Collective(args) => collective::run(args),
        BenchCommand::Gang(args) => gang::run(args),
        other => other.work().map_or(Ok(Value::Null), |(what, args)| of_model(what, args, control)),
    }
}

fn of_model(what: What, args: &ModelBench, control: &Control) -> Result<Value> {
    if args.n == 0 || args.batch_size == 0 {
        return Err(Error::Config("--n and --batch-size are at least 1".into()));
    }
    let decoder = args.model.load()?;
    let encoder = args.text.encoder(&args.model.model_name_or_path, &decoder)?;
    let (set, left_out) = pairs(&args.pairs, args.n, |at| match (what, args.case) {
        (What::Train, update::Case::Mix) => update::CYCLE[at % update::CYCLE.len()],
        _ => Category::Invert,
    })?;
    let mut items = items(&set, &encoder, args.max_length)?;
    let tokens: usize = items.iter().flat_map(|item| &item.sequences).map(|s| s.tokens.len()).sum();
    let computed: usize = items.iter().map(Item::tokens).sum();
    let mut lora = args.lora.fresh(&decoder.config)?;
    lora.dropout = 0.0;
    let adapter = Lora::fresh(lora, &decoder.config, 42, decoder.device);

    let mut figures = match what {
        What::Score => score::measure(args, &decoder, &adapter, &mut items, control)?,
        What::Forward => score::forward(args, &decoder, &items),
        What::Train => update::measure(args, &decoder, &adapter, &mut items, control)?,
        What::Generate => {
            let prompts = set
                .records
                .iter()
                .zip(&set.index)
                .map(|(record, &i)| {
                    let encoded = encoder.prompt(&record.prompt);
                    encoded.map_err(|e| Error::record(&args.pairs, i, e.of_field("prompt")))
                })
                .collect::<Result<Vec<_>>>()?;
            generate(args, &decoder, &set.index, &prompts, &encoder)?
        }
    };
    let seconds = figures["seconds"].as_f64().unwrap_or(f64::NAN);
    let done = figures["tokens"].as_u64().unwrap_or(tokens as u64);
    let common = json!({
        "what": what.name(), "pairs": set.records.len(), "left_out": left_out, "tokens": done,
        "pairs_per_s": set.records.len() as f64 / seconds, "tokens_per_s": done as f64 / seconds,
        "dtype": dtype_name(decoder.dtype), "device": placement::name(decoder.device), "threads": tch::get_num_threads(),
        "peak_rss_gib": measure::peak_rss_gib(), "matmul_gflops": matmul_gflops(decoder.dtype, decoder.device),
    });
    if what != What::Generate {
        figures["computed_tokens"] = json!(computed);
    }
    if let Some(work) = figures["gflop"].as_f64() {
        let ceiling = common["matmul_gflops"].as_f64().unwrap_or(f64::NAN);
        figures["share_of_ceiling"] = json!(work / seconds / ceiling);
    }
    for (name, value) in common.as_object().expect("an object was just made") {
        figures[name] = value.clone();
    }
    Ok(figures)
}

/// Reads the first `n` usable pairs of a file, each with the category of its place. Returns them and how many were left out.
///
/// # Errors
/// The file cannot be read or holds no usable pair.
pub(crate) fn pairs(file: &Path, n: usize, category: impl Fn(usize) -> Category) -> Result<(DataSet, usize)> {
    let (mut records, mut index, mut left_out) = (Vec::new(), Vec::new(), 0);
    for (i, record) in shared::input::records::<Record>(file)?.enumerate() {
        if records.len() == n {
            break;
        }
        let record = record?;
        if record.rejected.is_none() || record.empty_field().is_some() {
            left_out += 1;
            continue;
        }
        records.push(Record { category: Some(category(records.len())), ..record });
        index.push(i);
    }
    if records.is_empty() {
        let problem = format!("holds no usable pair: all {left_out} have an empty or missing field");
        return Err(shared::error::Error::file(file, problem).into());
    }
    Ok((DataSet { file: file.to_owned(), records, index, quarantine: Quarantine::of("bench") }, left_out))
}

/// Tokenises pairs as TRACE trains on them.
///
/// # Errors
/// A pair cannot be tokenised; it is named.
pub(crate) fn items(set: &DataSet, encoder: &Encoder, max_length: usize) -> Result<Vec<Item>> {
    let recipe = Recipe { method: Method::Trace, alpha_kl: SETTINGS.alpha_kl, filter: Filter::default() };
    Ok(set.items(encoder, &recipe, max_length)?.into_iter().flatten().collect())
}

const SETTINGS: Settings =
    Settings { beta: 0.3, epsilon: 0.0, alpha_kl: 0.1, loss: PreferenceLoss::Dpo, nll_weight: 0.0 };

fn generate(
    args: &ModelBench,
    decoder: &Decoder,
    index: &[usize],
    prompts: &[Vec<i64>],
    encoder: &Encoder,
) -> Result<Value> {
    cache::check_length(args.max_new_tokens, &decoder.config)?;
    let begun = Instant::now();
    let mut tokens = 0;
    for (number, batch) in prompts.chunks(args.batch_size).enumerate() {
        let batch: Vec<(u64, &[i64])> = batch.iter().map(|p| (0, p.as_slice())).collect();
        // No stop tokens: every prompt gets the same number, so that runs compare.
        let responses =
            cache::generate(decoder, None, &batch, &[], encoder.pad_id(), args.max_new_tokens, &Sampling::greedy())
                .map_err(|bad| bad.in_file(&args.pairs, index[number * args.batch_size + bad.row]))?;
        tokens += responses.iter().map(|r| r.tokens.len()).sum::<usize>();
    }
    Ok(json!({ "seconds": begun.elapsed().as_secs_f64(), "tokens": tokens }))
}

/// Returns the name of a type as `--dtype` takes it.
pub(crate) fn dtype_name(kind: Kind) -> &'static str {
    if kind == Kind::BFloat16 { "bf16" } else { "f32" }
}

/// Returns the speed of a 1024³ product of a type in this run, the best of several: the yardstick of this machine.
fn matmul_gflops(kind: Kind, device: Device) -> f64 {
    let a = Tensor::randn([1024, 1024], (Kind::Float, device)).to_kind(kind);
    let _ = a.matmul(&a);
    placement::finish(device);
    let best = (0..20)
        .map(|_| {
            let begun = Instant::now();
            let _ = a.matmul(&a);
            placement::finish(device);
            begun.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min);
    2.0 * 1024f64.powi(3) / best / 1e9
}
