//! How long an answer takes: a log-normal distribution, drawn by the request's number.

use std::time::Duration;

use serde::Deserialize;
use shared::keyed_random::KeyedRandom;

/// The 99th percentile of the standard normal distribution.
const NORMAL_99: f64 = 2.326_347_9;

/// A distribution of latencies, in the mock's time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Latency {
    pub(crate) median_ms: f64,
    /// One answer in a hundred takes longer; without it all take the same time.
    pub(crate) p99_ms: Option<f64>,
    /// Added for every token of the answer.
    #[serde(default)]
    pub(crate) per_token_ms: f64,
}

impl Latency {
    /// Returns what is wrong with it.
    pub(super) fn problem(&self) -> Option<String> {
        let p99 = self.p99_ms.unwrap_or(self.median_ms);
        let numbers = [self.median_ms, p99, self.per_token_ms];
        if numbers.iter().any(|number| !number.is_finite() || *number < 0.0) {
            return Some("latency: times must be numbers from 0".into());
        }
        (p99 < self.median_ms).then(|| "latency: p99_ms is below median_ms".into())
    }

    /// Draws the time of the answer number `number`.
    pub(crate) fn draw(&self, seed: u64, number: u64, tokens: u64) -> Duration {
        let spread = match self.p99_ms {
            Some(p99) if self.median_ms > 0.0 => {
                let sigma = (p99 / self.median_ms).ln() / NORMAL_99;
                (sigma * KeyedRandom::new(&[seed, 0x1a7e, number]).normal()).exp()
            }
            _ => 1.0,
        };
        Duration::from_secs_f64((self.median_ms * spread + self.per_token_ms * tokens as f64) / 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quantiles_are_those_asked_for() {
        let latency = Latency { median_ms: 800.0, p99_ms: Some(4000.0), per_token_ms: 0.0 };
        let mut drawn: Vec<f64> = (0..10_000).map(|n| latency.draw(1, n, 9).as_secs_f64() * 1e3).collect();
        drawn.sort_by(f64::total_cmp);
        assert!((drawn[5000] / 800.0 - 1.0).abs() < 0.05, "{}", drawn[5000]);
        assert!((drawn[9900] / 4000.0 - 1.0).abs() < 0.1, "{}", drawn[9900]);
        assert_eq!(latency.draw(1, 5, 0), latency.draw(1, 5, 0));
        assert_ne!(latency.draw(1, 5, 0), latency.draw(2, 5, 0));
        let fixed = Latency { median_ms: 20.0, p99_ms: None, per_token_ms: 2.0 };
        assert_eq!(fixed.draw(1, 1, 5), Duration::from_millis(30));
    }

    #[test]
    fn impossible_times_are_refused() {
        let of = |median_ms, p99_ms| Latency { median_ms, p99_ms, per_token_ms: 0.0 }.problem();
        assert_eq!(of(10.0, Some(10.0)), None);
        assert!(of(10.0, Some(5.0)).unwrap().contains("p99_ms"));
        assert!(of(-1.0, None).is_some() && of(f64::NAN, None).is_some());
    }
}
