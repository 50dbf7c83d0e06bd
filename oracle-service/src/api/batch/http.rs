//! The files and batches of an OpenAI-compatible API: one call each, sent once.
//!
//! Files go up and come down as streams. A file that was uploaded and then forgotten, because the process died, costs
//! nothing, and the API drops files of batches by itself after some weeks.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::lines::ENDPOINT;
use super::part::{Batch, Part, Problem, Status};
use crate::api::endpoint::Spec;
use crate::api::openai::{connection, refusal};
use crate::api::retry::Trouble;

const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// For a question and its answer.
const DEADLINE: Duration = Duration::from_secs(120);
/// For a file.
const FILE_DEADLINE: Duration = Duration::from_secs(3600);
/// Batches listed at once; the API's most.
const PAGE: &str = "100";
/// What the API is asked to answer in; it offers nothing else.
const WINDOW: &str = "24h";

/// A connection to one API.
#[derive(Clone)]
pub(crate) struct Api {
    http: reqwest::Client,
    base_url: String,
    query: BTreeMap<String, String>,
}

type Told<T> = Result<T, Trouble>;

impl Api {
    /// Returns a client for an endpoint.
    ///
    /// # Errors
    /// The system's certificates cannot be used.
    pub(crate) fn new(spec: &Spec) -> shared::Result<Api> {
        // Another part of the process may have chosen one before; any will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().default_headers(spec.headers()).connect_timeout(CONNECT_DEADLINE).build();
        let http = http.map_err(|error| shared::Error::Config(format!("the HTTP client: {error}")))?;
        let base_url = spec.base_url.trim_end_matches('/').to_owned();
        Ok(Api { http, base_url, query: spec.query.clone() })
    }

    /// Uploads a part's requests and returns the file's id.
    pub(super) async fn upload(&self, part: &Part, file: &Path) -> Told<String> {
        #[derive(Deserialize)]
        struct Uploaded {
            id: String,
        }
        let unread = |error: std::io::Error| not_sent(format!("{}: {error}", file.display()));
        let content = reqwest::multipart::Part::file(file).await.map_err(unread)?;
        let content = content.file_name(format!("{}.jsonl", part.tag()));
        let form = reqwest::multipart::Form::new().text("purpose", "batch").part("file", content);
        let request = self.request(Method::POST, "/files").timeout(FILE_DEADLINE).multipart(form);
        Ok(read::<Uploaded>(send(request).await?).await?.id)
    }

    /// Creates a part's batch.
    pub(super) async fn create(&self, part: &Part, file: &str) -> Told<Batch> {
        let body = json!({
            "input_file_id": file, "endpoint": ENDPOINT, "completion_window": WINDOW,
            "metadata": {"job": short(&part.job), "part": part.number.to_string(), "tag": part.tag()},
        });
        let request = self.request(Method::POST, "/batches").json(&body);
        Ok(read::<Wire>(send(request).await?).await?.into())
    }

    /// Searches all batches for a part's tag, the newest first.
    pub(super) async fn find(&self, part: &Part) -> Told<Option<Batch>> {
        let tag = part.tag();
        let mut after: Option<String> = None;
        loop {
            let mut request = self.request(Method::GET, "/batches").query(&[("limit", PAGE)]);
            if let Some(after) = &after {
                request = request.query(&[("after", after)]);
            }
            let page: Page = read(send(request).await?).await?;
            let last = page.data.last().and_then(|batch| batch["id"].as_str()).map(str::to_owned);
            // Other people's batches need not be readable.
            if let Some(found) = page.data.into_iter().find(|batch| batch["metadata"]["tag"] == tag.as_str()) {
                let found: Wire = serde_json::from_value(found).map_err(|error| Trouble::Garbage(error.to_string()))?;
                return Ok(Some(found.into()));
            }
            if !page.has_more || last.is_none() || last == after {
                return Ok(None);
            }
            after = last;
        }
    }

    pub(super) async fn look(&self, batch: &str) -> Told<Batch> {
        let request = self.request(Method::GET, &format!("/batches/{batch}"));
        Ok(read::<Wire>(send(request).await?).await?.into())
    }

    pub(super) async fn cancel(&self, batch: &str) -> Told<Batch> {
        let request = self.request(Method::POST, &format!("/batches/{batch}/cancel"));
        Ok(read::<Wire>(send(request).await?).await?.into())
    }

