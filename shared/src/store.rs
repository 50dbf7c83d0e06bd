//! State that must survive: a small typed store in a folder of its own.
//!
//! The truth is `log`, one commit a line, checksummed, `fdatasync`ed before anyone is told. Commits of many callers share
//! one sync. sled holds an index over it (`index/`: where in the log each key's value lies), which is brought up to date,
//! or made anew, from the log: sled is no longer maintained, does not sync by itself and has been seen corrupt after
//! unclean stops. One thread writes the log, another the index. Keys are strings and values JSON, so that a log can be
//! read with the eyes; a value is checked against its line's checksum whenever it is read.
//!
//! ```text
//! 5b1e0c7a93d2f814 {"n":1,"c":[["runs","first",{"state":"running"}],["tasks","first/t1",null]]}
//! └ BLAKE3 of the rest      └ commits count from 1   └ tree, key, value; null removes
//! ```

mod index;
mod line;
mod salvage;
mod typed;
mod writer;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use crate::error::{Error, Result};
use crate::lock;
use index::{Applied, Index, index_key};
pub use line::Change;
use line::Place;
pub use salvage::{Lost, Salvaged};
use writer::{Commit, Writer};

/// Commits that wait for the thread at most; callers wait beyond.
const WAITING: usize = 4096;

/// An open store; clones are handles on the same one.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    log: File,
    index: Arc<Index>,
    queue: Option<mpsc::Sender<Commit>>,
    thread: Option<std::thread::JoinHandle<()>>,
    _lock: File,
}

/// What a store has under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found<T> {
    /// The value.
    Value(T),
    /// Nothing.
    Nothing,
    /// A value that was damaged on the disk, and how.
    Damaged(String),
}

/// How reading the log up to its end came out.
enum Replayed {
    Whole,
    /// A commit is damaged and others follow it.
    Damaged(Applied),
}

impl Store {
    /// Opens the store in a folder, which is made if it is not there.
    ///
    /// # Errors
    /// Another process has it (its id is named); the log is damaged before its last line; the disk.
    pub fn open(folder: &Path) -> Result<Store> {
        let lock = take(folder)?;
        let (index, replayed) = replayed(folder)?;
        if let Replayed::Damaged(before) = replayed {
            let problem = format!(
                "commit {} is damaged and others follow it; restore the file, or keep its first {} bytes to go back to \
                 the commit before",
                before.commits + 1,
                before.bytes
            );
            return Err(Error::file(&folder.join("log"), problem));
        }
        Store::start(folder, index, lock)
    }

    /// As [`Store::open`]; but a damaged log is set aside, and the store goes on with all its whole commits. What was
    /// lost is returned, commit by commit.
    ///
    /// # Errors
    /// Another process has it (its id is named); the disk.
    pub fn open_salvaging(folder: &Path) -> Result<(Store, Option<Salvaged>)> {
        let lock = take(folder)?;
        let (index, replayed) = replayed(folder)?;
        if let Replayed::Whole = replayed {
            return Ok((Store::start(folder, index, lock)?, None));
        }
        drop(index);
        let salvaged = salvage::salvage(folder)?;
        let (index, replayed) = self::replayed(folder)?;
        match replayed {
            Replayed::Whole => Ok((Store::start(folder, index, lock)?, Some(salvaged))),
            Replayed::Damaged(_) => Err(Error::file(folder, "the disk returns other bytes than were written to it")),
        }
    }

