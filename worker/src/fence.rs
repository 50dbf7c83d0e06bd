//! Files that one process at a time may work on, and who may take them from a process that does not let go.
//!
//! The lock is the kernel's: it goes with its process, however that ends. A process that is frozen (SIGSTOP, a suspended
//! machine, a hung mount) keeps it for ever. The coordinator gives such a worker up and starts the task's next attempt:
//! that one, by its higher number, may take the file over. It puts a copy in place of the file, a new inode with a lock of
//! its own, so that whatever the old process still writes into its open file goes nowhere. The old process looks before
//! everything it does to other files whether the name still leads to its inode, and ends where it does not.
//!
//! Between that look and the write there is a moment. What is written then are the bytes that the new attempt writes too: a task's
//! results follow from its inputs alone, but for a gang that may be smaller, where they follow to rounding.
//!
//! A command that a person started has no number: it takes nothing over, and nothing is taken from it.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::error::{Error, Result};

/// An attempt at a task of a coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// `RUN/STAGE/TASK`.
    pub task: String,
    /// When the run was submitted; attempts count from 1 in each submission.
    pub submission: u64,
    pub attempt: u32,
}

impl Attempt {
    /// Returns whether this attempt was begun after that one was given up.
    fn supersedes(&self, other: &Attempt) -> bool {
        self.task == other.task && (self.submission, self.attempt) > (other.submission, other.attempt)
    }
}

/// The first line of a held file, as far as it says who holds it.
#[derive(Deserialize)]
struct FirstLine {
    #[serde(default)]
    holder: Option<Attempt>,
}

/// A file that this process holds, open to be appended to.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    file: File,
    /// Another process had left it.
    was_there: bool,
}

/// How a file is to be held.
pub struct Wish<'a> {
    /// The attempt that asks, where it is one of a coordinator's.
    pub attempt: Option<&'a Attempt>,
    /// The file or folder that is named where it is refused.
    pub named: &'a Path,
    /// What the user can do instead.
    pub instead: &'a str,
}

impl Place {
    /// Takes a file, which is made where it is missing. `renew` makes its new content of the old; the first line is to be
    /// a JSON object that names the attempt as `holder`.
    ///
    /// # Errors
    /// Another process has it, and it cannot be taken over; the disk; what `renew` returns. The file is as it was then.
    pub fn take(path: &Path, wish: &Wish<'_>, renew: impl FnOnce(&[u8]) -> Result<Vec<u8>>) -> Result<Place> {
        let io = |error: std::io::Error| Error::model(path, error.to_string());
        loop {
            let mut file = File::options().create(true).read(true).append(true).open(path).map_err(io)?;
            let locked = shared::lock::take(&file, wish.named, wish.instead);
            if !is_named(path, &file).map_err(io)? {
                // Its holder has put another in its place, or removed it.
                continue;
            }
            let mut old = Vec::new();
            file.read_to_end(&mut old).map_err(io)?;
            if let Err(refusal) = &locked {
                let Some((own, holder)) = wish.attempt.zip(holder(&old)).filter(|(own, old)| own.supersedes(old))
                else {
                    return Err(locked.expect_err("it was refused").into());
                };
                let (task, attempt) = (&own.task, holder.attempt);
                tracing::warn!(task, "{refusal}: taken over from attempt {attempt}, which was given up");
            }
            let placed = renew(&old).and_then(|content| Place::put(path, wish, &content, !old.is_empty()));
            if placed.is_err() && old.is_empty() && locked.is_ok() {
                let _ = fs::remove_file(path);
            }
            return placed;
        }
    }

    /// Takes a file that holds nothing but who has it.
    ///
    /// # Errors
    /// As [`Place::take`].
    pub fn lock(path: &Path, wish: &Wish<'_>) -> Result<Place> {
        Place::take(path, wish, |_| Ok(format!("{}\n", json!({"holder": wish.attempt})).into()))
    }

    /// Puts a new file in the place of what is there.
    fn put(path: &Path, wish: &Wish<'_>, content: &[u8], was_there: bool) -> Result<Place> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}-{}.tmp", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)));
        let beside = path.with_file_name(name);
        let placed = File::options().create(true).append(true).open(&beside).and_then(|mut file| {
            file.set_len(0)?;
            file.write_all(content)?;
            file.sync_all()?;
            Ok(file)
        });
        let io = |error: std::io::Error| Error::model(path, format!("{error}; what was there is untouched"));
        let placed = placed.map_err(io).and_then(|file| {
            shared::lock::take(&file, wish.named, wish.instead)?;
            fs::rename(&beside, path).map_err(io)?;
            sync_folder(path);
            Ok(Place { path: path.to_owned(), file, was_there })
        });
        placed.inspect_err(|_| {
            let _ = fs::remove_file(&beside);
        })
    }

