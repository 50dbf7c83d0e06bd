//! What can happen, and what must be done: plain data, printable and comparable.

use proto::coordinator::{Hello, TaskEnded, TaskProgress, TaskRef, to_worker};

use crate::plan::{Plan, Task};
use crate::stage::{Outcome, Progress};

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Event {
    /// The coordinator started with what it had saved.
    Started,
    /// A user wants a run.
    RunSubmitted {
        plan: Plan,
        source: Source,
    },
    CancelAsked {
        run: String,
    },
    PauseAsked {
        run: String,
    },
    ResumeAsked {
        run: String,
    },
    DrainAsked {
        worker: String,
    },
    /// Work of this process on a stage came back; the ticket names which.
    StageBegun {
        ticket: Ticket,
        begun: Result<Begun, String>,
    },
    StageCarriedOut {
        ticket: Ticket,
        done: Result<(), String>,
    },
    StageFinished {
        ticket: Ticket,
        done: Result<Outcome, String>,
    },
    StageProgressed {
        ticket: Ticket,
        progress: Progress,
    },
    /// A worker said Hello on a new connection; `refusal` is what the handler found wrong with it.
    WorkerHello {
        hello: Hello,
    },
    WorkerFolderSeen {
        worker: String,
        instance: String,
        problem: String,
    },
    /// Any message shows that a worker lives; for `still_ms` it has been in a call of its gang in which nothing moved.
    WorkerHeard {
        worker: String,
        instance: String,
        still_ms: u64,
    },
    WorkerLeaving {
        worker: String,
        instance: String,
        reason: String,
    },
    /// Its connection ended; it may come back.
    WorkerDisconnected {
        worker: String,
        instance: String,
    },
    PeerReady {
        worker: String,
        task: TaskRef,
        address: String,
        /// Of the first rank over NCCL.
        nccl_id: Vec<u8>,
    },
    TaskProgressed {
        worker: String,
        progress: TaskProgress,
    },
    TaskEnded {
        worker: String,
        ended: TaskEnded,
    },
    Tick,
}

/// What beginning a stage found out.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Begun {
    Done(Outcome),
    Todo(Vec<Task>),
}

/// Names one piece of work of this process on a stage. A stale one is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub(crate) struct Ticket(pub(crate) u64);

/// What a run was submitted with, to read its file again after a restart.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Source {
    pub(crate) text: String,
    pub(crate) file: String,
    pub(crate) folder: String,
    pub(crate) set: Vec<String>,
}

/// What must now be done, in order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Effect {
    /// This run has changed, and these tasks of it, by stage: save them before anything that follows is done.
    Save {
        run: String,
        tasks: Vec<(usize, usize)>,
    },
    /// Work of this process.
    Stage(StageWork),
    /// Drop the work of this ticket; nobody waits for it any more.
    StopStage {
        ticket: Ticket,
    },
    Send {
        worker: String,
        message: to_worker::Message,
    },
    /// End the connection.
    Disconnect {
        worker: String,
    },
    Log {
        run: String,
        text: String,
    },
    /// Answers whoever sent the event being applied.
    Reply(Result<(), Refusal>),
}

/// What this process does for a stage, and says is done under its ticket.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum StageWork {
    Begin { run: String, stage: usize, ticket: Ticket },
    CarryOut { run: String, stage: usize, ticket: Ticket },
    Finish { run: String, stage: usize, ticket: Ticket, seconds: f64 },
}

impl StageWork {
    pub(crate) fn ticket(&self) -> Ticket {
        match self {
            StageWork::Begin { ticket, .. } | StageWork::CarryOut { ticket, .. } | StageWork::Finish { ticket, .. } => {
                *ticket
            }
        }
    }
}

/// Why something asked for is not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    NotFound(String),
    NotNow(String),
}
