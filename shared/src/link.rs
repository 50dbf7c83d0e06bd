//! The worker's side of its connection to the coordinator, as decisions: when to dial, what to say, which order to obey.
//!
//! ```text
//!            ┌───────────── connection lost, dial again ────────────┐
//!            ▼                                                      │
//!  Hello ─▶ Welcome ─▶ FolderSeen ─▶ tasks: RunTask … TaskEnded … EndedStored ─▶ leave
//!            └▶ Refused: the process ends
//! ```
//! No I/O and no clock: [`Link::apply`] takes what happened and returns what must now be done, in order. Whoever holds the
//! connection and the device calls it, at [`Link::wake_ms`] too. Times are milliseconds of any clock that never goes back.

use proto::coordinator::from_worker::Message as Said;
use proto::coordinator::task_ended::How;
use proto::coordinator::to_worker::Message as Told;
use proto::coordinator::{
    Failed, FolderSeen, Heartbeat, Hello, Leaving, PeerReady, Peers, RunTask, StopReason, TaskEnded, TaskProgress,
    TaskRef, Welcome,
};

/// Progress is told at most so often.
const PROGRESS_EVERY_MS: u64 = 500;
const FIRST_WAIT_MS: u64 = 100;
const LONGEST_WAIT_MS: u64 = 5_000;
/// A worker that leaves waits so long for the coordinator to store its last end.
const FAREWELL_MS: u64 = 10_000;
/// A look at the artifact folder may take so many heartbeats before it is told; one that could not be used is looked at again after as many.
const LOOK_BEATS: u64 = 5;
/// Between two heartbeats until the coordinator has said how often it wants them.
const FIRST_HEARTBEAT_MS: u64 = 1_000;

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The connection that was asked for is open.
    Connected,
    /// It could not be made, was lost, or the coordinator closed it.
    Disconnected,
    /// The coordinator said something.
    Told(Told),
    /// The artifact folder was looked at; empty where nothing is wrong with it.
    FolderSeen {
        /// For people.
        problem: String,
    },
    /// A task of a gang listens for the other members.
    Listening {
        /// The attempt.
        task: TaskRef,
        /// host:port.
        address: String,
        /// Of the first rank over NCCL: the communicator's name.
        nccl_id: Vec<u8>,
    },
    /// A task could not begin for want of something around it.
    NotBegun {
        /// The attempt.
        task: TaskRef,
        /// For people.
        problem: String,
    },
    /// The running task got further.
    Progressed(TaskProgress),
    /// The running task ended.
    Ended(TaskEnded),
    /// The process was told to stop.
    StopAsked,
    /// Time has passed.
    Tick {
        /// For how long the task has been in a call of its gang in which nothing came or went; 0 while it computes.
        still_ms: u64,
    },
}

/// What must now be done.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "they are few and done at once")]
pub enum Act {
    /// Open a connection. [`Event::Connected`] or [`Event::Disconnected`] follows.
    Dial,
    /// Say something on the connection.
    Say(Said),
    /// See whether the artifact folder can be used from here, which may take a while. [`Event::FolderSeen`] follows, unless the
    /// connection is lost before.
    LookAtFolder(Welcome),
    /// Give a task to the device. A gang's listens first: [`Event::Listening`] or [`Event::NotBegun`] follows.
    Begin(RunTask),
    /// Give the running task the addresses of its gang, in rank order, and what else its members have in common.
    Meet(Peers),
    /// Stop the running task.
    Stop(StopReason),
    /// The worker is done and its process ends.
    Leave,
    /// The coordinator will not have this worker: its process ends with the reason.
    Refused(String),
}

/// What a worker knows of its connection and of its present task.
#[derive(Debug)]
pub struct Link {
    hello: Hello,
    connection: Connection,
    /// Before dialling for the next time.
    wait_ms: u64,
    running: Option<Running>,
    /// The last end, until the coordinator has stored it.
    ended: Option<TaskEnded>,
    /// The attempt that ended last: it is not begun again.
    over: Option<TaskRef>,
    /// No new task is taken; the reason is for people.
    leaving: Option<String>,
    acts: Vec<Act>,
}

