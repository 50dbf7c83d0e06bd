//! When the next request may be sent to an endpoint: pure, told the time and what the server says.
//!
//! Every limit is a bucket that fills at a steady rate: requests and tokens by the operator's settings, requests and tokens
//! by the server's `x-ratelimit-*` headers, and, where a server tells none and refuses, a rate of our own that falls by a
//! quarter with a refusal and creeps up again (AIMD). A report of what remains is of the moment its request was counted:
//! what was sent since is taken off, what has flowed in since is added. Of reports that overtake each other the one of the
//! latest request counts. Until the first word of the server requests go out a few at a time, twice as many with every
//! round of answers: a full burst into the unknown is refused.

use std::time::{Duration, Instant};

use super::limits::Heard;

/// Of the server's own bucket so much is left unused (in seconds of its rate), so that a limit that falls, or requests that
/// arrive in another order, do not end in refusals.
const SLACK_S: f64 = 0.25;
/// Part of a bucket that the slack takes at most.
const SLACK_SHARE: f64 = 0.05;
/// Seconds of the rate that may be sent at once under limits nobody has told.
const OWN_BURST_S: f64 = 1.0;
/// Seconds of the rate a server's bucket holds: its limits are per minute.
const TOLD_BURST_S: f64 = 60.0;
/// What a server's bucket holds is sent at so many times its rate at most, in bursts of so many seconds: requests sent all
/// at once arrive in any order, and reports of what remains are then worth little.
const SPREAD: f64 = 2.0;
const SPREAD_BURST_S: f64 = 0.05;
/// After a refusal that names no time.
const FIRST_HOLD: Duration = Duration::from_millis(100);
const LONGEST_HOLD: Duration = Duration::from_secs(30);
/// What a refusal leaves of our own rate, and by how much it grows in a second of use.
const FALL: f64 = 0.75;
const GROWTH_PER_S: f64 = 0.02;
/// Our own rate in requests a minute falls no further.
const LEAST_RATE: f64 = 6.0;
/// The sent rate is measured over so long.
const MEASURED_S: f64 = 2.0;

/// Requests unanswered at once before anything is known, and how many more each answer without a word allows.
const FIRST_WINDOW: f64 = 4.0;
const WINDOW_GROWTH: f64 = 2.0;
/// Where an answer must come first, it is looked again so soon at the latest.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Limits per minute; none where nothing limits.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct PerMinute {
    pub(crate) requests: Option<f64>,
    pub(crate) tokens: Option<f64>,
}

/// Leave to send one request, to be handed back with what it came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Permit {
    at: Instant,
    tokens: f64,
    /// All requests and tokens sent up to and including this one.
    requests_sent: f64,
    tokens_sent: f64,
}

/// The pacing of one endpoint.
#[derive(Debug, Clone)]
pub(crate) struct Pacer {
    own: [Bucket; 2],
    told: [Bucket; 2],
    spread: [Bucket; 2],
    adaptive: Bucket,
    /// Requests and tokens sent so far.
    sent: [f64; 2],
    /// Requests whose outcome is known.
    returned: f64,
    /// Requests on their way at most, while the server has told nothing.
    window: f64,
    /// The latest request whose report was taken.
    reported: f64,
    held_until: Option<Instant>,
    hold: Duration,
    refused_at: Option<Instant>,
    /// Requests a second, smoothed.
    measured: f64,
    measured_at: Instant,
    refusals: u64,
}

/// What holds requests back, for people.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub(crate) struct PacerView {
    /// The limits that hold now, per minute: the operator's, the server's or our own, whichever is lowest.
    pub(crate) requests_per_minute: Option<f64>,
    pub(crate) tokens_per_minute: Option<f64>,
    /// Requests sent a minute, lately.
    pub(crate) sent_per_minute: f64,
    /// Requests answered by 429.
    pub(crate) refusals: u64,
    /// Nothing is sent for so long.
    pub(crate) held_s: f64,
}

/// A bucket that fills at a steady rate.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    per_minute: Option<f64>,
    burst_s: f64,
    level: f64,
    at: Instant,
}

impl Permit {
    /// Returns when it was taken.
    pub(crate) fn at(&self) -> Instant {
        self.at
    }

    /// Returns the tokens it was taken for.
    pub(crate) fn tokens(&self) -> f64 {
        self.tokens
    }
}

impl Bucket {
    fn new(per_minute: Option<f64>, burst_s: f64, now: Instant) -> Bucket {
        let mut bucket = Bucket { per_minute, burst_s, level: 0.0, at: now };
        bucket.level = bucket.capacity();
        bucket
    }

    fn rate(&self) -> Option<f64> {
        self.per_minute.map(|per_minute| per_minute / 60.0)
    }

