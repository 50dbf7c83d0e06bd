//! Who may join a cluster, and how a worker leaves: tokens, versions of folders, names, signals.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use cluster_tests::cluster::{Cluster, poll_until};

#[test]
fn a_worker_joins_shows_what_it_is_and_leaves_when_told_to() {
    let mut cluster = Cluster::new();
    cluster.start_coordinator(&[], &[]);
    cluster.start_worker("w1", &[], &[]);
    let worker = cluster.wait_for_worker("w1", "idle");
    assert_eq!(worker["pid"], cluster.pid("w1"));
    assert_eq!((&worker["device"], &worker["threads"]), (&"cpu".into(), &1.into()));
    assert!(worker["memory_bytes"].as_u64().unwrap() > 1 << 28);

    cluster.terminate("w1");
    assert_eq!(cluster.wait("w1"), Some(0), "{}", cluster.log("w1"));
    cluster.wait_for_worker("w1", "left");

    // A coordinator that ends has released its port: another one may have it at once.
    cluster.terminate("coordinator");
    assert_eq!(cluster.wait("coordinator"), Some(0), "{}", cluster.log("coordinator"));
    cluster.restart("coordinator");
    poll_until("it answers", Duration::from_secs(20), || {
        (cluster.command(&["status"], &[]).0 == Some(0)).then_some(())
    });
}

#[test]
fn workers_wait_for_a_coordinator_and_find_it_again() {
    let mut cluster = Cluster::new();
    cluster.start_coordinator(&[], &[]);
    cluster.kill("coordinator");
    cluster.start_worker("w1", &[], &[]);
    cluster.wait_for_log("w1", "dialling again");
    let (code, _, err) = cluster.command(&["status"], &[]);
    assert_eq!(code, Some(1));
    assert!(err.contains("no coordinator answers at") && err.contains("coordinator serve"), "{err}");
    cluster.restart("coordinator");
    cluster.wait_for_worker("w1", "idle");
    cluster.kill("coordinator");
    cluster.restart("coordinator");
    cluster.wait_for_worker("w1", "idle");
}

#[test]
fn a_cluster_with_a_token_takes_nobody_without_it() {
    let mut cluster = Cluster::new();
    cluster.start_coordinator(&[], &[("TRACE_TOKEN", "right-token")]);
    for (name, env, words) in
        [("none", &[][..], "wants a token"), ("wrong", &[("TRACE_TOKEN", "wrong-token")][..], "not this cluster's")]
    {
        cluster.start_worker(name, &[], env);
        assert_eq!(cluster.wait(name), Some(1));
        assert!(cluster.log(name).contains(words), "{}", cluster.log(name));
        assert!(!cluster.log(name).contains("wrong-token"));
        let (code, _, err) = cluster.command(&["status"], env);
        assert!(code == Some(1) && err.contains(words), "{err}");
    }
    std::fs::write(cluster.path("token"), "right-token\n").unwrap();
    cluster.start_worker("right", &["--token-file", "token"], &[]);
    let right = [("TRACE_TOKEN", "right-token")];
    poll_until("the worker joins", Duration::from_secs(20), || {
        cluster.command(&["workers"], &right).1.contains("idle").then_some(())
    });
    for name in ["coordinator", "right"] {
        assert!(!cluster.log(name).contains("right-token"), "{name} tells the token");
    }
}

#[test]
fn off_loopback_no_server_starts_without_a_token() {
    let mut cluster = Cluster::new();
    for (name, program, args) in [
        ("c", "coordinator", &["serve", "--listen", "0.0.0.0:0"][..]),
        ("o", "oracle-service", &["serve", "--listen", "0.0.0.0:0"][..]),
    ] {
        cluster.start(name, program, args, &[("OPENAI_API_KEY", "k")]);
        assert_eq!(cluster.wait(name), Some(1));
        assert!(cluster.log(name).contains("TRACE_TOKEN"), "{}", cluster.log(name));
    }
}

#[test]
fn two_coordinators_do_not_share_a_state_folder() {
    let mut cluster = Cluster::new();
    cluster.start_coordinator(&[], &[]);
    cluster.start("second", "coordinator", &["serve", "--artifacts", "artifacts", "--listen", "127.0.0.1:0"], &[]);
    assert_eq!(cluster.wait("second"), Some(1));
    let log = cluster.log("second");
    let holder = format!("in use by process {}", cluster.pid("coordinator"));
    assert!(log.contains(&holder) && log.contains("another state folder"), "{log}");
}

#[test]
fn a_worker_that_sees_another_folder_gets_no_work_and_says_why() {
    let mut cluster = Cluster::new();
    cluster.start_coordinator(&[], &[]);
    std::fs::write(cluster.path("artifacts/.cluster"), "of another cluster").unwrap();
    cluster.start_worker("w1", &[], &[]);
    let worker = cluster.wait_for_worker("w1", "unusable");
    let note = worker["note"].as_str().unwrap();
    assert!(note.contains("artifacts") && note.contains("another folder") && note.contains("mount"), "{note}");
    std::fs::remove_file(cluster.path("artifacts/.cluster")).unwrap();
    cluster.start_worker("w2", &[], &[]);
    let worker = cluster.wait_for_worker("w2", "unusable");
    assert!(worker["note"].as_str().unwrap().contains("cannot be read here"), "{worker}");
}

#[test]
fn two_workers_do_not_share_a_name() {
    let mut cluster = Cluster::new();
    cluster.start_coordinator(&[], &[]);
    cluster.start_worker("w1", &[], &[]);
    cluster.wait_for_worker("w1", "idle");
    let coordinator = cluster.coordinator.clone();
    cluster.start("twin", "worker", &["serve", "--coordinator", &coordinator, "--name", "w1"], &[]);
    assert_eq!(cluster.wait("twin"), Some(1));
    let log = cluster.log("twin");
    assert!(log.contains("refuses this worker") && log.contains("--name"), "{log}");
    cluster.wait_for_worker("w1", "idle");
}

#[test]
fn what_cannot_be_served_is_told_at_once() {
    let mut cluster = Cluster::new();
    cluster.start_coordinator(&[], &[]);
    let coordinator = cluster.coordinator.clone();
    cluster.start("gpu", "worker", &["serve", "--coordinator", &coordinator, "--device", "cuda:0"], &[]);
    assert_eq!(cluster.wait("gpu"), Some(1));
    assert!(cluster.log("gpu").contains("--device cuda:0"), "{}", cluster.log("gpu"));
    cluster.start("nowhere", "worker", &["serve", "--coordinator", "no address"], &[]);
    assert_eq!(cluster.wait("nowhere"), Some(1));
    assert!(cluster.log("nowhere").contains("is not an address"), "{}", cluster.log("nowhere"));
    for args in
        [&["status", "none"][..], &["watch", "none"], &["logs", "none"], &["cancel", "none"], &["pause", "none"]]
    {
        let (code, _, err) = cluster.command(args, &[]);
        assert!(code == Some(1) && err.contains("there is no run"), "{args:?}: {err}");
    }
}
