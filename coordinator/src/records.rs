//! Runs as records of the store.
//!
//! ```text
//! runs    RUN                              the run without its tasks
//! plans   RUN/SUBMITTED_MS/STAGE           what the tasks of a stage at work do; written once, when it begins
//! tasks   RUN/SUBMITTED_MS/STAGE/TASK      what became of a task; none for one that has not been placed yet
//! ```
//!
//! STAGE and TASK are positions. An event changes few tasks, so it writes few and small records, whatever the size of its
//! run. When a stage is over its tasks are forgotten: their records mean nothing any more and are removed bit by bit
//! ([`Records::obsolete`]).
//!
//! Earlier versions kept all tasks of a run in its own record. That is read as it stands, and comes in this form when the
//! run is saved next.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};
use shared::store::{Change, Store};
use shared::{Error, Result};

use crate::plan;
use crate::scheduler::run::{Run, StageState, Task, TaskState};
use crate::scheduler::task_list::Tasks;

const RUNS: &str = "runs";
const PLANS: &str = "plans";
const TASKS: &str = "tasks";

/// What is in the store, as far as it must be known to write it: one owner, beside the scheduler.
#[derive(Debug, Default)]
pub(crate) struct Records {
    runs: HashMap<String, Kept>,
    /// Keys that mean nothing any more, by tree.
    obsolete: Vec<(&'static str, String)>,
}

/// What is kept of a run.
#[derive(Debug, Default)]
struct Kept {
    submitted_ms: u64,
    /// Of its own record.
    hash: Option<blake3::Hash>,
    /// Stages with records of tasks, and which tasks have one.
    stages: BTreeMap<usize, BTreeSet<usize>>,
}

/// The tasks of a stage as they were cut.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Plans<'a> {
    /// Options that all commands begin with; a task's own follow.
    common: Cow<'a, [String]>,
    tasks: Vec<Cow<'a, plan::Task>>,
}

