//! What a label rests on, and what people do about unsure ones: real processes against the mock.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::{Value, json};
use support::{Server, by_model, read, run, succeed, world};

fn triage<'a>(output: &'a str, judge: &[&'a str]) -> Vec<&'a str> {
    let begin = ["triage", "--input-json", "pairs.json", "--output-json", output, "--ckpt-every", "0", "--json"];
    [&begin[..], judge].concat()
}

fn lines(folder: &std::path::Path, name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn calls(mock: &Server) -> u64 {
    mock.bill()["calls"].as_u64().unwrap()
}

fn said(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

#[test]
fn every_verdict_tells_what_it_rests_on_and_the_records_keep_the_references_fields() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 20);
    let mock = Server::mock(folder, &[]);
    let api = mock.api();
    succeed(folder, &triage("gold.json", &[&by_model(&api)[..], &["--votes", "3", "--swap-wording"]].concat()));
    succeed(folder, &triage("rules.json", &["--rules", "rules_new.toml"]));
    assert_eq!(std::fs::read(folder.join("gold.json")).unwrap(), std::fs::read(folder.join("rules.json")).unwrap());
    let provenance = lines(folder, "gold_provenance.jsonl");
    assert_eq!(provenance.len(), 40);
    assert_eq!((&provenance[3]["index"], &provenance[3]["field"]), (&json!(1), &json!("rejected")));
    for line in &provenance {
        assert_eq!((&line["confidence"], line["votes"].as_array().unwrap().len()), (&json!(1.0), 6), "{line}");
        let vote = &line["votes"][4];
        assert_eq!((&vote["vote"], &vote["wording"], &vote["said"]), (&json!(1), &json!("swapped"), &line["verdict"]));
        let answer = &vote["answers"][0];
        assert_eq!((&answer["model"], &answer["fingerprint"]), (&json!("mock-oracle"), &json!("fp_mock")));
        assert_eq!(answer["key"].as_str().unwrap().len(), 32);
    }
    assert_eq!(calls(&mock), 240);
    // Rules leave nothing of the kind, not even that of an earlier run.
    succeed(folder, &triage("gold.json", &["--rules", "rules_new.toml"]));
    assert!(!folder.join("gold_provenance.jsonl").exists() && !folder.join("gold_review.json").exists());
}

#[test]
fn unsure_responses_go_to_people_and_their_verdicts_win() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    // One pair, whose second response is asked about only once the first has a verdict: the first two requests are of one
    // response.
    world(folder, 1);
    let unclear = "[[fault]]\nrequest = 1\nwhat = 'unclear'\n[[fault]]\nrequest = 2\nwhat = 'unclear'\n";
    std::fs::write(folder.join("plan.toml"), unclear).unwrap();
    let mock = Server::mock(folder, &["--fault-plan", "plan.toml"]);
    let api = mock.api();
    let command = triage("gold.json", &[&by_model(&api)[..], &["--skip-rejected-when-chosen-complies"]].concat());
    assert_eq!(run(folder, &command).status.code(), Some(3));
    let mut review = read(folder.join("gold_review.json"));
    let entry = &mut review[0];
    assert!(entry["reason"].as_str().unwrap().contains("It depends"), "{entry}");
    assert_eq!((&entry["field"], &entry["verdict"]), (&json!("chosen"), &json!("")));
    entry["verdict"] = json!("Non-compliant");
    shared::output::write_json(&folder.join("edited.json"), &review).unwrap();
    let import = ["review", "import", "--review", "edited.json", "--state", "state", "--by", "ann", "--json"];
    let counts: Value = serde_json::from_slice(&succeed(folder, &import).stdout).unwrap();
    assert_eq!(counts, json!({"imported": 1, "open": 0}));
    succeed(folder, &command);
    assert_eq!(calls(&mock), 3, "only the other response of that pair was still to be asked about");
    assert!(!folder.join("gold_review.json").exists() && !folder.join("gold_uncertain.json").exists());
    let line = &lines(folder, "gold_provenance.jsonl")[0];
    assert_eq!((&line["verdict"], &line["review"]["by"]), (&json!("NON-COMPLIANT"), &json!("ann")));
    review[0]["response"] = json!("something else");
    shared::output::write_json(&folder.join("edited.json"), &review).unwrap();
    let output = run(folder, &import);
    assert!(output.status.code() == Some(1) && said(&output).contains("edit nothing but"), "{}", said(&output));
}

#[test]
fn another_model_is_refused_until_relabelling_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 5);
    let (old, new) = (Server::mock(folder, &[]), Server::mock(folder, &["--model", "gpt-4o-mini"]));
    succeed(folder, &triage("gold.json", &by_model(&old.api())));
    let api = new.api();
    let other = ["--policy", "policy.md", "--oracle-model", "gpt-4o-mini", "--base-url", &api, "--state", "state"];
    let output = run(folder, &triage("gold.json", &other));
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for part in ["5 of 5 pairs", "(mock-oracle)", "(gpt-4o-mini)", "10 calls", "$0.00", "--relabel"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    assert_eq!(calls(&new), 0);
    succeed(folder, &triage("gold.json", &[&other[..], &["--relabel"]].concat()));
    assert_eq!(calls(&new), 10);
    succeed(folder, &triage("gold.json", &by_model(&old.api())));
    assert_eq!(calls(&old), 10);
}

