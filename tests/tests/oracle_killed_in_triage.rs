//! The oracle service killed in the middle of a run's triage, more than once: the coordinator waits, the service goes on from
//! its ledger, only what was in flight is sent again, and the labels are those of the rules behind the mock.
//!
//! Deaths are planned (`TRACE_FAULT`) at the n-th request: before its intent is stored, before it is sent, before its answer
//! is stored. The cluster has no workers: triage needs none.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use cluster_tests::cluster::Cluster;
use cluster_tests::program;
use cluster_tests::runs::{is_done, stage};

/// Requests on their way at once, by the run file.
const IN_FLIGHT: u64 = 4;
const DEATHS: [&str; 3] = ["online.settle=300", "online.send=400", "online.intend=200"];

#[test]
fn a_service_that_dies_in_triage_pays_again_for_what_was_in_flight_alone() {
    let mut cluster = Cluster::new();
    cluster.start_all(3, 0);
    cluster.kill("oracle");
    cluster.plan_death("oracle", Some(DEATHS[0]));
    cluster.restart("oracle");
    cluster.submit(&[]);
    for next in DEATHS.into_iter().skip(1).map(Some).chain([None]) {
        assert!(cluster.wait_for_death("oracle").is_some(), "it dies as if killed");
        let status = cluster.json(&["status", "tiny"]);
        assert_eq!(stage(&status, "triage")["state"], "running");
        assert!(!cluster.path("artifacts/tiny/triage/gold.json").exists());
        cluster.plan_death("oracle", next);
        cluster.restart("oracle");
    }
    cluster.wait_for_stage("triage", "is done", is_done);

    let charged = cluster.charged();
    let again: u64 =
        charged["requests"].as_object().unwrap().values().map(|request| request["times"].as_u64().unwrap() - 1).sum();
    let most = IN_FLIGHT * DEATHS.len() as u64;
    assert!(
        (1..=most).contains(&again),
        "{again} requests were paid again, at most {most} were in flight at the deaths"
    );

    let pairs = "artifacts/tiny/world/pairs.json";
    let words = ["triage", "--input-json", pairs, "--output-json", "rules.json", "--rules", "world/rules_new.toml"];
    let triage = Command::new(program("oracle-service")).args(words).current_dir(cluster.folder()).output().unwrap();
    assert!(triage.status.success(), "{}", String::from_utf8_lossy(&triage.stderr));
    assert!(cluster.product("triage/gold.json") == std::fs::read(cluster.path("rules.json")).unwrap(), "other labels");
}
