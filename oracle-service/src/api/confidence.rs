//! How sure a verdict is: the probability of its first token among the tokens that begin either of the two words.

use super::ledger::TokenLogprob;

const WORDS: [&str; 2] = ["COMPLIANT", "NON-COMPLIANT"];

/// Returns how probable COMPLIANT was where the word begins, of the probability that either word had there; none where
/// no token begins a word.
pub(crate) fn of_word(tokens: &[TokenLogprob]) -> Option<f64> {
    tokens.iter().find_map(at)
}

/// As [`of_word`], for the values of the two fields of a pair's object, in the order of their names.
pub(crate) fn of_pair(tokens: &[TokenLogprob]) -> [Option<f64>; 2] {
    let text: String = tokens.iter().map(|token| token.token.as_str()).collect();
    ["\"response_a\"", "\"response_b\""].map(|name| {
        let after = text.find(name)? + name.len();
        // The colon and the opening quote stand between the name and the word.
        let word = after + text[after..].find(|c: char| c.is_ascii_alphabetic())?;
        let mut end = 0;
        let token = tokens.iter().find(|token| {
            end += token.token.len();
            end > word
        })?;
        at(token)
    })
}

/// Returns the probability of COMPLIANT at one place, over both words.
fn at(token: &TokenLogprob) -> Option<f64> {
    begins(&token.token)?;
    let mut likely = [0.0; 2];
    for other in &token.top {
        if let Some(word) = begins(&other.token) {
            likely[word] += other.logprob.exp();
        }
    }
    // A server may leave the token itself out of its list of likely ones.
    if let Some(word) = begins(&token.token)
        && !token.top.iter().any(|other| other.token == token.token)
    {
        likely[word] += token.logprob.exp();
    }
    let both = likely[0] + likely[1];
    (both.is_finite() && both > 0.0).then(|| likely[0] / both)
}

/// Returns which word a token begins. No beginning is common to both, so it is one or none.
fn begins(token: &str) -> Option<usize> {
    let word = token.trim_matches(|c: char| !c.is_ascii_alphabetic() && c != '-');
    let begin =
        |of: &str| !word.is_empty() && of.get(..word.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(word));
    WORDS.iter().position(|of| begin(of))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ledger::TopLogprob;

    fn token(text: &str, top: &[(&str, f64)]) -> TokenLogprob {
        let top = top.iter().map(|(token, p)| TopLogprob { token: (*token).into(), logprob: p.ln() }).collect();
        TokenLogprob { token: text.into(), logprob: 0.5_f64.ln(), top }
    }

    fn close(found: Option<f64>, expected: f64) {
        assert!((found.unwrap() - expected).abs() < 1e-12, "{found:?} instead of {expected}");
    }

    #[test]
    fn the_first_token_of_the_word_counts_over_both_words() {
        let tokens = [token("COM", &[("COM", 0.6), ("NON", 0.1), (" non", 0.1), ("Yes", 0.2)]), token("PLIANT", &[])];
        close(of_word(&tokens), 0.75);
        // Quotes come first, and the chosen token is not in the list.
        close(of_word(&[token("\"", &[]), token("NON", &[("C", 0.5)])]), 0.5);
        close(of_word(&[token("COMPLIANT", &[])]), 1.0);
    }

    #[test]
    fn what_begins_neither_word_has_no_confidence() {
        assert_eq!(of_word(&[]), None);
        assert_eq!(of_word(&[token("It", &[("COMPLIANT", 0.9)]), token(" depends", &[])]), None);
        let nonsense = TokenLogprob { token: "C".into(), logprob: f64::NAN, top: Vec::new() };
        assert_eq!(of_word(&[nonsense]), None);
    }

    #[test]
    fn each_word_of_a_pairs_object_is_found_at_its_place() {
        let tokens = [
            token("{\"", &[]),
            token("response_a", &[]),
            token("\":\"", &[]),
            token("COMP", &[("COMP", 0.9), ("NON", 0.1)]),
            token("LIANT", &[]),
            token("\",\"response_b\":", &[]),
            token("\"NON", &[("\"NON", 0.6), ("\"COM", 0.2)]),
            token("-COMPLIANT\"}", &[]),
        ];
        let [a, b] = of_pair(&tokens);
        close(a, 0.9);
        close(b, 0.25);
        assert_eq!(of_pair(&tokens[..4]), [Some(0.9), None]);
        assert_eq!(of_pair(&[]), [None, None]);
    }
}
