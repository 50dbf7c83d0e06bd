//! What a score is made of: the pulls of the gold pairs add up to it, and a record's own pairs can be left out of it.
#![allow(clippy::unwrap_used)]

use cluster_tests::Folder;
use serde_json::Value;

const SCORE: &str = "score --model-name-or-path {tied} --dataset-json-path records.json --lora-r 4";

fn raw_scores(folder: &Folder, file: &str) -> Vec<f64> {
    folder.json(file).as_array().unwrap().iter().map(|record| record["raw_score"].as_f64().unwrap()).collect()
}

#[test]
fn pulls_add_up_and_own_pairs_can_be_left_out() {
    let folder = Folder::new();
    folder.succeed(&format!("{SCORE} --out all.json --gold-batch-size 6"));
    folder.succeed(&format!("{SCORE} --out others.json --gold gold.json --leave-gold-out"));
    let (all, others) = (raw_scores(&folder, "all.json"), raw_scores(&folder, "others.json"));
    let largest = all.iter().fold(0.0f64, |largest, raw| largest.max(raw.abs()));
    let mut changed = 0;
    let mut retained = 0;
    for (at, record) in folder.json("all.json").as_array().unwrap().iter().enumerate() {
        let command = format!("{SCORE} --gold gold.json --explain {at}");
        if record["category"] == "RETAIN" {
            folder.refused(&command, &["records.json", &format!("record {at}"), "gives it no score"]);
            retained += 1;
            continue;
        }
        let answer: Value = serde_json::from_str(&folder.succeed(&format!("{command} --json")).out).unwrap();
        let number = |value: &Value| value.as_f64().unwrap();
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-5 * largest, "record {at}: {a} is not {b}");
        near(number(&answer["raw_score"]), all[at]);
        near(answer["pulls"].as_array().unwrap().iter().map(|pair| number(&pair["pull"])).sum(), all[at]);
        near(all[at] - number(&answer["own_pull"]), others[at]);
        changed += usize::from(number(&answer["own_pull"]) != 0.0);
        let table = folder.succeed(&format!("{command} --top 1")).out;
        assert_eq!(
            table.contains("this record") || table.contains("its own pair"),
            answer["own_pull"] != 0.0,
            "{table}"
        );
    }
    assert!(changed > 0 && retained > 0, "{changed} records in the gold batch, {retained} RETAIN: nothing was tested");
    folder.refused(&format!("{SCORE} --gold gold.json --explain 99"), &["--explain 99", "no usable record"]);
}
