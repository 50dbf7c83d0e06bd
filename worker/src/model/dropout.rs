//! Dropout masks on the adapter's inputs, drawn from keys instead of from a running generator.
//!
//! A mask depends on (seed, epoch, step, record, branch, layer, module, position) alone: packing, restarts and the
//! number of ranks do not change it. The prompt of a pair has one mask for both responses.

use shared::keyed_random::KeyedRandom;
use tch::{Device, Tensor};

use super::lora::Module;
use crate::placement;

/// Masks for the tokens of one pack.
#[derive(Debug)]
pub struct Dropout {
    /// Probability of dropping a feature.
    pub probability: f64,
    /// One key a token: hash of seed, epoch, step, record, branch (0 in the prompt) and position.
    pub token_keys: Vec<u64>,
    /// Where the masks go.
    pub device: Device,
}

/// Returns the key of one token.
pub fn token_key(seed: u64, epoch: u64, step: u64, record: u64, branch: u64, position: u64) -> u64 {
    KeyedRandom::new(&[seed, epoch, step, record, branch, position]).next_u64()
}

impl Dropout {
    /// Returns the mask of one module's input: [n, features], 0 or 1. Who applies it divides by 1 − p.
    pub fn mask(&self, layer: usize, module: Module, features: i64) -> Tensor {
        // 16 bits a feature: the probability is met to 1 in 65 536.
        let threshold = (self.probability * 65_536.0).round() as u64;
        let mut values = Vec::with_capacity(self.token_keys.len() * features as usize);
        for &key in &self.token_keys {
            let mut random = KeyedRandom::new(&[key, layer as u64, module as u64]);
            let mut left = features as usize;
            while left > 0 {
                let mut word = random.next_u64();
                for _ in 0..left.min(4) {
                    values.push(if word & 0xffff < threshold { 0f32 } else { 1.0 });
                    word >>= 16;
                }
                left -= left.min(4);
            }
        }
        placement::upload(&values, self.device).view([self.token_keys.len() as i64, features])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mask_depends_on_the_token_key_not_on_the_pack() {
        let keys: Vec<u64> = (0..6).map(|t| token_key(1, 0, 3, 17, 1, t)).collect();
        let whole = Dropout { probability: 0.25, token_keys: keys.clone(), device: Device::Cpu };
        let part = Dropout { probability: 0.25, token_keys: keys[2..4].to_vec(), device: Device::Cpu };
        assert_eq!(whole.mask(1, Module::Q, 9).narrow(0, 2, 2), part.mask(1, Module::Q, 9));
        assert_ne!(whole.mask(1, Module::Q, 9), whole.mask(1, Module::V, 9));
    }

    #[test]
    fn share_of_dropped_features_and_mean_are_right() {
        let keys = (0..400).map(|t| token_key(1, 0, 0, 0, 0, t)).collect();
        let mask = Dropout { probability: 0.1, token_keys: keys, device: Device::Cpu }.mask(0, Module::Q, 100);
        let mean = f64::try_from(mask.mean(tch::Kind::Double)).unwrap();
        assert!((mean - 0.9).abs() < 0.01, "{mean}");
    }
}
