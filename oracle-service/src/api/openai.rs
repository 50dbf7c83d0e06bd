//! The HTTP client: the only file that names async-openai and reqwest.
//!
//! async-openai repeats requests by itself and drops the headers of errors; our own service under it sends once and keeps
//! what a decision needs. The key is in the headers of an endpoint, marked as sensitive, and goes nowhere else.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_openai::Client;
use async_openai::config::OpenAIConfig;
use async_openai::error::OpenAIError;
use async_openai::middleware::HttpRequestFactory;
use serde::Deserialize;
use serde_json::Value;

use super::endpoint::Spec;
use super::ledger::{Answer, TokenLogprob};
use super::limits::Heard;
use super::retry::Trouble;
use shared::prices::Tokens;

const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// A connection to one endpoint.
#[derive(Clone)]
pub(super) struct OpenAi {
    client: Client<OpenAIConfig>,
}

/// What sending a request once came to.
pub(super) struct Exchange {
    pub(super) outcome: Result<Answer, Trouble>,
    /// What the server said of its limits.
    pub(super) heard: Heard,
    /// Whether the answer says what it took; where not, its tokens are 0.
    pub(super) has_usage: bool,
}

/// An error of the HTTP exchange, passed through async-openai.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Carried(Trouble);

tokio::task_local! {
    /// Where the headers of the answer to this task's request go: async-openai hands on the body alone.
    static HEARD: Arc<Mutex<Heard>>;
}

impl OpenAi {
    /// Returns a client for an endpoint.
    ///
    /// # Errors
    /// The system's certificates cannot be used.
    pub(super) fn new(spec: &Spec, deadline: Duration) -> shared::Result<OpenAi> {
        // Another part of the process may have chosen one before; any will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().timeout(deadline).connect_timeout(CONNECT_DEADLINE);
        let http = http.build().map_err(|error| shared::Error::Config(format!("the HTTP client: {error}")))?;
        let (headers, query) = (Arc::new(spec.headers()), Arc::new(spec.query.clone()));
        let service = tower::service_fn(move |factory: HttpRequestFactory| {
            let (http, headers, query) = (http.clone(), headers.clone(), query.clone());
            async move { send_once(&http, factory, &headers, &query).await }
        });
        // The key goes into our own headers; async-openai gets none to send.
        let config = OpenAIConfig::new().with_api_base(spec.base_url.trim_end_matches('/')).with_api_key("");
        Ok(OpenAi { client: Client::with_config(config).with_http_service(service) })
    }

    /// Sends a chat completion once.
    pub(super) async fn complete(&self, body: Value, at_ms: impl Fn() -> u64) -> Exchange {
        let heard = Arc::new(Mutex::new(Heard::default()));
        let reply = HEARD.scope(heard.clone(), async { self.client.chat().create_byot(body).await }).await;
        let heard = *heard.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = reply.map_err(trouble).and_then(|reply| answer(reply, at_ms()));
        let has_usage = answer.as_ref().is_ok_and(|(_, has_usage)| *has_usage);
        Exchange { outcome: answer.map(|(answer, _)| answer), heard, has_usage }
    }
}

/// Reads a chat completion, wherever it came from; also whether it says what it took.
pub(super) fn answer(reply: Value, at_ms: u64) -> Result<(Answer, bool), Trouble> {
    let reply: Reply = serde_json::from_value(reply).map_err(|error| Trouble::Garbage(error.to_string()))?;
    let choice = reply.choices.into_iter().next();
    let choice = choice.ok_or_else(|| Trouble::Garbage("\"choices\" is empty".into()))?;
    let has_usage = reply.usage.is_some();
    let usage = reply.usage.unwrap_or_default();
    let answer = Answer {
        text: choice.message.content,
        finish: choice.finish_reason.unwrap_or_default(),
        refusal: choice.message.refusal,
        model: reply.model,
        tokens: Tokens {
            prompt: usage.prompt_tokens,
            cached: usage.prompt_tokens_details.unwrap_or_default().cached_tokens,
            completion: usage.completion_tokens,
        },
        at_ms,
        fingerprint: reply.system_fingerprint,
        logprobs: choice.logprobs.and_then(|logprobs| logprobs.content),
        ..Answer::default()
    };
    Ok((answer, has_usage))
}

async fn send_once(
    http: &reqwest::Client,
    factory: HttpRequestFactory,
    headers: &http::HeaderMap,
    query: &BTreeMap<String, String>,
) -> Result<reqwest::Response, OpenAIError> {
    let mut request = factory.build().await?;
    request.headers_mut().remove("authorization");
    for (name, value) in headers {
        request.headers_mut().insert(name.clone(), value.clone());
    }
    if !query.is_empty() {
        request.url_mut().query_pairs_mut().extend_pairs(query);
    }
    let carried = |trouble| OpenAIError::Boxed(Box::new(Carried(trouble)));
    let response = http.execute(request).await;
    let response = response.map_err(|error| carried(connection(&error)))?;
    let _ = HEARD.try_with(|heard| {
        *heard.lock().unwrap_or_else(PoisonError::into_inner) = Heard::of(response.headers(), SystemTime::now());
    });
    if response.status().is_success() {
        return Ok(response);
    }
    Err(carried(refusal(response).await))
}

/// Reads what a server says that does not do what it was asked.
pub(super) async fn refusal(response: reqwest::Response) -> Trouble {
    let status = response.status().as_u16();
    let text = response.text().await.unwrap_or_default();
    let said: ErrorBody = serde_json::from_str(&text).unwrap_or_default();
    let message = said.error.message.unwrap_or_else(|| text.chars().take(200).collect());
    let code = said.error.code.as_ref().and_then(Value::as_str).map(str::to_owned).or(said.error.kind);
    Trouble::Status { status, code: code.unwrap_or_default(), message }
}

/// Reads why there is no answer at all.
pub(super) fn connection(error: &reqwest::Error) -> Trouble {
    Trouble::Connection { problem: chain(error), is_sent: !error.is_connect() && !error.is_builder() }
}

fn trouble(error: OpenAIError) -> Trouble {
    match error {
        OpenAIError::Boxed(error) => match error.downcast::<Carried>() {
            Ok(carried) => carried.0,
            Err(error) => Trouble::Connection { problem: error.to_string(), is_sent: true },
        },
        OpenAIError::Reqwest(error) => connection(&error),
        other => Trouble::Garbage(other.to_string().chars().take(300).collect()),
    }
}

/// Returns an error with its causes: reqwest's own text alone does not say "connection refused".
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

#[derive(Deserialize)]
struct Reply {
    #[serde(default)]
    model: String,
    system_fingerprint: Option<String>,
    choices: Vec<Choice>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Choice {
    message: Message,
    finish_reason: Option<String>,
    logprobs: Option<Logprobs>,
}

#[derive(Deserialize)]
struct Logprobs {
    content: Option<Vec<TokenLogprob>>,
}

#[derive(Deserialize)]
struct Message {
    content: Option<String>,
    refusal: Option<String>,
}

#[derive(Default, Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Default, Deserialize)]
struct PromptDetails {
    #[serde(default)]
    cached_tokens: u64,
}

#[derive(Default, Deserialize)]
struct ErrorBody {
    #[serde(default)]
    error: ErrorDetails,
}

#[derive(Default, Deserialize)]
struct ErrorDetails {
    message: Option<String>,
    /// A string, but some servers say a number.
    code: Option<Value>,
    #[serde(rename = "type")]
    kind: Option<String>,
}
