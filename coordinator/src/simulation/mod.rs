//! The control plane in a box: the driver's core with scheduler and records, the workers' links and the client of the oracle
//! service are the real ones; clock, network, disk, processes, devices and people are not, and a seed says what becomes of
//! them. Every message and every commit passes here, so what must hold is checked as it happens.
//!
//! ```text
//! people ─▶ control ◀─ wire ─▶ machine ─▶ attempt (what devices do, together)
//!            │   └─ oracle        faults: kills, freezes, cuts, resets, slow and full disks
//!            disk
//! ```
//! One thread, one queue ordered by time; a seed gives the same history each time. A seed that fails is seen again, with its
//! history, by
//!
//! ```text
//! TRACE_SEED=<seed> cargo test -p coordinator --lib simulation -- --nocapture
//! ```

mod attempt;
mod checks;
mod control;
mod disk;
mod faults;
mod machine;
mod oracle;
mod people;
mod wire;
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use world::World;

/// Seeds that are tried.
const SEEDS: u64 = 4000;
/// Seeds within which a planted mistake must be found.
const SEARCHED: u64 = 2000;

/// A mistake that is made on purpose, to see that it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mistake {
    /// Orders and answers go out while the commit is still on its way.
    ToldBeforeSaved,
    /// A commit that was reported as done is lost when the coordinator dies.
    CommitLost,
    /// An old connection's end is taken for the end of the present one.
    OldConnectionSpeaks,
    /// The coordinator notices no silence.
    NoTicks,
    /// Nobody is told to stop.
    NoStops,
    /// A task that was stopped says that it has finished.
    StoppedIsFinished,
    /// A worker does not say in its Hello what it runs.
    RunningUntold,
}

/// Mistakes, with words of what is said where they are found.
const MISTAKES: [(Mistake, &[&str]); 7] = [
    (Mistake::ToldBeforeSaved, &["before it was saved"]),
    (Mistake::CommitLost, &["ordered twice"]),
    (Mistake::OldConnectionSpeaks, &["hung up"]),
    (Mistake::NoTicks, &["never end"]),
    (Mistake::NoStops, &["stands still"]),
    (Mistake::StoppedIsFinished, &["has no output"]),
    (Mistake::RunningUntold, &["for nobody", "this worker is busy with", "never end"]),
];

/// Counts of what happened, by what it is called.
type Counts = BTreeMap<&'static str, u64>;

/// Lives through a seed's history.
fn history(seed: u64, mistake: Option<Mistake>, told: bool) -> Result<World, String> {
    let mut world = World::new(seed, mistake, told);
    let lived = catch_unwind(AssertUnwindSafe(|| world.live()));
    let problem = match lived {
        Ok(()) => world.checks.broken.take(),
        Err(panic) => {
            let words = panic.downcast_ref::<String>().cloned();
            let words = words.or_else(|| panic.downcast_ref::<&str>().map(|words| (*words).to_owned()));
            Some(words.unwrap_or_else(|| "a panic without words".to_owned()))
        }
    };
    match problem {
        None => Ok(world),
        Some(problem) => {
            let at = world.elapsed_ms() as f64 / 1000.0;
            let plan = world.plan();
            Err(format!("seed {seed}, at {at:.3} s: {problem}\n{plan}{}", world.told()))
        }
    }
}

fn wanted_seed() -> Option<u64> {
    std::env::var("TRACE_SEED").ok()?.parse().ok()
}

#[test]
fn whatever_fails_nothing_is_lost_and_calm_brings_every_run_to_its_end() {
    if let Some(seed) = wanted_seed() {
        match history(seed, None, true) {
            Ok(mut world) => println!("seed {seed} holds\n{}{}", world.plan(), world.told()),
            Err(problem) => panic!("{problem}"),
        }
        return;
    }
    let next = AtomicU64::new(0);
    let all = Mutex::new((Counts::new(), None::<String>));
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= SEEDS || all.lock().unwrap().1.is_some() {
                        return;
                    }
                    let lived = history(seed, None, false);
                    let mut all = all.lock().unwrap();
                    match lived {
                        Ok(world) => world.counts.iter().for_each(|(what, count)| {
                            *all.0.entry(what).or_default() += count;
                        }),
                        Err(problem) => all.1 = Some(problem),
                    }
                }
            });
        }
    });
    let (counts, problem) = all.into_inner().unwrap();
    if let Some(problem) = problem {
        panic!(
            "{problem}\nwith its history: TRACE_SEED=<seed> cargo test -p coordinator --lib simulation -- --nocapture"
        );
    }
    println!("{SEEDS} seeds: {counts:#?}");
    for what in world::MUST_HAPPEN {
        assert!(counts.get(what).is_some_and(|&count| count >= SEEDS / 100), "{what:?} hardly happens: {counts:#?}");
    }
}

#[test]
fn every_planted_mistake_is_found() {
    for (mistake, words) in MISTAKES {
        let found = (0..SEARCHED).find_map(|seed| history(seed, Some(mistake), false).err());
        let found = found.unwrap_or_else(|| panic!("{mistake:?} is not found in {SEARCHED} seeds"));
        let first = found.lines().next().unwrap_or_default();
        println!("{mistake:?}: {first}");
        assert!(words.iter().any(|words| found.contains(words)), "{mistake:?} is found by something else: {found}");
    }
}

#[test]
fn a_seed_gives_the_same_history_again() {
    for seed in [1, 2, 3] {
        let once = history(seed, None, true).map(|mut world| world.told());
        let again = history(seed, None, true).map(|mut world| world.told());
        assert!(once.as_ref().is_ok_and(|told| told.lines().count() > 50), "{once:?}");
        assert_eq!(once, again);
    }
}
