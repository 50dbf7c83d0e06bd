//! Requests and tokens per minute, enforced, and moving on a schedule: pure, time is an argument.
//!
//! A limit is a bucket that fills evenly and holds what `burst_s` seconds bring; it starts full. What a client could
//! have used since its first request is counted as well, so that its pacing can be measured.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The limits from some time on; a limit that is not named is none.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Step {
    #[serde(default)]
    pub(crate) at_s: f64,
    /// Requests per minute.
    pub(crate) rpm: Option<f64>,
    /// Tokens per minute.
    pub(crate) tpm: Option<f64>,
}

/// The limits and how they were used.
#[derive(Debug)]
pub(super) struct Limits {
    steps: Vec<Step>,
    /// After so long the schedule begins again; none: its last step stays.
    repeat_s: Option<f64>,
    burst_s: f64,
    /// How far time has been counted, in seconds.
    at_s: f64,
    first_s: Option<f64>,
    requests: Bucket,
    tokens: Bucket,
    refused: u64,
}

/// One limit.
#[derive(Debug, Default)]
struct Bucket {
    /// Per second; none: no limit.
    rate: Option<f64>,
    capacity: f64,
    level: f64,
    /// What came in since the first request.
    allowed: f64,
    granted: f64,
}

/// Where a client stands with one limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Standing {
    /// Per minute.
    pub(super) limit: f64,
    pub(super) remaining: u64,
    /// Until the whole burst is there again.
    pub(super) reset: Duration,
}

/// What asking for a place came to.
#[derive(Debug, PartialEq)]
pub(super) struct Taken {
    pub(super) refused: Option<Refused>,
    pub(super) requests: Option<Standing>,
    pub(super) tokens: Option<Standing>,
}

/// A request that is over a limit.
#[derive(Debug, PartialEq)]
pub(super) struct Refused {
    /// The limit, by the API's name: `requests` or `tokens`.
    pub(super) limit: &'static str,
    /// When it would have been granted.
    pub(super) wait: Duration,
}

/// How the limits were used; shares are of what came in from the first request on.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Use {
    pub(crate) seconds: f64,
    pub(crate) refused: u64,
    pub(crate) requests: Option<UseOf>,
    pub(crate) tokens: Option<UseOf>,
}

/// How one limit was used.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct UseOf {
    pub(crate) granted: f64,
    pub(crate) allowed: f64,
    /// Over 1 while a burst is used up.
    pub(crate) used_share: f64,
}

impl Limits {
    /// Returns limits on a schedule; without a step there is none.
    pub(super) fn new(steps: Vec<Step>, repeat_s: Option<f64>, burst_s: f64) -> Limits {
        let mut limits = Limits {
            steps,
            repeat_s,
            burst_s,
            at_s: 0.0,
            first_s: None,
            requests: Bucket::default(),
            tokens: Bucket::default(),
            refused: 0,
        };
        limits.enter(0.0);
        limits.requests.level = limits.requests.capacity;
        limits.tokens.level = limits.tokens.capacity;
        limits
    }

    /// Returns what is wrong with a schedule.
    pub(super) fn problem(steps: &[Step], repeat_s: Option<f64>, burst_s: f64) -> Option<String> {
        let positive = |number: f64| number.is_finite() && number > 0.0;
        if !positive(burst_s) {
            return Some("burst_s must be above 0".into());
        }
        for (index, step) in steps.iter().enumerate() {
            if [step.rpm, step.tpm].into_iter().flatten().any(|rate| !positive(rate)) {
                return Some(format!("limits {index}: rpm and tpm must be above 0"));
            }
            let before = if index == 0 { 0.0 } else { steps[index - 1].at_s };
            if !step.at_s.is_finite() || if index == 0 { step.at_s != 0.0 } else { step.at_s <= before } {
                return Some(format!("limits {index}: at_s must begin at 0 and rise"));
            }
        }
        let last = steps.last().map_or(0.0, |step| step.at_s);
        match repeat_s {
            Some(repeat) if !(repeat.is_finite() && repeat > last) => {
                Some("limits_repeat_s must be beyond the last step's at_s".into())
            }
            _ => None,
        }
    }