    /// Begins to read a file.
    pub(super) async fn content(&self, file: &str) -> Told<Response> {
        send(self.request(Method::GET, &format!("/files/{file}/content")).timeout(FILE_DEADLINE)).await
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base_url)).timeout(DEADLINE);
        if self.query.is_empty() { request } else { request.query(&self.query) }
    }
}

/// Returns the next piece of a file.
pub(super) async fn chunk(response: &mut Response) -> Told<Option<Vec<u8>>> {
    let chunk = response.chunk().await.map_err(|error| connection(&error))?;
    Ok(chunk.map(|bytes| bytes.to_vec()))
}

fn not_sent(problem: String) -> Trouble {
    Trouble::Connection { problem, is_sent: false }
}

async fn send(request: RequestBuilder) -> Told<Response> {
    let response = request.send().await.map_err(|error| connection(&error))?;
    if response.status().is_success() { Ok(response) } else { Err(refusal(response).await) }
}

async fn read<T: DeserializeOwned>(response: Response) -> Told<T> {
    let bytes = response.bytes().await.map_err(|error| connection(&error))?;
    serde_json::from_slice(&bytes).map_err(|error| Trouble::Garbage(error.to_string()))
}

/// The API takes 512 characters in a value; what tells is at the end.
fn short(job: &str) -> String {
    let from = job.char_indices().rev().nth(255).map_or(0, |(at, _)| at);
    job[from..].to_owned()
}

#[derive(Deserialize)]
struct Page {
    data: Vec<Value>,
    #[serde(default)]
    has_more: bool,
}

/// A batch on the wire.
#[derive(Deserialize)]
struct Wire {
    id: String,
    status: Status,
    output_file_id: Option<String>,
    error_file_id: Option<String>,
    request_counts: Option<Counts>,
    errors: Option<Errors>,
}

#[derive(Default, Deserialize)]
struct Counts {
    #[serde(default)]
    completed: u64,
    #[serde(default)]
    failed: u64,
}

#[derive(Deserialize)]
struct Errors {
    #[serde(default)]
    data: Vec<WireProblem>,
}

#[derive(Deserialize)]
struct WireProblem {
    code: Option<String>,
    message: Option<String>,
}

impl From<Wire> for Batch {
    fn from(wire: Wire) -> Batch {
        let Counts { completed, failed } = wire.request_counts.unwrap_or_default();
        let problem = wire.errors.and_then(|errors| errors.data.into_iter().next());
        let problem = problem.map(|problem| Problem {
            code: problem.code.unwrap_or_default(),
            message: problem.message.unwrap_or_default(),
        });
        let (output, errors) = (wire.output_file_id, wire.error_file_id);
        Batch { id: wire.id, status: wire.status, completed, failed, output, errors, problem }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_read_as_the_api_writes_it() {
        let text = r#"{"id": "batch_1", "object": "batch", "endpoint": "/v1/chat/completions", "errors": null,
            "input_file_id": "file-1", "completion_window": "24h", "status": "in_progress", "output_file_id": null,
            "error_file_id": null, "created_at": 1, "request_counts": {"total": 9, "completed": 4, "failed": 1},
            "metadata": {"tag": "t"}}"#;
        let batch = Batch::from(serde_json::from_str::<Wire>(text).unwrap());
        assert_eq!((batch.status, batch.completed, batch.failed, batch.problem), (Status::InProgress, 4, 1, None));
        let text = r#"{"id": "b", "status": "something new"}"#;
        assert_eq!(serde_json::from_str::<Wire>(text).unwrap().status, Status::Unknown);
        let text = r#"{"id": "b", "status": "failed", "errors": {"object": "list", "data": [
            {"code": "token_limit_exceeded", "message": "Enqueued token limit reached", "param": null, "line": null}]}}"#;
        let failed = Batch::from(serde_json::from_str::<Wire>(text).unwrap());
        assert_eq!(failed.problem.unwrap().code, "token_limit_exceeded");
    }

    #[test]
    fn a_long_job_name_keeps_its_end() {
        let long = format!("triage /{}/pairs.json", "ä".repeat(400));
        assert!(short(&long).len() <= 512 && short(&long).ends_with("/pairs.json"));
        assert_eq!(short("judge r.json"), "judge r.json");
    }
}
