//! A triage that dies at every write and at every exchange with the API, once at each, and goes on.
//!
//! Deaths are planned (`--fault online=N`): the process ends itself as if killed at the N-th passage of any of four points:
//! before a request's intent is stored, before it is sent, before its answer is stored, before it is counted.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::Value;
use support::{Server, by_model, run, succeed, world};

/// Requests on their way at once: so many may be sent again after a death.
const IN_FLIGHT: u64 = 2;

#[test]
fn killed_at_every_point_it_goes_on_and_pays_again_for_what_was_in_flight_alone() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 5);
    let mock = Server::mock(folder, &[]);
    let api = mock.api();
    let calls = || mock.bill()["calls"].as_u64().unwrap();
    let triage = |more: &[&'static str]| -> Vec<String> {
        let words = ["triage", "--input-json", "pairs.json", "--output-json", "gold.json", "--ckpt-every", "0"];
        let all = [&words[..], &by_model(&api), &["--concurrency", "2"], more].concat();
        all.into_iter().map(str::to_owned).collect()
    };
    succeed(
        folder,
        &["triage", "--input-json", "pairs.json", "--output-json", "rules.json", "--rules", "rules_new.toml"],
    );
    let labels = std::fs::read(folder.join("rules.json")).unwrap();
    let mut needed = 0;
    let mut survived = 0;
    for n in 0.. {
        assert!(n < 100, "it comes to no end");
        // A policy and a ledger of its own: nothing is known from the life before.
        std::fs::write(folder.join("policy.md"), format!("The new policy, {n}.\n")).unwrap();
        std::fs::remove_dir_all(folder.join("state")).ok();
        std::fs::remove_file(folder.join("gold.json")).ok();
        let before = calls();
        let fault = format!("online={n}");
        let mut command = triage(&[]);
        command.extend(["--fault".to_owned(), fault]);
        let output = run(folder, &command.iter().map(String::as_str).collect::<Vec<_>>());
        if n == 0 {
            // Undisturbed: the 0th passage never comes.
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            needed = calls() - before;
            continue;
        }
        if output.status.success() {
            survived = n;
            break;
        }
        assert_eq!(output.status.code(), None, "death {n}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(!folder.join("gold.json").exists(), "death {n}: an output that is not whole");
        let command = triage(&[]);
        succeed(folder, &command.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(std::fs::read(folder.join("gold.json")).unwrap() == labels, "death {n}: other labels");
        let paid = calls() - before;
        assert!((needed..=needed + IN_FLIGHT).contains(&paid), "death {n}: {paid} calls for {needed} questions");
    }
    assert_eq!(survived, 4 * needed + 1, "each request passes four points");
    let bill: Value = mock.bill();
    let most = bill["requests"].as_object().unwrap().values().map(|request| request["times"].as_u64().unwrap()).max();
    assert_eq!(most, Some(2), "some death came between sending and storing, and none cost more than one repetition");
}
