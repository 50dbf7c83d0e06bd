//! A batch's lines: what of an input is refused, and what the output and error files hold.

use std::collections::HashSet;

use serde::Deserialize;
use serde_json::{Value, json};
use shared::keyed_random::KeyedRandom;

use super::completion::Ask;
use super::faults::{Fault, Of};
use super::{Mock, chat, lock, reply};

/// The most requests of a batch.
pub(super) const MOST_REQUESTS: usize = 50_000;
/// A batch with more errors than this names only the first ones.
const MOST_ERRORS: usize = 100;

/// A line of an input.
#[derive(Deserialize)]
struct Line {
    custom_id: Option<String>,
    method: Option<String>,
    url: Option<String>,
    body: Option<Value>,
}

/// What a batch has written.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Written {
    pub(super) output: String,
    pub(super) errors: String,
    pub(super) completed: usize,
    pub(super) failed: usize,
}

/// Returns the lines of a file that are not empty, with their numbers from 1.
fn lines(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let lines = bytes.split(|byte| *byte == b'\n').enumerate();
    lines.filter(|(_, line)| !line.trim_ascii().is_empty()).map(|(index, line)| (index + 1, line))
}

/// Checks an input; returns how many requests it holds and the errors as the API lists them.
pub(super) fn check(bytes: &[u8], endpoint: &str, model: &str) -> (usize, Vec<Value>) {
    let mut count = 0;
    let mut errors = Vec::new();
    let mut ids = HashSet::new();
    for (number, line) in lines(bytes) {
        count += 1;
        let mut wrong = |code: &str, message: String, param: Option<&str>| {
            if errors.len() < MOST_ERRORS {
                errors.push(json!({"code": code, "message": message, "param": param, "line": number}));
            }
        };
        let Ok(line) = serde_json::from_slice::<Line>(line) else {
            wrong("invalid_json_line", "This line is not parseable as valid JSON.".to_owned(), None);
            continue;
        };
        let (Some(id), Some(method), Some(url), Some(body)) = (line.custom_id, line.method, line.url, line.body) else {
            let message = "A request needs custom_id, method, url and body.".to_owned();
            wrong("missing_required_parameter", message, None);
            continue;
        };
        if method != "POST" {
            wrong("invalid_method", format!("The method {method:?} is not POST."), Some("method"));
        }
        if url != endpoint {
            let message = format!("The URL {url:?} does not match the batch's endpoint {endpoint:?}.");
            wrong("mismatched_endpoint", message, Some("url"));
        }
        if body["model"] != model {
            wrong("model_not_found", format!("The model {} does not exist.", body["model"]), Some("body.model"));
        }
        if !ids.insert(id) {
            let message = "The custom_id for this request is a duplicate of another request.".to_owned();
            wrong("duplicate_custom_id", message, Some("custom_id"));
        }
    }
    if count == 0 {
        errors.push(error("empty_file", "The batch input file is empty."));
    }
    if count > MOST_REQUESTS {
        let message = format!("The batch input file holds {count} requests; at most {MOST_REQUESTS} are allowed.");
        errors = vec![error("too_many_requests_in_file", &message)];
    }
    (count, errors)
}

/// Returns an error of a batch that is no single line's.
pub(super) fn error(code: &str, message: &str) -> Value {
    json!({"code": code, "message": message, "param": null, "line": null})
}

impl Mock {
    /// Works on the first `done` lines of an input, in an order of its own, and writes off the rest with `rest` (a code
    /// and its message). What is answered is charged, at half the price.
    pub(super) fn work_off(&self, bytes: &[u8], batch: u64, done: usize, rest: (&str, &str)) -> Written {
        let mut order: Vec<&[u8]> = lines(bytes).map(|(_, line)| line).collect();
        KeyedRandom::new(&[self.plan.seed, 0x0bde, batch]).shuffle(&mut order);
        let mut written = Written::default();
        let late = ("batch_expired", "This request could not be executed before the completion window expired.");
        for (index, line) in order.into_iter().enumerate() {
            let Ok(Line { custom_id: Some(id), body: Some(body), .. }) = serde_json::from_slice(line) else { continue };
            if index >= done {
                written.unanswered(batch, index, &id, rest);
                continue;
            }
            let (_, fault) = self.faults.next(Of::Line);
            match &fault {
                Some(Fault::Missing) => continue,
                Some(Fault::Expired) => {
                    written.unanswered(batch, index, &id, late);
                    continue;
                }
                _ => {}
            }
            let (status, reply) = self.answer_line(&body, fault.as_ref());
            let line = json!({
                "id": line_id(batch, index), "custom_id": id, "error": null,
                "response": {"status_code": status, "request_id": format!("req_{batch:08x}{index:08x}"), "body": reply},
            });
            let text = format!("{line}\n");
            if status == 200 {
                written.completed += 1;
                written.output += &text;
                if fault == Some(Fault::Duplicate) {
                    written.output += &text;
                }
            } else {
                written.failed += 1;
                written.errors += &text;
            }
        }
        written
    }

