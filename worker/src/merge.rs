//! `worker merge`: base + adapter to a full model folder that needs no adapter.

use std::path::PathBuf;

use clap::Args;
use tch::{Device, Kind};

use crate::beside;
use crate::control::Control;
use crate::error::{Error, Result};
use crate::fence::{Place, Wish};
use crate::hub::HubArgs;
use crate::model::adapter_file;
use crate::model::config::ModelConfig;
use crate::model::lora::Module;
use crate::model::shards::Planned;
use crate::model::weights::{self, Checkpoint};
use crate::model_folder;

/// Merges an adapter into its base model: W + (α/r)·B·A, computed in f32, stored in the base's own type.
///
/// Embeddings are never resized. The result is a full model folder with the tokenizer; it is written beside and replaces an earlier
/// one when it is whole.
#[derive(Debug, Clone, Args)]
pub struct MergeCommand {
    /// The base model's folder, or ORG/NAME[@REVISION] on the hub.
    #[arg(long, value_name = "DIR|ID")]
    pub base_model_path: PathBuf,
    /// The adapter's folder.
    #[arg(long, value_name = "DIR")]
    pub lora_path: PathBuf,
    /// Where the merged model goes [default: the adapter's path + "_merged"].
    #[arg(long, value_name = "DIR")]
    pub output_path: Option<PathBuf>,
    /// Largest file of weights, in GB (10^9 bytes); a larger model becomes several, with an index. No more than one file
    /// is in memory at a time.
    #[arg(long, value_name = "GB", default_value_t = 5.0)]
    pub max_shard_gb: f64,
    /// Where it comes from, if it is not here.
    #[command(flatten)]
    pub hub: HubArgs,
}

/// Runs the command. Returns the output folder.
///
/// # Errors
/// Base or adapter are unusable or do not belong together; the output is one of the inputs or cannot be written.
pub fn run(args: &MergeCommand, control: &Control) -> Result<PathBuf> {
    let output = args.output_path.clone().unwrap_or_else(|| {
        let mut name = args.lora_path.components().as_path().as_os_str().to_owned();
        name.push("_merged");
        PathBuf::from(name)
    });
    if !args.max_shard_gb.is_finite() || args.max_shard_gb <= 0.0 {
        return Err(Error::Config(format!("--max-shard-gb is {}; expected more than 0", args.max_shard_gb)));
    }
    for input in [&args.base_model_path, &args.lora_path] {
        if shared::output::same_file(input, &output) {
            return Err(Error::Config(format!("--output-path {} is one of the inputs", output.display())));
        }
    }
    let config = ModelConfig::load(&args.base_model_path)?;
    let checkpoint = Checkpoint::open(&args.base_model_path)?;
    checkpoint.check(&config, &args.base_model_path)?;
    let lora = adapter_file::load(&args.lora_path, &config, &checkpoint.fingerprint(), Device::Cpu)?;

    let planned = weights::expected(&config)
        .iter()
        .map(|(name, _)| checkpoint.planned(name))
        .collect::<Result<Vec<Planned>>>()?;
    let max_bytes = (args.max_shard_gb * 1e9) as u64;
    let bar = control.bar("merge", planned.len() as u64);
    std::fs::create_dir_all(&output).map_err(|e| Error::model(&output, e.to_string()))?;
    let wish = Wish { attempt: control.attempt(), named: &output, instead: "choose another --output-path" };
    let place = Place::lock(&output.join("merge.lock"), &wish)?;
    let make = |name: &str| {
        control.go_on()?;
        let stored = checkpoint.stored(name)?;
        bar.inc(1);
        Ok(match target(name).and_then(|(layer, module)| lora.get(layer, module)) {
            Some(factors) => {
                let delta = factors.b.matmul(&factors.a) * lora.config.scale();
                (stored.to_kind(Kind::Float) + delta).to_kind(stored.kind())
            }
            None => stored,
        })
    };
    let merged = beside::fill(
        &output,
        || place.check(),
        |to| {
            model_folder::save_made(&args.base_model_path, to, &planned, max_bytes, make)?;
            control.pass("merge.written");
            Ok(())
        },
    );
    // One that cannot be removed is taken again by the next merge.
    let _ = place.remove();
    merged?;
    bar.finish_and_clear();
    Ok(output)
}

/// Returns layer and module of a linear weight's name.
fn target(name: &str) -> Option<(usize, Module)> {
    let rest = name.strip_prefix("model.layers.")?.strip_suffix(".weight")?;
    let (layer, place) = rest.split_once('.')?;
    let module = Module::ALL.into_iter().find(|module| module.path() == place)?;
    Some((layer.parse().ok()?, module))
}
