//! The folder of a run: what a second command in it may do, and what a damaged one says.

#![allow(clippy::unwrap_used)]

use cluster_tests::{Folder, check_refusal, records};
use serde_json::{Value, json};

const TRAIN: &str = "train --model-name-or-path {tied} --dataset-json-path records.json --output-dir runs \
    --run-name r --batch-size 5 --gradient-accumulation-steps 1 --num-train-epochs 3 --save-steps 2 --lora-r 2 \
    --gold-batch-size 6";

#[test]
fn a_complete_run_says_so_and_stays_as_it_is() {
    let folder = Folder::new();
    let first = folder.succeed(&format!("{TRAIN} --json"));
    let before = folder.snapshot();
    let again = folder.succeed(&format!("{TRAIN} --json"));
    assert!(again.err.contains("complete already"), "{}", again.err);
    assert_eq!(again.out, first.out, "the summary of the first run is shown");
    assert!(folder.snapshot() == before);
}

#[test]
fn other_settings_data_or_model_are_refused_with_their_differences() {
    let folder = Folder::new();
    folder.succeed(TRAIN);
    folder.refused(&format!("{TRAIN} --beta 0.5"), &["runs/r", "beta: 0.3 there, 0.5 here", "--run-name"]);
    folder.refused(
        &format!("{TRAIN} --seed 1").replace("--lora-r 2", "--lora-r 4"),
        &["lora.lora_r: 2 there, 4 here", "seed: 42 there, 1 here"],
    );
    folder.refused(&TRAIN.replace("{tied}", "{untied}"), &["model: "]);
    let with_adapter = format!("{TRAIN} --init-adapter {{adapter}}");
    folder.refused(&with_adapter, &["--lora-r contradicts the adapter"]);
    folder.refused(&with_adapter.replace("--lora-r 2", ""), &["init_adapter: null there"]);
    let mut others = records();
    others[0]["chosen"] = json!("Something else.");
    folder.write_json("records.json", &Value::Array(others));
    folder.refused(TRAIN, &["records: "]);
}

/// What a refusal advises must be open to the same name.
#[test]
fn a_refused_command_binds_no_folder_and_leaves_none() {
    let folder = Folder::new();
    folder.refused(&format!("{TRAIN} --warmup-steps 100"), &["--warmup-steps is 100", "6 updates"]);
    assert!(!folder.path("runs").exists());
    for name in ["../esc", "..", "a/b", "."] {
        let train = TRAIN.replace("--run-name r", &format!("--run-name {name}"));
        folder.refused(&train, &["--run-name", &format!("{name:?}"), "one folder"]);
    }
    assert!(!folder.path("runs").exists() && !folder.path("esc").exists());
    std::fs::create_dir(folder.path("runs")).unwrap();
    folder.refused(&format!("{TRAIN} --warmup-steps 6"), &["--warmup-steps is 6"]);
    assert!(folder.path("runs").exists(), "a folder that was there stays");
    folder.succeed(&format!("{TRAIN} --warmup-steps 0"));
}

/// Scores that are half done belong to what shapes a score, not to what comes after.
#[test]
fn scoring_that_was_interrupted_goes_on_with_another_learning_rate() {
    let folder = Folder::new();
    let train = format!("{TRAIN} --pack-tokens 150");
    folder.killed(&train, "score.pack=3");
    folder.refused(&format!("{train} --beta 0.5"), &["runs/r/score.journal", "other settings"]);
    folder.killed(&format!("{train} --learning-rate 1e-3"), "train.step=1");
    // Now there are scores.
    folder.refused(&train, &["learning_rate: 0.001 there, 0.0001 here"]);
    folder.succeed(&format!("{train} --learning-rate 1e-3"));
}

/// The template shapes every token: with another one the old checkpoint means nothing.
#[test]
fn another_chat_template_is_another_run() {
    let folder = Folder::new();
    let model = folder.copy_golden("tied", "model");
    let train = TRAIN.replace("{tied}", "model");
    folder.killed(&train, "train.step=3");
    let file = model.join("chat_template.jinja");
    let old = std::fs::read_to_string(&file).unwrap_or_default();
    std::fs::write(&file, format!("{old}{{# changed #}}")).unwrap();
    folder.refused(&train, &["folder: ", "--run-name"]);
}

