//! The brain: which stage begins, who runs which task, what a loss means. No async, no I/O, no clock.
//!
//! [`Scheduler::apply`] takes what happened and returns what must be done. Facts of a run are saved before anyone is told
//! (the driver's promise); workers are not saved, they say Hello again.

pub(crate) mod event;
mod gang;
mod overdue;
mod place;
pub(crate) mod run;
pub(crate) mod task_list;
mod tasks;
pub(crate) mod worker;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use event::{Begun, Effect, Event, Refusal, Source, StageWork, Ticket};
use proto::coordinator::to_worker::Message;
use proto::coordinator::{Drain, StopReason};
#[cfg(test)]
use run::TaskState;
use run::{Run, RunState, Stage, StageState, Task};
use task_list::Tasks;
use worker::{Worker, WorkerState};

use crate::plan::{Place, Plan};
use crate::stage::Outcome;

/// Times that decide what is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Timing {
    /// Between two heartbeats of a worker.
    pub(crate) heartbeat_ms: u64,
    /// Without any message for so long a worker is lost: five heartbeats.
    pub(crate) lost_after_ms: u64,
    /// A gang's members must have found each other within so long.
    pub(crate) form_within_ms: u64,
    /// Members of an attempt that is over must have left it within so long: some load a model or compute a pack first.
    pub(crate) leave_within_ms: u64,
}

/// Failures of its own after which a task fails its stage.
const FAILURES: u32 = 3;
/// A coordinator that starts again waits at least so long for those who ran its tasks: after a long absence they dial every
/// five seconds. Who came later would find its task given to another, and both would bring it to its end.
const RETURN_MS: u64 = 8_000;
/// Attempts lost one after the other, none of them further than all before, after which a stage is given up: something other
/// than bad luck takes its workers.
const LOSSES: u32 = 20;

/// All runs and workers.
#[derive(Debug)]
pub(crate) struct Scheduler {
    timing: Timing,
    runs: BTreeMap<String, Run>,
    workers: BTreeMap<String, Worker>,
    next_ticket: u64,
    /// Since when this process hears its workers: they get the time to come back, and to say what they had to say meanwhile.
    listens_since_ms: u64,
    /// For whom free workers are kept, `RUN/STAGE`.
    kept_for: Option<String>,
    /// Gang secrets are derived from it.
    seed: [u8; 32],
    /// Workers that may be free: all that are, and some that have been.
    maybe_free: BTreeSet<String>,
    /// Workers that have a task or will get one in time; none where it must be counted anew.
    usable: Option<usize>,
    /// Where each worker's task lies; an entry may be of a task that is over.
    holds: HashMap<String, (String, usize, usize)>,
    /// When the last tick was.
    ticked_ms: Option<u64>,
    /// What the present event asks for.
    effects: Vec<Effect>,
    /// Runs that it wants saved, and tasks that it may have changed.
    saves: BTreeSet<String>,
    touched: Vec<(String, usize, usize)>,
}

impl Scheduler {
    /// Starts with the runs that were saved. `seed` must be secret and fresh; tickets start after those of earlier lives.
    pub(crate) fn new(timing: Timing, seed: [u8; 32], runs: BTreeMap<String, Run>) -> Scheduler {
        let tickets = runs.values().flat_map(|run| &run.stages).filter_map(Stage::ticket).map(|ticket| ticket.0);
        let next_ticket = tickets.max().unwrap_or(0) + 1;
        let mut holds = HashMap::new();
        for (name, run) in &runs {
            for (stage, index, task) in run.stages.iter().enumerate().flat_map(running_tasks) {
                for member in task.members().iter().filter(|member| !member.ended) {
                    holds.insert(member.worker.clone(), (name.clone(), stage, index));
                }
            }
        }
        Scheduler {
            timing,
            runs,
            workers: BTreeMap::new(),
            next_ticket,
            listens_since_ms: 0,
            kept_for: None,
            seed,
            maybe_free: BTreeSet::new(),
            usable: None,
            holds,
            ticked_ms: None,
            effects: Vec::new(),
            saves: BTreeSet::new(),
            touched: Vec::new(),
        }
    }

