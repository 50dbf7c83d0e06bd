//! `best/`: the adapter or model of a run with the lowest validation loss so far, usable by itself.
//!
//! The thread of the checkpoints writes it, before the next of them, beside and puts it in place by renames, the one before aside
//! first: a process that dies in between leaves it under `best.before`, from where [`recover`] takes it back.
//! `best/validation.json` says of which step it is and with which loss.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::metrics::Figures;
use super::run_folder::RunFolder;
use crate::beside;
use crate::error::{Error, Result};
use crate::fault::{self, Fault};
use crate::model::adapter_file;
use crate::model::tensor_file::TensorFile;
use crate::model::weights::Checkpoint;

/// Which step was best.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Optimiser steps done.
    pub step: u64,
    /// Validation loss.
    pub loss: f64,
}

impl Best {
    /// Returns the best of some validations, the first of equal ones.
    pub fn of(rows: &[Figures]) -> Option<Best> {
        rows.iter().fold(None, |best, row| if Best::is_beaten(best, row) { Some(Best::from(row)) } else { best })
    }

    /// Returns whether a validation is better than the best so far.
    pub fn is_beaten(best: Option<Best>, row: &Figures) -> bool {
        best.is_none_or(|best| row.loss < best.loss)
    }
}

impl From<&Figures> for Best {
    fn from(row: &Figures) -> Self {
        Best { step: row.step, loss: row.loss }
    }
}

/// The folder's name.
pub(super) const FOLDER: &str = "best";
const BEFORE: &str = "best.before";

/// Returns what replaces the folder by one that `save` fills, on any thread. Its errors: the folder cannot be written, or is
/// another process's then.
pub(super) fn keeper<S: FnOnce(&Path) -> Result<()> + Send>(
    run: &RunFolder,
    best: Best,
    save: S,
    fault: Option<Arc<Fault>>,
) -> impl FnOnce() -> Result<()> + Send + use<S> {
    let (run_dir, place) = (run.path.clone(), run.guard());
    let pass = move |point: &str| {
        fault::pass_or_hang(fault.as_deref(), point);
        place.as_ref().map_or(Ok(()), |place| place.check())
    };
    move || keep(&run_dir, pass, best, save)
}

/// `pass` is told the point that is reached, and says whether the folder is still this process's.
fn keep(
    run_dir: &Path,
    pass: impl Fn(&str) -> Result<()>,
    best: Best,
    save: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    pass("best.begun")?;
    let [target, before] = [FOLDER, BEFORE].map(|name| run_dir.join(name));
    let unfinished = beside::name(run_dir, FOLDER);
    let io = |e: std::io::Error| Error::model(&target, format!("could not be written: {e}"));
    beside::remove_unfinished(run_dir, FOLDER);
    std::fs::create_dir_all(&unfinished).map_err(io)?;
    let write = || {
        save(&unfinished)?;
        shared::output::write_json(&unfinished.join("validation.json"), &best)?;
        pass("best.written")
    };
    write().inspect_err(|_| {
        let _ = beside::remove(&unfinished);
    })?;
    if target.exists() {
        beside::remove(&before)?;
        std::fs::rename(&target, &before).map_err(io)?;
        if let Err(problem) = pass("best.aside") {
            // What was moved may be the newer attempt's.
            if !target.exists() {
                let _ = std::fs::rename(&before, &target);
            }
            return Err(problem);
        }
    }
    std::fs::rename(&unfinished, &target).map_err(io)?;
    std::fs::File::open(run_dir).and_then(|dir| dir.sync_all()).map_err(io)?;
    beside::remove(&before)
}

/// Makes sure that the folder is there for a run that goes on with this best so far.
///
/// # Errors
/// It is not there, or the run's folder cannot be written.
pub(super) fn recover(run_dir: &Path, best: Option<Best>) -> Result<()> {
    let [target, before] = [FOLDER, BEFORE].map(|name| run_dir.join(name));
    beside::remove_unfinished(run_dir, FOLDER);
    if before.exists() && !target.exists() {
        std::fs::rename(&before, &target).map_err(|e| Error::model(&target, e.to_string()))?;
    }
    beside::remove(&before)?;
    match best {
        Some(best) if !target.join("validation.json").exists() => Err(Error::model(
            &target,
            format!(
                "is not there, though step {} was the best so far; restore it, or remove the run's checkpoints to start over",
                best.step
            ),
        )),
        _ => Ok(()),
    }
}