    /// Makes sure that the file is still this process's, and all that goes with it.
    ///
    /// # Errors
    /// A newer attempt has taken it over, or it was removed.
    pub fn check(&self) -> Result<()> {
        match is_named(&self.path, &self.file) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::TakenOver { file: self.path.clone() }),
            Err(error) => Err(Error::model(&self.path, error.to_string())),
        }
    }

    /// Returns whether there was something in the file before it was taken.
    pub fn was_there(&self) -> bool {
        self.was_there
    }

    /// Appends bytes; they are on the disk when this returns.
    ///
    /// # Errors
    /// The disk; the file was taken over: its new holder does not see them.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.check()?;
        let written = self.file.write_all(bytes).and_then(|()| self.file.sync_data());
        written.map_err(|error| Error::model(&self.path, error.to_string()))
    }

    /// Removes the file.
    ///
    /// # Errors
    /// It was taken over, or cannot be removed.
    pub fn remove(&self) -> Result<()> {
        self.check()?;
        fs::remove_file(&self.path).map_err(|error| Error::model(&self.path, error.to_string()))
    }
}

/// Makes a rename durable, where the file system can.
fn sync_folder(path: &Path) {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
}

/// Returns who a held file says holds it.
fn holder(content: &[u8]) -> Option<Attempt> {
    let line = content.split(|byte| *byte == b'\n').next()?;
    serde_json::from_slice::<FirstLine>(line).ok()?.holder
}

/// Returns whether a path leads to this open file. It is opened anew: over a network a mere look may be an old one.
pub(crate) fn is_named(path: &Path, file: &File) -> std::io::Result<bool> {
    let own = file.metadata()?;
    match File::open(path).and_then(|file| file.metadata()) {
        Ok(found) => Ok((found.dev(), found.ino()) == (own.dev(), own.ino())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(submission: u64, attempt: u32) -> Attempt {
        Attempt { task: "r/train/train".into(), submission, attempt }
    }

    fn take(path: &Path, attempt: Option<&Attempt>) -> Result<Place> {
        let wish = Wish { attempt, named: path, instead: "choose another" };
        Place::take(path, &wish, |old| {
            let kept = old.split_inclusive(|byte| *byte == b'\n').skip(1).flatten();
            let first = format!("{}\n", serde_json::json!({"holder": attempt}));
            Ok(first.bytes().chain(kept.copied()).collect())
        })
    }

    fn lines(path: &Path) -> Vec<String> {
        fs::read_to_string(path).unwrap().lines().skip(1).map(str::to_owned).collect()
    }

    #[test]
    fn a_newer_attempt_takes_over_and_the_older_one_changes_nothing_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let mut old = take(&path, Some(&attempt(5, 2))).unwrap();
        old.append(b"one\n").unwrap();
        let mut new = take(&path, Some(&attempt(5, 3))).unwrap();
        assert_eq!(lines(&path), ["one"]);
        // What the old one was about to write when it was frozen goes nowhere.
        old.file.write_all(b"late\n").unwrap();
        for outcome in [old.check(), old.append(b"late\n"), old.remove()] {
            assert!(outcome.unwrap_err().to_string().contains("a newer attempt"));
        }
        new.append(b"two\n").unwrap();
        assert_eq!(lines(&path), ["one", "two"]);
        drop(old);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        // A later submission counts its attempts anew.
        let newest = take(&path, Some(&attempt(6, 1))).unwrap();
        assert!(new.check().is_err());
        newest.remove().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(newest.check().is_err());
    }

    #[test]
    fn nobody_else_takes_a_held_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = take(&path, Some(&attempt(5, 2))).unwrap();
        let mut other = attempt(5, 3);
        other.task = "r/train/other".into();
        for asking in [None, Some(&attempt(5, 2)), Some(&attempt(5, 1)), Some(&attempt(4, 9)), Some(&other)] {
            assert!(take(&path, asking).unwrap_err().to_string().contains("is in use by"), "{asking:?}");
        }
        held.check().unwrap();
        drop(held);
        let by_hand = take(&path, None).unwrap();
        assert!(take(&path, Some(&attempt(9, 9))).is_err(), "a person's command is not taken over");
        drop(by_hand);
        assert!(take(&path, Some(&attempt(1, 1))).is_ok());
    }

    #[test]
    fn a_file_that_cannot_be_renewed_is_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let refuse = |path: &Path| {
            let wish = Wish { attempt: None, named: path, instead: "choose another" };
            Place::take(path, &wish, |_| Err(Error::Config("no".into()))).map(drop)
        };
        assert!(refuse(&path).is_err());
        assert!(!path.exists());
        fs::write(&path, "content").unwrap();
        assert!(refuse(&path).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"content");
    }
}
