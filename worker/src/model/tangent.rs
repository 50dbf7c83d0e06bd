//! The forward pass of a pack together with its derivative along a direction in adapter space: d/dε of everything at
//! θ + ε·G, ε = 0 (forward mode; spec 5.6).
//!
//! One pass, no graph: values x and tangents ẋ go through the layers side by side, in one tensor whose first half of rows
//! are the values, so that a linear layer is one product for both. The adapter's own move enters at the layers that carry
//! one: d(B·A·x) = G_B·A·x + B·G_A·x + B·A·ẋ. Everything else is the chain rule written out; where libtorch has the
//! backward pass of a function whose Jacobian is symmetric or diagonal, that is the forward derivative too.

use tch::{Kind, Tensor};

use super::attention::{self, Dual};
use super::config::{Activation, NormWeight};
use super::decoder::{Decoder, Linear};
use super::lora::{Factors, Lora, Module};
use super::pack::Pack;

/// An adapter and the direction it is moved along.
#[derive(Clone, Copy)]
pub struct Move<'a> {
    /// θ
    pub adapter: &'a Lora,
    /// (G_A, G_B): same shapes as the adapter's factors.
    pub direction: &'a Lora,
    /// B = 0 everywhere: the adapter computes nothing, and G_A moves nothing.
    pub is_fresh: bool,
}

/// Hidden states after the final norm at the positions that predict scored tokens, in pack order, and their derivative:
/// [m, d] each.
pub struct Along {
    /// h
    pub hidden: Tensor,
    /// dh/dε
    pub tangent: Tensor,
}

/// What a pass shares over its layers.
struct Pass<'a> {
    decoder: &'a Decoder,
    moved: Move<'a>,
    /// Rows of values: as many rows of tangents follow.
    n: i64,
}

impl Decoder {
    /// Computes the hidden states that predict a pack's scored tokens, and how they move.
    pub fn forward_along(&self, pack: &Pack, moved: Move<'_>) -> Along {
        tch::no_grad(|| {
            let attention = self.attention_of(pack);
            let x = self.embed(&pack.tokens);
            let pass = Pass { decoder: self, moved, n: x.size()[0] };
            let mut x = Tensor::cat(&[&x, &x.zeros_like()], 0);
            for layer in 0..self.config.layers {
                x = pass.block(layer, x, |q, k, v| attention.along(self, layer, q, k, v));
            }
            let rows = Tensor::cat(&[&pack.scored_rows, &(&pack.scored_rows + pass.n)], 0);
            let m = pack.scored_rows.size()[0];
            let last = Pass { n: m, ..pass };
            let x = last.rms_norm(&x.index_select(0, &rows), self.final_norm());
            Along { hidden: x.narrow(0, 0, m), tangent: x.narrow(0, m, m) }
        })
    }
}

