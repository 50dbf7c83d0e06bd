//! Choosing the next token: the likeliest, or a draw that depends on (seed, item, position) alone.

use shared::keyed_random::KeyedRandom;
use tch::{Kind, Tensor};

use crate::error::{Error, Result};

const STREAM: u64 = 0x7361_6d70;

/// How tokens are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    temperature: f64,
    top_p: f64,
    seed: u64,
}

impl Sampling {
    /// Checks the options.
    ///
    /// # Errors
    /// A negative temperature, or a top-p outside (0, 1].
    pub fn new(temperature: f64, top_p: f64, seed: u64) -> Result<Self> {
        if !temperature.is_finite() || temperature < 0.0 {
            return Err(Error::Config(format!("--temperature is {temperature}; expected a number from 0")));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(Error::Config(format!("--top-p is {top_p}; expected above 0, at most 1")));
        }
        Ok(Sampling { temperature, top_p, seed })
    }

    /// Returns the likeliest tokens always.
    pub fn greedy() -> Self {
        Sampling { temperature: 0.0, top_p: 1.0, seed: 0 }
    }

    /// Chooses one token a row of logits [b, V]; `items` name the rows, `position` is the place in the response.
    pub fn choose(&self, logits: &Tensor, items: &[u64], position: u64) -> Vec<i64> {
        if self.temperature == 0.0 {
            let best = logits.argmax(1, false).to_device(tch::Device::Cpu);
            return Vec::<i64>::try_from(best).expect("argmax of [b, V] is [b], int64");
        }
        let probabilities = (logits.to_kind(Kind::Double) / self.temperature).softmax(1, Kind::Double);
        items
            .iter()
            .enumerate()
            .map(|(row, &item)| {
                let p = Vec::<f64>::try_from(probabilities.get(row as i64).to_device(tch::Device::Cpu))
                    .expect("a row of [b, V] is [V]");
                let draw = KeyedRandom::new(&[self.seed, STREAM, item, position]).uniform();
                pick(&p, self.top_p, draw) as i64
            })
            .collect()
    }
}

/// Returns the token at `draw` in [0, 1) of the distribution cut to its likeliest `top_p`. Ties are ordered by id.
fn pick(p: &[f64], top_p: f64, draw: f64) -> usize {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[b].total_cmp(&p[a]).then(a.cmp(&b)));
    let mut kept = 0;
    let mut mass = 0.0;
    while kept < order.len() && mass < top_p {
        mass += p[order[kept]];
        kept += 1;
    }
    let mut left = draw * mass;
    for &token in &order[..kept] {
        left -= p[token];
        if left < 0.0 {
            return token;
        }
    }
    order[kept.saturating_sub(1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pick_follows_the_distribution_and_the_cut() {
        let p = [0.1, 0.6, 0.3];
        assert_eq!([pick(&p, 1.0, 0.0), pick(&p, 1.0, 0.59), pick(&p, 1.0, 0.61), pick(&p, 1.0, 0.95)], [1, 1, 2, 0]);
        assert_eq!([pick(&p, 0.7, 0.65), pick(&p, 0.7, 0.999)], [1, 2]);
        assert_eq!(pick(&p, 0.5, 0.999), 1);
    }

    #[test]
    fn draws_depend_on_item_and_position_not_on_the_batch() {
        let sampling = Sampling::new(1.0, 1.0, 7).unwrap();
        let row = Tensor::from_slice(&[0.0f32; 64]).view([1, 64]);
        let both = sampling.choose(&Tensor::cat(&[&row, &row], 0), &[3, 4], 5);
        assert_eq!(both, [sampling.choose(&row, &[3], 5), sampling.choose(&row, &[4], 5)].concat());
        let over_positions: std::collections::BTreeSet<i64> =
            (0..20).map(|position| sampling.choose(&row, &[3], position)[0]).collect();
        assert!(over_positions.len() > 5);
    }
}
