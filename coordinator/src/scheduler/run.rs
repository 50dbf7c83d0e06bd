//! The state of runs, stages and tasks.
//!
//! ```text
//! run     Running ⇄ Paused ─▶ Done | Failed | Cancelled ─(submitted again)─▶ Running
//! stage   Waiting ─▶ Beginning ─▶ Working ─▶ Finishing ─▶ Done
//!                        │      └▶ CarryingOut ─▲            ▲
//!                        └── its manifest matches: skipped ──┘      any ─▶ Failed | Cancelled
//! task    Waiting ⇄ Running ─▶ Done        (back to Waiting: a member lost, paused, more members, or a failure with tries left)
//! ```

use proto::coordinator::TaskRef;
use serde::{Deserialize, Serialize};

use super::event::{Source, Ticket};
use super::task_list::Tasks;
use crate::plan::{self, Plan};

/// A run. As it is saved, the tasks of its stages lie beside it, each on its own (`records`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) plan: Plan,
    pub(crate) source: Source,
    pub(crate) state: RunState,
    /// For people: why it is in this state.
    pub(crate) reason: String,
    pub(crate) submitted_ms: u64,
    pub(crate) ended_ms: Option<u64>,
    /// In the plan's order.
    pub(crate) stages: Vec<Stage>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum RunState {
    Running,
    Paused,
    Done,
    Failed,
    Cancelled,
}

