//! A ring over TCP: every rank sends to the next one and receives from the one before.
//!
//! A sum goes round in two turns: part by part it is gathered (each rank adds its own), then the finished parts go
//! round. The order of the additions of a part is fixed by ranks, so the bits are the same every time and everywhere.
//! Large buffers are cut over several connections ([`Lane`]), and what arrives is combined and sent on while the rest is
//! still under way. Members prove to each other that they know the attempt's secret; nobody else, and no member of
//! another attempt, gets in. Whoever loses a neighbour closes both sides, so that the failure goes round too.

mod lane;
mod meeting;

use std::net::{Shutdown, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::numbers::{Number, Numbers, Op};
use super::{Collective, shard};
use crate::error::{Error, Result};
use crate::fault::{self, Fault};
use crate::pulse::Pulse;
use lane::{Arrival, Lane, Plan, Watch};

/// Connections to each neighbour.
pub const LANES: u8 = 2;
/// Buffers below this go over one connection.
const BYTES_OF_LANES: usize = 1 << 20;

/// One member's place in a ring.
#[derive(Debug)]
pub struct Ring {
    rank: usize,
    world_size: usize,
    lanes: Vec<Lane>,
    call_deadline: Duration,
    pulse: Arc<Pulse>,
    fault: Option<Arc<Fault>>,
    is_aborted: Arc<AtomicBool>,
}

/// Ends a ring's calls from another thread.
#[derive(Debug)]
pub struct Aborter {
    streams: Vec<TcpStream>,
    is_aborted: Arc<AtomicBool>,
}

impl Aborter {
    /// Makes the present call, and every later one, fail at once; the other members notice.
    pub fn abort(&self) {
        self.is_aborted.store(true, Ordering::SeqCst);
        for stream in &self.streams {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// What the members of one attempt have in common.
#[derive(Debug, Clone)]
pub struct Membership {
    /// This member's number.
    pub rank: usize,
    /// Where the members listen, in rank order.
    pub peers: Vec<String>,
    /// Known to this attempt's members only.
    pub secret: [u8; 32],
    /// Names run, stage, task and attempt.
    pub label: String,
    /// Connections to each neighbour, the same number for all.
    pub lanes: u8,
    /// How long the ring may take to form.
    pub form_deadline: Duration,
    /// How long a call may take. A dead process is noticed at once, by its closed connection; this is for a machine that vanished.
    /// Steps of a large model on a slow member must fit in.
    pub call_deadline: Duration,
    /// Set by another thread when it is known that not all will come: the ring is not waited for any longer.
    pub given_up: Arc<AtomicBool>,
}

impl Ring {
    /// Joins the ring: dials the next member and accepts the one before.
    ///
    /// # Errors
    /// Not all members came in time, someone else did, or the ring was given up.
    pub fn form(listener: &TcpListener, membership: &Membership) -> Result<Ring> {
        let Membership { rank, peers, lanes, .. } = membership;
        let world_size = peers.len();
        if world_size < 2 || *rank >= world_size || *lanes == 0 {
            return Err(Error::Config(format!(
                "rank {rank} of {world_size}, {lanes} connections: a ring has at least 2 members and a connection"
            )));
        }
        let until = Instant::now() + membership.form_deadline;
        let (next, previous) = std::thread::scope(|scope| {
            let accepting = scope.spawn(|| meeting::accept(listener, membership, until));
            let next: Result<Vec<TcpStream>> = (0..*lanes).map(|lane| meeting::dial(membership, lane, until)).collect();
            (next, accepting.join().expect("accepting does not panic"))
        });
        let (next, previous) = (next?, previous?);
        for stream in next.iter().chain(&previous) {
            let set = stream.set_nonblocking(false).and_then(|()| stream.set_nodelay(true));
            set.map_err(|error| lost(*rank, &error))?;
        }
        let lanes = next.into_iter().zip(previous).map(|(next, previous)| Lane::new(next, previous)).collect();
        let (pulse, call_deadline) = (Arc::default(), membership.call_deadline);
        let is_aborted = Arc::default();
        Ok(Ring { rank: *rank, world_size, lanes, call_deadline, pulse, fault: None, is_aborted })
    }

    /// Lets `pulse` tell whether anything moves in the ring's calls. A plan may hang one of them: its point is `ring.call`.
    pub fn watched(self, pulse: Arc<Pulse>, fault: Option<Arc<Fault>>) -> Ring {
        Ring { pulse, fault, ..self }
    }

    /// Returns a handle that ends this ring's calls.
    ///
    /// # Errors
    /// The system has no descriptor left.
    pub fn aborter(&self) -> Result<Aborter> {
        let streams = self.lanes.iter().flat_map(|lane| [&lane.next, &lane.previous]);
        let copies: std::io::Result<Vec<TcpStream>> = streams.map(TcpStream::try_clone).collect();
        let streams = copies.map_err(|error| lost(self.rank, &error))?;
        Ok(Aborter { streams, is_aborted: self.is_aborted.clone() })
    }

    /// Returns the rank so many places before this one.
    fn before(&self, places: usize) -> usize {
        (self.rank + 2 * self.world_size - places) % self.world_size
    }

    /// Each part begins its way at the rank after its own and ends it there, with the numbers of all.
    fn reducing(&self, op: Op) -> Plan {
        let last = self.world_size - 1;
        let arrival = |turn: usize| Arrival { part: self.before(turn + 1), op: Some(op), is_passed_on: turn < last };
        Plan { first: Some(self.before(1)), arrivals: (1..=last).map(arrival).collect() }
    }

    /// Each part begins its way at its own rank and ends it at the rank before.
    fn gathering(&self) -> Plan {
        let last = self.world_size - 1;
        let arrival = |turn: usize| Arrival { part: self.before(turn), op: None, is_passed_on: turn < last };
        Plan { first: Some(self.rank), arrivals: (1..=last).map(arrival).collect() }
    }

    /// The first plan, and the second as soon as its first part has arrived.
    fn reducing_and_gathering(&self, op: Op) -> Plan {
        let mut plan = self.reducing(op);
        if let Some(own) = plan.arrivals.last_mut() {
            own.is_passed_on = true;
        }
        plan.arrivals.extend(self.gathering().arrivals);
        plan
    }

    /// Carries out a plan whose parts are these ranges of the buffer, cut over the lanes.
    fn carry_out(&mut self, numbers: Numbers<'_>, parts: &[Range<usize>], plan: &Plan) -> Result<()> {
        match numbers {
            Numbers::F32(numbers) => self.carry_out_on(numbers, parts, plan),
            Numbers::Bf16(numbers) => self.carry_out_on(numbers, parts, plan),
            Numbers::F64(numbers) => self.carry_out_on(numbers, parts, plan),
            // What goes over TCP goes through the host's memory.
            Numbers::Device(tensor) => {
                let mut host = tensor.to_device(tch::Device::Cpu);
                self.carry_out(Numbers::of(&mut host), parts, plan)?;
                tch::no_grad(|| tensor.copy_(&host));
                Ok(())
            }
        }
    }

    fn carry_out_on<N: Number>(&mut self, numbers: &mut [N], parts: &[Range<usize>], plan: &Plan) -> Result<()> {
        let until = Instant::now() + self.call_deadline;
        let pulse = self.pulse.clone();
        let (_call, watch) = (pulse.call(), Watch { until, pulse: &pulse });
        if fault::pass(self.fault.as_deref(), "ring.call") {
            self.lanes.iter_mut().for_each(|lane| lane.swallow(until));
            return Err(Error::Gang(format!("rank {}: its call hung as planned", self.rank)));
        }
        let count = if size_of_val(numbers) < BYTES_OF_LANES { 1 } else { self.lanes.len() };
        let mut of_lanes = cut(numbers, parts, count);
        let outcome = match (&mut of_lanes[..], &mut self.lanes[..]) {
            ([parts], [lane, ..]) => lane.run(plan, parts, watch),
            (of_lanes, lanes) => std::thread::scope(|scope| {
                let works = of_lanes.iter_mut().zip(lanes);
                let threads: Vec<_> =
                    works.map(|(parts, lane)| scope.spawn(move || lane.run(plan, parts, watch))).collect();
                // All must have ended; the first error says what happened.
                let ended: Vec<_> =
                    threads.into_iter().map(|thread| thread.join().expect("a lane does not panic")).collect();
                ended.into_iter().collect()
            }),
        };
        outcome.map_err(|error| {
            self.lanes.iter().for_each(Lane::shut_down);
            lost(self.rank, &error)
        })
    }

    fn shards(&self, length: usize) -> Vec<Range<usize>> {
        (0..self.world_size).map(|rank| shard(length, rank, self.world_size)).collect()
    }
}

/// Cuts every part of a buffer over `count` lanes: for each lane its share of every part. The parts follow each other.
fn cut<'a, N>(mut numbers: &'a mut [N], parts: &[Range<usize>], count: usize) -> Vec<Vec<&'a mut [N]>> {
    let mut of_lanes: Vec<Vec<&mut [N]>> = (0..count).map(|_| Vec::with_capacity(parts.len())).collect();
    for part in parts {
        for (lane, shares) in of_lanes.iter_mut().enumerate() {
            let (share, rest) = numbers.split_at_mut(shard(part.len(), lane, count).len());
            shares.push(share);
            numbers = rest;
        }
    }
    of_lanes
}

impl Collective for Ring {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn check(&self) -> Result<()> {
        match self.is_aborted.load(Ordering::SeqCst) {
            true => Err(Error::Gang(format!("rank {}: a member is gone", self.rank))),
            false => Ok(()),
        }
    }

    fn reduce_scatter(&mut self, numbers: Numbers<'_>, op: Op) -> Result<()> {
        let (parts, plan) = (self.shards(numbers.len()), self.reducing(op));
        self.carry_out(numbers, &parts, &plan)
    }

    fn all_gather(&mut self, numbers: Numbers<'_>) -> Result<()> {
        let (parts, plan) = (self.shards(numbers.len()), self.gathering());
        self.carry_out(numbers, &parts, &plan)
    }

    fn all_reduce(&mut self, numbers: Numbers<'_>, op: Op) -> Result<()> {
        let (parts, plan) = (self.shards(numbers.len()), self.reducing_and_gathering(op));
        self.carry_out(numbers, &parts, &plan)
    }

    fn broadcast(&mut self, numbers: Numbers<'_>, root: usize) -> Result<()> {
        let whole = 0..numbers.len();
        let plan = match self.rank == root {
            true => Plan { first: Some(0), arrivals: Vec::new() },
            false => {
                let is_passed_on = (self.rank + 1) % self.world_size != root;
                Plan { first: None, arrivals: vec![Arrival { part: 0, op: None, is_passed_on }] }
            }
        };
        self.carry_out(numbers, &[whole], &plan)
    }

    fn barrier(&mut self) -> Result<()> {
        // A number that has seen every rank has been everywhere.
        self.all_reduce(vec![0f32; self.world_size].as_mut_slice().into(), Op::Sum)
    }
}

fn lost(rank: usize, error: &std::io::Error) -> Error {
    let what = match error.kind() {
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => {
            "a neighbour did not answer in time".to_owned()
        }
        std::io::ErrorKind::UnexpectedEof => "a neighbour is gone".to_owned(),
        _ => error.to_string(),
    };
    Error::Gang(format!("rank {rank}: {what}"))
}

#[cfg(test)]
pub(crate) mod tests;
