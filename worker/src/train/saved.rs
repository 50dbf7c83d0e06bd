//! What a run leaves for others to read: an adapter folder, or a model folder where all weights are trained.

use std::path::Path;

use tch::Tensor;

use super::checkpoint::snapshot;
use super::run_folder::RunFolder;
use crate::beside;
use crate::control::Control;
use crate::error::Result;
use crate::model::adapter_file;
use crate::model::lora::Lora;
use crate::model_folder;
use crate::objective::step::Policy;

/// Writes what is trained into the run's folder, which can be used by itself then: weights, configuration, tokenizer. They are
/// written beside, and get their names once it is sure that no newer attempt has taken the folder over.
///
/// # Errors
/// The folder cannot be written, or is another attempt's now.
pub(super) fn save(policy: Policy<'_>, model_dir: &Path, run: &RunFolder, control: &Control) -> Result<()> {
    beside::fill(
        &run.path,
        || run.check(),
        |to| {
            write(policy, model_dir, to)?;
            control.pass("result.written");
            Ok(())
        },
    )
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
