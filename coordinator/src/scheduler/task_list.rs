//! The tasks of a stage at work, with what is asked of them at every event kept beside them: which wait, which run, how
//! many are done, how far they are together, where one of a name lies. None of these looks at all tasks.
//!
//! What is kept is counted anew, task by task, by whoever changed one: [`Tasks::recount`].

use std::collections::BTreeSet;
use std::ops::Deref;

use serde::{Deserialize, Deserializer};

use super::run::{Task, TaskState};
use crate::plan;

/// The tasks of a stage, in the order of its plan.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Tasks {
    all: Vec<Task>,
    /// Options that the commands of all tasks begin with; those in a task's plan follow.
    common: Vec<String>,
    /// Positions in order of names.
    by_name: Vec<u32>,
    /// Each task as it was counted last.
    counted: Vec<Counted>,
    waiting: BTreeSet<u32>,
    running: BTreeSet<u32>,
    sums: Sums,
    has_gangs: bool,
}

/// What of a task is counted.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Counted {
    class: Class,
    done: u64,
    total: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Not in any count yet.
    New,
    Waiting,
    Running,
    Done,
}

/// Sums over all tasks. A size is known once a task has told its total.
#[derive(Debug, Clone, Default, PartialEq)]
struct Sums {
    done: u64,
    sizes: u64,
    with_size: u64,
    /// Of those that are done.
    sizes_done: u64,
    with_size_done: u64,
    /// What those that are not done have told.
    told: u64,
}

impl Counted {
    fn of(task: &Task) -> Counted {
        let class = match task.state {
            TaskState::Waiting => Class::Waiting,
            TaskState::Running { .. } => Class::Running,
            TaskState::Done => Class::Done,
        };
        Counted { class, done: task.done, total: task.total }
    }
}

impl Sums {
    /// Adds a task, or takes it out.
    fn count(&mut self, task: Counted, by: i64) {
        let add = |sum: &mut u64, value: u64| *sum = sum.wrapping_add_signed(by.wrapping_mul(value as i64));
        let (is_done, has_size) = (task.class == Class::Done, u64::from(task.total > 0));
        if task.class == Class::New {
            return;
        }
        add(&mut self.sizes, task.total);
        add(&mut self.with_size, has_size);
        if is_done {
            add(&mut self.done, 1);
            add(&mut self.sizes_done, task.total);
            add(&mut self.with_size_done, has_size);
        } else {
            add(&mut self.told, task.done);
        }
    }
}

impl Tasks {
    /// The tasks of a stage that begins now.
    pub(crate) fn new(plans: Vec<plan::Task>, now_ms: u64) -> Tasks {
        let first = plans.first().map(|plan| plan.args.clone()).unwrap_or_default();
        let alike = |plan: &plan::Task| first.iter().zip(&plan.args).take_while(|(a, b)| a == b).count();
        let shared = plans.iter().map(alike).min().unwrap_or(0);
        let own = |mut plan: plan::Task| {
            // Into a vector of their own length: there may be many.
            plan.args = plan.args.split_off(shared).into_iter().collect();
            Task::new(plan, now_ms)
        };
        let common = first[..shared].to_vec();
        Tasks::of(common, plans.into_iter().map(own).collect())
    }

    /// Tasks as they were saved; `common` are the options that all their commands begin with.
    pub(crate) fn of(common: Vec<String>, all: Vec<Task>) -> Tasks {
        assert!(u32::try_from(all.len()).is_ok(), "a stage has fewer than 4 milliard tasks");
        let mut by_name: Vec<u32> = (0..all.len() as u32).collect();
        by_name.sort_by(|a, b| all[*a as usize].plan.name.cmp(&all[*b as usize].plan.name));
        let counted = vec![Counted { class: Class::New, done: 0, total: 0 }; all.len()];
        let has_gangs = all.iter().any(|task| task.plan.world_size > 1);
        let mut tasks = Tasks { all, common, by_name, counted, has_gangs, ..Tasks::default() };
        (0..tasks.all.len()).for_each(|index| tasks.recount(index));
        tasks
    }

    /// Returns a task to be changed; [`Tasks::recount`] must follow.
    pub(super) fn get_mut(&mut self, index: usize) -> &mut Task {
        &mut self.all[index]
    }

    /// Takes into account what a task has become.
    pub(super) fn recount(&mut self, index: usize) {
        let now = Counted::of(&self.all[index]);
        let before = std::mem::replace(&mut self.counted[index], now);
        self.sums.count(before, -1);
        self.sums.count(now, 1);
        if before.class != now.class {
            let index = index as u32;
            match before.class {
                Class::Waiting => self.waiting.remove(&index),
                Class::Running => self.running.remove(&index),
                Class::New | Class::Done => true,
            };
            match now.class {
                Class::Waiting => self.waiting.insert(index),
                Class::Running => self.running.insert(index),
                Class::New | Class::Done => true,
            };
        }
    }

