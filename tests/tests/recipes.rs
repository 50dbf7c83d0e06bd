//! Every training recipe moves the model where its own objective points, on the golden model: the loss falls, and the
//! log-probs of the responses it wants raised or lowered do so.
#![allow(clippy::unwrap_used)]

use cluster_tests::{Folder, records};
use serde_json::{Value, json};

fn train(folder: &Folder, method: &str, name: &str, extra: &str) -> Vec<Value> {
    folder.succeed(&format!(
        "train --model-name-or-path {{tied}} --dataset-json-path records.json --output-dir runs --run-name {name} \
         --method {method} --batch-size 10 --gradient-accumulation-steps 1 --num-train-epochs 12 --lora-r 4 \
         --lora-dropout 0 --learning-rate 1e-2 --gold-batch-size 6 {extra}"
    ));
    folder.lines(&format!("runs/{name}/metrics.jsonl"))
}

/// What training did to the summed log-probs of both responses of every record of a file.
fn moves(folder: &Folder, file: &str, name: &str) -> Vec<(f64, f64)> {
    let command = format!("logprobs --model-name-or-path {{tied}} --records {file} --out");
    folder.succeed(&format!("{command} before.jsonl"));
    folder.succeed(&format!("{command} after.jsonl --adapter runs/{name}"));
    let value = |line: &Value, key: &str| line[key].as_f64().unwrap();
    folder
        .lines("before.jsonl")
        .iter()
        .zip(folder.lines("after.jsonl"))
        .map(|(before, after)| {
            let moved = |key: &str| value(&after, key) - value(before, key);
            (moved("chosen_logp"), moved("rejected_logp"))
        })
        .collect()
}

fn field(lines: &[Value], name: &str) -> Vec<f64> {
    lines.iter().map(|line| line[name].as_f64().unwrap()).collect()
}

fn category(record: &Value) -> &str {
    record["category"].as_str().unwrap()
}

#[test]
fn every_method_follows_its_own_objective() {
    let records = records();
    let folder = Folder::new();
    // The correction in the place of the preferred response, the old winner in that of the other.
    let corrected: Vec<Value> = records
        .iter()
        .map(|r| match category(r) {
            "PUNISH" => json!({"prompt": r["prompt"], "chosen": r["oracle_response"], "rejected": r["chosen"]}),
            _ => r.clone(),
        })
        .collect();
    folder.write_json("corrected.json", &Value::Array(corrected));
    for method in [
        "trace",
        "no-kl",
        "no-impact",
        "oracle-punish",
        "no-triage",
        "dpo",
        "dpo-gold",
        "naive-oracle-dpo",
        "rdpo",
        "cdpo",
        "ipo",
        "npo",
        "u2a",
        "sft",
    ] {
        let extra = if matches!(method, "rdpo" | "cdpo") { "--label-smoothing 0.1" } else { "" };
        let metrics = train(&folder, method, method, extra);
        let loss = field(&metrics, "loss");
        assert!(loss.last() < loss.first(), "{method}: {loss:?}");

        let is_weighted = ["trace", "no-kl", "oracle-punish", "no-triage", "u2a"].contains(&method);
        let weights: Vec<f64> = if is_weighted {
            let scored = folder.json(&format!("runs/{method}/weighted_dataset.json"));
            field(scored.as_array().unwrap(), "impact_score")
        } else {
            vec![1.0; records.len()]
        };
        let uses_corrections = ["oracle-punish", "dpo-gold"].contains(&method);
        let file = if uses_corrections { "corrected.json" } else { "records.json" };
        // How far each record went where the method wants it, and how many it is about.
        let (mut wanted, mut count) = (0.0, 0);
        for ((record, weight), (chosen, rejected)) in records.iter().zip(weights).zip(moves(&folder, file, method)) {
            let gain = match (method, category(record)) {
                ("sft", _) => chosen,
                ("no-triage", _) => -rejected,
                ("dpo" | "rdpo" | "cdpo" | "ipo" | "naive-oracle-dpo" | "dpo-gold", _) => chosen - rejected,
                ("npo" | "u2a", "INVERT") => -rejected,
                ("oracle-punish", "PUNISH") | (_, "INVERT") => chosen - rejected,
                (_, "PUNISH") => -chosen - rejected,
                _ => continue,
            };
            wanted += weight * gain;
            count += 1;
        }
        assert!(wanted > 0.5, "{method}: {wanted} over {count} records");
    }
}

