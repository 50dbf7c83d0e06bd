//! One connection to each neighbour, and a plan of what goes over them: segment by segment, so that what arrives is
//! combined and sent on while the rest is still under way.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use zerocopy::IntoBytes;

use super::super::numbers::{Number, Op, combine};
use crate::pulse::Pulse;

/// Bytes that are read, combined and sent on at once: they stay in a core's cache.
const SEGMENT_BYTES: usize = 256 << 10;
/// What the system buffers of a connection without a reader, at the least: so much is written before reading.
const BUFFERED: usize = 16 << 10;

/// How long a call may take, and who is told that something moves in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Watch<'a> {
    pub(super) until: Instant,
    pub(super) pulse: &'a Pulse,
}

/// What one rank does within a call, in this order; parts are counted as the call cuts its buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    /// The part that is sent as it is, before anything arrived.
    pub(super) first: Option<usize>,
    /// What arrives.
    pub(super) arrivals: Vec<Arrival>,
}

/// A part that arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Arrival {
    pub(super) part: usize,
    /// How it is combined with the rank's own; none replaces that.
    pub(super) op: Option<Op>,
    /// Whether it goes on to the next rank.
    pub(super) is_passed_on: bool,
}

/// One connection to each neighbour.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) next: TcpStream,
    pub(super) previous: TcpStream,
    /// Buffers of segments that were sent: as many as a rank has had to send at once, a part of a call.
    spare: Vec<Vec<u8>>,
}

impl Lane {
    pub(super) fn new(next: TcpStream, previous: TcpStream) -> Self {
        Lane { next, previous, spare: Vec::new() }
    }

    pub(super) fn shut_down(&self) {
        let _ = self.next.shutdown(Shutdown::Both);
        let _ = self.previous.shutdown(Shutdown::Both);
    }

    /// Takes whatever comes and says nothing, as a network that swallows everything, until the call is ended from elsewhere
    /// or its time is over.
    pub(super) fn swallow(&mut self, until: Instant) {
        let mut taken = vec![0; SEGMENT_BYTES];
        while let Ok(left) = left(until)
            && self.previous.set_read_timeout(Some(left)).is_ok()
            && matches!(self.previous.read(&mut taken), Ok(1..))
        {}
        self.shut_down();
    }

    /// Carries out a plan with the parts of a buffer. After an error both connections are closed, so that it goes round.
    pub(super) fn run<N: Number>(
        &mut self,
        plan: &Plan,
        parts: &mut [&mut [N]],
        watch: Watch<'_>,
    ) -> std::io::Result<()> {
        let largest = parts.iter().map(|part| size_of_val(&**part)).max().unwrap_or_default();
        let outcome =
            if largest <= BUFFERED { self.run_small(plan, parts, watch) } else { self.run_large(plan, parts, watch) };
        if outcome.is_err() {
            self.shut_down();
        }
        outcome
    }

    /// Whatever is sent fits into the system's buffers, so one thread does all.
    fn run_small<N: Number>(&mut self, plan: &Plan, parts: &mut [&mut [N]], watch: Watch<'_>) -> std::io::Result<()> {
        if let Some(first) = plan.first {
            write_by(&mut self.next, parts[first].as_bytes(), watch)?;
        }
        let mut arrived = Vec::new();
        for arrival in &plan.arrivals {
            let own = &mut *parts[arrival.part];
            arrived.resize(own.len(), N::default());
            read_by(&mut self.previous, arrived.as_mut_bytes(), watch)?;
            take(arrival, own, &arrived);
            if arrival.is_passed_on {
                write_by(&mut self.next, own.as_bytes(), watch)?;
            }
        }
        Ok(())
    }

