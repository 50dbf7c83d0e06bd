//! The mock: a server that speaks the OpenAI API and answers by a rule file, always the same to the same request.
//!
//! It bills like the real one: GET /bill lists every request by its hash, with the tokens and how often it was paid. For
//! tests it fails on a plan. Tokens are counted as a quarter of the characters, rounded up.

mod faults;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Serialize;
use serde_json::{Value, json};
use shared::rules::Judge;

use crate::api::request::{Asked, asked};
use crate::error::{Error, Result};
use crate::{Outcome, oracle};
use faults::{Fault, Faults};

/// Plays an OpenAI-compatible API that answers by a rule file
///
/// Speaks POST /v1/chat/completions and GET /v1/models well enough for the official clients, and GET /bill: what was
/// charged, by request. Answers are deterministic. The address is printed once it listens.
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
    /// Time an answer takes
    #[arg(long, value_name = "MS", default_value_t = 0)]
    latency_ms: u64,
    /// Refuse every key but the one in OPENAI_API_KEY
    #[arg(long)]
    require_key: bool,
    /// Failures on plan (TOML): [[fault]] with `request` (counted from 1) and `what`: 429, 500, 401, quota, hang, cut,
    /// garbage, null, unclear; `retry_after_s` for 429
    #[arg(long, value_name = "FILE")]
    fault_plan: Option<PathBuf>,
    /// End when standard input ends
    #[arg(long)]
    with_parent: bool,
}

struct Mock {
    judge: Judge,
    model: String,
    latency: Duration,
    key: Option<String>,
    faults: Faults,
    bill: Mutex<Bill>,
}

/// What was charged.
#[derive(Debug, Default, Serialize)]
struct Bill {
    calls: u64,
    prompt_tokens: u64,
    completion_tokens: u64,
    /// By the hash of the request's body.
    requests: BTreeMap<String, Charged>,
}

#[derive(Debug, Clone, Serialize)]
struct Charged {
    model: String,
    prompt_tokens: u64,
    completion_tokens: u64,
    times: u64,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let mock = Mock {
        judge: Judge::load(&args.rules)?,
        model: args.model.clone(),
        latency: Duration::from_millis(args.latency_ms),
        key: if args.require_key { Some(oracle::key()?) } else { None },
        faults: args.fault_plan.as_deref().map(Faults::load).transpose()?.unwrap_or_default(),
        bill: Mutex::default(),
    };
    shared::net::check_listen(&args.listen, None).map_err(|_| {
        shared::Error::Config(format!("--listen {}: the mock serves this machine only; use 127.0.0.1", args.listen))
    })?;
    crate::block_on(serve(args, mock))?;
    Ok(Outcome::Complete)
}

async fn serve(args: &Args, mock: Mock) -> Result<()> {
    let stop = shared::shutdown::on_signals(args.with_parent).map_err(|error| Error::Serve(error.to_string()))?;
    let listener = crate::service::bind(args.listen).await?;
    let app = axum::Router::new()
        .route("/v1/chat/completions", post(complete))
        .route("/v1/models", get(models))
        .route("/bill", get(bill))
        .with_state(Arc::new(mock));
    // Answers that hang on plan must not hold up the end.
    tokio::select! {
        served = axum::serve(listener, app) => served.map_err(|error| Error::Serve(error.to_string())),
        () = stop.cancelled() => Ok(()),
    }
}

async fn models(State(mock): State<Arc<Mock>>) -> Json<Value> {
    let model = json!({"id": mock.model, "object": "model", "created": 0, "owned_by": "mock"});
    Json(json!({"object": "list", "data": [model]}))
}

async fn bill(State(mock): State<Arc<Mock>>) -> Response {
    Json(&*mock.bill.lock().unwrap_or_else(PoisonError::into_inner)).into_response()
}

