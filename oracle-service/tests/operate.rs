//! What people do about a job beside running it: import verdicts and look after batches while a service has the ledger, ask
//! again, have a correction explained, estimate what is left. Real processes against the mock.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use proto::oracle::Job;
use proto::oracle::job_event::Event;
use serde_json::{Value, json};
use support::jobs::{client, finish_at, service, triage_job};
use support::{Server, by_model, read, run, succeed, world};

fn triage<'a>(output: &'a str, judge: &[&'a str]) -> Vec<&'a str> {
    let begin = ["triage", "--input-json", "pairs.json", "--output-json", output, "--ckpt-every", "0", "--json"];
    [&begin[..], judge].concat()
}

fn said(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

fn parsed(output: &std::process::Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", said(output)))
}

fn calls(mock: &Server) -> u64 {
    mock.bill()["calls"].as_u64().unwrap()
}

fn job(folder: &Path, mock: &Server) -> Job {
    Job { concurrency: 1, ..triage_job(folder, mock, "gold.json") }
}

#[tokio::test]
async fn verdicts_of_people_are_imported_while_a_service_has_the_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 3);
    std::fs::write(folder.join("plan.toml"), "[[fault]]\nfrom = 1\nwhat = 'unclear'\n").unwrap();
    let mock = Server::mock(folder, &["--fault-plan", "plan.toml"]);
    let service = service(folder, "state");
    assert_eq!(finish_at(&service, job(folder, &mock)).await.unwrap().uncertain, 3);
    let mut review = read(folder.join("gold_review.json"));
    for entry in review.as_array_mut().unwrap() {
        entry["verdict"] = json!("COMPLIANT");
    }
    shared::output::write_json(&folder.join("edited.json"), &review).unwrap();
    let import = ["review", "import", "--review", "edited.json", "--state", "state", "--by", "ann", "--json"];
    assert_eq!(parsed(&succeed(folder, &import)), json!({"imported": 6, "open": 0}));
    let paid = calls(&mock);
    assert_eq!(finish_at(&service, job(folder, &mock)).await.unwrap().uncertain, 0);
    assert_eq!(calls(&mock), paid);
    // What no service does in a command's place says whose the folder is, and where.
    let requeue = ["requeue", "both", "--input-json", "pairs.json", "--policy", "policy.md", "--state", "state"];
    let output = run(folder, &requeue);
    let text = said(&output);
    assert!(output.status.code() == Some(1) && text.contains(&service.url) && text.contains("stop it"), "{text}");
    drop(service);
    // The mark that a death leaves behind means nothing.
    assert!(folder.join("state/service").exists());
    succeed(folder, &import);
}

#[tokio::test]
async fn batches_are_listed_and_cancelled_while_a_service_has_the_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 20);
    std::fs::write(folder.join("plan.toml"), "[batches]\nrun_s = 1e8\ncancel_s = 1\n").unwrap();
    let mock = Server::mock(folder, &["--fault-plan", "plan.toml"]);
    let service = service(folder, "state");
    let batch = Job { mode: "batch".into(), ..job(folder, &mock) };
    let mut events = client(&service, None).run(batch).await.unwrap().into_inner();
    let list = || parsed(&succeed(folder, &["batches", "--state", "state", "--json"]))["batches"].clone();
    while list()[0]["state"] != "in progress" {
        events.message().await.unwrap().unwrap();
    }
    let cancel = ["batches", "--state", "state", "--cancel", "--batch-poll", "20ms", "--json"];
    let output = run(folder, &cancel);
    assert!(output.status.code() == Some(1) && said(&output).contains("under way"), "{}", said(&output));
    drop(events);
    let begun = std::time::Instant::now();
    let cancelled = loop {
        let output = run(folder, &cancel);
        if output.status.success() {
            break parsed(&output);
        }
        assert!(begun.elapsed().as_secs() < 30, "{}", said(&output));
        // The connection needs its turn to tell the service that nobody listens any more.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    let row = &cancelled["batches"][0];
    assert_eq!((&row["state"], &row["taken_back"]), (&json!("done"), &json!(true)), "{cancelled}");
    assert_eq!(row["answered"].as_u64().unwrap(), calls(&mock));
    let text = said(&succeed(folder, &["batches", "--state", "state"]));
    assert!(text.contains("taken back"), "{text}");
    finish_at(&service, job(folder, &mock)).await.unwrap();
    let most = mock.bill()["requests"].as_object().unwrap().values().map(|one| one["times"].as_u64().unwrap()).max();
    assert_eq!(most, Some(1));
}

#[tokio::test]
async fn a_cost_limit_that_was_retuned_is_kept_when_the_service_starts_again() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 20);
    let mock = Server::mock(folder, &[]);
    let capped = Job { max_cost_usd: Some(0.0005), ..job(folder, &mock) };
    let first = service(folder, "state");
    let mut events = client(&first, None).run(capped.clone()).await.unwrap().into_inner();
    loop {
        match events.message().await.unwrap().unwrap().event.unwrap() {
            Event::Progress(progress) if progress.note.contains("cost limit") => break,
            Event::Progress(_) => {}
            Event::Ended(_) => panic!("it ended in spite of its limit"),
        }
    }
    succeed(folder, &["retune", "--service", &first.url, "--max-cost-usd", "10"]);
    drop((events, first));
    let second = service(folder, "state");
    let ended = finish_at(&second, capped).await.unwrap();
    assert_eq!(ended.bill.unwrap().cap_usd, Some(10.0));
}

