//! Options that several commands share: model, text, adapter, scoring. Names and defaults are the reference's
//! (spec 9) wherever it has the option.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use tch::{Device, Kind};

use crate::error::{Error, Result};
use crate::hub::HubArgs;
use crate::model::config::ModelConfig;
use crate::model::decoder::Decoder;
use crate::model::lora::{LoraConfig, Module};
use crate::placement::{self, Choice};
use crate::text::{Date, Encoder, EncoderOptions, MaskMode, TextRule};
use shared::quality::{Filter, Mode};

/// Type of weights and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// What config.json names; f32 where it names nothing.
    Auto,
    /// 32-bit floats.
    F32,
    /// bfloat16 weights and activations; adapters, norms' sums and the LM head's results stay in f32.
    Bf16,
}

/// Which model, in which type, on which device, on how many threads.
#[derive(Debug, Clone, Args)]
pub struct ModelArgs {
    /// Model folder in Hugging Face layout (config.json, safetensors, tokenizer.json), or ORG/NAME[@REVISION] on the hub.
    #[arg(long, visible_alias = "model", aliases = ["model-path", "model-id"], value_name = "DIR|ID")]
    pub model_name_or_path: PathBuf,
    /// Type of weights and activations.
    #[arg(long, value_enum, default_value = "auto")]
    pub dtype: Dtype,
    /// What to compute on; auto is the first CUDA device where this build finds one, else the processor.
    #[arg(long, env = "TRACE_DEVICE", default_value = "auto", value_name = "auto|cpu|cuda|cuda:N")]
    pub device: Choice,
    /// Threads for computation; all cores where not given. Results are equal to the bit only for equal thread counts.
    #[arg(long, value_name = "N")]
    pub threads: Option<i32>,
    /// Where it comes from, if it is not here.
    #[command(flatten)]
    pub hub: HubArgs,
}

impl ModelArgs {
    /// Sets the thread count and returns the type to compute in.
    ///
    /// # Errors
    /// config.json is missing or names a type this program does not compute in.
    pub fn prepare(&self) -> Result<Kind> {
        let threads = match self.threads {
            Some(n) if n < 1 => return Err(Error::Config(format!("--threads is {n}; expected at least 1"))),
            Some(n) => n,
            None => std::thread::available_parallelism().map_or(1, |n| n.get() as i32),
        };
        tch::set_num_threads(threads);
        match self.dtype {
            Dtype::F32 => Ok(Kind::Float),
            Dtype::Bf16 => Ok(Kind::BFloat16),
            Dtype::Auto => match ModelConfig::load(&self.model_name_or_path)?.dtype.as_deref() {
                None | Some("float32") => Ok(Kind::Float),
                Some("bfloat16") => Ok(Kind::BFloat16),
                Some(other) => Err(Error::Config(format!(
                    "{}/config.json names type {other:?}; choose --dtype f32 or bf16",
                    self.model_name_or_path.display()
                ))),
            },
        }
    }

    /// Returns the device that is meant.
    ///
    /// # Errors
    /// It is not there.
    pub fn device(&self) -> Result<Device> {
        placement::device(self.device)
    }

    /// Loads the decoder onto its device.
    ///
    /// # Errors
    /// As [`Decoder::load`], or the device is not there.
    pub fn load(&self) -> Result<Decoder> {
        let device = self.device()?;
        Decoder::load(&self.model_name_or_path, self.prepare()?, device)
    }
}

/// Which positions are scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mask {
    /// The response's tokens and the one token that closes it, for log-probs and KL alike.
    Exact,
    /// As the reference tokenises and masks, its off-by-one positions included.
    Reference,
}

/// What is taken from a prompt that is a list of chat turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// All turns.
    All,
    /// As the reference: the last assistant turn, and the first user turn for generation, else all contents joined.
    Reference,
}

/// How text becomes tokens.
#[derive(Debug, Clone, Args, serde::Serialize)]
pub struct TextArgs {
    /// Which positions are scored.
    #[arg(long, value_enum, default_value = "exact")]
    pub mask: Mask,
    /// What is taken from a prompt that is a list of chat turns.
    #[arg(long, value_enum, default_value = "all")]
    pub text_rule: Rule,
    /// The day told to chat templates that print one (YYYY-MM-DD).
    #[arg(long, default_value = "2024-07-26")]
    pub date: String,
}

impl TextArgs {
    /// Returns the longest sequence of scoring: the reference's is 256 whatever is asked for (spec 3.1).
    pub fn score_length(&self, max_length: usize) -> usize {
        match self.mask {
            Mask::Exact => max_length,
            Mask::Reference => 256,
        }
    }

