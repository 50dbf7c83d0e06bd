//! The thread that writes checkpoints while training goes on, one at a time, and what must be there before the next one.
//!
//! ```text
//!  training:  begin ──▶            publish ──▶
//!  thread:         parts on disk ─▶         state.json, metrics synced, fence, rename, prune ─▶ idle
//! ```
//!
//! The first rank's thread publishes by itself where nothing is sharded; else it waits until it is told that every rank's part
//! is on the disk. Threads of other ranks only write their parts.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;

use tch::Kind;

use super::folder::{self, Unfinished};
use super::snapshot::Snapshot;
use crate::error::{Error, Result};
use crate::fault::{self, Fault};
use crate::panic;
use crate::train::pace::Seen;

/// Something that must succeed before a checkpoint appears.
pub(super) type Before = Box<dyn Fn() -> Result<()> + Send>;

/// What stays the same over a run.
pub(super) struct Terms {
    /// Rank and world size.
    pub(super) place: (usize, usize),
    pub(super) run_dir: std::path::PathBuf,
    pub(super) run_key: String,
    /// Checkpoints that stay.
    pub(super) keep: usize,
    /// Makes sure that the run's folder is still this process's: asked before anything there is replaced or removed.
    pub(super) fence: Before,
    /// Planned deaths, for tests.
    pub(super) fault: Option<Arc<Fault>>,
}

/// One checkpoint to write.
pub(super) struct Job {
    pub(super) unfinished: Unfinished,
    pub(super) step: u64,
    pub(super) seen: Seen,
    pub(super) snapshot: Snapshot,
    /// Puts what the checkpoint counts on onto the disk: the rows of metrics before it.
    pub(super) sync: Before,
}

enum Order {
    /// Make room for tensors of these sizes.
    Prepare(Vec<(Vec<i64>, Kind)>),
    Write(Box<Job>),
    Publish,
    /// Do something else; what follows counts on it.
    Do(Work),
}

/// Something that must be on the disk before the next checkpoint.
pub(super) type Work = Box<dyn FnOnce() -> Result<()> + Send>;

enum Said {
    /// There is room for a snapshot.
    Prepared(Snapshot),
    /// This rank's part is on the disk; its room can be used again.
    OnDisk(Snapshot),
    /// The checkpoint has its name.
    Published,
    /// Another work has ended.
    Done(Result<()>),
}

/// Where the present checkpoint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Idle,
    Writing,
    /// On this rank.
    OnDisk,
    Publishing,
}

/// The thread, seen from training.
pub(super) struct Writer {
    orders: Option<Sender<Order>>,
    said: Receiver<Result<Said>>,
    thread: Option<JoinHandle<()>>,
    phase: Phase,
    /// The room of the last snapshot, or the first one's.
    pub(super) room: Snapshot,
    /// That room is being made.
    is_preparing: bool,
    /// Other works that are not done.
    works: usize,
}

impl Writer {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no thread left.
    pub(super) fn start(terms: Terms) -> Result<Writer> {
        let (orders, queue) = channel();
        let (say, said) = channel();
        let thread = std::thread::Builder::new().name("checkpoints".into()).spawn(move || serve(&terms, &queue, &say));
        let thread = thread.map_err(|error| Error::Config(format!("the thread that writes checkpoints: {error}")))?;
        let (orders, thread) = (Some(orders), Some(thread));
        Ok(Writer {
            orders,
            said,
            thread,
            phase: Phase::Idle,
            room: Snapshot::default(),
            is_preparing: false,
            works: 0,
        })
    }

    /// Returns the room of the last snapshot, to be filled again. Room that is being made is waited for: a second one would take
    /// as much memory again.
    ///
    /// # Errors
    /// It could not be made.
    pub(super) fn room(&mut self) -> Result<Snapshot> {
        while self.is_preparing {
            self.wait()?;
        }
        Ok(std::mem::take(&mut self.room))
    }

    /// Has room made for snapshots of tensors of these sizes, while training goes on.
    pub(super) fn prepare(&mut self, sizes: Vec<(Vec<i64>, Kind)>) {
        self.is_preparing = true;
        self.order(Order::Prepare(sizes), Phase::Idle);
    }

    /// Begins to write. The one before must be done.
    pub(super) fn begin(&mut self, job: Job) {
        debug_assert_eq!(self.phase, Phase::Idle);
        self.order(Order::Write(Box::new(job)), Phase::Writing);
    }

    /// Gives the checkpoint that is on every rank's disk its name.
    pub(super) fn publish(&mut self) {
        debug_assert_eq!(self.phase, Phase::OnDisk);
        self.order(Order::Publish, Phase::Publishing);
    }

    /// Lets the checkpoint that is on this rank's disk be: another rank publishes it.
    pub(super) fn leave(&mut self) {
        debug_assert_eq!(self.phase, Phase::OnDisk);
        self.phase = Phase::Idle;
    }

    /// Has something else done before the next checkpoint, while training goes on. An earlier work is waited for: it holds as
    /// much memory.
    ///
    /// # Errors
    /// What was being written could not be.
    pub(super) fn also(&mut self, work: Work) -> Result<()> {
        self.wait_for_works()?;
        self.works += 1;
        self.order(Order::Do(work), self.phase);
        Ok(())
    }

    /// Returns where the present checkpoint is, as far as is known without waiting.
    ///
    /// # Errors
    /// It could not be written.
    pub(super) fn look(&mut self) -> Result<Phase> {
        loop {
            match self.said.try_recv() {
                Ok(said) => self.hear(said)?,
                Err(TryRecvError::Empty) => return Ok(self.phase),
                Err(TryRecvError::Disconnected) => return Err(gone()),
            }
        }
    }

