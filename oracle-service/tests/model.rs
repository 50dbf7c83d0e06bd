//! The commands with a model behind an API, played by the mock: real processes, real HTTP.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::{Value, json};
use support::{Server, by_model, command, read, run, succeed, world};

fn triage<'a>(output: &'a str, judge: &[&'a str]) -> Vec<&'a str> {
    [&["triage", "--input-json", "pairs.json", "--output-json", output, "--ckpt-dir", "ckpt"], judge].concat()
}

/// Takes what was paid from a command's summary.
fn paid(output: &std::process::Output) -> Value {
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    summary["bill"].clone()
}

#[test]
fn a_model_that_follows_the_rules_gives_their_bytes_and_the_ledgers_bill_is_the_mocks() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 60);
    let mock = Server::mock(folder, &[]);
    let api = mock.api();
    let model = by_model(&api);
    let rules = ["--rules", "rules_new.toml"];

    succeed(folder, &triage("rules.json", &rules));
    let output = succeed(folder, &[&triage("model.json", &model)[..], &["--json", "--ckpt-every", "20"]].concat());
    for part in ["", "_triage"] {
        let of = |name: &str| std::fs::read(folder.join(format!("{name}{part}.json"))).unwrap();
        assert!(of("rules") == of("model"), "{part}: the files differ");
    }
    let bill = paid(&output);
    let charged = mock.bill();
    for (ours, theirs) in
        [("calls", "calls"), ("prompt_tokens", "prompt_tokens"), ("completion_tokens", "completion_tokens")]
    {
        assert_eq!(bill[ours], charged[theirs]);
    }
    let expected =
        charged["prompt_tokens"].as_f64().unwrap() / 1e6 + charged["completion_tokens"].as_f64().unwrap() * 4e-6;
    assert!((bill["cost_usd"].as_f64().unwrap() - expected).abs() < 1e-9, "{bill}");
    let mut names: Vec<_> = std::fs::read_dir(folder.join("ckpt"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names.len(), 6, "{names:?}");
    assert_eq!(names[0], "dpo_gold_checkpoint_0000020.json");
    assert_eq!(read(folder.join("ckpt/triage_checkpoint_0000060.json")), read(folder.join("model_triage.json")));

    // Again, and for another output: every answer is there already.
    let again = succeed(folder, &[&triage("again.json", &model)[..], &["--json"]].concat());
    assert_eq!(paid(&again)["calls"], json!(0));
    assert_eq!(mock.bill(), charged);

    // Corrections, accepted by the same judge.
    let correct = |output: &'static str, judge: &[&'static str]| {
        [&["correct", "--input-json", "rules.json", "--output-json", output][..], judge].concat()
    };
    succeed(folder, &correct("rules_c.json", &rules));
    let command: Vec<&str> =
        [&["correct", "--input-json", "rules.json", "--output-json", "model_c.json"][..], &model].concat();
    succeed(folder, &command);
    assert_eq!(read(folder.join("rules_c.json")), read(folder.join("model_c.json")));
    assert_eq!(
        mock.bill()["requests"].as_object().unwrap().values().map(|r| r["times"].as_u64().unwrap()).max(),
        Some(1)
    );
}

#[test]
fn judging_by_the_model_gives_the_verdicts_of_judging_directly() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 80);
    let pairs = read(folder.join("pairs.json"));
    let results: Vec<Value> = pairs.as_array().unwrap().iter().enumerate().map(|(i, pair)| {
        let response = if i % 9 == 4 { json!("is not a sentence of") } else { pair["chosen"].clone() };
        json!({"prompt": pair["prompt"], "model_response": response, "finished": i % 7 != 3, "set": "test", "category": "INVERT"})
    }).collect();
    shared::output::write_json(&folder.join("responses.json"), &json!({"metadata": {}, "results": results})).unwrap();
    let mock = Server::mock(folder, &[]);
    let api = mock.api();
    succeed(
        folder,
        &["judge", "--responses-json", "responses.json", "--output-json", "rules.json", "--rules", "rules_new.toml"],
    );
    let judge =
        ["judge", "--responses-json", "responses.json", "--output-json", "model.json", "--world", "rules_new.toml"];
    succeed(folder, &[&judge[..], &by_model(&api)].concat());
    let (rules, model) = (read(folder.join("rules.json")), read(folder.join("model.json")));
    assert_eq!(rules["results"], model["results"]);
    let calls = mock.bill()["calls"].as_u64().unwrap();
    assert!(calls > 20 && calls < 70, "garbled, unfinished and skill answers are not asked about: {calls}");
}

