//! The load: a coordinator, workers, a run of many tasks; deaths of the coordinator among them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proto::coordinator::StatusRequest;
use proto::coordinator::runs_client::RunsClient;
use shared::{Error, Result};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::figures::{Figures, Kill, Memory, Tally};
use super::server::{Server, usage_of};
use super::setting::{self, RUN, STAGE};
use super::worker;
use crate::client::{Client, submission};

/// Measures a coordinator under many workers and tasks
///
/// Starts `coordinator serve` as a child process on a port and a state folder of its own, and simulated workers in this
/// process: each dials a connection of its own, says Hello, beats, tells progress and ends its tasks after a drawn time. The
/// tasks are the shards of one generation stage, one prompt each, cut by the coordinator from a run file that is submitted
/// to it. Told are times between a worker's end of a task and its next task, as the worker sees them, while tasks wait. The
/// exit code is 1 where a task was lost or run twice to completion. Workers and coordinator share the machine, so hold
/// processors back for neither.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Simulated workers
    #[arg(long, default_value_t = 2000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=50_000))]
    workers: u64,
    /// Tasks
    #[arg(long, default_value_t = 200_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    tasks: u64,
    /// Mean time of a task; times are drawn between half of it and one and a half
    #[arg(long, default_value_t = 1500, value_name = "MS")]
    task_ms: u64,
    /// Interval of heartbeats; a worker is lost after five without
    #[arg(long, default_value_t = 1000, value_name = "MS", value_parser = clap::value_parser!(u64).range(20..=60_000))]
    heartbeat_ms: u64,
    /// Kill the coordinator with SIGKILL so often, evenly over the tasks, and start it again on its state
    #[arg(long, default_value_t = 0, value_name = "N")]
    kills: u64,
    /// Stop after so long, whatever is done by then
    #[arg(long, value_name = "S")]
    seconds: Option<u64>,
    /// Folder for everything, on a real disk: the coordinator syncs its state there [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Folder for the run's files, two a task: memory is best, they are no part of what is measured [default: a temporary
    /// one in /dev/shm, else in the folder]
    #[arg(long, value_name = "DIR")]
    artifacts: Option<PathBuf>,
    /// Coordinator program to be measured, of this release or another [default: this one]
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Seed of the drawn times
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Workers must have joined, and tasks must come, within so long.
const PATIENCE: Duration = Duration::from_secs(1800);

pub(super) fn run(args: &Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let figures =
        runtime.map_err(|error| Error::Config(format!("the async runtime: {error}")))?.block_on(load(args))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&figures).expect("figures are plain data"));
    } else {
        print!("{}", figures.table());
    }
    match &figures.problems()[..] {
        [] => Ok(()),
        _ if args.seconds.is_some() && figures.completed_twice == 0 => Ok(()),
        problems => Err(Error::Config(problems.join("; "))),
    }
}

fn temporary(within: &Path) -> Result<tempfile::TempDir> {
    let made = tempfile::Builder::new().prefix("trace-bench-").tempdir_in(within);
    made.map_err(|source| Error::io("make a folder in", within, source))
}

async fn load(args: &Args) -> Result<Figures> {
    crate::serve::raise_open_files();
    let own = temporary(args.folder.as_deref().unwrap_or(&std::env::temp_dir()))?;
    let memory = Path::new("/dev/shm");
    let files = match &args.artifacts {
        Some(folder) => temporary(folder)?,
        None if memory.is_dir() => temporary(memory)?,
        None => temporary(own.path())?,
    };
    let run_file = setting::write(own.path(), args.tasks as usize)?;
    let log = std::env::temp_dir().join(format!("trace-bench-{}.log", std::process::id()));
    let state = own.path().join("state");
    let server = Server::start(args.program.as_deref(), files.path(), &state, args.heartbeat_ms, &log).await?;
    let (seen_in, seen) = mpsc::unbounded_channel();
    let mean = Duration::from_millis(args.task_ms);
    let workers = worker::start(&server.url, args.workers, args.seed, mean, &seen_in).await?;
    let mut course = Course { args, server, seen, tally: Tally::default(), kills: Vec::new(), memory: Vec::new() };
    let figures = course.run(&run_file).await;
    drop(workers);
    if figures.as_ref().is_ok_and(|figures| figures.problems().is_empty()) {
        let _ = std::fs::remove_file(&log);
    } else {
        eprintln!("the coordinator's log is {}", log.display());
    }
    let mut figures = figures?;
    figures.state_mib = super::folder_mib(&state);
    Ok(figures)
}

struct Course<'a> {
    args: &'a Args,
    server: Server,
    seen: mpsc::UnboundedReceiver<worker::Seen>,
    tally: Tally,
    kills: Vec<Kill>,
    memory: Vec<Memory>,
}

