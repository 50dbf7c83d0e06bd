//! What the load showed: counted while it runs, then told.

use std::collections::HashMap;
use std::fmt::Write;
use std::time::Duration;

use proto::coordinator::TaskRef;
use serde::Serialize;

use super::server::Usage;
use super::worker::{Seen, Waited};

/// Counts what workers see.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) joined: u64,
    pub(super) joined_again: u64,
    pub(super) beats: u64,
    pub(super) progress: u64,
    pub(super) assigned: u64,
    /// By task, the attempts that were assigned, and those whose finish was stored.
    attempts: HashMap<String, (Vec<u32>, Vec<u32>)>,
    /// Tasks with a stored finish.
    pub(super) stored: u64,
    /// Microseconds between the end of a task and the next, on one connection.
    waited: Vec<u64>,
    /// The same where the coordinator died in between.
    waited_across: Vec<u64>,
    pub(super) wrong: Vec<String>,
}

/// Times in milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Percentiles {
    pub(super) n: usize,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) p999_ms: f64,
    pub(super) max_ms: f64,
}

/// What a kill of the coordinator did.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Kill {
    /// Tasks stored when it came.
    pub(super) at: u64,
    /// Until it listened again.
    pub(super) start_s: f64,
    /// From the kill to the next assignment.
    pub(super) next_assignment_s: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct Memory {
    pub(super) percent: u64,
    #[serde(flatten)]
    pub(super) usage: Usage,
}

/// All that is told at the end.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    pub(super) workers: u64,
    pub(super) tasks: u64,
    /// Tasks whose finish was stored.
    pub(super) completed: u64,
    /// Tasks that finished in two attempts, both stored.
    pub(super) completed_twice: u64,
    /// Attempts beyond the first of their task.
    pub(super) further_attempts: u64,
    pub(super) cut_s: f64,
    pub(super) wall_s: f64,
    pub(super) finish_s: f64,
    pub(super) tasks_per_s: f64,
    pub(super) heartbeats_per_s: f64,
    pub(super) progress_per_s: f64,
    pub(super) assignment: Percentiles,
    pub(super) assignment_across_deaths: Percentiles,
    pub(super) memory: Vec<Memory>,
    pub(super) coordinator_cpu_s: f64,
    pub(super) bench_cpu_s: f64,
    pub(super) kills: Vec<Kill>,
    pub(super) state_mib: f64,
    /// What the coordinator says of the stage at the end.
    pub(super) stage: String,
}

impl Tally {
    /// Takes in what a worker saw. While tasks wait, a free worker waits for the coordinator alone: only then its time counts.
    pub(super) fn take(&mut self, seen: Seen, tasks: u64) {
        match seen {
            Seen::Joined { again: false } => self.joined += 1,
            Seen::Joined { again: true } => self.joined_again += 1,
            Seen::Beat => self.beats += 1,
            Seen::Progress => self.progress += 1,
            Seen::Assigned { task, waited } => {
                if let Some(Waited { time, across }) = waited.filter(|_| (self.attempts.len() as u64) < tasks) {
                    let into = if across { &mut self.waited_across } else { &mut self.waited };
                    into.push(time.as_micros() as u64);
                }
                self.assigned += 1;
                self.attempts.entry(task.task).or_default().0.push(task.attempt);
            }
            Seen::Stored(TaskRef { task, attempt, .. }) => {
                let (_, stored) = self.attempts.entry(task).or_default();
                self.stored += u64::from(stored.is_empty());
                if !stored.contains(&attempt) {
                    stored.push(attempt);
                }
            }
            Seen::Wrong(problem) => self.wrong.push(problem),
        }
    }

    pub(super) fn completed_twice(&self) -> u64 {
        self.attempts.values().filter(|(_, stored)| stored.len() > 1).count() as u64
    }

    pub(super) fn further_attempts(&self) -> u64 {
        self.attempts.values().map(|(assigned, _)| assigned.iter().filter(|attempt| **attempt > 1).count() as u64).sum()
    }

    pub(super) fn assignment(&self) -> Percentiles {
        percentiles(self.waited.clone())
    }

