//! The checkpoint's `config.json`: which decoder it describes.
//!
//! Reads both spellings in use: `rope_theta` + `rope_scaling` beside the other fields, and `rope_parameters` holding
//! all of it. What a family's name implies is in `config/family.rs`; the decoder itself knows no families, only the
//! fields of [`ModelConfig`]. Refuses what this decoder does not compute, by name; nothing is guessed.

mod family;
mod rope;

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use self::family::{Family, Traits};
pub use self::rope::RopeScaling;
use crate::error::{Error, Result};

/// What the gate of the feed-forward layer goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x·σ(x)
    Silu,
    /// GELU, approximated with tanh.
    GeluTanh,
}

/// How the weights of RMS norms are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormWeight {
    /// As factors; the product is taken in the type of the residual stream.
    Plain,
    /// As differences from one; the product is taken in f32.
    FromOne,
}

/// Layers whose queries see the last `size` positions only, their own included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Positions seen.
    pub size: i64,
    /// Where.
    pub layers: LayerWindows,
}

/// Which layers have a window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LayerWindows {
    /// Layers 0, 2, 4, …
    Even,
    /// This layer and all after it.
    From(usize),
    /// Those marked.
    Listed(Vec<bool>),
}

/// How the heads of one layer attend: softmax over the keys in the window of cap(scale·q·k).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionRule {
    /// Factor on q·k.
    pub scale: f64,
    /// c in c·tanh(x/c), applied to scaled products.
    pub softcap: Option<f64>,
    /// A query sees this many positions, its own included.
    pub window: Option<i64>,
}

/// Shape and constants of a decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Entries of the embedding.
    pub vocab_size: i64,
    /// Width d of the residual stream.
    pub hidden_size: i64,
    /// Width of the gated feed-forward layer.
    pub intermediate_size: i64,
    /// Number of layers.
    pub layers: usize,
    /// Query heads.
    pub heads: i64,
    /// Key and value heads; divides `heads`.
    pub kv_heads: i64,
    /// Width of one head; not always d / heads.
    pub head_dim: i64,
    /// ε of the RMS norms.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Scaling of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// The LM head is the embedding.
    pub tie_word_embeddings: bool,
    /// q, k and v carry biases.
    pub qkv_bias: bool,
    /// o carries a bias.
    pub output_bias: bool,
    /// gate, up and down carry biases.
    pub mlp_bias: bool,
    /// What the gate goes through.
    pub activation: Activation,
    /// How norm weights are stored.
    pub norm: NormWeight,
    /// Attention and feed-forward results are normed too, before they are added to the residual stream.
    pub norms_after: bool,
    /// Factor on the embeddings (√d), rounded to the type of the residual stream.
    pub embedding_scale: Option<f64>,
    /// Factor on q·k.
    pub query_scale: f64,
    /// c in c·tanh(x/c) on the scaled products of queries and keys.
    pub attention_softcap: Option<f64>,
    /// c in c·tanh(z/c) on the logits.
    pub final_softcap: Option<f64>,
    /// Layers that see a window only.
    pub window: Option<Window>,
    /// Longest sequence the checkpoint was made for.
    pub max_position_embeddings: i64,
    /// Type the checkpoint names (`dtype` or `torch_dtype`), if it names one.
    pub dtype: Option<String>,
    /// Standard deviation of newly drawn weights.
    pub initializer_range: f64,
}

#[derive(Deserialize)]
struct Raw {
    vocab_size: i64,
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: usize,
    num_attention_heads: i64,
    num_key_value_heads: Option<i64>,
    head_dim: Option<i64>,
    #[serde(default = "default_eps")]
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<Map<String, Value>>,
    rope_parameters: Option<Map<String, Value>>,
    tie_word_embeddings: Option<bool>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    hidden_act: Option<String>,
    hidden_activation: Option<String>,
    query_pre_attn_scalar: Option<f64>,
    #[serde(default, deserialize_with = "given")]
    attn_logit_softcapping: Option<Option<f64>>,
    #[serde(default, deserialize_with = "given")]
    final_logit_softcapping: Option<Option<f64>>,
    #[serde(default)]
    use_sliding_window: bool,
    #[serde(default, deserialize_with = "given")]
    sliding_window: Option<Option<i64>>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    use_bidirectional_attention: Option<bool>,
    #[serde(default = "default_positions")]
    max_position_embeddings: i64,
    dtype: Option<String>,
    torch_dtype: Option<String>,
    #[serde(default = "default_range")]
    initializer_range: f64,
}

/// Tells a field that is `null` (`Some(None)`) from one that is left out (`None`, by the default).
fn given<'de, D, T>(field: D) -> std::result::Result<Option<Option<T>>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::deserialize(field).map(Some)
}

fn default_eps() -> f64 {
    1e-6
}
fn default_positions() -> i64 {
    2048
}
fn default_range() -> f64 {
    0.02
}

