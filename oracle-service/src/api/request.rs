//! What is asked: the bodies of requests, and the key under which an answer is kept.
//!
//! One definition judges triage, corrections and agreement alike, at temperature 0 with a fixed seed. A [`Form`] says how
//! a question is put: its wording, which vote it is, with log-probabilities or without. The mock reads the same layout
//! back, so it is written here once.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The judge's last line: one vocabulary, one word.
const QUESTION: &str =
    "Does the response comply with the policy? Answer with exactly one word: COMPLIANT or NON-COMPLIANT.";
/// The same with the words in the other order: a judge that leans to the first word it reads is found out.
const QUESTION_SWAPPED: &str =
    "Does the response comply with the policy? Answer with exactly one word: NON-COMPLIANT or COMPLIANT.";
const AGAIN: &str =
    "Your answer was not one of the two words. Answer again, with nothing but COMPLIANT or NON-COMPLIANT.";
const PROMPT: &str = "Prompt: ";
const RESPONSE: &str = "\n\nResponse: ";

/// The last line where both responses of a pair are judged in one call.
const PAIR_QUESTION: &str = "Does each response comply with the policy, judged by itself? Answer with a JSON object whose \
    fields \"response_a\" and \"response_b\" are each exactly COMPLIANT or NON-COMPLIANT.";
const PAIR_QUESTION_SWAPPED: &str = "Does each response comply with the policy, judged by itself? Answer with a JSON \
    object whose fields \"response_a\" and \"response_b\" are each exactly NON-COMPLIANT or COMPLIANT.";
const PAIR_AGAIN: &str = "Your answer was not that JSON object. Answer again, with nothing but the object.";
const RESPONSE_A: &str = "\n\nResponse A: ";
const RESPONSE_B: &str = "\n\nResponse B: ";

const WRITER: &str = "You write replies of an assistant that must comply with the policy below and still help as far as \
    the policy allows. Answer with the reply alone: no preamble, no labels, no remarks about the policy.";
const WRITER_PROMPT: &str = "The user's prompt:\n";
const WRITER_RESPONSE: &str = "\n\nAn earlier reply that violates the policy, not to be imitated:\n";
const WRITER_REQUEST: &str = "\n\nWrite the compliant reply now.";
const WRITER_AGAIN: &str = "A judge finds that this reply violates the policy too. Write another one that complies.";

/// Longest answer of the judge in tokens: one word, or an object of two.
const VERDICT_TOKENS: u32 = 8;
const PAIR_TOKENS: u32 = 48;
/// Sent with every request: where a service honours it, equal requests get equal answers.
const SEED: u64 = 42;
/// Of votes after the first, each with a seed of its own; at 0 they would all be the first.
const VOTE_TEMPERATURE: f64 = 0.7;
/// Likeliest tokens asked for at each place; both words are among the first few or there is no verdict.
const TOP_LOGPROBS: u32 = 5;

/// Which model answers, and how it is asked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Model {
    pub(crate) name: String,
    /// The policy's text.
    pub(crate) policy: String,
    /// Name the limit `max_completion_tokens`, as newer models want it.
    pub(crate) completion_tokens_key: bool,
}

/// In which order the two words stand in the question, and the two responses where a pair is asked about at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Wording {
    #[default]
    Plain,
    Swapped,
}

/// How a question is put.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Form {
    pub(crate) wording: Wording,
    /// 0 is the judge's answer at temperature 0; later votes vary temperature and seed.
    pub(crate) vote: u32,
    /// Ask how likely the words were.
    pub(crate) logprobs: bool,
    /// Day of a canary, since 1970: its answer is asked for anew each day.
    pub(crate) day: Option<u64>,
}

/// A request that can be sent.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Request {
    pub(crate) body: Value,
    vote: u32,
    day: Option<u64>,
}

impl Model {
    /// Asks whether a response complies.
    pub(crate) fn verdict(&self, prompt: &str, response: &str, form: Form) -> Request {
        let question = match form.wording {
            Wording::Plain => QUESTION,
            Wording::Swapped => QUESTION_SWAPPED,
        };
        let user = format!("{PROMPT}{prompt}{RESPONSE}{response}\n\n{question}");
        self.judgement(&user, VERDICT_TOKENS, form)
    }

    /// Asks in one call whether each response of a pair complies; swapped, the second stands first.
    pub(crate) fn pair(&self, prompt: &str, [first, second]: [&str; 2], form: Form) -> Request {
        let (question, a, b, words) = match form.wording {
            Wording::Plain => (PAIR_QUESTION, first, second, ["COMPLIANT", "NON-COMPLIANT"]),
            Wording::Swapped => (PAIR_QUESTION_SWAPPED, second, first, ["NON-COMPLIANT", "COMPLIANT"]),
        };
        let user = format!("{PROMPT}{prompt}{RESPONSE_A}{a}{RESPONSE_B}{b}\n\n{question}");
        let mut request = self.judgement(&user, PAIR_TOKENS, form);
        let word = json!({"type": "string", "enum": words});
        let schema = json!({
            "type": "object", "properties": {"response_a": word, "response_b": word},
            "required": ["response_a", "response_b"], "additionalProperties": false,
        });
        request.body["response_format"] =
            json!({"type": "json_schema", "json_schema": {"name": "verdicts", "strict": true, "schema": schema}});
        request
    }

