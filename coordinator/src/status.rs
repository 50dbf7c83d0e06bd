//! The state as people's commands see it: a copy, made when someone looks.

use proto::coordinator::{RunStatus, StageStatus, TaskStatus, WorkerStatus};

use crate::scheduler::Scheduler;
use crate::scheduler::run::{Run, Stage, StageState, Task, TaskState};
use crate::scheduler::task_list::Tasks;
use crate::scheduler::worker::{Worker, WorkerState};

/// Tasks of a stage that are listed one by one; of more than that, only those that run.
const LISTED: usize = 1000;

/// Runs and workers at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Snapshot {
    pub(crate) runs: Vec<RunStatus>,
    pub(crate) workers: Vec<WorkerStatus>,
}

impl Snapshot {
    /// Copies a scheduler's state. `report` is the folder of a run's report.
    pub(crate) fn of(scheduler: &Scheduler, now_ms: u64, report: impl Fn(&str) -> String) -> Snapshot {
        let mut runs: Vec<RunStatus> =
            scheduler.runs().iter().map(|(name, run)| run_status(name, run, now_ms, report(name))).collect();
        runs.sort_by_key(|run| run.submitted_ms);
        let kept_for = scheduler.kept_for();
        let workers = scheduler.workers().iter().map(|(name, worker)| worker_status(name, worker, kept_for)).collect();
        Snapshot { runs, workers }
    }

    pub(crate) fn run(&self, name: &str) -> Option<&RunStatus> {
        self.runs.iter().find(|run| run.run == name)
    }
}

fn run_status(name: &str, run: &Run, now_ms: u64, report: String) -> RunStatus {
    let stages = run.plan.stages.iter().zip(&run.stages);
    let stages: Vec<StageStatus> = stages.map(|(plan, stage)| stage_status(&plan.name, stage, now_ms)).collect();
    let reported = stages.last().is_some_and(|stage| stage.state == "done" || stage.state == "skipped");
    RunStatus {
        run: name.to_owned(),
        state: run.state.name().to_owned(),
        reason: run.reason.clone(),
        cost_usd: stages.iter().map(|stage| stage.cost_usd).sum(),
        stages,
        submitted_ms: run.submitted_ms,
        ended_ms: run.ended_ms,
        report: if reported { report } else { String::new() },
    }
}

fn stage_status(name: &str, stage: &Stage, now_ms: u64) -> StageStatus {
    let running = |since: Option<u64>| since.map_or(0.0, |since| now_ms.saturating_sub(since) as f64 / 1000.0);
    let (state, seconds) = match &stage.state {
        StageState::Waiting => ("waiting", 0.0),
        StageState::Beginning { .. } => ("running", 0.0),
        StageState::Working { .. } | StageState::CarryingOut { .. } => ("running", running(stage.since_ms)),
        StageState::Finishing { seconds, .. } => ("running", *seconds),
        StageState::Done { seconds, skipped: false } => ("done", *seconds),
        StageState::Done { seconds, skipped: true } => ("skipped", *seconds),
        StageState::Failed => ("failed", 0.0),
        StageState::Cancelled => ("cancelled", 0.0),
    };
    let tasks: Vec<TaskStatus> = match stage.work() {
        Some(work) if work.len() > LISTED => work.running().take(LISTED).map(|at| task_status(&work[at])).collect(),
        _ => stage.tasks().iter().map(task_status).collect(),
    };
    let (tasks_waiting, tasks_running, tasks_done) = stage.work().map(Tasks::counts).unwrap_or_default();
    let (done, total) = stage.progress();
    // What some task waits for is what the stage waits for only while none works.
    let is_at_work = |task: &TaskStatus| task.state != "waiting" && task.state != "done";
    let works = tasks.iter().any(is_at_work);
    let speaks = |task: &&TaskStatus| !task.note.is_empty() && is_at_work(task) == works;
    let first_waiting = || stage.work().and_then(|work| work.waiting().next().map(|at| work[at].note.clone()));
    let note = match tasks.iter().find(speaks) {
        Some(task) if stage.note.is_empty() => task.note.clone(),
        None if stage.note.is_empty() && !works => first_waiting().unwrap_or_default(),
        _ => stage.note.clone(),
    };
    StageStatus {
        name: name.to_owned(),
        state: state.to_owned(),
        done,
        total,
        seconds,
        cost_usd: stage.cost_usd,
        note,
        tasks,
        tasks_waiting,
        tasks_running,
        tasks_done,
    }
}

fn task_status(task: &Task) -> TaskStatus {
    let state = match &task.state {
        TaskState::Waiting => "waiting",
        TaskState::Running { broken: Some(_), .. } => "breaking up",
        TaskState::Running { met: false, .. } => "meeting",
        TaskState::Running { .. } => "running",
        TaskState::Done => "done",
    };
    TaskStatus {
        task: task.plan.name.clone(),
        state: state.to_owned(),
        attempt: task.attempt,
        workers: task.members().iter().map(|member| member.worker.clone()).collect(),
        done: task.done,
        total: task.total,
        lost: task.lost,
        failed: task.failed,
        note: task.note.clone(),
    }
}

/// `kept_for` is the stage that free workers wait for, together with others.
fn worker_status(name: &str, worker: &Worker, kept_for: Option<&str>) -> WorkerStatus {
    let (state, note) = match (&worker.state, &worker.leaving) {
        (WorkerState::Lost, Some(reason)) => ("left", reason.clone()),
        (WorkerState::Lost, None) => ("lost", String::new()),
        (WorkerState::Unusable { reason }, _) => ("unusable", reason.clone()),
        (_, Some(reason)) => ("draining", reason.clone()),
        (WorkerState::Joining, _) => ("joining", String::new()),
        (WorkerState::Idle, _) => ("idle", kept_for.map_or(String::new(), |stage| format!("kept for {stage}"))),
        (WorkerState::Busy { .. }, _) => ("busy", String::new()),
    };
    let away = !worker.connected && worker.state != WorkerState::Lost;
    let hello = &worker.hello;
    WorkerStatus {
        name: name.to_owned(),
        state: state.to_owned(),
        note: if away && note.is_empty() { "its connection is away".into() } else { note },
        host: hello.host.clone(),
        pid: hello.pid,
        device: hello.device.clone(),
        memory_bytes: hello.memory_bytes,
        threads: hello.threads,
        version: hello.version.clone(),
        task: match &worker.state {
            WorkerState::Busy { task } => Some(task.clone()),
            _ => None,
        },
        seen_ms: worker.heard_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_left_is_not_a_lost_one() {
        let mut worker = Worker::expected("w", "i", 1);
        worker.state = WorkerState::Lost;
        assert_eq!(worker_status("w", &worker, None).state, "lost");
        worker.leaving = Some("drained by a user".into());
        let status = worker_status("w", &worker, None);
        assert_eq!((status.state.as_str(), status.note.as_str()), ("left", "drained by a user"));
    }
}
