//! Model folders as output: weights beside copies of the files that make them usable.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value};
use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::hub;
use crate::model::shards::{self, Planned};

/// Files of a model folder that describe its text side; copied where they exist.
pub const TEXT_FILES: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "generation_config.json",
];

/// Returns a hash over the files of a model folder that shape a computation besides its weights: configuration,
/// tokenizer, template. It belongs into the key of everything that is resumed.
///
/// # Errors
/// A file is there and cannot be read.
pub fn content_hash(dir: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    for name in TEXT_FILES.into_iter().chain(["config.json"]) {
        let file = dir.join(name);
        if !file.exists() {
            continue;
        }
        let bytes = std::fs::read(&file).map_err(|e| Error::model(&file, e.to_string()))?;
        hasher.update(name.as_bytes()).update(&(bytes.len() as u64).to_le_bytes()).update(&bytes);
    }
    Ok(hasher.finalize().to_hex()[..32].to_owned())
}

/// Returns the name of a model or adapter folder, links followed; that of the model where it is a snapshot of the hub's.
pub fn base_name(path: &Path) -> String {
    if let Some(id) = hub::name_of_snapshot(path) {
        return id.rsplit('/').next().unwrap_or(&id).to_owned();
    }
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    path.file_name().map_or("model".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Returns how a model is named in what is written about it: its hub id, or its folder as it was given.
pub fn full_name(path: &Path) -> String {
    hub::name_of_snapshot(path).unwrap_or_else(|| path.display().to_string())
}

/// Copies the tokenizer files of a model folder into another folder.
///
/// # Errors
/// A file cannot be read or written.
pub fn copy_text_files(from: &Path, to: &Path) -> Result<()> {
    for name in TEXT_FILES {
        copy(from, to, name)?;
    }
    Ok(())
}

/// Writes a full model folder with all weights in the given type; see [`save_made`].
///
/// # Errors
/// A file cannot be read or written.
pub fn save(base: &Path, out: &Path, tensors: &[(String, Tensor)], kind: Kind) -> Result<()> {
    let planned: Vec<Planned> = tensors.iter().map(|(name, t)| Planned { kind, ..Planned::of(name, t) }).collect();
    let by_name: HashMap<&str, &Tensor> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    save_made(base, out, &planned, shards::MAX_BYTES, |name| Ok(by_name[name].detach().to_kind(kind)))
}

/// Writes a full model folder into one that holds no weights: weights, in files of at most `max_bytes`, the base's tokenizer files, and its config.json,
/// which names the type of most weights: readers follow it whatever the tensors' own type is. `tensor` makes a tensor
/// when it is needed: those of one file are in memory together.
///
/// # Errors
/// A file cannot be read or written, or a tensor cannot be made.
pub fn save_made(
    base: &Path,
    out: &Path,
    tensors: &[Planned],
    max_bytes: u64,
    tensor: impl FnMut(&str) -> Result<Tensor>,
) -> Result<()> {
    shards::write(out, tensors, max_bytes, tensor)?;
    copy_text_files(base, out)?;
    let mut config: Map<String, Value> = shared::input::read_json(&base.join("config.json"))?;
    name_type(&mut config, tensors);
    Ok(shared::output::write_json(&out.join("config.json"), &config)?)
}

/// Makes a configuration name the type that most weights have, under the key it uses (both spellings, if it has both).
fn name_type(config: &mut Map<String, Value>, tensors: &[Planned]) {
    let share = |kind: Kind| tensors.iter().filter(|t| t.kind == kind).map(|t| t.numel).sum::<u64>();
    let types = [(Kind::Float, "float32"), (Kind::BFloat16, "bfloat16"), (Kind::Half, "float16")];
    let Some((_, name)) = types.into_iter().max_by_key(|(kind, _)| share(*kind)) else { return };
    let mut keys: Vec<&str> = ["dtype", "torch_dtype"].into_iter().filter(|key| config.contains_key(*key)).collect();
    if keys.is_empty() {
        keys.push("dtype");
    }
    for key in keys {
        config.insert(key.to_owned(), name.into());
    }
}

fn copy(from: &Path, to: &Path, name: &str) -> Result<()> {
    let source = from.join(name);
    if !source.exists() {
        return Ok(());
    }
    let bytes = std::fs::read(&source).map_err(|e| Error::model(&source, e.to_string()))?;
    Ok(shared::output::write_atomic(&to.join(name), &bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_names_the_type_of_most_weights() {
        let tensors = [("a", 6, Kind::BFloat16), ("norm", 2, Kind::Float)].map(|(name, numel, kind)| Planned {
            name: name.to_owned(),
            kind,
            numel,
        });
        let named = |text: &str| {
            let mut config: Map<String, Value> = serde_json::from_str(text).unwrap();
            name_type(&mut config, &tensors);
            Value::Object(config).to_string()
        };
        assert_eq!(named(r#"{"a":1}"#), r#"{"a":1,"dtype":"bfloat16"}"#);
        assert_eq!(named(r#"{"torch_dtype":"float32"}"#), r#"{"torch_dtype":"bfloat16"}"#);
        assert_eq!(
            named(r#"{"dtype":"float32","torch_dtype":"float32"}"#),
            r#"{"dtype":"bfloat16","torch_dtype":"bfloat16"}"#
        );
    }
}
