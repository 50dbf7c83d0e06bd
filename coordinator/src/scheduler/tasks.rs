//! Tasks on workers: placed, met, ended, lost, stopped.

use proto::coordinator::task_ended::How;
use proto::coordinator::to_worker::Message;
use proto::coordinator::{
    EndedStored, Peers, RunTask, StopReason, StopTask, TaskEnded, TaskKind, TaskProgress, TaskRef,
};

use super::gang;
use super::place::{Decision, Placed, Wanted, place};
use super::run::{Broken, Member, RunState, TaskState};
use super::worker::WorkerState;
use super::{FAILURES, LOSSES, Scheduler};

/// Longest pause before an attempt.
const LONGEST_PAUSE_MS: u64 = 60_000;

/// Losses in vain, one after the other, that may be bad luck: after each of them the next attempt comes as soon as one can tell
/// that a worker is lost.
const BAD_LUCK: u32 = 10;

/// Of NCCL's name of a communicator; more than that is none, and is not passed on.
const NCCL_ID_BYTES: usize = 128;

/// Returns how long a task waits after so many attempts that came to nothing: not at all after the first, then a
/// heartbeat, doubling, up to the longest. What was in its way (a worker that is lost but lives, a disk) gets the time to go.
fn pause_ms(attempts: u32, heartbeat_ms: u64, longest_ms: u64) -> u64 {
    match attempts {
        0 | 1 => 0,
        more => heartbeat_ms.saturating_mul(1 << (more - 2).min(16)).min(longest_ms),
    }
}

fn again(pause_ms: u64, why: &str) -> String {
    match pause_ms {
        0 => format!("will be tried again: {why}"),
        more => format!("will be tried again in {:.1} s: {why}", more as f64 / 1000.0),
    }
}

/// Returns what a task is told where it is to stop: a gang that has not met has no step to stop at.
fn stop_reason(met: bool, reason: StopReason) -> StopReason {
    if met { reason } else { StopReason::Cancelled }
}

/// Returns how near to the cause of an attempt's end a member's own end is: what the task did wrong, found held, or was told
/// outweighs what followed from it in the gang.
fn cause(broken: &Option<Broken>) -> u8 {
    match broken {
        Some(Broken::Failed(_)) => 3,
        Some(Broken::Held(_)) => 2,
        // Who stops before there is a step to agree on leaves the others without a neighbour.
        Some(Broken::Stopped) => 1,
        _ => 0,
    }
}

/// Returns what the members of an attempt are told of each other, once all listen.
fn peers_of(task: &TaskRef, members: &[Member]) -> Option<Peers> {
    let addresses: Option<Vec<String>> = members.iter().map(|member| member.address.clone()).collect();
    Some(Peers { task: Some(task.clone()), addresses: addresses?, nccl_id: members.first()?.nccl_id.clone() })
}

