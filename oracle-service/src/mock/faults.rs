//! Failures on plan: which request, batch or line fails, and how. Planned by count, range or seeded share, so that a test
//! knows what it gets.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;
use shared::keyed_random::KeyedRandom;

/// What a rule counts, from 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Of {
    /// Chat completions, in the order of their arrival.
    #[default]
    Chat,
    /// Requests to /v1/files; what ends badly after the work is done has done it.
    FileCalls,
    /// Requests to /v1/batches, likewise.
    BatchCalls,
    /// Batches created.
    Batch,
    /// Lines of batches, in the order in which they are worked on, over all batches.
    Line,
}

const DOMAINS: usize = 5;

/// A rule of the plan: which ones fail, and how.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rule {
    #[serde(default)]
    pub(crate) of: Of,
    /// This one alone.
    pub(crate) request: Option<u64>,
    /// From this one on.
    pub(crate) from: Option<u64>,
    /// Up to and including this one.
    pub(crate) to: Option<u64>,
    /// Of these every so manieth.
    pub(crate) every: Option<u64>,
    /// Of these such a share, drawn by the plan's seed.
    pub(crate) share: Option<f64>,
    pub(crate) what: String,
    pub(crate) retry_after_s: Option<u64>,
}

/// How a request, a batch or a line fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    Status {
        status: u16,
        code: &'static str,
        retry_after_s: Option<u64>,
        /// Without any header that speaks of limits.
        bare: bool,
    },
    /// No answer, ever.
    Hang,
    /// The connection ends within the answer.
    Cut,
    /// An answer that is no JSON.
    Garbage,
    /// An answer without content.
    Null,
    /// An answer that is none of the two words.
    Unclear,
    /// The model refuses in its own words.
    Refusal,
    /// The other verdict: a judge that drifts.
    Flip,
    /// Another build of the model answers.
    Fingerprint,
    /// A line that is in neither of a batch's files.
    Missing,
    /// A line that is in the output twice.
    Duplicate,
    /// A line, or the rest of a batch, that is not worked on in time.
    Expired,
    /// A batch that does not pass its validation.
    Failed,
    /// A batch that the account has no room for at this time.
    QueueFull,
}

/// The plan, and how many of each came.
#[derive(Debug)]
pub(super) struct Faults {
    rules: Vec<(Rule, Fault)>,
    seed: u64,
    came: [AtomicU64; DOMAINS],
    /// How often a planned failure was given, by its name.
    given: Mutex<BTreeMap<String, u64>>,
}

impl Rule {
    fn fault(&self) -> Result<Fault, String> {
        let status = |status, code, bare| Fault::Status { status, code, retry_after_s: self.retry_after_s, bare };
        let fault = match self.what.as_str() {
            "429" => status(429, "rate_limit_exceeded", false),
            "429-bare" => status(429, "rate_limit_exceeded", true),
            "quota" => status(429, "insufficient_quota", false),
            "500" => status(500, "server_error", false),
            "503" => status(503, "server_error", false),
            "401" => status(401, "invalid_api_key", false),
            "hang" => Fault::Hang,
            "cut" => Fault::Cut,
            "garbage" => Fault::Garbage,
            "null" => Fault::Null,
            "unclear" => Fault::Unclear,
            "refusal" => Fault::Refusal,
            "flip" => Fault::Flip,
            "fingerprint" => Fault::Fingerprint,
            "missing" => Fault::Missing,
            "duplicate" => Fault::Duplicate,
            "expired" => Fault::Expired,
            "failed" => Fault::Failed,
            "queue-full" => Fault::QueueFull,
            other => return Err(format!("what = {other:?} is no failure this server knows")),
        };
        let possible = match fault {
            Fault::Status { .. } => self.of != Of::Batch,
            Fault::Hang | Fault::Cut | Fault::Garbage => !matches!(self.of, Of::Batch | Of::Line),
            Fault::Null | Fault::Unclear | Fault::Refusal | Fault::Flip | Fault::Fingerprint => {
                matches!(self.of, Of::Chat | Of::Line)
            }
            Fault::Missing | Fault::Duplicate => self.of == Of::Line,
            Fault::Expired => matches!(self.of, Of::Batch | Of::Line),
            Fault::Failed | Fault::QueueFull => self.of == Of::Batch,
        };
        if possible { Ok(fault) } else { Err(format!("what = {:?} cannot happen of = {:?}", self.what, self.of)) }
    }

    fn problem(&self) -> Option<String> {
        if self.retry_after_s.is_some() && !self.what.starts_with("429") {
            return Some(format!("retry_after_s belongs to a 429, not to {:?}", self.what));
        }
        let ranged = self.from.is_some() || self.to.is_some() || self.every.is_some() || self.share.is_some();
        if self.request.is_some() == ranged {
            return Some("name either request, or some of from, to, every and share".into());
        }
        if self.request == Some(0) || self.from == Some(0) || self.every == Some(0) {
            return Some("request, from and every count from 1".into());
        }
        self.share
            .filter(|share| !(0.0..=1.0).contains(share))
            .map(|share| format!("share = {share} is not from 0 to 1"))
    }

