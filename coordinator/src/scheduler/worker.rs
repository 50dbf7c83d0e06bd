//! The state of workers, and what their coming and going means.
//!
//! ```text
//! Hello ─▶ Joining ─(sees the folder)─▶ Idle ⇄ Busy          any ─(silent for five heartbeats)─▶ Lost
//!              └(does not)─▶ Unusable ─(sees it)─▶ Idle
//! ```
//! A connection that ends is no loss yet: the same process may come back until it has been silent too long. Another
//! process under the same name means that the first one is gone.

use proto::coordinator::to_worker::Message;
use proto::coordinator::{Drain, Hello, Refused, StopReason, StopTask, TaskRef};

use super::Scheduler;
use super::event::Effect;
use super::gang::Why;
use super::run::{StageState, TaskState};

/// A lost worker is told of for a day.
pub(super) const FORGOTTEN_MS: u64 = 24 * 3600 * 1000;

/// A worker as the coordinator knows it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Worker {
    pub(crate) hello: Hello,
    pub(crate) state: WorkerState,
    pub(crate) connected: bool,
    /// When its last message came.
    pub(crate) heard_ms: u64,
    /// For so long it has been in a call of its gang in which nothing moves, by its last message.
    pub(crate) still_ms: u64,
    /// It gets no new task, and why.
    pub(crate) leaving: Option<String>,
    /// When it was told to leave an attempt of a task that is forgotten, where it has not left it.
    pub(super) told_to_leave_ms: Option<u64>,
    /// It has not left an attempt that is over: nobody knows when it can take another task.
    pub(crate) stays: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum WorkerState {
    /// It has not yet said whether it sees the artifact folder.
    Joining,
    Idle,
    Busy {
        task: TaskRef,
    },
    /// It cannot work, and why.
    Unusable {
        reason: String,
    },
    Lost,
}

impl Worker {
    /// A worker that ran a task when the coordinator was last alive, and may say Hello again.
    pub(crate) fn expected(name: &str, instance: &str, now_ms: u64) -> Worker {
        let hello = Hello { name: name.to_owned(), instance: instance.to_owned(), ..Hello::default() };
        Worker {
            hello,
            state: WorkerState::Joining,
            connected: false,
            heard_ms: now_ms,
            still_ms: 0,
            leaving: None,
            told_to_leave_ms: None,
            stays: false,
        }
    }

    /// Returns why it is not free; none where it is.
    pub(super) fn why_not_free(&self) -> Option<Why<'_>> {
        Some(match (&self.state, &self.leaving) {
            _ if self.is_free() => return None,
            (WorkerState::Lost, None) => Why::Lost,
            (WorkerState::Lost, Some(_)) => Why::Left,
            (WorkerState::Unusable { .. }, _) => Why::Unusable,
            (_, Some(_)) => Why::Draining,
            _ if !self.connected => Why::Away,
            (WorkerState::Busy { .. }, _) if self.stays => Why::Staying,
            (WorkerState::Busy { task }, _) => Why::Busy(&task.run, &task.stage),
            (WorkerState::Joining | WorkerState::Idle, _) => Why::Joining,
        })
    }

    /// Returns whether it can take a task now.
    pub(super) fn is_free(&self) -> bool {
        self.state == WorkerState::Idle && self.connected && self.leaving.is_none()
    }

    fn is_usable(&self) -> bool {
        let works = matches!(self.state, WorkerState::Idle | WorkerState::Busy { .. } | WorkerState::Joining);
        works && self.leaving.is_none() && !self.stays
    }
}

impl Scheduler {
    /// Returns the workers that can take a task now, and how many could in time.
    pub(super) fn free_workers(&mut self) -> (Vec<String>, usize) {
        self.count_free();
        let count = || self.workers.values().filter(|worker| worker.is_usable()).count();
        let usable = *self.usable.get_or_insert_with(count);
        (self.maybe_free.iter().cloned().collect(), usable)
    }

    /// Returns how many workers can take a task now.
    pub(super) fn count_free(&mut self) -> usize {
        self.maybe_free.retain(|name| self.workers.get(name).is_some_and(Worker::is_free));
        self.maybe_free.len()
    }

