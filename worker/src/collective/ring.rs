//! A ring over TCP: every rank sends to the next one and receives from the one before.
//!
//! A sum goes round in two turns: chunk by chunk it is gathered (each rank adds its own), then the finished chunks go
//! round. The order of the additions of a chunk is fixed by ranks, so the bits are the same every time and everywhere.
//! Members prove to each other that they know the attempt's secret; nobody else, and no member of another attempt, gets
//! in. Whoever loses a neighbour closes both sides, so that the failure goes round too.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::Collective;
use crate::error::{Error, Result};

/// How long a member waits for its neighbours within a call. A dead process is noticed at once, by its closed
/// connection; this is for a machine that vanished. Steps of a large model on a slow member must fit in.
pub const CALL_DEADLINE: Duration = Duration::from_secs(600);
const MAGIC: &[u8; 8] = b"trace-r1";
/// What the system buffers of a connection without a reader, at the least: so much is written before reading.
const BUFFERED: usize = 16 << 10;

/// One member's place in a ring.
#[derive(Debug)]
pub struct Ring {
    rank: usize,
    world_size: usize,
    next: TcpStream,
    previous: TcpStream,
}

/// Ends a ring's calls from another thread.
#[derive(Debug)]
pub struct Aborter {
    next: TcpStream,
    previous: TcpStream,
}

impl Aborter {
    /// Makes the present call, and every later one, fail at once; the other members notice.
    pub fn abort(&self) {
        let _ = self.next.shutdown(Shutdown::Both);
        let _ = self.previous.shutdown(Shutdown::Both);
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
    /// How long the ring may take to form.
    pub form_deadline: Duration,
    /// How long a call may wait.
    pub call_deadline: Duration,
}

impl Ring {
    /// Joins the ring: dials the next member and accepts the one before.
    ///
    /// # Errors
    /// Not all members came in time, or someone else did.
    pub fn form(listener: &TcpListener, membership: &Membership) -> Result<Ring> {
        let Membership { rank, peers, .. } = membership;
        let world_size = peers.len();
        if world_size < 2 || *rank >= world_size {
            return Err(Error::Config(format!("rank {rank} of {world_size}: a ring has at least 2 members")));
        }
        let until = Instant::now() + membership.form_deadline;
        let (next, previous) = std::thread::scope(|scope| {
            let accepting = scope.spawn(|| accept(listener, membership, until));
            let next = dial(membership, until);
            (next, accepting.join().expect("accepting does not panic"))
        });
        let (next, previous) = (next?, previous?);
        for stream in [&next, &previous] {
            let set = stream
                .set_nonblocking(false)
                .and_then(|()| stream.set_nodelay(true))
                .and_then(|()| stream.set_read_timeout(Some(membership.call_deadline)))
                .and_then(|()| stream.set_write_timeout(Some(membership.call_deadline)));
            set.map_err(|error| lost(*rank, &error))?;
        }
        Ok(Ring { rank: *rank, world_size, next, previous })
    }

    /// Returns a handle that ends this ring's calls.
    ///
    /// # Errors
    /// The system has no descriptor left.
    pub fn aborter(&self) -> Result<Aborter> {
        let copy = |stream: &TcpStream| stream.try_clone().map_err(|error| lost(self.rank, &error));
        Ok(Aborter { next: copy(&self.next)?, previous: copy(&self.previous)? })
    }

    /// Sends bytes on and receives as many as `into` holds, at the same time.
    fn exchange(&mut self, bytes: &[u8], into: &mut [u8]) -> Result<()> {
        let (next, previous) = (&mut self.next, &mut self.previous);
        let outcome = if bytes.len() <= BUFFERED {
            next.write_all(bytes).and_then(|()| previous.read_exact(into))
        } else {
            std::thread::scope(|scope| {
                let writing = scope.spawn(|| next.write_all(bytes));
                let read = previous.read_exact(into);
                if read.is_err() {
                    // The writer may wait for a reader that is gone.
                    let _ = previous.shutdown(Shutdown::Both);
                }
                writing.join().expect("writing does not panic").and(read)
            })
        };
        outcome.map_err(|error| {
            let _ = self.next.shutdown(Shutdown::Both);
            let _ = self.previous.shutdown(Shutdown::Both);
            lost(self.rank, &error)
        })
    }

    fn sum<N: Number>(&mut self, numbers: &mut [N]) -> Result<()> {
        let (rank, world) = (self.rank, self.world_size);
        let chunk = |index: usize| {
            let index = index % world;
            (numbers_before(numbers.len(), index, world), numbers_before(numbers.len(), index + 1, world))
        };
        let bounds: Vec<(usize, usize)> = (0..world).map(chunk).collect();
        let mut received = Vec::new();
        // After turn t, the chunk that came t + 1 ranks along holds the sum of t + 2 ranks.
        for turn in 0..world - 1 {
            let (from, to) = bounds[(rank + world - turn) % world];
            let (into_from, into_to) = bounds[(rank + 2 * world - turn - 1) % world];
            let bytes = N::to_bytes(&numbers[from..to]);
            received.resize((into_to - into_from) * N::SIZE, 0);
            self.exchange(&bytes, &mut received)?;
            for (own, bytes) in numbers[into_from..into_to].iter_mut().zip(received.chunks_exact(N::SIZE)) {
                *own = N::from_bytes(bytes).plus(*own);
            }
        }
        for turn in 0..world - 1 {
            let (from, to) = bounds[(rank + 1 + world - turn) % world];
            let (into_from, into_to) = bounds[(rank + world - turn) % world];
            let bytes = N::to_bytes(&numbers[from..to]);
            received.resize((into_to - into_from) * N::SIZE, 0);
            self.exchange(&bytes, &mut received)?;
            for (own, bytes) in numbers[into_from..into_to].iter_mut().zip(received.chunks_exact(N::SIZE)) {
                *own = N::from_bytes(bytes);
            }
        }
        Ok(())
    }
}

/// Returns how many of `length` numbers lie before chunk `index` of `world`.
fn numbers_before(length: usize, index: usize, world: usize) -> usize {
    (length as u128 * index as u128 / world as u128) as usize
}

impl Collective for Ring {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn all_reduce(&mut self, numbers: &mut [f32]) -> Result<()> {
        self.sum(numbers)
    }

