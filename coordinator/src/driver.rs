//! The one task that owns the scheduler: receive, apply, save, then do.
//!
//! What has come by the time one thing is done is decided together and saved in one commit, so that many workers cost as few
//! syncs as the disk can do. Nothing of it is done before that.
//!
//! The inbox is bounded: when it is full, worker streams wait and people's commands are told to come back. Doing waits for
//! the disk and never for a peer: orders go into queues of their connections, and a full one means that worker is lost.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use proto::coordinator::from_worker::Message as Said;
use proto::coordinator::to_worker::Message as Told;
use proto::coordinator::{Hello, ToWorker, Welcome};
use shared::store::{Change, Store};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::logs::Logs;
use crate::records::{Found, Records};
use crate::scheduler::Scheduler;
use crate::scheduler::event::{Begun, Effect, Event, Refusal, Ticket};
use crate::scheduler::run::Run;
use crate::stage::{self, Context, OracleAddress};
use crate::status::Snapshot;

/// Inputs that are decided together at most.
const BATCH: usize = 1024;
/// Records that mean nothing any more go so many at a time.
const FORGOTTEN: usize = 256;
/// Changes in a commit at most: a store takes fewer than 65 536. More than that is read from an earlier version's state, once.
const COMMIT: usize = 50_000;
/// Orders that wait for a slow connection at most.
const OUTGOING: usize = 64;

/// What reaches the driver.
#[derive(Debug)]
pub(crate) enum Input {
    /// Something a person asked for; the answer comes when it is saved.
    Asked {
        event: Event,
        answer: oneshot::Sender<Result<(), Refusal>>,
    },
    /// Someone wants to know how things are.
    Looked {
        answer: oneshot::Sender<Arc<Snapshot>>,
    },
    /// A worker said Hello; `outgoing` is its connection.
    Connected {
        hello: Hello,
        outgoing: Outgoing,
    },
    /// A message on a connection.
    Said {
        worker: String,
        instance: String,
        message: Said,
    },
    Disconnected {
        worker: String,
        instance: String,
    },
    /// How far a stage in this process is.
    Progressed(Event),
}

/// A worker's connection, as orders go in.
pub(crate) type Outgoing = mpsc::Sender<Result<ToWorker, tonic::Status>>;

/// Returns the queue of a connection.
pub(crate) fn outgoing() -> (Outgoing, mpsc::Receiver<Result<ToWorker, tonic::Status>>) {
    mpsc::channel(OUTGOING)
}

/// What the driver works with.
pub(crate) struct Surroundings {
    pub(crate) artifacts: PathBuf,
    pub(crate) oracle: Option<OracleAddress>,
    pub(crate) heartbeat: Duration,
    /// A file that workers must see, and what it says.
    pub(crate) probe: (PathBuf, String),
}

/// What is done once what was decided is saved, in order.
enum Todo {
    Do(Effect),
    /// To a connection, whatever the worker has by then.
    Tell {
        worker: String,
        connection: Outgoing,
        message: Told,
    },
    Close(Outgoing),
    Answer(oneshot::Sender<Result<(), Refusal>>, Result<(), Refusal>),
    Show(oneshot::Sender<Arc<Snapshot>>),
}

pub(crate) struct Driver {
    scheduler: Scheduler,
    store: Store,
    records: Records,
    logs: Logs,
    surroundings: Surroundings,
    inbox: mpsc::Receiver<Input>,
    inbox_in: mpsc::Sender<Input>,
    connections: HashMap<String, (String, Outgoing)>,
    contexts: HashMap<String, Context>,
    work: JoinSet<(Ticket, Event)>,
    stops: HashMap<Ticket, CancellationToken>,
    /// Runs that are to be saved, with tasks of theirs, by stage.
    unsaved: BTreeMap<String, BTreeSet<(usize, usize)>>,
    todo: Vec<Todo>,
    /// Something happened that is not counted in `changes` yet.
    has_changed: bool,
    /// Counts what may have changed, for those who look.
    changes: watch::Sender<u64>,
    /// The last copy that someone wanted, and what it is of.
    shown: Option<(u64, Arc<Snapshot>)>,
}

