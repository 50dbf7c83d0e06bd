//! Against values made by tests/python/make_golden.py, token for token, and single properties beside them.

use std::path::PathBuf;

use serde_json::Value;

use super::*;

fn golden_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden")
}

fn golden() -> Value {
    serde_json::from_slice(&std::fs::read(golden_dir().join("templates/golden.json")).unwrap()).unwrap()
}

fn encoder_of(name: &str, mask: MaskMode) -> Encoder {
    let options = EncoderOptions { mask, ..EncoderOptions::default() };
    Encoder::load(&golden_dir().join("templates").join(name), options).unwrap()
}

fn exact(name: &str) -> Encoder {
    encoder_of(name, MaskMode::Exact)
}

/// A copy of a golden tokenizer with a template of the test's own.
fn with_template(source: &str) -> (tempfile::TempDir, Encoder) {
    let folder = tempfile::tempdir().unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(golden_dir().join("templates/chatml").join(file), folder.path().join(file)).unwrap();
    }
    std::fs::write(folder.path().join("chat_template.jinja"), source).unwrap();
    let encoder = Encoder::load(folder.path(), EncoderOptions::default()).unwrap();
    (folder, encoder)
}

fn text_of(value: &Value) -> Text {
    serde_json::from_value(value.clone()).unwrap()
}

fn numbers<T: serde::de::DeserializeOwned>(value: &Value) -> Vec<T> {
    serde_json::from_value(value.clone()).unwrap()
}

/// The golden sequence; how much was cut off is not among the golden values.
fn sequence_of(value: &Value, cut: usize) -> Sequence {
    Sequence {
        cut,
        tokens: numbers(&value["tokens"]),
        scored: numbers(&value["scored"]),
        kl: numbers(&value["kl"]),
        prompt_len: value["prompt_len"].as_u64().unwrap() as usize,
    }
}

/// The text of the scored tokens, special ones written out.
fn scored_text(encoder: &Encoder, sequence: &Sequence) -> String {
    let tokens: Vec<u32> = sequence.scored.iter().map(|&t| sequence.tokens[t] as u32).collect();
    encoder.files.raw_text(&tokens)
}

#[test]
fn sequences_equal_the_golden_ones_in_both_mask_modes() {
    let golden = golden();
    let (mut exact_cases, mut refused) = (0, 0);
    for name in ["chatml", "llama3", "plain"] {
        let encoders = [exact(name), encoder_of(name, MaskMode::Reference)];
        for case in golden[name].as_array().unwrap() {
            let (prompt, response) = (text_of(&case["prompt"]), case["response"].as_str().unwrap());
            for expected in case["sequences"].as_array().unwrap() {
                let limit = expected["max_length"].as_u64().unwrap() as usize;
                let context = format!("{name}, {prompt:?}, {response:?}, limit {limit}");
                let got = encoders[0].pair(&prompt, response, limit).unwrap();
                assert_eq!(got, sequence_of(&expected["exact"], got.cut), "exact, {context}");
                exact_cases += 1;
                match encoders[1].pair(&prompt, response, limit) {
                    Ok(got) => assert_eq!(got, sequence_of(&expected["reference"], got.cut), "reference, {context}"),
                    Err(error) => {
                        assert!(expected["reference"].is_null(), "{context}: {error}");
                        assert!(matches!(error, TextError::PromptTooLong { .. }), "{context}: {error}");
                        refused += 1;
                    }
                }
            }
            let gold = encoders[1].gold(&prompt, response, 256).unwrap();
            assert_eq!(gold, sequence_of(&case["gold_reference"], gold.cut), "gold, {name}, {prompt:?}");
            assert_eq!(
                encoders[0].gold(&prompt, response, 256).unwrap(),
                encoders[0].pair(&prompt, response, 256).unwrap()
            );
            let begin = encoders[0].prompt(&prompt).unwrap();
            assert_eq!(begin, numbers::<i64>(&case["generation_prompt"]), "generation, {name}, {prompt:?}");
        }
    }
    assert!(exact_cases >= 150, "{exact_cases} cases only");
    assert!(refused > 0, "no prompt was over the limit in reference mode");
}

