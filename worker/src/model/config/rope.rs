//! Rotary frequencies in `config.json`: both spellings, and which scalings this decoder computes.

use serde_json::{Map, Value};

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

/// Reads base and scaling from `rope_parameters`, or else from `rope_theta` and `rope_scaling`.
///
/// # Errors
/// A scaling that is not computed, or a number that is missing or senseless; the message names it.
pub(super) fn read(
    rope_theta: Option<f64>,
    rope_scaling: Option<&Map<String, Value>>,
    rope_parameters: Option<&Map<String, Value>>,
) -> Result<(f64, RopeScaling), String> {
    let number = |map: &Map<String, Value>, key: &str| map.get(key).and_then(Value::as_f64);
    let theta = rope_parameters.and_then(|map| number(map, "rope_theta")).or(rope_theta).unwrap_or(1e4);
    if theta <= 0.0 {
        return Err(format!("rope_theta is {theta}; expected a positive number"));
    }
    let Some(map) = rope_parameters.or(rope_scaling) else {
        return Ok((theta, RopeScaling::Default));
    };
    if let Some((layers, _)) = map.iter().find(|(_, value)| value.is_object()) {
        return Err(format!("rope_parameters has settings of its own for {layers:?}; one for all layers is supported"));
    }
    if let Some(part) = number(map, "partial_rotary_factor").filter(|part| *part != 1.0) {
        return Err(format!("partial_rotary_factor is {part}; only whole heads (1.0) are supported"));
    }
    let kind = map.get("rope_type").or_else(|| map.get("type")).and_then(Value::as_str).unwrap_or("default");
    let need = |key: &str| {
        let found = number(map, key).filter(|value| *value > 0.0);
        found.ok_or_else(|| format!("rope type {kind:?} needs a positive number {key:?}"))
    };
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
