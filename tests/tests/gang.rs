//! `worker train` as a gang of processes over the ring: 1 to 4 ranks follow one curve on the joined batch, and
//! a gang of which one member is killed ends, when it is started again, with the bytes of an undisturbed one.
//!
//! Deterministic because every rank computes on one thread, records are dealt by cost, and sums go round in rank order.
#![allow(clippy::unwrap_used)]

use std::process::Child;

use cluster_tests::Folder;
use serde_json::Value;

const TRACE: &str = "--method trace --batch-size 4 --gradient-accumulation-steps 1 --num-train-epochs 3 --save-steps 3 \
    --lora-r 4 --lora-dropout 0.3 --learning-rate 1e-2 --pack-tokens 150 --gold-batch-size 6";
const FULL: &str = "--method dpo --full --batch-size 5 --gradient-accumulation-steps 1 --num-train-epochs 2 \
    --learning-rate 1e-3 --replay-json-path records.json --replay-batch-size 3 --nll-weight 0.5 --alpha-kl 0";

/// Starts one rank a process; one may be planned to die.
fn start(folder: &Folder, options: &str, name: &str, world: usize, fault: Option<(usize, &str)>) -> Vec<Child> {
    let words = format!(
        "train --model-name-or-path {{tied}} --dataset-json-path records.json --output-dir runs --run-name {name} {options}"
    );
    folder.start_gang(&words, world, fault)
}

/// Runs a gang to its end; returns the exit codes and what was said.
fn finish(children: Vec<Child>) -> Vec<(Option<i32>, String)> {
    let outputs = children.into_iter().map(|child| child.wait_with_output().unwrap());
    outputs.map(|output| (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())).collect()
}

#[track_caller]
fn train(folder: &Folder, options: &str, name: &str, world: usize) {
    for (rank, (code, err)) in finish(start(folder, options, name, world, None)).into_iter().enumerate() {
        assert_eq!(code, Some(0), "rank {rank} of {world}: {err}");
    }
}

fn losses(folder: &Folder, name: &str) -> Vec<f64> {
    let number = |line: &Value| line["loss"].as_f64().unwrap();
    folder.lines(&format!("runs/{name}/metrics.jsonl")).iter().map(number).collect()
}

#[test]
fn a_gang_follows_the_curve_of_one_process() {
    for (options, kind) in [(TRACE, "adapter"), (FULL, "full")] {
        let folder = Folder::new();
        let alone = format!("{kind}-1");
        train(&folder, options, &alone, 1);
        let expected = losses(&folder, &alone);
        assert!(expected.len() >= 4);
        for world in [2, 3, 4] {
            let name = format!("{kind}-{world}");
            train(&folder, options, &name, world);
            let found = losses(&folder, &name);
            assert_eq!(found.len(), expected.len());
            for (step, (a, b)) in expected.iter().zip(&found).enumerate() {
                assert!((a - b).abs() <= 1e-4 * a.abs(), "{name}, step {step}: {b}, alone {a}");
            }
            let again = format!("{name}-again");
            train(&folder, options, &again, world);
            for file in
                ["metrics.jsonl", if kind == "full" { "model.safetensors" } else { "adapter_model.safetensors" }]
            {
                let bytes = |run: &str| folder.bytes(&format!("runs/{run}/{file}"));
                assert!(bytes(&name) == bytes(&again), "{file} of {world} ranks differs from one time to the next");
            }
        }
    }
}

#[test]
fn a_gang_whose_member_was_killed_ends_with_the_same_bytes() {
    let folder = Folder::new();
    train(&folder, TRACE, "whole", 2);
    for step in [2, 3, 5] {
        let name = format!("killed-{step}");
        let outcomes = finish(start(&folder, TRACE, &name, 2, Some((1, &format!("train.step={step}")))));
        assert_eq!(outcomes[1].0, None, "rank 1 was to be killed");
        assert_eq!(outcomes[0].0, Some(1));
        assert!(outcomes[0].1.contains("gang is broken"), "{}", outcomes[0].1);
        train(&folder, TRACE, &name, 2);
        for file in ["adapter_model.safetensors", "metrics.jsonl", "weighted_dataset.json"] {
            let bytes = |run: &str| folder.bytes(&format!("runs/{run}/{file}"));
            assert!(bytes("whole") == bytes(&name), "{file} after a death at step {step}");
        }
    }
}

/// Both ranks of two killed at every step of a short run, and each of three at one, with dropout: weights, figures and the
/// optimiser's state at the end.
#[test]
fn any_member_may_die_at_any_step() {
    const STEPS: usize = 5;
    let options = "--method no-impact --batch-size 4 --gradient-accumulation-steps 1 --max-steps 5 --num-train-epochs 2 \
        --save-steps 2 --lora-r 4 --lora-dropout 0.3 --learning-rate 1e-2 --pack-tokens 150";
    let folder = Folder::new();
    for world in [2, 3] {
        let whole = format!("whole-{world}");
        train(&folder, options, &whole, world);
        for victim in 0..world {
            let steps = if world == 2 { 1..=STEPS } else { victim + 2..=victim + 2 };
            for step in steps {
                let name = format!("{victim}-of-{world}-at-{step}");
                let point = format!("train.step={step}");
                let outcomes = finish(start(&folder, options, &name, world, Some((victim, &point))));
                for (rank, (code, err)) in outcomes.iter().enumerate() {
                    assert_eq!(*code, if rank == victim { None } else { Some(1) }, "{name}, rank {rank}: {err}");
                }
                train(&folder, options, &name, world);
                let files = ["adapter_model.safetensors", "metrics.jsonl", "checkpoint-4/state.safetensors"];
                folder.same_runs(&files, [&whole, &name], "after a death");
            }
        }
    }
}

