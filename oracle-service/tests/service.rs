//! The service over gRPC: jobs, what they cost, who may ask, and its death in the middle.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::time::Duration;

use proto::oracle::job_event::Event;
use proto::oracle::{Ended, Job, StatusRequest};
use serde_json::Value;
use support::jobs::{client, finish, service, triage_job};
use support::{Server, command, succeed, world};
use tonic::Code;

#[tokio::test]
async fn a_job_may_ask_in_batches() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 10);
    let mock = Server::mock(folder, &[]);
    let service = service(folder, "state");
    let mut client = client(&service, None);
    let batch = Job { mode: "batch".into(), ..triage_job(folder, &mock, "gold.json") };
    let (ended, _) = finish(&mut client, batch).await.unwrap();
    let charged = mock.bill();
    assert_eq!(
        (&charged["batch_calls"], charged["calls"].as_u64()),
        (&charged["calls"], Some(ended.bill.unwrap().calls))
    );
    let wrong = Job { mode: "later".into(), ..triage_job(folder, &mock, "gold.json") };
    assert!(finish(&mut client, wrong).await.unwrap_err().message().contains("batch or auto"));
}

#[tokio::test]
async fn jobs_run_once_and_cost_once() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 50);
    let (mock, service) = (Server::mock(folder, &[]), service(folder, "state"));
    let mut client = client(&service, None);
    let (ended, told) = finish(&mut client, triage_job(folder, &mock, "gold.json")).await.unwrap();
    assert!(told > 0);
    let bill = ended.bill.unwrap();
    assert_eq!(mock.bill()["calls"], bill.calls);
    assert!(bill.cost_usd > 0.0 && bill.prices.contains("as of"), "{bill:?}");
    succeed(
        folder,
        &["triage", "--input-json", "pairs.json", "--output-json", "rules.json", "--rules", "rules_new.toml"],
    );
    assert!(std::fs::read(folder.join("gold.json")).unwrap() == std::fs::read(folder.join("rules.json")).unwrap());

    let (ended, _) = finish(&mut client, triage_job(folder, &mock, "again.json")).await.unwrap();
    let again = ended.bill.unwrap();
    assert_eq!((again.calls, again.cost_usd), (0, 0.0));
    let status = client.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.answers, status.jobs), (bill.calls, 0));
}

#[tokio::test]
async fn a_service_killed_in_the_middle_asks_again_for_what_was_in_flight_only() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 80);
    let mock = Server::mock(folder, &["--latency-ms", "80"]);
    let mut first = service(folder, "state");
    let named = |bill: &str| Job { bill: bill.into(), ..triage_job(folder, &mock, "gold.json") };
    let mut events = client(&first, None).run(named("r/triage@1")).await.unwrap().into_inner();
    while events
        .message()
        .await
        .unwrap()
        .is_some_and(|event| matches!(event.event, Some(Event::Progress(progress)) if progress.done < 15))
    {}
    first.child.kill().unwrap();
    // What it told before may still come; then the stream breaks off, and no end was among it.
    while let Ok(Some(event)) = events.message().await {
        assert!(!matches!(event.event, Some(Event::Ended(_))), "it ended before it was killed");
    }
    drop(first);
    assert!(!folder.join("gold.json").exists());

    let second = service(folder, "state");
    let mut client = client(&second, None);
    let (ended, _) = finish(&mut client, named("r/triage@1")).await.unwrap();
    let bill = mock.bill();
    let again: u64 = bill["requests"].as_object().unwrap().values().map(|r| r["times"].as_u64().unwrap() - 1).sum();
    assert!(again <= 4, "{again} requests were sent again, 4 were in flight");

    // What was answered before the death is on the job's bill, told or not.
    let whole = ended.bill.unwrap();
    assert_eq!(whole.calls as usize, bill["requests"].as_object().unwrap().len());
    let (ended, _) = finish(&mut client, named("r/triage@1")).await.unwrap();
    let again = ended.bill.unwrap();
    assert_eq!((again.calls, again.reused, again.cost_usd), (whole.calls, whole.reused, whole.cost_usd));
    let (ended, _) = finish(&mut client, named("r/triage@2")).await.unwrap();
    let other = ended.bill.unwrap();
    assert_eq!((other.calls, other.reused), (0, whole.calls + whole.reused), "what another beginning paid is reused");
}

