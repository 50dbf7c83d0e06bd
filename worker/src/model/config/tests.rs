//! What is read from a `config.json`, in both spellings, and what is refused.

use super::*;

fn parse(text: &str) -> Result<ModelConfig> {
    ModelConfig::parse(Path::new("config.json"), text.as_bytes())
}

fn problem(fields: &str) -> String {
    parse(&format!("{{{fields}}}")).unwrap_err().to_string()
}

const BASE: &str = r#""model_type": "llama", "vocab_size": 10, "hidden_size": 8, "intermediate_size": 16,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2"#;

#[test]
fn both_spellings_of_rope_give_the_same() {
    let scaling = r#""factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64, "rope_type": "llama3""#;
    let old = parse(&format!("{{{BASE}, \"rope_theta\": 5e5, \"rope_scaling\": {{{scaling}}}}}")).unwrap();
    let new = parse(&format!("{{{BASE}, \"rope_parameters\": {{\"rope_theta\": 5e5, {scaling}}}}}")).unwrap();
    assert_eq!(old, new);
    assert_eq!(old.rope_theta, 5e5);
}

#[test]
fn unknown_family_and_rope_are_named() {
    let family = problem(&BASE.replace("llama", "mamba"));
    assert!(family.contains("\"mamba\""), "{family}");
    let rope = problem(&format!("{BASE}, \"rope_scaling\": {{\"type\": \"yarn\", \"factor\": 2}}"));
    assert!(rope.contains("\"yarn\""), "{rope}");
}

#[test]
fn missing_and_senseless_fields_are_named() {
    let changed = |old: &str, new: &str| problem(&BASE.replace(old, new));
    assert_eq!(problem(r#""model_type": "llama""#), "config.json: field \"vocab_size\": is missing");
    assert!(changed("\"hidden_size\": 8", "\"hidden_size\": 0").contains("hidden_size is 0"));
    let layers = changed("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1000000000000000000");
    assert!(layers.contains("num_hidden_layers is 1000000000000000000; expected 1 to"), "{layers}");
}

#[test]
fn fields_of_another_type_are_named() {
    let text = problem(&BASE.replace("\"hidden_size\": 8", "\"hidden_size\": \"32\""));
    assert!(text.starts_with("config.json: field \"hidden_size\": invalid type: string \"32\", expected"), "{text}");
    let text = problem(&format!("{BASE}, \"rope_scaling\": 5"));
    assert!(text.starts_with("config.json: field \"rope_scaling\": "), "{text}");
    let text = problem(&BASE.replace("\"llama\"", "5"));
    assert!(text.starts_with("config.json: field \"model_type\" is 5; expected the name of a family"), "{text}");
    let text = problem("").replace("config.json: ", "");
    assert!(text.starts_with("field \"model_type\" is missing"), "{text}");
    let list = parse("[]").unwrap_err().to_string();
    assert!(list.starts_with("config.json: is no JSON object; expected"), "{list}");
}