impl Scheduler {
    /// Gives waiting tasks to free workers, runs and stages in their order; gangs that run with fewer members than they want
    /// get what is left.
    pub(super) fn place_tasks(&mut self, now_ms: u64) {
        let free = self.count_free();
        let (mut waiting, mut smaller, mut kept) = (Vec::new(), Vec::new(), 0);
        // Older runs first.
        let mut runs: Vec<_> = self.runs.iter().filter(|(_, run)| run.state == RunState::Running).collect();
        runs.sort_by_key(|(name, run)| (run.submitted_ms, (*name).clone()));
        for (name, run) in runs {
            for (stage_index, stage) in run.stages.iter().enumerate() {
                let Some(tasks) = stage.work() else { continue };
                let may_begin = tasks.waiting().filter(|index| now_ms >= tasks[*index].not_before_ms);
                // Of many alike, none behind the first that finds no free worker is served. One more learns why it waits.
                let some = if tasks.has_gangs() { usize::MAX } else { free + 1 };
                for index in may_begin.take(some) {
                    let task = &tasks[index];
                    let (most, least) = task.plan.members();
                    let since_ms = task.waits_since_ms.max(task.not_before_ms).max(self.listens_since_ms);
                    // As long as it takes to find that a worker is lost.
                    let is_patient = now_ms.saturating_sub(since_ms) <= self.timing.lost_after_ms;
                    waiting.push((name.clone(), stage_index, index, Wanted { most, least, is_patient }));
                }
                for index in tasks.running().take_while(|_| tasks.has_gangs()) {
                    let (most, _) = tasks[index].plan.members();
                    match &tasks[index].state {
                        // What it is to start again with is there.
                        TaskState::Running { members, growing: true, .. } => kept += most - members.len(),
                        TaskState::Running { members, met: true, broken: None, .. } if members.len() < most => {
                            smaller.push((name.clone(), stage_index, index));
                        }
                        _ => {}
                    }
                }
            }
        }
        self.kept_for = None;
        if waiting.is_empty() && smaller.is_empty() {
            return;
        }
        let (mut idle, usable) = self.free_workers();
        idle.truncate(idle.len().saturating_sub(kept));
        let wanted: Vec<Wanted> = waiting.iter().map(|(.., wanted)| *wanted).collect();
        let Placed { decisions, left, kept_for } = place(&wanted, idle, usable);
        let kept_for = kept_for.filter(|_| left > 0);
        self.kept_for = kept_for.map(|first| {
            let (run, stage, ..) = &waiting[first];
            format!("{run}/{}", self.runs[run].plan.stages[*stage].name)
        });
        let mut waits = Vec::new();
        for (place, ((run, stage, index, wanted), decision)) in waiting.into_iter().zip(decisions).enumerate() {
            match decision {
                Decision::Run(workers) => self.start_task(now_ms, &run, stage, index, workers),
                Decision::Wait => waits.push((run, stage, index, wanted, kept_for.is_some_and(|first| first < place))),
            }
        }
        // Once it is known who works now.
        for (run, stage, index, wanted, is_behind) in waits {
            self.task_mut(&run, stage, index).note = self.waits_for(wanted, left, is_behind);
        }
        let mut left = if kept_for.is_some() { 0 } else { left };
        for (run, stage, index) in smaller {
            left -= self.grow(now_ms, &run, stage, index, left);
        }
    }

    /// Says what a task waits for.
    fn waits_for(&self, wanted: Wanted, free: usize, is_behind: bool) -> String {
        match &self.kept_for {
            Some(first) if is_behind => format!("waiting: free workers are kept for {first}"),
            _ if wanted.most == 1 && free == 0 && !self.workers.is_empty() => "waiting for a free worker".to_owned(),
            _ => {
                let others = self.workers.iter();
                let others = others.filter_map(|(name, worker)| Some((name.as_str(), worker.why_not_free()?)));
                let fewer = if wanted.least < wanted.most { "; fewer will do in a moment" } else { "" };
                gang::waiting(wanted.most, free, others) + if wanted.is_patient { fewer } else { "" }
            }
        }
    }

    /// Stops a gang that runs with fewer members than it wants at a checkpoint, if it is time and enough workers are free to
    /// start it again with more. Returns how many it will take.
    fn grow(&mut self, now_ms: u64, run: &str, stage: usize, index: usize, free: usize) -> usize {
        let heartbeat_ms = self.timing.heartbeat_ms;
        let task = self.task_mut(run, stage, index);
        let (wanted, _) = task.plan.members();
        let name = task.plan.name.clone();
        let TaskState::Running { members, since_ms, growing, .. } = &mut task.state else { return 0 };
        let ran_ms = now_ms.saturating_sub(*since_ms);
        let now = members.len();
        let Some(then) = gang::grown(ran_ms, heartbeat_ms, now, wanted, free) else { return 0 };
        *growing = true;
        let workers: Vec<String> = members.iter().filter(|m| !m.ended).map(|member| member.worker.clone()).collect();
        let reference = self.task_ref(run, stage, index);
        for worker in workers {
            let stop = StopTask { task: Some(reference.clone()), reason: StopReason::Paused.into() };
            self.send(&worker, Message::Stop(stop));
        }
        self.save(run);
        self.log_stage(
            run,
            stage,
            &format!("{name} stops at its next step, to go on with {then} workers instead of {now}"),
        );
        then - now
    }

