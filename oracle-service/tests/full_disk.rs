//! A disk that fills up under the ledger, as a limit on the size of files: the job stops and names the file, what was
//! answered stays, and with room the same command completes without paying for it again.
//!
//! `ulimit -f` counts KiB; with its signal ignored, a write beyond it fails as one on a full disk does.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::Command;

use shared::store::{Change, Store};
use support::{PROGRAM, Server, by_model, succeed, world};

/// Requests on their way at once: so many answers may come that find no room.
const IN_FLIGHT: u64 = 4;
/// Room that is left for the ledger.
const ROOM_KIB: u64 = 24;

#[test]
fn a_ledger_without_room_stops_the_job_and_goes_on_with_room() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 100);
    let mock = Server::mock(folder, &[]);
    let api = mock.api();
    let triage = |output: &'static str, judge: &[&str]| -> Vec<String> {
        let words = ["triage", "--input-json", "pairs.json", "--output-json", output, "--ckpt-every", "0"];
        words.iter().chain(judge).map(|word| (*word).to_owned()).collect()
    };
    let by_mock = triage("gold.json", &[&by_model(&api)[..], &["--concurrency", "4"]].concat());
    let by_mock: Vec<&str> = by_mock.iter().map(String::as_str).collect();
    let by_rules = triage("rules.json", &["--rules", "rules_new.toml"]);
    succeed(folder, &by_rules.iter().map(String::as_str).collect::<Vec<_>>());

    // The log is made the longest file by far, so that the limit is about it alone.
    let log = folder.join("state/log");
    let store = Store::open(&folder.join("state")).unwrap();
    for part in 0..4 {
        store.commit_blocking(vec![Change::put("filler", format!("{part}"), &"x".repeat(1 << 20))]).unwrap();
    }
    drop(store);
    let before = std::fs::metadata(&log).unwrap().len();
    let limit = before / 1024 + ROOM_KIB;
    let limited = format!("trap '' XFSZ; ulimit -f {limit}; exec \"$0\" \"$@\"");
    let mut shell = Command::new("bash");
    shell.args(["-c", &limited, PROGRAM]).args(&by_mock).current_dir(folder).env("OPENAI_API_KEY", "test-key");
    for attempt in 1..=2 {
        let output = shell.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "attempt {attempt}: {text}");
        assert!(text.contains("state/log: cannot write: File too large"), "{text}");
        assert!(!text.contains("panicked"), "{text}");
        assert!(!folder.join("gold.json").exists(), "an output that is not whole");
    }
    let kept = std::fs::metadata(&log).unwrap().len();
    assert!(kept > before && kept <= limit * 1024, "{before} → {kept} bytes");

    succeed(folder, &by_mock);
    assert!(std::fs::read(folder.join("gold.json")).unwrap() == std::fs::read(folder.join("rules.json")).unwrap());
    let bill = mock.bill();
    let times = bill["requests"].as_object().unwrap().values().map(|request| request["times"].as_u64().unwrap());
    let (requests, paid) = times.fold((0, 0), |(requests, paid), times| (requests + 1, paid + times));
    let again = paid - requests;
    assert!(again <= 2 * IN_FLIGHT, "{again} answers were paid again, {IN_FLIGHT} were in flight at each of two stops");
}
