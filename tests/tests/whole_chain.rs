//! The quickstart's chain on a tiny setting by `coordinator run --local 2`: a report at the end, nothing done twice, and the
//! same bytes whichever process is killed in between.
//!
//! Deterministic because every worker computes on one thread, gangs have a fixed size, and shards are cut by content. A
//! process is killed when the run's own log says that it is at work.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use cluster_tests::cluster::poll_until;
use cluster_tests::program;
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

fn run_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("runs/tiny.toml")
}

fn command(artifacts: &Path) -> Command {
    for name in ["worker", "oracle-service"] {
        program(name);
    }
    let mut command = Command::new(program("coordinator"));
    command.arg("run").arg(run_file()).args(["--local", "2", "--artifacts"]).arg(artifacts);
    command.env_remove("TRACE_TOKEN").env_remove("TRACE_FAULT").env_remove("OPENAI_API_KEY").stdin(Stdio::null());
    command
}

#[track_caller]
fn finish(output: Output) -> String {
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}\n{err}", output.status);
    err
}

fn start(artifacts: &Path) -> Child {
    command(artifacts).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn product(artifacts: &Path, name: &str) -> Vec<u8> {
    std::fs::read(artifacts.join("tiny").join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn log(artifacts: &Path) -> String {
    std::fs::read_to_string(artifacts.join(".coordinator/logs/tiny.jsonl")).unwrap_or_default()
}

fn pid(artifacts: &Path, name: &str) -> Option<u64> {
    let text = std::fs::read(artifacts.join(".local/processes.json")).ok()?;
    let state: Value = serde_json::from_slice(&text).ok()?;
    state["processes"].as_array()?.iter().find(|process| process["name"] == name)?["pid"].as_u64()
}

fn kill(pid: u64) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn whoever_is_killed_the_run_ends_with_the_bytes_of_an_undisturbed_one() {
    let dir = tempfile::tempdir().unwrap();
    // One folder for all: results name the files they were made of.
    let whole = dir.path().join("a");
    finish(command(&whole).output().unwrap());
    let report: Value = serde_json::from_slice(&product(&whole, "report/report.json")).unwrap();
    assert_eq!(report["run"], "tiny");
    assert_eq!(report["variants"].as_array().unwrap().len(), 2);
    let triage = &report["triage"];
    let pairs: u64 = ["INVERT", "PUNISH", "RETAIN"].iter().map(|name| triage[name].as_u64().unwrap()).sum();
    assert_eq!((pairs, &triage["uncertain"], &triage["dead_letter"]), (1200, &0.into(), &0.into()));
    assert!(report["oracle"]["calls"].as_u64().unwrap() > 1000, "{}", report["oracle"]);
    assert!(report["oracle"]["cost_usd"].as_f64().unwrap() > 0.0);
    for name in ["report.html", "report.md"] {
        assert!(!product(&whole, &format!("report/{name}")).is_empty());
    }

    // Again: every stage is done already.
    let before = log(&whole).len();
    finish(command(&whole).output().unwrap());
    let again = log(&whole)[before..].to_owned();
    assert!(!again.contains(": begins") || again.matches(": begins").count() == 1, "{again}");

    // (who is killed, once the log says this)
    let deaths = [
        ("worker-1", "score-oracle-punish: begins"),
        ("worker-2", "base-sft: begins"),
        ("coordinator", "train-oracle-punish: begins"),
        ("oracle", "triage: begins"),
        ("mock", "triage: begins"),
        ("supervisor", "train-oracle-punish: begins"),
    ];
    let expected: Vec<Vec<u8>> = PRODUCTS.iter().map(|name| product(&whole, name)).collect();
    let all = whole;
    for (who, when) in deaths {
        std::fs::remove_dir_all(&all).unwrap();
        let mut running = start(&all);
        poll_until(&format!("{when} (to kill {who})"), Duration::from_secs(120), || {
            log(&all).contains(when).then_some(())
        });
        if who == "supervisor" {
            running.kill().unwrap();
        } else {
            kill(poll_until(&format!("process of {who}"), Duration::from_secs(10), || pid(&all, who)));
        }
        if who == "supervisor" {
            running.wait().unwrap();
            finish(command(&all).output().unwrap());
        } else {
            finish(running.wait_with_output().unwrap());
        }
        for (name, expected) in PRODUCTS.iter().zip(&expected) {
            assert!(product(&all, name) == *expected, "{name} differs after {who} was killed");
        }
    }
}

#[test]
fn an_interrupted_run_says_so_and_goes_on_and_problems_are_told_together() {
    let dir = tempfile::tempdir().unwrap();
    let artifacts = dir.path().join("a");
    let running = start(&artifacts);
    poll_until("training", Duration::from_secs(120), || log(&artifacts).contains("base-sft: begins").then_some(()));
    let pid = rustix::process::Pid::from_raw(running.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = running.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(130), "{err}");
    assert!(err.contains("goes on where it was"), "{err}");
    assert!(err.contains("--coordinator http://127.0.0.1:"), "the address is told: {err}");

    // Another run on the same folder, in another world: the interrupted one is left alone, whose mock this is not.
    let before = log(&artifacts);
    finish(command(&artifacts).args(["--set", "run.seed=4", "--set", "run.name=other"]).output().unwrap());
    assert_eq!(log(&artifacts), before);
    assert!(artifacts.join("other/report/report.json").exists());
    finish(command(&artifacts).output().unwrap());
    assert!(log(&artifacts).len() > before.len());

    let output = command(&artifacts).args(["--set", "train.betta=1", "--set", "run.seed=-1"]).output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(err.contains("betta") && err.contains("beta") && err.contains("seed"), "{err}");
}
