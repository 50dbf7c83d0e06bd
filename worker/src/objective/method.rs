//! What each method does with a record: which loss term it gets, or none.
//!
//! One pure function, [`Recipe::decide`], holds the definitions of spec 4.1–4.8 and what the quality filter makes of them;
//! scoring and training both read them from here, so that a score is always the score of the loss that is trained.

use shared::quality::{Filter, Flaw};
use shared::record::{Category, Record};

/// The training recipes by their names everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// INVERT: preference loss; PUNISH: dual NPO; RETAIN: KL; impact weights.
    Trace,
    /// As trace, with the oracle's correction preferred over the old winner for PUNISH records that have one.
    OraclePunish,
    /// As trace without the KL anchor (RETAIN records stay in the batches as zeros).
    NoKl,
    /// As trace with weight 1 for every conflict record: the same total weight as mean1.
    NoImpact,
    /// Weighted NPO on `rejected` of every record, whatever its category; no KL (spec 4.6).
    NoTriage,
    /// Plain preference loss on `chosen` over `rejected` of every record.
    Dpo,
    /// As dpo, with corrections preferred over the old winner on PUNISH records that have one.
    DpoGold,
    /// As dpo on triaged records: PUNISH pairs keep their old order.
    NaiveOracleDpo,
    /// dpo with the robust loss.
    Rdpo,
    /// dpo with the conservative loss.
    Cdpo,
    /// dpo with the true IPO loss.
    Ipo,
    /// Unweighted NPO on every violating response: both of PUNISH, `rejected` of INVERT, and of RETAIN where it is
    /// known to violate.
    Npo,
    /// U2A (spec 4.8): NPO on the same responses as npo, weighted by impact scores; no KL.
    U2a,
    /// Mean-token negative log-likelihood of `chosen`.
    Sft,
}

/// Which of a record's texts a sequence is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// `chosen`
    Chosen,
    /// `rejected`
    Rejected,
    /// `oracle_response`
    Correction,
}

/// A record's loss term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Term {
    /// Preference loss of the first part over the second.
    Prefer(Part, Part),
    /// NPO on one response.
    PunishOne(Part),
    /// NPO on `chosen` and `rejected`, added up.
    PunishBoth,
    /// KL(π_ref ‖ π) on `chosen`.
    Anchor,
    /// Mean-token negative log-likelihood of `chosen`.
    Imitate,
}

impl Part {
    /// Returns its text; nothing where the record has none.
    pub fn of(self, record: &Record) -> String {
        match self {
            Part::Chosen => record.chosen.response(),
            Part::Rejected => record.rejected.as_ref().map(|text| text.response()).unwrap_or_default(),
            Part::Correction => record.correction().unwrap_or_default().to_owned(),
        }
    }

    /// Returns the name of its field.
    pub fn field(self) -> &'static str {
        match self {
            Part::Chosen => "chosen",
            Part::Rejected => "rejected",
            Part::Correction => "oracle_response",
        }
    }
}

/// As messages call it: `preference loss of chosen over rejected`.
impl std::fmt::Display for Term {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Term::Prefer(better, worse) => write!(f, "preference loss of {} over {}", better.field(), worse.field()),
            Term::PunishOne(part) => write!(f, "punishment loss on {}", part.field()),
            Term::PunishBoth => f.write_str("punishment loss on chosen and rejected"),
            Term::Anchor => f.write_str("KL on chosen"),
            Term::Imitate => f.write_str("negative log-likelihood of chosen"),
        }
    }
}

impl Term {
    /// Returns the parts the term reads, in the order its derivatives are given.
    pub fn parts(self) -> &'static [Part] {
        match self {
            Term::Prefer(Part::Correction, Part::Chosen) => &[Part::Correction, Part::Chosen],
            Term::Prefer(..) | Term::PunishBoth => &[Part::Chosen, Part::Rejected],
            Term::PunishOne(Part::Rejected) => &[Part::Rejected],
            Term::PunishOne(_) | Term::Anchor | Term::Imitate => &[Part::Chosen],
        }
    }

    /// Returns whether the term is a function of log-ratios, which need reference log-probs.
    pub fn uses_ratios(self) -> bool {
        matches!(self, Term::Prefer(..) | Term::PunishOne(_) | Term::PunishBoth)
    }
}

impl Method {
    /// Returns the name used in files and reports.
    pub fn name(self) -> String {
        clap::ValueEnum::to_possible_value(&self).map(|v| v.get_name().to_owned()).unwrap_or_default()
    }

