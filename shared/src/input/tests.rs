use std::io::Write;

use serde_json::{Value, json};

use super::*;
use crate::record::{Category, Record, Text};

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

fn failure<T: DeserializeOwned>(path: &Path) -> String {
    let error = read_all::<T>(path).map(|_| ()).unwrap_err().to_string();
    let folder = path.parent().unwrap().to_str().unwrap().to_owned() + "/";
    assert!(error.starts_with(&folder), "the file is not named first: {error}");
    error.replace(&folder, "")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

const ARRAY: &str = r#" [ {"a": "x, ]} \" \\", "b": [1, {"c": 2}]} ,
 {"a": "ü"}, 3, [], "s" ] "#;

#[test]
fn arrays_are_cut_at_their_own_commas_only() {
    let folder = Folder::new();
    let expected: Vec<Value> = serde_json::from_str(ARRAY).unwrap();
    assert_eq!(expected.len(), 5);
    assert_eq!(read_all::<Value>(&folder.file("a.json", ARRAY)).unwrap(), expected);
}

#[test]
fn records_longer_than_the_buffer_are_whole() {
    let folder = Folder::new();
    let long = json!([{"a": "\\\"".repeat(200_000)}, {"a": "b".repeat(300_000)}]);
    assert_eq!(json!(read_all::<Value>(&folder.file("a.json", long.to_string())).unwrap()), long);
}

#[test]
fn lines_may_be_blank_end_in_crlf_and_follow_a_byte_order_mark() {
    let folder = Folder::new();
    let path = folder.file("a.jsonl", "\u{feff}\n{\"a\": 1}\r\n\n  \n{\"a\": 2}");
    assert_eq!(read_all::<Value>(&path).unwrap(), [json!({"a": 1}), json!({"a": 2})]);
    let path = folder.file("b.json", "\u{feff}[1]");
    assert_eq!(read_all::<Value>(&path).unwrap(), [json!(1)]);
}

#[test]
fn compression_is_told_by_content() {
    let folder = Folder::new();
    let expected: Vec<Value> = serde_json::from_str(ARRAY).unwrap();
    for (name, bytes) in [("a.json.gz", gzip(ARRAY.as_bytes())), ("b.json.xz", xz(ARRAY.as_bytes()))] {
        assert_eq!(read_all::<Value>(&folder.file(name, &bytes)).unwrap(), expected);
        assert_eq!(read_all::<Value>(&folder.file("renamed.json", &bytes)).unwrap(), expected);
        let cut = failure::<Value>(&folder.file(name, &bytes[..bytes.len() - 9]));
        assert!(cut.contains("the compressed data is cut off or damaged"), "{cut}");
    }
    assert_eq!(
        failure::<Value>(&folder.file("c.json.gz", "[1]")),
        "c.json.gz: is named .gz but does not hold gzip data; rename it"
    );
    let joined = [gzip(b"[1,"), gzip(b"2]")].concat();
    assert_eq!(read_all::<Value>(&folder.file("d.json.gz", joined)).unwrap(), [json!(1), json!(2)]);
}

#[test]
fn files_without_records_are_errors() {
    let folder = Folder::new();
    assert_eq!(failure::<Value>(&folder.file("a.json", "")), "a.json: is empty");
    assert_eq!(failure::<Value>(&folder.file("a.json", " \n")), "a.json: is empty");
    assert_eq!(failure::<Value>(&folder.file("a.json.gz", gzip(b""))), "a.json.gz: is empty");
    assert_eq!(failure::<Value>(&folder.file("a.json", "[ ]")), "a.json: holds no record");
    let absent = failure::<Value>(&folder.0.path().join("absent.json"));
    assert!(absent.starts_with("absent.json: cannot open: "), "{absent}");
}

