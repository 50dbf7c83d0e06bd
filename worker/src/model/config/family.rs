//! What a family's name means beyond its `config.json`: defaults of fields that are left out, and what is fixed.

use std::str::FromStr;

use super::{Activation, LayerWindows, NormWeight, Raw, Window};

/// A family of decoders, by its `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Llama,
    Qwen2,
    Gemma2,
}

impl Family {
    const ALL: [Family; 3] = [Family::Llama, Family::Qwen2, Family::Gemma2];

    fn model_type(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Qwen2 => "qwen2",
            Family::Gemma2 => "gemma2",
        }
    }

    /// The families, for messages.
    pub(super) fn known() -> String {
        Family::ALL.map(|family| format!("{:?}", family.model_type())).join(", ")
    }
}

impl FromStr for Family {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Family::ALL
            .into_iter()
            .find(|family| family.model_type() == name)
            .ok_or_else(|| format!("model_type {name:?} is not supported; this build computes {}", Family::known()))
    }
}

/// The part of a configuration that differs between families.
pub(super) struct Traits {
    pub(super) tied_by_default: bool,
    /// Width of a head where the file gives none; `None` = d / heads.
    pub(super) head_dim: Option<i64>,
    pub(super) qkv_bias: bool,
    pub(super) output_bias: bool,
    pub(super) mlp_bias: bool,
    pub(super) activation: Activation,
    pub(super) norm: NormWeight,
    pub(super) norms_after: bool,
    pub(super) scaled_embedding: bool,
    /// n in the query scale 1/√n; `None` = the width of a head.
    pub(super) query_width: Option<f64>,
    pub(super) attention_softcap: Option<f64>,
    pub(super) final_softcap: Option<f64>,
    pub(super) window: Option<Window>,
}

impl Traits {
    /// # Errors
    /// A setting this decoder does not compute, by name.
    pub(super) fn of(family: Family, raw: &Raw) -> Result<Self, String> {
        let gated_by = match family {
            Family::Gemma2 => {
                activation("hidden_activation", raw.hidden_activation.as_deref().unwrap_or("gelu_pytorch_tanh"))?
            }
            _ => activation("hidden_act", raw.hidden_act.as_deref().unwrap_or("silu"))?,
        };
        let plain = Traits {
            tied_by_default: false,
            head_dim: None,
            qkv_bias: raw.attention_bias,
            output_bias: raw.attention_bias,
            mlp_bias: raw.mlp_bias,
            activation: gated_by,
            norm: NormWeight::Plain,
            norms_after: false,
            scaled_embedding: false,
            query_width: None,
            attention_softcap: None,
            final_softcap: None,
            window: None,
        };
        Ok(match family {
            Family::Llama => plain,
            Family::Qwen2 => Traits {
                qkv_bias: true,
                output_bias: false,
                mlp_bias: false,
                window: if raw.use_sliding_window { qwen2_window(raw)? } else { None },
                ..plain
            },
            Family::Gemma2 => {
                if raw.use_bidirectional_attention == Some(true) {
                    return Err("use_bidirectional_attention is true; this decoder is causal".into());
                }
                Traits {
                    tied_by_default: true,
                    head_dim: Some(256),
                    mlp_bias: false,
                    norm: NormWeight::FromOne,
                    norms_after: true,
                    scaled_embedding: true,
                    query_width: Some(positive("query_pre_attn_scalar", raw.query_pre_attn_scalar.unwrap_or(256.0))?),
                    attention_softcap: softcap("attn_logit_softcapping", raw.attn_logit_softcapping, 50.0)?,
                    final_softcap: softcap("final_logit_softcapping", raw.final_logit_softcapping, 30.0)?,
                    window: window(raw, LayerWindows::Even)?,
                    ..plain
                }
            }
        })
    }
}

fn activation(field: &str, name: &str) -> Result<Activation, String> {
    match name {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        other => Err(format!("{field} {other:?} is not supported; known: \"silu\", \"gelu_pytorch_tanh\"")),
    }
}

fn positive(field: &str, value: f64) -> Result<f64, String> {
    if value > 0.0 { Ok(value) } else { Err(format!("{field} is {value}; expected a positive number")) }
}

/// A field that is left out has the family's default; `null` switches it off.
fn softcap(field: &str, value: Option<Option<f64>>, default: f64) -> Result<Option<f64>, String> {
    value.unwrap_or(Some(default)).map(|cap| positive(field, cap)).transpose()
}

/// Qwen2's windows are on the layers from `max_window_layers` on.
fn qwen2_window(raw: &Raw) -> Result<Option<Window>, String> {
    window(raw, LayerWindows::From(raw.max_window_layers.unwrap_or(28)))
}

/// The window of the layers that `layer_types` names, or of `otherwise` where there is no such list.
fn window(raw: &Raw, otherwise: LayerWindows) -> Result<Option<Window>, String> {
    let Some(size) = raw.sliding_window.unwrap_or(Some(4096)) else { return Ok(None) };
    if size < 1 {
        return Err(format!("sliding_window is {size}; expected at least 1"));
    }
    let Some(types) = &raw.layer_types else { return Ok(Some(Window { size, layers: otherwise })) };
    if types.len() != raw.num_hidden_layers {
        return Err(format!("layer_types has {} entries for {} layers", types.len(), raw.num_hidden_layers));
    }
    let listed = types.iter().map(|kind| match kind.as_str() {
        "sliding_attention" => Ok(true),
        "full_attention" => Ok(false),
        other => Err(format!("layer_types contains {other:?}; known: \"full_attention\", \"sliding_attention\"")),
    });
    Ok(Some(Window { size, layers: LayerWindows::Listed(listed.collect::<Result<_, _>>()?) }))
}
