//! What the impact scores of a variant look like: histogram, effective number of records, share clamped and mean weight by
//! category. Pure.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use shared::curvature::Report;
use shared::record::{Category, Record};
use shared::spread::Spread;
use shared::weights::BY_SEED;
use shared::{Error, Result};

const BINS: usize = 20;

#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Scores {
    /// Of the raw scores ⟨g_J, g_i⟩ of all conflict records.
    pub(super) histogram: Histogram,
    /// How many conflict records there are.
    pub(super) n: usize,
    /// Percent of the conflict records whose raw score is not positive, so that their weight is 0.
    pub(super) clamped_share: f64,
    /// The same of the records of each conflict category.
    pub(super) clamped_share_of: BTreeMap<&'static str, f64>,
    /// Mean weight of the records of each conflict category.
    pub(super) mean_weight: BTreeMap<&'static str, f64>,
    /// How far the scores at several adapters agree, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) seeds: Option<Spread>,
    /// What the curvature did to the direction that is scored along, at every adapter.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) curvature: Vec<Report>,
    /// (Σw)² / Σw² of all records, of RETAIN too where a method weighs them: so many of equal weight would spread the
    /// update as much. 0 where all weights are 0.
    pub(super) effective_records: f64,
}

/// What is summed up over the records of a category.
#[derive(Default)]
struct Sums {
    records: usize,
    clamped: usize,
    weight: f64,
}

/// Counts of equally wide bins: bin i holds `edges[i] < score ≤ edges[i + 1]`, the first its lower edge too. Where 0
/// is within the range it is an edge: the bins up to it hold exactly the clamped ones.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Histogram {
    pub(super) edges: Vec<f64>,
    pub(super) counts: Vec<usize>,
}

pub(super) fn of(records: &[Record], curvature: Vec<Report>, file: &Path) -> Result<Scores> {
    let mut raw = Vec::new();
    let mut by_seed = Vec::new();
    let mut categories: BTreeMap<&str, Sums> = BTreeMap::new();
    let (mut sum, mut squares) = (0.0, 0.0);
    for (index, record) in records.iter().enumerate() {
        let wanted = |field| Error::field(file, index, field, "is missing; score the records first");
        let category = record.category.ok_or_else(|| wanted("category"))?;
        let weight = record.impact_score.unwrap_or_default();
        sum += weight;
        squares += weight * weight;
        if category == Category::Retain {
            continue;
        }
        let score = record.raw_score.ok_or_else(|| wanted("raw_score"))?;
        let weight = record.impact_score.ok_or_else(|| wanted("impact_score"))?;
        raw.push(score);
        if let Some(scores) = record.extra.get(BY_SEED) {
            let scores: Vec<f64> = serde_json::from_value(scores.clone())
                .map_err(|error| Error::field(file, index, BY_SEED, error.to_string()))?;
            by_seed.push(scores);
        }
        let sums = categories.entry(category.name()).or_default();
        sums.records += 1;
        sums.clamped += usize::from(score <= 0.0);
        sums.weight += weight;
    }
    if raw.is_empty() {
        return Err(Error::file(file, "holds no INVERT and no PUNISH record, so there are no scores to report"));
    }
    let percent = |clamped: usize, records: usize| 100.0 * clamped as f64 / records as f64;
    Ok(Scores {
        n: raw.len(),
        clamped_share: percent(categories.values().map(|sums| sums.clamped).sum(), raw.len()),
        clamped_share_of: categories.iter().map(|(name, sums)| (*name, percent(sums.clamped, sums.records))).collect(),
        histogram: histogram(&raw),
        seeds: spread(&by_seed, file)?,
        curvature,
        mean_weight: categories.iter().map(|(name, sums)| (*name, sums.weight / sums.records as f64)).collect(),
        effective_records: if squares > 0.0 { sum * sum / squares } else { 0.0 },
    })
}

