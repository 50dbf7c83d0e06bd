use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::api::ledger::{Answer, Ledger};
use crate::api::request::{Form, Request};
use shared::store::Change;

fn model(policy: &str, name: &str) -> Model {
    Model { name: name.into(), policy: policy.into(), completion_tokens_key: false }
}

fn asking<'a>(model: &'a Model, ledger: Option<&'a Ledger>) -> Asking<'a> {
    let limit = CorrectionLimit { max_tokens: 100, tries: 3 };
    Asking { model, ledger, judging: Judging::default(), pairs: PairForm::Both, limit, world: None }
}

fn estimated(asking: &Asking<'_>, work: Work, input: &str) -> Estimate {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("input.json");
    std::fs::write(&file, input).unwrap();
    let counted = asking.count(work, &file).unwrap();
    Estimate::of(work, &counted, &asking.model.name, &Prices::load(None).unwrap())
}

fn plain(policy: String, pairs: usize, name: &str) -> Estimate {
    let line = "{\"prompt\": \"hello world\", \"chosen\": \"yes\", \"rejected\": \"no\"}\n";
    estimated(&asking(&model(&policy, name), None), Work::Triage, &line.repeat(pairs))
}

#[test]
fn three_ways_to_ask_have_three_prices() {
    let long = "Be kind. ".repeat(700);
    let estimate = plain(long, 5000, "gpt-4o");
    assert_eq!((estimate.items, estimate.requests, estimate.counted_items), (5000, 10_000, 1667));
    let (online, cached, batch) =
        (estimate.online_usd.unwrap(), estimate.online_cached_usd.unwrap(), estimate.batch_usd.unwrap());
    assert_eq!(batch, online / 2.0);
    assert!(cached < 0.6 * online && cached > 0.5 * online, "{cached} {online}");
    assert_eq!(estimate.cacheable_tokens % 128, 0);
    let paid = estimate.prompt_tokens as f64 * 2.5e-6 + estimate.completion_tokens as f64 * 10e-6;
    assert!((paid - online).abs() < 1e-6);
}

#[test]
fn short_prefixes_are_not_cached_and_unknown_models_have_no_price() {
    let short = plain("Be kind.".into(), 3, "gpt-4o");
    assert_eq!((short.cacheable_tokens, short.online_usd), (0, short.online_cached_usd));
    assert_eq!(plain("Be kind.".into(), 3, "other").online_usd, None);
    assert_eq!([1023, 1024, 1200].map(count::cacheable), [0, 1024, 1152]);
}

/// A ledger with answers to some requests.
fn ledger(answers: &[(Request, &str)]) -> (Ledger, Arc<tempfile::TempDir>) {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&dir.path().join("state")).unwrap();
    let change = |(request, text): &(Request, &str)| {
        let answer = Answer { text: Some((*text).to_owned()), finish: "stop".into(), ..Answer::default() };
        Change::put("answers", request.key(), &answer)
    };
    ledger.store().commit_blocking(answers.iter().map(change).collect()).unwrap();
    (ledger, Arc::new(dir))
}

fn lines(records: &[Value]) -> String {
    records.iter().map(|record| format!("{record}\n")).collect()
}

