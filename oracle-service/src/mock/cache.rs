//! Prompt caching: what of a prompt was seen at the beginning of an earlier one, in the API's steps. Pure.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};
use std::time::Duration;

use super::completion::CHARS_OF_A_TOKEN;

/// The shortest prefix that is cached, and the step in which longer ones are.
const SHORTEST_TOKENS: usize = 1024;
const STEP_TOKENS: usize = 128;
/// A prefix that was not used for so long is forgotten.
const KEPT: Duration = Duration::from_secs(600);
/// Before more prefixes than this are kept, stale ones are looked for.
const LOOK_AT: usize = 100_000;

/// Prefixes seen, by hash, and when last.
#[derive(Debug, Default)]
pub(super) struct PromptCache {
    seen: HashMap<u64, Duration>,
    look_at: usize,
}

/// Returns the hashes of a prompt's prefixes that can be cached, shortest first.
pub(super) fn prefixes<'a>(messages: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<u64> {
    let mut hasher = DefaultHasher::new();
    let mut found = Vec::new();
    let (mut count, mut next) = (0, SHORTEST_TOKENS * CHARS_OF_A_TOKEN);
    for (role, content) in messages {
        hasher.write(role.as_bytes());
        hasher.write_u8(0xff);
        let mut rest = content;
        loop {
            // Fewer bytes than characters wanted: no need to look at them one by one.
            let cut = if rest.len() < next - count { None } else { rest.char_indices().nth(next - count) };
            match cut {
                Some((cut, _)) => {
                    hasher.write(&rest.as_bytes()[..cut]);
                    found.push(hasher.finish());
                    rest = &rest[cut..];
                    count = next;
                    next += STEP_TOKENS * CHARS_OF_A_TOKEN;
                }
                None => {
                    hasher.write(rest.as_bytes());
                    count += rest.chars().count();
                    break;
                }
            }
        }
    }
    found
}

impl PromptCache {
    /// Notes a prompt's prefixes; returns how many of its tokens were cached.
    pub(super) fn note(&mut self, prefixes: &[u64], now: Duration) -> u64 {
        let fresh = |last: &Duration| now.saturating_sub(*last) < KEPT;
        let known = prefixes.iter().rposition(|prefix| self.seen.get(prefix).is_some_and(fresh));
        if self.seen.len() + prefixes.len() > self.look_at.max(LOOK_AT) {
            self.seen.retain(|_, last| fresh(last));
            self.look_at = 2 * self.seen.len();
        }
        self.seen.extend(prefixes.iter().map(|prefix| (*prefix, now)));
        known.map_or(0, |index| (SHORTEST_TOKENS + index * STEP_TOKENS) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(system: &str, user: &str) -> Vec<u64> {
        prefixes([("system", system), ("user", user)].into_iter())
    }

    #[test]
    fn a_long_prefix_seen_before_is_cached_in_steps() {
        let mut cache = PromptCache::default();
        let policy = "é".repeat(4 * 1400);
        let t0 = Duration::ZERO;
        assert_eq!(cache.note(&of(&policy, "one"), t0), 0, "seen for the first time");
        assert_eq!(cache.note(&of(&policy, "two"), t0), 1280, "1400 tokens are 1024 and two steps");
        assert_eq!(cache.note(&of(&policy[..2 * 4 * 1100], "three"), t0), 1024);
        assert_eq!(cache.note(&of(&format!("x{policy}"), "two"), t0), 0, "another beginning");
        assert_eq!(cache.note(&of("short", "two"), t0), 0);
        assert_eq!(cache.note(&of("short", "two"), t0), 0, "short prompts never are");
        assert_eq!(cache.note(&of(&policy, "four"), t0 + KEPT), 0, "forgotten");
    }

    #[test]
    fn the_prefix_may_reach_into_the_users_message() {
        let mut cache = PromptCache::default();
        let user = "u".repeat(4 * 1000);
        cache.note(&of(&"s".repeat(4 * 100), &format!("{user}a")), Duration::ZERO);
        assert_eq!(cache.note(&of(&"s".repeat(4 * 100), &format!("{user}b")), Duration::ZERO), 1024);
    }

    #[test]
    fn stale_prefixes_do_not_pile_up() {
        let mut cache = PromptCache::default();
        for n in 0..3 * LOOK_AT as u64 {
            cache.note(&[n], Duration::from_millis(10 * n));
        }
        assert!(cache.seen.len() <= 2 * LOOK_AT, "{}", cache.seen.len());
    }
}
