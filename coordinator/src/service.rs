//! The coordinator's gRPC services: take a request apart, ask the driver, answer.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::Stream;
use proto::coordinator::from_worker::Message as Said;
use proto::coordinator::runs_server::Runs;
use proto::coordinator::to_worker::Message as Told;
use proto::coordinator::workers_server::Workers;
use proto::coordinator::{
    DrainWorkerRequest, FromWorker, Hello, ListWorkersReply, ListWorkersRequest, LogLine, LogsRequest, Refused,
    RunName, RunStatus, StatusReply, StatusRequest, SubmitReply, SubmitRequest, ToWorker, WatchRequest, WorkerStatus,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::driver::{Decide, Input, outgoing};
use crate::logs::Logs;
use crate::scheduler::event::{Event, Refusal, Source};
use crate::status::Snapshot;

/// A worker must say Hello within so long.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);
const LOG_POLL: Duration = Duration::from_millis(200);
/// A watcher is shown at most so many states: a busy run has thousands a second.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Answers people and workers; clones share one driver.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) inbox: mpsc::Sender<Input>,
    /// Tells that something may have changed.
    pub(crate) changes: watch::Receiver<u64>,
    pub(crate) logs: Logs,
    /// The one run that is driven here.
    pub(crate) only: Option<String>,
    /// Numbers workers' connections: two of the same process are told apart.
    pub(crate) connections: Arc<AtomicU64>,
}

type Answer<T> = Result<Response<T>, Status>;
type Outbound<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Service {
    /// Asks the driver for something and waits until it is saved.
    async fn ask(&self, event: Event) -> Result<(), Status> {
        let (answer, answered) = oneshot::channel();
        self.inbox
            .try_send(Input::Decide(Decide::Asked { event, answer }))
            .map_err(|_| Status::resource_exhausted("the coordinator is busy; try again"))?;
        let answered = answered.await.map_err(|_| Status::unavailable("the coordinator is shutting down"))?;
        answered.map_err(|refusal| match refusal {
            Refusal::NotFound(problem) => Status::not_found(problem),
            Refusal::NotNow(problem) => Status::failed_precondition(problem),
        })
    }

    /// Asks the driver how things are, when all before it is saved.
    async fn look(&self) -> Result<Arc<Snapshot>, Status> {
        let shutting_down = || Status::unavailable("the coordinator is shutting down");
        let (answer, answered) = oneshot::channel();
        self.inbox.send(Input::Looked { answer }).await.map_err(|_| shutting_down())?;
        answered.await.map_err(|_| shutting_down())
    }

    async fn run(&self, name: &str) -> Result<RunStatus, Status> {
        let snapshot = self.look().await?;
        snapshot.run(name).cloned().ok_or_else(|| {
            let known: Vec<&str> = snapshot.runs.iter().map(|run| run.run.as_str()).collect();
            let known = if known.is_empty() { "none yet".to_owned() } else { known.join(", ") };
            Status::not_found(format!("there is no run {name:?}; runs: {known}"))
        })
    }

    async fn ask_about(&self, name: String, event: impl FnOnce(String) -> Event) -> Answer<RunStatus> {
        self.ask(event(name.clone())).await?;
        self.run(&name).await.map(Response::new)
    }
}

