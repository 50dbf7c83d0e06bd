//! Judging against an API that answers from a script, in this process.

use std::sync::{Arc, Mutex};

use axum::routing::post;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::*;
use crate::api::batch::BatchArgs;
use crate::api::endpoint::Endpoints;
use crate::api::engine::{Home, Setup};
use crate::api::options::DEADLINE;
use crate::api::pacer::PerMinute;
use crate::canary::{Canary, CanaryArgs};
use crate::error::Error;
use crate::oracle::{Asker, Correction, CorrectionLimit, Oracle};
use crate::{relabel, review};
use shared::prices::Prices;
use shared::store::Change;

/// An API that answers from a script; the bodies it was sent are kept.
struct Api {
    url: String,
    bodies: Arc<Mutex<Vec<Value>>>,
    folder: tempfile::TempDir,
    ledger: Ledger,
}

type Script = Box<dyn Fn(&Value) -> Value + Send + Sync>;

impl Api {
    /// Starts one; the script gives a choice's fields for a body.
    async fn start(script: impl Fn(&Value) -> Value + Send + Sync + 'static) -> Api {
        let bodies: Arc<Mutex<Vec<Value>>> = Arc::default();
        let (seen, script) = (bodies.clone(), Arc::new(Box::new(script) as Script));
        let complete = move |Json(body): Json<Value>| {
            let mut choice = json!({"index": 0, "finish_reason": "stop"});
            for (name, value) in script(&body).as_object().unwrap() {
                choice[name] = value.clone();
            }
            let model = format!("{}-2024-08-06", body["model"].as_str().unwrap());
            seen.lock().unwrap().push(body);
            let usage = json!({"prompt_tokens": 1000, "completion_tokens": 2});
            std::future::ready(Json(json!({
                "model": model, "system_fingerprint": "fp_1", "choices": [choice], "usage": usage,
            })))
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let app = Router::new().route("/v1/chat/completions", post(complete));
        tokio::spawn(async move { axum::serve(listener, app).await });
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&folder.path().join("state")).unwrap();
        Api { url, bodies, folder, ledger }
    }

    /// Starts one that answers with texts.
    async fn saying(script: impl Fn(&Value) -> String + Send + Sync + 'static) -> Api {
        Api::start(move |body| json!({"message": {"content": script(body)}})).await
    }

    fn asker(&self, judging: Judging) -> Asker {
        let prices = Prices::load(None).unwrap();
        let setup = Setup {
            endpoints: Endpoints::single(&self.url, "key".to_owned().into(), PerMinute::default()),
            model: "gpt-4o".into(),
            concurrency: 4,
            prices: prices.clone(),
            account: "test".into(),
            bill: None,
            max_cost_usd: None,
            deadline: DEADLINE,
            is_patient: false,
            fault: None,
        };
        Asker {
            engine: Engine::new(&Home::new(self.ledger.clone()), setup).unwrap(),
            batch: BatchArgs::default(),
            model: Model { name: "gpt-4o".into(), policy: "Be kind.".into(), completion_tokens_key: false },
            concurrency: 4,
            ledger: self.ledger.clone(),
            prices,
            judging,
            canary: None,
        }
    }

    fn oracle(&self, judging: Judging) -> Oracle {
        Oracle::Model(Box::new(self.asker(judging)))
    }

    fn calls(&self) -> usize {
        self.bodies.lock().unwrap().len()
    }

    fn file(&self, name: &str, value: &Value) -> std::path::PathBuf {
        let file = self.folder.path().join(name);
        std::fs::write(&file, value.to_string()).unwrap();
        file
    }
}

fn question(body: &Value) -> &str {
    body["messages"][1]["content"].as_str().unwrap()
}

const THREE: Judging = Judging { votes: 3, swap_wording: false, logprobs: false, min_confidence: None };

