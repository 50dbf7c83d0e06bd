//! Checkpoints: everything a run needs to continue to the same bits.
//!
//! `checkpoint-N/` (N = optimiser steps done) holds `state.safetensors` (trained tensors, moments, masters) and
//! `state.json` (step, settings key, BLAKE3 of the tensors). Written beside, synced, renamed: a folder under its final
//! name is whole, unless the disk damaged it, which the hash tells.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::optim::AdamW;
use super::pace::Seen;
use crate::error::{Error, Result};
use crate::model::tensor_file::{self, TensorFile};

const FORMAT: u32 = 1;

/// The readable half of a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Format version.
    pub format: u32,
    /// Optimiser steps done.
    pub step: u64,
    /// Key of everything that shapes the run; a checkpoint of another key is not continued.
    pub run_key: String,
    /// What the losses so far have decided about the learning rate.
    #[serde(default, skip_serializing_if = "Seen::is_empty")]
    pub seen: Seen,
    /// BLAKE3 of `state.safetensors`.
    pub tensors_blake3: String,
}

/// Writes the checkpoint of a step and removes older ones beyond `keep`. `check` makes sure that the folder is still this
/// process's: it is asked before anything there is replaced or removed.
///
/// # Errors
/// The folder cannot be written, or is another process's now; earlier checkpoints are untouched then.
pub fn save(
    run_dir: &Path,
    optimizer: &AdamW,
    seen: &Seen,
    run_key: &str,
    keep: usize,
    check: &dyn Fn() -> Result<()>,
) -> Result<()> {
    check()?;
    let step = optimizer.step;
    let target = run_dir.join(format!("checkpoint-{step}"));
    // A name of this process's own, in other containers too: one that was frozen while it wrote finds its folder removed,
    // not filled by another.
    let moment = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_nanos());
    let own = |part: u8| run_dir.join(format!("checkpoint-{step}.{}.{moment}.{part}.tmp", std::process::id()));
    let (beside, aside) = (own(0), own(1));
    let io = |e: std::io::Error| Error::model(&target, format!("checkpoint could not be written: {e}"));
    for left in unfinished(run_dir)? {
        std::fs::remove_dir_all(&left).map_err(io)?;
    }
    std::fs::create_dir_all(&beside).map_err(io)?;
    let mut tensors: Vec<(String, Tensor)> =
        optimizer.parameters().into_iter().map(|(name, t)| (format!("parameter.{name}"), t)).collect();
    tensors.extend(optimizer.state());
    let file = beside.join("state.safetensors");
    tensor_file::write(&file, &tensors)?;
    let state =
        State { format: FORMAT, step, run_key: run_key.to_owned(), seen: seen.clone(), tensors_blake3: hash(&file)? };
    shared::output::write_json(&beside.join("state.json"), &state)?;
    check()?;
    let had_one = target.exists();
    if had_one {
        std::fs::rename(&target, &aside).map_err(io)?;
    }
    if let Err(error) = std::fs::rename(&beside, &target) {
        // Frozen since the check: what was there is a newer attempt's.
        if had_one {
            let _ = std::fs::rename(&aside, &target);
        }
        return Err(io(error));
    }
    if had_one {
        std::fs::remove_dir_all(&aside).map_err(io)?;
    }
    std::fs::File::open(run_dir).and_then(|dir| dir.sync_all()).map_err(io)?;
    let mut all = list(run_dir)?;
    all.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
    for (_, old) in all.into_iter().skip(keep.max(1)) {
        std::fs::remove_dir_all(&old).map_err(|e| Error::model(&old, format!("could not be removed: {e}")))?;
    }
    Ok(())
}

/// Restores the newest whole checkpoint of this run; returns its step and what the losses had
/// decided, or `None` where there is none yet.
///
/// A damaged checkpoint is passed over with a warning as long as an older whole one exists.
///
/// # Errors
/// Every checkpoint is damaged, or the newest belongs to a run with other settings.
pub fn resume(run_dir: &Path, optimizer: &mut AdamW, run_key: &str) -> Result<Option<(u64, Seen)>> {
    let mut all = list(run_dir)?;
    all.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
    let mut damaged = Vec::new();
    for (_, dir) in &all {
        match open(dir) {
            Ok((state, tensors)) => {
                if state.run_key != run_key {
                    return Err(Error::Config(format!(
                        "{}: belongs to a run with other settings, data or base model; give this run another \
                         --run-name, or remove the folder to start over",
                        dir.display()
                    )));
                }
                optimizer.restore(state.step, |name| tensors.tensor(name))?;
                for problem in &damaged {
                    tracing::warn!("{problem}; continuing from {}", dir.display());
                }
                return Ok(Some((state.step, state.seen)));
            }
            Err(error) => damaged.push(error),
        }
    }
    match damaged.into_iter().next() {
        Some(error) => Err(Error::Config(format!(
            "{error}; no whole checkpoint is left in {}: remove its checkpoint folders to start over",
            run_dir.display()
        ))),
        None => Ok(None),
    }
}

fn open(dir: &Path) -> Result<(State, TensorFile)> {
    let state_file = dir.join("state.json");
    let state: State = shared::input::read_json(&state_file)?;
    if state.format != FORMAT {
        let problem = format!("has format {}, this program reads {FORMAT}", state.format);
        return Err(Error::model(&state_file, problem));
    }
    let file = dir.join("state.safetensors");
    if hash(&file)? != state.tensors_blake3 {
        return Err(Error::model(&file, "is damaged: its hash is not the one recorded in state.json"));
    }
    Ok((state, TensorFile::open(&file)?))
}