#[test]
fn renderings_equal_those_of_transformers() {
    let golden = golden();
    for name in ["chatml", "llama3"] {
        let encoder = exact(name);
        let template = encoder.files.template.as_ref().unwrap();
        for case in golden[name].as_array().unwrap() {
            let mut turns = text_of(&case["prompt"]).turns();
            assert_eq!(template.render(&turns, true).unwrap(), case["rendered_prompt"].as_str().unwrap());
            turns.push(assistant(case["response"].as_str().unwrap()));
            assert_eq!(template.render(&turns, false).unwrap(), case["rendered"].as_str().unwrap());
        }
    }
}

#[test]
fn response_and_one_closing_token_are_scored_and_nothing_after() {
    let encoder = exact("chatml");
    let sequence = encoder.pair(&"Name a herb.".into(), "basil", 256).unwrap();
    assert_eq!(scored_text(&encoder, &sequence), "basil<|im_end|>");
    assert_eq!(*sequence.scored.last().unwrap(), sequence.tokens.len() - 1);
    assert_eq!(sequence.kl, sequence.scored.iter().map(|t| t - 1).collect::<Vec<_>>());
}

#[test]
fn response_that_occurs_in_the_prompt_is_found_at_its_own_place() {
    for name in ["chatml", "llama3", "plain"] {
        let encoder = exact(name);
        let turn = |role: &str, content: &str| Turn { role: role.into(), content: content.into() };
        let prompt = Text::Turns(vec![turn("user", "Say no."), turn("assistant", "no"), turn("user", "no no")]);
        let sequence = encoder.pair(&prompt, "no", 256).unwrap();
        let closed = scored_text(&encoder, &sequence);
        assert!(
            closed.trim_start().starts_with("no<|") || closed.trim_start().starts_with("no</s>"),
            "{name}: {closed}"
        );
        assert!(sequence.prompt_len > sequence.tokens.len() / 2, "{name}");
    }
}

#[test]
fn trimmed_text_is_scored_where_the_template_trims() {
    let encoder = exact("llama3");
    let sequence = encoder.pair(&"Name a herb.".into(), " \n basil \n", 256).unwrap();
    assert_eq!(scored_text(&encoder, &sequence), "basil<|eot_id|>");
    let untrimmed = exact("chatml");
    let sequence = untrimmed.pair(&"Name a herb.".into(), "basil\n", 256).unwrap();
    assert_eq!(scored_text(&untrimmed, &sequence), "basil\n<|im_end|>");
}

#[test]
fn token_that_straddles_header_and_response_counts_as_response() {
    let encoder = exact("plain");
    let sequence = encoder.pair(&"How do I keep basil fresh?".into(), "the stems", 256).unwrap();
    assert_eq!(scored_text(&encoder, &sequence), " the stems</s>");
    let before = encoder.prompt(&"How do I keep basil fresh?".into()).unwrap();
    assert_eq!(before, sequence.tokens[..sequence.prompt_len], "generation starts where the scored tokens do");
}

#[test]
fn bos_is_kept_once_and_the_text_after_it_is_cut() {
    for name in ["chatml", "llama3", "plain"] {
        let encoder = exact(name);
        let whole = encoder.pair(&Text::from("One, two. ".repeat(30)), "Yes.", 1000).unwrap();
        let cut = encoder.pair(&Text::from("One, two. ".repeat(30)), "Yes.", 20).unwrap();
        assert_eq!(cut.tokens.len(), 20, "{name}");
        assert_eq!(cut.tokens[0], whole.tokens[0], "{name}: BOS stays");
        assert_eq!(cut.tokens[0], encoder.files.bos.unwrap(), "{name}");
        assert_eq!(cut.tokens[1..], whole.tokens[whole.tokens.len() - 19..], "{name}: the tail stays");
        assert_eq!(cut.scored.len(), whole.scored.len(), "{name}: the response stays whole");
    }
}

#[test]
fn response_over_the_limit_keeps_one_prompt_token_and_no_end_of_turn() {
    let encoder = exact("chatml");
    let sequence = encoder.pair(&"Count.".into(), &"one two ".repeat(40), 12).unwrap();
    assert_eq!((sequence.tokens.len(), sequence.prompt_len), (12, 1));
    assert_eq!(sequence.scored, (1..12).collect::<Vec<_>>());
    assert!(!sequence.tokens[1..].contains(&encoder.stop_ids()[0]));
}

#[test]
fn response_that_fits_without_its_end_of_turn_loses_only_that() {
    let encoder = exact("chatml");
    let whole = encoder.pair(&"Count.".into(), "one two three", 256).unwrap();
    let response_tokens = whole.scored.len();
    let cut = encoder.pair(&"Count.".into(), "one two three", response_tokens).unwrap();
    assert_eq!(scored_text(&encoder, &cut), "one two three");
    assert_eq!(cut.prompt_len, 1);
}

