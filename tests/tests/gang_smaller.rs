//! A gang that may go on with fewer workers (`run.min_workers`): one of two is killed for good, the other goes on alone from
//! the last checkpoint; a worker that comes in its place joins at a checkpoint. The log and the metrics tell who trained what,
//! and the losses are those of a training that nothing happened to.
//!
//! The death is planned, after a checkpoint that a later one has waited for. The training is done twice in one folder, first undisturbed. It is long
//! enough for the gang to grow again: not before it has run for thirty heartbeats.
#![allow(clippy::unwrap_used)]

use cluster_tests::cluster::Cluster;
use cluster_tests::runs::is_done;
use serde_json::Value;

const SETTINGS: [&str; 10] = [
    "--set",
    "run.min_workers=1",
    "--set",
    "base.batch_size=64",
    "--set",
    "base.step.sft.max_steps=200",
    "--set",
    "base.step.sft.save_steps=10",
    "--set",
    "base.step.sft.learning_rate=1e-3",
];

/// Loss and ranks of every step.
fn metrics(cluster: &Cluster) -> Vec<(f64, u64)> {
    let text = String::from_utf8(cluster.product("base/metrics.jsonl")).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let steps: Vec<u64> = lines.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, (1..=200).collect::<Vec<_>>(), "every step is there once");
    lines.iter().map(|line| (line["loss"].as_f64().unwrap(), line["world_size"].as_u64().unwrap())).collect()
}

#[test]
fn a_gang_goes_on_with_fewer_workers_and_takes_another_in_at_a_checkpoint() {
    let mut cluster = Cluster::new();
    cluster.heartbeat_ms = 200;
    cluster.start_all(3, 2);
    cluster.submit(&SETTINGS);
    cluster.wait_for_stage("base-sft", "is done", is_done);
    let undisturbed = metrics(&cluster);
    assert!(undisturbed.iter().all(|(_, ranks)| *ranks == 2));
    cluster.cancel();
    cluster.forget_stage("base-sft", &["base"]);

    cluster.replace_worker("w2", &["--fault", "train.step=22"], &[]);
    let before = cluster.run_log().len();
    cluster.submit(&SETTINGS);
    assert_eq!(cluster.wait_for_death("w2"), Some(9));
    cluster.wait_for_stage("base-sft", "goes on with one worker", |stage| {
        stage["tasks"][0]["attempt"] == 2 && stage["tasks"][0]["workers"] == serde_json::json!(["w1"])
    });
    cluster.start_worker("w3", &[], &[]);
    let grown = cluster.wait_for_stage("base-sft", "goes on with two workers", |stage| {
        stage["tasks"][0]["workers"] == serde_json::json!(["w1", "w3"])
    });
    let task = &grown["tasks"][0];
    assert_eq!(
        (&task["lost"], &task["failed"]),
        (&1.into(), &0.into()),
        "growing is neither loss nor failure: {grown}"
    );
    cluster.wait_for_stage("base-sft", "is done", is_done);

    let log = cluster.run_log()[before..].to_owned();
    let mut rest = log.as_str();
    for words in [
        "worker w2 is lost",
        "attempt 2 on w1 (1 of 2 workers)",
        "to go on with 2 workers instead of 1",
        "attempt 3 on w1, w3 (2 of 2 workers)",
    ] {
        let at = rest.find(words).unwrap_or_else(|| panic!("{words:?} is not in its place in\n{log}"));
        rest = &rest[at..];
    }
    let disturbed = metrics(&cluster);
    let ranks: Vec<u64> = disturbed.chunk_by(|a, b| a.1 == b.1).map(|part| part[0].1).collect();
    assert_eq!(ranks, [2, 1, 2]);
    assert!(disturbed[..10].iter().all(|(_, ranks)| *ranks == 2), "a checkpoint's steps are not done again");
    let apart = |(a, b): (&(f64, u64), &(f64, u64))| (a.0 - b.0).abs() / a.0.abs();
    let furthest = undisturbed.iter().zip(&disturbed).map(apart).fold(0.0, f64::max);
    println!("losses differ by {furthest:.1e} at most");
    assert!(furthest <= 1e-4, "losses differ by {furthest:.1e}");
}
