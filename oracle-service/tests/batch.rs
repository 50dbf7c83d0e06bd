//! Batches against the mock: real processes, real HTTP, deaths and failures on plan.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};
use support::{PROGRAM, Server, command, read, run, succeed, world};

fn judge(api: &str) -> Vec<&str> {
    vec![
        "--policy",
        "policy.md",
        "--oracle-model",
        "mock-oracle",
        "--base-url",
        api,
        "--state",
        "state",
        "--batch-poll",
        "20ms",
    ]
}

fn triage<'a>(api: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let words = ["triage", "--input-json", "pairs.json", "--output-json", "gold.json", "--ckpt-every", "0", "--json"];
    [&words[..], &judge(api), more].concat()
}

fn summary(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Checks that the labels are those of the rules themselves.
#[track_caller]
fn check_labels(folder: &Path) {
    succeed(
        folder,
        &["triage", "--input-json", "pairs.json", "--output-json", "rules.json", "--rules", "rules_new.toml"],
    );
    for part in ["", "_triage"] {
        let of = |name: &str| std::fs::read(folder.join(format!("{name}{part}.json"))).unwrap();
        assert!(of("rules") == of("gold"), "{part}: the files differ");
    }
}

/// Returns how often the request was paid that was paid most often, and how many were.
fn times(bill: &Value) -> (u64, usize) {
    let requests = bill["requests"].as_object().unwrap();
    (requests.values().map(|request| request["times"].as_u64().unwrap()).max().unwrap_or(0), requests.len())
}

fn parts(folder: &Path) -> Vec<Value> {
    let output = succeed(folder, &["batches", "--state", "state", "--json"]);
    summary(&output)["batches"].as_array().unwrap().clone()
}

#[test]
fn batches_give_the_labels_of_the_rules_at_half_the_price() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 40);
    let mock = Server::mock(folder, &[]);
    let api = mock.api();
    let output = succeed(folder, &triage(&api, &["--mode", "batch"]));
    check_labels(folder);
    let (bill, charged) = (summary(&output)["bill"].clone(), mock.bill());
    assert_eq!(charged["calls"], charged["batch_calls"], "nothing was asked online");
    assert_eq!((times(&charged).0, &bill["calls"], &bill["reused"]), (1, &charged["calls"], &json!(0)), "{bill}");
    let full = charged["prompt_tokens"].as_f64().unwrap() / 1e6 + charged["completion_tokens"].as_f64().unwrap() * 4e-6;
    assert!((bill["cost_usd"].as_f64().unwrap() - full / 2.0).abs() < 1e-9, "{bill}");
    let listed = parts(folder);
    assert_eq!((listed.len(), &listed[0]["state"]), (1, &json!("done")), "{listed:?}");
    assert_eq!(std::fs::read_dir(folder.join("state/batches")).unwrap().count(), 0, "files that are done are gone");
    // Corrections and their judgement need a second round; what is known is not asked again.
    let correct = |output: &str, judge: &[&str]| {
        let words = ["correct", "--input-json", "gold.json", "--output-json", output];
        succeed(folder, &[&words[..], judge].concat());
    };
    correct("rules_c.json", &["--rules", "rules_new.toml"]);
    correct("model_c.json", &[&judge(&api)[..], &["--mode", "batch"]].concat());
    assert_eq!(read(folder.join("rules_c.json")), read(folder.join("model_c.json")));
    let charged = mock.bill();
    assert_eq!((charged["calls"].clone(), times(&charged).0), (charged["batch_calls"].clone(), 1));
}

