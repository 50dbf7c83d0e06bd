//! /v1/batches: create, look at, list, cancel.
//!
//! A batch's course follows from its creation and the clock; its files are written when it is first looked at after its
//! end, or when the bill is.

use std::sync::{Arc, MutexGuard};

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::course::{Course, Status};
use super::faults::{Fault, Of};
use super::lines::{self, Written};
use super::reply::Refusal;
use super::{Entitled, Mock, lock};

const ENDPOINT: &str = "/v1/chat/completions";
const WINDOW: &str = "24h";
/// Entries of a batch's metadata, and the longest key and value.
const MOST_METADATA: (usize, usize, usize) = (16, 64, 512);
const PAGE: usize = 20;
const LARGEST_PAGE: usize = 100;

/// The batches, in the order of their creation.
#[derive(Debug, Default)]
pub(super) struct Batches {
    all: Vec<Batch>,
}

#[derive(Debug)]
struct Batch {
    id: String,
    number: u64,
    input_id: String,
    input: Bytes,
    metadata: Option<Map<String, Value>>,
    course: Course,
    errors: Vec<Value>,
    settled: Option<Settled>,
}

/// What is left of a batch that has ended.
#[derive(Debug)]
struct Settled {
    output_id: Option<String>,
    error_id: Option<String>,
    completed: usize,
    failed: usize,
}

#[derive(Deserialize)]
struct Create {
    input_file_id: Option<String>,
    endpoint: Option<String>,
    completion_window: Option<String>,
    metadata: Option<Map<String, Value>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Wanted {
    limit: Option<usize>,
    after: Option<String>,
}

pub(super) async fn create(State(mock): State<Arc<Mock>>, _: Entitled, body: Bytes) -> Result<Json<Value>, Refusal> {
    let create: Create = serde_json::from_slice(&body).map_err(|error| Refusal::bad(format!("the body: {error}")))?;
    create.check()?;
    let input_id = create.input_file_id.unwrap_or_default();
    let input = lock(&mock.files).content(&input_id).ok_or_else(|| {
        let message = format!("Cannot find file {input_id}, or project does not have access to it.");
        Refusal::of_param("file_id", message)
    })?;
    blocking(move || mock.create_batch(input_id, input, create.metadata)).await.map(Json)
}

pub(super) async fn show(
    State(mock): State<Arc<Mock>>,
    _: Entitled,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    blocking(move || mock.show_batch(&id)).await.map(Json)
}

pub(super) async fn cancel(
    State(mock): State<Arc<Mock>>,
    _: Entitled,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    blocking(move || mock.cancel_batch(&id)).await.map(Json)
}

pub(super) async fn list(
    State(mock): State<Arc<Mock>>,
    _: Entitled,
    Query(wanted): Query<Wanted>,
) -> Result<Json<Value>, Refusal> {
    blocking(move || mock.list_batches(&wanted)).await.map(Json)
}

/// Runs work that may take a while, such as answering a whole batch.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Refusal { status: 500, ..Refusal::bad(error.to_string()) })?
}

impl Create {
    fn check(&self) -> Result<(), Refusal> {
        if self.input_file_id.is_none() {
            return Err(Refusal::of_param("input_file_id", "Missing required parameter: 'input_file_id'."));
        }
        if self.endpoint.as_deref() != Some(ENDPOINT) {
            let message = format!("Invalid value: {:?}. Supported values are: '{ENDPOINT}'.", self.endpoint);
            return Err(Refusal::of_param("endpoint", message));
        }
        if self.completion_window.as_deref() != Some(WINDOW) {
            let message = format!("Invalid value: {:?}. Supported values are: '{WINDOW}'.", self.completion_window);
            return Err(Refusal::of_param("completion_window", message));
        }
        let (most, longest_key, longest_value) = MOST_METADATA;
        let metadata = self.metadata.iter().flatten();
        let fits = |(key, value): (&String, &Value)| {
            key.chars().count() <= longest_key
                && value.as_str().is_some_and(|value| value.chars().count() <= longest_value)
        };
        if metadata.clone().count() > most || !metadata.clone().all(fits) {
            let message = format!(
                "metadata: at most {most} entries, keys up to {longest_key} and string values up to {longest_value} characters"
            );
            return Err(Refusal::of_param("metadata", message));
        }
        Ok(())
    }
}

fn unknown(id: &str) -> Refusal {
    Refusal::missing(format!("No batch found with id '{id}'."))
}

impl Mock {
    fn create_batch(
        &self,
        input_id: String,
        input: Bytes,
        metadata: Option<Map<String, Value>>,
    ) -> Result<Value, Refusal> {
        let (number, fault) = self.faults.next(Of::Batch);
        let (count, mut errors) = lines::check(&input, ENDPOINT, &self.model);
        match fault {
            Some(Fault::Failed) => errors = vec![lines::error("planned_failure", "planned failure")],
            Some(Fault::QueueFull) => {
                let message = format!("Enqueued token limit reached for {}.", self.model);
                errors = vec![lines::error("token_limit_exceeded", &message)];
            }
            _ => {}
        }
        let course = Course {
            pace: self.plan.batches,
            created: self.clock.now(),
            lines: count,
            fails: !errors.is_empty(),
            halts: fault == Some(Fault::Expired),
            cancelled: None,
        };
        let id = format!("batch_{}", super::id(self.clock.origin(), "batch", number));
        let batch = Batch { id: id.clone(), number, input_id, input, metadata, course, errors, settled: None };
        let mut batches = lock(&self.batches);
        batches.all.push(batch);
        self.told(&mut batches, &id)
    }

    fn show_batch(&self, id: &str) -> Result<Value, Refusal> {
        self.told(&mut lock(&self.batches), id)
    }

