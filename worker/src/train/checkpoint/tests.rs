use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};

use tch::{Kind, Tensor};

use super::slices::Slice;
use super::*;
use crate::collective::ring::{LANES, Membership, Ring};
use crate::collective::{Alone, shard};

fn checkpoints(dir: &Path, keep: usize, place: (usize, usize)) -> Checkpoints {
    Checkpoints {
        run_dir: dir.to_owned(),
        run_key: "key".into(),
        keep,
        token: 7,
        place,
        fence: Arc::new(|| Ok(())),
        fault: None,
        writer: None,
        is_pending: false,
        told: Told::default(),
        waited: Duration::ZERO,
    }
}

fn whole(value: f32) -> Parts {
    Parts { whole: vec![("x".into(), Tensor::from_slice(&[value, 2.0]))], slices: Vec::new() }
}

fn save(checkpoints: &mut Checkpoints, step: u64, value: f32) -> Result<()> {
    checkpoints.begin((step, &Seen::default()), &whole(value), || Ok(()), &mut Alone)?;
    checkpoints.finish(&mut Alone)
}

fn steps(dir: &Path) -> Vec<u64> {
    folder::newest_first(dir).unwrap().into_iter().map(|(step, _)| step).collect()
}

/// Step and first number of what a run would go on from.
fn found(dir: &Path) -> Result<Option<(u64, f64)>> {
    let opened = newest_whole(dir, "key", &mut Alone)?;
    opened.map(|opened| Ok((opened.state.step, opened.tensor("x", &[2])?.double_value(&[0])))).transpose()
}

#[test]
fn damaged_newest_is_passed_over_and_other_settings_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(found(dir.path()).unwrap(), None);
    let mut own = checkpoints(dir.path(), 3, (0, 1));
    save(&mut own, 1, 10.0).unwrap();
    save(&mut own, 2, 20.0).unwrap();
    assert_eq!(found(dir.path()).unwrap(), Some((2, 20.0)));
    assert!(newest_whole(dir.path(), "other", &mut Alone).unwrap_err().to_string().contains("--run-name"));

    let newest = dir.path().join("checkpoint-2/state.safetensors");
    let mut bytes = std::fs::read(&newest).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&newest, bytes).unwrap();
    assert_eq!(found(dir.path()).unwrap(), Some((1, 10.0)));
    // Made again, in place of the damaged one.
    save(&mut own, 2, 20.0).unwrap();
    assert_eq!(found(dir.path()).unwrap(), Some((2, 20.0)));

    for step in [1, 2] {
        std::fs::write(dir.path().join(format!("checkpoint-{step}/state.json")), "{").unwrap();
    }
    let error = found(dir.path()).unwrap_err().to_string();
    assert!(error.contains("checkpoint-2") && error.contains("no whole checkpoint"), "{error}");
    std::fs::write(dir.path().join("checkpoint-2/state.json"), r#"{"format": 1, "step": 2}"#).unwrap();
    let error = found(dir.path()).unwrap_err().to_string();
    assert!(error.contains("has format 1") && !error.contains("damaged"), "{error}");
}

#[test]
fn an_unfinished_checkpoint_is_not_seen_and_old_ones_go_but_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    for left in ["checkpoint-9.tmp", "checkpoint-9.55.tmp", "best", "checkpoint-9.notes.tmp"] {
        std::fs::create_dir(dir.path().join(left)).unwrap();
    }
    // It cannot be removed as a folder, and is in nobody's way.
    std::fs::write(dir.path().join("checkpoint-9.56.tmp"), "").unwrap();
    assert_eq!(found(dir.path()).unwrap(), None);
    let mut own = checkpoints(dir.path(), 2, (0, 1));
    for step in 1..=4 {
        save(&mut own, step, step as f32).unwrap();
    }
    assert_eq!(steps(dir.path()), [4, 3]);
    let is_there = |name: &str| dir.path().join(name).exists();
    assert!(!is_there("checkpoint-9.tmp") && !is_there("checkpoint-9.55.tmp") && is_there("checkpoint-9.56.tmp"));
    assert!(is_there("best") && is_there("checkpoint-9.notes.tmp"), "none of ours to remove");
    for copy in ["checkpoint-09", "checkpoint-+9", "checkpoint-9.old", "checkpoint-"] {
        std::fs::create_dir(dir.path().join(copy)).unwrap();
    }
    assert_eq!(newest(dir.path()).unwrap().map(|(step, _)| step), Some(4));
    assert_eq!(found(dir.path()).unwrap(), Some((4, 4.0)));
}

