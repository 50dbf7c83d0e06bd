//! Model folders as output: weights beside copies of the files that make them usable.

use std::path::Path;

use serde_json::{Map, Value};
use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::model::tensor_file;

/// Files of a model folder that describe its text side; copied where they exist.
const TEXT_FILES: [&str; 9] = [
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

/// Writes a full model folder: the base's config.json and tokenizer files, and the weights given in the given type,
/// which config.json then names: readers follow it whatever the weights' own type is.
///
/// # Errors
/// A file cannot be read or written.
pub fn save(base: &Path, out: &Path, tensors: &[(String, Tensor)], kind: Kind) -> Result<()> {
    let stored: Vec<_> = tensors.iter().map(|(name, t)| (name.clone(), t.detach().to_kind(kind))).collect();
    save_as_stored(base, out, &stored)?;
    let file = base.join("config.json");
    let mut config: Map<String, Value> = shared::input::read_json(&file)?;
    let key = if config.contains_key("torch_dtype") { "torch_dtype" } else { "dtype" };
    config.insert(key.into(), if kind == Kind::BFloat16 { "bfloat16" } else { "float32" }.into());
    Ok(shared::output::write_json(&out.join("config.json"), &config)?)
}

/// As [`save`], with every tensor in the type it has.
///
/// # Errors
/// A file cannot be read or written.
pub fn save_as_stored(base: &Path, out: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    std::fs::create_dir_all(out).map_err(|e| Error::model(out, e.to_string()))?;
    tensor_file::write(&out.join("model.safetensors"), tensors)?;
    copy_text_files(base, out)?;
    copy(base, out, "config.json")
}

fn copy(from: &Path, to: &Path, name: &str) -> Result<()> {
    let source = from.join(name);
    if !source.exists() {
        return Ok(());
    }
    let bytes = std::fs::read(&source).map_err(|e| Error::model(&source, e.to_string()))?;
    Ok(shared::output::write_atomic(&to.join(name), &bytes)?)
}
