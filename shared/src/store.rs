//! State that must survive: a small typed store in a folder of its own.
//!
//! The truth is `log`, one commit a line, checksummed, `fdatasync`ed before anyone is told. Commits of many callers share
//! one sync. sled holds an index over it (`index/`), which is brought up to date, or made anew, from the log: sled is
//! no longer maintained, does not sync by itself and has been seen corrupt after unclean stops. One thread owns both for
//! writing. Keys are strings and values JSON, so that a log can be read with the eyes.
//!
//! ```text
//! 5b1e0c7a93d2f814 {"n":1,"c":[["runs","first",{"state":"running"}],["tasks","first/t1",null]]}
//! └ BLAKE3 of the rest      └ commits count from 1   └ tree, key, value; null removes
//! ```

use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use crate::error::{Error, Result};
use crate::lock;

/// Where the index keeps how much of the log it holds; no tree has this name.
const APPLIED: &[u8] = b"\0applied";
/// Commits that wait for the thread at most; callers wait beyond.
const WAITING: usize = 1024;

/// One change of one value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change(String, String, Value);

impl Change {
    /// Sets a value.
    pub fn put(tree: &str, key: impl Into<String>, value: &impl Serialize) -> Change {
        Change(tree.to_owned(), key.into(), serde_json::to_value(value).expect("stored values are plain data"))
    }

    /// Removes a value, if it is there.
    pub fn remove(tree: &str, key: impl Into<String>) -> Change {
        Change(tree.to_owned(), key.into(), Value::Null)
    }

    fn index_key(&self) -> Vec<u8> {
        index_key(&self.0, &self.1)
    }
}

#[derive(Serialize, Deserialize)]
struct Line {
    n: u64,
    c: Vec<Change>,
}

/// How much of the log the index holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct Applied {
    commits: u64,
    bytes: u64,
}

/// An open store; clones are handles on the same one.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    index: sled::Db,
    queue: Option<mpsc::Sender<Commit>>,
    thread: Option<std::thread::JoinHandle<()>>,
    _lock: File,
}

#[derive(Debug)]
struct Commit {
    changes: Vec<Change>,
    done: oneshot::Sender<Result<()>>,
}

impl Store {
    /// Opens the store in a folder, which is made if it is not there.
    ///
    /// # Errors
    /// Another process has it (its id is named); the log is damaged before its last line; the disk.
    pub fn open(folder: &Path) -> Result<Store> {
        std::fs::create_dir_all(folder).map_err(|source| Error::io("make", folder, source))?;
        let lock_path = folder.join("lock");
        let lock_file = File::options().create(true).truncate(false).write(true).open(&lock_path);
        let lock_file = lock_file.map_err(|source| Error::io("open", &lock_path, source))?;
        lock::take(&lock_file, folder, "give another state folder")?;

        let log_path = folder.join("log");
        let log = File::options().create(true).append(true).read(true).open(&log_path);
        let mut log = log.map_err(|source| Error::io("open", &log_path, source))?;
        let (index, applied) = open_index(folder, &mut log, &log_path)?;
        let applied = replay(&mut log, &log_path, &index, applied)?;

        let (queue, waiting) = mpsc::channel(WAITING);
        let writer = Writer { log, path: log_path, index: index.clone(), applied };
        let thread = std::thread::Builder::new().name("store".into()).spawn(move || writer.run(waiting));
        let thread = thread.map_err(|source| Error::io("start a thread for", folder, source))?;
        let inner =
            Inner { folder: folder.to_owned(), index, queue: Some(queue), thread: Some(thread), _lock: lock_file };
        Ok(Store { inner: Arc::new(inner) })
    }

    /// Makes changes, all or none; they are on the disk when this returns.
    ///
    /// # Errors
    /// The disk refused; nothing was changed.
    pub async fn commit(&self, changes: Vec<Change>) -> Result<()> {
        let (done, answer) = oneshot::channel();
        let queue = self.inner.queue.as_ref().expect("a store's queue lives as long as it");
        queue.send(Commit { changes, done }).await.map_err(|_| self.gone())?;
        answer.await.map_err(|_| self.gone())?
    }

    /// As [`Store::commit`], for threads outside an async runtime.
    ///
    /// # Errors
    /// As [`Store::commit`].
    pub fn commit_blocking(&self, changes: Vec<Change>) -> Result<()> {
        let (done, answer) = oneshot::channel();
        let queue = self.inner.queue.as_ref().expect("a store's queue lives as long as it");
        queue.blocking_send(Commit { changes, done }).map_err(|_| self.gone())?;
        answer.blocking_recv().map_err(|_| self.gone())?
    }