#[test]
fn what_was_copied_is_written_whatever_training_does_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let mut own = checkpoints(dir.path(), 3, (0, 1));
    let live = Tensor::zeros([300_000], (Kind::Float, tch::Device::Cpu));
    for step in 1..=5u64 {
        let parts = Parts { whole: vec![("x".into(), live.shallow_clone())], slices: Vec::new() };
        own.begin((step, &Seen::default()), &parts, || Ok(()), &mut Alone).unwrap();
        let _ = live.shallow_clone().g_add_scalar_(1.0);
        own.check().unwrap();
    }
    own.finish(&mut Alone).unwrap();
    assert_eq!(steps(dir.path()), [5, 4, 3]);
    assert_eq!(found(dir.path()).unwrap(), Some((5, 4.0)));
    assert_eq!(own.told()["written"], 5);
    assert!(own.take_waited().is_some() && own.take_waited().is_none());
}

#[test]
fn one_that_falls_due_early_waits_and_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut own = checkpoints(dir.path(), 3, (0, 1));
    // Nothing was exchanged since, so the first cannot have its name yet when the second is asked for.
    own.begin((1, &Seen::default()), &sharded((0, 1), 0.0), || Ok(()), &mut Alone).unwrap();
    own.begin((2, &Seen::default()), &sharded((0, 1), 1.0), || Ok(()), &mut Alone).unwrap();
    assert_eq!(steps(dir.path()), [1]);
    own.finish(&mut Alone).unwrap();
    let told = own.told();
    assert_eq!((&told["written"], &told["waited_for_earlier"]), (&2.into(), &1.into()));
    assert_eq!(steps(dir.path()), [2, 1]);
}

#[test]
fn a_checkpoint_that_could_not_be_written_is_the_next_steps_error_and_earlier_ones_stay() {
    let dir = tempfile::tempdir().unwrap();
    let mut own = checkpoints(dir.path(), 1, (0, 1));
    save(&mut own, 1, 1.0).unwrap();
    // Somebody's file is where the folder is to be.
    std::fs::write(dir.path().join("checkpoint-2.7.tmp"), "").unwrap();
    own.begin((2, &Seen::default()), &whole(2.0), || Ok(()), &mut Alone).unwrap();
    let error = loop {
        match own.check() {
            Ok(()) => std::thread::yield_now(),
            Err(error) => break error.to_string(),
        }
    };
    assert!(error.contains("checkpoint-2") && error.contains("could not be written"), "{error}");
    assert_eq!(found(dir.path()).unwrap(), Some((1, 1.0)));
    // What a checkpoint counts on is not on the disk: it does not appear.
    let full = || Err(Error::model("metrics.jsonl", "no room"));
    own.begin((3, &Seen::default()), &whole(3.0), full, &mut Alone).unwrap();
    assert!(own.finish(&mut Alone).unwrap_err().to_string().contains("metrics.jsonl"));
    assert_eq!(steps(dir.path()), [1]);
    assert!(!dir.path().join("checkpoint-3.7.tmp").exists(), "what was begun is removed");
}

#[test]
fn a_folder_that_was_taken_over_is_left_alone() {
    // Taken over before it begins to write, or while it does.
    for allowed in [0, 1] {
        let dir = tempfile::tempdir().unwrap();
        save(&mut checkpoints(dir.path(), 1, (0, 1)), 1, 1.0).unwrap();
        let asked = AtomicUsize::new(0);
        let mut own = checkpoints(dir.path(), 1, (0, 1));
        own.fence = Arc::new(move || match asked.fetch_add(1, Ordering::SeqCst) < allowed {
            true => Ok(()),
            false => Err(Error::TakenOver { file: "run.lock".into() }),
        });
        assert!(matches!(save(&mut own, 2, 2.0), Err(Error::TakenOver { .. })));
        assert_eq!(found(dir.path()).unwrap(), Some((1, 1.0)));
    }
}