    /// Returns the loss term of a record, or `None` where the method has no use for it.
    fn term(self, record: &Record, alpha_kl: f64) -> Result<Option<Term>, String> {
        use Part::{Chosen, Correction, Rejected};
        let category = || {
            record
                .category
                .ok_or_else(|| format!("field \"category\" is missing; method {} needs triaged records", self.name()))
        };
        let corrected = record.correction().is_some();
        let anchor = (alpha_kl != 0.0).then_some(Term::Anchor);
        Ok(match self {
            Method::Trace | Method::NoImpact => match category()? {
                Category::Invert => Some(Term::Prefer(Chosen, Rejected)),
                Category::Punish => Some(Term::PunishBoth),
                Category::Retain => anchor,
            },
            Method::OraclePunish => match category()? {
                Category::Invert => Some(Term::Prefer(Chosen, Rejected)),
                Category::Punish if corrected => Some(Term::Prefer(Correction, Chosen)),
                Category::Punish => Some(Term::PunishBoth),
                Category::Retain => anchor,
            },
            Method::NoKl => match category()? {
                Category::Invert => Some(Term::Prefer(Chosen, Rejected)),
                Category::Punish => Some(Term::PunishBoth),
                Category::Retain => None,
            },
            Method::NoTriage => Some(Term::PunishOne(Rejected)),
            Method::Dpo | Method::Rdpo | Method::Cdpo | Method::Ipo | Method::NaiveOracleDpo => {
                Some(Term::Prefer(Chosen, Rejected))
            }
            Method::DpoGold => match category()? {
                Category::Punish if corrected => Some(Term::Prefer(Correction, Chosen)),
                _ => Some(Term::Prefer(Chosen, Rejected)),
            },
            Method::Npo | Method::U2a => match category()? {
                Category::Invert => Some(Term::PunishOne(Rejected)),
                Category::Punish => Some(Term::PunishBoth),
                Category::Retain => record.rejected_violates().then_some(Term::PunishOne(Rejected)),
            },
            Method::Sft => Some(Term::Imitate),
        })
    }

    /// Returns whether the method has terms that promote a response which is not what the old policy preferred.
    pub fn promotes(self) -> bool {
        !matches!(self, Method::NoTriage | Method::Npo | Method::U2a | Method::Sft)
    }

    /// Returns the term of a record whose promoted part is not to be promoted: the punishment that the method has for
    /// such records; none for the methods that only prefer.
    fn without_promotion(self, promoted: Part) -> Option<Term> {
        match (self, promoted) {
            (Method::Trace | Method::OraclePunish | Method::NoKl | Method::NoImpact, Part::Correction) => {
                Some(Term::PunishBoth)
            }
            (Method::Trace | Method::OraclePunish | Method::NoKl | Method::NoImpact, _) => {
                Some(Term::PunishOne(Part::Rejected))
            }
            _ => None,
        }
    }

    /// Returns the method whose scores this one uses: the terms of trace and no-kl are scored alike.
    pub fn scored_as(self) -> Self {
        if self == Method::NoKl { Method::Trace } else { self }
    }

    /// Returns whether the method multiplies conflict terms by impact scores.
    pub fn is_weighted(self) -> bool {
        matches!(self, Method::Trace | Method::OraclePunish | Method::NoKl | Method::NoTriage | Method::U2a)
    }
}

/// A method with what else decides which term a record gets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recipe {
    /// The method.
    pub method: Method,
    /// α_KL; an anchor of weight 0 is none.
    pub alpha_kl: f64,
    /// What is done about promoted responses that say nothing.
    pub filter: Filter,
}

/// What a recipe does with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// The record's term; without one it still counts as a member of its batch.
    pub term: Option<Term>,
    /// The response that the method promotes, whether or not the filter lets it.
    pub promoted: Option<Promoted>,
}

/// A response that becomes preferred though the old policy did not prefer it: the compliant one of an INVERT record, or a
/// correction. What a RETAIN record prefers is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promoted {
    /// The response.
    pub part: Part,
    /// The one that gives way to it.
    pub over: Part,
    /// What is wrong with it.
    pub flaw: Option<Flaw>,
}

impl Recipe {
    /// Returns what is done with a record. Methods that need no category accept a record without one; nothing of it is
    /// then known to be promoted.
    ///
    /// # Errors
    /// The method needs a category and the record has none.
    pub fn decide(&self, record: &Record) -> Result<Decision, String> {
        let term = self.method.term(record, self.alpha_kl)?;
        let (part, over) = match term {
            Some(Term::Prefer(part @ Part::Correction, over)) => (part, over),
            Some(Term::Prefer(part, over)) if record.category == Some(Category::Invert) => (part, over),
            _ => return Ok(Decision { term, promoted: None }),
        };
        let flaw = self.filter.flaw(&record.prompt, &part.of(record));
        let term = if flaw.is_some() && self.filter.acts() { self.method.without_promotion(part) } else { term };
        Ok(Decision { term, promoted: Some(Promoted { part, over, flaw }) })
    }

