//! A worker that is frozen while it holds its run's folder: the next attempt takes the folder over, and the frozen one, when
//! it wakes, changes nothing.
//!
//! Deterministic because every worker computes on one thread and gangs have a fixed size: the model and its curve are, to
//! the byte, those of a run that nobody disturbed.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use cluster_tests::cluster::Cluster;
use rustix::process::Signal;
use serde_json::Value;

const STAGE: &str = "base-sft";

fn stage(status: &Value) -> &Value {
    status["stages"].as_array().unwrap().iter().find(|stage| stage["name"] == STAGE).unwrap()
}

/// Returns the first rank of the training, which holds the folder.
fn first(status: &Value) -> String {
    stage(status)["tasks"][0]["workers"][0].as_str().unwrap().to_owned()
}

#[test]
fn the_next_attempt_takes_a_frozen_workers_folder_over_and_ends_with_the_same_bytes() {
    let mut cluster = Cluster::new();
    cluster.start_all(3, 3);
    let run_file = Path::new(env!("CARGO_MANIFEST_DIR")).join("runs/tiny.toml").display().to_string();
    let submit = |cluster: &Cluster, run: &str| {
        let name = format!("run.name={run}");
        cluster.json(&["submit", &run_file, "--set", &name, "--set", "base.step.sft.max_steps=250"]);
    };
    submit(&cluster, "whole");
    cluster.wait_for_run("whole", "trained", |status| stage(status)["state"] == "done");
    cluster.json(&["cancel", "whole"]);

    submit(&cluster, "tiny");
    let training = cluster.wait_for_run("tiny", "training", |status| stage(status)["done"].as_u64() > Some(8));
    let frozen = first(&training);
    cluster.signal(&frozen, Signal::STOP);
    // Sooner than it could be waited for: nothing tells the frozen process to let go.
    let again = cluster.wait_for_run("tiny", "training again", |status| {
        let task = &stage(status)["tasks"][0];
        task["attempt"].as_u64() > Some(1) && stage(status)["done"].as_u64() > Some(20)
    });
    assert_ne!(first(&again), frozen);
    let log = cluster.log(&first(&again));
    assert!(log.contains("taken over from attempt 1"), "{log}");

    cluster.signal(&frozen, Signal::CONT);
    cluster.wait_for_worker(&frozen, "idle");
    cluster.wait_for_run("tiny", "trained", |status| stage(status)["state"] == "done");
    assert!(!cluster.log("coordinator").contains("train failed"), "a frozen worker is not the task's fault");
    for file in ["model.safetensors", "metrics.jsonl"] {
        let bytes = |run: &str| std::fs::read(cluster.path("artifacts").join(run).join("base").join(file)).unwrap();
        assert!(bytes("whole") == bytes("tiny"), "{file} differs");
    }
    assert!(!cluster.path("artifacts/tiny/base/run.lock").exists());
}
