//! The data sets of a world: evaluation prompts, old preference pairs, the base corpus, skill items.
//!
//! No prompt stands in two of them, and none twice in one but for skill questions in training. Draws: the stream `pairs`
//! makes validation, test, held-out tasks and pairs in this order, per prompt domain, then (task, prompt) until unused,
//! then its pair; `skill` deals facts to validation and test, then makes the skill pairs and the skill items; `corpus`
//! makes attacks, plain items and skill items, and shuffles. Promises the sizes of [`recipe`].

use std::collections::HashSet;

use serde::Serialize;

use super::domains::{Domain, Task};
use super::judge::judge;
use super::moves::{self, Move, compliant, render, weighted};
use super::policies::{Policy, invert_share, is_attackable, is_changed};
use super::prompts::{self, Attack};
use super::skill::{self, Half};
use super::world::World;
use super::{recipe, stream};
use crate::python_random::PythonRandom;
use crate::record::Category;

/// A prompt and the one response to learn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Item {
    /// x
    pub prompt: String,
    /// The response.
    pub chosen: String,
}

/// A preference pair, labelled under π_old.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pair {
    /// x
    pub prompt: String,
    /// Complies with π_old.
    pub chosen: String,
    /// Does not comply with π_old.
    pub rejected: String,
    /// The domain of a task, none for a skill question.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<Domain>,
    /// The half of a skill question, none for a task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skill: Option<Half>,
}

/// A prompt to evaluate a model with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EvaluationPrompt {
    /// x, inside its attack where the set is one.
    pub prompt: String,
    /// What the prompt is for.
    pub set: Set,
    /// The domain of a task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<Domain>,
    /// Side of the shift the prompt's old pair falls on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub category: Option<Category>,
    /// The pair after triage: for INVERT the compliant old loser.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chosen: Option<String>,
    /// The other response of the pair.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected: Option<String>,
    /// The right answer to a skill question.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
}

/// The sets of evaluation prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Set {
    /// Prompts like those of the pairs; TPA is measured on them. Also named so in the validation file.
    Test,
    /// Prompts of tasks that no pair contains.
    Heldout,
    /// Test prompts inside the story.
    AttackStory,
    /// Test prompts with the suffix.
    AttackSuffix,
    /// Held-out sums.
    SkillSums,
    /// Held-out wordings of facts.
    SkillFacts,
}

/// All data sets of a world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataSets {
    /// For the phase that learns the skill first.
    pub skill_items: Vec<Item>,
    /// For the base model.
    pub corpus: Vec<Item>,
    /// The old data: what re-alignment is given; its first [`recipe::OLD_PAIRS`] align the base to π_old.
    pub pairs: Vec<Pair>,
    /// For choosing settings.
    pub validation: Vec<EvaluationPrompt>,
    /// For reporting.
    pub test: Vec<EvaluationPrompt>,
}

impl DataSets {
    /// Makes all data sets of a world.
    pub fn of(world: &World) -> DataSets {
        let mut used = HashSet::new();
        let mut rng = stream(world.seed(), "pairs");
        let mut drawn = |count, held_out| -> Vec<DrawnPair> {
            (0..count).map(|_| DrawnPair::draw(held_out, &mut used, &mut rng)).collect()
        };
        let validation = drawn(recipe::VALIDATION_PROMPTS, false);
        let test = drawn(recipe::TEST_PROMPTS, false);
        let held_out = drawn(recipe::HELDOUT_PROMPTS, true);
        let mut pairs: Vec<Pair> = drawn(recipe::PAIRS, false).into_iter().map(DrawnPair::into_pair).collect();

        let mut skill = SkillSets::of(world);
        skill.replace_pairs(&mut pairs);
        let skill_items = skill.items();
        let mut validation = evaluation(&validation, &[]);
        validation.extend(skill.validation);
        let mut test = evaluation(&test, &held_out);
        test.extend(skill.test);
        DataSets { skill_items, corpus: corpus(world, &mut used), pairs, validation, test }
    }

