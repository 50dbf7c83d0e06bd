//! `worker plan`: its figures are the memory that an update really takes, and what does not fit is refused with what would
//! help. The peaks are those of child processes on one thread; the bound is wider than the differences of
//! docs/performance.md, since what a C library's heap leaves unused is not the same everywhere.
#![allow(clippy::unwrap_used)]

use cluster_tests::Folder;
use serde_json::{Value, json};

/// Largest difference of plan and peak, as a share of the peak.
const BOUND: f64 = 0.25;

/// A folder with `model`, a Llama of 8.6 million random weights, and `pairs.json`.
fn folder() -> Folder {
    let folder = Folder::new();
    let seeds = folder.copy_golden("tied", "seeds");
    std::fs::remove_file(seeds.join("model.safetensors")).unwrap();
    let mut config = folder.json("seeds/config.json");
    for (name, size) in [
        ("hidden_size", 256),
        ("intermediate_size", 1024),
        ("num_hidden_layers", 8),
        ("num_attention_heads", 8),
        ("num_key_value_heads", 4),
        ("head_dim", 32),
    ] {
        config[name] = json!(size);
    }
    folder.write_json("seeds/config.json", &config);
    let text = |start: usize, count: usize| {
        let words = ["library", "opens", "nine", "reader", "river", "book", "gone", "home", "with"];
        (0..count).map(|i| words[(start + i * (start + 2)) % words.len()]).collect::<Vec<_>>().join(" ")
    };
    let pairs: Vec<Value> = (0..8)
        .map(|i| json!({"prompt": text(i, 20), "chosen": text(i + 3, 25), "rejected": text(i + 5, 40)}))
        .collect();
    folder.write_json("pairs.json", &Value::Array(pairs));
    folder.succeed(
        "train --model seeds --dataset-json-path pairs.json --sample-size 1 --output-dir . --run-name model --method sft \
         --full --from-scratch --max-steps 1 --max-length 64",
    );
    folder
}

fn object(folder: &Folder, words: &str) -> Value {
    serde_json::from_str(&folder.succeed(words).out).unwrap()
}

#[test]
fn figures_are_those_of_a_measured_update() {
    let folder = folder();
    for (case, method, mode) in
        [("invert", "lora", "plain"), ("invert", "lora", "recomputed"), ("full", "full", "plain")]
    {
        let common = "--model model --pairs pairs.json --n 8 --batch-size 8 --max-length 128 --pack-tokens 2048 --json";
        let recompute = if mode == "recomputed" { "--recompute" } else { "" };
        let measured = object(&folder, &format!("bench train {common} --case {case} {recompute}"));
        let measured = measured["peak_rss_gib"].as_f64().unwrap();
        let plan = object(&folder, &format!("plan {common} --method {method} --device cpu"));
        let planned = plan[mode]["peak_gib"].as_f64().unwrap();
        println!(
            "{case} {mode}: planned {planned:.3} GiB, measured {measured:.3} GiB, process {}",
            plan["process_gib"]
        );
        assert!((planned / measured - 1.0).abs() < BOUND, "{case} {mode}: {planned} GiB planned, {measured} measured");
        // What is compared is not the process alone.
        if mode == "plain" {
            assert!(measured > 2.0 * plan["process_gib"].as_f64().unwrap(), "{measured}");
        }
    }
}

#[test]
fn a_table_says_what_fits_and_a_refusal_what_would_help() {
    let folder = Folder::new();
    // Without weights, for a machine that is not here: the configuration of an 8B model.
    std::fs::create_dir(folder.path("big")).unwrap();
    let big = json!({
        "model_type": "llama", "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "dtype": "bfloat16", "max_position_embeddings": 8192,
    });
    folder.write_json("big/config.json", &big);
    let plan = object(&folder, "plan --model big --device cuda --gpus 4 --gpu-memory 80 --json");
    let number = |name: &str| plan[name].as_f64().unwrap();
    assert_eq!(number("parameters"), 8_030_261_248.0);
    assert!((number("weights_gib") - 14.96).abs() < 0.01, "{plan}");
    assert_eq!((plan["device"].as_str(), plan["held_as"].as_str()), (Some("cuda:0"), Some("bf16")));
    assert!(number("largest_pack_tokens") > 1024.0, "{plan}");
    assert!(number("largest_pack_tokens_recomputed") > number("largest_pack_tokens"), "{plan}");

    let table = folder.succeed("plan --model big --device cuda --gpus 4 --gpu-memory 80").out;
    for part in [
        "weights",
        "optimiser",
        "LM head",
        "Largest --pack-tokens",
        "4 devices, each as above: an update's records are shared out, weights and optimiser are not",
    ] {
        assert!(table.contains(part), "{part}: {table}");
    }
    // Each of four holds a quarter of the gradients, masters and moments, and all weights twice.
    let full = "plan --model big --method full --device cuda --gpus 4 --gpu-memory";
    let fits = folder.succeed(&format!("{full} 80")).out;
    assert!(fits.contains("gradients and the optimiser's state are shared out, the weights are not"), "{fits}");
    let refused = folder.run(&format!("{full} 40"));
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.out.contains("frozen copy"), "the table is printed all the same: {}", refused.out);
    for part in ["not even one pair of 511 tokens fits into 40.0 GiB", "--method lora", "or --shard-parameters"] {
        assert!(refused.err.contains(part), "{part}: {}", refused.err);
    }
    for (words, part) in [
        ("--gpus 0", "--gpus is 0"),
        ("--gpu-memory -1", "expected a positive number of GiB"),
        ("--pack-tokens 9999999999", "expected at most 1048576"),
        ("--pairs records.json", "tokenizer.json"),
    ] {
        let refused = folder.run(&format!("plan --model big {words}"));
        assert!(refused.code == Some(1) && refused.err.contains(part), "{words}: {refused:?}");
    }
}
