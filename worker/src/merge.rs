//! `worker merge`: base + adapter to a full model folder that needs no adapter.

use std::path::PathBuf;

use clap::Args;
use tch::{Device, Kind, Tensor};

use crate::control::Control;
use crate::error::{Error, Result};
use crate::hub::HubArgs;
use crate::model::adapter_file;
use crate::model::config::ModelConfig;
use crate::model::lora::Module;
use crate::model::weights::{self, Checkpoint};
use crate::model_folder;

/// Merges an adapter into its base model: W + (α/r)·B·A, computed in f32, stored in the base's own type.
///
/// Embeddings are never resized. The result is a full model folder with the tokenizer.
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
    for input in [&args.base_model_path, &args.lora_path] {
        if shared::output::same_file(input, &output) {
            return Err(Error::Config(format!("--output-path {} is one of the inputs", output.display())));
        }
    }
    let config = ModelConfig::load(&args.base_model_path)?;
    let checkpoint = Checkpoint::open(&args.base_model_path)?;
    checkpoint.check(&config, &args.base_model_path)?;
    let lora = adapter_file::load(&args.lora_path, &config, &checkpoint.fingerprint(), Device::Cpu)?;

    let expected = weights::expected(&config);
    let bar = control.bar("merge", expected.len() as u64);
    let mut merged: Vec<(String, Tensor)> = Vec::with_capacity(expected.len());
    for (name, _) in &expected {
        control.go_on()?;
        let stored = checkpoint.stored(name)?;
        let tensor = match target(name).and_then(|(layer, module)| lora.get(layer, module)) {
            Some(factors) => {
                let delta = factors.b.matmul(&factors.a) * lora.config.scale();
                (stored.to_kind(Kind::Float) + delta).to_kind(stored.kind())
            }
            None => stored,
        };
        merged.push((name.clone(), tensor));
        bar.inc(1);
    }
    bar.finish_and_clear();
    model_folder::save_as_stored(&args.base_model_path, &output, &merged)?;
    Ok(output)
}

/// Returns layer and module of a linear weight's name.
fn target(name: &str) -> Option<(usize, Module)> {
    let rest = name.strip_prefix("model.layers.")?.strip_suffix(".weight")?;
    let (layer, place) = rest.split_once('.')?;
    let module = Module::ALL.into_iter().find(|module| module.path() == place)?;
    Some((layer.parse().ok()?, module))
}
