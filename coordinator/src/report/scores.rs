//! What the impact scores of a variant look like: histogram, share clamped, mean weight by category. Pure.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use shared::record::{Category, Record};
use shared::{Error, Result};

const BINS: usize = 20;

#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Scores {
    /// Of the raw scores ⟨g_J, g_i⟩ of all conflict records.
    pub(super) histogram: Histogram,
    /// Percent of the conflict records whose raw score is not positive, so that their weight is 0.
    pub(super) clamped_share: f64,
    /// Mean weight of the records of each conflict category.
    pub(super) mean_weight: BTreeMap<&'static str, f64>,
}

/// Counts of equally wide bins: bin i holds edges[i] ≤ score < edges[i + 1], the last its upper edge too.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Histogram {
    pub(super) edges: Vec<f64>,
    pub(super) counts: Vec<usize>,
}

pub(super) fn of(records: &[Record], file: &Path) -> Result<Scores> {
    let mut raw = Vec::new();
    let mut weights: BTreeMap<&str, (f64, usize)> = BTreeMap::new();
    for (index, record) in records.iter().enumerate() {
        let wanted = |field| Error::field(file, index, field, "is missing; score the records first");
        let category = record.category.ok_or_else(|| wanted("category"))?;
        if category == Category::Retain {
            continue;
        }
        raw.push(record.raw_score.ok_or_else(|| wanted("raw_score"))?);
        let weight = record.impact_score.ok_or_else(|| wanted("impact_score"))?;
        let (sum, count) = weights.entry(category.name()).or_default();
        *sum += weight;
        *count += 1;
    }
    if raw.is_empty() {
        return Err(Error::file(file, "holds no INVERT and no PUNISH record, so there are no scores to report"));
    }
    let clamped = raw.iter().filter(|score| **score <= 0.0).count();
    Ok(Scores {
        clamped_share: 100.0 * clamped as f64 / raw.len() as f64,
        histogram: histogram(&raw),
        mean_weight: weights.into_iter().map(|(name, (sum, count))| (name, sum / count as f64)).collect(),
    })
}

/// Counts finite, at least one, scores; where all are equal they fill the first bin of width 1.
fn histogram(scores: &[f64]) -> Histogram {
    let low = scores.iter().copied().fold(f64::INFINITY, f64::min);
    let high = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let width = if high > low { (high - low) / BINS as f64 } else { 1.0 };
    let mut counts = vec![0; BINS];
    for score in scores {
        let bin = ((score - low) / width) as usize;
        counts[bin.min(BINS - 1)] += 1;
    }
    Histogram { edges: (0..=BINS).map(|edge| low + width * edge as f64).collect(), counts }
}
