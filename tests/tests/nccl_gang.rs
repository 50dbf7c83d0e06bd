//! A gang of real processes over the NCCL layer, with a stand-in for the libraries (`tests/nccl-double`): the curve of the ring; a call
//! that hangs; a library that is not there.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Child;
use std::time::Duration;

use cluster_tests::Folder;
use cluster_tests::cluster::{Cluster, poll_until};
use cluster_tests::runs::stage;

const OPTIONS: &str = "train --model-name-or-path {tied} --dataset-json-path records.json --output-dir runs --method no-impact \
    --batch-size 4 --gradient-accumulation-steps 1 --num-train-epochs 2 --lora-r 4 --lora-dropout 0.3 --learning-rate 1e-2 \
    --pack-tokens 150";

fn start(folder: &Folder, name: &str, options: &str, library: &Path, plan: &str) -> Vec<Child> {
    let variables = [
        ("TRACE_NCCL_LIBRARY", library.as_os_str()),
        ("TRACE_CUDART_LIBRARY", library.as_os_str()),
        ("NCCL_DOUBLE_PLAN", plan.as_ref()),
    ];
    folder.start_gang_with(&format!("{OPTIONS} {options} --run-name {name}"), 2, None, &variables)
}

fn ends(children: Vec<Child>) -> Vec<(Option<i32>, String)> {
    let outputs = children.into_iter().map(|child| child.wait_with_output().unwrap());
    outputs.map(|output| (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())).collect()
}

#[test]
fn a_gang_over_nccl_trains_what_one_over_the_ring_trains() {
    let (folder, double) = (Folder::new(), cluster_tests::nccl_double());
    for (kind, options) in [("adapter", ""), ("full", "--full --shard-parameters")] {
        for collective in ["ring", "nccl"] {
            let children = start(
                &folder,
                &format!("{kind}-{collective}"),
                &format!("{options} --collective {collective}"),
                &double,
                "",
            );
            for (rank, (code, err)) in ends(children).into_iter().enumerate() {
                assert_eq!(code, Some(0), "{kind} over {collective}, rank {rank}: {err}");
                assert_eq!(err.contains("exchanges over NCCL"), collective == "nccl", "{err}");
            }
        }
        // Two numbers are added in one order whoever does it.
        folder.same_runs(&["metrics.jsonl"], [&format!("{kind}-ring"), &format!("{kind}-nccl")], "over NCCL");
    }
}

#[test]
fn what_nccl_reports_ends_the_run_of_every_rank() {
    let (folder, double) = (Folder::new(), cluster_tests::nccl_double());
    let outcomes = ends(start(&folder, "failed", "--collective nccl", &double, "fail=5"));
    for (code, err) in outcomes {
        assert_eq!(code, Some(1), "{err}");
        assert!(err.contains("remote error") && err.contains("as planned"), "{err}");
    }
}

#[test]
fn a_library_that_is_not_there_is_no_reason_to_take_the_ring() {
    let folder = Folder::new();
    let outcomes = ends(start(&folder, "none", "--collective nccl", Path::new("/nowhere/libnccl.so.2"), ""));
    for (code, err) in outcomes {
        assert_eq!(code, Some(1), "{err}");
        assert!(err.contains("/nowhere/libnccl.so.2") && err.contains("--collective ring"), "{err}");
    }
    assert!(!folder.path("runs/none/metrics.jsonl").exists());
}

#[test]
fn a_run_whose_workers_lack_the_library_fails_and_says_so() {
    let mut cluster = Cluster::new();
    cluster.start_all(3, 0);
    for name in ["w1", "w2"] {
        let variables = [("TRACE_NCCL_LIBRARY", "/nowhere/libnccl.so.2")];
        cluster.start_worker(name, &["--collective", "nccl"], &variables);
        cluster.wait_for_worker(name, "idle");
    }
    cluster.submit(&[]);
    let status = poll_until("the run ends", Duration::from_secs(120), || {
        let status = cluster.json(&["status", "tiny"]);
        status["ended_ms"].is_u64().then_some(status)
    });
    let why = stage(&status, "base-sft")["note"].as_str().unwrap();
    assert!(why.contains("/nowhere/libnccl.so.2") && why.contains("--collective ring"), "{status}");
    let log = cluster.run_log();
    assert!(!log.contains("is lost") && log.contains("attempt 3 on") && !log.contains("attempt 4 on"), "{log}");
}
