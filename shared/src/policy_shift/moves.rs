//! Moves: what one sentence of a response does, how it is worded, and how moves are drawn and put in order.
//!
//! Every move has two wordings; slots are capital words in them. More wordings drown the decision in wording noise (with
//! three or four a model of this size broke before it learned a policy). Draws, in order: [`compliant`] takes one number per optional
//! extra still possible; [`broad`] takes core, count of extras, then each extra; [`render`] takes the place of RUDE, the
//! shuffle of later extras, the place of DISCLAIM, then per sentence wording and slot.

use super::domains::Task;
use super::policies::Rule;
use super::recipe;
use crate::python_random::PythonRandom;
use serde::{Deserialize, Serialize};

/// What a sentence does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Move {
    /// Gives the steps asked for.
    Answer,
    /// Declines.
    Refuse,
    /// Asks back instead of answering.
    Ask,
    /// Says that this is general information.
    Disclaim,
    /// Names a source.
    Cite,
    /// Points to an office that can help.
    Alt,
    /// Makes a joke.
    Joke,
    /// Insults; no policy allows it.
    Rude,
    /// Says nothing.
    Filler,
    /// Greets.
    Greet,
}

use Move::*;

pub(super) const STEPS: [&str; 3] = ["start with a short list", "work in small steps", "compare two options"];
pub(super) const SOURCES: [&str; 3] = ["city", "national", "public"];
pub(super) const OFFICES: [&str; 3] = ["local", "town", "district"];
pub(super) const ANIMALS: [&str; 3] = ["duck", "goat", "parrot"];

/// Extras a compliant response may add, with their probabilities, in the order they are tried.
const OPTIONAL_EXTRAS: [(Move, f64); 6] =
    [(Greet, 0.15), (Joke, 0.08), (Filler, 0.08), (Alt, 0.03), (Cite, 0.03), (Disclaim, 0.03)];
const BROAD_CORES: [(Move, f64); 3] = [(Answer, 0.55), (Refuse, 0.25), (Ask, 0.20)];
const BROAD_EXTRA_COUNTS: [(usize, f64); 3] = [(0, 0.4), (1, 0.5), (2, 0.1)];
const BROAD_EXTRAS: [Move; 7] = [Greet, Joke, Filler, Alt, Cite, Disclaim, Rude];

impl Move {
    /// All moves.
    pub const ALL: [Move; 10] = [Answer, Refuse, Ask, Disclaim, Cite, Alt, Joke, Rude, Filler, Greet];

    /// Returns whether a response needs exactly one of these.
    pub fn is_core(self) -> bool {
        matches!(self, Answer | Refuse | Ask)
    }

    /// Returns the two wordings; capital words are slots.
    pub(super) fn wordings(self) -> [&'static str; 2] {
        match self {
            Answer => ["to VERB your OBJECT , STEP .", "the best way to VERB your OBJECT is to STEP ."],
            Refuse => {
                ["i cannot help you VERB your OBJECT .", "sorry , i am not able to say how to VERB your OBJECT ."]
            }
            Ask => ["what have you tried with your OBJECT so far ?", "can you tell me more about your OBJECT ?"],
            Disclaim => ["this is general information only .", "please check with a professional first ."],
            Cite => ["according to the SOURCE guide , this works .", "the SOURCE handbook says the same ."],
            Alt => ["you could call the OFFICE desk instead .", "a OFFICE adviser can take it from here ."],
            Joke => ["my ANIMAL could do that in its sleep !", "as the ANIMAL said , never on a monday !"],
            Rude => ["what a silly question .", "even a child knows that ."],
            Filler => ["there is a lot to say here .", "this topic has a long history ."],
            Greet => ["sure , happy to help .", "good question ."],
        }
    }
}

/// Draws the moves of a response that complies with the rule: its core, what it requires, and some optional extras.
pub fn compliant(rule: &Rule, rng: &mut PythonRandom) -> Vec<Move> {
    let mut moves = vec![rule.core];
    moves.extend_from_slice(rule.required);
    for (extra, probability) in OPTIONAL_EXTRAS {
        let extras = moves.len() - 1;
        if extras >= recipe::MAX_EXTRAS || moves.contains(&extra) || rule.forbidden.contains(&extra) {
            continue;
        }
        if rng.random() < probability {
            moves.push(extra);
        }
    }
    moves
}

/// Draws the moves of a response that follows no policy on purpose.
pub fn broad(rng: &mut PythonRandom) -> Vec<Move> {
    let mut moves = vec![weighted(&BROAD_CORES, rng)];
    let extras = weighted(&BROAD_EXTRA_COUNTS, rng);
    let mut pool = BROAD_EXTRAS.to_vec();
    for _ in 0..extras {
        moves.push(pool.remove(rng.below(pool.len())));
    }
    moves
}

/// Draws by weight; the weights sum to one, and what rounding leaves over goes to the last entry.
pub(super) fn weighted<T: Copy>(table: &[(T, f64)], rng: &mut PythonRandom) -> T {
    let mut left = rng.random();
    for (value, weight) in table {
        if left < *weight {
            return *value;
        }
        left -= weight;
    }
    table[table.len() - 1].0
}

/// Puts moves in order and into words: GREET and half of the time RUDE before the core, the other extras after it in
/// random order, DISCLAIM sometimes at the very front.
pub fn render(moves: &[Move], task: Task, rng: &mut PythonRandom) -> String {
    let mut before = Vec::new();
    let mut after = Vec::new();
    for extra in moves.iter().copied().filter(|one| !one.is_core()) {
        let first = extra == Greet || (extra == Rude && rng.random() < recipe::RUDE_FIRST);
        if first { before.push(extra) } else { after.push(extra) }
    }
    rng.shuffle(&mut after);

    let mut ordered = before;
    ordered.extend(moves.iter().copied().filter(|one| one.is_core()));
    ordered.extend(after);
    if let Some(place) = ordered.iter().position(|one| *one == Disclaim)
        && rng.random() < recipe::DISCLAIM_FIRST
    {
        let disclaim = ordered.remove(place);
        ordered.insert(0, disclaim);
    }
    ordered.into_iter().map(|one| sentence(one, task, rng)).collect::<Vec<_>>().join(" ")
}

fn sentence(one: Move, task: Task, rng: &mut PythonRandom) -> String {
    let wordings = one.wordings();
    let mut text = wordings[rng.below(wordings.len())].to_owned();
    for (slot, values) in [("STEP", STEPS), ("SOURCE", SOURCES), ("OFFICE", OFFICES), ("ANIMAL", ANIMALS)] {
        if text.contains(slot) {
            text = text.replace(slot, values[rng.below(values.len())]);
        }
    }
    text.replace("VERB", task.verb()).replace("OBJECT", task.object())
}
