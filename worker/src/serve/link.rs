//! The connection to the coordinator: hello, heartbeat, tasks, and dialling again when it is lost.
//!
//! ```text
//!            ┌───────────── connection lost, dial again ────────────┐
//!            ▼                                                      │
//!  Hello ─▶ Welcome ─▶ FolderSeen ─▶ tasks: RunTask … TaskEnded … EndedStored ─▶ leave
//!            └▶ Refused: the process ends
//! ```

use std::net::TcpListener;
use std::path::Path;
use std::sync::mpsc as std_mpsc;
use std::time::Duration;

use proto::coordinator::from_worker::Message as Said;
use proto::coordinator::task_ended::How;
use proto::coordinator::to_worker::Message as Told;
use proto::coordinator::workers_client::WorkersClient;
use proto::coordinator::{
    Failed, FolderSeen, FromWorker, Heartbeat, Hello, Leaving, PeerReady, RunTask, StopReason, TaskEnded, TaskRef,
    ToWorker, Welcome,
};
use shared::net::{SendToken, Token};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::device::{Device, Handle, Work};
use crate::control::Stop;
use crate::error::{Error, Result};

/// Messages that wait for a slow connection at most.
const OUTGOING: usize = 64;
/// Progress is told at most so often.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// A worker that leaves waits so long for the coordinator to store its last end.
const FAREWELL: Duration = Duration::from_secs(10);

/// The worker's side of the link; owns what is known of the present task.
pub struct Link {
    url: String,
    client: WorkersClient<InterceptedService<Channel, SendToken>>,
    hello: Hello,
    peer_host: String,
    device: Device,
    running: Option<Running>,
    /// The last end, until the coordinator has stored it.
    ended: Option<TaskEnded>,
    /// No new task is taken; the reason is for people.
    leaving: Option<String>,
}

struct Running {
    task: TaskRef,
    handle: Handle,
    /// Until the other members' addresses are known: where this one listens, and who waits for theirs.
    gang: Option<(String, std_mpsc::Sender<Vec<String>>)>,
}

type Outgoing = mpsc::Sender<FromWorker>;

/// Why a connection is over.
enum Over {
    /// It was lost; dial again.
    Lost(String),
    /// The worker has left.
    Left,
}

impl Link {
    /// Returns a link that has not dialled yet.
    ///
    /// # Errors
    /// The address is none.
    pub fn new(url: &str, token: Option<Token>, hello: Hello, peer_host: String, device: Device) -> Result<Link> {
        let client = WorkersClient::with_interceptor(shared::net::channel(url)?, SendToken(token))
            .max_decoding_message_size(proto::MAX_MESSAGE_BYTES);
        let url = url.to_owned();
        Ok(Link { url, client, hello, peer_host, device, running: None, ended: None, leaving: None })
    }

