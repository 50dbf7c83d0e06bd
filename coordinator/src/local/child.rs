//! A child process: started, kept alive, stopped.
//!
//! The supervisor holds the other end of its standard input: when the supervisor dies, however, the input ends and the
//! child with it (`--with-parent`). Children are a process group of their own, so that Ctrl-C reaches the supervisor alone
//! and it can stop them in order.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use shared::{Error, Result};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::processes;

/// What a server prints when it can be reached.
const LISTENING: &str = "listening on ";
/// A server must listen within so long.
const START_WITHIN: Duration = Duration::from_secs(60);
/// A worker may finish its step and write a checkpoint.
const STOP_WITHIN: Duration = Duration::from_secs(30);
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A child that lived so long has started well.
const SETTLED: Duration = Duration::from_secs(30);
/// Deaths in a row, none of which had settled, after which starting again makes no sense.
const QUICK_DEATHS: u32 = 6;

/// A program to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Program {
    /// Unique among the children, and the name of its log.
    pub(super) name: String,
    pub(super) executable: PathBuf,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<(&'static str, String)>,
    /// A server: says where it listens.
    pub(super) listens: bool,
    pub(super) log: PathBuf,
}

/// A running child.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    /// Its end is the child's end.
    input: Option<ChildStdin>,
    pub(super) pid: u32,
    pub(super) address: Option<String>,
    since: Instant,
}

/// What a keeper tells.
#[derive(Debug)]
pub(super) struct Restarted {
    pub(super) name: String,
    pub(super) pid: u32,
    pub(super) address: Option<String>,
}

impl Program {
    /// Starts the program; a server is waited for until it listens.
    ///
    /// # Errors
    /// It cannot be started, or ends before it listens: the message has the end of its log.
    pub(super) async fn start(&self) -> Result<Running> {
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.map_err(|source| Error::io("open", &self.log, source))?;
        let copy = || log.try_clone().map_err(|source| Error::io("open", &self.log, source));
        let mut command = Command::new(&self.executable);
        command.args(&self.args).stdin(Stdio::piped()).stderr(copy()?).process_group(0).kill_on_drop(true);
        for (name, value) in &self.env {
            command.env(name, value);
        }
        command.stdout(if self.listens { Stdio::piped() } else { copy()?.into() });
        let mut child = command.spawn().map_err(|source| Error::io("start", &self.executable, source))?;
        let pid = child.id().unwrap_or_default();
        let input = child.stdin.take();
        let address = match child.stdout.take() {
            None => None,
            Some(output) => {
                let mut lines = BufReader::new(output).lines();
                let listening = async {
                    while let Ok(Some(line)) = lines.next_line().await {
                        if let Some(address) = line.strip_prefix(LISTENING) {
                            return Some(address.trim().to_owned());
                        }
                    }
                    None
                };
                let Ok(Some(address)) = tokio::time::timeout(START_WITHIN, listening).await else {
                    return Err(Error::Config(format!("{} did not start:\n{}", self.name, tail(&self.log))));
                };
                let mut log = tokio::fs::File::from_std(copy()?);
                tokio::spawn(async move {
                    while let Ok(Some(line)) = lines.next_line().await {
                        let _ = log.write_all(format!("{line}\n").as_bytes()).await;
                    }
                });
                Some(address)
            }
        };
        Ok(Running { child, input, pid, address, since: Instant::now() })
    }

    /// Keeps a server at the address it has now when it is started again.
    pub(super) fn stays_at(&mut self, address: &str) {
        let listen = address.trim_start_matches("http://").to_owned();
        if let Some(at) = self.args.iter().position(|arg| arg == "--listen") {
            self.args[at + 1] = listen;
        }
    }

    /// Keeps a child alive until told to stop; then ends it.
    ///
    /// # Errors
    /// It dies again and again.
    pub(super) async fn keep(
        self,
        mut running: Running,
        stop: CancellationToken,
        told: mpsc::Sender<Restarted>,
    ) -> Result<()> {
        let mut deaths = Deaths::default();
        loop {
            let status = tokio::select! {
                status = running.child.wait() => status,
                () = stop.cancelled() => return running.stop().await,
            };
            let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
            let mut lived = running.since.elapsed();
            running = loop {
                let Some(wait) = deaths.after(lived) else {
                    let log = tail(&self.log);
                    return Err(Error::Config(format!("{} ends again and again ({status}):\n{log}", self.name)));
                };
                tracing::warn!("{} ended ({status}); it is started again in {:.1} s", self.name, wait.as_secs_f64());
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = stop.cancelled() => return Ok(()),
                }
                match self.start().await {
                    Ok(running) => break running,
                    Err(error) => tracing::warn!("{error}"),
                }
                lived = Duration::ZERO;
            };
            let (name, pid, address) = (self.name.clone(), running.pid, running.address.clone());
            // Whoever listened is gone only when everything ends.
            let _ = told.send(Restarted { name, pid, address }).await;
        }
    }
}