#[tokio::test]
async fn a_job_whose_stream_is_dropped_stops_and_keeps_what_was_answered() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 80);
    let (mock, service) = (Server::mock(folder, &["--latency-ms", "20"]), service(folder, "state"));
    let mut client = client(&service, None);
    let mut events = client.run(triage_job(folder, &mock, "gold.json")).await.unwrap().into_inner();
    while events
        .message()
        .await
        .unwrap()
        .is_some_and(|event| matches!(event.event, Some(Event::Progress(progress)) if progress.done < 10))
    {}
    drop(events);
    let begun = std::time::Instant::now();
    while client.status(StatusRequest {}).await.unwrap().into_inner().jobs > 0 {
        assert!(begun.elapsed().as_secs() < 20, "the job goes on");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    finish(&mut client, triage_job(folder, &mock, "gold.json")).await.unwrap();
    let bill = mock.bill();
    let most = bill["requests"].as_object().unwrap().values().map(|r| r["times"].as_u64().unwrap()).max();
    assert_eq!(most, Some(1), "an answer on its way is stored though nobody waits for it");
}

#[tokio::test]
async fn what_is_wrong_with_a_job_or_its_caller_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 4);
    let (mock, service) = (Server::mock(folder, &[]), service(folder, "state"));
    let mut client_ = client(&service, None);
    let good = triage_job(folder, &mock, "gold.json");
    for (wrong, code, words) in [
        (Job { model: String::new(), ..good.clone() }, Code::InvalidArgument, "names no model"),
        (Job { policy: " ".into(), ..good.clone() }, Code::InvalidArgument, "policy is empty"),
        (Job { base_url: "nowhere".into(), ..good.clone() }, Code::InvalidArgument, "nowhere"),
        (Job { work: None, ..good.clone() }, Code::InvalidArgument, "names no work"),
        (Job { max_cost_usd: Some(-1.0), ..good.clone() }, Code::InvalidArgument, "limits"),
        (Job { endpoints: "/none.toml".into(), ..good.clone() }, Code::ResourceExhausted, "/none.toml"),
        (Job { prices: "/none.toml".into(), ..good.clone() }, Code::ResourceExhausted, "/none.toml"),
    ] {
        let status = finish(&mut client_, wrong).await.unwrap_err();
        assert!(status.code() == code && status.message().contains(words), "{status}");
    }
    drop(service);
    std::fs::write(folder.join("token"), "right").unwrap();
    let args = ["serve", "--listen", "127.0.0.1:0", "--state", "state", "--token-file", "token"];
    let service = Server::start(folder, &args);
    for token in [None, Some("wrong")] {
        let status = finish(&mut client(&service, token), good.clone()).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    }
    finish(&mut client(&service, Some("right")), good).await.unwrap();
}

/// Reads a job's progress until its note holds these words.
async fn until_noted(events: &mut tonic::Streaming<proto::oracle::JobEvent>, words: &str) -> String {
    loop {
        match events.message().await.unwrap().unwrap().event.unwrap() {
            Event::Progress(progress) if progress.note.contains(words) => return progress.note,
            Event::Progress(_) => {}
            Event::Ended(_) => panic!("it ended and never said {words:?}"),
        }
    }
}

async fn ended(events: &mut tonic::Streaming<proto::oracle::JobEvent>) -> Ended {
    loop {
        if let Event::Ended(ended) = events.message().await.unwrap().unwrap().event.unwrap() {
            return ended;
        }
    }
}

