//! Every failure of the mock's plan, through the whole of a triage: each pair ends labelled once, or listed where that is
//! the answer, and the bill shows nothing paid twice. Real processes, real HTTP.
//!
//! What is not paid twice is told by the mock's bill, which names every request: the highest count of one is 1 in every
//! row. Where a reply breaks the mock does not charge, while the ledger must take it for charged: `lost` says that the
//! account sets its worst case aside, once for each broken reply.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};
use support::{Server, read, run, succeed, world};

const PAIRS: usize = 12;

/// One plan, and what a triage under it comes to.
struct Case {
    name: &'static str,
    plan: &'static str,
    /// More options of the triage.
    more: &'static [&'static str],
    uncertain: u64,
    dead: u64,
    /// Requests that came beyond those that were paid: unavoidable with this failure.
    unpaid: std::ops::RangeInclusive<u64>,
    /// Broken replies, which may have been charged.
    lost: bool,
}

const ONLINE: Case = Case { name: "", plan: "", more: &[], uncertain: 0, dead: 0, unpaid: 0..=0, lost: false };
const BATCH: &[&str] = &["--mode", "batch", "--batch-poll", "20ms"];

fn cases() -> Vec<Case> {
    vec![
        Case { name: "none", ..ONLINE },
        // Refused: the request is sent once more, and was not charged.
        Case {
            name: "429 with headers and a time",
            plan: "[[fault]]\nrequest = 3\nwhat = '429'\nretry_after_s = 1",
            unpaid: 1..=1,
            ..ONLINE
        },
        Case { name: "429 with headers", plan: "[[fault]]\nfrom = 3\nto = 5\nwhat = '429'", unpaid: 3..=3, ..ONLINE },
        Case {
            name: "429 without a word",
            plan: "headers = false\n[[fault]]\nfrom = 3\nto = 5\nwhat = '429-bare'",
            unpaid: 3..=3,
            ..ONLINE
        },
        // What is over a moving limit is refused, seldom, and comes again.
        Case {
            name: "moving limits",
            plan: "burst_s = 1\nlimits_repeat_s = 2\n[[limits]]\nrpm = 1200\n[[limits]]\nat_s = 1\nrpm = 600",
            unpaid: 0..=3,
            ..ONLINE
        },
        Case {
            name: "moving limits that nobody tells",
            plan: "headers = false\nburst_s = 0.2\nlimits_repeat_s = 2\n[[limits]]\nrpm = 1800\n[[limits]]\nat_s = 1\nrpm = 900",
            unpaid: 0..=12,
            ..ONLINE
        },
        Case { name: "500", plan: "[[fault]]\nfrom = 2\nto = 7\nevery = 2\nwhat = '500'", unpaid: 3..=3, ..ONLINE },
        Case { name: "503", plan: "[[fault]]\nrequest = 4\nwhat = '503'", unpaid: 1..=1, ..ONLINE },
        // Cut off by the deadline of some seconds, and asked again.
        Case {
            name: "a reply that hangs",
            plan: "[[fault]]\nrequest = 3\nwhat = 'hang'",
            more: &["--request-timeout-s", "5"],
            unpaid: 1..=1,
            lost: true,
            ..ONLINE
        },
        Case {
            name: "a reply cut in its body",
            plan: "[[fault]]\nrequest = 3\nwhat = 'cut'",
            unpaid: 1..=1,
            lost: true,
            ..ONLINE
        },
        Case {
            name: "a reply that is none",
            plan: "[[fault]]\nrequest = 3\nwhat = 'garbage'",
            unpaid: 1..=1,
            lost: true,
            ..ONLINE
        },
        // Paid for, stored, and no verdict: listed with its reason.
        Case { name: "an answer without content", plan: "[[fault]]\nrequest = 3\nwhat = 'null'", dead: 1, ..ONLINE },
        Case { name: "a refusal of the model", plan: "[[fault]]\nrequest = 3\nwhat = 'refusal'", dead: 1, ..ONLINE },
        // Asked once more in other words, which is another request.
        Case { name: "an unclear answer", plan: "[[fault]]\nrequest = 3\nwhat = 'unclear'", ..ONLINE },
        Case {
            name: "nothing but unclear answers",
            plan: "[[fault]]\nfrom = 1\nwhat = 'unclear'",
            uncertain: 12,
            ..ONLINE
        },
        Case { name: "another build answers", plan: "[[fault]]\nfrom = 5\nwhat = 'fingerprint'", ..ONLINE },
        Case {
            name: "a clock that is off",
            plan: "clock_skew_s = -86400\n[[fault]]\nrequest = 3\nwhat = '429'\nretry_after_s = 1",
            unpaid: 1..=1,
            ..ONLINE
        },
        Case { name: "slow answers", plan: "[latency]\nmedian_ms = 40\np99_ms = 400", ..ONLINE },
        // An outage of some seconds, with fewer items left than show that it is one.
        Case {
            name: "an outage",
            plan: "[[fault]]\nfrom = 3\nto = 12\nwhat = '500'",
            more: &["--concurrency", "2"],
            unpaid: 10..=10,
            ..ONLINE
        },
        // In batches.
        Case { name: "batch", more: BATCH, ..ONLINE },
        Case {
            name: "lines that come twice",
            plan: "[[fault]]\nof = 'line'\nevery = 3\nfrom = 1\nwhat = 'duplicate'",
            more: BATCH,
            ..ONLINE
        },
        Case {
            name: "lines that are missing",
            plan: "[[fault]]\nof = 'line'\nfrom = 2\nto = 9\nwhat = 'missing'",
            more: BATCH,
            ..ONLINE
        },
        Case {
            name: "lines that expire",
            plan: "[[fault]]\nof = 'line'\nfrom = 2\nto = 9\nwhat = 'expired'",
            more: BATCH,
            ..ONLINE
        },
        Case {
            name: "lines that fail for a while",
            plan: "[[fault]]\nof = 'line'\nrequest = 2\nwhat = '500'\n[[fault]]\nof = 'line'\nrequest = 4\nwhat = '429'\n[[fault]]\nof = 'line'\nrequest = 6\nwhat = '503'",
            more: BATCH,
            ..ONLINE
        },
        Case {
            name: "lines without content",
            plan: "[[fault]]\nof = 'line'\nrequest = 2\nwhat = 'null'",
            more: BATCH,
            dead: 1,
            ..ONLINE
        },
        Case {
            name: "lines that the model refuses",
            plan: "[[fault]]\nof = 'line'\nrequest = 2\nwhat = 'refusal'",
            more: BATCH,
            dead: 1,
            ..ONLINE
        },
        Case {
            name: "lines that are unclear",
            plan: "[[fault]]\nof = 'line'\nrequest = 2\nwhat = 'unclear'",
            more: BATCH,
            ..ONLINE
        },
        Case {
            name: "a batch that expires",
            plan: "[batches]\nwindow_s = 1\n[[fault]]\nof = 'batch'\nrequest = 1\nwhat = 'expired'",
            more: BATCH,
            ..ONLINE
        },
        Case {
            name: "a queue that is full",
            plan: "[[fault]]\nof = 'batch'\nrequest = 1\nwhat = 'queue-full'",
            more: BATCH,
            ..ONLINE
        },
        Case {
            name: "exchanges of batches that break",
            plan: "[[fault]]\nof = 'file_calls'\nrequest = 1\nwhat = '500'\n[[fault]]\nof = 'file_calls'\nrequest = 3\nwhat = 'cut'\n\
                   [[fault]]\nof = 'batch_calls'\nrequest = 1\nwhat = 'garbage'\n[[fault]]\nof = 'batch_calls'\nrequest = 3\nwhat = '429'",
            more: BATCH,
            ..ONLINE
        },
        // Some at a time and all the rest.
        Case {
            name: "a bad day",
            plan: "seed = 3\n[latency]\nmedian_ms = 5\n[[fault]]\nshare = 0.1\nwhat = '500'\n[[fault]]\nshare = 0.1\nwhat = 'cut'\n\
                   [[fault]]\nshare = 0.1\nwhat = '429-bare'",
            unpaid: 1..=40,
            lost: true,
            ..ONLINE
        },
    ]
}

