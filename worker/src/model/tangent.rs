//! The forward pass of a pack together with its derivative along a direction in adapter space or in the space of the
//! model's own weights: d/dε of everything at θ + ε·G, ε = 0 (forward mode; spec 5.6).
//!
//! One pass, no graph: values x and tangents ẋ go through the layers side by side, in one tensor whose first half of rows
//! are the values, so that a linear layer is one product for both. What moves enters at the layers that carry it: for an
//! adapter d(B·A·x) = G_B·A·x + B·G_A·x + B·A·ẋ, for a weight d(W·x) = G_W·x + W·ẋ, and likewise for biases, norms and the
//! embedding. Everything else is the chain rule written out; where libtorch has the backward pass of a function whose
//! Jacobian is symmetric or diagonal, that is the forward derivative too.

use tch::{Kind, Tensor};

use super::attention::{self, Dual};
use super::config::{Activation, NormWeight};
use super::decoder::Decoder;
use super::lora::{Factors, Lora, Module};
use super::pack::Pack;
use super::parameters::Linear;
use super::weight_space::{LayerMove, Weights};

/// What moves, and where to.
#[derive(Clone, Copy)]
pub enum Direction<'a> {
    /// (G_A, G_B): same shapes as the adapter's factors.
    Adapter(&'a Lora),
    /// G_W of the model's own weights; the adapter stays.
    Weights(&'a Weights),
}

impl<'a> Direction<'a> {
    /// Returns the moves of the model's own weights.
    fn weights(self) -> Option<&'a Weights> {
        match self {
            Direction::Adapter(_) => None,
            Direction::Weights(weights) => Some(weights),
        }
    }

    /// Returns the move of the LM head: [vocabulary, d].
    pub fn head(self) -> Option<&'a Tensor> {
        self.weights()?.head()
    }
}

