//! Reading of records and documents: plain, gzip or xz; a JSON array or JSON lines.
//!
//! Both are told by content: compression by its magic bytes, the form by the first character that is not a space. Files
//! are streamed, one record in memory at a time. Every error names file, record (from 0), line (JSON lines) and field as
//! far as they are known; nothing read from a file can panic. What a record must contain is decided by its type, what
//! its content must be by the caller.

mod compressed;
mod listed;
mod locate;
mod scan;

use std::io::BufRead;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
pub use compressed::{open, read_to_end};
pub use listed::{Listed, listed};
use scan::{Elements, Lines};

/// Calls `visit` with index and record for every record of a file, in order, and returns their number.
///
/// A file without any record is an error.
pub fn for_each<T: DeserializeOwned>(path: &Path, mut visit: impl FnMut(usize, T) -> Result<()>) -> Result<usize> {
    let mut count = 0;
    for record in records(path)? {
        visit(count, record?)?;
        count += 1;
    }
    Ok(count)
}

/// Reads all records of a file. A file without any record is an error.
pub fn read_all<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    records(path)?.collect()
}

/// Reads a file that is one JSON document.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    parse_json(path, &read_to_end(path)?)
}

/// As [`read_json`], of a file whose bytes were read already.
pub fn parse_json<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    let bytes = bytes.strip_prefix(BOM).unwrap_or(bytes);
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(Error::file(path, "is empty"));
    }
    parse(path, None, None, bytes)
}

/// Opens a file of records; the iterator yields them in order and ends after the first error.
pub fn records<T: DeserializeOwned>(path: &Path) -> Result<Records<T>> {
    let mut source = open(path)?;
    let (first, skipped_lines) = scan::skip_space(&mut source).map_err(|error| compressed::read_error(path, error))?;
    let form = match first {
        None => return Err(Error::file(path, "is empty")),
        Some(b'[') => Form::Array(Elements::new(source)),
        Some(_) => Form::Lines(Lines::new(source, skipped_lines)),
    };
    Ok(Records { path: path.to_owned(), form, index: 0, ended: false, of: std::marker::PhantomData })
}

/// The records of one file, in order.
pub struct Records<T> {
    path: PathBuf,
    form: Form,
    index: usize,
    ended: bool,
    of: std::marker::PhantomData<fn() -> T>,
}

enum Form {
    Array(Elements<Box<dyn BufRead>>),
    Lines(Lines<Box<dyn BufRead>>),
}

impl<T: DeserializeOwned> Records<T> {
    fn read_next(&mut self) -> Result<Option<T>> {
        let bytes = match &mut self.form {
            Form::Array(elements) => elements.next_element().map(|next| next.map(|bytes| (bytes, None))),
            Form::Lines(lines) => lines.next_line().map(|next| next.map(|(bytes, line)| (bytes, Some(line)))),
        };
        let bytes = bytes.map_err(|error| scan_error(&self.path, Some(self.index), error))?;
        match bytes {
            None if self.index == 0 => Err(Error::file(&self.path, "holds no record")),
            None => Ok(None),
            Some((bytes, line)) => parse(&self.path, Some(self.index), line, bytes).map(Some),
        }
    }
}

impl<T: DeserializeOwned> Iterator for Records<T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Result<T>> {
        if self.ended {
            return None;
        }
        let next = self.read_next().transpose();
        match &next {
            Some(Ok(_)) => self.index += 1,
            Some(Err(_)) | None => self.ended = true,
        }
        next
    }
}

/// Places what kept a record's text from being cut out.
fn scan_error(path: &Path, record: Option<usize>, error: scan::Error) -> Error {
    match error {
        scan::Error::Read(error) => compressed::read_error(path, error),
        scan::Error::Form(problem) => {
            Error::Input { file: path.to_owned(), record, line: None, field: None, problem: problem.into() }
        }
    }
}

const BOM: &[u8] = b"\xef\xbb\xbf";

/// Parses one JSON value; what goes wrong is placed as exactly as the bytes allow.
fn parse<T: DeserializeOwned>(path: &Path, record: Option<usize>, line: Option<u64>, bytes: &[u8]) -> Result<T> {
    let place = |field, problem| Error::Input { file: path.to_owned(), record, line, field, problem };
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let field = locate::field_at(bytes, error.valid_up_to());
            return Err(place(field, "holds bytes that are not UTF-8; convert the file to UTF-8".into()));
        }
    };
    serde_json::from_str(text).map_err(|error| {
        let (field, problem) = locate::explain(bytes, &error);
        let problem = match line {
            Some(1) if error.is_eof() && matches!(text.trim(), "{") => {
                "starts a JSON object over several lines; expected a JSON array or one record a line".into()
            }
            _ => problem,
        };
        place(field, problem)
    })
}

#[cfg(test)]
mod tests;
