//! The service: jobs over gRPC, all on one ledger, and what operators do to them while they run.

mod jobs;
mod keeper;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use proto::oracle::job::Work;
use proto::oracle::job_event::Event;
use proto::oracle::ledger_keeper_server::LedgerKeeperServer;
use proto::oracle::oracle_server::OracleServer;
use proto::oracle::{Changed, Ended, Job, JobEvent, JobSelection, RetuneRequest, StatusReply, StatusRequest};
use secrecy::SecretString;
use shared::net::{RequireToken, Token};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Response, Status};

use crate::api::batch::{BatchArgs, parse_duration};
use crate::api::endpoint::Endpoints;
use crate::api::engine::{Engine, Handle, Home, Setup};
use crate::api::gate::Retune;
use crate::api::ledger::Ledger;
use crate::api::options::DEADLINE;
use crate::api::pacer::PerMinute;
use crate::api::request::Model;
use crate::canary::{Canary, CanaryArgs};
use crate::error::{Error, Result};
use crate::fault::Fault;
use crate::judging::correcting::CorrectionLimit;
use crate::judging::{Judging, PairForm};
use crate::oracle::{self, Asker, Oracle};
use crate::progress::Progress;
use crate::served::Mark;
use crate::{Outcome, correct, judge, triage};
use jobs::{Jobs, Running, wire};
use keeper::Keeper;
use shared::prices::Prices;

/// Serves jobs of triage, corrections and judging over gRPC
///
/// One ledger serves all jobs; the API's key is this process's own OPENAI_API_KEY. `oracle-service status`, `pause`, `resume`
/// and `retune` look at running jobs and change them. The address is printed once it listens.
/// Off loopback a token is required.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Address to listen at; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7401")]
    listen: SocketAddr,
    /// Folder of the ledger, which keeps every paid answer
    #[arg(long, value_name = "DIR", default_value = "oracle-state")]
    state: PathBuf,
    /// Price table (TOML) instead of the program's own, for jobs that name none
    #[arg(long, value_name = "FILE")]
    prices: Option<PathBuf>,
    /// File with the cluster's token, instead of TRACE_TOKEN
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Longest outage that jobs wait through (90m, 6h, 3d); after it the items that are left at an endpoint that only fails
    /// are listed as dead letters
    #[arg(long, value_name = "TIME", default_value = "6h", value_parser = parse_duration)]
    longest_outage: Duration,
    /// End when standard input ends
    #[arg(long)]
    with_parent: bool,
    /// Planned death, for tests: POINT=N, counted over all jobs
    #[arg(long, value_name = "POINT=N", env = "TRACE_FAULT", hide = true)]
    fault: Option<Fault>,
}

/// Events of a job that wait for a slow reader at most; progress beyond is left out.
const EVENTS: usize = 64;
/// A job that makes no progress says so often how it is: a paused one is not a dead one.
const TELL_EVERY: Duration = Duration::from_secs(2);
const MOST_IN_FLIGHT: u32 = 4096;

struct Service {
    home: Home,
    key: SecretString,
    state: PathBuf,
    prices: Option<PathBuf>,
    jobs: Jobs,
    fault: Option<Fault>,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let token = Token::load(std::env::var("TRACE_TOKEN").ok().as_deref(), args.token_file.as_deref())?;
    shared::net::check_listen(&args.listen, token.as_ref())?;
    Prices::load(args.prices.as_deref())?;
    let service = Service {
        key: oracle::key()?,
        home: Home::new(Ledger::open(&args.state)?).waiting_for(args.longest_outage),
        state: args.state.clone(),
        prices: args.prices.clone(),
        jobs: Jobs::default(),
        fault: args.fault.clone(),
    };
    crate::block_on(serve(args, service, token))?;
    Ok(Outcome::Complete)
}

