//! The coordinator under a small load of simulated workers, killed in its middle: every task is completed, none in two
//! attempts. `coordinator bench load` is the program; its figures for 2000 workers are in `docs/performance.md`.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use cluster_tests::program;
use serde_json::Value;

#[test]
fn a_coordinator_killed_under_load_loses_no_task_and_completes_none_twice() {
    let (workers, tasks) = (50, 2000);
    let output = Command::new(program("coordinator"))
        .args(["bench", "load", "--workers", "50", "--tasks", "2000", "--task-ms", "150", "--heartbeat-ms", "500"])
        .args(["--kills", "2", "--json"])
        .env_remove("TRACE_TOKEN")
        .output()
        .unwrap();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{err}");
    let figures: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&figures["workers"], &figures["completed"]), (&workers.into(), &tasks.into()), "{figures:#}");
    assert_eq!((&figures["completed_twice"], &figures["stage"]), (&0.into(), &"done".into()), "{figures:#}");
    assert_eq!(figures["kills"].as_array().unwrap().len(), 2, "{figures:#}");
    // It was at work when it died: workers dial again after 100 ms at the soonest, and two of three end a task meanwhile.
    assert!(figures["assignment_across_deaths"]["n"].as_u64().unwrap() > 0, "{figures:#}");
    assert!(figures["assignment"]["n"].as_u64().unwrap() > 1000, "{figures:#}");
}
