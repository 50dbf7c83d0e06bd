//! A pack: several token sequences end to end, as the decoder computes them.
//!
//! Linear layers see the n tokens of all sequences as one matrix [n, d]; only attention goes through a right-padded
//! [b, t] view. Right padding and a causal mask make padding invisible to real tokens.

use tch::{Device, Kind, Tensor};

use crate::text::Sequence;

/// What is asked of a sequence of a pack.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Want {
    /// Its summed log-prob.
    pub log_prob: bool,
    /// The KL at its positions.
    pub kl: bool,
}

impl Want {
    /// Log-probs only.
    pub const LOG_PROB: Want = Want { log_prob: true, kl: false };
    /// KL only.
    pub const KL: Want = Want { log_prob: false, kl: true };
}

/// Sequences end to end with the index tensors the decoder and the head need.
#[derive(Debug)]
pub struct Pack {
    /// Token ids: [n], int64
    pub tokens: Tensor,
    /// Position of each token in its sequence: [n], int64
    pub positions: Tensor,
    /// Sequence of each token: [n], int64
    pub sequence_of_token: Tensor,
    /// For each cell of the padded [b, t] view, its row in the pack (padding points to row 0): [b·t], int64
    pub pad_index: Tensor,
    /// For each row of the pack, its cell in the padded view: [n], int64
    pub unpad_index: Tensor,
    /// Number of sequences b.
    pub sequences: usize,
    /// Longest sequence t.
    pub longest: usize,
    /// Rows whose next-token distribution is scored: [m], int64
    pub scored_rows: Tensor,
    /// The tokens scored there: [m], int64
    pub targets: Tensor,
    /// Number of scored tokens of each sequence (0 where none was asked for); sums to m.
    pub scored_counts: Vec<usize>,
    /// Rows whose distribution enters a KL, of the sequences asked for: [k], int64
    pub kl_rows: Tensor,
    /// Number of KL positions of each sequence (0 where none was asked for).
    pub kl_counts: Vec<usize>,
    /// First row of each sequence, and n at the end.
    pub starts: Vec<usize>,
}

impl Pack {
    /// Lays sequences end to end; each says which of its positions are asked for.
    ///
    /// # Panics
    /// If there is no sequence, or one without tokens: the encoder never makes any.
    pub fn new(sequences: &[(&Sequence, Want)], device: Device) -> Self {
        assert!(!sequences.is_empty());
        let longest = sequences.iter().map(|(s, _)| s.tokens.len()).max().unwrap_or(0);
        let total: usize = sequences.iter().map(|(s, _)| s.tokens.len()).sum();
        let (mut tokens, mut positions, mut owner) =
            (Vec::with_capacity(total), Vec::with_capacity(total), Vec::with_capacity(total));
        let mut pad_index = vec![0i64; sequences.len() * longest];
        let mut unpad_index = Vec::with_capacity(total);
        let (mut scored_rows, mut targets, mut scored_counts) = (vec![], vec![], vec![]);
        let (mut kl_rows, mut kl_counts, mut starts) = (vec![], vec![], vec![]);
        for (i, (sequence, want)) in sequences.iter().enumerate() {
            let start = tokens.len();
            assert!(!sequence.tokens.is_empty());
            starts.push(start);
            for (t, &token) in sequence.tokens.iter().enumerate() {
                pad_index[i * longest + t] = (start + t) as i64;
                unpad_index.push((i * longest + t) as i64);
                tokens.push(token);
                positions.push(t as i64);
                owner.push(i as i64);
            }
            let scored = if want.log_prob { sequence.scored.as_slice() } else { &[] };
            for &t in scored {
                scored_rows.push((start + t - 1) as i64);
                targets.push(sequence.tokens[t]);
            }
            scored_counts.push(scored.len());
            let kl = if want.kl { sequence.kl.as_slice() } else { &[] };
            kl_rows.extend(kl.iter().map(|&t| (start + t) as i64));
            kl_counts.push(kl.len());
        }
        starts.push(tokens.len());
        let long = |values: &[i64]| Tensor::from_slice(values).to_kind(Kind::Int64).to_device(device);
        Pack {
            tokens: long(&tokens),
            positions: long(&positions),
            sequence_of_token: long(&owner),
            pad_index: long(&pad_index),
            unpad_index: long(&unpad_index),
            sequences: sequences.len(),
            longest,
            scored_rows: long(&scored_rows),
            targets: long(&targets),
            scored_counts,
            kl_rows: long(&kl_rows),
            kl_counts,
            starts,
        }
    }

    /// Returns the number of tokens n.
    pub fn tokens_len(&self) -> usize {
        *self.starts.last().unwrap_or(&0)
    }
}

/// Adds up consecutive groups of `values`: one sum a group.
pub fn group_sums(values: &[f64], counts: &[usize]) -> Vec<f64> {
    let mut rest = values;
    counts
        .iter()
        .map(|&count| {
            let (group, tail) = rest.split_at(count);
            rest = tail;
            group.iter().sum()
        })
        .collect()
}

/// Repeats each value as often as its group has members.
pub fn spread(values: &[f64], counts: &[usize]) -> Vec<f32> {
    values.iter().zip(counts).flat_map(|(&value, &count)| std::iter::repeat_n(value as f32, count)).collect()
}