    fn start(folder: &Path, index: Index, lock: File) -> Result<Store> {
        let path = folder.join("log");
        let open = |options: &mut std::fs::OpenOptions| options.open(&path).map_err(|e| Error::io("open", &path, e));
        let index = Arc::new(index);
        let (queue, waiting) = mpsc::channel(WAITING);
        let writer = Writer::new(open(File::options().append(true))?, path.clone(), index.clone());
        let thread = std::thread::Builder::new().name("store".into()).spawn(move || writer.run(waiting));
        let thread = thread.map_err(|source| Error::io("start a thread for", folder, source))?;
        let log = open(File::options().read(true))?;
        let (queue, thread) = (Some(queue), Some(thread));
        let inner = Inner { folder: folder.to_owned(), log, index, queue, thread, _lock: lock };
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
    /// The store cannot be read, the value is damaged, or it is not a `T`.
    pub fn get<T: DeserializeOwned>(&self, tree: &str, key: &str) -> Result<Option<T>> {
        match self.find(tree, key)? {
            Found::Value(value) => Ok(Some(value)),
            Found::Nothing => Ok(None),
            Found::Damaged(problem) => Err(Error::file(&self.inner.folder, problem)),
        }
    }

    /// Returns a value, with damage told apart from what stops all reading.
    ///
    /// # Errors
    /// The store cannot be read, or the value is not a `T`.
    pub fn find<T: DeserializeOwned>(&self, tree: &str, key: &str) -> Result<Found<T>> {
        let place = self.inner.index.get(&index_key(tree, key)).map_err(|error| index::unreadable(&error))?;
        let Some(place) = place else { return Ok(Found::Nothing) };
        match self.read(tree, key, place)? {
            Some(value) => Ok(Found::Value(self.typed(tree, key, value)?)),
            None => Ok(Found::Damaged(damaged(tree, key, place))),
        }
    }

    /// Returns all values of a tree by key, in order of keys. Each line of the log is read once, however many of them lie
    /// in it.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub fn scan<T: DeserializeOwned>(&self, tree: &str) -> Result<Vec<(String, T)>> {
        let prefix = index_key(tree, "");
        let mut places = Vec::new();
        self.inner.index.visit(&prefix, |key, place| {
            places.push((place, String::from_utf8_lossy(&key[prefix.len()..]).into_owned()));
            Ok(())
        })?;
        places.sort_by_key(|(place, _)| (place.line, place.change));
        let mut all = Vec::with_capacity(places.len());
        for of_line in places.chunk_by(|(a, _), (b, _)| a.line == b.line) {
            let (place, key) = &of_line[0];
            let text = self.text(*place)?;
            let json = text.as_deref().and_then(line::content);
            let json = json.ok_or_else(|| Error::file(&self.inner.folder, damaged(tree, key, *place)))?;
            let wanted: Vec<u16> = of_line.iter().map(|(place, _)| place.change).collect();
            let found = typed::read(json, &wanted).map_err(|(key, error)| self.misunderstood(tree, &key, &error))?;
            if found.len() < of_line.len() {
                return Err(Error::file(&self.inner.folder, damaged(tree, key, *place)));
            }
            for ((place, key), (of, name, value)) in of_line.iter().zip(found) {
                if of != tree || name != *key {
                    return Err(Error::file(&self.inner.folder, damaged(tree, key, *place)));
                }
                all.push((name, value));
            }
        }
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(all)
    }

    /// Calls `visit` for every key and value of a tree, in order of keys, one in memory at a time.
    ///
    /// # Errors
    /// As [`Store::get`]; what `visit` returns.
    pub fn visit<T: DeserializeOwned>(&self, tree: &str, mut visit: impl FnMut(&str, T) -> Result<()>) -> Result<()> {
        let prefix = index_key(tree, "");
        self.inner.index.visit(&prefix, |key, place| {
            let key = String::from_utf8_lossy(&key[prefix.len()..]);
            let value = self.read(tree, &key, place)?;
            let value = value.ok_or_else(|| Error::file(&self.inner.folder, damaged(tree, &key, place)))?;
            visit(&key, self.typed(tree, &key, value)?)
        })
    }

    /// Returns how many values a tree has.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn count(&self, tree: &str) -> Result<u64> {
        self.inner.index.count(tree).map_err(|error| index::unreadable(&error))
    }

    /// Returns the length of what is committed of the log.
    pub fn committed_bytes(&self) -> u64 {
        self.inner.index.applied().bytes
    }

    /// Calls `visit` with tree, key and value (null: removed) of every change committed from a byte of the log to
    /// another, in order. Damaged lines are passed over.
    ///
    /// # Errors
    /// The disk; what `visit` returns.
    pub fn changes_between(
        &self,
        byte: u64,
        end: u64,
        mut visit: impl FnMut(&str, &str, Value) -> Result<()>,
    ) -> Result<()> {
        let path = self.inner.folder.join("log");
        let io = |source| Error::io("read", &path, source);
        let mut log = File::open(&path).map_err(io)?;
        log.seek(SeekFrom::Start(byte.min(end))).map_err(io)?;
        let mut log = BufReader::with_capacity(1 << 18, log.take(end.saturating_sub(byte)));
        let mut text = Vec::new();
        while log.read_until(b'\n', &mut text).map_err(io)? > 0 {
            for (tree, key, value) in line::read(&text).map(|line| line.c).unwrap_or_default() {
                visit(&tree, &key, value)?;
            }
            text.clear();
        }
        Ok(())
    }

    /// Reads a value from the log; none if its line is not what was written.
    fn read(&self, tree: &str, key: &str, place: Place) -> Result<Option<Value>> {
        let line = self.text(place)?.and_then(|text| line::read(&text));
        let change = line.and_then(|line| line.c.into_iter().nth(place.change.into()));
        Ok(change.filter(|(of, name, _)| of == tree && name == key).map(|(_, _, value)| value))
    }

    /// Reads the bytes of a line of the log; none where it ends before.
    fn text(&self, place: Place) -> Result<Option<Vec<u8>>> {
        let mut text = vec![0; place.bytes as usize];
        match self.inner.log.read_exact_at(&mut text, place.line) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
            read => {
                read.map(|()| Some(text)).map_err(|source| Error::io("read", &self.inner.folder.join("log"), source))
            }
        }
    }

    fn typed<T: DeserializeOwned>(&self, tree: &str, key: &str, value: Value) -> Result<T> {
        serde_json::from_value(value).map_err(|error| self.misunderstood(tree, key, &error))
    }

    fn misunderstood(&self, tree: &str, key: &str, error: &serde_json::Error) -> Error {
        let problem = format!("{tree}/{key} holds what this version does not understand: {error}");
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

fn damaged(tree: &str, key: &str, place: Place) -> String {
    format!("{tree}/{key} is damaged: the line of the log at byte {} is not what was written there", place.line)
}

/// Takes the folder for this process, and makes it where it is missing.
fn take(folder: &Path) -> Result<File> {
    std::fs::create_dir_all(folder).map_err(|source| Error::io("make", folder, source))?;
    let path = folder.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|source| Error::io("open", &path, source))?;
    lock::take(&file, folder, "give another state folder")?;
    Ok(file)
}

