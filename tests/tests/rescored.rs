//! Weights made anew while a run goes on: by the scores at the adapter as it is then, the same after a kill and in a gang.
#![allow(clippy::unwrap_used)]

use cluster_tests::{Folder, safetensors};
use serde_json::{Value, json};

const SHAPE: &str = "--lora-r 4 --gold-batch-size 6 --pack-tokens 150";
const TRAIN: &str = "train --model-name-or-path {tied} --dataset-json-path records.json --output-dir runs --method trace \
    --rescore-every 4 --batch-size 5 --gradient-accumulation-steps 1 --num-train-epochs 6 \
    --lora-dropout 0.3 --learning-rate 1e-2 --warmup-steps 1 --save-steps 4 --lora-r 4 --gold-batch-size 6 --pack-tokens 150";

const FILES: [&str; 5] = [
    "adapter_model.safetensors",
    "metrics.jsonl",
    "rescored/round-1.json",
    "rescored/round-2.json",
    "rescored/round-3.json",
];

fn round(folder: &Folder, name: &str, round: u64) -> Value {
    folder.json(&format!("runs/{name}/rescored/round-{round}.json"))
}

fn of(round: &Value, field: &str) -> Vec<f64> {
    round["records"].as_array().unwrap().iter().map(|record| record[field].as_f64().unwrap()).collect()
}

/// Makes an adapter folder of a run's checkpoint.
fn adapter_of(folder: &Folder, checkpoint: &str, to: &str) {
    std::fs::create_dir_all(folder.path(to)).unwrap();
    let config = std::fs::read(folder.path("runs/whole/adapter_config.json")).unwrap();
    std::fs::write(folder.path(&format!("{to}/adapter_config.json")), config).unwrap();
    let file = folder.path(&format!("{to}/adapter_model.safetensors"));
    std::fs::copy(folder.path(&format!("{checkpoint}/state.safetensors")), &file).unwrap();
    safetensors::edit(&file, |header, data| {
        let (mut kept, mut bytes) = (serde_json::Map::new(), Vec::new());
        for (name, entry) in header.as_object().unwrap() {
            let Some(name) = name.strip_prefix("parameter.") else { continue };
            let at = |i: usize| entry["data_offsets"][i].as_u64().unwrap() as usize;
            let mut entry = entry.clone();
            entry["data_offsets"] = json!([bytes.len(), bytes.len() + at(1) - at(0)]);
            bytes.extend_from_slice(&data[at(0)..at(1)]);
            kept.insert(format!("base_model.model.{name}"), entry);
        }
        (*header, *data) = (Value::Object(kept), bytes);
    });
}

#[test]
fn weights_follow_the_scores_at_the_adapter() {
    let folder = Folder::new();
    folder.succeed(&format!("{TRAIN} --run-name whole --save-total-limit 9"));
    let [first, second] = [1, 2].map(|number| round(&folder, "whole", number));
    assert_eq!([&first, &second].map(|round| round["step"].as_u64().unwrap()), [0, 4]);
    let summary = folder.json("runs/whole/train_summary.json");
    assert_eq!(summary["rescored"]["every"], 4);
    let objectives: Vec<f64> =
        summary["rescored"]["rounds"].as_array().unwrap().iter().map(|r| r["objective"].as_f64().unwrap()).collect();
    assert!(objectives.len() >= 3 && objectives[1] < objectives[0], "the gold pairs' loss comes down: {objectives:?}");

    adapter_of(&folder, "runs/whole/checkpoint-4", "at-4");
    folder.succeed(&format!(
        "score --model-name-or-path {{tied}} --dataset-json-path records.json --out scored.json --method trace \
         --gold runs/whole/gold.json --init-adapter at-4 {SHAPE}"
    ));
    let scored = folder.json("scored.json");
    let largest = of(&second, "delta").iter().fold(0.0f64, |most, delta| most.max(delta.abs()));
    let (mut conflict, mut moved) = (0, 0);
    for (record, before) in second["records"].as_array().unwrap().iter().zip(of(&first, "omega")) {
        let other = &scored[record["record"].as_u64().unwrap() as usize];
        assert_ne!(other["category"], "RETAIN", "an anchor has no score");
        conflict += 1;
        let number = |value: &Value| value.as_f64().unwrap();
        assert!((number(&record["delta"]) - number(&other["raw_score"])).abs() < 1e-4 * largest, "{record} {other}");
        assert!((number(&record["omega"]) - number(&other["impact_score"])).abs() < 1e-3, "{record} {other}");
        moved += usize::from((number(&record["omega"]) - before).abs() > 1e-2);
    }
    assert!(conflict > 2 && moved > 0, "{first} {second}");
}

#[test]
fn a_killed_run_ends_with_the_same_weights() {
    let folder = Folder::new();
    folder.succeed(&format!("{TRAIN} --run-name whole"));
    // Before the first checkpoint, at a round's beginning, and after a checkpoint of a later round.
    for points in [&["train.step=2"][..], &["train.step=4"], &["train.step=9", "train.step=2"]] {
        let name = points.join("-").replace('=', "-");
        let command = format!("{TRAIN} --run-name {name}");
        for point in points {
            folder.killed(&command, point);
        }
        folder.succeed(&command);
        folder.same_runs(&FILES, ["whole", &name], &format!("after {points:?}"));
    }
}

#[test]
fn a_gang_weighs_alike() {
    let folder = Folder::new();
    folder.succeed(&format!("{TRAIN} --run-name alone"));
    let gang = |name: &str| folder.gang(&format!("{TRAIN} --run-name {name}"), 2);
    gang("gang");
    gang("again");
    for number in [1, 2, 3] {
        let [alone, both] = ["alone", "gang"].map(|name| round(&folder, name, number));
        for (a, b) in of(&alone, "omega").iter().zip(of(&both, "omega")) {
            assert!((a - b).abs() < 1e-2, "{alone}\n{both}");
        }
    }
    folder.same_runs(&FILES, ["gang", "again"], "one time and the next");
}

#[test]
fn what_has_no_scores_of_its_own_is_refused() {
    let folder = Folder::new();
    let refused = |options: &str, says: &str| {
        let command = "train --model-name-or-path {tied} --dataset-json-path records.json --run-name x";
        folder.refused(&format!("{command} {SHAPE} {options}"), &[says]);
    };
    refused("--method npo --rescore-every 3", "--rescore-every is not for method npo");
    refused("--method u2a --rescore-every 3", "see --u2a-rounds");
    refused("--rescore-every 0", "--rescore-every is 0");
    refused("--rescore-every 3 --leave-gold-out", "--rescore-every and --leave-gold-out");
    refused("--rescore-every 3 --curvature cg", "--rescore-every and --curvature cg");
    refused("--rescore-every 3 --score-seeds 2", "--rescore-every and --score-seeds");
    refused("--rescore-every 900", "the run has");

    // Weights that the records bring are those of a gold batch and a normalisation.
    let score = "score --model-name-or-path {tied} --dataset-json-path records.json --out scored.json";
    folder.succeed(&format!("{score} {SHAPE} --weight-norm reference"));
    let refused = |options: &str, says: &str| {
        let command = "train --model-name-or-path {tied} --dataset-json-path scored.json --run-name x --rescore-every 1 \
                       --batch-size 2";
        folder.refused(&format!("{command} {SHAPE} {options}"), &[says]);
    };
    refused("", "give it as --gold");
    refused("--gold gold.json", "so they are of --weight-norm reference, not of mean1");
}
