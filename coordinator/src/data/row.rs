//! One row of an input file as a JSON object, and checked access to its fields.
//!
//! Rows stay JSON objects so that fields nobody asked for keep their values and their order.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};
use shared::quarantine::Quarantine;
use shared::record::{Category, Text};
use shared::{Error, Result, input};

use crate::progress;

/// A row: field names to values, in file order.
pub(super) type Row = Map<String, Value>;

/// Where a row stands, for messages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub file: &'a Path,
    pub index: usize,
}

impl Place<'_> {
    pub(super) fn error(self, field: &str, problem: impl Into<String>) -> Error {
        Error::field(self.file, self.index, field, problem)
    }
}

/// Returns a field that must be there.
pub(super) fn required<'a>(row: &'a Row, place: Place<'_>, field: &str) -> Result<&'a Value> {
    row.get(field).ok_or_else(|| place.error(field, "is missing"))
}

/// Checks that a field is a string or a list of chat turns; returns whether it holds no text.
pub(super) fn text_is_empty(row: &Row, place: Place<'_>, field: &str) -> Result<bool> {
    match required(row, place, field)? {
        Value::String(text) => Ok(text.trim().is_empty()),
        other => match Text::deserialize(other) {
            Ok(turns) => Ok(turns.is_empty()),
            Err(error) => Err(place.error(field, error.to_string())),
        },
    }
}

/// Returns the first of prompt, chosen and rejected that holds no text, after checking all three.
pub(super) fn empty_text(row: &Row, place: Place<'_>) -> Result<Option<&'static str>> {
    let mut first = None;
    for field in ["prompt", "chosen", "rejected"] {
        if text_is_empty(row, place, field)? && first.is_none() {
            first = Some(field);
        }
    }
    Ok(first)
}

/// Returns the row's category, `None` where it has none.
pub(super) fn category(row: &Row, place: Place<'_>) -> Result<Option<Category>> {
    match row.get("category") {
        None => Ok(None),
        Some(Value::String(name)) => match name.parse() {
            Ok(category) => Ok(Some(category)),
            Err(problem) => Err(place.error("category", problem)),
        },
        Some(other) => Err(place.error("category", format!("is {}, expected a string", kind(other)))),
    }
}

/// Returns what kind of value this is, with its article.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A usable record of a labelled file.
pub(super) struct Labelled {
    pub row: Row,
    pub category: Option<Category>,
    /// Index in the file, quarantined records counted.
    pub index: usize,
}

/// Reads a file of records with optional categories; records with empty text are set aside.
pub(super) fn read_labelled(file: &Path) -> Result<(Vec<Labelled>, Quarantine)> {
    let mut records = Vec::new();
    let mut quarantine = Quarantine::default();
    let progress = progress::counter("records read");
    input::for_each(file, |index, row: Row| {
        progress.inc(1);
        let place = Place { file, index };
        let category = category(&row, place)?;
        match empty_text(&row, place)? {
            Some(field) => quarantine.push(file, index, field, "is empty", &row)?,
            None => records.push(Labelled { row, category, index }),
        }
        Ok(())
    })?;
    progress.finish_and_clear();
    Ok((records, quarantine))
}