#[test]
fn bos_pad_and_eos_that_are_the_turn_marks_are_not_treated_by_id() {
    let encoder = exact("chatml");
    assert_eq!(encoder.pad_id(), encoder.stop_ids()[0], "pad is EOS here");
    let response = "a<|im_start|>b<|im_end|>c";
    let sequence = encoder.pair(&"x".into(), response, 256).unwrap();
    assert_eq!(scored_text(&encoder, &sequence), "a<|im_start|>b<|im_end|>c<|im_end|>");
    let starts = sequence.tokens.iter().filter(|&&t| Some(t) == encoder.files.bos).count();
    assert_eq!(starts, 4, "system, user, assistant and the one in the response: none added");
}

#[test]
fn template_that_writes_text_before_the_closing_token_leaves_it_unscored() {
    let source = "{% for m in messages %}{{ m.role + ': ' + m.content + ' ~' }}<|im_end|>{% endfor %}";
    let (_folder, encoder) = with_template(source);
    let sequence = encoder.pair(&"Tea?".into(), "Yes.\n", 256).unwrap();
    let text = scored_text(&encoder, &sequence);
    assert!(text.ends_with("<|im_end|>") && !text.contains('~'), "{text}");
    let last = sequence.scored.len() - 1;
    assert!(sequence.scored[last] > sequence.scored[last - 1] + 1, "the gap is not scored");
    assert_eq!(sequence.kl[last], sequence.scored[last] - 1);
}

#[test]
fn response_with_reasoning_marks_is_found_after_the_generation_prompt() {
    let source = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and '</think>' not in \
                  m.content %}<think></think>{% endif %}{{ m.content }}<|im_end|>{% endfor %}\
                  {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let (_folder, encoder) = with_template(source);
    let plain = encoder.pair(&"Tea?".into(), "Yes.", 256).unwrap();
    assert_eq!(scored_text(&encoder, &plain), "Yes.<|im_end|>");
    let reasoned = encoder.pair(&"Tea?".into(), "<think>hm</think>Yes.", 256).unwrap();
    assert_eq!(scored_text(&encoder, &reasoned), "<think>hm</think>Yes.<|im_end|>");
}

#[test]
fn system_turn_and_earlier_turns_are_kept_unless_the_reference_rule_is_asked_for() {
    let turn = |role: &str, content: &str| Turn { role: role.into(), content: content.into() };
    let prompt = Text::Turns(vec![turn("system", "Be brief."), turn("user", "Tea?"), turn("user", "Or coffee?")]);
    let folder = golden_dir().join("templates/chatml");
    let whole = exact("chatml").prompt(&prompt).unwrap();
    let text = exact("chatml").decode(&whole);
    assert!(text.contains("Be brief.") && text.contains("Tea?") && !text.contains("helpful gardener"), "{text}");
    let options = EncoderOptions { text_rule: TextRule::Reference, ..EncoderOptions::default() };
    let ruled = Encoder::load(&folder, options).unwrap();
    let pair = |prompt: &Text| ruled.pair(prompt, "Yes.", 256).unwrap();
    assert_eq!(pair(&prompt), pair(&"Be brief. Tea? Or coffee?".into()));
    let mut answered = prompt.turns();
    answered.push(turn("assistant", "Both."));
    let answered = Text::Turns(answered);
    assert_eq!(pair(&answered), pair(&"Both.".into()));
    // What a response is generated to follows the other rule of spec 1.7.
    assert_eq!(ruled.prompt(&answered).unwrap(), ruled.prompt(&"Tea?".into()).unwrap());
    let unasked = Text::Turns(vec![turn("system", "Be brief."), turn("assistant", "Tea.")]);
    assert_eq!(ruled.prompt(&unasked).unwrap(), ruled.prompt(&"Be brief. Tea.".into()).unwrap());
}

#[test]
fn what_is_cut_off_is_counted() {
    for mask in [MaskMode::Exact, MaskMode::Reference] {
        for name in ["chatml", "llama3", "plain"] {
            let encoder = encoder_of(name, mask);
            let (prompt, response) = (Text::from("Tea?"), "Or coffee, or water? ".repeat(40));
            let whole = encoder.pair(&prompt, &response, 10_000).unwrap();
            assert_eq!(whole.cut, 0, "{name}");
            let length = whole.tokens.len();
            assert_eq!(encoder.pair(&prompt, &response, length).unwrap().cut, 0, "{name}: it fits");
            let cut = encoder.pair(&prompt, &response, length - 3).unwrap();
            assert_eq!((cut.cut, cut.tokens.len()), (3, length - 3), "{name}");
        }
    }
}

