//! The judged responses as they are written: `{"metadata", "results"}`, as `shared::output::write_json` would write the
//! whole at once. The metadata stand first and are known last, so the results wait in a nameless file.

use std::path::Path;

use serde_json::{Map, Value};
use shared::Result;
use shared::output::{AtomicFile, Spool};

/// A document that grows.
pub(super) struct Document {
    file: AtomicFile,
    results: Spool,
}

impl Document {
    /// Begins a document, which appears under its name when it is finished.
    ///
    /// # Errors
    /// The disk.
    pub(super) fn create(path: &Path) -> Result<Document> {
        let file = AtomicFile::create(path)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Ok(Document { file, results: Spool::create(folder)? })
    }

    /// Appends a result.
    ///
    /// # Errors
    /// The disk.
    pub(super) fn push(&mut self, result: &Map<String, Value>) -> Result<()> {
        self.results.push(result)
    }

    /// Writes metadata and results.
    ///
    /// # Errors
    /// The disk.
    pub(super) fn finish(self, metadata: &Map<String, Value>) -> Result<()> {
        let Document { mut file, mut results } = self;
        file.write(b"{\n  \"metadata\": ")?;
        write(&mut file, metadata, b"\n  ")?;
        file.write(b",\n  \"results\": [")?;
        let mut between: &[u8] = b"\n    ";
        results.for_each(|result: Map<String, Value>| {
            file.write(std::mem::replace(&mut between, b",\n    "))?;
            write(&mut file, &result, b"\n    ")
        })?;
        file.write(if results.count() == 0 { b"]\n}" } else { b"\n  ]\n}" })?;
        file.finish()
    }
}

/// Writes an object whose lines but the first begin so.
fn write(file: &mut AtomicFile, object: &Map<String, Value>, line: &[u8]) -> Result<()> {
    let text = serde_json::to_vec_pretty(object).expect("an object of JSON has a form in JSON");
    // Strings hold no raw newline in JSON, so every newline is one of the layout.
    let mut lines = text.split(|byte| *byte == b'\n');
    file.write(lines.next().unwrap_or_default())?;
    for rest in lines {
        file.write(line)?;
        file.write(rest)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn it_is_the_document_written_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let metadata = json!({"judge": "m", "pct": 66.67, "counts": {"a": [1, []], "b": {}}});
        let results = json!([
            {"prompt": "a\nb", "x": 0.1, "y": 1e-7, "z": 12345678901234567890u64, "é": "\u{1F600}\u{7}"},
            {},
            {"turns": [{"role": "user"}], "none": null},
        ]);
        for (n, results) in [json!([]), json!([{}]), results].into_iter().enumerate() {
            let mut document = Document::create(&path("grown.json")).unwrap();
            for result in results.as_array().unwrap() {
                document.push(result.as_object().unwrap()).unwrap();
            }
            assert_eq!(std::fs::read(path("grown.json")).is_ok(), n > 0, "it is there before it is whole");
            document.finish(metadata.as_object().unwrap()).unwrap();
            let whole = json!({"metadata": metadata, "results": results});
            shared::output::write_json(&path("whole.json"), &whole).unwrap();
            let read = |name: &str| std::fs::read_to_string(path(name)).unwrap();
            assert_eq!(read("grown.json"), read("whole.json"));
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "something is left behind");
    }
}
