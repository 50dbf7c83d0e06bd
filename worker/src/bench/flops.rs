//! The arithmetic of an update, counted: what the products of a pack must do at least.

use crate::model::config::ModelConfig;
use crate::model::lora::{LoraConfig, Module};

/// What is computed of a set of items.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Work {
    /// Rows of the linear layers: tokens, a shared prompt's once.
    pub rows: f64,
    /// Rows of the head: scored tokens and KL positions.
    pub head_rows: f64,
    /// Σ t² over the blocks of attention.
    pub attended: f64,
}

/// Returns the operations of a forward and backward pass in units of 10⁹, a multiplication and an addition counted as
/// two. `adapter` is what is trained; none trains all weights. Recomputed layers and passes of π_ref are not in it.
pub fn update_gflop(config: &ModelConfig, adapter: Option<&LoraConfig>, work: Work) -> f64 {
    let size = |module: Module| {
        let (out, input) = module.shape(config);
        (out * input) as f64
    };
    let base: f64 = Module::ALL.into_iter().map(size).sum();
    let low_rank = |module: &Module| {
        let (out, input) = module.shape(config);
        adapter.map_or(0.0, |lora| (lora.r * (out + input)) as f64)
    };
    let trained: f64 = match adapter {
        Some(lora) => lora.targets.iter().map(low_rank).sum(),
        None => base,
    };
    let head = (config.vocab_size * config.hidden_size) as f64;
    // Forward and gradient of the input: base and adapter; gradient of the weight: what is trained.
    let linear = if adapter.is_some() { 2.0 * base + 3.0 * trained } else { 3.0 * base };
    // Logits and pulls; a trained head needs logits and its own gradient beside them.
    let of_head = if adapter.is_some() { 2.0 } else { 4.0 };
    // Scores and sums forward; twice as much backward.
    let attention = 6.0 * (config.heads * config.head_dim) as f64 * work.attended;
    let layers = config.layers as f64;
    2.0 * (layers * (linear * work.rows + attention) + of_head * head * work.head_rows) / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn an_adapter_costs_two_thirds_of_all_weights() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/tiny-llama/tied");
        let config = ModelConfig::load(&folder).unwrap();
        let work = Work { rows: 100.0, head_rows: 0.0, attended: 0.0 };
        let none = LoraConfig { r: 8, alpha: 1.0, dropout: 0.0, targets: Default::default() };
        let ratio = update_gflop(&config, Some(&none), work) / update_gflop(&config, None, work);
        assert!((ratio - 2.0 / 3.0).abs() < 1e-12, "{ratio}");
    }
}