async fn complete(State(mock): State<Arc<Mock>>, headers: HeaderMap, body: Bytes) -> Response {
    let fault = mock.faults.next();
    if let Some(key) = &mock.key {
        let given = headers.get("authorization").and_then(|value| value.to_str().ok());
        if given != Some(format!("Bearer {key}").as_str()) {
            return refusal(401, "invalid_api_key", "Incorrect API key provided.");
        }
    }
    match &fault {
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Status { status, code, retry_after_s }) => {
            let mut response = refusal(*status, code, "planned failure");
            if let Some(seconds) = retry_after_s {
                response.headers_mut().insert("retry-after", (*seconds).into());
            }
            return response;
        }
        Some(Fault::Garbage) => return (StatusCode::OK, "<html>not JSON</html>").into_response(),
        Some(Fault::Cut) => {
            // A length that is never reached: the connection ends in the middle of the body.
            let body = futures::stream::iter([
                Ok::<_, std::io::Error>(Bytes::from_static(b"{\"id\": ")),
                Err(std::io::Error::other("planned cut")),
            ]);
            return Response::new(axum::body::Body::from_stream(body));
        }
        Some(Fault::Null | Fault::Unclear) | None => {}
    }
    let request: Value = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(error) => return refusal(400, "invalid_request_error", &format!("the body is not JSON: {error}")),
    };
    if request["model"] != mock.model.as_str() {
        let problem = format!("The model {} does not exist; this server plays {:?}.", request["model"], mock.model);
        return refusal(404, "model_not_found", &problem);
    }
    let Some(messages) = request["messages"].as_array().filter(|messages| !messages.is_empty()) else {
        return refusal(400, "invalid_request_error", "\"messages\" is missing or empty");
    };
    let text = match answer(&mock.judge, messages) {
        Ok(text) => text,
        Err(problem) => return refusal(400, "invalid_request_error", &problem),
    };
    tokio::time::sleep(mock.latency).await;
    let content = match fault {
        Some(Fault::Null) => Value::Null,
        Some(Fault::Unclear) => json!("It depends."),
        _ => json!(text),
    };
    let prompt_tokens: u64 =
        messages.iter().map(|message| tokens(message["content"].as_str().unwrap_or_default())).sum();
    let completion_tokens = content.as_str().map_or(0, tokens);
    let hash = blake3::hash(request.to_string().as_bytes()).to_hex()[..32].to_owned();
    mock.charge(&hash, prompt_tokens, completion_tokens);
    let reply = json!({
        "id": format!("chatcmpl-{}", &hash[..16]), "object": "chat.completion", "created": 0, "model": mock.model,
        "system_fingerprint": "fp_mock", "service_tier": "default",
        "choices": [{
            "index": 0, "finish_reason": if content.is_null() { "content_filter" } else { "stop" }, "logprobs": null,
            "message": {"role": "assistant", "content": content, "refusal": null, "annotations": []},
        }],
        "usage": {
            "prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens, "prompt_tokens_details": {"cached_tokens": 0},
        },
    });
    Json(reply).into_response()
}

/// Returns what the rules say to a conversation: verdicts and corrections in our own layout, the first user message's
/// verdict where the question is asked again, a fixed sentence to anything else.
fn answer(judge: &Judge, messages: &[Value]) -> std::result::Result<String, String> {
    let user = messages.iter().find(|message| message["role"] == "user").map(|message| &message["content"]);
    let user = user.and_then(Value::as_str).ok_or("there is no user message with text")?;
    match asked(user) {
        Some(Asked::Verdict { prompt, response }) => {
            let verdict = judge.verdict(prompt, response, true).map_err(|unknown| format!("the prompt {unknown}"))?;
            Ok(if verdict.compliant { "COMPLIANT" } else { "NON-COMPLIANT" }.to_owned())
        }
        Some(Asked::Pair { prompt, a, b }) => {
            let word = |response| match judge.verdict(prompt, response, true) {
                Ok(verdict) => Ok(if verdict.compliant { "COMPLIANT" } else { "NON-COMPLIANT" }),
                Err(unknown) => Err(format!("the prompt {unknown}")),
            };
            Ok(json!({"response_a": word(a)?, "response_b": word(b)?}).to_string())
        }
        Some(Asked::Correction { prompt }) => {
            judge.correct(prompt).ok_or_else(|| "the rules offer no correction for this prompt".to_owned())
        }
        None => Ok("This server answers the oracle's questions only.".to_owned()),
    }
}

fn tokens(text: &str) -> u64 {
    text.chars().count().div_ceil(4) as u64
}

fn refusal(status: u16, code: &str, message: &str) -> Response {
    let body = json!({"error": {"message": message, "type": code, "param": null, "code": code}});
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, Json(body)).into_response()
}

impl Mock {
    fn charge(&self, hash: &str, prompt_tokens: u64, completion_tokens: u64) {
        let mut bill = self.bill.lock().unwrap_or_else(PoisonError::into_inner);
        bill.calls += 1;
        bill.prompt_tokens += prompt_tokens;
        bill.completion_tokens += completion_tokens;
        let charged = bill.requests.entry(hash.to_owned()).or_insert_with(|| Charged {
            model: self.model.clone(),
            prompt_tokens,
            completion_tokens,
            times: 0,
        });
        charged.times += 1;
    }
}