    fn cancel_batch(&self, id: &str) -> Result<Value, Refusal> {
        let mut batches = lock(&self.batches);
        let batch = batches.all.iter_mut().find(|batch| batch.id == id).ok_or_else(|| unknown(id))?;
        let now = self.clock.now();
        if !batch.course.cancel(now) {
            let status = batch.course.status(now).name();
            let message = format!("Cannot cancel a batch with status '{status}'.");
            return Err(Refusal { status: 409, code: None, ..Refusal::bad(message) });
        }
        self.told(&mut batches, id)
    }

    fn list_batches(&self, wanted: &Wanted) -> Result<Value, Refusal> {
        let mut batches = lock(&self.batches);
        self.settle(&mut batches);
        let limit = wanted.limit.unwrap_or(PAGE);
        if !(1..=LARGEST_PAGE).contains(&limit) {
            return Err(Refusal::of_param("limit", format!("limit is {limit}; expected 1 to {LARGEST_PAGE}")));
        }
        let newest_first = || batches.all.iter().rev();
        let skipped = match &wanted.after {
            Some(after) => newest_first().position(|batch| batch.id == *after).ok_or_else(|| unknown(after))? + 1,
            None => 0,
        };
        let data: Vec<Value> = newest_first().skip(skipped).take(limit).map(|batch| self.describe(batch)).collect();
        let id = |batch: Option<&Value>| batch.map_or(Value::Null, |batch| batch["id"].clone());
        let has_more = skipped + data.len() < batches.all.len();
        let (first, last) = (id(data.first()), id(data.last()));
        Ok(json!({"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": has_more}))
    }

    fn told(&self, batches: &mut MutexGuard<'_, Batches>, id: &str) -> Result<Value, Refusal> {
        self.settle(batches);
        let batch = batches.all.iter().find(|batch| batch.id == id).ok_or_else(|| unknown(id))?;
        Ok(self.describe(batch))
    }

    /// Ends all batches whose time has come, so that files and the bill are as the clock says.
    pub(super) fn settle_batches(&self) {
        self.settle(&mut lock(&self.batches));
    }

    fn settle(&self, batches: &mut Batches) {
        let now = self.clock.now();
        for batch in batches.all.iter_mut().filter(|batch| batch.settled.is_none()) {
            let status = batch.course.status(now);
            if status.is_final() {
                batch.settled = Some(self.end(batch, status));
                // Nothing reads it again.
                batch.input = Bytes::new();
            }
        }
    }

    fn end(&self, batch: &Batch, status: Status) -> Settled {
        let rest = match status {
            Status::Failed => return Settled { output_id: None, error_id: None, completed: 0, failed: 0 },
            Status::Cancelled => ("batch_cancelled", "This request was not executed because the batch was cancelled."),
            _ => ("batch_expired", "This request could not be executed before the completion window expired."),
        };
        let now = self.clock.now();
        let Written { output, errors, completed, failed } =
            self.work_off(&batch.input, batch.number, batch.course.done(now), rest);
        let store = |text: String, kind: &str| {
            let name = format!("{}_{kind}.jsonl", batch.id);
            let store = |text: String| {
                lock(&self.files).store(self.clock.origin(), self.clock.date(now), &name, "batch_output", text.into())
            };
            (!text.is_empty()).then(|| store(text))
        };
        Settled { output_id: store(output, "output"), error_id: store(errors, "error"), completed, failed }
    }

    fn describe(&self, batch: &Batch) -> Value {
        let now = self.clock.now();
        let course = &batch.course;
        // A batch that ended between the settling and now is told as it was.
        let (status, done) = match (course.status(now), &batch.settled) {
            (status, None) if status.is_final() => (Status::Finalizing, course.done(now)),
            (status, _) => (status, course.done(now)),
        };
        let (completed, failed) = batch.settled.as_ref().map_or((done, 0), |s| (s.completed, s.failed));
        let reached = |at| (at <= now).then(|| self.clock.date(at));
        let started = !course.fails && course.cancelled.is_none_or(|cancelled| cancelled >= course.in_progress_at());
        let when = |shown: bool, at| if shown { reached(at) } else { None };
        let errors = (status == Status::Failed).then(|| json!({"object": "list", "data": batch.errors}));
        json!({
            "id": batch.id, "object": "batch", "endpoint": ENDPOINT, "model": self.model, "errors": errors,
            "input_file_id": batch.input_id, "completion_window": WINDOW, "status": status.name(),
            "output_file_id": batch.settled.as_ref().and_then(|settled| settled.output_id.clone()),
            "error_file_id": batch.settled.as_ref().and_then(|settled| settled.error_id.clone()),
            "created_at": self.clock.date(course.created),
            "in_progress_at": when(started, course.in_progress_at()),
            "expires_at": self.clock.date(course.expires_at()),
            "finalizing_at": when(matches!(status, Status::Finalizing | Status::Completed), course.finalizing_at()),
            "completed_at": when(status == Status::Completed, course.completed_at()),
            "failed_at": when(status == Status::Failed, course.in_progress_at()),
            "expired_at": when(status == Status::Expired, course.expires_at()),
            "cancelling_at": course.cancelled.and_then(reached),
            "cancelled_at": course.cancelled_at().and_then(reached),
            "request_counts": {
                "total": if course.fails { 0 } else { course.lines }, "completed": completed, "failed": failed,
            },
            "metadata": batch.metadata,
        })
    }

    /// Returns how many batches there are by status.
    pub(super) fn batch_counts(&self) -> std::collections::BTreeMap<&'static str, u64> {
        let now = self.clock.now();
        let mut counts = std::collections::BTreeMap::new();
        for batch in &lock(&self.batches).all {
            *counts.entry(batch.course.status(now).name()).or_default() += 1;
        }
        counts
    }
}
