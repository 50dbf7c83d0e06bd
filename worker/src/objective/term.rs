//! What one record's term comes to: its loss, its slopes and its curvature as functions of summed log-probs.

use super::loss;
use super::method::Term;
use super::step::Settings;

/// Loss of one term and its derivatives with respect to the summed log-probs of its parts.
#[derive(Debug, Clone, PartialEq)]
pub struct TermLoss {
    /// ℓ without the record's weight.
    pub value: f64,
    /// dℓ/ds of each part, in the term's order.
    pub slopes: Vec<f64>,
    /// Δ, for preference terms.
    pub delta: Option<f64>,
}

/// Returns loss and slopes of a term that depends on log-probs s and s_ref; `scored` are the parts' token counts.
///
/// # Panics
/// For [`Term::Anchor`], which depends on distributions.
pub fn term_loss(term: Term, settings: &Settings, s: &[f64], s_ref: &[f64], scored: &[usize]) -> TermLoss {
    match term {
        Term::Prefer(..) => {
            let delta = (s[0] - s_ref[0]) - (s[1] - s_ref[1]);
            let l = loss::preference(settings.loss, settings.beta, settings.epsilon, delta);
            TermLoss { value: l.value, slopes: vec![l.slope, -l.slope], delta: Some(delta) }
        }
        Term::PunishOne(_) | Term::PunishBoth => {
            let terms: Vec<_> = s.iter().zip(s_ref).map(|(s, r)| loss::punish(settings.beta, s - r)).collect();
            TermLoss {
                value: terms.iter().map(|l| l.value).sum(),
                slopes: terms.iter().map(|l| l.slope).collect(),
                delta: None,
            }
        }
        Term::Imitate => {
            let count = scored[0].max(1) as f64;
            TermLoss { value: -s[0] / count, slopes: vec![-1.0 / count], delta: None }
        }
        Term::Anchor => unreachable!("the anchor is a KL, not a function of log-probs"),
    }
}

/// Returns the second derivative of a term's loss with respect to s as a sum of c·d·dᵀ: pairs of c ≥ 0 and d, in the
/// term's order.
///
/// # Panics
/// As [`term_loss`].
pub fn term_curvature(term: Term, settings: &Settings, s: &[f64], s_ref: &[f64]) -> Vec<(f64, Vec<f64>)> {
    match term {
        Term::Prefer(..) => {
            let delta = (s[0] - s_ref[0]) - (s[1] - s_ref[1]);
            let l = loss::preference(settings.loss, settings.beta, settings.epsilon, delta);
            vec![(l.curvature, vec![1.0, -1.0])]
        }
        Term::PunishOne(_) | Term::PunishBoth => {
            let one = |at: usize| (0..s.len()).map(|other| f64::from(u8::from(other == at))).collect();
            let curvature = |at: usize| loss::punish(settings.beta, s[at] - s_ref[at]).curvature;
            (0..s.len()).map(|at| (curvature(at), one(at))).collect()
        }
        Term::Imitate => Vec::new(),
        Term::Anchor => unreachable!("the anchor is a KL, not a function of log-probs"),
    }
}
