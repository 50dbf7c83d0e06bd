//! Records that cannot be used: the message names the file, the record and the field; the exit code is 1; files of an
//! earlier run stay as they were. Empty strings are set aside with their reason instead.
#![allow(clippy::unwrap_used)]

use cluster_tests::{Folder, check_refusal, records};
use serde_json::{Value, json};

const SCORE: &str = "score --model-name-or-path {tied} --dataset-json-path bad.json --out out.json --gold-batch-size 6";
const TRAIN: &str = "train --model-name-or-path {tied} --dataset-json-path bad.json --output-dir runs --run-name r \
    --max-steps 2 --lora-r 2 --gold-batch-size 6";
const LOGPROBS: &str = "logprobs --model-name-or-path {tied} --records bad.json --out out.jsonl";

/// A folder with results of an earlier run and `bad.json`: the records with number 3 changed.
fn folder(change: impl FnOnce(&mut Value)) -> Folder {
    let folder = Folder::new();
    folder.write("out.json", "earlier");
    folder.write("out.jsonl", "earlier");
    let mut records = records();
    change(&mut records[3]);
    folder.write_json("bad.json", &Value::Array(records));
    folder
}

fn scored() -> Vec<Value> {
    let mut records = records();
    for record in &mut records {
        record["impact_score"] = json!(if record["category"] == "RETAIN" { 0.0 } else { 1.0 });
    }
    records
}

#[test]
fn missing_and_wrong_fields() {
    for field in ["prompt", "chosen"] {
        let folder = folder(|record| {
            record.as_object_mut().unwrap().remove(field);
        });
        for command in [SCORE, TRAIN, LOGPROBS] {
            folder.refused(command, &["bad.json", "record 3", field, "missing"]);
        }
        let folder = self::folder(|record| record[field] = json!(17));
        for command in [SCORE, TRAIN, LOGPROBS] {
            folder.refused(command, &["bad.json", "record 3", field]);
        }
    }
    let folder = folder(|record| {
        record.as_object_mut().unwrap().remove("rejected");
    });
    for command in [SCORE, TRAIN] {
        folder.refused(command, &["bad.json", "record 3", "rejected", "missing"]);
    }
}

#[test]
fn unknown_and_missing_categories() {
    let unknown = folder(|record| record["category"] = json!("MAYBE"));
    for command in [SCORE, TRAIN] {
        unknown.refused(command, &["bad.json", "record 3", "category", "MAYBE", "INVERT"]);
    }
    let number = folder(|record| record["category"] = json!(1));
    number.refused(SCORE, &["bad.json: record 3: field \"category\": invalid type: integer `1`, expected \"INVERT\""]);
    let missing = folder(|record| {
        record.as_object_mut().unwrap().remove("category");
    });
    for command in [SCORE, TRAIN] {
        missing.refused(command, &["bad.json", "record 3", "category", "missing"]);
        // Punishing whatever the category is needs none, but drawing the gold batch does.
        let without = format!("{command} --method no-triage");
        check_refusal(&without, &missing.run(&without), &["bad.json", "record 3", "category", "--gold"]);
        std::fs::remove_dir_all(missing.path("runs")).ok();
    }
}

#[test]
fn bytes_that_are_no_records() {
    let folder = folder(|_| ());
    let mut bytes = folder.bytes("bad.json");
    let third = String::from_utf8(bytes.clone()).unwrap().match_indices("\"prompt\"").nth(3).unwrap().0;
    bytes[third + 12] = 0xff;
    folder.write("bad.json", &bytes);
    folder.refused(SCORE, &["bad.json", "record 3", "UTF-8"]);
    for (content, message) in
        [(&b""[..], "empty"), (b"[]", "no record"), (b"[{\"prompt\": ", "record 0"), (b"rubbish", "record 0")]
    {
        folder.write("bad.json", content);
        folder.refused(SCORE, &["bad.json", message]);
    }
    std::fs::remove_file(folder.path("bad.json")).unwrap();
    folder.refused(SCORE, &["bad.json"]);
}