    fn start_task(&mut self, now_ms: u64, run: &str, stage: usize, index: usize, workers: Vec<String>) {
        let instance_of = |name: &String| self.workers[name].hello.instance.clone();
        let members: Vec<Member> = workers
            .iter()
            .map(|worker| Member {
                worker: worker.clone(),
                instance: instance_of(worker),
                address: None,
                nccl_id: Vec::new(),
                ended: false,
            })
            .collect();
        let task = self.task_mut(run, stage, index);
        task.attempt += 1;
        let met = members.len() == 1;
        task.note = if met { String::new() } else { gang::forming(members.iter().map(|m| (m.worker.as_str(), false))) };
        (task.done, task.total) = (0, 0);
        task.state =
            TaskState::Running { met, members, since_ms: now_ms, broken: None, told_to_leave_ms: None, growing: false };
        let plan = task.plan.clone();
        let reference = self.task_ref(run, stage, index);
        let world_size = workers.len() as u32;
        let gang_secret = if world_size > 1 { self.secret(&reference) } else { Vec::new() };
        let common = self.runs[run].stages[stage].work().map(|tasks| tasks.common().to_vec()).unwrap_or_default();
        for (rank, worker) in workers.iter().enumerate() {
            self.worker_mut(worker).state = WorkerState::Busy { task: reference.clone() };
            self.holds.insert(worker.clone(), (run.to_owned(), stage, index));
            let order = RunTask {
                task: Some(reference.clone()),
                kind: TaskKind::from(plan.kind).into(),
                args: common.iter().chain(&plan.args).cloned().collect(),
                rank: rank as u32,
                world_size,
                gang_secret: gang_secret.clone(),
            };
            self.send(worker, Message::Run(order));
        }
        self.save(run);
        let mut text =
            format!("{}/{} attempt {} on {}", reference.stage, plan.name, reference.attempt, workers.join(", "));
        if plan.min_workers.is_some() {
            text += &format!(" ({world_size} of {} workers)", plan.world_size);
        }
        self.log(run, &text);
    }

    /// Secret of an attempt: nobody who lacks the seed can make it.
    fn secret(&self, task: &TaskRef) -> Vec<u8> {
        let TaskRef { run, stage, task, attempt, submission } = task;
        let label = format!("{run}/{submission}/{stage}/{task}/{attempt}");
        blake3::keyed_hash(&self.seed, label.as_bytes()).as_bytes().to_vec()
    }

    fn task_ref(&self, run: &str, stage: usize, index: usize) -> TaskRef {
        let task = &self.runs[run].stages[stage].tasks()[index];
        TaskRef {
            run: run.to_owned(),
            stage: self.runs[run].plan.stages[stage].name.clone(),
            task: task.plan.name.clone(),
            attempt: task.attempt,
            submission: self.runs[run].submitted_ms,
        }
    }

    pub(super) fn peer_ready(&mut self, worker: &str, task: &TaskRef, address: String, nccl_id: Vec<u8>) {
        let Some((stage, index)) = self.member(worker, task) else { return };
        if nccl_id.len() > NCCL_ID_BYTES {
            return;
        }
        let own = self.task_mut(&task.run, stage, index);
        let TaskState::Running { members, met, broken, .. } = &mut own.state else { return };
        if let Some(member) = members.iter_mut().find(|member| member.worker == worker) {
            (member.address, member.nccl_id) = (Some(address), nccl_id);
        }
        if *met || broken.is_some() {
            return;
        }
        let Some(peers) = peers_of(task, members) else {
            own.note = gang::forming(members.iter().map(|member| (member.worker.as_str(), member.address.is_some())));
            return;
        };
        *met = true;
        own.note = String::new();
        let workers: Vec<String> = members.iter().map(|member| member.worker.clone()).collect();
        for worker in workers {
            self.send(&worker, Message::Peers(peers.clone()));
        }
        self.save(&task.run);
    }

    pub(super) fn task_progressed(&mut self, worker: &str, progress: TaskProgress) {
        let Some(task) = progress.task else { return };
        let Some((stage, index)) = self.member(worker, &task) else { return };
        let own = self.task_mut(&task.run, stage, index);
        let is_over = matches!(own.state, TaskState::Running { broken: Some(_), .. });
        // The first rank speaks for its gang.
        if own.members().first().is_some_and(|first| first.worker == worker) {
            (own.done, own.total) = (progress.done, progress.total);
            if !is_over {
                own.note = progress.note;
            }
            let got_further = progress.done > own.furthest || progress.begun_at > own.kept;
            if progress.work == own.plan.kind.name() && got_further {
                own.furthest = own.furthest.max(progress.done);
                own.kept = own.kept.max(progress.begun_at);
                if std::mem::take(&mut own.in_vain) > 0 {
                    self.save(&task.run);
                }
            }
        }
    }

