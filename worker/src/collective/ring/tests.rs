use super::*;
use shared::keyed_random::KeyedRandom;

fn memberships(world_size: usize, patience: Duration) -> Vec<(TcpListener, Membership)> {
    let listeners: Vec<TcpListener> = (0..world_size).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let peers: Vec<String> = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
    let member = |(rank, listener)| {
        let membership = Membership {
            rank,
            peers: peers.clone(),
            secret: [7; 32],
            label: "run/stage/task/1".into(),
            form_deadline: patience,
            call_deadline: patience,
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

fn numbers(rank: usize, length: usize) -> Vec<f32> {
    let mut random = KeyedRandom::new(&[rank as u64, length as u64]);
    (0..length).map(|_| random.normal() as f32).collect()
}

#[test]
fn sums_are_right_and_the_same_bits_on_every_rank_and_every_time() {
    for world in [2, 3, 4] {
        for length in [0, 1, 3, 4097, 300_000] {
            let once = || {
                gang(memberships(world, Duration::from_secs(20)), |ring| {
                    let mut ring = ring.unwrap();
                    let mut own = numbers(ring.rank(), length);
                    ring.all_reduce(&mut own).unwrap();
                    own
                })
            };
            let first = once();
            for (i, sum) in first[0].iter().enumerate() {
                let exact: f64 = (0..world).map(|rank| f64::from(numbers(rank, length)[i])).sum();
                assert!((f64::from(*sum) - exact).abs() < 1e-5, "world {world}, number {i}: {sum} against {exact}");
                if length > 5000 && i > 50 {
                    break;
                }
            }
            let bits = |all: &[f32]| all.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            for rank in 1..world {
                assert_eq!(bits(&first[0]), bits(&first[rank]), "world {world}, rank {rank}");
            }
            assert_eq!(bits(&once()[0]), bits(&first[0]));
        }
    }
}

#[test]
fn numbers_of_every_rank_are_gathered() {
    let gathered = gang(memberships(3, Duration::from_secs(20)), |ring| {
        let mut ring = ring.unwrap();
        let all = ring.all_gather_f64(ring.rank() as f64 + 0.5).unwrap();
        (all, ring.first_of(ring.rank() as f64 * 10.0 + 4.0).unwrap())
    });
    for (all, first) in gathered {
        assert_eq!((all, first), (vec![0.5, 1.5, 2.5], 4.0));
    }
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
        ring.all_reduce(&mut numbers(ring.rank(), 1000)).unwrap();
        if ring.rank() == 1 {
            return None;
        }
        Some(ring.all_reduce(&mut numbers(ring.rank(), 1_000_000)).unwrap_err())
    });
    assert!(begun.elapsed() < Duration::from_secs(30));
    for error in outcomes.into_iter().flatten() {
        assert!(matches!(error, Error::Gang(_)), "{error}");
    }
}

#[test]
fn a_member_that_hangs_is_noticed_within_the_deadline_and_an_abort_at_once() {
    let silent = std::sync::Barrier::new(2);
    let outcomes = gang(memberships(2, Duration::from_millis(300)), |ring| {
        let mut ring = ring.unwrap();
        let error = (ring.rank() == 0).then(|| ring.all_reduce(&mut [1.0; 8]).unwrap_err().to_string());
        silent.wait();
        error
    });
    assert!(outcomes[0].as_ref().unwrap().contains("in time"), "{outcomes:?}");

    let begun = Instant::now();
    let silent = std::sync::Barrier::new(2);
    gang(memberships(2, Duration::from_secs(60)), |ring| {
        let mut ring = ring.unwrap();
        if ring.rank() == 0 {
            let aborter = ring.aborter().unwrap();
            std::thread::scope(|scope| {
                let call = scope.spawn(|| ring.all_reduce(&mut [1.0; 8]));
                aborter.abort();
                call.join().unwrap().unwrap_err();
            });
        }
        silent.wait();
    });
    assert!(begun.elapsed() < Duration::from_secs(20));
}
