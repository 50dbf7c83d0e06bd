//! A made-up, harmless world in which a policy shift can be seen and measured exactly in minutes.
//!
//! Owns the world: its domains, prompts and moves, the two policies, the judge that reads texts without a model, the
//! unrelated skill, and the data sets made of them. Everything is a pure function of one seed: the same seed gives the
//! same bytes. It is not SynthValueBench. `docs/policy-shift.md` describes it for readers; reading and writing files is
//! left to the callers, but for [`World::load`].
//!
//! Random streams: each is Python's generator, seeded with the first eight bytes (little-endian) of the BLAKE3 hash of
//! a text that names seed and purpose ([`stream`]). There is one for the world's facts, one for evaluation prompts and
//! pairs, one for the skill, one for the corpus, and one for every correction. A module that draws says in what order.

pub mod data_sets;
mod domains;
mod judge;
pub mod moves;
mod policies;
mod prompts;
pub mod recipe;
pub mod skill;
pub mod tokenizer;
mod world;

pub use domains::{Domain, Task};
pub use judge::{Verdict, judge};
pub use moves::Move;
pub use policies::{Policy, Rule, invert_share, is_attackable, is_changed};
pub use prompts::{Attack, draw as draw_prompt};
pub use world::{Question, World};

use crate::python_random::PythonRandom;

/// Returns the generator of one purpose in the world of `seed`.
pub(crate) fn stream(seed: u64, purpose: &str) -> PythonRandom {
    let hash = blake3::hash(format!("policy-shift world {seed}: {purpose}").as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    PythonRandom::new(u64::from_le_bytes(first))
}

#[cfg(test)]
mod tests;
