//! `worker train` told to stop by SIGTERM or Ctrl-C, as Slurm and Kubernetes preempt: the run, in a gang every rank after the
//! same step, leaves a checkpoint, says how to go on, ends with exit code 75, and ends later with the bytes of an undisturbed one.
//! A worker of a cluster that is told so in the middle of a training leaves with a checkpoint; the run goes on when another comes.
//!
//! Deterministic because the process freezes itself at a planned step: the signal is there before it goes on. One thread
//! computes, and the run is long enough that it cannot end before a signal is noticed.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use cluster_tests::Folder;
use cluster_tests::cluster::{Cluster, is_frozen, poll_until};
use cluster_tests::local;
use cluster_tests::runs::is_done;
use rustix::process::Signal;

const TRAIN: &str = "train --model-name-or-path {tied} --dataset-json-path records.json --output-dir runs --method dpo \
    --batch-size 2 --gradient-accumulation-steps 1 --max-steps 150 --num-train-epochs 100 --save-steps 40 --lora-r 4 \
    --lora-dropout 0.3 --learning-rate 1e-3 --pack-tokens 150";

/// Runs until the last rank freezes itself, sends it the signal, and returns what all said at their ends.
fn preempt(folder: &Folder, name: &str, world: usize, signal: Signal) -> Vec<String> {
    let mut children =
        folder.start_gang(&format!("{TRAIN} --run-name {name}"), world, Some((world - 1, "train.step=5:freeze")));
    let last = children.last_mut().unwrap();
    let pid = last.id();
    poll_until("the last rank is frozen", Duration::from_secs(120), || {
        assert!(last.try_wait().unwrap().is_none(), "the last rank has ended");
        is_frozen(pid).then_some(())
    });
    local::signal(pid, signal);
    local::signal(pid, Signal::CONT);
    let ends = children.into_iter().map(|child| {
        let output = child.wait_with_output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(75), "{err}");
        err
    });
    ends.collect()
}

#[test]
fn a_run_that_is_told_to_stop_leaves_a_checkpoint_and_goes_on_to_the_same_bytes() {
    let folder = Folder::new();
    for (world, signal) in [(1, Signal::TERM), (1, Signal::INT), (2, Signal::TERM)] {
        let whole = format!("whole-{world}");
        if !folder.path(&format!("runs/{whole}")).exists() {
            folder.gang(&format!("{TRAIN} --run-name {whole}"), world);
        }
        let name = format!("stopped-{world}-{}", signal.as_raw());
        let said = preempt(&folder, &name, world, signal);
        assert!(said.iter().all(|said| said.contains("stopped as asked")), "{said:#?}");
        assert!(said[world - 1].contains("told to stop: at the next step"), "{said:#?}");
        let (_, after) = said[0].split_once("stopped after step ").unwrap_or_else(|| panic!("{}", said[0]));
        let step: u64 = after.split(' ').next().unwrap().parse().unwrap();
        assert!((5..150).contains(&step) && said[0].contains("the same command goes on from there"), "{}", said[0]);
        assert!(folder.path(&format!("runs/{name}/checkpoint-{step}/state.json")).exists());
        assert_eq!(folder.lines(&format!("runs/{name}/metrics.jsonl")).len() as u64, step, "it stopped at that step");

        folder.gang(&format!("{TRAIN} --run-name {name}"), world);
        let state = "checkpoint-120/state.safetensors";
        folder.same_runs(&["adapter_model.safetensors", "metrics.jsonl", state], [&whole, &name], "after a stop");
    }
}

#[test]
fn a_worker_that_is_told_to_stop_in_a_training_leaves_with_a_checkpoint() {
    let mut cluster = Cluster::new();
    // It stands still for a moment, and is not to be taken for lost.
    cluster.heartbeat_ms = 1000;
    cluster.start_all(3, 2);
    cluster.submit(&[]);
    cluster.wait_for_stage("base-sft", "is done", is_done);
    let products = ["base/model.safetensors", "base/metrics.jsonl"];
    let undisturbed = products.map(|name| cluster.product(name));
    cluster.cancel();
    cluster.forget_stage("base-sft", &["base"]);
    cluster.replace_worker("w2", &["--fault", "train.step=4:freeze"], &[]);
    let before = cluster.run_log().len();
    cluster.submit(&[]);
    cluster.wait_until_frozen("w2");
    cluster.signal("w2", Signal::TERM);
    cluster.signal("w2", Signal::CONT);
    assert_eq!(cluster.wait("w2"), Some(0), "{}", cluster.log("w2"));
    let waiting = cluster.wait_for_stage("base-sft", "waits for a second worker", |stage| {
        stage["note"].as_str().unwrap().contains("waiting: 1 of 2 workers")
    });
    let task = &waiting["tasks"][0];
    assert_eq!((&task["lost"], &task["failed"]), (&0.into(), &0.into()), "neither a loss nor a failure: {waiting}");
    let base = cluster.path("artifacts/tiny/base");
    let steps = std::fs::read_to_string(base.join("metrics.jsonl")).unwrap().lines().count();
    assert!(
        steps >= 4 && base.join(format!("checkpoint-{steps}/state.json")).exists(),
        "it stopped after step {steps}"
    );

    cluster.start_worker("w2", &[], &[]);
    cluster.wait_for_stage("base-sft", "is done", is_done);
    let log = cluster.run_log()[before..].to_owned();
    assert!(log.contains("worker w2 leaves") && !log.contains("is lost"), "{log}");
    for (name, undisturbed) in products.iter().zip(&undisturbed) {
        assert!(cluster.product(name) == *undisturbed, "{name} differs after the stop");
    }
}
