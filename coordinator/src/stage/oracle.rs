//! Stages that the oracle service carries out: asked for over gRPC, waited for, paid.
//!
//! The service's ledger makes asking again safe: what has an answer costs nothing, and what the stage paid in earlier
//! attempts is on the bill of its last. So a service that is away is waited for and asked again; only its own refusals end
//! the stage. A job that pauses (quota, key, cost limit, an operator's word) keeps its stream and says why in its progress;
//! it goes on when it is resumed there, or its limit raised.

use std::path::Path;
use std::time::Duration;

use proto::oracle::job::Work as Asked;
use proto::oracle::job_event::Event;
use proto::oracle::oracle_client::OracleClient;
use proto::oracle::{Correct, Ended, Job, Judge, Triage};
use serde_json::{Value, json};
use shared::net::SendToken;
use shared::output::{sibling, write_json};
use shared::policy_shift::Policy;
use shared::{Error, Result, input, rules};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::{Bill, Context, Progress, manifest};
use crate::plan::Work;
use crate::run_file::Mock;

/// A service that says nothing for so long is given up.
const PATIENCE: Duration = Duration::from_secs(300);
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

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
    let mut account = Account::open(&file);
    let (mut tries, mut away) = (0, Duration::ZERO);
    loop {
        let status = match client.run(job.clone()).await {
            Err(status) => status,
            Ok(events) => {
                let mut events = events.into_inner();
                loop {
                    let event = match events.message().await {
                        Ok(Some(event)) => event,
                        Ok(None) => break Status::unavailable("the job ended without a result"),
                        Err(status) => break status,
                    };
                    (tries, away) = (0, Duration::ZERO);
                    match event.event {
                        Some(Event::Progress(now)) => {
                            if let Some(bill) = &now.bill {
                                account.charge(bill);
                            }
                            account.save_now_and_then(&file)?;
                            let cost_usd = account.bill.cost_usd;
                            let note = note(&now);
                            progress(Progress { done: now.done, total: now.total, cost_usd, note });
                        }
                        Some(Event::Ended(ended)) => {
                            if let Some(bill) = &ended.bill {
                                account.settle(bill);
                            }
                            account.save(&file)?;
                            return Ok(ended);
                        }
                        None => {}
                    }
                }
            }
        };
        account.save(&file)?;
        if !may_come_back(status.code()) {
            return Err(Error::Config(format!("the oracle service: {}", status.message())));
        }
        if away >= PATIENCE {
            return Err(Error::Config(format!(
                "no oracle service answers at {} since {} s ({}); start it and submit the run again: what was answered \
                 is kept",
                address.url,
                away.as_secs(),
                status.message()
            )));
        }
        tries += 1;
        let wait = wait(tries);
        let note = format!("waiting for the oracle service at {} ({})", address.url, status.message());
        progress(Progress { note, cost_usd: account.bill.cost_usd, ..Progress::default() });
        tokio::time::sleep(wait).await;
        away += wait;
    }
}

/// Returns what a job waits for and what it will cost, for people.
fn note(now: &proto::oracle::Progress) -> String {
    let mut parts = Vec::new();
    if !now.note.is_empty() {
        parts.push(now.note.clone());
    }
    if let Some(projected) = now.projected_usd {
        let cap = now.bill.as_ref().and_then(|bill| bill.cap_usd);
        parts.push(match cap {
            Some(cap) => format!("about ${projected:.2} at the end, the run's limit is ${cap:.2}"),
            None => format!("about ${projected:.2} at the end"),
        });
    }
    parts.join("; ")
}

/// Returns how long to wait before asking for the n-th time again.
fn wait(tries: u32) -> Duration {
    FIRST_WAIT.saturating_mul(1 << (tries - 1).min(10)).min(LONGEST_WAIT)
}

/// Returns whether a failed call says that the service is gone, not that it refuses.
fn may_come_back(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Aborted | Code::Internal)
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

/// What a stage has cost. The service counts what earlier attempts paid, as it comes to their answers again: until it has
/// come to all of them, the account stands where they left it.
struct Account {
    bill: Bill,
    saved: u64,
}

/// Calls after which the account is saved while the work goes on.
const SAVE_EVERY: u64 = 50;

impl Account {
    fn open(file: &Path) -> Account {
        let bill: Bill = if file.exists() { input::read_json(file).unwrap_or_default() } else { Bill::default() };
        Account { saved: bill.calls, bill }
    }

    /// Takes a bill on its way.
    fn charge(&mut self, bill: &proto::oracle::Bill) {
        if bill.calls >= self.bill.calls {
            self.settle(bill);
        }
    }

    /// Takes the last bill, which is the whole.
    fn settle(&mut self, bill: &proto::oracle::Bill) {
        self.bill = Bill {
            calls: bill.calls,
            reused: bill.reused,
            prompt_tokens: bill.prompt_tokens,
            completion_tokens: bill.completion_tokens,
            cached_tokens: bill.cached_tokens,
            cost_usd: bill.cost_usd,
            prices: bill.prices.clone(),
        };
    }

    fn save(&mut self, file: &Path) -> Result<()> {
        self.saved = self.bill.calls;
        write_json(file, &self.bill)
    }

    fn save_now_and_then(&mut self, file: &Path) -> Result<()> {
        if self.bill.calls >= self.saved + SAVE_EVERY { self.save(file) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bill(calls: u64, reused: u64) -> proto::oracle::Bill {
        proto::oracle::Bill { calls, reused, cost_usd: calls as f64, ..Default::default() }
    }

    #[test]
    fn an_account_stands_until_the_next_attempt_has_come_so_far_and_the_last_bill_is_the_whole() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("bill.json");
        let mut first = Account::open(&file);
        first.charge(&bill(40, 10));
        first.save(&file).unwrap();
        // Cut off; the next attempt comes to its 40 answers, to three more that were paid and not told, and to new ones.
        let mut second = Account::open(&file);
        let mut after = |calls, reused| {
            second.charge(&bill(calls, reused));
            (second.bill.calls, second.bill.reused, second.bill.cost_usd)
        };
        assert_eq!(after(5, 1), (40, 10, 40.0));
        assert_eq!(after(43, 10), (43, 10, 43.0));
        assert_eq!(after(103, 10), (103, 10, 103.0));
        second.settle(&bill(100, 10));
        second.save(&file).unwrap();
        assert_eq!(Account::open(&file).bill.calls, 100);
    }

    #[test]
    fn a_note_says_what_a_job_waits_for_and_what_it_will_cost() {
        let mut now = proto::oracle::Progress::default();
        assert_eq!(note(&now), "");
        now.projected_usd = Some(12.345);
        assert_eq!(note(&now), "about $12.35 at the end");
        now.note = "paused: the quota".into();
        now.bill = Some(proto::oracle::Bill { cap_usd: Some(20.0), ..Default::default() });
        assert_eq!(note(&now), "paused: the quota; about $12.35 at the end, the run's limit is $20.00");
    }

    #[test]
    fn waits_grow_to_a_bound() {
        assert_eq!(wait(1), FIRST_WAIT);
        assert!(wait(3) > wait(2));
        assert_eq!(wait(40), LONGEST_WAIT);
    }
}
