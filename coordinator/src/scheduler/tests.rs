use std::collections::BTreeSet;

use proto::coordinator::task_ended::How;
use proto::coordinator::{Failed, Finished, Hello, RunTask, Stopped, TaskEnded, TaskRef};
use shared::keyed_random::KeyedRandom;

use super::event::*;
use super::*;
use crate::plan::{Kind, Stage as PlanStage, Task as PlanTask, Work};

const TIMING: Timing = Timing { heartbeat_ms: 100, lost_after_ms: 500, form_within_ms: 2000 };

/// A cluster in a box: the scheduler, and workers that do what a test says.
struct TestEnv {
    scheduler: Scheduler,
    now_ms: u64,
    workers: BTreeMap<String, TestWorker>,
    /// Work of the coordinator's own process that has not come back.
    begun: Vec<Effect>,
    last_reply: Option<Result<(), Refusal>>,
    log: Vec<String>,
    starts: u64,
}

#[derive(Default)]
struct TestWorker {
    instance: u64,
    connected: bool,
    running: Option<RunTask>,
    told: Option<StopReason>,
    met: bool,
    unstored: Option<TaskEnded>,
}

fn stage(name: &str, after: &[usize], place: Place) -> PlanStage {
    PlanStage { name: name.into(), after: after.to_vec(), place, work: Work::Report }
}

fn plan() -> Plan {
    let stages = vec![
        stage("prepare", &[], Place::Coordinator),
        stage("triage", &[0], Place::Oracle),
        stage("score", &[1], Place::Workers),
        stage("train", &[2], Place::Workers),
        stage("generate", &[3], Place::Workers),
        stage("report", &[4], Place::Coordinator),
    ];
    Plan { run: "r".into(), stages }
}

fn tasks(stage: usize) -> Vec<PlanTask> {
    let task = |name: String, kind, world_size| PlanTask { name, kind, args: vec![], world_size, outputs: vec![] };
    match stage {
        2 => (0..5).map(|n| task(format!("shard-{n}"), Kind::Score, 1)).collect(),
        3 => vec![task("train".into(), Kind::Train, 2)],
        4 => (0..3).map(|n| task(format!("shard-{n}"), Kind::Generate, 1)).collect(),
        _ => vec![],
    }
}

fn source(text: &str) -> Source {
    Source { text: text.into(), file: "run.toml".into(), folder: "/".into(), set: vec![] }
}

impl TestEnv {
    fn new(workers: usize) -> TestEnv {
        let scheduler = Scheduler::new(TIMING, [1; 32], BTreeMap::new());
        let mut env = TestEnv {
            scheduler,
            now_ms: 1_000_000,
            workers: BTreeMap::new(),
            begun: Vec::new(),
            last_reply: None,
            log: Vec::new(),
            starts: 0,
        };
        for n in 0..workers {
            env.workers.insert(format!("w{n}"), TestWorker::default());
            env.connect(&format!("w{n}"));
        }
        env
    }

    fn submit(&mut self) {
        self.apply(Event::RunSubmitted { plan: plan(), source: source("a") });
    }

