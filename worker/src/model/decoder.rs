//! The decoder: token ids to hidden states, with an adapter switched on or off.
//!
//! One set of layers serves training (packs) and generation (a key-value cache): what differs is only how attention is
//! computed, and that is handed in. Scoring sends derivatives along with the values: `tangent.rs`. Weights are f32 or bf16. Where the processor has
//! no bf16 matrix units, bf16 weights are held as f32 tensors of bf16 values and every layer's result is rounded to
//! bf16: the same numbers as a bf16 product with f32 accumulation, at f32 speed.
// `x += y` works in place on a tensor and would overwrite values that the backward pass still needs.
#![allow(clippy::assign_op_pattern)]

use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::attention::{self, Rope};
use super::config::{Activation, AttentionRule, ModelConfig, NormWeight};
use super::dropout::Dropout;
use super::head::Head;
use super::lora::{Lora, Module};
use super::pack::Pack;
use super::parameters::{Layer, Linear, Parameters};
use super::units::{self, Stream};
use super::weights::{self, Checkpoint};
use crate::error::{Error, Result};
use crate::measure;
use crate::placement::{self, Kernel};

/// A decoder with its weights.
#[derive(Debug)]
pub struct Decoder {
    /// Its shape.
    pub config: ModelConfig,
    /// Type of the residual stream and, in name, of the weights.
    pub dtype: Kind,
    /// Where the weights are.
    pub device: Device,
    /// Short name of the weights (see [`Checkpoint::fingerprint`]); empty when drawn from a seed.
    pub fingerprint: String,
    /// Hash of all bytes of the weights (see [`Checkpoint::content_hash`]); empty when drawn from a seed.
    pub content: String,
    parameters: Parameters<Tensor>,
    embedding_scale: Option<f64>,
    rope: Rope,
    store: Kind,
    /// How attention within the blocks of a pack is computed, where a layer's rule lets it.
    pub(crate) kernel: Kernel,
}

/// What accompanies a forward pass besides tokens.
#[derive(Default, Clone, Copy)]
pub struct Extras<'a> {
    /// The adapter; `None` computes π_ref.
    pub adapter: Option<&'a Lora>,
    /// Dropout masks on the adapter's inputs, in training.
    pub dropout: Option<&'a Dropout>,
}

impl Decoder {
    /// Loads a model folder.
    ///
    /// # Errors
    /// `config.json` or the weights are missing, damaged, of an unknown family or of a wrong shape.
    pub fn load(model_dir: &Path, dtype: Kind, device: Device) -> Result<Self> {
        let config = ModelConfig::load(model_dir)?;
        let checkpoint = Checkpoint::open(model_dir)?;
        checkpoint.check(&config, model_dir)?;
        let fingerprint = checkpoint.fingerprint();
        let mut decoder = Self::build(config, dtype, device, |name, _| checkpoint.tensor(name, dtype, device))?;
        decoder.fingerprint = fingerprint;
        decoder.content = checkpoint.content_hash();
        Ok(decoder)
    }

    /// Draws a decoder of the folder's `config.json` from a seed.
    ///
    /// # Errors
    /// `config.json` is missing, not of a known family, or of a model that no memory of this machine holds.
    pub fn from_scratch(model_dir: &Path, seed: u64, dtype: Kind, device: Device) -> Result<Self> {
        let config = ModelConfig::load(model_dir)?;
        weights::check_memory(&config, measure::memory_bytes())
            .map_err(|problem| Error::model(model_dir.join("config.json"), problem))?;
        let shape = config.clone();
        Self::build(config, dtype, device, |name, size| {
            Ok(weights::draw(&shape, seed, name, size).to_device(device).to_kind(dtype))
        })
    }

    fn build(
        config: ModelConfig,
        dtype: Kind,
        device: Device,
        mut tensor: impl FnMut(&str, &[i64]) -> Result<Tensor>,
    ) -> Result<Self> {
        let store = placement::held_as(dtype, device);
        let mut named = std::collections::HashMap::new();
        for (name, shape) in weights::expected(&config) {
            named.insert(name.clone(), tensor(&name, &shape)?.to_kind(store));
        }
        let take = |name: &str| named.remove(name).expect("expected() lists every tensor that is taken");
        let parameters = Parameters::build(&config, take);
        let rope = Rope::new(&config, device);
        // Rounded as the weights are.
        let embedding_scale = config.embedding_scale.map(|scale| Tensor::from(scale).to_kind(dtype).double_value(&[]));
        Ok(Decoder {
            config,
            dtype,
            device,
            fingerprint: String::new(),
            content: String::new(),
            parameters,
            embedding_scale,
            rope,
            store,
            kernel: placement::kernel(device),
        })
    }

