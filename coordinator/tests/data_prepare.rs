//! `data prepare` as a program: every input format, the counts, and input that is wrong.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use parquet::data_type::{BoolType, ByteArray, ByteArrayType, Int64Type};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::{Value, json};
use support::Folder;

/// Rows that reach every line of the decision table, an unused one and an empty one.
fn rows() -> Vec<Value> {
    [(true, false, 1), (false, true, 1), (true, true, 0), (false, false, 1), (true, true, -1)]
        .into_iter()
        .enumerate()
        .map(|(index, (safe_0, safe_1, safer))| row(index, safe_0, safe_1, safer))
        .collect()
}

fn row(index: usize, safe_0: bool, safe_1: bool, safer: i64) -> Value {
    json!({"prompt": format!("frage {index} ü"), "response_0": format!("a{index}"), "response_1": format!("b{index}"),
        "is_response_0_safe": safe_0, "is_response_1_safe": safe_1, "better_response_id": 0, "safer_response_id": safer})
}

fn pairs() -> Value {
    let pair = |index: usize, chosen: &str, rejected: &str| {
        json!({"prompt": format!("frage {index} ü"), "chosen": format!("{chosen}{index}"),
            "rejected": format!("{rejected}{index}")})
    };
    json!([pair(0, "a", "b"), pair(1, "b", "a"), pair(2, "a", "b"), pair(3, "b", "a")])
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

#[test]
fn json_lines_arrays_gzip_xz_and_parquet_give_the_same_bytes() {
    let folder = Folder::new();
    let rows = rows();
    folder.write("rows.jsonl", lines(&rows));
    folder.write("rows.json", serde_json::to_string_pretty(&rows).unwrap());
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(lines(&rows).as_bytes()).unwrap();
    folder.write("rows.jsonl.gz", gzip.finish().unwrap());
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
    xz.write_all(lines(&rows).as_bytes()).unwrap();
    folder.write("rows.jsonl.xz", xz.finish().unwrap());
    write_parquet(&folder, "rows.parquet", &rows);
    let expected = serde_json::to_string_pretty(&pairs()).unwrap();
    for input in ["rows.jsonl", "rows.json", "rows.jsonl.gz", "rows.jsonl.xz", "rows.parquet"] {
        folder.succeed(&format!("data prepare --input {input} --output_json out/pairs.json --save_unused"));
        assert_eq!(folder.text("out/pairs.json"), expected, "{input}");
        assert_eq!(
            folder.json("out/pairs_unused.json"),
            json!([{"prompt": "frage 4 ü", "response_0": "a4", "response_1": "b4", "reason": "no_preference_label"}])
        );
    }
}

#[test]
fn counts_are_of_the_rows_loaded_and_the_default_name_is_the_references() {
    let folder = Folder::new();
    folder.write("rows.jsonl", lines(&rows()));
    let out = folder.succeed("data prepare --input rows.jsonl --json");
    let counts: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(counts["pairs"], 4);
    assert_eq!(
        counts["rows"],
        json!({"loaded": 5, "one_safe_one_unsafe": 2, "both_safe": 1, "both_unsafe": 1, "plain": 0,
            "no_preference_label": 1, "quarantined": 0})
    );
    assert_eq!(folder.json("pku_chosen_rejected.json"), pairs());
    assert_eq!(folder.files(), ["pku_chosen_rejected.json", "rows.jsonl"]);
    let table = folder.succeed("data prepare --input rows.jsonl");
    assert!(table.contains("one safe, one unsafe") && table.contains("40.00 %"), "{table}");
}

#[test]
fn several_inputs_are_read_in_their_order_and_the_first_rows_taken() {
    let folder = Folder::new();
    folder.write("late.jsonl", lines(&rows()[..2]));
    folder.write("early.jsonl", lines(&rows()[2..4]));
    folder.succeed("data prepare --input early.jsonl late.jsonl --num-samples 3 --output-json p.json");
    let all = pairs();
    assert_eq!(folder.json("p.json"), json!([all[2], all[3], all[0]]));
    folder.fail(
        "data prepare --input early.jsonl late.jsonl --num-samples 5 --output-json q.json",
        "--num-samples 5: the input holds 4 rows only",
    );
}

#[test]
fn plain_pairs_pass_with_all_fields_and_empty_texts_are_set_aside() {
    let folder = Folder::new();
    let good = json!({"id": 7, "prompt": [{"role": "user", "content": "x"}], "chosen": "c", "rejected": "r"});
    let bad = json!({"id": 8, "prompt": "p", "chosen": "", "rejected": "r"});
    folder.write("plain.jsonl", lines(&[good.clone(), bad.clone(), good.clone()]));
    let outcome = folder.run("data prepare --input plain.jsonl --output-json p.json");
    assert_eq!(outcome.code, Some(0), "{}", outcome.err);
    assert!(outcome.err.contains("set aside") && outcome.err.contains("p_quarantine.json"), "{}", outcome.err);
    assert!(!outcome.err.contains('\u{1b}'), "colour codes in a log that no terminal reads: {:?}", outcome.err);
    assert_eq!(folder.text("p.json"), serde_json::to_string_pretty(&json!([good, good])).unwrap());
    assert_eq!(
        folder.json("p_quarantine.json"),
        json!([{"by": "data prepare", "index": 1, "file": "plain.jsonl", "field": "chosen", "reason": "is empty", "record": bad}])
    );
}

#[test]
fn no_file_that_is_read_is_written() {
    let folder = Folder::new();
    let row = json!({"prompt": "p", "chosen": "c", "rejected": "r", "category": "RETAIN"});
    std::fs::create_dir(folder.path("trace")).unwrap();
    for name in ["t.json", "t_unused.json", "t_quarantine.json", "trace/train1.json"] {
        folder.write(name, json!([row]).to_string());
    }
    let before: Vec<String> = folder.files().iter().map(|name| folder.text(name)).collect();
    for command in [
        "data prepare --input t.json --output-json t.json",
        "data prepare --input t_unused.json --output-json t.json --save-unused",
        "data prepare --input t_quarantine.json --output-json t.json",
        "data split --ckpt-json trace/train1.json --output-dir . --uniform --train1-size 1 --train2-size 0",
    ] {
        folder.fail(command, "would be overwritten");
    }
    let after: Vec<String> = folder.files().iter().map(|name| folder.text(name)).collect();
    assert_eq!(after, before);
}

#[test]
fn stages_in_one_folder_keep_each_others_quarantine() {
    let folder = Folder::new();
    let good = json!({"prompt": "p", "chosen": "c", "rejected": "r", "category": "RETAIN"});
    folder.write("rows.json", json!([good, {"prompt": " ", "chosen": "c", "rejected": "r"}]).to_string());
    folder.succeed("data prepare --input rows.json --output-json pairs.json");
    let aside = folder.text("pairs_quarantine.json");
    folder.succeed("data split --ckpt-json pairs.json --output-dir . --uniform --train1-size 1 --train2-size 0");
    folder.succeed("data noise --input-json pairs.json --output-dir . --noise-rates 0.1");
    assert_eq!(folder.text("pairs_quarantine.json"), aside);
}

#[test]
fn wrong_rows_name_file_record_and_field_and_leave_no_file() {
    let folder = Folder::new();
    let prepare = "data prepare --input bad.json --save-unused --output-json p.json";
    let with = |field: &str, value: Option<Value>| {
        let mut bad = row(1, true, false, 0);
        match value {
            Some(value) => bad[field] = value,
            None => drop(bad.as_object_mut().unwrap().remove(field)),
        }
        json!([row(0, true, false, 0), bad]).to_string()
    };
    let plain = r#"{"prompt": "p", "chosen": "c", "rejected": "r"}"#;
    for (text, message) in [
        (with("response_1", None), "bad.json: record 1: field \"response_1\": is missing"),
        (with("prompt", Some(json!(5))), "bad.json: record 1: field \"prompt\": invalid type: integer `5`"),
        (with("is_response_0_safe", Some(json!("x"))), "bad.json: record 1: field \"is_response_0_safe\": is a string"),
        (with("safer_response_id", Some(json!("0"))), "bad.json: record 1: field \"safer_response_id\": is a string"),
        (format!("[{}, {plain}]", row(0, true, true, 0)), "bad.json: record 1: is a plain pair, but the file starts"),
        (format!("[{plain}, {{\"prompt\": \"p\"}}]"), "bad.json: record 1: has neither chosen and rejected"),
        (format!("[{plain}, 5]"), "bad.json: record 1: invalid type: integer `5`"),
        (format!("[{plain}, {{\"prompt\": "), "bad.json: record 1: the file ends in the middle of the array"),
        (format!("{plain}\n{{\"prompt\": \"p"), "bad.json: record 1 (line 2): is cut off"),
        ("{\n  \"prompt\": \"p\"\n}".into(), "bad.json: record 0 (line 1): starts a JSON object over several lines"),
        (String::new(), "bad.json: is empty"),
        ("[]".into(), "bad.json: holds no record"),
        ("PAR1 and then nothing of the kind PAR1".into(), "bad.json: is not a readable Parquet file"),
    ] {
        folder.write("bad.json", text);
        folder.fail(prepare, message);
    }
    folder.write("bad.json", b"{\"prompt\": \"p\", \"chosen\": \"c\xff\", \"rejected\": \"r\"}\n");
    folder.fail(prepare, "bad.json: record 0 (line 1): field \"chosen\": holds bytes that are not UTF-8");
    folder.fail("data prepare --input absent.json --output-json p.json", "absent.json: cannot open: ");
}

#[test]
fn a_damaged_parquet_file_is_an_error_wherever_it_is_cut_or_changed() {
    let folder = Folder::new();
    write_parquet(&folder, "whole.parquet", &rows());
    let whole = std::fs::read(folder.path("whole.parquet")).unwrap();
    folder.write("bad.parquet", &whole[..whole.len() / 2]);
    folder.fail("data prepare --input bad.parquet --output-json p.json", "bad.parquet: is not a readable Parquet file");
    for at in (4..whole.len()).step_by(whole.len() / 25) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0xff;
        folder.write("bad.parquet", bytes);
        // A changed letter of a text is not seen; everything else ends in a message, never in a crash.
        let outcome = folder.run("data prepare --input bad.parquet --output-json p.json");
        assert!(matches!(outcome.code, Some(0 | 1)), "byte {at}: {:?} {}", outcome.code, outcome.err);
    }
}

