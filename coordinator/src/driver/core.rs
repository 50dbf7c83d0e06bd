//! What the driver decides: which inputs count, what must be saved, and what is done once it is.
//!
//! No I/O and no clock. Inputs are taken one after the other; then what they change is committed, and only then what they
//! ask for is done, in order. `C` is a connection as orders go in, `A` whoever waits for an answer; both are only passed on.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proto::coordinator::from_worker::Message as Said;
use proto::coordinator::to_worker::Message as Told;
use proto::coordinator::{Hello, PeerReady, Welcome};
use shared::store::Change;

use crate::records::Records;
use crate::scheduler::Scheduler;
use crate::scheduler::event::{Effect, Event, Refusal, StageWork, Ticket};

/// Records that mean nothing any more go so many at a time.
const FORGOTTEN: usize = 256;

/// What there is to decide about.
#[derive(Debug)]
pub(crate) enum Input<C, A> {
    /// Something a person asked for; the answer comes when it is saved.
    Asked {
        event: Event,
        answer: A,
    },
    /// A worker said Hello on a new connection, which has a number of its own.
    Connected {
        hello: Hello,
        connection: u64,
        outgoing: C,
    },
    /// A message on a connection.
    Said {
        worker: String,
        connection: u64,
        message: Said,
    },
    Disconnected {
        worker: String,
        connection: u64,
    },
    /// Work of this process on a stage came back or got further, or time has passed.
    Happened(Event),
}

/// What is done once the changes are saved.
#[derive(Debug)]
pub(crate) enum Act<C, A> {
    Stage(StageWork),
    StopStage {
        ticket: Ticket,
    },
    /// To this connection, whatever the worker has by then.
    Send {
        worker: String,
        connection: u64,
        outgoing: C,
        message: Told,
    },
    /// Dropping it closes the connection.
    HangUp {
        outgoing: C,
    },
    Log {
        run: String,
        text: String,
    },
    Answer {
        answer: A,
        reply: Result<(), Refusal>,
    },
}

/// The scheduler, the connections of its workers, and what was decided and is not done yet.
pub(crate) struct Core<C, A> {
    scheduler: Scheduler,
    records: Records,
    /// Sent to workers that join.
    welcome: Welcome,
    connections: HashMap<String, Connection<C>>,
    /// Runs that are to be saved, with tasks of theirs, by stage.
    unsaved: BTreeMap<String, BTreeSet<(usize, usize)>>,
    acts: Vec<Act<C, A>>,
}

struct Connection<C> {
    number: u64,
    instance: String,
    outgoing: C,
}

impl<C: Clone, A> Core<C, A> {
    /// Begins without connections. `records` are those that the scheduler's runs were read from.
    pub(crate) fn new(scheduler: Scheduler, records: Records, welcome: Welcome) -> Core<C, A> {
        Core { scheduler, records, welcome, connections: HashMap::new(), unsaved: BTreeMap::new(), acts: Vec::new() }
    }

    pub(crate) fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// Returns what must be committed before anything is done of what the inputs so far ask for.
    pub(crate) fn changes(&mut self) -> Vec<Change> {
        let mut changes: Vec<Change> = Vec::new();
        for (run, tasks) in std::mem::take(&mut self.unsaved) {
            changes.extend(self.records.changes(&run, &self.scheduler.runs()[&run], &tasks));
        }
        changes.extend(self.records.obsolete(FORGOTTEN));
        changes
    }

    /// Returns what is to be done, in order, now that all changes are on the disk.
    pub(crate) fn acts(&mut self) -> Vec<Act<C, A>> {
        std::mem::take(&mut self.acts)
    }

    /// Decides about one thing.
    pub(crate) fn take(&mut self, now_ms: u64, input: Input<C, A>) {
        match input {
            Input::Asked { event, answer } => self.apply(now_ms, event, Some(answer)),
            Input::Connected { hello, connection, outgoing } => self.connected(now_ms, hello, connection, outgoing),
            Input::Said { worker, connection, message } => {
                // What an earlier connection still brings is stale: the worker has said Hello again since.
                let Some(instance) = self.instance(&worker, connection) else { return };
                for event in events(worker, instance, message) {
                    self.apply(now_ms, event, None);
                }
            }
            Input::Disconnected { worker, connection } => {
                let Some(instance) = self.instance(&worker, connection) else { return };
                self.hang_up(&worker);
                self.apply(now_ms, Event::WorkerDisconnected { worker, instance }, None);
            }
            Input::Happened(event) => self.apply(now_ms, event, None),
        }
    }

