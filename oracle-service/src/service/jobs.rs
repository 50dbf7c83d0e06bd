//! The jobs that run now: how far each is, what it costs, and a hold on it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proto::oracle::{Bill, EndpointStatus, Job, JobSelection, JobStatus, Progress};

use crate::api::engine::{BillNow, Handle};
use crate::api::gate::EndpointView;

/// All jobs that run now; clones are handles on the same list.
#[derive(Clone, Default)]
pub(super) struct Jobs(Arc<Mutex<List>>);

#[derive(Default)]
struct List {
    begun: u64,
    running: BTreeMap<u64, Arc<Entry>>,
}

struct Entry {
    run: String,
    stage: String,
    model: String,
    handle: Option<Handle>,
    done: AtomicU64,
    total: AtomicU64,
}

/// A job's place in the list, until dropped.
pub(super) struct Running {
    jobs: Jobs,
    number: u64,
    entry: Arc<Entry>,
}

impl Jobs {
    /// Adds a job; none of its rules can be held.
    pub(super) fn begin(&self, job: &Job, handle: Option<Handle>) -> Running {
        let entry = Arc::new(Entry {
            run: job.run.clone(),
            stage: job.stage.clone(),
            model: job.model.clone(),
            handle,
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
        });
        let mut list = self.lock();
        list.begun += 1;
        let number = list.begun;
        list.running.insert(number, entry.clone());
        Running { jobs: self.clone(), number, entry }
    }

    pub(super) fn count(&self) -> u32 {
        self.lock().running.len() as u32
    }

    /// Returns how every job is.
    pub(super) fn status(&self) -> Vec<JobStatus> {
        let running: Vec<Arc<Entry>> = self.lock().running.values().cloned().collect();
        running.iter().map(|entry| entry.status()).collect()
    }

    /// Does something to the jobs that are meant; returns their names.
    ///
    /// # Errors
    /// There are none, or it could be done to none of them.
    pub(super) fn change(
        &self,
        selection: &JobSelection,
        apply: impl Fn(&Handle) -> bool,
    ) -> Result<Vec<String>, String> {
        let is_meant = |wanted: &str, name: &str| wanted.is_empty() || wanted == name;
        let running: Vec<Arc<Entry>> = self.lock().running.values().cloned().collect();
        let meant: Vec<_> = running
            .iter()
            .filter(|entry| is_meant(&selection.run, &entry.run) && is_meant(&selection.stage, &entry.stage))
            .collect();
        if meant.is_empty() {
            return Err(match running.is_empty() {
                true => "no job is running".to_owned(),
                false => format!("no such job; there are {}", names(&running).join(", ")),
            });
        }
        let changed: Vec<_> =
            meant.into_iter().filter(|entry| entry.handle.as_ref().is_some_and(&apply)).cloned().collect();
        if changed.is_empty() {
            return Err("none of the jobs has an endpoint of that name".to_owned());
        }
        Ok(names(&changed))
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn names(entries: &[Arc<Entry>]) -> Vec<String> {
    entries.iter().map(|entry| format!("{}/{}", entry.run, entry.stage)).collect()
}

impl Running {
    /// Notes how far the job is.
    pub(super) fn reached(&self, done: u64, total: u64) {
        self.entry.done.store(done, Ordering::Relaxed);
        self.entry.total.store(total, Ordering::Relaxed);
    }

    /// Returns how the job is, for its stream.
    pub(super) fn progress(&self) -> Progress {
        self.entry.progress()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.jobs.lock().running.remove(&self.number);
    }
}

impl Entry {
    fn progress(&self) -> Progress {
        let (done, total) = (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed));
        let bill = self.handle.as_ref().map(Handle::bill).unwrap_or_default();
        Progress {
            done,
            total,
            note: self.handle.as_ref().and_then(Handle::waits).unwrap_or_default(),
            projected_usd: bill.projected_usd(done, total),
            usd_per_item: bill.usd_per_item(done),
            bill: Some(wire(&bill)),
        }
    }

    fn status(&self) -> JobStatus {
        let (in_flight, concurrency) = self.handle.as_ref().map(Handle::in_flight).unwrap_or_default();
        let endpoints = self.handle.as_ref().map(Handle::endpoints).unwrap_or_default();
        let paused = self.handle.as_ref().and_then(Handle::paused);
        JobStatus {
            run: self.run.clone(),
            stage: self.stage.clone(),
            model: self.model.clone(),
            progress: Some(self.progress()),
            in_flight: in_flight as u32,
            concurrency: concurrency as u32,
            paused: paused.map(|pause| pause.to_string()).unwrap_or_default(),
            endpoints: endpoints.into_iter().map(endpoint).collect(),
        }
    }
}

fn endpoint(view: EndpointView) -> EndpointStatus {
    EndpointStatus {
        name: view.name,
        in_flight: view.in_flight as u32,
        weight: view.weight,
        requests_per_minute: view.pacing.requests_per_minute,
        tokens_per_minute: view.pacing.tokens_per_minute,
        sent_per_minute: view.pacing.sent_per_minute,
        refusals: view.pacing.refusals,
        halted: view.halted.unwrap_or_default(),
    }
}

/// Returns a bill for the wire.
pub(super) fn wire(bill: &BillNow) -> Bill {
    Bill {
        calls: bill.calls,
        reused: bill.reused,
        prompt_tokens: bill.prompt_tokens,
        completion_tokens: bill.completion_tokens,
        cost_usd: bill.cost_usd,
        prices: bill.prices.clone(),
        cached_tokens: bill.cached_tokens,
        account_usd: bill.account_usd,
        lost_usd: bill.lost_usd,
        cap_usd: bill.cap_usd,
    }
}
