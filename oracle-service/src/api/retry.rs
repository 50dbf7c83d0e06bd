//! What a failed request means, and when it is tried again: pure.

use std::time::Duration;

use shared::keyed_random::KeyedRandom;

/// A request's tries before its item is given up.
pub(super) const TRIES: u32 = 8;
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// What the HTTP exchange came to, where it did not bring an answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Trouble {
    /// The server answered with an error.
    Status { status: u16, code: String, message: String, retry_after: Option<Duration> },
    /// No whole answer: unreachable, cut, too slow.
    Connection(String),
    /// An answer that is none of this API's.
    Garbage(String),
}

/// What to do about it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Course {
    /// Try again, not before this time if the server names one.
    Again(Option<Duration>),
    /// This item has no answer, the others may have.
    GiveUpItem(String),
    /// No request can succeed until someone acts.
    StopJob(String),
}

impl Trouble {
    /// Returns what to do, by the kind of the failure alone: a quota is not a rate, and a message is never searched for
    /// words.
    pub(super) fn course(&self) -> Course {
        match self {
            Trouble::Connection(_) | Trouble::Garbage(_) => Course::Again(None),
            Trouble::Status { status, code, message, retry_after } => {
                let said = format!("HTTP {status} {code}: {message}");
                match (*status, code.as_str()) {
                    (429, "insufficient_quota" | "billing_hard_limit_reached") => Course::StopJob(format!(
                        "the account's quota is used up ({said}); what is answered is kept: top it up and run again"
                    )),
                    (401 | 403, _) => {
                        Course::StopJob(format!("the API refuses the key ({said}); check OPENAI_API_KEY and run again"))
                    }
                    (404, _) => Course::StopJob(format!(
                        "the API does not know the model or the path ({said}); check --oracle-model and --base-url"
                    )),
                    (408 | 409 | 425 | 429 | 500..=599, _) => Course::Again(*retry_after),
                    _ => Course::GiveUpItem(said),
                }
            }
        }
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Trouble::Status { status, code, message, .. } => write!(f, "HTTP {status} {code}: {message}"),
            Trouble::Connection(problem) => f.write_str(problem),
            Trouble::Garbage(problem) => write!(f, "not an answer of this API: {problem}"),
        }
    }
}

/// Returns how long to wait before try number `next` (the first repetition is 2): doubling, between half and whole,
/// drawn from the request's key so that many requests do not come back together; never before the server's own time.
pub(super) fn wait(key: &str, next: u32, server: Option<Duration>) -> Duration {
    let doubled = FIRST_WAIT.saturating_mul(1 << next.saturating_sub(2).min(16)).min(LONGEST_WAIT);
    let hash = blake3::hash(key.as_bytes());
    let word = u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("8 bytes"));
    let share = KeyedRandom::new(&[word, u64::from(next)]).uniform();
    let own = doubled.mul_f64(0.5 + 0.5 * share);
    server.map_or(own, |server| server.saturating_add(own.min(FIRST_WAIT)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(status: u16, code: &str) -> Course {
        Trouble::Status { status, code: code.into(), message: "rate limit 429".into(), retry_after: None }.course()
    }

    #[test]
    fn a_failure_is_classed_by_its_kind() {
        for code in [408, 409, 429, 500, 502, 503, 529] {
            assert_eq!(status(code, ""), Course::Again(None), "{code}");
        }
        for (code, name) in [(401, ""), (403, ""), (404, "model_not_found"), (429, "insufficient_quota")] {
            assert!(matches!(status(code, name), Course::StopJob(_)), "{code}");
        }
        assert!(matches!(status(400, "context_length_exceeded"), Course::GiveUpItem(_)));
        assert_eq!(Trouble::Connection("cut".into()).course(), Course::Again(None));
    }

    #[test]
    fn waits_grow_are_bounded_and_respect_the_server() {
        for next in 2..20 {
            let wait = wait("k", next, None);
            let whole = FIRST_WAIT.saturating_mul(1 << (next - 2).min(16)).min(LONGEST_WAIT);
            assert!(wait >= whole / 2 && wait <= whole, "{next}: {wait:?}");
        }
        assert_ne!(wait("k", 4, None), wait("other", 4, None));
        assert!(wait("k", 2, Some(Duration::from_secs(7))) >= Duration::from_secs(7));
    }
}