    fn answer_line(&self, body: &Value, fault: Option<&Fault>) -> (u16, Value) {
        if let Some(Fault::Status { status, code, .. }) = fault {
            return (*status, reply::planned(*status, code).body());
        }
        let bytes = body.to_string();
        let hash = chat::name(bytes.as_bytes());
        let answered = Ask::read(bytes.as_bytes(), &self.model).and_then(|ask| self.answer_to(&ask, hash, fault));
        match answered {
            Ok(completed) => {
                lock(&self.bill).charge(hash, completed.tokens, true);
                (200, completed.body)
            }
            Err(refusal) => (refusal.status, refusal.body()),
        }
    }
}

impl Written {
    fn unanswered(&mut self, batch: u64, index: usize, custom_id: &str, (code, message): (&str, &str)) {
        self.failed += 1;
        let line = json!({
            "id": line_id(batch, index), "custom_id": custom_id, "response": null,
            "error": {"code": code, "message": message},
        });
        self.errors += &format!("{line}\n");
    }
}

fn line_id(batch: u64, index: usize) -> String {
    format!("batch_req_{batch:08x}{index:08x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAT: &str = "/v1/chat/completions";

    fn line(id: &str) -> String {
        json!({"custom_id": id, "method": "POST", "url": CHAT, "body": {"model": "m", "messages": []}}).to_string()
    }

    #[test]
    fn an_input_is_refused_line_by_line() {
        let good = format!("{}\n\n{}\n", line("a"), line("b"));
        assert_eq!(check(good.as_bytes(), CHAT, "m"), (2, vec![]));
        let bad = [
            line("a"),
            line("a"),
            "{".to_owned(),
            "{\"custom_id\": \"x\"}".to_owned(),
            line("u").replace(CHAT, "/v1/embeddings"),
            line("n").replace("\"m\"", "\"n\""),
            line("g").replace("POST", "GET"),
        ];
        let (count, errors) = check(bad.join("\n").as_bytes(), CHAT, "m");
        let found: Vec<_> = errors.iter().map(|e| (e["line"].as_u64().unwrap(), e["code"].as_str().unwrap())).collect();
        assert_eq!(count, 7);
        assert_eq!(
            found,
            [
                (2, "duplicate_custom_id"),
                (3, "invalid_json_line"),
                (4, "missing_required_parameter"),
                (5, "mismatched_endpoint"),
                (6, "model_not_found"),
                (7, "invalid_method"),
            ]
        );
        assert_eq!(check(b"\n \n", CHAT, "m").1[0]["code"], "empty_file");
        assert_eq!(check(b"\xff\xfe", CHAT, "m").1[0]["code"], "invalid_json_line", "bytes that are no text");
    }

    #[test]
    fn a_batch_of_more_requests_than_allowed_is_refused() {
        let many: String = (0..=MOST_REQUESTS).map(|n| line(&n.to_string()) + "\n").collect();
        let (count, errors) = check(many.as_bytes(), CHAT, "m");
        assert_eq!((count, errors.len()), (MOST_REQUESTS + 1, 1));
        assert!(errors[0]["message"].as_str().unwrap().contains("50000"), "{errors:?}");
        let (_, fine) = check(&many.as_bytes()[..many.len() - line("50000").len() - 1], CHAT, "m");
        assert!(fine.is_empty(), "{fine:?}");
    }
}