/// Compares the scores of several adapters; none where there is but one.
fn spread(by_seed: &[Vec<f64>], file: &Path) -> Result<Option<Spread>> {
    let count = by_seed.first().map_or(0, Vec::len);
    if by_seed.iter().any(|scores| scores.len() != count) {
        return Err(Error::file(file, format!("{BY_SEED:?} holds different numbers of scores")));
    }
    Ok((count > 1).then(|| Spread::of(&by_seed.iter().map(Vec::as_slice).collect::<Vec<_>>())))
}

/// Counts finite, at least one, scores; where all are equal they lie in the last bin, of width 1.
fn histogram(scores: &[f64]) -> Histogram {
    let low = scores.iter().copied().fold(f64::INFINITY, f64::min);
    let high = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let bins = BINS as f64;
    // The edges are counted from an origin, so that an edge at 0 is 0 and not nearly.
    let (origin, below, width) = if low <= 0.0 && high >= 0.0 && low < high {
        let least_above = if high > 0.0 { 1.0 } else { 0.0 };
        let below = (bins * -low / (high - low)).round().clamp(1.0, bins - least_above);
        let above = if below < bins { high / (bins - below) } else { 0.0 };
        (0.0, below, (-low / below).max(above))
    } else if high > low {
        (low, 0.0, (high - low) / bins)
    } else {
        (low, bins, 1.0)
    };
    let mut counts = vec![0; BINS];
    for score in scores {
        let bin = below + ((score - origin) / width).ceil() - 1.0;
        counts[bin.clamp(0.0, bins - 1.0) as usize] += 1;
    }
    Histogram { edges: (0..=BINS).map(|edge| origin + width * (edge as f64 - below)).collect(), counts }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_up_to_zero_hold_exactly_what_is_clamped() {
        for scores in
            [&[-1.0, 0.0, 1e-12, 3.0][..], &[-0.001, 0.0, 50.0], &[-50.0, 0.001], &[-3.0, -1.0, 0.0], &[0.0, 0.0, 2.0]]
        {
            let Histogram { edges, counts } = histogram(scores);
            assert_eq!((edges.len(), counts.len()), (BINS + 1, BINS));
            assert!(edges[0] <= scores[0] && edges[BINS] >= scores[scores.len() - 1], "{edges:?}");
            assert_eq!(edges.iter().filter(|edge| **edge == 0.0).count(), 1, "{edges:?}");
            let clamped: usize =
                edges[1..].iter().zip(&counts).filter(|(upper, _)| **upper <= 0.0).map(|(_, n)| n).sum();
            assert_eq!(clamped, scores.iter().filter(|score| **score <= 0.0).count(), "{scores:?}");
            assert_eq!(counts.iter().sum::<usize>(), scores.len());
        }
    }

    #[test]
    fn the_effective_number_counts_every_weight() {
        let record = |category, weight| Record {
            category: Some(category),
            raw_score: Some(weight),
            impact_score: Some(weight),
            ..Record::default()
        };
        let effective = |weights: &[(Category, f64)]| {
            let records: Vec<Record> = weights.iter().map(|(category, weight)| record(*category, *weight)).collect();
            of(&records, Vec::new(), Path::new("weighted.json")).unwrap().effective_records
        };
        use Category::{Invert, Punish, Retain};
        assert_eq!(effective(&[(Invert, 2.0), (Punish, 2.0), (Invert, 0.0), (Retain, 0.0)]), 2.0);
        assert_eq!(effective(&[(Invert, 1.0), (Retain, 1.0), (Retain, 1.0)]), 3.0, "U2A weighs some of RETAIN");
        assert_eq!(effective(&[(Punish, 0.0)]), 0.0);
    }

    #[test]
    fn scores_of_one_sign_or_value_fill_their_own_range() {
        let positive = histogram(&[1.0, 3.0]);
        assert_eq!((positive.edges[0], positive.counts[0], positive.counts[BINS - 1]), (1.0, 1, 1));
        let zeros = histogram(&[0.0, 0.0]);
        assert_eq!((zeros.edges[BINS], zeros.counts[BINS - 1]), (0.0, 2));
    }
}