/// Copies the tensors of the folder into those that were trained.
///
/// # Errors
/// The folder cannot be read, or a tensor is missing or of another shape.
pub(super) fn load(run_dir: &Path, is_adapter: bool, trained: &[(String, Tensor)]) -> Result<()> {
    let folder = run_dir.join(FOLDER);
    let (adapter, model) = match is_adapter {
        true => (Some(TensorFile::open(&folder.join("adapter_model.safetensors"))?), None),
        // In one file or several.
        false => (None, Some(Checkpoint::open(&folder)?)),
    };
    for (name, tensor) in trained {
        let stored = match (&adapter, &model) {
            (Some(adapter), _) => adapter.tensor(&format!("{}{name}", adapter_file::PREFIX))?,
            (None, Some(model)) => model.stored(name)?,
            (None, None) => unreachable!("one of the two was opened"),
        };
        if stored.size() != tensor.size() {
            let problem = format!("{name} has shape {:?}, not {:?}", stored.size(), tensor.size());
            return Err(Error::model(&folder, problem));
        }
        tch::no_grad(|| tensor.shallow_clone().copy_(&stored));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_in_several_files_is_loaded_too() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join(FOLDER);
        std::fs::create_dir_all(&folder).unwrap();
        let of = |value: f64| Tensor::full([4], value, (tch::Kind::Float, tch::Device::Cpu));
        let stored = [("a".to_owned(), of(1.0)), ("b".to_owned(), of(2.0))];
        let planned: Vec<_> = stored.iter().map(|(name, t)| crate::model::shards::Planned::of(name, t)).collect();
        let make = |name: &str| Ok(stored.iter().find(|(own, _)| own == name).unwrap().1.copy());
        crate::model::shards::write(&folder, &planned, 16, make).unwrap();
        assert!(!folder.join("model.safetensors").exists());
        let trained = [("a".to_owned(), of(0.0)), ("b".to_owned(), of(0.0))];
        load(dir.path(), false, &trained).unwrap();
        assert_eq!(trained.map(|(_, t)| t.double_value(&[3])), [1.0, 2.0]);
        let other = [("c".to_owned(), of(0.0))];
        assert!(load(dir.path(), false, &other).unwrap_err().to_string().contains("has no tensor c"));
    }

    fn row(step: u64, loss: f64) -> Figures {
        Figures { step, loss, ..Figures::default() }
    }

    #[test]
    fn the_lowest_loss_is_best_and_of_equal_ones_the_first() {
        assert_eq!(Best::of(&[]), None);
        let rows = [row(3, 0.9), row(6, 0.4), row(9, 0.4), row(12, 0.7)];
        assert_eq!(Best::of(&rows), Some(Best { step: 6, loss: 0.4 }));
        assert!(!Best::is_beaten(Best::of(&rows), &row(15, 0.4)));
        assert!(Best::is_beaten(Best::of(&rows), &row(15, 0.39)));
    }

    #[test]
    fn what_a_death_left_aside_is_taken_back_and_a_missing_folder_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let best = Some(Best { step: 3, loss: 0.5 });
        assert!(recover(dir.path(), None).is_ok());
        assert!(recover(dir.path(), best).unwrap_err().to_string().contains("step 3"));
        let aside = dir.path().join(BEFORE);
        std::fs::create_dir(&aside).unwrap();
        std::fs::write(aside.join("validation.json"), "{}").unwrap();
        std::fs::create_dir(dir.path().join("best.77.tmp")).unwrap();
        std::fs::create_dir(dir.path().join("best.notes.tmp")).unwrap();
        recover(dir.path(), best).unwrap();
        assert!(dir.path().join("best/validation.json").exists() && !aside.exists());
        assert!(!dir.path().join("best.77.tmp").exists());
        assert!(dir.path().join("best.notes.tmp").exists(), "none of ours");
        // Both are there: the newer one is in place already.
        std::fs::create_dir(&aside).unwrap();
        recover(dir.path(), best).unwrap();
        assert!(!aside.exists() && dir.path().join("best/validation.json").exists());
    }
}
