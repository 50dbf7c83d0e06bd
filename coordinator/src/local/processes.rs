//! Which processes a local run has started, on disk, so that the next one finds those that outlived it.
//!
//! A process id alone may belong to another program by now; with the time at which the process started it is certain.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use shared::output::write_json;
use shared::{Result, input};

/// Time to end by itself before a process is killed.
const GRACE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(50);

/// A process that was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    pub(super) name: String,
    pub(super) pid: u32,
    /// When it started, in the kernel's ticks since boot.
    pub(super) start: u64,
    /// Where it listens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) address: Option<String>,
}

/// The file with all processes of a local run.
#[derive(Debug)]
pub(super) struct Book {
    file: PathBuf,
    recorded: Recorded,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Recorded {
    processes: Vec<Process>,
}

impl Book {
    /// Opens the book of an artifact folder and ends what is still alive of the last run. Returns the names of those.
    ///
    /// The caller holds the lock of the folder: whatever is recorded has lost its supervisor.
    pub(super) fn open(file: &Path) -> (Book, Vec<String>) {
        let recorded = if file.exists() { input::read_json(file) } else { Ok(Recorded::default()) };
        let recorded = recorded.unwrap_or_else(|error| {
            tracing::warn!("{error}; what is left of an earlier run is not found by it");
            Recorded::default()
        });
        let orphans: Vec<Process> = recorded.processes.into_iter().filter(is_alive).collect();
        orphans.iter().for_each(|orphan| signal(orphan.pid, Signal::TERM));
        let until = Instant::now() + GRACE;
        while orphans.iter().any(is_alive) && Instant::now() < until {
            std::thread::sleep(POLL);
        }
        orphans.iter().filter(|orphan| is_alive(orphan)).for_each(|orphan| signal(orphan.pid, Signal::KILL));
        let names = orphans.into_iter().map(|orphan| orphan.name).collect();
        (Book { file: file.to_owned(), recorded: Recorded::default() }, names)
    }

    /// Writes a process down, in place of an earlier one of its name.
    ///
    /// # Errors
    /// The book cannot be written.
    pub(super) fn started(&mut self, name: &str, pid: u32, address: Option<String>) -> Result<()> {
        self.recorded.processes.retain(|process| process.name != name);
        // A process that has ended already needs no entry.
        if let Some(start) = start_of(pid) {
            self.recorded.processes.push(Process { name: name.to_owned(), pid, start, address });
        }
        write_json(&self.file, &self.recorded)
    }

    /// Empties the book: all processes have ended.
    pub(super) fn all_ended(&mut self) -> Result<()> {
        self.recorded.processes.clear();
        write_json(&self.file, &self.recorded)
    }
}

/// Returns whether a recorded process is still running, and still that process.
fn is_alive(process: &Process) -> bool {
    start_of(process.pid) == Some(process.start)
}

/// Returns when a running process started; none where there is none, or only its exit code is left.
fn start_of(pid: u32) -> Option<u64> {
    start_in(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Reads the start time from the kernel's line about a process: `PID (NAME) STATE …`, the 22nd field. The name may hold
/// anything, blanks and brackets too.
fn start_in(stat: &str) -> Option<u64> {
    let after_name = stat.rsplit_once(')')?.1;
    let mut fields = after_name.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    // The state is the third field.
    fields.nth(18)?.parse().ok()
}

/// Sends a signal; a process that is gone needs none.
pub(super) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_start_time_is_found_behind_any_name() {
        let stat = "4242 (a (strange) name) S 1 4242 4242 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 987654 1 2 3";
        assert_eq!(start_in(stat), Some(987_654));
        assert_eq!(start_in(&stat.replace(") S ", ") Z ")), None);
        assert_eq!(start_in("rubbish"), None);
        assert!(start_of(std::process::id()).is_some());
    }

    #[test]
    fn what_outlived_its_supervisor_is_ended_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("processes.json");
        let sleep = || Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        let (mut orphan, mut stranger) = (sleep(), sleep());
        let (mut book, none) = Book::open(&file);
        assert!(none.is_empty());
        book.started("worker-1", orphan.id(), None).unwrap();
        book.started("oracle", stranger.id(), Some("http://127.0.0.1:1".into())).unwrap();
        // The stranger has the recorded id, but started at another time.
        let mut recorded: Recorded = input::read_json(&file).unwrap();
        recorded.processes[1].start -= 1;
        write_json(&file, &recorded).unwrap();

        let reaper = std::thread::spawn(move || orphan.wait().unwrap());
        let (_, ended) = Book::open(&file);
        assert_eq!(ended, ["worker-1"]);
        assert!(!reaper.join().unwrap().success());
        assert!(stranger.try_wait().unwrap().is_none(), "another process is left alone");
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }
}
