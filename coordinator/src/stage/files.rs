//! The state of files: what a manifest remembers of its inputs and outputs.
//!
//! A file is known by its BLAKE3. Hashing large models takes time, so size and modification time stand beside the hash and
//! a file is read again only where these differ from what is known.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use shared::{Error, Result};

/// Something a stage reads or writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Artifact {
    File(PathBuf),
    /// A file that need not be there.
    Optional(PathBuf),
    /// A model or adapter folder: the files in it that shape what is computed with it.
    Model(PathBuf),
}

impl Artifact {
    pub(super) fn path(&self) -> &Path {
        match self {
            Artifact::File(path) | Artifact::Optional(path) | Artifact::Model(path) => path,
        }
    }
}

/// A file as it was when it was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileState {
    /// In the run's folder where relative.
    pub(super) path: PathBuf,
    pub(super) size: u64,
    pub(super) mtime_ns: u64,
    pub(super) hash: String,
}

/// Files of a model folder beside its weights.
const MODEL_FILES: [&str; 12] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "adapter_config.json",
    "trace_adapter.json",
];

/// Returns whether a file of a model folder shapes what is computed with it.
pub(super) fn is_of_model(name: &str) -> bool {
    let weights = (name.starts_with("model") || name.starts_with("adapter_model"))
        && (name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json"));
    weights || MODEL_FILES.contains(&name)
}

/// Looks at all files of some artifacts. `known` are states recorded earlier.
///
/// # Errors
/// A file is missing, or a model folder holds no model.
pub(super) fn look(artifacts: &[Artifact], run_dir: &Path, known: &[FileState]) -> Result<Vec<FileState>> {
    let mut states = Vec::new();
    for artifact in artifacts {
        match artifact {
            Artifact::File(path) => states.push(state(path, run_dir, known)?),
            Artifact::Optional(path) if path.exists() => states.push(state(path, run_dir, known)?),
            Artifact::Optional(_) => {}
            Artifact::Model(folder) => {
                let files = model_files(folder)?;
                if files.is_empty() {
                    return Err(Error::file(folder, "holds no model and no adapter"));
                }
                for file in files {
                    states.push(state(&file, run_dir, known)?);
                }
            }
        }
    }
    Ok(states)
}

/// Returns whether a recorded file is still what it was.
///
/// # Errors
/// It is there and cannot be read.
pub(super) fn is_same(recorded: &FileState, run_dir: &Path) -> Result<bool> {
    let path = run_dir.join(&recorded.path);
    if !path.is_file() {
        return Ok(false);
    }
    Ok(state(&path, run_dir, std::slice::from_ref(recorded))?.hash == recorded.hash)
}

/// Returns the hashes by path, without what does not count: sizes and times.
pub(super) fn content(states: &[FileState]) -> BTreeMap<&Path, &str> {
    states.iter().map(|state| (state.path.as_path(), state.hash.as_str())).collect()
}

fn model_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|source| Error::io("list", folder, source))?;
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| Error::io("list", folder, source))?;
        if entry.file_name().to_str().is_some_and(is_of_model) && entry.path().is_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

fn state(path: &Path, run_dir: &Path, known: &[FileState]) -> Result<FileState> {
    let data = std::fs::metadata(path).map_err(|source| Error::io("find", path, source))?;
    let mtime = data.modified().ok().and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    let mtime_ns = mtime.map_or(0, |since| since.as_nanos() as u64);
    let named = path.strip_prefix(run_dir).unwrap_or(path).to_owned();
    let is_known = |known: &&FileState| known.path == named && known.size == data.len() && known.mtime_ns == mtime_ns;
    let hash = match known.iter().find(is_known) {
        Some(known) => known.hash.clone(),
        None => hash(path, data.len(), mtime_ns)?,
    };
    Ok(FileState { path: named, size: data.len(), mtime_ns, hash })
}

/// Hashes of this process's life: several stages read the same model.
static HASHED: Mutex<BTreeMap<(PathBuf, u64, u64), String>> = Mutex::new(BTreeMap::new());

fn hash(path: &Path, size: u64, mtime_ns: u64) -> Result<String> {
    let key = (path.to_owned(), size, mtime_ns);
    if let Some(hash) = HASHED.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
        return Ok(hash.clone());
    }
    let failed = |source| Error::io("read", path, source);
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(std::fs::File::open(path).map_err(failed)?).map_err(failed)?;
    let hash = hasher.finalize().to_hex().to_string();
    HASHED.lock().unwrap_or_else(PoisonError::into_inner).insert(key, hash.clone());
    Ok(hash)
}