/// Runs ranks on threads, each with its collective.
fn gang<T: Send>(world_size: usize, work: impl Fn(&mut dyn Collective) -> T + Sync) -> Vec<T> {
    if world_size == 1 {
        return vec![work(&mut Alone)];
    }
    let listeners: Vec<TcpListener> = (0..world_size).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let peers: Vec<String> = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
    let patience = Duration::from_secs(60);
    std::thread::scope(|scope| {
        let (work, peers) = (&work, &peers);
        let rank = |(rank, listener): (usize, TcpListener)| {
            scope.spawn(move || {
                let membership = Membership {
                    rank,
                    peers: peers.clone(),
                    secret: [7; 32],
                    label: "checkpoints".into(),
                    lanes: LANES,
                    form_deadline: patience,
                    call_deadline: patience,
                    given_up: Arc::default(),
                };
                work(&mut Ring::form(&listener, &membership).unwrap())
            })
        };
        let threads: Vec<_> = listeners.into_iter().enumerate().map(rank).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

const ROW: usize = 11;

fn sharded((rank, world_size): (usize, usize), add: f32) -> Parts {
    let range = shard(ROW, rank, world_size);
    let numbers: Vec<f32> = range.clone().map(|at| at as f32 + add).collect();
    let slice = Slice { name: "master".into(), range, of: ROW, numbers: Tensor::from_slice(&numbers) };
    let mut parts = if rank == 0 { whole(add) } else { Parts::default() };
    parts.slices.push(slice);
    parts
}

/// Checkpoints of the steps 1 and 2, by so many ranks.
fn two_by_a_gang(dir: &Path, world_size: usize) {
    gang(world_size, |gang| {
        let place = (gang.rank(), gang.world_size());
        let mut own = checkpoints(dir, 2, place);
        for step in [1, 2] {
            own.begin((step, &Seen::default()), &sharded(place, step as f32), || Ok(()), gang).unwrap();
        }
        own.finish(gang).unwrap();
        gang.barrier().unwrap();
    });
}

#[test]
fn a_sharded_checkpoint_is_read_by_worlds_of_other_sizes() {
    for written in 1..=4 {
        let dir = tempfile::tempdir().unwrap();
        gang(written, |gang| {
            let place = (gang.rank(), gang.world_size());
            let mut own = checkpoints(dir.path(), 2, place);
            // One that is published along the way, and one at the end.
            own.begin((3, &Seen::default()), &sharded(place, 0.0), || Ok(()), gang).unwrap();
            let mut steps = 0;
            while own.is_pending {
                let on_disk = f64::from(u8::from(own.part_is_on_disk().unwrap()));
                let on_disk: f64 = gang.all_gather_number(on_disk).unwrap().iter().sum();
                own.heard(on_disk as usize);
                steps += 1;
                assert!(steps < 1_000_000);
            }
            own.begin((6, &Seen::default()), &sharded(place, 0.5), || Ok(()), gang).unwrap();
            own.finish(gang).unwrap();
            gang.barrier().unwrap();
        });
        assert_eq!(steps(dir.path()), [6, 3]);
        for world_size in 1..=4 {
            let read = gang(world_size, |gang| {
                let opened = newest_whole(dir.path(), "key", gang).unwrap().unwrap();
                assert_eq!((opened.state.step, opened.state.shards), (6, written));
                assert_eq!(opened.tensor("x", &[2]).unwrap(), Tensor::from_slice(&[0.5f32, 2.0]));
                assert!(opened.slice("master", 0..ROW, ROW + 1).unwrap_err().to_string().contains("11 numbers"));
                let numbers = opened.slice("master", shard(ROW, gang.rank(), world_size), ROW).unwrap();
                Vec::<f32>::try_from(numbers).unwrap()
            });
            let expected: Vec<f32> = (0..ROW).map(|at| at as f32 + 0.5).collect();
            assert_eq!(read.concat(), expected, "{written} ranks wrote, {world_size} read");
        }
    }
}

#[test]
fn a_damaged_shard_makes_every_rank_go_back() {
    let dir = tempfile::tempdir().unwrap();
    two_by_a_gang(dir.path(), 3);
    let shard = dir.path().join("checkpoint-2/shard-00001-of-00003.safetensors");
    let mut bytes = std::fs::read(&shard).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    for world_size in [1, 2, 3] {
        let steps = gang(world_size, |gang| newest_whole(dir.path(), "key", gang).unwrap().unwrap().state.step);
        assert_eq!(steps, vec![1; world_size]);
    }
}

#[test]
fn what_describes_a_checkpoint_is_verified_too() {
    let dir = tempfile::tempdir().unwrap();
    two_by_a_gang(dir.path(), 2);
    let newest = dir.path().join("checkpoint-2");
    assert_eq!(found(dir.path()).unwrap(), Some((2, 2.0)));
    for name in ["state.json", "shard-00001-of-00002.json"] {
        let file = newest.join(name);
        let text = std::fs::read(&file).unwrap();
        let digits = text.iter().enumerate().filter(|(_, byte)| byte.is_ascii_digit());
        for (at, digit) in digits {
            let mut damaged = text.clone();
            damaged[at] = if *digit == b'7' { b'8' } else { b'7' };
            std::fs::write(&file, &damaged).unwrap();
            let told = String::from_utf8_lossy(&damaged);
            assert_eq!(found(dir.path()).unwrap(), Some((1, 1.0)), "byte {at}: {told}");
        }
        std::fs::write(&file, &text).unwrap();
    }
    assert_eq!(found(dir.path()).unwrap(), Some((2, 2.0)));
    std::fs::rename(newest, dir.path().join("checkpoint-5")).unwrap();
    assert_eq!(found(dir.path()).unwrap(), Some((1, 1.0)), "it is of another step than its name says");
}

#[test]
fn a_checkpoint_gets_no_name_without_the_part_of_every_rank() {
    let dir = tempfile::tempdir().unwrap();
    // The first of two; nobody has written the other's part.
    let mut own = checkpoints(dir.path(), 2, (0, 2));
    own.begin((1, &Seen::default()), &sharded((0, 2), 0.0), || Ok(()), &mut Alone).unwrap();
    let error = own.finish(&mut Alone).unwrap_err().to_string();
    assert!(error.contains("shard-00001-of-00002"), "{error}");
    assert_eq!(steps(dir.path()), [] as [u64; 0]);
}

#[test]
fn a_rank_that_cannot_write_its_part_ends_the_run_on_all() {
    let dir = tempfile::tempdir().unwrap();
    let problems = gang(2, |gang| {
        let place = (gang.rank(), gang.world_size());
        let mut own = checkpoints(dir.path(), 2, place);
        if place.0 == 1 {
            // A name too long for the file system.
            own.run_dir = own.run_dir.join("x".repeat(300));
        }
        own.begin((1, &Seen::default()), &sharded(place, 0.0), || Ok(()), gang).unwrap();
        own.finish(gang).unwrap_err().to_string()
    });
    assert!(problems[0].contains("rank 1 could not write"), "{problems:?}");
    assert!(problems[1].contains("checkpoint-1"), "{problems:?}");
    assert_eq!(steps(dir.path()), [] as [u64; 0]);
}

#[test]
fn room_that_was_made_beforehand_is_that_of_the_first_copy() {
    let dir = tempfile::tempdir().unwrap();
    let mut own = checkpoints(dir.path(), 2, (0, 1));
    own.writer().unwrap().prepare(whole(1.0).sizes());
    // It is not there yet when it is asked for.
    let room = own.writer().unwrap().room().unwrap();
    let place = room.whole[0].1.data_ptr();
    own.writer().unwrap().room = room;
    save(&mut own, 1, 10.0).unwrap();
    let after = own.writer().unwrap().room().unwrap();
    assert_eq!(after.whole[0].1.data_ptr(), place);
    assert_eq!(found(dir.path()).unwrap(), Some((1, 10.0)));
}

#[test]
fn no_checkpoint_appears_without_what_it_counts_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut own = checkpoints(dir.path(), 2, (0, 1));
    let beside = dir.path().join("beside");
    let write = beside.clone();
    own.also(|| move || std::fs::write(write, "x").map_err(|e| Error::Config(e.to_string()))).unwrap();
    save(&mut own, 1, 10.0).unwrap();
    assert!(beside.exists() && steps(dir.path()) == [1]);
    own.also(|| || Err(Error::Config("no room".into()))).unwrap();
    let error = save(&mut own, 2, 20.0).unwrap_err().to_string();
    assert!(error.contains("no room"), "{error}");
    let error = save(&mut own, 3, 30.0).unwrap_err().to_string();
    assert!(error.contains("no room"), "{error}");
    assert_eq!(steps(dir.path()), [1]);
}
