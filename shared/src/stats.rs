//! Shares with their uncertainty, as reports state them.

use serde::{Deserialize, Serialize};

/// Standard normal quantile of a two-sided 95 % interval.
const Z: f64 = 1.959963984540054;

/// A share in percent with its 95 % Wilson interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The share, 0–100.
    pub value: f64,
    /// Lower end of the interval, 0–100.
    pub low: f64,
    /// Upper end of the interval, 0–100.
    pub high: f64,
    /// How many cases were measured.
    pub n: u64,
}

impl Measured {
    /// Returns the share of `successes` among `n` cases, `None` where nothing was measured.
    ///
    /// # Panics
    /// When there are more successes than cases.
    pub fn share(successes: u64, n: u64) -> Option<Self> {
        assert!(successes <= n, "{successes} successes in {n} cases");
        if n == 0 {
            return None;
        }
        let cases = n as f64;
        let share = successes as f64 / cases;
        let spread = 1.0 + Z * Z / cases;
        let centre = (share + Z * Z / (2.0 * cases)) / spread;
        let half = Z / spread * (share * (1.0 - share) / cases + Z * Z / (4.0 * cases * cases)).sqrt();
        // At the ends the interval touches 0 or 100 exactly; rounding must not push it beyond or away.
        let low = if successes == 0 { 0.0 } else { 100.0 * (centre - half) };
        let high = if successes == n { 100.0 } else { 100.0 * (centre + half) };
        Some(Self { value: 100.0 * share, low, high, n })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-9, "{found} instead of {expected}");
    }

    #[test]
    fn the_interval_solves_wilsons_equation() {
        // Both ends p satisfy (share − p)² = z² p (1 − p) / n.
        for (successes, n) in [(7, 10), (1, 3), (499, 500), (50, 100)] {
            let measured = Measured::share(successes, n).unwrap();
            let share = successes as f64 / n as f64;
            assert_close(measured.value, 100.0 * share);
            for end in [measured.low / 100.0, measured.high / 100.0] {
                assert_close((share - end).powi(2), Z * Z * end * (1.0 - end) / n as f64);
            }
            assert!(measured.low < measured.value && measured.value < measured.high);
        }
    }

    #[test]
    fn all_and_none_have_one_sided_intervals() {
        let none = Measured::share(0, 10).unwrap();
        assert_eq!((none.value, none.low), (0.0, 0.0));
        assert_close(none.high, 27.75327998628892);
        let all = Measured::share(10, 10).unwrap();
        assert_eq!((all.value, all.high), (100.0, 100.0));
        assert_close(all.low, 100.0 - none.high);
    }

    #[test]
    fn nothing_measured_is_no_value() {
        assert_eq!(Measured::share(0, 0), None);
    }
}