#[derive(Debug)]
struct Running {
    task: TaskRef,
    /// Of a gang, until the other members' addresses are known: where this one listens.
    listening: Option<PeerReady>,
}

#[derive(Debug)]
enum Connection {
    /// None; the next one is dialled then.
    Apart {
        until_ms: u64,
    },
    Dialling {
        since_ms: u64,
    },
    Open(Open),
    /// The process is about to end.
    Over,
}

#[derive(Debug)]
struct Open {
    /// When it was dialled.
    since_ms: u64,
    heartbeat_ms: u64,
    next_heartbeat_ms: u64,
    /// What progress was told of last, and when.
    told_progress: Option<(u64, TaskRef, String)>,
    /// Since when a leaving worker only waits to be let go.
    farewell_since_ms: Option<u64>,
    /// The artifact folder; nothing before the coordinator has said which.
    folder: Option<Box<Folder>>,
    /// An idle worker that says it leaves waits for the coordinator to close: a word of his may still be on the way.
    waits: bool,
}

/// What is known of the artifact folder on a connection.
#[derive(Debug)]
struct Folder {
    welcome: Welcome,
    look: Look,
    /// It was told that the folder cannot be used.
    is_bad: bool,
}

#[derive(Debug, Clone, Copy)]
enum Look {
    /// Since when.
    Goes(u64),
    /// It can be used.
    Over,
    /// Not before then.
    Again(u64),
}

impl Link {
    /// Returns a link that has not dialled yet. `hello` says who the worker is.
    pub fn new(hello: Hello) -> Link {
        Link {
            hello,
            connection: Connection::Apart { until_ms: 0 },
            wait_ms: FIRST_WAIT_MS,
            running: None,
            ended: None,
            over: None,
            leaving: None,
            acts: Vec::new(),
        }
    }

    /// Returns when [`Event::Tick`] is next due, if time alone changes anything.
    pub fn wake_ms(&self) -> Option<u64> {
        match &self.connection {
            Connection::Apart { until_ms } => Some(*until_ms),
            Connection::Open(open) => {
                let farewell = open.farewell_since_ms.map_or(u64::MAX, |since_ms| since_ms + FAREWELL_MS);
                Some(open.next_heartbeat_ms.min(farewell))
            }
            Connection::Dialling { .. } | Connection::Over => None,
        }
    }

    /// Returns the attempt that runs here.
    pub fn running(&self) -> Option<&TaskRef> {
        self.running.as_ref().map(|running| &running.task)
    }

    /// Applies one event and returns what must now be done, in order.
    pub fn apply(&mut self, now_ms: u64, event: Event) -> Vec<Act> {
        match event {
            Event::Connected => self.connected(now_ms),
            Event::Disconnected => self.disconnected(now_ms),
            Event::Told(told) => self.told(now_ms, told),
            Event::FolderSeen { problem } => self.folder_seen(now_ms, problem),
            Event::Listening { task, address, nccl_id } => {
                if let Some(running) = self.running_as(Some(&task)) {
                    let ready = PeerReady { task: Some(task), address, nccl_id };
                    running.listening = Some(ready.clone());
                    self.say(Said::PeerReady(ready));
                }
            }
            Event::NotBegun { task, problem } => {
                if self.running_as(Some(&task)).is_some() {
                    self.task_ended(failed(task, problem));
                }
            }
            Event::Progressed(progress) => self.progressed(now_ms, progress),
            Event::Ended(ended) => self.task_ended(ended),
            Event::StopAsked => self.stop_asked(),
            Event::Tick { still_ms } => self.tick(now_ms, still_ms),
        }
        self.leave_when_done(now_ms);
        std::mem::take(&mut self.acts)
    }

    fn connected(&mut self, now_ms: u64) {
        let Connection::Dialling { since_ms } = self.connection else { return };
        self.connection = Connection::Open(Open {
            since_ms,
            heartbeat_ms: FIRST_HEARTBEAT_MS,
            next_heartbeat_ms: now_ms,
            told_progress: None,
            farewell_since_ms: None,
            folder: None,
            waits: self.leaving.is_some() && self.running.is_none(),
        });
        let (running, ended) = (self.running().cloned(), self.ended.clone());
        self.say(Said::Hello(Hello { running, ended, ..self.hello.clone() }));
        if let Some(reason) = self.leaving.clone() {
            self.say(Said::Leaving(Leaving { reason }));
        }
    }