    pub(super) fn task_ended(&mut self, now_ms: u64, worker: &str, ended: TaskEnded) {
        let Some(task) = ended.task else { return };
        if let Some(known) = self.workers.get_mut(worker)
            && matches!(&known.state, WorkerState::Busy { task: own } if *own == task)
        {
            (known.state, known.told_to_leave_ms) = (WorkerState::Idle, None);
            if std::mem::take(&mut known.stays) {
                self.usable = None;
            }
            self.maybe_free.insert(worker.to_owned());
        }
        if let Some((stage, index)) = self.member(worker, &task) {
            let is_paused = self.runs[&task.run].state == RunState::Paused;
            let own = self.task_mut(&task.run, stage, index);
            let attempt = own.attempt;
            if let TaskState::Running { members, broken, growing, .. } = &mut own.state {
                for member in members.iter_mut().filter(|member| member.worker == worker) {
                    member.ended = true;
                }
                let now_broken = match ended.how {
                    Some(How::Finished(_)) => None,
                    Some(How::Failed(failed)) if failed.infrastructure && (is_paused || *growing) => {
                        Some(Broken::Stopped)
                    }
                    Some(How::Failed(failed)) if failed.held => Some(Broken::Held(failed.problem)),
                    Some(How::Failed(failed)) if failed.infrastructure => Some(Broken::Lost(failed.problem)),
                    Some(How::Failed(failed)) => Some(Broken::Failed(failed.problem)),
                    Some(How::Stopped(_)) => Some(Broken::Stopped),
                    None => Some(Broken::Lost("it ended without saying how".into())),
                };
                let (first, is_broken) = (broken.is_none(), now_broken.is_some());
                if cause(&now_broken) > cause(broken) || first {
                    *broken = now_broken;
                }
                if first && is_broken {
                    self.break_gang(now_ms, &task.run, stage, index);
                }
            }
            debug_assert_eq!(attempt, task.attempt);
            self.settle(now_ms, &task.run, stage, index);
            self.save(&task.run);
        }
        self.send(worker, Message::EndedStored(EndedStored { task: Some(task) }));
    }

    /// A member is gone: the attempt is broken, the others are told.
    pub(super) fn member_lost(&mut self, now_ms: u64, run: &str, stage: usize, index: usize, worker: &str, why: &str) {
        let task = self.task_mut(run, stage, index);
        if let TaskState::Running { members, broken, .. } = &mut task.state {
            for member in members.iter_mut().filter(|member| member.worker == worker) {
                member.ended = true;
            }
            let first = broken.is_none();
            broken.get_or_insert_with(|| Broken::Lost(format!("worker {worker} is lost: {why}")));
            let name = task.plan.name.clone();
            self.log_stage(run, stage, &format!("{name}: worker {worker} is lost: {why}"));
            if first {
                self.break_gang(now_ms, run, stage, index);
            }
        }
        self.settle(now_ms, run, stage, index);
        self.save(run);
    }

    /// Tells the members that are left to leave the gang at once.
    pub(super) fn break_gang(&mut self, now_ms: u64, run: &str, stage: usize, index: usize) {
        let reference = self.task_ref(run, stage, index);
        if let TaskState::Running { told_to_leave_ms, .. } = &mut self.task_mut(run, stage, index).state {
            *told_to_leave_ms = Some(now_ms);
        }
        let left: Vec<String> = self.runs[run].stages[stage].tasks()[index]
            .members()
            .iter()
            .filter(|member| !member.ended)
            .map(|member| member.worker.clone())
            .collect();
        for worker in left {
            let stop = StopTask { task: Some(reference.clone()), reason: StopReason::GangBroken.into() };
            self.send(&worker, Message::Stop(stop));
        }
    }

    /// Says again to a member that was away what it may have missed.
    pub(super) fn remind(&mut self, worker: &str, task: &TaskRef) {
        let Some((stage, index)) = self.member(worker, task) else { return };
        let run = &self.runs[&task.run];
        let TaskState::Running { members, met, broken, growing, .. } = &run.stages[stage].tasks()[index].state else {
            return;
        };
        let message = if broken.is_some() {
            Message::Stop(StopTask { task: Some(task.clone()), reason: StopReason::GangBroken.into() })
        } else if run.state == RunState::Paused || *growing {
            Message::Stop(StopTask { task: Some(task.clone()), reason: stop_reason(*met, StopReason::Paused).into() })
        } else if *met && members.len() > 1 {
            let Some(peers) = peers_of(task, members) else { return };
            Message::Peers(peers)
        } else {
            return;
        };
        self.send(worker, message);
    }