/// Failures that stop a command until someone acts: nothing is lost, and run again it goes on.
const STOPS: [(&str, &str, &[&str]); 3] = [
    ("quota", "[[fault]]\nrequest = 5\nwhat = 'quota'", &[]),
    ("401", "[[fault]]\nrequest = 5\nwhat = '401'", &[]),
    ("failed", "[[fault]]\nof = 'batch'\nrequest = 1\nwhat = 'failed'", BATCH),
];

fn triage<'a>(folder: &Path, api: &'a str, state: &'a str, more: &[&'a str]) -> std::process::Output {
    let words = ["triage", "--input-json", "pairs.json", "--output-json", "gold.json", "--ckpt-every", "0", "--json"];
    let model = ["--policy", "policy.md", "--oracle-model", "mock-oracle", "--base-url", api, "--state", state];
    let concurrency: &[&str] = if more.contains(&"--concurrency") { &[] } else { &["--concurrency", "4"] };
    run(folder, &[&words[..], &model, concurrency, more].concat())
}

/// Checks that every pair is in exactly one of the files, labelled as the rules say.
fn check_pairs(folder: &Path, name: &str, uncertain: u64, dead: u64) {
    let list = |file: &str| match folder.join(file).exists() {
        true => read(folder.join(file)).as_array().unwrap().clone(),
        false => Vec::new(),
    };
    let (labelled, unsure, gone) =
        (list("gold_triage.json"), list("gold_uncertain.json"), list("gold_dead_letter.json"));
    assert_eq!((unsure.len() as u64, gone.len() as u64), (uncertain, dead), "{name}: uncertain, dead letters");
    assert!(unsure.iter().chain(&gone).all(|one| one["reason"].as_str().is_some_and(|reason| !reason.is_empty())));
    let right = read(folder.join("rules_triage.json"));
    assert!(labelled.iter().all(|label| right.as_array().unwrap().contains(label)), "{name}: a wrong label");
    let prompt = |one: &Value| (one["prompt"].to_string(), one["chosen"].to_string());
    let mut all: Vec<_> = labelled.iter().map(prompt).collect();
    all.extend(unsure.iter().chain(&gone).map(|one| prompt(&one["record"])));
    all.sort();
    let mut expected: Vec<_> = right.as_array().unwrap().iter().map(prompt).collect();
    expected.sort();
    assert_eq!(all, expected, "{name}: each pair once");
}