#[test]
fn what_the_ledger_has_is_not_asked_again_and_an_unclear_answer_is_followed_up() {
    let model = model("Be kind.", "gpt-4o");
    let verdict = |prompt: &str, response: &str| model.verdict(prompt, response, Form::default());
    let (ledger, _folder) = ledger(&[
        (verdict("a", "c"), "COMPLIANT"),
        (verdict("a", "r"), "NON-COMPLIANT"),
        (verdict("b", "c"), "It depends"),
        (verdict("c", "c"), "COMPLIANT"),
    ]);
    let pair = |prompt: &str| json!({"prompt": prompt, "chosen": "c", "rejected": "r"});
    let input = lines(&[pair("a"), pair("b"), pair("c"), pair("d")]);
    let known = estimated(&asking(&model, Some(&ledger)), Work::Triage, &input);
    // b: the follow-up and the other response; c: the other response; d: both.
    assert_eq!((known.items, known.reused, known.requests, known.counted_items), (4, 4, 5, 3));
    let skipping = Asking { pairs: PairForm::SkipRejected, ..asking(&model, Some(&ledger)) };
    let skipped = estimated(&skipping, Work::Triage, &input);
    assert_eq!((skipped.reused, skipped.requests), (3, 4), "c's other response is not needed, nor a's");
    let new = estimated(&asking(&model, None), Work::Triage, &input);
    assert_eq!((new.reused, new.requests), (0, 8));
    assert!(known.online_usd.unwrap() < new.online_usd.unwrap());
    let voting = Judging { votes: 3, swap_wording: true, ..Judging::default() };
    let voted = Asking { judging: voting, ..asking(&model, Some(&ledger)) };
    assert_eq!(estimated(&voted, Work::Triage, &input).requests, 4 * 12 - 4 + 1, "one follow-up");
    let one = Asking { pairs: PairForm::OneCall, ..asking(&model, Some(&ledger)) };
    assert_eq!(estimated(&one, Work::Triage, &input).requests, 4);
}

#[test]
fn corrections_are_written_and_judged_from_where_they_are() {
    let model = model("Be kind.", "gpt-4o");
    let write =
        |prompt: &str, tries: u32, rejected: Option<&str>| model.correction(prompt, "bad", 100, tries, rejected);
    let judge = |prompt: &str, text: &str| model.verdict(prompt, text, Form::default());
    let (ledger, _folder) = ledger(&[
        // Accepted at the second try.
        (write("a", 0, None), "first"),
        (judge("a", "first"), "NON-COMPLIANT"),
        (write("a", 1, Some("first")), "second"),
        (judge("a", "second"), "COMPLIANT"),
        // Written, and not judged yet.
        (write("b", 0, None), "first"),
        // Rejected.
        (write("c", 0, None), "first"),
        (judge("c", "first"), "NON-COMPLIANT"),
    ]);
    let record = |prompt: &str, category: &str| json!({"prompt": prompt, "chosen": "bad", "rejected": "bad", "category": category});
    let input = lines(&[
        record("a", "PUNISH"),
        record("b", "PUNISH"),
        record("x", "INVERT"),
        record("c", "PUNISH"),
        record("d", "PUNISH"),
    ]);
    let known = estimated(&asking(&model, Some(&ledger)), Work::Correct, &input);
    // b: its verdict; c: another try and its verdict; d: both.
    assert_eq!((known.items, known.reused, known.requests), (4, 7, 5));
    let new = estimated(&asking(&model, None), Work::Correct, &input);
    assert_eq!((new.items, new.reused, new.requests), (4, 0, 8));
    assert!(new.completion_tokens > 0 && new.online_usd.unwrap() > known.online_usd.unwrap());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pairs.jsonl");
    std::fs::write(&file, lines(&[json!({"prompt": "p", "chosen": "c", "rejected": "r"})])).unwrap();
    let error = asking(&model, None).count(Work::Correct, &file).unwrap_err().to_string();
    assert!(error.contains("triage the records first"), "{error}");
}

#[test]
fn responses_to_judge_are_those_of_the_judges_input() {
    let model = model("Be kind.", "gpt-4o");
    let (ledger, _folder) = ledger(&[(model.verdict("p", "one", Form::default()), "COMPLIANT")]);
    let result = |response: &str| json!({"prompt": "p", "model_response": response});
    let input = json!({"metadata": {}, "results": [result("one"), result("two"), result("three")]}).to_string();
    let known = estimated(&asking(&model, Some(&ledger)), Work::Judge, &input);
    assert_eq!((known.items, known.reused, known.requests), (3, 1, 2));
    assert_eq!(estimated(&asking(&model, None), Work::Judge, &input).requests, 3);
}
