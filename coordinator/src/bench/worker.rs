//! A simulated worker: the protocol of a real one on a connection of its own, and tasks that take drawn times.
//!
//! It dials again as a real one does, with what it runs and what it ended in its Hello. What a real worker's loop does is
//! `worker/src/serve/link.rs`; gangs and draining are left out.

use std::time::Duration;

use proto::coordinator::from_worker::Message as Said;
use proto::coordinator::task_ended::How;
use proto::coordinator::to_worker::Message as Told;
use proto::coordinator::workers_client::WorkersClient;
use proto::coordinator::{
    Failed, Finished, FolderSeen, FromWorker, Heartbeat, Hello, RunTask, Stopped, TaskEnded, TaskProgress, TaskRef,
    ToWorker,
};
use shared::keyed_random::KeyedRandom;
use shared::{Error, Result};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::setting;

const OUTGOING: usize = 64;
/// As real workers.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// What a worker saw or did.
#[derive(Debug)]
pub(super) enum Seen {
    /// It was welcomed, on its first connection or a later one.
    Joined {
        again: bool,
    },
    /// A task came, so long after the one before had ended; `None` for its first.
    Assigned {
        task: TaskRef,
        waited: Option<Waited>,
    },
    /// The coordinator has stored that it finished a task.
    Stored(TaskRef),
    Beat,
    Progress,
    /// It was refused or told what the benchmark does not foresee.
    Wrong(String),
}

/// Time between the end of a task and the next.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waited {
    pub(super) time: Duration,
    /// The connection was lost in between, or there was none.
    pub(super) across: bool,
}

pub(super) struct Worker {
    client: WorkersClient<Channel>,
    hello: Hello,
    /// Mean time of a task; drawn times are uniform from half of it to one and a half.
    mean: Duration,
    random: KeyedRandom,
    seen: mpsc::UnboundedSender<Seen>,
    running: Option<Running>,
    /// The last end, until the coordinator has stored it.
    ended: Option<TaskEnded>,
    /// Since when it waits for the next, and on which connection, the last one where it had none.
    free: Option<(Instant, u32)>,
    connections: u32,
}

struct Running {
    task: TaskRef,
    args: Vec<String>,
    begun: Instant,
    until: Instant,
}

type Outgoing = mpsc::Sender<FromWorker>;

impl Worker {
    /// Returns a worker that has not dialled yet.
    ///
    /// # Errors
    /// The address is none.
    pub(super) fn new(
        url: &str,
        number: u64,
        seed: u64,
        mean: Duration,
        seen: mpsc::UnboundedSender<Seen>,
    ) -> Result<Worker> {
        let hello = Hello {
            name: format!("sim-{number:05}"),
            instance: format!("{seed:016x}-{number}"),
            protocol_version: proto::PROTOCOL_VERSION,
            version: env!("CARGO_PKG_VERSION").into(),
            host: "bench".into(),
            pid: std::process::id(),
            device: "none".into(),
            memory_bytes: 1 << 30,
            threads: 1,
            ..Hello::default()
        };
        let client = WorkersClient::new(shared::net::channel(url)?);
        let random = KeyedRandom::new(&[seed, number]);
        let (running, ended, free) = (None, None, None);
        Ok(Worker { client, hello, mean, random, seen, running, ended, free, connections: 0 })
    }

