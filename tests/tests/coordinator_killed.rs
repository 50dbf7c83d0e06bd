//! The coordinator killed in a gang's training, in a sharded stage and after the end, and started again on the same state:
//! workers go on meanwhile, their attempts are taken up, nothing is done twice.
//!
//! Heartbeats are long enough for a worker to dial again before it counts as lost.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use cluster_tests::cluster::{Cluster, poll_until};
use cluster_tests::runs::{LONG, is_done, is_training};

fn killed_and_started_again(cluster: &mut Cluster) {
    cluster.kill("coordinator");
    cluster.restart("coordinator");
    poll_until("it answers", Duration::from_secs(20), || {
        (cluster.command(&["status"], &[]).0 == Some(0)).then_some(())
    });
}

#[test]
fn a_coordinator_started_again_takes_up_what_its_workers_did() {
    let mut cluster = Cluster::new();
    cluster.heartbeat_ms = 2000;
    cluster.start_all(3, 2);
    cluster.submit(&LONG);
    cluster.wait_for_run("tiny", "training", is_training);
    killed_and_started_again(&mut cluster);
    cluster.wait_for_stage("base-sft", "is done", is_done);
    let log = cluster.run_log();
    for worker in ["w1", "w2"] {
        assert!(log.contains(&format!("base-sft: worker {worker} is back")), "{log}");
    }

    cluster.wait_for_stage("score-oracle-punish", "is at work", |stage| {
        stage["tasks"].as_array().is_some_and(|tasks| tasks.iter().any(|task| task["state"] == "running"))
    });
    killed_and_started_again(&mut cluster);
    let done = cluster.wait_for_run("tiny", "done", |status| status["state"] == "done");
    let log = cluster.run_log();
    // An order that was stored but not sent when it died is given anew.
    let unsent = log.matches("forgot its task").count();
    let count = |words: &str| log.matches(words).count();
    assert!((count("is lost"), count("attempt 2")) == (unsent, unsent) && unsent < 2, "{log}");

    killed_and_started_again(&mut cluster);
    let again = cluster.json(&["status", "tiny"]);
    assert_eq!((&again["state"], &again["report"]), (&done["state"], &done["report"]));
    let (code, _, err) = cluster.command(&["watch", "tiny"], &[]);
    assert_eq!(code, Some(0), "{err}");
}
