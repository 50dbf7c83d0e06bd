//! Where requests go: addresses with their keys, headers, limits and weights, and how each of them is doing.
//!
//! A file names several (`[[endpoint]]`); without one there is a single endpoint, by its address and OPENAI_API_KEY. Keys
//! come from the environment or from files, are held in a secret type and leave it in a request's header only.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use shared::{Error, Result};

use super::health::Health;
use super::openai::OpenAi;
use super::pacer::{Pacer, PerMinute};

/// Stands for the key in a header's value.
const KEY_MARK: &str = "{key}";
const DEFAULT_KEY: &str = "OPENAI_API_KEY";

/// Endpoints of a job, with their keys.
#[derive(Debug, Clone)]
pub(crate) struct Endpoints(Vec<Spec>);

/// One endpoint, as its file says.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Spec {
    /// For logs, labels and `retune`.
    pub(crate) name: String,
    /// Up to and including `/v1`, or the deployment's address.
    pub(crate) base_url: String,
    /// Variable that holds the key.
    key_env: Option<String>,
    /// File that holds the key, relative to this file.
    key_file: Option<PathBuf>,
    /// Sent with every request; `{key}` stands for the key. Where one names it, no `Authorization` is sent.
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// Added to every address, as `api-version` for Azure.
    #[serde(default)]
    pub(crate) query: BTreeMap<String, String>,
    /// Its share of the requests, against the others'.
    #[serde(default = "one")]
    weight: f64,
    /// Requests and tokens a minute at most, below what the server allows.
    rpm: Option<f64>,
    tpm: Option<f64>,
    /// Requests on their way at once.
    concurrency: Option<usize>,
    /// What it calls the model.
    pub(crate) model: Option<String>,
    #[serde(skip)]
    key: SecretString,
}

fn one() -> f64 {
    1.0
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    endpoint: Vec<Spec>,
}

impl Endpoints {
    /// Returns a single endpoint.
    pub(crate) fn single(base_url: &str, key: SecretString, limits: PerMinute) -> Endpoints {
        Endpoints(vec![Spec {
            name: "default".to_owned(),
            base_url: base_url.to_owned(),
            key_env: None,
            key_file: None,
            headers: BTreeMap::new(),
            query: BTreeMap::new(),
            weight: 1.0,
            rpm: limits.requests,
            tpm: limits.tokens,
            concurrency: None,
            model: None,
            key,
        }])
    }

    /// Reads a file of endpoints and their keys. `variable` reads the environment.
    ///
    /// # Errors
    /// The file or a key cannot be read, or a value is out of range; no message holds a key.
    pub(crate) fn load(file: &Path, variable: impl Fn(&str) -> Option<String>) -> Result<Endpoints> {
        let text = std::fs::read_to_string(file).map_err(|source| Error::io("read", file, source))?;
        let File { endpoint: mut specs } =
            toml::from_str(&text).map_err(|error| Error::file(file, error.message().to_owned()))?;
        if specs.is_empty() {
            return Err(Error::file(file, "names no [[endpoint]]"));
        }
        for index in 0..specs.len() {
            let name = specs[index].name.clone();
            let wrong = |problem: String| Error::file(file, format!("endpoint {name:?}: {problem}"));
            if specs[..index].iter().any(|other| other.name == name) {
                return Err(wrong("is named twice".into()));
            }
            let spec = &mut specs[index];
            spec.check().map_err(&wrong)?;
            let key = match (&spec.key_env, &spec.key_file) {
                (Some(_), Some(_)) => return Err(wrong("names key_env and key_file; keep one".into())),
                (None, Some(key_file)) => {
                    let path = file.parent().unwrap_or(Path::new("")).join(key_file);
                    std::fs::read_to_string(&path).map_err(|source| Error::io("read", &path, source))?
                }
                (named, None) => {
                    let name = named.as_deref().unwrap_or(DEFAULT_KEY);
                    variable(name).ok_or_else(|| wrong(format!("its key's variable {name} is not set")))?
                }
            };
            spec.key = secret(&key).ok_or_else(|| wrong("its key is empty or holds what no header may".into()))?;
        }
        Ok(Endpoints(specs))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Spec> {
        self.0.iter()
    }
}

/// Returns a key as a secret; none where it cannot be one.
pub(crate) fn secret(key: &str) -> Option<SecretString> {
    let key = key.trim();
    (!key.is_empty() && key.chars().all(|c| c.is_ascii_graphic() || c == ' ')).then(|| SecretString::from(key))
}

impl Spec {
    fn check(&self) -> std::result::Result<(), String> {
        if !self
            .base_url
            .split_once("://")
            .is_some_and(|(scheme, rest)| matches!(scheme, "http" | "https") && !rest.is_empty())
        {
            return Err(format!("base_url {:?} is no address; expected http(s)://HOST[:PORT]/v1", self.base_url));
        }
        if self.base_url.split_once("://").is_some_and(|(_, rest)| crate::oracle::names_a_user(rest)) {
            return Err(
                "base_url has a user or password before its host, which would stand in messages and in the state; \
                        keys are given by key_env, key_file or headers"
                    .to_owned(),
            );
        }
        if !(self.weight.is_finite() && self.weight > 0.0) {
            return Err(format!("weight is {}; expected a number above 0", self.weight));
        }
        for (field, value) in [("rpm", self.rpm), ("tpm", self.tpm)] {
            if value.is_some_and(|value| !(value.is_finite() && value > 0.0)) {
                return Err(format!("{field} is no number above 0"));
            }
        }
        if self.concurrency == Some(0) {
            return Err("concurrency is 0".into());
        }
        for (name, value) in &self.headers {
            if http::HeaderName::try_from(name.as_str()).is_err()
                || !value.chars().all(|c| c == ' ' || c.is_ascii_graphic())
            {
                return Err(format!("headers: {name:?} cannot be sent"));
            }
        }
        Ok(())
    }