    /// Ends an attempt once all its members have ended: the task is done, waits for its next attempt, or fails its stage.
    pub(super) fn settle(&mut self, now_ms: u64, run: &str, stage: usize, index: usize) {
        let timing = self.timing;
        let task = self.task_mut(run, stage, index);
        let TaskState::Running { members, broken, .. } = &task.state else { return };
        let left: Vec<&str> =
            members.iter().filter(|member| !member.ended).map(|member| member.worker.as_str()).collect();
        if !left.is_empty() {
            if broken.is_some() {
                task.note = format!("waiting for {} to leave attempt {}, which is over", left.join(", "), task.attempt);
            }
            return;
        }
        let broken = broken.clone();
        let is_held = matches!(broken, Some(Broken::Held(_)));
        task.state = TaskState::Waiting;
        task.waits_since_ms = now_ms;
        let name = task.plan.name.clone();
        match broken {
            None => {
                task.state = TaskState::Done;
                task.note = String::new();
                self.log_stage(run, stage, &format!("{name} done"));
            }
            Some(Broken::Stopped) => {
                self.log_stage(run, stage, &format!("{name} stopped; its next attempt goes on from there"))
            }
            Some(Broken::Lost(reason) | Broken::Held(reason)) => {
                task.lost += 1;
                task.in_vain += 1;
                // A death costs seconds, unless so many came to nothing that there must be something else.
                let is_bad_luck = !is_held && task.in_vain <= BAD_LUCK;
                let longest_ms = LONGEST_PAUSE_MS.min(if is_bad_luck { timing.lost_after_ms } else { u64::MAX });
                let pause_ms = pause_ms(task.in_vain + task.failed, timing.heartbeat_ms, longest_ms);
                task.not_before_ms = now_ms + pause_ms;
                task.note = again(pause_ms, &reason);
                let note = task.note.clone();
                if task.in_vain >= LOSSES {
                    let problem =
                        format!("{name} was tried {LOSSES} times without getting any further, the last time: {reason}");
                    self.stage_failed(now_ms, run, stage, problem);
                } else {
                    self.log_stage(run, stage, &format!("{name}: {note}"));
                }
            }
            Some(Broken::Failed(problem)) => {
                task.failed += 1;
                let failed = task.failed;
                let pause_ms = pause_ms(task.in_vain + failed, timing.heartbeat_ms, LONGEST_PAUSE_MS);
                task.not_before_ms = now_ms + pause_ms;
                task.note = again(pause_ms, &problem);
                self.log_stage(run, stage, &format!("{name} failed ({failed} of {FAILURES}): {problem}"));
                if failed >= FAILURES {
                    self.stage_failed(now_ms, run, stage, format!("{name}: {problem}"));
                }
            }
        }
    }

    /// Stops the running tasks of a stage.
    pub(super) fn stop_tasks(&mut self, now_ms: u64, run: &str, stage: usize, reason: StopReason) {
        self.recount();
        let running = self.runs[run].stages[stage].work().map(|tasks| tasks.running().collect::<Vec<_>>());
        for index in running.unwrap_or_default() {
            let reference = self.task_ref(run, stage, index);
            let task = &self.runs[run].stages[stage].tasks()[index];
            let TaskState::Running { members, met, .. } = &task.state else { continue };
            let (met, members) = (*met, members.clone());
            for member in members.into_iter().filter(|member| !member.ended) {
                if reason == StopReason::Cancelled
                    && let Some(worker) = self.workers.get_mut(&member.worker)
                    && matches!(&worker.state, WorkerState::Busy { task } if *task == reference)
                {
                    // The task is forgotten, so that nobody else notices where it does not come to its end.
                    worker.told_to_leave_ms = Some(now_ms);
                }
                let stop = StopTask { task: Some(reference.clone()), reason: stop_reason(met, reason).into() };
                self.send(&member.worker, Message::Stop(stop));
            }
        }
    }
}
