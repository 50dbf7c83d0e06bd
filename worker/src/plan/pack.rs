//! The shape of a pack, as far as memory depends on it.

use crate::model::pack::Pack;

/// Rows and blocks of a pack.
#[derive(Debug, Clone, PartialEq)]
pub struct PackShape {
    /// Rows of the linear layers.
    pub rows: f64,
    /// Rows whose log-probs are asked for.
    pub head_rows: f64,
    /// Rows whose KL is asked for.
    pub kl_rows: f64,
    /// Rows of each block of attention.
    pub blocks: Vec<f64>,
}

impl PackShape {
    /// Returns the largest pack that a budget of tokens allows, where a sequence has at most `max_length` tokens: pairs that
    /// share one token, every other row scored; with `has_anchors` half of them in a KL. A pair that is larger than the
    /// budget gets a pack to itself.
    pub fn largest(pack_tokens: usize, max_length: usize, has_anchors: bool) -> PackShape {
        let pair = pair_tokens(max_length);
        let rows = pack_tokens.max(pair);
        let mut blocks = vec![pair as f64; rows / pair];
        if !rows.is_multiple_of(pair) {
            blocks.push((rows % pair) as f64);
        }
        let rows = rows as f64;
        let kl_rows = if has_anchors { (rows / 2.0).floor() } else { 0.0 };
        PackShape { rows, head_rows: rows - kl_rows, kl_rows, blocks }
    }

    /// Σ t² over the blocks.
    pub fn attended(&self) -> f64 {
        self.blocks.iter().map(|t| t * t).sum()
    }

    /// t² of the longest block.
    pub fn widest(&self) -> f64 {
        self.blocks.iter().map(|t| t * t).fold(0.0, f64::max)
    }
}

/// Rows of the largest pair: two sequences of the greatest length that share one token.
pub fn pair_tokens(max_length: usize) -> usize {
    max_length.saturating_mul(2).saturating_sub(1).max(1)
}

impl From<&Pack> for PackShape {
    fn from(pack: &Pack) -> Self {
        let sum = |counts: &[usize]| counts.iter().sum::<usize>() as f64;
        PackShape {
            rows: pack.rows.len() as f64,
            head_rows: sum(&pack.scored_counts),
            kl_rows: sum(&pack.kl_counts),
            blocks: pack.blocks.iter().map(|block| block.positions.len() as f64).collect(),
        }
    }
}
