//! What must hold of everything that is said and saved.

use std::collections::{BTreeMap, BTreeSet};

use proto::coordinator::from_worker::Message as Said;
use proto::coordinator::to_worker::Message as Told;
use proto::coordinator::{RunTask, TaskRef};
use serde_json::Value;
use shared::store::Change;

use super::attempt::{Key, Place};
use super::control::Input;
use super::world::World;
use crate::scheduler::run::{RunState, TaskState};
use crate::scheduler::worker::WorkerState;

#[derive(Debug, Default)]
pub(super) struct Checks {
    /// What was found to be wrong first.
    pub(super) broken: Option<String>,
    /// Connections of which the coordinator has seen the end.
    ended: BTreeSet<u64>,
    /// The connection on which a worker said Hello last.
    present: BTreeMap<String, u64>,
    refused: BTreeSet<u64>,
    /// Ranks that were ordered.
    ordered: BTreeSet<(Key, u32)>,
    /// The last attempt that was ordered at a task.
    attempts: BTreeMap<Place, u32>,
}

impl Checks {
    pub(super) fn fail(&mut self, problem: &str) {
        self.broken.get_or_insert_with(|| problem.to_owned());
    }

    fn demand(&mut self, holds: bool, problem: impl FnOnce() -> String) {
        if !holds {
            self.fail(&problem());
        }
    }
}

/// Returns an order in few words.
pub(super) fn words_of_order(message: &Told) -> String {
    let name = |task: &Option<TaskRef>| task.as_ref().map(shared::link::name).unwrap_or_default();
    match message {
        Told::Run(run) => format!("run {} as rank {} of {}", name(&run.task), run.rank, run.world_size),
        Told::Stop(stop) => format!("stop {}: {:?}", name(&stop.task), stop.reason()),
        Told::Peers(peers) => format!("peers of {}", name(&peers.task)),
        Told::EndedStored(stored) => format!("end of {} is stored", name(&stored.task)),
        Told::Refused(refused) => format!("refused: {}", refused.reason),
        Told::Welcome(_) => "welcome".to_owned(),
        Told::Drain(_) => "drain".to_owned(),
    }
}

impl World {
    /// Notes what comes to the coordinator.
    pub(super) fn note_input(&mut self, input: &Input) {
        match input {
            Input::Connected { hello, connection, .. } => {
                let present = self.checks.present.entry(hello.name.clone()).or_default();
                *present = (*present).max(*connection);
                let running = hello.running.as_ref().map(shared::link::name);
                self.tell(|| format!("{} says Hello on connection {connection}, runs {running:?}", hello.instance));
            }
            Input::Disconnected { worker, connection } => {
                self.checks.ended.insert(*connection);
                self.tell(|| format!("the end of connection {connection} of {worker}"));
            }
            Input::Said { worker, message, .. } => match message {
                Said::Ended(ended) => {
                    let (task, how) = (ended.task.as_ref().map(shared::link::name), &ended.how);
                    self.tell(|| format!("from {worker}: {task:?} ended: {how:?}"));
                }
                Said::Leaving(leaving) => self.tell(|| format!("from {worker}: it leaves: {}", leaving.reason)),
                _ => {}
            },
            Input::Asked { event, .. } => self.tell(|| {
                let words = format!("{event:?}");
                format!("a person: {}", words.get(..60).unwrap_or(&words))
            }),
            Input::Happened(_) => {}
        }
    }

    /// Nothing is hung up on a worker that lives, unless it has another connection.
    pub(super) fn check_hang_up(&mut self, connection: u64) {
        let Some(worker) = self.wires.get(&connection).and_then(|wire| wire.worker.clone()) else { return };
        let is_old = self.checks.present.get(&worker).is_some_and(|present| *present > connection);
        let is_over = self.checks.ended.contains(&connection) || self.checks.refused.contains(&connection);
        let known = self.control.scheduler().and_then(|scheduler| scheduler.workers().get(&worker));
        let is_lost = known.is_none_or(|known| known.state == WorkerState::Lost);
        self.checks.demand(is_old || is_over || is_lost, || {
            format!("connection {connection} of {worker} is hung up, and the worker lives and has no other")
        });
    }

    /// What is told is on the disk.
    pub(super) fn check_order(&mut self, worker: &str, connection: u64, message: &Told) {
        match message {
            Told::Run(run) => self.check_run(worker, run),
            Told::EndedStored(stored) => {
                let task = stored.task.clone().unwrap_or_default();
                let saved = self.saved_task(&task);
                let members = saved.as_ref().and_then(|(_, saved)| saved["state"]["Running"]["members"].as_array());
                let is_open = members.is_some_and(|members| {
                    members.iter().any(|member| member["worker"] == worker && member["ended"] == false)
                });
                let is_this = saved.as_ref().is_some_and(|(_, saved)| saved["attempt"] == task.attempt);
                let of_process = members.into_iter().flatten().find(|member| member["worker"] == worker);
                let instance = of_process.and_then(|member| member["instance"].as_str()).map(str::to_owned);
                let now = self.control.scheduler().and_then(|scheduler| scheduler.workers().get(worker));
                let is_same = now.is_some_and(|now| Some(&now.hello.instance) == instance.as_ref());
                self.checks.demand(!(is_open && is_this && is_same), || {
                    format!("{worker} is told that the end of {} is stored before it was saved", task.task)
                });
            }
            Told::Refused(_) => {
                self.checks.refused.insert(connection);
            }
            _ => {}
        }
    }

