//! A run on a cluster, steered by commands: submit, watch, pause, resume, drain, cancel, and again from the start.
//!
//! Deterministic because the commands wait for what they read in the run's status; the results are compared by bytes.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Duration;

use cluster_tests::cluster::{Cluster, poll_until};
use serde_json::Value;

fn tiny() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("runs/tiny.toml").display().to_string()
}

fn stage<'a>(status: &'a Value, name: &str) -> &'a Value {
    status["stages"].as_array().unwrap().iter().find(|stage| stage["name"] == name).unwrap()
}

fn training(status: &Value) -> bool {
    stage(status, "base-sft")["done"].as_u64() > Some(2)
}

#[test]
fn a_paused_run_stops_and_goes_on_and_a_drained_worker_leaves_within_a_run() {
    let mut cluster = Cluster::new();
    cluster.start_all(3, 3);
    let submitted = cluster.json(&["submit", &tiny(), "--set", "base.step.sft.max_steps=60"]);
    assert_eq!((&submitted["run"], &submitted["state"]), (&"tiny".into(), &"running".into()));
    cluster.wait_for_run("tiny", "training", training);
    assert_eq!(cluster.json(&["pause", "tiny"])["state"], "paused");
    // A paused run leaves its workers free.
    poll_until("nobody works", Duration::from_secs(60), || {
        let workers = cluster.json(&["workers"]);
        workers.as_array().unwrap().iter().all(|worker| worker["state"] == "idle").then_some(())
    });
    let paused = cluster.json(&["status", "tiny"]);
    assert_eq!(stage(&paused, "base-sft")["state"], "running");
    let (lost, failed) =
        (&stage(&paused, "base-sft")["tasks"][0]["lost"], &stage(&paused, "base-sft")["tasks"][0]["failed"]);
    assert_eq!((lost, failed), (&0.into(), &0.into()), "a pause is nobody's fault");
    let checkpoints = std::fs::read_dir(cluster.path("artifacts/tiny/base")).unwrap();
    assert!(checkpoints.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("checkpoint-")));
    assert_eq!(cluster.json(&["resume", "tiny"])["state"], "running");
    // Two are enough for a gang of two.
    let (code, _, err) = cluster.command(&["drain", "w3"], &[]);
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(cluster.wait("w3"), Some(0), "{}", cluster.log("w3"));

    let (code, _, err) = cluster.command(&["watch", "tiny"], &[]);
    assert_eq!(code, Some(0), "{err}");
    assert!(err.contains("report") && err.contains("done in"), "{err}");
    let done = cluster.json(&["status", "tiny"]);
    assert_eq!(done["state"], "done");
    assert!(Path::new(done["report"].as_str().unwrap()).join("report.html").exists());
    assert!(done["cost_usd"].as_f64().unwrap() > 0.0);
    let (_, logs, _) = cluster.command(&["logs", "tiny"], &[]);
    for words in ["submitted", "paused", "resumed", "base-sft: done in", "done"] {
        assert!(logs.contains(words), "{words} is not in\n{logs}");
    }
    let (code, _, err) = cluster.command(&["pause", "tiny"], &[]);
    assert!(code == Some(1) && err.contains("has ended already: done"), "{err}");
}

#[test]
fn a_cancelled_run_is_over_and_starts_again_from_what_is_there() {
    let mut cluster = Cluster::new();
    cluster.start_all(3, 2);
    let steps = ["--set", "base.step.sft.max_steps=60"];
    let file = tiny();
    let submit = [&["submit", &file][..], &steps].concat();
    cluster.json(&submit);
    cluster.wait_for_run("tiny", "training", training);
    let (code, _, err) = cluster.command(&["submit", &tiny(), "--set", "run.seed=4"], &[]);
    assert!(code == Some(1) && err.contains("cancel it first"), "{err}");
    assert_eq!(cluster.json(&["cancel", "tiny"])["state"], "cancelled");
    let (code, _, err) = cluster.command(&["watch", "tiny"], &[]);
    assert_eq!(code, Some(1), "{err}");
    poll_until("nobody works", Duration::from_secs(60), || {
        let workers = cluster.json(&["workers"]);
        workers.as_array().unwrap().iter().all(|worker| worker["state"] == "idle").then_some(())
    });

    // The coordinator dies meanwhile; what it knew it knows again.
    cluster.kill("coordinator");
    cluster.restart("coordinator");
    poll_until("it answers", Duration::from_secs(20), || {
        (cluster.command(&["status"], &[]).0 == Some(0)).then_some(())
    });
    assert_eq!(cluster.json(&["status", "tiny"])["state"], "cancelled");

    cluster.json(&submit);
    let done = cluster.wait_for_run("tiny", "done", |status| status["state"] == "done");
    assert_eq!(stage(&done, "world")["state"], "skipped");
    // Cancelled in its middle, triage is done again, and pays for what had no answer only.
    let calls = |bill: &Value| bill["calls"].as_u64().unwrap() + bill["reused"].as_u64().unwrap();
    assert_eq!(stage(&done, "base-sft")["state"], "done");
    let answers: Value =
        serde_json::from_slice(&std::fs::read(cluster.path("artifacts/tiny/run.json")).unwrap()).unwrap();
    assert!(calls(&answers["oracle"]) > 2400, "{answers}");
}

#[test]
fn too_few_workers_wait_with_the_reason_and_a_run_files_problems_come_together() {
    let mut cluster = Cluster::new();
    cluster.start_all(3, 1);
    cluster.json(&["submit", &tiny()]);
    let waiting = cluster.wait_for_run("tiny", "waiting for a second worker", |status| {
        stage(status, "base-sft")["note"].as_str().unwrap_or_default().contains("needs 2 workers, 1 have joined")
    });
    assert_eq!(waiting["state"], "running");
    cluster.start_worker("w2", &[], &[]);
    cluster.wait_for_run("tiny", "done", |status| status["state"] == "done");

    let (code, _, err) =
        cluster.command(&["submit", &tiny(), "--set", "train.betta=1", "--set", "eval.batch_size=0"], &[]);
    assert_eq!(code, Some(1));
    assert!(err.contains("betta") && err.contains("batch_size"), "{err}");
}

/// A stage that needs the oracle says what it waits for, and goes on when the service is there.
#[test]
fn an_oracle_that_is_away_is_waited_for() {
    let mut cluster = Cluster::new();
    cluster.start_all(3, 2);
    cluster.kill("oracle");
    cluster.json(&["submit", &tiny()]);
    cluster.wait_for_run("tiny", "triage waits", |status| {
        !stage(status, "triage")["note"].as_str().unwrap_or_default().is_empty()
    });
    cluster.restart("oracle");
    cluster.wait_for_run("tiny", "done", |status| status["state"] == "done");
}
