//! What a job of the service says about its judgement reaches the engine and changes what it should: real processes, and
//! every key of the wire by itself, against the plain job.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use proto::oracle::job::Work;
use proto::oracle::job_event::Event;
use proto::oracle::{Correct, Ended, Job, Judge, Triage};
use serde_json::{Value, json};
use support::jobs::{client, finish_at, service, triage_job};
use support::{Server, read, succeed, world};
use tonic::Status;

const PAIRS: u64 = 12;

fn triage(job: &mut Job) -> &mut Triage {
    match job.work.as_mut() {
        Some(Work::Triage(triage)) => triage,
        _ => panic!("a triage"),
    }
}

fn provenance(folder: &Path, name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Runs the job on a ledger and a mock of its own; returns how it ended, the mock's bill and what the verdicts rest on.
async fn alone(folder: &Path, plan: &str, change: impl FnOnce(&mut Job)) -> (Result<Ended, Status>, Value, Vec<Value>) {
    std::fs::write(folder.join("plan.toml"), plan).unwrap();
    let mock = Server::mock(folder, &["--fault-plan", "plan.toml"]);
    let state = tempfile::tempdir_in(folder).unwrap();
    let service = service(folder, state.path().to_str().unwrap());
    let mut job = triage_job(folder, &mock, "gold.json");
    change(&mut job);
    let ended = finish_at(&service, job).await;
    let told = if ended.is_ok() { provenance(folder, "gold_provenance.jsonl") } else { Vec::new() };
    (ended, mock.bill(), told)
}

fn calls(bill: &Value) -> u64 {
    bill["calls"].as_u64().unwrap()
}

fn votes(line: &Value) -> Vec<(u64, String)> {
    let votes = line["votes"].as_array().unwrap().iter();
    votes.map(|vote| (vote["vote"].as_u64().unwrap(), vote["wording"].as_str().unwrap().to_owned())).collect()
}

#[tokio::test]
async fn votes_wordings_and_forms_of_the_question_are_asked_as_the_job_says() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, PAIRS as usize);
    let (_, bill, told) = alone(folder, "", |_| {}).await;
    assert_eq!((calls(&bill), told.len() as u64), (2 * PAIRS, 2 * PAIRS));
    assert!(told.iter().all(|line| votes(line) == [(0, "plain".to_owned())] && line["confidence"].is_null()));
    let plain = std::fs::read(folder.join("gold.json")).unwrap();

    let (_, bill, told) = alone(folder, "", |job| job.votes = 3).await;
    assert_eq!(calls(&bill), 3 * 2 * PAIRS);
    assert!(told.iter().all(|line| votes(line).iter().map(|(vote, _)| *vote).eq([0, 1, 2])));
    let (_, bill, told) = alone(folder, "", |job| job.swap_wording = true).await;
    assert_eq!(calls(&bill), 2 * 2 * PAIRS);
    assert!(told.iter().all(|line| votes(line).iter().map(|(_, wording)| wording.as_str()).eq(["plain", "swapped"])));
    let (_, bill, _) = alone(folder, "", |job| triage(job).one_call = true).await;
    assert_eq!(calls(&bill), PAIRS);
    assert!(std::fs::read(folder.join("gold.json")).unwrap() == plain, "the labels are the same");
    let (_, bill, told) = alone(folder, "", |job| triage(job).both = false).await;
    assert!(calls(&bill) < 2 * PAIRS && told.len() as u64 == calls(&bill), "RETAIN pairs cost one call");
    let (ended, ..) = alone(folder, "", |job| job.votes = 2).await;
    assert!(ended.unwrap_err().message().contains("odd"));
}

#[tokio::test]
async fn confidence_is_recorded_and_verdicts_below_the_least_are_left_to_people() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, PAIRS as usize);
    let unsure = "seed = 5\nunsure_share = 0.5";
    let (ended, bill, told) = alone(folder, unsure, |job| job.logprobs = true).await;
    assert_eq!((ended.unwrap().uncertain, calls(&bill)), (0, 2 * PAIRS));
    let confidence = |line: &Value| line["confidence"].as_f64().unwrap();
    assert!(told.iter().all(|line| line["votes"][0]["p_compliant"].is_f64()), "{told:?}");
    let below = |least: f64| told.iter().filter(|line| confidence(line) < least).count() as u64;
    assert!(below(0.9) > 0 && below(0.9) < 2 * PAIRS, "{}", below(0.9));
    let pairs_below = |least: f64| {
        let indices = told.iter().filter(|line| confidence(line) < least).map(|line| line["index"].as_u64().unwrap());
        indices.collect::<std::collections::BTreeSet<_>>().len() as u64
    };
    // With one vote the least confidence asks for log-probabilities by itself.
    let (ended, _, _) = alone(folder, unsure, |job| job.min_confidence = 0.9).await;
    assert_eq!(ended.unwrap().uncertain, pairs_below(0.9));
    let review = read(folder.join("gold_review.json"));
    assert_eq!(review.as_array().unwrap().len() as u64, below(0.9));
    let (ended, ..) = alone(folder, unsure, |job| job.min_confidence = 2.0).await;
    assert!(ended.unwrap_err().message().contains("probability"));
}

