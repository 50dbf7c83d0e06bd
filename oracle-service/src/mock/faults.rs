//! Failures on plan: which request fails, and how. Planned by count, so that a test knows what it gets.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Deserialize;
use shared::{Error, Result};

/// The plan, and how many requests came.
#[derive(Debug, Default)]
pub(super) struct Faults {
    by_request: BTreeMap<u64, Fault>,
    came: AtomicU64,
}

/// How a request fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    Status {
        status: u16,
        code: &'static str,
        retry_after_s: Option<u64>,
    },
    /// No answer, ever.
    Hang,
    /// The connection ends within the answer.
    Cut,
    /// An answer that is no JSON.
    Garbage,
    /// An answer without content.
    Null,
    /// An answer that is none of the two words.
    Unclear,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plan {
    #[serde(default)]
    fault: Vec<Planned>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Planned {
    request: u64,
    what: String,
    retry_after_s: Option<u64>,
}

impl Faults {
    /// Reads a plan.
    pub(super) fn load(file: &Path) -> Result<Faults> {
        let text = std::fs::read_to_string(file).map_err(|source| Error::io("read", file, source))?;
        let plan: Plan = toml::from_str(&text).map_err(|error| Error::file(file, error.message().to_owned()))?;
        let mut by_request = BTreeMap::new();
        for planned in plan.fault {
            let status = |status, code| Fault::Status { status, code, retry_after_s: planned.retry_after_s };
            let fault = match planned.what.as_str() {
                "429" => status(429, "rate_limit_exceeded"),
                "quota" => status(429, "insufficient_quota"),
                "500" => status(500, "server_error"),
                "401" => status(401, "invalid_api_key"),
                "hang" => Fault::Hang,
                "cut" => Fault::Cut,
                "garbage" => Fault::Garbage,
                "null" => Fault::Null,
                "unclear" => Fault::Unclear,
                other => return Err(Error::file(file, format!("what = {other:?} is no failure this server knows"))),
            };
            by_request.insert(planned.request, fault);
        }
        Ok(Faults { by_request, came: AtomicU64::new(0) })
    }

    /// Counts a request and returns how it is to fail.
    pub(super) fn next(&self) -> Option<Fault> {
        let number = self.came.fetch_add(1, Ordering::Relaxed) + 1;
        self.by_request.get(&number).cloned()
    }
}