    fn disconnected(&mut self, now_ms: u64) {
        let since_ms = match &self.connection {
            Connection::Dialling { since_ms } => *since_ms,
            Connection::Open(open) => open.since_ms,
            Connection::Apart { .. } | Connection::Over => return,
        };
        if now_ms.saturating_sub(since_ms) > LONGEST_WAIT_MS {
            self.wait_ms = FIRST_WAIT_MS;
        }
        self.connection = Connection::Apart { until_ms: now_ms + self.wait_ms };
        self.wait_ms = (self.wait_ms * 2).min(LONGEST_WAIT_MS);
    }

    fn tick(&mut self, now_ms: u64, still_ms: u64) {
        match &mut self.connection {
            Connection::Apart { until_ms } if *until_ms <= now_ms => {
                self.connection = Connection::Dialling { since_ms: now_ms };
                self.acts.push(Act::Dial);
            }
            Connection::Open(open) if open.next_heartbeat_ms <= now_ms => {
                // After a standstill they go on at their pace instead of being made up for.
                open.next_heartbeat_ms = now_ms + open.heartbeat_ms;
                self.watch_folder(now_ms);
                let running = self.running().cloned();
                self.say(Said::Heartbeat(Heartbeat { running, still_ms }));
            }
            _ => {}
        }
    }

    /// Tells of a look that hangs, and looks again at a folder that could not be used. Not while a task runs here: one that waits
    /// for the folder too goes on when it is back, and one that was told to stop ends first.
    fn watch_folder(&mut self, now_ms: u64) {
        let is_free = self.running.is_none();
        let Connection::Open(Open { folder: Some(folder), heartbeat_ms, .. }) = &mut self.connection else { return };
        match folder.look {
            Look::Goes(since_ms)
                if is_free && !folder.is_bad && now_ms.saturating_sub(since_ms) > LOOK_BEATS * *heartbeat_ms =>
            {
                folder.is_bad = true;
                let seconds = (now_ms - since_ms) / 1000;
                let problem = format!("{} has not answered here for {seconds} s", folder.welcome.artifacts);
                self.say(Said::FolderSeen(FolderSeen { problem }));
            }
            Look::Again(at_ms) if is_free && at_ms <= now_ms => {
                folder.look = Look::Goes(now_ms);
                self.acts.push(Act::LookAtFolder(folder.welcome.clone()));
            }
            _ => {}
        }
    }

    /// Acts on an order.
    fn told(&mut self, now_ms: u64, told: Told) {
        let Connection::Open(open) = &mut self.connection else { return };
        match told {
            Told::Welcome(welcome) => {
                open.heartbeat_ms = u64::from(welcome.heartbeat_ms.max(10));
                open.next_heartbeat_ms = now_ms;
                let folder = Folder { welcome: welcome.clone(), look: Look::Goes(now_ms), is_bad: false };
                open.folder = Some(Box::new(folder));
                self.acts.push(Act::LookAtFolder(welcome));
            }
            Told::Refused(refused) => {
                self.connection = Connection::Over;
                self.acts.push(Act::Refused(refused.reason));
            }
            Told::Run(run) => self.begin(run),
            Told::Peers(peers) => {
                if let Some(running) = self.running_as(peers.task.as_ref())
                    && running.listening.take().is_some()
                {
                    self.acts.push(Act::Meet(peers));
                }
            }
            Told::Stop(stop) => {
                if self.running_as(stop.task.as_ref()).is_some() {
                    self.acts.push(Act::Stop(stop.reason()));
                }
            }
            Told::EndedStored(stored) => {
                if self.ended.as_ref().is_some_and(|ended| ended.task == stored.task) {
                    self.ended = None;
                }
            }
            Told::Drain(_) => {
                self.leaving.get_or_insert_with(|| "it was drained".to_owned());
            }
        }
    }