impl ModelConfig {
    /// Reads `config.json` of a model folder.
    ///
    /// # Errors
    /// A missing or unreadable file, an unknown family, or a setting this decoder does not compute.
    pub fn load(model_dir: &Path) -> Result<Self> {
        let file = model_dir.join("config.json");
        let bytes = std::fs::read(&file)
            .map_err(|e| Error::model(&file, format!("{e}; a model folder in Hugging Face layout is needed")))?;
        Self::parse(&file, &bytes)
    }

    /// Reads the bytes of a `config.json`; `file` is named in errors.
    ///
    /// # Errors
    /// As for [`ModelConfig::load`].
    pub(crate) fn parse(file: &Path, bytes: &[u8]) -> Result<Self> {
        let value: Value = shared::input::parse_json(file, bytes)?;
        let family = family(&value).map_err(|problem| Error::model(file, problem))?;
        let raw: Raw = shared::input::parse_json(file, bytes)?;
        Self::of(family, raw).map_err(|problem| Error::model(file, problem))
    }

    /// Returns how the heads of a layer attend.
    pub fn attention(&self, layer: usize) -> AttentionRule {
        let window = self.window.as_ref().filter(|window| match &window.layers {
            LayerWindows::Even => layer.is_multiple_of(2),
            LayerWindows::From(first) => layer >= *first,
            LayerWindows::Listed(marked) => marked.get(layer).copied().unwrap_or(false),
        });
        AttentionRule {
            scale: self.query_scale,
            softcap: self.attention_softcap,
            window: window.map(|window| window.size),
        }
    }

    fn of(family: Family, raw: Raw) -> std::result::Result<Self, String> {
        let traits = Traits::of(family, &raw)?;
        let kv_heads = raw.num_key_value_heads.unwrap_or(raw.num_attention_heads);
        let sizes = [
            ("vocab_size", raw.vocab_size),
            ("hidden_size", raw.hidden_size),
            ("intermediate_size", raw.intermediate_size),
            ("num_hidden_layers", raw.num_hidden_layers.try_into().unwrap_or(i64::MAX)),
            ("num_attention_heads", raw.num_attention_heads),
            ("num_key_value_heads", kv_heads),
            ("head_dim", raw.head_dim.unwrap_or(2)),
        ];
        for (name, size) in sizes {
            if !(1..=LARGEST_SIZE).contains(&size) {
                return Err(format!("{name} is {size}; expected 1 to {LARGEST_SIZE}"));
            }
        }
        if raw.num_attention_heads % kv_heads != 0 {
            return Err(format!(
                "num_attention_heads {} is not a multiple of num_key_value_heads {kv_heads}",
                raw.num_attention_heads
            ));
        }
        let head_dim = raw.head_dim.or(traits.head_dim).unwrap_or(raw.hidden_size / raw.num_attention_heads);
        if head_dim % 2 != 0 {
            return Err(format!("head_dim {head_dim} is odd; rotary embeddings need an even one"));
        }
        let (rope_theta, rope_scaling) =
            rope::read(raw.rope_theta, raw.rope_scaling.as_ref(), raw.rope_parameters.as_ref())?;
        Ok(ModelConfig {
            vocab_size: raw.vocab_size,
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            layers: raw.num_hidden_layers,
            heads: raw.num_attention_heads,
            kv_heads,
            head_dim,
            rms_norm_eps: raw.rms_norm_eps,
            rope_theta,
            rope_scaling,
            tie_word_embeddings: raw.tie_word_embeddings.unwrap_or(traits.tied_by_default),
            qkv_bias: traits.qkv_bias,
            output_bias: traits.output_bias,
            mlp_bias: traits.mlp_bias,
            activation: traits.activation,
            norm: traits.norm,
            norms_after: traits.norms_after,
            embedding_scale: traits.scaled_embedding.then(|| (raw.hidden_size as f64).sqrt()),
            query_scale: 1.0 / traits.query_width.unwrap_or(head_dim as f64).sqrt(),
            attention_softcap: traits.attention_softcap,
            final_softcap: traits.final_softcap,
            window: traits.window,
            max_position_embeddings: raw.max_position_embeddings,
            dtype: raw.dtype.or(raw.torch_dtype),
            initializer_range: raw.initializer_range,
        })
    }
}

/// No size of a model is larger: products of two of them stay far below what an i64 holds.
const LARGEST_SIZE: i64 = 1 << 30;

/// Returns the family, or says what is wrong with a configuration as a whole, before its fields are read.
fn family(config: &Value) -> std::result::Result<Family, String> {
    let Some(fields) = config.as_object() else {
        return Err("is no JSON object; expected {\"model_type\": \"llama\", \"hidden_size\": …}".into());
    };
    match fields.get("model_type") {
        Some(Value::String(family)) => family.parse(),
        Some(other) => {
            Err(format!("field \"model_type\" is {other}; expected the name of a family: {}", Family::known()))
        }
        None => Err(format!("field \"model_type\" is missing; expected the name of a family: {}", Family::known())),
    }
}

#[cfg(test)]
mod tests;
