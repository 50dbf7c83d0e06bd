//! The gang's calls beside the computation: a thread makes them in the order in which they are asked for.
//!
//! At most [`AHEAD`] wait, so that gradients on their way take little room. After a call that failed nothing is called any
//! more; whoever waits for weights gets none, and the failure is told at the end.

use std::cell::Cell;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::{Duration, Instant};

use tch::Tensor;

use super::share::{Rows, part};
use crate::collective::{Collective, Numbers, Op};
use crate::error::{Error, Result};

/// Calls that may wait for the one that is made.
const AHEAD: usize = 2;

enum Job {
    Gather { whole: Tensor, done: SyncSender<Tensor> },
    Reduce { row: usize, flat: Tensor },
}

/// How long the computation waited for calls.
#[derive(Debug, Default)]
pub struct Waits(Cell<Duration>);

impl Waits {
    /// Counts the time of `work`.
    pub fn of<T>(&self, work: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let done = work();
        self.0.set(self.0.get() + begun.elapsed());
        done
    }

    /// Returns the sum.
    pub fn total(&self) -> Duration {
        self.0.get()
    }
}

/// Where calls are asked for.
pub struct Lane<'a> {
    jobs: SyncSender<Job>,
    waits: &'a Waits,
}

impl Lane<'_> {
    /// Asks for the other ranks' parts of a row; what comes is the whole one, or nothing after a failure.
    pub fn gather(&self, whole: Tensor) -> Receiver<Tensor> {
        let (done, wait) = mpsc::sync_channel(1);
        // A thread that has ended has failed, and says so itself.
        let _ = self.waits.of(|| self.jobs.send(Job::Gather { whole, done }));
        wait
    }

    /// Waits for what [`Lane::gather`] has asked for; nothing comes of a gang that failed.
    pub fn wait(&self, coming: &Receiver<Tensor>) -> Option<Tensor> {
        self.waits.of(|| coming.recv().ok())
    }

    /// Asks for the sum of all ranks' f32 gradients of a row; this rank's part of it is added to what came before.
    pub fn reduce(&self, row: usize, flat: Tensor) {
        let _ = self.waits.of(|| self.jobs.send(Job::Reduce { row, flat }));
    }
}

/// Lets `work` ask for calls while it computes. Returns what it returned and, when all calls are made, this rank's parts of
/// the summed gradients, one a row.
///
/// # Errors
/// A call failed.
pub fn with<T>(
    gang: &mut dyn Collective,
    rows: &Rows,
    waits: &Waits,
    work: impl FnOnce(&Lane<'_>) -> T,
) -> Result<(T, Vec<Option<Tensor>>)> {
    let (jobs, queue) = mpsc::sync_channel(AHEAD);
    let owns: Vec<_> = rows.rows.iter().map(|row| row.own.clone()).collect();
    std::thread::scope(|scope| {
        let calls = std::thread::Builder::new().name("gang".into()).spawn_scoped(scope, move || {
            let mut sums: Vec<Option<Tensor>> = owns.iter().map(|_| None).collect();
            for job in queue {
                match job {
                    Job::Gather { mut whole, done } => {
                        gang.all_gather(Numbers::of(&mut whole))?;
                        // Who asked may have failed meanwhile.
                        let _ = done.send(whole);
                    }
                    Job::Reduce { row, mut flat } => {
                        gang.reduce_scatter(Numbers::of(&mut flat), Op::Sum)?;
                        let own = part(&flat, &owns[row]);
                        match &mut sums[row] {
                            Some(sum) => drop(sum.g_add_(&own)),
                            sum => *sum = Some(own.copy()),
                        }
                    }
                }
            }
            Ok::<_, Error>(sums)
        });
        let calls = calls.map_err(|e| Error::Config(format!("no thread for the gang's calls: {e}")))?;
        let lane = Lane { jobs, waits };
        let done = work(&lane);
        drop(lane);
        let sums = waits.of(|| calls.join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok((done, sums))
    })
}
