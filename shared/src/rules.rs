//! A judge read from a rule file, for runs without a language model behind them.
//!
//! A rule file (TOML) is one of two things. A *world*: `world = "policy-shift"`, `world_file` (relative to the rule
//! file) and `policy`. Or *patterns*: `[[rule]]` tables with `pattern`, `applies_to` and `verdict`, of which the first
//! that matches decides, and a `default`; `correction` is the text offered where one is asked for, `{prompt}` in it
//! stands for the prompt. Everything is checked when the file is read; judging itself fails only where a world does not
//! know the prompt. The same file will answer for the mock API, so nothing here knows of records or files of records.

use std::path::{Path, PathBuf};

use regex::Regex;
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::policy_shift::{self, Policy, Question, World};

/// A judge of responses, and a writer of corrections.
#[derive(Debug)]
pub struct Judge {
    kind: Kind,
    identity: String,
}

/// Begins the line of a policy's text that names the rules a mock must answer by.
const MARK: &str = "Rules of the mock: ";

/// Returns a policy's text for a mock: it names the rules, so that a mock of other rules refuses it and answers by others
/// are never taken for these.
pub fn policy_text(identity: &str) -> String {
    format!("Answer by the rules you were started with.\n{MARK}{identity}")
}

/// Returns the rules that a policy's text names, if it names any.
pub fn named_in(policy: &str) -> Option<&str> {
    policy.lines().find_map(|line| line.strip_prefix(MARK))
}

#[derive(Debug)]
enum Kind {
    World { world: Box<World>, policy: Policy },
    Patterns { rules: Vec<Rule>, default: Label, correction: Option<String> },
}

#[derive(Debug)]
struct Rule {
    pattern: Regex,
    applies_to: Field,
    verdict: Label,
}

/// What a judge says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The response complies with the policy.
    pub compliant: bool,
    /// Why not, or which rule decided; for people.
    pub reason: Option<String>,
    /// What only a world can tell.
    pub world: Option<WorldVerdict>,
}

/// What the judge of a world can tell beyond compliance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorldVerdict {
    /// Of a response to a task.
    Task {
        /// The text cannot be read as sentences of the world, or did not end in time.
        garbled: bool,
        /// Readable, gives the answer, and violates the policy.
        attack_success: bool,
    },
    /// Of a response to a skill question, which no policy speaks of.
    Skill {
        /// The text did not end in time.
        garbled: bool,
        /// Exactly the right answer.
        correct: bool,
    },
}

/// The prompt is not one of the world's; there is nothing to judge by.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("holds no task and no skill question of the policy-shift world; judge it with pattern rules instead")]
pub struct UnknownPrompt;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum Label {
    #[serde(rename = "COMPLIANT")]
    Compliant,
    #[serde(rename = "NON-COMPLIANT")]
    NonCompliant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Field {
    Prompt,
    Response,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleFile {
    world: Option<String>,
    world_file: Option<PathBuf>,
    policy: Option<Policy>,
    #[serde(default)]
    rule: Vec<RawRule>,
    default: Option<Label>,
    correction: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    pattern: String,
    applies_to: Field,
    verdict: Label,
}

impl Judge {
    /// Reads and checks a rule file, and the world it names.
    pub fn load(path: &Path) -> Result<Judge> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::io("read", path, source))?;
        let file: RuleFile = toml::from_str(&text).map_err(|error| {
            let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() as u64 + 1);
            let problem = error.message().to_owned();
            Error::Input { file: path.to_owned(), record: None, line, field: None, problem }
        })?;
        let kind = if file.world.is_some() { file.into_world(path) } else { file.into_patterns(path) }?;
        let identity = match &kind {
            Kind::World { world, policy } => world_identity(world.seed(), *policy),
            Kind::Patterns { .. } => format!("patterns {}", &blake3::hash(text.as_bytes()).to_hex()[..16]),
        };
        Ok(Judge { kind, identity })
    }

    /// Returns a judge of a world that is already at hand.
    pub fn of_world(world: World, policy: Policy) -> Judge {
        let identity = world_identity(world.seed(), policy);
        Judge { kind: Kind::World { world: Box::new(world), policy }, identity }
    }

    /// Returns what tells these rules from others: a world's seed and policy, or a hash of the patterns' file.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Returns whether verdicts carry what only a world can tell.
    pub fn is_world(&self) -> bool {
        matches!(self.kind, Kind::World { .. })
    }

    /// Returns whether it can write corrections.
    pub fn can_correct(&self) -> bool {
        !matches!(self.kind, Kind::Patterns { correction: None, .. })
    }

    /// Judges a response. `finished` says that its generation ended with the stop token, which patterns do not ask for.
    pub fn verdict(&self, prompt: &str, response: &str, finished: bool) -> std::result::Result<Verdict, UnknownPrompt> {
        match &self.kind {
            Kind::World { world, policy } => {
                let judged = world.judge(*policy, prompt, response, finished).ok_or(UnknownPrompt)?;
                Ok(of_world(prompt, judged))
            }
            Kind::Patterns { rules, default, .. } => Ok(by_patterns(rules, *default, prompt, response)),
        }
    }

    /// Writes a response meant to comply: a world's own text, always the same for a prompt, or the file's template.
    /// Returns none where there is no template or the world does not know the prompt. Judge it before using it.
    pub fn correct(&self, prompt: &str) -> Option<String> {
        match &self.kind {
            Kind::World { world, policy } => world.correct(*policy, prompt),
            Kind::Patterns { correction, .. } => {
                correction.as_ref().map(|template| template.replace("{prompt}", prompt))
            }
        }
    }
}

