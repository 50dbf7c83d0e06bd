//! Stages that the oracle service carries out: asked for over gRPC, waited for, paid.
//!
//! The service's ledger makes asking again safe: what has an answer costs nothing, and what the stage paid in earlier
//! attempts is on the bill of its last. So a service that is away is waited for and asked again; only its own refusals end
//! the stage ([`super::asking`]). A job that pauses (quota, key, cost limit, an operator's word) keeps its stream and says why
//! in its progress; it goes on when it is resumed there, or its limit raised.

use std::path::Path;

use proto::oracle::job::Work as Asked;
use proto::oracle::oracle_client::OracleClient;
use proto::oracle::{Correct, Ended, Job, JobEvent, Judge, Triage};
use serde_json::{Value, json};
use shared::net::SendToken;
use shared::output::{sibling, write_json};
use shared::policy_shift::Policy;
use shared::{Error, Result, input, rules};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::asking::{Asking, Next};
use super::{Bill, Context, Progress, manifest};
use crate::plan::Work;
use crate::run_file::Mock;

/// Returns what shapes the oracle's verdicts: model, policy, and how the question is put where it is not the plain one. Its
/// address does not; an answer is the same elsewhere.
pub(super) fn identity(context: &Context) -> Result<Value> {
    let hash = blake3::hash(policy(context)?.as_bytes()).to_hex();
    let oracle = &context.file.oracle;
    let mut identity = json!({"model": oracle.model, "policy": hash.as_str()});
    let judging = oracle.judging.identity();
    if !judging.is_null() {
        identity["judging"] = judging;
    }
    Ok(identity)
}

/// Returns the policy's text. A mock answers by its rules; there the text names them, so that a mock of others refuses.
fn policy(context: &Context) -> Result<String> {
    let oracle = &context.file.oracle;
    let read = |file: &Path| std::fs::read_to_string(file).map_err(|source| Error::io("read", file, source));
    match (&oracle.policy, &oracle.mock) {
        (Some(file), _) => match read(file)?.trim() {
            "" => Err(Error::file(file, "is empty; it must hold the policy's text")),
            text => Ok(text.to_owned()),
        },
        (None, Some(Mock::Rules(file))) => Ok(rules::policy_text(rules::Judge::load(file)?.identity())),
        (None, _) => Ok(rules::policy_text(&rules::world_identity(context.file.run.seed, Policy::New))),
    }
}

fn job(context: &Context, stage: usize) -> Result<Job> {
    let oracle = &context.file.oracle;
    let base_url = oracle.base_url.clone().or_else(|| context.oracle.as_ref().and_then(|address| address.mock.clone()));
    let base_url = base_url.ok_or_else(|| {
        Error::Config(
            "the run asks for a mock of the oracle and this cluster has none: use `coordinator run --local`, or start \
             `oracle-service mock` and set oracle.base_url to its address"
                .into(),
        )
    })?;
    let path = |path: std::path::PathBuf| path.display().to_string();
    let gold = context.at("triage/gold.json");
    let work = match context.plan.stages[stage].work {
        Work::Triage => Asked::Triage(Triage {
            input: path(context.pairs()),
            output: path(gold),
            ckpt_dir: path(context.at("triage/checkpoints")),
            ckpt_every: oracle.ckpt_every,
            both: oracle.both,
            one_call: oracle.judging.one_call_per_pair,
            relabel: oracle.judging.relabel,
        }),
        Work::Correct => Asked::Correct(Correct {
            input: path(gold),
            output: path(context.at("triage/corrected.json")),
            max_tokens: oracle.max_tokens,
            tries: oracle.judging.correction_tries,
        }),
        Work::Judge(variant) => Asked::Judge(Judge {
            responses: path(context.of_variant(variant, "responses_test.json")),
            output: path(context.of_variant(variant, "judged_test.json")),
            world: if context.file.in_world() { path(context.at("world/rules_new.toml")) } else { String::new() },
        }),
        other => unreachable!("{other:?} is no work of the oracle service"),
    };
    Ok(Job {
        run: context.plan.run.clone(),
        stage: context.plan.stages[stage].name.clone(),
        work: Some(work),
        model: oracle.model.clone(),
        base_url,
        policy: policy(context)?,
        concurrency: oracle.concurrency,
        prices: oracle.prices.clone().map(path).unwrap_or_default(),
        bill: manifest::bill_name(&context.paths(stage)),
        mode: oracle.mode.clone(),
        deadline_s: oracle.deadline_h * 3600.0,
        online_rpm: oracle.online_rpm,
        endpoints: oracle.endpoints.clone().map(path).unwrap_or_default(),
        max_cost_usd: oracle.max_cost_usd,
        requests_per_minute: oracle.requests_per_minute,
        tokens_per_minute: oracle.tokens_per_minute,
        votes: oracle.judging.votes,
        swap_wording: oracle.judging.swap_wording,
        logprobs: oracle.judging.logprobs,
        min_confidence: oracle.judging.min_confidence,
        canary: oracle.judging.canary.clone().map(path).unwrap_or_default(),
        canary_stop: oracle.judging.canary_stop,
        canary_tolerance: oracle.judging.canary_tolerance_pct,
    })
}

