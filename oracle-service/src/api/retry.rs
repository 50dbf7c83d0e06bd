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
    Status { status: u16, code: String, message: String },
    /// No whole answer: unreachable, cut, too slow; and whether the request may have been received.
    Connection { problem: String, is_sent: bool },
    /// An answer that is none of this API's.
    Garbage(String),
}

/// What to do about it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Course {
    /// Too fast: the pacer says when to send it again, and it costs no try.
    Slower,
    /// Try again.
    Again,
    /// This item has no answer, the others may have.
    GiveUpItem(String),
    /// No request can succeed here until someone acts.
    Halt(String),
}

impl Trouble {
    /// Returns what to do, by the kind of the failure alone: a quota is not a rate, and a message is never searched for
    /// words.
    pub(super) fn course(&self) -> Course {
        match self {
            Trouble::Connection { .. } | Trouble::Garbage(_) => Course::Again,
            Trouble::Status { status, code, message } => {
                let said = format!("HTTP {status} {code}: {message}");
                match (*status, code.as_str()) {
                    (429, "insufficient_quota" | "billing_hard_limit_reached" | "quota_exceeded") | (402, _) => {
                        Course::Halt(format!(
                            "the account's quota is used up ({said}); what is answered is kept: top it up, then resume or \
                             run again"
                        ))
                    }
                    (401 | 403, _) => Course::Halt(format!(
                        "the API refuses the key ({said}); check OPENAI_API_KEY or the endpoint's key and run again"
                    )),
                    (404, _) | (400, "model_not_found" | "DeploymentNotFound") => Course::Halt(format!(
                        "the API does not know the model or the path ({said}); check --oracle-model and --base-url"
                    )),
                    (429, _) => Course::Slower,
                    (408 | 409 | 425 | 500..=599, _) => Course::Again,
                    _ => Course::GiveUpItem(said),
                }
            }
        }
    }

    /// Returns whether the request may have been charged although there is no answer.
    pub(super) fn may_be_charged(&self) -> bool {
        match self {
            Trouble::Status { .. } => false,
            Trouble::Connection { is_sent, .. } => *is_sent,
            Trouble::Garbage(_) => true,
        }
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Trouble::Status { status, code, message, .. } => write!(f, "HTTP {status} {code}: {message}"),
            Trouble::Connection { problem, .. } => f.write_str(problem),
            Trouble::Garbage(problem) => write!(f, "not an answer of this API: {problem}"),
        }
    }
}

/// Returns how long to wait before try number `next` (the first repetition is 2): doubling, between half and whole,
/// drawn from the request's key so that many requests do not come back together.
pub(super) fn wait(key: &str, next: u32) -> Duration {
    let doubled = FIRST_WAIT.saturating_mul(1 << next.saturating_sub(2).min(16)).min(LONGEST_WAIT);
    let share = KeyedRandom::new(&[word(key), u64::from(next)]).uniform();
    doubled.mul_f64(0.5 + 0.5 * share)
}

/// Returns a number that stands for a request.
pub(super) fn word(key: &str) -> u64 {
    let hash = blake3::hash(key.as_bytes());
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("8 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(status: u16, code: &str) -> Course {
        Trouble::Status { status, code: code.into(), message: "rate limit 429".into() }.course()
    }

    #[test]
    fn a_failure_is_classed_by_its_kind() {
        for code in [408, 409, 500, 502, 503, 529] {
            assert_eq!(status(code, ""), Course::Again, "{code}");
        }
        assert_eq!(status(429, "rate_limit_exceeded"), Course::Slower);
        for (code, name) in [
            (401, ""),
            (402, ""),
            (403, ""),
            (404, "model_not_found"),
            (400, "model_not_found"),
            (429, "insufficient_quota"),
        ] {
            assert!(matches!(status(code, name), Course::Halt(_)), "{code}");
        }
        assert!(matches!(status(400, "context_length_exceeded"), Course::GiveUpItem(_)));
        assert_eq!(Trouble::Connection { problem: "cut".into(), is_sent: true }.course(), Course::Again);
    }

    #[test]
    fn what_was_received_may_be_charged() {
        let cut = |is_sent| Trouble::Connection { problem: "cut".into(), is_sent }.may_be_charged();
        assert!(cut(true) && !cut(false) && Trouble::Garbage(String::new()).may_be_charged());
        assert!(!Trouble::Status { status: 500, code: String::new(), message: String::new() }.may_be_charged());
    }

    #[test]
    fn waits_grow_and_are_bounded() {
        for next in 2..20 {
            let wait = wait("k", next);
            let whole = FIRST_WAIT.saturating_mul(1 << (next - 2).min(16)).min(LONGEST_WAIT);
            assert!(wait >= whole / 2 && wait <= whole, "{next}: {wait:?}");
        }
        assert_ne!(wait("k", 4), wait("other", 4));
    }
}