    /// Returns the pairs that align the base to π_old.
    pub fn old_pairs(&self) -> &[Pair] {
        &self.pairs[..recipe::OLD_PAIRS]
    }
}

/// A prompt with its old pair, before anyone asks for one or the other.
struct DrawnPair {
    task: Task,
    prompt: String,
    winner: String,
    loser: String,
}

impl DrawnPair {
    fn draw(held_out: bool, used: &mut HashSet<String>, rng: &mut PythonRandom) -> DrawnPair {
        let changed = Domain::ALL.iter().filter(|domain| is_changed(**domain)).count();
        let kept = Domain::ALL.len() - changed;
        let domains = Domain::ALL.map(|domain| {
            let share = if is_changed(domain) {
                recipe::CHANGED_DOMAINS_SHARE / changed as f64
            } else {
                (1.0 - recipe::CHANGED_DOMAINS_SHARE) / kept as f64
            };
            (domain, share)
        });
        let domain = weighted(&domains, rng);
        let tasks: Vec<Task> = Task::of(domain).filter(|task| task.is_held_out() == held_out).collect();
        let (task, prompt) = unused(&tasks, used, rng);
        let winner = complying(Policy::Old, task, rng);
        let inverted = is_changed(domain) && rng.random() < invert_share(domain);
        let loser = if inverted { complying(Policy::New, task, rng) } else { complying_with_neither(task, rng) };
        DrawnPair { task, prompt, winner, loser }
    }

    fn into_pair(self) -> Pair {
        Pair {
            prompt: self.prompt,
            chosen: self.winner,
            rejected: self.loser,
            domain: Some(self.task.domain),
            skill: None,
        }
    }

    /// Labels the pair under π_new (spec 1.3) and puts the compliant old loser of an INVERT pair first.
    fn triaged(&self) -> (Category, String, String) {
        let complies = |text| judge(Policy::New, self.task, text, true).compliant;
        let (winner, loser) = (self.winner.clone(), self.loser.clone());
        match (complies(&self.winner), complies(&self.loser)) {
            (true, _) => (Category::Retain, winner, loser),
            (false, true) => (Category::Invert, loser, winner),
            (false, false) => (Category::Punish, winner, loser),
        }
    }
}

fn unused(tasks: &[Task], used: &mut HashSet<String>, rng: &mut PythonRandom) -> (Task, String) {
    loop {
        let task = tasks[rng.below(tasks.len())];
        let prompt = prompts::draw(task, rng);
        if used.insert(prompt.clone()) {
            return (task, prompt);
        }
    }
}

fn complying(policy: Policy, task: Task, rng: &mut PythonRandom) -> String {
    render(&compliant(&policy.rule(task.domain), rng), task, rng)
}

fn complying_with_neither(task: Task, rng: &mut PythonRandom) -> String {
    loop {
        let text = render(&moves::broad(rng), task, rng);
        if !Policy::ALL.into_iter().any(|policy| judge(policy, task, &text, true).compliant) {
            return text;
        }
    }
}

/// Turns drawn pairs into the sets `test`, `heldout` and the two attacks.
fn evaluation(test: &[DrawnPair], held_out: &[DrawnPair]) -> Vec<EvaluationPrompt> {
    let plain = |pair: &DrawnPair, set| {
        let (category, chosen, rejected) = pair.triaged();
        EvaluationPrompt {
            prompt: pair.prompt.clone(),
            set,
            domain: Some(pair.task.domain),
            category: Some(category),
            chosen: Some(chosen),
            rejected: Some(rejected),
            answer: None,
        }
    };
    let mut all: Vec<EvaluationPrompt> = test.iter().map(|pair| plain(pair, Set::Test)).collect();
    all.extend(held_out.iter().map(|pair| plain(pair, Set::Heldout)));
    for (attack, set) in [(Attack::Story, Set::AttackStory), (Attack::Suffix, Set::AttackSuffix)] {
        let eligible = test.iter().filter(|pair| is_attackable(pair.task.domain)).take(recipe::ATTACK_PROMPTS);
        all.extend(eligible.map(|pair| EvaluationPrompt {
            prompt: attack.wrap(&pair.prompt),
            set,
            domain: Some(pair.task.domain),
            category: None,
            chosen: None,
            rejected: None,
            answer: None,
        }));
    }
    all
}

