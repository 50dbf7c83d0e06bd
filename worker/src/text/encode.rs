//! One prompt and one response become a token sequence with its mask.
//!
//! Owns the two mask modes of spec 3.5, truncation, and the fallback format for tokenizers without a template.
//! In exact mode a text is rendered and tokenised once, as a whole, and the response is found by byte offsets; no
//! token is treated by its id, since BOS, EOS and padding may be tokens of the text itself. Reference mode counts
//! tokens of two tokenisations, as spec 3.1 to 3.4 say, with padding on the right; since padding carries no label, it
//! is not made here. Leaves padding, packing and the record's name in an error to the caller.

use std::ops::Range;
use std::path::Path;

use shared::record::{Text, Turn};

use super::error::TextError;
use super::template::{ChatTemplate, Date};
use super::tokenizer::{Piece, TextFiles};

/// Which positions are scored (spec 3.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MaskMode {
    /// The response's tokens and the one token that closes it.
    #[default]
    Exact,
    /// Bit-faithful to spec 3.1 to 3.4, right padding assumed.
    Reference,
}

/// What is taken from a prompt that is a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TextRule {
    /// All turns, system turns too.
    #[default]
    AllTurns,
    /// Before a response that is given: the last assistant turn; before one to be generated: the first user turn; where
    /// there is none, all contents joined by a space (spec 1.7, training and evaluation side).
    Reference,
}

/// How texts are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EncoderOptions {
    /// Which positions are scored.
    pub mask: MaskMode,
    /// What is taken from a prompt that is a conversation.
    pub text_rule: TextRule,
    /// The day that templates are told.
    pub date: Date,
}

/// Tokens of a prompt and a response, and what is asked of the model at which position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Prompt and response; nothing after the last scored token in exact mode.
    pub tokens: Vec<i64>,
    /// Positions t ≥ 1, ascending, whose token is scored: predicted from t − 1.
    pub scored: Vec<usize>,
    /// Positions, ascending, whose next-token distribution enters the KL.
    pub kl: Vec<usize>,
    /// Leading tokens that belong to the prompt part.
    pub prompt_len: usize,
    /// Tokens that were taken off to keep the limit.
    pub cut: usize,
}

/// Leading tokens of a prompt in the gold batch of reference mode (spec 3.3).
const GOLD_PROMPT_TOKENS: usize = 128;
/// Tokens of prompt and response together in that batch, before the end-of-sequence token.
const GOLD_TOKENS: usize = 512;

/// A model folder's tokenizer and template, with the chosen rules.
pub struct Encoder {
    files: TextFiles,
    options: EncoderOptions,
}

impl Encoder {
    /// Reads tokenizer and template of a model folder.
    pub fn load(model_dir: &Path, options: EncoderOptions) -> Result<Self, TextError> {
        Ok(Encoder { files: TextFiles::load(model_dir, options.date)?, options })
    }

    /// Returns a prompt with a response as scoring and training see it (spec 3.1, appendix C).
    pub fn pair(&self, prompt: &Text, response: &str, max_length: usize) -> Result<Sequence, TextError> {
        not_empty(prompt, response)?;
        if max_length < 2 {
            return Err(TextError::LimitTooSmall(max_length));
        }
        match self.options.mask {
            MaskMode::Exact => self.exact(&self.ruled(prompt), response, max_length),
            MaskMode::Reference => self.reference(&self.ruled(prompt), response, max_length),
        }
    }

    /// Returns a pair of the gold batch: as [`Encoder::pair`], but in reference mode prompt and response are
    /// tokenised apart, without template, under limits of their own (spec 3.3; `max_length` plays no part).
    pub fn gold(&self, prompt: &Text, response: &str, max_length: usize) -> Result<Sequence, TextError> {
        if self.options.mask == MaskMode::Exact {
            return self.pair(prompt, response, max_length);
        }
        not_empty(prompt, response)?;
        let mut tokens = ids(&self.files.pieces(&self.ruled(prompt).prompt_text())?);
        let mut cut = shorten(&mut tokens, GOLD_PROMPT_TOKENS);
        let prompt_len = tokens.len();
        tokens.extend(ids(&self.files.pieces(response)?));
        cut += shorten(&mut tokens, GOLD_TOKENS);
        tokens.push(self.eos()?);
        Ok(labelled_from(prompt_len, tokens, cut))
    }

