//! Everything known about one correction: what was written, what the judge said of it, try by try.

use serde::Serialize;
use serde_json::Value;
use shared::record::Record;

use super::{Told, is_known, print_answer, print_judged, told, with_review};
use crate::api::ledger::Answer;
use crate::error::{Error, Result};
use crate::judging::correcting::{Correction, CorrectionLimit, Try, Writer};
use crate::judging::{Panel, Source};
use crate::oracle::{OracleArgs, read_policy};
use crate::{Outcome, review, served, table};

/// What is known of a correction.
#[derive(Debug, Serialize)]
struct ToldCorrection<'a> {
    /// The reply that was accepted.
    accepted: Option<&'a str>,
    /// Why none was, where none was.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    tries: Vec<ToldTry<'a>>,
}

/// One reply that was written, with its verdict.
#[derive(Debug, Serialize)]
struct ToldTry<'a> {
    key: &'a str,
    request: Value,
    answer: &'a Answer,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<&'a str>,
    judged: Option<Told<'a>>,
}

/// Prints what is known of a record's correction. Where the ledger's answers end, so does what is told.
pub(super) fn explain(
    oracle: &OracleArgs,
    index: usize,
    record: &Record,
    limit: CorrectionLimit,
    as_json: bool,
) -> Result<Outcome> {
    let policy = read_policy(oracle.policy.as_deref().ok_or(Error::NoJudge)?)?;
    let model = oracle.model(policy);
    let ledger = served::open_own(&oracle.state, "explain")?;
    let (prompt, violating) = (record.prompt.prompt_text(), record.chosen.response());
    let source = Source::Stored(&ledger);
    let panel = Panel { source, model: &model, forms: oracle.judging.forms(None) };
    let judge = async |text: &str| {
        let item = review::item(&model.policy, &prompt, text);
        let ballots = panel.response(&prompt, text).await?;
        with_review(&ledger, item, ballots, oracle.judging.min_confidence)
    };
    let writer = Writer { source, model: &model, limit };
    let corrected = crate::block_on(writer.correct(&prompt, &violating, judge))?;
    let mut tries = Vec::new();
    let mut rejected: Option<&str> = None;
    for (earlier, one) in corrected.tries.iter().enumerate() {
        // Without a stored reply this try was not made, or brought nothing that is known.
        let Try { reply: Some((key, answer)), judged, problem } = one else { continue };
        let request = model.correction(&prompt, &violating, limit.max_tokens, earlier as u32, rejected);
        let text = answer.text.as_deref().unwrap_or_default().trim();
        let judged = judged
            .as_ref()
            .map(|judged| (judged, told("correction", judged, |form| model.verdict(&prompt, text, form))));
        if judged.is_some() {
            rejected = Some(text);
        }
        tries.push((ToldTry { key, request: request.body, answer, problem: problem.as_deref(), judged: None }, judged));
    }
    let known = !tries.is_empty();
    let (accepted, reason) = match &corrected.correction {
        Correction::Accepted(text) => (Some(text.as_str()), None),
        Correction::NotAccepted(_) if !known => (None, Some("the ledger holds no reply to this record")),
        Correction::NotAccepted(reason) | Correction::UnknownPrompt(reason) => (None, Some(reason.as_str())),
    };
    if as_json {
        let tries = tries.into_iter().map(|(one, judged)| ToldTry { judged: judged.map(|(_, told)| told), ..one });
        table::print_json(&ToldCorrection { accepted, reason, tries: tries.collect() })?;
    } else {
        println!("record {index}, corrected by {}", model.name);
        println!("prompt: {prompt}");
        println!("reply that violates: {violating}");
        for (number, (one, judged)) in tries.iter().enumerate() {
            println!("\ntry {}: request {}", number + 1, one.key);
            print_answer(&one.request, one.answer);
            if let Some((judged, told)) = judged.as_ref().filter(|(judged, _)| is_known(judged)) {
                println!("  judged:");
                print_judged(judged, told);
            }
            if let Some(problem) = one.problem {
                println!("  not accepted: {problem}");
            }
        }
        match (accepted, reason) {
            (Some(text), _) => println!("\naccepted: {text}"),
            (None, reason) => println!("\nnot accepted: {}", reason.unwrap_or_default()),
        }
    }
    Ok(if known { Outcome::Complete } else { Outcome::Incomplete })
}
