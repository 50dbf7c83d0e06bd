use std::io::Write;

use shared::keyed_random::KeyedRandom;

use super::super::conformance::{self, Order};
use super::*;

fn memberships(world_size: usize, patience: Duration) -> Vec<(TcpListener, Membership)> {
    let listeners: Vec<TcpListener> = (0..world_size).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let peers: Vec<String> = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
    let member = |(rank, listener)| {
        let membership = Membership {
            rank,
            peers: peers.clone(),
            secret: [7; 32],
            label: "run/stage/task/1".into(),
            lanes: LANES,
            form_deadline: patience,
            call_deadline: patience,
            given_up: Arc::default(),
        };
        (listener, membership)
    };
    listeners.into_iter().enumerate().map(member).collect()
}

/// Runs every member on a thread of its own and returns what each made of it, in rank order.
fn gang<T: Send>(members: Vec<(TcpListener, Membership)>, work: impl Fn(Result<Ring>) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = members
            .into_iter()
            .map(|(listener, membership)| scope.spawn(move || work(Ring::form(&listener, &membership))))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn memberships_of(world_size: usize, lanes: u8) -> Vec<(TcpListener, Membership)> {
    let mut members = memberships(world_size, Duration::from_secs(60));
    members.iter_mut().for_each(|(_, membership)| membership.lanes = lanes);
    members
}

fn numbers(rank: usize, length: usize) -> Vec<f32> {
    let mut random = KeyedRandom::new(&[rank as u64, length as u64]);
    (0..length).map(|_| random.normal() as f32).collect()
}

/// The rings of a world that has met.
pub(crate) fn rings(world_size: usize) -> Vec<Ring> {
    gang(memberships_of(world_size, 1), Result::unwrap)
}

/// The ranks of a ring that has formed.
pub(crate) fn formed(world_size: usize, lanes: u8) -> Vec<Box<dyn Collective>> {
    if world_size == 1 {
        return vec![Box::new(super::super::Alone)];
    }
    gang(memberships_of(world_size, lanes), |ring| Box::new(ring.unwrap()) as Box<dyn Collective>)
}

#[test]
fn it_conforms_over_one_connection_and_several() {
    for lanes in [1, 3] {
        conformance::check(Order::OfRanks, &|world_size| formed(world_size, lanes));
    }
}

/// Sums begin at the rank after a shard's own, whatever the connections: the same bits for every number of them.
#[test]
fn sums_are_the_same_bits_over_any_number_of_connections() {
    let length = 400_001;
    let sums = |lanes: u8| {
        let ranks = gang(memberships_of(3, lanes), |ring| {
            let mut ring = ring.unwrap();
            let mut own = numbers(ring.rank(), length);
            ring.all_reduce(own.as_mut_slice().into(), Op::Sum).unwrap();
            own
        });
        ranks[0].iter().map(|number| number.to_bits()).collect::<Vec<_>>()
    };
    let of_ranks: Vec<Vec<f32>> = (0..3).map(|rank| numbers(rank, length)).collect();
    let expected = (0..3).flat_map(|own| {
        let [first, second] = [1, 2].map(|after| &of_ranks[(own + after) % 3]);
        let of_ranks = &of_ranks;
        shard(length, own, 3).map(move |at| (first[at] + second[at] + of_ranks[own][at]).to_bits())
    });
    let expected: Vec<u32> = expected.collect();
    let one = sums(1);
    assert_eq!(one, expected);
    assert_eq!(sums(4), one);
}

#[test]
fn who_does_not_know_the_secret_or_is_of_another_attempt_does_not_get_in() {
    for change in [|m: &mut Membership| m.secret = [8; 32], |m: &mut Membership| m.label = "run/stage/task/2".into()] {
        let mut members = memberships(2, Duration::from_millis(400));
        change(&mut members[1].1);
        for outcome in gang(members, |ring| ring.map(|_| ())) {
            let error = outcome.unwrap_err().to_string();
            assert!(error.contains("did not join in time"), "{error}");
        }
    }
}

#[test]
fn a_stranger_at_the_door_does_not_keep_the_members_out() {
    let members = memberships(2, Duration::from_secs(20));
    let strangers: Vec<TcpStream> =
        members.iter().map(|(listener, _)| TcpStream::connect(listener.local_addr().unwrap()).unwrap()).collect();
    for mut stranger in &strangers {
        stranger.write_all(b"GET / HTTP/1.1\r\nHost: nobody at all, to be sure\r\n\r\n").unwrap();
    }
    assert!(gang(members, |ring| ring.is_ok()).into_iter().all(|joined| joined));
}

#[test]
fn a_member_that_dies_ends_the_call_of_all_others_at_once() {
    let begun = Instant::now();
    let outcomes = gang(memberships(3, Duration::from_secs(60)), |ring| {
        let mut ring = ring.unwrap();
        ring.all_reduce(numbers(ring.rank(), 1000).as_mut_slice().into(), Op::Sum).unwrap();
        if ring.rank() == 1 {
            return None;
        }
        Some(ring.all_reduce(numbers(ring.rank(), 1_000_000).as_mut_slice().into(), Op::Sum).unwrap_err())
    });
    assert!(begun.elapsed() < Duration::from_secs(30));
    for error in outcomes.into_iter().flatten() {
        assert!(matches!(error, Error::Gang(_)), "{error}");
    }
}

#[test]
fn a_member_that_hangs_is_noticed_within_the_deadline_and_an_abort_at_once() {
    conformance::check_ends(&|call_deadline| {
        let mut members = memberships(2, Duration::from_secs(60));
        members.iter_mut().for_each(|(_, membership)| membership.call_deadline = call_deadline);
        gang(members, |ring| {
            let ring = ring.unwrap();
            let aborter = ring.aborter().unwrap();
            (Box::new(ring) as Box<dyn Collective>, Box::new(move || aborter.abort()) as conformance::End)
        })
    });
}

/// Also where the other is a machine that lets nobody in and says nothing: connections wait for it in vain.
#[test]
fn a_ring_that_is_given_up_is_not_waited_for() {
    let begun = Instant::now();
    let mut members = memberships(2, Duration::from_secs(60));
    let (_silent, (listener, membership)) = (members.remove(1), members.remove(0));
    let given_up = membership.given_up.clone();
    let error = std::thread::scope(|scope| {
        let forming = scope.spawn(|| Ring::form(&listener, &membership).unwrap_err().to_string());
        given_up.store(true, Ordering::SeqCst);
        forming.join().unwrap()
    });
    assert!(error.contains("a member is gone before the ring had formed"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(30));
}

#[test]
fn a_stranger_who_says_nothing_keeps_the_members_out_for_a_moment_only() {
    let members = memberships(2, Duration::from_secs(30));
    let addresses = members.iter().map(|(listener, _)| listener.local_addr().unwrap());
    let _silent: Vec<TcpStream> = addresses.map(|address| TcpStream::connect(address).unwrap()).collect();
    assert!(gang(members, |ring| ring.is_ok()).into_iter().all(|joined| joined));
}
