//! /v1/files: what batches read and write, kept in memory.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Multipart, Path, Query, State};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::reply::Refusal;
use super::{Entitled, Mock, lock};

/// The largest input of a batch.
pub(super) const MOST_BYTES: usize = 200 * 1000 * 1000;
/// The largest request that is read at all.
pub(super) const MOST_UPLOADED: usize = 512 * 1000 * 1000;

/// The files, in the order of their creation.
#[derive(Debug, Default)]
pub(super) struct Files {
    stored: Vec<Stored>,
    created: u64,
}

#[derive(Debug, Clone)]
struct Stored {
    id: String,
    name: String,
    purpose: String,
    created_at: u64,
    bytes: Bytes,
}

impl Files {
    /// Stores a file under a new id. `origin` keeps the ids of two runs of the mock apart.
    pub(super) fn store(&mut self, origin: u64, date: u64, name: &str, purpose: &str, bytes: Bytes) -> String {
        self.created += 1;
        let id = format!("file-{}", super::id(origin, "file", self.created));
        let (name, purpose) = (name.to_owned(), purpose.to_owned());
        self.stored.push(Stored { id: id.clone(), name, purpose, created_at: date, bytes });
        id
    }

    /// Returns a file's content.
    pub(super) fn content(&self, id: &str) -> Option<Bytes> {
        self.find(id).map(|stored| stored.bytes.clone())
    }

    fn find(&self, id: &str) -> Option<&Stored> {
        self.stored.iter().find(|stored| stored.id == id)
    }
}

impl Stored {
    fn told(&self) -> Value {
        json!({
            "id": self.id, "object": "file", "bytes": self.bytes.len(), "created_at": self.created_at,
            "filename": self.name, "purpose": self.purpose, "status": "processed", "status_details": null,
            "expires_at": null,
        })
    }
}

fn unknown(id: &str) -> Refusal {
    Refusal { param: Some("id"), ..Refusal::missing(format!("No such File object: {id}")) }
}

pub(super) async fn upload(
    State(mock): State<Arc<Mock>>,
    _: Entitled,
    mut form: Multipart,
) -> Result<Response, Refusal> {
    let (mut purpose, mut file) = (None, None);
    let broken = |error: axum::extract::multipart::MultipartError| Refusal {
        status: error.status().as_u16(),
        ..Refusal::bad(format!("the form cannot be read: {}", error.body_text()))
    };
    while let Some(field) = form.next_field().await.map_err(broken)? {
        match field.name() {
            Some("purpose") => purpose = Some(field.text().await.map_err(broken)?),
            Some("file") => {
                let name = field.file_name().unwrap_or("upload").to_owned();
                file = Some((name, field.bytes().await.map_err(broken)?));
            }
            _ => {}
        }
    }
    let purpose = purpose.ok_or_else(|| Refusal::of_param("purpose", "'purpose' is a required property"))?;
    let (name, bytes) = file.ok_or_else(|| Refusal::of_param("file", "'file' is a required property"))?;
    if purpose != "batch" {
        return Err(Refusal::of_param("purpose", format!("'{purpose}' is not one of ['batch']")));
    }
    if bytes.len() > MOST_BYTES {
        return Err(Refusal { code: None, ..Refusal::bad("File is too large.") });
    }
    if !name.ends_with(".jsonl") {
        return Err(Refusal { code: None, ..Refusal::bad("Invalid file format for Batch API. Must be .jsonl") });
    }
    let date = mock.clock.date(mock.clock.now());
    let mut files = lock(&mock.files);
    let id = files.store(mock.clock.origin(), date, &name, &purpose, bytes);
    let told = files.find(&id).map(Stored::told);
    Ok(Json(told).into_response())
}

#[derive(Debug, Deserialize)]
pub(super) struct Wanted {
    purpose: Option<String>,
}

pub(super) async fn list(State(mock): State<Arc<Mock>>, _: Entitled, Query(wanted): Query<Wanted>) -> Json<Value> {
    let files = lock(&mock.files);
    let of_purpose = |stored: &&Stored| wanted.purpose.as_ref().is_none_or(|purpose| *purpose == stored.purpose);
    let data: Vec<Value> = files.stored.iter().rev().filter(of_purpose).map(Stored::told).collect();
    let id = |file: Option<&Value>| file.map_or(Value::Null, |file| file["id"].clone());
    Json(
        json!({"object": "list", "first_id": id(data.first()), "last_id": id(data.last()), "has_more": false, "data": data}),
    )
}

pub(super) async fn show(
    State(mock): State<Arc<Mock>>,
    _: Entitled,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    lock(&mock.files).find(&id).map(|stored| Json(stored.told())).ok_or_else(|| unknown(&id))
}

pub(super) async fn content(
    State(mock): State<Arc<Mock>>,
    _: Entitled,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let bytes = lock(&mock.files).content(&id).ok_or_else(|| unknown(&id))?;
    Ok(([("content-type", "application/octet-stream")], bytes).into_response())
}

pub(super) async fn delete(
    State(mock): State<Arc<Mock>>,
    _: Entitled,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let mut files = lock(&mock.files);
    let before = files.stored.len();
    files.stored.retain(|stored| stored.id != id);
    if files.stored.len() == before {
        return Err(unknown(&id));
    }
    Ok(Json(json!({"id": id, "object": "file", "deleted": true})))
}
