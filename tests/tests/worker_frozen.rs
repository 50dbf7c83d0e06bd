//! Workers that freeze (SIGSTOP), as machines that hang: one in a training gang, one in scoring. Both are lost for the run,
//! which goes on with the others; once they thaw, they give up what is no longer theirs and join again. Nothing is corrupted.
//!
//! A worker that freezes in a gang as a later rank holds nothing. One that freezes in a shard holds the shard's file: the next
//! attempt takes it over, and the run ends while the first one is still frozen.
//!
//! They freeze themselves on plan. The stages are done twice in one folder, first undisturbed.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use cluster_tests::cluster::Cluster;
use cluster_tests::runs::is_done;
use rustix::process::Signal;

const SCORING: &str = "score-oracle-punish";
const PRODUCTS: [&str; 3] = ["base/model.safetensors", "base/metrics.jsonl", "oracle-punish/weighted_dataset.json"];

#[test]
fn a_run_goes_on_without_frozen_workers_and_takes_them_back_when_they_thaw() {
    let mut cluster = Cluster::new();
    cluster.start_all(3, 3);
    let shards = ["--set", "score.shard_records=100"];
    cluster.submit(&shards);
    cluster.wait_for_stage(SCORING, "is done", is_done);
    let undisturbed = PRODUCTS.map(|name| cluster.product(name));
    cluster.cancel();
    cluster.forget_stage("base-sft", &["base"]);
    cluster.forget_stage("gold-oracle-punish", &["oracle-punish"]);
    cluster.forget_stage(SCORING, &[]);

    // Gangs and first shards go to workers in the order of their names.
    for (name, fault) in [("w2", "train.step=5:freeze"), ("w3", "score.pack=2:freeze")] {
        cluster.replace_worker(name, &["--fault", fault], &[]);
    }
    let before = cluster.run_log().len();
    cluster.submit(&shards);
    cluster.wait_until_frozen("w2");
    let frozen = Instant::now();
    cluster.wait_for_worker("w2", "lost");
    // Five heartbeats of 500 ms, and the time of a busy machine.
    assert!(frozen.elapsed() < Duration::from_secs(20), "found after {:?}", frozen.elapsed());
    cluster.wait_for_stage("base-sft", "is done", is_done);
    cluster.signal("w2", Signal::CONT);
    cluster.wait_until_frozen("w3");
    cluster.wait_for_worker("w3", "lost");
    cluster.wait_for_stage(SCORING, "is done without the frozen worker", is_done);
    cluster.cancel();
    cluster.signal("w3", Signal::CONT);
    for name in ["w2", "w3"] {
        cluster.wait_for_worker(name, "idle");
    }
    let log = cluster.run_log()[before..].to_owned();
    for words in ["worker w2 is lost", "attempt 2 on w1, w3", "worker w3 is lost"] {
        assert!(log.contains(words), "{words} is not in\n{log}");
    }
    for (name, undisturbed) in PRODUCTS.iter().zip(&undisturbed) {
        assert!(cluster.product(name) == *undisturbed, "{name} differs after the freeze");
    }
}
