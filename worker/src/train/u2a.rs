//! U2A (spec 4.8): weighted unlearning of every violating response.
//!
//! Sign convention. δ_i = ⟨g_J, g_i⟩ with J a loss (the summed preference loss of the gold pairs) and g_i the gradient of
//! the record's own unlearning loss, so a positive δ means that a descent step on the record lowers J too. The largest δ are
//! kept and ω grows with δ. The published code keeps the largest and lets the large ones shrink, which contradicts itself.

use clap::Args;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::objective::method::Method;

/// Options of the method u2a.
#[derive(Debug, Clone, Default, Args)]
pub struct U2aArgs {
    /// U2A: trains on the K records with the largest scores alone, each with weight 1 [default: all, with the weights of
    /// their scores].
    #[arg(long, value_name = "K", conflicts_with = "uniform_weights")]
    pub u2a_top: Option<usize>,
    /// U2A: cuts the run into T rounds; where a later one begins the records are scored again at the present adapter and the
    /// weights follow.
    #[arg(long, value_name = "T", default_value_t = 1, conflicts_with = "uniform_weights")]
    pub u2a_rounds: u64,
    /// U2A: how far the weights follow: ω becomes ω·exp(η·δ), with the sum that it had. δ is of summed log-probs, so it grows with
    /// the length of responses and the number of gold pairs [default: 0.01].
    #[arg(long, value_name = "ETA")]
    pub u2a_eta: Option<f64>,
    /// U2A: ends the run where a round has lowered J, the summed loss of the gold pairs, by less than this.
    #[arg(long, value_name = "LOSS")]
    pub u2a_tolerance: Option<f64>,
}

/// η of the published runs (spec 4.8).
const ETA: f64 = 1e-2;
/// More rounds than this are a mistake.
const MOST_ROUNDS: u64 = 100;

impl U2aArgs {
    /// Checks the options.
    ///
    /// # Errors
    /// A count of 0, or an option of U2A with another method.
    pub fn validate(&self, method: Method) -> Result<()> {
        let refuse = |problem: String| Err(Error::Config(problem));
        let steers = self.u2a_eta.is_some() || self.u2a_tolerance.is_some();
        if method != Method::U2a && (self.u2a_top.is_some() || self.u2a_rounds != 1 || steers) {
            let name = method.name();
            return refuse(format!(
                "--u2a-top, --u2a-rounds, --u2a-eta and --u2a-tolerance have an effect with --method u2a only; the method is \
                 {name}"
            ));
        }
        if self.u2a_top == Some(0) {
            return refuse("--u2a-top is 0; expected at least 1".into());
        }
        if !(1..=MOST_ROUNDS).contains(&self.u2a_rounds) {
            return refuse(format!("--u2a-rounds is {}; expected 1 to {MOST_ROUNDS}", self.u2a_rounds));
        }
        if self.u2a_rounds == 1 && steers {
            return refuse("--u2a-eta and --u2a-tolerance have an effect with --u2a-rounds above 1 only".into());
        }
        for (name, value) in [("--u2a-eta", self.u2a_eta), ("--u2a-tolerance", self.u2a_tolerance)] {
            if let Some(value) = value.filter(|value| !value.is_finite() || *value < 0.0) {
                return refuse(format!("{name} is {value}; expected a number from 0"));
            }
        }
        Ok(())
    }

    /// Checks the rounds against what they are rounds of: `total` updates, known beforehand unless the rate `is_held`, of an
    /// adapter unless the run is `full`.
    ///
    /// # Errors
    /// There is no room for the rounds, or nothing to score again.
    pub fn check_rounds(&self, total: u64, is_held: bool, full: bool) -> Result<()> {
        let rounds = self.u2a_rounds;
        let problem = if rounds == 1 {
            return Ok(());
        } else if full {
            format!("--u2a-rounds {rounds} needs an adapter, at which records are scored again; leave out --full")
        } else if is_held {
            format!(
                "--u2a-rounds {rounds} and --hold-until-loss: rounds are shares of a number of updates that is known \
                 beforehand; leave out one of the two"
            )
        } else if rounds > total {
            format!("--u2a-rounds is {rounds}, the run has {total} updates: every round needs one; lower it")
        } else {
            return Ok(());
        };
        Err(Error::Config(problem))
    }

    /// Returns whether what each round began with is written down.
    pub fn has_rounds(&self) -> bool {
        self.u2a_top.is_some() || self.u2a_rounds > 1
    }

    /// Returns η.
    pub fn eta(&self) -> f64 {
        self.u2a_eta.unwrap_or(ETA)
    }

