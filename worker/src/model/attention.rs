//! Rotary positions and causal attention over packs.

use tch::{Device, Kind, Tensor};

use super::config::{ModelConfig, RopeScaling};
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
pub fn packed(config: &ModelConfig, pack: &Pack, q: Tensor, k: Tensor, v: Tensor) -> Tensor {
    let (b, t) = (pack.sequences as i64, pack.longest as i64);
    let pad = |x: &Tensor| {
        let (heads, head_dim) = (x.size()[1], x.size()[2]);
        x.index_select(0, &pack.pad_index).view([b, t, heads, head_dim]).transpose(1, 2)
    };
    let out = attend(config, &pad(&q), &pad(&k), &pad(&v), None, true);
    out.transpose(1, 2).reshape([b * t, config.heads * config.head_dim]).index_select(0, &pack.unpad_index)
}

/// Scaled dot-product attention: q [b, heads, t, head_dim], k and v [b, kv_heads, s, head_dim] to
/// [b, heads, t, head_dim]. `mask` (true = may look) is [b, 1, t, s]; `causal` needs t = s.
pub fn attend(config: &ModelConfig, q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>, causal: bool) -> Tensor {
    let dtype = q.kind();
    let wide = dtype == Kind::BFloat16 && !native_bf16(q.device());
    let compute = if wide { Kind::Float } else { dtype };
    let groups = config.heads / config.kv_heads;
    let widen = |x: &Tensor| {
        let x = x.to_kind(compute);
        if groups == 1 { x } else { x.repeat_interleave_self_int(groups, 1, None) }
    };
    let out =
        Tensor::scaled_dot_product_attention(&q.to_kind(compute), &widen(k), &widen(v), mask, 0.0, causal, None, false);
    out.to_kind(dtype)
}
