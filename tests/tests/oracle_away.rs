//! A stage that needs the oracle says what it waits for while the service is away, and goes on when it is there.
#![allow(clippy::unwrap_used)]

use cluster_tests::cluster::Cluster;
use cluster_tests::runs::is_done;

#[test]
fn an_oracle_that_is_away_is_waited_for() {
    let mut cluster = Cluster::new();
    cluster.start_all(3, 0);
    cluster.kill("oracle");
    cluster.submit(&[]);
    cluster.wait_for_stage("triage", "waits", |stage| {
        stage["note"].as_str().unwrap().contains("waiting for the oracle service at")
    });
    cluster.restart("oracle");
    cluster.wait_for_stage("triage", "is done", is_done);
}
