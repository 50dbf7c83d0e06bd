//! A hub to test against: one model in one commit, served as the real one does it, with planned faults.
//!
//! Files of `.safetensors` are "large": their HEAD has `x-linked-etag` (SHA-256) and redirects to another path; the others
//! have git's hash as etag. Counts what it was asked.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::Response;
use sha1::Digest;
use tokio_stream::StreamExt;

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What goes wrong.
#[derive(Default, Clone)]
pub struct Plan {
    /// Every body of this file ends after so many bytes.
    pub cut: Option<(String, usize)>,
    /// The bytes of this file are not the announced ones.
    pub damaged: Option<String>,
    /// Ranges are not known: the whole file comes.
    pub no_ranges: bool,
    /// Only who has this token sees the model.
    pub token: Option<String>,
    /// Answers to the next requests.
    pub statuses: Vec<u16>,
}

struct Shared {
    files: BTreeMap<String, Vec<u8>>,
    plan: Mutex<Plan>,
    asked: Mutex<Vec<String>>,
}

/// A running hub; it ends with the value.
pub struct FakeHub {
    pub url: String,
    shared: Arc<Shared>,
    _runtime: tokio::runtime::Runtime,
}

impl FakeHub {
    pub fn start(files: BTreeMap<String, Vec<u8>>, plan: Plan) -> FakeHub {
        let shared = Arc::new(Shared { files, plan: Mutex::new(plan), asked: Mutex::default() });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new().fallback(answer).with_state(shared.clone());
        runtime.spawn(async move { axum::serve(listener, app).await });
        FakeHub { url, shared, _runtime: runtime }
    }

    /// Changes what goes wrong.
    pub fn plan(&self, plan: Plan) {
        *self.shared.plan.lock().unwrap() = plan;
    }

    /// Returns what was asked since the last call: `METHOD path [range]`.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.asked.lock().unwrap())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    method: Method,
    headers: HeaderMap,
    uri: axum::http::Uri,
) -> Response<Body> {
    let range = headers.get(header::RANGE).map(|range| range.to_str().unwrap().to_owned());
    let path = uri.path().to_owned();
    shared
        .asked
        .lock()
        .unwrap()
        .push(format!("{method} {path} {}", range.clone().unwrap_or_default()).trim().to_owned());
    let plan = {
        let mut plan = shared.plan.lock().unwrap();
        let now = plan.clone();
        if !plan.statuses.is_empty() {
            plan.statuses.remove(0);
        }
        now
    };
    let status = |status: u16, code: &str| {
        Response::builder().status(status).header("x-error-code", code).body(Body::empty()).unwrap()
    };
    if let Some(&first) = plan.statuses.first() {
        return status(first, "");
    }
    let given = headers.get(header::AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned());
    if plan.token.as_ref().is_some_and(|token| given != Some(format!("Bearer {token}"))) {
        return status(401, "GatedRepo");
    }
    if let Some(revision) = path.strip_prefix("/api/models/org/tiny/revision/") {
        if !["main", COMMIT, "v1"].contains(&revision) {
            return status(404, "RevisionNotFound");
        }
        let siblings: Vec<_> = shared.files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
        let body = serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string();
        return Response::new(Body::from(body));
    }
    let large = path.strip_prefix("/large/");
    let name = large.or_else(|| path.strip_prefix(&format!("/org/tiny/resolve/{COMMIT}/")));
    let Some((name, bytes)) = name.and_then(|name| Some((name, shared.files.get(name)?))) else {
        return status(404, "RepoNotFound");
    };
    if large.is_none() && name.ends_with(".safetensors") {
        return Response::builder()
            .status(302)
            .header(header::LOCATION, format!("/large/{name}"))
            .header("x-repo-commit", COMMIT)
            .header("x-linked-etag", format!("\"{}\"", hex(&sha2::Sha256::digest(bytes))))
            .header("x-linked-size", bytes.len())
            .body(Body::empty())
            .unwrap();
    }
    let git = sha1::Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize();
    let etag = format!("\"{}\"", hex(&git));
    let mut body = bytes.clone();
    if plan.damaged.as_deref() == Some(name) {
        body[0] ^= 1;
    }
    let start = range.filter(|_| !plan.no_ranges).map(|range| {
        range.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-')).unwrap().parse::<usize>().unwrap()
    });
    let mut response = Response::builder().header(header::ETAG, etag).header("x-repo-commit", COMMIT);
    if let Some(start) = start {
        let content = format!("bytes {start}-{}/{}", body.len() - 1, body.len());
        response = response.status(StatusCode::PARTIAL_CONTENT).header(header::CONTENT_RANGE, content);
        body.drain(..start);
    }
    response = response.header(header::CONTENT_LENGTH, body.len());
    let body = match plan.cut.filter(|(file, _)| file == name && method == Method::GET) {
        // The announced length is not reached: the connection breaks.
        Some((_, length)) if length < body.len() => {
            body.truncate(length);
            let parts = [Ok(Bytes::from(body)), Err(std::io::Error::other("planned"))];
            Body::from_stream(tokio_stream::iter(parts).then(|part| async {
                if part.is_err() {
                    tokio::time::sleep(Duration::from_millis(50)).await; // The part before is sent first.
                }
                part
            }))
        }
        _ => Body::from(body),
    };
    response.body(body).unwrap()
}
