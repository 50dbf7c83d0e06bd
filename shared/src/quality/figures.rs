//! What the promoted responses of a training set look like, beside those that give way to them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::phrases::words;
use super::{Flaw, Mode};

/// Middle and mean of some lengths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The middle one, between the two in the middle where the number is even.
    pub median: f64,
    /// Their mean.
    pub mean: f64,
}

impl Spread {
    /// Returns middle and mean; zeros of none.
    pub fn of(lengths: &[usize]) -> Spread {
        if lengths.is_empty() {
            return Spread::default();
        }
        let mut sorted = lengths.to_vec();
        sorted.sort_unstable();
        let middle = sorted.len() / 2;
        let upper = sorted[middle] as f64;
        let median = if sorted.len() % 2 == 1 { upper } else { (sorted[middle - 1] as f64 + upper) / 2.0 };
        Spread { median, mean: sorted.iter().sum::<usize>() as f64 / sorted.len() as f64 }
    }
}

/// Figures of the promoted responses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// What was done about flawed ones.
    pub filter: Mode,
    /// How many responses the method promotes: compliant ones of INVERT records, and corrections.
    pub promoted: usize,
    /// Their words.
    pub words: Spread,
    /// Words of the responses that give way to them.
    pub demoted_words: Spread,
    /// How many have which flaw; one without is not in it.
    pub flaws: BTreeMap<Flaw, usize>,
    /// How many were not promoted for it.
    pub filtered: usize,
}

impl Figures {
    /// Makes the figures of promoted responses: each with the response that gives way to it and its flaw.
    pub fn of(filter: Mode, promoted: &[(String, String, Option<Flaw>)]) -> Figures {
        let lengths = |text: fn(&(String, String, Option<Flaw>)) -> &String| {
            Spread::of(&promoted.iter().map(|of| words(text(of)).len()).collect::<Vec<_>>())
        };
        let mut flaws = BTreeMap::new();
        for flaw in promoted.iter().filter_map(|(_, _, flaw)| *flaw) {
            *flaws.entry(flaw).or_default() += 1;
        }
        let flawed = flaws.values().sum();
        Figures {
            filter,
            promoted: promoted.len(),
            words: lengths(|of| &of.0),
            demoted_words: lengths(|of| &of.1),
            flaws,
            filtered: if filter == Mode::On { flawed } else { 0 },
        }
    }

    /// Returns how many have a flaw.
    pub fn flawed(&self) -> usize {
        self.flaws.values().sum()
    }
}
