//! The connection to the coordinator as it is held: messages over gRPC, a clock, the device thread.
//!
//! What to say, when to dial and which order to obey is decided by [`shared::link`]; here it is done.

use std::collections::VecDeque;
use std::future::Future;
use std::net::TcpListener;
use std::path::Path;
use std::pin::Pin;
use std::sync::mpsc as std_mpsc;
use std::thread;
use std::time::Duration;

use proto::coordinator::from_worker::Message as Said;
use proto::coordinator::task_ended::How;
use proto::coordinator::workers_client::WorkersClient;
use proto::coordinator::{
    FromWorker, Hello, PeerReady, Peers, RunTask, StopReason, Stopped, TaskEnded, ToWorker, Welcome,
};
use shared::link::{Act, Event, Link as State, name};
use shared::net::{SendToken, Token};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::device::{Device, Gang, Handle, Work};
use crate::control::Stop;
use crate::error::{Error, Result};

/// Messages that wait for a slow connection at most.
const OUTGOING: usize = 64;

/// The worker's side of the link.
pub struct Link {
    url: String,
    client: WorkersClient<InterceptedService<Channel, SendToken>>,
    instance: String,
    name: String,
    peer_host: String,
    device: Device,
    state: State,
    connection: Connection,
    /// Reaches into the running task.
    handle: Handle,
    /// The gang's task that waits for the addresses of all.
    waits: Option<std_mpsc::Sender<Peers>>,
    /// A look at the artifact folder, which may hang; one at a time.
    looking: Option<oneshot::Receiver<Option<String>>>,
    /// What is to be looked at when that has come to an end, on a later connection.
    looks_next: Option<Welcome>,
    /// The connection is not the one that the present look is for.
    looks_in_vain: bool,
    /// The gang's task that is to listen, once the host's name is resolved.
    listening: Option<oneshot::Receiver<(RunTask, Listening)>>,
}

/// A port of the system's choice, or why there is none.
type Listening = std::io::Result<(TcpListener, u16)>;

/// Does on a thread of its own what may take long, so that heartbeats go on.
fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> oneshot::Receiver<T> {
    let (done, receiver) = oneshot::channel();
    thread::spawn(move || {
        let _ = done.send(work());
    });
    receiver
}

/// Waits for what is done aside: for ever where nothing is.
async fn done<T>(aside: &mut Option<oneshot::Receiver<T>>) -> Option<T> {
    let Some(receiver) = aside else { return std::future::pending().await };
    let found = receiver.await;
    *aside = None;
    found.ok()
}

enum Connection {
    None,
    Opening(mpsc::Sender<FromWorker>, Opening),
    Open(mpsc::Sender<FromWorker>, Box<Streaming<ToWorker>>),
}

type Opening = Pin<Box<dyn Future<Output = std::result::Result<Streaming<ToWorker>, Status>> + Send>>;

impl Link {
    /// Returns a link that has not dialled yet.
    ///
    /// # Errors
    /// The address is none.
    pub fn new(url: &str, token: Option<Token>, hello: Hello, peer_host: String, device: Device) -> Result<Link> {
        let client = WorkersClient::with_interceptor(shared::net::channel(url)?, SendToken(token))
            .max_decoding_message_size(proto::MAX_MESSAGE_BYTES);
        Ok(Link {
            url: url.to_owned(),
            client,
            instance: hello.instance.clone(),
            name: hello.name.clone(),
            peer_host,
            device,
            state: State::new(hello),
            connection: Connection::None,
            handle: Handle::default(),
            waits: None,
            looking: None,
            looks_next: None,
            looks_in_vain: false,
            listening: None,
        })
    }

