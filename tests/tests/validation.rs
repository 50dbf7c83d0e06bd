//! Validation while training: its losses are those of the model in `best/`, it changes nothing of the training, and killed and
//! resumed runs and gangs end with the same figures and the same best adapter or model.
#![allow(clippy::unwrap_used)]

use cluster_tests::Folder;
use serde_json::{Value, json};

const TRAIN: &str = "train --model-name-or-path {tied} --dataset-json-path records.json --output-dir runs --method dpo \
    --batch-size 5 --gradient-accumulation-steps 1 --num-train-epochs 4 --lora-r 4 --lora-dropout 0.3 --learning-rate 1e-2 \
    --warmup-steps 0 --save-steps 3 --pack-tokens 150";
const VALIDATE: &str = "--validation-json-path held_out.json --eval-steps 2";
const FILES: [&str; 5] = [
    "adapter_model.safetensors",
    "metrics.jsonl",
    "validation.jsonl",
    "best/adapter_model.safetensors",
    "best/validation.json",
];

/// The usual folder, and pairs held out that want the opposite of those trained on: the longer the training, the worse.
fn folder() -> Folder {
    let folder = Folder::new();
    let mut records = folder.json("records.json");
    for record in records.as_array_mut().unwrap() {
        let (chosen, rejected) = (record["chosen"].clone(), record["rejected"].clone());
        (record["chosen"], record["rejected"]) = (rejected, chosen);
    }
    folder.write_json("held_out.json", &records);
    folder
}

fn losses(folder: &Folder, name: &str) -> Vec<f64> {
    folder.lines(&format!("runs/{name}/validation.jsonl")).iter().map(|row| row["loss"].as_f64().unwrap()).collect()
}

/// Mean DPO loss of the held-out pairs under an adapter or a model, from the log-probs that another command computes.
fn loss_of(folder: &Folder, options: &str) -> f64 {
    folder.succeed("logprobs --model-name-or-path {tied} --records held_out.json --out before.jsonl");
    folder.succeed(&format!("logprobs --records held_out.json --out after.jsonl {options}"));
    let ratio = |line: &Value| line["chosen_logp"].as_f64().unwrap() - line["rejected_logp"].as_f64().unwrap();
    let pairs: Vec<f64> = folder
        .lines("before.jsonl")
        .iter()
        .zip(folder.lines("after.jsonl"))
        .map(|(before, after)| (1.0 + (-0.3 * (ratio(&after) - ratio(before))).exp()).ln())
        .collect();
    pairs.iter().sum::<f64>() / pairs.len() as f64
}

#[test]
fn the_lowest_loss_is_kept_and_is_that_of_its_model() {
    let folder = folder();
    folder.succeed(&format!("{TRAIN} --run-name plain"));
    folder.succeed(&format!("{TRAIN} {VALIDATE} --run-name last"));
    folder.succeed(&format!("{TRAIN} {VALIDATE} --load-best --run-name best"));
    let rows = folder.lines("runs/last/validation.jsonl");
    assert_eq!(rows.iter().map(|row| row["step"].as_u64().unwrap()).collect::<Vec<_>>(), [2, 4, 6, 8]);
    assert!(rows.iter().all(|row| row["margin"].is_f64() && row["accuracy"].is_f64()), "{rows:?}");
    let all = losses(&folder, "last");
    assert!(all[3] > all[0] + 0.05, "the pairs want the opposite: {all:?}");
    let best = folder.json("runs/last/best/validation.json");
    let lowest = all.iter().copied().fold(f64::INFINITY, f64::min);
    assert_eq!(best["loss"].as_f64(), Some(lowest));
    assert_eq!(best["step"], rows[all.iter().position(|loss| *loss == lowest).unwrap()]["step"]);
    let under = |adapter: &str| loss_of(&folder, &format!("--model-name-or-path {{tied}} --adapter {adapter}"));
    assert!((under("runs/last/best") - lowest).abs() < 1e-5, "{} is not {lowest}", under("runs/last/best"));
    assert!((under("runs/last") - all[3]).abs() < 1e-5, "the last update's is at the root");

    let bytes = |file: &str| folder.bytes(&format!("runs/{file}"));
    for file in ["adapter_model.safetensors", "metrics.jsonl"] {
        assert!(
            bytes(&format!("plain/{file}")) == bytes(&format!("last/{file}")),
            "{file}: validation changes nothing"
        );
    }
    assert!(!folder.path("runs/plain/best").exists() && !folder.path("runs/plain/validation.jsonl").exists());
    assert!(bytes("best/adapter_model.safetensors") == bytes("last/best/adapter_model.safetensors"));
    assert!(bytes("best/adapter_config.json") == bytes("last/best/adapter_config.json"));
    assert!(bytes("best/adapter_model.safetensors") != bytes("last/adapter_model.safetensors"));
    for (name, kept) in [("last", "last"), ("best", "best")] {
        let told = folder.json(&format!("runs/{name}/train_summary.json"))["validation"].clone();
        assert_eq!((&told["kept"], &told["best"], &told["loss"]), (&json!(kept), &best, &json!(all[3])));
    }
    let events = bytes("last/events.out.tfevents.0.trace");
    let times = |tag: &str| events.windows(tag.len()).filter(|bytes| *bytes == tag.as_bytes()).count();
    assert_eq!((times("validation/loss/total"), times("validation/margin")), (4, 4));
}

