//! `data split` and `data noise` as programs: files, names, bytes, and input that is wrong.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashSet;

use serde_json::{Value, json};
use support::Folder;

/// The records of spec A.2, with a field that only passes through.
fn records(count: usize) -> Vec<Value> {
    let categories = ["RETAIN", "INVERT", "PUNISH", "RETAIN", "RETAIN"];
    (0..count)
        .map(|index| {
            json!({"prompt": format!("x{index}"), "chosen": format!("c{index}"), "rejected": format!("r{index}"),
                "category": categories[index % 5], "chosen_violations": [], "id": index})
        })
        .collect()
}

fn write(folder: &Folder, records: &[Value]) {
    folder.write("gold.json", serde_json::to_string_pretty(records).unwrap());
}

fn ids(value: &Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(|record| record["id"].as_u64().unwrap() as usize).collect()
}

#[test]
fn a_stratified_split_writes_six_files_of_the_references_content() {
    let folder = Folder::new();
    let records = records(20);
    write(&folder, &records);
    let out = folder.succeed("data split --ckpt_json gold.json --stratified --train1_size 7 --train2_size 3 --json");
    let expected_parts = [
        ("train1", vec![4, 9, 13, 14, 15, 17, 6]),
        ("train2", vec![15, 9, 4]),
        ("test", vec![11, 16, 8, 2, 12, 1, 19, 0, 3, 18, 5, 10, 7]),
    ];
    for (part, expected) in expected_parts {
        let whole: Vec<&Value> = expected.iter().map(|index: &usize| &records[*index]).collect();
        assert_eq!(folder.text(&format!("splits/trace/{part}.json")), serde_json::to_string_pretty(&whole).unwrap());
        let pairs: Vec<Value> = whole
            .iter()
            .map(|record| json!({"prompt": record["prompt"], "chosen": record["chosen"], "rejected": record["rejected"]}))
            .collect();
        assert_eq!(folder.text(&format!("splits/dpo/{part}.json")), serde_json::to_string_pretty(&pairs).unwrap());
    }
    assert_eq!(folder.files().len(), 7);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        report[0],
        json!({"part": "train1", "records": 7, "by_category": {"RETAIN": 5, "INVERT": 1, "PUNISH": 1}})
    );
}

#[test]
fn a_uniform_split_needs_no_category() {
    let folder = Folder::new();
    let mut records = records(20);
    records.iter_mut().for_each(|record| drop(record.as_object_mut().unwrap().remove("category")));
    write(&folder, &records);
    folder
        .succeed("data split --ckpt-json gold.json --output-dir s --uniform --train1-size 7 --train2-size 3 --seed 42");
    assert_eq!(ids(&folder.json("s/trace/train1.json")), [19, 5, 14, 4, 9, 13, 15]);
    assert_eq!(ids(&folder.json("s/trace/train2.json")), [9, 5, 15]);
    assert_eq!(ids(&folder.json("s/trace/test.json")), [18, 6, 12, 17, 10, 1, 11, 2, 16, 7, 8, 0, 3]);
}

#[test]
fn no_prompt_is_on_both_sides_when_grouped() {
    let folder = Folder::new();
    let mut records = records(200);
    for (index, record) in records.iter_mut().enumerate() {
        record["prompt"] = json!(format!("x{}", index % 70));
    }
    write(&folder, &records);
    let prompts = |name: &str| -> HashSet<String> {
        let part = folder.json(name);
        part.as_array().unwrap().iter().map(|record| record["prompt"].to_string()).collect()
    };
    for manner in ["--uniform", "--stratified"] {
        let split = format!("data split --ckpt-json gold.json {manner} --train1-size 101 --train2-size 40");
        folder.succeed(&split);
        assert!(!prompts("splits/trace/train1.json").is_disjoint(&prompts("splits/trace/test.json")), "a dull example");
        folder.succeed(&format!("{split} --group-by-prompt"));
        assert!(prompts("splits/trace/train1.json").is_disjoint(&prompts("splits/trace/test.json")));
        let (train1, train2) = (ids(&folder.json("splits/trace/train1.json")), folder.json("splits/trace/train2.json"));
        assert!((101..=107).contains(&train1.len()), "{}", train1.len());
        assert!(ids(&train2).iter().all(|id| train1.contains(id)));
        assert_eq!(train1.len() + ids(&folder.json("splits/trace/test.json")).len(), 200);
    }
}