#[test]
fn weights_that_are_none() {
    let folder = folder(|_| ());
    let with = |change: &dyn Fn(&mut Vec<Value>)| {
        let mut records = scored();
        change(&mut records);
        folder.write_json("bad.json", &Value::Array(records));
    };
    with(&|records| records[3]["impact_score"] = json!(-0.5));
    folder.refused(TRAIN, &["bad.json", "record 3", "impact_score", "-0.5"]);
    with(&|records| records[3]["impact_score"] = json!("much"));
    folder.refused(TRAIN, &["bad.json", "record 3", "impact_score"]);
    // No JSON number is NaN or infinite; programs write them all the same.
    for text in ["NaN", "Infinity", "1e999"] {
        with(&|records| records[3]["impact_score"] = json!(12345));
        let bad = String::from_utf8(folder.bytes("bad.json")).unwrap().replace("12345", text);
        folder.write("bad.json", bad);
        folder.refused(TRAIN, &["bad.json", "record 3"]);
    }
    let conflict = scored().iter().position(|record| record["category"] != "RETAIN").unwrap();
    with(&|records| {
        records[conflict].as_object_mut().unwrap().remove("impact_score");
    });
    folder.refused(TRAIN, &["bad.json", &format!("record {conflict}"), "impact_score", "--rescore"]);
    with(&|records| records.iter_mut().for_each(|record| record["impact_score"] = json!(0.0)));
    folder.refused(TRAIN, &["bad.json", "every weight is 0", "--rescore"]);
    // None of this has bound the run's folder to the bad file.
    with(&|_| ());
    folder.succeed(TRAIN);
}

#[test]
fn settings_under_which_no_score_means_anything() {
    let folder = folder(|_| ());
    for command in [SCORE, TRAIN] {
        folder.refused(&format!("{command} --lamda 0"), &["--lamda", "positive"]);
        folder.refused(&format!("{command} --lamda NaN"), &["--lamda", "positive"]);
        folder.refused(&format!("{command} --lamda -1"), &["--lamda (γ) is -1", "positive"]);
    }
    let retain: Vec<Value> = records().into_iter().filter(|record| record["category"] == "RETAIN").collect();
    folder.write_json("bad.json", &Value::Array(retain));
    folder.refused(SCORE, &["bad.json", "none of the 4 records", "RETAIN"]);
    folder.write_json("bad.json", &Value::Array(records()));
    folder.write_json("gold.json", &json!([{"prompt": "p", "chosen": "c"}]));
    folder.refused(&format!("{SCORE} --gold gold.json"), &["gold.json", "record 0", "rejected"]);
}

#[test]
fn prompts_longer_than_the_limit_in_reference_mode() {
    let folder = folder(|record| record["prompt"] = json!("word ".repeat(300)));
    for command in [SCORE, LOGPROBS] {
        let command = format!("{command} --mask reference --max-length 64");
        folder.refused(&command, &["bad.json: record 3: field \"prompt\": takes ", "--mask exact"]);
        // Scoring has the reference's own limit, whatever is asked for.
        assert!(!folder.run(&command).err.contains("--max-length"));
    }
}

/// Input over the limit is cut in exact mode, and said so: how many records, and the first.
#[test]
fn records_that_are_cut_are_counted_and_the_first_is_named() {
    let long = "word ".repeat(400);
    let folder = folder(|record| record["prompt"] = json!(long));
    let warning = "1 records truncated to 256 tokens, first: record 3 (bad.json)";
    for command in [SCORE, TRAIN, LOGPROBS] {
        let outcome = folder.succeed(&format!("{command} --json"));
        assert!(outcome.err.contains(warning), "{command}\n{}", outcome.err);
        let summary: Value = serde_json::from_str(&outcome.out).unwrap();
        assert_eq!(summary["truncated"], json!(1), "{summary}");
    }
    assert_eq!(folder.lines("out.jsonl").len(), 10);
    folder.write_json("asked.json", &json!([{"prompt": ""}, {"prompt": "short"}, {"prompt": long}]));
    let generate = "generate --model-name-or-path {tied} --prompts asked.json --out answers.json --max-new-tokens";
    let outcome = folder.succeed(&format!("{generate} 200 --batch-size 1 --json"));
    assert!(outcome.err.contains("1 prompts with their responses may be longer than the 512"), "{}", outcome.err);
    assert!(outcome.err.contains("first: record 2 (asked.json)"), "{}", outcome.err);
    folder.refused(&format!("{generate} 100000"), &["--max-new-tokens is 100000", "512"]);
}