    /// Returns the headers to send, the key's among them, marked so that they do not print.
    pub(super) fn headers(&self) -> http::HeaderMap {
        let key = self.key.expose_secret();
        let mut headers = http::HeaderMap::new();
        let mut add = |name: &str, value: &str| {
            let (Ok(name), Ok(mut value)) = (http::HeaderName::try_from(name), http::HeaderValue::from_str(value))
            else {
                return;
            };
            value.set_sensitive(true);
            headers.insert(name, value);
        };
        if !self.headers.values().any(|value| value.contains(KEY_MARK)) {
            add("authorization", &format!("Bearer {key}"));
        }
        for (name, value) in &self.headers {
            add(name, &value.replace(KEY_MARK, key));
        }
        headers
    }

    /// Names what limits are counted by: jobs that use the same key at the same address share them.
    pub(super) fn identity(&self, model: &str) -> String {
        let hash = blake3::hash(self.key.expose_secret().as_bytes()).to_hex();
        let model = self.model.as_deref().unwrap_or(model);
        format!("{} {} {model} {:?} {:?} {}", self.name, self.base_url, self.headers.keys(), self.query, &hash[..16])
    }

    pub(super) fn limits(&self) -> PerMinute {
        PerMinute { requests: self.rpm, tokens: self.tpm }
    }
}

/// An endpoint in use, shared by all jobs that name it.
pub(crate) struct Endpoint {
    pub(crate) spec: Spec,
    pub(super) api: OpenAi,
    state: Mutex<State>,
}

/// What is known of an endpoint now.
pub(super) struct State {
    pub(super) pacer: Pacer,
    pub(super) health: Health,
    pub(super) in_flight: usize,
    pub(super) concurrency: Option<usize>,
    pub(super) weight: f64,
    /// Requests sent over its weight: the lowest is next.
    pub(super) turn: f64,
}

impl Endpoint {
    pub(super) fn new(spec: &Spec, deadline: Duration, longest_outage: Duration, now: Instant) -> Result<Endpoint> {
        let state = State {
            pacer: Pacer::new(spec.limits(), now),
            health: Health::new(longest_outage),
            in_flight: 0,
            concurrency: spec.concurrency,
            weight: spec.weight,
            turn: 0.0,
        };
        Ok(Endpoint { api: OpenAi::new(spec, deadline)?, spec: spec.clone(), state: Mutex::new(state) })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
        [[endpoint]]
        name = "azure"
        base_url = "https://x.openai.azure.com/openai/deployments/judge"
        key_env = "AZURE_KEY"
        headers = { "api-key" = "{key}" }
        query = { api-version = "2024-10-21" }
        weight = 3
        rpm = 600
        model = "judge"
        [[endpoint]]
        name = "local"
        base_url = "http://127.0.0.1:8000/v1"
        key_file = "key"
        headers = { x-team = "red" }
    "#;

    fn load(text: &str) -> Result<Endpoints> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("key"), "local-secret\n").unwrap();
        std::fs::write(dir.path().join("e.toml"), text).unwrap();
        let variable = |name: &str| (name == "AZURE_KEY").then(|| "azure-secret".to_owned());
        Endpoints::load(&dir.path().join("e.toml"), variable)
    }

    #[test]
    fn a_file_names_addresses_keys_and_headers() {
        let endpoints = load(FILE).unwrap();
        let headers: Vec<_> = endpoints.iter().map(Spec::headers).collect();
        assert_eq!(headers[0]["api-key"], "azure-secret");
        assert!(!headers[0].contains_key("authorization"));
        assert_eq!(
            (&headers[1]["authorization"], &headers[1]["x-team"]),
            (&"Bearer local-secret".parse().unwrap(), &"red".parse().unwrap())
        );
        let first = endpoints.iter().next().unwrap();
        assert_eq!(
            (first.weight, first.limits().requests, first.query["api-version"].as_str()),
            (3.0, Some(600.0), "2024-10-21")
        );
        let printed = format!("{endpoints:?} {headers:?} {}", first.identity("m"));
        assert!(!printed.contains("secret"), "{printed}");
    }

    #[test]
    fn what_is_wrong_is_named_without_its_key() {
        for (change, to, words) in [
            ("name = \"local\"", "name = \"azure\"", "named twice"),
            ("weight = 3", "weight = 0", "weight is 0"),
            ("rpm = 600", "rpm = -1", "rpm is no number above 0"),
            ("http://127.0.0.1:8000/v1", "nowhere", "nowhere"),
            ("AZURE_KEY", "OTHER", "OTHER is not set"),
            ("key_file = \"key\"", "key_file = \"none\"", "none"),
            ("x-team", "\"x team\"", "cannot be sent"),
            ("weight = 3", "wait = 3", "wait"),
        ] {
            let error = load(&FILE.replace(change, to)).unwrap_err().to_string();
            assert!(error.contains(words) && !error.contains("-secret"), "{to}: {error}");
        }
        assert!(load("endpoint = []").unwrap_err().to_string().contains("names no [[endpoint]]"));
        assert!(secret("a\nb").is_none() && secret(" ").is_none());
    }
}
