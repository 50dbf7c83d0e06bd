//! A worker that freezes (SIGSTOP) when it has written a merged model and not yet given it its place: another one merges, the run goes
//! on with that, and the frozen one changes nothing when it wakes.
//!
//! The freeze is planned. The model is merged twice in one folder, first undisturbed.
#![allow(clippy::unwrap_used)]

use cluster_tests::cluster::Cluster;
use cluster_tests::runs::is_done;
use rustix::process::Signal;

const STAGE: &str = "merge-oracle-punish";
const SETTINGS: [&str; 2] = ["--set", "eval.merge=true"];

/// Names and bytes of what is in the merged model's folder.
fn merged(cluster: &Cluster) -> Vec<(String, Vec<u8>)> {
    let folder = cluster.path("artifacts/tiny/oracle-punish/merged");
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &std::path::Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let mut files: Vec<_> = entries.map(|path| (name(&path), std::fs::read(&path).unwrap())).collect();
    files.sort();
    files
}

#[test]
fn a_merge_that_wakes_after_another_has_merged_changes_nothing() {
    let mut cluster = Cluster::new();
    cluster.start_all(3, 2);
    cluster.submit(&SETTINGS);
    cluster.wait_for_stage(STAGE, "is done", is_done);
    cluster.wait_for_stage("generate-base", "is done", is_done);
    let undisturbed = merged(&cluster);
    assert!(undisturbed.iter().any(|(name, _)| name == "model.safetensors"));
    cluster.cancel();
    cluster.forget_stage(STAGE, &["oracle-punish/merged"]);

    // A task for one goes to the first of the free.
    cluster.replace_worker("w1", &["--fault", "merge.written=1:freeze"], &[]);
    let before = cluster.run_log().len();
    cluster.submit(&SETTINGS);
    cluster.wait_until_frozen("w1");
    cluster.wait_for_stage(STAGE, "is done without the frozen worker", is_done);
    assert!(merged(&cluster) == undisturbed);
    cluster.cancel();
    cluster.signal("w1", Signal::CONT);
    cluster.wait_for_worker("w1", "idle");
    let log = cluster.run_log()[before..].to_owned();
    assert!(log.contains("worker w1 is lost") && log.contains("attempt 2 on w2"), "{log}");
    assert!(cluster.log("w1").contains("a newer attempt"), "{}", cluster.log("w1"));
    assert!(merged(&cluster) == undisturbed, "the merge that woke has changed the folder");
}
