//! U2A in rounds: what a round begins with is what `worker score` and `worker logprobs` give at that adapter, the weights follow the
//! scores by the stated step, and a killed run and a gang end with the same rounds.
#![allow(clippy::unwrap_used)]

use cluster_tests::Folder;
use serde_json::{Value, json};

const SHAPE: &str = "--lora-r 4 --gold-batch-size 6 --pack-tokens 150";
const TRAIN: &str = "train --model-name-or-path {tied} --dataset-json-path records.json --output-dir runs --method u2a \
    --u2a-top 4 --u2a-rounds 3 --u2a-eta 0.5 --batch-size 5 --gradient-accumulation-steps 1 --num-train-epochs 6 \
    --lora-dropout 0.3 --learning-rate 1e-2 --warmup-steps 1 --save-steps 3 --lora-r 4 --gold-batch-size 6 --pack-tokens 150";

fn round(folder: &Folder, name: &str, round: u64) -> Value {
    folder.json(&format!("runs/{name}/u2a/round-{round}.json"))
}

fn of(round: &Value, field: &str) -> Vec<f64> {
    round["records"].as_array().unwrap().iter().map(|record| record[field].as_f64().unwrap()).collect()
}

#[test]
fn a_round_begins_with_the_scores_at_its_adapter() {
    let folder = Folder::new();
    folder.succeed(&format!("{TRAIN} --run-name whole"));
    let [first, second, third] = [1, 2, 3].map(|number| round(&folder, "whole", number));
    assert_eq!([&first, &second, &third].map(|round| round["step"].as_u64().unwrap()), [0, 4, 8]);
    assert_eq!(of(&first, "omega"), [1.0; 4], "K times 1/K");
    let summary = folder.json("runs/whole/train_summary.json");
    assert_eq!(summary["u2a"]["selected"], 4);
    let told: Vec<&Value> =
        summary["u2a"]["rounds"].as_array().unwrap().iter().map(|round| &round["objective"]).collect();
    assert_eq!(told, [&first["objective"], &second["objective"], &third["objective"]]);
    assert!(summary["u2a"]["objective_after"].is_f64());

    // ω ← ω·exp(η·δ), with the sum it had.
    for (before, after) in [(&first, &second), (&second, &third)] {
        let grown: Vec<f64> = of(before, "omega")
            .iter()
            .zip(of(after, "delta"))
            .map(|(omega, delta)| omega * (0.5 * delta).exp())
            .collect();
        let sum: f64 = grown.iter().sum();
        for (expected, found) in grown.iter().zip(of(after, "omega")) {
            assert!((4.0 * expected / sum - found).abs() < 1e-9, "{after}");
        }
        assert_eq!(before["records"][0]["record"], after["records"][0]["record"]);
    }
    assert!(of(&second, "omega").iter().any(|omega| (omega - 1.0).abs() > 1e-3), "the weights move: {second}");

    // A tolerance that nothing satisfies ends the run at the first later round: its adapter is the one scored there.
    folder.succeed(&format!("{TRAIN} --u2a-tolerance 1e9 --run-name cut"));
    let cut = round(&folder, "cut", 2);
    assert_eq!((&cut["is_end"], &cut["objective"]), (&json!(true), &second["objective"]));
    assert_eq!(of(&cut, "delta"), of(&second, "delta"));
    assert_eq!(of(&cut, "omega"), [1.0; 4], "nothing is weighed for a round that is not trained");
    assert_eq!(folder.lines("runs/cut/metrics.jsonl"), folder.lines("runs/whole/metrics.jsonl")[..4]);
    assert!(!folder.path("runs/cut/u2a/round-3.json").exists());
    folder.succeed(&format!(
        "score --model-name-or-path {{tied}} --dataset-json-path records.json --out scored.json --method u2a --init-adapter \
         runs/cut --gold runs/cut/gold.json {SHAPE}"
    ));
    let scored = folder.json("scored.json");
    let largest = of(&second, "delta").iter().fold(0.0f64, |most, delta| most.max(delta.abs()));
    for record in second["records"].as_array().unwrap() {
        let other = scored[record["record"].as_u64().unwrap() as usize]["raw_score"].as_f64().unwrap();
        assert!((record["delta"].as_f64().unwrap() - other).abs() < 1e-4 * largest, "{record}: scored {other}");
    }
    let command = "logprobs --model-name-or-path {tied} --records runs/cut/gold.json --out";
    folder.succeed(&format!("{command} before.jsonl"));
    folder.succeed(&format!("{command} after.jsonl --adapter runs/cut"));
    let ratio = |line: &Value| line["chosen_logp"].as_f64().unwrap() - line["rejected_logp"].as_f64().unwrap();
    let pairs = folder.lines("before.jsonl").into_iter().zip(folder.lines("after.jsonl"));
    let objective: f64 =
        pairs.map(|(before, after)| (1.0 + (-0.3 * (ratio(&after) - ratio(&before))).exp()).ln()).sum();
    assert!((objective - second["objective"].as_f64().unwrap()).abs() < 1e-4, "{objective} is not that of {second}");
    let at_start = first["objective"].as_f64().unwrap();
    assert!((at_start - 2f64.ln() * folder.json("runs/cut/gold.json").as_array().unwrap().len() as f64).abs() < 1e-6);
}

