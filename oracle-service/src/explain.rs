//! Everything known about one label: requests, answers, attempts, cost, model, confidence. Nothing is sent.
//!
//! The requests are built from the input and the judge's settings as triage builds them, and looked up in the ledger; so
//! this works in the middle of a job and needs no file of its own.

mod correction;

use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;
use shared::record::Record;

use crate::api::engine::now_ms;
use crate::api::ledger::{Answer, Ledger};
use crate::api::request::{Form, Model, Request, Wording};
use crate::correct::CORRECTION_TRIES;
use crate::error::{Error, Result};
use crate::judging::correcting::CorrectionLimit;
use crate::judging::provenance::{Grounds, cost};
use crate::judging::{Ballot, Judged, Panel, Source};
use crate::oracle::{OracleArgs, read_policy};
use crate::{Outcome, review, served, table};

/// Prints everything known about one label: requests, answers, attempts, cost, model, confidence
///
/// ITEM is a record's index in the input, from 0, with the input and the settings that the label was made with; or the key
/// of one answer, as `_provenance.jsonl` names it. With --correction it is the record's correction, try by try. Nothing is
/// sent and nothing is paid.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Index of a record in the input, from 0, or an answer's key
    item: String,
    /// The triage's input, where ITEM is an index
    #[arg(long, value_name = "FILE")]
    input_json: Option<PathBuf>,
    /// The label was made by one call per pair
    #[arg(long)]
    one_call_per_pair: bool,
    /// Explain the record's correction instead of its label, with the settings that it was written with; the input is then
    /// that of `correct`
    #[arg(long, conflicts_with = "one_call_per_pair")]
    correction: bool,
    /// Longest correction in tokens
    #[arg(long, value_name = "N", default_value_t = 512, requires = "correction")]
    oracle_max_tokens: u32,
    /// How often a correction was written at most
    #[arg(long, value_name = "N", default_value_t = CORRECTION_TRIES, requires = "correction")]
    correction_tries: u32,
    #[command(flatten)]
    oracle: OracleArgs,
    /// Print all of it as JSON
    #[arg(long)]
    json: bool,
}

/// What is known about one response.
#[derive(Debug, Serialize)]
struct Told<'a> {
    field: &'a str,
    #[serde(flatten)]
    grounds: Grounds<'a>,
    /// Every exchange with the model, in order.
    exchanges: Vec<Exchange<'a>>,
}

/// A request and its answer.
#[derive(Debug, Serialize)]
struct Exchange<'a> {
    vote: u32,
    wording: Wording,
    key: &'a str,
    request: Value,
    answer: &'a Answer,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let state = &args.oracle.state;
    if args.item.len() == 32 && args.item.chars().all(|c| c.is_ascii_hexdigit()) {
        return explain_answer(&args.item, &served::open_own(state, "explain")?);
    }
    let config = |problem: String| Error::from(shared::Error::Config(problem));
    let index: usize = args.item.parse().map_err(|_| {
        config(format!("{:?} is neither an index nor the key of an answer (32 hexadecimal digits)", args.item))
    })?;
    let input =
        args.input_json.as_ref().ok_or_else(|| config("give --input-json, the file that the index is of".into()))?;
    let record = nth(input, index)?;
    if args.correction {
        let limit = CorrectionLimit { max_tokens: args.oracle_max_tokens, tries: args.correction_tries };
        return correction::explain(&args.oracle, index, &record, limit, args.json);
    }
    let rejected =
        record.rejected.clone().ok_or_else(|| shared::Error::field(input, index, "rejected", "is missing"))?;
    let policy = read_policy(args.oracle.policy.as_deref().ok_or(Error::NoJudge)?)?;
    let model = args.oracle.model(policy);
    let ledger = served::open_own(state, "explain")?;

    let (prompt, responses) = (record.prompt.prompt_text(), [record.chosen.response(), rejected.response()]);
    let responses = [responses[0].as_str(), responses[1].as_str()];
    let forms = args.oracle.judging.forms(None);
    let panel = Panel { source: Source::Stored(&ledger), model: &model, forms };
    let ballots = crate::block_on(async {
        if args.one_call_per_pair {
            return panel.pair(&prompt, responses).await;
        }
        Ok([panel.response(&prompt, responses[0]).await?, panel.response(&prompt, responses[1]).await?])
    })?;
    let mut judged = Vec::new();
    for (response, ballots) in responses.iter().zip(ballots) {
        let item = review::item(&model.policy, &prompt, response);
        judged.push(with_review(&ledger, item, ballots, args.oracle.judging.min_confidence)?);
    }
    let known = judged.iter().any(is_known);
    let request = |form: Form, response: usize| match args.one_call_per_pair {
        true => model.pair(&prompt, responses, form),
        false => model.verdict(&prompt, responses[response], form),
    };
    let told: Vec<Told<'_>> = ["chosen", "rejected"]
        .into_iter()
        .zip(&judged)
        .enumerate()
        .map(|(response, (field, judged))| told(field, judged, |form| request(form, response)))
        .collect();
    if args.json {
        table::print_json(&told)?;
    } else {
        print(index, &prompt, responses, &model, &judged, &told);
    }
    Ok(if known { Outcome::Complete } else { Outcome::Incomplete })
}

