//! What can go wrong in the worker, by what the caller can do about it.

use std::path::{Path, PathBuf};

/// Result of the worker's fallible functions.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the worker; its message says what, where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Records or other input files are wrong: the user fixes them.
    #[error(transparent)]
    Shared(#[from] shared::error::Error),
    /// A model or adapter folder cannot be used as it is.
    #[error("{}: {problem}", file.display())]
    Model {
        /// The file or folder at fault.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A record cannot be encoded, scored or trained on.
    #[error("{}: record {record}: {problem}", file.display())]
    Record {
        /// The file of records.
        file: PathBuf,
        /// Its index in that file, from 0.
        record: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// Settings contradict each other or an earlier run.
    #[error("{0}")]
    Config(String),
    /// A number stopped being finite, or weights are all zero: training or scoring cannot go on.
    #[error("{0}")]
    Numeric(String),
    /// Another member of the gang is gone or late: the attempt is over, through no fault of the task.
    #[error("the gang is broken: {0}")]
    Gang(String),
    /// The coordinator gave this attempt up, and the next one has taken its files over.
    #[error("{}: a newer attempt at this task has taken over; this one ends and leaves everything as it is", file.display())]
    TakenOver {
        /// The file that it held.
        file: PathBuf,
    },
    /// The command was told to stop, and did.
    #[error("stopped as asked; what is done is kept, and the same command goes on from there")]
    Stopped,
    /// The device has no room for the work, or refuses it.
    #[error("{0}")]
    Device(String),
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

impl Error {
    /// Returns an error about a model or adapter file.
    pub fn model(file: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Error::Model { file: file.as_ref().to_owned(), problem: problem.into() }
    }

    /// Returns an error about one record of a file.
    pub fn record(file: impl AsRef<Path>, record: usize, problem: impl Into<String>) -> Self {
        Error::Record { file: file.as_ref().to_owned(), record, problem: problem.into() }
    }
}
