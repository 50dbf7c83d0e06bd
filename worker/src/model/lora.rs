//! Low-rank adapters: W + (α/r)·B·A as a separate term of a linear layer, so that switching them off gives π_ref.
//!
//! Owns the factors and their start values. Reading and writing PEFT folders is in `adapter_file.rs`.

use std::collections::BTreeSet;

use shared::keyed_random::KeyedRandom;
use tch::{Device, Kind, Tensor};

use super::config::ModelConfig;
use crate::placement;

/// A linear layer of a decoder block that can carry an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Module {
    /// Query projection.
    Q,
    /// Key projection.
    K,
    /// Value projection.
    V,
    /// Output projection of the attention.
    O,
    /// Gate of the feed-forward layer.
    Gate,
    /// Up projection.
    Up,
    /// Down projection.
    Down,
}

impl Module {
    /// All modules in the order of a layer's computation.
    pub const ALL: [Module; 7] = [Module::Q, Module::K, Module::V, Module::O, Module::Gate, Module::Up, Module::Down];

    /// Returns the last part of the name in checkpoints, e.g. `q_proj`.
    pub fn name(self) -> &'static str {
        match self {
            Module::Q => "q_proj",
            Module::K => "k_proj",
            Module::V => "v_proj",
            Module::O => "o_proj",
            Module::Gate => "gate_proj",
            Module::Up => "up_proj",
            Module::Down => "down_proj",
        }
    }

    /// Returns the name within a layer, e.g. `self_attn.q_proj`.
    pub fn path(self) -> String {
        let block = if matches!(self, Module::Gate | Module::Up | Module::Down) { "mlp" } else { "self_attn" };
        format!("{block}.{}", self.name())
    }

    /// Returns (output features, input features) of the module's weight.
    pub fn shape(self, config: &ModelConfig) -> (i64, i64) {
        let (d, f) = (config.hidden_size, config.intermediate_size);
        let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        match self {
            Module::Q => (q, d),
            Module::K | Module::V => (kv, d),
            Module::O => (d, q),
            Module::Gate | Module::Up => (f, d),
            Module::Down => (d, f),
        }
    }
}

impl std::str::FromStr for Module {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Module::ALL.into_iter().find(|module| module.name() == name).ok_or_else(|| {
            let known: Vec<_> = Module::ALL.iter().map(|module| module.name()).collect();
            format!("unknown LoRA target {name:?}; known: {}", known.join(", "))
        })
    }
}

/// Rank, scale, dropout and place of an adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    /// Rank r of the factors.
    pub r: i64,
    /// α; the term is scaled by α / r.
    pub alpha: f64,
    /// Probability with which an input feature of the adapter is dropped in training.
    pub dropout: f64,
    /// Linear layers that carry an adapter, in every block.
    pub targets: BTreeSet<Module>,
}

impl LoraConfig {
    /// Returns α / r.
    pub fn scale(&self) -> f64 {
        self.alpha / self.r as f64
    }
}

/// The two factors of one layer's adapter, f32.
#[derive(Debug)]
pub struct Factors {
    /// A: [r, in]
    pub a: Tensor,
    /// B: [out, r]
    pub b: Tensor,
}

/// An adapter for a whole model.
#[derive(Debug)]
pub struct Lora {
    /// Its settings.
    pub config: LoraConfig,
    /// `factors[layer][module as usize]`.
    pub factors: Vec<[Option<Factors>; 7]>,
}

impl Lora {
    /// Draws a fresh adapter: A uniform in ±1/√in (Kaiming with a = √5), B zero, from `seed` alone.
    pub fn fresh(config: LoraConfig, model: &ModelConfig, seed: u64, device: Device) -> Self {
        let factors = (0..model.layers)
            .map(|layer| {
                Module::ALL.map(|module| {
                    config.targets.contains(&module).then(|| {
                        let (out, input) = module.shape(model);
                        let bound = 1.0 / (input as f64).sqrt();
                        let mut random = KeyedRandom::new(&[seed, LORA_STREAM, layer as u64, module as u64]);
                        let a: Vec<f32> =
                            (0..config.r * input).map(|_| ((random.uniform() * 2.0 - 1.0) * bound) as f32).collect();
                        Factors {
                            a: placement::upload(&a, device).view([config.r, input]),
                            b: Tensor::zeros([out, config.r], (Kind::Float, device)),
                        }
                    })
                })
            })
            .collect();
        Lora { config, factors }
    }

    /// Returns an adapter of the same shape that is zero everywhere.
    pub fn zeros_like(&self) -> Self {
        let zeros = |f: &Factors| Factors { a: f.a.detach().zeros_like(), b: f.b.detach().zeros_like() };
        let factors = self.factors.iter().map(|modules| modules.each_ref().map(|f| f.as_ref().map(zeros))).collect();
        Lora { config: self.config.clone(), factors }
    }

    /// Returns a copy that takes no part in training.
    pub fn detached(&self) -> Self {
        let copy = |f: &Factors| Factors { a: f.a.detach().copy(), b: f.b.detach().copy() };
        let factors = self.factors.iter().map(|modules| modules.each_ref().map(|f| f.as_ref().map(copy))).collect();
        Lora { config: self.config.clone(), factors }
    }

    /// Returns a copy in host memory.
    pub fn on_host(&self) -> Self {
        let copy = |t: &Tensor| t.detach().to_device(tch::Device::Cpu).copy();
        let copy = |f: &Factors| Factors { a: copy(&f.a), b: copy(&f.b) };
        let factors = self.factors.iter().map(|modules| modules.each_ref().map(|f| f.as_ref().map(copy))).collect();
        Lora { config: self.config.clone(), factors }
    }

    /// Returns the factors of one layer's module, if it carries an adapter.
    pub fn get(&self, layer: usize, module: Module) -> Option<&Factors> {
        self.factors.get(layer)?[module as usize].as_ref()
    }

    /// Returns all factors with their place, in a fixed order: by layer, by module.
    pub fn iter(&self) -> impl Iterator<Item = (usize, Module, &Factors)> {
        self.factors.iter().enumerate().flat_map(|(layer, modules)| {
            Module::ALL.into_iter().filter_map(move |m| modules[m as usize].as_ref().map(|f| (layer, m, f)))
        })
    }

    /// Returns the trainable tensors with PEFT's names (without the prefix), A before B.
    pub fn named_parameters(&self) -> Vec<(String, Tensor)> {
        let mut parameters = Vec::new();
        for (layer, module, factors) in self.iter() {
            let place = format!("model.layers.{layer}.{}", module.path());
            parameters.push((format!("{place}.lora_A.weight"), factors.a.shallow_clone()));
            parameters.push((format!("{place}.lora_B.weight"), factors.b.shallow_clone()));
        }
        parameters
    }
}

/// Keeps the stream of start values apart from other uses of the same seed.
const LORA_STREAM: u64 = 0x4c6f5241;