/// A model with its adapter, and the direction in which it is moved.
#[derive(Clone, Copy)]
pub struct Move<'a> {
    /// The adapter, whose term is computed.
    pub adapter: &'a Lora,
    /// G
    pub direction: Direction<'a>,
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
            let weights = moved.direction.weights();
            let x = self.embed(&pack.tokens);
            let pass = Pass { decoder: self, moved, n: x.size()[0] };
            let tangent = match weights.and_then(Weights::embed) {
                Some(table) => self.look_up(table, &pack.tokens),
                None => x.zeros_like(),
            };
            let mut x = Tensor::cat(&[x, tangent], 0);
            for layer in 0..self.config.layers {
                x = pass.block(layer, x, |q, k, v| attention.along(self, layer, q, k, v));
            }
            let rows = Tensor::cat(&[&pack.scored_rows, &(&pack.scored_rows + pass.n)], 0);
            let m = pack.scored_rows.size()[0];
            let last = Pass { n: m, ..pass };
            let norm = &self.parameters().norm;
            let x = last.rms_norm(&x.index_select(0, &rows), norm, weights.and_then(Weights::final_norm));
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
        let layer = &self.decoder.parameters().layers[index];
        let moves = self.moves(index);
        let heads = |module: Module, x: &Tensor, heads: i64| {
            let (value, tangent) = self.halves(&self.linear(index, module, x));
            let shape = [self.n, heads, config.head_dim];
            (value.view(shape), tangent.view(shape))
        };
        let normed = |x: Tensor, norm: &Option<Tensor>, moved: Option<&Tensor>| match norm {
            Some(norm) => self.rms_norm(&x, norm, moved),
            None => x,
        };
        let h = self.rms_norm(&x, &layer.before_attention, moves.and_then(|to| to.before_attention.as_ref()));
        let q = heads(Module::Q, &h, config.heads);
        let (k, v) = (heads(Module::K, &h, config.kv_heads), heads(Module::V, &h, config.kv_heads));
        let (attended, moved) = attend(q, k, v);
        let attended = Tensor::cat(&[attended, moved], 0);
        let norm_moved = moves.and_then(|to| to.after_attention.as_ref()?.as_ref());
        let x = x + normed(self.linear(index, Module::O, &attended), &layer.after_attention, norm_moved);
        let h = self.rms_norm(&x, &layer.before_mlp, moves.and_then(|to| to.before_mlp.as_ref()));
        let (gate, gate_moved) = self.halves(&self.linear(index, Module::Gate, &h));
        let (up, up_moved) = self.halves(&self.linear(index, Module::Up, &h));
        let (active, active_moved) = match config.activation {
            Activation::Silu => (gate.silu(), gate.silu_backward(&gate_moved)),
            Activation::GeluTanh => (gate.gelu("tanh"), gate.gelu_backward(&gate_moved, "tanh")),
        };
        let moved = (active_moved * &up).addcmul(&active, &up_moved);
        let product = Tensor::cat(&[active * up, moved], 0);
        let norm_moved = moves.and_then(|to| to.after_mlp.as_ref()?.as_ref());
        x + normed(self.linear(index, Module::Down, &product), &layer.after_mlp, norm_moved)
    }

    /// Returns the moves of a block's own parameters.
    fn moves(&self, index: usize) -> Option<&LayerMove> {
        self.moved.direction.weights().map(|weights| weights.layer(index))
    }

    /// x̂ = x·r with r = (mean(x²) + ε)^−½ moves by r·ẋ − x̂·mean(x̂·r·ẋ); a weight that moves by `moved` adds x̂ times that.
    fn rms_norm(&self, x: &Tensor, weight: &Tensor, moved: Option<&Tensor>) -> Tensor {
        let decoder = self.decoder;
        let d = x.size()[1] as f64;
        let (value, tangent) = self.halves(&x.to_kind(Kind::Float));
        let mean = |a: &Tensor, b: &Tensor| Tensor::linalg_vecdot(a, b, -1).unsqueeze(-1) / d;
        let r = (mean(&value, &value) + decoder.config.rms_norm_eps).rsqrt();
        let (normed, tangent) = (value * &r, tangent * &r);
        let along = &tangent - &normed * mean(&normed, &tangent);
        let both = Tensor::cat(&[&normed, &along], 0);
        let (out, normed) = match decoder.config.norm {
            NormWeight::Plain => {
                (both.to_kind(decoder.dtype) * weight.to_kind(decoder.dtype), normed.to_kind(decoder.dtype))
            }
            NormWeight::FromOne => (both * (weight.to_kind(Kind::Float) + 1.0), normed),
        };
        if let Some(moved) = moved {
            let _ = self.halves(&out).1.addcmul_(&normed, &moved.to_kind(normed.kind()));
        }
        out.to_kind(decoder.dtype)
    }

    /// x [2n, in] to [2n, out]; as [`Decoder`]'s, whose roundings it follows.
    fn linear(&self, index: usize, module: Module, x: &Tensor) -> Tensor {
        let decoder = self.decoder;
        let Linear { weight, bias } = &decoder.parameters().layers[index].linears[module as usize];
        let x = x.to_kind(decoder.store());
        let out = x.matmul(&weight.tr());
        let (mut value, mut tangent) = self.halves(&out);
        if let Some(bias) = bias {
            let _ = value.g_add_(bias);
        }
        if let Some(moves) = self.moves(index) {
            let Linear { weight, bias } = &moves.linears[module as usize];
            if let Some(weight) = weight {
                let _ = tangent.addmm_(&x.narrow(0, 0, self.n), &weight.to_kind(decoder.store()).tr());
            }
            if let Some(bias) = bias.as_ref().and_then(Option::as_ref) {
                let _ = tangent.g_add_(&bias.to_kind(decoder.store()));
            }
        }
        self.add_adapter(index, module, &x, &out);
        out.to_kind(decoder.dtype)
    }

    /// Adds the adapter's term for x [2n, in] to a linear layer's result [2n, out], in place.
    fn add_adapter(&self, index: usize, module: Module, x: &Tensor, out: &Tensor) {
        let factors = |adapter: &Lora| {
            let (scale, store) = (adapter.config.scale(), self.decoder.store());
            let Factors { a, b } = adapter.get(index, module)?;
            Some((a.to_kind(store), (b * scale).to_kind(store)))
        };
        let Move { adapter, direction, is_fresh } = self.moved;
        let moves = match direction {
            Direction::Adapter(direction) => factors(direction),
            Direction::Weights(_) => None,
        };
        if is_fresh && moves.is_none() {
            return;
        }
        let Some((a, b)) = factors(adapter) else { return };
        let (x_value, low) = (x.narrow(0, 0, self.n), x.matmul(&a.tr()));
        if !is_fresh {
            let _ = out.shallow_clone().addmm_(&low, &b.tr());
        }
        let Some((g_a, g_b)) = moves else { return };
        let mut tangent = self.halves(out).1;
        let _ = tangent.addmm_(&low.narrow(0, 0, self.n), &g_b.tr());
        if !is_fresh {
            // The direction's scale is in g_b alone; B brings its own.
            let _ = tangent.addmm_(&x_value.matmul(&g_a.tr()), &b.tr());
        }
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
