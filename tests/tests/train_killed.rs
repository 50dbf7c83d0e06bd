//! `worker train` killed at planned points, then given again: it ends with the bytes of an undisturbed run.
//!
//! Deterministic because one thread computes, deaths are planned by count, and dropout is on, so that masks too must
//! come back. Points: before the first checkpoint, right before one is written, right after, between two, after the
//! last step, and within scoring, which comes first.

use cluster_tests::Folder;

const ADAPTER: &str = "train --model-name-or-path {tied} --dataset-json-path records.json --output-dir runs \
    --method trace --batch-size 2 --gradient-accumulation-steps 1 --num-train-epochs 3 --save-steps 4 --lora-r 4 \
    --lora-dropout 0.3 --learning-rate 1e-2 --pack-tokens 150 --gold-batch-size 6";
const ADAPTER_FILES: [&str; 5] =
    ["adapter_model.safetensors", "adapter_config.json", "metrics.jsonl", "weighted_dataset.json", "gold.json"];

/// All weights in bf16 with f32 masters, with replay: the other half of the state.
const FULL: &str = "train --model-name-or-path {untied} --dataset-json-path records.json --output-dir runs \
    --method no-impact --full --dtype bf16 --batch-size 5 --gradient-accumulation-steps 1 --num-train-epochs 3 \
    --save-steps 2 --learning-rate 1e-3 --pack-tokens 150 --replay-json-path records.json --replay-batch-size 2";
const FULL_FILES: [&str; 2] = ["model.safetensors", "metrics.jsonl"];

#[track_caller]
fn same(folder: &Folder, name: &str, files: &[&str]) {
    for file in files {
        let (whole, other) = (format!("runs/whole/{file}"), format!("runs/{name}/{file}"));
        assert!(folder.bytes(&whole) == folder.bytes(&other), "{other} differs from the undisturbed run's");
    }
    for journal in ["score.journal", "reference_logps.journal"] {
        assert!(!folder.path(&format!("runs/{name}/{journal}")).exists(), "{journal} is left");
    }
}

#[test]
fn adapter_training_ends_with_the_same_bytes_wherever_it_was_killed() {
    let folder = Folder::new();
    folder.succeed(&format!("{ADAPTER} --run-name whole"));
    assert_eq!(folder.lines("runs/whole/metrics.jsonl").len(), 15);
    let points = [
        "score.pack=1",
        "score.pack=3",
        "train.step=2",
        "train.step=4",
        "train.step=5",
        "train.step=11",
        "train.step=15",
        "result.written=1",
    ];
    for point in points {
        let name = point.replace('=', "-");
        let command = format!("{ADAPTER} --run-name {name}");
        folder.killed(&command, point);
        assert!(!folder.path(&format!("runs/{name}/adapter_model.safetensors")).exists());
        let again = folder.succeed(&command);
        same(&folder, &name, &ADAPTER_FILES);
        // The checkpoint of step 4 may or may not have been whole at the fifth; it is before the next begins.
        let continued = again.err.contains("continuing");
        let late = ["train.step=11", "train.step=15", "result.written=1"];
        assert!(point == "train.step=5" || continued == late.contains(&point), "{point}");
        let left = std::fs::read_dir(folder.path(&format!("runs/{name}"))).expect("it is there").flatten();
        let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(".tmp")), "{point}: {left:?}");
    }
}

/// At the writer's own points: before anything is written, when all is but the name, and before older ones go.
#[test]
fn a_run_killed_while_a_checkpoint_is_written_ends_with_the_same_bytes_and_the_same_state() {
    let folder = Folder::new();
    for (options, files, steps, every) in [(ADAPTER, &ADAPTER_FILES[..], 15, 4), (FULL, &FULL_FILES[..], 6, 2)] {
        let whole = format!("whole-{every}");
        folder.succeed(&format!("{options} --run-name {whole}"));
        let last = (steps - 1) / every * every;
        for point in ["checkpoint.begun", "checkpoint.written", "checkpoint.renamed"] {
            for passage in [1, 2] {
                let name = format!("{point}-{passage}-{every}");
                let command = format!("{options} --run-name {name}");
                folder.killed(&command, &format!("{point}={passage}"));
                // What stands under a final name at this point is known.
                let whole_until = if point == "checkpoint.renamed" { passage } else { passage - 1 };
                for number in 1..=2 {
                    let checkpoint = folder.path(&format!("runs/{name}/checkpoint-{}", number * every));
                    assert_eq!(checkpoint.exists(), number <= whole_until, "{name}: {}", checkpoint.display());
                }
                let again = folder.succeed(&command);
                assert_eq!(again.err.contains("continuing"), whole_until > 0, "{name}: {}", again.err);
                folder.same_runs(files, [&whole, &name], "after a death");
                let state = format!("checkpoint-{last}/state.safetensors");
                folder.same_runs(&[&state, &state.replace("safetensors", "json")], [&whole, &name], "after a death");
                let left = std::fs::read_dir(folder.path(&format!("runs/{name}"))).expect("it is there");
                let left = left.flatten().filter(|entry| entry.file_name().to_string_lossy().ends_with(".tmp")).count();
                assert_eq!(left, 0, "{name}: an unfinished checkpoint is left");
            }
        }
    }
}

