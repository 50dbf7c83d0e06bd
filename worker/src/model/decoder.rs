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
use super::weights::{self, Checkpoint};
use crate::error::{Error, Result};
use crate::measure;
use crate::placement::{self, Kernel};

/// A linear layer's weight [out, in] and bias [out].
#[derive(Debug)]
pub struct Linear {
    /// [out, in]
    pub weight: Tensor,
    /// [out]
    pub bias: Option<Tensor>,
}

/// One block.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) before_attention: Tensor,
    /// On the attention's result.
    pub(super) after_attention: Option<Tensor>,
    pub(super) before_mlp: Tensor,
    /// On the feed-forward layer's result.
    pub(super) after_mlp: Option<Tensor>,
    pub(super) linears: [Linear; 7],
}

impl Layer {
    /// Returns the norms besides the first, in the order of [`weights::norms_after_linears`].
    fn norms_after_linears(&self) -> Vec<&Tensor> {
        match &self.after_attention {
            Some(after_attention) => [after_attention, &self.before_mlp].into_iter().chain(&self.after_mlp).collect(),
            None => vec![&self.before_mlp],
        }
    }
}

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
    embed: Tensor,
    embedding_scale: Option<f64>,
    layers: Vec<Layer>,
    norm: Tensor,
    head: Option<Tensor>,
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
        let mut take = |name: &str| named.remove(name).expect("expected() lists every tensor that is taken");
        let embed = take("model.embed_tokens.weight");
        let mut layers = Vec::with_capacity(config.layers);
        for layer in 0..config.layers {
            let mut at = |rest: &str| take(&format!("model.layers.{layer}.{rest}"));
            let before_attention = at("input_layernorm.weight");
            let post_attention = at("post_attention_layernorm.weight");
            let (after_attention, before_mlp, after_mlp) = if config.norms_after {
                let before_mlp = at("pre_feedforward_layernorm.weight");
                (Some(post_attention), before_mlp, Some(at("post_feedforward_layernorm.weight")))
            } else {
                (None, post_attention, None)
            };
            layers.push(Layer {
                before_attention,
                after_attention,
                before_mlp,
                after_mlp,
                linears: Module::ALL.map(|module| Linear {
                    weight: at(&format!("{}.weight", module.path())),
                    bias: weights::has_bias(&config, module).then(|| at(&format!("{}.bias", module.path()))),
                }),
            });
        }
        let norm = take("model.norm.weight");
        let head = (!config.tie_word_embeddings).then(|| take("lm_head.weight"));
        let rope = Rope::new(&config, device);
        // Rounded as the weights are.
        let embedding_scale = config.embedding_scale.map(|scale| Tensor::from(scale).to_kind(dtype).double_value(&[]));
        Ok(Decoder {
            config,
            dtype,
            device,
            fingerprint: String::new(),
            content: String::new(),
            embed,
            embedding_scale,
            layers,
            norm,
            head,
            rope,
            store,
            kernel: placement::kernel(device),
        })
    }

    /// Returns every weight with its name in checkpoints, in the order of [`weights::expected`].
    pub fn named_parameters(&self) -> Vec<(String, Tensor)> {
        let mut named = vec![("model.embed_tokens.weight".to_owned(), self.embed.shallow_clone())];
        for (i, layer) in self.layers.iter().enumerate() {
            let at = |rest: &str| format!("model.layers.{i}.{rest}");
            named.push((at("input_layernorm.weight"), layer.before_attention.shallow_clone()));
            for module in Module::ALL {
                let linear = &layer.linears[module as usize];
                named.push((at(&format!("{}.weight", module.path())), linear.weight.shallow_clone()));
                if let Some(bias) = &linear.bias {
                    named.push((at(&format!("{}.bias", module.path())), bias.shallow_clone()));
                }
            }
            for (name, norm) in weights::norms_after_linears(&self.config).iter().zip(layer.norms_after_linears()) {
                named.push((at(&format!("{name}.weight")), norm.shallow_clone()));
            }
        }
        named.push(("model.norm.weight".to_owned(), self.norm.shallow_clone()));
        if let Some(head) = &self.head {
            named.push(("lm_head.weight".to_owned(), head.shallow_clone()));
        }
        named
    }

    /// Returns the LM head.
    pub fn head(&self) -> Head<'_> {
        Head { weight: self.head.as_ref().unwrap_or(&self.embed), softcap: self.config.final_softcap }
    }

    pub(super) fn layer(&self, index: usize) -> &Layer {
        &self.layers[index]
    }

    pub(super) fn final_norm(&self) -> &Tensor {
        &self.norm
    }

    /// The type in which products are computed.
    pub(super) fn store(&self) -> Kind {
        self.store
    }

    /// Computes the hidden states of a pack after the final norm: [n, d].
    pub fn forward(&self, pack: &Pack, extras: Extras<'_>) -> Tensor {
        let attention = self.attention_of(pack);
        self.run(&pack.tokens, extras, |layer, q, k, v| attention.apply(self, layer, q, k, v))
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
        self.run(tokens, Extras { adapter, ..Extras::default() }, |layer, q, k, v| {
            attend(layer, attention::rotate(&q, &rope), attention::rotate(&k, &rope), v)
        })
    }

    fn run(
        &self,
        tokens: &Tensor,
        extras: Extras<'_>,
        mut attend: impl FnMut(usize, Tensor, Tensor, Tensor) -> Tensor,
    ) -> Tensor {
        let mut x = self.embed(tokens);
        for layer in 0..self.layers.len() {
            x = self.block(layer, &x, extras, &mut attend);
        }
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
        let x = Tensor::embedding(&self.embed, tokens, -1, false, false).to_kind(self.dtype);
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
        let layer = &self.layers[index];
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
        self.rms_norm(x, &self.norm)
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
    fn linear(&self, index: usize, layer: &Layer, module: Module, x: &Tensor, extras: Extras<'_>) -> Tensor {
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
