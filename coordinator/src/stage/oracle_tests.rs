//! Stages of the oracle service against a service that answers from a script.

use std::pin::Pin;
use std::sync::Mutex;

use proto::oracle::job::Work as Asked;
use proto::oracle::job_event::Event;
use proto::oracle::oracle_server::{Oracle, OracleServer};
use proto::oracle::{Changed, Ended, Job, JobEvent, JobSelection, RetuneRequest, StatusReply, StatusRequest};
use tonic::{Request, Response, Status};

use super::tests::TestRun;
use super::*;

type Result<T, E> = std::result::Result<T, E>;

const RUN: &str = "[run]\nname = \"small\"\n[data]\nworld = \"policy-shift\"\n[oracle]\nmock = true\n\
                   max_unlabelled_pct = 10\n[[variant]]\nname = \"dpo\"\n";

/// What the service does, call by call.
type Script = Mutex<Vec<Vec<Result<JobEvent, Status>>>>;

struct Scripted {
    script: Script,
    jobs: Arc<Mutex<Vec<Job>>>,
}

type Events = Pin<Box<dyn futures::Stream<Item = Result<JobEvent, Status>> + Send>>;

#[tonic::async_trait]
impl Oracle for Scripted {
    type RunStream = Events;

    async fn run(&self, request: Request<Job>) -> Result<Response<Events>, Status> {
        self.jobs.lock().unwrap().push(request.into_inner());
        let events = self.script.lock().unwrap().remove(0);
        Ok(Response::new(Box::pin(futures::stream::iter(events))))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        Err(Status::unimplemented("not asked"))
    }

    async fn pause(&self, _: Request<JobSelection>) -> Result<Response<Changed>, Status> {
        Err(Status::unimplemented("not asked"))
    }

    async fn resume(&self, _: Request<JobSelection>) -> Result<Response<Changed>, Status> {
        Err(Status::unimplemented("not asked"))
    }

    async fn retune(&self, _: Request<RetuneRequest>) -> Result<Response<Changed>, Status> {
        Err(Status::unimplemented("not asked"))
    }
}

fn bill(calls: u64, reused: u64) -> Option<proto::oracle::Bill> {
    Some(proto::oracle::Bill {
        calls,
        reused,
        cost_usd: 0.5 * calls as f64,
        prices: "list".into(),
        ..Default::default()
    })
}

fn progress(done: u64, calls: u64) -> Result<JobEvent, Status> {
    let progress = proto::oracle::Progress { done, total: 4, bill: bill(calls, 0), ..Default::default() };
    Ok(JobEvent { event: Some(Event::Progress(progress)) })
}

fn ended(uncertain: u64, calls: u64, reused: u64) -> Result<JobEvent, Status> {
    let summary_json = format!("{{\"total\": {}}}", 4 - uncertain);
    let ended = Ended { uncertain, dead_letter: 0, bill: bill(calls, reused), summary_json };
    Ok(JobEvent { event: Some(Event::Ended(ended)) })
}

/// Carries out the triage against a script; returns its end, the jobs asked for and the notes shown.
fn triage(
    run: &mut TestRun,
    script: Vec<Vec<Result<JobEvent, Status>>>,
) -> (shared::Result<()>, Vec<Job>, Vec<Progress>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let jobs = Arc::new(Mutex::new(Vec::new()));
    let shown = Mutex::new(Vec::new());
    let done = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let service = OracleServer::new(Scripted { script: Mutex::new(script), jobs: jobs.clone() });
        let server = shared::net::server().add_service(service).serve_with_incoming(shared::net::incoming(listener));
        let server = tokio::spawn(server);
        run.context.oracle = Some(OracleAddress { url, token: None, mock: Some("http://mock/v1".into()) });
        let show = |progress| shown.lock().unwrap().push(progress);
        let done = carry_out(&run.context, run.index("triage"), &show, CancellationToken::new()).await;
        server.abort();
        done
    });
    let jobs = jobs.lock().unwrap().clone();
    (done, jobs, shown.into_inner().unwrap())
}

fn labelled() -> TestRun {
    let run = TestRun::new(RUN, &[]);
    run.write("world/pairs.json", "[]");
    run.todo("triage");
    run
}