#[test]
fn noise_changes_the_records_of_the_spec_and_names_files_by_percent() {
    let folder = Folder::new();
    let records = records(20);
    write(&folder, &records);
    folder.succeed("data noise --input_json gold.json --noise_rates 0.2 0.29");
    assert_eq!(folder.files(), ["gold.json", "noisy_splits/gold_noisy20pct.json", "noisy_splits/gold_noisy28pct.json"]);
    let mut expected = records.clone();
    expected[0]["category"] = json!("INVERT");
    expected[8]["category"] = json!("PUNISH");
    for index in [3, 7] {
        expected[index]["chosen"] = json!(format!("r{index}"));
        expected[index]["rejected"] = json!(format!("c{index}"));
    }
    assert_eq!(folder.text("noisy_splits/gold_noisy20pct.json"), serde_json::to_string_pretty(&expected).unwrap());
    folder.succeed("data noise --input-json gold.json --output-dir n --model swap");
    assert_eq!(folder.files()[1..3], ["n/gold_noisy10pct_swap.json", "n/gold_noisy20pct_swap.json"]);
}

#[test]
fn records_with_empty_text_are_set_aside_before_anything_is_drawn() {
    let folder = Folder::new();
    let mut with_empty = records(20);
    let mut empty = with_empty[0].clone();
    empty["rejected"] = json!("");
    with_empty.insert(5, empty);
    write(&folder, &with_empty);
    folder.succeed("data split --ckpt-json gold.json --stratified --train1-size 7 --train2-size 3");
    assert_eq!(ids(&folder.json("splits/trace/train1.json")), [4, 9, 13, 14, 15, 17, 6]);
    let quarantine = folder.json("splits/gold_quarantine.json");
    assert_eq!((&quarantine[0]["index"], &quarantine[0]["field"]), (&json!(5), &json!("rejected")));
    folder.succeed("data noise --input-json gold.json --noise-rates 0.2");
    let of_noise = folder.json("noisy_splits/gold_quarantine.json");
    assert_eq!((&quarantine[0]["by"], &of_noise[0]["by"]), (&json!("data split"), &json!("data noise")));
    assert_eq!((&of_noise[0]["index"], &of_noise[0]["record"]), (&quarantine[0]["index"], &quarantine[0]["record"]));
    assert_eq!(folder.json("noisy_splits/gold_noisy20pct.json")[3]["chosen"], "r3");
}

#[test]
fn wrong_records_name_file_record_and_field_and_leave_no_file() {
    let folder = Folder::new();
    let with = |field: &str, value: Option<Value>| {
        let mut records = records(20);
        match value {
            Some(value) => records[17][field] = value,
            None => drop(records[17].as_object_mut().unwrap().remove(field)),
        }
        serde_json::to_string(&records).unwrap()
    };
    let whole = serde_json::to_string(&records(20)).unwrap();
    for (text, message) in [
        (with("rejected", None), "gold.json: record 17: field \"rejected\": is missing"),
        (with("chosen", Some(json!({"a": 1}))), "gold.json: record 17: field \"chosen\": invalid type: map"),
        (
            with("prompt", Some(json!([{"role": "user"}]))),
            "gold.json: record 17: field \"prompt\": missing field `content`",
        ),
        (
            with("category", Some(json!("retain"))),
            "gold.json: record 17: field \"category\": unknown category \"retain\"",
        ),
        (with("category", Some(json!(1))), "gold.json: record 17: field \"category\": is a number"),
        (whole[..whole.len() - 10].to_owned(), "gold.json: record 19: the file ends in the middle of the array"),
        (String::new(), "gold.json: is empty"),
    ] {
        folder.write("gold.json", text);
        folder.fail("data split --ckpt-json gold.json --stratified --train1-size 7 --train2-size 3", message);
        folder.fail("data noise --input-json gold.json", message);
    }
    folder.write("gold.json", with("category", None));
    folder.fail("data noise --input-json gold.json", "gold.json: record 17: field \"category\": is missing; triage");
    let mut bytes = whole.into_bytes();
    let at = bytes.windows(3).position(|window| window == b"c12").unwrap();
    bytes[at] = 0xff;
    folder.write("gold.json", bytes);
    folder.fail(
        "data split --ckpt-json gold.json --uniform --train1-size 7 --train2-size 3",
        "gold.json: record 12: field \"chosen\": holds bytes that are not UTF-8",
    );
}

#[test]
fn wrong_options_are_refused_before_anything_is_written() {
    let folder = Folder::new();
    write(&folder, &records(20));
    folder.fail("data split --ckpt-json gold.json --uniform", "--train1-size 10000 exceeds the 20 usable records");
    folder.fail("data split --ckpt-json gold.json --stratified", "needs 6000 RETAIN records, but only 12 of 20");
    folder.fail("data noise --input-json gold.json --noise-rates 1.5", "1.5 is not a share between 0 and 1");
    folder.fail("data noise --input-json gold.json --noise-rates NaN", "NaN is not a share");
    folder.fail("data noise --input-json gold.json --noise-rates 0.101 0.102", "two rates would be written to");
    for command in ["data split --ckpt-json gold.json", "data split --ckpt-json gold.json --uniform --stratified"] {
        let outcome = folder.run(command);
        assert_eq!(outcome.code, Some(2), "{}", outcome.err);
    }
}