    fn capacity(&self) -> f64 {
        self.rate().map_or(0.0, |rate| (rate * self.burst_s).max(1.0))
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        if let Some(rate) = self.rate() {
            self.level = (self.level + rate * passed).min(self.capacity());
        }
        self.at = self.at.max(now);
    }

    /// Returns how long until `amount` may be taken and `slack` is left; a bucket smaller than that need only be full.
    fn wait(&self, amount: f64, slack: f64) -> Duration {
        let Some(rate) = self.rate() else { return Duration::ZERO };
        let missing = (amount + slack).min(self.capacity()) - self.level;
        if missing <= 1e-9 {
            return Duration::ZERO;
        }
        // At a rate of 0 someone must raise it.
        Duration::try_from_secs_f64(missing / rate).unwrap_or(LONGEST_HOLD).min(LONGEST_HOLD)
    }

    fn slack(&self) -> f64 {
        self.rate().map_or(0.0, |rate| (rate * SLACK_S).min(self.capacity() * SLACK_SHARE))
    }

    fn change(&mut self, per_minute: Option<f64>, now: Instant) {
        self.fill(now);
        let was = self.per_minute.replace(per_minute.unwrap_or_default());
        self.per_minute = per_minute;
        self.level = if was.is_none() { self.capacity() } else { self.level.min(self.capacity()) };
    }
}

impl Pacer {
    /// Returns a pacer for limits set by the operator.
    pub(crate) fn new(own: PerMinute, now: Instant) -> Pacer {
        let bucket = |per_minute, burst_s| Bucket::new(per_minute, burst_s, now);
        Pacer {
            own: [bucket(own.requests, OWN_BURST_S), bucket(own.tokens, OWN_BURST_S)],
            told: [bucket(None, TOLD_BURST_S); 2],
            spread: [bucket(None, SPREAD_BURST_S); 2],
            adaptive: bucket(None, OWN_BURST_S),
            sent: [0.0; 2],
            returned: 0.0,
            window: FIRST_WINDOW,
            reported: 0.0,
            held_until: None,
            hold: FIRST_HOLD,
            refused_at: None,
            measured: 0.0,
            measured_at: now,
            refusals: 0,
        }
    }

    /// Changes the operator's limits.
    pub(crate) fn set(&mut self, own: PerMinute, now: Instant) {
        self.own[0].change(own.requests, now);
        self.own[1].change(own.tokens, now);
    }

    /// Returns the operator's limits.
    pub(crate) fn own(&self) -> PerMinute {
        PerMinute { requests: self.own[0].per_minute, tokens: self.own[1].per_minute }
    }

    /// Returns whether tokens are limited, so that it pays to count them.
    pub(crate) fn counts_tokens(&self) -> bool {
        self.own[1].per_minute.is_some() || self.told[1].per_minute.is_some()
    }

    /// Returns how long a request of so many tokens has to wait; zero if it may be sent now.
    pub(crate) fn wait(&mut self, tokens: f64, now: Instant) -> Duration {
        let is_unheard = self.told.iter().all(|bucket| bucket.per_minute.is_none());
        let is_open = self.sent[0] - self.returned < self.window;
        let mut wait = if is_unheard && !is_open { LOOK_AGAIN } else { Duration::ZERO };
        for (bucket, amount, is_told) in self.buckets(tokens) {
            bucket.fill(now);
            let slack = if is_told { bucket.slack() } else { 0.0 };
            wait = wait.max(bucket.wait(amount, slack));
        }
        match self.held_until {
            Some(until) if until > now => wait.max(until - now),
            _ => wait,
        }
    }

    /// Takes what a request needs; it is sent at once.
    pub(crate) fn take(&mut self, tokens: f64, now: Instant) -> Permit {
        for (bucket, amount, _) in self.buckets(tokens) {
            bucket.fill(now);
            bucket.level -= amount;
        }
        self.sent[0] += 1.0;
        self.sent[1] += tokens;
        let passed = now.saturating_duration_since(self.measured_at).as_secs_f64();
        self.measured = self.measured * (-passed / MEASURED_S).exp() + 1.0 / MEASURED_S;
        self.measured_at = now;
        Permit { at: now, tokens, requests_sent: self.sent[0], tokens_sent: self.sent[1] }
    }

    /// Notes an answer, the tokens it took, and what the server said about its limits.
    pub(crate) fn answered(&mut self, permit: Permit, used: f64, heard: &Heard, now: Instant) {
        self.returned += 1.0;
        self.window += WINDOW_GROWTH;
        // What was estimated too high is given back; too low, taken later.
        self.own[1].level += permit.tokens - used;
        self.report(permit, heard, now);
        if self.refused_at.is_some_and(|refused| permit.at > refused) {
            self.hold = FIRST_HOLD;
        }
        if let Some(per_minute) = self.adaptive.per_minute {
            self.adaptive.fill(now);
            let rate = per_minute / 60.0;
            // It grows while it is what limits.
            if self.adaptive.level < self.adaptive.capacity() / 2.0 {
                self.adaptive.per_minute = Some(per_minute * (1.0 + GROWTH_PER_S / rate.max(0.1)));
            }
        }
    }

