//! A state folder that a service holds: its address lies there, so that commands that need the ledger can ask the service.

use std::path::{Path, PathBuf};

use proto::oracle::ledger_keeper_client::LedgerKeeperClient;
use shared::net::SendToken;
use shared::output::write_atomic;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

use crate::api::ledger::Ledger;
use crate::control;
use crate::error::{Error, Result};

const ADDRESS: &str = "service";

/// A connection to the keeper of a ledger.
type Client = LedgerKeeperClient<InterceptedService<Channel, SendToken>>;

/// A ledger of one's own, or the service that has it.
pub(crate) enum Held {
    Open(Ledger),
    Served {
        /// The service's address.
        url: String,
        /// Who holds the folder.
        problem: String,
    },
}

/// Marks a state folder as held by the service at an address, until dropped.
pub(crate) struct Mark(PathBuf);

impl Mark {
    /// # Errors
    /// The disk.
    pub(crate) fn set(state: &Path, url: &str) -> Result<Mark> {
        let path = state.join(ADDRESS);
        write_atomic(&path, url.as_bytes())?;
        Ok(Mark(path))
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        // One that stays is removed by whoever holds the folder next.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Removes the mark of a service that had the folder and is gone; for whoever has it now.
pub(crate) fn forget(state: &Path) {
    let _ = std::fs::remove_file(state.join(ADDRESS));
}

/// Opens the ledger of a state folder, or finds the service that has it.
///
/// # Errors
/// There is no such folder, or it is held by another command.
pub(crate) fn open(state: &Path) -> Result<Held> {
    if !state.is_dir() {
        return Err(shared::Error::file(state, "is no folder; name the ledger's by --state").into());
    }
    match Ledger::open(state) {
        Ok(ledger) => Ok(Held::Open(ledger)),
        Err(problem @ shared::Error::InUse { .. }) => match std::fs::read_to_string(state.join(ADDRESS)) {
            Ok(url) => Ok(Held::Served { url: url.trim().to_owned(), problem: problem.to_string() }),
            Err(_) => Err(problem.into()),
        },
        Err(error) => Err(error.into()),
    }
}

/// Opens the ledger of a state folder for a command that no service can do in its place.
///
/// # Errors
/// As [`open`]; a service has it: its address is named.
pub(crate) fn open_own(state: &Path, command: &str) -> Result<Ledger> {
    match open(state)? {
        Held::Open(ledger) => Ok(ledger),
        Held::Served { url, problem } => {
            let problem = format!("{problem} ({command} cannot be done by a service that runs: stop it for the while)");
            Err(Error::Service { url, problem })
        }
    }
}

/// Calls the service that has a state folder.
///
/// # Errors
/// It cannot be reached, or says no.
pub(crate) fn call<T>(
    url: &str,
    problem: &str,
    token_file: Option<&Path>,
    ask: impl AsyncFnOnce(Client) -> std::result::Result<T, tonic::Status>,
) -> Result<T> {
    let called = control::call_at(url, token_file, async |channel, token| {
        ask(LedgerKeeperClient::with_interceptor(channel, token).max_decoding_message_size(proto::MAX_MESSAGE_BYTES))
            .await
    });
    called.map_err(|error| match error {
        Error::Service { url, problem: said } => Error::Service { url, problem: format!("{said} ({problem})") },
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_that_holds_a_folder_is_found_by_its_mark() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        assert!(open(&state).err().unwrap().to_string().contains("is no folder"));
        let ledger = Ledger::open(&state).unwrap();
        assert!(open(&state).err().unwrap().to_string().contains("in use"), "a command has it");
        let mark = Mark::set(&state, "http://127.0.0.1:7401").unwrap();
        let Held::Served { url, problem } = open(&state).unwrap() else { panic!("it is open twice") };
        assert!(url == "http://127.0.0.1:7401" && problem.contains("in use"), "{url} {problem}");
        let error = open_own(&state, "requeue").unwrap_err().to_string();
        assert!(error.contains("http://127.0.0.1:7401") && error.contains("requeue cannot"), "{error}");
        drop(ledger);
        // One that was left behind by a death means nothing, and does not stay for the next holder's commands to find.
        let Held::Open(_ledger) = open(&state).unwrap() else { panic!("nobody has it") };
        assert!(open(&state).err().unwrap().to_string().contains("in use"));
        drop(mark);
        assert!(!state.join(ADDRESS).exists());
    }
}