/// A gold batch against which every record pulls: what the message advises goes through under the same names.
#[test]
fn scores_that_are_all_negative() {
    let folder = folder(|_| ());
    let pair = records().into_iter().find(|record| record["category"] == "INVERT").unwrap();
    folder.write_json("bad.json", &json!([pair]));
    let gold = |chosen: &str, rejected: &str| json!([{"prompt": pair["prompt"], "chosen": pair[chosen], "rejected": pair[rejected]}]);
    folder.write_json("against.json", &gold("rejected", "chosen"));
    folder.write_json("along.json", &gold("chosen", "rejected"));
    for command in [SCORE, TRAIN] {
        let message = "bad.json: the only score is 0 or negative";
        folder.refused(&format!("{command} --gold against.json"), &[message, "--gold"]);
        assert!(!folder.path("runs").exists());
        folder.succeed(&format!("{command} --gold along.json"));
    }
}

#[test]
fn empty_strings_are_set_aside_with_their_reason() {
    let mut list = records();
    list[1]["prompt"] = json!("");
    list[4]["chosen"] = json!(" \n");
    list[7]["rejected"] = json!("");
    let folder = Folder::new();
    folder.write_json("bad.json", &Value::Array(list.clone()));
    let outcome = folder.succeed(SCORE);
    assert!(outcome.err.contains("3 records") && outcome.err.contains("out_quarantine.json"), "{}", outcome.err);
    let aside = folder.json("out_quarantine.json");
    let found: Vec<(u64, &str)> = (aside.as_array().unwrap().iter())
        .map(|entry| (entry["index"].as_u64().unwrap(), entry["field"].as_str().unwrap()))
        .collect();
    assert_eq!(found, [(1, "prompt"), (4, "chosen"), (7, "rejected")]);
    assert_eq!(aside[1]["record"]["prompt"], list[4]["prompt"]);
    let kept = folder.json("out.json");
    let kept: Vec<&Value> = kept.as_array().unwrap().iter().map(|record| &record["prompt"]).collect();
    let expected: Vec<&Value> = [0, 2, 3, 5, 6, 8, 9].iter().map(|&i| &list[i]["prompt"]).collect();
    assert_eq!(kept, expected);

    // Log-probs keep a line a record.
    let outcome = folder.succeed(LOGPROBS);
    assert!(outcome.err.contains("3 records with an empty field have no numbers"), "{}", outcome.err);
    let lines = folder.lines("out.jsonl");
    assert_eq!(lines.len(), 10);
    for (i, line) in lines.iter().enumerate() {
        assert_eq!(line.get("error").is_some(), [1, 4, 7].contains(&i), "{i}: {line}");
    }
    assert_eq!(lines[4]["error"], "field \"chosen\" is empty");

    for record in &mut list {
        record["chosen"] = json!("");
    }
    folder.write_json("bad.json", &Value::Array(list));
    folder.refused(SCORE, &["bad.json", "no usable record"]);
}

#[test]
fn prompts_to_generate_from() {
    let folder = Folder::new();
    let command = "generate --model-name-or-path {tied} --prompts bad.json --out out.json --max-new-tokens 2";
    for (prompt, message) in [(json!(5), "string"), (Value::Null, "string")] {
        folder.write_json("bad.json", &json!([{"prompt": "fine"}, {"prompt": prompt}]));
        folder.refused(command, &["bad.json", "record 1", "prompt", message]);
    }
    folder.write_json("bad.json", &json!([{"prompt": "fine"}, {"text": "p"}]));
    folder.refused(command, &["bad.json", "record 1", "prompt", "missing"]);
    folder.write_json("bad.json", &json!([{"prompt": ""}]));
    folder.refused(command, &["bad.json", "no prompt"]);
    folder.refused(&format!("{command} --temperature -1"), &["--temperature is -1"]);

    // An empty prompt is set aside, the others are answered.
    folder.write_json("bad.json", &json!([{"prompt": "fine"}, {"prompt": " "}]));
    let outcome = folder.succeed(command);
    assert!(outcome.err.contains("1 items with an empty prompt were set aside"), "{}", outcome.err);
    assert_eq!(folder.json("out.json")["results"].as_array().map(Vec::len), Some(1));
    assert_eq!(folder.json("out_quarantine.json").as_array().map(Vec::len), Some(1));
}
