//! A worker killed in scoring, a sharded stage: its shard is done by another worker, and the scores are the same to the byte.
//!
//! The death is planned, in the middle of a shard. Scoring is done twice in one folder, first undisturbed.
#![allow(clippy::unwrap_used)]

use cluster_tests::cluster::Cluster;
use cluster_tests::runs::is_done;

const SCORING: &str = "score-oracle-punish";
const SCORES: &str = "oracle-punish/weighted_dataset.json";

#[test]
fn the_shard_of_a_killed_worker_is_done_by_another() {
    let mut cluster = Cluster::new();
    cluster.start_all(3, 2);
    let shards = ["--set", "score.shard_records=100"];
    cluster.submit(&shards);
    cluster.wait_for_stage(SCORING, "is done", is_done);
    let undisturbed = cluster.product(SCORES);
    cluster.cancel();
    cluster.forget_stage(SCORING, &[SCORES]);

    cluster.replace_worker("w2", &["--fault", "score.pack=2"], &[]);
    let before = cluster.run_log().len();
    cluster.submit(&shards);
    assert_eq!(cluster.wait_for_death("w2"), Some(9));
    cluster.wait_for_stage(SCORING, "is done", is_done);
    let log = cluster.run_log()[before..].to_owned();
    assert!(log.contains("worker w2 is lost"), "{log}");
    let again = log
        .lines()
        .find(|line| line.contains(SCORING) && line.contains("attempt 2"))
        .unwrap_or_else(|| panic!("{log}"));
    assert!(again.contains("shard-") && again.contains("on w1"), "{again}");
    assert!(!log.contains("failed ("), "a loss is not the task's fault: {log}");
    assert!(cluster.product(SCORES) == undisturbed, "the scores differ after the death");
}
