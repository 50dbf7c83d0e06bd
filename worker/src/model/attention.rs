//! Rotary positions and attention, over packs and over a cache.

use tch::{Device, Kind, Tensor};

use super::config::{AttentionRule, ModelConfig, RopeScaling};
use super::pack::{Block, Pack};
use crate::placement::{self, Kernel};

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
        Rope { inverse_frequencies: placement::upload(&frequencies, device) }
    }

    /// Returns cos and sin for positions [n], the sin of a head's first half with the sign it has in a rotation: each
    /// [n, 1, head_dim] in the type of the residual stream.
    pub fn at(&self, positions: &Tensor, dtype: Kind) -> (Tensor, Tensor) {
        let angles = positions.to_kind(Kind::Float).unsqueeze(-1) * &self.inverse_frequencies;
        let signed = Tensor::cat(&[-&angles, angles.shallow_clone()], -1).unsqueeze(1);
        (signed.cos().to_kind(dtype), signed.sin().to_kind(dtype))
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

/// Rotates x [n, heads, head_dim] by the (cos, signed sin) of its positions; the two halves of a head form the pairs.
pub fn rotate(x: &Tensor, (cos, sin): &(Tensor, Tensor)) -> Tensor {
    let half = x.size()[2] / 2;
    (x * cos).addcmul(&x.roll([half], [2]), sin)
}

/// Returns what is added to the scores of each block of a pack: 0 where a row sees another, −∞ where it does not.
/// Each is [t, t] of the type that attention computes in.
pub fn masks(pack: &Pack, window: Option<i64>, kind: Kind, device: Device) -> Vec<Tensor> {
    let mask = |block: &Block| {
        let t = block.positions.len() as i64;
        let hidden = placement::upload(&block.visible(window), device).logical_not().view([t, t]);
        Tensor::zeros([t, t], (kind, device)).masked_fill(&hidden, f64::NEG_INFINITY)
    };
    pack.blocks.iter().map(mask).collect()
}

/// Attention within each block of a pack: q [n, heads, head_dim], k and v [n, kv_heads, head_dim] to
/// [n, heads·head_dim]. `masks` are those of the blocks; `kernel` is one that can compute the rule. Products round scores to
/// the type of q, as in transformers' eager attention.
pub fn packed(kernel: Kernel, rule: AttentionRule, masks: &[Tensor], q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
    let compute = placement::held_as(q.kind(), q.device());
    let lengths: Vec<i64> = masks.iter().map(|mask| mask.size()[0]).collect();
    let split = |x: &Tensor| x.to_kind(compute).split_with_sizes(&lengths, 0);
    let (q_blocks, k_blocks, v_blocks) = (split(q), split(k), split(v));
    let blocks = masks.iter().zip(q_blocks.iter().zip(k_blocks.iter().zip(&v_blocks)));
    let attend = match kernel {
        Kernel::Products => attend_block,
        Kernel::Fused => attend_block_fused,
    };
    let attended: Vec<Tensor> = blocks.map(|(mask, (q, (k, v)))| attend(rule, mask, q, k, v)).collect();
    Tensor::cat(&attended, 0).to_kind(q.kind())
}

/// Attention of one block: q [t, heads, head_dim], k and v [t, kv_heads, head_dim], mask [t, t] to [t, heads·head_dim].
/// The query heads of one key head are rows of one matrix, so that keys and values are never repeated.
fn attend_block(rule: AttentionRule, mask: &Tensor, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
    let (t, heads, head_dim) = (q.size()[0], q.size()[1], q.size()[2]);
    let kv_heads = k.size()[1];
    let heads_of_key = heads / kv_heads;
    let q = q.view([t, kv_heads, heads_of_key, head_dim]).permute([1, 2, 0, 3]);
    let q = q.reshape([kv_heads, heads_of_key * t, head_dim]);
    let mask = mask.repeat([heads_of_key, 1]);
    let k = k.permute([1, 2, 0]);
    let scores = match rule.softcap {
        None => mask.baddbmm(&q, &k, 1.0, rule.scale),
        Some(cap) => (q.bmm(&k) * (rule.scale / cap)).tanh() * cap + mask,
    };
    let out = scores.softmax(-1, scores.kind()).bmm(&v.transpose(0, 1));
    let out = out.view([kv_heads, heads_of_key, t, head_dim]).permute([2, 0, 1, 3]);
    out.reshape([t, heads * head_dim])
}

/// A value and its derivative along a direction, of one shape.
pub type Dual = (Tensor, Tensor);

/// As [`packed`], with the derivative of everything: each value and tangent has the shapes given there.
pub fn packed_along(rule: AttentionRule, masks: &[Tensor], q: Dual, k: Dual, v: Dual) -> Dual {
    let (kind, compute) = (q.0.kind(), placement::held_as(q.0.kind(), q.0.device()));
    let lengths: Vec<i64> = masks.iter().map(|mask| mask.size()[0]).collect();
    let split = |x: Dual| {
        let parts = |x: Tensor| x.to_kind(compute).split_with_sizes(&lengths, 0).into_iter();
        parts(x.0).zip(parts(x.1))
    };
    let blocks = masks.iter().zip(split(q).zip(split(k).zip(split(v))));
    let attended = blocks.map(|(mask, (q, (k, v)))| attend_block_along(rule, mask, &q, &k, &v));
    let (values, tangents): (Vec<Tensor>, Vec<Tensor>) = attended.unzip();
    (Tensor::cat(&values, 0).to_kind(kind), Tensor::cat(&tangents, 0).to_kind(kind))
}

/// As [`attend_block`], with S = scale·q·kᵀ moving by scale·(q̇·kᵀ + q·k̇ᵀ), through the soft-cap's slope, softmax P by
/// P∘(Ṡ − Σ P∘Ṡ), and P·v by Ṗ·v + P·v̇.
fn attend_block_along(rule: AttentionRule, mask: &Tensor, q: &Dual, k: &Dual, v: &Dual) -> Dual {
    let (t, heads, head_dim) = (q.0.size()[0], q.0.size()[1], q.0.size()[2]);
    let kv_heads = k.0.size()[1];
    let heads_of_key = heads / kv_heads;
    let rows = |x: &Tensor| {
        let x = x.view([t, kv_heads, heads_of_key, head_dim]).permute([1, 2, 0, 3]);
        x.reshape([kv_heads, heads_of_key * t, head_dim])
    };
    let (q, q_moved) = (rows(&q.0), rows(&q.1));
    let columns = |x: &Tensor| x.permute([1, 2, 0]);
    let (k, k_moved) = (columns(&k.0), columns(&k.1));
    let mask = mask.repeat([heads_of_key, 1]);
    let scores_moved = q_moved.bmm(&k).baddbmm(&q, &k_moved, rule.scale, rule.scale);
    let (scores, scores_moved) = match rule.softcap {
        None => (mask.baddbmm(&q, &k, 1.0, rule.scale), scores_moved),
        Some(cap) => {
            let capped = (q.bmm(&k) * (rule.scale / cap)).tanh();
            let slope: Tensor = 1.0 - capped.square();
            (capped * cap + mask, scores_moved * slope)
        }
    };
    let weights = scores.softmax(-1, scores.kind());
    // The Jacobian of a softmax is symmetric.
    let weights_moved = Tensor::internal_softmax_backward_data(&scores_moved, &weights, -1, weights.kind());
    let (v, v_moved) = (v.0.transpose(0, 1), v.1.transpose(0, 1));
    let moved = weights_moved.bmm(&v).baddbmm(&weights, &v_moved, 1.0, 1.0);
    let together = |out: Tensor| {
        let out = out.view([kv_heads, heads_of_key, t, head_dim]).permute([2, 0, 1, 3]);
        out.reshape([t, heads * head_dim])
    };
    (together(weights.bmm(&v)), together(moved))
}

/// As [`attend_block`] without a soft-cap, by libtorch's fused kernel, which wants keys and values for every query head.
fn attend_block_fused(rule: AttentionRule, mask: &Tensor, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
    let (t, heads, head_dim) = (q.size()[0], q.size()[1], q.size()[2]);
    let groups = heads / k.size()[1];
    let of_heads = |x: &Tensor, repeat: i64| widened(&x.transpose(0, 1).unsqueeze(0), repeat);
    let (q, k, v) = (of_heads(q, 1), of_heads(k, groups), of_heads(v, groups));
    let mask = mask.view([1, 1, t, t]);
    let out = Tensor::scaled_dot_product_attention(&q, &k, &v, Some(&mask), 0.0, false, rule.scale, false);
    out.squeeze_dim(0).transpose(0, 1).reshape([t, heads * head_dim])
}

/// Repeats the heads of x [b, heads, n, head_dim] for `groups` query heads each.
fn widened(x: &Tensor, groups: i64) -> Tensor {
    if groups == 1 { x.shallow_clone() } else { x.repeat_interleave_self_int(groups, 1, None) }
}

/// Scaled dot-product attention: q [b, heads, t, head_dim], k and v [b, kv_heads, s, head_dim] to
/// [b, heads, t, head_dim]. `mask` (true = may look) is [b, 1, t, s], the rule's window already in it.
pub fn attend(rule: AttentionRule, q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor) -> Tensor {
    let dtype = q.kind();
    let compute = placement::held_as(dtype, q.device());
    let groups = q.size()[1] / k.size()[1];
    let widen = |x: &Tensor| widened(&x.to_kind(compute), groups);
    let (q, k, v) = (q.to_kind(compute), widen(k), widen(v));
    let out = match rule.softcap {
        None => Tensor::scaled_dot_product_attention(&q, &k, &v, Some(mask), 0.0, false, rule.scale, false),
        Some(cap) => {
            let scores = (q.matmul(&k.transpose(2, 3)) * (rule.scale / cap)).tanh() * cap;
            let weights = scores.masked_fill(&mask.logical_not(), f64::NEG_INFINITY).softmax(-1, compute);
            weights.matmul(&v)
        }
    };
    out.to_kind(dtype)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::pack::Want;
    use crate::text::Sequence;

    /// Two blocks, one with two responses.
    fn pack() -> Pack {
        let sequence = |tokens: usize, prompt_len: usize| Sequence {
            tokens: (0..tokens as i64).collect(),
            scored: vec![prompt_len],
            kl: vec![prompt_len - 1],
            prompt_len,
            cut: 0,
        };
        let (first, second, alone) = (sequence(9, 4), sequence(7, 4), sequence(5, 2));
        let want = Want::LOG_PROB;
        Pack::new(&[vec![(&first, want), (&second, want)], vec![(&alone, want)]], Device::Cpu)
    }

    /// Output of attention to q, k and v, and their gradients.
    fn outputs(kernel: Kernel, window: Option<i64>, pack: &Pack, qkv: &[Tensor; 3], slopes: &Tensor) -> Vec<Tensor> {
        let [q, k, v] = qkv.each_ref().map(|tensor| tensor.copy().set_requires_grad(true));
        let rule = AttentionRule { scale: 0.3, softcap: None, window };
        let masks = masks(pack, window, Kind::Float, Device::Cpu);
        let out = packed(kernel, rule, &masks, &q, &k, &v);
        let gradients = Tensor::run_backward(&[(&out * slopes).sum(Kind::Float)], &[&q, &k, &v], false, false);
        std::iter::once(out.detach()).chain(gradients).collect()
    }

    #[test]
    fn both_kernels_give_the_same_numbers_and_gradients() {
        let pack = pack();
        let n = pack.rows.len() as i64;
        // Drawn once: other tests draw from the same generator meanwhile.
        let draw = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
        let (qkv, slopes) = ([6, 2, 2].map(|heads| draw(&[n, heads, 8])), draw(&[n, 48]));
        for window in [None, Some(3)] {
            let [products, fused] =
                [Kernel::Products, Kernel::Fused].map(|kernel| outputs(kernel, window, &pack, &qkv, &slopes));
            for (what, (a, b)) in ["out", "q", "k", "v"].iter().zip(products.iter().zip(&fused)) {
                let apart = (a - b).abs().max().double_value(&[]) / a.abs().max().double_value(&[]);
                assert!(apart < 1e-5, "{what} with window {window:?}: {apart:e}");
            }
        }
    }
}
