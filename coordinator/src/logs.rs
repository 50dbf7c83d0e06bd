//! The log of each run: a JSON line an entry, for `coordinator logs`. Kept for people; nothing is decided by it.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Folder of logs.
#[derive(Debug, Clone)]
pub(crate) struct Logs {
    folder: PathBuf,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) at_ms: u64,
    pub(crate) text: String,
}

impl Logs {
    /// Makes the folder.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn open(folder: &Path) -> shared::Result<Logs> {
        std::fs::create_dir_all(folder).map_err(|source| shared::Error::io("make", folder, source))?;
        Ok(Logs { folder: folder.to_owned() })
    }

    /// Adds entries of one moment. A disk that takes no log line must not stop a run: the loss is told to the process's own
    /// log.
    pub(crate) fn append(&self, run: &str, at_ms: u64, texts: &[String]) {
        let mut lines = Vec::new();
        for text in texts {
            serde_json::to_writer(&mut lines, &Line { at_ms, text: text.clone() }).expect("a line is plain data");
            lines.push(b'\n');
        }
        let file = std::fs::File::options().create(true).append(true).open(self.path(run));
        if let Err(error) = file.and_then(|mut file| file.write_all(&lines)) {
            tracing::warn!(run, %error, "a log line could not be written");
        }
    }

    /// Returns the entries from a byte offset on, and the offset after them.
    pub(crate) fn read(&self, run: &str, from: u64) -> (Vec<Line>, u64) {
        let mut rest = Vec::new();
        let read = std::fs::File::open(self.path(run)).and_then(|mut file| {
            file.seek(SeekFrom::Start(from))?;
            file.read_to_end(&mut rest)
        });
        if read.is_err() {
            rest.clear();
        }
        let whole = rest.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let lines = rest[..whole].split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
        (lines.collect(), from + whole as u64)
    }

    fn path(&self, run: &str) -> PathBuf {
        self.folder.join(format!("{run}.jsonl"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_from_where_the_last_reading_ended() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::open(&dir.path().join("logs")).unwrap();
        assert_eq!(logs.read("r", 0), (vec![], 0));
        logs.append("r", 1, &["first".into()]);
        let (lines, next) = logs.read("r", 0);
        assert_eq!(lines, [Line { at_ms: 1, text: "first".into() }]);
        logs.append("r", 2, &["second \"quoted\"\nline".into(), "third".into()]);
        let (lines, _) = logs.read("r", next);
        assert_eq!(
            lines,
            [Line { at_ms: 2, text: "second \"quoted\"\nline".into() }, Line { at_ms: 2, text: "third".into() }]
        );
    }
}