/// What became of a task.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Became<'a> {
    state: Cow<'a, TaskState>,
    attempt: u32,
    #[serde(default, skip_serializing_if = "is_default")]
    lost: u32,
    #[serde(default, skip_serializing_if = "is_default")]
    in_vain: u32,
    #[serde(default, skip_serializing_if = "is_default")]
    furthest: u64,
    #[serde(default, skip_serializing_if = "is_default")]
    kept: u64,
    #[serde(default, skip_serializing_if = "is_default")]
    failed: u32,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    note: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "is_default")]
    not_before_ms: u64,
    #[serde(default, skip_serializing_if = "is_default")]
    waits_since_ms: u64,
    #[serde(default, skip_serializing_if = "is_default")]
    done: u64,
    #[serde(default, skip_serializing_if = "is_default")]
    total: u64,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl<'a> Became<'a> {
    fn of(task: &'a Task) -> Became<'a> {
        Became {
            state: Cow::Borrowed(&task.state),
            attempt: task.attempt,
            lost: task.lost,
            in_vain: task.in_vain,
            furthest: task.furthest,
            kept: task.kept,
            failed: task.failed,
            note: Cow::Borrowed(&task.note),
            not_before_ms: task.not_before_ms,
            waits_since_ms: task.waits_since_ms,
            done: task.done,
            total: task.total,
        }
    }

    fn into_task(self, plan: plan::Task) -> Task {
        Task {
            plan,
            state: self.state.into_owned(),
            attempt: self.attempt,
            lost: self.lost,
            in_vain: self.in_vain,
            furthest: self.furthest,
            kept: self.kept,
            failed: self.failed,
            note: self.note.into_owned(),
            not_before_ms: self.not_before_ms,
            waits_since_ms: self.waits_since_ms,
            done: self.done,
            total: self.total,
        }
    }
}

/// All records of a store, read.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) runs: Vec<(String, Run)>,
    pub(crate) plans: Vec<(String, Plans<'static>)>,
    pub(crate) tasks: Vec<(String, Became<'static>)>,
}

impl Found {
    /// Reads a store.
    ///
    /// # Errors
    /// It holds what this version does not understand.
    pub(crate) fn read(store: &Store) -> Result<Found> {
        Ok(Found { runs: store.scan(RUNS)?, plans: store.scan(PLANS)?, tasks: store.scan(TASKS)? })
    }

    /// Reads records as tests keep them, by tree and key.
    #[cfg(test)]
    pub(crate) fn of(saved: &BTreeMap<(String, String), String>) -> Found {
        fn scan<T: serde::de::DeserializeOwned>(
            saved: &BTreeMap<(String, String), String>,
            tree: &str,
        ) -> Vec<(String, T)> {
            let own = saved.iter().filter(|((of, _), _)| of == tree);
            own.map(|((_, key), value)| (key.clone(), serde_json::from_str(value).unwrap())).collect()
        }
        Found { runs: scan(saved, RUNS), plans: scan(saved, PLANS), tasks: scan(saved, TASKS) }
    }
}

/// Names what belongs to a stage of one submission of a run.
fn stage_key(run: &str, submitted_ms: u64, stage: usize) -> String {
    format!("{run}/{submitted_ms}/{stage}")
}

fn task_key(run: &str, submitted_ms: u64, stage: usize, task: usize) -> String {
    format!("{}/{task:08}", stage_key(run, submitted_ms, stage))
}

impl Records {
    /// Puts runs together.
    ///
    /// # Errors
    /// The tasks of a stage at work are missing.
    pub(crate) fn load(found: Found) -> Result<(Records, BTreeMap<String, Run>)> {
        let mut records = Records::default();
        let mut runs: BTreeMap<String, Run> = found.runs.into_iter().collect();
        let mut plans: HashMap<String, Plans> = found.plans.into_iter().collect();
        // A stage's keys are by its tasks', all together and in order.
        let mut became: HashMap<String, Vec<(String, Became)>> = HashMap::new();
        for (key, task) in found.tasks {
            let stage = key.rsplit_once('/').map_or("", |(stage, _)| stage);
            match became.get_mut(stage) {
                Some(tasks) => tasks.push((key, task)),
                None => {
                    became.insert(stage.to_owned(), vec![(key, task)]);
                }
            }
        }
        for (name, run) in &mut runs {
            let mut kept = Kept { submitted_ms: run.submitted_ms, ..Kept::default() };
            let mut is_of_today = true;
            for (index, stage) in run.stages.iter_mut().enumerate() {
                let StageState::Working { tasks } = &mut stage.state else { continue };
                if !tasks.is_empty() {
                    is_of_today = false;
                    continue;
                }
                let key = stage_key(name, run.submitted_ms, index);
                let Some(plans) = plans.remove(&key) else {
                    let stage = &run.plan.stages[index].name;
                    let problem = format!(
                        "the state holds no tasks of run {name}, stage {stage}, which is at work; restore the state \
                         folder, or begin with another one: finished stages are skipped"
                    );
                    return Err(Error::Config(problem));
                };
                let (all, written) = together(plans, became.remove(&key).unwrap_or_default())?;
                *tasks = all;
                kept.stages.insert(index, written);
            }
            if is_of_today {
                kept.hash = Some(hash_of(&Change::put(RUNS, name, run)));
            }
            records.runs.insert(name.clone(), kept);
        }
        records.obsolete.extend(plans.into_keys().map(|key| (PLANS, key)));
        records.obsolete.extend(became.into_values().flatten().map(|(key, _)| (TASKS, key)));
        Ok((records, runs))
    }

    /// Returns what must be written of a run that has changed, and with it these tasks, by stage.
    pub(crate) fn changes(&mut self, name: &str, run: &Run, touched: &BTreeSet<(usize, usize)>) -> Vec<Change> {
        let mut changes = Vec::new();
        let kept = self.runs.entry(name.to_owned()).or_default();
        let is_another = kept.submitted_ms != run.submitted_ms;
        let works = |stage: &usize| run.stages.get(*stage).is_some_and(|stage| stage.work().is_some());
        let over: Vec<usize> = kept.stages.keys().copied().filter(|stage| is_another || !works(stage)).collect();
        for stage in over {
            self.obsolete.push((PLANS, stage_key(name, kept.submitted_ms, stage)));
            let written = kept.stages.remove(&stage).unwrap_or_default();
            let keys = written.into_iter().map(|task| task_key(name, kept.submitted_ms, stage, task));
            self.obsolete.extend(keys.map(|key| (TASKS, key)));
        }
        kept.submitted_ms = run.submitted_ms;
        for (stage, tasks) in run.stages.iter().enumerate().filter_map(|(index, stage)| Some((index, stage.work()?))) {
            let is_new = !kept.stages.contains_key(&stage);
            let written = kept.stages.entry(stage).or_default();
            let mut put = |index: usize| {
                written.insert(index);
                let key = task_key(name, run.submitted_ms, stage, index);
                changes.push(Change::put(TASKS, key, &Became::of(&tasks[index])));
            };
            if is_new {
                (0..tasks.len()).filter(|index| tasks[*index].attempt > 0).for_each(put);
                let plans = tasks.iter().map(|task| Cow::Borrowed(&task.plan)).collect();
                let plans = Plans { common: Cow::Borrowed(tasks.common()), tasks: plans };
                changes.push(Change::put(PLANS, stage_key(name, run.submitted_ms, stage), &plans));
            } else {
                let of_stage = touched.range((stage, 0)..=(stage, usize::MAX));
                of_stage.map(|(_, index)| *index).filter(|index| *index < tasks.len()).for_each(&mut put);
            }
        }
        // Last: what it speaks of is there, should the changes become more than one commit.
        let record = Change::put(RUNS, name, run);
        let hash = hash_of(&record);
        if kept.hash.replace(hash) != Some(hash) {
            changes.push(record);
        }
        changes
    }

    /// Returns removals of records that mean nothing any more, at most so many.
    pub(crate) fn obsolete(&mut self, at_most: usize) -> Vec<Change> {
        let from = self.obsolete.len().saturating_sub(at_most);
        self.obsolete.drain(from..).map(|(tree, key)| Change::remove(tree, key)).collect()
    }
}

fn hash_of(record: &Change) -> blake3::Hash {
    blake3::hash(record.value().unwrap_or_default().as_bytes())
}

/// Puts the tasks of a stage together; returns which of them have a record.
fn together(plans: Plans<'_>, became: Vec<(String, Became<'_>)>) -> Result<(Tasks, BTreeSet<usize>)> {
    let count = plans.tasks.len();
    let mut by_index: Vec<Option<Became>> = std::iter::repeat_with(|| None).take(count).collect();
    let mut written = BTreeSet::new();
    for (key, task) in became {
        let index = key.rsplit_once('/').and_then(|(_, index)| index.parse::<usize>().ok());
        let Some(place) = index.and_then(|index| by_index.get_mut(index)) else {
            return Err(Error::Config(format!("the state holds a task {key}, and its stage has {count}")));
        };
        *place = Some(task);
        written.extend(index);
    }
    let task = |(plan, became): (Cow<'_, plan::Task>, Option<Became>)| match became {
        Some(became) => became.into_task(plan.into_owned()),
        None => Task::new(plan.into_owned(), 0),
    };
    let tasks = plans.tasks.into_iter().zip(by_index).map(task).collect();
    Ok((Tasks::of(plans.common.into_owned(), tasks), written))
}

#[cfg(test)]
mod tests;