#[tokio::test]
async fn a_canary_is_watched_within_its_tolerance_and_pauses_the_job_only_where_it_is_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, PAIRS as usize);
    let pair = &read(folder.join("pairs.json"))[0];
    let item = |verdict: &str| json!({"prompt": pair["prompt"], "response": pair["chosen"], "verdict": verdict});
    shared::output::write_json(&folder.join("canary.json"), &json!([item("COMPLIANT"), item("NON-COMPLIANT")]))
        .unwrap();
    let canary = |job: &mut Job| job.canary = folder.join("canary.json").display().to_string();
    // Both items ask the same: one call more, for the day.
    let (ended, bill, _) = alone(folder, "", canary).await;
    assert_eq!((ended.unwrap().uncertain, calls(&bill)), (0, 2 * PAIRS + 1), "a warning alone");
    let (_, bill, _) = alone(folder, "", |job| {
        canary(job);
        (job.canary_stop, job.canary_tolerance) = (true, 50.0);
    })
    .await;
    assert_eq!(calls(&bill), 2 * PAIRS + 1, "one of two may be wrong");

    let (mock, service) = (Server::mock(folder, &[]), service(folder, "stopping"));
    let mut job = triage_job(folder, &mock, "gold.json");
    canary(&mut job);
    job.canary_stop = true;
    let mut client = client(&service, None);
    let mut events = client.run(job).await.unwrap().into_inner();
    loop {
        match events.message().await.unwrap().unwrap().event.unwrap() {
            Event::Progress(progress) if progress.note.contains("1 of 2 are wrong") => break,
            Event::Progress(_) => {}
            Event::Ended(_) => panic!("it ended in spite of its canary"),
        }
    }
    let status = succeed(folder, &["status", "--service", &service.url]);
    assert!(String::from_utf8_lossy(&status.stdout).contains("the canary's answers drift"));
    assert_eq!(calls(&mock.bill()), 1, "nothing of the job is paid yet");
    succeed(folder, &["resume", "--service", &service.url]);
    loop {
        if let Event::Ended(_) = events.message().await.unwrap().unwrap().event.unwrap() {
            break;
        }
    }
    assert_eq!(calls(&mock.bill()), 2 * PAIRS + 1);
}

#[tokio::test]
async fn another_judge_relabels_only_where_the_job_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, PAIRS as usize);
    let (old, new) = (Server::mock(folder, &[]), Server::mock(folder, &["--model", "other"]));
    let service = service(folder, "state");
    finish_at(&service, triage_job(folder, &old, "gold.json")).await.unwrap();
    let other = |relabel| {
        let mut job = Job { model: "other".into(), ..triage_job(folder, &new, "gold.json") };
        triage(&mut job).relabel = relabel;
        job
    };
    let refused = finish_at(&service, other(false)).await.unwrap_err();
    assert!(refused.message().contains("relabel"), "{refused}");
    assert_eq!(calls(&new.bill()), 0);
    finish_at(&service, other(true)).await.unwrap();
    assert_eq!(calls(&new.bill()), 2 * PAIRS);
}

#[tokio::test]
async fn corrections_and_judgements_are_judged_in_the_same_forms() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    world(folder, 40);
    let (mock, service) = (Server::mock(folder, &[]), service(folder, "state"));
    let path = |name: &str| folder.join(name).display().to_string();
    succeed(
        folder,
        &["triage", "--input-json", "pairs.json", "--output-json", "rules.json", "--rules", "rules_new.toml"],
    );
    let records = read(folder.join("rules.json"));
    let punish = records.as_array().unwrap().iter().filter(|record| record["category"] == "PUNISH").count() as u64;
    assert!(punish > 0);
    let correct = Correct { input: path("rules.json"), output: path("c.json"), max_tokens: 0, tries: 1 };
    let correct = Job { work: Some(Work::Correct(correct)), votes: 3, ..triage_job(folder, &mock, "gold.json") };
    finish_at(&service, correct).await.unwrap();
    let told = provenance(folder, "c_provenance.jsonl");
    assert!(told.iter().all(|line| line["tries"].as_array().unwrap().len() == 1));
    assert!(told.iter().all(|line| votes(&line["tries"][0]["judged"]).len() == 3), "{told:?}");

    let results: Vec<Value> = records.as_array().unwrap()[..10]
        .iter()
        .map(|record| json!({"prompt": record["prompt"], "model_response": record["chosen"]}))
        .collect();
    shared::output::write_json(&folder.join("responses.json"), &json!({"results": results})).unwrap();
    let judge = Judge { responses: path("responses.json"), output: path("judged.json"), world: String::new() };
    let judge = Job { work: Some(Work::Judge(judge)), swap_wording: true, ..triage_job(folder, &mock, "gold.json") };
    finish_at(&service, judge).await.unwrap();
    let told = provenance(folder, "judged_provenance.jsonl");
    assert!(told.len() == 10 && told.iter().all(|line| votes(line).len() == 2), "{told:?}");
}
