//! How much scores depend on the random adapter that they are a projection along (spec 5.6).

use serde::Serialize;

/// What the scores at several adapters say about each other.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Spread {
    /// Adapters.
    pub count: usize,
    /// Standard deviation of a record's score over the adapters, root mean square over the records.
    pub deviation: f64,
    /// That of one adapter's score over the records, for comparison.
    pub deviation_over_records: f64,
    /// The share of the mean scores' variance over records that is not the adapters' doing: 1 minus the variance that the
    /// adapters leave in a mean, by the variance of the means. Of one record there is none.
    pub reliability: Option<f64>,
}

impl Spread {
    /// Compares scores: at least two of every record.
    pub fn of(by_seed: &[&[f64]]) -> Spread {
        let count = by_seed.first().map_or(0, |scores| scores.len());
        let within = by_seed.iter().map(|scores| variance(scores)).sum::<f64>() / by_seed.len().max(1) as f64;
        let means: Vec<f64> = by_seed.iter().map(|scores| mean(scores)).collect();
        let at = |seed: usize| by_seed.iter().map(|scores| scores[seed]).collect::<Vec<_>>();
        let over_records = (0..count).map(|seed| variance(&at(seed))).sum::<f64>() / count.max(1) as f64;
        let of_means = variance(&means);
        let reliability = (of_means > 0.0).then(|| (1.0 - within / count as f64 / of_means).max(0.0));
        Spread { count, deviation: within.sqrt(), deviation_over_records: over_records.sqrt(), reliability }
    }
}

fn mean(numbers: &[f64]) -> f64 {
    numbers.iter().sum::<f64>() / numbers.len().max(1) as f64
}

/// The unbiased estimate from a sample; 0 of fewer than two.
fn variance(numbers: &[f64]) -> f64 {
    let mean = mean(numbers);
    numbers.iter().map(|number| (number - mean).powi(2)).sum::<f64>() / numbers.len().saturating_sub(1).max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_adapters_agree_on_is_reliable() {
        let agreed = Spread::of(&[&[1.0, 1.0], &[3.0, 3.0]]);
        assert_eq!((agreed.count, agreed.deviation, agreed.reliability), (2, 0.0, Some(1.0)));
        assert!((agreed.deviation_over_records - 2f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn noise_alone_is_not() {
        let noise = Spread::of(&[&[1.0, -1.0], &[-1.0, 1.0], &[1.0, -0.9]]);
        assert_eq!(noise.reliability, Some(0.0));
        assert_eq!(Spread::of(&[&[1.0, 2.0]]).reliability, None);
    }
}
