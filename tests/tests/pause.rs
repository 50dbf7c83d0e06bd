//! A run that is paused leaves its workers free with a checkpoint, and goes on to its end, with the bytes of an undisturbed one, when it is
//! resumed.
//!
//! Deterministic because the commands wait for what they read in the run's status.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use cluster_tests::cluster::Cluster;
use cluster_tests::runs::{LONG, is_done, is_training, stage};

#[test]
fn a_paused_run_stops_with_a_checkpoint_and_goes_on_to_its_end() {
    let mut cluster = Cluster::new();
    cluster.start_all(3, 2);
    cluster.submit(&LONG);
    cluster.wait_for_stage("base-sft", "is done", is_done);
    let products = ["base/model.safetensors", "base/metrics.jsonl"];
    let undisturbed = products.map(|name| cluster.product(name));
    cluster.cancel();
    cluster.forget_stage("base-sft", &["base"]);
    let submitted = cluster.submit(&LONG);
    assert_eq!((&submitted["run"], &submitted["state"]), (&"tiny".into(), &"running".into()));
    cluster.wait_for_run("tiny", "training", is_training);
    assert_eq!(cluster.json(&["pause", "tiny"])["state"], "paused");
    // A paused run leaves its workers free.
    cluster.wait_until_idle();
    let paused = cluster.json(&["status", "tiny"]);
    assert_eq!(stage(&paused, "base-sft")["state"], "running");
    let task = &stage(&paused, "base-sft")["tasks"][0];
    assert_eq!((&task["lost"], &task["failed"]), (&0.into(), &0.into()), "a pause is nobody's fault");
    let steps = String::from_utf8(cluster.product("base/metrics.jsonl")).unwrap().lines().count();
    let checkpoint = format!("artifacts/tiny/base/checkpoint-{steps}/state.json");
    assert!(steps < 300 && cluster.path(&checkpoint).exists(), "no checkpoint after the last step, {steps}");
    assert_eq!(cluster.json(&["resume", "tiny"])["state"], "running");
    cluster.wait_for_stage("base-sft", "is done", is_done);
    for (name, undisturbed) in products.iter().zip(&undisturbed) {
        assert!(cluster.product(name) == *undisturbed, "{name} differs after the pause");
    }

    let (code, _, err) = cluster.command(&["watch", "tiny"], &[]);
    assert_eq!(code, Some(0), "{err}");
    assert!(err.contains("report") && err.contains("done in"), "{err}");
    let done = cluster.json(&["status", "tiny"]);
    assert_eq!(done["state"], "done");
    assert!(Path::new(done["report"].as_str().unwrap()).join("report.html").exists());
    assert!(done["cost_usd"].as_f64().unwrap() > 0.0);
    let logs = cluster.run_log();
    for words in ["submitted", "paused", "resumed", "base-sft: done in", "done"] {
        assert!(logs.contains(words), "{words} is not in\n{logs}");
    }
    let (code, _, err) = cluster.command(&["pause", "tiny"], &[]);
    assert!(code == Some(1) && err.contains("has ended already: done"), "{err}");
}
