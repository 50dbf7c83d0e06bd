//! Records that cannot be used, kept with their reason beside the output instead of being dropped.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::output::{sibling, write_json};

/// Collects unusable records of one command.
#[derive(Debug, Default)]
pub struct Quarantine {
    entries: Vec<Entry>,
}

#[derive(Debug, Serialize)]
struct Entry {
    /// Index of the record in its input file, from 0.
    index: usize,
    file: String,
    field: String,
    reason: String,
    record: Value,
}

impl Quarantine {
    /// Sets aside a record of which `field` makes it unusable; `reason` ends a sentence about the field ("is empty").
    pub fn push<T: Serialize>(
        &mut self,
        file: &Path,
        index: usize,
        field: &str,
        reason: &str,
        record: &T,
    ) -> Result<()> {
        let record = serde_json::to_value(record)
            .map_err(|error| Error::field(file, index, field, format!("has no form in JSON: {error}")))?;
        let file = file.display().to_string();
        self.entries.push(Entry { index, file, field: field.to_owned(), reason: reason.to_owned(), record });
        Ok(())
    }

    /// Returns how many records were set aside.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns whether every record was usable.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Writes `<stem>_quarantine.json` beside `output`; returns its path, `None` where there is nothing to write.
    ///
    /// Such a file of an earlier run that no longer applies is removed.
    pub fn write_beside(&self, output: &Path) -> Result<Option<PathBuf>> {
        let path = sibling(output, "_quarantine");
        if self.entries.is_empty() {
            return match std::fs::remove_file(&path) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", &path, source)),
                _ => Ok(None),
            };
        }
        write_json(&path, &self.entries)?;
        Ok(Some(path))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn records_set_aside_are_written_with_place_and_reason_and_stale_files_go() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("pairs.json");
        let mut quarantine = Quarantine::default();
        quarantine.push(Path::new("in.jsonl"), 4, "chosen", "is empty", &json!({"chosen": ""})).unwrap();
        let path = quarantine.write_beside(&output).unwrap().unwrap();
        assert_eq!(path, folder.path().join("pairs_quarantine.json"));
        let written: Value = crate::input::read_json(&path).unwrap();
        assert_eq!(
            written,
            json!([{"index": 4, "file": "in.jsonl", "field": "chosen", "reason": "is empty", "record": {"chosen": ""}}])
        );
        assert_eq!(Quarantine::default().write_beside(&output).unwrap(), None);
        assert!(!path.exists());
    }
}
