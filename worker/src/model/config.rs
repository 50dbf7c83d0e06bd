//! The checkpoint's `config.json`: which decoder it describes.
//!
//! Reads both spellings in use: `rope_theta` + `rope_scaling` beside the other fields, and `rope_parameters` holding
//! all of it. Refuses what this decoder does not compute, by name; nothing is guessed.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// How rotary frequencies are scaled for long contexts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Frequencies as they are.
    Default,
    /// All positions divided by the factor.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1's: long wavelengths divided by the factor, short ones kept, a smooth passage between.
    Llama3 {
        /// The divisor of long wavelengths.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are scaled fully.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length of the first training.
        original_max_position_embeddings: f64,
    },
}

/// Shape and constants of a decoder of the Llama family.
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
    /// q, k, v and o carry biases.
    pub attention_bias: bool,
    /// gate, up and down carry biases.
    pub mlp_bias: bool,
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
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default = "default_act")]
    hidden_act: String,
    #[serde(default = "default_positions")]
    max_position_embeddings: i64,
    dtype: Option<String>,
    torch_dtype: Option<String>,
    #[serde(default = "default_range")]
    initializer_range: f64,
}

fn default_eps() -> f64 {
    1e-6
}
fn default_act() -> String {
    "silu".into()
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

    fn parse(file: &Path, bytes: &[u8]) -> Result<Self> {
        let value: Value = shared::input::parse_json(file, bytes)?;
        check_family(&value).map_err(|problem| Error::model(file, problem))?;
        let raw: Raw = shared::input::parse_json(file, bytes)?;
        Self::of(raw).map_err(|problem| Error::model(file, problem))
    }

    fn of(raw: Raw) -> std::result::Result<Self, String> {
        if raw.hidden_act != "silu" {
            return Err(format!("hidden_act {:?} is not supported for llama; expected \"silu\"", raw.hidden_act));
        }
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
        let head_dim = raw.head_dim.unwrap_or(raw.hidden_size / raw.num_attention_heads);
        if head_dim % 2 != 0 {
            return Err(format!("head_dim {head_dim} is odd; rotary embeddings need an even one"));
        }
        let (rope_theta, rope_scaling) = rope(&raw)?;
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
            tie_word_embeddings: raw.tie_word_embeddings,
            attention_bias: raw.attention_bias,
            mlp_bias: raw.mlp_bias,
            max_position_embeddings: raw.max_position_embeddings,
            dtype: raw.dtype.or(raw.torch_dtype),
            initializer_range: raw.initializer_range,
        })
    }
}

/// No size of a model is larger: products of two of them stay far below what an i64 holds.
const LARGEST_SIZE: i64 = 1 << 30;

/// Says what is wrong with a configuration as a whole, before its fields are read.
fn check_family(config: &Value) -> std::result::Result<(), String> {
    let Some(fields) = config.as_object() else {
        return Err("is no JSON object; expected {\"model_type\": \"llama\", \"hidden_size\": …}".into());
    };
    match fields.get("model_type") {
        Some(Value::String(family)) if family == "llama" => Ok(()),
        Some(Value::String(family)) => {
            Err(format!("model_type {family:?} is not supported; this build computes the \"llama\" family"))
        }
        Some(other) => Err(format!("field \"model_type\" is {other}; expected the name of a family, \"llama\"")),
        None => Err("field \"model_type\" is missing; expected the name of a family, \"llama\"".into()),
    }
}

fn rope(raw: &Raw) -> std::result::Result<(f64, RopeScaling), String> {
    let number = |map: &Map<String, Value>, key: &str| map.get(key).and_then(Value::as_f64);
    let theta = raw.rope_parameters.as_ref().and_then(|p| number(p, "rope_theta")).or(raw.rope_theta).unwrap_or(1e4);
    let Some(map) = raw.rope_parameters.as_ref().or(raw.rope_scaling.as_ref()) else {
        return Ok((theta, RopeScaling::Default));
    };
    let kind = map.get("rope_type").or_else(|| map.get("type")).and_then(Value::as_str).unwrap_or("default");
    let need = |key: &str| number(map, key).ok_or_else(|| format!("rope type {kind:?} needs a number {key:?}"));
    let scaling = match kind {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: need("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: need("factor")?,
            low_freq_factor: need("low_freq_factor")?,
            high_freq_factor: need("high_freq_factor")?,
            original_max_position_embeddings: need("original_max_position_embeddings")?,
        },
        other => return Err(format!("rope type {other:?} is not supported; known: default, linear, llama3")),
    };
    Ok((theta, scaling))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ModelConfig> {
        ModelConfig::parse(Path::new("config.json"), text.as_bytes())
    }

    fn problem(fields: &str) -> String {
        parse(&format!("{{{fields}}}")).unwrap_err().to_string()
    }

    const BASE: &str = r#""model_type": "llama", "vocab_size": 10, "hidden_size": 8, "intermediate_size": 16,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2"#;

    #[test]
    fn both_spellings_of_rope_give_the_same() {
        let scaling = r#""factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64, "rope_type": "llama3""#;
        let old = parse(&format!("{{{BASE}, \"rope_theta\": 5e5, \"rope_scaling\": {{{scaling}}}}}")).unwrap();
        let new = parse(&format!("{{{BASE}, \"rope_parameters\": {{\"rope_theta\": 5e5, {scaling}}}}}")).unwrap();
        assert_eq!(old, new);
        assert_eq!(old.rope_theta, 5e5);
    }

    #[test]
    fn unknown_family_and_rope_are_named() {
        let family = problem(&BASE.replace("llama", "mamba"));
        assert!(family.contains("\"mamba\""), "{family}");
        let rope = problem(&format!("{BASE}, \"rope_scaling\": {{\"type\": \"yarn\", \"factor\": 2}}"));
        assert!(rope.contains("\"yarn\""), "{rope}");
    }

    #[test]
    fn missing_and_senseless_fields_are_named() {
        let changed = |old: &str, new: &str| problem(&BASE.replace(old, new));
        assert_eq!(problem(r#""model_type": "llama""#), "config.json: field \"vocab_size\": is missing");
        assert!(changed("\"hidden_size\": 8", "\"hidden_size\": 0").contains("hidden_size is 0"));
        let layers = changed("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1000000000000000000");
        assert!(layers.contains("num_hidden_layers is 1000000000000000000; expected 1 to"), "{layers}");
    }

    #[test]
    fn fields_of_another_type_are_named() {
        let text = problem(&BASE.replace("\"hidden_size\": 8", "\"hidden_size\": \"32\""));
        assert!(
            text.starts_with("config.json: field \"hidden_size\": invalid type: string \"32\", expected"),
            "{text}"
        );
        let text = problem(&format!("{BASE}, \"rope_scaling\": 5"));
        assert!(text.starts_with("config.json: field \"rope_scaling\": "), "{text}");
        let text = problem(&BASE.replace("\"llama\"", "5"));
        assert!(text.starts_with("config.json: field \"model_type\" is 5; expected the name of a family"), "{text}");
        let text = problem("").replace("config.json: ", "");
        assert!(text.starts_with("field \"model_type\" is missing"), "{text}");
        let list = parse("[]").unwrap_err().to_string();
        assert!(list.starts_with("config.json: is no JSON object; expected"), "{list}");
    }
}
