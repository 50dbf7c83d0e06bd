//! The keys of `[oracle]` that say how sure the judge must be of itself.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::problems::Table;
use super::values::{Expected, Reader};

pub(super) const KEYS: [&str; 10] = [
    "votes",
    "swap_wording",
    "logprobs",
    "min_confidence",
    "one_call_per_pair",
    "correction_tries",
    "canary",
    "canary_stop",
    "canary_tolerance_pct",
    "relabel",
];

/// How the judge is asked; every default is a single plain question.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Judging {
    /// Votes for each question, odd; 0 for one.
    pub(crate) votes: u32,
    /// Ask also with the two words in the other order.
    pub(crate) swap_wording: bool,
    pub(crate) logprobs: bool,
    /// Leave verdicts of less confidence to people; 0 takes all.
    pub(crate) min_confidence: f64,
    /// Judge both responses of a pair in one call.
    pub(crate) one_call_per_pair: bool,
    /// How often a correction is written; 0 for the service's own number.
    pub(crate) correction_tries: u32,
    /// File of items with known answers.
    pub(crate) canary: Option<PathBuf>,
    pub(crate) canary_stop: bool,
    pub(crate) canary_tolerance_pct: f64,
    /// Label though another judge has labelled the same pairs.
    pub(crate) relabel: bool,
}

impl Judging {
    /// Returns what of it shapes labels; null where it is the plain question.
    pub(crate) fn identity(&self) -> Value {
        let plain = Judging::default();
        let watched =
            Judging { canary: None, canary_stop: false, canary_tolerance_pct: 0.0, relabel: false, ..self.clone() };
        if watched == plain { Value::Null } else { json!(watched) }
    }
}

impl Reader<'_, '_> {
    pub(super) fn judging(&mut self, table: &Table<'_>) -> Judging {
        let votes = self.problems.count(table, "votes", 1).unwrap_or(0).min(100) as u32;
        if votes > 0 && votes.is_multiple_of(2) {
            self.problems.wrong::<()>(table, "votes", format!("is {votes}; expected an odd number below 100"));
        }
        let tries = self.problems.count(table, "correction_tries", 1).unwrap_or(0);
        if tries > 20 {
            self.problems.wrong::<()>(table, "correction_tries", format!("is {tries}; expected at most 20"));
        }
        let unit = |value: f64| (0.0..=1.0).contains(&value);
        let percent = |value: f64| (0.0..=100.0).contains(&value);
        let one_call_per_pair = self.problems.flag(table, "one_call_per_pair").unwrap_or(false);
        if one_call_per_pair && self.problems.flag(table, "both") == Some(false) {
            let problem = "contradicts both = false; keep one of the two";
            self.problems.wrong::<()>(table, "one_call_per_pair", problem);
        }
        let canary = self.outside_file(table, "canary", Expected::File);
        let canary_stop = self.problems.flag(table, "canary_stop").unwrap_or(false);
        if canary_stop && table.get("canary").is_none() {
            self.problems.wrong::<()>(table, "canary_stop", "has no effect without oracle.canary");
        }
        Judging {
            votes,
            swap_wording: self.problems.flag(table, "swap_wording").unwrap_or(false),
            logprobs: self.problems.flag(table, "logprobs").unwrap_or(false),
            min_confidence: self
                .problems
                .number(table, "min_confidence", unit, "a probability from 0 to 1")
                .unwrap_or(0.0),
            one_call_per_pair,
            correction_tries: tries.min(20) as u32,
            canary,
            canary_stop,
            canary_tolerance_pct: self
                .problems
                .number(table, "canary_tolerance_pct", percent, "a share from 0 to 100")
                .unwrap_or(0.0),
            relabel: self.problems.flag(table, "relabel").unwrap_or(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_watches_or_permits_is_no_part_of_a_stages_identity() {
        let plain = Judging { canary_stop: true, relabel: true, canary: Some("c.json".into()), ..Judging::default() };
        assert_eq!(plain.identity(), Value::Null);
        let voted = Judging { votes: 3, ..plain };
        assert_eq!((&voted.identity()["votes"], &voted.identity()["relabel"]), (&json!(3), &json!(false)));
    }
}
