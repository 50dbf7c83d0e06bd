//! What the curvature of the conflict records' loss did to the direction that records are scored along.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// How (H + γI)·v = g_J was solved, and what the curvature H does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Records that H is of.
    pub records: usize,
    /// γ
    pub gamma: f64,
    /// Products with H that the solver needed.
    pub iterations: usize,
    /// ‖g_J − (H + γI)v‖ / ‖g_J‖, computed of v itself: rounding makes it larger than what the solver's recurrence believes.
    pub residual: f64,
    /// The residual is as small as was asked for, to a factor of two.
    pub converged: bool,
    /// The curvature along g_J: g_Jᵀ·H·g_J / ‖g_J‖². A γ far above it makes v point where g_J does.
    pub along_gold: f64,
    /// Cosine of v and g_J.
    pub cosine: f64,
}

impl Report {
    /// Returns it in words, with what to do where the solver did not get where it should.
    pub fn told(&self) -> String {
        let Report { records, gamma, iterations, residual, along_gold, cosine, .. } = self;
        let advice = match self.converged {
            true => "",
            false => {
                ". The residual is above --cg-tolerance: raise --cg-iterations, --cg-rank or --lamda, or compute in f32"
            }
        };
        format!(
            "curvature of {records} records: {along_gold:.3e} along the gold gradient, damping {gamma:.3e}; solved in \
             {iterations} iterations to a residual of {residual:.1e}; cosine of the direction with the gold gradient \
             {cosine:.4}{advice}"
        )
    }
}

/// Returns where the reports go that belong to a file of directions, one a direction.
pub fn report_file(directions: &Path) -> PathBuf {
    directions.with_extension("json")
}
