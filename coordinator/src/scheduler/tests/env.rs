//! A cluster in a box: the scheduler, workers that do what a test says, and the disk.

use std::collections::BTreeSet;

use proto::coordinator::{Failed, Finished, Hello, RunTask, Stopped, TaskEnded, task_ended::How};

use crate::plan::{Kind, Stage as PlanStage, Task as PlanTask, Work};
use crate::records::{Found, Records};
use crate::scheduler::event::*;
use crate::scheduler::*;

const TIMING: Timing = Timing { heartbeat_ms: 100, lost_after_ms: 500, form_within_ms: 2000, leave_within_ms: 3000 };

pub(super) struct TestEnv {
    pub(super) scheduler: Scheduler,
    pub(super) now_ms: u64,
    pub(super) workers: BTreeMap<String, TestWorker>,
    /// Work of the coordinator's own process that has not come back.
    pub(super) begun: Vec<StageWork>,
    pub(super) last_reply: Option<Result<(), Refusal>>,
    pub(super) log: Vec<String>,
    pub(super) starts: u64,
    /// What is in the store by tree and key: all that is left after a restart.
    pub(super) saved: BTreeMap<(String, String), String>,
    records: Records,
    /// Of the gang's task.
    pub(super) min_workers: Option<u32>,
    /// Tasks of the gangs' stage.
    pub(super) gangs: usize,
    /// Attempts that were ordered, by submission: none is ordered twice.
    ordered: BTreeSet<(u64, String, String, u32, u32)>,
}

#[derive(Default)]
pub(super) struct TestWorker {
    pub(super) instance: u64,
    pub(super) connected: bool,
    pub(super) running: Option<RunTask>,
    pub(super) told: Option<StopReason>,
    pub(super) met: bool,
    pub(super) unstored: Option<TaskEnded>,
    /// It takes no new task and goes when it has none; `stops` says that it does not end the present one first.
    pub(super) leaving: bool,
    pub(super) stops: bool,
    /// For so long it has been in a call in which nothing moves.
    pub(super) still_ms: u64,
    /// What it will say of the artifact folder.
    pub(super) folder_problem: String,
}

pub(super) fn stage(name: &str, after: &[usize], place: Place) -> PlanStage {
    PlanStage { name: name.into(), after: after.to_vec(), place, work: Work::Report }
}

pub(super) fn plan() -> Plan {
    plan_named("r")
}

pub(super) fn plan_named(run: &str) -> Plan {
    let stages = vec![
        stage("prepare", &[], Place::Coordinator),
        stage("triage", &[0], Place::Oracle),
        stage("score", &[1], Place::Workers),
        stage("train", &[2], Place::Workers),
        stage("generate", &[3], Place::Workers),
        stage("report", &[4], Place::Coordinator),
    ];
    Plan { run: run.into(), stages }
}

pub(super) fn tasks(stage: usize, min_workers: Option<u32>, gangs: usize) -> Vec<PlanTask> {
    let task = |name: String, kind, world_size| {
        let min_workers = min_workers.filter(|_| kind == Kind::Train);
        PlanTask { name, kind, args: vec![], world_size, min_workers, outputs: vec![] }
    };
    match stage {
        2 => (0..5).map(|n| task(format!("shard-{n}"), Kind::Score, 1)).collect(),
        3 => ["train", "train-2"].iter().take(gangs).map(|name| task((*name).into(), Kind::Train, 2)).collect(),
        4 => (0..3).map(|n| task(format!("shard-{n}"), Kind::Generate, 1)).collect(),
        _ => vec![],
    }
}

pub(super) fn source(text: &str) -> Source {
    Source { text: text.into(), file: "run.toml".into(), folder: "/".into(), set: vec![] }
}

impl TestEnv {
    pub(super) fn new(workers: usize) -> TestEnv {
        let scheduler = Scheduler::new(TIMING, [1; 32], BTreeMap::new());
        let mut env = TestEnv {
            scheduler,
            now_ms: 1_000_000,
            workers: BTreeMap::new(),
            begun: Vec::new(),
            last_reply: None,
            log: Vec::new(),
            starts: 0,
            saved: BTreeMap::new(),
            records: Records::default(),
            min_workers: None,
            gangs: 1,
            ordered: BTreeSet::new(),
        };
        for n in 0..workers {
            env.workers.insert(format!("w{n}"), TestWorker::default());
            env.connect(&format!("w{n}"));
        }
        env
    }

