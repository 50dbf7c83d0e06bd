//! The mock: a server that speaks the OpenAI API and answers by a rule file, always the same to the same request.
//!
//! It is a place to rehearse: it takes its time, enforces limits that may move, fails on a plan, works off batches, and
//! bills like the real one. GET /bill lists every request by its hash, with the tokens and how often it was paid;
//! GET /stats says how the limits were used and which failures were given.

mod answer;
mod batches;
mod bill;
mod cache;
mod chat;
mod clock;
mod completion;
mod course;
mod faults;
mod files;
mod latency;
mod limits;
mod lines;
mod plan;
mod reply;
mod stats;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, Request, State};
use axum::http::HeaderValue;
use axum::http::request::Parts;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use shared::rules::Judge;
use tokio::net::TcpListener;

use crate::error::{Error, Result};
use crate::{Outcome, oracle};
use batches::Batches;
use bill::Bill;
use cache::PromptCache;
use clock::Clock;
use faults::{Fault, Faults, Of};
use files::Files;
use limits::Limits;
pub(crate) use plan::Plan;
use reply::Refusal;
use shared::prices::Prices;
pub(crate) use stats::Stats;

/// Plays an OpenAI-compatible API that answers by a rule file
///
/// Speaks chat completions, files, batches and models well enough for the official clients; GET /bill: what was charged,
/// by request; GET /stats: how limits were used and what failed. Answers are deterministic. The address is printed once it
/// listens.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Address to listen at; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7402")]
    listen: SocketAddr,
    /// Rule file (TOML) to answer by: a world, or patterns with their verdicts
    #[arg(long, value_name = "FILE")]
    rules: PathBuf,
    /// Name of the model it plays
    #[arg(long, value_name = "MODEL", default_value = "mock-oracle")]
    model: String,
    /// Time an answer takes, where the plan does not say
    #[arg(long, value_name = "MS", default_value_t = 0)]
    latency_ms: u64,
    /// Refuse every key but the one in OPENAI_API_KEY
    #[arg(long)]
    require_key: bool,
    /// Plan (TOML): limits, latency, the pace of batches, and failures: [[fault]] with `request` (counted from 1), or from,
    /// to, every and share, and `what`: 429, 429-bare, 500, 503, 401, quota, hang, cut, garbage, null, unclear, refusal,
    /// flip, fingerprint; `retry_after_s` for 429
    #[arg(long, value_name = "FILE")]
    fault_plan: Option<PathBuf>,
    /// How much faster the mock's time runs than the clock: latencies, limits, waits and batches
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = speed)]
    speed: f64,
    /// End when standard input ends
    #[arg(long)]
    with_parent: bool,
}

/// Reads how much faster than the clock the mock's time runs.
pub(crate) fn speed(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(speed) if (0.01..=10_000.0).contains(&speed) => Ok(speed),
        _ => Err("expected a factor from 0.01 to 10000".to_owned()),
    }
}

/// The server's state.
pub(crate) struct Mock {
    judge: Judge,
    model: String,
    key: Option<String>,
    plan: Plan,
    prices: Prices,
    clock: Clock,
    faults: Faults,
    limits: Mutex<Limits>,
    cache: Mutex<PromptCache>,
    bill: Mutex<Bill>,
    files: Mutex<Files>,
    batches: Mutex<Batches>,
    in_flight: AtomicU64,
    most_in_flight: AtomicU64,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let mut plan = args.fault_plan.as_deref().map(Plan::load).transpose()?.unwrap_or_default();
    if plan.latency == Default::default() {
        plan.latency.median_ms = args.latency_ms as f64;
    }
    let mut mock = Mock::new(Judge::load(&args.rules)?, &args.model, plan, args.speed)?;
    mock.key = if args.require_key { Some(oracle::key()?.expose_secret().to_owned()) } else { None };
    shared::net::check_listen(&args.listen, None).map_err(|_| {
        shared::Error::Config(format!("--listen {}: the mock serves this machine only; use 127.0.0.1", args.listen))
    })?;
    crate::block_on(async {
        let stop = shared::shutdown::on_signals(args.with_parent).map_err(|error| Error::Serve(error.to_string()))?;
        let listener = crate::service::bind(args.listen).await?;
        // Answers that hang on plan must not hold up the end.
        tokio::select! {
            served = Arc::new(mock).serve(listener) => served,
            () = stop.cancelled() => Ok(()),
        }
    })?;
    Ok(Outcome::Complete)
}

impl Mock {
    /// Returns a mock whose clock starts now.
    ///
    /// # Errors
    /// The plan makes no sense.
    pub(crate) fn new(judge: Judge, model: &str, plan: Plan, speed: f64) -> Result<Mock> {
        let faults = Faults::new(&plan.fault, plan.seed).map_err(shared::Error::Config)?;
        Ok(Mock {
            judge,
            model: model.to_owned(),
            key: None,
            prices: Prices::load(None)?,
            clock: Clock::start(speed, plan.clock_skew_s),
            faults,
            limits: Mutex::new(Limits::new(plan.limits.clone(), plan.limits_repeat_s, plan.burst_s)),
            plan,
            cache: Mutex::default(),
            bill: Mutex::default(),
            files: Mutex::default(),
            batches: Mutex::default(),
            in_flight: AtomicU64::default(),
            most_in_flight: AtomicU64::default(),
        })
    }