#[test]
fn what_got_no_verdict_is_asked_again_on_request_only() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 6);
    let plan = "[[fault]]\nrequest = 1\nwhat = 'null'\n[[fault]]\nfrom = 2\nwhat = 'unclear'\n";
    std::fs::write(folder.join("plan.toml"), plan).unwrap();
    let (bad, good) = (Server::mock(folder, &["--fault-plan", "plan.toml"]), Server::mock(folder, &[]));
    let apis = [bad.api(), good.api()];
    let models = [by_model(&apis[0]), by_model(&apis[1])];
    let count = |of: &Value, name: &str| of[name].as_u64().unwrap();
    let left = |counts: &Value| (count(counts, "dead_letter"), count(counts, "uncertain"));
    assert_eq!(left(&parsed(&run(folder, &triage("gold.json", &models[0])))), (1, 5));
    let again = || run(folder, &triage("gold.json", &models[1]));
    assert_eq!(left(&parsed(&again())), (1, 5));
    assert_eq!(calls(&good), 0, "answers are paid for, so nothing is asked again by itself");

    let requeue = |which: &'static str| {
        let words = ["requeue", which, "--input-json", "pairs.json", "--json"];
        parsed(&succeed(folder, &[&words[..], &models[1]].concat()))
    };
    assert_eq!(requeue("dead"), json!({"items": 1, "answers": 1}));
    // The pair's other response is unclear, too.
    assert_eq!((left(&parsed(&again())), calls(&good)), ((0, 6), 1));
    assert_eq!(requeue("uncertain"), json!({"items": 6, "answers": 22}), "each with its follow-up");
    assert_eq!((left(&parsed(&again())), calls(&good)), ((0, 0), 12));
    succeed(folder, &triage("rules.json", &["--rules", "rules_new.toml"]));
    assert_eq!(std::fs::read(folder.join("gold.json")).unwrap(), std::fs::read(folder.join("rules.json")).unwrap());
    assert_eq!(requeue("both"), json!({"items": 0, "answers": 0}));
}

#[test]
fn a_correction_is_explained_and_what_is_left_of_a_job_is_estimated() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 40);
    let mock = Server::mock(folder, &[]);
    let api = mock.api();
    let model = by_model(&api);
    let estimate = |work: &'static str, input: &'static str, more: &[&'static str]| {
        let words = ["estimate", "--work", work, "--input-json", input, "--policy", "policy.md", "--json"];
        let model = ["--oracle-model", "mock-oracle"];
        parsed(&succeed(folder, &[&words[..], &model, more].concat()))
    };
    let known = ["--state", "state"];
    let before = estimate("triage", "pairs.json", &[]);
    assert_eq!((&before["requests"], &before["reused"]), (&json!(80), &json!(0)));
    succeed(folder, &triage("gold.json", &model));
    let after = estimate("triage", "pairs.json", &known);
    assert_eq!((&after["requests"], &after["reused"], &after["online_usd"]), (&json!(0), &json!(80), &json!(0.0)));
    let pairs = estimate("triage", "pairs.json", &["--state", "state", "--votes", "3"]);
    assert_eq!((&pairs["requests"], &pairs["reused"]), (&json!(160), &json!(80)));

    let punish = read(folder.join("gold.json"));
    let punish: Vec<usize> = punish
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
        .filter(|(_, record)| record["category"] == "PUNISH")
        .map(|(index, _)| index)
        .collect();
    let written = punish.len() as u64;
    let before = estimate("correct", "gold.json", &known);
    assert_eq!((&before["items"], &before["requests"]), (&json!(written), &json!(2 * written)));
    let paid = calls(&mock);
    succeed(folder, &[&["correct", "--input-json", "gold.json", "--output-json", "c.json"][..], &model].concat());
    assert_eq!(calls(&mock) - paid, 2 * written, "the estimate");
    let after = estimate("correct", "gold.json", &known);
    assert_eq!((&after["requests"], &after["reused"]), (&json!(0), &json!(2 * written)));
    let text = said(&succeed(
        folder,
        &["estimate", "--work", "correct", "--input-json", "gold.json", "--policy", "policy.md", "--state", "state"],
    ));
    assert!(text.contains("answers reused") && text.contains("at most 3 tries"), "{text}");

    let record = &read(folder.join("c.json"))[punish[0]];
    let index = punish[0].to_string();
    let explain = |more: &[&str]| {
        let words = ["explain", &index, "--correction", "--input-json", "gold.json"];
        run(folder, &[&words[..], &model, more].concat())
    };
    let output = explain(&[]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    for part in [
        record["prompt"].as_str().unwrap(),
        record["oracle_response"].as_str().unwrap(),
        "try 1",
        "judged",
        "accepted: ",
    ] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    let told = parsed(&explain(&["--json"]));
    assert_eq!((&told["accepted"], told["tries"].as_array().unwrap().len()), (&record["oracle_response"], 1));
    assert_eq!(
        (&told["tries"][0]["judged"]["verdict"], &told["tries"][0]["request"]["temperature"]),
        (&json!("COMPLIANT"), &json!(0.3))
    );
    // With other settings nothing is known, and nothing is asked.
    let paid = calls(&mock);
    let output = explain(&["--oracle-max-tokens", "9"]);
    assert!(output.status.code() == Some(3) && said(&output).contains("holds no reply"), "{}", said(&output));
    assert_eq!(calls(&mock), paid);
}
