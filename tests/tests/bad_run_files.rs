//! A run file with several problems: a run on this machine and a cluster tell all of them together, and begin nothing.
#![allow(clippy::unwrap_used)]

use cluster_tests::cluster::Cluster;
use cluster_tests::local::LocalRun;
use cluster_tests::runs::tiny;

#[test]
fn problems_are_told_together() {
    let run = LocalRun::new();
    let output = run.command().args(["--set", "train.betta=1", "--set", "run.seed=-1"]).output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(err.contains("betta") && err.contains("beta") && err.contains("seed"), "{err}");
    assert!(!run.artifacts().join("tiny").exists());

    let mut cluster = Cluster::new();
    cluster.start_coordinator(&[], &[]);
    let submit = ["submit", &tiny(), "--set", "train.betta=1", "--set", "eval.batch_size=0"];
    let (code, _, err) = cluster.command(&submit, &[]);
    assert_eq!(code, Some(1));
    assert!(err.contains("betta") && err.contains("batch_size"), "{err}");
    assert!(!cluster.path("artifacts/tiny").exists());
}
