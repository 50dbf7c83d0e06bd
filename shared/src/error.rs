//! Errors of files and options, one variant for each thing the caller can do about it.
//!
//! Messages name the file, the record (0-based, in file order), the field and what is wrong. Whoever handles an error
//! prints it once; nothing on the way logs it.

use std::path::{Path, PathBuf};

/// Result of everything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The content of a file is wrong: correct the file.
    #[error("{}", place(file, *record, *line, field.as_deref(), problem))]
    Input {
        /// The file as it was named by the caller.
        file: PathBuf,
        /// Position in the file, counted from 0.
        record: Option<usize>,
        /// Line in the file, counted from 1; known for JSON lines only.
        line: Option<u64>,
        /// Name of the field.
        field: Option<String>,
        /// What is wrong, as the end of a sentence about the field, record or file.
        problem: String,
    },
    /// The device is full: make room and run again.
    #[error(
        "{}: no space left on the device; nothing was replaced, a previous file of this name is untouched; make room and \
         run again",
        file.display()
    )]
    DiskFull {
        /// The file that was to be written.
        file: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// The system refused: correct the path, its permissions, or the device.
    #[error("{}: cannot {doing}: {source}", file.display())]
    Io {
        /// What was tried, as a verb: `open`, `write`.
        doing: &'static str,
        /// The file it was tried on.
        file: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// Another process has it: wait for its end.
    #[error("{}: is in use by {holder}; wait for it to end, or {instead}", file.display())]
    InUse {
        /// The file or folder.
        file: PathBuf,
        /// Who has it: "process 4242".
        holder: String,
        /// What else can be done: "choose another output".
        instead: String,
    },
    /// Options contradict each other or the data: correct the command.
    #[error("{0}")]
    Config(String),
}

impl Error {
    /// Returns an error about a file as a whole.
    pub fn file(file: &Path, problem: impl Into<String>) -> Self {
        Error::Input { file: file.to_owned(), record: None, line: None, field: None, problem: problem.into() }
    }

    /// Returns an error about one record of a file.
    pub fn record(file: &Path, record: usize, problem: impl Into<String>) -> Self {
        Error::Input { file: file.to_owned(), record: Some(record), line: None, field: None, problem: problem.into() }
    }

    /// Returns an error about one field of one record of a file.
    pub fn field(file: &Path, record: usize, field: impl Into<String>, problem: impl Into<String>) -> Self {
        Error::Input {
            file: file.to_owned(),
            record: Some(record),
            line: None,
            field: Some(field.into()),
            problem: problem.into(),
        }
    }

    /// Returns an error of the system, with a full device told apart.
    pub fn io(doing: &'static str, file: &Path, source: std::io::Error) -> Self {
        let file = file.to_owned();
        if source.kind() == std::io::ErrorKind::StorageFull {
            Error::DiskFull { file, source }
        } else {
            Error::Io { doing, file, source }
        }
    }
}

fn place(file: &Path, record: Option<usize>, line: Option<u64>, field: Option<&str>, problem: &str) -> String {
    let mut text = file.display().to_string();
    match (record, line) {
        (Some(record), Some(line)) => text += &format!(": record {record} (line {line})"),
        (Some(record), None) => text += &format!(": record {record}"),
        (None, Some(line)) => text += &format!(": line {line}"),
        (None, None) => {}
    }
    if let Some(field) = field {
        text += &format!(": field \"{field}\"");
    }
    format!("{text}: {problem}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_file_record_field_and_problem() {
        let error = Error::field(Path::new("a/pairs.json"), 17, "chosen", "is empty");
        assert_eq!(error.to_string(), "a/pairs.json: record 17: field \"chosen\": is empty");
        let error = Error::file(Path::new("pairs.json"), "is empty");
        assert_eq!(error.to_string(), "pairs.json: is empty");
    }

    #[test]
    fn a_full_device_is_told_apart_from_other_failures() {
        let full = Error::io("write", Path::new("x"), std::io::Error::from(std::io::ErrorKind::StorageFull));
        assert!(matches!(full, Error::DiskFull { .. }));
        let denied = Error::io("write", Path::new("x"), std::io::Error::from(std::io::ErrorKind::PermissionDenied));
        assert!(denied.to_string().starts_with("x: cannot write: "), "{denied}");
    }
}