    /// Loads the tokenizer of a model folder under these rules.
    ///
    /// # Errors
    /// The folder's tokenizer or template cannot be used, its vocabulary is larger than the model's, or the date is
    /// none.
    pub fn encoder(&self, model_dir: &std::path::Path, decoder: &Decoder) -> Result<Encoder> {
        self.encoder_of(model_dir, &decoder.config)
    }

    /// As [`TextArgs::encoder`], for a model whose weights nobody has loaded.
    ///
    /// # Errors
    /// As there.
    pub fn encoder_of(&self, model_dir: &std::path::Path, config: &ModelConfig) -> Result<Encoder> {
        let date: Date = self.date.parse().map_err(|e| Error::Config(format!("--date: {e}")))?;
        let mask = match self.mask {
            Mask::Exact => MaskMode::Exact,
            Mask::Reference => MaskMode::Reference,
        };
        let text_rule = match self.text_rule {
            Rule::All => TextRule::AllTurns,
            Rule::Reference => TextRule::Reference,
        };
        let encoder = Encoder::load(model_dir, EncoderOptions { mask, text_rule, date })
            .map_err(|e| Error::model(model_dir, e.to_string()))?;
        if encoder.vocab_size() as i64 > config.vocab_size {
            return Err(Error::model(
                model_dir,
                format!(
                    "tokenizer.json has ids up to {}, the embedding only {} rows: tokenizer and model do not belong \
                     together",
                    encoder.vocab_size() - 1,
                    config.vocab_size
                ),
            ));
        }
        if !encoder.has_template() {
            tracing::warn!(
                "{} has no chat template: prompts are written as \"### Question: …\" and \"### Answer: …\"",
                model_dir.display()
            );
        }
        Ok(encoder)
    }
}

/// Shape of a new adapter.
#[derive(Debug, Clone, Args, serde::Serialize)]
pub struct LoraArgs {
    /// Rank of the adapter's factors [default: 32].
    #[arg(long)]
    pub lora_r: Option<i64>,
    /// α; the adapter's term is scaled by α / r [default: 16].
    #[arg(long)]
    pub lora_alpha: Option<f64>,
    /// Scales the adapter's term by α / √r instead, so that its size does not fall with the rank. Written as a plain adapter
    /// whose α is √r times as large: the same term everywhere.
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub use_rslora: bool,
    /// Share of the adapter's input features dropped in training [default: 0.1, or that of --init-adapter].
    #[arg(long)]
    pub lora_dropout: Option<f64>,
    /// Linear layers with an adapter, separated by commas: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj,
    /// down_proj; or all-linear, which is all of them [default: q_proj,v_proj].
    #[arg(long, value_delimiter = ',')]
    pub lora_target_modules: Option<Vec<String>>,
    /// Linear layers with an adapter, as the reference's DPO scripts name them.
    #[arg(long, value_enum, conflicts_with = "lora_target_modules")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_layers: Option<LoraLayers>,
}

/// A group of linear layers (spec 4.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LoraLayers {
    /// gate_proj, up_proj, down_proj
    Mlp,
    /// q_proj, k_proj, v_proj, o_proj
    Attn,
    /// All seven.
    Both,
}

impl LoraLayers {
    fn modules(self) -> &'static [Module] {
        let (attention, mlp) = Module::ALL.split_at(4);
        match self {
            LoraLayers::Mlp => mlp,
            LoraLayers::Attn => attention,
            LoraLayers::Both => &Module::ALL,
        }
    }
}

impl LoraArgs {
    /// Checks the options and returns the adapter's shape.
    ///
    /// # Errors
    /// A rank below 1, a dropout outside [0, 1), an unknown layer name.
    pub fn config(&self) -> Result<LoraConfig> {
        let (r, alpha) = (self.lora_r.unwrap_or(32), self.lora_alpha.unwrap_or(16.0));
        let dropout = self.lora_dropout.unwrap_or(0.1);
        if r < 1 {
            return Err(Error::Config(format!("--lora-r is {r}; expected at least 1")));
        }
        if !(0.0..1.0).contains(&dropout) {
            return Err(Error::Config(format!("--lora-dropout is {dropout}; expected 0 to below 1")));
        }
        if !alpha.is_finite() || alpha == 0.0 {
            return Err(Error::Config(format!("--lora-alpha is {alpha}; expected a number other than 0")));
        }
        let alpha = if self.use_rslora { alpha * (r as f64).sqrt() } else { alpha };
        let targets = match (&self.lora_target_modules, self.lora_layers) {
            (Some(names), _) if names.iter().map(|name| name.trim()).eq(["all-linear"]) => {
                Module::ALL.into_iter().collect()
            }
            (Some(names), _) => names
                .iter()
                .map(|name| name.trim().parse::<Module>())
                .collect::<std::result::Result<_, _>>()
                .map_err(|e| Error::Config(format!("--lora-target-modules: {e}")))?,
            (None, Some(layers)) => layers.modules().iter().copied().collect(),
            (None, None) => [Module::Q, Module::V].into(),
        };
        Ok(LoraConfig { r, alpha, dropout, targets })
    }

