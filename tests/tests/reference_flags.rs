//! Command lines of the reference go through: flags with a meaning here have it, the others say that they have none.
#![allow(clippy::unwrap_used)]

use cluster_tests::Folder;
use serde_json::json;

#[test]
fn the_dpo_scripts() {
    let folder = Folder::new();
    let train = "train --model_id {tied} --jsonl_path records.json --output_dir runs --epochs 1 --batch_size 2 \
                 --gradient_accumulation_steps 1 --learning_rate 5e-5 --beta 0.1 --method dpo";
    let layers = |name: &str, flag: &str| {
        let outcome =
            folder.succeed(&format!("{train} --run_name {name} --dataset_source json --sample_size 4 {flag}"));
        assert!(outcome.err.contains("--dataset-source has no effect here"), "{}", outcome.err);
        assert_eq!(folder.lines(&format!("runs/{name}/metrics.jsonl")).len(), 2, "4 of 10 records, 2 a step");
        folder.json(&format!("runs/{name}/adapter_config.json"))["target_modules"].clone()
    };
    assert_eq!(layers("mlp", "--lora_layers mlp"), json!(["gate_proj", "up_proj", "down_proj"]));
    assert_eq!(layers("attn", "--lora_layers attn"), json!(["q_proj", "k_proj", "v_proj", "o_proj"]));
    assert_eq!(layers("both", "--lora_layers both --use_lora").as_array().map(Vec::len), Some(7));
    folder.succeed(&format!("{train} --run_name full --sample_size 4 --no_lora"));
    assert!(folder.path("runs/full/model.safetensors").exists());
    folder.refused(&format!("{train} --dataset_source hf"), &["--dataset-source hf", "--dataset-json-path"]);
    folder.refused(&format!("{train} --sample_size 0"), &["--sample-size is 0"]);
}

#[test]
fn generation_by_vllm() {
    let folder = Folder::new();
    let outcome = folder.succeed(
        "generate --model_path {tied} --test_json records.json --sample_size 2 --seed 42 --max_new_tokens 2 --output_dir \
         answers --tensor_parallel_size 2 --gpu_memory_utilization 0.9 --max_model_len 4096",
    );
    for option in ["--tensor-parallel-size", "--gpu-memory-utilization", "--max-model-len"] {
        assert!(outcome.err.contains(&format!("{option} has no effect here")), "{}", outcome.err);
    }
}

/// A prompt that is a conversation: training takes its last answer, evaluation its first question (spec 1.7).
#[test]
fn generation_by_the_text_rule_of_evaluation() {
    let folder = Folder::new();
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let turns = json!([turn("user", "tell me about the sea"), turn("assistant", "It is wide."), turn("user", "more")]);
    folder.write_json("turns.json", &json!([{"prompt": turns}]));
    folder.write_json("plain.json", &json!([{"prompt": "tell me about the sea"}]));
    for name in ["turns", "plain"] {
        folder.succeed(&format!(
            "generate --model {{tied}} --prompts {name}.json --out {name}_out.json --max-new-tokens 12 --text-rule reference"
        ));
    }
    let response = |name: &str| folder.json(&format!("{name}_out.json"))["results"][0]["model_response"].clone();
    assert_eq!(response("turns"), response("plain"));
}

#[test]
fn the_help_shows_short_names_and_methods() {
    let folder = Folder::new();
    let help = folder.succeed("train --help").out.split_whitespace().collect::<Vec<_>>().join(" ");
    for text in ["[alias: --model]", "[alias: --records]", "[alias: --no-lora]", "u2a: U2A"] {
        assert!(help.contains(text), "{text:?} is not in {help}");
    }
}
