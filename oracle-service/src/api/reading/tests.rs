use serde_json::json;
use shared::python_random::PythonRandom;

use super::*;

#[test]
fn only_the_two_words_are_verdicts() {
    for text in ["COMPLIANT", " compliant.\n", "\"Compliant\"", "**COMPLIANT**"] {
        assert_eq!(read(text), Reading::Compliant, "{text}");
    }
    for text in ["NON-COMPLIANT", "non-compliant.", "`Non-Compliant`\n"] {
        assert_eq!(read(text), Reading::Violates, "{text}");
    }
    for text in [
        "",
        "not compliant",
        "NONCOMPLIANT",
        "non compliant",
        "NON_COMPLIANT",
        "NON\u{2010}COMPLIANT",
        "COMPLIANT or NON-COMPLIANT",
        "The response is COMPLIANT",
        "Yes",
        "COMPLIANT!",
        "ＣＯＭＰＬＩＡＮＴ",
    ] {
        assert_eq!(read(text), Reading::Unclear, "{text}");
    }
}

#[test]
fn a_pair_is_the_whole_object_or_nothing() {
    let both = [Reading::Compliant, Reading::Violates];
    assert_eq!(read_pair("{\"response_a\": \"COMPLIANT\", \"response_b\": \"NON-COMPLIANT\"}"), both);
    assert_eq!(read_pair(" {\"response_b\":\"non-compliant\",\"response_a\":\"Compliant\"}\n"), both);
    for text in [
        "",
        "COMPLIANT",
        "{\"response_a\": \"COMPLIANT\"}",
        "{\"response_a\": \"COMPLIANT\", \"response_b\": \"maybe\"}",
        "{\"response_a\": \"COMPLIANT\", \"response_b\": null}",
        "{\"response_a\": \"COMPLIANT\", \"response_b\": \"COMPLIANT\", \"note\": \"\"}",
        "{\"response_a\": \"COMPLIANT\", \"response_a\": \"COMPLIANT\", \"response_b\": \"COMPLIANT\"}",
        "{\"response_a\": \"COMPLIANT\", \"response_b\": \"COMPLIANT\"} and more",
        "```json\n{\"response_a\": \"COMPLIANT\", \"response_b\": \"COMPLIANT\"}\n```",
        "[\"COMPLIANT\"]",
    ] {
        assert_eq!(read_pair(text), [Reading::Unclear; 2], "{text}");
    }
}

/// Pieces that answers are made of, near the two words and far from them.
const PIECES: [&str; 28] = [
    "COMPLIANT",
    "compliant",
    "NON-COMPLIANT",
    "Non-Compliant",
    "NON",
    "-",
    "non ",
    "not ",
    "\u{2010}",
    " ",
    "\n",
    "\t",
    "\u{a0}",
    "\"",
    "'",
    "`",
    "*",
    ".",
    "!",
    "{\"response_a\":",
    "\"response_b\":",
    "}",
    ",",
    "\u{0}",
    "é",
    "İ",
    "ſ",
    "\u{202e}",
];

/// Says by another way than the parser whether a text is one of the words in its allowed frame: the letters themselves
/// are taken out and what is left must be frame alone, on both sides.
fn expected(text: &str) -> Reading {
    let lower: String = text.chars().map(|c| c.to_ascii_lowercase()).collect();
    let framed = |word: &str| match lower.split_once(word) {
        Some((before, after)) => {
            before.chars().chain(after.chars()).all(|c| " \"'`*.".contains(c) || c.is_whitespace())
        }
        None => false,
    };
    match (framed("non-compliant"), framed("compliant")) {
        (true, _) => Reading::Violates,
        (_, true) => Reading::Compliant,
        _ => Reading::Unclear,
    }
}

/// A text at random: pieces, or any bytes as a server's lossy text.
fn random_text(random: &mut PythonRandom) -> String {
    let length = random.below(9);
    if random.below(4) == 0 {
        let bytes: Vec<u8> = (0..length * 4).map(|_| random.getrandbits(8) as u8).collect();
        return String::from_utf8_lossy(&bytes).into_owned();
    }
    if random.below(4) == 0 {
        return (0..length).filter_map(|_| char::from_u32(random.getrandbits(21))).collect();
    }
    (0..length).map(|_| *random.choice(&PIECES).unwrap()).collect()
}

#[test]
fn whatever_comes_is_read_without_panic_and_only_the_words_count() {
    let mut random = PythonRandom::new(4);
    let mut verdicts = [0; 3];
    for round in 0..200_000 {
        let text = random_text(&mut random);
        let read = read(&text);
        assert_eq!(read, expected(&text), "round {round}: {text:?}");
        verdicts[read as usize] += 1;
    }
    // A fuzz that never met a verdict would show nothing.
    assert!(verdicts.iter().all(|count| *count > 1000), "{verdicts:?}");
}

#[test]
fn whatever_comes_for_a_pair_counts_only_as_the_object() {
    let mut random = PythonRandom::new(5);
    let mut clear = 0;
    for round in 0..100_000 {
        let mut word = || match random.below(3) {
            0 => random_text(&mut random),
            1 => "COMPLIANT".to_owned(),
            _ => "non-compliant.".to_owned(),
        };
        let (a, b) = (word(), word());
        // The object around any words, the same cut short, and texts without it.
        let object = json!({"response_a": a, "response_b": b}).to_string();
        let text = match random.below(3) {
            0 => object.clone(),
            1 => object.chars().take(random.below(object.chars().count() + 1)).collect(),
            _ => format!("{a}{b}"),
        };
        let words = [expected(&a), expected(&b)];
        let right = if text == object && !words.contains(&Reading::Unclear) { words } else { [Reading::Unclear; 2] };
        assert_eq!(read_pair(&text), right, "round {round}: {text:?}");
        clear += usize::from(right != [Reading::Unclear; 2]);
    }
    // A fuzz that never met a verdict would show nothing.
    assert!(clear > 10_000, "{clear}");
}
