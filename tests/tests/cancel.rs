//! A run that is cancelled is over; submitted again, it starts from what is there.
//!
//! Deterministic because the commands wait for what they read in the run's status.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use cluster_tests::cluster::{Cluster, poll_until};
use cluster_tests::runs::{LONG, is_training, stage, tiny};
use serde_json::Value;

#[test]
fn a_cancelled_run_is_over_and_starts_again_from_what_is_there() {
    let mut cluster = Cluster::new();
    cluster.start_all(3, 2);
    cluster.submit(&LONG);
    cluster.wait_for_run("tiny", "training", is_training);
    let (code, _, err) = cluster.command(&["submit", &tiny(), "--set", "run.seed=4"], &[]);
    assert!(code == Some(1) && err.contains("cancel it first"), "{err}");
    assert_eq!(cluster.json(&["cancel", "tiny"])["state"], "cancelled");
    let (code, _, err) = cluster.command(&["watch", "tiny"], &[]);
    assert_eq!(code, Some(1), "{err}");
    cluster.wait_until_idle();

    // The coordinator dies meanwhile; what it knew it knows again.
    cluster.kill("coordinator");
    cluster.restart("coordinator");
    poll_until("it answers", Duration::from_secs(20), || {
        (cluster.command(&["status"], &[]).0 == Some(0)).then_some(())
    });
    assert_eq!(cluster.json(&["status", "tiny"])["state"], "cancelled");

    cluster.submit(&LONG);
    let done = cluster.wait_for_run("tiny", "done", |status| status["state"] == "done");
    assert_eq!(stage(&done, "world")["state"], "skipped");
    // Cancelled in its middle, triage is done again, and pays for what had no answer only.
    let calls = |bill: &Value| bill["calls"].as_u64().unwrap() + bill["reused"].as_u64().unwrap();
    assert_eq!(stage(&done, "base-sft")["state"], "done");
    let answers: Value = serde_json::from_slice(&cluster.product("run.json")).unwrap();
    assert!(calls(&answers["oracle"]) > 2400, "{answers}");
}