    /// Applies one event and returns what must now be done, in order.
    pub(crate) fn apply(&mut self, now_ms: u64, event: Event) -> Vec<Effect> {
        // Most events are a worker's word that it lives or how far it is: nothing becomes possible by them.
        let is_news =
            !matches!(event, Event::WorkerHeard { .. } | Event::TaskProgressed { .. } | Event::StageProgressed { .. });
        // The end of a task leaves its worker usable; whatever else happens may not.
        if is_news && !matches!(event, Event::TaskEnded { .. } | Event::PeerReady { .. }) {
            self.usable = None;
        }
        match event {
            Event::Started => self.started(now_ms),
            Event::RunSubmitted { plan, source } => self.run_submitted(now_ms, plan, source),
            Event::CancelAsked { run } => self.cancel_asked(now_ms, &run),
            Event::PauseAsked { run } => self.pause_asked(now_ms, &run),
            Event::ResumeAsked { run } => self.resume_asked(&run),
            Event::DrainAsked { worker } => self.drain_asked(&worker),
            Event::StageBegun { ticket, begun } => self.stage_begun(now_ms, ticket, begun),
            Event::StageCarriedOut { ticket, done } => self.stage_carried_out(now_ms, ticket, done),
            Event::StageFinished { ticket, done } => self.stage_finished(now_ms, ticket, done),
            Event::StageProgressed { ticket, progress } => {
                if let Some((run, index)) = self.ticket_holder(ticket) {
                    let stage = self.stage_mut(&run, index);
                    (stage.done, stage.total, stage.cost_usd) = (progress.done, progress.total, progress.cost_usd);
                    stage.note = progress.note;
                }
            }
            Event::WorkerHello { hello } => self.worker_hello(now_ms, hello),
            Event::WorkerFolderSeen { worker, instance, problem } => {
                self.worker_folder_seen(now_ms, &worker, &instance, problem);
            }
            Event::WorkerHeard { worker, instance, still_ms } => {
                self.heard(now_ms, &worker, &instance);
                self.stands_still(&worker, &instance, still_ms);
            }
            Event::WorkerLeaving { worker, instance, reason } => {
                self.worker_leaving(now_ms, &worker, &instance, reason);
            }
            Event::WorkerDisconnected { worker, instance } => self.worker_disconnected(now_ms, &worker, &instance),
            Event::PeerReady { worker, task, address, nccl_id } => self.peer_ready(&worker, &task, address, nccl_id),
            Event::TaskProgressed { worker, progress } => self.task_progressed(&worker, progress),
            Event::TaskEnded { worker, ended } => self.task_ended(now_ms, &worker, ended),
            Event::Tick => self.tick(now_ms),
        }
        if is_news {
            self.advance(now_ms);
        }
        self.recount();
        let mut effects: Vec<Effect> = Vec::with_capacity(self.saves.len() + self.effects.len());
        // Before everything else of this event: nobody learns of what is not saved.
        for run in std::mem::take(&mut self.saves) {
            let mut tasks: Vec<(usize, usize)> =
                self.touched.iter().filter(|(of, ..)| *of == run).map(|(_, stage, index)| (*stage, *index)).collect();
            tasks.sort_unstable();
            tasks.dedup();
            effects.push(Effect::Save { run, tasks });
        }
        self.touched.clear();
        effects.append(&mut self.effects);
        effects
    }

    /// Counts the tasks anew that this event may have changed.
    fn recount(&mut self) {
        for (run, stage, index) in &self.touched {
            let stage = self.runs.get_mut(run).and_then(|run| run.stages.get_mut(*stage));
            if let Some(StageState::Working { tasks }) = stage.map(|stage| &mut stage.state)
                && *index < tasks.len()
            {
                tasks.recount(*index);
            }
        }
    }

    /// Returns all runs by name.
    pub(crate) fn runs(&self) -> &BTreeMap<String, Run> {
        &self.runs
    }

    /// Returns all workers by name.
    pub(crate) fn workers(&self) -> &BTreeMap<String, Worker> {
        &self.workers
    }

    /// Returns for whom workers that are free wait, as `RUN/STAGE`.
    pub(crate) fn kept_for(&self) -> Option<&str> {
        self.kept_for.as_deref()
    }

