//! A worker that is drained leaves by itself: at once when it is free, and within a run that goes on without it.
#![allow(clippy::unwrap_used)]

use cluster_tests::cluster::Cluster;
use cluster_tests::runs::{LONG, is_done, is_training, stage};

#[test]
fn a_free_worker_leaves_and_one_that_is_not_there_is_told() {
    let mut cluster = Cluster::new();
    cluster.start_coordinator(&[], &[]);
    cluster.start_worker("w1", &[], &[]);
    cluster.wait_for_worker("w1", "idle");
    let (code, out, _) = cluster.command(&["drain", "w1"], &[]);
    let told = ["worker w1 is draining", "worker w1 has left"];
    assert!(code == Some(0) && told.contains(&out.trim()), "{out}");
    assert_eq!(cluster.wait("w1"), Some(0), "{}", cluster.log("w1"));
    cluster.wait_for_worker("w1", "left");
    let (code, _, err) = cluster.command(&["drain", "w3"], &[]);
    assert!(code == Some(1) && err.contains("there is no worker w3"), "{err}");
}

#[test]
fn a_run_goes_on_without_the_workers_that_were_drained() {
    let mut cluster = Cluster::new();
    cluster.start_all(3, 3);
    cluster.submit(&LONG);
    let training = cluster.wait_for_run("tiny", "training", is_training);
    let members = stage(&training, "base-sft")["tasks"][0]["workers"].as_array().unwrap().clone();
    assert_eq!(members.len(), 2, "{training}");
    // The one that does nothing goes at once; two are enough for a gang of two.
    let free = ["w1", "w2", "w3"].into_iter().find(|name| !members.contains(&(*name).into())).unwrap();
    let (code, _, err) = cluster.command(&["drain", free], &[]);
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(cluster.wait(free), Some(0), "{}", cluster.log(free));
    // One of the gang ends its task before it goes.
    let member = members[1].as_str().unwrap();
    let (code, _, err) = cluster.command(&["drain", member], &[]);
    assert_eq!(code, Some(0), "{err}");
    cluster.wait_for_stage("base-sft", "is done", is_done);
    assert_eq!(cluster.wait(member), Some(0), "{}", cluster.log(member));
    let log = cluster.run_log();
    assert!(!log.contains("is lost") && !log.contains("attempt 2"), "{log}");
    // What needs one worker at a time goes on with the one that is left.
    cluster.wait_for_stage("generate-base", "is done", is_done);
}
