//! A chat completion, from the request's body to the reply's: what chat requests and lines of batches share.
//!
//! Tokens are counted as a quarter of the characters, rounded up. The same request always gets the same answer.

use serde::Deserialize;
use serde_json::{Value, json};
use shared::rules;

use super::answer::{self, Said};
use super::faults::Fault;
use super::reply::Refusal;
use super::{Mock, cache};
use shared::prices::Tokens;

pub(super) const CHARS_OF_A_TOKEN: usize = 4;
const MOST_ALTERNATIVES: usize = 20;

/// What of a request's body shapes the answer.
#[derive(Debug, Deserialize)]
pub(super) struct Ask {
    #[serde(default)]
    model: Value,
    #[serde(default)]
    messages: Vec<Message>,
    #[serde(default)]
    logprobs: Option<bool>,
    #[serde(default)]
    top_logprobs: Option<usize>,
    #[serde(default)]
    response_format: Option<Value>,
    #[serde(default)]
    max_tokens: Option<u64>,
    #[serde(default)]
    max_completion_tokens: Option<u64>,
    #[serde(default)]
    n: Option<u64>,
    #[serde(default)]
    stream: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Message {
    #[serde(default)]
    role: String,
    #[serde(default)]
    content: Content,
}

/// A message's text, or its parts.
#[derive(Debug, Default, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
    #[default]
    None,
}

#[derive(Debug, Deserialize)]
struct Part {
    #[serde(default)]
    text: String,
}

/// A reply and what it costs.
#[derive(Debug)]
pub(super) struct Completed {
    pub(super) body: Value,
    pub(super) tokens: Tokens,
}

impl Content {
    fn text(&self) -> &str {
        match self {
            Content::Text(text) => text,
            // What is asked stands in the first part; others would be pictures.
            Content::Parts(parts) => parts.first().map_or("", |part| &part.text),
            Content::None => "",
        }
    }
}

impl Ask {
    /// Reads a request's body.
    pub(super) fn read(body: &[u8], model: &str) -> Result<Ask, Refusal> {
        let ask: Ask = serde_json::from_slice(body).map_err(|error| {
            let what = if error.is_data() { "is no chat completion's" } else { "is not JSON" };
            Refusal::bad(format!("the body {what}: {error}"))
        })?;
        if ask.model != model {
            let message = format!("The model {} does not exist; this server plays {model:?}.", ask.model);
            return Err(Refusal { code: Some("model_not_found"), ..Refusal::missing(message) });
        }
        if ask.messages.is_empty() {
            return Err(Refusal::of_param("messages", "\"messages\" is missing or empty"));
        }
        if ask.n.is_some_and(|n| n != 1) {
            return Err(Refusal::of_param("n", "this server gives one choice: n must be 1"));
        }
        if ask.stream == Some(true) {
            return Err(Refusal::of_param("stream", "this server does not stream"));
        }
        match ask.top_logprobs {
            Some(_) if ask.logprobs != Some(true) => {
                Err(Refusal::of_param("top_logprobs", "top_logprobs wants logprobs to be true"))
            }
            Some(number) if number > MOST_ALTERNATIVES => {
                Err(Refusal::of_param("top_logprobs", format!("top_logprobs is {number}; at most {MOST_ALTERNATIVES}")))
            }
            _ => Ok(ask),
        }
    }

    /// Returns how many tokens a limit counts for it: the prompt's, and as many of the answer as it allows.
    pub(super) fn tokens_at_most(&self) -> u64 {
        self.prompt_tokens() + self.longest_answer().unwrap_or(0)
    }

    fn prompt_tokens(&self) -> u64 {
        self.messages.iter().map(|message| tokens(message.content.text())).sum()
    }

    fn longest_answer(&self) -> Option<u64> {
        self.max_completion_tokens.or(self.max_tokens)
    }

    fn user(&self) -> Result<&str, Refusal> {
        let user = self.messages.iter().find(|message| message.role == "user");
        let user = user.map(|message| message.content.text()).filter(|text| !text.is_empty());
        user.ok_or_else(|| Refusal::of_param("messages", "there is no user message with text"))
    }