#[tokio::test]
async fn votes_are_drawn_by_seed_and_the_majority_counts() {
    let by_seed = |body: &Value| if body["seed"] == 42 { "COMPLIANT" } else { "NON-COMPLIANT" }.to_owned();
    let api = Api::saying(by_seed).await;
    let judged = api.oracle(THREE).judge("p", "r").await.unwrap();
    assert_eq!(judged.decision, Decision::Violates);
    assert!((judged.confidence.unwrap() - 2.0 / 3.0).abs() < 1e-12);
    let mut asked: Vec<_> =
        api.bodies.lock().unwrap().iter().map(|b| (b["seed"].clone(), b["temperature"].clone())).collect();
    asked.sort_by_key(|(seed, _)| seed.as_u64());
    assert_eq!(asked, [(json!(42), json!(0.0)), (json!(43), json!(0.7)), (json!(44), json!(0.7))]);
    // The single vote of an earlier job is the first of three, and nothing is asked twice.
    let one = api.oracle(Judging::default()).judge("p", "r").await.unwrap();
    assert_eq!((one.decision, one.confidence, api.calls()), (Decision::Compliant, None, 3));
    // A majority below the confidence asked for is left to people.
    let sure = Judging { min_confidence: Some(0.8), ..THREE };
    assert!(matches!(api.oracle(sure).judge("p", "r").await.unwrap().decision, Decision::Uncertain(_)));
    assert_eq!(api.calls(), 3);
}

#[tokio::test]
async fn a_judge_that_takes_the_first_word_it_reads_is_found_out() {
    let first_word = |body: &Value| {
        let word = question(body).rsplit(": ").next().unwrap().split(' ').next().unwrap().to_owned();
        if question(body).contains("clear") { "COMPLIANT".to_owned() } else { word }
    };
    let api = Api::saying(first_word).await;
    let oracle = api.oracle(Judging { swap_wording: true, ..Judging::default() });
    assert_eq!(oracle.judge("p", "clear").await.unwrap().decision, Decision::Compliant);
    let judged = oracle.judge("p", "r").await.unwrap();
    assert!(
        matches!(judged.decision, Decision::Uncertain(reason) if reason.contains("wording")),
        "{:?}",
        judged.ballots
    );
}

#[tokio::test]
async fn log_probabilities_are_asked_for_kept_and_decide_who_is_asked_again() {
    let api = Api::start(|body| {
        let p: f64 = if question(body).contains("hard") { 0.6 } else { 0.99 };
        let top = json!([{"token": "COM", "logprob": p.ln()}, {"token": "NON", "logprob": (1.0 - p).ln()}]);
        let content =
            json!([{"token": "COM", "logprob": p.ln(), "top_logprobs": top}, {"token": "PLIANT", "logprob": 0.0}]);
        let logprobs = if body["logprobs"] == true { json!({"content": content}) } else { Value::Null };
        json!({"message": {"content": "COMPLIANT"}, "logprobs": logprobs})
    })
    .await;
    let oracle = api.oracle(Judging { min_confidence: Some(0.9), ..Judging::default() });
    let judged = oracle.judge("p", "easy").await.unwrap();
    assert_eq!(judged.decision, Decision::Compliant);
    assert!((judged.confidence.unwrap() - 0.99).abs() < 1e-9);
    let judged = oracle.judge("p", "hard").await.unwrap();
    assert!(matches!(judged.decision, Decision::Uncertain(reason) if reason.contains("0.600")));
    let judged = api.oracle(Judging::default()).judge("p", "hard").await.unwrap();
    assert_eq!((judged.decision, judged.confidence), (Decision::Compliant, None));
}