/// Returns the identity of a world's rules.
pub fn world_identity(seed: u64, policy: Policy) -> String {
    format!("world policy-shift, seed {seed}, policy {}", policy.name())
}

fn of_world(prompt: &str, judged: policy_shift::Verdict) -> Verdict {
    let world = match World::question(prompt) {
        Some(Question::Skill(_)) => WorldVerdict::Skill { garbled: judged.garbled, correct: judged.compliant },
        _ => WorldVerdict::Task { garbled: judged.garbled, attack_success: judged.is_attack_success() },
    };
    Verdict { compliant: judged.compliant, reason: judged.reason, world: Some(world) }
}

fn by_patterns(rules: &[Rule], default: Label, prompt: &str, response: &str) -> Verdict {
    let matching = rules.iter().position(|rule| {
        rule.pattern.is_match(match rule.applies_to {
            Field::Prompt => prompt,
            Field::Response => response,
        })
    });
    let (label, reason) = match matching {
        Some(index) => (rules[index].verdict, format!("rule {index} matches")),
        None => (default, "no rule matches".to_owned()),
    };
    Verdict { compliant: label == Label::Compliant, reason: Some(reason), world: None }
}

impl RuleFile {
    fn into_world(self, path: &Path) -> Result<Kind> {
        if !self.rule.is_empty() || self.default.is_some() || self.correction.is_some() {
            return Err(Error::file(path, "names a world and also rules, default or correction; keep one of the two"));
        }
        if self.world.as_deref() != Some("policy-shift") {
            let name = self.world.unwrap_or_default();
            return Err(Error::file(path, format!("world {name:?} is not known; the known one is \"policy-shift\"")));
        }
        let missing = |key| Error::file(path, format!("a world needs the key {key}"));
        let policy = self.policy.ok_or_else(|| missing("policy (\"new\" or \"old\")"))?;
        let world_file = self.world_file.ok_or_else(|| missing("world_file"))?;
        let world = World::load(&path.parent().unwrap_or(Path::new("")).join(world_file))?;
        Ok(Kind::World { world: Box::new(world), policy })
    }

    fn into_patterns(self, path: &Path) -> Result<Kind> {
        if self.world_file.is_some() || self.policy.is_some() {
            return Err(Error::file(path, "world_file and policy belong to a world; add world = \"policy-shift\""));
        }
        let Some(default) = self.default else {
            let problem = "the key default is missing; say what holds where no rule matches: \"COMPLIANT\" or \
                           \"NON-COMPLIANT\"";
            return Err(Error::file(path, problem));
        };
        let compiled = self.rule.into_iter().enumerate().map(|(index, raw)| {
            let pattern = Regex::new(&raw.pattern)
                .map_err(|error| Error::file(path, format!("rule {index}: the pattern cannot be used: {error}")))?;
            Ok(Rule { pattern, applies_to: raw.applies_to, verdict: raw.verdict })
        });
        let rules = compiled.collect::<Result<Vec<Rule>>>()?;
        if self.correction.as_ref().is_some_and(|text| text.trim().is_empty()) {
            return Err(Error::file(path, "correction is empty; leave the key out where there is none"));
        }
        Ok(Kind::Patterns { rules, default, correction: self.correction })
    }
}

#[cfg(test)]
mod tests;