#[test]
fn the_anchor_holds_the_model_where_it_was() {
    let folder = Folder::new();
    let free = train(&folder, "no-kl", "free", "");
    assert!(field(&free, "loss_kl").iter().all(|kl| *kl == 0.0));
    let loose = train(&folder, "trace", "loose", "--alpha-kl 0.01");
    let tight = train(&folder, "trace", "tight", "--alpha-kl 10");
    let kl = |metrics: &[Value], alpha: f64| field(metrics, "loss_kl").last().unwrap() / alpha;
    assert!(field(&loose, "loss_kl")[0].abs() < 1e-8, "the model starts where π_ref is");
    let (loose, tight) = (kl(&loose, 0.01), kl(&tight, 10.0));
    assert!(tight > 0.0 && tight < 0.5 * loose, "{tight} with a strong anchor, {loose} with a weak one");
    // An anchor without weight costs nothing and changes nothing.
    train(&folder, "trace", "zero", "--alpha-kl 0");
    let weights = |name: &str| folder.bytes(&format!("runs/{name}/adapter_model.safetensors"));
    assert!(weights("zero") == weights("free"));
}

/// Records that bring the weights of `worker score` train to the same bytes as records scored on the way.
#[test]
fn scored_records_bring_their_weights() {
    let folder = Folder::new();
    folder.succeed(
        "score --model-name-or-path {tied} --dataset-json-path records.json --out scored.json --lora-r 4 \
         --lora-dropout 0 --gold-batch-size 6",
    );
    let on_the_way = train(&folder, "trace", "unscored", "");
    assert!(folder.bytes("scored.json") == folder.bytes("runs/unscored/weighted_dataset.json"));
    folder.write("records.json", folder.bytes("scored.json"));
    let brought = train(&folder, "trace", "scored", "");
    assert!(!folder.path("runs/scored/weighted_dataset.json").exists(), "nothing was scored again");
    assert_eq!(brought, on_the_way);
    let weights = |name: &str| folder.bytes(&format!("runs/{name}/adapter_model.safetensors"));
    assert!(weights("scored") == weights("unscored"));

    // Other weights are another run, and --rescore makes them anew.
    let mut scored = folder.json("scored.json");
    for record in scored.as_array_mut().unwrap() {
        record["impact_score"] = json!(1.0);
    }
    folder.write_json("records.json", &scored);
    train(&folder, "trace", "ones", "");
    assert!(weights("ones") != weights("unscored"));
    train(&folder, "no-impact", "no-impact", "");
    assert!(weights("ones") == weights("no-impact"));
    train(&folder, "trace", "again", "--rescore");
    assert!(weights("again") == weights("unscored"));
}

/// An SFT record needs no rejected response; a model drawn from a seed learns, is saved whole and loads again.
#[test]
fn a_model_is_trained_from_scratch_and_loads_again() {
    let folder = Folder::new();
    let pairs: Vec<Value> = records().iter().map(|r| json!({"prompt": r["prompt"], "chosen": r["chosen"]})).collect();
    folder.write_json("sft.json", &Value::Array(pairs));
    let command = "train --model-name-or-path {untied} --dataset-json-path sft.json --output-dir runs --run-name full \
                   --method sft --full --from-scratch --batch-size 10 --gradient-accumulation-steps 1 \
                   --num-train-epochs 15 --learning-rate 1e-2";
    folder.succeed(command);
    let loss = field(&folder.lines("runs/full/metrics.jsonl"), "loss");
    assert!((loss[0] - 420f64.ln()).abs() < 0.5, "a random model guesses evenly: {}", loss[0]);
    assert!(loss[14] < 0.7 * loss[0], "{loss:?}");
    folder.succeed("logprobs --model-name-or-path runs/full --records sft.json --out after.jsonl");
    let after = folder.lines("after.jsonl");
    let mean = after
        .iter()
        .map(|line| -line["chosen_logp"].as_f64().unwrap() / line["chosen_tokens"].as_f64().unwrap())
        .sum::<f64>()
        / after.len() as f64;
    assert!(mean < loss[14] + 0.05, "the saved model is the trained one: {mean} after {}", loss[14]);
}