    /// Returns which process speaks on a connection, if it is the worker's present one.
    fn instance(&self, worker: &str, connection: u64) -> Option<String> {
        let own = self.connections.get(worker).filter(|own| own.number == connection)?;
        Some(own.instance.clone())
    }

    fn connected(&mut self, now_ms: u64, hello: Hello, number: u64, outgoing: C) {
        let (name, instance) = (hello.name.clone(), hello.instance.clone());
        let is_overtaken = |own: &Connection<C>| own.instance == instance && own.number > number;
        if self.connections.get(&name).is_some_and(is_overtaken) {
            // The process has dialled again since.
            self.acts.push(Act::HangUp { outgoing });
            return;
        }
        let effects = self.scheduler.apply(now_ms, Event::WorkerHello { hello });
        let accepted = self.scheduler.workers().get(&name).is_some_and(|worker| worker.hello.instance == instance);
        let key = if accepted { name } else { format!("{name}@{instance}") };
        if accepted {
            // An earlier connection is dropped with its queue.
            self.hang_up(&key);
            let message = Told::Welcome(self.welcome.clone());
            self.acts.push(Act::Send { worker: key.clone(), connection: number, outgoing: outgoing.clone(), message });
        }
        self.connections.insert(key.clone(), Connection { number, instance, outgoing });
        self.decided(effects, None);
        if !accepted {
            self.hang_up(&key);
        }
    }

    fn hang_up(&mut self, worker: &str) {
        if let Some(own) = self.connections.remove(worker) {
            self.acts.push(Act::HangUp { outgoing: own.outgoing });
        }
    }

    fn apply(&mut self, now_ms: u64, event: Event, answer: Option<A>) {
        let effects = self.scheduler.apply(now_ms, event);
        self.decided(effects, answer);
    }

    /// Notes what is to be saved, and what to do then. Orders are for the connections as they are now.
    fn decided(&mut self, effects: Vec<Effect>, mut answer: Option<A>) {
        for effect in effects {
            let act = match effect {
                Effect::Save { run, tasks } => {
                    self.unsaved.entry(run).or_default().extend(tasks);
                    continue;
                }
                Effect::Stage(work) => Act::Stage(work),
                Effect::StopStage { ticket } => Act::StopStage { ticket },
                Effect::Send { worker, message } => {
                    // Whoever is away is told what matters when it says Hello again.
                    let Some(own) = self.connections.get(&worker) else { continue };
                    Act::Send { connection: own.number, outgoing: own.outgoing.clone(), worker, message }
                }
                Effect::Disconnect { worker } => {
                    self.hang_up(&worker);
                    continue;
                }
                Effect::Log { run, text } => Act::Log { run, text },
                Effect::Reply(reply) => match answer.take() {
                    Some(answer) => Act::Answer { answer, reply },
                    None => continue,
                },
            };
            self.acts.push(act);
        }
    }
}

/// Returns what a worker's message means.
fn events(worker: String, instance: String, message: Said) -> Vec<Event> {
    let still_ms = if let Said::Heartbeat(beat) = &message { beat.still_ms } else { 0 };
    let heard = Event::WorkerHeard { worker: worker.clone(), instance: instance.clone(), still_ms };
    let meant = match message {
        Said::Hello(_) | Said::Heartbeat(_) => None,
        Said::FolderSeen(seen) => Some(Event::WorkerFolderSeen { worker, instance, problem: seen.problem }),
        Said::PeerReady(PeerReady { task, address, nccl_id }) => {
            task.map(|task| Event::PeerReady { worker, task, address, nccl_id })
        }
        Said::Progress(progress) => Some(Event::TaskProgressed { worker, progress }),
        Said::Ended(ended) => Some(Event::TaskEnded { worker, ended }),
        Said::Leaving(leaving) => Some(Event::WorkerLeaving { worker, instance, reason: leaving.reason }),
    };
    std::iter::once(heard).chain(meant).collect()
}
