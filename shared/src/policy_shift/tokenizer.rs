//! The model folder without weights: word-level tokenizer, chat template, configuration of a small Llama.
//!
//! Every word, digit and mark of the world is one token; text is words between single spaces, so that decoding gives back
//! exactly what was encoded. There is no unknown token: a word from outside the world is an error of the tokenizer, not
//! a silent substitution. The vocabulary is the same for every seed.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::domains::Domain;
use super::moves::{ANIMALS, Move, OFFICES, SOURCES, STEPS};
use super::prompts::{Attack, FRAMES, PERSONS, TAILS};
use super::skill::{ATTRIBUTES, FACT_FRAMES, SUM_FRAMES, TOWNS, VALUES};

/// The special tokens, which have the first ids in this order.
pub const SPECIAL_TOKENS: [&str; 5] = ["<pad>", "<s>", "<user>", "<asst>", "</s>"];

/// Renders `<s> <user> PROMPT </s> <asst> RESPONSE </s>`; the generation prompt ends after `<asst>`.
const CHAT_TEMPLATE: &str = "{{ '<s>' }}{% for message in messages %}\
    {% if message['role'] == 'user' %}{{ ' <user> ' + message['content'] + ' </s>' }}\
    {% elif message['role'] == 'assistant' %}{{ ' <asst> ' + message['content'] + ' </s>' }}\
    {% else %}{{ raise_exception('this model knows the roles user and assistant only') }}{% endif %}\
    {% endfor %}{% if add_generation_prompt %}{{ ' <asst>' }}{% endif %}";

/// Returns all tokens in the order of their ids: the special ones, then the world's words in order of appearance.
pub fn vocabulary() -> Vec<&'static str> {
    let mut texts: Vec<&'static str> = Vec::new();
    texts.extend(FRAMES);
    texts.extend(TAILS);
    texts.extend(PERSONS);
    texts.extend(Attack::ALL.map(Attack::frame));
    texts.extend(Domain::ALL.iter().flat_map(|domain| domain.verbs()));
    texts.extend(Domain::ALL.iter().flat_map(|domain| domain.objects()));
    texts.extend(Move::ALL.iter().flat_map(|one| one.wordings()));
    texts.extend([STEPS, SOURCES, OFFICES, ANIMALS].into_iter().flatten());
    texts.extend(SUM_FRAMES);
    texts.extend(FACT_FRAMES);
    texts.extend(ATTRIBUTES);
    texts.extend(TOWNS);
    texts.extend(VALUES.iter().flatten());
    texts.extend(["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]);

    let mut tokens = SPECIAL_TOKENS.to_vec();
    let mut seen: HashSet<&str> = HashSet::new();
    for word in texts.iter().flat_map(|text| text.split_whitespace()) {
        // Capital words are slots of frames and wordings.
        let is_slot = word.starts_with(|first: char| first.is_ascii_uppercase());
        if !is_slot && seen.insert(word) {
            tokens.push(word);
        }
    }
    tokens
}

/// Returns `tokenizer.json`.
pub fn tokenizer_json() -> Value {
    let words: Map<String, Value> =
        vocabulary().into_iter().enumerate().map(|(id, token)| (token.to_owned(), json!(id))).collect();
    let special: Vec<Value> = SPECIAL_TOKENS
        .iter()
        .enumerate()
        .map(|(id, token)| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            })
        })
        .collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": special,
        "normalizer": null,
        "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": false},
        "post_processor": null,
        // Without a decoder tokens are joined by single spaces, which is the inverse of the splitting.
        "decoder": null,
        // The format demands a name for the unknown token; that it is in no vocabulary makes unknown words an error.
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
    })
}

/// Returns `tokenizer_config.json`, which carries the chat template.
pub fn tokenizer_config_json() -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "additional_special_tokens": ["<user>", "<asst>"],
        "add_bos_token": false,
        "add_eos_token": false,
        "clean_up_tokenization_spaces": false,
        "model_max_length": 256,
        "padding_side": "right",
        "chat_template": CHAT_TEMPLATE,
    })
}

/// Returns `config.json`: a Llama of 0.37 million parameters.
pub fn config_json() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary().len(),
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 24,
        "hidden_act": "silu",
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": null,
        "attention_bias": false,
        "mlp_bias": false,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": true,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 4,
        "use_cache": true,
        "torch_dtype": "float32",
    })
}
