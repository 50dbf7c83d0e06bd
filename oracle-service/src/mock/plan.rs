//! The plan file (TOML): how fast the server answers, what it allows, and which requests fail.

use std::path::Path;

use serde::Deserialize;
use shared::{Error, Result};

use super::faults::{Faults, Rule};
use super::latency::Latency;
use super::limits::{Limits, Step};

/// A plan. All times are the mock's own.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Plan {
    /// Of everything that is drawn.
    pub(crate) seed: u64,
    /// Send `x-ratelimit-*`, and `retry-after` with the refusals of the limits.
    pub(crate) headers: bool,
    /// How many seconds of a limit can be used at once.
    pub(crate) burst_s: f64,
    /// After so long the limits' schedule begins again.
    pub(crate) limits_repeat_s: Option<f64>,
    /// How far the server's dates are off.
    pub(crate) clock_skew_s: i64,
    /// Share of the questions whose verdict the model is unsure of: its answer may be either, by the request's seed.
    pub(crate) unsure_share: f64,
    /// After so long a reply that hangs is cut; none: it hangs for ever.
    pub(crate) hang_s: Option<f64>,
    pub(crate) limits: Vec<Step>,
    pub(crate) latency: Latency,
    pub(crate) batches: BatchPace,
    pub(crate) fault: Vec<Rule>,
}

/// How a batch goes on.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct BatchPace {
    pub(crate) validate_s: f64,
    /// From the first line's answer to the last's.
    pub(crate) run_s: f64,
    pub(crate) finalize_s: f64,
    /// After so long a batch expires.
    pub(crate) window_s: f64,
    /// Until a batch that is to be cancelled is.
    pub(crate) cancel_s: f64,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan {
            seed: 0,
            headers: true,
            burst_s: 60.0,
            limits_repeat_s: None,
            clock_skew_s: 0,
            unsure_share: 0.0,
            hang_s: None,
            limits: Vec::new(),
            latency: Latency::default(),
            batches: BatchPace::default(),
            fault: Vec::new(),
        }
    }
}

impl Default for BatchPace {
    fn default() -> BatchPace {
        BatchPace { validate_s: 0.0, run_s: 0.0, finalize_s: 0.0, window_s: 86_400.0, cancel_s: 0.0 }
    }
}

impl Plan {
    /// Reads a plan.
    ///
    /// # Errors
    /// The file cannot be read, or makes no sense.
    pub(super) fn load(file: &Path) -> Result<Plan> {
        let text = std::fs::read_to_string(file).map_err(|source| Error::io("read", file, source))?;
        let plan: Plan = toml::from_str(&text).map_err(|error| Error::file(file, error.message().to_owned()))?;
        plan.check().map_err(|problem| Error::file(file, problem))?;
        Ok(plan)
    }

    /// Checks what the format alone does not say.
    ///
    /// # Errors
    /// What makes no sense, naming the key.
    pub(crate) fn check(&self) -> std::result::Result<(), String> {
        if !(0.0..=1.0).contains(&self.unsure_share) {
            return Err("unsure_share must be from 0 to 1".into());
        }
        if self.hang_s.is_some_and(|s| !(0.0..=1e9).contains(&s)) {
            return Err("hang_s must be a number from 0".into());
        }
        let BatchPace { validate_s, run_s, finalize_s, window_s, cancel_s } = self.batches;
        if [validate_s, run_s, finalize_s, window_s, cancel_s].iter().any(|s| !(0.0..=1e9).contains(s)) {
            return Err("batches: times must be numbers from 0".into());
        }
        let problem = Limits::problem(&self.limits, self.limits_repeat_s, self.burst_s);
        match problem.or_else(|| self.latency.problem()) {
            Some(problem) => Err(problem),
            None => Faults::new(&self.fault, self.seed).map(|_| ()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Plan> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("plan.toml");
        std::fs::write(&file, text).unwrap();
        Plan::load(&file)
    }

    #[test]
    fn a_whole_plan_is_read() {
        let plan = load(
            "seed = 3\nheaders = false\nburst_s = 1\nlimits_repeat_s = 20\nclock_skew_s = -90\nunsure_share = 0.1\n\
             [[limits]]\nat_s = 0\nrpm = 600\ntpm = 90000\n[[limits]]\nat_s = 10\nrpm = 300\n\
             [latency]\nmedian_ms = 800\np99_ms = 4000\n[batches]\nvalidate_s = 2\nrun_s = 60\n\
             [[fault]]\nrequest = 1\nwhat = \"429\"\nretry_after_s = 2\n[[fault]]\nof = \"line\"\nshare = 0.1\nwhat = \"missing\"\n",
        );
        let plan = plan.unwrap();
        assert_eq!((plan.limits.len(), plan.fault.len(), plan.headers), (2, 2, false));
        assert_eq!((plan.batches.run_s, plan.batches.window_s), (60.0, 86_400.0));
    }

    #[test]
    fn nonsense_is_refused_by_file_and_key() {
        for (text, named) in [
            ("unsure_share = 2", "unsure_share"),
            ("speling = 1", "speling"),
            ("hang_s = -1", "hang_s"),
            ("[batches]\nrun_s = -1", "batches"),
            ("[latency]\nmedian_ms = -5", "latency"),
            ("[[limits]]\nat_s = 5\nrpm = 1", "limits 0"),
            ("[[fault]]\nrequest = 1\nwhat = \"rain\"", "rain"),
        ] {
            let error = load(text).unwrap_err().to_string();
            assert!(error.contains("plan.toml") && error.contains(named), "{text}: {error}");
        }
    }
}
