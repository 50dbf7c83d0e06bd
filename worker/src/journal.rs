//! Finished pieces of a long computation, one JSON line each, so that an interrupted command goes on where it was.
//!
//! The first line holds the key of the computation; a journal of another key is refused, so that results of different
//! models, data or settings never mix. One without a finished piece begins anew, and does not outlive a failed command.
//! A torn last line (killed while writing) is cut off. Whoever writes the final result removes the journal afterwards.
//! One process at a time has a journal; see [`crate::fence`] for who may take it over.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::fence::{Attempt, Place, Wish};

#[derive(Serialize, Deserialize)]
struct Header {
    key: String,
    /// The attempt that has the journal, where it is one of a coordinator's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    holder: Option<Attempt>,
}

/// Returns where the journal of an output lies: its whole name and `.journal`.
pub fn beside(output: &Path) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(".journal");
    PathBuf::from(name)
}

/// Returns where it is noted what of a journal's work is in flight.
pub fn in_flight(journal: &Path) -> PathBuf {
    journal.with_extension("in_flight")
}

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    place: Place,
    /// Finished pieces in it.
    pieces: usize,
}

impl Journal {
    /// Opens or begins a journal and returns the lines finished so far, in the order they were written. `attempt` is the
    /// one that asks, where a coordinator counts them.
    ///
    /// # Errors
    /// The file cannot be read or written, is damaged before its last line, has another key, or is another process's.
    pub fn open<T: DeserializeOwned>(path: &Path, key: &str, attempt: Option<&Attempt>) -> Result<(Self, Vec<T>)> {
        let mut lines = Vec::new();
        let wish = Wish { attempt, named: path, instead: "choose another output" };
        let place = Place::take(path, &wish, |old| {
            let finished = finished(path, old, key, &mut lines)?;
            let mut content = line(&Header { key: key.to_owned(), holder: attempt.cloned() });
            content.extend_from_slice(finished);
            Ok(content)
        })?;
        Ok((Journal { place, pieces: lines.len() }, lines))
    }

    /// Stores finished lines; they are on the disk when this returns.
    ///
    /// # Errors
    /// The file cannot be written, e.g. the disk is full; a newer attempt has taken it over.
    pub fn append<T: Serialize>(&mut self, lines: &[T]) -> Result<()> {
        let bytes: Vec<u8> = lines.iter().flat_map(line).collect();
        self.place.append(&bytes).map_err(|error| match error {
            Error::Model { file, problem } => {
                Error::model(file, format!("{problem}; what is finished is kept, make room and run again"))
            }
            other => other,
        })?;
        self.pieces += lines.len();
        Ok(())
    }

    /// Makes sure that the work is still this process's; to be called before its result is written.
    ///
    /// # Errors
    /// A newer attempt has taken it over.
    pub fn check(&self) -> Result<()> {
        self.place.check()
    }

    /// Removes the journal: the final result is written.
    ///
    /// # Errors
    /// The file cannot be removed, or a newer attempt has taken it over.
    pub fn remove(mut self) -> Result<()> {
        // There is nothing left to drop.
        self.pieces = usize::MAX;
        self.place.remove()
    }
}

/// Returns the part of a journal that holds whole finished lines, and reads them.
fn finished<'a, T: DeserializeOwned>(path: &Path, bytes: &'a [u8], key: &str, lines: &mut Vec<T>) -> Result<&'a [u8]> {
    let (mut begin, mut end) = (0, 0);
    for (number, line) in bytes.split_inclusive(|&b| b == b'\n').enumerate() {
        if !line.ends_with(b"\n") {
            break;
        }
        let damaged = |e: serde_json::Error| {
            let problem = format!("line {}: {e}; the journal is damaged, remove it to start over", number + 1);
            Error::model(path, problem)
        };
        end += line.len();
        if number > 0 {
            lines.push(serde_json::from_slice(line).map_err(damaged)?);
            continue;
        }
        let header: Header = serde_json::from_slice(line).map_err(damaged)?;
        begin = end;
        if header.key != key {
            // Nothing is finished in it, so nothing is lost by beginning anew.
            if bytes.iter().filter(|&&b| b == b'\n').count() == 1 {
                break;
            }
            return Err(Error::model(
                path,
                "holds results of another model, other data or other settings; remove it, or choose another output, to \
                 start over",
            ));
        }
    }
    Ok(&bytes[begin..end])
}

