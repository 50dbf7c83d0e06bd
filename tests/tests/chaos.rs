//! A short turn of the chaos program: a training on three workers, with workers and coordinator killed and stopped on a seeded
//! schedule, ends with the bytes of an undisturbed one.
//!
//! Not every moment is planned, but the bytes at the end do not depend on any of them.

use cluster_tests::chaos::{Plan, run};

#[test]
fn a_disturbed_training_ends_with_the_bytes_of_an_undisturbed_one() {
    let plan = Plan { kills: 4, seed: 7, heartbeat_ms: 200, tells: true };
    let outcome = run(plan);
    println!("seed {}: {}", plan.seed, outcome.json());
    assert!(outcome.misses.is_empty(), "seed {}: {:?}", plan.seed, outcome.misses);
    assert!(outcome.kills >= 4);
}