#[test]
fn a_run_says_what_it_does_update_by_update_and_ends_when_the_gradient_is_small() {
    let folder = Folder::new();
    let by_category = "--batching by-category --warmup-steps 0 --alpha-kl 1 --seed 5";
    let metrics = train(&folder, "trace", "whole", by_category);
    let kl = field(&metrics, "kl");
    assert!(kl[0].abs() < 1e-9 && kl.iter().skip(1).all(|kl| *kl > 0.0), "RETAIN is in every batch: {kl:?}");
    let speed = folder.lines("runs/whole/speed.jsonl");
    assert_eq!(speed.len(), metrics.len());
    assert!(field(&speed, "tokens_per_s").iter().chain(&field(&speed, "peak_gib")).all(|figure| *figure > 0.0));
    let events = std::fs::read(folder.path("runs/whole/events.out.tfevents.0.trace")).unwrap();
    for tag in ["loss/L_I", "loss/L_II", "loss/L_KL", "preference/margin", "KL", "speed/tokens per s"] {
        let times = events.windows(tag.len()).filter(|bytes| *bytes == tag.as_bytes()).count();
        assert!(times >= metrics.len(), "{tag}: {times} of {}", metrics.len());
    }

    // It ends with the first update whose gradient is as small as its fifth largest.
    let norms = field(&metrics, "grad_norm");
    let mut sorted = norms.clone();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let end = 1 + norms.iter().position(|norm| *norm <= sorted[4]).unwrap();
    let stopped = train(&folder, "trace", "stopped", &format!("{by_category} --stop-at-grad-norm {}", sorted[4]));
    assert_eq!(stopped, metrics[..end]);
    assert!(folder.path("runs/stopped/adapter_model.safetensors").exists(), "an end like any other");
}

#[test]
fn the_rank_stabilised_scale_is_that_of_a_plain_adapter_with_a_larger_alpha() {
    let folder = Folder::new();
    train(&folder, "dpo", "stable", "--lora-alpha 3 --use-rslora");
    train(&folder, "dpo", "plain", "--lora-alpha 6");
    for file in ["adapter_model.safetensors", "adapter_config.json"] {
        let bytes = |run: &str| std::fs::read(folder.path(&format!("runs/{run}/{file}"))).unwrap();
        assert!(bytes("stable") == bytes("plain"), "{file}: with rank 4, 3/√4 is 6/4");
    }
}

/// U2A on the records with the largest scores is training on these alone, each with weight 1.
#[test]
fn u2a_keeps_the_records_with_the_largest_scores() {
    let folder = Folder::new();
    let top = train(&folder, "u2a", "top", "--u2a-top 2");
    let scored = folder.json("runs/top/weighted_dataset.json");
    let mut by_score: Vec<(f64, usize)> = scored
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
        .filter(|(_, record)| category(record) != "RETAIN")
        .map(|(at, record)| (record["raw_score"].as_f64().unwrap(), at))
        .collect();
    by_score.sort_by(|a, b| b.0.total_cmp(&a.0));
    assert!(by_score.len() > 3 && by_score[1].0 > by_score[2].0, "{by_score:?}");
    let summary = folder.json("runs/top/train_summary.json");
    assert_eq!((&summary["u2a"]["forget_set"], &summary["u2a"]["selected"]), (&json!(by_score.len()), &json!(2)));
    let begun = folder.json("runs/top/u2a/round-1.json");
    let kept: Vec<(f64, u64)> = begun["records"]
        .as_array()
        .unwrap()
        .iter()
        .map(|of| (of["delta"].as_f64().unwrap(), of["record"].as_u64().unwrap()))
        .collect();
    let mut expected: Vec<(f64, u64)> = by_score[..2].iter().map(|(score, at)| (*score, *at as u64)).collect();
    expected.sort_by_key(|(_, at)| *at);
    assert_eq!(kept, expected);

    let mut records = scored.clone();
    for (at, record) in records.as_array_mut().unwrap().iter_mut().enumerate() {
        record["impact_score"] = json!(if by_score[..2].iter().any(|(_, kept)| *kept == at) { 1.0 } else { 0.0 });
    }
    folder.write_json("records.json", &records);
    assert_eq!(train(&folder, "u2a", "by-hand", ""), top);
    let weights = |name: &str| folder.bytes(&format!("runs/{name}/adapter_model.safetensors"));
    assert!(weights("top") == weights("by-hand"));

    // Scores that the records bring select the same.
    folder.write_json("records.json", &scored);
    train(&folder, "u2a", "brought", "--u2a-top 2");
    assert!(weights("top") == weights("brought"));
    folder.refused(
        "train --model-name-or-path {tied} --dataset-json-path records.json --run-name x --method trace --u2a-top 2",
        &["have an effect with --method u2a only"],
    );
}
