//! A part of a job: one file, one batch. Pure: events in, effects out; the driver carries them out in order.
//!
//! ```text
//!            uploaded           created / found            ended              fetched
//! Spooled ─────────────▶ Creating ─────────────▶ Running ─────────▶ Ended ─────────────▶ Done
//!    ▲                      │ refused               │ the whole batch failed
//!    └──────────────────────┴───────────────────────┘ (a new attempt, a new tag)
//! ```
//!
//! A phase is saved before its effects are carried out, and starting anew after a crash is the same as waking up after a
//! pause: every phase knows its next step. In `Creating` nobody knows whether the API has the batch already, so the next
//! step is to look for its tag; only right after the phase was saved is a batch created without a look.

use serde::{Deserialize, Serialize};

use super::lines::Left;
use crate::api::retry::{Course, Trouble};
use shared::prices::Tokens;

/// Attempts of a request in batches before it is left to the online API.
pub(super) const ATTEMPTS: u32 = 3;

/// A part, as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Part {
    /// Hash of the job and of the requests' keys; names the file of requests.
    pub(crate) id: String,
    /// The job, for people.
    pub(crate) job: String,
    /// Which of the job's parts it is, for people.
    pub(crate) number: u32,
    /// From 1. A batch that failed is sent again under another attempt, and so is a part's rest.
    pub(crate) attempt: u32,
    /// The API it belongs to.
    pub(crate) base_url: String,
    /// The account that pays.
    pub(crate) account: String,
    pub(crate) model: String,
    pub(crate) requests: u64,
    pub(crate) bytes: u64,
    /// The most it can cost, in tokens.
    pub(crate) worst: Tokens,
    /// To be cancelled; what is unanswered then is not asked again.
    #[serde(default)]
    pub(crate) taken_back: bool,
    pub(crate) phase: Phase,
}

/// How far a part is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub(crate) enum Phase {
    /// Its file lies in the state folder.
    Spooled,
    /// Its file is at the API; a batch may be too.
    Creating { file: String },
    /// The API works on it.
    Running { batch: Batch },
    /// The API has ended it; its answers are to be fetched.
    Ended { batch: Batch },
    /// Its answers are in the ledger. `left` were not answered in batches and are the online API's business.
    Done { answered: u64, left: Vec<String> },
}

/// A batch as the API describes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Batch {
    pub(crate) id: String,
    pub(crate) status: Status,
    #[serde(default)]
    pub(crate) completed: u64,
    #[serde(default)]
    pub(crate) failed: u64,
    pub(crate) output: Option<String>,
    pub(crate) errors: Option<String>,
    /// Why the whole of it failed.
    #[serde(default)]
    pub(crate) problem: Option<Problem>,
}

/// Why a whole batch failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Problem {
    pub(crate) code: String,
    pub(crate) message: String,
}

