//! Finished pieces of a long computation, one JSON line each, so that an interrupted command goes on where it was.
//!
//! The first line holds the key of the computation; a journal of another key is refused, so that results of different
//! models, data or settings never mix. One without a finished piece begins anew, and does not outlive a failed command.
//! A torn last line (killed while writing) is cut off. Whoever writes the final result removes the journal afterwards.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

#[derive(Serialize, Deserialize)]
struct Header {
    key: String,
}

/// Returns where the journal of an output lies: its whole name and `.journal`.
pub fn beside(output: &Path) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(".journal");
    PathBuf::from(name)
}

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    /// Finished pieces in it.
    pieces: usize,
}

impl Journal {
    /// Opens or begins a journal and returns the lines finished so far, in the order they were written.
    ///
    /// # Errors
    /// The file cannot be read or written, is damaged before its last line, or has another key.
    pub fn open<T: DeserializeOwned>(path: &Path, key: &str) -> Result<(Self, Vec<T>)> {
        let io = |e: std::io::Error| Error::model(path, format!("journal: {e}"));
        let file = File::options().create(true).append(true).open(path).map_err(io)?;
        shared::lock::take(&file, path, "choose another output")?;
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(io(e)),
        };
        let mut whole = 0;
        let mut lines = Vec::new();
        for (number, line) in bytes.split_inclusive(|&b| b == b'\n').enumerate() {
            if !line.ends_with(b"\n") {
                break;
            }
            let damaged = |e: serde_json::Error| {
                let problem = format!("line {}: {e}; the journal is damaged, remove it to start over", number + 1);
                Error::model(path, problem)
            };
            if number == 0 {
                let header: Header = serde_json::from_slice(line).map_err(damaged)?;
                if header.key != key {
                    // Nothing is finished in it, so nothing is lost by beginning anew.
                    if bytes.iter().filter(|&&b| b == b'\n').count() == 1 {
                        break;
                    }
                    return Err(Error::model(
                        path,
                        "holds results of another model, other data or other settings; remove it, or choose another \
                         output, to start over",
                    ));
                }
            } else {
                lines.push(serde_json::from_slice(line).map_err(damaged)?);
            }
            whole += line.len();
        }
        file.set_len(whole as u64).map_err(io)?;
        let mut journal = Journal { path: path.to_owned(), file, pieces: lines.len() };
        if whole == 0 {
            journal.write(&[Header { key: key.to_owned() }])?;
        }
        Ok((journal, lines))
    }

    /// Stores finished lines; they are on the disk when this returns.
    ///
    /// # Errors
    /// The file cannot be written, e.g. the disk is full.
    pub fn append<T: Serialize>(&mut self, lines: &[T]) -> Result<()> {
        self.write(lines)?;
        self.pieces += lines.len();
        Ok(())
    }

    fn write<T: Serialize>(&mut self, lines: &[T]) -> Result<()> {
        let mut bytes = Vec::new();
        for line in lines {
            serde_json::to_writer(&mut bytes, line).expect("lines are plain data");
            bytes.push(b'\n');
        }
        self.file.write_all(&bytes).and_then(|()| self.file.sync_data()).map_err(|e| {
            Error::model(&self.path, format!("journal: {e}; what is finished is kept, make room and run again"))
        })
    }

    /// Removes the journal: the final result is written.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove(mut self) -> Result<()> {
        // There is nothing left to drop.
        self.pieces = usize::MAX;
        std::fs::remove_file(&self.path).map_err(|e| Error::model(&self.path, format!("journal: {e}")))
    }
}

/// A command that failed before anything was finished leaves nothing behind.
impl Drop for Journal {
    fn drop(&mut self) {
        if self.pieces == 0 {
            // A file that stays all the same is begun anew by the next command.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_on_after_a_torn_line_and_refuses_another_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (mut journal, none) = Journal::open::<Vec<f64>>(&path, "k").unwrap();
        assert!(none.is_empty());
        journal.append(&[vec![0.1, -2.5e-9], vec![3.0]]).unwrap();
        drop(journal);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend(b"[4.0, \xff");
        std::fs::write(&path, bytes).unwrap();

        let (mut journal, lines) = Journal::open::<Vec<f64>>(&path, "k").unwrap();
        assert_eq!(lines, [vec![0.1, -2.5e-9], vec![3.0]]);
        journal.append(&[vec![4.0]]).unwrap();
        drop(journal);
        let (_, lines) = Journal::open::<Vec<f64>>(&path, "k").unwrap();
        assert_eq!(lines.len(), 3);
        let other = Journal::open::<Vec<f64>>(&path, "other").unwrap_err();
        assert!(other.to_string().contains("another model"));
    }

    #[test]
    fn a_journal_of_other_work_without_a_finished_line_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        std::fs::write(&path, "{\"key\": \"k\"}\n").unwrap();
        let (mut journal, none) = Journal::open::<f64>(&path, "other").unwrap();
        assert!(none.is_empty());
        journal.append(&[1.0]).unwrap();
        drop(journal);
        assert_eq!(Journal::open::<f64>(&path, "other").unwrap().1, [1.0]);
        assert!(Journal::open::<f64>(&path, "k").is_err());
    }

    #[test]
    fn a_journal_without_a_finished_piece_goes_with_its_command() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        drop(Journal::open::<f64>(&path, "k").unwrap());
        assert!(!path.exists());
        let (mut journal, _) = Journal::open::<f64>(&path, "k").unwrap();
        journal.append(&[1.0]).unwrap();
        drop(journal);
        drop(Journal::open::<f64>(&path, "k").unwrap());
        assert!(path.exists());
    }

    #[test]
    fn damage_inside_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        std::fs::write(&path, "{\"key\": \"k\"}\nrubbish\n").unwrap();
        assert!(Journal::open::<Vec<f64>>(&path, "k").unwrap_err().to_string().contains("line 2"));
    }
}