    fn check_run(&mut self, worker: &str, run: &RunTask) {
        let task = run.task.clone().unwrap_or_default();
        let name = shared::link::name(&task);
        let key = Key::of(run);
        let saved = self.disk.value("runs", &task.run);
        let is_over = |state: &Value| state != "Running" && state != "Paused";
        // Another input of the same batch may have ended the stage meanwhile, on the disk too; the worker is told.
        let has_ended = saved.as_ref().is_some_and(|run| is_over(&run["state"]));
        if let Some((submitted_ms, saved)) = self.saved_task(&task) {
            let attempt = saved["attempt"].as_u64().unwrap_or(0);
            let is_there = submitted_ms == task.submission && attempt >= u64::from(task.attempt);
            self.checks.demand(is_there || has_ended, || {
                format!("{worker} is told to run {name} before it was saved: attempt {attempt} is")
            });
        } else {
            let is_working = self.is_working(&task);
            self.checks
                .demand(has_ended || !is_working, || format!("{worker} is told to run {name} before it was saved"));
        }
        let is_new = self.checks.ordered.insert((key.clone(), run.rank));
        self.checks.demand(is_new, || format!("rank {} of {name} is ordered twice", run.rank));
        let last = self.checks.attempts.entry(key.place()).or_default();
        let is_later = task.attempt >= *last;
        *last = (*last).max(task.attempt);
        let last = *last;
        self.checks.demand(is_later, || format!("{name} is ordered after attempt {last}"));
    }

    fn is_working(&self, task: &TaskRef) -> bool {
        let run = self.control.scheduler().and_then(|scheduler| scheduler.runs().get(&task.run));
        run.is_some_and(|run| run.submitted_ms == task.submission && run.find(task).is_some())
    }

    /// Returns a task's record, with the submission it belongs to, where its stage is at work now.
    fn saved_task(&self, task: &TaskRef) -> Option<(u64, Value)> {
        let run = self.control.scheduler()?.runs().get(&task.run)?;
        let (stage, index) = run.find(task).filter(|_| run.submitted_ms == task.submission)?;
        let key = format!("{}/{}/{stage}/{index:08}", task.run, run.submitted_ms);
        Some((run.submitted_ms, self.disk.value("tasks", &key)?))
    }

    /// What was done stays done and attempts only grow, on the disk, whatever lives of the coordinator it saw.
    pub(super) fn check_changes(&mut self, changes: &[Change]) {
        for change in changes {
            let (tree, key) = change.name();
            let (Some(before), Some(now)) = (self.disk.value(tree, key), change.value()) else { continue };
            let now: Value = serde_json::from_str(now).expect("records are JSON");
            match tree {
                "tasks" => {
                    let attempts = [&before, &now].map(|record| record["attempt"].as_u64());
                    self.checks.demand(attempts[0] <= attempts[1], || {
                        format!("{key} goes back from attempt {:?} to {:?}", attempts[0], attempts[1])
                    });
                    let is_undone = before["state"] == "Done" && now["state"] != "Done";
                    self.checks.demand(!is_undone, || format!("{key} was done and is not any more"));
                }
                "runs" => {
                    let is_same = before["submitted_ms"] == now["submitted_ms"];
                    let ended = |record: &Value| record["ended_ms"].as_u64();
                    let stays = ended(&before).is_none() || ended(&before) == ended(&now);
                    self.checks.demand(!is_same || stays, || format!("run {key} had ended and did not stay so"));
                }
                _ => {}
            }
        }
    }

    /// A stage is over when its tasks have left what they were for.
    pub(super) fn check_outputs(&mut self, run: &str, stage: usize) {
        for task in super::people::plan_tasks(&self.people.shape(run), stage) {
            let name = super::people::STAGES[stage].0;
            let is_there = self.files.outputs.contains(&(run.to_owned(), name.to_owned(), task.name.clone()));
            self.checks.demand(is_there, || format!("stage {name} of {run} is over and {} has no output", task.name));
        }
    }

    /// Once all runs have ended, nobody works any more, everybody can be reached, and ends are what they should be.
    pub(super) fn check_rest(&mut self) {
        let scheduler = self.control.scheduler().expect("it is calm");
        let mut problems = Vec::new();
        for (name, run) in scheduler.runs() {
            let is_expected = match run.state {
                RunState::Done => true,
                RunState::Cancelled => self.people.cancelled.contains(name),
                _ => false,
            };
            if !is_expected {
                problems.push(format!("run {name} ended as {:?}: {}", run.state, run.reason));
            }
            for task in run.stages.iter().filter(|_| run.state == RunState::Done).flat_map(|stage| stage.tasks()) {
                if task.state != TaskState::Done {
                    problems.push(format!("run {name} is done and {} is not", task.plan.name));
                }
            }
        }
        for machine in &self.machines {
            let Some(process) = &machine.process else {
                problems.push(format!("{} is down", machine.name));
                continue;
            };
            if let Some(device) = &process.device {
                problems.push(format!("{} works for nobody: {}", machine.name, device.key));
            }
            let known = scheduler.workers().get(&machine.name);
            if !known.is_some_and(|known| known.state == WorkerState::Idle && known.connected) {
                problems.push(format!("{} is up and cannot be used: {known:?}", machine.name));
            }
        }
        for problem in problems {
            self.checks.fail(&problem);
        }
        self.check_bills();
    }

    pub(super) fn all_have_ended(&self) -> bool {
        let ended = |scheduler: &crate::scheduler::Scheduler| {
            !scheduler.runs().is_empty() && scheduler.runs().values().all(|run| run.state.is_ended())
        };
        self.control.scheduler().is_some_and(ended) && self.people.is_content()
    }
}
