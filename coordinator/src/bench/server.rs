//! The coordinator under test: a child process, killed and started again on the same state and port.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde::Serialize;
use shared::{Error, Result};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// A state of many runs may take a while to open.
const START_WITHIN: Duration = Duration::from_secs(120);

/// Of processor time in /proc, on every Linux of today.
const TICKS_PER_SECOND: f64 = 100.0;

pub(super) struct Server {
    child: Child,
    program: PathBuf,
    args: Vec<String>,
    log: PathBuf,
    pub(super) url: String,
    /// Processor time of earlier lives.
    before: f64,
}

/// What a process takes.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Usage {
    pub(super) resident_mib: f64,
    pub(super) peak_mib: f64,
    pub(super) cpu_seconds: f64,
}

impl Server {
    /// Starts a coordinator, this program where no other is given, at a free port.
    ///
    /// # Errors
    /// It does not start; its log is named.
    pub(super) async fn start(
        program: Option<&Path>,
        artifacts: &Path,
        state: &Path,
        heartbeat_ms: u64,
        log: &Path,
    ) -> Result<Server> {
        let own =
            || std::env::current_exe().map_err(|error| Error::Config(format!("cannot find this program: {error}")));
        let program = program.map_or_else(own, |program| Ok(program.to_owned()))?;
        let text = |path: &Path| path.display().to_string();
        let heartbeat = heartbeat_ms.to_string();
        let (artifacts, state) = (text(artifacts), text(state));
        let args = ["serve", "--artifacts", &artifacts, "--state", &state, "--heartbeat-ms", &heartbeat, "--oracle"];
        // Nobody listens there: stages of the oracle service wait.
        let mut args: Vec<String> = args.into_iter().map(str::to_owned).collect();
        let nobody = "http://127.0.0.1:1";
        args.extend([nobody, "--mock", nobody, "--listen", "127.0.0.1:0"].map(str::to_owned));
        let (child, url) = spawn(&program, &args, log).await?;
        // When it is started again, it is where it was.
        let last = args.len() - 1;
        args[last] = url.trim_start_matches("http://").to_owned();
        Ok(Server { child, program, args, log: log.to_owned(), url, before: 0.0 })
    }

    /// Kills it with SIGKILL and starts it again. Returns how long the start took.
    ///
    /// # Errors
    /// It does not start.
    pub(super) async fn kill_and_start(&mut self) -> Result<Duration> {
        self.before = self.usage().cpu_seconds;
        self.child.kill().await.map_err(|error| Error::Config(format!("cannot kill the coordinator: {error}")))?;
        let begun = Instant::now();
        (self.child, _) = spawn(&self.program, &self.args, &self.log).await?;
        Ok(begun.elapsed())
    }

    /// Returns what it takes now; processor time of all its lives.
    pub(super) fn usage(&self) -> Usage {
        let mut usage = self.child.id().map(usage_of).unwrap_or_default();
        usage.cpu_seconds += self.before;
        usage
    }
}

async fn spawn(program: &Path, args: &[String], log: &Path) -> Result<(Child, String)> {
    let file = std::fs::File::options().create(true).append(true).open(log);
    let file = file.map_err(|source| Error::io("open", log, source))?;
    let mut command = Command::new(program);
    command.args(args).env_remove("TRACE_TOKEN").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
    let mut child = command.kill_on_drop(true).spawn().map_err(|source| Error::io("start", program, source))?;
    let mut lines = BufReader::new(child.stdout.take().expect("its output is piped")).lines();
    let listening = async {
        while let Ok(Some(line)) = lines.next_line().await {
            if let Some(url) = line.strip_prefix("listening on ") {
                return Some(url.to_owned());
            }
        }
        None
    };
    match tokio::time::timeout(START_WITHIN, listening).await {
        Ok(Some(url)) => Ok((child, url)),
        _ => Err(Error::Config(format!("the coordinator did not start; its log is {}", log.display()))),
    }
}

/// Reads what a process takes; zeros where it is gone.
pub(super) fn usage_of(pid: u32) -> Usage {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let status = read("status");
    let mib = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let kib: Option<f64> = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        kib.unwrap_or(0.0) / 1024.0
    };
    let stat = read("stat");
    // After the name, which may hold anything: user and system time are the 12th and 13th.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks: u64 = fields.iter().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Usage { resident_mib: mib("VmRSS:"), peak_mib: mib("VmHWM:"), cpu_seconds: ticks as f64 / TICKS_PER_SECOND }
}
