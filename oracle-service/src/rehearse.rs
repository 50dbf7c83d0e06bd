//! Rehearses a job: the real engine asks the mock in this process, whose time runs faster than the clock, and what
//! happened is told as duration, price and failures of the whole job.
//!
//! A sample of the pairs is asked about; the whole job follows by proportion. What of the client is not scaled (its
//! back-off, its disk) takes as long as it takes, and counts for more in the mock's time: the duration is an upper bound,
//! and the lower one, from limits and latency alone, stands beside it.

mod forecast;
mod job;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use shared::rules::Judge;

use crate::Outcome;
use crate::api::endpoint::Endpoints;
use crate::api::engine::{Asked, Engine, Home, Setup};
use crate::api::ledger::Ledger;
use crate::api::options::DEADLINE;
use crate::api::pacer::PerMinute;
use crate::api::reading::{Reading, read};
use crate::api::request::{Form, Model, Request};
use crate::error::{Error, Result};
use crate::mock::Mock;
use crate::table::print_json;
use forecast::{Forecast, Rehearsed};
use job::Job;
use shared::prices::Prices;

/// Runs a job's shape against the mock, faster than the clock, and tells its duration, price and failures
///
/// JOB.toml gives pairs, prompt_tokens, response_tokens, policy, model and concurrency, and under [server] what the API is
/// expected to do: limits, latency and failures, as in the plan of `oracle-service mock`. Nothing is sent to anyone, no key
/// is needed.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The job's shape (TOML)
    #[arg(value_name = "JOB.toml")]
    job: PathBuf,
    /// How much faster than the clock, at most; less where this machine could not follow
    #[arg(long, value_name = "FACTOR", default_value_t = 100.0, value_parser = crate::mock::speed)]
    speed: f64,
    /// Pairs that are really asked about; the whole job follows by proportion
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..))]
    sample: u64,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Real requests per second that any machine and build can follow.
const FOLLOWED_PER_S: f64 = 400.0;
/// After so long without anything happening the job is taken to have stopped.
const STILL: Duration = Duration::from_secs(150);

/// What is counted while the sample is asked about.
#[derive(Debug, Default)]
struct Seen {
    answered: AtomicU64,
    unclear: AtomicU64,
    dead: std::sync::Mutex<BTreeMap<String, u64>>,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let job = Job::load(&args.job)?;
    let prices = Prices::load(job.prices.as_deref())?;
    let forecast = crate::block_on(rehearse(&job, args, prices))?;
    if args.json {
        print_json(&forecast)?;
    } else {
        print!("{}", forecast.table());
    }
    Ok(Outcome::Complete)
}

async fn rehearse(job: &Job, args: &Args, prices: Prices) -> Result<Forecast> {
    let ceiling = forecast::ceiling(&job.server, job.concurrency, job.tokens_of_a_question());
    let speed = ceiling.map_or(args.speed, |ceiling| args.speed.min((FOLLOWED_PER_S / ceiling).max(1.0)));
    let sample = args.sample.min(job.pairs);
    let folder = tempfile::tempdir().map_err(|source| shared::Error::io("create", &std::env::temp_dir(), source))?;
    let mock = Arc::new(Mock::new(rules(folder.path())?, &job.model, job.server.clone(), speed)?);
    let cannot = |error: std::io::Error| Error::Serve(error.to_string());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.map_err(cannot)?;
    let url = format!("http://{}/v1", listener.local_addr().map_err(cannot)?);
    let home = Home::new(Ledger::open(&folder.path().join("state"))?);
    let engine = engine(&home, &url, job, prices)?;
    let seen = Seen::default();
    let begun = Instant::now();
    let stopped = tokio::select! {
        served = mock.clone().serve(listener) => return served.and(Err(Error::Serve("the mock ended".into()))),
        outcome = ask_all(job, sample, &engine, &seen) => outcome.err().map(|error| error.to_string()),
        () = nothing_happens(&mock, &seen) => Some(engine.waiting().unwrap_or_else(|| "it waits for ever".to_owned())),
    };
    let bill = engine.bill();
    let rehearsed = Rehearsed {
        speed,
        questions: 2 * sample,
        answered: seen.answered.load(Ordering::Relaxed),
        unclear: seen.unclear.load(Ordering::Relaxed),
        dead: seen.dead.lock().map(|dead| dead.clone()).unwrap_or_default(),
        wall_s: begun.elapsed().as_secs_f64(),
        ceiling_per_s: ceiling,
        cost_usd: (bill.unpriced_calls == 0).then_some(bill.cost_usd),
        prompt_tokens: bill.prompt_tokens,
        cached_tokens: bill.cached_tokens,
        completion_tokens: bill.completion_tokens,
        prices: bill.prices,
        paid_twice: mock.paid_twice(),
        stats: mock.stats(),
        stopped,
    };
    Ok(Forecast::of(rehearsed, 2 * job.pairs))
}