    /// Returns a value.
    ///
    /// # Errors
    /// The index cannot be read, or the value is not a `T`.
    pub fn get<T: DeserializeOwned>(&self, tree: &str, key: &str) -> Result<Option<T>> {
        let found = self.inner.index.get(index_key(tree, key)).map_err(|error| self.unreadable(&error))?;
        found.map(|bytes| self.value(tree, key, &bytes)).transpose()
    }

    /// Returns all values of a tree by key, in order of keys.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub fn scan<T: DeserializeOwned>(&self, tree: &str) -> Result<Vec<(String, T)>> {
        let prefix = index_key(tree, "");
        let mut all = Vec::new();
        for entry in self.inner.index.scan_prefix(&prefix) {
            let (key, bytes) = entry.map_err(|error| self.unreadable(&error))?;
            let key = String::from_utf8_lossy(&key[prefix.len()..]).into_owned();
            let value = self.value(tree, &key, &bytes)?;
            all.push((key, value));
        }
        Ok(all)
    }

    /// Returns how many values a tree has.
    pub fn count(&self, tree: &str) -> usize {
        self.inner.index.scan_prefix(index_key(tree, "")).count()
    }

    fn value<T: DeserializeOwned>(&self, tree: &str, key: &str, bytes: &[u8]) -> Result<T> {
        serde_json::from_slice(bytes).map_err(|error| {
            let problem = format!("{tree}/{key} holds what this version does not understand: {error}");
            Error::file(&self.inner.folder, problem)
        })
    }

    fn unreadable(&self, error: &sled::Error) -> Error {
        let problem = format!("the index cannot be read ({error}); remove its folder index/, it is made anew");
        Error::file(&self.inner.folder, problem)
    }

    fn gone(&self) -> Error {
        Error::file(&self.inner.folder, "the store's thread has ended; its reason is in the log above")
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The thread ends when nobody can send any more; the lock is let go after its last write.
        drop(self.queue.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn index_key(tree: &str, key: &str) -> Vec<u8> {
    [tree.as_bytes(), b"\0", key.as_bytes()].concat()
}

/// Opens the index and returns how much of the log it holds; one that does not open, or does not belong to this log, is
/// set aside and begun anew.
fn open_index(folder: &Path, log: &mut File, log_path: &Path) -> Result<(sled::Db, Applied)> {
    let path = folder.join("index");
    let config = sled::Config::new().path(&path).cache_capacity(64 << 20);
    let problem = match config.open() {
        Ok(index) => match belongs(&index, log, log_path)? {
            Some(applied) => return Ok((index, applied)),
            None => "does not belong to the log beside it".to_owned(),
        },
        Err(error) => error.to_string(),
    };
    tracing::warn!("{}: {problem}; it is made anew from the log", path.display());
    let aside = (1..).map(|n| folder.join(format!("index.broken-{n}"))).find(|path| !path.exists());
    let aside = aside.expect("some number is free");
    std::fs::rename(&path, &aside).map_err(|source| Error::io("set aside", &path, source))?;
    let index = config.open().map_err(|error| Error::file(&path, format!("cannot be made: {error}")))?;
    Ok((index, Applied::default()))
}

/// Returns how much of this log an index holds; none if it speaks of another log.
fn belongs(index: &sled::Db, log: &mut File, path: &Path) -> Result<Option<Applied>> {
    let Ok(stored) = index.get(APPLIED) else { return Ok(None) };
    let Some(stored) = stored else {
        return Ok(index.is_empty().then(Applied::default));
    };
    let Ok(applied) = serde_json::from_slice::<Applied>(&stored) else { return Ok(None) };
    let length = log.metadata().map_err(|source| Error::io("read", path, source))?.len();
    if applied.bytes > length {
        return Ok(None);
    }
    if applied.bytes == 0 {
        return Ok(Some(applied));
    }
    // The byte before must end a line; what follows is checked line by line, its number first.
    let mut byte = [0];
    let read = log.seek(SeekFrom::Start(applied.bytes - 1)).and_then(|_| std::io::Read::read_exact(log, &mut byte));
    read.map_err(|source| Error::io("read", path, source))?;
    Ok((byte == *b"\n").then_some(applied))
}

/// Brings the index up to the end of the log and cuts a torn last line off. Returns how much the index holds then.
fn replay(log: &mut File, path: &Path, index: &sled::Db, from: Applied) -> Result<Applied> {
    let io = |source| Error::io("read", path, source);
    log.seek(SeekFrom::Start(from.bytes)).map_err(io)?;
    let mut reader = BufReader::with_capacity(1 << 18, &mut *log);
    let mut applied = from;
    let mut text = Vec::new();
    loop {
        text.clear();
        if reader.read_until(b'\n', &mut text).map_err(io)? == 0 {
            break;
        }
        if text.last() != Some(&b'\n') {
            break; // killed while writing: nobody was told
        }
        let Some(line) = parse(&text).filter(|line| line.n == applied.commits + 1) else {
            let rest = reader.read_until(b'\n', &mut Vec::new()).map_err(io)?;
            if rest == 0 {
                break; // blocks of the last write that reached the disk out of order
            }
            let problem = format!(
                "commit {} is damaged and others follow it; restore the file, or keep its first {} bytes to go back to \
                 the commit before",
                applied.commits + 1,
                applied.bytes
            );
            return Err(Error::file(path, problem));
        };
        applied = Applied { commits: line.n, bytes: applied.bytes + text.len() as u64 };
        apply(index, &line.c, applied).map_err(|error| Error::file(path, error.to_string()))?;
    }
    log.set_len(applied.bytes).map_err(|source| Error::io("cut", path, source))?;
    Ok(applied)
}

fn parse(text: &[u8]) -> Option<Line> {
    let text = text.strip_suffix(b"\n")?;
    let (sum, line) = (text.get(..16)?, text.get(17..)?);
    (checksum(line).as_bytes() == sum).then(|| serde_json::from_slice(line).ok()).flatten()
}

fn checksum(line: &[u8]) -> String {
    blake3::hash(line).to_hex()[..16].to_owned()
}

fn apply(index: &sled::Db, changes: &[Change], applied: Applied) -> sled::Result<()> {
    let mut batch = sled::Batch::default();
    for change in changes {
        match &change.2 {
            Value::Null => batch.remove(change.index_key()),
            value => batch.insert(change.index_key(), serde_json::to_vec(value).expect("JSON")),
        }
    }
    batch.insert(APPLIED, serde_json::to_vec(&applied).expect("plain data"));
    index.apply_batch(batch)
}

/// The thread that writes.
struct Writer {
    log: File,
    path: PathBuf,
    index: sled::Db,
    applied: Applied,
}

impl Writer {
    fn run(mut self, mut waiting: mpsc::Receiver<Commit>) {
        while let Some(first) = waiting.blocking_recv() {
            let mut group = vec![first];
            while let Ok(next) = waiting.try_recv() {
                group.push(next);
            }
            match self.write(&group) {
                Ok(()) => group.into_iter().for_each(|commit| {
                    let _ = commit.done.send(Ok(()));
                }),
                Err((doing, source)) => {
                    for commit in group {
                        let source = source.raw_os_error().map_or_else(
                            || std::io::Error::new(source.kind(), source.to_string()),
                            std::io::Error::from_raw_os_error,
                        );
                        let _ = commit.done.send(Err(Error::io(doing, &self.path, source)));
                    }
                }
            }
        }
        let _ = self.index.flush();
    }

    /// Writes and syncs a group of commits, then brings the index up to it.
    fn write(&mut self, group: &[Commit]) -> std::result::Result<(), (&'static str, std::io::Error)> {
        let mut bytes = Vec::new();
        let mut after = Vec::with_capacity(group.len());
        let mut applied = self.applied;
        for commit in group {
            let line = Line { n: applied.commits + 1, c: commit.changes.clone() };
            let line = serde_json::to_vec(&line).expect("changes are plain data");
            bytes.extend_from_slice(checksum(&line).as_bytes());
            bytes.push(b' ');
            bytes.extend_from_slice(&line);
            bytes.push(b'\n');
            applied = Applied { commits: applied.commits + 1, bytes: self.applied.bytes + bytes.len() as u64 };
            after.push(applied);
        }
        if let Err(source) = self.log.write_all(&bytes).and_then(|()| self.log.sync_data()) {
            // What was written of it must not be taken for committed when the store is opened again.
            let _ = self.log.set_len(self.applied.bytes);
            return Err(("write", source));
        }
        for (commit, applied) in group.iter().zip(after) {
            apply(&self.index, &commit.changes, applied).map_err(|error| ("index", std::io::Error::other(error)))?;
        }
        self.applied = applied;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