    fn folder_seen(&mut self, now_ms: u64, problem: String) {
        let is_free = self.running.is_none();
        if let Connection::Open(Open { folder: Some(folder), heartbeat_ms, .. }) = &mut self.connection {
            if problem.is_empty() && folder.is_bad && !is_free {
                // It is told once this worker can take a task.
                folder.look = Look::Again(now_ms);
                return;
            }
            folder.is_bad = !problem.is_empty();
            folder.look = if folder.is_bad { Look::Again(now_ms + LOOK_BEATS * *heartbeat_ms) } else { Look::Over };
        }
        self.say(Said::FolderSeen(FolderSeen { problem }));
        // What was said on an earlier connection may not have arrived.
        if let Some(ready) = self.running.as_ref().and_then(|running| running.listening.clone()) {
            self.say(Said::PeerReady(ready));
        }
    }

    fn begin(&mut self, run: RunTask) {
        let Some(task) = run.task.clone() else { return };
        let busy_with = self.running().cloned();
        // An order that comes twice is one.
        if busy_with.as_ref() == Some(&task) || self.over.as_ref() == Some(&task) {
            return;
        }
        let problem = match (busy_with, &self.leaving) {
            (Some(other), _) => format!("this worker is busy with {}", name(&other)),
            (None, Some(reason)) => format!("this worker leaves: {reason}"),
            (None, None) => {
                self.running = Some(Running { task, listening: None });
                self.acts.push(Act::Begin(run));
                return;
            }
        };
        self.say(Said::Ended(failed(task, problem)));
    }

    fn progressed(&mut self, now_ms: u64, progress: TaskProgress) {
        if let Connection::Open(open) = &mut self.connection {
            // That a work begins, and where, is news however soon it comes.
            let is_due = match &open.told_progress {
                Some((told_ms, task, work)) if Some(task) == progress.task.as_ref() && *work == progress.work => {
                    now_ms.saturating_sub(*told_ms) >= PROGRESS_EVERY_MS
                }
                _ => true,
            };
            if is_due {
                open.told_progress = progress.task.clone().map(|task| (now_ms, task, progress.work.clone()));
                self.say(Said::Progress(progress));
            }
        }
    }

    fn task_ended(&mut self, ended: TaskEnded) {
        self.running = None;
        self.over.clone_from(&ended.task);
        self.ended = Some(ended.clone());
        self.say(Said::Ended(ended));
    }

    /// Takes no new task, and stops the present one with a checkpoint.
    fn stop_asked(&mut self) {
        let reason = "it was told to stop".to_owned();
        self.leaving = Some(reason.clone());
        if self.running.is_some() {
            self.acts.push(Act::Stop(StopReason::Paused));
        } else if let Connection::Open(open) = &mut self.connection {
            open.waits = true;
        }
        self.say(Said::Leaving(Leaving { reason }));
    }

    fn leave_when_done(&mut self, now_ms: u64) {
        if self.leaving.is_none() || self.running.is_some() {
            return;
        }
        let is_done = match &mut self.connection {
            Connection::Open(open) => {
                let since_ms = *open.farewell_since_ms.get_or_insert(now_ms);
                (self.ended.is_none() && !open.waits) || now_ms.saturating_sub(since_ms) >= FAREWELL_MS
            }
            // With nobody to tell, a checkpoint is what matters; it is written by now.
            Connection::Apart { .. } | Connection::Dialling { .. } => true,
            Connection::Over => false,
        };
        if is_done {
            self.connection = Connection::Over;
            self.acts.push(Act::Leave);
        }
    }

    fn running_as(&mut self, task: Option<&TaskRef>) -> Option<&mut Running> {
        self.running.as_mut().filter(|running| Some(&running.task) == task)
    }

    /// Says something if there is anybody to hear it.
    fn say(&mut self, message: Said) {
        if matches!(self.connection, Connection::Open(_)) {
            self.acts.push(Act::Say(message));
        }
    }
}

/// Returns an attempt's name for people.
pub fn name(task: &TaskRef) -> String {
    format!("{}/{}/{} attempt {}", task.run, task.stage, task.task, task.attempt)
}

fn failed(task: TaskRef, problem: String) -> TaskEnded {
    TaskEnded { task: Some(task), how: Some(How::Failed(Failed { problem, infrastructure: true, held: false })) }
}

#[cfg(test)]
mod tests;