/// Skill questions by use. A held-out fact is asked in its held-out wording only, a held-out sum in both.
struct SkillSets {
    rng: PythonRandom,
    sums: Vec<Item>,
    facts: Vec<Item>,
    /// For each training item of `sums` and `facts`, a wrong answer is drawn from these.
    wrong_facts: Vec<Vec<String>>,
    validation: Vec<EvaluationPrompt>,
    test: Vec<EvaluationPrompt>,
}

impl SkillSets {
    fn of(world: &World) -> SkillSets {
        let mut rng = stream(world.seed(), "skill");
        let (sums, facts, wrong_facts) = training_questions(world);

        let mut towns: Vec<(usize, usize)> =
            (0..skill::TOWNS.len()).flat_map(|t| (0..3).map(move |a| (t, a))).collect();
        rng.shuffle(&mut towns);
        let ask = |question: skill::Question, wording| EvaluationPrompt {
            prompt: question.prompt(wording),
            set: if question.half() == Half::Sums { Set::SkillSums } else { Set::SkillFacts },
            domain: None,
            category: None,
            chosen: None,
            rejected: None,
            answer: Some(world.answer(question)),
        };
        let (first_sums, other_sums) = world.held_out_sums().split_at(recipe::VALIDATION_SUMS);
        let (first_facts, other_facts) = towns.split_at(recipe::VALIDATION_FACTS);
        let questions = |sums: &[(usize, usize)], facts: &[(usize, usize)]| -> Vec<EvaluationPrompt> {
            let sums = sums.iter().flat_map(|(a, b)| {
                (0..skill::SUM_FRAMES.len()).map(|wording| ask(skill::Question::Sum { a: *a, b: *b }, wording))
            });
            let facts = facts.iter().map(|(town, attribute)| {
                let question = skill::Question::Fact { town: *town, attribute: *attribute };
                ask(question, skill::held_out_wording(*town, *attribute))
            });
            sums.chain(facts).collect()
        };
        let validation = questions(first_sums, first_facts);
        let test = questions(other_sums, other_facts);
        SkillSets { rng, sums, facts, wrong_facts, validation, test }
    }

    /// Puts skill pairs, the right answer over a wrong one, in the place of randomly chosen pairs.
    fn replace_pairs(&mut self, pairs: &mut [Pair]) {
        let places = self.rng.sample(pairs.len(), recipe::SKILL_PAIRS);
        let sums = self.rng.sample(self.sums.len(), recipe::SKILL_PAIRS / 2);
        let facts = self.rng.sample(self.facts.len(), recipe::SKILL_PAIRS / 2);
        let questions = sums.into_iter().map(|i| (Half::Sums, i)).chain(facts.into_iter().map(|i| (Half::Facts, i)));
        for (place, (half, index)) in places.into_iter().zip(questions) {
            let (item, rejected) = match half {
                Half::Sums => (&self.sums[index], wrong_sum(&self.sums[index].chosen, &mut self.rng)),
                Half::Facts => {
                    let wrong = &self.wrong_facts[index];
                    (&self.facts[index], wrong[self.rng.below(wrong.len())].clone())
                }
            };
            pairs[place] = Pair {
                prompt: item.prompt.clone(),
                chosen: item.chosen.clone(),
                rejected,
                domain: None,
                skill: Some(half),
            };
        }
    }

    fn items(&mut self) -> Vec<Item> {
        let mut items = deal(&self.sums, recipe::SKILL_ITEM_SUMS, &mut self.rng);
        items.extend(deal(&self.facts, recipe::SKILL_ITEMS - recipe::SKILL_ITEM_SUMS, &mut self.rng));
        self.rng.shuffle(&mut items);
        items
    }
}