    /// Asks for a place for one request of so many tokens.
    pub(super) fn take(&mut self, now: Duration, tokens: u64) -> Taken {
        let now_s = now.as_secs_f64();
        self.advance(now_s);
        self.first_s.get_or_insert(now_s);
        let tokens = tokens as f64;
        let (request_wait, token_wait) = (self.requests.wait(1.0), self.tokens.wait(tokens));
        let refused = (request_wait > 0.0 || token_wait > 0.0).then(|| {
            self.refused += 1;
            let limit = if request_wait >= token_wait { "requests" } else { "tokens" };
            Refused { limit, wait: Duration::from_secs_f64(request_wait.max(token_wait)) }
        });
        if refused.is_none() {
            self.requests.grant(1.0);
            self.tokens.grant(tokens);
        }
        Taken { refused, requests: self.requests.standing(), tokens: self.tokens.standing() }
    }

    /// Returns where a client stands, without asking for anything.
    pub(super) fn look(&mut self, now: Duration) -> Taken {
        self.advance(now.as_secs_f64());
        Taken { refused: None, requests: self.requests.standing(), tokens: self.tokens.standing() }
    }

    /// Returns how the limits were used up to the last request.
    pub(super) fn usage(&self) -> Use {
        let seconds = self.first_s.map_or(0.0, |first| self.at_s - first);
        Use { seconds, refused: self.refused, requests: self.requests.usage(), tokens: self.tokens.usage() }
    }

    fn advance(&mut self, now_s: f64) {
        while self.at_s < now_s {
            let until = self.next_step(self.at_s).map_or(now_s, |next| next.min(now_s));
            let counted = self.first_s.is_some();
            self.requests.fill(until - self.at_s, counted);
            self.tokens.fill(until - self.at_s, counted);
            self.at_s = until;
            self.enter(until);
        }
    }

    /// Takes over the rates that hold at a time.
    fn enter(&mut self, at_s: f64) {
        let within = at_s - self.round(at_s);
        let Some(step) = self.steps.iter().rev().find(|step| step.at_s <= within + 1e-9) else { return };
        let (rpm, tpm) = (step.rpm, step.tpm);
        self.requests.set(rpm, self.burst_s);
        self.tokens.set(tpm, self.burst_s);
    }

    /// Returns when the schedule began the last time.
    fn round(&self, at_s: f64) -> f64 {
        self.repeat_s.map_or(0.0, |repeat| (at_s / repeat + 1e-9).floor() * repeat)
    }

    /// Returns when the rates change next after a time.
    fn next_step(&self, at_s: f64) -> Option<f64> {
        let round = self.round(at_s);
        let coming = self.steps.iter().map(|step| round + step.at_s).find(|at| *at > at_s + 1e-9);
        coming.or_else(|| self.repeat_s.map(|repeat| round + repeat))
    }
}

impl Bucket {
    fn set(&mut self, per_minute: Option<f64>, burst_s: f64) {
        let before = self.rate;
        self.rate = per_minute.map(|rate| rate / 60.0);
        self.capacity = self.rate.map_or(0.0, |rate| (rate * burst_s).max(1.0));
        // A limit that was none before begins full.
        self.level = if before.is_none() { self.capacity } else { self.level.min(self.capacity) };
    }

    fn fill(&mut self, seconds: f64, counted: bool) {
        let brought = self.rate.unwrap_or(0.0) * seconds;
        self.level = (self.level + brought).min(self.capacity);
        if counted {
            self.allowed += brought;
        }
    }

    /// Returns after how many seconds so much would be granted. What is more than a whole burst waits for a whole one.
    fn wait(&self, amount: f64) -> f64 {
        let lacking = amount.min(self.capacity) - self.level;
        match self.rate {
            // What rounding leaves of an exact wait is no reason to refuse.
            Some(rate) if lacking > 1e-6 => lacking / rate,
            _ => 0.0,
        }
    }

    fn grant(&mut self, amount: f64) {
        self.granted += amount;
        if self.rate.is_some() {
            self.level -= amount;
        }
    }

    fn standing(&self) -> Option<Standing> {
        self.rate.map(|rate| Standing {
            limit: rate * 60.0,
            remaining: self.level.max(0.0) as u64,
            reset: Duration::from_secs_f64(((self.capacity - self.level) / rate).max(0.0)),
        })
    }