#[tonic::async_trait]
impl Runs for Service {
    async fn submit(&self, request: Request<SubmitRequest>) -> Answer<SubmitReply> {
        let SubmitRequest { text, file, folder, set } = request.into_inner();
        let parsed = crate::run_file::parse(&text, &file, std::path::Path::new(&folder), &set);
        let parsed = match parsed {
            Ok(parsed) => parsed,
            Err(problems) => return Ok(Response::new(SubmitReply { run: None, problems })),
        };
        let plan = crate::run_file::plan(&parsed);
        let name = plan.run.clone();
        if let Some(only) = self.only.as_ref().filter(|only| **only != name) {
            let problem = format!("this coordinator belongs to a local run of {only} and drives no other");
            return Err(Status::failed_precondition(problem));
        }
        self.ask(Event::RunSubmitted { plan, source: Source { text, file, folder, set } }).await?;
        Ok(Response::new(SubmitReply { run: Some(self.run(&name).await?), problems: Vec::new() }))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusReply> {
        let name = request.into_inner().run;
        let runs = if name.is_empty() { self.look().await?.runs.clone() } else { vec![self.run(&name).await?] };
        Ok(Response::new(StatusReply { runs }))
    }

    type WatchStream = Outbound<RunStatus>;

    async fn watch(&self, request: Request<WatchRequest>) -> Answer<Self::WatchStream> {
        let name = request.into_inner().run;
        let mut changes = self.changes.clone();
        let mut last = self.run(&name).await?;
        let service = self.clone();
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(async move {
            let mut ended = last.ended_ms.is_some();
            if sender.send(Ok(last.clone())).await.is_err() {
                return;
            }
            while !ended && changes.changed().await.is_ok() {
                tokio::time::sleep(LOOK_EVERY).await;
                let Ok(snapshot) = service.look().await else { return };
                let now = snapshot.run(&name).cloned();
                let Some(now) = now.filter(|now| *now != last) else { continue };
                ended = now.ended_ms.is_some();
                last = now.clone();
                if sender.send(Ok(now)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    type LogsStream = Outbound<LogLine>;

    async fn logs(&self, request: Request<LogsRequest>) -> Answer<Self::LogsStream> {
        let LogsRequest { run, follow } = request.into_inner();
        self.run(&run).await?;
        let service = self.clone();
        let (sender, receiver) = mpsc::channel(64);
        tokio::spawn(async move {
            let mut from = 0;
            loop {
                // Looked at before reading, so that the last lines are not missed.
                let ended = service.run(&run).await.map_or(true, |status| status.ended_ms.is_some());
                let (lines, next) = service.logs.read(&run, from);
                from = next;
                for line in lines {
                    if sender.send(Ok(LogLine { at_ms: line.at_ms, text: line.text })).await.is_err() {
                        return;
                    }
                }
                if ended || !follow {
                    return;
                }
                tokio::time::sleep(LOG_POLL).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn cancel(&self, request: Request<RunName>) -> Answer<RunStatus> {
        self.ask_about(request.into_inner().run, |run| Event::CancelAsked { run }).await
    }

    async fn pause(&self, request: Request<RunName>) -> Answer<RunStatus> {
        self.ask_about(request.into_inner().run, |run| Event::PauseAsked { run }).await
    }

    async fn resume(&self, request: Request<RunName>) -> Answer<RunStatus> {
        self.ask_about(request.into_inner().run, |run| Event::ResumeAsked { run }).await
    }

    async fn list_workers(&self, _: Request<ListWorkersRequest>) -> Answer<ListWorkersReply> {
        Ok(Response::new(ListWorkersReply { workers: self.look().await?.workers.clone() }))
    }

    async fn drain_worker(&self, request: Request<DrainWorkerRequest>) -> Answer<WorkerStatus> {
        let name = request.into_inner().name;
        self.ask(Event::DrainAsked { worker: name.clone() }).await?;
        let snapshot = self.look().await?;
        let worker = snapshot.workers.iter().find(|worker| worker.name == name).cloned();
        worker.map(Response::new).ok_or_else(|| Status::not_found(format!("there is no worker {name}")))
    }
}

#[tonic::async_trait]
impl Workers for Service {
    type LinkStream = Outbound<ToWorker>;

    async fn link(&self, request: Request<Streaming<FromWorker>>) -> Answer<Self::LinkStream> {
        let mut incoming = request.into_inner();
        let (orders, receiver) = outgoing();
        let inbox = self.inbox.clone();
        let connection = self.connections.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            let first = tokio::time::timeout(HELLO_DEADLINE, incoming.message()).await;
            let Ok(Ok(Some(FromWorker { message: Some(Said::Hello(hello)) }))) = first else {
                let _ = orders.send(Err(Status::invalid_argument("a worker begins with Hello"))).await;
                return;
            };
            if let Some(reason) = refusal(&hello) {
                tracing::warn!(worker = hello.name, reason, "refused");
                let refused = Told::Refused(Refused { reason });
                let _ = orders.send(Ok(ToWorker { message: Some(refused) })).await;
                return;
            }
            let worker = hello.name.clone();
            let connected = Decide::Connected { hello, connection, outgoing: orders.clone() };
            if inbox.send(Input::Decide(connected)).await.is_err() {
                return;
            }
            drop(orders);
            // When the driver is busy the stream waits here, and the worker's messages with it.
            while let Ok(Some(FromWorker { message: Some(message) })) = incoming.message().await {
                let said = Decide::Said { worker: worker.clone(), connection, message };
                if inbox.send(Input::Decide(said)).await.is_err() {
                    return;
                }
            }
            let _ = inbox.send(Input::Decide(Decide::Disconnected { worker, connection })).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// Returns why a worker cannot join whatever the state is, if so.
fn refusal(hello: &Hello) -> Option<String> {
    if hello.protocol_version != proto::PROTOCOL_VERSION {
        return Some(format!(
            "it speaks protocol version {} (release {}), this coordinator version {} (release {}); install the same \
             release on both",
            hello.protocol_version,
            hello.version,
            proto::PROTOCOL_VERSION,
            env!("CARGO_PKG_VERSION")
        ));
    }
    let is_name = |text: &str| !text.is_empty() && text.len() <= 100 && !text.contains(['/', '@']);
    if !is_name(&hello.name) || hello.instance.is_empty() {
        return Some(format!("its name {:?} is empty, too long, or holds / or @", hello.name));
    }
    None
}