#[test]
fn killed_in_mid_triage_only_what_was_in_flight_is_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 100);
    let mock = Server::mock(folder, &["--latency-ms", "60"]);
    let api = mock.api();
    let command_line = [&triage("gold.json", &by_model(&api))[..], &["--concurrency", "4", "--json"]].concat();
    for calls in [30, 90] {
        let mut child = command(folder, &command_line).stdout(std::process::Stdio::null()).spawn().unwrap();
        let begun = std::time::Instant::now();
        while mock.bill()["calls"].as_u64().unwrap() < calls {
            assert!(begun.elapsed().as_secs() < 60, "the mock is not called");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!folder.join("gold.json").exists());
    }
    succeed(folder, &command_line);
    succeed(folder, &triage("rules.json", &["--rules", "rules_new.toml"]));
    assert!(std::fs::read(folder.join("gold.json")).unwrap() == std::fs::read(folder.join("rules.json")).unwrap());
    let bill = mock.bill();
    let times: Vec<u64> =
        bill["requests"].as_object().unwrap().values().map(|r| r["times"].as_u64().unwrap()).collect();
    let again: u64 = times.iter().map(|times| times - 1).sum();
    assert!(again <= 2 * 4, "{again} requests were sent again, 4 were in flight at each of two deaths");
}

#[test]
fn failures_that_pass_are_tried_again_and_others_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 12);
    let plan = r#"
        [[fault]]
        request = 1
        what = "429"
        retry_after_s = 1
        [[fault]]
        request = 2
        what = "500"
        [[fault]]
        request = 3
        what = "cut"
        [[fault]]
        request = 4
        what = "garbage"
        [[fault]]
        request = 6
        what = "null"
        [[fault]]
        request = 8
        what = "unclear"
        [[fault]]
        request = 9
        what = "unclear"
    "#;
    std::fs::write(folder.join("plan.toml"), plan).unwrap();
    let mock = Server::mock(folder, &["--fault-plan", "plan.toml"]);
    let api = mock.api();
    let command_line = [&triage("gold.json", &by_model(&api))[..], &["--concurrency", "1", "--json"]].concat();
    let output = run(folder, &command_line);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{text}");
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    let count = |name: &str| summary[name].as_u64().unwrap();
    assert_eq!(count("dead_letter"), 1, "{summary}");
    assert_eq!(count("total") + count("uncertain") + count("dead_letter"), 12);
    let dead = read(folder.join("gold_dead_letter.json"));
    assert!(dead[0]["reason"].as_str().unwrap().contains("content_filter"), "{dead}");
    assert!(dead[0]["record"]["prompt"].is_string() && dead[0]["index"].is_u64());
    if count("uncertain") > 0 {
        assert!(read(folder.join("gold_uncertain.json"))[0]["reason"].as_str().unwrap().contains("It depends"));
    }
    // A limit makes it an error, and says where to look; what is answered is kept.
    let limited = run(folder, &[&command_line[..], &["--max-unlabelled", "1"]].concat());
    assert_eq!(limited.status.code(), Some(1));
    let text = String::from_utf8_lossy(&limited.stderr).into_owned();
    assert!(text.contains("gold_dead_letter.json") && text.contains("have no label"), "{text}");
}