/// A batch's state. One that this version does not know is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    Validating,
    InProgress,
    Finalizing,
    Cancelling,
    Completed,
    Expired,
    Cancelled,
    Failed,
    #[serde(other)]
    Unknown,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Event {
    /// The process has begun, or a pause is over.
    Woke,
    Uploaded {
        file: String,
    },
    Created(Batch),
    /// The API was searched for the part's tag.
    Found(Option<Batch>),
    Polled(Batch),
    /// The API took a cancellation.
    Cancelling(Batch),
    /// The files were read, the answers stored, and the rest was put into a part of its own if it is to be asked again.
    Fetched {
        answered: u64,
        left: Vec<String>,
        again: u64,
        stop: Option<String>,
    },
    /// A batch was not created, or nobody knows.
    NotCreated(Trouble),
    /// Anything else that was tried came to nothing.
    Failed(Trouble),
    /// Someone takes it back.
    TakenBack,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Effect {
    /// Save the part. Whatever follows waits for the disk.
    Save,
    Upload,
    Find,
    Create {
        file: String,
    },
    Poll {
        batch: String,
    },
    Cancel {
        batch: String,
    },
    Fetch(Batch),
    /// Wait for the next look.
    Rest,
    /// Wait after a failure, longer each time.
    Retry(Trouble),
    /// The API takes no more for now: wait for other batches to end.
    Queue(String),
    /// Nothing goes on until someone acts.
    Stop(String),
    /// All is done.
    Finish,
}

impl Status {
    /// Returns whether the API still works on it.
    pub(super) fn is_live(self) -> bool {
        !matches!(self, Status::Completed | Status::Expired | Status::Cancelled | Status::Failed)
    }
}

impl Part {
    /// Returns what the batch is found again by.
    pub(crate) fn tag(&self) -> String {
        format!("{}-{}", self.id, self.attempt)
    }

    /// Returns whether something is left to be done.
    pub(crate) fn is_open(&self) -> bool {
        !matches!(self.phase, Phase::Done { .. })
    }

    /// Returns whether it may cost something already.
    pub(super) fn is_on_its_way(&self) -> bool {
        matches!(self.phase, Phase::Creating { .. } | Phase::Running { .. } | Phase::Ended { .. })
    }

    /// Returns how many requests the API has answered or refused, as far as it says.
    pub(crate) fn progressed(&self) -> u64 {
        match &self.phase {
            Phase::Spooled | Phase::Creating { .. } => 0,
            Phase::Running { batch } | Phase::Ended { batch } => (batch.completed + batch.failed).min(self.requests),
            Phase::Done { .. } => self.requests,
        }
    }

    /// Returns the state in one word, for people.
    pub(crate) fn state(&self) -> &'static str {
        match &self.phase {
            Phase::Spooled => "to be sent",
            Phase::Creating { .. } => "being sent",
            Phase::Running { batch } => match batch.status {
                Status::Validating => "validating",
                Status::Finalizing => "finalizing",
                Status::Cancelling => "cancelling",
                _ => "in progress",
            },
            Phase::Ended { .. } => "to be fetched",
            Phase::Done { .. } => "done",
        }
    }

    /// Splits what is left of it: what goes into another batch, and what is left to the online API.
    pub(super) fn split(&self, left: &mut Left) -> (Vec<super::lines::Key>, Vec<String>) {
        let again = std::mem::take(&mut left.again);
        let mut given_up: Vec<String> = left.refused.iter().map(|(key, _)| super::lines::text(*key)).collect();
        if self.taken_back {
            return (Vec::new(), Vec::new());
        }
        if self.attempt < ATTEMPTS || left.stop.is_some() {
            return (again, given_up);
        }
        given_up.extend(again.into_iter().map(super::lines::text));
        (Vec::new(), given_up)
    }

    /// Applies an event and returns what must now be done, in order. An event that does not belong to the phase changes
    /// nothing.
    pub(super) fn apply(&mut self, event: Event) -> Vec<Effect> {
        if event == Event::TakenBack {
            self.taken_back |= self.is_open();
            return vec![Effect::Save];
        }
        match (self.phase.clone(), event) {
            (Phase::Spooled, Event::Woke) if self.taken_back => self.withdrawn(),
            (Phase::Spooled, Event::Woke) => vec![Effect::Upload],
            (Phase::Spooled, Event::Uploaded { .. }) if self.taken_back => self.withdrawn(),
            (Phase::Spooled, Event::Uploaded { file }) => {
                self.phase = Phase::Creating { file: file.clone() };
                vec![Effect::Save, Effect::Create { file }]
            }
            (Phase::Spooled, Event::Failed(trouble)) => after(trouble, "its file is not taken"),

            (Phase::Creating { .. }, Event::Woke) => vec![Effect::Find],
            (Phase::Creating { .. }, Event::Found(None)) if self.taken_back => self.withdrawn(),
            (Phase::Creating { file }, Event::Found(None)) => vec![Effect::Create { file }],
            (Phase::Creating { .. }, Event::Created(batch) | Event::Found(Some(batch))) => self.running(batch),
            (Phase::Creating { .. }, Event::Failed(trouble)) => after(trouble, "its batch cannot be looked for"),
            (Phase::Creating { .. }, Event::NotCreated(trouble)) => match trouble.course() {
                Course::Again | Course::Slower => vec![Effect::Retry(trouble)],
                // A clear no: there is no batch, and perhaps no longer a file.
                Course::GiveUpItem(said) | Course::Halt(said) => {
                    self.phase = Phase::Spooled;
                    vec![Effect::Save, Effect::Stop(format!("no batch could be made of it: {said}"))]
                }
            },

            (Phase::Running { batch }, Event::Woke) => vec![Effect::Poll { batch: batch.id }],
            (Phase::Running { .. }, Event::Polled(batch) | Event::Cancelling(batch)) => self.running(batch),
            (Phase::Running { .. }, Event::Failed(Trouble::Status { status: 404, .. })) if self.taken_back => {
                self.withdrawn()
            }
            // A cancellation that comes too late is refused; the next look tells.
            (Phase::Running { .. }, Event::Failed(trouble)) if self.taken_back => vec![Effect::Retry(trouble)],
            (Phase::Running { .. }, Event::Failed(trouble)) => after(trouble, "its batch cannot be looked at"),

            (Phase::Ended { batch }, Event::Woke) => vec![Effect::Fetch(batch)],
            (Phase::Ended { batch }, Event::Fetched { answered, left, again, stop }) => {
                self.phase = Phase::Done { answered, left };
                let cancelled = batch.status == Status::Cancelled && !self.taken_back && again > 0;
                let stop = stop.or_else(|| {
                    cancelled.then(|| {
                        format!(
                            "batch {} was cancelled at the API by someone else; run again to send its {again} unanswered \
                             requests again",
                            batch.id
                        )
                    })
                });
                vec![Effect::Save, stop.map_or(Effect::Finish, Effect::Stop)]
            }
            (Phase::Ended { .. }, Event::Failed(Trouble::Status { status: 404, .. })) if self.taken_back => {
                self.withdrawn()
            }
            (Phase::Ended { .. }, Event::Failed(trouble)) => after(trouble, "its answers cannot be fetched"),
            _ => Vec::new(),
        }
    }

    /// Takes note of what the API says of the batch.
    fn running(&mut self, batch: Batch) -> Vec<Effect> {
        if batch.status == Status::Failed {
            let problem = batch.problem.unwrap_or(Problem { code: String::new(), message: "without a reason".into() });
            if self.taken_back {
                return self.withdrawn();
            }
            // Nothing of it was done. Its tag is used up.
            self.phase = Phase::Spooled;
            self.attempt += 1;
            let said = format!("{}: {}", problem.code, problem.message);
            let next = match problem.code.as_str() {
                "token_limit_exceeded" | "request_limit_exceeded" => Effect::Queue(said),
                _ => Effect::Stop(format!("the API refused batch {}: {said}", batch.id)),
            };
            return vec![Effect::Save, next];
        }
        if !batch.status.is_live() {
            self.phase = Phase::Ended { batch: batch.clone() };
            return vec![Effect::Save, Effect::Fetch(batch)];
        }
        let news = self.phase != Phase::Running { batch: batch.clone() };
        self.phase = Phase::Running { batch: batch.clone() };
        let cancel = self.taken_back && !matches!(batch.status, Status::Cancelling | Status::Finalizing);
        let next = if cancel { Effect::Cancel { batch: batch.id } } else { Effect::Rest };
        if news { vec![Effect::Save, next] } else { vec![next] }
    }

    fn withdrawn(&mut self) -> Vec<Effect> {
        self.phase = Phase::Done { answered: 0, left: Vec::new() };
        vec![Effect::Save, Effect::Finish]
    }
}

/// Returns what a failure leads to where it changes nothing.
fn after(trouble: Trouble, what: &str) -> Vec<Effect> {
    match trouble.course() {
        Course::Again | Course::Slower => vec![Effect::Retry(trouble)],
        Course::GiveUpItem(said) | Course::Halt(said) => vec![Effect::Stop(format!("{what}: {said}"))],
    }
}

#[cfg(test)]
mod tests;
