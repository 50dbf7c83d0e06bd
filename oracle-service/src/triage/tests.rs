use serde_json::{Value, json};

use super::*;

const RULES: &str =
    "default = \"COMPLIANT\"\n[[rule]]\npattern = 'bad'\napplies_to = \"response\"\nverdict = \"NON-COMPLIANT\"\n";

struct Folder(tempfile::TempDir);

impl Folder {
    fn with(pairs: &Value) -> Folder {
        let folder = Folder(tempfile::tempdir().unwrap());
        std::fs::write(folder.path("rules.toml"), RULES).unwrap();
        std::fs::write(folder.path("pairs.json"), pairs.to_string()).unwrap();
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn triage(&self, num_samples: Option<usize>) -> Result<Outcome> {
        run(&Args {
            input_json: self.path("pairs.json"),
            output_json: self.path("gold.json"),
            oracle: crate::oracle::tests::rules(self.path("rules.toml")),
            ckpt_dir: self.path("ckpt"),
            ckpt_every: 1000,
            skip_rejected_when_chosen_complies: false,
            one_call_per_pair: false,
            relabel: false,
            max_unlabelled: 100.0,
            num_samples,
            seed: 42,
            json: false,
        })
    }

    fn read(&self, name: &str) -> Value {
        shared::input::read_json(&self.path(name)).unwrap()
    }
}

fn pair(prompt: &str, chosen: &str, rejected: &str) -> Value {
    json!({"prompt": prompt, "chosen": chosen, "rejected": rejected})
}

#[test]
fn the_truth_table_is_that_of_the_spec() {
    let pairs = json!([
        {"id": 7, "prompt": "a", "chosen": "bad", "rejected": "good"},
        {"prompt": "b", "chosen": "bad 1", "rejected": "bad 2", "note": "é"},
        pair("c", "good", "bad"),
        pair("d", "good 1", "good 2"),
    ]);
    let folder = Folder::with(&pairs);
    assert_eq!(folder.triage(None).unwrap(), Outcome::Complete);
    let expected = json!([
        {"prompt": "a", "chosen": "good", "rejected": "bad", "category": "INVERT",
         "chosen_violations": [], "rejected_violations": [0], "id": 7},
        {"prompt": "b", "chosen": "bad 1", "rejected": "bad 2", "category": "PUNISH",
         "chosen_violations": [0], "rejected_violations": [0], "note": "é"},
        {"prompt": "c", "chosen": "good", "rejected": "bad", "category": "RETAIN",
         "chosen_violations": [], "rejected_violations": [0]},
        {"prompt": "d", "chosen": "good 1", "rejected": "good 2", "category": "RETAIN",
         "chosen_violations": [], "rejected_violations": []},
    ]);
    assert_eq!(folder.read("gold.json"), expected);
    let labels = folder.read("gold_triage.json");
    assert_eq!(labels[0], json!({"prompt": "a", "chosen": "bad", "rejected": "good", "category": "INVERT"}));
    assert_eq!(labels.as_array().unwrap().len(), 4);
    assert!(!folder.path("gold_quarantine.json").exists());
}

#[test]
fn records_without_text_are_set_aside_with_their_place_and_reason() {
    let turns = json!([{"role": "user", "content": "hello"}, {"role": "assistant", "content": ""}]);
    let pairs = json!([
        pair("a", "good", "bad"),
        pair("b", "", "bad"),
        {"prompt": "c", "chosen": "good", "rejected": turns},
        pair("d", "bad", "good"),
        pair(" ", "bad", "good"),
    ]);
    let folder = Folder::with(&pairs);
    folder.triage(None).unwrap();
    let kept: Vec<Value> = shared::input::read_all(&folder.path("gold.json")).unwrap();
    assert_eq!(kept.iter().map(|record| record["prompt"].as_str().unwrap()).collect::<Vec<_>>(), ["a", "d"]);
    let aside = folder.read("gold_quarantine.json");
    let places: Vec<_> =
        aside.as_array().unwrap().iter().map(|one| (one["index"].clone(), one["field"].clone())).collect();
    assert_eq!(places, [(json!(1), json!("chosen")), (json!(2), json!("rejected")), (json!(4), json!("prompt"))]);
}

#[test]
fn a_draw_is_the_references_and_repeats() {
    let pairs: Vec<Value> = (0..100).map(|index| pair(&index.to_string(), "good", "bad")).collect();
    let folder = Folder::with(&Value::from(pairs));
    folder.triage(Some(5)).unwrap();
    let first = std::fs::read(folder.path("gold.json")).unwrap();
    let drawn: Vec<Value> = shared::input::read_all(&folder.path("gold.json")).unwrap();
    // Spec A.1: sample(0…99, 5) with seed 42.
    let prompts: Vec<_> = drawn.iter().map(|record| record["prompt"].as_str().unwrap()).collect();
    assert_eq!(prompts, ["81", "14", "3", "94", "35"]);
    folder.triage(Some(5)).unwrap();
    assert_eq!(std::fs::read(folder.path("gold.json")).unwrap(), first);
    folder.triage(Some(100)).unwrap();
    assert_eq!(folder.read("gold.json")[0]["prompt"], "0");
}

#[test]
fn what_an_earlier_label_led_to_does_not_survive() {
    let mut old = pair("a", "bad", "good");
    old["raw_score"] = json!(0.5);
    old["impact_score"] = json!(1.5);
    old["oracle_response"] = json!("text");
    old["category"] = json!("PUNISH");
    let folder = Folder::with(&json!([old]));
    folder.triage(None).unwrap();
    let record = &folder.read("gold.json")[0];
    assert_eq!(record["category"], "INVERT");
    for field in ["raw_score", "impact_score", "oracle_response"] {
        assert_eq!(record.get(field), None, "{field}");
    }
}

#[test]
fn a_missing_field_is_named_and_nothing_is_written() {
    let folder = Folder::with(&json!([pair("a", "good", "bad"), {"prompt": "b", "chosen": "good"}]));
    let error = folder.triage(None).unwrap_err().to_string();
    assert!(error.contains("pairs.json: record 1: field \"rejected\": is missing"), "{error}");
    assert!(!folder.path("gold.json").exists() && !folder.path("gold_triage.json").exists());
}

#[test]
fn a_prompt_from_outside_the_world_is_named() {
    let folder = Folder::with(&json!([pair("how do i bake my bread ?", "x", "y"), pair("who are you ?", "x", "y")]));
    let world = shared::policy_shift::World::new(1);
    shared::output::write_json(&folder.path("world.json"), &world.to_file()).unwrap();
    let rules = "world = \"policy-shift\"\nworld_file = \"world.json\"\npolicy = \"new\"\n";
    std::fs::write(folder.path("rules.toml"), rules).unwrap();
    let error = folder.triage(None).unwrap_err().to_string();
    assert!(error.contains("record 1: field \"prompt\""), "{error}");
}

#[test]
fn without_a_rule_file_the_missing_judge_is_named() {
    let folder = Folder::with(&json!([]));
    let args = Args {
        input_json: folder.path("pairs.json"),
        output_json: folder.path("gold.json"),
        oracle: OracleArgs { rules: None, ..crate::oracle::tests::rules(PathBuf::new()) },
        ckpt_dir: folder.path("ckpt"),
        ckpt_every: 1000,
        skip_rejected_when_chosen_complies: false,
        one_call_per_pair: false,
        relabel: false,
        max_unlabelled: 100.0,
        num_samples: None,
        seed: 42,
        json: false,
    };
    assert!(run(&args).unwrap_err().to_string().contains("give --policy FILE"));
}