    /// Returns the shape of a new adapter of a model.
    ///
    /// # Errors
    /// As [`LoraArgs::config`]; a rank by which the factors of every layer would be larger than its weight.
    pub fn fresh(&self, model: &ModelConfig) -> Result<LoraConfig> {
        let config = self.config()?;
        let widest = config.targets.iter().map(|module| module.shape(model)).map(|(out, input)| out.max(input)).max();
        // Small ranks are left alone: the default has to do for tiny models too.
        let limit = widest.unwrap_or(0).max(256);
        if config.r > limit {
            return Err(Error::Config(format!(
                "--lora-r is {}; expected at most {limit}: the widest of this model's layers with an adapter has {} \
                 features",
                config.r,
                widest.unwrap_or(0)
            )));
        }
        Ok(config)
    }

    /// Applies the options to an adapter that was read: a dropout given is taken, a shape given must be the adapter's.
    ///
    /// # Errors
    /// An option contradicts the adapter.
    pub fn apply_to(&self, adapter: &mut LoraConfig) -> Result<()> {
        let wanted = self.config()?;
        for (name, given, same) in [
            ("--lora-r", self.lora_r.is_some(), wanted.r == adapter.r),
            (
                "--lora-alpha",
                self.lora_alpha.is_some(),
                (wanted.alpha - adapter.alpha).abs() <= 1e-9 * adapter.alpha.abs(),
            ),
            ("--lora-target-modules", self.lora_target_modules.is_some(), wanted.targets == adapter.targets),
            ("--lora-layers", self.lora_layers.is_some(), wanted.targets == adapter.targets),
        ] {
            if given && !same {
                return Err(Error::Config(format!(
                    "{name} contradicts the adapter given by --init-adapter; leave it out"
                )));
            }
        }
        if self.lora_dropout.is_some() {
            adapter.dropout = wanted.dropout;
        }
        Ok(())
    }
}

/// What is done about promoted responses that say nothing.
#[derive(Debug, Clone, Args)]
pub struct QualityArgs {
    /// Promoted responses (the compliant ones of INVERT records, and corrections) that are empty or evasive: off counts
    /// them, report lists them too, on does not promote them. Then an INVERT record's violating response is punished
    /// alone and a PUNISH record goes without its correction; methods that only prefer leave the record out.
    #[arg(long, default_value = "report", value_name = "off|report|on")]
    pub quality_filter: Mode,
    /// Words below which a promoted response says too little.
    #[arg(long, default_value_t = shared::quality::LEAST_WORDS, value_name = "N")]
    pub quality_min_words: u64,
}

impl QualityArgs {
    /// Checks the options.
    ///
    /// # Errors
    /// A count of 0.
    pub fn validate(&self) -> Result<()> {
        match self.quality_min_words {
            0 => Err(Error::Config("--quality-min-words is 0; expected at least 1".into())),
            _ => Ok(()),
        }
    }

    /// Returns the filter.
    pub fn filter(&self) -> Filter {
        Filter { mode: self.quality_filter, least_words: self.quality_min_words }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lora() -> LoraArgs {
        LoraArgs {
            lora_r: None,
            lora_alpha: None,
            use_rslora: false,
            lora_dropout: None,
            lora_target_modules: None,
            lora_layers: None,
        }
    }

    #[test]
    fn groups_of_layers_are_those_of_the_reference() {
        let names = |layers: LoraLayers| {
            let config = LoraArgs { lora_layers: Some(layers), ..lora() }.config().unwrap();
            config.targets.iter().map(|module| module.name()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names(LoraLayers::Attn), "q_proj k_proj v_proj o_proj");
        assert_eq!(names(LoraLayers::Mlp), "gate_proj up_proj down_proj");
        assert_eq!(names(LoraLayers::Both), "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj");
        // Not given, it is not in the keys of runs that were begun before there was such an option.
        assert!(!serde_json::to_string(&lora()).unwrap().contains("lora_layers"));
    }
}
