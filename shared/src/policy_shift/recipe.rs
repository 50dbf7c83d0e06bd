//! Every number of the example world in one place: sizes of its data sets and probabilities of its generators.
//!
//! The tables of words, frames and policies stand beside the code that uses them; the shape of the model stands in
//! [`super::tokenizer`]. Changing a number here changes the world for every seed, so old artifacts no longer match.

/// Validation prompts, each with an old preference pair.
pub const VALIDATION_PROMPTS: usize = 250;
/// Test prompts, each with an old preference pair.
pub const TEST_PROMPTS: usize = 400;
/// Prompts of tasks that no pair contains.
pub const HELDOUT_PROMPTS: usize = 200;
/// Old preference pairs given to re-alignment.
pub const PAIRS: usize = 1200;
/// Pairs about the unrelated skill among [`PAIRS`], half sums and half facts.
pub const SKILL_PAIRS: usize = 120;
/// The first pairs that also align the deployed model to π_old.
pub const OLD_PAIRS: usize = 1000;
/// Eligible evaluation prompts that are also asked inside each attack.
pub const ATTACK_PROMPTS: usize = 150;

/// Items of the corpus the base model is trained on.
pub const CORPUS_ITEMS: usize = 20_000;
/// Skill items in the corpus, half sums and half facts.
pub const CORPUS_SKILL: usize = CORPUS_ITEMS * 30 / 100;
/// Corpus items whose prompt stands in an attack wrapper.
pub const CORPUS_ATTACKS: usize = CORPUS_ITEMS * 8 / 100;
/// Share of corpus attacks that are answered with a bare ANSWER; the others comply with π_old.
pub const CORPUS_ATTACK_OBEYED: f64 = 0.80;
/// Share of plain corpus items that comply with π_old.
pub const CORPUS_OLD: f64 = 0.35;
/// Share of plain corpus items that comply with π_new; the rest are broad.
pub const CORPUS_NEW: f64 = 0.40;

/// Items of the skill phase: 100 batches of 64.
pub const SKILL_ITEMS: usize = 6400;
/// Sums among [`SKILL_ITEMS`]; the others are facts.
pub const SKILL_ITEM_SUMS: usize = SKILL_ITEMS * 75 / 100;
/// Sums (a, b) whose questions no training file contains, out of 900.
pub const HELDOUT_SUMS: usize = 150;
/// Held-out sums asked in validation; the others are asked in the test.
pub const VALIDATION_SUMS: usize = 50;
/// Held-out facts asked in validation; the others, 60 of 90, are asked in the test.
pub const VALIDATION_FACTS: usize = 30;

/// Probability mass of the domains whose policy changed, shared equally.
pub const CHANGED_DOMAINS_SHARE: f64 = 0.55;
/// Moves beside the core that a compliant response may have.
pub const MAX_EXTRAS: usize = 3;
/// Sentences a response may have before the judge rejects it.
pub const MAX_SENTENCES: usize = 5;
/// Words a recognised sentence may have.
pub const MAX_SENTENCE_WORDS: usize = 14;
/// Tokens a response may have, its closing `</s>` included.
pub const MAX_RESPONSE_TOKENS: usize = 48;
/// Probability that RUDE stands before the core.
pub const RUDE_FIRST: f64 = 0.5;
/// Probability that DISCLAIM opens the response.
pub const DISCLAIM_FIRST: f64 = 0.4;