    fn all_reduce_f64(&mut self, numbers: &mut [f64]) -> Result<()> {
        self.sum(numbers)
    }
}

/// Numbers that go round.
trait Number: Copy {
    const SIZE: usize;
    fn to_bytes(numbers: &[Self]) -> Vec<u8>;
    fn from_bytes(bytes: &[u8]) -> Self;
    fn plus(self, other: Self) -> Self;
}

macro_rules! number {
    ($type:ty) => {
        impl Number for $type {
            const SIZE: usize = size_of::<$type>();

            fn to_bytes(numbers: &[Self]) -> Vec<u8> {
                numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
            }

            fn from_bytes(bytes: &[u8]) -> Self {
                Self::from_le_bytes(bytes.try_into().expect("a chunk of this size"))
            }

            fn plus(self, other: Self) -> Self {
                self + other
            }
        }
    };
}

number!(f32);
number!(f64);

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

fn dial(membership: &Membership, until: Instant) -> Result<TcpStream> {
    let to = (membership.rank + 1) % membership.peers.len();
    let address = &membership.peers[to];
    let mut last = String::new();
    while Instant::now() < until {
        match TcpStream::connect(address) {
            Ok(mut stream) => match introduce(&mut stream, membership, to, until) {
                Ok(()) => return Ok(stream),
                // The port may still be another program's; the member comes later.
                Err(error) => last = error.to_string(),
            },
            Err(error) => last = error.to_string(),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(Error::Gang(format!("rank {}: rank {to} at {address} did not join in time: {last}", membership.rank)))
}

fn accept(listener: &TcpListener, membership: &Membership, until: Instant) -> Result<TcpStream> {
    let rank = membership.rank;
    let from = (rank + membership.peers.len() - 1) % membership.peers.len();
    listener.set_nonblocking(true).map_err(|error| lost(rank, &error))?;
    let mut last = String::new();
    while Instant::now() < until {
        match listener.accept() {
            Ok((mut stream, address)) => match welcome(&mut stream, membership, from, until) {
                Ok(()) => return Ok(stream),
                Err(error) => last = format!(" (someone at {address} did: {error})"),
            },
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(lost(rank, &error)),
        }
    }
    Err(Error::Gang(format!("rank {rank}: rank {from} did not join in time{last}")))
}

/// Proves knowledge of the secret for one direction of one connection.
fn proof(membership: &Membership, from: usize, to: usize, challenge: &[u8; 32], side: &str) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_keyed(&membership.secret);
    hasher.update(side.as_bytes()).update(challenge).update(membership.label.as_bytes());
    hasher.update(&(from as u64).to_le_bytes()).update(&(to as u64).to_le_bytes());
    *hasher.finalize().as_bytes()
}

/// The dialler's side: magic and its challenge; the acceptor's proof and challenge; the dialler's proof.
fn introduce(stream: &mut TcpStream, membership: &Membership, to: usize, until: Instant) -> std::io::Result<()> {
    patience(stream, until)?;
    let challenge = random()?;
    stream.write_all(&[&MAGIC[..], &challenge].concat())?;
    let mut answer = [0; 64];
    stream.read_exact(&mut answer)?;
    let (their_proof, their_challenge) = answer.split_at(32);
    check(their_proof, &proof(membership, membership.rank, to, &challenge, "acceptor"))?;
    let their_challenge: [u8; 32] = their_challenge.try_into().expect("half of 64 bytes");
    stream.write_all(&proof(membership, membership.rank, to, &their_challenge, "dialler"))
}

fn welcome(stream: &mut TcpStream, membership: &Membership, from: usize, until: Instant) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    patience(stream, until)?;
    let mut hello = [0; 40];
    stream.read_exact(&mut hello)?;
    if hello[..8] != MAGIC[..] {
        return Err(std::io::Error::other("it is no member of a gang"));
    }
    let their_challenge: [u8; 32] = hello[8..].try_into().expect("the rest of 40 bytes");
    let challenge = random()?;
    let own = proof(membership, from, membership.rank, &their_challenge, "acceptor");
    stream.write_all(&[own, challenge].concat())?;
    let mut their_proof = [0; 32];
    stream.read_exact(&mut their_proof)?;
    check(&their_proof, &proof(membership, from, membership.rank, &challenge, "dialler"))
}

fn patience(stream: &TcpStream, until: Instant) -> std::io::Result<()> {
    let left = until.saturating_duration_since(Instant::now()).clamp(Duration::from_millis(1), Duration::from_secs(5));
    stream.set_read_timeout(Some(left))?;
    stream.set_write_timeout(Some(left))
}

fn check(given: &[u8], wanted: &[u8; 32]) -> std::io::Result<()> {
    // Hashes compare in constant time.
    let given: [u8; 32] = given.try_into().map_err(|_| std::io::Error::other("a proof has 32 bytes"))?;
    if blake3::Hash::from(given) == blake3::Hash::from(*wanted) {
        return Ok(());
    }
    Err(std::io::Error::other("it is no member of this attempt"))
}

fn random() -> std::io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
