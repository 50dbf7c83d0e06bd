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
}

impl U2aArgs {
    /// Checks the options.
    ///
    /// # Errors
    /// A count of 0, or an option of U2A with another method.
    pub fn validate(&self, method: Method) -> Result<()> {
        if method != Method::U2a && self.u2a_top.is_some() {
            let name = method.name();
            return Err(Error::Config(format!("--u2a-top has an effect with --method u2a only; the method is {name}")));
        }
        if self.u2a_top == Some(0) {
            return Err(Error::Config("--u2a-top is 0; expected at least 1".into()));
        }
        Ok(())
    }

    /// Returns the options that shape the result, by name.
    pub fn key(&self) -> Value {
        json!({"top": self.u2a_top})
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
    fn options_of_u2a_belong_to_u2a() {
        let args = U2aArgs { u2a_top: Some(3) };
        assert!(args.validate(Method::U2a).is_ok());
        assert!(args.validate(Method::Npo).unwrap_err().to_string().contains("--u2a-top"));
        assert!(U2aArgs { u2a_top: Some(0) }.validate(Method::U2a).is_err());
        assert!(U2aArgs::default().validate(Method::Trace).is_ok());
    }
}
