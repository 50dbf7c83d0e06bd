//! The gang's calls beside the computation: a thread makes them in the order in which they are asked for.
//!
//! At most [`AHEAD`] wait, so that gradients on their way take little room. After a call that failed nothing is called any
//! more; whoever waits for weights gets none, and the failure is told at the end.

use std::cell::Cell;
use std::ops::Range;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::{Duration, Instant};

use tch::Tensor;

use super::share::part;
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
    has_failed: Cell<bool>,
}

impl Lane<'_> {
    /// Asks for the other ranks' parts of a row; what comes is the whole one, or nothing after a failure.
    pub fn gather(&self, whole: Tensor) -> Receiver<Tensor> {
        let (done, wait) = mpsc::sync_channel(1);
        self.ask(Job::Gather { whole, done });
        wait
    }

    /// Waits for what [`Lane::gather`] has asked for; nothing comes of a gang that failed.
    pub fn wait(&self, coming: &Receiver<Tensor>) -> Option<Tensor> {
        self.waits.of(|| coming.recv().ok())
    }

    /// Asks for the sum of all ranks' f32 gradients of a row; this rank's part of it is added to what came before.
    pub fn reduce(&self, row: usize, flat: Tensor) {
        self.ask(Job::Reduce { row, flat });
    }

    fn ask(&self, job: Job) {
        // A thread that has ended has failed, and says so itself.
        if self.waits.of(|| self.jobs.send(job)).is_err() {
            self.has_failed.set(true);
        }
    }

    /// Returns an error once a call was asked for after one that had failed: to go on computing is of no use.
    ///
    /// # Errors
    /// It was; [`with`] returns the failure itself.
    pub fn check(&self) -> Result<()> {
        if self.has_failed.get() { Err(Error::Gang("its calls have ended".into())) } else { Ok(()) }
    }
}

/// Lets `work` ask for calls while it computes; `owns` are this rank's parts of the rows. Returns what it returned and, when all calls are made, this rank's parts of
/// the summed gradients, one a row.
///
/// # Errors
/// A call failed.
pub fn with<T>(
    gang: &mut dyn Collective,
    owns: &[Range<usize>],
    waits: &Waits,
    work: impl FnOnce(&Lane<'_>) -> T,
) -> Result<(T, Vec<Option<Tensor>>)> {
    let (jobs, queue) = mpsc::sync_channel(AHEAD);
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
        let lane = Lane { jobs, waits, has_failed: Cell::new(false) };
        let done = work(&lane);
        drop(lane);
        let sums = waits.of(|| calls.join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok((done, sums))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tch::{Device, Kind};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// A rank whose calls last until they are let go.
    struct Held {
        begun: SyncSender<()>,
        let_go: Mutex<Receiver<()>>,
    }

    impl Collective for Held {
        fn rank(&self) -> usize {
            0
        }

        fn world_size(&self) -> usize {
            2
        }

        fn check(&self) -> Result<()> {
            Ok(())
        }

        fn reduce_scatter(&mut self, _: Numbers<'_>, _: Op) -> Result<()> {
            self.begun.send(()).unwrap();
            let let_go = self.let_go.lock().unwrap().recv_timeout(PATIENCE);
            let_go.map_err(|_| Error::Gang("nobody computed beside the call".into()))
        }

        fn all_gather(&mut self, _: Numbers<'_>) -> Result<()> {
            unreachable!()
        }

        fn all_reduce(&mut self, _: Numbers<'_>, _: Op) -> Result<()> {
            unreachable!()
        }

        fn broadcast(&mut self, _: Numbers<'_>, _: usize) -> Result<()> {
            unreachable!()
        }

        fn barrier(&mut self) -> Result<()> {
            unreachable!()
        }
    }

    #[test]
    fn who_computes_goes_on_while_a_call_is_made() {
        let (begun, has_begun) = mpsc::sync_channel(8);
        let (go, let_go) = mpsc::sync_channel(8);
        let mut gang = Held { begun, let_go: Mutex::new(let_go) };
        let numbers = |value: f64| Tensor::full([4], value, (Kind::Float, Device::Cpu));
        let ((), sums) = with(&mut gang, &[0..2, 0..2], &Waits::default(), |lane| {
            lane.reduce(1, numbers(1.0));
            has_begun.recv_timeout(PATIENCE).unwrap();
            // The next unit is computed and asked for while the first one's call is held.
            lane.reduce(0, numbers(2.0));
            lane.reduce(1, numbers(3.0));
            (0..3).for_each(|_| go.send(()).unwrap());
        })
        .unwrap();
        let sums: Vec<f64> = sums.iter().map(|sum| sum.as_ref().unwrap().double_value(&[0])).collect();
        assert_eq!(sums, [2.0, 4.0]);
    }

    #[test]
    fn a_call_that_failed_is_the_error_and_ends_the_work() {
        let (begun, _has_begun) = mpsc::sync_channel(8);
        let (go, let_go) = mpsc::sync_channel(8);
        drop(go);
        let mut gang = Held { begun, let_go: Mutex::new(let_go) };
        let numbers = || Tensor::zeros([2], (Kind::Float, Device::Cpu));
        let mut asked = 0;
        let outcome = with(&mut gang, std::slice::from_ref(&(0..2)), &Waits::default(), |lane| -> Result<()> {
            loop {
                lane.reduce(0, numbers());
                asked += 1;
                lane.check()?;
            }
        });
        assert!(outcome.unwrap_err().to_string().contains("nobody computed beside the call"));
        assert!(asked <= AHEAD + 2, "{asked}");
    }
}
