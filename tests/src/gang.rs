//! Gangs without a coordinator: one process a rank, in the folder of a scenario.

use std::ffi::OsStr;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

use crate::{Folder, after, worker};

/// Returns an address that nobody listens at and no other gang of this process gets: below the ports that systems give by themselves.
fn free_address() -> String {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = std::process::id() % 1000 * 10;
    loop {
        let port = 20_000 + (first + u32::from(NEXT.fetch_add(1, Ordering::Relaxed))) % 12_000;
        let address = format!("127.0.0.1:{port}");
        if TcpListener::bind(&address).is_ok() {
            return address;
        }
    }
}

impl Folder {
    /// Starts the ranks of a gang, with words as [`Folder::run`] takes them; one rank may be planned to die, or to freeze. A world
    /// of one is no gang.
    ///
    /// # Panics
    /// If a process cannot be started.
    pub fn start_gang(&self, words: &str, world: usize, fault: Option<(usize, &str)>) -> Vec<Child> {
        self.start_gang_with(words, world, fault, &[])
    }

    /// As [`Folder::start_gang`], with variables of the environment.
    ///
    /// # Panics
    /// If a process cannot be started.
    pub fn start_gang_with(
        &self,
        words: &str,
        world: usize,
        fault: Option<(usize, &str)>,
        variables: &[(&str, &OsStr)],
    ) -> Vec<Child> {
        let program = |_| Command::new(worker());
        self.start_ranks(words, world, program, |rank, command| {
            if let Some((_, fault)) = fault.filter(|(victim, _)| rank == *victim) {
                command.args(["--fault", fault]);
            }
            command.envs(variables.iter().copied());
        })
    }

    /// As [`Folder::start_gang`]; one rank begins with commands of the shell.
    ///
    /// # Panics
    /// If a process cannot be started.
    pub fn start_gang_after(&self, words: &str, world: usize, (who, before): (usize, &str)) -> Vec<Child> {
        let program = |rank| if rank == who { after(before) } else { Command::new(worker()) };
        self.start_ranks(words, world, program, |_, _| {})
    }

    /// `program` makes a rank's program, before its words, and `finish` adds to it.
    fn start_ranks(
        &self,
        words: &str,
        world: usize,
        program: impl Fn(usize) -> Command,
        finish: impl Fn(usize, &mut Command),
    ) -> Vec<Child> {
        let peers: Vec<String> = (0..world).map(|_| free_address()).collect();
        let start = |rank: usize| {
            let mut command = program(rank);
            self.prepare(&mut command, words);
            if world > 1 {
                command.args(["--rank", &rank.to_string(), "--peers", &peers.join(",")]);
            }
            finish(rank, &mut command);
            command.env("TRACE_GANG_SECRET", "known to us").stdout(Stdio::null()).stderr(Stdio::piped());
            command.spawn().expect("the program can be started")
        };
        (0..world).map(start).collect()
    }

    /// Runs a gang, of which every rank must succeed.
    ///
    /// # Panics
    /// If one does not.
    #[track_caller]
    pub fn gang(&self, words: &str, world: usize) {
        for (rank, child) in self.start_gang(words, world, None).into_iter().enumerate() {
            let output = child.wait_with_output().expect("it was started");
            let err = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(0), "rank {rank} of {world}: {words}\n{err}");
        }
    }

    /// Makes sure that two runs under `runs/` hold the same bytes in each of the files.
    ///
    /// # Panics
    /// If they do not; `what` says after what.
    #[track_caller]
    pub fn same_runs(&self, files: &[&str], runs: [&str; 2], what: &str) {
        for file in files {
            let [one, other] = runs.map(|run| self.bytes(&format!("runs/{run}/{file}")));
            assert!(one == other, "{file} of {} and {}: {what}", runs[0], runs[1]);
        }
    }
}