const FILES: [&str; 5] =
    ["adapter_model.safetensors", "metrics.jsonl", "u2a/round-1.json", "u2a/round-2.json", "u2a/round-3.json"];

#[test]
fn a_killed_run_ends_with_the_same_rounds() {
    let folder = Folder::new();
    folder.succeed(&format!("{TRAIN} --run-name whole"));
    // Before the first checkpoint, at a round's beginning, and after a checkpoint of a later round.
    for points in [&["train.step=2"][..], &["train.step=4"], &["train.step=8", "train.step=2", "train.step=3"]] {
        let name = points.join("-").replace('=', "-");
        let command = format!("{TRAIN} --run-name {name}");
        for point in points {
            folder.killed(&command, point);
        }
        folder.succeed(&command);
        folder.same_runs(&FILES, ["whole", &name], &format!("after {points:?}"));
    }
    let command = format!("{TRAIN} --run-name lost");
    folder.killed(&command, "checkpoint.renamed=2");
    std::fs::remove_file(folder.path("runs/lost/u2a/round-2.json")).unwrap();
    let outcome = folder.run(&command);
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.err.contains("round-2.json: is not there, though the checkpoint of step 6"), "{}", outcome.err);
}

#[test]
fn a_gang_goes_through_the_same_rounds() {
    let folder = Folder::new();
    folder.succeed(&format!("{TRAIN} --run-name alone"));
    let gang = |name: &str| folder.gang(&format!("{TRAIN} --run-name {name}"), 2);
    gang("gang");
    gang("again");
    for number in [1, 2, 3] {
        let [alone, both] = ["alone", "gang"].map(|name| round(&folder, name, number));
        let objective = |round: &Value| round["objective"].as_f64().unwrap();
        assert!((objective(&alone) - objective(&both)).abs() <= 1e-4 * objective(&alone), "{alone}\n{both}");
        for (a, b) in of(&alone, "omega").iter().zip(of(&both, "omega")) {
            assert!((a - b).abs() < 1e-3, "{alone}\n{both}");
        }
    }
    folder.same_runs(&FILES, ["gang", "again"], "one time and the next");
}

#[test]
fn rounds_that_cannot_be_are_refused() {
    let folder = Folder::new();
    let refused = |options: &str, says: &str| {
        folder.refused(
            &format!(
                "train --model-name-or-path {{tied}} --dataset-json-path records.json --run-name x {SHAPE} {options}"
            ),
            &[says],
        );
    };
    refused("--method trace --u2a-rounds 2", "have an effect with --method u2a only");
    refused("--method u2a --u2a-rounds 2 --full", "--u2a-rounds 2 needs an adapter");
    refused("--method u2a --u2a-rounds 0", "--u2a-rounds is 0; expected 1 to 100");
    refused("--method u2a --u2a-rounds 3 --max-steps 2", "--u2a-rounds is 3, the run has 2 updates");
    refused(
        "--method u2a --u2a-eta 0.1",
        "--u2a-eta and --u2a-tolerance have an effect with --u2a-rounds above 1 only",
    );
    refused(
        "--method u2a --u2a-rounds 2 --hold-until-loss 0.1 --decay-steps 2 --max-steps 9",
        "--u2a-rounds 2 and --hold-until-loss",
    );
}