/// What a refused command would have set aside does not replace what the run set aside.
#[test]
fn a_refused_command_leaves_the_quarantine_of_the_run() {
    let folder = Folder::new();
    let mut list = records();
    list[1]["chosen"] = json!("");
    folder.write_json("records.json", &Value::Array(list));
    folder.succeed(TRAIN);
    assert_eq!(folder.json("runs/r/records_quarantine.json")[0]["index"], json!(1));
    folder.write_json("records.json", &Value::Array(records()));
    folder.refused(TRAIN, &["records: "]);
    let mut other = records();
    other[2]["chosen"] = json!("");
    folder.write_json("records.json", &Value::Array(other));
    folder.refused(TRAIN, &["records: "]);
}

/// One file as records and as replay: each keeps what it set aside, and why.
#[test]
fn records_and_replay_of_one_name_have_a_quarantine_each() {
    let folder = Folder::new();
    let mut list = records();
    list[1]["rejected"] = json!("");
    list[2]["chosen"] = json!("");
    folder.write_json("records.json", &Value::Array(list));
    folder.succeed(&format!("{TRAIN} --replay-json-path records.json --replay-batch-size 2"));
    // Replay is SFT, which does not look at `rejected`.
    for (name, expected) in [("records_quarantine.json", vec![1, 2]), ("records_replay_quarantine.json", vec![2])] {
        let aside = folder.json(&format!("runs/r/{name}"));
        let indices: Vec<u64> = aside.as_array().unwrap().iter().map(|e| e["index"].as_u64().unwrap()).collect();
        assert_eq!(indices, expected, "{name}");
    }
}

#[test]
fn another_gold_batch_under_the_same_name_is_other_data() {
    let folder = Folder::new();
    let pairs = cluster_tests::golden_values()["gold"].clone();
    folder.write_json("mine.json", &pairs);
    let command = format!("{TRAIN} --gold mine.json");
    folder.killed(&command, "train.step=1");
    folder.write_json("mine.json", &json!([pairs[0]]));
    folder.refused(&command, &["gold: "]);
}

#[test]
fn a_damaged_checkpoint_is_said_and_the_older_one_used() {
    let folder = Folder::new();
    folder.succeed(TRAIN);
    let whole = folder.bytes("runs/r/adapter_model.safetensors");
    std::fs::remove_dir_all(folder.path("runs")).unwrap();
    folder.killed(TRAIN, "checkpoint.renamed=2");
    let newest = "runs/r/checkpoint-4/state.safetensors";
    let mut bytes = folder.bytes(newest);
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    folder.write(newest, &bytes);
    let again = folder.succeed(TRAIN);
    assert!(again.err.contains("checkpoint-4") && again.err.contains("damaged"), "{}", again.err);
    assert!(again.err.contains("continuing from") && again.err.contains("step 2 of 6"), "{}", again.err);
    assert!(folder.bytes("runs/r/adapter_model.safetensors") == whole);
}

#[test]
fn with_every_checkpoint_damaged_the_run_stops_and_touches_nothing() {
    let folder = Folder::new();
    folder.killed(TRAIN, "checkpoint.renamed=2");
    folder.write("runs/r/checkpoint-2/state.json", "{");
    folder.write("runs/r/checkpoint-4/state.safetensors", "short");
    folder.refused(TRAIN, &["checkpoint-4", "no whole checkpoint", "remove"]);
    std::fs::remove_dir_all(folder.path("runs/r/checkpoint-2")).unwrap();
    std::fs::remove_dir_all(folder.path("runs/r/checkpoint-4")).unwrap();
    folder.succeed(TRAIN);
}

#[test]
fn a_checkpoint_can_be_named_to_go_on_from() {
    let folder = Folder::new();
    folder.killed(TRAIN, "checkpoint.renamed=2");
    let named = TRAIN.replace("--run-name r", "--resume-from-checkpoint runs/r/checkpoint-4");
    let outcome = folder.succeed(&named);
    assert!(outcome.err.contains("from step 4 of 6"), "{}", outcome.err);
    assert!(folder.path("runs/r/adapter_model.safetensors").exists());
    let nowhere = TRAIN.replace("--run-name r", "--resume-from-checkpoint runs/r/checkpoint-9");
    check_refusal(&nowhere, &folder.run(&nowhere), &["runs/r/checkpoint-9", "not a checkpoint folder"]);
}
