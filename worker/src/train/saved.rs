//! What a run leaves for others to read: an adapter folder, or a model folder where all weights are trained.

use std::path::Path;

use crate::error::Result;
use crate::model::adapter_file;
use crate::model_folder;
use crate::objective::step::Policy;

/// Writes what is trained into a folder that can be used by itself: weights, configuration, tokenizer.
///
/// # Errors
/// The folder cannot be written.
pub(super) fn save(policy: Policy<'_>, model_dir: &Path, to: &Path) -> Result<()> {
    let decoder = policy.decoder;
    match policy.adapter {
        Some(adapter) => {
            let name = model_folder::full_name(model_dir);
            adapter_file::save(adapter, to, &name, &decoder.fingerprint)?;
            model_folder::copy_text_files(model_dir, to)
        }
        None => model_folder::save(model_dir, to, &decoder.named_parameters(), decoder.dtype),
    }
}
