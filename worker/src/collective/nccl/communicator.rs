//! One member's communicator: calls that are begun, watched until they are done, and ended where they take too long.
//!
//! Communicators are non-blocking: a call returns at once, and this side asks NCCL for errors and the stream for its end until
//! one of them answers, the deadline has passed, or another thread has asked for the end. Then the communicator is aborted (a
//! revocation before that would race with it: NCCL takes the flags of both back when the revocation ends). What hangs all the
//! same, in an abort or in a call that should not block, ends the process: the last resort, from where the coordinator gives
//! the task to others.
//!
//! Work goes to a stream of its own that waits for what libtorch has given the default stream so far; whoever called goes on when
//! the work is done. So the numbers are there, and later work of libtorch finds them.

#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::ffi::c_int;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::library::{Comm, Config, Cuda, Event, IN_PROGRESS, NOT_READY, Nccl, Status, Stream, UniqueId};
use crate::error::{Error, Result};
use crate::pulse::Pulse;

/// The exit code of a process that NCCL does not let go on.
pub const STUCK: i32 = 70;

/// Bytes a second that a slow network moves at least; a call that goes on for no longer than twice its numbers, which is what a
/// sum sends, take at that rate moves, as far as anyone can tell.
const SLOW_NETWORK: f64 = 100e6;
/// A communicator's first call of a kind makes its connections, too.
const FIRST_CALL: Duration = Duration::from_secs(60);

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Until all members have come.
    pub form: Duration,
    /// A call.
    pub call: Duration,
    /// After that, an abort; then the process ends.
    pub abort: Duration,
}

/// Both libraries.
#[derive(Debug, Clone)]
pub struct Libraries {
    /// NCCL.
    pub nccl: Arc<Nccl>,
    /// The CUDA runtime.
    pub cuda: Arc<Cuda>,
}

/// A communicator of this process.
#[derive(Debug)]
pub struct Communicator {
    libraries: Libraries,
    comm: Comm,
    stream: Stream,
    event: Event,
    device: c_int,
    limits: Limits,
    /// Another thread wants it to end.
    abort: Arc<AtomicBool>,
    watch: Watch,
    /// Tells others whether it is in a call.
    pulse: Arc<Pulse>,
    /// Kinds of calls that have been made.
    made: BTreeSet<String>,
    /// Why no call is made any more.
    broken: Option<String>,
}

// SAFETY: NCCL's and CUDA's handles may be used by any thread, one at a time; the device is set before every call.
unsafe impl Send for Communicator {}

impl Communicator {
    /// Joins the other members; all give the same name and number of members.
    ///
    /// # Errors
    /// There is no driver or no such device, a member does not come in time, or NCCL finds something wrong.
    pub fn form(
        libraries: &Libraries,
        id: UniqueId,
        (rank, world_size): (usize, usize),
        device: usize,
        limits: Limits,
        abort: Arc<AtomicBool>,
    ) -> Result<Communicator> {
        let devices = libraries.cuda.devices()?;
        if device >= devices {
            return Err(Error::Config(format!("NCCL needs the CUDA device {device}; there are {devices}")));
        }
        let mut own = Communicator {
            libraries: libraries.clone(),
            comm: null_mut(),
            stream: null_mut(),
            event: null_mut(),
            device: number(device)?,
            limits,
            abort,
            watch: Watch::start(limits)?,
            pulse: Arc::default(),
            made: BTreeSet::new(),
            broken: None,
        };
        own.on_device()?;
        let Libraries { nccl, cuda } = libraries;
        // SAFETY: the pointers are to fields of these types.
        unsafe {
            cuda.checked("cudaStreamCreateWithFlags", (cuda.stream_create)(&raw mut own.stream, 1))?;
            cuda.checked("cudaEventCreateWithFlags", (cuda.event_create)(&raw mut own.event, 2))?;
        }
        let mut config = Config::non_blocking();
        let (size, at) = (number(world_size)?, number(rank)?);
        let watched = own.watch.over(limits.form);
        // SAFETY: room for the handle and a configuration of the size that it tells; both outlive the call.
        let status = unsafe { (nccl.init_rank_config)(&raw mut own.comm, size, id, at, &raw mut config) };
        let formed = begun(nccl, "ncclCommInitRankConfig", status)
            .and_then(|()| own.wait("joining the other members", limits.form, |_| Ok(false), |_| Ok(true)));
        drop(watched);
        match formed {
            Ok(()) => Ok(own),
            Err(error) => Err(own.end(error)),
        }
    }

    /// Lets `pulse` tell from now on whether it is in a call.
    pub fn watch_by(&mut self, pulse: Arc<Pulse>) {
        self.pulse = pulse;
    }

