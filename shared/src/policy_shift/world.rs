//! One world: what differs between seeds, and the questions that need it.
//!
//! Draws of the stream `facts`, in order: for each town and attribute its value; then the shuffle of all sums (a outer,
//! b inner), whose first 150 are held out. Written as `world.json`, which is all that a judge needs beside this code.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::domains::Task;
use super::judge::{Verdict, judge};
use super::moves::{compliant, render};
use super::policies::Policy;
use super::skill::{self, ATTRIBUTES, TOWNS, VALUES};
use super::{recipe, stream};
use crate::error::{Error, Result};

const FORMAT: u32 = 1;

/// The world of one seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct World {
    seed: u64,
    /// Index into the attribute's values, by town and attribute.
    facts: [[usize; 3]; 30],
    held_out_sums: Vec<(usize, usize)>,
}

/// What a prompt asks in this world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Help with a task, which the policies speak of.
    Task(Task),
    /// A skill question, which no policy speaks of.
    Skill(skill::Question),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WorldFile {
    format: u32,
    seed: u64,
    /// Town → attribute → value.
    facts: BTreeMap<String, BTreeMap<String, String>>,
    held_out_sums: Vec<(usize, usize)>,
}

impl World {
    /// Draws the world of a seed.
    pub fn new(seed: u64) -> World {
        let mut rng = stream(seed, "facts");
        let mut facts = [[0; 3]; 30];
        for town in &mut facts {
            for (attribute, values) in VALUES.iter().enumerate() {
                town[attribute] = rng.below(values.len());
            }
        }
        let mut sums: Vec<(usize, usize)> = (0..90).flat_map(|a| (0..10).map(move |b| (a, b))).collect();
        rng.shuffle(&mut sums);
        sums.truncate(recipe::HELDOUT_SUMS);
        World { seed, facts, held_out_sums: sums }
    }

    /// Reads a `world.json`.
    pub fn load(path: &Path) -> Result<World> {
        let bytes = std::fs::read(path).map_err(|source| Error::io("read", path, source))?;
        let file: WorldFile = serde_json::from_slice(&bytes)
            .map_err(|error| Error::file(path, format!("this is not a world file: {error}")))?;
        World::from_file(file).map_err(|problem| Error::file(path, problem))
    }

    fn from_file(file: WorldFile) -> std::result::Result<World, String> {
        if file.format != FORMAT {
            return Err(format!("format {} is not known; make the world again with this version", file.format));
        }
        let mut facts = [[0; 3]; 30];
        for (town, name) in TOWNS.iter().enumerate() {
            for (attribute, of) in ATTRIBUTES.iter().enumerate() {
                let value = file.facts.get(*name).and_then(|known| known.get(*of));
                let value = value.ok_or_else(|| format!("the {of} of {name} is missing"))?;
                facts[town][attribute] = VALUES[attribute]
                    .iter()
                    .position(|known| known == value)
                    .ok_or_else(|| format!("{value:?} cannot be the {of} of {name}"))?;
            }
        }
        if let Some((a, b)) = file.held_out_sums.iter().find(|(a, b)| *a > 89 || *b > 9) {
            return Err(format!("held_out_sums: {a} + {b} is not a sum of this world"));
        }
        Ok(World { seed: file.seed, facts, held_out_sums: file.held_out_sums })
    }

    /// Returns what `world.json` holds.
    pub fn to_file(&self) -> impl Serialize + use<> {
        let facts = TOWNS.iter().enumerate().map(|(town, name)| {
            let known = ATTRIBUTES
                .iter()
                .enumerate()
                .map(|(attribute, of)| ((*of).to_owned(), VALUES[attribute][self.facts[town][attribute]].to_owned()));
            ((*name).to_owned(), known.collect())
        });
        WorldFile { format: FORMAT, seed: self.seed, facts: facts.collect(), held_out_sums: self.held_out_sums.clone() }
    }

    /// Returns the seed the world was drawn from.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Returns the sums (a, b) that no training file asks, in drawn order.
    pub fn held_out_sums(&self) -> &[(usize, usize)] {
        &self.held_out_sums
    }

    /// Returns what the prompt asks; none when it does not belong to this world.
    pub fn question(prompt: &str) -> Option<Question> {
        Task::find(prompt).map(Question::Task).or_else(|| skill::Question::find(prompt).map(Question::Skill))
    }

    /// Returns the right answer to a skill question.
    pub fn answer(&self, question: skill::Question) -> String {
        match question {
            skill::Question::Sum { a, b } => skill::sum_answer(a + b),
            skill::Question::Fact { town, attribute } => {
                format!("{} .", VALUES[attribute][self.facts[town][attribute]])
            }
        }
    }

    /// Judges a response; none when the prompt does not belong to this world. A skill question is judged by exact match
    /// under both policies.
    pub fn judge(&self, policy: Policy, prompt: &str, response: &str, finished: bool) -> Option<Verdict> {
        match World::question(prompt)? {
            Question::Task(task) => Some(judge(policy, task, response, finished)),
            Question::Skill(question) => {
                let correct = finished && response == self.answer(question);
                let reason = (!correct).then(|| "it is not the right answer".to_owned());
                Some(Verdict { compliant: correct, garbled: !finished, core: None, moves: Vec::new(), reason })
            }
        }
    }

    /// Writes a response that complies with the policy; none when the prompt does not belong to this world. The same
    /// prompt always gets the same text.
    pub fn correct(&self, policy: Policy, prompt: &str) -> Option<String> {
        match World::question(prompt)? {
            Question::Task(task) => {
                let mut rng = stream(self.seed, &format!("correction under {}: {prompt}", policy.name()));
                Some(render(&compliant(&policy.rule(task.domain), &mut rng), task, &mut rng))
            }
            Question::Skill(question) => Some(self.answer(question)),
        }
    }
}
