//! Memory of an update in bytes, counted from what the decoder, the head and the optimiser keep, tensor by tensor.
//!
//! Pure: settings and the shape of a pack in, bytes out. Sizes are those of the types that are really held: where a
//! processor has no fast bf16 products, bf16 weights are f32 tensors and most activations of linear layers are, too.

use tch::Kind;

use super::activations::Activations;
use super::pack::PackShape;
use crate::model::config::ModelConfig;
use crate::model::lora::{LoraConfig, Module};
use crate::model::{head, weights};
use crate::placement::Kernel;

/// Bytes of an f32 number.
pub const F32: f64 = 4.0;

/// What is trained, in which types, by which kernels.
#[derive(Debug, Clone, Copy)]
pub struct Setting<'a> {
    /// The model's shape.
    pub config: &'a ModelConfig,
    /// The adapter that is trained; none trains all weights.
    pub adapter: Option<&'a LoraConfig>,
    /// Type of the residual stream.
    pub dtype: Kind,
    /// Type in which weights are held and products are computed.
    pub store: Kind,
    /// How attention is computed where a rule lets it.
    pub kernel: Kernel,
    /// The product library reorders the head's weight for every bf16 product, as the CPU's does.
    pub reorders_bf16: bool,
    /// A second, frozen copy of the weights is held, for π_ref.
    pub has_frozen_copy: bool,
    /// How training all weights is shared out.
    pub sharding: Sharding,
}

/// How training all weights is shared out over ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sharding {
    /// Ranks, which share out the optimiser's state and the sums of gradients.
    pub ranks: usize,
    /// They share out the weights, too.
    pub is_spread: bool,
}

impl Sharding {
    /// Nothing is shared out.
    pub const NONE: Sharding = Sharding { ranks: 1, is_spread: false };

    /// Flat gradients of units that exist at once: one that is summed, those that wait, and one that is made.
    const FLATS: f64 = 4.0;

    /// Part of the weights that a rank keeps between passes.
    fn kept(self) -> f64 {
        if self.is_spread { 1.0 / self.ranks as f64 } else { 1.0 }
    }
}

impl Setting<'_> {
    /// Bytes of a number of the residual stream.
    pub fn stream_bytes(&self) -> f64 {
        self.dtype.elt_size_in_bytes() as f64
    }

    /// Bytes of a number of weights and products.
    pub fn store_bytes(&self) -> f64 {
        self.store.elt_size_in_bytes() as f64
    }

    /// Returns whether all weights are trained.
    pub fn is_full(&self) -> bool {
        self.adapter.is_none()
    }
}

/// Parts that do not depend on a pack, in bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fixed {
    /// The model's weights.
    pub weights: f64,
    /// The adapter's factors, and their copies in the type of the products.
    pub adapter: f64,
    /// Gradients of what is trained.
    pub gradients: f64,
    /// AdamW's two moments, and f32 masters of weights that are bf16.
    pub optimiser: f64,
    /// The frozen copy of the weights.
    pub reference: f64,
    /// What comes on top where weights are shared out and all of them are gathered, for a validation, best/ or the end; gradients
    /// are gone then.
    pub gathered: f64,
}

impl Fixed {
    /// Counts them.
    pub fn of(setting: &Setting<'_>) -> Fixed {
        let parameters = parameters(setting.config);
        let weights = parameters * setting.store_bytes();
        let reference = if setting.has_frozen_copy { weights } else { 0.0 };
        match setting.adapter {
            Some(adapter) => {
                let factors = adapter_parameters(setting.config, adapter);
                Fixed {
                    weights,
                    // The scaled B is a new tensor in any type; A is one where its type changes.
                    adapter: factors * (F32 + if setting.store == Kind::Float { F32 / 2.0 } else { 2.0 }),
                    gradients: factors * F32,
                    optimiser: factors * 2.0 * F32,
                    reference,
                    gathered: 0.0,
                }
            }
            None => {
                let masters = if setting.dtype == Kind::BFloat16 { F32 } else { 0.0 };
                let Sharding { ranks, is_spread } = setting.sharding;
                let kept = setting.sharding.kept();
                Fixed {
                    weights: weights * kept,
                    adapter: 0.0,
                    gradients: if ranks > 1 { parameters * F32 / ranks as f64 } else { weights },
                    optimiser: parameters * (2.0 * F32 + masters) / ranks as f64,
                    reference: reference * kept,
                    gathered: if is_spread { weights + reference } else { 0.0 },
                }
            }
        }
    }

