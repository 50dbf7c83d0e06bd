//! The training recipes, as far as a plan depends on them; what they compute is the worker's business.

use serde::{Deserialize, Serialize};
use shared::record::{Category, Record};

/// A recipe by its name everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub(crate) enum Method {
    Trace,
    OraclePunish,
    NoKl,
    NoImpact,
    NoTriage,
    Dpo,
    DpoGold,
    NaiveOracleDpo,
    Rdpo,
    Cdpo,
    Ipo,
    Npo,
    U2a,
    Sft,
}

impl Method {
    const NAMES: [(&'static str, Method); 14] = [
        ("trace", Method::Trace),
        ("oracle-punish", Method::OraclePunish),
        ("no-kl", Method::NoKl),
        ("no-impact", Method::NoImpact),
        ("no-triage", Method::NoTriage),
        ("dpo", Method::Dpo),
        ("dpo-gold", Method::DpoGold),
        ("naive-oracle-dpo", Method::NaiveOracleDpo),
        ("rdpo", Method::Rdpo),
        ("cdpo", Method::Cdpo),
        ("ipo", Method::Ipo),
        ("npo", Method::Npo),
        ("u2a", Method::U2a),
        ("sft", Method::Sft),
    ];

    pub(crate) fn names() -> Vec<&'static str> {
        Method::NAMES.iter().map(|(name, _)| *name).collect()
    }

    pub(crate) fn named(name: &str) -> Option<Method> {
        Method::NAMES.iter().find(|(known, _)| *known == name).map(|(_, method)| *method)
    }

    pub(crate) fn name(self) -> &'static str {
        Method::NAMES.iter().find(|(_, method)| *method == self).map_or("", |(name, _)| name)
    }

    /// Returns whether conflict terms are multiplied by impact scores.
    pub(crate) fn is_weighted(self) -> bool {
        matches!(self, Method::Trace | Method::OraclePunish | Method::NoKl | Method::NoTriage | Method::U2a)
    }

    /// Returns whether PUNISH records are trained towards their corrections.
    pub(crate) fn needs_corrections(self) -> bool {
        matches!(self, Method::OraclePunish | Method::DpoGold)
    }

    /// Returns whether a record's category does not matter: such a method trains on the plain pairs of a split.
    pub(crate) fn takes_plain_pairs(self) -> bool {
        matches!(self, Method::Dpo | Method::Rdpo | Method::Cdpo | Method::Ipo)
    }

    /// Returns whether a record gets a score: one of the conflict, and where a method punishes others too, those.
    pub(crate) fn scores(self, record: &Record) -> bool {
        match self {
            Method::NoTriage => true,
            Method::U2a if record.category == Some(Category::Retain) => record.rejected_violates(),
            _ => record.category.is_some_and(Category::is_conflict),
        }
    }

    /// Returns whether weights of the method are those of promoted responses too, so that a quality filter changes them.
    pub(crate) fn promotes(self) -> bool {
        matches!(self, Method::Trace | Method::OraclePunish | Method::NoKl)
    }

    /// Returns the method whose scores this one uses.
    pub(crate) fn scored_as(self) -> Method {
        if self == Method::NoKl { Method::Trace } else { self }
    }

    /// Returns the loss of preference terms where none is chosen.
    pub(crate) fn own_loss(self) -> &'static str {
        match self {
            Method::Rdpo => "rdpo",
            Method::Cdpo => "cdpo",
            Method::Ipo => "ipo",
            _ => "dpo",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_gets_a_score_is_what_the_method_weighs() {
        let record = |category, violations: &[i64]| Record {
            category: Some(category),
            rejected_violations: Some(violations.to_vec()),
            ..Record::default()
        };
        for (method, expected) in [
            (Method::Trace, [true, true, false, false]),
            (Method::U2a, [true, true, true, false]),
            (Method::NoTriage, [true, true, true, true]),
        ] {
            let records = [
                record(Category::Invert, &[0]),
                record(Category::Punish, &[0]),
                record(Category::Retain, &[0]),
                record(Category::Retain, &[]),
            ];
            assert_eq!(records.each_ref().map(|record| method.scores(record)), expected, "{}", method.name());
        }
    }
}