fn hash(file: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    std::fs::File::open(file)
        .and_then(|mut reader| std::io::copy(&mut reader, &mut hasher))
        .map_err(|e| Error::model(file, e.to_string()))?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Returns (step, folder) of the newest checkpoint under its final name.
///
/// # Errors
/// The run folder cannot be read.
pub fn newest(run_dir: &Path) -> Result<Option<(u64, PathBuf)>> {
    Ok(list(run_dir)?.into_iter().max_by_key(|(step, _)| *step))
}

/// Lists (step, folder) of all checkpoints under their final names.
fn list(run_dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let step = |name: &str| {
        let step = name.strip_prefix("checkpoint-")?.parse::<u64>().ok()?;
        // A copy under a like name (checkpoint-007, checkpoint-+7) is none of ours.
        (name == format!("checkpoint-{step}")).then_some(step)
    };
    find(run_dir, step)
}

/// Lists checkpoints that were being written when their process ended, or was given up.
fn unfinished(run_dir: &Path) -> Result<Vec<PathBuf>> {
    let is_ours = |name: &str| {
        let numbers = name.strip_prefix("checkpoint-")?.strip_suffix(".tmp")?;
        numbers.chars().all(|c| c.is_ascii_digit() || c == '.').then_some(())
    };
    Ok(find(run_dir, is_ours)?.into_iter().map(|((), path)| path).collect())
}

/// Lists what lies in a run's folder under names that say something.
fn find<T>(run_dir: &Path, said: impl Fn(&str) -> Option<T>) -> Result<Vec<(T, PathBuf)>> {
    let entries = match std::fs::read_dir(run_dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::model(run_dir, e.to_string())),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| Error::model(run_dir, e.to_string()))?.path();
        if let Some(said) = path.file_name().and_then(|name| name.to_str()).and_then(&said) {
            found.push((said, path));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::optim::AdamWSettings;
    use tch::Kind;

    fn optimizer(start: f32) -> AdamW {
        let settings = AdamWSettings { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 };
        AdamW::new(settings, vec![("x".into(), Tensor::from_slice(&[start, 2.0]))], false)
    }

    fn step(adam: &mut AdamW) {
        adam.zero_grad();
        adam.parameters()[0].1.square().sum(Kind::Float).backward();
        adam.update(0.1, 1.0);
    }

    #[test]
    fn damaged_newest_is_passed_over_and_other_settings_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut adam = optimizer(1.0);
        for _ in 0..2 {
            step(&mut adam);
            save(dir.path(), &adam, &Seen::default(), "key", 3, &|| Ok(())).unwrap();
        }
        let mut again = optimizer(9.0);
        assert_eq!(resume(dir.path(), &mut again, "key").unwrap(), Some((2, Seen::default())));
        assert_eq!(again.parameters()[0].1, adam.parameters()[0].1);
        assert!(resume(dir.path(), &mut again, "other").unwrap_err().to_string().contains("--run-name"));

        let newest = dir.path().join("checkpoint-2/state.safetensors");
        let mut bytes = std::fs::read(&newest).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&newest, bytes).unwrap();
        assert_eq!(resume(dir.path(), &mut again, "key").unwrap(), Some((1, Seen::default())));

        std::fs::write(dir.path().join("checkpoint-1/state.json"), "{").unwrap();
        let error = resume(dir.path(), &mut again, "key").unwrap_err().to_string();
        assert!(error.contains("checkpoint-2") && error.contains("no whole checkpoint"), "{error}");
    }

    #[test]
    fn an_unfinished_checkpoint_is_not_seen_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("checkpoint-9.tmp")).unwrap();
        let mut adam = optimizer(1.0);
        assert_eq!(resume(dir.path(), &mut adam, "key").unwrap(), None);
        for _ in 0..4 {
            step(&mut adam);
            save(dir.path(), &adam, &Seen::default(), "key", 2, &|| Ok(())).unwrap();
        }
        let mut steps: Vec<u64> = list(dir.path()).unwrap().into_iter().map(|(step, _)| step).collect();
        steps.sort_unstable();
        assert_eq!(steps, [3, 4]);
        assert!(!dir.path().join("checkpoint-9.tmp").exists());
        for copy in ["checkpoint-09", "checkpoint-+9", "checkpoint-9.old", "checkpoint-"] {
            std::fs::create_dir(dir.path().join(copy)).unwrap();
        }
        assert_eq!(newest(dir.path()).unwrap().map(|(step, _)| step), Some(4));
        assert_eq!(resume(dir.path(), &mut adam, "key").unwrap(), Some((4, Seen::default())));
    }

    #[test]
    fn a_folder_that_was_taken_over_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mut adam = optimizer(1.0);
        step(&mut adam);
        save(dir.path(), &adam, &Seen::default(), "key", 1, &|| Ok(())).unwrap();
        step(&mut adam);
        // Taken over before it begins to write, or while it does.
        for asked in [0_u32, 1] {
            let left = std::cell::Cell::new(asked);
            let check = || match left.replace(left.get().saturating_sub(1)) {
                0 => Err(Error::TakenOver { file: "run.lock".into() }),
                _ => Ok(()),
            };
            assert!(save(dir.path(), &adam, &Seen::default(), "key", 1, &check).is_err());
            assert_eq!(list(dir.path()).unwrap().len(), 1);
            assert_eq!(newest(dir.path()).unwrap().map(|(step, _)| step), Some(1));
        }
    }
}
