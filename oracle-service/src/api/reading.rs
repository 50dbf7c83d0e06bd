//! From an answer's text to a verdict: strict, never guessed.

use serde::Deserialize;

/// What an answer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    Compliant,
    Violates,
    /// Neither of the two words: asked again once, then left undecided.
    Unclear,
}

/// Reads an answer. It must be one of the two words; case, surrounding white space, quotes, asterisks and a final period
/// do not matter. "Not compliant" and the like are unclear: nothing that contains a word stands for it.
pub(crate) fn read(answer: &str) -> Reading {
    let frame = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '*' | '.');
    let word = answer.trim_matches(frame);
    if word.eq_ignore_ascii_case("COMPLIANT") {
        Reading::Compliant
    } else if word.eq_ignore_ascii_case("NON-COMPLIANT") {
        Reading::Violates
    } else {
        Reading::Unclear
    }
}

/// The object that answers for a pair.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pair {
    response_a: String,
    response_b: String,
}

/// Reads an answer for two responses. It must be the object that was asked for and nothing else; where either word is
/// none, neither counts.
pub(crate) fn read_pair(answer: &str) -> [Reading; 2] {
    let unclear = [Reading::Unclear; 2];
    let Ok(pair) = serde_json::from_str::<Pair>(answer.trim()) else { return unclear };
    let read = [read(&pair.response_a), read(&pair.response_b)];
    if read.contains(&Reading::Unclear) { unclear } else { read }
}

#[cfg(test)]
mod tests;