/// Returns the engine as a job has it.
fn engine(home: &Home, url: &str, job: &Job, prices: Prices) -> Result<Engine> {
    let setup = Setup {
        endpoints: Endpoints::single(url, "rehearsal".to_owned().into(), PerMinute::default()),
        model: job.model.clone(),
        concurrency: job.concurrency,
        prices,
        account: "rehearsal".to_owned(),
        bill: None,
        max_cost_usd: None,
        deadline: DEADLINE,
        is_patient: false,
        fault: None,
    };
    Engine::new(home, setup)
}

/// Returns the question about one response.
fn question(model: &Model, prompt: &str, response: &str) -> Request {
    model.verdict(prompt, response, Form::default())
}

async fn ask_all(job: &Job, sample: u64, engine: &Engine, seen: &Seen) -> Result<()> {
    let model = Model { name: job.model.clone(), policy: job.policy_text.clone(), completion_tokens_key: false };
    let questions = (0..sample).flat_map(|pair| [(pair, false), (pair, true)]).map(|(pair, rejected)| {
        let (prompt, response) = job.texts(pair, rejected);
        question(&model, &prompt, &response)
    });
    let asked = futures::stream::iter(questions)
        .map(|question| async move { engine.ask(&question).await })
        // As triage does: those that wait for their next try keep no place from others.
        .buffer_unordered(4 * job.concurrency);
    futures::pin_mut!(asked);
    while let Some(asked) = asked.next().await {
        seen.note(asked?);
    }
    Ok(())
}

/// Returns when neither the client nor the mock has done anything for long.
async fn nothing_happens(mock: &Mock, seen: &Seen) {
    let (mut last, mut since) = ((0, 0), Instant::now());
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = (mock.stats().requests, seen.answered.load(Ordering::Relaxed));
        if now != last {
            (last, since) = (now, Instant::now());
        } else if since.elapsed() > STILL {
            return;
        }
    }
}

impl Seen {
    fn note(&self, asked: Asked) {
        let reason = match asked {
            Asked::Answered(answer) => match (answer.text, answer.refusal) {
                (Some(text), _) => {
                    self.answered.fetch_add(1, Ordering::Relaxed);
                    if read(&text) == Reading::Unclear {
                        self.unclear.fetch_add(1, Ordering::Relaxed);
                    }
                    return;
                }
                (None, Some(_)) => "the model refused".to_owned(),
                (None, None) => format!("the model sent no text (finish_reason {:?})", answer.finish),
            },
            Asked::Dead(reason) => reason,
        };
        if let Ok(mut dead) = self.dead.lock() {
            *dead.entry(reason).or_default() += 1;
        }
    }
}

/// Returns a judge that finds a violation where the job's texts have one.
fn rules(folder: &std::path::Path) -> Result<Judge> {
    let file = folder.join("rules.toml");
    let text = format!(
        "default = \"COMPLIANT\"\n[[rule]]\npattern = \"{}\"\napplies_to = \"response\"\nverdict = \"NON-COMPLIANT\"\n",
        job::VIOLATION
    );
    std::fs::write(&file, text).map_err(|source| shared::Error::io("write", &file, source))?;
    Ok(Judge::load(&file)?)
}