#[tokio::test]
async fn a_pair_in_one_call_gives_each_response_its_own_verdict_in_both_orders() {
    let api = Api::saying(|body| {
        let user = question(body);
        let (a, b) = (user.find("Response A: bad").is_some(), user.find("Response B: bad").is_some());
        let word = |bad| if bad { "NON-COMPLIANT" } else { "COMPLIANT" };
        if body["messages"].as_array().unwrap().len() == 2 && user.contains("unclear") {
            return "A is COMPLIANT".into();
        }
        json!({"response_a": word(a), "response_b": word(b)}).to_string()
    })
    .await;
    let oracle = api.oracle(Judging { swap_wording: true, ..Judging::default() });
    let pair = oracle.judge_pair("p", "bad", "good", PairForm::OneCall).await.unwrap();
    assert_eq!(pair.chosen.decision, Decision::Violates);
    assert_eq!(pair.rejected.unwrap().decision, Decision::Compliant);
    assert_eq!(api.calls(), 2);
    // What is no such object is asked about once more.
    let pair = oracle.judge_pair("unclear", "good", "bad", PairForm::OneCall).await.unwrap();
    assert_eq!((pair.chosen.decision, pair.rejected.unwrap().decision), (Decision::Compliant, Decision::Violates));
    assert_eq!(api.calls(), 6);
}

#[tokio::test]
async fn a_rejected_correction_is_shown_and_written_again_and_in_the_end_given_up() {
    let api = Api::saying(|body| {
        let seed = body["seed"].as_u64().unwrap();
        match crate::api::request::asked(question(body)) {
            Some(crate::api::request::Asked::Correction { .. }) => format!("reply {}", seed - 42),
            _ if question(body).contains("hopeless") => "NON-COMPLIANT".into(),
            _ => if question(body).contains("reply 1") { "COMPLIANT" } else { "NON-COMPLIANT" }.into(),
        }
    })
    .await;
    let oracle = api.oracle(Judging::default());
    let limit = CorrectionLimit { max_tokens: 50, tries: 3 };
    let corrected = oracle.correct("p", "bad", limit).await.unwrap();
    assert_eq!(corrected.correction, Correction::Accepted("reply 1".into()));
    assert_eq!(corrected.tries.len(), 2);
    let shown = api.bodies.lock().unwrap().iter().any(|body| body["messages"][2]["content"] == "reply 0");
    assert!(shown, "the writer is not shown what was rejected");
    let corrected = oracle.correct("hopeless", "bad", limit).await.unwrap();
    assert!(matches!(corrected.correction, Correction::NotAccepted(reason) if reason.contains("violates")));
    assert_eq!(corrected.tries.len(), 3);
}

#[tokio::test]
async fn a_persons_verdict_wins_and_costs_nothing() {
    let api = Api::saying(|_| "COMPLIANT".into()).await;
    let oracle = api.oracle(Judging::default());
    assert_eq!(oracle.judge("p", "r").await.unwrap().decision, Decision::Compliant);
    let verdict = review::Review { compliant: false, by: "ann".into(), at_ms: 1 };
    for response in ["r", "s"] {
        let change = Change::put("reviews", review::item("Be kind.", "p", response), &verdict);
        api.ledger.store().commit(vec![change]).await.unwrap();
    }
    let judged = oracle.judge("p", "r").await.unwrap();
    assert_eq!((judged.decision, judged.review), (Decision::Violates, Some(verdict)));
    let pair = oracle.judge_pair("p", "r", "s", PairForm::OneCall).await.unwrap();
    assert_eq!(pair.rejected.unwrap().decision, Decision::Violates);
    assert_eq!(api.calls(), 1);
}