    /// Returns the options that the commands of all tasks begin with.
    pub(crate) fn common(&self) -> &[String] {
        &self.common
    }

    /// Returns the positions of tasks that wait, in order.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = usize> + '_ {
        self.waiting.iter().map(|index| *index as usize)
    }

    /// Returns the positions of tasks that run, in order.
    pub(crate) fn running(&self) -> impl Iterator<Item = usize> + '_ {
        self.running.iter().map(|index| *index as usize)
    }

    /// Returns how many wait, run and are done.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        (self.waiting.len() as u64, self.running.len() as u64, self.sums.done)
    }

    /// Returns whether some task is for more than one worker.
    pub(super) fn has_gangs(&self) -> bool {
        self.has_gangs
    }

    pub(crate) fn are_done(&self) -> bool {
        self.sums.done == self.all.len() as u64
    }

    /// Finds a task by name.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        let at = self.by_name.binary_search_by(|index| self.all[*index as usize].plan.name.as_str().cmp(name));
        at.ok().map(|at| self.by_name[at] as usize)
    }

    /// Returns how far they are, of how much. A task that has told nothing yet is taken to be as large as the mean of those
    /// that have.
    pub(crate) fn progress(&self) -> (u64, u64) {
        let Sums { done, sizes, with_size, sizes_done, with_size_done, told } = self.sums;
        let all = self.all.len() as u64;
        if with_size == 0 {
            return (done, if done == 0 { 0 } else { all });
        }
        let mean = sizes / with_size;
        (sizes_done + mean * (done - with_size_done) + told, sizes + mean * (all - with_size))
    }
}

impl Deref for Tasks {
    type Target = [Task];

    fn deref(&self) -> &[Task] {
        &self.all
    }
}

/// As they lay within their run's record, whole, before each had a record of its own.
impl<'de> Deserialize<'de> for Tasks {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Tasks, D::Error> {
        Ok(Tasks::of(Vec::new(), Vec::deserialize(deserializer)?))
    }
}

#[cfg(test)]
mod tests {
    use shared::keyed_random::KeyedRandom;

    use super::*;
    use crate::plan::Kind;

    fn tasks(count: usize) -> Tasks {
        let plan = |number: usize| plan::Task {
            name: format!("shard-{number}"),
            kind: Kind::Score,
            args: ["--model", "m", "--out"].into_iter().map(str::to_owned).chain([number.to_string()]).collect(),
            world_size: 1,
            min_workers: None,
            outputs: vec![],
        };
        Tasks::new((0..count).map(plan).collect(), 0)
    }

    #[test]
    fn what_all_commands_begin_with_is_kept_once() {
        let all = tasks(3);
        assert_eq!(all.common(), ["--model", "m", "--out"]);
        assert_eq!(all[2].plan.args, ["2"]);
        assert_eq!((tasks(1).common().len(), tasks(0).common().len()), (4, 0));
    }

    #[test]
    fn a_task_is_found_by_its_name_whatever_the_order_of_names() {
        let all = tasks(120);
        assert!((0..120).all(|index| all.find(&format!("shard-{index}")) == Some(index)));
        assert_eq!(all.find("shard-120"), None);
    }

    /// What is kept is what looking at all tasks would find.
    #[test]
    fn counts_follow_every_change() {
        let mut all = tasks(20);
        let mut random = KeyedRandom::new(&[7]);
        for _ in 0..2000 {
            let index = random.below(20) as usize;
            let task = all.get_mut(index);
            task.state = match random.below(3) {
                0 => TaskState::Waiting,
                1 => TaskState::Running {
                    members: vec![],
                    since_ms: 1,
                    met: true,
                    broken: None,
                    told_to_leave_ms: None,
                    growing: false,
                },
                _ => TaskState::Done,
            };
            (task.done, task.total) = (random.below(5), random.below(3) * 10);
            all.recount(index);
            let is = |wanted: fn(&TaskState) -> bool| {
                all.iter().enumerate().filter(|(_, task)| wanted(&task.state)).map(|(at, _)| at).collect::<Vec<_>>()
            };
            assert_eq!(all.waiting().collect::<Vec<_>>(), is(|state| *state == TaskState::Waiting));
            assert_eq!(all.running().collect::<Vec<_>>(), is(|state| matches!(state, TaskState::Running { .. })));
            let finished = is(|state| *state == TaskState::Done).len();
            assert_eq!((all.counts().2, all.are_done()), (finished as u64, finished == 20));

            let sizes: Vec<u64> = all.iter().map(|task| task.total).filter(|total| *total > 0).collect();
            let mean = sizes.iter().sum::<u64>() / (sizes.len() as u64).max(1);
            let size = |task: &Task| if task.total > 0 { task.total } else { mean };
            let done = |task: &Task| if task.is_done() { size(task) } else { task.done };
            if !sizes.is_empty() {
                let expected = (all.iter().map(done).sum::<u64>(), all.iter().map(size).sum::<u64>());
                assert_eq!(all.progress(), expected);
            }
        }
    }
}