/// Carries a stage out: asks until it is done.
pub(super) async fn carry_out(
    context: &Context,
    stage: usize,
    progress: &(dyn Fn(Progress) + Send + Sync),
    stop: CancellationToken,
) -> Result<()> {
    let job = job(context, stage)?;
    let ended = tokio::select! {
        ended = ask(context, stage, &job, progress) => ended?,
        () = stop.cancelled() => return Err(Error::Config("stopped".into())),
    };
    check(context, stage, &ended)
}

async fn ask(context: &Context, stage: usize, job: &Job, progress: &(dyn Fn(Progress) + Send + Sync)) -> Result<Ended> {
    let address = context.oracle.as_ref().ok_or_else(|| Error::Config("no oracle service is named".into()))?;
    let channel = shared::net::channel(&address.url)?;
    let mut client = OracleClient::with_interceptor(channel, SendToken(address.token.clone()))
        .max_decoding_message_size(proto::MAX_MESSAGE_BYTES);
    let file = context.paths(stage).bill();
    let paid = if file.exists() { input::read_json(&file).unwrap_or_default() } else { Bill::default() };
    let mut asking = Asking::new(address.url.clone(), paid);
    let mut events: Option<Streaming<JobEvent>> = None;
    loop {
        let next = match &mut events {
            None => match client.run(job.clone()).await {
                Ok(opened) => {
                    events = Some(opened.into_inner());
                    continue;
                }
                Err(status) => asking.failed(&status),
            },
            Some(events) => match events.message().await {
                Ok(Some(event)) => asking.heard(event.event),
                Ok(None) => asking.failed(&Status::unavailable("the job ended without a result")),
                Err(status) => asking.failed(&status),
            },
        };
        if asking.is_to_be_saved(&next) {
            write_json(&file, asking.bill())?;
        }
        match next {
            Next::Listen(now) => now.into_iter().for_each(progress),
            Next::Ask { after, told } => {
                progress(told);
                tokio::time::sleep(after).await;
                events = None;
            }
            Next::Done(ended) => return Ok(ended),
            Next::GiveUp(problem) => return Err(Error::Config(problem)),
        }
    }
}

/// Fails a stage that has left too much without an answer.
fn check(context: &Context, stage: usize, ended: &Ended) -> Result<()> {
    let without = ended.uncertain + ended.dead_letter;
    let limit = context.file.oracle.max_unlabelled_pct;
    let (what, total, files) = match context.plan.stages[stage].work {
        Work::Triage => {
            let gold = context.at("triage/gold.json");
            let labelled = serde_json::from_str::<Value>(&ended.summary_json).ok();
            let labelled = labelled.and_then(|summary| summary["total"].as_u64()).unwrap_or(0);
            // Each is written only when there is something in it.
            let files = [sibling(&gold, "_uncertain"), sibling(&gold, "_dead_letter")];
            let files: Vec<String> =
                files.iter().filter(|file| file.exists()).map(|file| file.display().to_string()).collect();
            let files = if files.is_empty() { gold.display().to_string() } else { files.join(" and ") };
            ("pairs", labelled + without, files)
        }
        Work::Judge(variant) => {
            let file = context.of_variant(variant, "judged_test.json");
            let judged: Value = input::read_json(&file)?;
            ("responses", judged["results"].as_array().map_or(0, Vec::len) as u64, file.display().to_string())
        }
        // Where there is no correction both responses are punished; that is no missing label, and told when the stage ends.
        _ => return Ok(()),
    };
    let percent = 100.0 * without as f64 / total.max(1) as f64;
    if without > 0 && percent > limit {
        return Err(Error::Config(format!(
            "{without} of {total} {what} ({percent:.1} %) have no verdict, more than the {limit} % allowed: {} uncertain, \
             {} without an answer; see {files}. Submit the run again to ask those without an answer once more, decide the \
             others by hand (oracle-service review), or raise oracle.max_unlabelled_pct",
            ended.uncertain, ended.dead_letter
        )));
    }
    Ok(())
}