/// Listens, and says where.
pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener> {
    let cannot = |error: std::io::Error| Error::Serve(format!("{address}: {error}; choose another --listen address"));
    let listener = TcpListener::bind(address).await.map_err(cannot)?;
    println!("listening on http://{}", listener.local_addr().map_err(cannot)?);
    Ok(listener)
}

async fn serve(args: &Args, service: Service, token: Option<Token>) -> Result<()> {
    let stop = shared::shutdown::on_signals(args.with_parent).map_err(|error| Error::Serve(error.to_string()))?;
    let listener = bind(args.listen).await?;
    let address = listener.local_addr().map_err(|error| Error::Serve(error.to_string()))?;
    let _mark = Mark::set(&args.state, &format!("http://{address}"))?;
    let keeper = Keeper { home: service.home.clone(), prices: service.prices.clone() };
    let keeper = LedgerKeeperServer::new(keeper).max_decoding_message_size(proto::MAX_MESSAGE_BYTES);
    let keeper = InterceptedService::new(keeper, RequireToken(token.clone()));
    let service = OracleServer::new(service).max_decoding_message_size(proto::MAX_MESSAGE_BYTES);
    let service = InterceptedService::new(service, RequireToken(token));
    let services = shared::net::server().add_service(service).add_service(keeper);
    let served = services.serve_with_incoming(shared::net::incoming(listener));
    // Jobs go on where they were when they are asked for again; nothing waits for them here.
    tokio::select! {
        served = served => served.map_err(|error| Error::Serve(error.to_string())),
        () = stop.cancelled() => Ok(()),
    }
}

#[tonic::async_trait]
impl proto::oracle::oracle_server::Oracle for Service {
    type RunStream = Pin<Box<dyn futures::Stream<Item = std::result::Result<JobEvent, Status>> + Send>>;