    pub(super) fn submit(&mut self) {
        self.apply(Event::RunSubmitted { plan: plan(), source: source("a") });
    }

    pub(super) fn apply(&mut self, event: Event) {
        let mut saved = false;
        let told = format!("{event:?}");
        // A pause that is over is noticed at the next tick, if nothing else happens.
        let is_word = matches!(event, Event::WorkerHeard { .. } | Event::TaskProgressed { .. });
        for effect in self.scheduler.apply(self.now_ms, event) {
            match effect {
                Effect::Save { run, tasks } => {
                    saved = true;
                    let tasks = tasks.into_iter().collect();
                    let mut changes = self.records.changes(&run, &self.scheduler.runs()[&run], &tasks);
                    // Some of what means nothing any more goes with it, some is still there after a restart.
                    changes.extend(self.records.obsolete(2));
                    for change in changes {
                        let key = (change.name().0.to_owned(), change.name().1.to_owned());
                        match change.value() {
                            Some(value) => self.saved.insert(key, value.to_owned()),
                            None => self.saved.remove(&key),
                        };
                    }
                }
                Effect::Stage(work) => self.begun.push(work),
                Effect::StopStage { ticket } => self.begun.retain(|work| work.ticket() != ticket),
                Effect::Send { worker, message } => {
                    assert!(saved || !matches!(message, Message::Run(_)), "told before saved: {told}");
                    if let Message::Run(order) = &message {
                        let task = order.task.clone().unwrap();
                        let submitted_ms = self.scheduler.runs()[&task.run].submitted_ms;
                        let name = format!("{}/{}", task.run, task.stage);
                        let is_new = self.ordered.insert((submitted_ms, name, task.task, task.attempt, order.rank));
                        assert!(is_new, "an attempt is ordered twice: {order:?} after {told}");
                    }
                    self.receive(&worker, message);
                }
                Effect::Disconnect { worker } => {
                    if let Some(worker) = self.workers.get_mut(&worker) {
                        worker.connected = false;
                    }
                }
                Effect::Log { text, .. } => self.log.push(text),
                Effect::Reply(reply) => self.last_reply = Some(reply),
            }
        }
        self.scheduler.check_invariants();
        self.check_surroundings(&told, !is_word);
    }

    /// Checks what must hold between the scheduler, what is saved and what the workers do, after every event.
    fn check_surroundings(&self, told: &str, may_place: bool) {
        let mut waits = false;
        let (_, all_saved) = self.load();
        for (name, live) in self.scheduler.runs() {
            let saved = all_saved.get(name).unwrap_or_else(|| panic!("{name} is not saved after {told}"));
            assert_eq!((saved.state, saved.submitted_ms), (live.state, live.submitted_ms), "not saved after {told}");
            for (index, (saved, live)) in saved.stages.iter().zip(&live.stages).enumerate() {
                assert_eq!(saved.is_done(), live.is_done(), "stage {index} of {name} is not saved after {told}");
                let facts = |stage: &Stage| -> Vec<String> { stage.tasks().iter().map(facts).collect() };
                assert_eq!(facts(saved), facts(live), "tasks of stage {index} of {name} are not saved after {told}");
            }
            for (index, stage) in live.stages.iter().enumerate().filter(|_| !live.state.is_ended()) {
                if let Some(ticket) = stage.ticket() {
                    let is_done_by_someone = self.begun.iter().any(|work| work.ticket() == ticket);
                    assert!(is_done_by_someone, "stage {index} of {name} waits for nobody after {told}");
                }
            }
            if live.state == RunState::Running {
                let may_begin =
                    |task: &run::Task| task.state == TaskState::Waiting && task.not_before_ms <= self.now_ms;
                waits |= live.stages.iter().flat_map(Stage::tasks).any(may_begin);
            }
        }
        let workers = self.scheduler.workers().iter();
        let idle: Vec<&String> = workers.filter(|(_, worker)| worker.is_free()).map(|(name, _)| name).collect();
        let live = self.scheduler.runs().values().filter(|run| run.state == RunState::Running);
        let kept_by = |task: &run::Task| match &task.state {
            TaskState::Running { members, growing: true, .. } => task.plan.members().0 - members.len(),
            _ => 0,
        };
        let kept: usize = live.flat_map(|run| &run.stages).flat_map(Stage::tasks).map(kept_by).sum();
        assert!(!may_place || !waits || idle.len() < 2 + kept, "tasks wait for {idle:?} after {told}");
        for (name, worker) in self.workers.iter().filter(|(_, worker)| worker.connected) {
            let task = worker.running.as_ref().and_then(|run| run.task.clone());
            let is_known = self.scheduler.workers().get(name).is_some_and(|known| known.connected);
            if let Some(task) = task.filter(|_| is_known && worker.told.is_none()) {
                assert!(self.scheduler.is_member(name, &task), "{name} works for nobody at {task:?} after {told}");
            }
        }
    }

