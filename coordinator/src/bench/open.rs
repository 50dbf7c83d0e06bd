//! Opening the state of a run with many finished tasks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::time::{Duration, Instant};

use proto::coordinator::task_ended::How;
use proto::coordinator::to_worker::Message;
use proto::coordinator::{Finished, Hello, TaskEnded, TaskRef};
use serde::Serialize;
use shared::store::Store;
use shared::{Error, Result};

use super::server::usage_of;
use crate::plan::{Kind, Place, Plan, Stage, Task, Work};
use crate::records::{Found, Records};
use crate::scheduler::event::{Begun, Effect, Event, Source, StageWork, Ticket};
use crate::scheduler::{Scheduler, Timing};

/// Measures how long a coordinator takes to open its state
///
/// Makes a state in a temporary folder: a run in mid-stage, so many of its tasks finished, one after the other by 200 workers,
/// through the coordinator's own scheduler and records, some hundred ends a commit as under load. Then opens it, several
/// times, as `coordinator serve` does after a kill: log, index, records, scheduler.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Finished tasks
    #[arg(long, default_value_t = 100_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    tasks: u64,
    /// How often it is opened; told are the median and all times
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100))]
    rounds: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const RUN: &str = "load";
const STAGE: &str = "generate-base";
const WORKERS: usize = 200;
const TIMING: Timing =
    Timing { heartbeat_ms: 1000, lost_after_ms: 5000, form_within_ms: 30_000, leave_within_ms: 60_000 };

#[derive(Debug, Serialize)]
struct Figures {
    tasks: u64,
    finished: u64,
    state_mib: f64,
    median_s: f64,
    seconds: Vec<f64>,
    resident_before_mib: f64,
    resident_after_mib: f64,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let folder = tempfile::tempdir().map_err(|error| Error::Config(format!("a temporary folder: {error}")))?;
    Making::new(Store::open(folder.path())?).make(args.tasks as usize)?;
    let before = usage_of(std::process::id()).resident_mib;
    let (mut seconds, mut found, mut after) = (Vec::new(), (0, 0), 0.0);
    for _ in 0..args.rounds {
        let (time, counts) = open(folder.path())?;
        after = usage_of(std::process::id()).resident_mib;
        found = counts;
        seconds.push(time.as_secs_f64());
    }
    let mut sorted = seconds.clone();
    sorted.sort_by(f64::total_cmp);
    let figures = Figures {
        tasks: found.0,
        finished: found.1,
        state_mib: super::folder_mib(folder.path()),
        median_s: sorted[sorted.len() / 2],
        seconds,
        resident_before_mib: before,
        resident_after_mib: after,
    };
    if figures.finished < args.tasks {
        return Err(Error::Config(format!("{} of {} finished tasks were found again", figures.finished, args.tasks)));
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&figures).expect("figures are plain data"));
    } else {
        let all: Vec<String> = figures.seconds.iter().map(|seconds| format!("{seconds:.3}")).collect();
        println!(
            "{} finished tasks of {}, {:.1} MiB on disk: opened in {:.3} s (median of {}); {:.0} MiB resident, {:.0} before",
            figures.finished,
            figures.tasks,
            figures.state_mib,
            figures.median_s,
            all.join(", "),
            figures.resident_after_mib,
            figures.resident_before_mib
        );
    }
    Ok(())
}

/// Opens a state as the coordinator does; returns how long it took, and how many tasks it has and how many are finished.
fn open(folder: &Path) -> Result<(Duration, (u64, u64))> {
    let begun = Instant::now();
    let store = Store::open(folder)?;
    let (_records, runs) = Records::load(Found::read(&store)?)?;
    let mut scheduler = Scheduler::new(TIMING, [1; 32], runs);
    scheduler.apply(1, Event::Started);
    let time = begun.elapsed();
    let stages = scheduler.runs().values().flat_map(|run| &run.stages);
    let counts = stages.filter_map(|stage| stage.work()).map(|work| (work.len() as u64, work.counts().2));
    Ok((time, counts.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))))
}