#[test]
fn malformed_arrays_name_the_record_where_they_break() {
    let folder = Folder::new();
    for (text, expected) in [
        ("[1, 2", "a.json: record 1: the file ends in the middle of the array; it is cut off"),
        ("[1, 2, ", "a.json: record 2: the file ends in the middle of the array; it is cut off"),
        (r#"[1, {"a": "b"#, "a.json: record 1: the file ends in the middle of the array; it is cut off"),
        ("[1, 2,]", "a.json: record 2: a comma of the array has no element after it"),
        ("[,1]", "a.json: record 0: the array starts with a comma"),
        ("[1] [2]", "a.json: record 1: there is more text after the end of the array"),
        ("[1, x]", "a.json: record 1: is not valid JSON: expected value"),
    ] {
        let found = failure::<Value>(&folder.file("a.json", text));
        assert!(found.starts_with(expected), "{text}: {found}");
    }
}

#[test]
fn malformed_lines_name_record_and_line() {
    let folder = Folder::new();
    assert_eq!(
        failure::<Value>(&folder.file("a.jsonl", "\n{\"a\": 1}\n\n{\"a\": ")),
        "a.jsonl: record 1 (line 4): is cut off: the JSON value has no end"
    );
    assert_eq!(
        failure::<Value>(&folder.file("a.json", "{\n  \"prompt\": \"x\"\n}\n")),
        "a.json: record 0 (line 1): starts a JSON object over several lines; expected a JSON array or one record a line"
    );
}

#[test]
fn errors_of_content_name_the_field() {
    let folder = Folder::new();
    let good = r#"{"prompt": "p", "chosen": "c", "rejected": "r", "category": "RETAIN"}"#;
    for (bad, expected) in [
        (r#"{"prompt": "p", "rejected": "r"}"#, r#"field "chosen": is missing"#),
        (
            r#"{"prompt": "p", "chosen": 5, "rejected": "r"}"#,
            r#"field "chosen": invalid type: integer `5`, expected a string or a list of chat turns"#,
        ),
        (r#"{"prompt": [{"role": "user"}], "chosen": "c"}"#, r#"field "prompt": missing field `content`"#),
        (
            r#"{"prompt": "p", "chosen": "c", "category": "OTHER", "rejected": "r"}"#,
            r#"field "category": unknown category "OTHER"; expected INVERT, PUNISH or RETAIN"#,
        ),
        (
            r#"{"prompt": "p", "chosen": "c", "category": 1, "rejected": "r"}"#,
            r#"field "category": invalid type: integer `1`, expected "INVERT", "PUNISH" or "RETAIN""#,
        ),
        (
            "{\"prompt\": \"p\",\n \"chosen\": \"c\",\n \"impact_score\": \"high\"}",
            r#"field "impact_score": invalid type: string "high", expected f64"#,
        ),
        (
            "{\"prompt\": \"p\",\n \"chosen\": \"c\",\n \"impact_score\": NaN}",
            r#"field "impact_score": is not valid JSON: expected value"#,
        ),
        (r#"7"#, "invalid type: integer `7`"),
        ("{\"prompt\": \"p\", \"chosen\": \"\u{7}\"}", r#"field "chosen": is not valid JSON: control character"#),
    ] {
        let found = failure::<Record>(&folder.file("a.json", format!("[{good},\n{bad}]")));
        assert!(found.starts_with(&format!("a.json: record 1: {expected}")), "{bad}: {found}");
        let bad = bad.replace('\n', " ");
        let found = failure::<Record>(&folder.file("a.jsonl", format!("{good}\n{bad}\n")));
        assert!(found.starts_with(&format!("a.jsonl: record 1 (line 2): {expected}")), "{bad}: {found}");
    }
}

#[test]
fn invalid_utf8_names_record_and_field() {
    let folder = Folder::new();
    let bytes = b"[{\"prompt\": \"p\", \"chosen\": \"c\"}, {\"prompt\": \"p\", \"chosen\": \"\xff\xfe\"}]";
    assert_eq!(
        failure::<Record>(&folder.file("a.json", bytes)),
        "a.json: record 1: field \"chosen\": holds bytes that are not UTF-8; convert the file to UTF-8"
    );
}

#[test]
fn records_keep_order_turns_and_unknown_fields() {
    let folder = Folder::new();
    let path = folder.file(
        "a.jsonl",
        r#"{"id": 7, "prompt": [{"role": "user", "content": "x"}], "chosen": "c", "category": "INVERT", "z": null}"#,
    );
    let record = &read_all::<Record>(&path).unwrap()[0];
    assert!(matches!(&record.prompt, Text::Turns(turns) if turns[0].content == "x"));
    assert_eq!(record.category, Some(Category::Invert));
    assert_eq!(record.extra["id"], 7);
    assert!(record.extra.contains_key("z"));
}

#[test]
fn visiting_stops_at_the_first_error_of_the_visitor() {
    let folder = Folder::new();
    let path = folder.file("a.json", "[0, 1, 2]");
    let mut seen = Vec::new();
    let result = for_each(&path, |index, value: usize| {
        seen.push((index, value));
        if index == 1 { Err(Error::field(&path, index, "x", "is bad")) } else { Ok(()) }
    });
    assert!(result.is_err());
    assert_eq!(seen, [(0, 0), (1, 1)]);
    assert_eq!(for_each(&path, |_, _: usize| Ok(())).unwrap(), 3);
}

#[test]
fn a_document_is_read_whole() {
    let folder = Folder::new();
    assert_eq!(read_json::<Value>(&folder.file("a.json", "\u{feff}{\n \"a\": 1}\n")).unwrap(), json!({"a": 1}));
    let error = read_json::<Value>(&folder.file("a.json", "{\"a\": 1")).unwrap_err().to_string();
    assert!(error.ends_with("a.json: is cut off: the JSON value has no end"), "{error}");
}
