//! The HTTP client: the only file that names async-openai and reqwest.
//!
//! async-openai repeats requests by itself and drops the headers of errors; our own service under it sends once and keeps
//! what a decision needs. The key is held in async-openai's secret type and goes nowhere else.

use std::time::Duration;

use async_openai::Client;
use async_openai::config::OpenAIConfig;
use async_openai::error::OpenAIError;
use async_openai::middleware::HttpRequestFactory;
use serde::Deserialize;
use serde_json::Value;

use super::ledger::{Answer, TokenLogprob};
use super::prices::Tokens;
use super::retry::Trouble;

/// From sending to the last byte.
const DEADLINE: Duration = Duration::from_secs(120);
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// A connection to one API.
#[derive(Clone)]
pub(super) struct OpenAi {
    client: Client<OpenAIConfig>,
}

/// An error of the HTTP exchange, passed through async-openai.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Carried(Trouble);

impl OpenAi {
    /// Returns a client for an API's address, up to and including `/v1`.
    ///
    /// # Errors
    /// The system's certificates cannot be used.
    pub(super) fn new(base_url: &str, key: &str) -> shared::Result<OpenAi> {
        // Another part of the process may have chosen one before; any will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().timeout(DEADLINE).connect_timeout(CONNECT_DEADLINE);
        let http = http.build().map_err(|error| shared::Error::Config(format!("the HTTP client: {error}")))?;
        let service = tower::service_fn(move |factory: HttpRequestFactory| {
            let http = http.clone();
            async move { send_once(&http, factory).await }
        });
        let config = OpenAIConfig::new().with_api_base(base_url.trim_end_matches('/')).with_api_key(key);
        Ok(OpenAi { client: Client::with_config(config).with_http_service(service) })
    }

    /// Sends a chat completion once.
    pub(super) async fn complete(&self, body: &Value, at_ms: impl Fn() -> u64) -> Result<Answer, Trouble> {
        let reply: Result<Value, OpenAIError> = self.client.chat().create_byot(body.clone()).await;
        let reply = reply.map_err(trouble)?;
        let reply: Reply = serde_json::from_value(reply).map_err(|error| Trouble::Garbage(error.to_string()))?;
        let choice = reply.choices.into_iter().next();
        let choice = choice.ok_or_else(|| Trouble::Garbage("\"choices\" is empty".into()))?;
        let usage = reply.usage.unwrap_or_default();
        Ok(Answer {
            text: choice.message.content,
            finish: choice.finish_reason.unwrap_or_default(),
            refusal: choice.message.refusal,
            model: reply.model,
            tokens: Tokens {
                prompt: usage.prompt_tokens,
                cached: usage.prompt_tokens_details.unwrap_or_default().cached_tokens,
                completion: usage.completion_tokens,
            },
            at_ms: at_ms(),
            fingerprint: reply.system_fingerprint,
            logprobs: choice.logprobs.and_then(|logprobs| logprobs.content),
            ..Answer::default()
        })
    }
}

async fn send_once(http: &reqwest::Client, factory: HttpRequestFactory) -> Result<reqwest::Response, OpenAIError> {
    let request = factory.build().await?;
    let carried = |trouble| OpenAIError::Boxed(Box::new(Carried(trouble)));
    let response = http.execute(request).await.map_err(|error| carried(Trouble::Connection(chain(&error))))?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let retry_after = response.headers().get("retry-after").and_then(|value| value.to_str().ok());
    let retry_after = retry_after.and_then(|seconds| seconds.trim().parse::<f64>().ok());
    let retry_after = retry_after.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let text = response.text().await.unwrap_or_default();
    let said: ErrorBody = serde_json::from_str(&text).unwrap_or_default();
    let message = said.error.message.unwrap_or_else(|| text.chars().take(200).collect());
    let code = said.error.code.or(said.error.kind).unwrap_or_default();
    Err(carried(Trouble::Status { status: status.as_u16(), code, message, retry_after }))
}

fn trouble(error: OpenAIError) -> Trouble {
    match error {
        OpenAIError::Boxed(error) => match error.downcast::<Carried>() {
            Ok(carried) => carried.0,
            Err(error) => Trouble::Connection(error.to_string()),
        },
        OpenAIError::Reqwest(error) => Trouble::Connection(chain(&error)),
        other => Trouble::Garbage(other.to_string().chars().take(300).collect()),
    }
}

/// Returns an error with its causes: reqwest's own text alone does not say "connection refused".
fn chain(error: &dyn std::error::Error) -> String {
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
    code: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
}
