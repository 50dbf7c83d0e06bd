//! Records that cannot be used, kept with their reason beside the output instead of being dropped.
//!
//! Commands that write beside each other share a file: every entry says who set it aside, and a command replaces its own
//! entries alone.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::input;
use crate::output::{sibling, write_json};

/// Collects unusable records of one command.
#[derive(Debug)]
pub struct Quarantine {
    by: &'static str,
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Entry {
    /// The command that set it aside: "data split".
    by: String,
    /// Index of the record in its input file, from 0.
    index: usize,
    file: String,
    field: String,
    reason: String,
    record: Value,
}

impl Quarantine {
    /// Returns an empty quarantine of a command: "data split".
    pub fn of(command: &'static str) -> Quarantine {
        Quarantine { by: command, entries: Vec::new() }
    }

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
        let by = self.by.to_owned();
        self.entries.push(Entry { by, index, file, field: field.to_owned(), reason: reason.to_owned(), record });
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

    /// Writes `<stem>_quarantine.json` beside `output`; returns its path, `None` where this command has nothing to write.
    ///
    /// This command's entries of an earlier run go, those of other commands stay; a file without entries is removed.
    ///
    /// # Errors
    /// A file of that name is no quarantine; the disk.
    pub fn write_beside(&self, output: &Path) -> Result<Option<PathBuf>> {
        let path = sibling(output, "_quarantine");
        let before: Vec<Entry> = if path.exists() {
            input::read_json(&path).map_err(|error| {
                let problem = format!("is in the way of the records set aside and is no quarantine ({error}); move it");
                Error::file(&path, problem)
            })?
        } else {
            Vec::new()
        };
        let others = before.iter().filter(|entry| entry.by != self.by).cloned();
        let entries: Vec<Entry> = others.chain(self.entries.iter().cloned()).collect();
        if !entries.is_empty() {
            write_json(&path, &entries)?;
        } else if !before.is_empty() {
            std::fs::remove_file(&path).map_err(|source| Error::io("remove", &path, source))?;
        }
        Ok((!self.entries.is_empty()).then_some(path))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn records_set_aside_are_written_with_place_and_reason_and_stale_ones_go() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("pairs.json");
        let mut quarantine = Quarantine::of("data prepare");
        quarantine.push(Path::new("in.jsonl"), 4, "chosen", "is empty", &json!({"chosen": ""})).unwrap();
        let path = quarantine.write_beside(&output).unwrap().unwrap();
        assert_eq!(path, folder.path().join("pairs_quarantine.json"));
        let written: Value = input::read_json(&path).unwrap();
        assert_eq!(
            written,
            json!([{"by": "data prepare", "index": 4, "file": "in.jsonl", "field": "chosen", "reason": "is empty",
                    "record": {"chosen": ""}}])
        );
        assert_eq!(Quarantine::of("data prepare").write_beside(&output).unwrap(), None);
        assert!(!path.exists());
    }

    #[test]
    fn what_another_command_set_aside_stays() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("pairs.json");
        let mut first = Quarantine::of("data prepare");
        first.push(Path::new("in.jsonl"), 4, "chosen", "is empty", &json!({"chosen": ""})).unwrap();
        let path = first.write_beside(&output).unwrap().unwrap();
        let before = std::fs::read(&path).unwrap();
        assert_eq!(Quarantine::of("data split").write_beside(&output).unwrap(), None);
        assert_eq!(std::fs::read(&path).unwrap(), before);
        let mut second = Quarantine::of("data split");
        second.push(Path::new("pairs.json"), 0, "prompt", "is empty", &json!({"prompt": ""})).unwrap();
        second.write_beside(&output).unwrap();
        let written: Value = input::read_json(&path).unwrap();
        assert_eq!(written.as_array().unwrap().len(), 2, "{written}");
    }

    #[test]
    fn a_file_that_is_no_quarantine_is_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pairs_quarantine.json");
        std::fs::write(&path, "[{\"prompt\": \"mine\"}]").unwrap();
        let error = Quarantine::of("x").write_beside(&folder.path().join("pairs.json")).unwrap_err().to_string();
        assert!(error.contains("pairs_quarantine.json") && error.contains("no quarantine"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "[{\"prompt\": \"mine\"}]");
    }
}
