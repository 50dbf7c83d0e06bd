//! Rotary positions and causal attention over packs.

use tch::{Device, Kind, Tensor};

use super::config::{AttentionRule, ModelConfig, RopeScaling};
use super::decoder::native_bf16;
use super::pack::Pack;

/// Rotary frequencies of a model.
#[derive(Debug)]
pub struct Rope {
    /// [head_dim / 2], f32
    inverse_frequencies: Tensor,
}

impl Rope {
    /// Computes the scaled inverse frequencies.
    pub fn new(config: &ModelConfig, device: Device) -> Self {
        let half = config.head_dim / 2;
        let frequencies: Vec<f32> = (0..half)
            .map(|i| {
                let plain = 1.0 / config.rope_theta.powf(2.0 * i as f64 / config.head_dim as f64);
                scaled(plain, config.rope_scaling) as f32
            })
            .collect();
        Rope { inverse_frequencies: Tensor::from_slice(&frequencies).to_device(device) }
    }

    /// Returns (cos, sin) for positions [n]: each [n, 1, head_dim] in the type of the residual stream.
    pub fn at(&self, positions: &Tensor, dtype: Kind) -> (Tensor, Tensor) {
        let angles = positions.to_kind(Kind::Float).unsqueeze(-1) * &self.inverse_frequencies;
        let angles = Tensor::cat(&[&angles, &angles], -1).unsqueeze(1);
        (angles.cos().to_kind(dtype), angles.sin().to_kind(dtype))
    }
}

fn scaled(frequency: f64, scaling: RopeScaling) -> f64 {
    match scaling {
        RopeScaling::Default => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let wavelength = std::f64::consts::TAU / frequency;
            let original = original_max_position_embeddings;
            if wavelength < original / high_freq_factor {
                frequency
            } else if wavelength > original / low_freq_factor {
                frequency / factor
            } else {
                let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        }
    }
}

/// Rotates x [n, heads, head_dim] by the (cos, sin) of its positions; the two halves of a head form the pairs.
pub fn rotate(x: &Tensor, (cos, sin): &(Tensor, Tensor)) -> Tensor {
    let halves = x.chunk(2, -1);
    let turned = Tensor::cat(&[halves[1].neg(), halves[0].shallow_clone()], -1);
    x * cos + turned * sin
}

/// Causal attention within each sequence of a pack: q [n, heads, head_dim], k and v [n, kv_heads, head_dim] to
/// [n, heads·head_dim].
pub fn packed(rule: AttentionRule, pack: &Pack, q: Tensor, k: Tensor, v: Tensor) -> Tensor {
    let (b, t) = (pack.sequences as i64, pack.longest as i64);
    let (heads, head_dim) = (q.size()[1], q.size()[2]);
    let pad = |x: &Tensor| {
        let (heads, head_dim) = (x.size()[1], x.size()[2]);
        x.index_select(0, &pack.pad_index).view([b, t, heads, head_dim]).transpose(1, 2)
    };
    let window = rule.window.filter(|window| *window < t).map(|window| {
        let all = Tensor::ones([1, 1, t, t], (Kind::Bool, q.device()));
        all.tril(0).logical_and(&all.triu(1 - window))
    });
    let out = attend(rule, &pad(&q), &pad(&k), &pad(&v), window.as_ref(), window.is_none());
    out.transpose(1, 2).reshape([b * t, heads * head_dim]).index_select(0, &pack.unpad_index)
}

/// Scaled dot-product attention: q [b, heads, t, head_dim], k and v [b, kv_heads, s, head_dim] to
/// [b, heads, t, head_dim]. `mask` (true = may look) is [b or 1, 1, t, s], the rule's window already in it; `causal` is
/// for none, and needs t = s.
pub fn attend(rule: AttentionRule, q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>, causal: bool) -> Tensor {
    let dtype = q.kind();
    let wide = dtype == Kind::BFloat16 && !native_bf16(q.device());
    let compute = if wide { Kind::Float } else { dtype };
    let groups = q.size()[1] / k.size()[1];
    let widen = |x: &Tensor| {
        let x = x.to_kind(compute);
        if groups == 1 { x } else { x.repeat_interleave_self_int(groups, 1, None) }
    };
    let (q, k, v) = (q.to_kind(compute), widen(k), widen(v));
    let out = match rule.softcap {
        None => Tensor::scaled_dot_product_attention(&q, &k, &v, mask, 0.0, causal, rule.scale, false),
        Some(cap) => capped(&q, &k, &v, mask, rule.scale, cap),
    };
    out.to_kind(dtype)
}

/// Attention with a soft-cap c·tanh(x/c) on the scaled products, which libtorch's own has not; causal without a mask.
fn capped(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>, scale: f64, cap: f64) -> Tensor {
    let scores = (q.matmul(&k.transpose(2, 3)) * (scale / cap)).tanh() * cap;
    let hidden = match mask {
        Some(mask) => mask.logical_not(),
        None => Tensor::ones([q.size()[2], k.size()[2]], (Kind::Bool, q.device())).triu(1),
    };
    let weights = scores.to_kind(Kind::Float).masked_fill(&hidden, f64::NEG_INFINITY).softmax(-1, Kind::Float);
    weights.to_kind(q.kind()).matmul(v)
}