    /// Work of this process died with its last life and is done again; tasks on workers may still run.
    fn started(&mut self, now_ms: u64) {
        self.listens_since_ms = now_ms;
        // A paused run may have been finishing a stage.
        let unfinished = self.runs.iter().filter(|(_, run)| !run.state.is_ended());
        for name in unfinished.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            for index in 0..self.runs[&name].stages.len() {
                let again = match self.runs[&name].stages[index].state {
                    StageState::Beginning { .. } | StageState::CarryingOut { .. } => StageState::Waiting,
                    StageState::Finishing { seconds, .. } => {
                        self.finish_stage(&name, index, seconds);
                        continue;
                    }
                    _ => continue,
                };
                self.stage_mut(&name, index).state = again;
            }
            self.log(&name, "the coordinator started again; the run goes on");
        }
        // Members of running tasks get the time of a lost worker to say Hello.
        let stages = self.runs.values().flat_map(|run| run.stages.iter().enumerate());
        let members = stages.flat_map(running_tasks).flat_map(|(.., task)| task.members());
        let expected: Vec<(String, String)> =
            members.filter(|m| !m.ended).map(|m| (m.worker.clone(), m.instance.clone())).collect();
        // As if they had been heard later, where a worker's pause between two calls is longer than that.
        let heard_ms = now_ms + RETURN_MS.saturating_sub(self.timing.lost_after_ms);
        for (name, instance) in expected {
            self.workers.insert(name.clone(), Worker::expected(&name, &instance, heard_ms));
        }
    }

    fn run_submitted(&mut self, now_ms: u64, plan: Plan, source: Source) {
        let name = plan.run.clone();
        match self.runs.get(&name) {
            Some(run) if !run.state.is_ended() && run.source == source => {
                return self.reply(Ok(()));
            }
            Some(run) if !run.state.is_ended() => {
                let problem = format!(
                    "run {name} is {} with another run file or other settings; cancel it first, or name this one \
                     differently ([run] name)",
                    run.state.name()
                );
                return self.reply(Err(Refusal::NotNow(problem)));
            }
            _ => {}
        }
        // The time names a submission, in records and to workers: no two of a run have the same.
        let submitted_ms = self.runs.get(&name).map_or(now_ms, |run| now_ms.max(run.submitted_ms + 1));
        self.runs.insert(name.clone(), Run::new(plan, source, submitted_ms));
        self.save(&name);
        self.log(&name, "submitted");
        self.reply(Ok(()));
    }

    fn cancel_asked(&mut self, now_ms: u64, name: &str) {
        let Some(run) = self.open_run(name) else { return };
        run.state = RunState::Cancelled;
        run.reason = "cancelled by a user".into();
        run.ended_ms = Some(now_ms);
        self.stop_stages(now_ms, name, StopReason::Cancelled);
        self.save(name);
        self.log(name, "cancelled");
        self.reply(Ok(()));
    }

    fn pause_asked(&mut self, now_ms: u64, name: &str) {
        let Some(run) = self.open_run(name) else { return };
        run.state = RunState::Paused;
        run.reason = "paused by a user".into();
        self.stop_stages(now_ms, name, StopReason::Paused);
        self.save(name);
        self.log(name, "paused");
        self.reply(Ok(()));
    }

    fn resume_asked(&mut self, name: &str) {
        let Some(run) = self.open_run(name) else { return };
        run.state = RunState::Running;
        run.reason = String::new();
        self.save(name);
        self.log(name, "resumed");
        self.reply(Ok(()));
    }

    /// Returns a run that has not ended; otherwise answers why there is none.
    fn open_run(&mut self, name: &str) -> Option<&mut Run> {
        let refusal = match self.runs.get(name) {
            None => Refusal::NotFound(format!("there is no run {name}")),
            Some(run) if run.state.is_ended() => {
                Refusal::NotNow(format!("run {name} has ended already: {}", run.state.name()))
            }
            Some(_) => return self.runs.get_mut(name),
        };
        self.reply(Err(refusal));
        None
    }

    fn drain_asked(&mut self, name: &str) {
        match self.workers.get_mut(name) {
            Some(worker) if worker.state != WorkerState::Lost => {
                worker.leaving.get_or_insert_with(|| "drained by a user".into());
                self.send(name, Message::Drain(Drain {}));
                self.reply(Ok(()));
            }
            _ => self.reply(Err(Refusal::NotFound(format!("there is no worker {name}")))),
        }
    }

    /// Stops the work of all stages: they wait again in a paused run, and are over in a cancelled or failed one.
    fn stop_stages(&mut self, now_ms: u64, name: &str, reason: StopReason) {
        for index in 0..self.runs[name].stages.len() {
            let stage = &self.runs[name].stages[index];
            if let Some(ticket) = stage.ticket() {
                // Finishing is short and leaves the stage done; a paused run may as well have it.
                if reason == StopReason::Paused && matches!(stage.state, StageState::Finishing { .. }) {
                    continue;
                }
                self.effects.push(Effect::StopStage { ticket });
            }
            self.stop_tasks(now_ms, name, index, reason);
            let stage = self.stage_mut(name, index);
            match (&stage.state, reason) {
                (StageState::Done { .. } | StageState::Failed | StageState::Cancelled, _) => {}
                (StageState::Working { .. }, StopReason::Paused) => {}
                (_, StopReason::Paused) => stage.state = StageState::Waiting,
                // Its tasks end on their own; whatever they say is stale then.
                _ => stage.state = StageState::Cancelled,
            }
        }
    }

    fn stage_begun(&mut self, now_ms: u64, ticket: Ticket, begun: Result<Begun, String>) {
        let Some((name, index)) = self.ticket_holder(ticket) else { return };
        match begun {
            Ok(Begun::Done(outcome)) => self.stage_done(&name, index, outcome, true),
            Ok(Begun::Todo(tasks)) => {
                let place = self.runs[&name].plan.stages[index].place;
                let stage = self.stage_mut(&name, index);
                stage.since_ms = Some(now_ms);
                if place == Place::Workers {
                    stage.state = StageState::Working { tasks: Tasks::new(tasks, now_ms) };
                    self.save(&name);
                    self.log_stage(&name, index, "begins");
                } else {
                    let ticket = self.ticket();
                    self.stage_mut(&name, index).state = StageState::CarryingOut { ticket };
                    self.save(&name);
                    self.log_stage(&name, index, "begins");
                    self.effects.push(Effect::Stage(StageWork::CarryOut { run: name, stage: index, ticket }));
                }
            }
            Err(problem) => self.stage_failed(now_ms, &name, index, problem),
        }
    }

    fn stage_carried_out(&mut self, now_ms: u64, ticket: Ticket, done: Result<(), String>) {
        let Some((name, index)) = self.ticket_holder(ticket) else { return };
        match done {
            Ok(()) => {
                let since_ms = self.runs[&name].stages[index].since_ms.unwrap_or(now_ms);
                self.finish_stage(&name, index, now_ms.saturating_sub(since_ms) as f64 / 1000.0);
            }
            Err(problem) => self.stage_failed(now_ms, &name, index, problem),
        }
    }

    fn finish_stage(&mut self, name: &str, index: usize, seconds: f64) {
        let ticket = self.ticket();
        self.stage_mut(name, index).state = StageState::Finishing { ticket, seconds };
        self.save(name);
        self.effects.push(Effect::Stage(StageWork::Finish { run: name.to_owned(), stage: index, ticket, seconds }));
    }

    fn stage_finished(&mut self, now_ms: u64, ticket: Ticket, done: Result<Outcome, String>) {
        let Some((name, index)) = self.ticket_holder(ticket) else { return };
        match done {
            Ok(outcome) => self.stage_done(&name, index, outcome, false),
            Err(problem) => self.stage_failed(now_ms, &name, index, problem),
        }
    }

    fn stage_done(&mut self, name: &str, index: usize, outcome: Outcome, skipped: bool) {
        let stage = self.stage_mut(name, index);
        stage.state = StageState::Done { seconds: outcome.seconds, skipped };
        stage.cost_usd = outcome.cost_usd;
        stage.note = String::new();
        self.save(name);
        if let Some(warning) = &outcome.warning {
            self.log_stage(name, index, &format!("warning: {warning}"));
        }
        let how = if skipped { "is done already".to_owned() } else { format!("done in {:.1} s", outcome.seconds) };
        self.log_stage(name, index, &how);
    }

    fn stage_failed(&mut self, now_ms: u64, name: &str, index: usize, problem: String) {
        let stage_name = self.runs[name].plan.stages[index].name.clone();
        // Its other tasks would work for nobody.
        self.stop_tasks(now_ms, name, index, StopReason::Cancelled);
        let stage = self.stage_mut(name, index);
        stage.state = StageState::Failed;
        stage.note = problem.clone();
        self.log_stage(name, index, &format!("failed: {problem}"));
        let run = self.runs.get_mut(name).expect("the run of a stage is there");
        run.state = RunState::Failed;
        run.reason = format!("stage {stage_name}: {problem}");
        run.ended_ms = Some(now_ms);
        self.stop_stages(now_ms, name, StopReason::Cancelled);
        self.save(name);
    }

    /// Does what has become possible: stages begin, tasks are placed, runs end.
    fn advance(&mut self, now_ms: u64) {
        self.recount();
        let running: Vec<String> =
            self.runs.iter().filter(|(_, run)| run.state == RunState::Running).map(|(name, _)| name.clone()).collect();
        for name in &running {
            for index in self.runs[name].ready_stages() {
                let ticket = self.ticket();
                self.stage_mut(name, index).state = StageState::Beginning { ticket };
                self.effects.push(Effect::Stage(StageWork::Begin { run: name.clone(), stage: index, ticket }));
            }
            let complete: Vec<usize> = (0..self.runs[name].stages.len())
                .filter(|&index| self.runs[name].stages[index].work().is_some_and(Tasks::are_done))
                .collect();
            for index in complete {
                let stage = self.stage_mut(name, index);
                // What its tasks told goes with them.
                (stage.done, stage.total) = stage.progress();
                let since_ms = stage.since_ms.unwrap_or(now_ms);
                self.finish_stage(name, index, now_ms.saturating_sub(since_ms) as f64 / 1000.0);
            }
            let run = self.runs.get_mut(name).expect("it was just there");
            if run.stages.iter().all(Stage::is_done) {
                run.state = RunState::Done;
                run.ended_ms = Some(now_ms);
                self.save(name);
                self.log(name, "done");
            }
        }
        self.place_tasks(now_ms);
    }

    fn ticket_holder(&self, ticket: Ticket) -> Option<(String, usize)> {
        self.runs.iter().find_map(|(name, run)| {
            let index = run.stages.iter().position(|stage| stage.ticket() == Some(ticket))?;
            Some((name.clone(), index))
        })
    }

    fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket(self.next_ticket)
    }

    fn stage_mut(&mut self, run: &str, index: usize) -> &mut Stage {
        &mut self.runs.get_mut(run).expect("the run of a stage is there").stages[index]
    }

    /// Returns a task to be changed. It is counted anew after the event, and saved with it where its run is.
    fn task_mut(&mut self, run: &str, stage: usize, task: usize) -> &mut Task {
        self.touched.push((run.to_owned(), stage, task));
        match &mut self.stage_mut(run, stage).state {
            StageState::Working { tasks } => tasks.get_mut(task),
            other => unreachable!("a stage with tasks is working, not {other:?}"),
        }
    }

    fn save(&mut self, run: &str) {
        self.saves.insert(run.to_owned());
    }

    fn send(&mut self, worker: &str, message: Message) {
        self.effects.push(Effect::Send { worker: worker.to_owned(), message });
    }

    fn log(&mut self, run: &str, text: &str) {
        self.effects.push(Effect::Log { run: run.to_owned(), text: text.to_owned() });
    }

    fn log_stage(&mut self, run: &str, index: usize, text: &str) {
        let stage = self.runs[run].plan.stages[index].name.clone();
        self.log(run, &format!("{stage}: {text}"));
    }

    fn reply(&mut self, answer: Result<(), Refusal>) {
        self.effects.push(Effect::Reply(answer));
    }
}

/// Returns the running tasks of a stage with their positions and the stage's.
fn running_tasks((index, stage): (usize, &Stage)) -> impl Iterator<Item = (usize, usize, &Task)> {
    let tasks = stage.work().into_iter();
    tasks.flat_map(move |tasks| tasks.running().map(move |at| (index, at, &tasks[at])))
}

#[cfg(test)]
mod tests;
