//! A merged model is base + adapter: log-probs equal to 1e-4, and no adapter is needed any more.
#![allow(clippy::unwrap_used)]

use cluster_tests::Folder;
use serde_json::Value;

fn log_probs(folder: &Folder, model: &str, extra: &str) -> Vec<f64> {
    folder.succeed(&format!(
        "logprobs --model-name-or-path {model} --records records.json --out out.jsonl --per-token {extra}"
    ));
    let values = |line: &Value| -> Vec<f64> {
        ["chosen_token_logps", "rejected_token_logps"]
            .iter()
            .flat_map(|key| line[key].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()))
            .collect()
    };
    folder.lines("out.jsonl").iter().flat_map(values).collect()
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn merged_model_equals_base_with_adapter() {
    for model in ["tied", "untied"] {
        let folder = Folder::new();
        let base = format!("{{{model}}}");
        folder.succeed(&format!(
            "train --model-name-or-path {base} --dataset-json-path records.json --output-dir runs --run-name a \
             --method dpo --num-train-epochs 4 --learning-rate 1e-2 --lora-r 3 \
             --lora-target-modules q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"
        ));
        let outcome = folder.succeed(&format!("merge --base-model-path {base} --lora-path runs/a"));
        assert!(outcome.out.contains("runs/a_merged"), "{}", outcome.out);
        let with_adapter = log_probs(&folder, &base, "--adapter runs/a");
        let merged = log_probs(&folder, "runs/a_merged", "");
        let difference = largest_difference(&merged, &with_adapter);
        println!("{model}: merged differs by {difference:.1e} a token");
        assert!(difference < 1e-4, "{model}: {difference}");
        let moved = largest_difference(&log_probs(&folder, &base, ""), &with_adapter);
        assert!(moved > 0.1, "{model}: the adapter must matter: {moved}");
        for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
            assert!(folder.path(&format!("runs/a_merged/{file}")).exists(), "{file}");
        }
    }
}

/// The tiny model in files of 100 kB: what reads it sees one model.
#[test]
fn a_model_in_several_files_is_the_same_model() {
    let folder = Folder::new();
    folder.succeed("merge --base-model-path {tied} --lora-path {adapter} --output-path whole");
    folder.succeed("merge --base-model-path {tied} --lora-path {adapter} --output-path cut --max-shard-gb 0.0001");
    let index = folder.json("cut/model.safetensors.index.json");
    let files: std::collections::BTreeSet<&str> =
        index["weight_map"].as_object().unwrap().values().map(|file| file.as_str().unwrap()).collect();
    assert!(files.len() > 1 && files.iter().all(|file| folder.path(&format!("cut/{file}")).exists()), "{files:?}");
    assert!(!folder.path("cut/model.safetensors").exists());
    assert_eq!(log_probs(&folder, "cut", ""), log_probs(&folder, "whole", ""));
    folder.refused(
        "merge --base-model-path {tied} --lora-path {adapter} --output-path no --max-shard-gb 0",
        &["--max-shard-gb is 0"],
    );
}

#[test]
fn an_input_is_never_the_output() {
    let folder = Folder::new();
    folder.copy_golden("tied", "base");
    folder.copy_golden("adapter", "adapter");
    for output in ["base", "./base/", "adapter"] {
        folder.refused(
            &format!("merge --base-model-path base --lora-path adapter --output-path {output}"),
            &["--output-path", "one of the inputs"],
        );
    }
}