    /// A second thread sends, so that nobody waits for a reader that waits itself.
    fn run_large<N: Number>(&mut self, plan: &Plan, parts: &mut [&mut [N]], watch: Watch<'_>) -> std::io::Result<()> {
        let Lane { next, previous, spare } = self;
        let (to_send, segments) = channel::<Vec<u8>>();
        let (give_back, sent) = channel::<Vec<u8>>();
        spare.drain(..).for_each(|buffer| give_back.send(buffer).expect("the receiver is here"));
        std::thread::scope(|scope| {
            let sending = scope.spawn(move || send(next, &segments, &give_back, watch));
            let received = receive(previous, plan, parts, Outbox { to_send: &to_send, sent: &sent }, watch);
            drop(to_send);
            if received.is_err() {
                // The sender may wait for a reader that is gone.
                let _ = previous.shutdown(Shutdown::Both);
            }
            let was_sent = sending.join().expect("sending does not panic");
            spare.extend(sent.try_iter());
            // Whoever lost a neighbour first says so; the other side's loss follows from it.
            received.and(was_sent)
        })
    }
}

fn send(
    next: &mut TcpStream,
    segments: &Receiver<Vec<u8>>,
    give_back: &Sender<Vec<u8>>,
    watch: Watch<'_>,
) -> std::io::Result<()> {
    for segment in segments {
        if let Err(error) = write_by(next, &segment, watch) {
            let _ = next.shutdown(Shutdown::Both);
            return Err(error);
        }
        let _ = give_back.send(segment);
    }
    Ok(())
}

/// What is to be sent, in order, and the buffers that come back.
struct Outbox<'a> {
    to_send: &'a Sender<Vec<u8>>,
    sent: &'a Receiver<Vec<u8>>,
}

impl Outbox<'_> {
    /// Queues a copy; the sender's own error says why it is gone.
    fn queue(&self, bytes: &[u8]) {
        let mut buffer = self.sent.try_recv().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(bytes);
        let _ = self.to_send.send(buffer);
    }
}

fn receive<N: Number>(
    previous: &mut TcpStream,
    plan: &Plan,
    parts: &mut [&mut [N]],
    outbox: Outbox<'_>,
    watch: Watch<'_>,
) -> std::io::Result<()> {
    let length = (SEGMENT_BYTES / size_of::<N>()).max(1);
    let segment = |part: &[N], at: usize| (at * length).min(part.len())..((at + 1) * length).min(part.len());
    let segments = |part: &[N]| part.len().div_ceil(length);
    // All of the rank's own comes before what is passed on.
    if let Some(first) = plan.first {
        let own = &*parts[first];
        (0..segments(own)).for_each(|at| outbox.queue(own[segment(own, at)].as_bytes()));
    }
    let mut arrived = vec![N::default(); length];
    for arrival in &plan.arrivals {
        let own = &mut *parts[arrival.part];
        for at in 0..segments(own) {
            let range = segment(own, at);
            let arrived = &mut arrived[..range.len()];
            read_by(previous, arrived.as_mut_bytes(), watch)?;
            let own = &mut own[range];
            take(arrival, own, arrived);
            if arrival.is_passed_on {
                outbox.queue(own.as_bytes());
            }
        }
    }
    Ok(())
}

fn take<N: Number>(arrival: &Arrival, own: &mut [N], arrived: &[N]) {
    match arrival.op {
        Some(op) => combine(op, own, arrived),
        None => own.copy_from_slice(arrived),
    }
}

/// Returns the time left; an error where there is none.
fn left(until: Instant) -> std::io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn read_by(stream: &mut TcpStream, mut into: &mut [u8], watch: Watch<'_>) -> std::io::Result<()> {
    while !into.is_empty() {
        stream.set_read_timeout(Some(left(watch.until)?))?;
        match stream.read(into) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                watch.pulse.moved();
                into = &mut into[count..];
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn write_by(stream: &mut TcpStream, mut bytes: &[u8], watch: Watch<'_>) -> std::io::Result<()> {
    while !bytes.is_empty() {
        stream.set_write_timeout(Some(left(watch.until)?))?;
        match stream.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => {
                watch.pulse.moved();
                bytes = &bytes[count..];
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
