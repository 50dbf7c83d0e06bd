//! The hub over HTTP: what a revision has, and blobs, whole or from where an earlier download ended.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use reqwest::header::{ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, LOCATION, RANGE};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url, redirect};
use rustix::fs::{FlockOperation, flock};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use super::blob::BlobInfo;
use super::cache::{Cache, is_plain};
use super::id::HubId;
use crate::control::{Bar, Control};

/// Requests of one file that may fail one after the other without a byte in between.
const TRIES: u32 = 3;
/// The wait after the first of them; doubles each time.
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// Why there is no model.
#[derive(Debug)]
pub enum Failure {
    /// Nobody answers, or with errors of the server's own: later, or from the cache.
    Away(String),
    /// The hub says no.
    Refused(String),
    /// What it sent, or the disk, is wrong.
    Wrong(String),
    /// The command was told to stop.
    Stopped,
}

impl Failure {
    /// The cache cannot be written.
    pub fn disk(error: std::io::Error) -> Failure {
        Failure::Wrong(format!("the cache cannot be written: {error}"))
    }

    fn about(self, file: &str) -> Failure {
        let named = |problem: String| format!("{file}: {problem}");
        match self {
            Failure::Away(problem) => Failure::Away(named(problem)),
            Failure::Refused(problem) => Failure::Refused(named(problem)),
            Failure::Wrong(problem) => Failure::Wrong(named(problem)),
            Failure::Stopped => Failure::Stopped,
        }
    }
}

type Result<T> = std::result::Result<T, Failure>;

/// What a revision has.
#[derive(Debug)]
pub struct Listing {
    /// Its commit.
    pub commit: String,
    /// Its files.
    pub files: Vec<String>,
}

/// A connection to the hub.
pub struct Client {
    endpoint: Url,
    token: Option<SecretString>,
    /// Follows redirects; leaves the token behind where they lead to another host.
    follow: reqwest::Client,
    /// Does not: the first answer has the headers that tell a blob's hash.
    stay: reqwest::Client,
}