/// Opens the index, anew where it must be, and brings it up to the end of the log.
fn replayed(folder: &Path) -> Result<(Index, Replayed)> {
    let path = folder.join("log");
    let log = File::options().create(true).append(true).read(true).open(&path);
    let mut log = log.map_err(|source| Error::io("open", &path, source))?;
    let index = open_index(folder, &log)?;
    let replayed = replay(&mut log, &path, &index)?;
    Ok((index, replayed))
}

/// Opens the index; one that does not open, or does not belong to this log, is set aside and begun anew.
fn open_index(folder: &Path, log: &File) -> Result<Index> {
    let path = folder.join("index");
    // The byte before must end a line; what follows is checked line by line, its number first.
    let belongs = |bytes: u64| {
        let mut byte = [0];
        bytes == 0 || (log.read_exact_at(&mut byte, bytes - 1).is_ok() && byte == *b"\n")
    };
    let problem = match Index::open(&path, belongs) {
        Ok(index) => return Ok(index),
        Err(problem) => problem,
    };
    tracing::warn!("{}: {problem}; it is made anew from the log", path.display());
    let aside = unused(folder, "index.broken");
    std::fs::rename(&path, &aside).map_err(|source| Error::io("set aside", &path, source))?;
    Index::open(&path, belongs).map_err(|error| Error::file(&path, format!("cannot be made: {error}")))
}

/// Returns a path in a folder that is not in use yet: `name-1`, `name-2` …
fn unused(folder: &Path, name: &str) -> PathBuf {
    let aside = (1..).map(|n| folder.join(format!("{name}-{n}"))).find(|path| !path.exists());
    aside.expect("some number is free")
}

/// Brings the index up to the end of the log and cuts a torn last line off.
fn replay(log: &mut File, path: &Path, index: &Index) -> Result<Replayed> {
    let io = |source| Error::io("read", path, source);
    let mut applied = index.applied();
    log.seek(SeekFrom::Start(applied.bytes)).map_err(io)?;
    let mut reader = BufReader::with_capacity(1 << 18, &mut *log);
    let mut text = Vec::new();
    loop {
        text.clear();
        if reader.read_until(b'\n', &mut text).map_err(io)? == 0 {
            break;
        }
        if text.last() != Some(&b'\n') {
            break; // killed while writing: nobody was told
        }
        let Some(line) = line::read(&text).filter(|line| line.n == applied.commits + 1) else {
            let rest = reader.read_until(b'\n', &mut Vec::new()).map_err(io)?;
            if rest == 0 {
                break; // blocks of the last write that reached the disk out of order
            }
            return Ok(Replayed::Damaged(applied));
        };
        let start = applied.bytes;
        applied = Applied { commits: line.n, bytes: start + text.len() as u64 };
        let changes = line.c.iter().map(|(tree, key, value)| (tree.as_str(), key.as_str(), !value.is_null()));
        if let Some(leaving) = index.note(writer::placed(changes, start, text.len()), applied) {
            index.bring_in(&leaving);
        }
    }
    log.set_len(applied.bytes).map_err(|source| Error::io("cut", path, source))?;
    Ok(Replayed::Whole)
}

#[cfg(test)]
mod tests;
