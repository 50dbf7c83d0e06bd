//! Batched generation with a key-value cache.
//!
//! Prompts are padded on the left so that all rows end at the same column; a mask hides the padding, and a padded
//! query looks at itself only, which keeps its values finite and unseen.

use std::path::Path;

use tch::{Kind, Tensor};

use super::sample::Sampling;
use crate::error::{Error, Result};
use crate::model::attention;
use crate::model::config::ModelConfig;
use crate::model::decoder::Decoder;
use crate::model::lora::Lora;
use crate::objective::step::to_f64;
use crate::placement;

/// One response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Its tokens, the stop token not included.
    pub tokens: Vec<i64>,
    /// A stop token was produced within the limit.
    pub finished: bool,
}

/// Logits of a prompt of the batch that are NaN or infinite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotFinite {
    /// The prompt's place in the batch.
    pub row: usize,
    /// Tokens generated before.
    pub position: usize,
}

impl NotFinite {
    /// Returns the error about the record that the prompt is of.
    pub fn in_file(self, file: &Path, record: usize) -> Error {
        let problem = format!(
            "the model's logits are NaN or infinite after {} tokens; its weights are damaged, or --dtype is too narrow \
             for it",
            self.position
        );
        Error::record(file, record, problem)
    }
}

/// Refuses responses that are longer than any sequence the model was made for.
///
/// # Errors
/// `--max-new-tokens` is too large.
pub fn check_length(max_new_tokens: usize, config: &ModelConfig) -> Result<()> {
    let limit = config.max_position_embeddings;
    if i64::try_from(max_new_tokens).is_ok_and(|tokens| tokens <= limit) {
        return Ok(());
    }
    Err(Error::Config(format!(
        "--max-new-tokens is {max_new_tokens}; this model was made for sequences of {limit} tokens, the prompt included"
    )))
}

/// Generates a response to each prompt, given with its item number.
///
/// # Errors
/// Logits that are not finite.
///
/// # Panics
/// If a prompt has no token: the encoder never makes one.
pub fn generate(
    decoder: &Decoder,
    adapter: Option<&Lora>,
    prompts: &[(u64, &[i64])],
    stop: &[i64],
    pad: i64,
    max_new_tokens: usize,
    sampling: &Sampling,
) -> std::result::Result<Vec<Response>, NotFinite> {
    tch::no_grad(|| {
        let config = &decoder.config;
        let (b, device) = (prompts.len() as i64, decoder.device);
        let longest = prompts.iter().map(|(_, tokens)| tokens.len()).max().expect("a batch has prompts");
        let capacity = (longest + max_new_tokens) as i64;
        let shape = [b, config.kv_heads, capacity, config.head_dim];
        let empty = || Tensor::zeros(shape, (decoder.dtype, device));
        let mut cache: Vec<(Tensor, Tensor)> = (0..config.layers).map(|_| (empty(), empty())).collect();

        let mut tokens = Vec::with_capacity(prompts.len() * longest);
        let mut positions = Vec::with_capacity(prompts.len() * longest);
        let mut offsets = Vec::with_capacity(prompts.len());
        for (_, prompt) in prompts {
            assert!(!prompt.is_empty());
            let offset = longest - prompt.len();
            offsets.push(offset as i64);
            tokens.extend(std::iter::repeat_n(pad, offset).chain(prompt.iter().copied()));
            positions.extend((0..longest).map(|t| t.saturating_sub(offset) as i64));
        }
        let offsets = placement::upload(&offsets, device).view([b, 1, 1, 1]);
        let columns = Tensor::arange(capacity, (Kind::Int64, device)).view([1, 1, 1, capacity]);

        let mut step_tokens = placement::upload(&tokens, device);
        let mut step_positions = placement::upload(&positions, device);
        let (mut filled, mut t) = (0i64, longest as i64);
        let mut responses = vec![Response { tokens: Vec::new(), finished: false }; prompts.len()];
        let items: Vec<u64> = prompts.iter().map(|(item, _)| *item).collect();
        for position in 0..max_new_tokens {
            let end = filled + t;
            let queries = Tensor::arange_start(filled, end, (Kind::Int64, device)).view([1, 1, t, 1]);
            let seen = columns.narrow(3, 0, end);
            let mask = seen
                .less_equal_tensor(&queries)
                .logical_and(&seen.greater_equal_tensor(&offsets))
                .logical_or(&seen.eq_tensor(&queries));
            let windowed = config
                .window
                .as_ref()
                .filter(|window| window.size < end)
                .map(|window| mask.logical_and(&seen.greater_tensor(&(&queries - window.size))));
            let hidden = decoder.forward_with(&step_tokens, &step_positions, adapter, |layer, q, k, v| {
                let rows = |x: Tensor, heads: i64| x.view([b, t, heads, config.head_dim]).transpose(1, 2);
                let (keys, values) = &mut cache[layer];
                keys.narrow(2, filled, t).copy_(&rows(k, config.kv_heads));
                values.narrow(2, filled, t).copy_(&rows(v, config.kv_heads));
                let (keys, values) = (keys.narrow(2, 0, end), values.narrow(2, 0, end));
                let rule = config.attention(layer);
                let mask = windowed.as_ref().filter(|_| rule.window.is_some()).unwrap_or(&mask);
                let out = attention::attend(rule, &rows(q, config.heads), &keys, &values, mask);
                out.transpose(1, 2).reshape([b * t, config.heads * config.head_dim])
            });
            let last = hidden.view([b, t, config.hidden_size]).select(1, t - 1);
            let logits = decoder.head().logits(&last);
            // A sum is finite only if every addend is.
            if let Some(row) = to_f64(&logits.sum_dim_intlist([1i64].as_slice(), false, Kind::Double))
                .iter()
                .position(|sum| !sum.is_finite())
            {
                return Err(NotFinite { row, position });
            }
            let mut next = sampling.choose(&logits, &items, position as u64);
            for (token, response) in next.iter_mut().zip(&mut responses) {
                if response.finished {
                    *token = pad;
                } else if stop.contains(token) {
                    response.finished = true;
                } else {
                    response.tokens.push(*token);
                }
            }
            if responses.iter().all(|response| response.finished) {
                break;
            }
            step_positions = (end - &offsets).view([b]);
            step_tokens = placement::upload(&next, device);
            (filled, t) = (end, 1);
        }
        Ok(responses)
    })
}