impl RunState {
    pub(crate) fn is_ended(self) -> bool {
        matches!(self, RunState::Done | RunState::Failed | RunState::Cancelled)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            RunState::Running => "running",
            RunState::Paused => "paused",
            RunState::Done => "done",
            RunState::Failed => "failed",
            RunState::Cancelled => "cancelled",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stage {
    pub(crate) state: StageState,
    /// When its work began, in this incarnation.
    pub(crate) since_ms: Option<u64>,
    /// For people.
    pub(crate) note: String,
    pub(crate) done: u64,
    pub(crate) total: u64,
    pub(crate) cost_usd: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum StageState {
    Waiting,
    Beginning {
        ticket: Ticket,
    },
    /// On workers.
    Working {
        #[serde(default, skip_serializing)]
        tasks: Tasks,
    },
    /// In this process or the oracle service.
    CarryingOut {
        ticket: Ticket,
    },
    Finishing {
        ticket: Ticket,
        seconds: f64,
    },
    Done {
        seconds: f64,
        skipped: bool,
    },
    Failed,
    Cancelled,
}

impl Stage {
    pub(crate) fn new() -> Stage {
        Stage { state: StageState::Waiting, since_ms: None, note: String::new(), done: 0, total: 0, cost_usd: 0.0 }
    }

    pub(crate) fn is_done(&self) -> bool {
        matches!(self.state, StageState::Done { .. })
    }

    /// Returns how far it is, of how much.
    pub(crate) fn progress(&self) -> (u64, u64) {
        match &self.state {
            StageState::Working { tasks } => tasks.progress(),
            // Whatever was told last: what is done is done whole.
            StageState::Finishing { .. } | StageState::Done { .. } => (self.total, self.total),
            _ => (self.done, self.total),
        }
    }

    /// Returns its tasks while it is at work on them.
    pub(crate) fn work(&self) -> Option<&Tasks> {
        match &self.state {
            StageState::Working { tasks } => Some(tasks),
            _ => None,
        }
    }

    pub(crate) fn tasks(&self) -> &[Task] {
        match &self.state {
            StageState::Working { tasks } => tasks,
            _ => &[],
        }
    }

    pub(crate) fn ticket(&self) -> Option<Ticket> {
        match self.state {
            StageState::Beginning { ticket }
            | StageState::CarryingOut { ticket }
            | StageState::Finishing { ticket, .. } => Some(ticket),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Task {
    pub(crate) plan: plan::Task,
    pub(crate) state: TaskState,
    /// Of the attempt that runs or ran last; 0 before the first.
    pub(crate) attempt: u32,
    /// Attempts that ended because a worker was lost; not the task's fault.
    pub(crate) lost: u32,
    /// Of the last ones of these, how many neither got further than all attempts before nor left anything behind to go on from.
    #[serde(default)]
    pub(crate) in_vain: u32,
    /// The furthest that any attempt was in the work of its kind.
    #[serde(default)]
    pub(crate) furthest: u64,
    /// The furthest that any attempt went on from: so much is kept.
    #[serde(default)]
    pub(crate) kept: u64,
    /// Attempts that failed by themselves.
    pub(crate) failed: u32,
    pub(crate) note: String,
    /// Its next attempt begins at this time at the earliest.
    #[serde(default)]
    pub(crate) not_before_ms: u64,
    /// Since when it waits for workers, or waited last.
    #[serde(default)]
    pub(crate) waits_since_ms: u64,
    #[serde(default)]
    pub(crate) done: u64,
    #[serde(default)]
    pub(crate) total: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum TaskState {
    Waiting,
    Running {
        /// In rank order.
        members: Vec<Member>,
        since_ms: u64,
        /// All members know each other's addresses.
        met: bool,
        /// Set once the attempt cannot succeed: it ends when every member has ended, or has had the time to.
        broken: Option<Broken>,
        /// When its members were told to leave it.
        #[serde(default)]
        told_to_leave_ms: Option<u64>,
        /// It was told to stop at a checkpoint, to start again with more members.
        #[serde(default)]
        growing: bool,
    },
    Done,
}

/// Why an attempt cannot succeed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Broken {
    /// A worker is gone, or something else that is not the task's fault.
    Lost(String),
    /// Another process holds the files that the task needs.
    Held(String),
    Failed(String),
    /// It was told to stop.
    Stopped,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Member {
    pub(crate) worker: String,
    pub(crate) instance: String,
    pub(crate) address: Option<String>,
    /// Of the first rank over NCCL: the name of the communicator.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) nccl_id: Vec<u8>,
    pub(crate) ended: bool,
}

impl Task {
    /// A task that waits from now on.
    pub(crate) fn new(plan: plan::Task, now_ms: u64) -> Task {
        Task {
            plan,
            state: TaskState::Waiting,
            attempt: 0,
            lost: 0,
            in_vain: 0,
            furthest: 0,
            kept: 0,
            failed: 0,
            note: String::new(),
            not_before_ms: 0,
            waits_since_ms: now_ms,
            done: 0,
            total: 0,
        }
    }

    #[cfg(test)]
    pub(crate) fn is_done(&self) -> bool {
        self.state == TaskState::Done
    }

    pub(crate) fn members(&self) -> &[Member] {
        match &self.state {
            TaskState::Running { members, .. } => members,
            _ => &[],
        }
    }
}

impl Run {
    pub(crate) fn new(plan: Plan, source: Source, now_ms: u64) -> Run {
        let stages = plan.stages.iter().map(|_| Stage::new()).collect();
        Run {
            plan,
            source,
            state: RunState::Running,
            reason: String::new(),
            submitted_ms: now_ms,
            ended_ms: None,
            stages,
        }
    }

    /// Returns stages that may begin: they wait, and all that they need is done.
    pub(crate) fn ready_stages(&self) -> Vec<usize> {
        let ready = |&index: &usize| {
            self.stages[index].state == StageState::Waiting
                && self.plan.stages[index].after.iter().all(|&needed| self.stages[needed].is_done())
        };
        (0..self.stages.len()).filter(ready).collect()
    }

    /// Finds a task by name.
    pub(crate) fn find(&self, task: &TaskRef) -> Option<(usize, usize)> {
        let stage = self.plan.stages.iter().position(|stage| stage.name == task.stage)?;
        let index = self.stages[stage].work()?.find(&task.task)?;
        Some((stage, index))
    }
}
