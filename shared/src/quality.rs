//! Whether a response that training promotes says anything (weakness 52).
//!
//! Inverting a pair promotes what was dispreferred, which may comply only by being empty or evasive; a correction may be a
//! refusal. [`flaw`] finds such responses by a short list of English phrases ([`phrases`]) and by counting words. It is
//! meant to be wrong on the side of keeping: a refusal counts only where little else is said. A policy that wants refusals
//! wants no filter.

mod figures;
pub mod phrases;

use serde::{Deserialize, Serialize};

pub use figures::{Figures, Spread};
use phrases::{first_sentence, is_non_answer, is_refusal, sentences, words};

use crate::record::Text;

/// What is done about promoted responses that are flawed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// They are counted.
    Off,
    /// They are counted and listed.
    #[default]
    Report,
    /// They are counted, listed and not promoted.
    On,
}

impl std::str::FromStr for Mode {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "off" => Ok(Mode::Off),
            "report" => Ok(Mode::Report),
            "on" => Ok(Mode::On),
            other => Err(format!("{other:?} is no quality filter; expected off, report or on")),
        }
    }
}

/// Words a promoted response must have where nothing else is said.
pub const LEAST_WORDS: u64 = 3;

/// A refusal in a response with more words than this stands beside an answer.
const REFUSAL_WORDS: usize = 40;

/// The filter of promoted responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filter {
    /// What is done.
    pub mode: Mode,
    /// A response with fewer words is flawed.
    pub least_words: u64,
}

impl Default for Filter {
    fn default() -> Self {
        Filter { mode: Mode::default(), least_words: LEAST_WORDS }
    }
}

impl Filter {
    /// Returns whether it changes what is trained.
    pub fn acts(self) -> bool {
        self.mode == Mode::On
    }

    /// Returns the name under which weights of a method are kept that promotes responses: with the filter where it acts, so
    /// that weights of other loss terms are told apart.
    pub fn marked(self, method: &str) -> String {
        if self.acts() { format!("{method}+quality-{}", self.least_words) } else { method.to_owned() }
    }

    /// Returns what is wrong with a response that is promoted.
    pub fn flaw(self, prompt: &Text, response: &str) -> Option<Flaw> {
        flaw(prompt, response, self.least_words)
    }
}

/// What is wrong with a promoted response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flaw {
    /// No letter and no digit.
    Empty,
    /// The words of the prompt and no others.
    RepeatsPrompt,
    /// Opens with a refusal, and says little else.
    Refusal,
    /// Phrases that answer nothing, and no others.
    NonAnswer,
    /// Fewer words than asked for.
    Short,
}

/// Returns what is wrong with a response to a prompt, the most telling flaw first. `least_words` is the number of words below
/// which it is too short.
pub fn flaw(prompt: &Text, response: &str, least_words: u64) -> Option<Flaw> {
    let said = words(response);
    if said.is_empty() {
        return Some(Flaw::Empty);
    }
    if repeats(&said, &words(&asked(prompt))) || repeats(&said, &words(&prompt.prompt_text())) {
        return Some(Flaw::RepeatsPrompt);
    }
    let sentences = sentences(response);
    if said.len() <= REFUSAL_WORDS && first_sentence(&sentences).is_some_and(is_refusal) {
        return Some(Flaw::Refusal);
    }
    if sentences.iter().all(|sentence| is_non_answer(sentence)) {
        return Some(Flaw::NonAnswer);
    }
    ((said.len() as u64) < least_words).then_some(Flaw::Short)
}

/// Returns the last thing the user said.
fn asked(prompt: &Text) -> String {
    match prompt {
        Text::Plain(text) => text.clone(),
        Text::Turns(turns) => {
            turns.iter().rev().find(|turn| turn.role == "user").map(|turn| turn.content.clone()).unwrap_or_default()
        }
    }
}

/// Returns whether `said` is `prompt`, once or several times.
fn repeats(said: &[String], prompt: &[String]) -> bool {
    !prompt.is_empty()
        && said.len().is_multiple_of(prompt.len())
        && said.chunks(prompt.len()).all(|part| part == prompt)
}

#[cfg(test)]
mod tests;