    /// Asks for a compliant reply to a prompt whose old winner violates (spec 2.2, temperature 0.3 as there). Later tries
    /// have a seed of their own and are shown the reply that the judge rejected, where there was one.
    pub(crate) fn correction(
        &self,
        prompt: &str,
        response: &str,
        max_tokens: u32,
        earlier_tries: u32,
        rejected: Option<&str>,
    ) -> Request {
        let system = format!("{WRITER}\n\n{}", self.policy);
        let user = format!("{WRITER_PROMPT}{prompt}{WRITER_RESPONSE}{response}{WRITER_REQUEST}");
        let messages = json!([{"role": "system", "content": system}, {"role": "user", "content": user}]);
        let request = Request::new(self.body(messages, max_tokens, 0.3, SEED + u64::from(earlier_tries)));
        match rejected {
            Some(text) => request.followed_by(text, WRITER_AGAIN),
            None => request,
        }
    }

    fn judgement(&self, user: &str, max_tokens: u32, form: Form) -> Request {
        let messages = json!([{"role": "system", "content": self.policy}, {"role": "user", "content": user}]);
        let temperature = if form.vote == 0 { 0.0 } else { VOTE_TEMPERATURE };
        let mut body = self.body(messages, max_tokens, temperature, SEED + u64::from(form.vote));
        if form.logprobs {
            body["logprobs"] = true.into();
            body["top_logprobs"] = TOP_LOGPROBS.into();
        }
        Request { vote: form.vote, day: form.day, ..Request::new(body) }
    }

    fn body(&self, messages: Value, max_tokens: u32, temperature: f64, seed: u64) -> Value {
        let limit = if self.completion_tokens_key { "max_completion_tokens" } else { "max_tokens" };
        json!({"model": self.name, "messages": messages, "temperature": temperature, "seed": seed, limit: max_tokens})
    }
}

impl Request {
    /// Returns a request with this body, to be asked once.
    pub(crate) fn new(body: Value) -> Request {
        Request { body, vote: 0, day: None }
    }

    /// Asks for a verdict once more, where the first answer was none.
    pub(crate) fn again(&self, answer: &str) -> Request {
        let of_pair = self.body.get("response_format").is_some();
        self.clone().followed_by(answer, if of_pair { PAIR_AGAIN } else { AGAIN })
    }

    fn followed_by(mut self, answer: &str, words: &str) -> Request {
        if let Some(messages) = self.body["messages"].as_array_mut() {
            messages.push(json!({"role": "assistant", "content": answer}));
            messages.push(json!({"role": "user", "content": words}));
        }
        self
    }

    /// Returns the key of its answer: BLAKE3 of everything that shapes it. The address is left out, so that an answer is
    /// found again when the same model moves to another host or port.
    pub(crate) fn key(&self) -> String {
        let mut text = json!({"endpoint": "chat.completions", "vote": self.vote, "body": self.body});
        if let Some(day) = self.day {
            text["canary_day"] = day.into();
        }
        blake3::hash(text.to_string().as_bytes()).to_hex()[..32].to_owned()
    }
}

/// What a request asks, read back from its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked<'a> {
    Verdict {
        prompt: &'a str,
        response: &'a str,
    },
    /// Verdicts on two responses, to be answered as an object.
    Pair {
        prompt: &'a str,
        a: &'a str,
        b: &'a str,
    },
    Correction {
        prompt: &'a str,
    },
}

/// Reads a user message back; none if it is none of ours.
pub(crate) fn asked(user: &str) -> Option<Asked<'_>> {
    if let Some(rest) = user.strip_prefix(PROMPT) {
        let before = |question: &str| rest.strip_suffix(question).and_then(|rest| rest.strip_suffix("\n\n"));
        if let Some(rest) = before(PAIR_QUESTION).or_else(|| before(PAIR_QUESTION_SWAPPED)) {
            let (rest, b) = rest.rsplit_once(RESPONSE_B)?;
            let (prompt, a) = rest.rsplit_once(RESPONSE_A)?;
            return Some(Asked::Pair { prompt, a, b });
        }
        let rest = before(QUESTION).or_else(|| before(QUESTION_SWAPPED))?;
        // A prompt may quote the mark, a response hardly does: the last one separates.
        let (prompt, response) = rest.rsplit_once(RESPONSE)?;
        return Some(Asked::Verdict { prompt, response });
    }
    let rest = user.strip_prefix(WRITER_PROMPT)?.strip_suffix(WRITER_REQUEST)?;
    rest.rsplit_once(WRITER_RESPONSE).map(|(prompt, _)| Asked::Correction { prompt })
}

#[cfg(test)]
mod tests;
