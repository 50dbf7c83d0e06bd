//! How the members of a ring meet: each dials the next one and accepts the one before, and both prove to each other that
//! they are of this attempt.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Membership, lost};
use crate::error::{Error, Result};

const MAGIC: &[u8; 8] = b"trace-r3";
/// Longest wait for one answer of whoever is at the other end, twice as long for the last word: between two of them it is seen whether
/// the ring is given up.
const ANSWER: Duration = Duration::from_secs(2);

/// Dials the next member for a lane.
pub(super) fn dial(membership: &Membership, lane: u8, until: Instant) -> Result<TcpStream> {
    let to = (membership.rank + 1) % membership.peers.len();
    let address = &membership.peers[to];
    let mut last = String::new();
    while is_awaited(membership, until)? {
        match connect(address, until) {
            Ok(mut stream) => match introduce(&mut stream, membership, (to, lane), until) {
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

/// Accepts the member before on every lane; returns the connections in the lanes' order.
pub(super) fn accept(listener: &TcpListener, membership: &Membership, until: Instant) -> Result<Vec<TcpStream>> {
    let rank = membership.rank;
    let from = (rank + membership.peers.len() - 1) % membership.peers.len();
    listener.set_nonblocking(true).map_err(|error| lost(rank, &error))?;
    let mut lanes: Vec<Option<TcpStream>> = (0..membership.lanes).map(|_| None).collect();
    let mut last = String::new();
    while is_awaited(membership, until)? {
        match listener.accept() {
            Ok((mut stream, address)) => match welcome(&mut stream, membership, from, until) {
                Ok(lane) => {
                    lanes[usize::from(lane)] = Some(stream);
                    if lanes.iter().all(Option::is_some) {
                        return Ok(lanes.into_iter().flatten().collect());
                    }
                }
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

/// Returns whether there is time for the members to come.
fn is_awaited(membership: &Membership, until: Instant) -> Result<bool> {
    match membership.given_up.load(Ordering::SeqCst) {
        true => Err(Error::Gang(format!("rank {}: a member is gone before the ring had formed", membership.rank))),
        false => Ok(Instant::now() < until),
    }
}

/// Connects, with a machine that does not answer, too, in a known time.
fn connect(address: &str, until: Instant) -> std::io::Result<TcpStream> {
    let mut failed = std::io::Error::other("the name has no address");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, patience(until)) {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Proves knowledge of the secret for one direction of one connection, a lane of so many.
fn proof(membership: &Membership, (from, to, lane): (usize, usize, u8), challenge: &[u8; 32], side: &str) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_keyed(&membership.secret);
    hasher.update(side.as_bytes()).update(challenge).update(membership.label.as_bytes());
    hasher.update(&(from as u64).to_le_bytes()).update(&(to as u64).to_le_bytes());
    hasher.update(&[lane, membership.lanes]);
    *hasher.finalize().as_bytes()
}

/// The dialler's side: magic, lane and its challenge; the acceptor's proof and challenge; the dialler's proof; the acceptor's word that
/// it was in time.
fn introduce(
    stream: &mut TcpStream,
    membership: &Membership,
    (to, lane): (usize, u8),
    until: Instant,
) -> std::io::Result<()> {
    let connection = (membership.rank, to, lane);
    let until = limit(stream, until)?;
    let challenge = random()?;
    stream.write_all(&[&MAGIC[..], &[lane], &challenge].concat())?;
    let answer: [u8; 64] = read(stream, until)?;
    let (their_proof, their_challenge) = answer.split_at(32);
    check(their_proof, &proof(membership, connection, &challenge, "acceptor"))?;
    let their_challenge: [u8; 32] = their_challenge.try_into().expect("half of 64 bytes");
    stream.write_all(&proof(membership, connection, &their_challenge, "dialler"))?;
    // The other side says so within the time that it gives itself, or never: it is waited for longer than that.
    stream.set_read_timeout(Some(2 * ANSWER))?;
    read::<1>(stream, until + 2 * ANSWER).map(drop)
}

/// The acceptor's side; returns the lane.
fn welcome(stream: &mut TcpStream, membership: &Membership, from: usize, until: Instant) -> std::io::Result<u8> {
    stream.set_nonblocking(false)?;
    let until = limit(stream, until)?;
    let hello: [u8; MAGIC.len() + 1 + 32] = read(stream, until)?;
    let (magic, rest) = hello.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(std::io::Error::other("it is no member of a gang"));
    }
    let lane = rest[0];
    if lane >= membership.lanes {
        return Err(std::io::Error::other("it counts other connections"));
    }
    let their_challenge: [u8; 32] = rest[1..].try_into().expect("the rest of the bytes");
    let connection = (from, membership.rank, lane);
    let challenge = random()?;
    let own = proof(membership, connection, &their_challenge, "acceptor");
    stream.write_all(&[own, challenge].concat())?;
    let their_proof: [u8; 32] = read(stream, until)?;
    check(&their_proof, &proof(membership, connection, &challenge, "dialler"))?;
    if Instant::now() > until {
        // This process stood still, and the other side may have given up.
        return Err(std::io::ErrorKind::TimedOut.into());
    }
    stream.write_all(&[1])?;
    Ok(lane)
}

fn patience(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now()).clamp(Duration::from_millis(1), ANSWER)
}

/// Limits what the other side may take to say who it is; returns until when it may.
fn limit(stream: &TcpStream, until: Instant) -> std::io::Result<Instant> {
    let patience = patience(until);
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    Ok(Instant::now() + patience)
}

/// Reads so many bytes, which may not come one by one for ever.
fn read<const N: usize>(stream: &mut TcpStream, until: Instant) -> std::io::Result<[u8; N]> {
    let (mut bytes, mut come) = ([0; N], 0);
    while come < N {
        match stream.read(&mut bytes[come..]) {
            Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(more) => come += more,
            // Its process was stopped and goes on.
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        if come < N && Instant::now() > until {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
    }
    Ok(bytes)
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
mod tests {
    use std::sync::Arc;

    use super::*;

    fn membership(rank: usize) -> Membership {
        Membership {
            rank,
            peers: vec![String::new(); 2],
            secret: [7; 32],
            label: "meeting".into(),
            lanes: 1,
            form_deadline: ANSWER,
            call_deadline: ANSWER,
            given_up: Arc::default(),
        }
    }

    /// Two connected ends.
    fn ends() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let dialled = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (dialled, listener.accept().unwrap().0)
    }

    #[test]
    fn who_dials_is_in_once_the_other_has_said_so() {
        let [dials, accepts] = [0, 1].map(membership);
        let until = Instant::now() + 10 * ANSWER;
        for says_so in [true, false] {
            let (mut dialled, mut accepted) = ends();
            std::thread::scope(|scope| {
                let lane = scope.spawn(|| {
                    if says_so {
                        return welcome(&mut accepted, &accepts, 0, until).unwrap();
                    }
                    // All but its last word, by one who knows the secret.
                    accepted.set_read_timeout(Some(5 * ANSWER)).unwrap();
                    let hello: [u8; MAGIC.len() + 1 + 32] = read(&mut accepted, until).unwrap();
                    let challenge = hello[MAGIC.len() + 1..].try_into().unwrap();
                    let own = proof(&accepts, (0, 1, 0), challenge, "acceptor");
                    accepted.write_all(&[own, [5; 32]].concat()).unwrap();
                    read::<32>(&mut accepted, until).unwrap();
                    drop(accepted);
                    0
                });
                assert_eq!(introduce(&mut dialled, &dials, (1, 0), until).is_ok(), says_so);
                assert_eq!(lane.join().unwrap(), 0);
            });
        }
    }

    #[test]
    fn who_says_it_byte_by_byte_is_not_waited_for_longer() {
        let (mut dialled, mut accepted) = ends();
        let begun = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for byte in MAGIC.iter().cycle() {
                    if dialled.write_all(&[*byte]).is_err() {
                        return;
                    }
                    std::thread::sleep(ANSWER / 4);
                }
            });
            let until = begun + 100 * ANSWER;
            assert!(welcome(&mut accepted, &membership(1), 0, until).is_err());
            drop(accepted);
        });
        assert!(begun.elapsed() >= ANSWER && begun.elapsed() < 9 * ANSWER, "41 bytes would take ten times that");
    }
}
