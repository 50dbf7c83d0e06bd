//! What operators do to a service's jobs while they run: look, pause, resume, retune.

use std::path::{Path, PathBuf};

use proto::oracle::oracle_client::OracleClient;
use proto::oracle::{Changed, EndpointStatus, JobSelection, JobStatus, RetuneRequest, StatusReply, StatusRequest};
use serde::Serialize;
use shared::net::{SendToken, Token};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

use crate::api::options::amount;
use crate::error::{Error, Result};
use crate::{Outcome, table};

/// Where the service is.
#[derive(Debug, clap::Args)]
struct ServiceArgs {
    /// Address of the oracle service
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7401", env = "TRACE_ORACLE")]
    service: String,
    /// File with the cluster's token, instead of TRACE_TOKEN
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// Which jobs are meant.
#[derive(Debug, clap::Args)]
struct SelectionArgs {
    /// Run whose jobs are meant; all where none is named
    #[arg(long, value_name = "RUN")]
    run: Option<String>,
    /// Stage whose jobs are meant
    #[arg(long, value_name = "STAGE")]
    stage: Option<String>,
}

/// Shows what a service's jobs do, cost and wait for
///
/// By job: how far it is, what was asked and what was reused, cost so far, at the end and by item, tokens and how many of
/// them were cached, the limits that hold at each endpoint, and why it is paused where it is.
#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    service: ServiceArgs,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

/// Stops jobs of a service from sending; what is on its way is still stored
#[derive(Debug, clap::Args)]
pub(crate) struct PauseArgs {
    #[command(flatten)]
    service: ServiceArgs,
    #[command(flatten)]
    jobs: SelectionArgs,
}

/// Lets paused jobs go on, and looks at once whether an API that refused still does
#[derive(Debug, clap::Args)]
pub(crate) struct ResumeArgs {
    #[command(flatten)]
    service: ServiceArgs,
    #[command(flatten)]
    jobs: SelectionArgs,
}

/// Changes limits of a service's jobs while they run
///
/// A raised cost limit lets a job that paused at it go on, and is kept: it holds for the run, in place of its file's, after a
/// restart too, until the file says something new. The other limits hold until the service ends; write them into the run
/// file, too, if they are to hold beyond.
#[derive(Debug, clap::Args)]
pub(crate) struct RetuneArgs {
    #[command(flatten)]
    service: ServiceArgs,
    #[command(flatten)]
    jobs: SelectionArgs,
    /// Requests of a job on their way at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    concurrency: Option<u32>,
    /// Endpoint the limits are of; all of the jobs' where none is named
    #[arg(long, value_name = "NAME")]
    endpoint: Option<String>,
    /// Requests a minute at most; 0 takes the limit away
    #[arg(long, value_name = "N")]
    rpm: Option<f64>,
    /// Tokens a minute at most; 0 takes the limit away
    #[arg(long, value_name = "N")]
    tpm: Option<f64>,
    /// The endpoint's share of the requests
    #[arg(long, value_name = "N", value_parser = amount)]
    weight: Option<f64>,
    /// What the run may cost in all; 0 takes the limit away
    #[arg(long, value_name = "USD")]
    max_cost_usd: Option<f64>,
}

type Client = OracleClient<InterceptedService<Channel, SendToken>>;

pub(crate) fn status(args: &StatusArgs) -> Result<Outcome> {
    let status = call(&args.service, async |mut client| Ok(client.status(StatusRequest {}).await?.into_inner()))?;
    if args.json {
        table::print_json(&Shown::of(&status))?;
    } else {
        print(&status);
    }
    Ok(Outcome::Complete)
}

pub(crate) fn pause(args: &PauseArgs) -> Result<Outcome> {
    let jobs = args.jobs.selection();
    let changed = call(&args.service, async |mut client| Ok(client.pause(jobs).await?.into_inner()))?;
    tell("paused", &changed)
}

pub(crate) fn resume(args: &ResumeArgs) -> Result<Outcome> {
    let jobs = args.jobs.selection();
    let changed = call(&args.service, async |mut client| Ok(client.resume(jobs).await?.into_inner()))?;
    tell("resumed", &changed)
}

pub(crate) fn retune(args: &RetuneArgs) -> Result<Outcome> {
    let request = RetuneRequest {
        jobs: Some(args.jobs.selection()),
        concurrency: args.concurrency,
        endpoint: args.endpoint.clone().unwrap_or_default(),
        requests_per_minute: args.rpm,
        tokens_per_minute: args.tpm,
        weight: args.weight,
        max_cost_usd: args.max_cost_usd,
    };
    let changed = call(&args.service, async |mut client| Ok(client.retune(request).await?.into_inner()))?;
    tell("retuned", &changed)
}

impl SelectionArgs {
    fn selection(&self) -> JobSelection {
        JobSelection { run: self.run.clone().unwrap_or_default(), stage: self.stage.clone().unwrap_or_default() }
    }
}

/// Calls the service.
fn call<T>(args: &ServiceArgs, ask: impl AsyncFnOnce(Client) -> std::result::Result<T, tonic::Status>) -> Result<T> {
    call_at(&args.service, args.token_file.as_deref(), async |channel, token| {
        ask(OracleClient::with_interceptor(channel, token).max_decoding_message_size(proto::MAX_MESSAGE_BYTES)).await
    })
}

/// Calls the service at an address.
///
/// # Errors
/// It cannot be reached, or says no.
pub(crate) fn call_at<T>(
    url: &str,
    token_file: Option<&Path>,
    ask: impl AsyncFnOnce(Channel, SendToken) -> std::result::Result<T, tonic::Status>,
) -> Result<T> {
    let token = Token::load(std::env::var("TRACE_TOKEN").ok().as_deref(), token_file)?;
    crate::block_on(async {
        let said = ask(shared::net::channel(url)?, SendToken(token)).await;
        said.map_err(|status| Error::Service { url: url.to_owned(), problem: status.message().to_owned() })
    })
}

fn tell(what: &str, changed: &Changed) -> Result<Outcome> {
    for job in &changed.jobs {
        println!("{what}: {job}");
    }
    Ok(Outcome::Complete)
}

fn print(status: &StatusReply) {
    println!("{} answers in {}, {} jobs", status.answers, status.state_dir, status.running.len());
    for job in &status.running {
        println!("\n{}", text(job));
    }
}

/// Returns a job's state for people.
fn text(job: &JobStatus) -> String {
    let progress = job.progress.clone().unwrap_or_default();
    let bill = progress.bill.clone().unwrap_or_default();
    let usd = |amount: Option<f64>| amount.map_or("not known yet".to_owned(), |amount| format!("${amount:.4}"));
    let mut lines = vec![format!("{}/{} asks {}", job.run, job.stage, job.model)];
    let mut line = |name: &str, value: String| lines.push(format!("  {name:<12} {value}"));
    line("done", format!("{} of {}", progress.done, progress.total));
    line("answers", format!("{} asked for, {} reused", bill.calls, bill.reused));
    line(
        "tokens",
        format!(
            "{} sent ({} of them cached), {} received",
            bill.prompt_tokens, bill.cached_tokens, bill.completion_tokens
        ),
    );
    line("cost", format!("${:.4}; at the end {}", bill.cost_usd, usd(progress.projected_usd)));
    line("per item", usd(progress.usd_per_item));
    line(
        "the run",
        format!("${:.4} paid, ${:.4} may have been, limit {}", bill.account_usd, bill.lost_usd, limit(bill.cap_usd)),
    );
    line("in flight", format!("{} of {}", job.in_flight, job.concurrency));
    for endpoint in &job.endpoints {
        line("endpoint", endpoint_text(endpoint));
    }
    if !job.paused.is_empty() {
        line("paused", job.paused.clone());
    } else if !progress.note.is_empty() {
        line("waits for", progress.note.clone());
    }
    lines.join("\n")
}

fn limit(cap: Option<f64>) -> String {
    cap.map_or("none".to_owned(), |cap| format!("${cap:.4}"))
}

fn endpoint_text(endpoint: &EndpointStatus) -> String {
    let per_minute = |limit: Option<f64>| limit.map_or("no limit known".to_owned(), |limit| format!("{limit:.0}"));
    let mut text = format!(
        "{}: {} in flight, {:.0} requests/min (limit {}), tokens/min limit {}, {} refused (429)",
        endpoint.name,
        endpoint.in_flight,
        endpoint.sent_per_minute,
        per_minute(endpoint.requests_per_minute),
        per_minute(endpoint.tokens_per_minute),
        endpoint.refusals
    );
    if !endpoint.halted.is_empty() {
        text += &format!("; not used: {}", endpoint.halted);
    }
    text
}

/// A service's state for scripts.
#[derive(Serialize)]
struct Shown<'a> {
    version: &'a str,
    state_dir: &'a str,
    answers: u64,
    jobs: Vec<ShownJob<'a>>,
}