#[test]
fn killed_at_every_write_and_every_exchange_it_goes_on_and_pays_for_nothing_twice() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 6);
    // A line of every batch but the last is unanswered, so that there are rests, and one answer is unclear.
    let plan = "[[fault]]\nof = 'line'\nevery = 5\nwhat = 'expired'\n[[fault]]\nof = 'line'\nevery = 7\nwhat = '500'\n";
    std::fs::write(folder.join("plan.toml"), plan).unwrap();
    let mock = Server::mock(folder, &["--fault-plan", "plan.toml"]);
    let api = mock.api();
    let mut survived = 0;
    for n in 1.. {
        assert!(n < 200, "it comes to no end");
        // A policy and a ledger of its own: nothing is known from the life before.
        std::fs::write(folder.join("policy.md"), format!("The new policy, {n}.\n")).unwrap();
        std::fs::remove_dir_all(folder.join("state")).ok();
        std::fs::remove_file(folder.join("gold.json")).ok();
        let fault = format!("batch={n}");
        let output = run(folder, &triage(&api, &["--mode", "batch", "--fault", &fault]));
        if output.status.success() {
            survived = n;
            break;
        }
        assert_eq!(output.status.code(), None, "death {n}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(!folder.join("gold.json").exists());
        succeed(folder, &triage(&api, &["--mode", "batch"]));
        check_labels(folder);
        let (most, _) = times(&mock.bill());
        assert_eq!(most, 1, "death {n}: a request was paid twice");
    }
    assert!(survived > 25, "only {survived} points were passed");
    let bill = mock.bill();
    assert_eq!(bill["calls"], bill["batch_calls"]);
}

#[test]
fn answers_that_are_lost_and_files_that_are_not_whole_cost_no_second_batch() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 12);
    let mut plan = String::new();
    for (of, number, what) in [
        ("file_calls", 1, "500"),
        ("file_calls", 3, "cut"),
        ("file_calls", 4, "garbage"),
        ("batch_calls", 1, "cut"),
        ("batch_calls", 3, "garbage"),
        ("batch_calls", 4, "429"),
        ("line", 2, "duplicate"),
        ("line", 3, "unclear"),
        ("line", 4, "null"),
    ] {
        plan += &format!("[[fault]]\nof = '{of}'\nrequest = {number}\nwhat = '{what}'\n");
    }
    std::fs::write(folder.join("plan.toml"), plan).unwrap();
    let mock = Server::mock(folder, &["--fault-plan", "plan.toml"]);
    let api = mock.api();
    let output = run(folder, &triage(&api, &["--mode", "batch"]));
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    let summary = summary(&output);
    assert_eq!(summary["dead_letter"], json!(1), "the answer without text: {summary}");
    assert_eq!(summary["uncertain"], json!(0), "the unclear one was asked again: {summary}");
    let charged = mock.bill();
    assert_eq!((charged["calls"].clone(), times(&charged).0), (charged["batch_calls"].clone(), 1));
    assert_eq!(parts(folder).len(), 2, "the first, and one for the follow-up");
}

#[test]
fn what_is_taken_back_keeps_its_answers_and_frees_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 20);
    std::fs::write(folder.join("plan.toml"), "[batches]\nrun_s = 1000\ncancel_s = 1\n").unwrap();
    // 3.3 seconds pass in the time that half the batch takes.
    let mock = Server::mock(folder, &["--fault-plan", "plan.toml", "--speed", "150"]);
    let api = mock.api();
    let output = run(folder, &triage(&api, &["--mode", "batch", "--fault", "batch.look=9"]));
    assert_eq!(output.status.code(), None, "it died while the batch was under way");
    let open = parts(folder);
    assert_eq!((&open[0]["state"], open.len()), (&json!("in progress"), 1), "{open:?}");
    // Another API is not asked about it, and the online mode does not ask what is paid for already.
    let elsewhere = run(folder, &triage("http://127.0.0.1:9/v1", &[]));
    assert!(String::from_utf8_lossy(&elsewhere.stderr).contains("batches --cancel"));

    let cancelled = succeed(folder, &["batches", "--state", "state", "--cancel", "--json", "--batch-poll", "20ms"]);
    let cancelled = summary(&cancelled);
    let row = &cancelled["batches"][0];
    assert_eq!((&row["state"], &row["taken_back"]), (&json!("done"), &json!(true)), "{cancelled}");
    let answered = row["answered"].as_u64().unwrap();
    assert_eq!(json!(answered), mock.bill()["calls"], "what was answered is known");
    let rest = succeed(folder, &triage(&api, &[]));
    check_labels(folder);
    let charged = mock.bill();
    assert_eq!((times(&charged).0, charged["batch_calls"].as_u64()), (1, Some(answered)));
    assert_eq!(summary(&rest)["bill"]["calls"].as_u64().unwrap() + answered, charged["calls"].as_u64().unwrap());
}

