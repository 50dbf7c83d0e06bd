//! What was gained and what was lost, a sentence a variant.

use serde::Serialize;
use shared::stats::Measured;

use super::{clean, shown, with_interval};
use crate::report::measure::Measurements;
use crate::report::{BASE, Variant};

#[derive(Debug, PartialEq, Serialize)]
pub(in crate::report) struct Line {
    pub(in crate::report) variant: String,
    /// What it says, in parts that are best not broken.
    pub(in crate::report) parts: Vec<String>,
}

impl Line {
    /// Returns the parts as one sentence.
    pub(in crate::report) fn says(&self) -> String {
        self.parts.join("; ")
    }
}

/// Compares every variant with the base; without one, or without others, it only states the agreement.
pub(super) fn of(variants: &[Variant]) -> Vec<Line> {
    let base = variants.iter().find(|variant| variant.name == BASE);
    let trained: Vec<&Variant> = variants.iter().filter(|variant| variant.name != BASE).collect();
    let line = |variant: &Variant, parts| Line { variant: clean(&variant.name), parts };
    match base {
        Some(base) if !trained.is_empty() => {
            trained.into_iter().map(|variant| line(variant, change(&base.measured, &variant.measured))).collect()
        }
        _ => variants
            .iter()
            .map(|variant| line(variant, vec![format!("TPA {}", with_interval(Some(&variant.measured.tpa)))]))
            .collect(),
    }
}

fn change(base: &Measurements, now: &Measurements) -> Vec<String> {
    let overlap = base.tpa.low <= now.tpa.high && now.tpa.low <= base.tpa.high;
    let mut parts =
        vec![from_to("TPA", &base.tpa, &now.tpa) + if overlap { ", within overlapping intervals" } else { "" }];
    let mut add = |name, base: Option<&Measured>, now: Option<&Measured>| {
        parts.extend(base.zip(now).map(|(base, now)| from_to(name, base, now)));
    };
    add("RETAIN", base.retain.as_ref(), now.retain.as_ref());
    add("garbled", base.garbled.as_ref(), now.garbled.as_ref());
    let capability = |of: &Measurements| of.capability.as_ref().map(|capability| capability.mean);
    add("capability", capability(base).as_ref(), capability(now).as_ref());
    parts
}

/// States a change of the values as they are shown, so that the difference is that of the two numbers beside it.
fn from_to(name: &str, base: &Measured, now: &Measured) -> String {
    let tenths = |measured: &Measured| shown(measured).replace('.', "").parse::<i64>().unwrap_or_default();
    let difference = tenths(now) - tenths(base);
    let sign = if difference < 0 { '−' } else { '+' };
    let size = difference.unsigned_abs();
    let change = if size == 0 { String::new() } else { format!(" ({sign}{}.{})", size / 10, size % 10) };
    format!("{name} {} → {}{change}", shown(base), shown(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_that_of_the_numbers_shown() {
        let share = |hits| Measured::share(hits, 400).unwrap();
        assert_eq!(from_to("TPA", &share(181), &share(372)), "TPA 45.2 → 93.0 (+47.8)");
        assert_eq!(from_to("RETAIN", &share(400), &share(399)), "RETAIN 100.0 → 99.8 (−0.2)");
        assert_eq!(from_to("garbled", &share(0), &share(0)), "garbled 0.0 → 0.0");
    }
}