impl Driver {
    /// Loads what was saved.
    ///
    /// # Errors
    /// The store holds what this version does not understand.
    pub(crate) fn new(
        store: Store,
        logs: Logs,
        surroundings: Surroundings,
        scheduler: impl FnOnce(BTreeMap<String, Run>) -> Scheduler,
        inbox: (mpsc::Sender<Input>, mpsc::Receiver<Input>),
        changes: watch::Sender<u64>,
    ) -> shared::Result<Driver> {
        let (records, runs) = Records::load(Found::read(&store)?)?;
        Ok(Driver {
            scheduler: scheduler(runs),
            store,
            records,
            logs,
            surroundings,
            inbox: inbox.1,
            inbox_in: inbox.0,
            connections: HashMap::new(),
            contexts: HashMap::new(),
            work: JoinSet::new(),
            stops: HashMap::new(),
            unsaved: BTreeMap::new(),
            todo: Vec::new(),
            has_changed: true,
            changes,
            shown: None,
        })
    }

    /// Drives until told to stop.
    ///
    /// # Errors
    /// State cannot be saved: nothing may be decided any more.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) -> shared::Result<()> {
        self.happened(Event::Started, None);
        self.carry_out().await?;
        let mut ticks = tokio::time::interval(self.surroundings.heartbeat / 2);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let mut is_tick = false;
            tokio::select! {
                Some(input) = self.inbox.recv() => self.receive(input),
                Some(done) = self.work.join_next() => {
                    // A panic in a stage is a bug; it ends the process loudly instead of leaving a run that waits.
                    let (ticket, event) = done.expect("stages do not panic");
                    if self.stops.remove(&ticket).is_some() {
                        self.happened(event, None);
                    }
                }
                _ = ticks.tick() => is_tick = true,
                () = shutdown.cancelled() => break,
            }
            // What else has come is decided with it and saved in the same commit.
            for _ in 1..BATCH {
                let Ok(input) = self.inbox.try_recv() else { break };
                self.receive(input);
            }
            if is_tick {
                // After what workers have said: who has spoken is not lost.
                self.happened(Event::Tick, None);
            }
            self.carry_out().await?;
        }
        for stop in self.stops.values() {
            stop.cancel();
        }
        self.work.shutdown().await;
        Ok(())
    }

    fn receive(&mut self, input: Input) {
        match input {
            Input::Asked { event, answer } => self.happened(event, Some(answer)),
            Input::Looked { answer } => self.todo.push(Todo::Show(answer)),
            Input::Connected { hello, outgoing } => self.connected(hello, outgoing),
            Input::Said { worker, instance, message } => {
                if self.connections.get(&worker).is_some_and(|(own, _)| *own == instance) {
                    for event in events(worker, instance, message) {
                        self.happened(event, None);
                    }
                }
            }
            Input::Disconnected { worker, instance } => {
                if self.connections.get(&worker).is_some_and(|(own, _)| *own == instance) {
                    self.connections.remove(&worker);
                    self.happened(Event::WorkerDisconnected { worker, instance }, None);
                }
            }
            Input::Progressed(event) => self.happened(event, None),
        }
    }

    fn connected(&mut self, hello: Hello, outgoing: Outgoing) {
        let (name, instance) = (hello.name.clone(), hello.instance.clone());
        let effects = self.scheduler.apply(now_ms(), Event::WorkerHello { hello });
        let accepted = self.scheduler.workers().get(&name).is_some_and(|worker| worker.hello.instance == instance);
        let key = if accepted { name } else { format!("{name}@{instance}") };
        if accepted {
            let (file, content) = &self.surroundings.probe;
            let welcome = Welcome {
                heartbeat_ms: self.surroundings.heartbeat.as_millis() as u32,
                artifacts: self.surroundings.artifacts.display().to_string(),
                probe_file: file.display().to_string(),
                probe_content: content.clone(),
            };
            let _ = outgoing.try_send(Ok(ToWorker { message: Some(Told::Welcome(welcome)) }));
        }
        // An earlier connection of the same process is dropped with its queue.
        self.connections.insert(key.clone(), (instance, outgoing));
        self.decided(effects, None);
        if !accepted {
            self.connections.remove(&key);
        }
    }

    fn happened(&mut self, event: Event, answer: Option<oneshot::Sender<Result<(), Refusal>>>) {
        let effects = self.scheduler.apply(now_ms(), event);
        self.decided(effects, answer);
    }

    /// Notes what is to be saved, and what to do then. Orders are for the connections as they are now.
    fn decided(&mut self, effects: Vec<Effect>, mut answer: Option<oneshot::Sender<Result<(), Refusal>>>) {
        self.has_changed = true;
        for effect in effects {
            let todo = match effect {
                Effect::Save { run, tasks } => {
                    self.unsaved.entry(run).or_default().extend(tasks);
                    continue;
                }
                Effect::Send { worker, message } => {
                    let Some((_, connection)) = self.connections.get(&worker) else { continue };
                    Todo::Tell { connection: connection.clone(), worker, message }
                }
                Effect::Disconnect { worker } => match self.connections.remove(&worker) {
                    Some((_, connection)) => Todo::Close(connection),
                    None => continue,
                },
                Effect::Reply(reply) => match answer.take() {
                    Some(answer) => Todo::Answer(answer, reply),
                    None => continue,
                },
                other => Todo::Do(other),
            };
            self.todo.push(todo);
        }
    }

    /// Saves what was decided, then does it.
    async fn carry_out(&mut self) -> shared::Result<()> {
        let mut saved: Vec<Change> = Vec::new();
        for (run, tasks) in std::mem::take(&mut self.unsaved) {
            saved.extend(self.records.changes(&run, &self.scheduler.runs()[&run], &tasks));
        }
        saved.extend(self.records.obsolete(FORGOTTEN));
        while !saved.is_empty() {
            let rest = saved.split_off(saved.len().min(COMMIT));
            self.store.commit(std::mem::replace(&mut saved, rest)).await?;
        }
        if std::mem::take(&mut self.has_changed) {
            self.changes.send_modify(|version| *version += 1);
        }
        let mut lines: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for todo in std::mem::take(&mut self.todo) {
            match todo {
                Todo::Do(effect) => self.act(effect, &mut lines),
                Todo::Tell { worker, connection, message } => {
                    if connection.try_send(Ok(ToWorker { message: Some(message) })).is_err() {
                        tracing::warn!(worker, "its connection takes no more orders and is dropped");
                        if self.connections.get(&worker).is_some_and(|(_, own)| own.same_channel(&connection)) {
                            self.connections.remove(&worker);
                        }
                    }
                }
                Todo::Close(connection) => drop(connection),
                Todo::Answer(answer, reply) => {
                    let _ = answer.send(reply);
                }
                Todo::Show(answer) => {
                    let _ = answer.send(self.snapshot());
                }
            }
        }
        for (run, lines) in lines {
            self.logs.append(&run, now_ms(), &lines);
        }
        Ok(())
    }

    fn act(&mut self, effect: Effect, lines: &mut BTreeMap<String, Vec<String>>) {
        match effect {
            Effect::BeginStage { run, stage, ticket } => self.begin_stage(&run, stage, ticket),
            Effect::CarryOutStage { run, stage, ticket } => self.carry_out_stage(&run, stage, ticket),
            Effect::FinishStage { run, stage, ticket, seconds } => self.finish_stage(&run, stage, ticket, seconds),
            Effect::StopStage { ticket } => {
                if let Some(stop) = self.stops.remove(&ticket) {
                    stop.cancel();
                }
            }
            Effect::Log { run, text } => {
                tracing::info!(run, "{text}");
                lines.entry(run).or_default().push(text);
            }
            Effect::Save { .. } | Effect::Send { .. } | Effect::Disconnect { .. } | Effect::Reply(_) => {
                unreachable!("what was decided was sorted")
            }
        }
    }

    /// Returns how things are now; a copy is made where something has changed since the last.
    fn snapshot(&mut self) -> Arc<Snapshot> {
        let version = *self.changes.borrow();
        if let Some((_, snapshot)) = self.shown.as_ref().filter(|(of, _)| *of == version) {
            return snapshot.clone();
        }
        let artifacts = &self.surroundings.artifacts;
        let report = |run: &str| artifacts.join(run).join("report").display().to_string();
        let snapshot = Arc::new(Snapshot::of(&self.scheduler, now_ms(), report));
        self.shown = Some((version, snapshot.clone()));
        snapshot
    }

    /// Returns what a run's stages need, reading its file again where this process has not yet.
    fn context(&mut self, run: &str) -> Result<Context, String> {
        let Run { plan, source, submitted_ms, .. } = &self.scheduler.runs()[run];
        // Another submission may have other settings and the same plan.
        if let Some(context) = self.contexts.get(run)
            && context.incarnation == *submitted_ms
        {
            return Ok(context.clone());
        }
        let folder = PathBuf::from(&source.folder);
        let file = crate::run_file::parse(&source.text, &source.file, &folder, &source.set)
            .map_err(|problems| problems.join("; "))?;
        let context = Context {
            run_dir: self.surroundings.artifacts.join(run),
            file: Arc::new(file),
            plan: Arc::new(plan.clone()),
            oracle: self.surroundings.oracle.clone(),
            incarnation: *submitted_ms,
        };
        self.contexts.insert(run.to_owned(), context.clone());
        Ok(context)
    }

    fn begin_stage(&mut self, run: &str, stage: usize, ticket: Ticket) {
        let context = self.context(run);
        self.stops.insert(ticket, CancellationToken::new());
        self.work.spawn_blocking(move || {
            let begun = context.and_then(|context| stage::begin(&context, stage).map_err(|error| error.to_string()));
            let begun = begun.map(|begun| match begun {
                stage::Begun::Done(outcome) => Begun::Done(outcome),
                stage::Begun::Todo(tasks) => Begun::Todo(tasks),
            });
            (ticket, Event::StageBegun { ticket, begun })
        });
    }

    fn carry_out_stage(&mut self, run: &str, stage: usize, ticket: Ticket) {
        let context = self.context(run);
        let stop = CancellationToken::new();
        self.stops.insert(ticket, stop.clone());
        let inbox = self.inbox_in.clone();
        self.work.spawn(async move {
            let progress = move |progress| {
                // Progress may be left out when there is much to do.
                let _ = inbox.try_send(Input::Progressed(Event::StageProgressed { ticket, progress }));
            };
            let done = match context {
                Ok(context) => {
                    stage::carry_out(&context, stage, &progress, stop).await.map_err(|error| error.to_string())
                }
                Err(problem) => Err(problem),
            };
            (ticket, Event::StageCarriedOut { ticket, done })
        });
    }

    fn finish_stage(&mut self, run: &str, stage: usize, ticket: Ticket, seconds: f64) {
        let context = self.context(run);
        self.stops.insert(ticket, CancellationToken::new());
        self.work.spawn_blocking(move || {
            let done =
                context.and_then(|context| stage::finish(&context, stage, seconds).map_err(|error| error.to_string()));
            (ticket, Event::StageFinished { ticket, done })
        });
    }
}

/// Returns what a worker's message means.
fn events(worker: String, instance: String, message: Said) -> Vec<Event> {
    let still_ms = if let Said::Heartbeat(beat) = &message { beat.still_ms } else { 0 };
    let heard = Event::WorkerHeard { worker: worker.clone(), instance: instance.clone(), still_ms };
    let meant = match message {
        Said::Hello(_) | Said::Heartbeat(_) => None,
        Said::FolderSeen(seen) => Some(Event::WorkerFolderSeen { worker, instance, problem: seen.problem }),
        Said::PeerReady(ready) => ready.task.map(|task| Event::PeerReady { worker, task, address: ready.address }),
        Said::Progress(progress) => Some(Event::TaskProgressed { worker, progress }),
        Said::Ended(ended) => Some(Event::TaskEnded { worker, ended }),
        Said::Leaving(leaving) => Some(Event::WorkerLeaving { worker, instance, reason: leaving.reason }),
    };
    std::iter::once(heard).chain(meant).collect()
}

pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
