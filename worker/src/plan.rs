//! `worker plan`: what an update of a model takes of a device's memory, and which token budget fits, before anything is
//! loaded or rented.
//!
//! [`memory`] and [`activations`] count bytes and are pure, as [`fit`] is; this file reads what they need, which of a model
//! is its `config.json` alone, and [`table`] prints. On the CPU the counts are checked against measured peaks
//! (docs/performance.md); for a GPU they are arithmetic that nobody has measured yet.

mod activations;
mod fit;
mod memory;
mod pack;
mod table;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use self::fit::{Holes, PLANNED_SHARE, Room};
use self::memory::{Fixed, Setting, Sharding, Work};
use self::pack::PackShape;
use crate::bench;
use crate::dataset;
use crate::error::{Error, Result};
use crate::measure;
use crate::model::config::ModelConfig;
use crate::model::lora::LoraConfig;
use crate::model::pack::Pack;
use crate::model::weights::Checkpoint;
use crate::objective::step::Item;
use crate::options::{LoraArgs, ModelArgs, TextArgs};
use crate::placement::{self, Choice};

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Trained {
    /// An adapter.
    Lora,
    /// All weights.
    Full,
}

/// Says what training a model takes of a device's memory, by part, and the largest --pack-tokens that fit.
///
/// Reads config.json, and the headers of the weights where they are there; of a model by hub id only the small files are
/// fetched. The exit code is 1 where not even one pair fits.
#[derive(Debug, Clone, Args)]
#[command(allow_negative_numbers = true)]
pub struct PlanCommand {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Devices that train together: records are shared out and, of --method full, gradients and the optimiser's state. What is
    /// listed is that of one device.
    #[arg(long, visible_alias = "ranks", default_value_t = 1, value_name = "N")]
    pub gpus: usize,
    /// They share out the weights, too, as `worker train --shard-parameters`; layers are always computed once more.
    #[arg(long)]
    pub shard_parameters: bool,
    /// Memory of one device, which need not be here: a GPU's, but with --device cpu [default: that of --device].
    #[arg(long, value_name = "GIB")]
    pub gpu_memory: Option<f64>,
    /// What is trained.
    #[arg(long, value_enum, default_value = "lora")]
    pub method: Trained,
    /// Longest sequence in tokens.
    #[arg(long, default_value_t = 256)]
    pub max_length: usize,
    /// Tokens computed together, for the table.
    #[arg(long, default_value_t = dataset::PACK_TOKENS)]
    pub pack_tokens: usize,
    /// Counts no frozen copy of the weights for --method full: it is held for the KL of RETAIN records alone, which methods
    /// without an anchor (dpo and its kin, npo, sft) and --alpha-kl 0 have none of.
    #[arg(long)]
    pub no_reference: bool,
    /// Takes the packs of the first pairs of a file, as `worker bench train` does, instead of the largest there can be; and
    /// counts no checkpoints, since that keeps none.
    #[arg(long, value_name = "FILE")]
    pub pairs: Option<PathBuf>,
    /// Pairs taken.
    #[arg(long, default_value_t = 48, requires = "pairs")]
    pub n: usize,
    /// Pairs an update; packs are cut within.
    #[arg(long, default_value_t = 4, requires = "pairs")]
    pub batch_size: usize,
    /// Prints JSON instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Text options.
    #[command(flatten)]
    pub text: TextArgs,
    /// Adapter options.
    #[command(flatten)]
    pub lora: LoraArgs,
}

/// Device memory that CUDA's context and its libraries' workspaces take: an assumption, since nothing here has measured it.
const CUDA_PROCESS_BYTES: f64 = 0.75 * GIB;

/// Bytes of a GiB.
const GIB: f64 = (1u64 << 30) as f64;

/// Everything that is said, before it is printed.
#[derive(Debug)]
struct Plan {
    model: String,
    parameters: f64,
    trained: Trained,
    trained_parameters: f64,
    dtype: Kind,
    store: Kind,
    device: String,
    gpus: usize,
    sharding: Sharding,
    /// Where the figure for the memory comes from.
    memory_from: &'static str,
    weights_from: &'static str,
    room: Room,
    fixed: Fixed,
    /// A checkpoint's copy in the host's memory, in bytes; 0 where none is kept.
    snapshot: f64,
    /// Resident memory at the end of loading, in bytes: weights and the pages of their files. The latter can be given back.
    loading: f64,
    pack: PackShape,
    pack_tokens: usize,
    max_length: usize,
    plain: Work,
    recomputed: Work,
    largest_plain: Option<usize>,
    largest_recomputed: Option<usize>,
}

/// Runs the command. Returns what is printed: a table, or an object.
///
/// # Errors
/// Options or configuration are unusable, or not even one pair fits; then table or object are printed already.
pub fn run(args: &PlanCommand) -> Result<Value> {
    let plan = made(args)?;
    let shown = if args.json { plan.as_json() } else { Value::String(table::of(&plan)) };
    if plan.largest_plain.or(plan.largest_recomputed).is_some() {
        return Ok(shown);
    }
    match &shown {
        Value::String(text) => println!("{text}"),
        object => println!("{object}"),
    }
    Err(Error::Device(table::refusal(&plan)))
}

