//! The tokenizer's files of a Hugging Face model folder, read together.
//!
//! Owns which file says what: `tokenizer.json` the vocabulary, `tokenizer_config.json` (then `special_tokens_map.json`)
//! the names of special tokens, `chat_template.jinja` or else `tokenizer_config.json` the template,
//! `generation_config.json`, `config.json` and the tokenizer's EOS together the tokens that end generation.
//! `add_bos_token` and its like play no part: where there is a `tokenizer.json`, transformers 5 follows that file alone.
//! Promises byte offsets as they are in the text, none trimmed; leaves special tokens around a text to its caller.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::{PostProcessorWrapper, Tokenizer};

use super::error::TextError;
use super::template::{ChatTemplate, Date, TokenNames};

/// A token and the bytes of the text it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) id: i64,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// Everything a model folder says about text.
pub(super) struct TextFiles {
    tokenizer: Tokenizer,
    /// Tokens that the tokenizer puts around a text when it is asked to add special tokens.
    pub(super) leading: Vec<i64>,
    pub(super) trailing: Vec<i64>,
    /// Ids of added tokens that are marked special, ascending.
    special: Vec<i64>,
    pub(super) template: Option<ChatTemplate>,
    pub(super) bos: Option<i64>,
    pub(super) eos: Option<i64>,
    pub(super) pad: Option<i64>,
    /// Tokens that end generation, each once.
    pub(super) stop: Vec<i64>,
    /// One more than the largest id.
    pub(super) vocab_size: usize,
}

impl TextFiles {
    /// Reads a model folder. Only `tokenizer.json` must be there.
    pub(super) fn load(folder: &Path, date: Date) -> Result<Self, TextError> {
        let path = folder.join("tokenizer.json");
        let wrong = |reason: String| TextError::File { path: path.clone(), reason };
        let bytes = std::fs::read(&path).map_err(|source| TextError::Read { path: path.clone(), source })?;
        let mut tokenizer =
            Tokenizer::from_bytes(&bytes).map_err(|error| wrong(format!("not a tokenizer definition: {error}")))?;
        tokenizer.with_truncation(None).map_err(|error| wrong(error.to_string()))?;
        tokenizer.with_padding(None);
        let (leading, trailing) = surrounding(&tokenizer).map_err(|error| wrong(error.to_string()))?;
        // What is left of the post-processor would only trim spaces off the offsets.
        tokenizer.with_post_processor(None::<PostProcessorWrapper>);

        let config = JsonFile::read(folder, "tokenizer_config.json")?;
        let map = JsonFile::read(folder, "special_tokens_map.json")?;
        let mut names = TokenNames::new();
        for name in ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"] {
            if let Some(text) = config.token(name)?.or(map.token(name)?) {
                names.push((name, text));
            }
        }
        let named = |name: &str| -> Result<Option<i64>, TextError> {
            let Some((_, text)) = names.iter().find(|(known, _)| *known == name) else { return Ok(None) };
            match tokenizer.token_to_id(text) {
                Some(id) => Ok(Some(i64::from(id))),
                None => Err(config.wrong(format!("{name} is {text:?}, which tokenizer.json does not contain"))),
            }
        };
        let (bos, named_eos, pad) = (named("bos_token")?, named("eos_token")?, named("pad_token")?);

        let model = JsonFile::read(folder, "config.json")?.ids("eos_token_id")?;
        let mut stop: Vec<i64> = named_eos.into_iter().collect();
        for id in JsonFile::read(folder, "generation_config.json")?.ids("eos_token_id")?.into_iter().chain(model) {
            if !stop.contains(&id) {
                stop.push(id);
            }
        }
        let eos = named_eos.or(stop.first().copied());

        let template = match template_source(folder, &config)? {
            Some((path, source)) => {
                Some(ChatTemplate::compile(&source, &names, date).map_err(|reason| TextError::File { path, reason })?)
            }
            None => None,
        };
        let mut special: Vec<i64> = (tokenizer.get_added_tokens_decoder().iter())
            .filter(|(_, token)| token.special)
            .map(|(&id, _)| i64::from(id))
            .collect();
        special.sort_unstable();
        let vocab_size = tokenizer.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1);
        Ok(TextFiles { tokenizer, leading, trailing, special, template, bos, eos, pad, stop, vocab_size })
    }

    /// Splits a text into tokens, adding none.
    pub(super) fn pieces(&self, text: &str) -> Result<Vec<Piece>, TextError> {
        let encoding = self.tokenizer.encode(text, false).map_err(|error| TextError::Tokenize(error.to_string()))?;
        let offsets = encoding.get_offsets();
        Ok(encoding
            .get_ids()
            .iter()
            .zip(offsets)
            .map(|(&id, &(start, end))| Piece { id: i64::from(id), start, end })
            .collect())
    }

    /// Returns the text of tokens, special ones left out.
    pub(super) fn decode(&self, ids: &[i64]) -> String {
        let ids: Vec<u32> = ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
        // A decoder that fails leaves the tokens as they are written in the vocabulary: unlovely, but nothing is lost.
        self.tokenizer.decode(&ids, true).unwrap_or_else(|_| {
            ids.iter().filter_map(|&id| self.tokenizer.id_to_token(id)).collect::<Vec<_>>().concat()
        })
    }

    /// Returns whether a token can close a turn: it stops generation or is marked special.
    pub(super) fn closes_turn(&self, id: i64) -> bool {
        self.stop.contains(&id) || self.special.binary_search(&id).is_ok()
    }
}

