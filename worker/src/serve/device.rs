//! The thread that owns the device: typed work in, progress and ends out.
//!
//! A task is the one-machine command of its kind, parsed by the same options and run by the same code. Whatever goes wrong
//! in it, a panic included, ends the task and not the worker.

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use proto::coordinator::task_ended::How;
use proto::coordinator::{
    Failed, Finished, PeerReady, Peers, RunTask, Stopped, TaskEnded, TaskKind, TaskProgress, TaskRef,
};
use tokio::sync::{mpsc as tokio_mpsc, watch};

use crate::cli::{self, Done};
use crate::collective::ring::{self, Membership, Ring};
use crate::collective::transport::{Aborter, ExchangeArgs, Met, Transport};
use crate::collective::{Alone, Collective, nccl};
use crate::control::{Control, Progress, Sink, Stop, StopFlag};
use crate::error::{Error, Result};
use crate::fault::Fault;
use crate::fence::Attempt;
use crate::pulse::Pulse;
use crate::{panic, placement};

/// How long the members of a gang have to find each other.
const FORM_DEADLINE: Duration = Duration::from_secs(60);

/// A task for the device thread.
pub struct Work {
    pub run: RunTask,
    pub handle: Handle,
    pub gang: Option<Gang>,
}

/// What a member of a gang begins with.
pub struct Gang {
    /// Where this member listens.
    pub listener: TcpListener,
    /// The same for the others, host:port.
    pub address: String,
    /// Tells of all members once they listen.
    pub peers: mpsc::Receiver<Peers>,
}

/// Reaches into a running task; clones reach the same one.
#[derive(Clone, Default)]
pub struct Handle {
    stop: StopFlag,
    broken: Arc<AtomicBool>,
    aborter: Arc<Mutex<Option<Aborter>>>,
    pulse: Arc<Pulse>,
}

impl Handle {
    /// Tells the task to stop at its next step.
    pub fn stop(&self, stop: Stop) {
        self.stop.set(stop);
    }

    /// Returns for how long nothing has moved in the gang's call that the task is in; nothing while it computes.
    pub fn still(&self) -> Duration {
        self.pulse.still()
    }

    /// Ends the gang's calls at once: a member is gone.
    pub fn break_gang(&self) {
        self.broken.store(true, Ordering::SeqCst);
        if let Some(aborter) = &*self.aborter.lock().unwrap_or_else(PoisonError::into_inner) {
            aborter.abort();
        }
    }
}

/// The device thread, seen from the async side.
pub struct Device {
    work: mpsc::Sender<Work>,
    /// The latest progress of what runs.
    pub progress: watch::Receiver<Option<TaskProgress>>,
    /// Members of gangs that are ready to meet the others.
    pub ready: tokio_mpsc::Receiver<PeerReady>,
    /// Ends of tasks.
    pub ended: tokio_mpsc::Receiver<TaskEnded>,
}

impl Device {
    /// Hands a task over.
    pub fn begin(&self, work: Work) {
        self.work.send(work).expect("the device thread lives as long as the worker");
    }
}

/// On what the thread computes, and how it exchanges with the members of a gang.
#[derive(Debug, Clone)]
pub struct Means {
    /// Threads for computation.
    pub threads: u32,
    /// A device as `--device` takes it.
    pub device: String,
    /// How a gang's calls travel, and how long they may take.
    pub exchange: ExchangeArgs,
}

/// Starts the thread.
///
/// # Errors
/// The system has no thread left.
pub fn start(means: Means, fault: Option<Fault>) -> Result<Device> {
    let (work, queue) = mpsc::channel::<Work>();
    let (progress_in, progress) = watch::channel(None);
    // One task at a time: there is never a second end before the first was taken.
    let (ended_in, ended) = tokio_mpsc::channel(4);
    let (ready_in, ready) = tokio_mpsc::channel(4);
    let fault = fault.map(Arc::new);
    let thread = std::thread::Builder::new().name("device".into()).spawn(move || {
        let mut names = Names { exchange: means.exchange, unused: None };
        for work in queue {
            let task = work.run.task.clone().unwrap_or_default();
            let outcome = panic::all_are_errors(|| {
                carry_out(work, &means, (&ready_in, &mut names), fault.clone(), progress_in.clone())
            });
            let how = end(outcome);
            if ended_in.blocking_send(TaskEnded { task: Some(task), how: Some(how) }).is_err() {
                return;
            }
        }
    });
    thread.map_err(|error| Error::Config(format!("the device thread: {error}")))?;
    Ok(Device { work, progress, ready, ended })
}

/// Returns how an attempt ended. It is no fault of its task that its gang broke, another process holds the files, or the next
/// attempt has taken them over.
fn end(outcome: Result<Done>) -> How {
    match outcome {
        Ok(done) => How::Finished(Finished { summary_json: done.summary.to_string(), incomplete: done.incomplete }),
        Err(Error::Stopped) => How::Stopped(Stopped {}),
        Err(error) => {
            let held = matches!(error, Error::Shared(shared::Error::InUse { .. }));
            let infrastructure = held || matches!(error, Error::Gang(_) | Error::TakenOver { .. });
            How::Failed(Failed { problem: error.to_string(), infrastructure, held })
        }
    }
}