    /// Returns the schema of the answer, where one is wanted.
    fn schema(&self) -> Option<&Value> {
        let format = self.response_format.as_ref()?;
        (format["type"] == "json_schema").then(|| &format["json_schema"]["schema"])
    }
}

impl Mock {
    /// Refuses a request whose policy names other rules than this mock's: answers by these would be taken for theirs.
    fn check_rules(&self, ask: &Ask) -> Result<(), Refusal> {
        let systems = ask.messages.iter().filter(|message| message.role == "system");
        let named = systems.filter_map(|message| rules::named_in(message.content.text())).next();
        match named {
            Some(named) if named != self.judge.identity() => Err(Refusal::missing(format!(
                "this mock answers by the rules {:?}, and the request is for {named:?}; start one with those rules",
                self.judge.identity()
            ))),
            _ => Ok(()),
        }
    }

    /// Answers a request, with the failures that are an answer's own; nothing is charged yet.
    pub(super) fn answer_to(&self, ask: &Ask, hash: u128, fault: Option<&Fault>) -> Result<Completed, Refusal> {
        let user = ask.user()?;
        self.check_rules(ask)?;
        let said = answer::answer(&self.judge, user, ask.schema()).map_err(Refusal::bad)?;
        let confidence = answer::confidence(self.plan.unsure_share, self.plan.seed, user, hash as u64);
        // An unsure model is wrong as often as it says; one that is sure never is.
        let wrong = confidence < 0.9 && ((hash >> 64) as u64 as f64 / u64::MAX as f64) > confidence;
        let flipped = wrong != (fault == Some(&Fault::Flip));
        let Said { text, other } = said;
        let (text, other) = match (flipped, other) {
            (true, Some(other)) => (other, Some(text)),
            (_, other) => (text, other),
        };
        let (mut finish, mut content, mut refusal) = ("stop", Some(text), None);
        match fault {
            Some(Fault::Null) => (content, finish) = (None, "content_filter"),
            Some(Fault::Unclear) => content = Some("It depends.".to_owned()),
            Some(Fault::Refusal) => (content, refusal) = (None, Some("I'm sorry, but I cannot help with that.")),
            _ => {}
        }
        if let (Some(text), Some(most)) = (&mut content, ask.longest_answer())
            && tokens(text) > most
        {
            let cut = text.char_indices().nth(most as usize * CHARS_OF_A_TOKEN).map_or(text.len(), |(cut, _)| cut);
            text.truncate(cut);
            finish = "length";
        }
        let logprobs = match &content {
            Some(text) if ask.logprobs == Some(true) => {
                logprobs(text, other.as_deref(), confidence, ask.top_logprobs.unwrap_or(0))
            }
            _ => Value::Null,
        };
        let tokens = Tokens {
            prompt: ask.prompt_tokens(),
            cached: self.cached(ask),
            completion: content.as_deref().or(refusal).map_or(0, tokens),
        };
        let fingerprint = if fault == Some(&Fault::Fingerprint) { "fp_mock_2" } else { "fp_mock" };
        let body = json!({
            "id": format!("chatcmpl-{:016x}", (hash >> 64) as u64), "object": "chat.completion",
            "created": self.clock.date(self.clock.now()), "model": self.model, "system_fingerprint": fingerprint,
            "service_tier": "default",
            "choices": [{
                "index": 0, "finish_reason": finish, "logprobs": logprobs,
                "message": {"role": "assistant", "content": content, "refusal": refusal, "annotations": []},
            }],
            "usage": {
                "prompt_tokens": tokens.prompt, "completion_tokens": tokens.completion,
                "total_tokens": tokens.prompt + tokens.completion,
                "prompt_tokens_details": {"cached_tokens": tokens.cached, "audio_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
            },
        });
        Ok(Completed { body, tokens })
    }

    fn cached(&self, ask: &Ask) -> u64 {
        let prefixes =
            cache::prefixes(ask.messages.iter().map(|message| (message.role.as_str(), message.content.text())));
        if prefixes.is_empty() { 0 } else { super::lock(&self.cache).note(&prefixes, self.clock.now()) }
    }
}

/// Returns log-probabilities by token: the first one carries the confidence, with the other answer's first token beside
/// it; the others follow from it.
fn logprobs(text: &str, other: Option<&str>, confidence: f64, alternatives: usize) -> Value {
    let of = |token: &str, logprob: f64| json!({"token": token, "logprob": logprob, "bytes": token.as_bytes()});
    let first_of = |text: &str| text.chars().take(CHARS_OF_A_TOKEN).collect::<String>();
    let chars: Vec<char> = text.chars().collect();
    let content = chars.chunks(CHARS_OF_A_TOKEN).enumerate().map(|(index, chunk)| {
        let token: String = chunk.iter().collect();
        let (logprob, rest) = if index == 0 { (confidence.ln(), 1.0 - confidence) } else { (-1e-4, 1e-4) };
        let mut top = vec![(token.clone(), logprob)];
        if let (0, Some(other)) = (index, other) {
            top.push((first_of(other), (rest * 0.9).ln()));
        }
        while top.len() < alternatives {
            let share = rest * 0.01 / top.len() as f64;
            top.push((format!(" …{}", top.len()), share.ln()));
        }
        top.truncate(alternatives);
        // What follows is likely, so the token said need not be the likeliest one.
        top.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        let mut token = of(&token, logprob);
        token["top_logprobs"] = top.iter().map(|(token, logprob)| of(token, *logprob)).collect();
        token
    });
    json!({"content": content.collect::<Vec<_>>(), "refusal": null})
}

/// Returns how many tokens a text has.
pub(super) fn tokens(text: &str) -> u64 {
    text.chars().count().div_ceil(CHARS_OF_A_TOKEN) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_refused_by_what_is_wrong() {
        let of = |body: Value| Ask::read(body.to_string().as_bytes(), "m").map(|ask| ask.tokens_at_most());
        let messages = json!([{"role": "user", "content": "12345"}]);
        assert_eq!(of(json!({"model": "m", "messages": messages, "max_tokens": 8})), Ok(2 + 8));
        let parts = json!([{"role": "user", "content": [{"type": "text", "text": "12345"}]}]);
        assert_eq!(of(json!({"model": "m", "messages": parts})), Ok(2));
        for (body, status, named) in [
            (json!({"model": "n", "messages": messages}), 404, "\"n\" does not exist"),
            (json!({"messages": messages}), 404, "null"),
            (json!({"model": "m", "messages": []}), 400, "messages"),
            (json!({"model": "m", "messages": 3}), 400, "is no chat completion's"),
            (json!({"model": "m", "messages": messages, "stream": true}), 400, "stream"),
            (json!({"model": "m", "messages": messages, "n": 2}), 400, "n must be 1"),
            (json!({"model": "m", "messages": messages, "top_logprobs": 2}), 400, "logprobs"),
            (json!({"model": "m", "messages": messages, "logprobs": true, "top_logprobs": 21}), 400, "at most 20"),
        ] {
            let refused = of(body).unwrap_err();
            assert!(refused.status == status && refused.message.contains(named), "{named}: {refused:?}");
        }
        assert!(Ask::read(b"{", "m").unwrap_err().message.contains("is not JSON"));
    }

    #[test]
    fn log_probabilities_carry_the_confidence() {
        let found = logprobs("NON-COMPLIANT", Some("COMPLIANT"), 0.8, 5);
        let content = found["content"].as_array().unwrap();
        let text: String = content.iter().map(|token| token["token"].as_str().unwrap()).collect();
        assert_eq!(text, "NON-COMPLIANT");
        let first = &content[0];
        assert!((first["logprob"].as_f64().unwrap().exp() - 0.8).abs() < 1e-9);
        let top = first["top_logprobs"].as_array().unwrap();
        assert_eq!((top.len(), &top[0]["token"], &top[1]["token"]), (5, &json!("NON-"), &json!("COMP")));
        let sum: f64 = top.iter().map(|token| token["logprob"].as_f64().unwrap().exp()).sum();
        assert!(sum <= 1.0 && sum > 0.95, "{sum}");
        assert_eq!(logprobs("x", None, 0.8, 0)["content"][0]["top_logprobs"], json!([]));
    }
}
