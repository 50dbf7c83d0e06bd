//! The one task that owns the scheduler: receive, decide, save, then do.
//!
//! What has come by the time one thing is done is decided together and saved in one commit, so that many workers cost as few
//! syncs as the disk can do. Nothing of it is done before that. What is decided is [`core`]'s.
//!
//! The inbox is bounded: when it is full, worker streams wait and people's commands are told to come back. Doing waits for
//! the disk and never for a peer: orders go into queues of their connections, and a full one means that worker is lost.

pub(crate) mod core;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use proto::coordinator::{ToWorker, Welcome};
use shared::store::Store;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::logs::Logs;
use crate::records::{Found, Records};
use crate::scheduler::Scheduler;
use crate::scheduler::event::{Begun, Event, Refusal, StageWork, Ticket};
use crate::scheduler::run::Run;
use crate::stage::{self, Context, OracleAddress};
use crate::status::Snapshot;

/// Inputs that are decided together at most.
const BATCH: usize = 1024;
/// Changes in a commit at most: a store takes fewer than 65 536. More than that is read from an earlier version's state, once.
const COMMIT: usize = 50_000;
/// Orders that wait for a slow connection at most.
const OUTGOING: usize = 64;

/// What reaches the driver.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all are the large one")]
pub(crate) enum Input {
    /// There is something to decide.
    Decide(Decide),
    /// Someone wants to know how things are.
    Looked { answer: oneshot::Sender<Arc<Snapshot>> },
}

/// What there is to decide about.
pub(crate) type Decide = core::Input<Outgoing, Answer>;

/// A worker's connection, as orders go in.
pub(crate) type Outgoing = mpsc::Sender<Result<ToWorker, tonic::Status>>;
/// Whoever waits until what was asked for is saved.
pub(crate) type Answer = oneshot::Sender<Result<(), Refusal>>;

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

pub(crate) struct Driver {
    core: core::Core<Outgoing, Answer>,
    store: Store,
    logs: Logs,
    surroundings: Surroundings,
    inbox: mpsc::Receiver<Input>,
    inbox_in: mpsc::Sender<Input>,
    contexts: HashMap<String, Context>,
    work: JoinSet<(Ticket, Event)>,
    stops: HashMap<Ticket, CancellationToken>,
    /// Who wants to know how things are once what was decided is done.
    looks: Vec<oneshot::Sender<Arc<Snapshot>>>,
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
        let (file, content) = &surroundings.probe;
        let welcome = Welcome {
            heartbeat_ms: surroundings.heartbeat.as_millis() as u32,
            artifacts: surroundings.artifacts.display().to_string(),
            probe_file: file.display().to_string(),
            probe_content: content.clone(),
        };
        Ok(Driver {
            core: core::Core::new(scheduler(runs), records, welcome),
            store,
            logs,
            surroundings,
            inbox: inbox.1,
            inbox_in: inbox.0,
            contexts: HashMap::new(),
            work: JoinSet::new(),
            stops: HashMap::new(),
            looks: Vec::new(),
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
        self.decide(Decide::Happened(Event::Started));
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
                        self.decide(Decide::Happened(event));
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
                self.decide(Decide::Happened(Event::Tick));
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
            Input::Decide(input) => self.decide(input),
            Input::Looked { answer } => self.looks.push(answer),
        }
    }

    fn decide(&mut self, input: Decide) {
        self.has_changed = true;
        self.core.take(now_ms(), input);
    }

    /// Saves what was decided, then does it.
    async fn carry_out(&mut self) -> shared::Result<()> {
        let mut changes = self.core.changes();
        while !changes.is_empty() {
            let rest = changes.split_off(changes.len().min(COMMIT));
            self.store.commit(std::mem::replace(&mut changes, rest)).await?;
        }
        if std::mem::take(&mut self.has_changed) {
            self.changes.send_modify(|version| *version += 1);
        }
        let mut lines: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for act in self.core.acts() {
            self.act(act, &mut lines);
        }
        for (run, lines) in lines {
            self.logs.append(&run, now_ms(), &lines);
        }
        for look in std::mem::take(&mut self.looks) {
            let _ = look.send(self.snapshot());
        }
        Ok(())
    }

    fn act(&mut self, act: core::Act<Outgoing, Answer>, lines: &mut BTreeMap<String, Vec<String>>) {
        use core::Act;
        match act {
            Act::Stage(work) => self.work_on(work),
            Act::StopStage { ticket } => {
                if let Some(stop) = self.stops.remove(&ticket) {
                    stop.cancel();
                }
            }
            Act::Send { worker, connection, outgoing, message } => {
                if outgoing.try_send(Ok(ToWorker { message: Some(message) })).is_err() {
                    tracing::warn!(worker, "its connection takes no more orders and is dropped");
                    self.decide(Decide::Disconnected { worker, connection });
                }
            }
            Act::HangUp { outgoing } => drop(outgoing),
            Act::Log { run, text } => {
                tracing::info!(run, "{text}");
                lines.entry(run).or_default().push(text);
            }
            Act::Answer { answer, reply } => {
                let _ = answer.send(reply);
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
        let snapshot = Arc::new(Snapshot::of(self.core.scheduler(), now_ms(), report));
        self.shown = Some((version, snapshot.clone()));
        snapshot
    }

    /// Returns what a run's stages need, reading its file again where this process has not yet.
    fn context(&mut self, run: &str) -> Result<Context, String> {
        let Run { plan, source, submitted_ms, .. } = &self.core.scheduler().runs()[run];
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

    /// Begins a piece of work for a stage; its event comes back under its ticket, unless that is stopped before.
    fn work_on(&mut self, work: StageWork) {
        let (ticket, stop) = (work.ticket(), CancellationToken::new());
        self.stops.insert(ticket, stop.clone());
        match work {
            StageWork::Begin { run, stage, .. } => {
                let context = self.context(&run);
                self.work.spawn_blocking(move || {
                    let begun = context.and_then(|context| stage::begin(&context, stage).map_err(|e| e.to_string()));
                    let begun = begun.map(|begun| match begun {
                        stage::Begun::Done(outcome) => Begun::Done(outcome),
                        stage::Begun::Todo(tasks) => Begun::Todo(tasks),
                    });
                    (ticket, Event::StageBegun { ticket, begun })
                });
            }
            StageWork::CarryOut { run, stage, .. } => {
                let context = self.context(&run);
                let inbox = self.inbox_in.clone();
                self.work.spawn(async move {
                    let progress = move |progress| {
                        // Progress may be left out when there is much to do.
                        let event = Event::StageProgressed { ticket, progress };
                        let _ = inbox.try_send(Input::Decide(Decide::Happened(event)));
                    };
                    let done = match context {
                        Ok(context) => {
                            stage::carry_out(&context, stage, &progress, stop).await.map_err(|e| e.to_string())
                        }
                        Err(problem) => Err(problem),
                    };
                    (ticket, Event::StageCarriedOut { ticket, done })
                });
            }
            StageWork::Finish { run, stage, seconds, .. } => {
                let context = self.context(&run);
                self.work.spawn_blocking(move || {
                    let finish = |context| stage::finish(&context, stage, seconds).map_err(|e| e.to_string());
                    (ticket, Event::StageFinished { ticket, done: context.and_then(finish) })
                });
            }
        }
    }
}

pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
