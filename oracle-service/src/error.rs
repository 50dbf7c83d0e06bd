//! Errors of the oracle service.

/// Result of everything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or an option is wrong: correct it.
    #[error(transparent)]
    Input(#[from] shared::Error),
    /// There is nothing to judge by: name a policy or a rule file.
    #[error("no judge is named: give --policy FILE (a policy's text, judged by a model) or --rules FILE")]
    NoJudge,
    /// The API's key is missing: set it.
    #[error("OPENAI_API_KEY is not set; put the API's key there (any word will do for a server that wants none)")]
    NoKey,
    /// The job cannot go on until someone acts, and nothing is lost: run it again then.
    #[error("{0}; nothing is lost: run again to go on")]
    Paused(String),
    /// The item waits for a batch; nobody but a walk that keeps nothing gets this.
    #[error("it waits for its batch")]
    Later,
    /// Labels by another judge exist: ask for relabelling, or use that judge.
    #[error("{0}")]
    Relabel(String),
    /// Too many items are left without an answer; the outputs are written.
    #[error("{0}")]
    TooManyUnlabelled(String),
    /// The service said no, or nothing.
    #[error("the oracle service at {url}: {problem}")]
    Service {
        /// Its address.
        url: String,
        /// What it said.
        problem: String,
    },
    /// A server cannot listen or serve.
    #[error("cannot serve: {0}")]
    Serve(String),
}

impl Error {
    /// Returns the exit code: 4 where someone must act before the same command can go on, else 1.
    pub fn exit_code(&self) -> std::process::ExitCode {
        match self {
            Error::Paused(_) => std::process::ExitCode::from(4),
            _ => std::process::ExitCode::FAILURE,
        }
    }
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> tonic::Status {
        let text = error.to_string();
        match error {
            Error::Input(shared::Error::Io { .. } | shared::Error::DiskFull { .. }) => {
                tonic::Status::resource_exhausted(text)
            }
            Error::Input(_) | Error::NoJudge => tonic::Status::invalid_argument(text),
            Error::NoKey | Error::Paused(_) | Error::Relabel(_) | Error::TooManyUnlabelled(_) => {
                tonic::Status::failed_precondition(text)
            }
            Error::Service { .. } => tonic::Status::unavailable(text),
            Error::Serve(_) | Error::Later => tonic::Status::internal(text),
        }
    }
}
