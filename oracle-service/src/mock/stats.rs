//! GET /stats: how a client used the limits, and which failures it was given.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use super::faults::Of;
use super::limits::Use;
use super::{Mock, lock};

/// What happened so far, in the mock's time.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Stats {
    /// Chat completions that came, those refused included.
    pub(crate) requests: u64,
    /// Of them, those over a limit.
    pub(crate) rate_limited: u64,
    pub(crate) rate_limited_share: f64,
    /// From the first request to the last, what was allowed and what was used.
    pub(crate) limits: Use,
    pub(crate) most_in_flight: u64,
    /// By its name in the plan, how often each failure was given.
    pub(crate) planned_failures: BTreeMap<String, u64>,
    /// By status.
    pub(crate) batches: BTreeMap<&'static str, u64>,
    pub(crate) batch_lines: u64,
}

pub(super) async fn stats(State(mock): State<Arc<Mock>>) -> Json<Stats> {
    Json(mock.stats())
}

impl Mock {
    /// Returns how many requests were charged more than once.
    pub(crate) fn paid_twice(&self) -> u64 {
        lock(&self.bill).paid_twice()
    }

    /// Returns what happened so far.
    pub(crate) fn stats(&self) -> Stats {
        let limits = lock(&self.limits).usage();
        let (requests, rate_limited) = (self.faults.came(Of::Chat), limits.refused);
        Stats {
            requests,
            rate_limited,
            rate_limited_share: rate_limited as f64 / requests.max(1) as f64,
            limits,
            most_in_flight: self.most_in_flight.load(Ordering::Relaxed),
            planned_failures: self.faults.given(),
            batches: self.batch_counts(),
            batch_lines: self.faults.came(Of::Line),
        }
    }
}