#[test]
fn what_nobody_can_answer_stops_at_once_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 5);
    std::fs::write(folder.join("empty.md"), "\n").unwrap();
    std::fs::write(folder.join("quota.toml"), "[[fault]]\nrequest = 1\nwhat = 'quota'\n").unwrap();
    let locked = Server::mock(folder, &["--require-key"]);
    let poor = Server::mock(folder, &["--fault-plan", "quota.toml"]);
    let (locked_api, poor_api) = (locked.api(), poor.api());
    let check = |code: i32, key: Option<&str>, args: &[&str], messages: &[&str]| {
        let mut command = command(folder, &triage("gold.json", args));
        match key {
            Some(key) => command.env("OPENAI_API_KEY", key),
            None => command.env_remove("OPENAI_API_KEY"),
        };
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
        for message in messages {
            assert!(text.contains(message), "{message:?} is not in: {text}");
        }
        assert!(!text.contains("wrong-secret"), "the key is told: {text}");
        assert!(!folder.join("gold.json").exists());
    };
    check(1, None, &by_model(&locked_api), &["OPENAI_API_KEY is not set"]);
    check(4, Some("wrong-secret"), &by_model(&locked_api), &[&locked_api, "401", "OPENAI_API_KEY"]);
    check(4, Some("test-key"), &by_model(&poor_api), &["quota", "top it up"]);
    let other = ["--policy", "policy.md", "--oracle-model", "gpt-9", "--base-url", &poor_api, "--state", "new"];
    check(4, Some("test-key"), &other, &["404", "gpt-9", "--oracle-model"]);
    check(1, Some("test-key"), &["--policy", "empty.md", "--base-url", &poor_api], &["empty.md", "is empty"]);
    check(1, Some("test-key"), &["--policy", "policy.md", "--base-url", "nowhere"], &["--base-url", "nowhere"]);
    check(1, Some("test-key"), &[], &["--policy FILE"]);
    for file in walk(folder) {
        let bytes = std::fs::read(&file).unwrap();
        assert!(!String::from_utf8_lossy(&bytes).contains("wrong-secret"), "{} holds the key", file.display());
    }
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[test]
fn an_api_that_is_away_is_named_after_some_tries() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 1);
    // Nobody listens there.
    let api = "http://127.0.0.1:1/v1".to_owned();
    let mut child = command(folder, &triage("gold.json", &by_model(&api)));
    // The whole patience is minutes; that it keeps trying, and says what it waits for, is seen at once.
    let mut child = child.env("RUST_LOG", "debug").stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut reader = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("tried again") {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut reader, &mut line).unwrap() > 0, "it gave up at once");
    }
    assert!(line.to_lowercase().contains("connection refused"), "{line}");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_ledger_in_use_names_its_holder() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 1);
    let service = Server::start(folder, &["serve", "--listen", "127.0.0.1:0", "--state", "state"]);
    let output = run(folder, &triage("gold.json", &by_model("http://127.0.0.1:9/v1")));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains(&format!("in use by process {}", service.child.id())), "{text}");
    assert!(text.contains("another state folder"), "{text}");
}

#[test]
fn answers_can_be_exported() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 4);
    let mock = Server::mock(folder, &[]);
    let api = mock.api();
    succeed(folder, &triage("gold.json", &by_model(&api)));
    succeed(folder, &["export", "--state", "state", "--out", "answers.jsonl"]);
    let lines = std::fs::read_to_string(folder.join("answers.jsonl")).unwrap();
    assert_eq!(lines.lines().count() as u64, mock.bill()["calls"].as_u64().unwrap());
    let first: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert!(["COMPLIANT", "NON-COMPLIANT"].contains(&first["text"].as_str().unwrap()), "{first}");
    assert_eq!(first["model"], "mock-oracle");
    assert_eq!(run(folder, &["export", "--state", "nowhere", "--out", "x"]).status.code(), Some(1));
}
