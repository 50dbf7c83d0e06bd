//! Model and adapter folders that cannot be used: the message names the file and what is wrong with it, the exit code
//! is 1, and nothing is written.
#![allow(clippy::unwrap_used)]

use cluster_tests::{Folder, safetensors};
use serde_json::{Value, json};

const LOGPROBS: &str = "logprobs --model-name-or-path model --records records.json --out out.jsonl";

fn folder(model: &str) -> Folder {
    let folder = Folder::new();
    folder.copy_golden(model, "model");
    folder
}

fn change_json(folder: &Folder, name: &str, key: &str, value: Value) {
    let mut config = folder.json(name);
    config[key] = value;
    folder.write_json(name, &config);
}

#[test]
fn unknown_family_and_unknown_features() {
    let folder = folder("tied");
    for (key, value, messages) in [
        ("model_type", json!("mamba"), ["model/config.json", "\"mamba\""]),
        ("hidden_act", json!("gelu"), ["model/config.json", "\"gelu\""]),
        ("num_attention_heads", json!("four"), ["model/config.json: field \"num_attention_heads\"", "expected i64"]),
        ("hidden_size", json!("32"), ["model/config.json: field \"hidden_size\"", "string \"32\""]),
        ("model_type", json!(5), ["model/config.json: field \"model_type\" is 5", "\"llama\""]),
        // Nothing is made by the billion to find out that it is not there.
        ("num_hidden_layers", json!(1_000_000_000), ["num_hidden_layers = 1000000000", "tensors in all"]),
        ("num_hidden_layers", json!(1u64 << 60), ["model/config.json", "num_hidden_layers is 1152921504606846976"]),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 2.0}), ["model/config.json", "\"yarn\""]),
    ] {
        folder.copy_golden("tied", "model");
        change_json(&folder, "model/config.json", key, value);
        folder.refused(LOGPROBS, &messages);
    }
    folder.write("model/config.json", "[]");
    folder.refused(LOGPROBS, &["model/config.json: is no JSON object"]);
    folder.write("model/config.json", "{\"model_type\": \"llama\"");
    folder.refused(LOGPROBS, &["model/config.json", "JSON"]);
    std::fs::remove_file(folder.path("model/config.json")).unwrap();
    folder.refused(LOGPROBS, &["model/config.json", "Hugging Face"]);
}

#[test]
fn missing_surplus_and_misshaped_tensors() {
    let folder = folder("tied");
    let weights = folder.path("model/model.safetensors");
    safetensors::rename(&weights, "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.other.weight");
    folder.refused(LOGPROBS, &["model.layers.1.mlp.up_proj.weight", "[64, 32]", "missing"]);

    folder.copy_golden("tied", "model");
    safetensors::reshape(&weights, "model.layers.0.self_attn.k_proj.weight", &[8, 64]);
    folder.refused(LOGPROBS, &["model.safetensors", "model.layers.0.self_attn.k_proj.weight", "[8, 64]", "[16, 32]"]);

    folder.copy_golden("tied", "model");
    change_json(&folder, "model/config.json", "num_hidden_layers", json!(1));
    folder.refused(LOGPROBS, &["model.layers.1", "not part of"]);
}

#[test]
fn damaged_and_missing_weight_files() {
    let folder = folder("untied");
    let shard = "model/model-00002-of-00002.safetensors";
    let mut bytes = folder.bytes(shard);
    bytes.truncate(bytes.len() - 100);
    folder.write(shard, &bytes);
    folder.refused(LOGPROBS, &[shard, "not a whole safetensors file"]);
    folder.write(shard, b"");
    folder.refused(LOGPROBS, &[shard]);
    folder.write(shard, [0xff; 64]);
    folder.refused(LOGPROBS, &[shard, "not a whole safetensors file"]);
    std::fs::remove_file(folder.path(shard)).unwrap();
    folder.refused(LOGPROBS, &[shard]);
    std::fs::remove_file(folder.path("model/model.safetensors.index.json")).unwrap();
    folder.refused(LOGPROBS, &["model", "neither model.safetensors nor"]);
}