    /// Serves until it is dropped.
    ///
    /// # Errors
    /// The listener fails.
    pub(crate) async fn serve(self: Arc<Self>, listener: TcpListener) -> Result<()> {
        // Small replies go out at once.
        let listener = listener.tap_io(|stream| {
            let _ = stream.set_nodelay(true);
        });
        axum::serve(listener, self.router()).await.map_err(|error| Error::Serve(error.to_string()))
    }

    /// Returns how long a reply hangs on plan, in the client's time; none: for ever.
    fn hang(&self) -> Option<Duration> {
        self.plan.hang_s.map(|hang| self.clock.for_client(Duration::from_secs_f64(hang)))
    }

    fn router(self: Arc<Self>) -> axum::Router {
        let files = axum::Router::new()
            .route("/v1/files", post(files::upload).get(files::list))
            .route("/v1/files/{id}", get(files::show).delete(files::delete))
            .route("/v1/files/{id}/content", get(files::content))
            .layer(middleware::from_fn_with_state((self.clone(), Of::FileCalls), failing));
        let batches = axum::Router::new()
            .route("/v1/batches", post(batches::create).get(batches::list))
            .route("/v1/batches/{id}", get(batches::show))
            .route("/v1/batches/{id}/cancel", post(batches::cancel))
            .layer(middleware::from_fn_with_state((self.clone(), Of::BatchCalls), failing));
        let router = axum::Router::new()
            .route("/v1/chat/completions", post(chat::complete))
            .route("/openai/deployments/{model}/chat/completions", post(chat::complete))
            .route("/v1/models", get(models))
            .route("/v1/models/{id}", get(model))
            .merge(files)
            .merge(batches)
            .route("/bill", get(bill))
            .route("/stats", get(stats::stats))
            .layer(DefaultBodyLimit::max(files::MOST_UPLOADED));
        let router = if self.plan.clock_skew_s == 0 {
            router
        } else {
            router.layer(middleware::from_fn_with_state(self.clone(), dated))
        };
        router.with_state(self)
    }
}

/// Locks what a panic elsewhere cannot have left half done: every change is one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the part of an id behind its prefix: other ids in every run of the mock.
fn id(origin: u64, kind: &str, number: u64) -> String {
    blake3::hash(format!("{origin} {kind} {number}").as_bytes()).to_hex()[..24].to_owned()
}

/// A request with the right key, where one is required; in either of the headers that services use.
pub(crate) struct Entitled;

impl FromRequestParts<Arc<Mock>> for Entitled {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, mock: &Arc<Mock>) -> std::result::Result<Entitled, Refusal> {
        let Some(key) = &mock.key else { return Ok(Entitled) };
        let of = |name| parts.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let bearer = of("authorization").and_then(|value| value.strip_prefix("Bearer "));
        if bearer == Some(key) || of("api-key") == Some(key) {
            return Ok(Entitled);
        }
        let code = "invalid_api_key";
        Err(Refusal {
            status: 401,
            kind: code,
            code: Some(code),
            param: None,
            message: "Incorrect API key provided.".into(),
        })
    }
}

/// Fails calls to files and batches as planned: a status before anything is done, what breaks the reply after.
async fn failing(State((mock, of)): State<(Arc<Mock>, Of)>, request: Request, next: Next) -> Response {
    let (_, fault) = mock.faults.next(of);
    if let Some(Fault::Status { status, code, retry_after_s, .. }) = &fault {
        let mut response = reply::planned(*status, code).into_response();
        if let Some(seconds) = retry_after_s {
            reply::come_back(&mut response, &mock.clock, Duration::from_secs(*seconds));
        }
        return response;
    }
    let whole = next.run(request).await;
    reply::broken(fault.as_ref(), mock.hang(), whole).await
}

/// Dates replies by the mock's own clock, which is off.
async fn dated(State(mock): State<Arc<Mock>>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let date = std::time::UNIX_EPOCH + Duration::from_secs(mock.clock.date(mock.clock.now()));
    let date = httpdate::fmt_http_date(date).parse().expect("a date is a header's value");
    response.headers_mut().insert("date", date);
    response
}

async fn models(State(mock): State<Arc<Mock>>, _: Entitled) -> Json<Value> {
    Json(json!({"object": "list", "data": [described(&mock.model)]}))
}

async fn model(
    State(mock): State<Arc<Mock>>,
    _: Entitled,
    Path(id): Path<String>,
) -> std::result::Result<Json<Value>, Refusal> {
    if id == mock.model {
        return Ok(Json(described(&id)));
    }
    let message = format!("The model {id:?} does not exist; this server plays {:?}.", mock.model);
    Err(Refusal { code: Some("model_not_found"), ..Refusal::missing(message) })
}

fn described(model: &str) -> Value {
    json!({"id": model, "object": "model", "created": 0, "owned_by": "mock"})
}

async fn bill(State(mock): State<Arc<Mock>>) -> std::result::Result<Response, Refusal> {
    let text = batches::blocking(move || {
        mock.settle_batches();
        let told = lock(&mock.bill).told(&mock.model, &mock.prices);
        Ok(serde_json::to_vec(&told).unwrap_or_default())
    });
    Ok(([("content-type", "application/json")], text.await?).into_response())
}