/// Returns what the tokenizer adds before and after a text.
fn surrounding(tokenizer: &Tokenizer) -> tokenizers::Result<(Vec<i64>, Vec<i64>)> {
    let encoding = tokenizer.encode("a", true)?;
    let added = encoding.get_special_tokens_mask();
    let ids = || encoding.get_ids().iter().map(|&id| i64::from(id));
    let before = added.iter().take_while(|&&mark| mark == 1).count();
    let after = added[before..].iter().rev().take_while(|&&mark| mark == 1).count();
    Ok((ids().take(before).collect(), ids().skip(added.len() - after).collect()))
}

/// Returns the chat template's text and the file it came from; `chat_template.jinja` wins.
fn template_source(folder: &Path, config: &JsonFile) -> Result<Option<(PathBuf, String)>, TextError> {
    let path = folder.join("chat_template.jinja");
    match std::fs::read_to_string(&path) {
        Ok(source) => return Ok(Some((path, source))),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(source) => return Err(TextError::Read { path, source }),
    }
    let Some(value) = config.get("chat_template") else { return Ok(None) };
    if let Some(source) = value.as_str() {
        return Ok(Some((config.path.clone(), source.to_owned())));
    }
    let shape = || config.wrong("chat_template must be a string or a list of {name, template}".into());
    let mut named = Vec::new();
    for entry in value.as_array().ok_or_else(shape)? {
        let field = |key| entry.get(key).and_then(Value::as_str).ok_or_else(shape);
        named.push((field("name")?, field("template")?));
    }
    match (named.iter().find(|(name, _)| *name == "default"), &named[..]) {
        (Some((_, source)), _) | (None, [(_, source)]) => Ok(Some((config.path.clone(), (*source).to_owned()))),
        (None, _) => {
            let names: Vec<&str> = named.iter().map(|(name, _)| *name).collect();
            Err(config.wrong(format!("none of the chat templates {names:?} is named \"default\"")))
        }
    }
}

/// A JSON object of the model folder; one that is not there has no fields.
struct JsonFile {
    path: PathBuf,
    value: Value,
}

impl JsonFile {
    fn read(folder: &Path, name: &str) -> Result<Self, TextError> {
        let path = folder.join(name);
        let value = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| TextError::File { path: path.clone(), reason: format!("not JSON: {error}") })?,
            Err(error) if error.kind() == ErrorKind::NotFound => Value::Null,
            Err(source) => return Err(TextError::Read { path, source }),
        };
        if !value.is_object() && !value.is_null() {
            return Err(TextError::File { path, reason: "must hold a JSON object".into() });
        }
        Ok(JsonFile { path, value })
    }

    fn wrong(&self, reason: String) -> TextError {
        TextError::File { path: self.path.clone(), reason }
    }

    /// Returns a field that is there and not null.
    fn get(&self, field: &str) -> Option<&Value> {
        self.value.get(field).filter(|value| !value.is_null())
    }

    /// Returns a special token's text: a string, or an object with `content`.
    fn token(&self, field: &str) -> Result<Option<String>, TextError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match value.as_str().or_else(|| value.get("content")?.as_str()) {
            Some(text) => Ok(Some(text.to_owned())),
            None => Err(self.wrong(format!("{field} must be a string or an object with \"content\""))),
        }
    }

    /// Returns token ids: a number or a list of numbers, none if absent.
    fn ids(&self, field: &str) -> Result<Vec<i64>, TextError> {
        let Some(value) = self.get(field) else { return Ok(Vec::new()) };
        let id = |value: &Value| value.as_i64().filter(|&id| (0..=i64::from(u32::MAX)).contains(&id));
        let ids: Option<Vec<i64>> = match value.as_array() {
            Some(list) => list.iter().map(id).collect(),
            None => id(value).map(|id| vec![id]),
        };
        ids.ok_or_else(|| self.wrong(format!("{field} must be a token id or a list of token ids")))
    }
}

#[cfg(test)]
mod tests;