    pub(super) fn worker_hello(&mut self, now_ms: u64, hello: Hello) {
        let name = hello.name.clone();
        if let Some(old) = self.workers.get(&name) {
            let is_another = old.hello.instance != hello.instance;
            if is_another && old.connected && old.state != WorkerState::Lost {
                let reason = format!(
                    "a worker named {name} is connected already (process {} on {}); give this one another --name",
                    old.hello.pid, old.hello.host
                );
                let refused = Message::Refused(Refused { reason });
                // The connection is the newcomer's; the driver knows it by its instance.
                self.effects.push(Effect::Send { worker: format!("{name}@{}", hello.instance), message: refused });
                return;
            }
            if is_another && old.state != WorkerState::Lost {
                self.worker_lost(now_ms, &name, "its process was replaced by another");
            }
        }
        let (running, ended) = (hello.running.clone(), hello.ended.clone());
        // Of an attempt that is over, where it runs one.
        let leaves = self.workers.get(&name).map_or((false, Some(now_ms)), |old| {
            let told_ms = old.told_to_leave_ms.unwrap_or(now_ms);
            (old.stays, (!old.stays).then_some(told_ms))
        });
        let mut worker = Worker {
            hello,
            state: WorkerState::Joining,
            connected: true,
            heard_ms: now_ms,
            still_ms: 0,
            leaving: None,
            told_to_leave_ms: None,
            stays: false,
        };
        if let Some(old) = self.workers.get(&name).filter(|old| old.state != WorkerState::Lost) {
            worker.leaving = old.leaving.clone();
        }
        self.workers.insert(name.clone(), worker);
        if self.workers[&name].leaving.is_some() {
            // It may have been told while its connection was away.
            self.send(&name, Message::Drain(Drain {}));
        }
        if let Some(ended) = ended {
            self.task_ended(now_ms, &name, ended);
        }
        match running {
            Some(task) if self.is_member(&name, &task) => {
                // Adopted: it worked on while the connection was away.
                self.log(&task.run.clone(), &format!("{}: worker {name} is back", task.stage));
                self.worker_mut(&name).state = WorkerState::Busy { task: task.clone() };
                self.remind(&name, &task);
            }
            Some(task) => {
                // Of an attempt that is over: it takes no other task before it has ended that.
                let stop = StopTask { task: Some(task.clone()), reason: StopReason::Cancelled.into() };
                self.send(&name, Message::Stop(stop));
                let worker = self.worker_mut(&name);
                worker.state = WorkerState::Busy { task };
                (worker.stays, worker.told_to_leave_ms) = leaves;
                self.gone_without_word(now_ms, &name);
            }
            None => self.gone_without_word(now_ms, &name),
        }
    }

    /// A worker came back that no longer runs what it should, and has not said how it ended.
    fn gone_without_word(&mut self, now_ms: u64, name: &str) {
        if let Some((run, stage, task)) = self.membership(name) {
            self.member_lost(now_ms, &run, stage, task, name, "it forgot its task");
        }
    }

    pub(super) fn worker_folder_seen(&mut self, now_ms: u64, name: &str, instance: &str, problem: String) {
        self.heard(now_ms, name, instance);
        let Some(worker) = self.workers.get_mut(name).filter(|worker| worker.hello.instance == instance) else {
            return;
        };
        if problem.is_empty() {
            if worker.state == WorkerState::Joining || matches!(worker.state, WorkerState::Unusable { .. }) {
                // A worker looks again when nothing runs there any more.
                (worker.state, worker.told_to_leave_ms, worker.stays) = (WorkerState::Idle, None, false);
                self.maybe_free.insert(name.to_owned());
            }
        } else {
            if let WorkerState::Busy { task } = &worker.state {
                let stop = StopTask { task: Some(task.clone()), reason: StopReason::Cancelled.into() };
                self.effects.push(Effect::Send { worker: name.to_owned(), message: Message::Stop(stop) });
            }
            worker.state = WorkerState::Unusable { reason: problem };
            if let Some((run, stage, task)) = self.membership(name) {
                self.member_lost(now_ms, &run, stage, task, name, "it does not see the artifact folder");
            }
        }
    }

    pub(super) fn heard(&mut self, now_ms: u64, name: &str, instance: &str) {
        if let Some(worker) = self.workers.get_mut(name).filter(|worker| worker.hello.instance == instance) {
            worker.heard_ms = now_ms;
        }
    }

    pub(super) fn stands_still(&mut self, name: &str, instance: &str, still_ms: u64) {
        if let Some(worker) = self.workers.get_mut(name).filter(|worker| worker.hello.instance == instance) {
            worker.still_ms = still_ms;
        }
    }