#[derive(Serialize)]
struct ShownJob<'a> {
    run: &'a str,
    stage: &'a str,
    model: &'a str,
    done: u64,
    total: u64,
    calls: u64,
    reused: u64,
    prompt_tokens: u64,
    cached_tokens: u64,
    completion_tokens: u64,
    cost_usd: f64,
    projected_usd: Option<f64>,
    usd_per_item: Option<f64>,
    run_usd: f64,
    lost_usd: f64,
    cap_usd: Option<f64>,
    in_flight: u32,
    concurrency: u32,
    paused: Option<&'a str>,
    waits_for: Option<&'a str>,
    endpoints: Vec<ShownEndpoint<'a>>,
}

#[derive(Serialize)]
struct ShownEndpoint<'a> {
    name: &'a str,
    in_flight: u32,
    weight: f64,
    requests_per_minute: Option<f64>,
    tokens_per_minute: Option<f64>,
    sent_per_minute: f64,
    refusals: u64,
    halted: Option<&'a str>,
}

impl<'a> Shown<'a> {
    fn of(status: &'a StatusReply) -> Shown<'a> {
        Shown {
            version: &status.version,
            state_dir: &status.state_dir,
            answers: status.answers,
            jobs: status.running.iter().map(ShownJob::of).collect(),
        }
    }
}

fn said(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

impl<'a> ShownJob<'a> {
    fn of(job: &'a JobStatus) -> ShownJob<'a> {
        let progress = job.progress.as_ref();
        let bill = progress.and_then(|progress| progress.bill.clone()).unwrap_or_default();
        ShownJob {
            run: &job.run,
            stage: &job.stage,
            model: &job.model,
            done: progress.map_or(0, |progress| progress.done),
            total: progress.map_or(0, |progress| progress.total),
            calls: bill.calls,
            reused: bill.reused,
            prompt_tokens: bill.prompt_tokens,
            cached_tokens: bill.cached_tokens,
            completion_tokens: bill.completion_tokens,
            cost_usd: bill.cost_usd,
            projected_usd: progress.and_then(|progress| progress.projected_usd),
            usd_per_item: progress.and_then(|progress| progress.usd_per_item),
            run_usd: bill.account_usd,
            lost_usd: bill.lost_usd,
            cap_usd: bill.cap_usd,
            in_flight: job.in_flight,
            concurrency: job.concurrency,
            paused: said(&job.paused),
            waits_for: progress.and_then(|progress| said(&progress.note)),
            endpoints: job.endpoints.iter().map(ShownEndpoint::of).collect(),
        }
    }
}

impl<'a> ShownEndpoint<'a> {
    fn of(endpoint: &'a EndpointStatus) -> ShownEndpoint<'a> {
        ShownEndpoint {
            name: &endpoint.name,
            in_flight: endpoint.in_flight,
            weight: endpoint.weight,
            requests_per_minute: endpoint.requests_per_minute,
            tokens_per_minute: endpoint.tokens_per_minute,
            sent_per_minute: endpoint.sent_per_minute,
            refusals: endpoint.refusals,
            halted: said(&endpoint.halted),
        }
    }
}
