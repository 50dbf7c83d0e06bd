//! One commit as a line of the log, and where a value lies in it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One change of one value.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    pub(super) tree: String,
    pub(super) key: String,
    /// The value's JSON; none removes it.
    value: Option<String>,
}

impl Change {
    /// Sets a value.
    pub fn put(tree: &str, key: impl Into<String>, value: &impl Serialize) -> Change {
        let value = serde_json::to_string(value).expect("stored values are plain data");
        Change { tree: tree.to_owned(), key: key.into(), value: (value != "null").then_some(value) }
    }

    /// Removes a value, if it is there.
    pub fn remove(tree: &str, key: impl Into<String>) -> Change {
        Change { tree: tree.to_owned(), key: key.into(), value: None }
    }

    /// Returns the value's JSON; none where it is removed.
    pub fn value(&self) -> Option<&str> {
        self.value.as_deref()
    }

    /// Returns the tree and the key.
    pub fn name(&self) -> (&str, &str) {
        (&self.tree, &self.key)
    }

    pub(super) fn is_put(&self) -> bool {
        self.value.is_some()
    }
}

/// A line as it was read: the commit's number, and tree, key and value of each change.
#[derive(Debug, Deserialize)]
pub(super) struct Line {
    pub(super) n: u64,
    pub(super) c: Vec<(String, String, Value)>,
}

/// Where a value lies in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Where its line begins.
    pub(super) line: u64,
    /// The line's length, with its end.
    pub(super) bytes: u32,
    /// Which of the line's changes it is.
    pub(super) change: u16,
}

/// Appends a commit's line.
pub(super) fn write(out: &mut Vec<u8>, number: u64, changes: &[Change]) {
    let start = out.len();
    out.extend_from_slice(&[b' '; 17]);
    out.extend_from_slice(format!("{{\"n\":{number},\"c\":[").as_bytes());
    for (index, Change { tree, key, value }) in changes.iter().enumerate() {
        out.extend_from_slice(if index == 0 { b"[" } else { b",[" });
        for name in [tree, key] {
            serde_json::to_writer(&mut *out, name).expect("a string has a form in JSON");
            out.push(b',');
        }
        out.extend_from_slice(value.as_deref().unwrap_or("null").as_bytes());
        out.push(b']');
    }
    out.extend_from_slice(b"]}");
    let sum = checksum(&out[start + 17..]);
    out[start..start + 16].copy_from_slice(sum.as_bytes());
    out.push(b'\n');
}

/// Reads a line with its end; none if it is not what was written.
pub(super) fn read(text: &[u8]) -> Option<Line> {
    content(text).and_then(|line| serde_json::from_slice(line).ok())
}

/// Returns a line's JSON; none if it is not what was written.
pub(super) fn content(text: &[u8]) -> Option<&[u8]> {
    let text = text.strip_suffix(b"\n")?;
    let (sum, line) = (text.get(..16)?, text.get(17..)?);
    (checksum(line).as_bytes() == sum).then_some(line)
}

fn checksum(line: &[u8]) -> String {
    blake3::hash(line).to_hex()[..16].to_owned()
}

/// Returns trees and keys that a damaged line names, as far as they can still be read: whatever stands like a change in
/// it.
pub(super) fn names(text: &[u8]) -> Vec<(String, String)> {
    let text = String::from_utf8_lossy(text);
    let mut found = Vec::new();
    for (at, _) in text.match_indices("[\"") {
        let mut strings = serde_json::Deserializer::from_str(&text[at + 1..]).into_iter::<String>();
        let Some(Ok(tree)) = strings.next() else { continue };
        let rest = &text[at + 1 + strings.byte_offset()..];
        let Some(rest) = rest.strip_prefix(',') else { continue };
        let mut strings = serde_json::Deserializer::from_str(rest).into_iter::<String>();
        let Some(Ok(key)) = strings.next() else { continue };
        if rest[strings.byte_offset()..].starts_with(',') {
            found.push((tree, key));
        }
    }
    found
}

impl Place {
    /// Length of a place in the index, with the line that set the key first: just short enough to be kept within
    /// sled's own pointers.
    const BYTES: usize = 22;

    pub(super) fn to_bytes(self, born: u64) -> [u8; Place::BYTES] {
        let mut bytes = [0; Place::BYTES];
        bytes[..8].copy_from_slice(&self.line.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.bytes.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.change.to_le_bytes());
        bytes[14..].copy_from_slice(&born.to_le_bytes());
        bytes
    }

    /// Returns a place and the line that set the key first.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<(Place, u64)> {
        let bytes: &[u8; Place::BYTES] = bytes.try_into().ok()?;
        let place = Place {
            line: u64::from_le_bytes(*bytes.first_chunk()?),
            bytes: u32::from_le_bytes(*bytes[8..].first_chunk()?),
            change: u16::from_le_bytes(*bytes[12..].first_chunk()?),
        };
        Some((place, u64::from_le_bytes(*bytes.last_chunk()?)))
    }
}