    fn holds(&self, number: u64, draw: impl FnOnce() -> f64) -> bool {
        if let Some(request) = self.request {
            return number == request;
        }
        let from = self.from.unwrap_or(1);
        number >= from
            && self.to.is_none_or(|to| number <= to)
            && self.every.is_none_or(|every| (number - from).is_multiple_of(every))
            && self.share.is_none_or(|share| draw() < share)
    }
}

impl Faults {
    /// Returns a plan's failures; where several rules hold the first does.
    ///
    /// # Errors
    /// A rule that makes no sense.
    pub(super) fn new(rules: &[Rule], seed: u64) -> Result<Faults, String> {
        let read = |(index, rule): (usize, &Rule)| {
            let fault = rule.problem().map_or_else(|| rule.fault(), Err);
            fault.map(|fault| (rule.clone(), fault)).map_err(|problem| format!("fault {index}: {problem}"))
        };
        let rules = rules.iter().enumerate().map(read).collect::<Result<_, _>>()?;
        Ok(Faults { rules, seed, came: Default::default(), given: Mutex::default() })
    }

    /// Counts one that came; returns its number and how it is to fail.
    pub(super) fn next(&self, of: Of) -> (u64, Option<Fault>) {
        let number = self.came[of as usize].fetch_add(1, Ordering::Relaxed) + 1;
        let draw = |index: usize| KeyedRandom::new(&[self.seed, 0xfa17, of as u64, index as u64, number]).uniform();
        let found = self
            .rules
            .iter()
            .enumerate()
            .find(|(index, (rule, _))| rule.of == of && rule.holds(number, || draw(*index)));
        let fault = found.map(|(_, (rule, fault))| {
            let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
            *given.entry(rule.what.clone()).or_default() += 1;
            fault.clone()
        });
        (number, fault)
    }

    /// Returns how many came.
    pub(super) fn came(&self, of: Of) -> u64 {
        self.came[of as usize].load(Ordering::Relaxed)
    }

    /// Returns how often each planned failure was given.
    pub(super) fn given(&self) -> BTreeMap<String, u64> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Result<Faults, String> {
        #[derive(Deserialize)]
        struct File {
            fault: Vec<Rule>,
        }
        let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
        Faults::new(&file.fault, 5)
    }

    fn numbers(faults: &Faults, of: Of, up_to: u64) -> Vec<u64> {
        (0..up_to).map(|_| faults.next(of)).filter(|(_, fault)| fault.is_some()).map(|(number, _)| number).collect()
    }

    #[test]
    fn one_and_ranges_and_every_so_manieth() {
        let plan = "[[fault]]\nrequest = 2\nwhat = 'cut'\n[[fault]]\nfrom = 5\nto = 11\nevery = 3\nwhat = '500'\n\
                    [[fault]]\nof = 'line'\nfrom = 9\nwhat = 'missing'\n";
        let found = faults(plan).unwrap();
        assert_eq!(numbers(&found, Of::Chat, 20), [2, 5, 8, 11]);
        assert_eq!(numbers(&found, Of::Line, 10), [9, 10], "each domain has its own count");
        assert_eq!(found.given()["500"], 3);
        assert_eq!(found.came(Of::Chat), 20);
    }

    #[test]
    fn a_share_is_drawn_by_the_seed_and_the_first_rule_wins() {
        let plan = "[[fault]]\nrequest = 1\nwhat = 'null'\n[[fault]]\nshare = 0.2\nwhat = '429-bare'\n";
        let one = numbers(&faults(plan).unwrap(), Of::Chat, 5000);
        assert!((800..1200).contains(&one.len()), "{}", one.len());
        assert_eq!(one, numbers(&faults(plan).unwrap(), Of::Chat, 5000));
        assert_eq!(faults(plan).unwrap().next(Of::Chat).1, Some(Fault::Null));
    }

    #[test]
    fn rules_that_make_no_sense_are_refused_by_their_place() {
        for (rule, named) in [
            ("what = 'cut'", "request"),
            ("request = 1\nfrom = 2\nwhat = 'cut'", "request"),
            ("request = 0\nwhat = 'cut'", "from 1"),
            ("share = 1.5\nwhat = 'cut'", "1.5"),
            ("request = 1\nwhat = 'missing'", "cannot happen"),
            ("of = 'batch'\nrequest = 1\nwhat = '500'", "cannot happen"),
            ("request = 1\nwhat = '500'\nretry_after_s = 3", "retry_after_s"),
        ] {
            let error = faults(&format!("[[fault]]\n{rule}\n")).unwrap_err();
            assert!(error.starts_with("fault 0: ") && error.contains(named), "{rule}: {error}");
        }
    }
}