    pub(super) fn receive(&mut self, name: &str, message: Message) {
        let Some(worker) = self.workers.get_mut(name).filter(|worker| worker.connected) else { return };
        let own = worker.running.as_ref().and_then(|run| run.task.clone());
        match message {
            Message::Run(run) => {
                assert!(worker.running.is_none(), "{name} got a second task");
                worker.met = run.world_size <= 1;
                worker.told = None;
                worker.running = Some(run);
            }
            Message::Peers(peers) if peers.task == own => worker.met = true,
            Message::Stop(stop) if stop.task == own => worker.told = Some(stop.reason()),
            Message::Drain(_) => worker.leaving = true,
            Message::EndedStored(stored) if worker.unstored.as_ref().is_some_and(|own| own.task == stored.task) => {
                worker.unstored = None;
            }
            _ => {}
        }
    }

    pub(super) fn connect(&mut self, name: &str) {
        let worker = self.workers.get_mut(name).unwrap();
        worker.connected = true;
        let instance = format!("i{}", worker.instance);
        let hello = Hello {
            name: name.into(),
            instance: instance.clone(),
            running: worker.running.as_ref().and_then(|run| run.task.clone()),
            ended: worker.unstored.clone(),
            ..Hello::default()
        };
        self.apply(Event::WorkerHello { hello });
        let worker = &self.workers[name];
        let (problem, leaving) = (worker.folder_problem.clone(), worker.leaving);
        self.apply(Event::WorkerFolderSeen { worker: name.into(), instance: instance.clone(), problem });
        if leaving {
            self.apply(Event::WorkerLeaving { worker: name.into(), instance, reason: "it was told to".into() });
        }
    }

    /// The process gets a SIGTERM: it stops its task at a step and goes.
    pub(super) fn terminate(&mut self, name: &str) {
        let worker = self.workers.get_mut(name).unwrap();
        (worker.leaving, worker.stops) = (true, true);
        if worker.connected {
            let instance = format!("i{}", worker.instance);
            self.apply(Event::WorkerLeaving { worker: name.into(), instance, reason: "it was told to stop".into() });
        }
    }

    pub(super) fn disconnect(&mut self, name: &str) {
        let worker = self.workers.get_mut(name).unwrap();
        worker.connected = false;
        let instance = format!("i{}", worker.instance);
        self.apply(Event::WorkerDisconnected { worker: name.into(), instance });
    }

    /// The process dies: what it knew is gone, another one starts under its name.
    pub(super) fn die(&mut self, name: &str) {
        self.disconnect(name);
        let worker = self.workers.get_mut(name).unwrap();
        *worker = TestWorker { instance: worker.instance + 1, ..TestWorker::default() };
    }

    pub(super) fn end(&mut self, name: &str, how: How) {
        let worker = self.workers.get_mut(name).unwrap();
        let Some(run) = worker.running.take() else { return };
        let ended = TaskEnded { task: run.task, how: Some(how) };
        worker.unstored = Some(ended.clone());
        if worker.connected {
            self.apply(Event::TaskEnded { worker: name.into(), ended });
        }
    }

    /// Reads what was saved.
    fn load(&self) -> (Records, BTreeMap<String, run::Run>) {
        Records::load(Found::of(&self.saved)).unwrap()
    }

    /// Lets time pass, a heartbeat at a time; connected workers beat.
    pub(super) fn pass(&mut self, ms: u64) {
        for _ in 0..ms / TIMING.heartbeat_ms {
            self.pass_at_once(TIMING.heartbeat_ms);
        }
        if !ms.is_multiple_of(TIMING.heartbeat_ms) {
            self.pass_at_once(ms % TIMING.heartbeat_ms);
        }
    }