impl Course<'_> {
    async fn run(&mut self, run_file: &Path) -> Result<Figures> {
        let Args { workers, tasks, .. } = *self.args;
        eprintln!("{workers} workers dial");
        self.until("workers did not join", PATIENCE, |tally| tally.joined >= workers).await?;
        eprintln!("all have joined; the run of {tasks} tasks is submitted");
        let submitted = Instant::now();
        Client::new(&self.server.url, None)?.submit(submission(run_file, &[])?).await?;
        self.until("no task came", PATIENCE, |tally| tally.assigned > 0).await?;
        let (begun, cut_s) = (Instant::now(), submitted.elapsed().as_secs_f64());
        let before = (self.tally.beats, self.tally.progress, self.server.usage().cpu_seconds);
        let bench_before = usage_of(std::process::id()).cpu_seconds;
        eprintln!("cut in {cut_s:.1} s; tasks are carried out");
        let wall_s = self.carry_out(begun).await?;
        let coordinator_cpu_s = self.server.usage().cpu_seconds - before.2;
        let bench_cpu_s = usage_of(std::process::id()).cpu_seconds - bench_before;
        let per_second = |count: u64| count as f64 / wall_s;
        let (beats, progress) = (self.tally.beats - before.0, self.tally.progress - before.1);
        let ended = Instant::now();
        let stage = self.stage_ends().await?;
        if let Some(problem) = self.tally.wrong.first() {
            return Err(Error::Config(format!("{} workers were surprised: {problem}", self.tally.wrong.len())));
        }
        Ok(Figures {
            workers,
            tasks,
            completed: self.tally.stored,
            completed_twice: self.tally.completed_twice(),
            further_attempts: self.tally.further_attempts(),
            cut_s,
            wall_s,
            finish_s: ended.elapsed().as_secs_f64(),
            tasks_per_s: per_second(self.tally.stored),
            heartbeats_per_s: per_second(beats),
            progress_per_s: per_second(progress),
            assignment: self.tally.assignment(),
            assignment_across_deaths: self.tally.assignment_across_deaths(),
            memory: std::mem::take(&mut self.memory),
            coordinator_cpu_s,
            bench_cpu_s,
            kills: std::mem::take(&mut self.kills),
            state_mib: 0.0,
            stage,
        })
    }

    /// Counts until all tasks are stored, or time is up; kills in between. Returns the seconds it took.
    async fn carry_out(&mut self, begun: Instant) -> Result<f64> {
        let Args { tasks, kills, seconds, .. } = *self.args;
        let limit = seconds.map_or(Duration::MAX, Duration::from_secs);
        let mut killed_at = (1..=kills).map(|n| tasks * n / (kills + 1)).peekable();
        let mut sampled_at = [10, 50, 100].into_iter().map(|percent| (percent, tasks * percent / 100)).peekable();
        let mut told = Instant::now();
        while self.tally.stored < tasks && begun.elapsed() < limit {
            if let Ok(Some(seen)) = timeout(Duration::from_secs(1), self.seen.recv()).await {
                self.tally.take(seen, tasks);
            }
            if let Some((percent, _)) = sampled_at.next_if(|(_, at)| self.tally.stored >= *at) {
                self.memory.push(Memory { percent, usage: self.server.usage() });
            }
            if killed_at.next_if(|at| self.tally.stored >= *at).is_some() {
                self.kill().await?;
            }
            if told.elapsed() > Duration::from_secs(10) {
                told = Instant::now();
                eprintln!("{:.0} s: {} of {tasks}", begun.elapsed().as_secs_f64(), self.tally.stored);
            }
        }
        Ok(begun.elapsed().as_secs_f64())
    }

    async fn kill(&mut self) -> Result<()> {
        let (at, begun) = (self.tally.stored, Instant::now());
        let start_s = self.server.kill_and_start().await?.as_secs_f64();
        // What was on the way when it died is not from the new one.
        while let Ok(seen) = self.seen.try_recv() {
            self.tally.take(seen, self.args.tasks);
        }
        let before = self.tally.assigned;
        let limit = Duration::from_secs(120);
        let tasks = self.args.tasks;
        self.until("no task came after a death", limit, |tally| tally.assigned > before || tally.stored >= tasks)
            .await?;
        let next_assignment_s = begun.elapsed().as_secs_f64();
        eprintln!("killed at {at} tasks; tasks come again after {next_assignment_s:.2} s");
        self.kills.push(Kill { at, start_s, next_assignment_s });
        Ok(())
    }

    /// Counts until something is so.
    async fn until(&mut self, problem: &str, limit: Duration, is_so: impl Fn(&Tally) -> bool) -> Result<()> {
        let begun = Instant::now();
        while !is_so(&self.tally) {
            if begun.elapsed() > limit {
                return Err(Error::Config(format!("{problem} within {limit:?}: {:?}", self.tally.wrong.first())));
            }
            if let Ok(Some(seen)) = timeout(Duration::from_millis(100), self.seen.recv()).await {
                self.tally.take(seen, self.args.tasks);
            }
        }
        Ok(())
    }

    /// Waits until the stage whose tasks are all done has joined them; returns its state.
    async fn stage_ends(&mut self) -> Result<String> {
        let mut runs = RunsClient::new(shared::net::channel(&self.server.url)?);
        runs = runs.max_decoding_message_size(proto::MAX_MESSAGE_BYTES);
        let begun = Instant::now();
        loop {
            let reply = runs.status(StatusRequest { run: RUN.to_owned() }).await;
            let reply = reply.map_err(|status| Error::Config(format!("the coordinator: {}", status.message())))?;
            let stages = reply.into_inner().runs.into_iter().flat_map(|run| run.stages);
            let state = stages.into_iter().find(|stage| stage.name == STAGE).map(|stage| stage.state);
            let state = state.unwrap_or_default();
            if state != "running" || self.tally.stored < self.args.tasks || begun.elapsed() > PATIENCE {
                return Ok(state);
            }
            while let Ok(Some(seen)) = timeout(Duration::from_millis(100), self.seen.recv()).await {
                self.tally.take(seen, self.args.tasks);
                if begun.elapsed().as_millis() % 200 > 150 {
                    break;
                }
            }
        }
    }
}