fn status(folder: &std::path::Path, service: &Server) -> Value {
    let output = succeed(folder, &["status", "--service", &service.url, "--json"]);
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test]
async fn a_job_refused_for_its_quota_pauses_and_goes_on_when_it_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 30);
    std::fs::write(folder.join("quota.toml"), "[[fault]]\nrequest = 5\nwhat = 'quota'\n").unwrap();
    let (mock, service) = (Server::mock(folder, &["--fault-plan", "quota.toml"]), service(folder, "state"));
    let job = triage_job(folder, &mock, "gold.json");
    let mut events = client(&service, None).run(job).await.unwrap().into_inner();
    let note = until_noted(&mut events, "paused").await;
    assert!(note.contains("quota") && note.contains(&mock.api()), "{note}");
    let shown = status(folder, &service);
    let shown = &shown["jobs"][0];
    assert!(shown["paused"].as_str().unwrap().contains("quota"), "{shown}");
    assert!(shown["endpoints"][0]["halted"].as_str().unwrap().contains("quota"), "{shown}");
    assert!(
        shown["calls"].as_u64().unwrap() >= 1 && shown["projected_usd"].is_number() | (shown["done"] == 0),
        "{shown}"
    );

    let other = command(folder, &["resume", "--service", &service.url, "--run", "none"]).output().unwrap();
    assert!(!other.status.success() && String::from_utf8_lossy(&other.stderr).contains("r/triage"));
    let resumed = succeed(folder, &["resume", "--service", &service.url, "--run", "r"]);
    assert_eq!(String::from_utf8_lossy(&resumed.stdout), "resumed: r/triage\n");
    ended(&mut events).await;
    let bill = mock.bill();
    assert_eq!(bill["requests"].as_object().unwrap().values().map(|r| r["times"].as_u64().unwrap()).max(), Some(1));
}

fn until_nothing_is_in_flight(folder: &Path, service: &Server) {
    let begun = std::time::Instant::now();
    while status(folder, service)["jobs"][0]["in_flight"] != 0 {
        assert!(begun.elapsed() < Duration::from_secs(60), "{}", status(folder, service));
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test]
async fn a_job_at_its_cost_limit_pauses_within_it_and_goes_on_when_it_is_raised() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 40);
    let (mock, service) = (Server::mock(folder, &[]), service(folder, "state"));
    let cap = 0.002;
    let job = Job { max_cost_usd: Some(cap), concurrency: 64, ..triage_job(folder, &mock, "gold.json") };
    let mut events = client(&service, None).run(job).await.unwrap().into_inner();
    until_noted(&mut events, "cost limit").await;
    let paid = |bill: &Value| {
        bill["prompt_tokens"].as_f64().unwrap() * 1e-6 + bill["completion_tokens"].as_f64().unwrap() * 4e-6
    };
    until_nothing_is_in_flight(folder, &service);
    let bill = mock.bill();
    assert!(paid(&bill) <= cap && paid(&bill) > cap / 4.0, "{} of {cap}", paid(&bill));
    let shown = status(folder, &service);
    assert_eq!(shown["jobs"][0]["cap_usd"], cap);
    assert!((shown["jobs"][0]["run_usd"].as_f64().unwrap() - paid(&bill)).abs() < 1e-9, "{shown}");

    succeed(folder, &["retune", "--service", &service.url, "--max-cost-usd", "10", "--concurrency", "4"]);
    let ended = ended(&mut events).await.bill.unwrap();
    assert_eq!((ended.cap_usd, ended.lost_usd), (Some(10.0), 0.0));
    assert!((ended.account_usd - paid(&mock.bill())).abs() < 1e-9);
}

#[tokio::test]
async fn a_job_paused_by_an_operator_sends_nothing_until_it_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 60);
    let (mock, service) = (Server::mock(folder, &["--latency-ms", "100"]), service(folder, "state"));
    let mut events = client(&service, None).run(triage_job(folder, &mock, "gold.json")).await.unwrap().into_inner();
    succeed(folder, &["pause", "--service", &service.url]);
    until_noted(&mut events, "operator").await;
    until_nothing_is_in_flight(folder, &service);
    let before = mock.bill()["calls"].clone();
    // Long enough for the job to tell twice more that it is paused.
    until_noted(&mut events, "operator").await;
    until_noted(&mut events, "operator").await;
    assert_eq!(mock.bill()["calls"], before);
    succeed(folder, &["resume", "--service", &service.url]);
    ended(&mut events).await;
}
