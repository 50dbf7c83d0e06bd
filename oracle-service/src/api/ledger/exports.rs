//! Exports: the answers as plain lines beside the log, one file for each stretch of it.
//!
//! A file is written whole or not at all and never again, so that all of them together cost one reading of the log. Its
//! name says from where to where it goes: `answers-000000000000-000000052133.jsonl`, in bytes of the log.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use shared::output::LinesWriter;
use shared::store::Store;
use shared::{Error, Result};

use super::{ANSWERS, Answer};

/// Answers after which the next file is written.
const EVERY: u64 = 10_000;

/// A line of an export.
#[derive(Debug, Serialize, Deserialize)]
struct Line<A> {
    key: String,
    #[serde(flatten)]
    answer: A,
}

#[derive(Debug)]
pub(super) struct Exports {
    store: Store,
    folder: PathBuf,
    settled: AtomicU64,
    running: AtomicBool,
    /// How much of the log is exported.
    exported: Mutex<u64>,
}

impl Exports {
    pub(super) fn new(store: Store, folder: &Path) -> Result<Exports> {
        let exported = Mutex::new(exported_bytes(folder)?);
        let (settled, running) = (AtomicU64::new(0), AtomicBool::new(false));
        Ok(Exports { store, folder: folder.to_owned(), settled, running, exported })
    }

    /// Takes note of an answer; now and then writes the next file, on a thread that may wait.
    pub(super) fn settled(exports: &Arc<Exports>) {
        let due = exports.settled.fetch_add(1, Ordering::Relaxed) % EVERY == EVERY - 1;
        if due && !exports.running.swap(true, Ordering::Relaxed) {
            let exports = exports.clone();
            tokio::task::spawn_blocking(move || {
                exports.write_or_warn();
                exports.running.store(false, Ordering::Relaxed);
            });
        }
    }

    fn write_or_warn(&self) {
        if let Err(error) = self.write() {
            tracing::warn!("the ledger's export is behind: {error}");
        }
    }

    /// Writes what the log has gained.
    fn write(&self) -> Result<()> {
        let mut exported = self.exported.lock().unwrap_or_else(PoisonError::into_inner);
        let mut answers: Option<LinesWriter> = None;
        let to = self.store.committed_bytes();
        let path = self.folder.join(format!("answers-{:012}-{to:012}.jsonl", *exported));
        self.store.changes_between(*exported, to, |tree, key, answer| {
            if tree != ANSWERS || answer.is_null() {
                return Ok(());
            }
            let answers = match &mut answers {
                Some(answers) => answers,
                None => answers.insert(LinesWriter::create(&path)?),
            };
            answers.push(&Line { key: key.to_owned(), answer })
        })?;
        if let Some(answers) = answers {
            answers.finish()?;
            *exported = to;
        }
        Ok(())
    }

    /// Returns an answer from the exports.
    pub(super) fn find(&self, key: &str) -> Result<Option<Answer>> {
        let mut found = None;
        visit(&self.folder, |other, answer| {
            if other == key {
                found = Some(answer);
            }
            Ok(())
        })?;
        Ok(found)
    }
}

impl Drop for Exports {
    fn drop(&mut self) {
        self.write_or_warn();
    }
}

/// Returns the export files of a folder in order, each with where its stretch ends.
fn files(folder: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let io = |source| Error::io("read", folder, source);
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(io)?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(io)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let stretch = name.strip_prefix("answers-").and_then(|name| name.strip_suffix(".jsonl"));
        let end = stretch.and_then(|stretch| stretch.split_once('-')).and_then(|(_, end)| end.parse().ok());
        files.extend(end.map(|end| (path, end)));
    }
    files.sort();
    Ok(files)
}

/// Returns how much of the log the files of a folder cover.
pub(super) fn exported_bytes(folder: &Path) -> Result<u64> {
    Ok(files(folder)?.into_iter().map(|(_, end)| end).max().unwrap_or(0))
}

/// Calls `visit` for every exported answer, in the order they came; a line that cannot be read is passed over.
pub(super) fn visit(folder: &Path, mut visit: impl FnMut(String, Answer) -> Result<()>) -> Result<()> {
    for (path, _) in files(folder)? {
        let mut text = String::new();
        let mut reader = shared::input::open(&path)?;
        loop {
            text.clear();
            match std::io::BufRead::read_line(&mut reader, &mut text) {
                Ok(0) => break,
                Ok(_) => {}
                Err(source) => return Err(Error::io("read", &path, source)),
            }
            match serde_json::from_str::<Line<Answer>>(&text) {
                Ok(line) => visit(line.key, line.answer)?,
                Err(error) => tracing::warn!("{}: a line is no answer and is passed over: {error}", path.display()),
            }
        }
    }
    Ok(())
}