#[test]
fn a_run_that_allows_it_goes_on_with_fewer_and_with_more_ranks() {
    let folder = Folder::new();
    train(&folder, TRACE, "whole", 2);
    let options = format!("{TRACE} --any-world-size");
    // Of each attempt's own steps: the fourth of all, and the fourth after the checkpoint of the third.
    for (world, step) in [(2, 4), (3, 4)] {
        let point = format!("train.step={step}");
        let outcomes = finish(start(&folder, &options, "any", world, Some((world - 1, &point))));
        assert_eq!(outcomes[world - 1].0, None, "the last rank was to be killed");
    }
    train(&folder, &options, "any", 1);
    let found = losses(&folder, "any");
    assert_eq!(found.len(), losses(&folder, "whole").len());
    for (step, (a, b)) in losses(&folder, "whole").iter().zip(&found).enumerate() {
        assert!((a - b).abs() <= 1e-4 * a.abs(), "step {step}: {b}, undisturbed {a}");
    }
    let ranks = |line: &Value| line["world_size"].as_u64().unwrap();
    let lines = folder.lines("runs/any/metrics.jsonl");
    let mut parts: Vec<u64> = lines.iter().map(ranks).collect();
    parts.dedup();
    assert_eq!(parts.last(), Some(&1), "{parts:?}");
    assert_eq!(parts[0], 2, "steps of a checkpoint are not done again");
    // Whoever promises equal bits does not go on from there.
    let (code, err) = finish(start(&folder, TRACE, "any", 1, None)).remove(0);
    assert!(code == Some(1) && err.contains("world_size: \"any\" there, 1 here"), "{err}");
}

#[test]
fn another_world_size_is_another_run_and_a_lone_rank_is_told() {
    let folder = Folder::new();
    train(&folder, TRACE, "r", 1);
    let outcomes = finish(start(&folder, TRACE, "r", 2, None));
    assert!(outcomes[0].1.contains("world_size: 1 there, 2 here"), "{outcomes:?}");
    assert!(outcomes.iter().all(|(code, _)| *code == Some(1)));
    let command = format!(
        "train --model-name-or-path {{tied}} --dataset-json-path records.json --run-name r {TRACE} --rank 3 --peers a:1,b:2"
    );
    folder.refused(&command, &["--rank 3", "--peers"]);
}

/// Parts of a file along one gold batch give the scores of the whole.
#[test]
fn scores_of_parts_are_those_of_the_whole() {
    let folder = Folder::new();
    let options = "--model-name-or-path {tied} --lora-r 4 --gold-batch-size 6 --pack-tokens 150";
    folder.succeed(&format!("score {options} --dataset-json-path records.json --out whole.json"));
    let whole: Vec<Value> = serde_json::from_value(folder.json("whole.json")).unwrap();
    let largest = whole.iter().map(|r| r["raw_score"].as_f64().unwrap().abs()).fold(0.0, f64::max);
    let records = cluster_tests::records();
    folder.succeed(&format!("score {options} --gold gold.json --gold-gradient gradient.safetensors --gold-only"));
    let mut kept = Some(folder.bytes("gradient.safetensors"));
    for (part, range) in [(0..3), (3..4), (4..10)].into_iter().enumerate() {
        folder.write_json("part.json", &Value::Array(records[range.clone()].to_vec()));
        folder.succeed(&format!(
            "score {options} --dataset-json-path part.json --out part-{part}.json --raw-only --gold gold.json \
             --gold-gradient gradient.safetensors"
        ));
        let gradient = folder.bytes("gradient.safetensors");
        assert!(kept.get_or_insert(gradient.clone()) == &gradient, "the gradient is read, not made again");
        let part: Vec<Value> = serde_json::from_value(folder.json(&format!("part-{part}.json"))).unwrap();
        assert_eq!(part.len(), range.len());
        for (scored, record) in part.iter().zip(&whole[range]) {
            assert!(scored.get("impact_score").is_none());
            let (a, b) = (scored["raw_score"].as_f64().unwrap_or(0.0), record["raw_score"].as_f64().unwrap());
            assert!((a - b).abs() <= 1e-5 * largest, "{a} against {b}");
        }
    }
}

#[test]
fn samples_of_parts_are_those_of_the_whole() {
    let folder = Folder::new();
    let prompts: Vec<Value> =
        cluster_tests::records().iter().map(|r| serde_json::json!({"prompt": r["prompt"]})).collect();
    folder.write_json("all.json", &Value::Array(prompts.clone()));
    folder.write_json("rest.json", &Value::Array(prompts[4..].to_vec()));
    let generate = "generate --model-name-or-path {tied} --max-new-tokens 8 --temperature 0.9 --batch-size 1";
    folder.succeed(&format!("{generate} --prompts all.json --out all-out.json"));
    folder.succeed(&format!("{generate} --prompts rest.json --out rest-out.json --item-offset 4"));
    let all = folder.json("all-out.json")["results"].as_array().unwrap()[4..].to_vec();
    assert_eq!(&all, folder.json("rest-out.json")["results"].as_array().unwrap());
}
