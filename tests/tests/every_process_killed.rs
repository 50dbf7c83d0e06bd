//! The quickstart's chain by `coordinator run --local 2`: every process is killed once with SIGKILL, and the run ends with
//! the bytes of an undisturbed one.
//!
//! Deterministic because every worker computes on one thread, gangs have a fixed size, and shards are cut by content. A
//! process is killed when the run's own log says that it is at work.
#![allow(clippy::unwrap_used)]

use cluster_tests::local::{LocalRun, check};
use serde_json::Value;

/// What must come out the same to the byte.
const PRODUCTS: [&str; 7] = [
    "base/model.safetensors",
    "base/metrics.jsonl",
    "triage/gold.json",
    "oracle-punish/weighted_dataset.json",
    "oracle-punish/adapter_model.safetensors",
    "oracle-punish/metrics.jsonl",
    "oracle-punish/responses_test.json",
];

/// Who is killed, once the log says this.
const DEATHS: [(&str, &str); 6] = [
    ("worker-1", "score-oracle-punish: begins"),
    ("worker-2", "base-sft: begins"),
    ("coordinator", "train-oracle-punish: begins"),
    ("oracle", "triage: begins"),
    ("mock", "triage: begins"),
    ("supervisor", "train-oracle-punish: begins"),
];

#[test]
fn whoever_is_killed_the_run_ends_with_the_bytes_of_an_undisturbed_one() {
    let run = LocalRun::new();
    undisturbed(&run);
    let expected: Vec<Vec<u8>> = PRODUCTS.iter().map(|name| run.product(name)).collect();
    for (who, when) in DEATHS {
        std::fs::remove_dir_all(run.artifacts()).unwrap();
        let mut running = run.start();
        run.wait_for_log(when);
        if who == "supervisor" {
            running.kill().unwrap();
            running.wait().unwrap();
            run.finish();
        } else {
            run.kill(who);
            check(&running.wait_with_output().unwrap());
        }
        for (name, expected) in PRODUCTS.iter().zip(&expected) {
            assert!(run.product(name) == *expected, "{name} differs after {who} was killed");
        }
    }
}

/// The run by itself, and once more when all is done.
fn undisturbed(run: &LocalRun) {
    run.finish();
    let report: Value = serde_json::from_slice(&run.product("report/report.json")).unwrap();
    assert_eq!(report["run"], "tiny");
    assert_eq!(report["variants"].as_array().unwrap().len(), 2);
    let triage = &report["triage"];
    let pairs: u64 = ["INVERT", "PUNISH", "RETAIN"].iter().map(|name| triage[name].as_u64().unwrap()).sum();
    assert_eq!((pairs, &triage["uncertain"], &triage["dead_letter"]), (1200, &0.into(), &0.into()));
    assert!(report["oracle"]["calls"].as_u64().unwrap() > 1000, "{}", report["oracle"]);
    assert!(report["oracle"]["cost_usd"].as_f64().unwrap() > 0.0);
    for name in ["report.html", "report.md"] {
        assert!(!run.product(&format!("report/{name}")).is_empty());
    }
    // Again: every stage is done already.
    let before = run.log().len();
    run.finish();
    let again = run.log()[before..].to_owned();
    assert!(!again.contains(": begins") || again.matches(": begins").count() == 1, "{again}");
}
