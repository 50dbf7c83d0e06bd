//! The lines of batch files: requests going up, answers and failures coming down. Pure; bytes from outside never panic.
//!
//! A line belongs to the request whose key is its `custom_id`, wherever it stands and in whichever file. What is no line
//! of ours is counted and left: its request is then unanswered and asked again.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::ledger::Answer;
use crate::api::openai;
use crate::api::retry::{Course, Trouble};

/// A request's key as a number: a million of them fit into 16 MB.
pub(super) type Key = u128;

/// The path that every request of a batch goes to.
pub(super) const ENDPOINT: &str = "/v1/chat/completions";
/// A longer line is none of ours.
const LONGEST_LINE: usize = 64 << 20;
/// Lines that are no lines of ours are quoted this often in the log.
const QUOTED: u64 = 3;

/// Returns a key as a number; none if it is not 32 hexadecimal digits.
pub(super) fn number(key: &str) -> Option<Key> {
    let digits = key.len() == 32 && key.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    digits.then(|| Key::from_str_radix(key, 16).ok()).flatten()
}

/// Returns a key as it is written.
pub(super) fn text(key: Key) -> String {
    format!("{key:032x}")
}

/// Returns a request's line, with its end.
pub(super) fn request(key: &str, body: &Value) -> String {
    format!("{}\n", json!({"custom_id": key, "method": "POST", "url": ENDPOINT, "body": body}))
}

/// Reads the key of a request's line back.
pub(super) fn key_of_request(line: &str) -> Option<Key> {
    #[derive(Deserialize)]
    struct Keyed<'a> {
        custom_id: &'a str,
    }
    serde_json::from_str::<Keyed>(line).ok().and_then(|line| number(line.custom_id))
}

/// Cuts a stream of bytes into lines, however the stream is cut.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    rest: Vec<u8>,
    too_long: bool,
}

impl Splitter {
    /// Takes bytes and hands out the lines they end, without their ends. A line that is too long is handed out empty.
    pub(super) fn push(&mut self, mut bytes: &[u8], mut line: impl FnMut(&[u8])) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.keep(&bytes[..end]);
            bytes = &bytes[end + 1..];
            self.end(&mut line);
        }
        self.keep(bytes);
    }

    /// Hands out what stands after the last line's end.
    pub(super) fn finish(mut self, mut line: impl FnMut(&[u8])) {
        if self.too_long || !self.rest.is_empty() {
            self.end(&mut line);
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.too_long |= self.rest.len() + bytes.len() > LONGEST_LINE;
        if self.too_long {
            self.rest.clear();
        } else {
            self.rest.extend_from_slice(bytes);
        }
    }

    fn end(&mut self, line: &mut impl FnMut(&[u8])) {
        line(&self.rest);
        self.rest.clear();
        self.too_long = false;
    }
}

/// What a line says about its request.
#[derive(Debug, PartialEq)]
enum Said {
    Answered(Box<Answer>),
    Failed(Trouble),
}

#[derive(Deserialize)]
struct Line {
    custom_id: String,
    response: Option<Response>,
    error: Option<LineError>,
}

#[derive(Deserialize)]
struct Response {
    status_code: u16,
    #[serde(default)]
    body: Value,
}

#[derive(Deserialize)]
struct LineError {
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    message: Option<String>,
}

/// Reads a line of an output or error file.
fn read(line: &[u8], at_ms: u64) -> Result<(Key, Said), String> {
    let line: Line = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let key = number(&line.custom_id).ok_or("its custom_id is none of ours")?;
    let said = match (line.response, line.error) {
        (Some(Response { status_code: 200..=299, body }), _) => match openai::answer(body, at_ms) {
            Ok((answer, _)) => Said::Answered(Box::new(answer)),
            Err(trouble) => Said::Failed(trouble),
        },
        (Some(Response { status_code, body }), _) => {
            let part = |name: &str| body["error"][name].as_str().map(str::to_owned);
            let code = part("code").or_else(|| part("type")).unwrap_or_default();
            let message = part("message").unwrap_or_default();
            Said::Failed(Trouble::Status { status: status_code, code, message })
        }
        (None, Some(error)) => {
            let code = error.code.unwrap_or_default();
            let message = error.message.unwrap_or_default();
            Said::Failed(Trouble::Garbage(format!("{code}: {message}")))
        }
        (None, None) => return Err("it holds neither a response nor an error".into()),
    };
    Ok((key, said))
}

/// Sorts the lines of a part's files by its requests.
#[derive(Debug)]
pub(super) struct Sorter {
    /// Requests without an answer so far.
    open: HashSet<Key>,
    answered: HashSet<Key>,
    failed: HashMap<Key, Trouble>,
    pub(super) counts: Counts,
}

/// Lines of which no use was made.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Counts {
    /// No lines of ours.
    pub(super) broken: u64,
    /// For requests that this part does not have.
    pub(super) foreign: u64,
    /// For requests that had an answer already.
    pub(super) repeated: u64,
}

/// What became of the requests without an answer.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Left {
    /// May be answered when asked again.
    pub(super) again: Vec<Key>,
    /// Refused for good, with the reason.
    pub(super) refused: Vec<(Key, String)>,
    /// Why no request will be answered until someone acts, where a line says so.
    pub(super) stop: Option<String>,
}

impl Sorter {
    pub(super) fn new(keys: HashSet<Key>) -> Sorter {
        Sorter { open: keys, answered: HashSet::new(), failed: HashMap::new(), counts: Counts::default() }
    }

    /// Takes a line; returns the answer it brings to a request that had none.
    pub(super) fn take(&mut self, line: &[u8], at_ms: u64) -> Option<(Key, Answer)> {
        if line.iter().all(u8::is_ascii_whitespace) {
            return None;
        }
        let (key, said) = match read(line, at_ms) {
            Ok(found) => found,
            Err(problem) => {
                self.counts.broken += 1;
                if self.counts.broken <= QUOTED {
                    let start = String::from_utf8_lossy(&line[..line.len().min(80)]).into_owned();
                    tracing::warn!("a line of a batch file is left out ({problem}): {start:?}");
                }
                return None;
            }
        };
        if self.answered.contains(&key) {
            self.counts.repeated += u64::from(matches!(said, Said::Answered(_)));
            return None;
        }
        if !self.open.contains(&key) {
            self.counts.foreign += 1;
            return None;
        }
        match said {
            Said::Answered(answer) => {
                self.open.remove(&key);
                self.failed.remove(&key);
                self.answered.insert(key);
                Some((key, *answer))
            }
            Said::Failed(trouble) => {
                self.failed.insert(key, trouble);
                None
            }
        }
    }

    /// Returns how many requests were answered.
    pub(super) fn answered(&self) -> u64 {
        self.answered.len() as u64
    }

    /// Returns what is left once all lines are taken. A request that no line speaks of is asked again.
    pub(super) fn left(self) -> Left {
        let mut left = Left::default();
        for key in self.open {
            match self.failed.get(&key).map(Trouble::course) {
                Some(Course::GiveUpItem(reason)) => left.refused.push((key, reason)),
                Some(Course::Halt(reason)) => {
                    left.stop.get_or_insert(reason);
                    left.again.push(key);
                }
                Some(Course::Again | Course::Slower) | None => left.again.push(key),
            }
        }
        left.again.sort_unstable();
        left.refused.sort_unstable();
        left
    }
}

#[cfg(test)]
mod tests;
