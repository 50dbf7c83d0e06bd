//! A member of a training gang killed in the middle: the others leave the gang at once, the stage waits for enough workers,
//! and its next attempt goes on from the last checkpoint to the bytes of an undisturbed training.
//!
//! The weights are shared out, too. The death is planned, after a checkpoint that a later one has waited for. The training is done twice in one
//! folder, first undisturbed.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use cluster_tests::cluster::{Cluster, poll_until};
use cluster_tests::runs::is_done;

const SETTINGS: [&str; 2] = ["--set", "base.step.sft.shard_parameters=true"];
const PRODUCTS: [&str; 2] = ["base/model.safetensors", "base/metrics.jsonl"];

#[test]
fn a_gang_whose_member_was_killed_goes_on_from_its_checkpoint() {
    let mut cluster = Cluster::new();
    cluster.start_all(3, 2);
    cluster.submit(&SETTINGS);
    cluster.wait_for_stage("base-sft", "is done", is_done);
    let undisturbed = PRODUCTS.map(|name| cluster.product(name));
    cluster.cancel();
    cluster.forget_stage("base-sft", &["base"]);

    cluster.replace_worker("w2", &["--fault", "train.step=8"], &[]);
    let before = cluster.run_log().len();
    cluster.submit(&SETTINGS);
    assert_eq!(cluster.wait_for_death("w2"), Some(9));
    let waiting = cluster.wait_for_stage("base-sft", "waits for a second worker", |stage| {
        stage["note"].as_str().unwrap().contains("waiting: 1 of 2 workers")
    });
    let task = &waiting["tasks"][0];
    assert_eq!((&task["lost"], &task["failed"]), (&1.into(), &0.into()), "{waiting}");
    // The first rank, which was not killed, ends what it is writing.
    poll_until("checkpoint-3 is there", Duration::from_secs(60), || {
        cluster.path("artifacts/tiny/base/checkpoint-3").exists().then_some(())
    });
    assert!(!cluster.path("artifacts/tiny/base/model.safetensors").exists());

    cluster.start_worker("w2", &[], &[]);
    cluster.wait_for_stage("base-sft", "is done", is_done);
    let log = cluster.run_log()[before..].to_owned();
    assert!(log.contains("worker w2 is lost") && log.contains("attempt 2 on w1, w2"), "{log}");
    for (name, undisturbed) in PRODUCTS.iter().zip(&undisturbed) {
        assert!(cluster.product(name) == *undisturbed, "{name} differs after the death");
    }
}