fn made(args: &PlanCommand) -> Result<Plan> {
    for (name, value) in [
        ("--gpus", args.gpus),
        ("--max-length", args.max_length),
        ("--pack-tokens", args.pack_tokens),
        ("--n", args.n),
        ("--batch-size", args.batch_size),
    ] {
        if value == 0 {
            return Err(Error::Config(format!("{name} is 0; expected at least 1")));
        }
    }
    if args.shard_parameters && (args.method == Trained::Lora || args.gpus < 2) {
        return Err(Error::Config("--shard-parameters is for --method full on several devices (--gpus)".into()));
    }
    if args.pack_tokens > fit::LARGEST {
        return Err(Error::Config(format!("--pack-tokens is {}; expected at most {}", args.pack_tokens, fit::LARGEST)));
    }
    let dtype = args.model.prepare()?;
    let folder = &args.model.model_name_or_path;
    let config = ModelConfig::load(folder)?;
    // A plan for GPUs can be made where there are none.
    let device = match (args.gpu_memory, args.model.device) {
        (Some(_), Choice::Auto) => Device::Cuda(0),
        (Some(_), Choice::Cuda(number)) => Device::Cuda(number),
        (_, choice) => placement::device(choice)?,
    };
    let store = placement::held_as(dtype, device);
    let adapter: Option<LoraConfig> = match args.method {
        Trained::Lora => Some(args.lora.fresh(&config)?),
        Trained::Full => None,
    };
    // The benchmark's update has no dropout, and trains without a frozen copy.
    let adapter = adapter.map(|lora| if args.pairs.is_some() { LoraConfig { dropout: 0.0, ..lora } } else { lora });
    let setting = Setting {
        config: &config,
        adapter: adapter.as_ref(),
        dtype,
        store,
        kernel: placement::kernel(device),
        reorders_bf16: device == Device::Cpu,
        has_frozen_copy: adapter.is_none() && !args.no_reference && args.pairs.is_none(),
        sharding: match adapter.is_none() {
            true => Sharding { ranks: args.gpus, is_spread: args.shard_parameters && args.gpus > 1 },
            false => Sharding::NONE,
        },
    };
    let (memory, memory_from) = memory(args, device)?;
    let (file_bytes, weights_from) = stored(folder, &config, dtype)?;
    let process = process_bytes(args, device, store, &config)?;
    // libtorch's allocator for CUDA leaves holes, too, which nobody has measured here.
    let holes = if device == Device::Cpu { Holes::HEAP } else { Holes::NONE };
    // The benchmark's update keeps no checkpoints.
    let snapshot = if args.pairs.is_some() { 0.0 } else { memory::snapshot(&setting) };
    let of_device = if device == Device::Cpu { snapshot } else { 0.0 };
    let room = Room { memory, process, snapshot: of_device, holes };
    let packs = packs(args, &config)?;
    let worst = |is_recomputed| {
        // Weights that are gathered layer by layer are not there for a graph of all layers.
        let is_recomputed = is_recomputed || setting.sharding.is_spread;
        let works = packs.iter().map(|pack| (pack, Work::of(&setting, pack, is_recomputed)));
        works.max_by(|(_, a), (_, b)| a.total().total_cmp(&b.total())).expect("there is a pack")
    };
    let ((pack, plain), (_, recomputed)) = (worst(false), worst(true));
    let fixed = Fixed::of(&setting);
    let largest = |is_recomputed| {
        let is_recomputed = is_recomputed || setting.sharding.is_spread;
        room.largest_budget(&setting, args.max_length, args.pairs.is_none(), is_recomputed)
    };
    Ok(Plan {
        model: folder.display().to_string(),
        parameters: memory::parameters(&config),
        trained: args.method,
        trained_parameters: match &adapter {
            Some(adapter) => memory::adapter_parameters(&config, adapter),
            None => memory::parameters(&config),
        },
        dtype,
        store,
        device: placement::name(device),
        gpus: args.gpus,
        sharding: setting.sharding,
        memory_from,
        weights_from,
        room,
        fixed,
        snapshot,
        // All weights, before they are shared out.
        loading: if device == Device::Cpu { process + fixed.weights.max(fixed.gathered) + file_bytes } else { 0.0 },
        pack: pack.clone(),
        pack_tokens: args.pack_tokens,
        max_length: args.max_length,
        plain,
        recomputed,
        largest_plain: largest(false),
        largest_recomputed: largest(true),
    })
}

/// Returns the memory of one device in bytes, and where that is from.
fn memory(args: &PlanCommand, device: Device) -> Result<(f64, &'static str)> {
    match (args.gpu_memory, device) {
        (Some(gib), _) if !gib.is_finite() || gib <= 0.0 => {
            Err(Error::Config(format!("--gpu-memory is {gib}; expected a positive number of GiB")))
        }
        (Some(gib), _) => Ok((gib * GIB, "--gpu-memory")),
        (None, Device::Cpu) => match measure::memory_bytes() {
            0 => Err(Error::Config("this system does not tell its memory; give --gpu-memory".into())),
            bytes => Ok((bytes as f64, "this machine's")),
        },
        (None, _) => match measure::cuda_memory_bytes(device) {
            Some(bytes) => Ok((bytes as f64, "told by nvidia-smi")),
            None => {
                Err(Error::Config("the memory of the CUDA device is not known (nvidia-smi); give --gpu-memory".into()))
            }
        },
    }
}

