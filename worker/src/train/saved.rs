//! What a run leaves for others to read: an adapter folder, or a model folder where all weights are trained.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tch::Tensor;

use super::checkpoint::snapshot;
use super::run_folder::RunFolder;
use crate::error::{Error, Result};
use crate::model::adapter_file;
use crate::model::lora::Lora;
use crate::model_folder;
use crate::objective::step::Policy;

/// Writes what is trained into the run's folder, which can be used by itself then: weights, configuration, tokenizer. They are
/// written beside, and get their names once it is sure that no newer attempt has taken the folder over.
///
/// # Errors
/// The folder cannot be written, or is another attempt's now.
pub(super) fn save(policy: Policy<'_>, model_dir: &Path, run: &RunFolder) -> Result<()> {
    run.check()?;
    remove_unfinished(&run.path, RESULT)?;
    let beside = beside(&run.path, RESULT);
    let moved = write(policy, model_dir, &beside).and_then(|()| {
        run.check()?;
        move_all(&beside, &run.path)
    });
    moved.and(remove(&beside))
}

/// What is being written beside.
const RESULT: &str = "result";

/// Returns a folder's name of this process's own, in other containers too, that [`remove_unfinished`] knows.
pub(super) fn beside(run_dir: &Path, stem: &str) -> PathBuf {
    let moment = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_nanos());
    run_dir.join(format!("{stem}.{}.{moment}.tmp", std::process::id()))
}

/// Removes what was being written when a process ended.
///
/// # Errors
/// The folder cannot be read, or something in it not be removed.
pub(super) fn remove_unfinished(run_dir: &Path, stem: &str) -> Result<()> {
    for entry in std::fs::read_dir(run_dir).map_err(|e| Error::model(run_dir, e.to_string()))? {
        let entry = entry.map_err(|e| Error::model(run_dir, e.to_string()))?;
        let name = entry.file_name();
        let is_ours = name.to_str().and_then(|name| name.strip_prefix(stem)?.strip_prefix('.')?.strip_suffix(".tmp"));
        if is_ours.is_some_and(|own| own.chars().all(|c| c.is_ascii_digit() || c == '.')) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes a folder, if it is there.
pub(super) fn remove(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::model(folder, e.to_string())),
        _ => Ok(()),
    }
}

/// Gives all files of a folder their names in another one.
fn move_all(from: &Path, to: &Path) -> Result<()> {
    let io = |e: std::io::Error| Error::model(to, format!("could not be written: {e}"));
    let entries: std::io::Result<Vec<_>> = std::fs::read_dir(from).map_err(io)?.collect();
    for name in entries.map_err(io)?.into_iter().map(|entry| entry.file_name()) {
        std::fs::rename(from.join(&name), to.join(&name)).map_err(io)?;
    }
    std::fs::File::open(to).and_then(|folder| folder.sync_all()).map_err(io)
}

fn write(policy: Policy<'_>, model_dir: &Path, to: &Path) -> Result<()> {
    let decoder = policy.decoder;
    match policy.adapter {
        Some(adapter) => save_adapter(adapter, &decoder.fingerprint, model_dir, to),
        None => model_folder::save(model_dir, to, &decoder.named_parameters(), decoder.dtype),
    }
}

/// Returns what writes into a folder what [`save`] would write now, at any later time and on any thread: it has a copy in host memory.
pub(super) fn saver(policy: Policy<'_>, model_dir: &Path) -> impl FnOnce(&Path) -> Result<()> + Send + use<> {
    let (fingerprint, dtype, model_dir) =
        (policy.decoder.fingerprint.clone(), policy.decoder.dtype, model_dir.to_owned());
    let adapter = policy.adapter.map(Lora::on_host);
    let copy = |(name, tensor): (String, Tensor)| (name, snapshot::copy(None, &tensor.detach().to_kind(dtype)));
    let weights: Vec<(String, Tensor)> = match &adapter {
        Some(_) => Vec::new(),
        None => policy.decoder.named_parameters().into_iter().map(copy).collect(),
    };
    move |to| match &adapter {
        Some(adapter) => save_adapter(adapter, &fingerprint, &model_dir, to),
        None => model_folder::save(&model_dir, to, &weights, dtype),
    }
}

fn save_adapter(adapter: &Lora, fingerprint: &str, model_dir: &Path, to: &Path) -> Result<()> {
    adapter_file::save(adapter, to, &model_folder::full_name(model_dir), fingerprint)?;
    model_folder::copy_text_files(model_dir, to)
}
