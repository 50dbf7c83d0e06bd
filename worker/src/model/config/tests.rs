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

/// Configurations of released models, as their folders have them (fields of generation left out), with the number of
/// parameters that their makers state.
const RELEASED: [(&str, i64); 5] = [
    (
        // Llama-2-7b
        r#"{"hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008,
            "max_position_embeddings": 4096, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
            "num_key_value_heads": 32, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": null,
            "tie_word_embeddings": false, "torch_dtype": "float16", "use_cache": true, "vocab_size": 32000}"#,
        6_738_415_616,
    ),
    (
        // Llama-3.2-1B
        r#"{"attention_bias": false, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
            "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama",
            "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
            "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0,
            "tie_word_embeddings": true, "torch_dtype": "bfloat16", "vocab_size": 128256}"#,
        1_235_814_400,
    ),
    (
        // SmolLM2-135M
        r#"{"attention_bias": false, "hidden_act": "silu", "hidden_size": 576, "intermediate_size": 1536,
            "max_position_embeddings": 8192, "mlp_bias": false, "model_type": "llama", "num_attention_heads": 9,
            "num_hidden_layers": 30, "num_key_value_heads": 3, "rms_norm_eps": 1e-05, "rope_interleaved": false,
            "rope_scaling": null, "rope_theta": 100000, "tie_word_embeddings": true, "vocab_size": 49152}"#,
        134_515_008,
    ),
    (
        // Qwen2.5-7B-Instruct
        r#"{"hidden_act": "silu", "hidden_size": 3584, "intermediate_size": 18944, "max_position_embeddings": 32768,
            "max_window_layers": 28, "model_type": "qwen2", "num_attention_heads": 28, "num_hidden_layers": 28,
            "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 131072,
            "tie_word_embeddings": false, "torch_dtype": "bfloat16", "use_sliding_window": false,
            "vocab_size": 152064}"#,
        7_615_616_512,
    ),
    (
        // gemma-2-9b-it
        r#"{"attention_bias": false, "attn_logit_softcapping": 50.0, "cache_implementation": "hybrid",
            "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 3584, "intermediate_size": 14336,
            "max_position_embeddings": 8192, "model_type": "gemma2", "num_attention_heads": 16,
            "num_hidden_layers": 42, "num_key_value_heads": 8, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
            "rope_theta": 10000.0, "sliding_window": 4096, "sliding_window_size": 4096, "torch_dtype": "bfloat16",
            "vocab_size": 256000}"#,
        9_241_705_984,
    ),
];

#[test]
fn released_models_have_as_many_parameters_as_their_makers_say() {
    for (text, count) in RELEASED {
        let config = parse(text).unwrap();
        let sizes = crate::model::weights::expected(&config);
        assert_eq!(sizes.iter().map(|(_, shape)| shape.iter().product::<i64>()).sum::<i64>(), count, "{text}");
    }
}

#[test]
fn what_a_family_implies() {
    let [llama, .., qwen, gemma] = RELEASED.map(|(text, _)| parse(text).unwrap());
    assert_eq!((llama.head_dim, llama.query_scale), (128, 1.0 / 128f64.sqrt()));
    assert_eq!(llama.attention(0), AttentionRule { scale: llama.query_scale, softcap: None, window: None });
    assert_eq!((qwen.qkv_bias, qwen.output_bias, qwen.attention(27).window), (true, false, None));
    assert!(gemma.tie_word_embeddings && gemma.norms_after && gemma.norm == NormWeight::FromOne);
    assert_eq!(gemma.embedding_scale, Some(3584f64.sqrt()));
    assert_eq!((gemma.attention_softcap, gemma.final_softcap), (Some(50.0), Some(30.0)));
    assert_eq!((gemma.attention(0).window, gemma.attention(1).window), (Some(4096), None));
}

#[test]
fn fields_left_out_have_the_familys_defaults_and_null_switches_off() {
    let base = BASE.replace("llama", "gemma2");
    let bare = parse(&format!("{{{base}}}")).unwrap();
    assert_eq!((bare.head_dim, bare.query_scale, bare.activation), (256, 1.0 / 16.0, Activation::GeluTanh));
    assert_eq!((bare.attention_softcap, bare.final_softcap), (Some(50.0), Some(30.0)));
    assert_eq!(bare.attention(0).window, Some(4096));
    let off = r#""attn_logit_softcapping": null, "final_logit_softcapping": null, "sliding_window": null"#;
    let off = parse(&format!("{{{base}, {off}}}")).unwrap();
    assert_eq!((off.attention_softcap, off.final_softcap, off.attention(0).window), (None, None, None));
}

#[test]
fn windows_of_qwen2_follow_both_spellings() {
    let base = BASE.replace("llama", "qwen2");
    let windows = |fields: &str| {
        let config = parse(&format!("{{{base}, {fields}}}")).unwrap();
        [0, 1].map(|layer| config.attention(layer).window)
    };
    assert_eq!(windows(r#""use_sliding_window": false, "sliding_window": 8"#), [None, None]);
    let old = r#""use_sliding_window": true, "sliding_window": 8, "max_window_layers": 1"#;
    assert_eq!(windows(old), [None, Some(8)]);
    let listed = r#""layer_types": ["sliding_attention", "full_attention"]"#;
    assert_eq!(windows(&format!("{old}, {listed}")), [Some(8), None]);
}

#[test]
fn settings_that_are_not_computed_are_named() {
    let gemma = BASE.replace("llama", "gemma2");
    let qwen = format!("{}, \"use_sliding_window\": true", BASE.replace("llama", "qwen2"));
    for (fields, named) in [
        (format!("{gemma}, \"hidden_activation\": \"relu\""), "hidden_activation \"relu\""),
        (format!("{gemma}, \"query_pre_attn_scalar\": 0"), "query_pre_attn_scalar is 0"),
        (format!("{gemma}, \"final_logit_softcapping\": -1.0"), "final_logit_softcapping is -1"),
        (format!("{gemma}, \"sliding_window\": 0"), "sliding_window is 0"),
        (format!("{gemma}, \"use_bidirectional_attention\": true"), "use_bidirectional_attention"),
        (format!("{gemma}, \"layer_types\": [\"full_attention\"]"), "layer_types has 1 entries for 2 layers"),
        (format!("{qwen}, \"layer_types\": [\"full_attention\", \"chunked_attention\"]"), "\"chunked_attention\""),
        (format!("{BASE}, \"rope_scaling\": {{\"type\": \"dynamic\", \"factor\": 2}}"), "\"dynamic\""),
        (format!("{BASE}, \"rope_scaling\": {{\"type\": \"linear\"}}"), "needs a positive number \"factor\""),
        (format!("{BASE}, \"rope_parameters\": {{\"partial_rotary_factor\": 0.5}}"), "partial_rotary_factor is 0.5"),
        (format!("{BASE}, \"rope_parameters\": {{\"full_attention\": {{}}}}"), "\"full_attention\""),
        (format!("{BASE}, \"rope_theta\": 0"), "rope_theta is 0"),
    ] {
        let text = problem(&fields);
        assert!(text.contains(named), "{text}");
    }
    let unknown = problem(&BASE.replace("llama", "gemma3_text"));
    assert!(unknown.contains("\"gemma3_text\"") && unknown.contains("\"llama\", \"qwen2\", \"gemma2\""), "{unknown}");
}
