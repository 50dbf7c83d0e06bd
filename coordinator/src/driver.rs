//! The one task that owns the scheduler: receive, apply, save, then do.
//!
//! The inbox is bounded: when it is full, worker streams wait and people's commands are told to come back. Doing waits for
//! the disk and never for a peer: orders go into queues of their connections, and a full one means that worker is lost.

use std::collections::{BTreeMap, HashMap};
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
use crate::scheduler::Scheduler;
use crate::scheduler::event::{Begun, Effect, Event, Refusal, Ticket};
use crate::scheduler::run::Run;
use crate::stage::{self, Context, OracleAddress};
use crate::status::Snapshot;

const RUNS: &str = "runs";
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

pub(crate) struct Driver {
    scheduler: Scheduler,
    store: Store,
    logs: Logs,
    surroundings: Surroundings,
    inbox: mpsc::Receiver<Input>,
    inbox_in: mpsc::Sender<Input>,
    connections: HashMap<String, (String, Outgoing)>,
    contexts: HashMap<String, Context>,
    work: JoinSet<(Ticket, Event)>,
    stops: HashMap<Ticket, CancellationToken>,
    snapshots: watch::Sender<Arc<Snapshot>>,
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
        snapshots: watch::Sender<Arc<Snapshot>>,
    ) -> shared::Result<Driver> {
        let runs = store.scan(RUNS)?.into_iter().collect();
        let driver = Driver {
            scheduler: scheduler(runs),
            store,
            logs,
            surroundings,
            inbox: inbox.1,
            inbox_in: inbox.0,
            connections: HashMap::new(),
            contexts: HashMap::new(),
            work: JoinSet::new(),
            stops: HashMap::new(),
            snapshots,
        };
        // Who asks before anything has happened is told of the runs that are there.
        driver.show();
        Ok(driver)
    }

    /// Shows how things are now to whoever asks.
    fn show(&self) {
        let artifacts = &self.surroundings.artifacts;
        let report = |run: &str| artifacts.join(run).join("report").display().to_string();
        self.snapshots.send_replace(Arc::new(Snapshot::of(&self.scheduler, now_ms(), report)));
    }

    /// Drives until told to stop.
    ///
    /// # Errors
    /// State cannot be saved: nothing may be decided any more.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) -> shared::Result<()> {
        self.happened(Event::Started, None).await?;
        let mut ticks = tokio::time::interval(self.surroundings.heartbeat / 2);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(input) = self.inbox.recv() => self.receive(input).await?,
                Some(done) = self.work.join_next() => {
                    // A panic in a stage is a bug; it ends the process loudly instead of leaving a run that waits.
                    let (ticket, event) = done.expect("stages do not panic");
                    if self.stops.remove(&ticket).is_some() {
                        self.happened(event, None).await?;
                    }
                }
                _ = ticks.tick() => self.happened(Event::Tick, None).await?,
                () = shutdown.cancelled() => break,
            }
        }
        for stop in self.stops.values() {
            stop.cancel();
        }
        self.work.shutdown().await;
        Ok(())
    }

    async fn receive(&mut self, input: Input) -> shared::Result<()> {
        match input {
            Input::Asked { event, answer } => self.happened(event, Some(answer)).await,
            Input::Connected { hello, outgoing } => self.connected(hello, outgoing).await,
            Input::Said { worker, instance, message } => {
                if self.connections.get(&worker).is_none_or(|(own, _)| *own != instance) {
                    return Ok(());
                }
                for event in events(worker, instance, message) {
                    self.happened(event, None).await?;
                }
                Ok(())
            }
            Input::Disconnected { worker, instance } => {
                if self.connections.get(&worker).is_some_and(|(own, _)| *own == instance) {
                    self.connections.remove(&worker);
                    self.happened(Event::WorkerDisconnected { worker, instance }, None).await?;
                }
                Ok(())
            }
            Input::Progressed(event) => self.happened(event, None).await,
        }
    }

    async fn connected(&mut self, hello: Hello, outgoing: Outgoing) -> shared::Result<()> {
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
        self.carry_out(effects, None).await?;
        if !accepted {
            self.connections.remove(&key);
        }
        Ok(())
    }

    async fn happened(
        &mut self,
        event: Event,
        answer: Option<oneshot::Sender<Result<(), Refusal>>>,
    ) -> shared::Result<()> {
        let effects = self.scheduler.apply(now_ms(), event);
        self.carry_out(effects, answer).await
    }

    /// Does what must be done, saving first.
    async fn carry_out(
        &mut self,
        effects: Vec<Effect>,
        mut answer: Option<oneshot::Sender<Result<(), Refusal>>>,
    ) -> shared::Result<()> {
        let saved: Vec<Change> = effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::Save { run } => Some(Change::put(RUNS, run, &self.scheduler.runs()[run])),
                _ => None,
            })
            .collect();
        if !saved.is_empty() {
            self.store.commit(saved).await?;
        }
        self.show();
        for effect in effects {
            match effect {
                Effect::Save { .. } => {}
                Effect::BeginStage { run, stage, ticket } => self.begin_stage(&run, stage, ticket),
                Effect::CarryOutStage { run, stage, ticket } => self.carry_out_stage(&run, stage, ticket),
                Effect::FinishStage { run, stage, ticket, seconds } => {
                    self.finish_stage(&run, stage, ticket, seconds);
                }
                Effect::StopStage { ticket } => {
                    if let Some(stop) = self.stops.remove(&ticket) {
                        stop.cancel();
                    }
                }
                Effect::Send { worker, message } => {
                    let Some((_, connection)) = self.connections.get(&worker) else { continue };
                    if connection.try_send(Ok(ToWorker { message: Some(message) })).is_err() {
                        tracing::warn!(worker, "its connection takes no more orders and is dropped");
                        self.connections.remove(&worker);
                    }
                }
                Effect::Disconnect { worker } => {
                    self.connections.remove(&worker);
                }
                Effect::Log { run, text } => {
                    tracing::info!(run, "{text}");
                    self.logs.append(&run, now_ms(), &text);
                }
                Effect::Reply(reply) => {
                    if let Some(answer) = answer.take() {
                        let _ = answer.send(reply);
                    }
                }
            }
        }
        Ok(())
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
    let heard = Event::WorkerHeard { worker: worker.clone(), instance: instance.clone() };
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