    /// Returns a prompt up to where the response begins, for generation.
    ///
    /// Without a template the space after `### Answer:` is left to the first generated token where the tokenizer
    /// joins the two, so that generation continues exactly what training has seen.
    pub fn prompt(&self, prompt: &Text) -> Result<Vec<i64>, TextError> {
        if prompt.is_empty() {
            return Err(TextError::EmptyPrompt);
        }
        let prompt = match self.options.text_rule {
            TextRule::AllTurns => prompt.clone(),
            TextRule::Reference => Text::Plain(prompt.question()),
        };
        let Some(template) = &self.files.template else {
            let text = fallback(&prompt);
            let probe = self.files.pieces(&format!("{text}a"))?;
            let before: Vec<Piece> = probe.into_iter().take_while(|piece| piece.end <= text.len()).collect();
            return Ok([self.files.leading.clone(), ids(&before)].concat());
        };
        let tokens = ids(&self.files.pieces(&template.render(&prompt.turns(), true)?)?);
        let tokens = match self.options.mask {
            MaskMode::Exact => tokens,
            MaskMode::Reference => [&self.files.leading[..], &tokens, &self.files.trailing].concat(),
        };
        if tokens.is_empty() { Err(TextError::EmptyPrompt) } else { Ok(tokens) }
    }

    /// Returns the text of tokens, special ones left out.
    pub fn decode(&self, ids: &[i64]) -> String {
        self.files.decode(ids)
    }

    /// Returns the tokens that end generation, the tokenizer's own end-of-sequence token first.
    pub fn stop_ids(&self) -> &[i64] {
        &self.files.stop
    }

    /// Returns a token for padding: the tokenizer's, else the end-of-sequence token, else 0. It is always masked.
    pub fn pad_id(&self) -> i64 {
        self.files.pad.or(self.files.eos).unwrap_or(0)
    }

    /// Returns one more than the largest token id; the model's embedding must have at least as many rows.
    pub fn vocab_size(&self) -> usize {
        self.files.vocab_size
    }

    /// Returns whether prompts are rendered by a chat template, not in the fallback format.
    pub fn has_template(&self) -> bool {
        self.files.template.is_some()
    }

    fn eos(&self) -> Result<i64, TextError> {
        self.files.eos.ok_or(TextError::NoEos)
    }

    fn ruled(&self, prompt: &Text) -> Text {
        match self.options.text_rule {
            TextRule::AllTurns => prompt.clone(),
            TextRule::Reference => Text::Plain(prompt.response()),
        }
    }

    /// Exact mode: joint tokenisation, response by byte offsets, truncation that keeps the response (appendix C).
    fn exact(&self, prompt: &Text, response: &str, max_length: usize) -> Result<Sequence, TextError> {
        let (text, span) = match &self.files.template {
            Some(template) => locate(template, &prompt.turns(), response)?,
            None => {
                let before = fallback(prompt);
                let span = before.len()..before.len() + response.len();
                (before + response, span)
            }
        };
        let pieces = self.files.pieces(&text)?;
        let response_piece = |piece: &Piece| piece.start < span.end && piece.end > span.start;
        let no_tokens = TextError::EmptyResponse(": it has no tokens");
        let Some(first) = pieces.iter().position(response_piece) else { return Err(no_tokens) };
        let end = pieces.iter().rposition(response_piece).map_or(first, |last| last + 1);

        let mut tokens = ids(&pieces);
        let mut scored: Vec<usize> = (first..end).collect();
        if self.files.template.is_some() {
            // Text between the response and the token that closes it (Llama 2 writes a space) is not scored.
            if let Some(gap) = tokens[end..].iter().position(|&id| self.files.closes_turn(id)) {
                scored.push(end + gap);
            }
            tokens.truncate(scored[scored.len() - 1] + 1);
        } else {
            tokens.truncate(end);
            tokens.push(self.eos()?);
            scored.push(end);
            let added = self.files.leading.len();
            tokens.splice(0..0, self.files.leading.iter().copied());
            scored.iter_mut().for_each(|t| *t += added);
        }
        self.truncated(tokens, scored, max_length)
    }

    /// Takes what is over the limit from the prompt's left, after BOS, and then from the response's right.
    fn truncated(
        &self,
        mut tokens: Vec<i64>,
        mut scored: Vec<usize>,
        max_length: usize,
    ) -> Result<Sequence, TextError> {
        let mut prompt_len = scored[0];
        if prompt_len == 0 {
            return Err(TextError::EmptyPrompt);
        }
        let cut = tokens.len().saturating_sub(max_length);
        let excess = cut.min(prompt_len - 1);
        let kept_head = usize::from(self.files.bos.is_some_and(|bos| tokens[0] == bos));
        tokens.drain(kept_head..kept_head + excess);
        scored.iter_mut().for_each(|t| *t -= excess);
        prompt_len -= excess;
        tokens.truncate(max_length);
        scored.retain(|&t| t < max_length);
        let kl = scored.iter().map(|t| t - 1).collect();
        Ok(Sequence { tokens, scored, kl, prompt_len, cut })
    }

