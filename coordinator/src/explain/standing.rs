//! Where a record stands among all that were scored: score, weight, rank. Pure but for reading the file.

use std::path::Path;

use serde::Serialize;
use shared::record::Record;
use shared::{Error, Result, input};

use crate::run_file::Method;

/// A record's score among the others'.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Standing {
    /// ⟨g_J, g_i⟩.
    pub(super) raw_score: f64,
    /// The weight in training.
    pub(super) weight: f64,
    /// Its score is 0 or negative, so the weight is 0.
    pub(super) is_clamped: bool,
    /// 1 for the largest weight; clamped ones follow in the order of their scores, equal scores share a rank.
    pub(super) rank: usize,
    /// Records that were scored.
    pub(super) scored: usize,
    /// How many of them are clamped.
    pub(super) clamped: usize,
}

/// Returns the standing of the record at a position of a file of weighted records; none where the method gives it no score.
///
/// # Errors
/// The file cannot be read, or a record in it lacks its score.
pub(super) fn of(file: &Path, method: Method, position: usize) -> Result<Option<Standing>> {
    let mut scores = Vec::new();
    let mut own = None;
    input::for_each(file, |index, record: Record| {
        if method.scores(&record) {
            let missing = |field| Error::field(file, index, field, "is missing");
            let raw = record.raw_score.ok_or_else(|| missing("raw_score"))?;
            let weight = record.impact_score.ok_or_else(|| missing("impact_score"))?;
            if index == position {
                own = Some((raw, weight));
            }
            scores.push(raw);
        }
        Ok(())
    })?;
    Ok(own.map(|(raw, weight)| standing(raw, weight, &scores)))
}

/// Weights grow with scores, so the scores rank them.
fn standing(raw_score: f64, weight: f64, scores: &[f64]) -> Standing {
    Standing {
        raw_score,
        weight,
        is_clamped: raw_score <= 0.0,
        rank: 1 + scores.iter().filter(|score| **score > raw_score).count(),
        scored: scores.len(),
        clamped: scores.iter().filter(|score| **score <= 0.0).count(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_weight_ranks_first_and_equal_ones_share_a_rank() {
        let scores = [0.5, -1.0, 2.0, 0.5, 0.0];
        let rank = |score: f64| standing(score, 0.0, &scores).rank;
        assert_eq!(scores.map(rank), [2, 5, 1, 2, 4]);
        let clamped = standing(0.0, 0.0, &scores);
        assert_eq!((clamped.is_clamped, clamped.clamped, clamped.scored), (true, 2, 5));
        assert!(!standing(0.5, 1.0, &scores).is_clamped);
    }
}