fn line<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(value).expect("lines are plain data");
    bytes.push(b'\n');
    bytes
}

/// A command that failed before anything was finished leaves nothing behind.
impl Drop for Journal {
    fn drop(&mut self) {
        if self.pieces == 0 {
            // A file that stays all the same is begun anew by the next command.
            let _ = self.place.remove();
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
        let (mut journal, none) = Journal::open::<Vec<f64>>(&path, "k", None).unwrap();
        assert!(none.is_empty());
        journal.append(&[vec![0.1, -2.5e-9], vec![3.0]]).unwrap();
        drop(journal);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend(b"[4.0, \xff");
        std::fs::write(&path, bytes).unwrap();

        let (mut journal, lines) = Journal::open::<Vec<f64>>(&path, "k", None).unwrap();
        assert_eq!(lines, [vec![0.1, -2.5e-9], vec![3.0]]);
        journal.append(&[vec![4.0]]).unwrap();
        drop(journal);
        let (_, lines) = Journal::open::<Vec<f64>>(&path, "k", None).unwrap();
        assert_eq!(lines.len(), 3);
        let other = Journal::open::<Vec<f64>>(&path, "other", None).unwrap_err();
        assert!(other.to_string().contains("another model"));
    }

    #[test]
    fn a_journal_of_other_work_without_a_finished_line_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        std::fs::write(&path, "{\"key\": \"k\"}\n").unwrap();
        let (mut journal, none) = Journal::open::<f64>(&path, "other", None).unwrap();
        assert!(none.is_empty());
        journal.append(&[1.0]).unwrap();
        drop(journal);
        assert_eq!(Journal::open::<f64>(&path, "other", None).unwrap().1, [1.0]);
        assert!(Journal::open::<f64>(&path, "k", None).is_err());
    }

    #[test]
    fn a_journal_without_a_finished_piece_goes_with_its_command() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        drop(Journal::open::<f64>(&path, "k", None).unwrap());
        assert!(!path.exists());
        let (mut journal, _) = Journal::open::<f64>(&path, "k", None).unwrap();
        journal.append(&[1.0]).unwrap();
        drop(journal);
        drop(Journal::open::<f64>(&path, "k", None).unwrap());
        assert!(path.exists());
    }

    #[test]
    fn damage_inside_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        std::fs::write(&path, "{\"key\": \"k\"}\nrubbish\n").unwrap();
        assert!(Journal::open::<Vec<f64>>(&path, "k", None).unwrap_err().to_string().contains("line 2"));
    }

    #[test]
    fn a_journal_goes_over_to_the_next_attempt_with_what_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let attempt = |attempt| Attempt { task: "r/score/0".into(), submission: 7, attempt };
        let (mut frozen, _) = Journal::open::<f64>(&path, "k", Some(&attempt(1))).unwrap();
        frozen.append(&[1.0]).unwrap();
        assert!(Journal::open::<f64>(&path, "k", None).unwrap_err().to_string().contains("in use"));
        let (mut journal, lines) = Journal::open::<f64>(&path, "k", Some(&attempt(2))).unwrap();
        assert_eq!(lines, [1.0]);
        assert!(matches!(frozen.append(&[9.0]).unwrap_err(), Error::TakenOver { .. }));
        assert!(matches!(frozen.check().unwrap_err(), Error::TakenOver { .. }));
        assert!(frozen.remove().is_err());
        journal.append(&[2.0]).unwrap();
        drop(journal);
        assert_eq!(Journal::open::<f64>(&path, "k", None).unwrap().1, [1.0, 2.0]);
    }
}
