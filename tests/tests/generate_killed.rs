//! `worker generate` killed between batches: the same command ends with the same bytes, greedy or sampled, and a kill
//! costs no finished response.
#![allow(clippy::unwrap_used)]

use cluster_tests::{Folder, golden_values};
use serde_json::{Value, json};

fn folder() -> Folder {
    let folder = Folder::new();
    let records = golden_values()["records"].as_array().unwrap().clone();
    let prompts: Vec<Value> =
        records.iter().map(|r| json!({"prompt": r["prompt"], "category": r["category"]})).collect();
    folder.write_json("prompts.json", &Value::Array(prompts));
    folder
}

fn command(out: &str, sampling: &str) -> String {
    format!(
        "generate --model-name-or-path {{tied}} --adapter {{adapter}} --prompts prompts.json --out {out} \
         --max-new-tokens 12 --batch-size 2 {sampling}"
    )
}

#[test]
fn ends_with_the_same_bytes_wherever_it_was_killed() {
    for sampling in ["", "--temperature 0.8 --top-p 0.9 --seed 5"] {
        let folder = folder();
        folder.succeed(&command("whole.json", sampling));
        for batch in 1..=3 {
            let out = format!("killed-{batch}.json");
            folder.killed(&command(&out, sampling), &format!("generate.batch={batch}"));
            assert!(!folder.path(&out).exists());
            let journal = format!("killed-{batch}.json.journal");
            assert_eq!(folder.bytes(&journal).iter().filter(|&&b| b == b'\n').count(), 1 + 2 * (batch - 1));
            let summary = folder.succeed(&format!("{} --json", command(&out, sampling)));
            let summary: Value = serde_json::from_str(&summary.out).unwrap();
            // Only what was not finished is generated again.
            assert!(summary["tokens"].as_u64().unwrap() <= 12 * (6 - 2 * (batch as u64 - 1)), "{summary}");
            assert!(folder.bytes(&out) == folder.bytes("whole.json"), "{out} differs ({sampling})");
            assert!(!folder.path(&journal).exists());
        }
        let whole = folder.json("whole.json");
        assert_eq!(whole["results"].as_array().unwrap().len(), 6);
    }
}

#[test]
fn sampled_responses_differ_by_seed_only() {
    let folder = folder();
    let results = |out: &str, sampling: &str, batch: &str| {
        folder.succeed(&command(out, sampling).replace("--batch-size 2", batch));
        folder.json(out)["results"].clone()
    };
    let first = results("a.json", "--temperature 1.0 --seed 1", "--batch-size 2");
    assert_eq!(first, results("b.json", "--temperature 1.0 --seed 1", "--batch-size 3"));
    assert_ne!(first, results("c.json", "--temperature 1.0 --seed 2", "--batch-size 2"));
}

#[test]
fn a_journal_of_other_settings_is_refused() {
    let folder = folder();
    folder.killed(&command("a.json", ""), "generate.batch=2");
    folder.refused(&command("a.json", "--temperature 1.0"), &["a.json.journal", "other settings"]);
}