impl Client {
    /// Makes one; connects to nobody yet.
    ///
    /// # Errors
    /// The endpoint is no URL.
    pub fn new(endpoint: &str, token: Option<SecretString>) -> Result<Client> {
        // Fails only where a provider is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let wrong = |reason: String| Failure::Wrong(format!("HF_ENDPOINT {endpoint:?}: {reason}"));
        let url = Url::parse(endpoint).map_err(|error| wrong(error.to_string()))?;
        if url.cannot_be_a_base() || !matches!(url.scheme(), "http" | "https") {
            return Err(wrong("is no http or https address".into()));
        }
        let build = |policy: redirect::Policy| {
            reqwest::Client::builder()
                .user_agent(concat!("trace-worker/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(Duration::from_secs(10))
                .read_timeout(Duration::from_secs(60))
                .redirect(policy)
                .build()
                .map_err(|error| wrong(reason_of(&error)))
        };
        let token = token.filter(|token| !token.expose_secret().trim().is_empty());
        Ok(Client {
            endpoint: url,
            token,
            follow: build(redirect::Policy::limited(10))?,
            stay: build(redirect::Policy::none())?,
        })
    }

    /// Asks what a revision has.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn listing(&self, id: &HubId) -> Result<Listing> {
        let url = self.url(&["api", "models", &id.org, &id.name, "revision", &id.revision]);
        let mut tries = Tries::new();
        let answer = loop {
            match self.send(id, self.follow.request(Method::GET, url.clone())).await {
                Ok(answer) => break answer,
                Err(failure) => tries.again(failure).await?,
            }
        };
        let bytes = answer.bytes().await.map_err(|error| Failure::Away(reason_of(&error)))?;
        let value: Value = serde_json::from_slice(&bytes)
            .map_err(|error| Failure::Wrong(format!("the hub's list of files is no JSON: {error}")))?;
        let commit = value["sha"].as_str().filter(|commit| is_plain(commit));
        let commit = commit.ok_or_else(|| Failure::Wrong("the hub's list of files names no commit".into()))?.to_owned();
        let siblings = value["siblings"].as_array().map_or(&[][..], Vec::as_slice);
        let files = siblings.iter().filter_map(|file| file["rfilename"].as_str()).map(str::to_owned).collect();
        Ok(Listing { commit, files })
    }

    /// Brings files of a commit into the cache, those that are not there yet.
    ///
    /// # Errors
    /// See [`Failure`]; the message names the file.
    pub async fn fetch(
        &self,
        id: &HubId,
        cache: &Cache,
        commit: &str,
        names: &[String],
        control: &Control,
    ) -> Result<()> {
        let folder = cache.folder(commit);
        let mut wanted = Vec::new();
        for name in names.iter().filter(|name| !folder.join(name).exists()) {
            wanted.push((name, self.info(id, commit, name).await.map_err(|failure| failure.about(name))?));
        }
        let bar = control.bar("fetch (bytes)", wanted.iter().map(|(_, info)| info.size).sum());
        for (name, info) in wanted {
            bar.advance(0, name.clone());
            let url = self.file_url(id, commit, name);
            self.blob(id, url, cache, &info, control, &bar).await.map_err(|failure| failure.about(name))?;
            cache.link(commit, name, &info.etag).map_err(Failure::disk)?;
        }
        bar.finish_and_clear();
        Ok(())
    }

    /// Asks for a file's size and hash.
    async fn info(&self, id: &HubId, commit: &str, name: &str) -> Result<BlobInfo> {
        let mut url = self.file_url(id, commit, name);
        let mut tries = Tries::new();
        for _ in 0..10 {
            let request = self.stay.request(Method::HEAD, url.clone()).header(ACCEPT_ENCODING, "identity");
            let answer = match self.send(id, request).await {
                Ok(answer) => answer,
                Err(failure) => {
                    tries.again(failure).await?;
                    continue;
                }
            };
            let headers = answer.headers();
            if let Some(other) = text(headers, "x-repo-commit").filter(|other| *other != commit) {
                return Err(Failure::Wrong(format!("the hub has commit {other}, not {commit}")));
            }
            let etag = text(headers, "x-linked-etag").or_else(|| text(headers, ETAG.as_str()));
            let size = text(headers, "x-linked-size").or_else(|| text(headers, CONTENT_LENGTH.as_str()));
            // A renamed model: the new place is on the same host and has the headers.
            let moved = text(headers, LOCATION.as_str()).and_then(|to| moved_within(&url, to));
            match (answer.status().is_redirection().then_some(moved).flatten(), text(headers, "x-linked-etag")) {
                (Some(to), None) => url = to,
                _ => {
                    let size = size.and_then(|size| size.parse().ok());
                    let (Some(etag), Some(size)) = (etag, size) else {
                        return Err(Failure::Wrong("the hub tells neither its hash nor its size".into()));
                    };
                    return BlobInfo::of(etag, size).map_err(Failure::Wrong);
                }
            }
        }
        Err(Failure::Wrong("the hub sends from one place to the next".into()))
    }

    /// Brings one blob into the cache. One process at a time: others wait, and find it there.
    async fn blob(
        &self,
        id: &HubId,
        url: Url,
        cache: &Cache,
        info: &BlobInfo,
        control: &Control,
        bar: &Bar<'_>,
    ) -> Result<()> {
        let (blob, lock) = (cache.blob(&info.etag), cache.lock(&info.etag));
        for file in [&blob, &lock] {
            std::fs::create_dir_all(file.parent().unwrap_or(Path::new("."))).map_err(Failure::disk)?;
        }
        let lock = File::create(&lock).map_err(Failure::disk)?;
        while let Err(error) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            if shared::lock::never_locks(error) {
                return Err(Failure::disk(error.into()));
            }
            stop_if_told(control)?;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        if blob.metadata().is_ok_and(|found| found.len() == info.size) {
            bar.inc(info.size);
            return Ok(());
        }
        let partial = blob.with_extension("incomplete");
        let resumed = partial.metadata().map_or(0, |found| found.len()) > 0;
        self.download(id, &url, &partial, info, control, bar).await?;
        if !info.is(&partial).map_err(Failure::disk)? {
            std::fs::remove_file(&partial).map_err(Failure::disk)?;
            if !resumed {
                return Err(wrong_hash(info));
            }
            tracing::warn!("{url}: the part of an earlier download is damaged; it is fetched again from its start");
            self.download(id, &url, &partial, info, control, bar).await?;
            if !info.is(&partial).map_err(Failure::disk)? {
                std::fs::remove_file(&partial).map_err(Failure::disk)?;
                return Err(wrong_hash(info));
            }
        }
        let synced = File::open(&partial).and_then(|file| file.sync_all());
        synced.and_then(|()| std::fs::rename(&partial, &blob)).map_err(Failure::disk)
    }

    /// Appends to a partial file until it has the announced size.
    async fn download(
        &self,
        id: &HubId,
        url: &Url,
        partial: &Path,
        info: &BlobInfo,
        control: &Control,
        bar: &Bar<'_>,
    ) -> Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).open(partial).map_err(Failure::disk)?;
        let mut done = file.metadata().map_err(Failure::disk)?.len();
        if done > info.size {
            file.set_len(0).map_err(Failure::disk)?;
            done = 0;
        }
        bar.inc(done);
        let mut tries = Tries::new();
        while done < info.size {
            stop_if_told(control)?;
            let mut request = self.follow.request(Method::GET, url.clone()).header(ACCEPT_ENCODING, "identity");
            if done > 0 {
                request = request.header(RANGE, format!("bytes={done}-"));
            }
            let before = done;
            let outcome = match self.send(id, request).await {
                Ok(answer) => append(answer, &mut file, &mut done, info, control, bar).await,
                Err(failure) => Err(failure),
            };
            if done > before {
                tries = Tries::new();
            }
            if let Err(failure) = outcome {
                tries.again(failure).await?;
            }
        }
        Ok(())
    }

    async fn send(&self, id: &HubId, mut request: RequestBuilder) -> Result<Response> {
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.expose_secret().trim());
        }
        let answer = request.send().await.map_err(|error| {
            Failure::Away(format!("the hub at {} does not answer: {}", self.endpoint, reason_of(&error)))
        })?;
        let status = answer.status();
        if status.is_success() || status.is_redirection() {
            return Ok(answer);
        }
        let code = text(answer.headers(), "x-error-code").unwrap_or_default();
        let with_token = if self.token.is_some() { "the token of HF_TOKEN" } else { "no token; give one in HF_TOKEN" };
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Failure::Refused(format!(
                "the hub at {} refuses access to {id} ({status} {code}) with {with_token}; a model may be private, its \
                 terms not accepted yet, or its name misspelt",
                self.endpoint
            )),
            StatusCode::NOT_FOUND if code == "RevisionNotFound" => {
                Failure::Refused(format!("{id} has no revision {:?} on the hub at {}", id.revision, self.endpoint))
            }
            StatusCode::NOT_FOUND => Failure::Refused(format!(
                "the hub at {} has no model {id} or no such file ({status} {code})",
                self.endpoint
            )),
            StatusCode::TOO_MANY_REQUESTS => {
                Failure::Away(format!("the hub at {} is asked too much ({status})", self.endpoint))
            }
            status if status.is_server_error() => {
                Failure::Away(format!("the hub at {} answers {status}", self.endpoint))
            }
            status => Failure::Refused(format!("the hub at {} answers {status} {code}", self.endpoint)),
        })
    }

    fn url(&self, segments: &[&str]) -> Url {
        let mut url = self.endpoint.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }

    fn file_url(&self, id: &HubId, commit: &str, name: &str) -> Url {
        self.url(&[&id.org, &id.name, "resolve", commit, name])
    }
}