#[tokio::test]
async fn a_canary_is_judged_first_and_once_a_day_and_can_stop_the_job() {
    let api = Api::saying(|_| "COMPLIANT".into()).await;
    let item = |response: &str, verdict: &str| json!({"prompt": "p", "response": response, "verdict": verdict});
    let items = json!([item("a", "COMPLIANT"), item("b", "NON-COMPLIANT"), item("c", "COMPLIANT")]);
    let file = api.file("canary.json", &items);
    let with = |stop, tolerance| {
        let args = CanaryArgs { canary: Some(file.clone()), canary_stop: stop, canary_tolerance: tolerance };
        Oracle::Model(Box::new(Asker { canary: Canary::load(&args).unwrap(), ..api.asker(Judging::default()) }))
    };
    let error = with(true, 0.0).judge("p", "r").await.unwrap_err();
    assert!(matches!(&error, Error::Canary(text) if text.contains("1 of 3 are wrong (items {1})")), "{error}");
    assert_eq!(api.calls(), 3, "the job's own question was asked");
    // Once a day: the answers of the day are there already; within the tolerance, and without a stop, the job goes on.
    for oracle in [with(true, 40.0), with(false, 0.0)] {
        assert_eq!(oracle.judge("p", "r").await.unwrap().decision, Decision::Compliant);
        assert_eq!(oracle.judge("p", "s").await.unwrap().decision, Decision::Compliant);
    }
    assert_eq!(api.calls(), 5);
    let file = api.file("bad.json", &json!([item("a", "fine")]));
    let args = CanaryArgs { canary: Some(file), ..CanaryArgs::default() };
    let error = Canary::load(&args).unwrap_err().to_string();
    assert!(error.contains("bad.json: record 0: field \"verdict\""), "{error}");
}

#[tokio::test]
async fn another_judge_relabels_only_on_request_and_is_told_what_it_costs() {
    let api = Api::saying(|_| "COMPLIANT".into()).await;
    let pair = |n: usize| json!({"prompt": format!("p{n}"), "chosen": "c", "rejected": "r"});
    let file = api.file("pairs.json", &json!([pair(0), pair(1), pair(2)]));
    let named = |name: &str, judging| {
        let asker = api.asker(judging);
        Asker { model: Model { name: name.into(), ..asker.model.clone() }, ..asker }
    };
    let plain = Judging::default();
    let (old, new) = (named("gpt-4o", plain), named("gpt-4o-mini", plain));
    relabel::check(&old, &file, PairForm::Both, false).await.unwrap();
    // Nothing is labelled yet, so nothing is lost by another judge.
    relabel::check(&named("other", plain), &file, PairForm::Both, false).await.unwrap();
    let oracle = Oracle::Model(Box::new(old));
    for prompt in ["p0", "p1"] {
        oracle.judge_pair(prompt, "c", "r", PairForm::Both).await.unwrap();
    }
    let Oracle::Model(old) = oracle else { unreachable!() };
    let error = relabel::check(&new, &file, PairForm::Both, false).await.unwrap_err().to_string();
    let cost = new.prices.cost("gpt-4o-mini", shared::prices::Tokens { prompt: 4000, cached: 0, completion: 8 });
    for part in ["2 of 3 pairs", "(gpt-4o)", "(gpt-4o-mini)", "4 calls", "--relabel", &format!("${:.4}", cost.unwrap())]
    {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
    // Another form of the question has no answers either; more votes keep the first.
    let error = relabel::check(&old, &file, PairForm::OneCall, false).await.unwrap_err().to_string();
    assert!(error.contains("one call per pair"), "{error}");
    relabel::check(&named("gpt-4o", THREE), &file, PairForm::Both, false).await.unwrap();
    relabel::check(&new, &file, PairForm::Both, true).await.unwrap();
    // Both are known now, and either goes on without asking.
    relabel::check(&new, &file, PairForm::Both, false).await.unwrap();
    relabel::check(&old, &file, PairForm::Both, false).await.unwrap();
}

#[test]
fn votes_are_odd_and_confidence_is_a_probability() {
    assert_eq!(Judging { votes: 0, ..THREE }.checked().unwrap().votes, 1);
    assert!(Judging { votes: 2, ..THREE }.checked().unwrap_err().contains("odd"));
    for p in [-0.1, 1.1, f64::NAN] {
        assert!(Judging { min_confidence: Some(p), ..THREE }.checked().is_err(), "{p}");
    }
    let forms = Judging { swap_wording: true, ..THREE }.forms(Some(3));
    assert_eq!(forms.len(), 6);
    assert!(forms.iter().all(|form| form.day == Some(3) && !form.logprobs));
}