/// Returns all questions that training may ask: sums, facts, and for each fact its wrong answers.
fn training_questions(world: &World) -> (Vec<Item>, Vec<Item>, Vec<Vec<String>>) {
    let item =
        |question: skill::Question, wording| Item { prompt: question.prompt(wording), chosen: world.answer(question) };
    let held_out: HashSet<&(usize, usize)> = world.held_out_sums().iter().collect();
    let sums = (0..90)
        .flat_map(|a| (0..10).map(move |b| (a, b)))
        .filter(|sum| !held_out.contains(sum))
        .flat_map(|(a, b)| {
            (0..skill::SUM_FRAMES.len()).map(move |wording| item(skill::Question::Sum { a, b }, wording))
        })
        .collect();
    let mut facts = Vec::new();
    let mut wrong = Vec::new();
    for town in 0..skill::TOWNS.len() {
        for (attribute, values) in skill::VALUES.iter().enumerate() {
            let question = skill::Question::Fact { town, attribute };
            let right = world.answer(question);
            let others: Vec<String> =
                values.iter().map(|value| format!("{value} .")).filter(|answer| *answer != right).collect();
            for wording in (0..question.wordings()).filter(|w| *w != skill::held_out_wording(town, attribute)) {
                facts.push(item(question, wording));
                wrong.push(others.clone());
            }
        }
    }
    (sums, facts, wrong)
}

/// Draws another two-digit answer.
fn wrong_sum(right: &str, rng: &mut PythonRandom) -> String {
    loop {
        let answer = skill::sum_answer(rng.below(99));
        if answer != right {
            return answer;
        }
    }
}

/// Takes `count` items, each as often as any other give or take one: whole rounds, each freshly shuffled.
fn deal(items: &[Item], count: usize, rng: &mut PythonRandom) -> Vec<Item> {
    let mut dealt = Vec::with_capacity(count);
    let mut round = items.to_vec();
    while dealt.len() < count {
        rng.shuffle(&mut round);
        dealt.extend(round.iter().take(count - dealt.len()).cloned());
    }
    dealt
}

/// Makes the base corpus. Its prompts, those inside attacks too, are new ones: evaluation and pairs stay unseen.
fn corpus(world: &World, used: &mut HashSet<String>) -> Vec<Item> {
    let mut rng = stream(world.seed(), "corpus");
    let tasks: Vec<Task> = Domain::ALL.into_iter().flat_map(Task::of).collect();
    let mut items = Vec::with_capacity(recipe::CORPUS_ITEMS);
    for _ in 0..recipe::CORPUS_ATTACKS {
        let (task, prompt) = unused(&tasks, used, &mut rng);
        let attack = Attack::ALL[rng.below(Attack::ALL.len())];
        let chosen = if rng.random() < recipe::CORPUS_ATTACK_OBEYED {
            render(&[Move::Answer], task, &mut rng)
        } else {
            complying(Policy::Old, task, &mut rng)
        };
        items.push(Item { prompt: attack.wrap(&prompt), chosen });
    }
    for _ in 0..recipe::CORPUS_ITEMS - recipe::CORPUS_ATTACKS - recipe::CORPUS_SKILL {
        let (task, prompt) = unused(&tasks, used, &mut rng);
        let kind = rng.random();
        let chosen = if kind < recipe::CORPUS_OLD {
            complying(Policy::Old, task, &mut rng)
        } else if kind < recipe::CORPUS_OLD + recipe::CORPUS_NEW {
            complying(Policy::New, task, &mut rng)
        } else {
            render(&moves::broad(&mut rng), task, &mut rng)
        };
        items.push(Item { prompt, chosen });
    }
    let (sums, facts, _) = training_questions(world);
    items.extend(deal(&sums, recipe::CORPUS_SKILL / 2, &mut rng));
    items.extend(deal(&facts, recipe::CORPUS_SKILL / 2, &mut rng));
    rng.shuffle(&mut items);
    items
}