/// Names NCCL's communicators.
struct Names {
    exchange: ExchangeArgs,
    /// That of a gang whose members have not met: nobody has used it, and each one costs NCCL a thread that waits for them.
    unused: Option<Vec<u8>>,
}

impl Names {
    /// Returns what the first rank of a gang on this device tells the others; nothing where they exchange over the ring, or by
    /// another rank.
    fn next(&mut self, rank: u32, device: tch::Device) -> Result<Vec<u8>> {
        if rank > 0 || self.exchange.collective.on(device) == Transport::Ring {
            return Ok(Vec::new());
        }
        let name = match self.unused.take() {
            Some(name) => name,
            None => nccl::load_as_told()?.nccl.unique_id()?.0.to_vec(),
        };
        self.unused = Some(name.clone());
        Ok(name)
    }
}

fn carry_out(
    work: Work,
    means: &Means,
    (ready, names): (&tokio_mpsc::Sender<PeerReady>, &mut Names),
    fault: Option<Arc<Fault>>,
    progress: watch::Sender<Option<TaskProgress>>,
) -> Result<Done> {
    let Work { run, handle, gang } = work;
    let task = run.task.clone().unwrap_or_default();
    let command = cli::command_of(kind(&run)?, &run.args, means.threads, &means.device)?;
    let mut members: Box<dyn Collective> = match gang {
        Some(Gang { listener, address, peers }) => {
            let device = means.device.parse().map_err(Error::Config).and_then(placement::device)?;
            let nccl_id = names.next(run.rank, device)?;
            // Nobody listens any more where the process ends.
            let _ = ready.blocking_send(PeerReady { task: Some(task.clone()), address, nccl_id });
            let peers = peers_of(&peers, &handle)?;
            let given_up = handle.broken.clone();
            let ring = join(&run, &task, &listener, peers.addresses, means.exchange.call_deadline(), given_up)?;
            let met = Met::new(ring).watched(handle.pulse.clone(), fault.clone());
            *handle.aborter.lock().unwrap_or_else(PoisonError::into_inner) = Some(met.aborter()?);
            if handle.broken.load(Ordering::SeqCst) {
                return Err(Error::Gang("a member is gone".into()));
            }
            names.unused = None;
            met.travel(means.exchange, device, Some(&peers.nccl_id))?
        }
        None => Box::new(Alone),
    };
    let attempt = Attempt {
        task: format!("{}/{}/{}", task.run, task.stage, task.task),
        submission: task.submission,
        attempt: task.attempt,
    };
    let sink: Sink = Box::new(move |Progress { work, begun_at, done, total, note }| {
        progress.send_replace(Some(TaskProgress { task: Some(task.clone()), done, total, note, work, begun_at }));
    });
    let control = Control::of_task(fault, handle.stop.clone(), sink, Some(attempt));
    let outcome = cli::carry_out(&command, &control, Some(&mut *members));
    *handle.aborter.lock().unwrap_or_else(PoisonError::into_inner) = None;
    outcome
}

fn kind(run: &RunTask) -> Result<&'static str> {
    match run.kind() {
        TaskKind::Score => Ok("score"),
        TaskKind::Train => Ok("train"),
        TaskKind::Generate => Ok("generate"),
        TaskKind::Merge => Ok("merge"),
        TaskKind::Unspecified => Err(Error::Config(format!("task kind {} is not known to this worker", run.kind))),
    }
}

/// Waits until it is told of the other members.
fn peers_of(peers: &mpsc::Receiver<Peers>, handle: &Handle) -> Result<Peers> {
    let begun = std::time::Instant::now();
    loop {
        match peers.recv_timeout(Duration::from_millis(50)) {
            Ok(peers) => return Ok(peers),
            Err(mpsc::RecvTimeoutError::Timeout) if handle.broken.load(Ordering::SeqCst) => {
                return Err(Error::Gang("a member is gone".into()));
            }
            Err(mpsc::RecvTimeoutError::Timeout) if handle.stop.get().is_some() => return Err(Error::Stopped),
            Err(mpsc::RecvTimeoutError::Timeout) if begun.elapsed() < FORM_DEADLINE => {}
            Err(_) => return Err(Error::Gang("the other members' addresses did not come in time".into())),
        }
    }
}

/// Forms the ring.
fn join(
    run: &RunTask,
    task: &TaskRef,
    listener: &TcpListener,
    peers: Vec<String>,
    call_deadline: Duration,
    given_up: Arc<AtomicBool>,
) -> Result<Ring> {
    let secret: [u8; 32] =
        run.gang_secret.as_slice().try_into().map_err(|_| {
            Error::Config(format!("the gang's secret has {} bytes, 32 are needed", run.gang_secret.len()))
        })?;
    if peers.len() != run.world_size as usize {
        return Err(Error::Gang(format!("{} addresses came for {} members", peers.len(), run.world_size)));
    }
    let TaskRef { run: name, stage, task, attempt, submission } = task;
    Ring::form(
        listener,
        &Membership {
            rank: run.rank as usize,
            peers,
            secret,
            label: format!("{name}/{submission}/{stage}/{task}/{attempt}"),
            lanes: ring::LANES,
            form_deadline: FORM_DEADLINE,
            call_deadline,
            given_up,
        },
    )
}