#[test]
fn one_label_is_explained_without_sending_anything() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 3);
    let mock = Server::mock(folder, &[]);
    let api = mock.api();
    let model = by_model(&api);
    succeed(folder, &triage("gold.json", &model));
    let explain = |item: &str, more: &[&str]| {
        run(folder, &[&["explain", item, "--input-json", "pairs.json"][..], &model, more].concat())
    };
    let output = explain("2", &[]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    let record = &read(folder.join("gold_triage.json"))[2];
    for part in
        [record["prompt"].as_str().unwrap(), record["rejected"].as_str().unwrap(), "fp_mock", "Answer as the world"]
    {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    let told: Value = serde_json::from_slice(&explain("2", &["--json"]).stdout).unwrap();
    let exchange = &told[1]["exchanges"][0];
    assert_eq!((&told[1]["field"], &told[1]["verdict"]), (&json!("rejected"), &exchange["answer"]["text"]));
    assert_eq!((&exchange["request"]["seed"], &exchange["request"]["temperature"]), (&json!(42), &json!(0.0)));
    let by_key = explain(exchange["key"].as_str().unwrap(), &[]);
    let answer: Value = serde_json::from_slice(&by_key.stdout).unwrap();
    assert_eq!(answer, exchange["answer"]);
    // What was never asked is said, and not asked now.
    let output = explain("2", &["--swap-wording"]);
    assert!(
        output.status.code() == Some(0) && said(&output).contains("the ledger holds no answer"),
        "{}",
        said(&output)
    );
    assert_eq!(explain("0123456789abcdef0123456789abcdef", &[]).status.code(), Some(3));
    assert!(said(&explain("99", &[])).contains("there is no record 99"));
    assert_eq!(calls(&mock), 6);
}

#[test]
fn one_call_per_pair_gives_the_same_labels_and_its_agreement_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 40);
    let mock = Server::mock(folder, &[]);
    let api = mock.api();
    let model = by_model(&api);
    succeed(folder, &triage("rules.json", &["--rules", "rules_new.toml"]));
    succeed(folder, &triage("one.json", &[&model[..], &["--one-call-per-pair"]].concat()));
    assert_eq!(calls(&mock), 40);
    assert_eq!(std::fs::read(folder.join("one.json")).unwrap(), std::fs::read(folder.join("rules.json")).unwrap());
    let agreement =
        ["judge-agreement", "--input-json", "pairs.json", "--sample", "30", "--against", "one-call,swapped"];
    let output = succeed(folder, &[&agreement[..], &model, &["--json"]].concat());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(calls(&mock), 40 + 60 + 60, "the answers of one call per pair are in the ledger");
    for comparison in report["comparisons"].as_array().unwrap() {
        let responses = &comparison["responses"]["agreement"];
        assert_eq!((&responses["value"], &responses["n"]), (&json!(100.0), &json!(60)), "{comparison}");
        assert!(responses["low"].as_f64().unwrap() > 90.0 && responses["high"] == 100.0);
        assert_eq!((&comparison["responses"]["kappa"], &comparison["labels"]["kappa"]), (&json!(1.0), &json!(1.0)));
    }
    let output = succeed(folder, &[&agreement[..], &model].concat());
    let text = said(&output);
    assert!(text.contains("one call per pair") && text.contains("swapped wording") && text.contains("1.000"), "{text}");
}

#[test]
fn a_canary_that_drifts_stops_the_job_before_it_pays_for_a_label() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 4);
    let mock = Server::mock(folder, &[]);
    let api = mock.api();
    let pairs = read(folder.join("pairs.json"));
    let item =
        |pair: &Value, verdict: &str| json!({"prompt": pair["prompt"], "response": pair["chosen"], "verdict": verdict});
    let items = json!([item(&pairs[0], "COMPLIANT"), item(&pairs[0], "NON-COMPLIANT")]);
    shared::output::write_json(&folder.join("canary.json"), &items).unwrap();
    let canary = [&by_model(&api)[..], &["--canary", "canary.json"]].concat();
    let output = run(folder, &triage("gold.json", &[&canary[..], &["--canary-stop"]].concat()));
    assert!(output.status.code() == Some(4) && said(&output).contains("1 of 2 are wrong"), "{}", said(&output));
    assert!(calls(&mock) <= 2 && !folder.join("gold.json").exists());
    let output = run(folder, &triage("gold.json", &canary));
    assert!(output.status.success() && said(&output).contains("the canary's answers drift"), "{}", said(&output));
}
