//! The templates and tokenizer builds of Llama 3.1, Qwen2.5, Gemma 2 and SmolLM2, token for token as transformers
//! (`tests/golden/chat`, made by `tests/python/make_golden_chat.py`).

use std::path::PathBuf;

use serde_json::Value;

use super::*;

const MODELS: [&str; 4] = ["llama31", "qwen25", "gemma2", "smollm2"];

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/chat").join(name)
}

fn cases(name: &str) -> Vec<Value> {
    let golden: Value = serde_json::from_slice(&std::fs::read(folder("golden.json")).unwrap()).unwrap();
    golden[name].as_array().unwrap().clone()
}

fn encoder(name: &str, mask: MaskMode) -> Encoder {
    Encoder::load(&folder(name), EncoderOptions { mask, ..EncoderOptions::default() }).unwrap()
}

fn numbers<T: serde::de::DeserializeOwned>(value: &Value) -> Vec<T> {
    serde_json::from_value(value.clone()).unwrap()
}

/// Prompt, response, and the whole conversation.
fn texts(case: &Value) -> (Text, String, Vec<Turn>) {
    let prompt: Text = serde_json::from_value(case["prompt"].clone()).unwrap();
    let response = case["response"].as_str().unwrap().to_owned();
    let mut turns = prompt.turns();
    turns.push(assistant(&response));
    (prompt, response, turns)
}

#[test]
fn conversations_are_rendered_and_tokenised_as_by_transformers() {
    for name in MODELS {
        let encoder = encoder(name, MaskMode::Exact);
        let template = encoder.files.template.as_ref().unwrap();
        for case in cases(name).iter().filter(|case| case.get("error").is_none()) {
            let (prompt, response, turns) = texts(case);
            assert_eq!(template.render(&turns, false).unwrap(), case["rendered"].as_str().unwrap(), "{name}");
            let rendered_prompt = template.render(&prompt.turns(), true).unwrap();
            assert_eq!(rendered_prompt, case["rendered_prompt"].as_str().unwrap(), "{name}");
            assert_eq!(encoder.prompt(&prompt).unwrap(), numbers::<i64>(&case["prompt_tokens"]), "{name}");

            let (tokens, scored): (Vec<i64>, Vec<usize>) = (numbers(&case["tokens"]), numbers(&case["scored"]));
            let sequence = encoder.pair(&prompt, &response, 1000).unwrap();
            assert_eq!(sequence.tokens, tokens[..=scored[scored.len() - 1]], "{name}, {response:?}");
            assert_eq!(sequence.scored, scored, "{name}, {response:?}");
        }
    }
}

/// Exact mode keeps the one begin-of-text token that the template writes; reference mode has the tokenizer's own before
/// it, as the reference's code does (Llama 3.1 and Gemma 2).
#[test]
fn begin_of_text_is_once_in_exact_mode_and_twice_in_reference_mode() {
    for (name, times) in [("llama31", 2), ("qwen25", 0), ("gemma2", 2), ("smollm2", 0)] {
        let (exact, reference) = (encoder(name, MaskMode::Exact), encoder(name, MaskMode::Reference));
        for case in cases(name).iter().filter(|case| case.get("error").is_none()) {
            let (prompt, response, _) = texts(case);
            let theirs: Vec<i64> = numbers(&case["with_special_tokens"]);
            let ours = reference.pair(&prompt, &response, 1000).unwrap();
            assert_eq!(ours.tokens, theirs, "{name}, {response:?}");
            if times == 2 {
                let bos = exact.files.bos.unwrap();
                let count = |tokens: &[i64]| tokens.iter().filter(|&&token| token == bos).count();
                assert_eq!((count(&exact.pair(&prompt, &response, 1000).unwrap().tokens), count(&theirs)), (1, 2));
                assert_eq!(theirs[..2], [bos, bos]);
            } else {
                assert_eq!(theirs, numbers::<i64>(&case["tokens"]), "{name}: nothing is put before a text");
            }
        }
    }
}

#[test]
fn system_turns_that_are_not_given_are_the_templates_own() {
    let rendered = |name: &str| cases(name)[0]["rendered"].as_str().unwrap().to_owned();
    assert!(
        rendered("llama31").contains("Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>")
    );
    assert!(rendered("qwen25").starts_with("<|im_start|>system\nYou are Qwen, created by Alibaba Cloud."));
    assert!(rendered("smollm2").starts_with("<|im_start|>system\nYou are a helpful AI assistant named SmolLM"));
    assert!(rendered("gemma2").starts_with("<bos><start_of_turn>user\n"));
}

#[test]
fn what_a_template_refuses_is_refused_with_its_words() {
    let mut refused = 0;
    for name in MODELS {
        let encoder = encoder(name, MaskMode::Exact);
        for case in cases(name) {
            let Some(reason) = case.get("error") else { continue };
            let (prompt, response, _) = texts(&case);
            let text = encoder.pair(&prompt, &response, 1000).unwrap_err().to_string();
            assert!(text.contains(reason.as_str().unwrap()), "{name}: {text}");
            refused += 1;
        }
    }
    assert_eq!(refused, 5, "Gemma 2 takes no system turn and no other order than user, model, user");
}

#[test]
fn decoding_gives_back_the_response() {
    for name in MODELS {
        let encoder = encoder(name, MaskMode::Exact);
        let sequence = encoder.pair(&"Grüße?".into(), "Süß — 🌿 ok, a  b", 1000).unwrap();
        let response: Vec<i64> = sequence.scored.iter().map(|&t| sequence.tokens[t]).collect();
        assert_eq!(encoder.decode(&response), "Süß — 🌿 ok, a  b", "{name}");
    }
}
