//! Agreement of two judges: raw, with its interval, and beyond chance (Cohen's kappa). Pure.

use std::collections::BTreeMap;

use serde::Serialize;
use shared::record::Category;
use shared::stats::Measured;

use super::Verdicts;
use crate::table;
use crate::triage::category;

/// Counts of (own, other) values of one kind.
#[derive(Debug, Clone, Default)]
struct Table {
    counts: BTreeMap<(u8, u8), u64>,
    left_out: u64,
}

/// What two ways said, of responses and of the labels that follow.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    responses: Table,
    labels: Table,
}

/// How far another way agrees.
#[derive(Debug, Serialize)]
pub(super) struct Comparison {
    way: String,
    responses: Agreement,
    /// Of INVERT, PUNISH and RETAIN.
    labels: Agreement,
}

#[derive(Debug, Serialize)]
struct Agreement {
    /// None where nothing could be compared.
    agreement: Option<Measured>,
    /// Agreement beyond chance, from -1 to 1; none where either way always says the same.
    kappa: Option<f64>,
    /// Cases without a value on either side.
    left_out: u64,
    /// Cases by what both said, `own/other`.
    counts: BTreeMap<String, u64>,
}

impl Table {
    fn add(&mut self, own: Option<u8>, other: Option<u8>) {
        match own.zip(other) {
            Some(both) => *self.counts.entry(both).or_default() += 1,
            None => self.left_out += 1,
        }
    }

    fn agreement(&self, name: impl Fn(u8) -> &'static str) -> Agreement {
        let n: u64 = self.counts.values().sum();
        let agreed = self.counts.iter().filter(|((own, other), _)| own == other).map(|(_, count)| count).sum();
        let counts = self.counts.iter();
        let counts = counts.map(|((own, other), count)| (format!("{}/{}", name(*own), name(*other)), *count)).collect();
        Agreement { agreement: Measured::share(agreed, n), kappa: self.kappa(), left_out: self.left_out, counts }
    }

    /// Cohen's kappa: (observed - by chance) / (1 - by chance), chance being what both would share if each said its own
    /// shares at random.
    fn kappa(&self) -> Option<f64> {
        let n = self.counts.values().sum::<u64>() as f64;
        let observed: u64 = self.counts.iter().filter(|((own, other), _)| own == other).map(|(_, count)| count).sum();
        let (mut own, mut other) = (BTreeMap::<u8, f64>::new(), BTreeMap::<u8, f64>::new());
        for ((a, b), count) in &self.counts {
            *own.entry(*a).or_default() += *count as f64 / n;
            *other.entry(*b).or_default() += *count as f64 / n;
        }
        let chance: f64 = own.iter().map(|(value, share)| share * other.get(value).unwrap_or(&0.0)).sum();
        (n > 0.0 && chance < 1.0).then(|| (observed as f64 / n - chance) / (1.0 - chance))
    }
}

impl Tally {
    /// Adds what two ways said about the responses of a pair.
    pub(super) fn add(&mut self, own: Verdicts, other: Verdicts) {
        for (own, other) in own.into_iter().zip(other) {
            self.responses.add(own.map(u8::from), other.map(u8::from));
        }
        let label = |[chosen, rejected]: Verdicts| chosen.zip(rejected).map(|(c, r)| category(!c, Some(!r)) as u8);
        self.labels.add(label(own), label(other));
    }

    pub(super) fn compare(&self, way: String) -> Comparison {
        Comparison {
            way,
            responses: self.responses.agreement(|value| if value == 1 { "COMPLIANT" } else { "NON-COMPLIANT" }),
            labels: self.labels.agreement(|value| Category::ALL[usize::from(value)].name()),
        }
    }
}

impl Comparison {
    /// Returns whether every response had a verdict both ways.
    pub(super) fn is_complete(&self) -> bool {
        self.responses.left_out == 0
    }

    pub(super) fn print(&self) {
        for (of, agreement) in [("responses", &self.responses), ("labels", &self.labels)] {
            let kappa = agreement.kappa.map_or("–".to_owned(), |kappa| format!("{kappa:.3}"));
            let (n, left) = (agreement.agreement.map_or(0, |measured| measured.n), agreement.left_out);
            let share = table::measured(agreement.agreement);
            println!("{:<22} {of:<10} {n:>7} {left:>6}  {share:<20} {kappa:>7}", self.way);
        }
        for (both, count) in self.responses.counts.iter().chain(&self.labels.counts) {
            if both.split_once('/').is_some_and(|(own, other)| own != other) {
                println!("  {count:>6} {both}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const C: Option<bool> = Some(true);
    const V: Option<bool> = Some(false);

    #[test]
    fn kappa_is_that_of_the_textbook() {
        // Of 50: 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no; observed 0.7, by chance 0.5, so 0.4.
        let mut table = Table::default();
        for (own, other, count) in [(1, 1, 20), (1, 0, 5), (0, 1, 10), (0, 0, 15)] {
            (0..count).for_each(|_| table.add(Some(own), Some(other)));
        }
        assert!((table.kappa().unwrap() - 0.4).abs() < 1e-12);
        let agreement = table.agreement(|value| if value == 1 { "y" } else { "n" });
        let measured = agreement.agreement.unwrap();
        assert_eq!((measured.value, measured.n, agreement.counts["y/n"]), (70.0, 50, 5));
        assert!(measured.low < 70.0 && measured.high > 70.0);
    }

    #[test]
    fn nothing_and_no_variety_have_no_kappa() {
        assert_eq!(Table::default().kappa(), None);
        let mut table = Table::default();
        table.add(Some(1), Some(1));
        assert_eq!(table.kappa(), None);
    }

    #[test]
    fn responses_and_labels_are_compared_and_what_has_no_verdict_is_left_out() {
        let mut tally = Tally::default();
        tally.add([V, C], [V, C]);
        tally.add([V, C], [V, V]);
        tally.add([C, V], [C, C]);
        tally.add([C, V], [None, V]);
        let comparison = tally.compare("x".into());
        assert!(!comparison.is_complete());
        let responses = &comparison.responses;
        assert_eq!((responses.agreement.unwrap().n, responses.left_out), (7, 1));
        assert_eq!((responses.counts["COMPLIANT/NON-COMPLIANT"], responses.counts["NON-COMPLIANT/COMPLIANT"]), (1, 1));
        let labels = &comparison.labels;
        assert_eq!((labels.agreement.unwrap().n, labels.left_out, labels.counts["INVERT/PUNISH"]), (3, 1, 1));
        // RETAIN stays RETAIN whatever the rejected response is.
        assert_eq!(labels.counts["RETAIN/RETAIN"], 1);
    }
}
