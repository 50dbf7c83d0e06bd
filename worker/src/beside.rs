//! Folders whose files are written beside and get their names once all are whole and it is sure that no newer attempt has the
//! folder: the weights that are read there are an earlier output's, this one's, or, where a process dies while a model in several files gets
//! its names, none.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::error::{Error, Result};
use crate::model::shards;

/// What [`fill`] is writing.
const RESULT: &str = "result";

/// Fills a folder, which is there, with what `write` writes into another one. `check` says whether the folder is still this process's.
///
/// # Errors
/// What `write` and `check` return: the folder is as it was; its files cannot get their names.
pub(crate) fn fill(
    folder: &Path,
    check: impl Fn() -> Result<()>,
    write: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    check()?;
    remove_unfinished(folder, RESULT);
    let beside = name(folder, RESULT);
    std::fs::create_dir_all(&beside).map_err(|e| Error::model(&beside, e.to_string()))?;
    let placed = write(&beside).and_then(|()| {
        check()?;
        place(&beside, folder, check)
    });
    placed.and(remove(&beside))
}

/// Returns a folder's name of this process's own, in other containers too, that [`remove_unfinished`] knows.
pub(crate) fn name(within: &Path, stem: &str) -> PathBuf {
    let moment = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_nanos());
    within.join(format!("{stem}.{}.{moment}.tmp", std::process::id()))
}

/// Removes what was being written when a process ended. What cannot be removed is told and stays: it is in nobody's way.
pub(crate) fn remove_unfinished(within: &Path, stem: &str) {
    for entry in std::fs::read_dir(within).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_ours = name.to_str().and_then(|name| name.strip_prefix(stem)?.strip_prefix('.')?.strip_suffix(".tmp"));
        if is_ours.is_some_and(|own| own.chars().all(|c| c.is_ascii_digit() || c == '.'))
            && let Err(problem) = remove(&entry.path())
        {
            tracing::warn!("{problem}: left by a process that ended; it stays");
        }
    }
}

/// Removes a folder, if it is there.
pub(crate) fn remove(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::model(folder, e.to_string())),
        _ => Ok(()),
    }
}

/// Gives all files of a folder their names in another one. A model in several files gets its list last and an earlier model's goes
/// first, so that what is half there is not read as a whole; an earlier model's files that are no part of this one go at the end.
fn place(from: &Path, to: &Path, check: impl Fn() -> Result<()>) -> Result<()> {
    let io = |e: std::io::Error| Error::model(to, format!("could not be written: {e}"));
    let entries: std::io::Result<Vec<_>> = std::fs::read_dir(from).map_err(io)?.collect();
    let mut names: Vec<_> = entries.map_err(io)?.into_iter().map(|entry| entry.file_name()).collect();
    names.sort_by_key(|name| name == shards::INDEX);
    let mut earlier = if shards::files(from)?.is_empty() { Vec::new() } else { shards::files(to)? };
    let remove = |name: &String| std::fs::remove_file(to.join(name)).map_err(io);
    // Last of all looks: what was listed may be a newer attempt's.
    check()?;
    if names.iter().any(|name| name == shards::INDEX) {
        let is_list = |name: &String| [shards::SINGLE, shards::INDEX].contains(&name.as_str());
        earlier.iter().filter(|name| is_list(name)).try_for_each(remove)?;
        earlier.retain(|name| !is_list(name));
    }
    for name in &names {
        std::fs::rename(from.join(name), to.join(name)).map_err(io)?;
    }
    earlier.iter().filter(|name| names.iter().all(|own| own != name.as_str())).try_for_each(remove)?;
    std::fs::File::open(to).and_then(|folder| folder.sync_all()).map_err(io)
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;
    use crate::model::shards::Planned;
    use crate::model::weights::Checkpoint;

    fn planned() -> Vec<Planned> {
        let named = [("t0", 4), ("t1", 4), ("t2", 8)];
        named.map(|(name, numel)| Planned { name: name.into(), kind: Kind::Float, numel }).into()
    }

    fn make(name: &str) -> Result<Tensor> {
        let at: usize = name[1..].parse().unwrap();
        Ok(Tensor::full([planned()[at].numel as i64], at as f64, (Kind::Float, Device::Cpu)))
    }

    #[test]
    fn a_model_in_several_files_reads_back_as_one_and_the_other_form_goes() {
        let dir = tempfile::tempdir().unwrap();
        for (max, files) in [(1 << 20, 0), (16, 3), (32, 2), (1 << 20, 0), (32, 2)] {
            fill(dir.path(), || Ok(()), |to| shards::write(to, &planned(), max, make)).unwrap();
            let mut expected: Vec<String> =
                (1..=files).map(|i| format!("model-{i:05}-of-{files:05}.safetensors")).collect();
            expected.push(if files == 0 { shards::SINGLE } else { shards::INDEX }.to_owned());
            assert_eq!(shards::files(dir.path()).unwrap(), expected, "{max}");
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), expected.len());
            let checkpoint = Checkpoint::open(dir.path()).unwrap();
            assert_eq!(checkpoint.stored("t2").unwrap().size(), [8]);
            assert_eq!(checkpoint.stored("t2").unwrap().double_value(&[3]), 2.0);
        }
        let index: serde_json::Value = shared::input::read_json(&dir.path().join(shards::INDEX)).unwrap();
        assert_eq!(index["metadata"]["total_size"], 64);
        assert_eq!(index["weight_map"]["t1"], "model-00001-of-00002.safetensors");
    }

    #[test]
    fn what_is_not_whole_or_not_this_process_s_any_more_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(shards::SINGLE), "earlier").unwrap();
        std::fs::create_dir(dir.path().join("result.77.5.tmp")).unwrap();
        // It cannot be removed as a folder, and is in nobody's way.
        std::fs::write(dir.path().join("result.77.6.tmp"), "").unwrap();
        let stopped = |name: &str| if name == "t2" { Err(Error::Stopped) } else { make(name) };
        fill(dir.path(), || Ok(()), |to| shards::write(to, &planned(), 32, stopped)).unwrap_err();
        let looks = std::cell::Cell::new(0);
        let taken_over = || {
            looks.set(looks.get() + 1);
            if looks.get() > 1 { Err(Error::TakenOver { file: dir.path().into() }) } else { Ok(()) }
        };
        let refused = fill(dir.path(), taken_over, |to| shards::write(to, &planned(), 32, make)).unwrap_err();
        assert!(matches!(refused, Error::TakenOver { .. }));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        assert_eq!(std::fs::read(dir.path().join(shards::SINGLE)).unwrap(), b"earlier");
    }
}
