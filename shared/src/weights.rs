//! From raw scores to weights: damping, clamp, normalisation (spec 5.5). Scores may come from many workers; weights are
//! made once, over all of them.

use std::path::Path;

use crate::error::{Error, Result};
use crate::record::{Category, Record};

/// How weights are normalised over the scored records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightNorm {
    /// Mean 1 over all scored records, clamped ones included: keeps the ratio between conflict terms and the anchor.
    Mean1,
    /// Sum 1 over all scored records, as the reference.
    Reference,
}

/// The field of a record that says whose loss terms its weight was made for.
pub const METHOD_FIELD: &str = "score_method";

/// The field of a scored record that holds log π_ref of its sequences: an object of numbers (nats, summed over the scored
/// tokens) by what they depend on, so that training need not run the reference model for them.
pub const REFERENCE_LOGPS: &str = "reference_logps";

/// The field of a scored record that holds its raw score at each of several adapters; `raw_score` is their mean.
pub const BY_SEED: &str = "score_by_seed";

/// The field of a scored record that holds what each layer adds to its raw score.
pub const BY_LAYER: &str = "score_by_layer";

/// The fields that come with a raw score, and go with it from a shard to the whole.
pub const WITH_SCORE: [&str; 3] = [REFERENCE_LOGPS, BY_SEED, BY_LAYER];

/// Puts numbers into a field of a record, or removes what an earlier scoring left there.
pub fn keep_numbers(record: &mut Record, field: &str, numbers: Option<&Vec<f64>>) {
    match numbers {
        Some(numbers) => record.extra.insert(field.to_owned(), numbers.as_slice().into()),
        None => record.extra.remove(field),
    };
}

/// Puts a score, a weight and the method they were made for into a record (spec 1.6).
pub fn keep(record: &mut Record, raw: f64, weight: f64, method: &str) {
    record.raw_score = Some(raw);
    record.impact_score = Some(weight);
    record.extra.insert(METHOD_FIELD.to_owned(), method.into());
}

impl WeightNorm {
    /// Returns its name in options and files.
    pub fn name(self) -> &'static str {
        match self {
            WeightNorm::Mean1 => "mean1",
            WeightNorm::Reference => "reference",
        }
    }
}

impl std::str::FromStr for WeightNorm {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name {
            "mean1" => Ok(WeightNorm::Mean1),
            "reference" => Ok(WeightNorm::Reference),
            other => Err(format!("{other:?} is no normalisation; expected mean1 or reference")),
        }
    }
}

/// Returns the weights of scored records from their raw scores: ×1/γ, max with 0, normalised. The records are those of
/// `file`; `index` gives the place in it of the record of a score.
///
/// # Errors
/// γ is not positive; a score is not finite; all scores are 0 or below.
pub fn weights(
    raw: &[f64],
    gamma: f64,
    norm: WeightNorm,
    file: &Path,
    index: impl Fn(usize) -> usize,
) -> Result<Vec<f64>> {
    check_gamma(gamma)?;
    if let Some(bad) = raw.iter().position(|score| !score.is_finite()) {
        let others = match raw[bad + 1..].iter().filter(|score| !score.is_finite()).count() {
            0 => String::new(),
            count => format!(", and {count} more of the {} scores are not finite", raw.len()),
        };
        let problem = format!(
            "its score is {}{others}; a weight cannot be made of it. Look at the record's text and at the model's weights",
            raw[bad]
        );
        return Err(Error::record(file, index(bad), problem));
    }
    let kept: Vec<f64> = raw.iter().map(|score| (score / gamma).max(0.0)).collect();
    let sum: f64 = kept.iter().sum();
    if kept.is_empty() {
        return Ok(kept);
    }
    if sum == 0.0 {
        let scores = match raw.len() {
            1 => "the only score is".to_owned(),
            many => format!("all {many} scores are"),
        };
        return Err(Error::file(
            file,
            format!(
                "{scores} 0 or negative, so every weight would be 0 and training would do nothing. The gold batch pulls \
                 against every conflict record: draw a larger one (--gold-batch-size), give one (--gold), or use \
                 --method no-impact"
            ),
        ));
    }
    let scale = match norm {
        WeightNorm::Mean1 => kept.len() as f64 / sum,
        WeightNorm::Reference => 1.0 / sum,
    };
    Ok(kept.into_iter().map(|score| score * scale).collect())
}