    pub(super) fn assignment_across_deaths(&self) -> Percentiles {
        percentiles(self.waited_across.clone())
    }
}

fn percentiles(mut micros: Vec<u64>) -> Percentiles {
    micros.sort_unstable();
    let at = |part: f64| {
        let index = ((micros.len() as f64 * part).ceil() as usize).clamp(1, micros.len().max(1)) - 1;
        micros.get(index).map_or(0.0, |micros| Duration::from_micros(*micros).as_secs_f64() * 1000.0)
    };
    Percentiles { n: micros.len(), p50_ms: at(0.5), p99_ms: at(0.99), p999_ms: at(0.999), max_ms: at(1.0) }
}

impl Figures {
    /// Returns what is wrong: a task lost, or run twice to completion, or a stage that did not end as it should.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.completed < self.tasks {
            problems.push(format!("{} of {} tasks were not completed", self.tasks - self.completed, self.tasks));
        }
        if self.completed_twice > 0 {
            problems.push(format!("{} tasks were run twice to completion", self.completed_twice));
        }
        if self.completed == self.tasks && self.stage != "done" {
            problems.push(format!("the stage is {}", self.stage));
        }
        problems
    }

    /// Returns a table for people.
    pub(super) fn table(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            let _ = writeln!(text, "{name:<34} {value}");
        };
        let times = |p: &Percentiles| {
            format!(
                "p50 {:.1} ms, p99 {:.1} ms, p99.9 {:.1} ms, max {:.0} ms (n {})",
                p.p50_ms, p.p99_ms, p.p999_ms, p.max_ms, p.n
            )
        };
        line("workers", self.workers.to_string());
        line("tasks completed", format!("{} of {}", self.completed, self.tasks));
        line("tasks run twice to completion", self.completed_twice.to_string());
        line("attempts beyond a task's first", self.further_attempts.to_string());
        line("stage cut into tasks", format!("{:.1} s", self.cut_s));
        line("tasks carried out", format!("{:.1} s, {:.0} a second", self.wall_s, self.tasks_per_s));
        line("stage finished after", format!("{:.1} s; it is {}", self.finish_s, self.stage));
        line("heartbeats, progress", format!("{:.0}, {:.0} a second", self.heartbeats_per_s, self.progress_per_s));
        line("end of a task to the next", times(&self.assignment));
        if self.assignment_across_deaths.n > 0 {
            line("the same across a death", times(&self.assignment_across_deaths));
        }
        for Memory { percent, usage } in &self.memory {
            let value = format!("{:.0} MiB resident, {:.0} at most", usage.resident_mib, usage.peak_mib);
            line(&format!("coordinator at {percent} % of tasks"), value);
        }
        line("processor time", format!("coordinator {:.1} s, bench {:.1} s", self.coordinator_cpu_s, self.bench_cpu_s));
        line("state on disk", format!("{:.1} MiB", self.state_mib));
        for kill in &self.kills {
            let value =
                format!("listened after {:.2} s, next task after {:.2} s", kill.start_s, kill.next_assignment_s);
            line(&format!("killed at {} tasks", kill.at), value);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(name: &str, attempt: u32) -> TaskRef {
        TaskRef { task: name.into(), attempt, ..TaskRef::default() }
    }

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let p = percentiles((1..=1000).map(|n| n * 1000).collect());
        assert_eq!((p.n, p.p50_ms, p.p99_ms, p.p999_ms, p.max_ms), (1000, 500.0, 990.0, 999.0, 1000.0));
        assert_eq!(percentiles(vec![]).max_ms, 0.0);
    }

    #[test]
    fn a_finish_told_twice_is_one_and_two_attempts_are_two() {
        let mut tally = Tally::default();
        for _ in 0..2 {
            tally.take(Seen::Stored(task("a", 1)), 2);
        }
        assert_eq!((tally.stored, tally.completed_twice()), (1, 0));
        tally.take(Seen::Stored(task("a", 2)), 2);
        assert_eq!((tally.stored, tally.completed_twice()), (1, 1));
    }
}