impl Running {
    /// Asks the child to end; kills it if it does not in time.
    async fn stop(mut self) -> Result<()> {
        processes::signal(self.pid, Signal::TERM);
        drop(self.input.take());
        if tokio::time::timeout(STOP_WITHIN, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
        Ok(())
    }
}

/// How often a child has died without having settled.
#[derive(Debug, Default)]
struct Deaths(u32);

impl Deaths {
    /// Returns how long to wait before the next start; none where it is given up.
    fn after(&mut self, lived: Duration) -> Option<Duration> {
        self.0 = if lived >= SETTLED { 1 } else { self.0 + 1 };
        (self.0 < QUICK_DEATHS).then(|| FIRST_WAIT.saturating_mul(1 << (self.0 - 1)).min(LONGEST_WAIT))
    }
}

/// Returns the last lines of a log.
fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let last: Vec<String> = lines[lines.len().saturating_sub(8)..].iter().map(|line| format!("  {line}")).collect();
    format!("{}\n(from {})", last.join("\n"), log.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(dir: &Path, script: &str) -> Program {
        Program {
            name: "server".into(),
            executable: "sh".into(),
            args: vec!["-c".into(), script.into(), "--listen".into(), "127.0.0.1:0".into()],
            env: vec![("OPENAI_API_KEY", "none".into())],
            listens: true,
            log: dir.join("server.log"),
        }
    }

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
    }

    #[test]
    fn a_child_that_dies_is_started_again_where_it_was_and_stopped_in_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let count = dir.path().join("count").display().to_string();
        // $1 is the address it is told to listen at; the first life ends by itself.
        let script = format!(
            "echo \"listening on http://$1\"; echo more; echo x >> {count}; [ $(wc -l < {count}) = 1 ] && exit 3; cat"
        );
        let mut program = program(dir.path(), &script);
        block_on(async {
            let running = program.start().await.unwrap();
            assert_eq!(running.address.as_deref(), Some("http://127.0.0.1:0"));
            program.stays_at("http://127.0.0.1:4711");
            let (told, mut hears) = mpsc::channel(4);
            let stop = CancellationToken::new();
            let keeper = tokio::spawn(program.clone().keep(running, stop.clone(), told));
            let restarted = hears.recv().await.unwrap();
            assert_eq!(
                (restarted.name.as_str(), restarted.address.as_deref()),
                ("server", Some("http://127.0.0.1:4711"))
            );
            stop.cancel();
            keeper.await.unwrap().unwrap();
            assert!(!Path::new(&format!("/proc/{}", restarted.pid)).exists());
        });
    }

    #[test]
    fn a_server_that_does_not_come_up_shows_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let program = program(dir.path(), "echo 'error: the address is taken' >&2; exit 1");
        let error = block_on(program.start()).unwrap_err().to_string();
        assert!(error.contains("server did not start") && error.contains("the address is taken"), "{error}");
    }

    #[test]
    fn a_child_ends_with_the_input_it_was_given() {
        let dir = tempfile::tempdir().unwrap();
        block_on(async {
            let mut running = program(dir.path(), "echo listening on http://x; cat").start().await.unwrap();
            drop(running.input.take());
            assert!(running.child.wait().await.unwrap().success());
        });
    }

    #[test]
    fn waits_grow_until_it_is_given_up_or_has_settled() {
        let mut deaths = Deaths::default();
        let quick = Duration::from_secs(1);
        let waits: Vec<_> = std::iter::from_fn(|| deaths.after(quick)).collect();
        assert_eq!(waits.len(), QUICK_DEATHS as usize - 1);
        assert!(waits.is_sorted() && waits[0] == FIRST_WAIT);
        assert_eq!(deaths.after(SETTLED), Some(FIRST_WAIT));
    }
}