    /// Both libraries.
    pub fn libraries(&self) -> &Libraries {
        &self.libraries
    }

    /// Makes calls on so many bytes and waits until they are done: `enqueue` gets the communicator and the stream, and returns the
    /// status of the calls it made with their names.
    ///
    /// # Errors
    /// NCCL or CUDA finds something wrong, the deadline has passed, or another thread has asked for the end. Every later call
    /// fails, too.
    pub fn call(
        &mut self,
        what: &str,
        bytes: usize,
        enqueue: impl FnOnce(&Libraries, Comm, Stream) -> Result<()>,
    ) -> Result<()> {
        if let Some(why) = &self.broken {
            return Err(Error::Gang(format!("the communicator has ended: {why}")));
        }
        let watched = self.watch.over(self.limits.call);
        let pulse = self.pulse.clone();
        let _call = pulse.call();
        let first = if self.made.insert(what.to_owned()) { FIRST_CALL } else { Duration::ZERO };
        let moves_for = first + Duration::from_secs_f64(2.0 * bytes as f64 / SLOW_NETWORK);
        let mut computed: Option<Instant> = None;
        let moves = move |own: &Communicator| {
            // Until then this rank computes, however long.
            if computed.is_none() && own.is_computed()? {
                computed = Some(Instant::now());
            }
            Ok(computed.is_none_or(|since| since.elapsed() < moves_for))
        };
        let done = self.after_torch().and_then(|()| {
            enqueue(&self.libraries, self.comm, self.stream)?;
            self.wait(what, self.limits.call, moves, Communicator::is_stream_done)
        });
        drop(watched);
        done.map_err(|error| self.end(error))
    }

    /// Returns the watch over calls that may not return.
    pub fn watched(&self) -> Watched {
        self.watch.over(Duration::ZERO)
    }

    /// Returns at once: an error where another thread has asked for the end.
    ///
    /// # Errors
    /// It has.
    pub fn check(&self) -> Result<()> {
        match self.abort.load(Ordering::SeqCst) {
            true => Err(Error::Gang("a member is gone".into())),
            false => Ok(()),
        }
    }

    /// Returns whether calls are still made.
    pub fn is_whole(&self) -> bool {
        self.broken.is_none()
    }

    /// Makes this member's device that of the thread.
    ///
    /// # Errors
    /// CUDA refuses.
    pub fn on_device(&self) -> Result<()> {
        let cuda = &self.libraries.cuda;
        // SAFETY: no pointers.
        cuda.checked("cudaSetDevice", unsafe { (cuda.set_device)(self.device) })
    }

    /// Has the stream wait for what libtorch has been given so far.
    fn after_torch(&self) -> Result<()> {
        self.on_device()?;
        let cuda = &self.libraries.cuda;
        // SAFETY: the event and the stream are this communicator's own; the null stream is the default one.
        unsafe {
            cuda.checked("cudaEventRecord", (cuda.event_record)(self.event, null_mut()))?;
            cuda.checked("cudaStreamWaitEvent", (cuda.stream_wait)(self.stream, self.event, 0))
        }
    }

    fn is_stream_done(&self) -> Result<bool> {
        let cuda = &self.libraries.cuda;
        // SAFETY: the stream is this communicator's own.
        match unsafe { (cuda.stream_query)(self.stream) } {
            NOT_READY => Ok(false),
            status => cuda.checked("cudaStreamQuery", status).map(|()| true),
        }
    }

    /// Returns whether what libtorch had been given before the call is done.
    fn is_computed(&self) -> Result<bool> {
        let cuda = &self.libraries.cuda;
        // SAFETY: the event is this communicator's own.
        match unsafe { (cuda.event_query)(self.event) } {
            NOT_READY => Ok(false),
            status => cuda.checked("cudaEventQuery", status).map(|()| true),
        }
    }