    /// Returns the sum of what is there in an update.
    pub fn total(&self) -> f64 {
        self.weights + self.adapter + self.gradients + self.optimiser + self.reference
    }

    /// Returns what is there while all weights are gathered; none where they are never shared out.
    pub fn while_gathered(&self) -> Option<f64> {
        (self.gathered > 0.0).then(|| self.total() - self.gradients + self.gathered)
    }
}

/// Returns what a checkpoint's copy takes of the host's memory in a run that keeps some: what is trained, its moments and masters, or a
/// rank's part of them.
pub fn snapshot(setting: &Setting<'_>) -> f64 {
    match setting.adapter {
        Some(adapter) => adapter_parameters(setting.config, adapter) * 3.0 * F32,
        None => {
            let part = parameters(setting.config) / setting.sharding.ranks as f64;
            part * setting.store_bytes() + Fixed::of(setting).optimiser
        }
    }
}

/// What one pack takes beside the fixed parts, at its peak, in bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Work {
    /// Kept from the forward pass for the way back.
    pub activations: f64,
    /// The head's rows, its gradients into them, and one chunk of logits.
    pub head: f64,
    /// What the backward pass of a layer, or the optimiser, takes beyond these.
    pub buffers: f64,
    /// Tensors of a chunk that come and go in the heap: a part of `head`.
    pub logits: f64,
}

impl Work {
    /// Counts it for one pack, with the graph kept or layer by layer.
    pub fn of(setting: &Setting<'_>, pack: &PackShape, is_recomputed: bool) -> Work {
        let activations = Activations { setting, pack };
        let head = Head { setting, pack };
        let kept = activations.kept(is_recomputed);
        let forward = kept.at_head + head.peak();
        let found = found(setting, is_recomputed);
        let way_back = match is_recomputed {
            true => kept.on_the_way_back + found,
            // As gradients come activations go.
            false => kept.on_the_way_back.max(found),
        };
        let backward = way_back + activations.backward_buffers() + head.surrogate() + units(setting);
        let peak = forward.max(backward).max(update_buffers(setting));
        let activations = kept.at_head.max(kept.on_the_way_back);
        let of_head = head.peak().min(peak - kept.at_head);
        Work { activations, head: of_head, buffers: (peak - activations - of_head).max(0.0), logits: head.logits() }
    }

    /// Returns the sum.
    pub fn total(&self) -> f64 {
        self.activations + self.head + self.buffers
    }
}

/// Gradients that are known and not on their way to the other ranks yet: a layer's, or those of the whole graph.
fn found(setting: &Setting<'_>, is_recomputed: bool) -> f64 {
    let numbers = match is_recomputed {
        _ if setting.sharding.ranks == 1 => 0.0,
        true => layer_parameters(setting.config),
        false => parameters(setting.config),
    };
    numbers * setting.store_bytes()
}

/// What units take that ranks share out: gradients that are on their way, and gathered weights.
fn units(setting: &Setting<'_>) -> f64 {
    let Sharding { ranks, is_spread } = setting.sharding;
    if ranks == 1 {
        return 0.0;
    }
    let (layer, embedding) = (layer_parameters(setting.config), embedding(setting.config));
    let heads = if setting.config.tie_word_embeddings { 1.0 } else { 2.0 };
    // The embedding's gradient is whole, flat and f32 when the layers' are gone; until then, theirs are on their way.
    let flat = (Sharding::FLATS * layer * F32).max(embedding * F32);
    let decoders = if setting.has_frozen_copy { 2.0 } else { 1.0 };
    let gathered = if is_spread { (2.0 * layer + heads * embedding) * setting.store_bytes() * decoders } else { 0.0 };
    flat + gathered
}

/// What the update of the largest tensor takes: gradient, root, quotient and step in f32.
fn update_buffers(setting: &Setting<'_>) -> f64 {
    // A rank moves its part of a unit at once.
    if setting.is_full() && setting.sharding.ranks > 1 {
        let largest = embedding(setting.config).max(layer_parameters(setting.config));
        return 4.0 * F32 * largest / setting.sharding.ranks as f64;
    }
    let largest = match setting.adapter {
        Some(adapter) => {
            let sizes = adapter.targets.iter().map(|module| module.shape(setting.config));
            sizes.map(|(out, input)| (adapter.r * out.max(input)) as f64).fold(0.0, f64::max)
        }
        None => embedding(setting.config),
    };
    4.0 * F32 * largest
}

/// What the head takes.
struct Head<'a> {
    setting: &'a Setting<'a>,
    pack: &'a PackShape,
}