    /// Serves until it is dropped.
    pub(super) async fn live(mut self) {
        let mut wait = FIRST_WAIT;
        loop {
            let begun = Instant::now();
            if let Ok((outgoing, incoming)) = self.connect().await {
                self.connected(&outgoing, incoming).await;
            }
            if begun.elapsed() > LONGEST_WAIT {
                wait = FIRST_WAIT;
            }
            let until = Instant::now() + wait;
            while let Some(at) = self.running.as_ref().map(|running| running.until).filter(|at| *at < until) {
                sleep_until(at).await;
                self.end();
            }
            sleep_until(until).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    async fn connect(&mut self) -> std::result::Result<(Outgoing, Streaming<ToWorker>), Status> {
        let (outgoing, messages) = mpsc::channel(OUTGOING);
        let running = self.running.as_ref().map(|running| running.task.clone());
        let hello = Hello { running, ended: self.ended.clone(), ..self.hello.clone() };
        outgoing.try_send(said(Said::Hello(hello))).expect("the queue is empty");
        let incoming = self.client.link(ReceiverStream::new(messages)).await?.into_inner();
        self.connections += 1;
        Ok((outgoing, incoming))
    }

    /// Serves on a connection until that is lost.
    async fn connected(&mut self, outgoing: &Outgoing, mut incoming: Streaming<ToWorker>) {
        let mut heartbeat = paced(Duration::from_secs(1));
        let mut progress = paced(PROGRESS_EVERY);
        loop {
            let ends = self.running.as_ref().map_or_else(Instant::now, |running| running.until);
            let sent = tokio::select! {
                message = incoming.message() => match message {
                    Ok(Some(ToWorker { message: Some(Told::Welcome(welcome)) })) => {
                        heartbeat = paced(Duration::from_millis(u64::from(welcome.heartbeat_ms.max(10))));
                        self.saw(Seen::Joined { again: self.connections > 1 });
                        let there = std::fs::read_to_string(&welcome.probe_file);
                        let problem = match there {
                            Ok(content) if content == welcome.probe_content => String::new(),
                            _ => format!("{} is not what it should be", welcome.probe_file),
                        };
                        send(outgoing, Said::FolderSeen(FolderSeen { problem }))
                    }
                    Ok(Some(ToWorker { message: Some(told) })) => self.told(told, outgoing),
                    Ok(Some(ToWorker { message: None })) => true,
                    Ok(None) | Err(_) => return,
                },
                () = sleep_until(ends), if self.running.is_some() => {
                    self.end();
                    self.ended.clone().is_none_or(|ended| send(outgoing, Said::Ended(ended)))
                }
                _ = progress.tick(), if self.running.is_some() => self.tell_progress(outgoing),
                _ = heartbeat.tick() => {
                    self.saw(Seen::Beat);
                    let running = self.running.as_ref().map(|running| running.task.clone());
                    send(outgoing, Said::Heartbeat(Heartbeat { running, still_ms: 0 }))
                }
            };
            if !sent {
                return;
            }
        }
    }

    /// Acts on an order; returns whether the connection still takes messages.
    fn told(&mut self, told: Told, outgoing: &Outgoing) -> bool {
        match told {
            Told::Run(run) => return self.begin(run, outgoing),
            Told::EndedStored(stored) => {
                if let Some(ended) = self.ended.take_if(|ended| ended.task == stored.task)
                    && let (Some(task), Some(How::Finished(_))) = (ended.task, ended.how)
                {
                    self.saw(Seen::Stored(task));
                }
            }
            Told::Stop(stop) if self.running.as_ref().is_some_and(|own| Some(&own.task) == stop.task.as_ref()) => {
                self.running = None;
                let ended = TaskEnded { task: stop.task, how: Some(How::Stopped(Stopped {})) };
                self.ended = Some(ended.clone());
                return send(outgoing, Said::Ended(ended));
            }
            Told::Refused(refused) => self.saw(Seen::Wrong(format!("refused: {}", refused.reason))),
            Told::Stop(_) | Told::Welcome(_) | Told::Peers(_) | Told::Drain(_) => {}
        }
        true
    }

    fn begin(&mut self, run: RunTask, outgoing: &Outgoing) -> bool {
        let Some(task) = run.task else { return true };
        if let Some(running) = &self.running {
            if running.task != task {
                self.saw(Seen::Wrong(format!("{task:?} was ordered while {:?} runs", running.task)));
            }
            return true;
        }
        let now = Instant::now();
        let waited = self.free.take().map(|(since, connection)| Waited {
            time: now.duration_since(since),
            across: connection != self.connections,
        });
        self.saw(Seen::Assigned { task: task.clone(), waited });
        let until = now + self.mean.mul_f64(0.5 + self.random.uniform());
        self.running = Some(Running { task, args: run.args, begun: now, until });
        self.tell_progress(outgoing)
    }

    fn tell_progress(&self, outgoing: &Outgoing) -> bool {
        let Some(Running { task, begun, until, .. }) = &self.running else { return true };
        self.saw(Seen::Progress);
        let (done, total) = (begun.elapsed().as_millis() as u64, (*until - *begun).as_millis() as u64);
        let progress = TaskProgress {
            task: Some(task.clone()),
            done: done.min(total),
            total,
            note: String::new(),
            work: "generate".into(),
            begun_at: 0,
        };
        send(outgoing, Said::Progress(progress))
    }

    fn end(&mut self) {
        let Some(running) = self.running.take() else { return };
        // A file of some bytes in memory: not worth a thread of its own.
        let how = match setting::answer(&running.args) {
            Ok(()) => How::Finished(Finished { summary_json: "{\"generated\":1}".into(), incomplete: false }),
            Err(error) => How::Failed(Failed { problem: error.to_string(), infrastructure: false, held: false }),
        };
        self.ended = Some(TaskEnded { task: Some(running.task), how: Some(how) });
        self.free = Some((Instant::now(), self.connections));
    }

    fn saw(&self, seen: Seen) {
        // Nobody listens any more once the figures are there.
        let _ = self.seen.send(seen);
    }
}

fn paced(period: Duration) -> tokio::time::Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

fn send(outgoing: &Outgoing, message: Said) -> bool {
    outgoing.try_send(said(message)).is_ok()
}

fn said(message: Said) -> FromWorker {
    FromWorker { message: Some(message) }
}

/// Starts workers one after the other, over a second or two; they live as long as the set.
///
/// # Errors
/// The address is none.
pub(super) async fn start(
    url: &str,
    workers: u64,
    seed: u64,
    mean: Duration,
    seen: &mpsc::UnboundedSender<Seen>,
) -> Result<tokio::task::JoinSet<()>> {
    let mut all = tokio::task::JoinSet::new();
    for number in 0..workers {
        let worker = Worker::new(url, number, seed, mean, seen.clone());
        all.spawn(worker.map_err(|error| Error::Config(format!("worker {number}: {error}")))?.live());
        if number % 20 == 19 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    Ok(all)
}