#[test]
fn a_run_killed_again_and_again_ends_with_the_same_bytes() {
    let folder = Folder::new();
    folder.succeed(&format!("{ADAPTER} --run-name whole"));
    let command = format!("{ADAPTER} --run-name often");
    for point in ["score.pack=2", "score.pack=2", "train.step=6", "train.step=7", "train.step=3"] {
        folder.killed(&command, point);
    }
    folder.succeed(&command);
    same(&folder, "often", &ADAPTER_FILES);
}

#[test]
fn full_training_in_bf16_with_replay_ends_with_the_same_bytes() {
    let folder = Folder::new();
    // One response twice, in packs apart: its two log-probs would differ by rounding.
    let mut records = folder.json("records.json");
    let list = records.as_array_mut().unwrap();
    let mut twin = list.iter().find(|record| record["category"] == "INVERT").unwrap().clone();
    twin["rejected"] = "Another answer.".into();
    list.push(twin);
    folder.write_json("records.json", &records);
    folder.succeed(&format!("{FULL} --run-name whole"));
    // The base's config.json names float32; what was trained and written is bf16.
    assert_eq!(folder.json("runs/whole/config.json")["dtype"], "bfloat16");
    for point in ["reference.pack=2", "train.step=1", "train.step=5"] {
        let name = point.replace('=', "-");
        folder.killed(&format!("{FULL} --run-name {name}"), point);
        folder.succeed(&format!("{FULL} --run-name {name}"));
        same(&folder, &name, &FULL_FILES);
        same(&folder, &name, &["reference_logps.json"]);
    }
}

#[test]
fn reference_log_probs_given_are_used_and_what_they_lack_is_added() {
    let folder = Folder::new();
    let command = "train --model-name-or-path {untied} --dataset-json-path records.json --output-dir runs --method dpo \
        --full --max-steps 1 --pack-tokens 150 --reference-logps known.json";
    folder.succeed(&format!("{command} --sample-size 4 --run-name first"));
    let first = folder.json("known.json");
    assert_eq!(first.as_object().unwrap().len(), 8);
    // All of them known but one of the second record: its pack alone is computed.
    let mut fewer = first.clone();
    let gone = fewer.as_object_mut().unwrap().keys().next().cloned().unwrap();
    fewer.as_object_mut().unwrap().remove(&gone);
    folder.write("known.json", fewer.to_string());
    folder.succeed(&format!("{command} --sample-size 4 --run-name second"));
    let second = folder.json("known.json");
    let (a, b) = (first[&gone].as_f64().unwrap(), second[&gone].as_f64().unwrap());
    assert!((a - b).abs() < 1e-4 * a.abs(), "{a} is not {b}");
    folder.succeed(&format!("{command} --sample-size 6 --run-name third"));
    assert_eq!(folder.json("known.json").as_object().unwrap().len(), 12);
    folder.write("known.json", "{\"a\": 1.5}");
    folder.refused(&format!("{command} --run-name fourth"), &["known.json", "\"a\"", "no log-prob"]);
}

#[test]
fn the_environment_plans_a_death_too() {
    let folder = Folder::new();
    let command = format!("{ADAPTER} --run-name env");
    let outcome = folder.run_after("export TRACE_FAULT=train.step=1", &command);
    assert_eq!(outcome.signal, Some(9), "{outcome:#?}");
}

#[test]
fn a_held_learning_rate_falls_at_the_same_step_wherever_the_run_was_killed() {
    let folder = Folder::new();
    let command = "train --model-name-or-path {tied} --dataset-json-path records.json --output-dir runs --method sft --full \
        --batch-size 2 --gradient-accumulation-steps 1 --max-steps 200 --warmup-steps 5 --save-steps 20 \
        --learning-rate 1e-3 --hold-until-loss 100 --decay-steps 8";
    folder.succeed(&format!("{command} --run-name whole"));
    // The mean of 50 losses is there after 50 updates.
    let rates: Vec<f64> = folder.lines("runs/whole/metrics.jsonl").iter().map(rate).collect();
    assert_eq!(rates.len(), 58);
    assert!(rates[5..=50].iter().all(|rate| *rate == 1e-3) && rates[51] < 1e-3 && rates[57] < 1e-4, "{rates:?}");
    for point in ["train.step=30", "train.step=45", "train.step=57"] {
        let name = point.replace('=', "-");
        folder.killed(&format!("{command} --run-name {name}"), point);
        folder.succeed(&format!("{command} --run-name {name}"));
        same(&folder, &name, &FULL_FILES);
    }
    let short = command.replace("--max-steps 200", "--max-steps 12");
    folder.refused(&short, &["--decay-steps is 8", "raise --max-steps"]);
}

fn rate(line: &serde_json::Value) -> f64 {
    line["learning_rate"].as_f64().expect("a line of metrics has a learning rate")
}