/// Returns what ballots amount to, or a person's verdict with the ballots beside it.
fn with_review(ledger: &Ledger, item: String, ballots: Vec<Ballot>, min_confidence: Option<f64>) -> Result<Judged> {
    let voted = Judged::voted(item.clone(), ballots, min_confidence);
    Ok(match review::of(ledger, &item)? {
        Some(review) => Judged { ballots: voted.ballots, ..Judged::reviewed(item, review) },
        None => voted,
    })
}

/// Returns whether anything is known: an answer, or a person's verdict.
fn is_known(judged: &Judged) -> bool {
    judged.review.is_some() || judged.ballots.iter().any(|ballot| !ballot.answers.is_empty())
}

/// Puts a verdict together with its exchanges; `request` builds the first one of a form.
fn told<'a>(field: &'a str, judged: &'a Judged, request: impl Fn(Form) -> Request) -> Told<'a> {
    let exchanges = judged.ballots.iter().flat_map(|ballot| {
        let mut request = request(ballot.form);
        ballot.answers.iter().map(move |(key, answer)| {
            let asked = request.body.clone();
            request = request.again(answer.text.as_deref().unwrap_or_default().trim());
            let Form { vote, wording, .. } = ballot.form;
            Exchange { vote, wording, key, request: asked, answer }
        })
    });
    Told { field, grounds: Grounds::of(judged), exchanges: exchanges.collect() }
}

/// Returns one record of a file without keeping the others.
fn nth(input: &std::path::Path, index: usize) -> Result<Record> {
    for (at, record) in shared::input::records::<Record>(input)?.enumerate() {
        if at == index {
            return Ok(record?);
        }
    }
    Err(shared::Error::Config(format!("{}: there is no record {index}", input.display())).into())
}

fn explain_answer(key: &str, ledger: &Ledger) -> Result<Outcome> {
    match ledger.answer(key)? {
        Some(answer) => {
            table::print_json(&answer)?;
            Ok(Outcome::Complete)
        }
        None => {
            println!("the ledger holds no answer with the key {key}");
            Ok(Outcome::Incomplete)
        }
    }
}

fn print(index: usize, prompt: &str, responses: [&str; 2], model: &Model, judged: &[Judged], told: &[Told<'_>]) {
    println!("record {index}, judged by {}", model.name);
    println!("prompt: {prompt}");
    for ((response, judged), told) in responses.iter().zip(judged).zip(told) {
        println!("\n{}: {response}", told.field);
        print_judged(judged, told);
    }
}

fn print_judged(judged: &Judged, told: &Told<'_>) {
    println!("  item       {}", judged.item);
    println!("  verdict    {}", told.grounds.said());
    if let Some(confidence) = judged.confidence {
        println!("  confidence {confidence:.3}");
    }
    if let Some(review) = &judged.review {
        println!("  by         {}, {}", review.by, ago(review.at_ms));
    }
    if let Some(cost) = cost(&judged.ballots).filter(|_| !judged.ballots.is_empty()) {
        println!("  cost       ${cost:.6}");
    }
    for exchange in &told.exchanges {
        print_exchange(exchange);
    }
}

fn print_exchange(exchange: &Exchange<'_>) {
    let wording = match exchange.wording {
        Wording::Plain => "",
        Wording::Swapped => ", swapped wording",
    };
    println!("  vote {}{wording}: request {}", exchange.vote, exchange.key);
    print_answer(&exchange.request, exchange.answer);
}

fn print_answer(request: &Value, answer: &Answer) {
    let Answer {
        text, refusal, finish, model, tokens, at_ms, fingerprint, attempts, cost_usd, endpoint, batch, ..
    } = answer;
    for message in request["messages"].as_array().into_iter().flatten() {
        let said = message["content"].as_str().unwrap_or_default();
        println!("    {:<9} {}", message["role"].as_str().unwrap_or_default(), said.replace('\n', "\n              "));
    }
    let of = |name: &str| request.get(name).map(|value| format!(" {name} {value}")).unwrap_or_default();
    println!("    asked    {}{}", request["model"], ["temperature", "seed"].map(of).concat());
    let said = text.as_deref().or(refusal.as_deref()).unwrap_or("(no text)");
    println!("    answer    {said:?} (finish_reason {finish:?})");
    println!("    model     {model}{}", fingerprint.as_ref().map(|print| format!(", {print}")).unwrap_or_default());
    println!("    tokens    {} + {} ({} cached)", tokens.prompt, tokens.completion, tokens.cached);
    let cost = cost_usd.map_or("not known".to_owned(), |cost| format!("${cost:.6}"));
    println!("    cost      {cost}, attempts {attempts}, {}", ago(*at_ms));
    if !endpoint.is_empty() {
        println!("    endpoint  {endpoint}");
    }
    if let Some(batch) = batch {
        println!("    batch     {batch}");
    }
}

fn ago(at_ms: u64) -> String {
    let minutes = now_ms().saturating_sub(at_ms) / 60_000;
    match minutes {
        0 => "just now".to_owned(),
        1..120 => format!("{minutes} min ago"),
        120..2880 => format!("{} h ago", minutes / 60),
        _ => format!("{} days ago", minutes / 1440),
    }
}
