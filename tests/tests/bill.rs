//! What a run's report says it paid, after coordinator and oracle service were killed in the middle of its stages.
//!
//! Deterministic in what it compares: the mock counts every request that it charged, by its content. However the deaths
//! fall, each distinct request is on the report's bill once, and what the mock charged beyond are requests that were in
//! flight when the oracle service died: at most as many as are in flight at once, a death.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use cluster_tests::cluster::Cluster;
use serde_json::Value;

/// Of the tiny run: requests in flight at once.
const IN_FLIGHT: u64 = 4;

/// USD per token of the mock's model.
const PROMPT: f64 = 1.0e-6;

fn stage<'a>(status: &'a Value, name: &str) -> &'a Value {
    status["stages"].as_array().unwrap().iter().find(|stage| stage["name"] == name).unwrap()
}

/// Fetches the mock's bill.
fn charged(cluster: &Cluster) -> Value {
    let said = std::fs::read_to_string(cluster.path("mock.out")).unwrap();
    let address = said.trim().strip_prefix("listening on http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET /bill HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap()
}

#[test]
fn a_report_tells_every_request_once_whoever_was_killed() {
    let mut cluster = Cluster::new();
    cluster.start_all(3, 2);
    let run_file = Path::new(env!("CARGO_MANIFEST_DIR")).join("runs/tiny.toml").display().to_string();
    // Slowly, so that deaths fall into the middle.
    cluster.json(&["submit", &run_file, "--set", "oracle.requests_per_minute=9000"]);
    let mut deaths = 0;
    for (who, done) in [("coordinator", 100), ("oracle", 250), ("coordinator", 400), ("oracle", 550), ("oracle", 700)] {
        let status = cluster.wait_for_run("tiny", &format!("{done} pairs triaged (to kill {who})"), |status| {
            stage(status, "triage")["done"].as_u64() >= Some(done)
        });
        assert_eq!(stage(&status, "triage")["state"], "running");
        cluster.kill(who);
        cluster.restart(who);
        deaths += u64::from(who == "oracle");
    }
    cluster.wait_for_run("tiny", "done", |status| status["state"] == "done");

    let report = std::fs::read(cluster.path("artifacts/tiny/report/report.json")).unwrap();
    let report: Value = serde_json::from_slice(&report).unwrap();
    let (told, charged) = (&report["oracle"], charged(&cluster));
    let requests: Vec<&Value> = charged["requests"].as_object().unwrap().values().collect();
    let number = |value: &Value, key: &str| value[key].as_u64().unwrap();
    // Charged again: of each request all times but one.
    let again = |key: &str| -> u64 {
        let of = |request: &Value| if key == "times" { 1 } else { number(request, key) };
        requests.iter().map(|request| (number(request, "times") - 1) * of(request)).sum()
    };
    assert_eq!(number(told, "calls"), requests.len() as u64);
    assert_eq!(number(told, "calls"), number(&charged, "calls") - again("times"));
    assert!(again("times") <= deaths * IN_FLIGHT, "{} requests were charged again", again("times"));
    for key in ["prompt_tokens", "completion_tokens"] {
        assert_eq!(number(told, key), number(&charged, key) - again(key), "{key}");
    }
    // The same question asked again may find more or less of its prompt in the API's cache.
    let cost = |bill: &Value| bill["cost_usd"].as_f64().unwrap();
    let beyond = cost(&charged) - cost(told);
    let most = again("prompt_tokens") as f64 * PROMPT + again("completion_tokens") as f64 * 4.0 * PROMPT;
    assert!((-1e-9..=most + 1e-9).contains(&beyond), "{beyond} USD beyond, {most} at most");
    if again("times") == 0 {
        assert!(beyond.abs() < 1e-9, "{beyond}");
    }
}
