//! The filter of promoted responses: what it finds is counted whatever its mode, listed in the run's folder, and with `on` the
//! violating response is punished alone; weights made with other terms are refused.
#![allow(clippy::unwrap_used)]

use cluster_tests::Folder;
use serde_json::{Value, json};

const SCORE: &str = "--lora-r 4 --lora-dropout 0 --gold-batch-size 6";

fn train(folder: &Folder, records: &str, name: &str, extra: &str) -> Value {
    folder.succeed(&format!(
        "train --model-name-or-path {{tied}} --dataset-json-path {records} --output-dir runs --run-name {name} --batch-size \
         10 --gradient-accumulation-steps 1 --num-train-epochs 4 --learning-rate 1e-2 {SCORE} {extra}"
    ));
    folder.json(&format!("runs/{name}/train_summary.json"))
}

fn adapter(folder: &Folder, name: &str) -> Vec<u8> {
    folder.bytes(&format!("runs/{name}/adapter_model.safetensors"))
}

/// The place of the first record of a category.
fn first(records: &Value, category: &str) -> usize {
    records.as_array().unwrap().iter().position(|record| record["category"] == category).unwrap()
}

/// The usual records, where the compliant response of one pair is a refusal and the correction of another says nothing.
fn with_flaws(folder: &Folder) -> (usize, usize) {
    let mut records = folder.json("records.json");
    let (inverted, corrected) = (first(&records, "INVERT"), first(&records, "PUNISH"));
    records[inverted]["chosen"] = json!("I'm sorry, but I can't help with that.");
    records[corrected]["oracle_response"] = json!("It depends.");
    // What a RETAIN record prefers is not promoted.
    let retained = first(&records, "RETAIN");
    records[retained]["chosen"] = json!("No.");
    folder.write_json("records.json", &records);
    (inverted, corrected)
}

#[test]
fn what_says_nothing_is_found_and_with_on_not_promoted() {
    let folder = Folder::new();
    let (inverted, corrected) = with_flaws(&folder);
    let off = train(&folder, "records.json", "off", "--method oracle-punish --quality-filter off");
    let report = train(&folder, "records.json", "report", "--method oracle-punish");
    let on = train(&folder, "records.json", "on", "--method oracle-punish --quality-filter on");
    assert!(adapter(&folder, "off") == adapter(&folder, "report"), "a report changes nothing");
    assert!(adapter(&folder, "on") != adapter(&folder, "report"));
    for (summary, mode, filtered) in [(&off, "off", 0), (&report, "report", 0), (&on, "on", 2)] {
        let promoted = &summary["promoted"];
        assert_eq!(promoted["flaws"], json!({"refusal": 1, "non-answer": 1}), "{mode}");
        assert_eq!((&promoted["filter"], &promoted["filtered"]), (&json!(mode), &json!(filtered)));
        assert!(promoted["promoted"].as_u64().unwrap() > 2 && promoted["words"]["median"].as_f64().unwrap() > 0.0);
    }
    assert!(!folder.path("runs/off/quality.json").exists());
    let listed = |name: &str| folder.json(&format!("runs/{name}/quality.json"));
    let of = |list: &Value, record: usize| -> Value {
        list.as_array().unwrap().iter().find(|entry| entry["record"] == record).unwrap().clone()
    };
    let refusal = of(&listed("on"), inverted);
    assert_eq!(
        refusal,
        json!({"record": inverted, "category": "INVERT", "field": "chosen", "flaw": "refusal",
               "text": "I'm sorry, but I can't help with that.", "term": "punishment loss on rejected"})
    );
    let empty = of(&listed("on"), corrected);
    assert_eq!((&empty["flaw"], &empty["field"]), (&json!("non-answer"), &json!("oracle_response")));
    assert_eq!(empty["term"], "punishment loss on chosen and rejected");
    assert_eq!(of(&listed("report"), inverted)["term"], "preference loss of chosen over rejected");
    assert_eq!(listed("report").as_array().unwrap().len(), 2);

    // Without its correction the record is the one that never had one, to the byte. (The gold batch, which prefers corrections too,
    // is another one then, so there are no weights here.)
    let uniform = "--method oracle-punish --uniform-weights --quality-filter on";
    train(&folder, "records.json", "corrected", uniform);
    let mut records = folder.json("records.json");
    records[corrected]["oracle_response"] = json!("");
    folder.write_json("records.json", &records);
    train(&folder, "records.json", "uncorrected", uniform);
    assert!(adapter(&folder, "uncorrected") == adapter(&folder, "corrected"));
}

#[test]
fn weights_of_other_terms_are_refused() {
    let folder = Folder::new();
    with_flaws(&folder);
    let score = format!("score --model-name-or-path {{tied}} --dataset-json-path records.json {SCORE}");
    folder.succeed(&format!("{score} --out plain.json"));
    folder.succeed(&format!("{score} --out filtered.json --quality-filter on"));
    assert_eq!(folder.json("filtered.json")[0]["score_method"], "trace+quality-3");
    assert_eq!(folder.json("filtered_quality.json").as_array().unwrap().len(), 1, "trace uses no correction");
    train(&folder, "filtered.json", "brought", "--quality-filter on");
    train(&folder, "records.json", "on-the-way", "--quality-filter on");
    assert!(adapter(&folder, "brought") == adapter(&folder, "on-the-way"), "a score is that of the loss trained");
    let refused = |records: &str, extra: &str, says: &str| {
        folder.refused(
            &format!(
                "train --model-name-or-path {{tied}} --dataset-json-path {records} --output-dir runs --run-name x {SCORE} \
                 {extra}"
            ),
            &[says, "with another --quality-filter or --quality-min-words; score the records again (--rescore)"],
        );
    };
    refused("plain.json", "--quality-filter on", "made for method trace, not for trace+quality-3");
    refused("filtered.json", "", "made for method trace+quality-3, not for trace,");
    refused("filtered.json", "--quality-filter on --quality-min-words 4", "not for trace+quality-4");
    train(&folder, "plain.json", "again", "--quality-filter on --rescore");
    assert!(adapter(&folder, "again") == adapter(&folder, "brought"));
}

#[test]
fn a_method_that_only_prefers_leaves_the_record_out() {
    let folder = Folder::new();
    let (inverted, _) = with_flaws(&folder);
    let on = train(&folder, "records.json", "on", "--method naive-oracle-dpo --quality-filter on");
    assert_eq!(on["promoted"]["filtered"], 1);
    assert_eq!(folder.json("runs/on/quality.json")[0], {
        let mut listed = folder.json("runs/on/quality.json")[0].clone();
        listed["record"] = json!(inverted);
        listed["term"] = json!("none");
        listed
    });
    // The batch still counts it: its loss is the others' alone.
    let loss = |name: &str| folder.lines(&format!("runs/{name}/metrics.jsonl"))[0]["loss"].as_f64().unwrap();
    train(&folder, "records.json", "off", "--method naive-oracle-dpo --quality-filter off");
    let per_record = 2f64.ln() / 10.0;
    assert!((loss("off") - 10.0 * per_record).abs() < 1e-6 && (loss("on") - 9.0 * per_record).abs() < 1e-6);
}
