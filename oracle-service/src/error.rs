//! Errors of the oracle service.

/// Result of everything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or an option is wrong: correct it.
    #[error(transparent)]
    Input(#[from] shared::Error),
    /// There is nothing to judge by: name a rule file.
    #[error("no judge is named: the API judge is not built yet, so give --rules FILE")]
    NoJudge,
}
