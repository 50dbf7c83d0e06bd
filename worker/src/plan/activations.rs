//! What a forward pass keeps for its way back, and what that way takes, in bytes: the tensors that libtorch's graph
//! holds, as `model/decoder.rs` and `model/attention.rs` make them.

use super::memory::{F32, Setting};
use super::pack::PackShape;
use crate::model::config::NormWeight;
use crate::model::lora::Module;
use crate::placement::Kernel;

/// The activations of one pack.
pub struct Activations<'a> {
    /// What is trained.
    pub setting: &'a Setting<'a>,
    /// The pack.
    pub pack: &'a PackShape,
}

/// What is kept at two moments, in bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Kept {
    /// When the head is at work.
    pub at_head: f64,
    /// When the gradient is about to enter a layer, which is alike in all.
    pub on_the_way_back: f64,
}

/// Modules that have one input.
const INPUTS: [&[Module]; 4] =
    [&[Module::Q, Module::K, Module::V], &[Module::O], &[Module::Gate, Module::Up], &[Module::Down]];

impl Activations<'_> {
    /// Returns what is kept with the graph of all layers, or with their inputs alone.
    pub fn kept(&self, is_recomputed: bool) -> Kept {
        let layers = self.setting.config.layers as f64;
        let layer = self.layer();
        let (stream, norm) = (self.stream(), self.norm());
        if !is_recomputed {
            // Before the first layer nothing is trained: its first norm has no graph, unless the embedding is.
            let first = if self.setting.is_full() { 0.0 } else { norm };
            let kept = self.shared() + layers * layer - first + norm + stream;
            return Kept { at_head: kept, on_the_way_back: kept };
        }
        // The inputs of all layers, and of the final norm; the hidden states; on the way back a gradient beside them.
        let inputs = self.shared() + (layers + 1.0) * stream;
        Kept { at_head: inputs + stream, on_the_way_back: inputs + stream + layer }
    }

    /// What a layer's backward pass has at hand at once: gradients of the feed-forward layer's three products and of the
    /// residual stream; and of one block's scores, which the fused kernel makes in tiles.
    pub fn backward_buffers(&self) -> f64 {
        let (stream, store) = (self.setting.stream_bytes(), self.setting.store_bytes());
        let f = self.setting.config.intermediate_size as f64;
        let cast = if stream == store { 0.0 } else { store };
        let feed_forward = self.pack.rows * f * (3.0 * stream + cast);
        let scores = match self.setting.kernel.able(self.setting.config.attention(0)) {
            Kernel::Products => 3.0 * store * self.setting.config.heads as f64 * self.pack.widest(),
            Kernel::Fused => 0.0,
        };
        feed_forward.max(scores) + 3.0 * F32 * self.pack.rows * self.width()
    }

    fn width(&self) -> f64 {
        self.setting.config.hidden_size as f64
    }

    /// [n, d] of the residual stream.
    fn stream(&self) -> f64 {
        self.pack.rows * self.width() * self.setting.stream_bytes()
    }

    /// What all layers share: cos and sin, masks (with a window, two of each block), indices.
    fn shared(&self) -> f64 {
        let config = self.setting.config;
        let masks = if config.window.is_some() { 2.0 } else { 1.0 };
        let rope = 2.0 * config.head_dim as f64 * self.setting.stream_bytes() * self.pack.rows;
        rope + masks * self.setting.store_bytes() * self.pack.attended() + 48.0 * self.pack.rows
    }

    /// Kept of an RMS norm: x in f32 (x itself where it is f32) and 1 / rms; with a trained weight its other factor.
    fn norm(&self) -> f64 {
        let trained = match (self.setting.is_full(), self.setting.config.norm) {
            (false, _) => 0.0,
            (true, NormWeight::Plain) => self.setting.stream_bytes(),
            (true, NormWeight::FromOne) => F32,
        };
        self.pack.rows * (self.width() * (F32 + trained) + F32)
    }

    /// Kept of one layer: all have the same, since a window takes nothing out of the products.
    fn layer(&self) -> f64 {
        let norms = if self.setting.config.norms_after { 4.0 } else { 2.0 };
        norms * self.norm() + self.linears() + self.attention() + self.feed_forward()
    }

    /// Inputs of the products whose weights are trained.
    fn linears(&self) -> f64 {
        let Setting { config, adapter, .. } = self.setting;
        let store = self.setting.store_bytes();
        let is_target = |module: &Module| adapter.is_some_and(|adapter| adapter.targets.contains(module));
        let dropout = adapter.is_some_and(|adapter| adapter.dropout > 0.0);
        let mut numbers = 0.0;
        for modules in INPUTS {
            let input = modules[0].shape(config).1 as f64;
            let targets = modules.iter().filter(|module| is_target(module)).count() as f64;
            numbers += targets * adapter.map_or(0.0, |adapter| adapter.r as f64);
            let copies = match (adapter.is_some(), dropout) {
                // Mask and masked input of each.
                (true, true) => 2.0 * targets,
                (true, false) => targets,
                (false, _) => modules.len() as f64,
            };
            // Without a change of type there is one input for all.
            let is_shared = !dropout && self.setting.dtype == self.setting.store;
            numbers += input * if is_shared { copies.min(1.0) } else { copies };
        }
        numbers * store * self.pack.rows
    }

    /// Queries, keys, values and what the kernel keeps of the scores.
    fn attention(&self) -> f64 {
        let config = self.setting.config;
        let store = self.setting.store_bytes();
        let (q, kv) = ((config.heads * config.head_dim) as f64, (config.kv_heads * config.head_dim) as f64);
        let heads = config.heads as f64;
        match self.setting.kernel.able(config.attention(0)) {
            Kernel::Products => {
                // With a soft-cap, tanh keeps its result beside the softmax's.
                let scores = if config.attention_softcap.is_some() { 2.0 } else { 1.0 };
                store * ((q + 2.0 * kv) * self.pack.rows + scores * heads * self.pack.attended())
            }
            // Keys and values for every query head, the result, a log-sum a row and head, the mask of each block.
            Kernel::Fused => store * (4.0 * q * self.pack.rows + self.pack.attended()) + F32 * heads * self.pack.rows,
        }
    }

    /// The gate before and after its activation, and what it is multiplied with.
    fn feed_forward(&self) -> f64 {
        3.0 * self.setting.config.intermediate_size as f64 * self.setting.stream_bytes() * self.pack.rows
    }
}
