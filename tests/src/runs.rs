//! Runs of the tiny run file on a cluster: what commands say of them, and stages that are done a second time.
//!
//! Results are a function of the run file and the folder, so a stage that is done again in the same folder must come out
//! with the same bytes, whatever befell it.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::cluster::{Cluster, poll_until};

/// Returns the run file of the quickstart's chain on a tiny setting; its run is named `tiny`.
pub fn tiny() -> String {
    run_file("tiny")
}

/// Returns a run file of `runs/`; its run has the same name.
pub fn run_file(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("runs/{name}.toml")).display().to_string()
}

/// Returns a stage of a run's status.
///
/// # Panics
/// There is no such stage.
pub fn stage<'a>(status: &'a Value, name: &str) -> &'a Value {
    let stages = status["stages"].as_array().expect("a status has stages");
    stages.iter().find(|stage| stage["name"] == name).unwrap_or_else(|| panic!("there is no stage {name}"))
}

/// Returns whether the first training is some steps in.
pub fn is_training(status: &Value) -> bool {
    stage(status, "base-sft")["done"].as_u64() > Some(2)
}

/// Returns whether a stage's work is done.
pub fn is_done(stage: &Value) -> bool {
    stage["state"] == "done"
}

/// A first training that outlasts some commands on any machine.
pub const LONG: [&str; 2] = ["--set", "base.step.sft.max_steps=300"];

impl Cluster {
    /// Submits the tiny run file with these options.
    #[track_caller]
    pub fn submit(&self, options: &[&str]) -> Value {
        self.json(&[&["submit", &tiny()][..], options].concat())
    }

    /// Waits until a run's status is as wanted; returns it. A run that ended otherwise fails at once.
    #[track_caller]
    pub fn wait_for_run(&self, run: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        poll_until(&format!("run {run}: {what}"), Duration::from_secs(300), || {
            let status = self.json(&["status", run]);
            if wanted(&status) {
                return Some(status);
            }
            assert!(status["ended_ms"].is_null(), "run {run} ended before {what}: {}", status["reason"]);
            None
        })
    }

    /// Waits until a stage of the tiny run is as wanted; returns the stage.
    #[track_caller]
    pub fn wait_for_stage(&self, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let status = self.wait_for_run("tiny", &format!("{name} {what}"), |status| wanted(stage(status, name)));
        stage(&status, name).clone()
    }

    /// Cancels the tiny run and waits until nobody works for it.
    #[track_caller]
    pub fn cancel(&self) {
        assert_eq!(self.json(&["cancel", "tiny"])["state"], "cancelled");
        self.wait_until_idle();
    }

    /// Waits until every worker that is there is free.
    #[track_caller]
    pub fn wait_until_idle(&self) {
        poll_until("nobody works", Duration::from_secs(60), || {
            let workers = self.json(&["workers"]);
            let is_free = |worker: &Value| ["idle", "left", "lost"].iter().any(|state| worker["state"] == *state);
            workers.as_array()?.iter().all(is_free).then_some(())
        });
    }

    /// Returns a result of the tiny run.
    ///
    /// # Panics
    /// It is not there.
    #[track_caller]
    pub fn product(&self, name: &str) -> Vec<u8> {
        let file = self.path("artifacts/tiny").join(name);
        std::fs::read(&file).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Removes a stage's results and all that says that it was done: the next submission does it again.
    pub fn forget_stage(&self, name: &str, products: &[&str]) {
        let run = self.path("artifacts/tiny");
        let stages = run.join("stages");
        let of_stage = [stages.join(format!("{name}.json")), stages.join(name)];
        for path in of_stage.into_iter().chain(products.iter().map(|product| run.join(product))) {
            if path.is_dir() {
                std::fs::remove_dir_all(path).expect("a folder can be removed");
            } else if path.exists() {
                std::fs::remove_file(path).expect("a file can be removed");
            }
        }
    }

    /// Returns the log of the tiny run.
    #[track_caller]
    pub fn run_log(&self) -> String {
        let (code, out, err) = self.command(&["logs", "tiny"], &[]);
        assert_eq!(code, Some(0), "{err}");
        out
    }
}