    /// Serves until the worker has left.
    ///
    /// # Errors
    /// The coordinator refuses this worker; dialling again would change nothing.
    pub async fn run(mut self, stop: CancellationToken) -> Result<()> {
        let begun = Instant::now();
        let mut stopping = false;
        loop {
            let wake = self.state.wake_ms().map(|wake_ms| begun + Duration::from_millis(wake_ms));
            let event = tokio::select! {
                event = self.connection.next() => self.reached(event)?,
                Some(ended) = self.device.ended.recv() => {
                    tell_end(&ended);
                    Some(Event::Ended(ended))
                }
                Ok(()) = self.device.progress.changed() => {
                    self.device.progress.borrow_and_update().clone().map(Event::Progressed)
                }
                Some(ready) = self.device.ready.recv() => {
                    let PeerReady { task, address, nccl_id } = ready;
                    task.map(|task| Event::Listening { task, address, nccl_id })
                }
                Some(problem) = done(&mut self.looking) => self.looked(problem),
                Some((run, listening)) = done(&mut self.listening) => self.listens(run, listening),
                () = sleep_until(wake.unwrap_or(begun)), if wake.is_some() => {
                    let still_ms = self.state.running().map_or(0, |_| self.handle.still().as_millis() as u64);
                    Some(Event::Tick { still_ms })
                }
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    Some(Event::StopAsked)
                }
            };
            let mut events: VecDeque<Event> = event.into_iter().collect();
            while let Some(event) = events.pop_front() {
                let now_ms = begun.elapsed().as_millis() as u64;
                for act in self.state.apply(now_ms, event) {
                    match act {
                        Act::Leave => {
                            tracing::info!("left");
                            return Ok(());
                        }
                        Act::Refused(reason) => {
                            return Err(Error::Config(format!("{} refuses this worker: {reason}", self.url)));
                        }
                        act => events.extend(self.carry_out(act)),
                    }
                }
            }
        }
    }

    /// Returns what it means that the connection got somewhere.
    fn reached(&mut self, reached: Reached) -> Result<Option<Event>> {
        let why = match reached {
            Reached::Open => return Ok(Some(Event::Connected)),
            Reached::Message(message) => return Ok(message.message.map(Event::Told)),
            Reached::End(Some(status)) if status.code() == Code::Unauthenticated => {
                return Err(Error::Config(format!("{}: {}", self.url, status.message())));
            }
            Reached::End(Some(status)) => words(&status),
            Reached::End(None) => "the coordinator closed the connection".to_owned(),
        };
        Ok(Some(self.lost(&why)))
    }

    fn lost(&mut self, why: &str) -> Event {
        tracing::warn!(coordinator = self.url, why, "no connection to the coordinator; dialling again");
        self.connection = Connection::None;
        (self.looks_in_vain, self.looks_next) = (true, None);
        Event::Disconnected
    }

    /// Looks at the artifact folder, once an earlier look has come to an end.
    fn look(&mut self, welcome: Welcome) {
        if self.looking.is_some() {
            self.looks_next = Some(welcome);
        } else {
            let instance = self.instance.clone();
            self.looks_in_vain = false;
            self.looking = Some(aside(move || folder_problem(&welcome, &instance)));
        }
    }

    fn looked(&mut self, problem: Option<String>) -> Option<Event> {
        if let Some(welcome) = self.looks_next.take() {
            self.look(welcome);
            return None;
        }
        if self.looks_in_vain {
            return None;
        }
        match &problem {
            Some(problem) => tracing::error!("{problem}"),
            None => tracing::info!(coordinator = self.url, name = self.name, "joined"),
        }
        Some(Event::FolderSeen { problem: problem.unwrap_or_default() })
    }

    /// Does what was decided, and returns what came of it at once.
    fn carry_out(&mut self, act: Act) -> Option<Event> {
        match act {
            Act::Dial => {
                let (outgoing, messages) = mpsc::channel(OUTGOING);
                let mut client = self.client.clone();
                let opening = async move { Ok(client.link(ReceiverStream::new(messages)).await?.into_inner()) };
                self.connection = Connection::Opening(outgoing, Box::pin(opening));
                None
            }
            Act::Say(message) => self.say(message),
            Act::LookAtFolder(welcome) => {
                self.look(welcome);
                None
            }
            Act::Begin(run) => {
                self.handle = Handle::default();
                if run.world_size > 1 {
                    let host = self.peer_host.clone();
                    self.listening = Some(aside(move || (run, listen(&host))));
                } else {
                    self.begin(run, None);
                }
                None
            }
            Act::Meet(peers) => {
                if let Some(waits) = self.waits.take() {
                    let _ = waits.send(peers);
                }
                None
            }
            Act::Stop(reason) => {
                tracing::info!(task = self.state.running().map(name), ?reason, "told to stop");
                if self.listening.take().is_some() {
                    let problem = "it was told to stop before it listened".to_owned();
                    return self.state.running().cloned().map(|task| match reason {
                        StopReason::Paused => {
                            Event::Ended(TaskEnded { task: Some(task), how: Some(How::Stopped(Stopped {})) })
                        }
                        _ => Event::NotBegun { task, problem },
                    });
                }
                match reason {
                    StopReason::Paused => self.handle.stop(Stop::Paused),
                    StopReason::GangBroken => self.handle.break_gang(),
                    _ => {
                        self.handle.stop(Stop::Cancelled);
                        self.handle.break_gang();
                    }
                }
                None
            }
            Act::Leave | Act::Refused(_) => None,
        }
    }

    fn say(&mut self, message: Said) -> Option<Event> {
        let Connection::Open(outgoing, _) = &self.connection else { return None };
        match outgoing.try_send(FromWorker { message: Some(message) }) {
            Ok(()) => None,
            Err(_) => Some(self.lost("it takes no more messages")),
        }
    }

    /// A gang's task begins where it can listen.
    fn listens(&mut self, run: RunTask, listening: Listening) -> Option<Event> {
        match listening {
            Ok((listener, port)) => {
                let (sender, peers) = std_mpsc::channel();
                self.waits = Some(sender);
                self.begin(run, Some(Gang { listener, address: format!("{}:{port}", self.peer_host), peers }));
                None
            }
            Err(error) => {
                let problem = format!("cannot listen at --peer-addr {}: {error}", self.peer_host);
                run.task.map(|task| Event::NotBegun { task, problem })
            }
        }
    }

    fn begin(&mut self, run: RunTask, gang: Option<Gang>) {
        let task = run.task.as_ref().map(name);
        tracing::info!(task, rank = run.rank, world_size = run.world_size, "task begins");
        self.device.begin(Work { run, handle: self.handle.clone(), gang });
    }
}