#[test]
fn tokenizers_missing_broken_or_of_another_model() {
    let folder = folder("tied");
    let tokenizer = folder.bytes("model/tokenizer.json");
    std::fs::remove_file(folder.path("model/tokenizer.json")).unwrap();
    folder.refused(LOGPROBS, &["model/tokenizer.json"]);
    folder.write("model/tokenizer.json", &tokenizer[..tokenizer.len() / 2]);
    folder.refused(LOGPROBS, &["model/tokenizer.json", "not a tokenizer definition"]);
    let mut larger: Value = serde_json::from_slice(&tokenizer).unwrap();
    larger["added_tokens"].as_array_mut().unwrap().push(json!({
        "id": 5000, "content": "<|new|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": true
    }));
    folder.write_json("model/tokenizer.json", &larger);
    folder.refused(LOGPROBS, &["tokenizer.json", "420 rows"]);
}

/// Not an error: prompts then get the fallback format of spec 3.1, and the program says so.
#[test]
fn a_tokenizer_without_template_is_used_with_the_fallback() {
    let folder = folder("tied");
    folder.succeed(LOGPROBS);
    let with_template = folder.lines("out.jsonl");
    std::fs::remove_file(folder.path("model/chat_template.jinja")).unwrap();
    let outcome = folder.succeed(LOGPROBS);
    assert!(outcome.err.contains("no chat template") && outcome.err.contains("### Answer"), "{}", outcome.err);
    assert_ne!(folder.lines("out.jsonl"), with_template);
}

#[test]
fn adapters_of_another_base_model() {
    let folder = folder("tied");
    folder.succeed(
        "train --model-name-or-path {tied} --dataset-json-path records.json --output-dir runs --run-name a --method dpo \
         --max-steps 2 --lora-r 2",
    );
    let with = |model: &str, adapter: &str| {
        format!("logprobs --model-name-or-path {model} --records records.json --out out.jsonl --adapter {adapter}")
    };
    // The same shapes: only the fingerprint tells the two models apart.
    folder.refused(&with("{untied}", "runs/a"), &["runs/a", "fingerprint"]);
    folder.refused(
        "merge --base-model-path {untied} --lora-path runs/a --output-path merged",
        &["runs/a", "fingerprint"],
    );
    folder.succeed(&with("{tied}", "runs/a"));

    folder.copy_golden("adapter", "peft");
    let file = folder.path("peft/adapter_model.safetensors");
    let name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    safetensors::reshape(&file, name, &[8, 16]);
    let model_says = "this base model needs [4, 32]: the adapter is of another base model";
    folder.refused(&with("{tied}", "peft"), &[model_says]);
    folder.refused(&with("{tied}", "peft"), &["adapter_model.safetensors", name, "[8, 16]", "[4, 32]"]);
    folder.copy_golden("adapter", "peft");
    safetensors::rename(&file, name, "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight");
    folder.refused(&with("{tied}", "peft"), &["adapter_model.safetensors", "q_proj.lora_A"]);
    folder.copy_golden("adapter", "peft");
    change_json(&folder, "peft/adapter_config.json", "r", json!(8));
    let rank = ["adapter_model.safetensors", "so rank 4, and adapter_config.json says r = 8"];
    folder.refused(&with("{tied}", "peft"), &rank);
    folder.copy_golden("adapter", "peft");
    change_json(&folder, "peft/adapter_config.json", "use_dora", json!(true));
    folder.refused(&with("{tied}", "peft"), &["peft/adapter_config.json", "use_dora"]);
    std::fs::remove_file(folder.path("peft/adapter_config.json")).unwrap();
    folder.refused(&with("{tied}", "peft"), &["peft/adapter_config.json"]);
}

