//! What commands may spend, and what they say about it beforehand: real processes, real HTTP.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::Value;
use support::{Server, by_model, run, succeed, world};

#[test]
fn a_command_stops_within_its_cost_limit_and_pays_for_nothing_twice_when_it_is_raised() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 40);
    let mock = Server::mock(folder, &["--latency-ms", "2"]);
    let api = mock.api();
    let triage = |cap: &str| {
        let args =
            ["triage", "--input-json", "pairs.json", "--output-json", "gold.json", "--json", "--concurrency", "256"];
        run(folder, &[&args[..], &by_model(&api), &["--max_cost_usd", cap]].concat())
    };
    let paid = || {
        let bill = mock.bill();
        bill["prompt_tokens"].as_f64().unwrap() * 1e-6 + bill["completion_tokens"].as_f64().unwrap() * 4e-6
    };
    // What an earlier run has paid counts.
    for cap in ["0.001", "0.002"] {
        let output = triage(cap);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(4), "{text}");
        assert!(text.contains("cost limit") && text.contains("run again"), "{text}");
        let cap: f64 = cap.parse().unwrap();
        assert!(paid() <= cap && paid() > cap / 4.0, "{} of {cap}", paid());
        assert!(!folder.join("gold.json").exists());
    }
    let output = triage("1");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    let bill = &summary["bill"];
    assert!((bill["account_usd"].as_f64().unwrap() - paid()).abs() < 1e-9 && bill["lost_usd"] == 0.0, "{bill}");
    assert!(bill["reused"].as_u64().unwrap() > 0);
    let charged = mock.bill();
    let most =
        charged["requests"].as_object().unwrap().values().map(|request| request["times"].as_u64().unwrap()).max();
    assert_eq!(most, Some(1));
}

#[test]
fn an_estimate_prices_three_ways_and_sends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 40);
    let args = ["estimate", "--input-json", "pairs.json", "--policy", "policy.md"];
    let output = succeed(folder, &[&args[..], &["--json"]].concat());
    let estimate: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&estimate["items"], &estimate["requests"]), (&40.into(), &80.into()));
    assert_eq!(estimate["batch_usd"].as_f64().unwrap() * 2.0, estimate["online_usd"].as_f64().unwrap());
    let text = String::from_utf8(succeed(folder, &args).stdout).unwrap();
    assert!(text.contains("policy cached") && text.contains("nothing was sent") && text.contains("as of"), "{text}");
}

#[test]
fn endpoints_are_read_from_a_file_and_their_keys_show_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 6);
    let mock = Server::mock(folder, &["--require-key"]);
    let endpoints = format!(
        "[[endpoint]]\nname = 'good'\nbase_url = '{0}'\n[[endpoint]]\nname = 'stale'\nbase_url = '{0}'\n\
         key_file = 'stale.key'\n",
        mock.api()
    );
    std::fs::write(folder.join("endpoints.toml"), endpoints).unwrap();
    std::fs::write(folder.join("stale.key"), "very-secret\n").unwrap();
    let args = ["triage", "--input-json", "pairs.json", "--output-json", "gold.json", "--policy", "policy.md"];
    let more = ["--oracle-model", "mock-oracle", "--state", "state", "--endpoints", "endpoints.toml"];
    let output = support::command(folder, &[&args[..], &more].concat()).env("RUST_LOG", "trace").output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    assert!(!text.contains("very-secret") && !text.contains("test-key"), "a key is told");
    let log = String::from_utf8_lossy(&std::fs::read(folder.join("state/log")).unwrap()).into_owned();
    assert!(log.contains("good") && !log.contains("very-secret") && !log.contains("test-key"));
}