#[test]
fn a_whole_model_is_kept_too() {
    let folder = folder();
    let train = TRAIN.replace("--learning-rate 1e-2", "--learning-rate 1e-3 --full");
    folder.succeed(&format!("{train} {VALIDATE} --run-name full"));
    folder.succeed(&format!("{train} {VALIDATE} --load-best --run-name best"));
    let lowest = losses(&folder, "full").into_iter().fold(f64::INFINITY, f64::min);
    let found = loss_of(&folder, "--model-name-or-path runs/full/best");
    assert!((found - lowest).abs() < 1e-5, "{found} is not {lowest}");
    assert!(folder.bytes("runs/best/model.safetensors") == folder.bytes("runs/full/best/model.safetensors"));
    assert!(folder.bytes("runs/full/model.safetensors") != folder.bytes("runs/full/best/model.safetensors"));
}

#[test]
fn a_killed_run_ends_with_the_same_best() {
    let folder = folder();
    folder.succeed(&format!("{TRAIN} {VALIDATE} --run-name whole"));
    for points in [
        &["train.validation=1"][..],
        &["train.step=4"],
        &["train.step=5", "train.validation=1", "train.step=3"],
        &["train.validation=4"],
        &["best.begun=1", "best.written=1"],
    ] {
        let name = points.join("-").replace('=', "-");
        let command = format!("{TRAIN} {VALIDATE} --run-name {name}");
        for point in points {
            folder.killed(&command, point);
        }
        folder.succeed(&command);
        folder.same_runs(&FILES, ["whole", &name], &format!("after {points:?}"));
    }
    // What is trained on gets better and better: best/ is replaced, and a death between the two renames leaves none in place.
    let better = format!("{TRAIN} {VALIDATE}").replace("held_out.json", "records.json");
    folder.succeed(&format!("{better} --run-name better"));
    let [first, second, ..] = losses(&folder, "better")[..] else { panic!("two validations and more") };
    assert!(second < first, "{second} after {first}");
    let command = format!("{better} --run-name aside");
    folder.killed(&command, "best.aside=1");
    assert!(folder.path("runs/aside/best.before").exists() && !folder.path("runs/aside/best").exists());
    assert!(folder.path("runs/aside/checkpoint-3").exists(), "it goes on behind the best that is aside");
    folder.succeed(&command);
    folder.same_runs(&FILES, ["better", "aside"], "after a death between two renames");

    let before = format!("{TRAIN} {VALIDATE} --run-name lost");
    folder.killed(&before, "checkpoint.renamed=1");
    std::fs::remove_dir_all(folder.path("runs/lost/best")).unwrap();
    let outcome = folder.run(&before);
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.err.contains("best: is not there, though step 2 was the best so far"), "{}", outcome.err);
}

#[test]
fn a_gang_validates_as_one_process_does() {
    let folder = folder();
    let options = format!("{TRAIN} {VALIDATE} --run-name");
    folder.succeed(&format!("{options} alone"));
    let gang = |name: &str| folder.gang(&format!("{options} {name}"), 2);
    gang("gang");
    gang("again");
    let (alone, both) = (losses(&folder, "alone"), losses(&folder, "gang"));
    assert_eq!(alone.len(), both.len());
    for (a, b) in alone.iter().zip(&both) {
        assert!((a - b).abs() <= 1e-4 * a, "{b}, alone {a}");
    }
    folder.same_runs(&FILES, ["gang", "again"], "one time and the next");
}

#[test]
fn records_that_say_nothing_to_the_method_and_options_without_a_file_are_refused() {
    let folder = folder();
    let mut records = folder.json("records.json");
    records.as_array_mut().unwrap().retain(|record| record["category"] == "RETAIN");
    folder.write_json("held_out.json", &records);
    let train = TRAIN.replace("--method dpo", "--method no-kl");
    folder.refused(
        &format!("{train} {VALIDATE} --run-name x"),
        &["held_out.json: none of its 4 records has a loss with method no-kl"],
    );
    folder.refused(
        &format!("{TRAIN} {VALIDATE} --eval-steps 0 --run-name x").replace("--eval-steps 2 ", ""),
        &["--eval-steps is 0"],
    );
    let outcome = folder.run(&format!("{TRAIN} --eval-steps 2 --run-name x"));
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
    assert!(outcome.err.contains("--validation-json-path"), "{}", outcome.err);
}