/// Writes PKU-SafeRLHF rows with a nested column of the kind that is not read.
fn write_parquet(folder: &Folder, name: &str, rows: &[Value]) {
    let schema = "message schema {
        REQUIRED BYTE_ARRAY prompt (UTF8);
        REQUIRED BYTE_ARRAY response_0 (UTF8);
        REQUIRED BYTE_ARRAY response_1 (UTF8);
        REQUIRED group response_0_harm_category { REQUIRED BOOLEAN Violence; }
        REQUIRED BOOLEAN is_response_0_safe;
        REQUIRED BOOLEAN is_response_1_safe;
        REQUIRED INT64 better_response_id;
        REQUIRED INT64 safer_response_id;
    }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let file = File::create(folder.path(name)).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Default::default()).unwrap();
    // Two row groups, so that reading goes on across their border.
    for rows in rows.chunks(3) {
        let mut group = writer.next_row_group().unwrap();
        for column in [
            "prompt",
            "response_0",
            "response_1",
            "Violence",
            "is_response_0_safe",
            "is_response_1_safe",
            "better_response_id",
            "safer_response_id",
        ] {
            let mut target = group.next_column().unwrap().unwrap();
            let values = rows.iter().map(|row| &row[column]);
            match column {
                "prompt" | "response_0" | "response_1" => {
                    let values: Vec<ByteArray> = values.map(|value| value.as_str().unwrap().into()).collect();
                    target.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
                }
                "better_response_id" | "safer_response_id" => {
                    let values: Vec<i64> = values.map(|value| value.as_i64().unwrap()).collect();
                    target.typed::<Int64Type>().write_batch(&values, None, None).unwrap();
                }
                _ => {
                    let values: Vec<bool> = values.map(|value| value.as_bool().unwrap_or(false)).collect();
                    target.typed::<BoolType>().write_batch(&values, None, None).unwrap();
                }
            }
            target.close().unwrap();
        }
        group.close().unwrap();
    }
    writer.close().unwrap();
}
