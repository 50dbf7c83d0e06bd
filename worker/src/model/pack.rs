//! A pack: several token sequences end to end, as the decoder computes them.
//!
//! Linear layers see the n rows of all sequences as one matrix [n, d]; attention works block by block. A block is a
//! sequence, or two responses to one prompt laid out as `[prompt | response | response]`: the prompt is computed once,
//! the positions of the second response begin again after the prompt, and it does not see the first. Nothing is padded.

use tch::{Device, Tensor};

use crate::placement;
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

/// Which token of which sequence a row of a pack holds. A row of a shared prompt names the first of its sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Group of the sequence.
    pub group: usize,
    /// Place of the sequence in its group.
    pub sequence: usize,
    /// Position of the token in its sequence.
    pub position: usize,
}

/// Rows that attend to each other and to no others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Rows of the shared prompt; 0 where a sequence has the block to itself.
    pub shared: usize,
    /// Position of each row in its sequence. After the shared prompt they begin again where they fall back to `shared`.
    pub positions: Vec<usize>,
}

impl Block {
    /// Returns which rows a row sees, row by row: [t·t], true where it does. A window counts positions, not rows.
    pub fn visible(&self, window: Option<i64>) -> Vec<bool> {
        let reach = window.and_then(|window| usize::try_from(window).ok()).unwrap_or(usize::MAX);
        let t = self.positions.len();
        // Where the second response begins.
        let second = (self.shared + 1..t).find(|&row| self.positions[row] == self.shared).unwrap_or(t);
        let mut visible = Vec::with_capacity(t * t);
        for query in 0..t {
            visible.extend((0..t).map(|key| {
                let is_other_response = query >= second && (self.shared..second).contains(&key);
                let distance = self.positions[query].wrapping_sub(self.positions[key]);
                key <= query && !is_other_response && distance < reach
            }));
        }
        visible
    }
}

/// Sequences end to end with the index tensors the decoder and the head need.
#[derive(Debug)]
pub struct Pack {
    /// Token ids: [n], int64
    pub tokens: Tensor,
    /// Position of each token in its sequence: [n], int64
    pub positions: Tensor,
    /// What each row holds.
    pub rows: Vec<Row>,
    /// The blocks of attention, in the order of their rows.
    pub blocks: Vec<Block>,
    /// Number of sequences, of all groups together.
    pub sequences: usize,
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
}

/// Returns how many leading tokens of two sequences are computed once: their prompt, if it is the same.
fn shared_prompt(first: &Sequence, second: &Sequence) -> usize {
    let is_same = first.tokens[..first.prompt_len] == second.tokens[..second.prompt_len];
    if is_same { first.prompt_len } else { 0 }
}

/// Returns the number of rows that the sequences of one group take in a pack.
pub fn rows_of(sequences: &[Sequence]) -> usize {
    let tokens: usize = sequences.iter().map(|s| s.tokens.len()).sum();
    match sequences {
        [first, second] => tokens - shared_prompt(first, second),
        _ => tokens,
    }
}