    fn pass_at_once(&mut self, ms: u64) {
        self.now_ms += ms;
        let connected = self.workers.iter().filter(|(_, w)| w.connected);
        let alive: Vec<(String, u64, u64)> =
            connected.map(|(name, w)| (name.clone(), w.instance, w.still_ms)).collect();
        for (worker, instance, still_ms) in alive {
            self.apply(Event::WorkerHeard { worker, instance: format!("i{instance}"), still_ms });
        }
        self.apply(Event::Tick);
    }

    /// Does one piece of the coordinator's own work.
    pub(super) fn work(&mut self) -> bool {
        if self.begun.is_empty() {
            return false;
        }
        let outcome = Outcome { seconds: 1.0, ..Outcome::default() };
        match self.begun.remove(0) {
            StageWork::Begin { stage, ticket, .. } => {
                self.starts += 1;
                self.apply(Event::StageBegun {
                    ticket,
                    begun: Ok(Begun::Todo(tasks(stage, self.min_workers, self.gangs))),
                });
            }
            StageWork::CarryOut { ticket, .. } => self.apply(Event::StageCarriedOut { ticket, done: Ok(()) }),
            StageWork::Finish { ticket, .. } => self.apply(Event::StageFinished { ticket, done: Ok(outcome) }),
        }
        true
    }

    /// A piece of the coordinator's own work fails.
    pub(super) fn work_fails(&mut self) {
        if self.begun.is_empty() {
            return;
        }
        let problem = || "the disk is full".to_owned();
        match self.begun.remove(0) {
            StageWork::Begin { ticket, .. } => self.apply(Event::StageBegun { ticket, begun: Err(problem()) }),
            StageWork::CarryOut { ticket, .. } => self.apply(Event::StageCarriedOut { ticket, done: Err(problem()) }),
            StageWork::Finish { ticket, .. } => self.apply(Event::StageFinished { ticket, done: Err(problem()) }),
        }
    }

    /// A worker does the next honest thing with its task.
    pub(super) fn compute(&mut self, name: &str) {
        let worker = &self.workers[name];
        let Some(run) = worker.running.clone() else {
            if worker.leaving && worker.unstored.is_none() {
                self.die(name);
            }
            return;
        };
        match worker.told {
            Some(StopReason::GangBroken) => {
                let problem = "the gang is broken".into();
                self.end(name, How::Failed(Failed { problem, infrastructure: true, held: false }));
            }
            Some(_) => self.end(name, How::Stopped(Stopped {})),
            None if worker.stops => self.end(name, How::Stopped(Stopped {})),
            None if !worker.met => {
                let (task, address) = (run.task.unwrap(), format!("{name}:1"));
                self.apply(Event::PeerReady { worker: name.into(), task, address, nccl_id: Vec::new() });
            }
            None => self.end(name, How::Finished(Finished::default())),
        }
    }

    /// The coordinator dies and starts again with what it saved.
    pub(super) fn restart(&mut self) {
        let (records, runs) = self.load();
        self.records = records;
        self.scheduler = Scheduler::new(TIMING, [2; 32], runs);
        self.begun.clear();
        for worker in self.workers.values_mut() {
            worker.connected = false;
        }
        self.apply(Event::Started);
    }

    pub(super) fn state(&self) -> RunState {
        self.scheduler.runs()["r"].state
    }

    /// Everything works from now on; returns whether all runs ended.
    pub(super) fn settle(&mut self) -> bool {
        for _ in 0..3000 {
            if self.scheduler.runs().values().all(|run| run.state.is_ended()) {
                return true;
            }
            for name in self.workers.keys().cloned().collect::<Vec<_>>() {
                if !self.workers[&name].connected {
                    self.connect(&name);
                }
                self.compute(&name);
            }
            self.work();
            self.pass(60);
        }
        false
    }
}

/// What of a task must outlive the coordinator.
fn facts(task: &run::Task) -> String {
    let members = |members: &[run::Member]| -> Vec<String> {
        members.iter().map(|member| format!("{}@{} {}", member.worker, member.instance, member.ended)).collect()
    };
    let state = match &task.state {
        TaskState::Running { members: own, met, broken, growing, .. } => {
            format!("{:?} {met} {broken:?} {growing}", members(own))
        }
        other => format!("{other:?}"),
    };
    format!("{} {} {} {} {state}", task.plan.name, task.attempt, task.lost, task.failed)
}