/// Appends an answer's body; a server that does not know ranges starts from the beginning.
async fn append(
    mut answer: Response,
    file: &mut File,
    done: &mut u64,
    info: &BlobInfo,
    control: &Control,
    bar: &Bar<'_>,
) -> Result<()> {
    if answer.status() == StatusCode::PARTIAL_CONTENT {
        let range = text(answer.headers(), CONTENT_RANGE.as_str()).unwrap_or_default();
        if !range.starts_with(&format!("bytes {done}-")) {
            return Err(Failure::Wrong(format!("asked for the bytes from {done} on, the hub sent {range:?}")));
        }
    } else if *done > 0 {
        file.set_len(0).map_err(Failure::disk)?;
        *done = 0;
    }
    while let Some(bytes) = answer.chunk().await.map_err(|error| Failure::Away(reason_of(&error)))? {
        stop_if_told(control)?;
        let room = (info.size - *done).min(bytes.len() as u64);
        file.write_all(&bytes[..room as usize]).map_err(Failure::disk)?;
        *done += room;
        bar.inc(room);
        if room < bytes.len() as u64 {
            return Err(Failure::Wrong(format!("is longer than the {} bytes that the hub announced", info.size)));
        }
    }
    if *done < info.size {
        return Err(Failure::Away(format!("the connection ended after {done} of {} bytes", info.size)));
    }
    Ok(())
}

/// Counts failures and waits between them.
struct Tries {
    failed: u32,
    wait: Duration,
}

impl Tries {
    fn new() -> Tries {
        Tries { failed: 0, wait: FIRST_WAIT }
    }

    /// Waits, if the failure may pass; gives it back if it may not, or after too many.
    async fn again(&mut self, failure: Failure) -> Result<()> {
        self.failed += 1;
        if !matches!(failure, Failure::Away(_)) || self.failed >= TRIES {
            return Err(failure);
        }
        tracing::debug!(?failure, "the hub is asked again");
        tokio::time::sleep(self.wait).await;
        self.wait *= 2;
        Ok(())
    }
}

fn stop_if_told(control: &Control) -> Result<()> {
    control.go_on().map_err(|_| Failure::Stopped)
}

fn wrong_hash(info: &BlobInfo) -> Failure {
    Failure::Wrong(format!(
        "what the hub sent has another hash than it announced ({}); nothing of it is kept",
        info.etag
    ))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The innermost reason: the outer ones only repeat the address.
fn reason_of(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

/// Returns where a redirection leads, if that is the same host: nothing else may be told the token.
fn moved_within(url: &Url, location: &str) -> Option<Url> {
    url.join(location).ok().filter(|to| to.origin() == url.origin())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_redirection_within_the_host_is_followed_with_the_token() {
        let url = Url::parse("https://hub.example/a/b/resolve/main/config.json").unwrap();
        let to = |location: &str| moved_within(&url, location).map(String::from);
        assert_eq!(to("/c/d/x").as_deref(), Some("https://hub.example/c/d/x"));
        assert_eq!(to("https://hub.example/c/x").as_deref(), Some("https://hub.example/c/x"));
        for elsewhere in [
            "//other.example/x",
            "https://other.example/x",
            "http://hub.example/x",
            "https://hub.example:8443/x",
            "https://",
        ] {
            assert_eq!(to(elsewhere), None, "{elsewhere}");
        }
    }
}