    /// Asks NCCL, then `is_done`, until both have come to an end. As long as it `moves`, others are told so.
    fn wait(
        &self,
        what: &str,
        limit: Duration,
        mut moves: impl FnMut(&Communicator) -> Result<bool>,
        is_done: impl Fn(&Communicator) -> Result<bool>,
    ) -> Result<()> {
        let nccl = &self.libraries.nccl;
        let begun = Instant::now();
        loop {
            if self.abort.load(Ordering::SeqCst) {
                return Err(Error::Gang(format!("{what}: a member is gone")));
            }
            let mut status: Status = 0;
            // SAFETY: the communicator was made and not destroyed; the pointer is to a status.
            nccl.checked("ncclCommGetAsyncError", unsafe { (nccl.get_async_error)(self.comm, &raw mut status) })?;
            if status != IN_PROGRESS {
                nccl.checked(what, status)?;
                if is_done(self)? {
                    return Ok(());
                }
            }
            let waited = begun.elapsed();
            if moves(self)? {
                self.pulse.moved();
            }
            if waited > limit {
                let problem =
                    format!("{what}: not done within {:.0} s; a member is stuck or away", limit.as_secs_f64());
                return Err(Error::Gang(problem));
            }
            // Short calls are over before a thread has slept once.
            match waited {
                waited if waited < Duration::from_micros(200) => std::hint::spin_loop(),
                waited if waited < Duration::from_millis(20) => std::thread::sleep(Duration::from_micros(50)),
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Ends the communicator after an error, for all members; returns the error.
    fn end(&mut self, error: Error) -> Error {
        if self.broken.is_none() {
            self.broken = Some(error.to_string());
            let nccl = &self.libraries.nccl;
            if !self.comm.is_null() {
                let _watched = self.watch.over(Duration::ZERO);
                // SAFETY: the communicator was made and not destroyed; it is not used after this.
                let status = unsafe { (nccl.abort)(self.comm) };
                if let Err(problem) = begun(nccl, "ncclCommAbort", status) {
                    tracing::warn!("{problem}");
                }
            }
        }
        error
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        let Libraries { nccl, cuda } = self.libraries.clone();
        if self.broken.is_none() && !self.comm.is_null() {
            let _watched = self.watch.over(self.limits.abort);
            // SAFETY: the communicator was made and not destroyed; nothing is in flight, since every call is waited for.
            let status = unsafe { (nccl.finalize)(self.comm) };
            let finalized = begun(&nccl, "ncclCommFinalize", status)
                .and_then(|()| self.wait("leaving the other members", self.limits.abort, |_| Ok(false), |_| Ok(true)));
            // SAFETY: as above; it is not used after this.
            let status = unsafe { if finalized.is_ok() { (nccl.destroy)(self.comm) } else { (nccl.abort)(self.comm) } };
            for problem in [finalized.err(), begun(&nccl, "ncclCommDestroy", status).err()].into_iter().flatten() {
                tracing::warn!("{problem}");
            }
        }
        // SAFETY: both are this communicator's own, and not used after this.
        unsafe {
            if !self.event.is_null() {
                let _ = (cuda.event_destroy)(self.event);
            }
            if !self.stream.is_null() {
                let _ = (cuda.stream_destroy)(self.stream);
            }
        }
    }
}

/// Takes the status of a call that may go on by itself.
pub fn begun(nccl: &Nccl, call: &str, status: Status) -> Result<()> {
    if status == IN_PROGRESS { Ok(()) } else { nccl.checked(call, status) }
}

fn number(number: usize) -> Result<c_int> {
    c_int::try_from(number).map_err(|_| Error::Gang(format!("{number} is too large for NCCL")))
}

/// Ends the process without the handlers of libraries that may be stuck themselves.
fn exit_at_once(code: i32) -> ! {
    unsafe extern "C" {
        #[link_name = "_exit"]
        fn exit(code: c_int) -> !;
    }
    // SAFETY: the C library's call takes any number and does not return.
    unsafe { exit(code) }
}

/// A thread that ends the process where a call of the library does not return.
#[derive(Debug)]
struct Watch {
    until: Arc<Mutex<Option<Instant>>>,
    abort: Duration,
}

impl Watch {
    fn start(limits: Limits) -> Result<Watch> {
        let until: Arc<Mutex<Option<Instant>>> = Arc::default();
        let seen = Arc::downgrade(&until);
        let look = move || {
            // It ends with its communicator.
            while let Some(until) = seen.upgrade() {
                let late =
                    until.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| Instant::now() > until);
                if late {
                    tracing::error!(
                        "a call of NCCL does not return, nor does its abort; this process ends (code {STUCK})"
                    );
                    exit_at_once(STUCK);
                }
                drop(until);
                std::thread::sleep(Duration::from_millis(50));
            }
        };
        let thread = std::thread::Builder::new().name("nccl watch".into()).spawn(look);
        thread.map_err(|error| Error::Config(format!("a thread that watches NCCL: {error}")))?;
        Ok(Watch { until, abort: limits.abort })
    }

    /// From now until the guard is dropped a call may take `limit`, and the time of an abort.
    fn over(&self, limit: Duration) -> Watched {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + limit + self.abort);
        Watched(self.until.clone())
    }
}

/// While it lives, a call may take the time of an abort.
pub struct Watched(Arc<Mutex<Option<Instant>>>);

impl Drop for Watched {
    fn drop(&mut self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