#[test]
fn auto_divides_by_the_deadline_and_takes_back_what_is_late() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 150);
    // A batch takes for ever here.
    std::fs::write(folder.join("plan.toml"), "[batches]\nrun_s = 1e8\n").unwrap();
    let mock = Server::mock(folder, &["--fault-plan", "plan.toml"]);
    let api = mock.api();
    let auto = ["--mode", "auto", "--deadline", "6s", "--online-rpm", "30000"];
    let output = succeed(folder, &triage(&api, &auto));
    check_labels(folder);
    let charged = mock.bill();
    assert_eq!((times(&charged).0, &charged["batch_calls"]), (1, &json!(0)), "the batch was taken back in time");
    assert!(String::from_utf8_lossy(&output.stderr).contains("taken back"));
    let done = parts(folder);
    assert_eq!((done.len(), &done[0]["taken_back"]), (1, &json!(true)), "{done:?}");
    // A few questions are never worth a batch.
    std::fs::write(folder.join("policy.md"), "Another policy.\n").unwrap();
    let pairs = read(folder.join("pairs.json"));
    shared::output::write_json(&folder.join("pairs.json"), &pairs.as_array().unwrap()[..20]).unwrap();
    succeed(folder, &triage(&api, &["--mode", "auto"]));
    assert_eq!(parts(folder).len(), 1);
}

#[test]
fn a_batch_is_not_sent_where_its_worst_case_is_over_the_cap() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 30);
    let mock = Server::mock(folder, &[]);
    let api = mock.api();
    let output = run(folder, &triage(&api, &["--mode", "batch", "--max-cost-usd", "0.001"]));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "{text}");
    assert!(text.contains("cost limit") && text.contains("raise it"), "{text}");
    assert_eq!((&mock.bill()["calls"], parts(folder)[0]["state"].as_str()), (&json!(0), Some("to be sent")));
    let output = succeed(folder, &triage(&api, &["--mode", "batch", "--max-cost-usd", "1"]));
    check_labels(folder);
    let bill = summary(&output)["bill"].clone();
    assert_eq!(bill["account_usd"], bill["cost_usd"], "what it cost is settled, and no more: {bill}");
    assert_eq!(bill["lost_usd"], json!(0.0));
    assert_eq!((times(&mock.bill()).0, parts(folder).len()), (1, 1));
}

#[test]
fn a_batch_that_is_refused_as_a_whole_says_why_and_can_be_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 5);
    std::fs::write(folder.join("plan.toml"), "[[fault]]\nof = 'batch'\nrequest = 1\nwhat = 'failed'\n").unwrap();
    let mock = Server::mock(folder, &["--fault-plan", "plan.toml"]);
    let api = mock.api();
    let output = run(folder, &triage(&api, &["--mode", "batch"]));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4));
    assert!(text.contains("planned failure") && text.contains("refused batch"), "{text}");
    succeed(folder, &triage(&api, &["--mode", "batch"]));
    check_labels(folder);
}

#[test]
fn what_the_options_do_is_said_in_the_help() {
    let output = std::process::Command::new(PROGRAM).args(["triage", "--help"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for word in ["--mode", "--deadline", "half the price", "--online-rpm"] {
        assert!(text.contains(word), "{word} is not in: {text}");
    }
    assert!(!text.contains("--fault "), "planned deaths are nobody's business");
    let dir = tempfile::tempdir().unwrap();
    let wrong = command(dir.path(), &["triage", "--input-json", "x", "--deadline", "soon"]).output().unwrap();
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("such as 12h"));
}
