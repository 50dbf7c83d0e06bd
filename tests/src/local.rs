//! `coordinator run --local 2` with a run file of `runs/`, that of the quickstart's chain unless another is named: its folder, its
//! processes, its results.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::cluster::poll_until;
use crate::program;
use crate::runs::run_file;

/// A folder for such runs. It is the same for a run and its repetition, since results name the files they were made of.
#[derive(Debug)]
pub struct LocalRun {
    folder: tempfile::TempDir,
    /// Of the run file, and of the run in it.
    name: &'static str,
}

impl Default for LocalRun {
    fn default() -> Self {
        Self::new()
    }
}

impl LocalRun {
    /// Returns one of the quickstart's chain that has not begun.
    pub fn new() -> LocalRun {
        LocalRun::of("tiny")
    }

    /// Returns one of a run file that has not begun.
    pub fn of(name: &'static str) -> LocalRun {
        LocalRun { folder: tempfile::tempdir().expect("a temporary folder can be made"), name }
    }

    /// Returns the artifact folder.
    pub fn artifacts(&self) -> PathBuf {
        self.folder.path().join("a")
    }

    /// Returns the command.
    pub fn command(&self) -> Command {
        for name in ["worker", "oracle-service"] {
            program(name);
        }
        let mut command = Command::new(program("coordinator"));
        command.args(["run", &run_file(self.name), "--local", "2", "--artifacts"]).arg(self.artifacts());
        command.env_remove("TRACE_TOKEN").env_remove("TRACE_FAULT").env_remove("OPENAI_API_KEY").stdin(Stdio::null());
        command
    }

    /// Starts the run.
    pub fn start(&self) -> Child {
        let mut command = self.command();
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program can be started")
    }

    /// Runs it to its end, which must be a good one.
    #[track_caller]
    pub fn finish(&self) {
        check(&self.command().output().expect("the program can be started"));
    }

    /// Runs `coordinator explain` for a record of the run, on one thread.
    pub fn explain(&self, record: usize, options: &[&str]) -> Output {
        let mut command = Command::new(program("coordinator"));
        command.args(["explain", self.name, &record.to_string(), "--artifacts"]).arg(self.artifacts()).args(options);
        command.env("TRACE_DEVICE", "cpu").env("OMP_NUM_THREADS", "1").stdin(Stdio::null());
        command.output().expect("the program can be started")
    }

    /// Returns a result.
    ///
    /// # Panics
    /// It is not there.
    #[track_caller]
    pub fn product(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.artifacts().join(self.name).join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Returns the run's own log.
    pub fn log(&self) -> String {
        let log = format!(".coordinator/logs/{}.jsonl", self.name);
        std::fs::read_to_string(self.artifacts().join(log)).unwrap_or_default()
    }

    /// Waits until the run's own log says something.
    #[track_caller]
    pub fn wait_for_log(&self, words: &str) {
        poll_until(words, Duration::from_secs(120), || self.log().contains(words).then_some(()));
    }

    /// Kills one of its processes by its name.
    #[track_caller]
    pub fn kill(&self, name: &str) {
        let pid = poll_until(&format!("process of {name}"), Duration::from_secs(10), || {
            let text = std::fs::read(self.artifacts().join(".local/processes.json")).ok()?;
            let state: Value = serde_json::from_slice(&text).ok()?;
            state["processes"].as_array()?.iter().find(|process| process["name"] == name)?["pid"].as_u64()
        });
        signal(pid as u32, Signal::KILL);
    }
}

/// Sends a signal to a process.
///
/// # Panics
/// There is no such process.
#[track_caller]
pub fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid as i32).expect("a process id is positive");
    kill_process(pid, signal).expect("the process is there");
}

/// Checks that a command ended well.
#[track_caller]
pub fn check(output: &Output) {
    assert!(output.status.success(), "{}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
}