/// Numbers that are not finite are said, never written as results.
#[test]
fn a_model_with_nan_weights() {
    let folder = folder("tied");
    safetensors::fill(&folder.path("model/model.safetensors"), "model.layers.1.mlp.up_proj.weight", f32::NAN);
    let outcome = folder.run(LOGPROBS);
    assert_eq!(outcome.code, Some(3), "{outcome:#?}");
    let reason = |line: &serde_json::Value| line["error"].as_str().unwrap_or_default().contains("NaN");
    assert!(folder.lines("out.jsonl").iter().all(reason), "{:?}", folder.lines("out.jsonl"));
    let generate = "generate --model-name-or-path model --prompts records.json --out out.json --max-new-tokens 3";
    folder.refused(generate, &["records.json: record ", "NaN"]);
    let score = "score --model-name-or-path model --dataset-json-path records.json --out scored.json";
    folder.refused(score, &["records.json: record ", "gold batch", "not finite"]);
    let train = "train --model-name-or-path model --dataset-json-path records.json --output-dir runs --run-name nan \
                 --method sft --batch-size 1 --gradient-accumulation-steps 1";
    let outcome = folder.run(train);
    let messages = ["records.json: record ", "its negative log-likelihood of chosen is not finite", "--learning-rate"];
    cluster_tests::check_refusal(train, &outcome, &messages);
    assert!(!folder.path("runs/nan/adapter_model.safetensors").exists());
    // The step that failed has made nothing that another setting would throw away.
    let again = format!("{train} --learning-rate 1e-5");
    cluster_tests::check_refusal(&again, &folder.run(&again), &["not finite"]);

    // Indices are those of the file, records without text counted; a gold batch that is given has its own.
    let mut pair = cluster_tests::records().into_iter().find(|record| record["category"] == "INVERT").unwrap();
    folder.write_json(
        "pairs.json",
        &json!([{"prompt": " ", "chosen": "a", "rejected": "b", "category": "INVERT"}, pair]),
    );
    let generate = generate.replace("records.json", "pairs.json");
    cluster_tests::check_refusal(&generate, &folder.run(&generate), &["pairs.json: record 1: the model's logits"]);
    let score = score.replace("records.json", "pairs.json");
    let named = "record 1: its preference loss of chosen over rejected is not finite; it is in the gold batch";
    folder.refused(&format!("{score} --gold-batch-size 3"), &[&format!("pairs.json: {named}")]);
    pair.as_object_mut().unwrap().remove("category");
    folder.write_json("mine.json", &json!([pair]));
    folder.refused(&format!("{score} --gold mine.json"), &[&format!("mine.json: {}", named.replace('1', "0"))]);
    std::fs::remove_file(folder.path("out_quarantine.json")).ok();

    // What the failures left behind does not stand in the way of a sound model.
    folder.copy_golden("tied", "model");
    for command in [generate, score] {
        folder.succeed(&command);
    }
}

/// More than any machine has: libtorch refuses, and that is said in one line.
#[test]
fn memory_that_is_not_there() {
    let folder = folder("tied");
    change_json(&folder, "model/config.json", "max_position_embeddings", json!(1u64 << 60));
    let generate = "generate --model-name-or-path model --prompts records.json --out out.json --max-new-tokens \
                    1000000000000000";
    let outcome = folder.run(generate);
    cluster_tests::check_refusal(generate, &outcome, &["worker: not enough memory", "--max-new-tokens"]);
    assert!(!outcome.err.contains("frame #"), "{}", outcome.err);
    let score = "score --model-name-or-path model --dataset-json-path records.json --out out.json --lora-r 100000";
    folder.refused(score, &["--lora-r is 100000; expected at most 256"]);
    change_json(&folder, "model/config.json", "hidden_size", json!(1 << 29));
    let train = "train --model-name-or-path model --dataset-json-path records.json --method sft --full --from-scratch";
    folder.refused(train, &["model/config.json", "describes a model of", "GiB"]);
    assert!(!folder.path("runs").exists());
}