    /// Reference mode (spec 3.1): full text cut at the right, labels from one token before the prefix's end.
    fn reference(&self, prompt: &Text, response: &str, max_length: usize) -> Result<Sequence, TextError> {
        let (full, prefix) = match &self.files.template {
            Some(template) => {
                let mut turns = prompt.turns();
                let prefix = template.render(&turns, false)?;
                turns.push(assistant(response));
                (template.render(&turns, false)?, prefix)
            }
            None => {
                let prefix = fallback(prompt);
                (format!("{prefix}{response}"), prefix)
            }
        };
        let (leading, trailing) = (&self.files.leading[..], &self.files.trailing[..]);
        let added = leading.len() + trailing.len();
        let mut body = ids(&self.files.pieces(&full)?);
        let cut = shorten(&mut body, max_length.saturating_sub(added));
        let tokens = [leading, &body, trailing].concat();
        let prefix_tokens = self.files.pieces(&prefix)?.len() + added;
        let start = prefix_tokens.saturating_sub(1);
        if start >= tokens.len() {
            return Err(TextError::PromptTooLong { prompt_tokens: prefix_tokens, max_length });
        }
        Ok(labelled_from(start, tokens, cut))
    }
}

/// Cuts tokens at the right; returns how many are gone.
fn shorten(tokens: &mut Vec<i64>, limit: usize) -> usize {
    let cut = tokens.len().saturating_sub(limit);
    tokens.truncate(limit);
    cut
}

/// Labels every token from `start` on; the KL mask is the labels, not shifted (spec 3.2, 3.4).
fn labelled_from(start: usize, tokens: Vec<i64>, cut: usize) -> Sequence {
    let kl: Vec<usize> = (start..tokens.len()).collect();
    let scored = kl.iter().copied().filter(|&t| t >= 1).collect();
    Sequence { tokens, scored, kl, prompt_len: start, cut }
}

fn not_empty(prompt: &Text, response: &str) -> Result<(), TextError> {
    if prompt.is_empty() {
        return Err(TextError::EmptyPrompt);
    }
    if response.is_empty() { Err(TextError::EmptyResponse("")) } else { Ok(()) }
}

fn ids(pieces: &[Piece]) -> Vec<i64> {
    pieces.iter().map(|piece| piece.id).collect()
}

/// Returns the text before a response where there is no template (spec 3.1).
fn fallback(prompt: &Text) -> String {
    format!("### Question: {}\n ### Answer: ", prompt.prompt_text())
}

fn assistant(content: &str) -> Turn {
    Turn { role: "assistant".into(), content: content.into() }
}

/// Renders the conversation with its response and returns where, in bytes, the response stands.
///
/// The response is first replaced by a mark that occurs nowhere else: what surrounds the mark surrounds the response
/// too, however often its words occur in the prompt and whatever whitespace the template takes off it. A template
/// whose surroundings depend on the response (reasoning marks) is asked for its generation prompt instead.
fn locate(template: &ChatTemplate, prompt: &[Turn], response: &str) -> Result<(String, Range<usize>), TextError> {
    let with = |content: &str| {
        let mut turns = prompt.to_vec();
        turns.push(assistant(content));
        template.render(&turns, false)
    };
    let text = with(response)?;
    let mut mark = String::from("\u{E0A1}response\u{E0A2}");
    while text.contains(&mark) {
        mark.push('\u{E0A2}');
    }
    let marked = with(&mark)?;
    let Some((before, after)) = marked.split_once(&mark) else {
        return Err(TextError::ResponseNotFound("the last assistant turn is left out".into()));
    };
    if text.len() >= before.len() + after.len() && text.starts_with(before) && text.ends_with(after) {
        let span = before.len()..text.len() - after.len();
        return if span.is_empty() {
            Err(TextError::EmptyResponse(" once the template has trimmed it"))
        } else {
            Ok((text, span))
        };
    }
    let header = template.render(prompt, true)?;
    let rest = text.strip_prefix(&header).unwrap_or_default();
    for written in [response, response.trim_end(), response.trim_start(), response.trim()] {
        if !written.is_empty() && rest.starts_with(written) {
            return Ok((text, header.len()..header.len() + written.len()));
        }
    }
    Err(TextError::ResponseNotFound("what stands around it depends on the response itself".into()))
}

#[cfg(test)]
mod released;
#[cfg(test)]
mod tests;