    fn apply(&mut self, event: Event) {
        let mut saved = false;
        let told = format!("{event:?}");
        for effect in self.scheduler.apply(self.now_ms, event) {
            match effect {
                Effect::Save { .. } => saved = true,
                Effect::BeginStage { .. } | Effect::CarryOutStage { .. } | Effect::FinishStage { .. } => {
                    self.begun.push(effect);
                }
                Effect::StopStage { ticket } => self.begun.retain(|work| ticket_of(work) != ticket),
                Effect::Send { worker, message } => {
                    assert!(saved || !matches!(message, Message::Run(_)), "told before saved: {told}");
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
    }

    fn receive(&mut self, name: &str, message: Message) {
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
            Message::EndedStored(stored) if worker.unstored.as_ref().is_some_and(|own| own.task == stored.task) => {
                worker.unstored = None;
            }
            _ => {}
        }
    }

    fn connect(&mut self, name: &str) {
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
        self.apply(Event::WorkerFolderSeen { worker: name.into(), instance, problem: String::new() });
    }

    fn disconnect(&mut self, name: &str) {
        let worker = self.workers.get_mut(name).unwrap();
        worker.connected = false;
        let instance = format!("i{}", worker.instance);
        self.apply(Event::WorkerDisconnected { worker: name.into(), instance });
    }

    /// The process dies: what it knew is gone, another one starts under its name.
    fn die(&mut self, name: &str) {
        self.disconnect(name);
        let worker = self.workers.get_mut(name).unwrap();
        *worker = TestWorker { instance: worker.instance + 1, ..TestWorker::default() };
    }

    fn end(&mut self, name: &str, how: How) {
        let worker = self.workers.get_mut(name).unwrap();
        let Some(run) = worker.running.take() else { return };
        let ended = TaskEnded { task: run.task, how: Some(how) };
        worker.unstored = Some(ended.clone());
        if worker.connected {
            self.apply(Event::TaskEnded { worker: name.into(), ended });
        }
    }

    /// Lets time pass; connected workers beat.
    fn pass(&mut self, ms: u64) {
        self.now_ms += ms;
        let alive: Vec<(String, u64)> =
            self.workers.iter().filter(|(_, w)| w.connected).map(|(name, w)| (name.clone(), w.instance)).collect();
        for (worker, instance) in alive {
            self.apply(Event::WorkerHeard { worker, instance: format!("i{instance}") });
        }
        self.apply(Event::Tick);
    }

    /// Does one piece of the coordinator's own work.
    fn work(&mut self) -> bool {
        if self.begun.is_empty() {
            return false;
        }
        let outcome = Outcome { seconds: 1.0, ..Outcome::default() };
        match self.begun.remove(0) {
            Effect::BeginStage { stage, ticket, .. } => {
                self.starts += 1;
                self.apply(Event::StageBegun { ticket, begun: Ok(Begun::Todo(tasks(stage))) });
            }
            Effect::CarryOutStage { ticket, .. } => self.apply(Event::StageCarriedOut { ticket, done: Ok(()) }),
            Effect::FinishStage { ticket, .. } => self.apply(Event::StageFinished { ticket, done: Ok(outcome) }),
            other => unreachable!("{other:?}"),
        }
        true
    }

    /// A worker does the next honest thing with its task.
    fn compute(&mut self, name: &str) {
        let worker = &self.workers[name];
        let Some(run) = worker.running.clone() else { return };
        match worker.told {
            Some(StopReason::GangBroken) => {
                let problem = "the gang is broken".into();
                self.end(name, How::Failed(Failed { problem, infrastructure: true }));
            }
            Some(_) => self.end(name, How::Stopped(Stopped {})),
            None if !worker.met => {
                let (task, address) = (run.task.unwrap(), format!("{name}:1"));
                self.apply(Event::PeerReady { worker: name.into(), task, address });
            }
            None => self.end(name, How::Finished(Finished::default())),
        }
    }

    /// The coordinator dies and starts again with what it saved.
    fn restart(&mut self) {
        let text = serde_json::to_string(self.scheduler.runs()).unwrap();
        self.scheduler = Scheduler::new(TIMING, [2; 32], serde_json::from_str(&text).unwrap());
        self.begun.clear();
        for worker in self.workers.values_mut() {
            worker.connected = false;
        }
        self.apply(Event::Started);
    }

    fn state(&self) -> RunState {
        self.scheduler.runs()["r"].state
    }

    /// Everything works from now on; returns whether the run ended.
    fn settle(&mut self) -> bool {
        for _ in 0..400 {
            if self.state().is_ended() {
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

fn ticket_of(effect: &Effect) -> Ticket {
    match effect {
        Effect::BeginStage { ticket, .. }
        | Effect::CarryOutStage { ticket, .. }
        | Effect::FinishStage { ticket, .. } => *ticket,
        other => unreachable!("{other:?}"),
    }
}

fn task_of(env: &TestEnv, stage: usize, index: usize) -> run::Task {
    env.scheduler.runs()["r"].stages[stage].tasks()[index].clone()
}

/// Brings the run to the gang.
fn to_the_gang(env: &mut TestEnv) {
    env.submit();
    loop {
        env.work();
        if !env.scheduler.runs()["r"].stages[3].tasks().is_empty() {
            return;
        }
        for name in ["w0", "w1"] {
            env.compute(name);
        }
    }
}

#[test]
fn a_run_goes_through_its_stages_in_order() {
    let mut env = TestEnv::new(2);
    env.submit();
    assert_eq!(env.last_reply, Some(Ok(())));
    assert!(env.settle());
    assert_eq!(env.state(), RunState::Done);
    assert_eq!(env.starts, 6);
}

#[test]
fn a_worker_lost_in_a_shard_costs_that_shard_only() {
    let mut env = TestEnv::new(2);
    env.submit();
    while env.scheduler.runs()["r"].stages[2].tasks().is_empty() {
        env.work();
    }
    env.compute("w1");
    env.die("w0");
    for _ in 0..7 {
        env.pass(100);
    }
    let lost = task_of(&env, 2, 0);
    assert_eq!((lost.state == TaskState::Waiting, lost.lost, lost.failed), (true, 1, 0));
    assert!(task_of(&env, 2, 1).is_done());
    assert!(env.settle());
    assert_eq!(env.state(), RunState::Done);
}

#[test]
fn a_gang_that_loses_a_member_starts_a_new_attempt_with_a_new_secret() {
    let mut env = TestEnv::new(2);
    to_the_gang(&mut env);
    env.compute("w0");
    env.compute("w1");
    let first = env.workers["w0"].running.clone().unwrap();
    assert!(env.workers["w0"].met && env.workers["w1"].met);
    env.die("w1");
    env.connect("w1");
    assert_eq!(env.workers["w0"].told, Some(StopReason::GangBroken), "the other member is told at once");
    assert_eq!(task_of(&env, 3, 0).attempt, 1, "the attempt is over when all its members have ended");
    env.compute("w0");
    let second = env.workers["w0"].running.clone().unwrap();
    assert_eq!(second.task.as_ref().unwrap().attempt, 2);
    assert_ne!(first.gang_secret, second.gang_secret);
    assert!(env.settle());
    assert_eq!(env.state(), RunState::Done);
}

#[test]
fn a_stale_message_is_dropped() {
    let mut env = TestEnv::new(2);
    to_the_gang(&mut env);
    let old = env.workers["w0"].running.clone().unwrap().task.unwrap();
    let before = env.scheduler.runs().clone();
    let stale = TaskRef { attempt: old.attempt + 1, ..old };
    let ended = TaskEnded { task: Some(stale), how: Some(How::Finished(Finished::default())) };
    env.apply(Event::TaskEnded { worker: "w0".into(), ended });
    assert_eq!(*env.scheduler.runs(), before);
}

#[test]
fn a_task_that_fails_by_itself_three_times_fails_its_run_with_its_words() {
    let mut env = TestEnv::new(2);
    to_the_gang(&mut env);
    for _ in 0..3 {
        env.end("w0", How::Failed(Failed { problem: "record 7 is NaN".into(), infrastructure: false }));
        env.compute("w1");
        env.pass(10);
    }
    assert_eq!(env.state(), RunState::Failed);
    let run = &env.scheduler.runs()["r"];
    assert_eq!(run.reason, "stage train: train: record 7 is NaN");
}

#[test]
fn a_restarted_coordinator_adopts_what_still_runs() {
    let mut env = TestEnv::new(2);
    to_the_gang(&mut env);
    env.compute("w0");
    env.compute("w1");
    env.restart();
    env.pass(100);
    env.connect("w0");
    env.connect("w1");
    env.pass(100);
    let task = task_of(&env, 3, 0);
    assert_eq!((task.attempt, task.lost), (1, 0));
    assert!(matches!(task.state, TaskState::Running { .. }));
    assert!(env.settle());
    assert_eq!(env.state(), RunState::Done);
}

#[test]
fn an_end_that_nobody_heard_is_told_in_the_next_hello() {
    let mut env = TestEnv::new(2);
    to_the_gang(&mut env);
    env.compute("w0");
    env.compute("w1");
    env.disconnect("w0");
    env.compute("w0");
    assert!(env.workers["w0"].unstored.is_some());
    env.compute("w1");
    env.connect("w0");
    assert!(env.workers["w0"].unstored.is_none());
    assert!(env.settle());
    assert_eq!(env.state(), RunState::Done);
}

#[test]
fn a_paused_run_stops_and_goes_on_and_a_cancelled_one_is_over() {
    let mut env = TestEnv::new(2);
    to_the_gang(&mut env);
    env.compute("w0");
    env.compute("w1");
    env.apply(Event::PauseAsked { run: "r".into() });
    assert_eq!(env.workers["w1"].told, Some(StopReason::Paused));
    env.compute("w0");
    env.compute("w1");
    env.pass(1000);
    let task = task_of(&env, 3, 0);
    assert_eq!((&task.state, task.lost, task.failed), (&TaskState::Waiting, 0, 0));
    env.apply(Event::ResumeAsked { run: "r".into() });
    assert!(matches!(task_of(&env, 3, 0).state, TaskState::Running { .. }));
    env.apply(Event::CancelAsked { run: "r".into() });
    assert_eq!(env.state(), RunState::Cancelled);
    assert!(env.workers["w0"].told.is_some());
    env.apply(Event::CancelAsked { run: "r".into() });
    assert!(matches!(&env.last_reply, Some(Err(Refusal::NotNow(problem))) if problem.contains("cancelled")));
    env.apply(Event::CancelAsked { run: "other".into() });
    assert!(matches!(&env.last_reply, Some(Err(Refusal::NotFound(_)))));
    env.compute("w0");
    env.compute("w1");
    env.submit();
    assert!(env.settle());
    assert_eq!(env.state(), RunState::Done);
}

#[test]
fn a_drained_worker_gets_no_new_task() {
    let mut env = TestEnv::new(3);
    env.apply(Event::DrainAsked { worker: "w0".into() });
    env.submit();
    while env.scheduler.runs()["r"].stages[2].tasks().is_empty() {
        env.work();
    }
    assert!(env.workers["w0"].running.is_none());
    assert!(env.workers["w1"].running.is_some() && env.workers["w2"].running.is_some());
}

#[test]
fn a_second_process_of_the_same_name_is_refused_while_the_first_is_there() {
    let mut env = TestEnv::new(1);
    let hello = Hello { name: "w0".into(), instance: "other".into(), ..Hello::default() };
    let effects = env.scheduler.apply(env.now_ms, Event::WorkerHello { hello });
    let [Effect::Send { worker, message: Message::Refused(refused) }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(worker, "w0@other");
    assert!(refused.reason.contains("--name"), "{}", refused.reason);
}

#[test]
fn the_same_run_submitted_again_is_the_same_and_another_under_its_name_is_refused() {
    let mut env = TestEnv::new(1);
    env.submit();
    let before = env.scheduler.runs().clone();
    env.submit();
    assert_eq!((env.scheduler.runs().clone(), &env.last_reply), (before, &Some(Ok(()))));
    env.apply(Event::RunSubmitted { plan: plan(), source: source("b") });
    assert!(matches!(&env.last_reply, Some(Err(Refusal::NotNow(_)))));
}

/// Whatever happens in whatever order, the invariants hold, attempts only grow, and once things calm down the run ends.
#[test]
fn random_events_never_break_it_and_calm_brings_every_run_to_its_end() {
    let base: u64 = std::env::var("TRACE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261);
    println!("TRACE_SEED={base}");
    for case in 0..1500 {
        let mut random = KeyedRandom::new(&[base, case]);
        let mut env = TestEnv::new(2 + random.below(3) as usize);
        env.submit();
        let names: Vec<String> = env.workers.keys().cloned().collect();
        let mut attempts: BTreeMap<(usize, String), u32> = BTreeMap::new();
        let mut finished: BTreeSet<usize> = BTreeSet::new();
        for _ in 0..60 {
            let name = names[random.below(names.len() as u64) as usize].clone();
            match random.below(14) {
                0 => env.die(&name),
                1 => env.disconnect(&name),
                2 | 3 => {
                    if !env.workers[&name].connected {
                        env.connect(&name);
                    }
                }
                4 if random.below(4) == 0 => env.restart(),
                5 => env.pass(random.below(700)),
                6 if random.below(6) == 0 => {
                    let failed = Failed { problem: "bad luck".into(), infrastructure: random.below(2) == 0 };
                    env.end(&name, How::Failed(failed));
                }
                7 if random.below(4) == 0 => env.apply(Event::PauseAsked { run: "r".into() }),
                8 => env.apply(Event::ResumeAsked { run: "r".into() }),
                9 | 10 => {
                    env.work();
                }
                _ => env.compute(&name),
            }
            for (index, stage) in env.scheduler.runs()["r"].stages.iter().enumerate() {
                assert!(stage.is_done() || !finished.contains(&index), "case {case}: stage {index} is done twice");
                if stage.is_done() {
                    finished.insert(index);
                }
                for task in stage.tasks() {
                    let before = attempts.insert((index, task.plan.name.clone()), task.attempt);
                    assert!(before.unwrap_or(0) <= task.attempt, "case {case}: attempts shrink");
                }
            }
        }
        env.apply(Event::ResumeAsked { run: "r".into() });
        assert!(
            env.settle(),
            "case {case}: the run never ends: {:?}\n{:?}\n{:?}",
            env.scheduler.runs()["r"].stages,
            env.scheduler.workers(),
            env.workers
                .iter()
                .map(|(n, w)| (n, w.running.is_some(), w.told, w.met, w.unstored.is_some()))
                .collect::<Vec<_>>()
        );
        assert!([RunState::Done, RunState::Failed].contains(&env.state()), "case {case}");
    }
}
