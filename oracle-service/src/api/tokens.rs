//! How many tokens a request takes: counted by tiktoken, corrected by what the API reports, and never more than its bytes.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, OnceLock, PoisonError};

use serde_json::Value;
use tiktoken_rs::CoreBPE;

/// Tokens that frame a message, as OpenAI counts them, and the whole conversation.
const PER_MESSAGE: u64 = 3;
const PER_CONVERSATION: u64 = 3;
/// The same, as no template exceeds it.
const MOST_PER_MESSAGE: u64 = 16;
/// Completion of a request that names no limit.
const UNLIMITED: u64 = 16_384;
/// Of English text, roughly.
const BYTES_PER_TOKEN: f64 = 4.0;
/// Weight of a new report in the correction.
const WEIGHT: f64 = 0.05;
/// A correction beyond is a mistake of the server's, not of the count.
const CORRECTION: std::ops::RangeInclusive<f64> = 0.2..=5.0;

/// Counts the tokens of one model's requests.
pub(crate) struct Counter {
    model: String,
    bpe: OnceLock<&'static CoreBPE>,
    state: Mutex<State>,
}

struct State {
    /// Reported tokens over counted ones, smoothed.
    correction: f64,
    /// The last system message and its tokens: a job repeats it with every request.
    shared: (u64, u64),
}

impl Counter {
    /// Returns a counter; a model that tiktoken does not know is counted as the newest of OpenAI's.
    pub(crate) fn new(model: &str) -> Counter {
        let state = State { correction: 1.0, shared: (0, 0) };
        Counter { model: model.to_owned(), bpe: OnceLock::new(), state: Mutex::new(state) }
    }

    /// Counts a text.
    pub(crate) fn text(&self, text: &str) -> u64 {
        // The vocabulary is in the program; reading it takes a moment, so only who counts pays for it.
        let bpe = self.bpe.get_or_init(|| {
            tiktoken_rs::bpe_for_model(&self.model).unwrap_or_else(|_| tiktoken_rs::o200k_base_singleton())
        });
        bpe.count_ordinary(text) as u64
    }

    /// Counts a request's prompt, uncorrected.
    pub(crate) fn prompt(&self, body: &Value) -> u64 {
        let counted = messages(body).map(|(role, text)| match role {
            "system" => self.shared(text),
            _ => self.text(text),
        });
        counted.map(|tokens| tokens + PER_MESSAGE).sum::<u64>() + PER_CONVERSATION
    }

    /// Returns what a request will likely count against a token limit: its prompt as counted, corrected, or else a guess
    /// by its length, and its answer's limit.
    pub(crate) fn likely(&self, counted: Option<u64>, body: &Value) -> f64 {
        let prompt = match counted {
            Some(counted) => counted as f64 * self.state.lock().unwrap_or_else(PoisonError::into_inner).correction,
            None => most(body) as f64 / BYTES_PER_TOKEN,
        };
        prompt + completion_limit(body) as f64
    }

    /// Learns from what the API reports.
    pub(crate) fn reported(&self, counted: u64, reported: u64) {
        if counted == 0 || reported == 0 {
            return;
        }
        let ratio = (reported as f64 / counted as f64).clamp(*CORRECTION.start(), *CORRECTION.end());
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.correction += WEIGHT * (ratio - state.correction);
    }

    fn shared(&self, text: &str) -> u64 {
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let hash = hasher.finish();
        let (known, tokens) = self.state.lock().unwrap_or_else(PoisonError::into_inner).shared;
        if known == hash {
            return tokens;
        }
        let tokens = self.text(text);
        self.state.lock().unwrap_or_else(PoisonError::into_inner).shared = (hash, tokens);
        tokens
    }
}

/// Returns more tokens than a request's prompt can take: a token is at least a byte of what is sent.
pub(crate) fn most(body: &Value) -> u64 {
    let messages = messages(body).map(|(_, text)| text.len() as u64 + MOST_PER_MESSAGE).sum::<u64>();
    // A schema of the answer is read by the model as well.
    let schema = body.get("response_format").map_or(0, |schema| schema.to_string().len() as u64);
    messages + schema + MOST_PER_MESSAGE
}

/// Returns the most tokens an answer may have.
pub(crate) fn completion_limit(body: &Value) -> u64 {
    let limit = body.get("max_tokens").or_else(|| body.get("max_completion_tokens")).and_then(Value::as_u64);
    let choices = body.get("n").and_then(Value::as_u64).unwrap_or(1);
    limit.unwrap_or(UNLIMITED).saturating_mul(choices.max(1))
}

fn messages(body: &Value) -> impl Iterator<Item = (&str, &str)> {
    let messages = body["messages"].as_array().into_iter().flatten();
    messages.filter_map(|message| Some((message["role"].as_str()?, message["content"].as_str()?)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn body(user: &str) -> Value {
        json!({"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": user}], "max_tokens": 8})
    }

    #[test]
    fn tokens_are_counted_without_a_network_and_corrected_by_reports() {
        let counter = Counter::new("gpt-4o");
        assert_eq!(counter.text("hello world"), 2);
        // 3 + 2 tokens of text, 3 of frame each, 3 for the whole.
        assert_eq!(counter.prompt(&body("hello world")), 3 + 2 + 2 * 3 + 3);
        let likely = |counted| counter.likely(counted, &body("hello world"));
        assert_eq!(likely(Some(14)), 14.0 + 8.0);
        assert!((8.0..40.0).contains(&likely(None)));
        for _ in 0..200 {
            counter.reported(14, 28);
        }
        assert!((likely(Some(14)) - (28.0 + 8.0)).abs() < 0.1);
        counter.reported(14, 0);
        assert_eq!(Counter::new("no model of theirs").text("hello world"), 2);
    }

    #[test]
    fn the_most_is_never_exceeded() {
        let counter = Counter::new("gpt-4o");
        for text in ["", "a", "1 2 3 4 5 6 7 8 9", "żółć 漢字 🦀🦀🦀", "\u{0}\u{1}\u{2}", "<|endoftext|>"] {
            assert!(counter.prompt(&body(text)) <= most(&body(text)), "{text:?}");
        }
    }

    #[test]
    fn an_answer_is_bounded() {
        assert_eq!(completion_limit(&body("x")), 8);
        assert_eq!(completion_limit(&json!({"max_completion_tokens": 5, "n": 3})), 15);
        assert_eq!(completion_limit(&json!({})), UNLIMITED);
    }
}