    /// Waits until this rank's part of the checkpoint is on the disk.
    ///
    /// # Errors
    /// It could not be written.
    pub(super) fn wait_for_disk(&mut self) -> Result<()> {
        while self.phase != Phase::OnDisk {
            self.wait()?;
        }
        Ok(())
    }

    /// Waits until no checkpoint is being written.
    ///
    /// # Errors
    /// It could not be written.
    pub(super) fn wait_for_name(&mut self) -> Result<()> {
        while self.phase != Phase::Idle {
            self.wait()?;
        }
        Ok(())
    }

    /// Waits until all other works are done.
    ///
    /// # Errors
    /// One could not be.
    pub(super) fn wait_for_works(&mut self) -> Result<()> {
        while self.works > 0 {
            self.wait()?;
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<()> {
        let said = self.said.recv().map_err(|_| gone())?;
        self.hear(said)
    }

    fn order(&mut self, order: Order, phase: Phase) {
        // A thread that is gone is noticed at the next look.
        let _ = self.orders.as_ref().map(|orders| orders.send(order));
        self.phase = phase;
    }

    fn hear(&mut self, said: Result<Said>) -> Result<()> {
        match said {
            Ok(Said::Prepared(room)) => (self.room, self.is_preparing) = (room, false),
            Ok(Said::OnDisk(snapshot)) => (self.room, self.phase) = (snapshot, Phase::OnDisk),
            Ok(Said::Published) => self.phase = Phase::Idle,
            Ok(Said::Done(done)) => {
                self.works -= 1;
                return done;
            }
            Err(error) => {
                (self.phase, self.is_preparing) = (Phase::Idle, false);
                return Err(error);
            }
        }
        Ok(())
    }
}

fn gone() -> Error {
    Error::Config("the thread that writes checkpoints is gone".into())
}

/// Waits for what is being written: whoever goes on from here finds it whole.
impl Drop for Writer {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        for said in self.said.try_iter() {
            if let Err(error) = said {
                tracing::warn!("{error}");
            }
        }
    }
}

fn serve(terms: &Terms, orders: &Receiver<Order>, say: &Sender<Result<Said>>) {
    let mut ready = None;
    // Why no checkpoint appears any more: what it would count on is not there.
    let mut missing: Option<String> = None;
    for order in orders {
        let outcome = panic::all_are_errors(|| match order {
            Order::Prepare(sizes) => Ok(Some(Said::Prepared(Snapshot::room_for(sizes)))),
            Order::Write(_) | Order::Publish if missing.is_some() => {
                Err(Error::Config(format!("no checkpoint is kept: {}", missing.as_deref().unwrap_or_default())))
            }
            Order::Write(job) => {
                let (snapshot, part) = write(terms, *job)?;
                let _ = say.send(Ok(Said::OnDisk(snapshot)));
                let is_alone = part.state.shards == 0;
                ready = Some(part);
                if is_alone { publish(terms, ready.take()).map(Some) } else { Ok(None) }
            }
            Order::Publish => publish(terms, ready.take()).map(Some),
            Order::Do(work) => {
                let done = panic::all_are_errors(work);
                missing = done.as_ref().err().map(ToString::to_string).or(missing.take());
                Ok(Some(Said::Done(done)))
            }
        });
        // Whoever does not listen any more has an error of its own.
        let _ = match outcome {
            Ok(Some(said)) => say.send(Ok(said)),
            Ok(None) => Ok(()),
            Err(error) => say.send(Err(error)),
        };
    }
}

/// A checkpoint whose part of this rank is on the disk.
struct Ready {
    unfinished: Unfinished,
    state: folder::State,
    sync: Before,
}

fn write(terms: &Terms, job: Job) -> Result<(Snapshot, Ready)> {
    let Job { unfinished, step, seen, snapshot, sync } = job;
    let is_first = terms.place.0 == 0;
    let parts = || {
        fault::pass_or_hang(terms.fault.as_deref(), "checkpoint.begun");
        let mut hash = String::new();
        if is_first {
            (terms.fence)()?;
            unfinished.remove_others(&terms.fence)?;
            hash = unfinished.write_whole(&snapshot.whole)?;
        }
        if !snapshot.slices.is_empty() {
            unfinished.write_shard(terms.place, &snapshot.slices)?;
        }
        Ok(hash)
    };
    let shards = if snapshot.slices.is_empty() { 0 } else { terms.place.1 };
    match parts() {
        Ok(hash) => {
            let state = folder::state(step, &terms.run_key, &seen, hash, shards);
            Ok((snapshot, Ready { unfinished, state, sync }))
        }
        Err(error) => {
            // Other ranks may still write into it: they would report that it is gone, and not what went wrong. What stays is
            // removed before the next checkpoint.
            if shards == 0 {
                unfinished.give_up();
            }
            Err(error)
        }
    }
}

fn publish(terms: &Terms, ready: Option<Ready>) -> Result<Said> {
    let Some(Ready { unfinished, state, sync }) = ready else { return Err(gone()) };
    let published = || {
        unfinished.complete(&state)?;
        sync()?;
        fault::pass_or_hang(terms.fault.as_deref(), "checkpoint.written");
        (terms.fence)()?;
        unfinished.rename()?;
        fault::pass_or_hang(terms.fault.as_deref(), "checkpoint.renamed");
        folder::prune(&terms.run_dir, terms.keep)
    };
    published().map(|()| Said::Published).inspect_err(|_| unfinished.give_up())
}
