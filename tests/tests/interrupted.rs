//! Ctrl-C in a run by `coordinator run --local 2`: it says so and goes on when it is started again; another run on the same
//! folder in between leaves it alone.
#![allow(clippy::unwrap_used)]

use cluster_tests::local::{LocalRun, check, signal};
use rustix::process::Signal;

#[test]
fn an_interrupted_run_says_so_and_goes_on() {
    let run = LocalRun::new();
    let running = run.start();
    run.wait_for_log("base-sft: begins");
    signal(running.id(), Signal::INT);
    let output = running.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(130), "{err}");
    assert!(err.contains("goes on where it was"), "{err}");
    assert!(err.contains("--coordinator http://127.0.0.1:"), "the address is told: {err}");

    // Another run on the same folder, in another world: the interrupted one is left alone, whose mock this is not.
    let before = run.log();
    check(&run.command().args(["--set", "run.seed=4", "--set", "run.name=other"]).output().unwrap());
    assert_eq!(run.log(), before);
    assert!(run.artifacts().join("other/report/report.json").exists());
    run.finish();
    assert!(run.log().len() > before.len());
}