impl Head<'_> {
    /// At its last chunk: the rows, their gradients and those joined, logits; dL/dW where the head is trained.
    fn peak(&self) -> f64 {
        let d = self.setting.config.hidden_size as f64;
        let rows = self.pack.head_rows + self.pack.kl_rows;
        let of_rows =
            d * (rows * (self.setting.stream_bytes() + 2.0 * F32) + self.pack.kl_rows * self.setting.stream_bytes());
        of_rows + self.chunk() + self.weight_gradient()
    }

    /// Stays until the backward pass has passed the head: rows times slopes, and the gradient of W.
    fn surrogate(&self) -> f64 {
        let d = self.setting.config.hidden_size as f64;
        let of_weight = if self.setting.is_full() { embedding(self.setting.config) * F32 } else { 0.0 };
        2.0 * F32 * d * (self.pack.head_rows + self.pack.kl_rows) + of_weight
    }

    /// Numbers of a chunk's logits, cut as those of a type are.
    fn numbers(&self, rows: f64, kind: Kind) -> f64 {
        let row = self.setting.config.vocab_size * kind.elt_size_in_bytes() as i64;
        rows.min((head::CHUNK_BYTES / row).max(1) as f64) * self.setting.config.vocab_size as f64
    }

    /// Bytes of a chunk's logits, twice where a cap makes more of them.
    fn logits(&self) -> f64 {
        let log_probs = self.numbers(self.pack.head_rows, self.setting.store) * self.setting.store_bytes();
        let capped = if self.setting.config.final_softcap.is_some() { 2.0 } else { 1.0 };
        capped * log_probs.max(self.numbers(self.pack.kl_rows, Kind::Float) * F32)
    }

    /// Logits of one chunk and what is made of them.
    fn chunk(&self) -> f64 {
        let Setting { config, store: kind, .. } = *self.setting;
        let store = self.setting.store_bytes();
        let is_capped = config.final_softcap.is_some();
        let log_probs = match is_capped {
            // bf16 logits are summed as a copy in f32.
            false => self.numbers(self.pack.head_rows, kind) * (store + if kind == Kind::Float { 0.0 } else { F32 }),
            // Logits, in f32 before and after the cap, three steps on the way.
            true => self.numbers(self.pack.head_rows, Kind::Float) * (store + 5.0 * F32),
        };
        // Logits and log-probs of both policies, two exponentials, their difference.
        let capped = if is_capped { 3.0 * F32 } else { 0.0 };
        let kl = self.numbers(self.pack.kl_rows, Kind::Float) * (2.0 * store + 4.0 * F32 + capped);
        let is_reordered = self.setting.reorders_bf16 && kind == Kind::BFloat16;
        let reordered = if is_reordered { embedding(config) * store } else { 0.0 };
        log_probs.max(kl) + reordered
    }

    /// dL/dW, a chunk's part of it, and that part in f32.
    fn weight_gradient(&self) -> f64 {
        if !self.setting.is_full() {
            return 0.0;
        }
        let cast = if self.setting.store == Kind::Float { 0.0 } else { F32 };
        embedding(self.setting.config) * (F32 + self.setting.store_bytes() + cast)
    }
}

/// Numbers of the embedding, the largest tensor of most models.
fn embedding(config: &ModelConfig) -> f64 {
    config.vocab_size as f64 * config.hidden_size as f64
}

/// Returns the number of a model's weights.
pub fn parameters(config: &ModelConfig) -> f64 {
    count(config, false) + layer_parameters(config) * config.layers as f64
}

/// Returns the number of a layer's weights; the layers are alike.
fn layer_parameters(config: &ModelConfig) -> f64 {
    count(config, true)
}

/// Numbers of the weights in one layer, or outside of the layers.
fn count(config: &ModelConfig, in_layer: bool) -> f64 {
    let expected = weights::expected(&ModelConfig { layers: 1, ..config.clone() });
    let tensors = expected.iter().filter(|(name, _)| name.contains(".layers.") == in_layer);
    tensors.map(|(_, shape)| shape.iter().map(|&n| n as f64).product::<f64>()).sum()
}

/// Returns the number of an adapter's weights.
pub fn adapter_parameters(config: &ModelConfig, adapter: &LoraConfig) -> f64 {
    let of = |module: &Module| {
        let (out, input) = module.shape(config);
        (out + input) as f64 * adapter.r as f64
    };
    adapter.targets.iter().map(of).sum::<f64>() * config.layers as f64
}