impl Pass<'_> {
    /// Returns the values and the tangents of a tensor.
    fn halves(&self, x: &Tensor) -> Dual {
        (x.narrow(0, 0, self.n), x.narrow(0, self.n, self.n))
    }

    /// One layer, x [2n, d]; as [`Decoder::block`].
    fn block(&self, index: usize, x: Tensor, attend: impl FnOnce(Dual, Dual, Dual) -> Dual) -> Tensor {
        let config = &self.decoder.config;
        let layer = self.decoder.layer(index);
        let heads = |module: Module, x: &Tensor, heads: i64| {
            let (value, tangent) = self.halves(&self.linear(index, module, x));
            let shape = [self.n, heads, config.head_dim];
            (value.view(shape), tangent.view(shape))
        };
        let normed = |x: Tensor, norm: &Option<Tensor>| match norm {
            Some(norm) => self.rms_norm(&x, norm),
            None => x,
        };
        let h = self.rms_norm(&x, &layer.before_attention);
        let q = heads(Module::Q, &h, config.heads);
        let (k, v) = (heads(Module::K, &h, config.kv_heads), heads(Module::V, &h, config.kv_heads));
        let (attended, moved) = attend(q, k, v);
        let attended = Tensor::cat(&[attended, moved], 0);
        let x = x + normed(self.linear(index, Module::O, &attended), &layer.after_attention);
        let h = self.rms_norm(&x, &layer.before_mlp);
        let (gate, gate_moved) = self.halves(&self.linear(index, Module::Gate, &h));
        let (up, up_moved) = self.halves(&self.linear(index, Module::Up, &h));
        let (active, active_moved) = match config.activation {
            Activation::Silu => (gate.silu(), gate.silu_backward(&gate_moved)),
            Activation::GeluTanh => (gate.gelu("tanh"), gate.gelu_backward(&gate_moved, "tanh")),
        };
        let moved = (active_moved * &up).addcmul(&active, &up_moved);
        let product = Tensor::cat(&[active * up, moved], 0);
        x + normed(self.linear(index, Module::Down, &product), &layer.after_mlp)
    }

    /// x̂ = x·r with r = (mean(x²) + ε)^−½ moves by r·ẋ − x̂·mean(x̂·r·ẋ).
    fn rms_norm(&self, x: &Tensor, weight: &Tensor) -> Tensor {
        let decoder = self.decoder;
        let d = x.size()[1] as f64;
        let (value, tangent) = self.halves(&x.to_kind(Kind::Float));
        let mean = |a: &Tensor, b: &Tensor| Tensor::linalg_vecdot(a, b, -1).unsqueeze(-1) / d;
        let r = (mean(&value, &value) + decoder.config.rms_norm_eps).rsqrt();
        let (normed, tangent) = (value * &r, tangent * &r);
        let moved = &tangent - &normed * mean(&normed, &tangent);
        let both = Tensor::cat(&[normed, moved], 0);
        match decoder.config.norm {
            NormWeight::Plain => both.to_kind(decoder.dtype) * weight.to_kind(decoder.dtype),
            NormWeight::FromOne => (both * (weight.to_kind(Kind::Float) + 1.0)).to_kind(decoder.dtype),
        }
    }

    /// x [2n, in] to [2n, out]; as [`Decoder`]'s, whose roundings it follows.
    fn linear(&self, index: usize, module: Module, x: &Tensor) -> Tensor {
        let decoder = self.decoder;
        let Linear { weight, bias } = &decoder.layer(index).linears[module as usize];
        let x = x.to_kind(decoder.store());
        let mut out = x.matmul(&weight.tr());
        let (mut value, mut tangent) = self.halves(&out);
        if let Some(bias) = bias {
            let _ = value.g_add_(bias);
        }
        let factors = |adapter: &Lora| {
            let scale = adapter.config.scale();
            let Factors { a, b } = adapter.get(index, module)?;
            Some((a.to_kind(decoder.store()), (b * scale).to_kind(decoder.store())))
        };
        if let Some((a, b)) = factors(self.moved.adapter) {
            let (x_value, low) = (x.narrow(0, 0, self.n), x.matmul(&a.tr()));
            if !self.moved.is_fresh {
                let _ = out.addmm_(&low, &b.tr());
            }
            if let Some((g_a, g_b)) = factors(self.moved.direction) {
                let _ = tangent.addmm_(&low.narrow(0, 0, self.n), &g_b.tr());
                if !self.moved.is_fresh {
                    // The direction's scale is in g_b alone; B brings its own.
                    let _ = tangent.addmm_(&x_value.matmul(&g_a.tr()), &b.tr());
                }
            }
        }
        out.to_kind(decoder.dtype)
    }
}

impl super::decoder::PackAttention {
    /// As [`super::decoder::PackAttention::apply`], with tangents: each [n, heads, head_dim] to [n, heads·head_dim].
    fn along(&self, decoder: &Decoder, layer: usize, q: Dual, k: Dual, v: Dual) -> Dual {
        let rotate = |x: Dual| (attention::rotate(&x.0, self.rope()), attention::rotate(&x.1, self.rope()));
        let rule = decoder.config.attention(layer);
        attention::packed_along(rule, self.masks(rule), rotate(q), rotate(k), v)
    }
}