    /// Returns the name under which weights for this recipe are kept: that of the terms they were made for.
    pub fn scored_as(&self) -> String {
        let name = self.method.scored_as().name();
        if self.method.promotes() { self.filter.marked(&name) } else { name }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(category: Category, correction: &str) -> Record {
        Record { category: Some(category), oracle_response: Some(correction.into()), ..Record::default() }
    }

    #[test]
    fn definitions_of_the_variants() {
        use Category::*;
        use Part::*;
        let term = |m: Method, c, y_c: &str| m.term(&record(c, y_c), 0.1).unwrap();
        let inversion = Some(Term::Prefer(Chosen, Rejected));
        for method in [Method::Trace, Method::OraclePunish, Method::NoKl, Method::NoImpact] {
            assert_eq!(term(method, Invert, ""), inversion);
            assert_eq!(term(method, Punish, ""), Some(Term::PunishBoth), "falls back without a correction");
        }
        assert_eq!(term(Method::Trace, Retain, ""), Some(Term::Anchor));
        assert_eq!(term(Method::Trace, Punish, "better"), Some(Term::PunishBoth));
        assert_eq!(term(Method::OraclePunish, Punish, "better"), Some(Term::Prefer(Correction, Chosen)));
        assert_eq!(term(Method::DpoGold, Punish, "better"), Some(Term::Prefer(Correction, Chosen)));
        assert_eq!(term(Method::NoKl, Retain, ""), None);
        assert_eq!(Method::Trace.term(&record(Retain, ""), 0.0), Ok(None), "alpha_kl 0 costs nothing");
        assert_eq!(term(Method::NoTriage, Retain, ""), Some(Term::PunishOne(Rejected)));
        assert_eq!(term(Method::NaiveOracleDpo, Punish, "better"), inversion);
        for method in [Method::Npo, Method::U2a] {
            assert_eq!(term(method, Invert, ""), Some(Term::PunishOne(Rejected)));
            assert_eq!(term(method, Punish, "better"), Some(Term::PunishBoth), "nothing is promoted");
            assert_eq!(term(method, Retain, ""), None, "not known to violate");
            let violating = Record { rejected_violations: Some(vec![0]), ..record(Retain, "") };
            assert_eq!(method.term(&violating, 0.1), Ok(Some(Term::PunishOne(Rejected))));
        }
    }

    #[test]
    fn a_missing_category_is_an_error_only_where_it_is_needed() {
        let plain = Record::default();
        assert!(Method::Trace.term(&plain, 0.1).unwrap_err().contains("category"));
        assert!(Method::Dpo.term(&plain, 0.1).is_ok());
        assert!(Method::Sft.term(&plain, 0.1).is_ok());
    }
    #[test]
    fn the_filter_takes_promotions_back_and_nothing_else() {
        use Category::*;
        use Part::*;
        let on = Filter { mode: shared::quality::Mode::On, least_words: 3 };
        let decide = |method, filter, c, chosen: &str, y_c: &str| {
            let record = Record { prompt: "How?".into(), chosen: chosen.into(), ..record(c, y_c) };
            Recipe { method, alpha_kl: 0.1, filter }.decide(&record).unwrap()
        };
        let (good, bad) = ("Ask at the desk first.", "I can't help with that.");
        for method in [Method::Trace, Method::NoKl, Method::NoImpact, Method::OraclePunish] {
            let flawed = decide(method, on, Invert, bad, "");
            assert_eq!(flawed.term, Some(Term::PunishOne(Rejected)), "the violating response alone");
            let promoted = Promoted { part: Chosen, over: Rejected, flaw: Some(Flaw::Refusal) };
            assert_eq!(flawed.promoted, Some(promoted));
            assert_eq!(decide(method, on, Invert, good, "").term, Some(Term::Prefer(Chosen, Rejected)));
            let counted = decide(method, Filter::default(), Invert, bad, "");
            assert_eq!(counted, Decision { term: Some(Term::Prefer(Chosen, Rejected)), ..flawed });
        }
        assert_eq!(decide(Method::OraclePunish, on, Punish, bad, bad).term, Some(Term::PunishBoth));
        assert_eq!(decide(Method::OraclePunish, on, Punish, bad, good).term, Some(Term::Prefer(Correction, Chosen)));
        for method in [Method::Dpo, Method::Ipo, Method::DpoGold, Method::NaiveOracleDpo] {
            assert_eq!(decide(method, on, Invert, bad, "").term, None, "nothing to fall back to");
            let retained = decide(method, on, Retain, bad, "");
            assert_eq!(retained, Decision { term: Some(Term::Prefer(Chosen, Rejected)), promoted: None });
        }
        assert_eq!(decide(Method::DpoGold, on, Punish, good, bad).term, None);
        assert_eq!(
            decide(Method::DpoGold, on, Punish, bad, "").term,
            Some(Term::Prefer(Chosen, Rejected)),
            "as stored"
        );
        assert_eq!(decide(Method::Trace, on, Retain, bad, "").term, Some(Term::Anchor));
        for method in [Method::NoTriage, Method::Npo, Method::U2a, Method::Sft] {
            let untouched = decide(method, on, Invert, bad, "");
            assert_eq!(untouched, Decision { promoted: None, ..decide(method, Filter::default(), Invert, bad, "") });
        }
    }

    #[test]
    fn weights_say_which_terms_they_were_made_for() {
        let on = Filter { mode: shared::quality::Mode::On, least_words: 3 };
        let name = |method, filter| Recipe { method, alpha_kl: 0.1, filter }.scored_as();
        assert_eq!(name(Method::NoKl, Filter::default()), "trace");
        assert_eq!(name(Method::NoKl, on), "trace+quality-3");
        assert_eq!(name(Method::U2a, on), "u2a", "it promotes nothing");
    }
}