/// Says of which categories all scores are clamped, with the counts of every category; nothing where each has a record with
/// a weight. Records without a score do not count.
pub fn clamped_warning<'a>(scores: impl IntoIterator<Item = (&'a Record, Option<f64>)>) -> Option<String> {
    let mut counts = [(0, 0); 3];
    for (record, score) in scores {
        let (Some(category), Some(score)) = (record.category, score) else { continue };
        let (clamped, all) = &mut counts[category as usize];
        *all += 1;
        *clamped += usize::from(score <= 0.0);
    }
    let scored: Vec<(Category, (usize, usize))> =
        Category::ALL.into_iter().zip(counts).filter(|(_, (_, all))| *all > 0).collect();
    let without: Vec<&str> =
        scored.iter().filter(|(_, (clamped, all))| clamped == all).map(|(category, _)| category.name()).collect();
    if without.is_empty() {
        return None;
    }
    let counts: Vec<String> =
        scored.iter().map(|(category, (clamped, all))| format!("{category} {clamped} of {all}")).collect();
    Some(format!(
        "no {} record gets a weight: all their scores are 0 or negative (clamped: {}). The gold batch pulls against them; \
         look at its pairs of these categories",
        without.join(" and no "),
        counts.join(", ")
    ))
}

/// Refuses a damping constant that is not positive.
///
/// # Errors
/// γ ≤ 0, or not a number.
pub fn check_gamma(gamma: f64) -> Result<()> {
    if gamma > 0.0 && gamma.is_finite() {
        return Ok(());
    }
    Err(Error::Config(format!("--lamda (γ) is {gamma}; expected a positive number (it divides every score)")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAW: [f64; 5] = [2.0, -1.0, 0.5, 0.0, 1.5];

    fn of(raw: &[f64], gamma: f64, norm: WeightNorm) -> Result<Vec<f64>> {
        weights(raw, gamma, norm, Path::new("pairs.json"), |i| 10 + i)
    }

    #[test]
    fn vector_of_spec_a4_for_any_gamma() {
        for gamma in [0.01, 1.0, 37.0] {
            let got = of(&RAW, gamma, WeightNorm::Reference).unwrap();
            for (got, expected) in got.iter().zip([0.5, 0.0, 0.125, 0.0, 0.375]) {
                assert!((got - expected).abs() < 1e-15);
            }
        }
    }

    #[test]
    fn mean1_has_mean_one_with_zeros_counted() {
        let got = of(&RAW, 1.0, WeightNorm::Mean1).unwrap();
        assert!((got.iter().sum::<f64>() - 5.0).abs() < 1e-12);
        assert_eq!(got[1], 0.0);
    }

    #[test]
    fn senseless_input_is_refused() {
        assert!(of(&RAW, 0.0, WeightNorm::Mean1).unwrap_err().to_string().contains("--lamda"));
        assert!(of(&RAW, f64::NAN, WeightNorm::Mean1).is_err());
        let nan = of(&[1.0, f64::NAN], 1.0, WeightNorm::Mean1).unwrap_err().to_string();
        assert!(nan.starts_with("pairs.json: record 11: its score is NaN; "), "{nan}");
        let two = of(&[f64::NAN, 1.0, f64::INFINITY], 1.0, WeightNorm::Mean1).unwrap_err().to_string();
        assert!(two.contains("record 10: its score is NaN, and 1 more of the 3 scores are not finite"), "{two}");
        assert!(of(&[f64::INFINITY], 1.0, WeightNorm::Mean1).is_err());
        let zero = of(&[-1.0, 0.0], 1.0, WeightNorm::Mean1).unwrap_err().to_string();
        assert!(zero.starts_with("pairs.json: all 2 scores are 0 or negative"), "{zero}");
        assert_eq!(of(&[], 1.0, WeightNorm::Mean1).unwrap(), Vec::<f64>::new());
    }

    #[test]
    fn a_category_without_any_weight_is_told_with_counts() {
        let record = |category| Record { category, ..Record::default() };
        let [invert, punish, retain] = Category::ALL.map(|category| record(Some(category)));
        let some = [(&invert, Some(1.0)), (&invert, Some(-1.0)), (&punish, Some(0.5)), (&retain, None)];
        assert_eq!(clamped_warning(some), None);
        let none = [(&invert, Some(0.0)), (&punish, Some(-0.5)), (&invert, Some(2.0)), (&record(None), Some(-1.0))];
        let says = clamped_warning(none).unwrap();
        assert!(says.starts_with("no PUNISH record gets a weight"), "{says}");
        assert!(says.contains("(clamped: INVERT 1 of 2, PUNISH 1 of 1)"), "{says}");
    }
}