impl Pack {
    /// Lays groups of sequences end to end; each sequence says which of its positions are asked for. The two sequences
    /// of a group of two share their prompt where its tokens are the same.
    ///
    /// # Panics
    /// If there is no sequence, or one without tokens: the encoder never makes any.
    pub fn new(groups: &[Vec<(&Sequence, Want)>], device: Device) -> Self {
        let (mut tokens, mut positions) = (vec![], vec![]);
        let (mut rows, mut blocks) = (vec![], Vec::<Block>::new());
        let (mut scored_rows, mut targets, mut scored_counts) = (vec![], vec![], vec![]);
        let (mut kl_rows, mut kl_counts) = (vec![], vec![]);
        for (group, sequences) in groups.iter().enumerate() {
            let group_start = tokens.len();
            let common = match sequences.as_slice() {
                [(first, _), (second, _)] => shared_prompt(first, second),
                _ => 0,
            };
            for (i, (sequence, want)) in sequences.iter().enumerate() {
                assert!(!sequence.tokens.is_empty());
                let skipped = if i == 0 { 0 } else { common };
                let start = tokens.len();
                if skipped == 0 {
                    blocks.push(Block { shared: common, positions: Vec::new() });
                }
                let block = blocks.last_mut().expect("the first sequence of a group begins a block");
                for (t, &token) in sequence.tokens.iter().enumerate().skip(skipped) {
                    block.positions.push(t);
                    tokens.push(token);
                    positions.push(t as i64);
                    rows.push(Row { group, sequence: i, position: t });
                }
                let row = |t: usize| (if t < skipped { group_start + t } else { start + t - skipped }) as i64;
                let scored = if want.log_prob { sequence.scored.as_slice() } else { &[] };
                scored_rows.extend(scored.iter().map(|&t| row(t - 1)));
                targets.extend(scored.iter().map(|&t| sequence.tokens[t]));
                scored_counts.push(scored.len());
                let kl = if want.kl { sequence.kl.as_slice() } else { &[] };
                kl_rows.extend(kl.iter().map(|&t| row(t)));
                kl_counts.push(kl.len());
            }
        }
        assert!(!rows.is_empty());
        let long = |values: &[i64]| placement::upload(values, device);
        Pack {
            tokens: long(&tokens),
            positions: long(&positions),
            rows,
            blocks,
            sequences: scored_counts.len(),
            scored_rows: long(&scored_rows),
            targets: long(&targets),
            scored_counts,
            kl_rows: long(&kl_rows),
            kl_counts,
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(tokens: &[i64], prompt_len: usize) -> Sequence {
        let scored: Vec<usize> = (prompt_len..tokens.len()).collect();
        let kl = scored.iter().map(|t| t - 1).collect();
        Sequence { tokens: tokens.to_vec(), scored, kl, prompt_len, cut: 0 }
    }

    fn numbers(tensor: &Tensor) -> Vec<i64> {
        Vec::try_from(tensor).unwrap()
    }

    #[test]
    fn a_shared_prompt_is_laid_out_once() {
        let (a, b) = (sequence(&[5, 6, 7, 8], 2), sequence(&[5, 6, 9], 2));
        let pack = Pack::new(&[vec![(&a, Want::LOG_PROB), (&b, Want::LOG_PROB)]], Device::Cpu);
        assert_eq!(numbers(&pack.tokens), [5, 6, 7, 8, 9]);
        assert_eq!(numbers(&pack.positions), [0, 1, 2, 3, 2]);
        assert_eq!(numbers(&pack.scored_rows), [1, 2, 1], "both first tokens are predicted by the prompt's last row");
        assert_eq!(numbers(&pack.targets), [7, 8, 9]);
        assert_eq!(pack.blocks, [Block { shared: 2, positions: vec![0, 1, 2, 3, 2] }]);
        let visible: Vec<u8> = pack.blocks[0].visible(None).into_iter().map(u8::from).collect();
        let expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]];
        assert_eq!(visible, expected.concat());
        let windowed: Vec<u8> = pack.blocks[0].visible(Some(2)).into_iter().map(u8::from).collect();
        let expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 1, 0, 0, 1]];
        assert_eq!(windowed, expected.concat());
        assert_eq!(rows_of(&[a, b]), 5);
    }

    #[test]
    fn different_prompts_are_not_shared() {
        let (a, b) = (sequence(&[5, 6, 7], 2), sequence(&[5, 4, 9], 2));
        let pack = Pack::new(&[vec![(&a, Want::LOG_PROB), (&b, Want::KL)]], Device::Cpu);
        assert_eq!(pack.blocks.len(), 2);
        assert_eq!(numbers(&pack.scored_rows), [1]);
        assert_eq!(numbers(&pack.kl_rows), [4]);
        assert_eq!(pack.blocks[0].visible(None).iter().filter(|v| **v).count(), 6);
        assert_eq!(rows_of(&[a, b]), 6);
    }
}