/// A coordinator without a network, in the making of its state.
struct Making {
    store: Store,
    scheduler: Scheduler,
    records: Records,
    unsaved: BTreeMap<String, BTreeSet<(usize, usize)>>,
    /// Who was told to run what.
    running: VecDeque<(String, TaskRef)>,
    begins: Vec<Ticket>,
}

impl Making {
    fn new(store: Store) -> Making {
        let scheduler = Scheduler::new(TIMING, [1; 32], BTreeMap::new());
        let (records, unsaved) = (Records::default(), BTreeMap::new());
        Making { store, scheduler, records, unsaved, running: VecDeque::new(), begins: Vec::new() }
    }

    fn make(mut self, tasks: usize) -> Result<()> {
        for number in 0..WORKERS {
            let (worker, instance) = (format!("sim-{number:05}"), number.to_string());
            let hello = Hello { name: worker.clone(), instance: instance.clone(), ..Hello::default() };
            self.apply(Event::WorkerHello { hello });
            self.apply(Event::WorkerFolderSeen { worker, instance, problem: String::new() });
        }
        let stage = Stage { name: STAGE.into(), after: vec![], place: Place::Workers, work: Work::Generate(0) };
        let plan = Plan { run: RUN.into(), stages: vec![stage] };
        let source = Source { text: String::new(), file: "load.toml".into(), folder: "/".into(), set: vec![] };
        self.apply(Event::RunSubmitted { plan, source });
        let Some(ticket) = self.begins.pop() else {
            return Err(Error::Config("the stage does not begin".into()));
        };
        // Those that are at work when it ends are not finished.
        let all = tasks + WORKERS;
        self.apply(Event::StageBegun { ticket, begun: Ok(Begun::Todo((0..all).map(task).collect())) });
        self.save()?;
        for number in 0..tasks {
            let (worker, task) = self.running.pop_front().expect("tasks wait, so workers have some");
            let finished = Finished { summary_json: "{}".into(), incomplete: false };
            let ended = TaskEnded { task: Some(task), how: Some(How::Finished(finished)) };
            self.apply(Event::TaskEnded { worker, ended });
            if number % 100 == 99 {
                self.save()?;
            }
        }
        self.save()
    }

    fn apply(&mut self, event: Event) {
        for effect in self.scheduler.apply(1, event) {
            match effect {
                Effect::Save { run, tasks } => self.unsaved.entry(run).or_default().extend(tasks),
                Effect::Send { worker, message: Message::Run(order) } => {
                    self.running.extend(order.task.map(|task| (worker, task)));
                }
                Effect::Stage(StageWork::Begin { ticket, .. }) => self.begins.push(ticket),
                _ => {}
            }
        }
    }

    fn save(&mut self) -> Result<()> {
        for (run, tasks) in std::mem::take(&mut self.unsaved) {
            let changes = self.records.changes(&run, &self.scheduler.runs()[&run], &tasks);
            self.store.commit_blocking(changes)?;
        }
        Ok(())
    }
}

/// A shard as the stage of generation cuts it.
fn task(number: usize) -> Task {
    let file = |kind: &str| format!("stages/{STAGE}.shards/{kind}-{number:04}.json");
    let [prompts, out] = ["prompts", "responses"].map(|kind| format!("/cluster/artifacts/{RUN}/{}", file(kind)));
    let offset = number.to_string();
    let args = ["--model-name-or-path", "/models/base", "--seed", "1", "--prompts", &prompts, "--out", &out];
    let args = args.into_iter().chain(["--item-offset", &offset]).map(str::to_owned).collect();
    let outputs = vec![file("responses").into()];
    Task { name: format!("shard-{number:04}"), kind: Kind::Generate, args, world_size: 1, min_workers: None, outputs }
}