/// Returns the size of the weights' files, read or computed, and which it is.
fn stored(folder: &Path, config: &ModelConfig, dtype: Kind) -> Result<(f64, &'static str)> {
    let is_here = |name: &str| folder.join(name).exists();
    if !is_here("model.safetensors") && !is_here("model.safetensors.index.json") {
        return Ok((memory::parameters(config) * dtype.elt_size_in_bytes() as f64, "config.json; no weights are here"));
    }
    let checkpoint = Checkpoint::open(folder)?;
    checkpoint.check(config, folder)?;
    Ok((checkpoint.bytes() as f64, "config.json, and the weights' headers agree"))
}

/// Returns what the process takes before there is a model: on the CPU as this process shows it now, with libtorch awake and
/// the tokenizer loaded where it is there.
fn process_bytes(args: &PlanCommand, device: Device, store: Kind, config: &ModelConfig) -> Result<f64> {
    if device != Device::Cpu {
        return Ok(CUDA_PROCESS_BYTES);
    }
    let folder = &args.model.model_name_or_path;
    let encoder = match folder.join("tokenizer.json").exists() {
        true => Some(args.text.encoder_of(folder, config)?),
        false => None,
    };
    // A backward pass wakes its threads.
    let rows = Tensor::ones([256, 256], (store, Device::Cpu)).set_requires_grad(true);
    rows.matmul(&rows).softmax(-1, store).sum(Kind::Float).backward();
    let bytes = measure::rss_bytes() as f64;
    drop(encoder);
    Ok(bytes)
}

/// Returns the packs of the pairs given, or the largest that --pack-tokens allows.
fn packs(args: &PlanCommand, config: &ModelConfig) -> Result<Vec<PackShape>> {
    let Some(file) = &args.pairs else {
        return Ok(vec![PackShape::largest(args.pack_tokens, args.max_length, true)]);
    };
    let encoder = args.text.encoder_of(&args.model.model_name_or_path, config)?;
    let (set, _) = bench::pairs(file, args.n, |_| shared::record::Category::Invert)?;
    let items = bench::items(&set, &encoder, args.max_length)?;
    let shape = |pack: Vec<&Item>| {
        let groups: Vec<_> = pack.iter().map(|item| item.group()).collect();
        PackShape::from(&Pack::new(&groups, Device::Cpu))
    };
    let batches = items.chunks(args.batch_size);
    Ok(batches.flat_map(|batch| dataset::packs(batch.iter(), args.pack_tokens)).map(shape).collect())
}

impl Plan {
    /// Largest resident memory that is expected with or without recomputation, in bytes; while loading, pages of files count.
    fn peak(&self, work: &Work) -> f64 {
        self.room.peak(&self.fixed, work).max(self.loading)
    }

    fn fits(&self, work: &Work) -> bool {
        self.room.holds(&self.fixed, work)
    }

    fn as_json(&self) -> Value {
        let gib = |bytes: f64| bytes / GIB;
        let work = |work: &Work| {
            json!({
                "activations_gib": gib(work.activations), "head_gib": gib(work.head), "buffers_gib": gib(work.buffers),
                "allocator_gib": gib(self.room.holes(&self.fixed, work)), "total_gib": gib(self.room.taken(&self.fixed, work)),
                "peak_gib": gib(self.peak(work)), "fits": self.fits(work),
            })
        };
        json!({
            "model": self.model, "parameters": self.parameters, "trained_parameters": self.trained_parameters,
            "method": if self.trained == Trained::Lora { "lora" } else { "full" },
            "dtype": bench::dtype_name(self.dtype), "held_as": bench::dtype_name(self.store), "device": self.device,
            "gpus": self.gpus, "weights_are_shared_out": self.sharding.is_spread, "memory_gib": gib(self.room.memory), "memory_from": self.memory_from,
            "sizes_from": self.weights_from, "planned_share": PLANNED_SHARE, "process_gib": gib(self.room.process),
            "weights_gib": gib(self.fixed.weights), "adapter_gib": gib(self.fixed.adapter),
            "gradients_gib": gib(self.fixed.gradients), "optimiser_gib": gib(self.fixed.optimiser),
            "reference_gib": gib(self.fixed.reference), "loading_gib": gib(self.loading),
            "while_gathered_gib": gib(self.room.while_gathered(&self.fixed, &self.recomputed)),
            "snapshot_gib": gib(self.snapshot),
            "pack_tokens": self.pack_tokens, "max_length": self.max_length, "pack_rows": self.pack.rows,
            "plain": work(&self.plain), "recomputed": work(&self.recomputed),
            "largest_pack_tokens": self.largest_plain, "largest_pack_tokens_recomputed": self.largest_recomputed,
        })
    }
}
