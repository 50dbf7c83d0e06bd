//! From an answer's text to a verdict: strict, never guessed.

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

#[cfg(test)]
mod tests {
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
            "COMPLIANT or NON-COMPLIANT",
            "The response is COMPLIANT",
            "Yes",
            "COMPLIANT!",
        ] {
            assert_eq!(read(text), Reading::Unclear, "{text}");
        }
    }
}
