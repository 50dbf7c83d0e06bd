//! A stage for which too few workers are there waits with the reason, and begins when enough have joined.
#![allow(clippy::unwrap_used)]

use cluster_tests::cluster::Cluster;
use cluster_tests::runs::is_done;

#[test]
fn a_gang_waits_for_its_second_worker() {
    let mut cluster = Cluster::new();
    cluster.start_all(3, 1);
    cluster.submit(&[]);
    cluster.wait_for_stage("base-sft", "waits for a second worker", |stage| {
        stage["note"].as_str().unwrap().contains("waiting: 1 of 2 workers")
    });
    assert_eq!(cluster.json(&["status", "tiny"])["state"], "running");
    cluster.start_worker("w2", &[], &[]);
    cluster.wait_for_stage("base-sft", "is done", is_done);
}