    /// Returns a decoder of the same weights, in the same memory, in which those that `is_trained` names gather
    /// gradients of their own.
    pub fn trained(&self, is_trained: impl Fn(&str) -> bool) -> Self {
        Decoder {
            config: self.config.clone(),
            fingerprint: self.fingerprint.clone(),
            content: self.content.clone(),
            parameters: self.parameters.map(&self.config, |name, weight| {
                let alias = weight.detach();
                if is_trained(name) { alias.set_requires_grad(true) } else { alias }
            }),
            rope: Rope::new(&self.config, self.device),
            ..*self
        }
    }

    /// Returns every weight with its name in checkpoints, in the order of [`weights::expected`].
    pub fn named_parameters(&self) -> Vec<(String, Tensor)> {
        self.parameters.named().into_iter().map(|(name, weight)| (name, weight.shallow_clone())).collect()
    }

    /// Returns the LM head.
    pub fn head(&self) -> Head<'_> {
        Head { weight: self.parameters.head(), softcap: self.config.final_softcap }
    }

    pub(super) fn parameters(&self) -> &Parameters<Tensor> {
        &self.parameters
    }

    /// The type in which products are computed.
    pub(super) fn store(&self) -> Kind {
        self.store
    }

    /// Computes the hidden states of a pack after the final norm: [n, d].
    pub fn forward(&self, pack: &Pack, extras: Extras<'_>) -> Tensor {
        self.forward_fetching(pack, extras, None)
    }

    /// As [`Decoder::forward`], the weights of the layers brought by a stream; those before and after them are there.
    pub(crate) fn forward_fetching(&self, pack: &Pack, extras: Extras<'_>, stream: Option<&dyn Stream>) -> Tensor {
        let attention = self.attention_of(pack);
        self.run(&pack.tokens, extras, stream, |layer, q, k, v| attention.apply(self, layer, q, k, v))
    }

    /// Computes the hidden states of new tokens given a cache of earlier ones: `tokens` and `positions` are [b·t],
    /// `attend` gets rotated queries and keys [b·t, heads, head_dim] of a layer and returns [b·t, heads·head_dim].
    pub fn forward_with(
        &self,
        tokens: &Tensor,
        positions: &Tensor,
        adapter: Option<&Lora>,
        mut attend: impl FnMut(usize, Tensor, Tensor, Tensor) -> Tensor,
    ) -> Tensor {
        let rope = self.rope.at(positions, self.dtype);
        self.run(tokens, Extras { adapter, ..Extras::default() }, None, |layer, q, k, v| {
            attend(layer, attention::rotate(&q, &rope), attention::rotate(&k, &rope), v)
        })
    }

    fn run(
        &self,
        tokens: &Tensor,
        extras: Extras<'_>,
        stream: Option<&dyn Stream>,
        mut attend: impl FnMut(usize, Tensor, Tensor, Tensor) -> Tensor,
    ) -> Tensor {
        let mut x = self.embed(tokens);
        units::forward(stream, self.config.layers, |layer| x = self.block(layer, &x, extras, &mut attend));
        self.finish(&x)
    }

    /// Prepares what all layers of a pack share for attention.
    pub(super) fn attention_of(&self, pack: &Pack) -> PackAttention {
        let kind = self.store;
        let masks = |window| attention::masks(pack, window, kind, self.device);
        PackAttention {
            rope: self.rope.at(&pack.positions, self.dtype),
            masks: masks(None),
            windowed: self.config.window.as_ref().map(|window| masks(Some(window.size))),
        }
    }

    /// Looks tokens [n] up: [n, d].
    pub(super) fn embed(&self, tokens: &Tensor) -> Tensor {
        self.look_up(&self.parameters.embed, tokens)
    }

    /// Looks tokens [n] up in a table [vocabulary, d] in place of the embedding: [n, d].
    pub(super) fn look_up(&self, table: &Tensor, tokens: &Tensor) -> Tensor {
        let x = Tensor::embedding(table, tokens, -1, false, false).to_kind(self.dtype);
        match self.embedding_scale {
            Some(scale) => x * scale,
            None => x,
        }
    }

    /// Computes one layer: x [n, d] to [n, d]. `attend` gets queries, keys and values as they leave their projections.
    pub(super) fn block(
        &self,
        index: usize,
        x: &Tensor,
        extras: Extras<'_>,
        attend: &mut impl FnMut(usize, Tensor, Tensor, Tensor) -> Tensor,
    ) -> Tensor {
        let n = x.size()[0];
        let (heads, kv_heads, head_dim) = (self.config.heads, self.config.kv_heads, self.config.head_dim);
        let layer = &self.parameters.layers[index];
        let linear = |module: Module, input: &Tensor| self.linear(index, layer, module, input, extras);
        let h = self.rms_norm(x, &layer.before_attention);
        let q = linear(Module::Q, &h).view([n, heads, head_dim]);
        let k = linear(Module::K, &h).view([n, kv_heads, head_dim]);
        let v = linear(Module::V, &h).view([n, kv_heads, head_dim]);
        let normed = |x: Tensor, norm: &Option<Tensor>| match norm {
            Some(norm) => self.rms_norm(&x, norm),
            None => x,
        };
        let x = x + normed(linear(Module::O, &attend(index, q, k, v)), &layer.after_attention);
        let h = self.rms_norm(&x, &layer.before_mlp);
        let gate = linear(Module::Gate, &h);
        let gate = match self.config.activation {
            Activation::Silu => gate.silu(),
            Activation::GeluTanh => gate.gelu("tanh"),
        };
        x + normed(linear(Module::Down, &(gate * linear(Module::Up, &h))), &layer.after_mlp)
    }

    /// Applies the final norm: [n, d].
    pub(super) fn finish(&self, x: &Tensor) -> Tensor {
        self.rms_norm(x, &self.parameters.norm)
    }

    /// x [n, d] / rms(x) · weight, with the mean of squares in f32; see [`NormWeight`] for the product. The sum of squares is a product of x with itself,
    /// which is read once forward and has a short backward pass.
    fn rms_norm(&self, x: &Tensor, weight: &Tensor) -> Tensor {
        let wide = x.to_kind(Kind::Float);
        let mean_square = Tensor::linalg_vecdot(&wide, &wide, -1).unsqueeze(-1) / x.size()[1] as f64;
        let normed = wide * (mean_square + self.config.rms_norm_eps).rsqrt();
        match self.config.norm {
            NormWeight::Plain => normed.to_kind(self.dtype) * weight.to_kind(self.dtype),
            NormWeight::FromOne => (normed * (weight.to_kind(Kind::Float) + 1.0)).to_kind(self.dtype),
        }
    }

    /// x [n, in] to [n, out]. The adapter's factors are f32 and enter in the type that products are computed in; its
    /// term is added before the result is rounded.
    fn linear(&self, index: usize, layer: &Layer<Tensor>, module: Module, x: &Tensor, extras: Extras<'_>) -> Tensor {
        let Linear { weight, bias } = &layer.linears[module as usize];
        let x = x.to_kind(self.store);
        let base = x.linear(weight, bias.as_ref());
        let Some((adapter, factors)) = extras.adapter.and_then(|a| a.get(index, module).map(|f| (a, f))) else {
            return base.to_kind(self.dtype);
        };
        let (mut input, mut scale) = (x.shallow_clone(), adapter.config.scale());
        if let Some(dropout) = extras.dropout {
            input = input * dropout.mask(index, module, x.size()[1]).to_kind(self.store);
            scale /= 1.0 - dropout.probability;
        }
        let a = factors.a.to_kind(self.store);
        let b = (&factors.b * scale).to_kind(self.store);
        let low = input.matmul(&a.tr());
        base.addmm(&low, &b.tr()).to_kind(self.dtype)
    }
}

/// What the layers share for the attention of one pack.
pub(super) struct PackAttention {
    rope: (Tensor, Tensor),
    masks: Vec<Tensor>,
    /// For the layers with a window, where there are such.
    windowed: Option<Vec<Tensor>>,
}

impl PackAttention {
    /// Rotates queries and keys and attends within the blocks: [n, heads·head_dim].
    pub(super) fn apply(&self, decoder: &Decoder, layer: usize, q: Tensor, k: Tensor, v: Tensor) -> Tensor {
        let (q, k) = (attention::rotate(&q, &self.rope), attention::rotate(&k, &self.rope));
        let rule = decoder.config.attention(layer);
        attention::packed(decoder.kernel.able(rule), rule, self.masks(rule), &q, &k, &v)
    }

    /// Returns the (cos, signed sin) of the pack's positions.
    pub(super) fn rope(&self) -> &(Tensor, Tensor) {
        &self.rope
    }

    /// Returns the masks of a layer.
    pub(super) fn masks(&self, rule: AttentionRule) -> &[Tensor] {
        self.windowed.as_ref().filter(|_| rule.window.is_some()).unwrap_or(&self.masks)
    }
}
