//! The mock as a place to rehearse: what goes over the wire, by plain HTTP, and the rehearsal of a job. The official
//! client's view is checked in tests/python.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use serde_json::{Value, json};
use shared::rules::{Judge, policy_text};
use support::{Server, run, succeed, world};

const RULES: &str = "default = \"COMPLIANT\"\n[[rule]]\npattern = \"bad\"\napplies_to = \"response\"\n\
                     verdict = \"NON-COMPLIANT\"\n";

/// A reply by plain HTTP: its status, its headers in lower case, its body.
struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

/// Starts a mock that answers by patterns, with a plan.
fn mock(folder: &Path, plan: &str, more: &[&str]) -> Server {
    std::fs::write(folder.join("rules.toml"), RULES).unwrap();
    std::fs::write(folder.join("plan.toml"), plan).unwrap();
    let args = ["mock", "--listen", "127.0.0.1:0", "--rules", "rules.toml", "--fault-plan", "plan.toml"];
    Server::start(folder, &[&args[..], more].concat())
}

fn ask(server: &Server, user: &str, more: Value) -> Reply {
    let mut body = json!({"model": "mock-oracle", "messages": [{"role": "user", "content": user}]});
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    let (address, body) = (server.url.strip_prefix("http://").unwrap(), body.to_string());
    let mut stream = TcpStream::connect(address).unwrap();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nContent-Type: application/json\r\nConnection: close";
    write!(stream, "{head}\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut text = String::new();
    // A reply that is cut has no proper end.
    let _ = stream.read_to_string(&mut text);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let mut lines = head.lines();
    let status = lines.next().unwrap_or_default().split(' ').nth(1).unwrap_or("0").parse().unwrap();
    let header = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()));
    Reply { status, headers: lines.filter_map(header).collect(), body: body.to_owned() }
}

#[test]
fn limits_are_enforced_and_told_in_the_clients_time() {
    let dir = tempfile::tempdir().unwrap();
    // A burst of two; the next place comes after 50 s of the mock's time, and no test takes that long by the clock.
    let plan = "burst_s = 100\n[[limits]]\nrpm = 1.2\ntpm = 60000\n";
    let server = mock(dir.path(), plan, &["--speed", "0.01"]);
    let first = ask(&server, "one", json!({"max_tokens": 9}));
    assert_eq!(first.status, 200, "{}", first.body);
    assert_eq!(first.header("x-ratelimit-limit-tokens"), Some("600"), "a minute of the client's is a hundredth of one");
    assert_eq!(first.header("x-ratelimit-remaining-requests"), Some("1"));
    assert!(first.header("x-ratelimit-reset-requests").unwrap().contains('m'));
    assert_eq!(ask(&server, "two", json!({})).status, 200);
    let third = ask(&server, "three", json!({}));
    assert_eq!((third.status, third.json()["error"]["code"].as_str()), (429, Some("rate_limit_exceeded")));
    assert_eq!(third.json()["error"]["type"], "requests");
    let wait: f64 = third.header("retry-after").unwrap().parse().unwrap();
    assert!((4000.0..=5000.0).contains(&wait), "{wait}");
    let stats = server.get("/stats");
    assert_eq!((&stats["requests"], &stats["rate_limited"]), (&json!(3), &json!(1)));
    assert_eq!(stats["limits"]["requests"]["granted"], json!(2.0));
    assert_eq!(server.bill()["calls"], json!(2), "what is refused costs nothing");
}

#[test]
fn failures_come_as_planned() {
    let dir = tempfile::tempdir().unwrap();
    let plan = "hang_s = 0\nclock_skew_s = -86400\n[[limits]]\nrpm = 600\n\
                [[fault]]\nrequest = 1\nwhat = '429'\nretry_after_s = 3\n[[fault]]\nrequest = 2\nwhat = '429-bare'\n\
                [[fault]]\nrequest = 3\nwhat = '503'\n[[fault]]\nrequest = 4\nwhat = 'cut'\n\
                [[fault]]\nrequest = 5\nwhat = 'hang'\n[[fault]]\nrequest = 6\nwhat = 'garbage'\n\
                [[fault]]\nrequest = 7\nwhat = 'refusal'\n[[fault]]\nfrom = 8\nwhat = 'fingerprint'\n";
    let server = mock(dir.path(), plan, &[]);
    let replies: Vec<Reply> = (0..8).map(|n| ask(&server, &format!("question {n}"), json!({}))).collect();
    let statuses: Vec<u16> = replies.iter().map(|reply| reply.status).collect();
    assert_eq!(statuses, [429, 429, 503, 200, 200, 200, 200, 200]);
    assert_eq!(replies[0].header("retry-after"), Some("3"));
    assert_eq!(replies[0].header("x-ratelimit-limit-requests"), Some("600"));
    for name in ["retry-after", "retry-after-ms", "x-ratelimit-limit-requests", "x-ratelimit-remaining-requests"] {
        assert_eq!(replies[1].header(name), None, "{name}");
    }
    for broken in &replies[3..6] {
        assert!(serde_json::from_str::<Value>(&broken.body).is_err(), "{}", broken.body);
    }
    let message = &replies[6].json()["choices"][0]["message"];
    assert!(message["content"].is_null() && message["refusal"].is_string(), "{message}");
    assert_eq!(replies[7].json()["system_fingerprint"], "fp_mock_2");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let created = replies[7].json()["created"].as_u64().unwrap();
    assert!(now - created > 80_000, "the clock is a day behind: {created}, {now}");
    assert_eq!(server.get("/stats")["planned_failures"]["429-bare"], json!(1));
    assert_eq!(server.bill()["calls"], json!(2));
}