    pub(super) fn worker_leaving(&mut self, now_ms: u64, name: &str, instance: &str, reason: String) {
        self.heard(now_ms, name, instance);
        let Some(worker) = self.workers.get_mut(name).filter(|worker| worker.hello.instance == instance) else {
            return;
        };
        let is_news = worker.leaving.is_none();
        worker.leaving = Some(reason.clone());
        if is_news && let Some((run, stage, _)) = self.membership(name) {
            self.log_stage(&run, stage, &format!("worker {name} leaves: {reason}"));
        }
        if !matches!(self.workers[name].state, WorkerState::Busy { .. }) {
            // It waits for this word before it goes.
            self.worker_lost(now_ms, name, "it left");
        }
    }

    pub(super) fn worker_disconnected(&mut self, now_ms: u64, name: &str, instance: &str) {
        let Some(worker) = self.workers.get_mut(name).filter(|worker| worker.hello.instance == instance) else {
            return;
        };
        worker.connected = false;
        if worker.leaving.is_some() && !matches!(worker.state, WorkerState::Busy { .. }) {
            self.worker_lost(now_ms, name, "it left");
        }
    }

    pub(super) fn tick(&mut self, now_ms: u64) {
        let gap_ms = self.ticked_ms.replace(now_ms).map_or(0, |last_ms| now_ms.saturating_sub(last_ms));
        if gap_ms > 2 * self.timing.heartbeat_ms {
            // It was this process that was away (its disk, its machine): what workers said meanwhile has yet to be read.
            self.workers.values_mut().for_each(|worker| worker.heard_ms = (worker.heard_ms + gap_ms).min(now_ms));
            self.listens_since_ms = now_ms;
        }
        let silent = |heard_ms: u64| now_ms.saturating_sub(heard_ms) > self.timing.lost_after_ms;
        let lost: Vec<String> = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.state != WorkerState::Lost && silent(worker.heard_ms))
            .map(|(name, _)| name.clone())
            .collect();
        for name in lost {
            // Wherever it was going, it has not left as it should.
            self.worker_mut(&name).leaving = None;
            self.worker_lost(now_ms, &name, "it was silent for five heartbeats");
        }
        // Names of processes that come and go for months: who was lost so long ago is news to nobody.
        let is_news = |worker: &Worker| now_ms.saturating_sub(worker.heard_ms) <= FORGOTTEN_MS;
        self.workers.retain(|_, worker| worker.state != WorkerState::Lost || is_news(worker));
        self.holds.retain(|name, _| self.workers.contains_key(name));
        self.expire_gangs(now_ms);
        self.break_stuck_gangs(now_ms);
        self.leave_stragglers(now_ms);
    }

    pub(super) fn worker_lost(&mut self, now_ms: u64, name: &str, why: &str) {
        let worker = self.worker_mut(name);
        let was_connected = std::mem::take(&mut worker.connected);
        worker.state = WorkerState::Lost;
        if was_connected {
            self.effects.push(Effect::Disconnect { worker: name.to_owned() });
        }
        if let Some((run, stage, task)) = self.membership(name) {
            self.member_lost(now_ms, &run, stage, task, name, why);
        }
    }

    /// Returns the task of which a worker is a member that has not ended, if there is one.
    fn membership(&mut self, name: &str) -> Option<(String, usize, usize)> {
        let (run, stage, index) = self.holds.get(name)?;
        let task = self.runs.get(run).and_then(|run| run.stages.get(*stage)?.tasks().get(*index));
        let holds = task.is_some_and(|task| task.members().iter().any(|m| m.worker == name && !m.ended));
        if !holds {
            self.holds.remove(name);
        }
        self.holds.get(name).cloned()
    }

    /// Returns whether a worker is a member of this attempt.
    pub(super) fn is_member(&self, name: &str, task: &TaskRef) -> bool {
        self.member(name, task).is_some()
    }

    /// Finds the attempt of which a worker is a member that has not ended.
    pub(super) fn member(&self, name: &str, task: &TaskRef) -> Option<(usize, usize)> {
        let run = self.runs.get(&task.run)?;
        let (stage, index) = run.find(task)?;
        let StageState::Working { tasks } = &run.stages[stage].state else { return None };
        let own = &tasks[index];
        let TaskState::Running { members, .. } = &own.state else { return None };
        let instance = &self.workers.get(name)?.hello.instance;
        let is_one = members.iter().any(|m| m.worker == name && m.instance == *instance && !m.ended);
        // Each submission counts its attempts from 1.
        let is_this = own.attempt == task.attempt && run.submitted_ms == task.submission;
        (is_this && is_one).then_some((stage, index))
    }

    pub(super) fn worker_mut(&mut self, name: &str) -> &mut Worker {
        self.workers.get_mut(name).expect("the worker was just there")
    }
}
