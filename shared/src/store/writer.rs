//! The thread that writes the log, and the one that brings the index after it.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

use super::index::{Applied, Index, Leaving, index_key};
use super::line::{self, Change, Place};
use crate::error::{Error, Result};

/// Changes that want to be committed, and who waits for them.
#[derive(Debug)]
pub(super) struct Commit {
    pub(super) changes: Vec<Change>,
    pub(super) done: oneshot::Sender<Result<()>>,
}

pub(super) struct Writer {
    log: File,
    path: PathBuf,
    index: Arc<Index>,
    buffer: Vec<u8>,
    /// The log ends with what is no commit and could not be cut off: nothing may be written after it.
    is_torn: bool,
}

/// Returns keys and places of a line's changes, given by tree, key and whether they set a value.
pub(super) fn placed<'a>(
    changes: impl Iterator<Item = (&'a str, &'a str, bool)>,
    start: u64,
    length: usize,
) -> Vec<(Vec<u8>, Option<Place>)> {
    let bytes = u32::try_from(length).expect("a commit is smaller than 4 GiB");
    let place = |index: usize| {
        let change = u16::try_from(index).expect("a commit has fewer than 65536 changes");
        Place { line: start, bytes, change }
    };
    let changes = changes.enumerate();
    changes.map(|(index, (tree, key, is_put))| (index_key(tree, key), is_put.then(|| place(index)))).collect()
}

impl Writer {
    pub(super) fn new(log: File, path: PathBuf, index: Arc<Index>) -> Writer {
        Writer { log, path, index, buffer: Vec::new(), is_torn: false }
    }

    /// Writes what comes until nobody can send any more.
    pub(super) fn run(mut self, mut waiting: mpsc::Receiver<Commit>) {
        let is_over = Arc::new(AtomicBool::new(false));
        let (to_index, indexer) = start_indexer(self.index.clone(), is_over.clone());
        while let Some(first) = waiting.blocking_recv() {
            let mut group = vec![first];
            while let Ok(next) = waiting.try_recv() {
                group.push(next);
            }
            match self.write(&group, &to_index) {
                Ok(()) => group.into_iter().for_each(|commit| {
                    let _ = commit.done.send(Ok(()));
                }),
                Err(source) => {
                    for commit in group {
                        let source = source.raw_os_error().map_or_else(
                            || std::io::Error::new(source.kind(), source.to_string()),
                            std::io::Error::from_raw_os_error,
                        );
                        let _ = commit.done.send(Err(Error::io("write", &self.path, source)));
                    }
                }
            }
        }
        is_over.store(true, Ordering::Relaxed);
        drop(to_index);
        let _ = indexer.join();
        if let Some(rest) = self.index.rest() {
            self.index.bring_in(&rest);
        }
    }

    /// Writes and syncs a group of commits, then takes it into the index.
    fn write(&mut self, group: &[Commit], to_index: &SyncSender<Leaving>) -> std::io::Result<()> {
        if self.is_torn {
            return Err(std::io::Error::other("its end is torn by an earlier failure; start the program again"));
        }
        let before = self.index.applied();
        let mut applied = before;
        let mut placed = Vec::with_capacity(2 * group.len());
        self.buffer.clear();
        for commit in group {
            let start = self.buffer.len();
            line::write(&mut self.buffer, applied.commits + 1, &commit.changes);
            let changes = commit.changes.iter().map(|c| (c.tree.as_str(), c.key.as_str(), c.is_put()));
            placed.extend(self::placed(changes, applied.bytes, self.buffer.len() - start));
            let bytes = before.bytes + self.buffer.len() as u64;
            applied = Applied { commits: applied.commits + 1, bytes };
        }
        if let Err(source) = self.log.write_all(&self.buffer).and_then(|()| self.log.sync_data()) {
            // What was written of it must not be taken for committed when the store is opened again.
            self.is_torn = self.log.set_len(before.bytes).is_err();
            return Err(source);
        }
        if let Some(leaving) = self.index.note(placed, applied) {
            let _ = to_index.send(leaving);
        }
        // A rare large commit must not be kept in memory for ever.
        self.buffer.shrink_to(1 << 20);
        Ok(())
    }
}

/// Starts the thread that brings changes into the index, so that no commit waits for it.
fn start_indexer(index: Arc<Index>, is_over: Arc<AtomicBool>) -> (SyncSender<Leaving>, JoinHandle<()>) {
    // One at a time leaves, so that there is always room.
    let (to_index, leaving) = sync_channel::<Leaving>(1);
    let thread = std::thread::spawn(move || {
        for leaving in leaving {
            index.bring_in_slowly(&leaving, &is_over);
        }
    });
    (to_index, thread)
}
