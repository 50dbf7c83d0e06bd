//! What a run consists of: stages in order, and what each of them asks of whom.
//!
//! A plan is made once from a run file and never changes; what happened is the scheduler's. Stages are an enum, their
//! order is code: there is no general workflow language.

use std::path::PathBuf;

use proto::coordinator::TaskKind;
use serde::{Deserialize, Serialize};

use crate::run_file::{RunFile, Source};

/// All stages of a run, in an order in which each stands after those it needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// Name of the run and of its folder under the artifacts.
    pub(crate) run: String,
    pub(crate) stages: Vec<Stage>,
}

/// One stage: begun (its inputs hashed, its tasks cut), carried out, finished (its outputs joined, its manifest written).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stage {
    /// Unique in the run and usable as a file name: `score-trace`.
    pub(crate) name: String,
    /// Indices of the stages that must be done before.
    pub(crate) after: Vec<usize>,
    /// Who carries it out.
    pub(crate) place: Place,
    /// What is done.
    pub(crate) work: Work,
}

/// What a stage does. Variants and steps are indices into the run file's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Work {
    /// Writes the example world.
    World,
    /// Reads the rows of the user's files into pairs.
    Prepare,
    /// Labels the pairs.
    Triage,
    /// Adds corrections to PUNISH records.
    Correct,
    /// Cuts the labelled records into training and test parts.
    Split,
    /// Trains one step of the deployed model.
    Base(usize),
    /// Draws the gold batch and takes its gradient.
    Gold(usize),
    /// Scores a variant's records.
    Score(usize),
    /// Trains a variant.
    Train(usize),
    /// Merges a variant's adapter into the deployed model.
    Merge(usize),
    /// Generates a variant's responses.
    Generate(usize),
    /// Judges a variant's responses.
    Judge(usize),
    /// Makes the report.
    Report,
}

impl Work {
    fn place(self) -> Place {
        match self {
            Work::World | Work::Prepare | Work::Split | Work::Report => Place::Coordinator,
            Work::Triage | Work::Correct | Work::Judge(_) => Place::Oracle,
            Work::Base(_) | Work::Gold(_) | Work::Score(_) | Work::Train(_) | Work::Merge(_) | Work::Generate(_) => {
                Place::Workers
            }
        }
    }
}

/// Who carries out a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Place {
    /// This process, on the blocking pool.
    Coordinator,
    /// The oracle service.
    Oracle,
    /// Workers, by tasks that are known once the stage has begun.
    Workers,
}

/// A command for one worker, or for a gang of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Task {
    /// Unique in the stage: `shard-003`.
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// The options after `worker KIND`.
    pub(crate) args: Vec<String>,
    /// Members, at least 1; more than one in training only.
    pub(crate) world_size: u32,
    /// With how few members an attempt may begin; with no fewer than all where this is not given.
    #[serde(default)]
    pub(crate) min_workers: Option<u32>,
    /// Files or folders that exist once it is done; relative to the run's folder.
    pub(crate) outputs: Vec<PathBuf>,
}

impl Task {
    /// Returns how many members it wants, and how few will do.
    pub(crate) fn members(&self) -> (usize, usize) {
        let most = self.world_size.max(1) as usize;
        (most, self.min_workers.map_or(most, |least| (least as usize).clamp(1, most)))
    }
}

/// The worker's commands that can be tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub(crate) enum Kind {
    Score,
    Train,
    Generate,
    Merge,
}

impl Kind {
    /// Returns the command's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Score => "score",
            Kind::Train => "train",
            Kind::Generate => "generate",
            Kind::Merge => "merge",
        }
    }
}

impl From<Kind> for TaskKind {
    fn from(kind: Kind) -> TaskKind {
        match kind {
            Kind::Score => TaskKind::Score,
            Kind::Train => TaskKind::Train,
            Kind::Generate => TaskKind::Generate,
            Kind::Merge => TaskKind::Merge,
        }
    }
}

/// Returns the stages of a run.
pub(crate) fn of(file: &RunFile) -> Plan {
    let mut stages = Stages(Vec::new());
    let in_world = file.data.source == Source::PolicyShift;
    let pairs =
        if in_world { stages.add("world", Work::World, &[]) } else { stages.add("prepare", Work::Prepare, &[]) };
    let triage = stages.add("triage", Work::Triage, &[pairs]);
    let corrected = if file.corrects() { stages.add("correct", Work::Correct, &[triage]) } else { triage };
    let records = if file.data.split.is_some() { stages.add("split", Work::Split, &[corrected]) } else { corrected };

    let mut model = None;
    for (index, step) in file.base.iter().enumerate() {
        let after: Vec<usize> = model.into_iter().chain([pairs, records]).collect();
        // A step's data may be any file of the run; those of the world are there long before the triaged ones.
        let after = if step.needs_records() { after } else { after[..after.len() - 1].to_vec() };
        model = Some(stages.add(&format!("base-{}", step.name), Work::Base(index), &after));
    }

    let mut judged = Vec::new();
    for (index, variant) in file.variants.iter().enumerate() {
        let name = |kind: &str| format!("{kind}-{}", variant.name);
        let mut needs: Vec<usize> = model.into_iter().chain([records]).collect();
        if variant.method.is_none() {
            // The base's answers need no labels, unless its prompts are made of them.
            needs = model.into_iter().chain([if variant.eval.needs_records() { records } else { pairs }]).collect();
        }
        if variant.is_scored() {
            let gold = stages.add(&name("gold"), Work::Gold(index), &needs);
            needs = vec![stages.add(&name("score"), Work::Score(index), &[gold])];
        }
        if variant.method.is_some() {
            needs = vec![stages.add(&name("train"), Work::Train(index), &needs)];
        }
        if variant.is_merged() {
            needs = vec![stages.add(&name("merge"), Work::Merge(index), &needs)];
        }
        let generate = stages.add(&name("generate"), Work::Generate(index), &needs);
        judged.push(stages.add(&name("judge"), Work::Judge(index), &[generate]));
    }
    judged.push(triage);
    stages.add("report", Work::Report, &judged);
    Plan { run: file.run.name.clone(), stages: stages.0 }
}

/// Collects stages; each gets the index it is named by in later ones.
struct Stages(Vec<Stage>);

impl Stages {
    fn add(&mut self, name: &str, work: Work, after: &[usize]) -> usize {
        let mut after = after.to_vec();
        after.sort_unstable();
        after.dedup();
        self.0.push(Stage { name: name.to_owned(), after, place: work.place(), work });
        self.0.len() - 1
    }
}

#[cfg(test)]
mod tests;
