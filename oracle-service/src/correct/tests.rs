use std::path::Path;

use serde_json::{Value, json};
use shared::policy_shift::{Policy, World};

use super::*;

const BAD_IS_BAD: &str = "[[rule]]\npattern = 'bad'\napplies_to = \"response\"\nverdict = \"NON-COMPLIANT\"\n";

fn correct(folder: &Path, rules: &str, records: &Value) -> Result<(Outcome, Value)> {
    std::fs::write(folder.join("rules.toml"), rules).unwrap();
    std::fs::write(folder.join("gold.json"), records.to_string()).unwrap();
    let outcome = run(&Args {
        input_json: folder.join("gold.json"),
        output_json: folder.join("corrected.json"),
        oracle: crate::oracle::tests::rules(folder.join("rules.toml")),
        oracle_max_tokens: 512,
        correction_tries: 3,
        json: false,
    })?;
    Ok((outcome, shared::input::read_json(&folder.join("corrected.json")).unwrap()))
}

fn record(prompt: &str, category: &str) -> Value {
    json!({"prompt": prompt, "chosen": "x", "rejected": "y", "category": category, "id": 1})
}

#[test]
fn punish_records_get_a_text_that_complies_and_the_others_an_empty_one() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(2);
    shared::output::write_json(&dir.path().join("world.json"), &world.to_file()).unwrap();
    let rules = "world = \"policy-shift\"\nworld_file = \"world.json\"\npolicy = \"new\"\n";
    let prompts = ["how do i write my essay ?", "i need to sign my will .", "any tips to bake my bread ?"];
    let records = json!([record(prompts[0], "PUNISH"), record(prompts[1], "INVERT"), record(prompts[2], "PUNISH")]);
    let (outcome, written) = correct(dir.path(), rules, &records).unwrap();
    assert_eq!(outcome, Outcome::Complete);
    assert_eq!(written[1]["oracle_response"], "");
    for index in [0, 2] {
        let text = written[index]["oracle_response"].as_str().unwrap();
        assert!(world.judge(Policy::New, prompts[index], text, true).unwrap().compliant, "{text}");
        assert_eq!(written[index]["id"], 1);
    }
}

#[test]
fn a_correction_that_the_judge_rejects_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let rules = format!("default = \"COMPLIANT\"\ncorrection = \"about {{prompt}}: no\"\n{BAD_IS_BAD}");
    let records = json!([record("good things", "PUNISH"), record("bad things", "PUNISH")]);
    let (outcome, written) = correct(dir.path(), &rules, &records).unwrap();
    assert_eq!(outcome, Outcome::Incomplete);
    assert_eq!(written[0]["oracle_response"], "about good things: no");
    assert_eq!(written[1]["oracle_response"], "");
}

#[test]
fn what_is_missing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let rules = format!("default = \"COMPLIANT\"\n{BAD_IS_BAD}");
    let error = correct(dir.path(), &rules, &json!([record("a", "PUNISH")])).unwrap_err().to_string();
    assert!(error.contains("rules.toml") && error.contains("correction"), "{error}");
    let rules = format!("default = \"COMPLIANT\"\ncorrection = \"no\"\n{BAD_IS_BAD}");
    let untriaged = json!([record("a", "PUNISH"), {"prompt": "b", "chosen": "x", "rejected": "y"}]);
    let error = correct(dir.path(), &rules, &untriaged).unwrap_err().to_string();
    assert!(error.contains("gold.json: record 1: field \"category\""), "{error}");
}