    fn usage(&self) -> Option<UseOf> {
        (self.allowed > 0.0).then(|| UseOf {
            granted: self.granted,
            allowed: self.allowed,
            used_share: self.granted / self.allowed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(at_s: f64, rpm: f64) -> Step {
        Step { at_s, rpm: Some(rpm), tpm: None }
    }

    fn at(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_request_over_the_limit_is_refused_with_its_wait() {
        let mut limits = Limits::new(vec![step(0.0, 60.0)], None, 2.0);
        assert_eq!(limits.take(at(0.0), 1).refused, None);
        let second = limits.take(at(0.0), 1);
        assert_eq!(second.requests.unwrap(), Standing { limit: 60.0, remaining: 0, reset: at(2.0) });
        let third = limits.take(at(0.5), 1).refused.unwrap();
        assert_eq!(third.limit, "requests");
        assert!((third.wait.as_secs_f64() - 0.5).abs() < 1e-5, "{third:?}");
        assert_eq!(limits.take(at(0.5) + third.wait, 1).refused, None, "after its wait it is granted");
        assert_eq!(limits.usage().refused, 1);
    }

    #[test]
    fn tokens_are_limited_too_and_one_that_is_too_large_waits_for_a_whole_burst() {
        let mut limits = Limits::new(vec![Step { at_s: 0.0, rpm: None, tpm: Some(600.0) }], None, 1.0);
        assert_eq!(limits.take(at(0.0), 9).refused, None);
        let refused = limits.take(at(0.0), 100).refused.unwrap();
        assert_eq!(refused.limit, "tokens");
        assert!((refused.wait.as_secs_f64() - 0.9).abs() < 1e-5, "{refused:?}");
        assert_eq!(limits.take(at(0.9), 100).refused, None);
        assert!(limits.take(at(5.0), 10).refused.is_some(), "the large one is paid off first");
    }

    #[test]
    fn limits_move_on_their_schedule_and_begin_again() {
        let mut limits = Limits::new(vec![step(0.0, 600.0), step(10.0, 60.0)], Some(20.0), 1.0);
        let mut granted = Vec::new();
        for window in 0..4 {
            let before = limits.requests.granted;
            for tick in 0..1000 {
                limits.take(at(f64::from(window) * 10.0 + f64::from(tick) * 0.01), 1);
            }
            granted.push(limits.requests.granted - before);
        }
        for (window, expected) in [109.0, 10.0, 100.0, 10.0].into_iter().enumerate() {
            assert!((granted[window] - expected).abs() <= 2.0, "window {window}: {granted:?}");
        }
        let used = limits.usage();
        assert!((used.seconds - 39.99).abs() < 1e-6, "{used:?}");
        let requests = used.requests.unwrap();
        assert!((requests.allowed - 220.0).abs() < 1.0 && requests.used_share > 0.98, "{requests:?}");
    }

    #[test]
    fn a_client_that_waits_wastes_what_it_was_allowed() {
        let mut limits = Limits::new(vec![step(0.0, 60.0)], None, 1.0);
        limits.take(at(100.0), 1);
        limits.take(at(110.0), 1);
        let used = limits.usage();
        assert_eq!(
            (used.seconds, used.requests.unwrap().used_share),
            (10.0, 0.2),
            "time before the first is not counted"
        );
    }

    #[test]
    fn schedules_that_make_no_sense_are_refused() {
        let problem = |steps: &[Step], repeat| Limits::problem(steps, repeat, 1.0);
        assert_eq!(problem(&[step(0.0, 1.0), step(10.0, 2.0)], Some(20.0)), None);
        assert!(problem(&[step(1.0, 1.0)], None).unwrap().contains("at_s"));
        assert!(problem(&[step(0.0, 1.0), step(0.0, 2.0)], None).unwrap().contains("limits 1"));
        assert!(problem(&[step(0.0, 0.0)], None).unwrap().contains("rpm"));
        assert!(problem(&[step(0.0, 1.0), step(10.0, 2.0)], Some(10.0)).unwrap().contains("limits_repeat_s"));
        assert!(Limits::problem(&[], None, 0.0).unwrap().contains("burst_s"));
    }
}