#[test]
fn reference_mode_begins_at_position_one_where_the_prefix_is_one_token() {
    let (folder, _) = with_template(
        "{% for m in messages %}{% if m.role != 'user' %}{{ m.content }}{% else %}a{% endif %}{% endfor %}",
    );
    let options = EncoderOptions { mask: MaskMode::Reference, ..EncoderOptions::default() };
    let sequence = Encoder::load(folder.path(), options).unwrap().pair(&"x".into(), "<|im_end|>b", 256).unwrap();
    assert_eq!(sequence.tokens.len(), 3);
    assert_eq!((sequence.scored, sequence.kl, sequence.prompt_len), (vec![1, 2], vec![0, 1, 2], 0));
}

#[test]
fn gold_of_reference_mode_has_limits_of_its_own() {
    let encoder = encoder_of("llama3", MaskMode::Reference);
    let sequence = encoder.gold(&Text::from("tea ".repeat(400)), &"basil ".repeat(900), 2).unwrap();
    assert_eq!((sequence.prompt_len, sequence.tokens.len()), (128, 513));
    assert_eq!(sequence.tokens[512], encoder.stop_ids()[0]);
    assert_ne!(Some(sequence.tokens[0]), encoder.files.bos);
}

#[test]
fn empty_and_impossible_input_is_an_error_that_says_what_to_do() {
    for mask in [MaskMode::Exact, MaskMode::Reference] {
        for name in ["chatml", "llama3", "plain"] {
            let encoder = encoder_of(name, mask);
            let fails =
                |prompt: &str, response: &str, limit| encoder.pair(&prompt.into(), response, limit).unwrap_err();
            assert!(matches!(fails("x", "", 256), TextError::EmptyResponse(_)));
            assert!(matches!(fails("", "y", 256), TextError::EmptyPrompt));
            assert!(matches!(fails("x", "y", 1), TextError::LimitTooSmall(1)));
            assert!(matches!(encoder.gold(&"x".into(), "", 256).unwrap_err(), TextError::EmptyResponse(_)));
            assert!(matches!(encoder.prompt(&Text::Turns(vec![])).unwrap_err(), TextError::EmptyPrompt));
        }
    }
    let blank = exact("llama3").pair(&"x".into(), " \n ", 256).unwrap_err();
    assert!(blank.to_string().contains("trimmed"), "{blank}");
    let long = encoder_of("chatml", MaskMode::Reference).pair(&"tea ".repeat(90).into(), "y", 64).unwrap_err();
    assert!(long.of_field("chosen").starts_with("field \"prompt\": takes "), "{long}");
    assert!(long.to_string().contains("of at most 64") && !long.to_string().contains("--max-length"), "{long}");
    assert!(TextError::EmptyResponse("").of_field("chosen").starts_with("field \"chosen\": "));
    let turns = vec![Turn { role: "tool".into(), content: "x".into() }];
    let refused = exact("llama3").pair(&Text::Turns(turns), "y", 256).unwrap_err();
    assert!(refused.to_string().contains("only user and assistant may speak here, not tool"), "{refused}");
    let (_folder, dropping) = with_template("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}");
    assert!(matches!(dropping.pair(&"x".into(), "y", 256).unwrap_err(), TextError::ResponseNotFound(_)));
    let (_folder, headless) =
        with_template("{% for m in messages %}{% if m.role != 'user' %}{{ m.content }}{% endif %}{% endfor %}");
    assert!(matches!(headless.pair(&"x".into(), "y", 256).unwrap_err(), TextError::EmptyPrompt));
}

#[test]
fn decoding_gives_back_the_text_without_special_tokens() {
    let encoder = exact("chatml");
    let sequence = encoder.pair(&"Grüße 🌿".into(), "Süß — ok", 256).unwrap();
    let response: Vec<i64> = sequence.scored.iter().map(|&t| sequence.tokens[t]).collect();
    assert_eq!(encoder.decode(&response), "Süß — ok");
    assert!(sequence.tokens.iter().all(|&id| (id as usize) < encoder.vocab_size()));
}