#[test]
fn a_service_that_is_cut_off_is_asked_again_and_its_last_bill_is_the_whole() {
    let mut run = TestRun::new(RUN, &["oracle.max_cost_usd=2.5", "oracle.requests_per_minute=600"]);
    run.write("world/pairs.json", "[]");
    run.todo("triage");
    let cut = vec![progress(1, 2), Err(Status::unavailable("gone"))];
    let (done, jobs, shown) = triage(&mut run, vec![cut, vec![progress(4, 7), ended(0, 8, 1)]]);
    done.unwrap();
    assert_eq!(jobs.len(), 2);
    assert_eq!(jobs[0], jobs[1], "the bill's name is the same");
    assert!(jobs[0].bill.contains("/triage@"), "{}", jobs[0].bill);
    assert_eq!((jobs[0].max_cost_usd, jobs[0].requests_per_minute), (Some(2.5), Some(600.0)));
    assert_eq!((jobs[0].model.as_str(), jobs[0].base_url.as_str()), ("mock-oracle", "http://mock/v1"));
    assert!(
        matches!(&jobs[0].work, Some(Asked::Triage(work)) if work.output.ends_with("triage/gold.json") && work.both)
    );
    assert!(shown.iter().any(|progress| progress.note.contains("waiting for the oracle service")), "{shown:?}");
    run.write("triage/gold.json", "[]");
    run.write("triage/gold_triage.json", "[]");
    assert_eq!(run.finish("triage").cost_usd, 4.0);
    let manifest = run.json("stages/triage.json");
    assert_eq!((&manifest["bill"]["calls"], &manifest["bill"]["reused"]), (&8.into(), &1.into()));
    summary::write(&run.context).unwrap();
    let oracle = &run.json("run.json")["oracle"];
    assert_eq!(
        (&oracle["model"], &oracle["calls"], &oracle["prices"]),
        (&"mock-oracle".into(), &8.into(), &"list".into())
    );
}

#[test]
fn a_refusal_ends_the_stage_at_once() {
    let mut run = labelled();
    let (done, jobs, _) = triage(&mut run, vec![vec![Err(Status::failed_precondition("the quota is used up"))]]);
    assert_eq!(done.unwrap_err().to_string(), "the oracle service: the quota is used up");
    assert_eq!(jobs.len(), 1);
}

#[test]
fn too_many_pairs_without_a_label_fail_the_stage_naming_the_files() {
    let mut run = labelled();
    run.write("triage/gold_uncertain.json", "[]");
    let (done, ..) = triage(&mut run, vec![vec![ended(1, 4, 0)]]);
    let error = done.unwrap_err().to_string();
    assert!(!error.contains("_dead_letter"), "there is no such file: {error}");
    assert!(error.contains("1 of 4 pairs (25.0 %)") && error.contains("triage/gold_uncertain.json"), "{error}");
    let mut run = TestRun::new(RUN, &["oracle.max_unlabelled_pct=30"]);
    run.write("world/pairs.json", "[]");
    run.todo("triage");
    triage(&mut run, vec![vec![ended(1, 4, 0)]]).0.unwrap();
}

#[test]
fn corrections_that_were_not_accepted_are_told_when_their_stage_ends() {
    let run = TestRun::new(RUN, &["oracle.corrections=true"]);
    run.write("triage/gold.json", "[]");
    run.todo("correct");
    run.write("triage/corrected.json", r#"[{"category": "PUNISH", "oracle_response": ""}]"#);
    let warning = run.finish("correct").warning.unwrap();
    assert!(warning.starts_with("1 of 1 PUNISH pairs have no accepted correction"), "{warning}");
}

#[test]
fn a_run_that_wants_a_mock_says_so_where_there_is_none() {
    let mut run = labelled();
    run.context.oracle = Some(OracleAddress { url: "http://127.0.0.1:1".into(), token: None, mock: None });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let stage = run.index("triage");
    let done = runtime.block_on(carry_out(&run.context, stage, &|_| {}, CancellationToken::new()));
    assert!(done.unwrap_err().to_string().contains("run --local"));
}