    /// Returns the options that shape the result, by name.
    pub fn key(&self) -> Value {
        let (top, rounds) = (self.u2a_top, self.u2a_rounds);
        json!({"top": top, "rounds": rounds, "eta": self.eta(), "tolerance": self.u2a_tolerance})
    }
}

/// Returns weight 1 for the `count` largest of the scores δ and 0 for the others; of equal ones the first. With fewer scores
/// than that, all have weight 1.
pub fn top(scores: &[Option<f64>], count: usize) -> Vec<f64> {
    let mut largest: Vec<(usize, f64)> =
        scores.iter().enumerate().filter_map(|(at, score)| score.map(|score| (at, score))).collect();
    largest.sort_by(|(a, x), (b, y)| y.total_cmp(x).then(a.cmp(b)));
    let mut weights = vec![0.0; scores.len()];
    for (at, _) in largest.into_iter().take(count) {
        weights[at] = 1.0;
    }
    weights
}

/// Returns after which of `total` updates the second and later of `rounds` rounds begin: equal shares, to within an update.
pub fn beginnings(total: u64, rounds: u64) -> Vec<u64> {
    (1..rounds).map(|round| (u128::from(total) * u128::from(round) / u128::from(rounds)) as u64).collect()
}

/// Returns the weights of the next round: ω·exp(η·δ), then the sum that they had (the number of records where each began
/// with 1). A record without weight stays without.
pub fn reweighted(omegas: &[f64], deltas: &[f64], eta: f64) -> Vec<f64> {
    let sum: f64 = omegas.iter().sum();
    // The largest exponent becomes 0: a common factor goes with the sum, and nothing overflows.
    let most = deltas.iter().map(|delta| eta * delta).fold(f64::NEG_INFINITY, f64::max);
    let grown: Vec<f64> = omegas.iter().zip(deltas).map(|(omega, delta)| omega * (eta * delta - most).exp()).collect();
    let grown_sum: f64 = grown.iter().sum();
    if grown_sum == 0.0 {
        return omegas.to_vec();
    }
    grown.into_iter().map(|omega| omega * sum / grown_sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_scores_are_kept_and_of_equal_ones_the_first() {
        let scores = [Some(-1.0), None, Some(2.0), Some(0.5), Some(0.5), Some(-3.0)];
        assert_eq!(top(&scores, 2), [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]);
        assert_eq!(top(&scores, 4), [1.0, 0.0, 1.0, 1.0, 1.0, 0.0]);
        assert_eq!(top(&scores, 9), [1.0, 0.0, 1.0, 1.0, 1.0, 1.0], "never a record without a score");
    }

    #[test]
    fn weights_take_the_published_step_the_other_way_round() {
        // ω = (1, 2, 1), δ = (ln 2, 0, −ln 2), η = 1: (2, 2, ½), whose sum is made 4 again.
        let two = 2f64.ln();
        let found = reweighted(&[1.0, 2.0, 1.0], &[two, 0.0, -two], 1.0);
        for (found, expected) in found.iter().zip([16.0 / 9.0, 16.0 / 9.0, 4.0 / 9.0]) {
            assert!((found - expected).abs() < 1e-12, "{found} is not {expected}");
        }
        assert_eq!(reweighted(&[1.0, 1.0], &[3.0, -5.0], 0.0), [1.0, 1.0]);
        let far = reweighted(&[1.0, 1.0, 0.0], &[1e6, -1e6, 1e7], 1.0);
        assert!(far.iter().all(|omega| omega.is_finite()) && far[2] == 0.0, "{far:?}");
    }

    #[test]
    fn rounds_are_equal_shares_of_the_updates() {
        assert_eq!(beginnings(10, 3), [3, 6]);
        assert_eq!(beginnings(3, 3), [1, 2]);
        assert!(beginnings(10, 1).is_empty());
    }

    #[test]
    fn options_of_u2a_belong_to_u2a() {
        let one = U2aArgs { u2a_rounds: 1, ..U2aArgs::default() };
        let args = U2aArgs { u2a_top: Some(3), ..one.clone() };
        assert!(args.validate(Method::U2a).is_ok());
        assert!(args.validate(Method::Npo).unwrap_err().to_string().contains("--u2a-top"));
        assert!(U2aArgs { u2a_top: Some(0), ..one.clone() }.validate(Method::U2a).is_err());
        assert!(one.validate(Method::Trace).is_ok());
        assert!(U2aArgs { u2a_eta: Some(f64::NAN), u2a_rounds: 2, ..one }.validate(Method::U2a).is_err());
    }
}