    async fn run(&self, request: Request<Job>) -> std::result::Result<Response<Self::RunStream>, Status> {
        let job = request.into_inner();
        let work = job.work.clone().ok_or_else(|| Status::invalid_argument("the job names no work"))?;
        self.home.heed_cap(&account(&job), job.max_cost_usd).await?;
        let oracle = self.oracle(&job)?;
        tracing::info!(run = job.run, stage = job.stage, model = job.model, "job begins");
        let (events, receiver) = mpsc::channel(EVENTS);
        let running = self.jobs.begin(&job, oracle.handle());
        let runtime = tokio::runtime::Handle::current();
        // Jobs read and write files, so each has a thread of its own.
        tokio::task::spawn_blocking(move || {
            runtime.block_on(async move {
                let gone = events.clone();
                let outcome = tokio::select! {
                    outcome = carry_out(work, &oracle, &events, &running) => Some(outcome),
                    () = tell_now_and_then(&events, &running) => None,
                    () = gone.closed() => None,
                };
                drop(running);
                let bill = oracle.bill().unwrap_or_default();
                let (run, stage) = (&job.run, &job.stage);
                match outcome {
                    Some(Ok(ended)) => {
                        tracing::info!(run, stage, calls = bill.calls, reused = bill.reused, "job ended");
                        let _ = events.send(Ok(JobEvent { event: Some(Event::Ended(ended)) })).await;
                    }
                    Some(Err(error)) => {
                        tracing::warn!(run, stage, %error, "job stopped");
                        let _ = events.send(Err(error.into())).await;
                    }
                    None => tracing::info!(run, stage, calls = bill.calls, "job dropped by who asked for it"),
                }
            })
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn status(&self, _: Request<StatusRequest>) -> std::result::Result<Response<StatusReply>, Status> {
        let answers = self.home.ledger.count().map_err(Error::from)?;
        Ok(Response::new(StatusReply {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state_dir: self.state.display().to_string(),
            answers,
            jobs: self.jobs.count(),
            running: self.jobs.status(),
        }))
    }

    async fn pause(&self, request: Request<JobSelection>) -> std::result::Result<Response<Changed>, Status> {
        self.change(&request.into_inner(), |handle| {
            handle.pause();
            true
        })
    }

    async fn resume(&self, request: Request<JobSelection>) -> std::result::Result<Response<Changed>, Status> {
        self.change(&request.into_inner(), |handle| {
            handle.resume();
            true
        })
    }

    async fn retune(&self, request: Request<RetuneRequest>) -> std::result::Result<Response<Changed>, Status> {
        let request = request.into_inner();
        let numbers = [request.requests_per_minute, request.tokens_per_minute, request.weight, request.max_cost_usd];
        if numbers.iter().flatten().any(|number| !number.is_finite() || *number < 0.0) || request.weight == Some(0.0) {
            return Err(Status::invalid_argument("limits must be numbers from 0, weights above"));
        }
        let retune = Retune {
            concurrency: request.concurrency.map(|concurrency| concurrency.clamp(1, MOST_IN_FLIGHT) as usize),
            endpoint: Some(request.endpoint).filter(|name| !name.is_empty()),
            requests_per_minute: request.requests_per_minute,
            tokens_per_minute: request.tokens_per_minute,
            weight: request.weight,
        };
        let kept = Mutex::new(Vec::new());
        let changed = self.change(&request.jobs.unwrap_or_default(), |handle| {
            let is_done = handle.retune(&retune);
            if let Some(cap) = request.max_cost_usd.filter(|_| is_done) {
                let change = handle.set_cap((cap > 0.0).then_some(cap));
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(change);
            }
            is_done
        });
        // Nobody learns of a limit that a restart would forget.
        let kept = kept.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.home.ledger.store().commit(kept).await.map_err(Error::from)?;
        changed
    }
}

impl Service {
    /// Does something to jobs; an error where there are none, or it could be done to none.
    fn change(
        &self,
        selection: &JobSelection,
        apply: impl Fn(&Handle) -> bool,
    ) -> std::result::Result<Response<Changed>, Status> {
        let jobs = self.jobs.change(selection, apply).map_err(Status::not_found)?;
        tracing::info!(?jobs, "changed by an operator");
        Ok(Response::new(Changed { jobs }))
    }

    fn oracle(&self, job: &Job) -> Result<Oracle> {
        let own = |problem: &str| Error::from(shared::Error::Config(problem.to_owned()));
        if job.model.is_empty() {
            return Err(own("the job names no model"));
        }
        if job.policy.trim().is_empty() {
            return Err(own("the job's policy is empty; it must hold the policy's text"));
        }
        let limits = PerMinute { requests: job.requests_per_minute, tokens: job.tokens_per_minute };
        let numbers = [limits.requests, limits.tokens, job.max_cost_usd];
        if numbers.iter().flatten().any(|number| !(number.is_finite() && *number > 0.0)) {
            return Err(own("the job's limits must be numbers above 0"));
        }
        let endpoints = if job.endpoints.is_empty() {
            oracle::check_url(&job.base_url)?;
            Endpoints::single(&job.base_url, self.key.clone(), limits)
        } else {
            Endpoints::load(Path::new(&job.endpoints), |name| std::env::var(name).ok())?
        };
        let prices = if job.prices.is_empty() { self.prices.as_deref() } else { Some(Path::new(&job.prices)) };
        let mut batch = BatchArgs::of_job(&job.mode, job.deadline_s, job.online_rpm)?;
        batch.pace.fault = self.fault.clone();
        let (judging, canary) = (judging(job).map_err(|problem| own(&format!("the job's {problem}")))?, canary(job)?);
        let concurrency = job.concurrency.clamp(1, MOST_IN_FLIGHT) as usize;
        let prices = Prices::load(prices)?;
        let setup = Setup {
            endpoints,
            model: job.model.clone(),
            concurrency,
            prices: prices.clone(),
            account: account(job),
            bill: (!job.bill.is_empty()).then(|| job.bill.clone()),
            max_cost_usd: job.max_cost_usd,
            deadline: DEADLINE,
            is_patient: true,
            fault: self.fault.clone(),
        };
        let engine = Engine::new(&self.home, setup)?;
        let model =
            Model { name: job.model.clone(), policy: job.policy.trim().to_owned(), completion_tokens_key: false };
        let ledger = self.home.ledger.clone();
        Ok(Oracle::Model(Box::new(Asker { engine, model, concurrency, batch, ledger, prices, judging, canary })))
    }
}

/// Returns who pays for a job: its run.
fn account(job: &Job) -> String {
    format!("run {}", job.run)
}

fn judging(job: &Job) -> std::result::Result<Judging, String> {
    Judging {
        votes: job.votes,
        swap_wording: job.swap_wording,
        logprobs: job.logprobs,
        min_confidence: (job.min_confidence != 0.0).then_some(job.min_confidence),
    }
    .checked()
}

fn canary(job: &Job) -> Result<Option<Canary>> {
    Canary::load(&CanaryArgs {
        canary: (!job.canary.is_empty()).then(|| PathBuf::from(&job.canary)),
        canary_stop: job.canary_stop,
        canary_tolerance: job.canary_tolerance,
    })
}

type Events = mpsc::Sender<std::result::Result<JobEvent, Status>>;

/// Tells how a job is while nothing of it is finished; never ends.
async fn tell_now_and_then(events: &Events, running: &Running) {
    loop {
        tokio::time::sleep(TELL_EVERY).await;
        let _ = events.try_send(Ok(JobEvent { event: Some(Event::Progress(running.progress())) }));
    }
}

async fn carry_out(work: Work, oracle: &Oracle, events: &Events, running: &Running) -> Result<Ended> {
    let sink = |progress: Progress| {
        running.reached(progress.done, progress.total);
        // A reader that is slower than the work misses some; the end is sent for sure.
        let _ = events.try_send(Ok(JobEvent { event: Some(Event::Progress(running.progress())) }));
    };
    let (uncertain, dead_letter, summary) = match work {
        Work::Triage(work) => {
            let checkpoints = (!work.ckpt_dir.is_empty() && work.ckpt_every > 0)
                .then(|| (PathBuf::from(&work.ckpt_dir), work.ckpt_every as usize));
            let job = triage::Job {
                input: work.input.into(),
                output: work.output.into(),
                checkpoints,
                pairs: match (work.one_call, work.both) {
                    (true, _) => PairForm::OneCall,
                    (_, true) => PairForm::Both,
                    _ => PairForm::SkipRejected,
                },
                relabel: work.relabel,
                num_samples: None,
                seed: 0,
            };
            let counts = triage::work(&job, oracle, &sink).await?;
            (counts.uncertain, counts.dead_letter, json(&counts))
        }
        Work::Correct(work) => {
            let job = correct::Job {
                input: work.input.into(),
                output: work.output.into(),
                limit: CorrectionLimit {
                    max_tokens: if work.max_tokens == 0 { 512 } else { work.max_tokens },
                    tries: if work.tries == 0 { correct::CORRECTION_TRIES } else { work.tries.min(20) },
                },
            };
            let counts = correct::work(&job, oracle, &sink).await?;
            (0, counts.not_accepted, json(&counts))
        }
        Work::Judge(work) => {
            let world = (!work.world.is_empty()).then(|| PathBuf::from(&work.world));
            let job = judge::Job { responses: work.responses.into(), output: work.output.into(), world };
            let done = judge::work(&job, oracle, &sink).await?;
            (done.undecided, 0, json(&done.summary))
        }
    };
    let bill = oracle.bill().as_ref().map(wire);
    Ok(Ended { uncertain: uncertain as u64, dead_letter: dead_letter as u64, bill, summary_json: summary })
}

fn json(summary: &impl serde::Serialize) -> String {
    serde_json::to_string(summary).unwrap_or_default()
}