fn most_often(bill: &Value) -> u64 {
    bill["requests"].as_object().unwrap().values().map(|one| one["times"].as_u64().unwrap()).max().unwrap_or(0)
}

fn prepare(folder: &Path) {
    world(folder, PAIRS);
    let rules = ["triage", "--input-json", "pairs.json", "--output-json", "rules.json", "--rules", "rules_new.toml"];
    succeed(folder, &rules);
}

/// Runs one case in a folder of its own.
fn check(case: &Case) {
    let (name, begun) = (case.name, Instant::now());
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    prepare(folder);
    std::fs::write(folder.join("plan.toml"), case.plan).unwrap();
    let mock = Server::mock(folder, &["--fault-plan", "plan.toml"]);
    let output = triage(folder, &mock.api(), "state", case.more);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = if case.uncertain + case.dead > 0 { 3 } else { 0 };
    assert_eq!(output.status.code(), Some(code), "{name}: {text}");
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    check_pairs(folder, name, case.uncertain, case.dead);
    let (bill, stats, ours) = (mock.bill(), mock.get("/stats"), &summary["bill"]);
    assert_eq!(most_often(&bill), 1, "{name}: a request was paid twice");
    assert_eq!(ours["calls"], bill["calls"], "{name}: the ledger's bill is not the mock's");
    let is_batch = case.more == BATCH;
    let came = if is_batch { bill["calls"].as_u64().unwrap() } else { stats["requests"].as_u64().unwrap() };
    let unpaid = came - bill["calls"].as_u64().unwrap();
    assert!(case.unpaid.contains(&unpaid), "{name}: {unpaid} requests brought nothing");
    assert_eq!(ours["lost_usd"].as_f64().unwrap() > 0.0, case.lost, "{name}: {ours}");
    if is_batch {
        assert_eq!(bill["calls"], bill["batch_calls"], "{name}: asked online");
    }
    // Whatever it was, it is over: nothing is asked again.
    let again = triage(folder, &mock.api(), "state", case.more);
    assert_eq!(again.status.code(), Some(code), "{name}");
    assert_eq!(mock.bill()["calls"], bill["calls"], "{name}: known answers were asked for again");
    eprintln!("{name}: {} paid, {unpaid} unpaid, {:.1} s", bill["calls"], begun.elapsed().as_secs_f64());
}

#[test]
fn under_every_failure_of_the_plan_each_pair_is_labelled_once_and_nothing_is_paid_twice() {
    // Most of their time they wait.
    let cases = std::sync::Mutex::new(cases());
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                loop {
                    let case = cases.lock().unwrap().pop();
                    match case {
                        Some(case) => check(&case),
                        None => break,
                    }
                }
            });
        }
    });
}

#[test]
fn what_stops_a_triage_loses_nothing_and_pays_nothing_twice() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    prepare(folder);
    for (name, plan, more) in STOPS {
        std::fs::write(folder.join("plan.toml"), plan).unwrap();
        let mock = Server::mock(folder, &["--fault-plan", "plan.toml"]);
        let output = triage(folder, &mock.api(), name, more);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(4), "{name}: {text}");
        assert!(text.contains("nothing is lost"), "{name}: {text}");
        assert!(triage(folder, &mock.api(), name, more).status.success(), "{name}");
        check_pairs(folder, name, 0, 0);
        assert_eq!(most_often(&mock.bill()), 1, "{name}: a request was paid twice");
        std::fs::remove_file(folder.join("gold_triage.json")).unwrap();
    }
}

#[test]
fn a_judge_that_drifts_is_noticed_by_its_canary() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    prepare(folder);
    let pair = &read(folder.join("pairs.json"))[0];
    let said = |verdict: &str| json!([{"prompt": pair["prompt"], "response": pair["chosen"], "verdict": verdict}]);
    std::fs::write(folder.join("plan.toml"), "[[fault]]\nrequest = 1\nwhat = 'flip'").unwrap();
    let mut alarms = 0;
    for (number, verdict) in ["COMPLIANT", "NON-COMPLIANT"].into_iter().enumerate() {
        shared::output::write_json(&folder.join("canary.json"), &said(verdict)).unwrap();
        let (flipped, right) = (Server::mock(folder, &["--fault-plan", "plan.toml"]), Server::mock(folder, &[]));
        for (mock, kind) in [(&flipped, "flipped"), (&right, "right")] {
            let state = format!("{kind}-{number}");
            let output = triage(folder, &mock.api(), &state, &["--canary", "canary.json", "--canary-stop"]);
            alarms += u32::from(output.status.code() == Some(4));
        }
    }
    // Of the two verdicts one is wrong for each judge.
    assert_eq!(alarms, 2);
}