#[test]
fn a_request_that_is_meant_for_other_rules_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = mock(dir.path(), "", &[]);
    let own = Judge::load(&dir.path().join("rules.toml")).unwrap().identity().to_owned();
    let of = |policy: String| {
        let user = json!({"role": "user", "content": "a question"});
        ask(&server, "", json!({"messages": [{"role": "system", "content": policy}, user]}))
    };
    assert_eq!(of(policy_text(&own)).status, 200);
    assert_eq!(of("A policy that names no rules.".into()).status, 200);
    let other = of(policy_text("patterns of another file"));
    assert_eq!(other.status, 404);
    let message = other.json()["error"]["message"].as_str().unwrap().to_owned();
    for words in [own.as_str(), "patterns of another file", "start one with those rules"] {
        assert!(message.contains(words), "{words}: {message}");
    }
    assert_eq!(server.bill()["calls"], json!(2), "what is refused costs nothing");
}

#[test]
fn a_plan_that_makes_no_sense_is_refused_by_its_file() {
    let dir = tempfile::tempdir().unwrap();
    world(dir.path(), 1);
    std::fs::write(dir.path().join("plan.toml"), "[[limits]]\nat_s = 3\nrpm = 1\n").unwrap();
    let output = run(dir.path(), &["mock", "--rules", "rules_new.toml", "--fault-plan", "plan.toml"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && text.contains("plan.toml") && text.contains("at_s"), "{text}");
}

#[test]
fn a_job_is_rehearsed() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    std::fs::write(folder.join("policy.md"), "Be kind. ".repeat(700)).unwrap();
    let job = "pairs = 10000\nprompt_tokens = 30\nresponse_tokens = 60\npolicy = \"policy.md\"\nmodel = \"gpt-4o\"\n\
               concurrency = 16\n[server.latency]\nmedian_ms = 500\np99_ms = 2000\n\
               [[server.limits]]\nrpm = 60000\n\
               [[server.fault]]\nshare = 0.05\nwhat = \"unclear\"\n[[server.fault]]\nrequest = 3\nwhat = \"500\"\n\
               [[server.fault]]\nrequest = 5\nwhat = \"null\"\n";
    std::fs::write(folder.join("job.toml"), job).unwrap();
    let output = succeed(folder, &["rehearse", "job.toml", "--sample", "100", "--json"]);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let number = |name: &str| told[name].as_f64().unwrap();
    assert_eq!((number("questions"), &told["rehearsed"]["questions"]), (20_000.0, &json!(200)));
    assert!(told["rehearsed"]["stopped"].is_null(), "{told}");
    // Sixteen at a time, more than half a second each in the mean: the price and the shortest time follow.
    assert!((600.0..1200.0).contains(&number("duration_at_least_s")), "{told}");
    assert!(number("duration_s") >= number("duration_at_least_s"));
    let (prompt, completion) = (number("prompt_tokens"), number("completion_tokens"));
    assert!(prompt > 20_000.0 * 1600.0 && number("cached_tokens") > 0.9 * 20_000.0 * 1536.0, "{told}");
    let price = ((prompt - number("cached_tokens")) * 2.5 + number("cached_tokens") * 1.25 + completion * 10.0) / 1e6;
    assert!((number("cost_usd") - price).abs() < 1e-6, "{price}: {told}");
    assert_eq!(told["failures"]["500"], json!(100.0), "one of 200 questions");
    assert_eq!(number("repeats"), 100.0);
    assert!((200.0..2000.0).contains(&number("unclear")), "{told}");
    let without = told["without_answer"].as_object().unwrap();
    assert_eq!(without.values().collect::<Vec<_>>(), [&json!(100.0)], "{told}");
    assert_eq!(told["rehearsed"]["paid_twice"], json!(0));

    assert!((1.0..=100.0).contains(&number("speed_reached")), "{told}");
    let batch = format!("mode = \"batch\"\n{job}[server.batches]\nvalidate_s = 60\nrun_s = 600\nfinalize_s = 60\n");
    std::fs::write(folder.join("batch.toml"), batch).unwrap();
    let output = succeed(folder, &["rehearse", "batch.toml", "--sample", "50", "--json"]);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let (duration, lines) = (told["duration_s"].as_f64().unwrap(), &told["rehearsed"]["stats"]["batch_lines"]);
    assert!((720.0..7200.0).contains(&duration), "one batch and the looks at it: {told}");
    assert_eq!((lines, &told["rehearsed"]["speed"]), (&json!(100), &json!(100.0)), "{told}");
    let half = told["prompt_tokens"].as_f64().unwrap() * 2.5e-6 / 2.0;
    assert!(told["cost_usd"].as_f64().unwrap() < 1.1 * half, "{told}");

    let table = succeed(folder, &["rehearse", "job.toml", "--sample", "20"]);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    for part in ["duration", "price", "failure unclear", "charged twice", "not scaled", "100x asked for", "x reached"] {
        assert!(table.contains(part), "{part} is not in:\n{table}");
    }
}