    /// Notes a refusal for the rate (429).
    pub(crate) fn refused(&mut self, permit: Permit, heard: &Heard, now: Instant) {
        self.returned += 1.0;
        self.refusals += 1;
        self.own[1].level += permit.tokens;
        let had = self.told[0].level / self.told[0].capacity().max(1.0);
        self.report(permit, heard, now);
        // Refusals of requests that were sent before the last one came back are the same event.
        let is_new = self.refused_at.is_none_or(|refused| permit.at >= refused);
        let hold = match heard.retry_after {
            Some(named) => named,
            None if is_new => self.hold,
            None => Duration::ZERO,
        };
        let until = now + hold;
        self.held_until = Some(self.held_until.map_or(until, |held| held.max(until)));
        if !is_new {
            return;
        }
        self.refused_at = Some(now);
        self.hold = (self.hold * 2).min(LONGEST_HOLD);
        if self.told.iter().any(|bucket| bucket.per_minute.is_some()) {
            for bucket in &mut self.told {
                bucket.level = bucket.level.min(0.0);
            }
            if had > 0.2 && heard.retry_after.is_some() {
                // Much seemed to be left: the server's buckets hold less than a minute of their rate.
                for bucket in &mut self.told {
                    bucket.burst_s = (bucket.burst_s / 2.0).max(1.0);
                }
            }
        } else {
            self.adaptive.fill(now);
            let rate = 60.0 * self.measured;
            let rate = self.adaptive.per_minute.map_or(rate, |adaptive| adaptive.min(rate));
            self.adaptive.per_minute = Some((FALL * rate).max(LEAST_RATE));
            self.adaptive.level = 0.0;
        }
    }

    /// Notes a request that came to nothing, without a word of the server about its limits.
    pub(crate) fn failed(&mut self, permit: Permit) {
        self.returned += 1.0;
        self.own[1].level += permit.tokens;
    }

    /// Returns what holds now.
    pub(crate) fn view(&self, now: Instant) -> PacerView {
        let least = |limits: &[Option<f64>]| limits.iter().flatten().copied().reduce(f64::min);
        let passed = now.saturating_duration_since(self.measured_at).as_secs_f64();
        PacerView {
            requests_per_minute: least(&[self.own[0].per_minute, self.told[0].per_minute, self.adaptive.per_minute]),
            tokens_per_minute: least(&[self.own[1].per_minute, self.told[1].per_minute]),
            sent_per_minute: 60.0 * self.measured * (-passed / MEASURED_S).exp(),
            refusals: self.refusals,
            held_s: self.held_until.map_or(0.0, |until| until.saturating_duration_since(now).as_secs_f64()),
        }
    }

    /// Returns the buckets that limit, with what a request takes from each and whether the server told of it.
    fn buckets(&mut self, tokens: f64) -> impl Iterator<Item = (&mut Bucket, f64, bool)> {
        let [own_requests, own_tokens] = &mut self.own;
        let [told_requests, told_tokens] = &mut self.told;
        let [spread_requests, spread_tokens] = &mut self.spread;
        [
            (own_requests, 1.0, false),
            (own_tokens, tokens, false),
            (told_requests, 1.0, true),
            (told_tokens, tokens, true),
            (spread_requests, 1.0, false),
            (spread_tokens, tokens, false),
            (&mut self.adaptive, 1.0, false),
        ]
        .into_iter()
        .filter(|(bucket, ..)| bucket.per_minute.is_some())
    }

    fn report(&mut self, permit: Permit, heard: &Heard, now: Instant) {
        if permit.requests_sent <= self.reported {
            return;
        }
        let mut has_told = false;
        let since = [self.sent[0] - permit.requests_sent, self.sent[1] - permit.tokens_sent];
        let buckets = self.told.iter_mut().zip(&mut self.spread);
        for (((bucket, spread), told), since) in buckets.zip([heard.requests, heard.tokens]).zip(since) {
            let Some(told) = told else { continue };
            has_told = true;
            spread.per_minute = Some(SPREAD * told.limit);
            bucket.per_minute = Some(told.limit);
            let flowed = told.limit / 60.0 * now.saturating_duration_since(permit.at).as_secs_f64();
            bucket.level = (told.remaining + flowed - since).min(bucket.capacity());
            bucket.at = now;
        }
        if has_told {
            self.reported = permit.requests_sent;
            // The server's own word is better than our guess.
            self.adaptive.per_minute = None;
        }
    }
}

#[cfg(test)]
mod tests;