    /// Serves until the worker has left.
    ///
    /// # Errors
    /// The coordinator refuses this worker; dialling again would change nothing.
    pub async fn run(mut self, stop: CancellationToken) -> Result<()> {
        let mut wait = FIRST_WAIT;
        loop {
            let begun = Instant::now();
            let why = match self.connect().await {
                Ok((outgoing, incoming)) => match self.connected(outgoing, incoming, &stop).await? {
                    Over::Left => return Ok(()),
                    Over::Lost(why) => why,
                },
                Err(status) if status.code() == Code::Unauthenticated => {
                    return Err(Error::Config(format!("{}: {}", self.url, status.message())));
                }
                Err(status) => words(&status),
            };
            if begun.elapsed() > LONGEST_WAIT {
                wait = FIRST_WAIT;
            }
            tracing::warn!(coordinator = self.url, %why, "no connection to the coordinator; dialling again");
            if self.apart(wait, &stop).await {
                return Ok(());
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    async fn connect(&mut self) -> std::result::Result<(Outgoing, Streaming<ToWorker>), Status> {
        let (outgoing, messages) = mpsc::channel(OUTGOING);
        let running = self.running.as_ref().map(|running| running.task.clone());
        let hello = Hello { running, ended: self.ended.clone(), ..self.hello.clone() };
        outgoing.try_send(said(Said::Hello(hello))).expect("the queue is empty");
        let incoming = self.client.link(ReceiverStream::new(messages)).await?.into_inner();
        Ok((outgoing, incoming))
    }

    /// Waits before dialling again, while the task goes on. Returns whether the worker has left instead.
    async fn apart(&mut self, wait: Duration, stop: &CancellationToken) -> bool {
        let until = Instant::now() + wait;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return false,
                Some(ended) = self.device.ended.recv() => self.task_ended(ended),
                () = stop.cancelled(), if self.leaving.is_none() => self.leave("it was told to stop"),
            }
            // With nobody to tell, a checkpoint is what matters; it is written by now.
            if self.leaving.is_some() && self.running.is_none() {
                return true;
            }
        }
    }

    async fn connected(
        &mut self,
        outgoing: Outgoing,
        mut incoming: Streaming<ToWorker>,
        stop: &CancellationToken,
    ) -> Result<Over> {
        let send = |message: Said| send(&outgoing, message);
        let mut heartbeat = interval(Duration::from_secs(1));
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told_progress = Instant::now();
        let mut farewell: Option<Instant> = None;
        // An idle worker that says it leaves waits for the coordinator to let it go: its word may still be on the way.
        let mut waits = false;
        if let Some(reason) = &self.leaving {
            waits = self.running.is_none();
            let _ = send(Said::Leaving(Leaving { reason: reason.clone() }));
        }
        loop {
            let sent = tokio::select! {
                message = incoming.message() => match message {
                    Ok(Some(ToWorker { message: Some(Told::Refused(refused)) })) => {
                        return Err(Error::Config(format!("{} refuses this worker: {}", self.url, refused.reason)));
                    }
                    Ok(Some(ToWorker { message: Some(Told::Welcome(welcome)) })) => {
                        heartbeat = interval(Duration::from_millis(u64::from(welcome.heartbeat_ms.max(10))));
                        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
                        let problem = folder_problem(&welcome, &self.hello.instance);
                        match &problem {
                            Some(problem) => tracing::error!("{problem}"),
                            None => tracing::info!(coordinator = self.url, name = self.hello.name, "joined"),
                        }
                        // What was said on an earlier connection may not have arrived.
                        let listening = self.running.as_ref().and_then(|running| {
                            let (address, _) = running.gang.as_ref()?;
                            Some(PeerReady { task: Some(running.task.clone()), address: address.clone() })
                        });
                        let seen = send(Said::FolderSeen(FolderSeen { problem: problem.unwrap_or_default() }));
                        seen.and(listening.map_or(Ok(()), |ready| send(Said::PeerReady(ready))))
                    }
                    Ok(Some(ToWorker { message: Some(told) })) => self.told(told, &outgoing),
                    Ok(Some(ToWorker { message: None })) => Ok(()),
                    Ok(None) if farewell.is_some() => {
                        waits = false;
                        Ok(())
                    }
                    Ok(None) => return Ok(Over::Lost("the coordinator closed the connection".into())),
                    Err(status) if status.code() == Code::Unauthenticated => {
                        return Err(Error::Config(format!("{}: {}", self.url, status.message())));
                    }
                    Err(status) => return Ok(Over::Lost(words(&status))),
                },
                Some(ended) = self.device.ended.recv() => {
                    self.task_ended(ended.clone());
                    send(Said::Ended(ended))
                }
                changed = self.device.progress.changed() => {
                    let progress = self.device.progress.borrow_and_update().clone();
                    match progress {
                        Some(progress) if changed.is_ok() && told_progress.elapsed() >= PROGRESS_EVERY => {
                            told_progress = Instant::now();
                            send(Said::Progress(progress))
                        }
                        _ => Ok(()),
                    }
                }
                _ = heartbeat.tick() => {
                    let running = self.running.as_ref().map(|running| running.task.clone());
                    let still = self.running.as_ref().map(|running| running.handle.still()).unwrap_or_default();
                    send(Said::Heartbeat(Heartbeat { running, still_ms: still.as_millis() as u64 }))
                }
                () = stop.cancelled(), if self.leaving.is_none() => {
                    self.leave("it was told to stop");
                    waits = self.running.is_none();
                    send(Said::Leaving(Leaving { reason: "it was told to stop".into() }))
                }
                () = sleep(Duration::from_millis(20)), if farewell.is_some() => Ok(()),
            };
            if sent.is_err() {
                return Ok(Over::Lost("the connection takes no more messages".into()));
            }
            if self.leaving.is_some() && self.running.is_none() {
                let since = *farewell.get_or_insert_with(Instant::now);
                if (self.ended.is_none() && !waits) || since.elapsed() > FAREWELL {
                    tracing::info!("left");
                    return Ok(Over::Left);
                }
            }
        }
    }

    /// Acts on an order.
    fn told(&mut self, told: Told, outgoing: &Outgoing) -> std::result::Result<(), Full> {
        match told {
            Told::Run(run) => return self.begin(run, outgoing),
            Told::Peers(peers) => {
                if let Some(running) = self.running_as(peers.task.as_ref())
                    && let Some((_, sender)) = running.gang.take()
                {
                    let _ = sender.send(peers.addresses);
                }
            }
            Told::Stop(stop) => {
                let reason = stop.reason();
                if let Some(running) = self.running_as(stop.task.as_ref()) {
                    tracing::info!(task = name(&running.task), ?reason, "told to stop");
                    match reason {
                        StopReason::Paused => running.handle.stop(Stop::Paused),
                        StopReason::GangBroken => running.handle.break_gang(),
                        _ => {
                            running.handle.stop(Stop::Cancelled);
                            running.handle.break_gang();
                        }
                    }
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
            Told::Welcome(_) | Told::Refused(_) => {}
        }
        Ok(())
    }

    fn begin(&mut self, run: RunTask, outgoing: &Outgoing) -> std::result::Result<(), Full> {
        let Some(task) = run.task.clone() else { return Ok(()) };
        if self.running.as_ref().is_some_and(|running| running.task == task) {
            return Ok(());
        }
        let refuse = |problem: String| {
            let failed = Failed { problem, infrastructure: true };
            let ended = TaskEnded { task: Some(task.clone()), how: Some(How::Failed(failed)) };
            send(outgoing, Said::Ended(ended))
        };
        if let Some(running) = &self.running {
            return refuse(format!("this worker is busy with {}", name(&running.task)));
        }
        if let Some(reason) = &self.leaving {
            return refuse(format!("this worker leaves: {reason}"));
        }
        let (mut waits, mut gang) = (None, None);
        if run.world_size > 1 {
            let listening = TcpListener::bind((self.peer_host.as_str(), 0)).and_then(|listener| {
                let port = listener.local_addr()?.port();
                Ok((listener, port))
            });
            let (listener, port) = match listening {
                Ok(listening) => listening,
                Err(error) => return refuse(format!("cannot listen at --peer-addr {}: {error}", self.peer_host)),
            };
            let (sender, receiver) = std_mpsc::channel();
            let address = format!("{}:{port}", self.peer_host);
            (waits, gang) = (Some((address.clone(), sender)), Some((listener, receiver)));
            send(outgoing, Said::PeerReady(PeerReady { task: Some(task.clone()), address }))?;
        }
        tracing::info!(task = name(&task), rank = run.rank, world_size = run.world_size, "task begins");
        let handle = Handle::default();
        self.device.begin(Work { run, handle: handle.clone(), gang });
        self.running = Some(Running { task, handle, gang: waits });
        Ok(())
    }

    fn running_as(&mut self, task: Option<&TaskRef>) -> Option<&mut Running> {
        self.running.as_mut().filter(|running| Some(&running.task) == task)
    }

    fn task_ended(&mut self, ended: TaskEnded) {
        let task = ended.task.as_ref().map(name).unwrap_or_default();
        match &ended.how {
            Some(How::Failed(failed)) => tracing::warn!(task, problem = failed.problem, "task failed"),
            Some(How::Stopped(_)) => tracing::info!(task, "task stopped"),
            _ => tracing::info!(task, "task finished"),
        }
        self.running = None;
        self.ended = Some(ended);
    }

    /// Takes no new task, and stops the present one with a checkpoint.
    fn leave(&mut self, reason: &str) {
        self.leaving = Some(reason.to_owned());
        if let Some(running) = &self.running {
            running.handle.stop(Stop::Paused);
        }
    }
}

/// The connection takes no more messages: it is as good as lost.
struct Full;

fn send(outgoing: &Outgoing, message: Said) -> std::result::Result<(), Full> {
    outgoing.try_send(said(message)).map_err(|_| Full)
}

fn said(message: Said) -> FromWorker {
    FromWorker { message: Some(message) }
}

fn name(task: &TaskRef) -> String {
    format!("{}/{}/{} attempt {}", task.run, task.stage, task.task, task.attempt)
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