fn listen(host: &str) -> Listening {
    let listener = TcpListener::bind((host, 0))?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

/// What happened on a connection.
enum Reached {
    Open,
    Message(ToWorker),
    End(Option<Status>),
}

impl Connection {
    /// Waits for what happens next on it: for ever where there is none.
    async fn next(&mut self) -> Reached {
        match self {
            Connection::None => std::future::pending().await,
            Connection::Opening(outgoing, opening) => match opening.await {
                Ok(incoming) => {
                    *self = Connection::Open(outgoing.clone(), Box::new(incoming));
                    Reached::Open
                }
                Err(status) => Reached::End(Some(status)),
            },
            Connection::Open(_, incoming) => match incoming.message().await {
                Ok(Some(message)) => Reached::Message(message),
                Ok(None) => Reached::End(None),
                Err(status) => Reached::End(Some(status)),
            },
        }
    }
}

fn tell_end(ended: &TaskEnded) {
    let task = ended.task.as_ref().map(name).unwrap_or_default();
    match &ended.how {
        Some(How::Failed(failed)) => tracing::warn!(task, problem = failed.problem, "task failed"),
        Some(How::Stopped(_)) => tracing::info!(task, "task stopped"),
        _ => tracing::info!(task, "task finished"),
    }
}

fn words(status: &Status) -> String {
    // A refused connection is a "transport error" with its reason among the causes.
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        text = error.to_string();
        cause = error.source();
    }
    text
}

/// Returns why the artifact folder cannot be used from here, if it cannot: it must be the coordinator's, and be writable.
fn folder_problem(welcome: &Welcome, instance: &str) -> Option<String> {
    let Welcome { artifacts, probe_file, probe_content, .. } = welcome;
    let hint = "mount the coordinator's artifact folder at the same path on this machine";
    match std::fs::read_to_string(probe_file) {
        Ok(content) if content.trim() == probe_content.trim() => {
            let probe = Path::new(artifacts).join(format!(".writable-{instance}"));
            let written = std::fs::write(&probe, probe_content).and_then(|()| std::fs::remove_file(&probe));
            let error = written.err()?;
            Some(format!("{artifacts} cannot be written here ({error}); mount it for writing on this machine"))
        }
        Ok(_) => Some(format!("{artifacts} here is another folder than the coordinator's; {hint}")),
        Err(error) => Some(format!("{artifacts} cannot be read here ({probe_file}: {error}); {hint}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_must_be_the_coordinators_and_be_writable() {
        let dir = tempfile::tempdir().unwrap();
        let probe = dir.path().join("probe");
        std::fs::write(&probe, "content\n").unwrap();
        let problem = |artifacts: &Path, content: &str| {
            let welcome = Welcome {
                artifacts: artifacts.display().to_string(),
                probe_file: probe.display().to_string(),
                probe_content: content.into(),
                ..Welcome::default()
            };
            folder_problem(&welcome, "instance")
        };
        assert_eq!(problem(dir.path(), "content"), None);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left behind");
        assert!(problem(dir.path(), "other").unwrap().contains("another folder"));
        // Nobody makes files there, root included.
        assert!(problem(Path::new("/proc"), "content").unwrap().contains("cannot be written"));
        std::fs::remove_file(&probe).unwrap();
        assert!(problem(dir.path(), "content").unwrap().contains("cannot be read"));
    }
}
