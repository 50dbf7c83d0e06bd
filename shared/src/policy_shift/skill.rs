//! The unrelated skill: sums of digits and facts about invented towns, judged by exact match.
//!
//! It stands for a model's general capability: no policy speaks of it. Which sums are held out and what is true of
//! the towns is drawn once per world ([`super::World`]); which wording of a fact is held out follows from a fixed rule,
//! so that every fact can be learned from the other four wordings.

use serde::{Deserialize, Serialize};

/// What can be asked about a town.
pub const ATTRIBUTES: [&str; 3] = ["colour", "river", "craft"];

/// The invented towns.
pub const TOWNS: [&str; 30] = [
    "alvor", "bresk", "calden", "dornum", "elbrik", "fanter", "gorsh", "hulden", "ismar", "jorvel", "kelmar", "lundry",
    "morven", "narbol", "ostrin", "pelgar", "quorin", "rastel", "sundor", "tarvik", "ulmen", "vestry", "wendal",
    "xanter", "yorrim", "zelmar", "abrin", "borlow", "crestin", "delvik",
];

/// The values an attribute can have, by attribute.
pub const VALUES: [[&str; 6]; 3] = [
    ["red", "blue", "green", "yellow", "white", "black"],
    ["silva", "tamor", "wessel", "lirra", "undor", "keth"],
    ["weaving", "pottery", "carving", "smithing", "brewing", "printing"],
];

pub(super) const SUM_FRAMES: [&str; 2] = ["add TENS ONES and OTHER .", "what is TENS ONES plus OTHER ?"];

pub(super) const FACT_FRAMES: [&str; 5] = [
    "what is the ATTRIBUTE of TOWN ?",
    "name the ATTRIBUTE of TOWN .",
    "TOWN : its ATTRIBUTE ?",
    "tell me the ATTRIBUTE of the town TOWN .",
    "do you know the ATTRIBUTE of TOWN ?",
];

/// The two halves of the skill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Half {
    /// A two-digit number plus a digit.
    Sums,
    /// A property of a town.
    Facts,
}

/// A skill question, whatever its wording.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Question {
    /// a + b with a in 0–89 and b in 0–9.
    Sum {
        /// The two-digit summand.
        a: usize,
        /// The one-digit summand.
        b: usize,
    },
    /// An attribute of a town, by index.
    Fact {
        /// Index into [`TOWNS`].
        town: usize,
        /// Index into [`ATTRIBUTES`].
        attribute: usize,
    },
}

impl Question {
    /// Returns the half the question belongs to.
    pub fn half(self) -> Half {
        match self {
            Question::Sum { .. } => Half::Sums,
            Question::Fact { .. } => Half::Facts,
        }
    }

    /// Returns how many wordings the question has.
    pub fn wordings(self) -> usize {
        match self {
            Question::Sum { .. } => SUM_FRAMES.len(),
            Question::Fact { .. } => FACT_FRAMES.len(),
        }
    }

    /// Returns the prompt in one wording.
    pub fn prompt(self, wording: usize) -> String {
        match self {
            Question::Sum { a, b } => SUM_FRAMES[wording]
                .replace("TENS", &(a / 10).to_string())
                .replace("ONES", &(a % 10).to_string())
                .replace("OTHER", &b.to_string()),
            Question::Fact { town, attribute } => {
                FACT_FRAMES[wording].replace("ATTRIBUTE", ATTRIBUTES[attribute]).replace("TOWN", TOWNS[town])
            }
        }
    }

    /// Reads a prompt; none when it is not exactly a skill question.
    pub fn find(prompt: &str) -> Option<Question> {
        let words: Vec<&str> = prompt.split_whitespace().collect();
        sum(&words).or_else(|| fact(&words))
    }
}

/// Returns the wording of a fact that only evaluation asks.
pub fn held_out_wording(town: usize, attribute: usize) -> usize {
    (5 - (town + attribute) % 5) % 5
}

/// Returns the answer to a sum: ones first, so that a model reads the carry before it writes the tens.
pub fn sum_answer(sum: usize) -> String {
    format!("{} {} .", sum % 10, sum / 10)
}

fn sum(words: &[&str]) -> Option<Question> {
    let (tens, ones, other) = match words {
        ["add", tens, ones, "and", other, "."] => (tens, ones, other),
        ["what", "is", tens, ones, "plus", other, "?"] => (tens, ones, other),
        _ => return None,
    };
    let a = digit(tens)? * 10 + digit(ones)?;
    if a > 89 {
        return None;
    }
    Some(Question::Sum { a, b: digit(other)? })
}

fn digit(word: &str) -> Option<usize> {
    match word.as_bytes() {
        [byte @ b'0'..=b'9'] => Some(usize::from(byte - b'0')),
        _ => None,
    }
}

fn fact(words: &[&str]) -> Option<Question> {
    let (attribute, town) = match words {
        ["what", "is", "the", attribute, "of", town, "?"] => (attribute, town),
        ["name", "the", attribute, "of", town, "."] => (attribute, town),
        [town, ":", "its", attribute, "?"] => (attribute, town),
        ["tell", "me", "the", attribute, "of", "the", "town", town, "."] => (attribute, town),
        ["do", "you", "know", "the", attribute, "of", town, "?"] => (attribute, town),
        _ => return None,
    };
    let attribute = ATTRIBUTES.iter().position(|name| name == attribute)?;
    let town = TOWNS.iter().position(|name| name == town)?;
    Some(Question::Fact { town, attribute })
}
