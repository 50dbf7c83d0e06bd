//! Who submits runs, pauses, resumes and cancels them and drains workers: one command after the other, each asked again
//! where no answer came.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use shared::keyed_random::KeyedRandom;

use super::control::Input;
use super::world::{Happening, TROUBLE_MS, World};
use crate::plan::{Kind, Place, Plan, Stage, Task, Work};
use crate::scheduler::event::{Event, Refusal, Source};

/// Stages of a run, one after the other.
pub(super) const STAGES: [(&str, Place); 6] = [
    ("prepare", Place::Coordinator),
    ("triage", Place::Oracle),
    ("score", Place::Workers),
    ("train", Place::Workers),
    ("generate", Place::Workers),
    ("report", Place::Coordinator),
];

#[derive(Debug, Clone, PartialEq)]
enum Command {
    Submit(String),
    Pause(String),
    Resume(String),
    Cancel(String),
    Drain(String),
}

/// What a run consists of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    shards: u32,
    gang: u32,
    min_workers: Option<u32>,
}

pub(super) struct People {
    shapes: BTreeMap<String, Shape>,
    /// Commands to come, in order.
    planned: VecDeque<(u64, Command)>,
    /// What was asked and not answered.
    asked: Option<(u64, Command)>,
    next: u64,
    /// Runs that somebody wanted to be over.
    pub(super) cancelled: BTreeSet<String>,
}

/// Returns the tasks of a stage.
pub(super) fn plan_tasks(shape: &Shape, stage: usize) -> Vec<Task> {
    let task = |name: String, kind, world_size, min_workers| {
        let (args, outputs) = (Vec::new(), Vec::new());
        Task { name, kind, args, world_size, min_workers, outputs }
    };
    let shards = |kind| (0..shape.shards).map(|n| task(format!("shard-{n}"), kind, 1, None)).collect();
    match STAGES[stage].0 {
        "score" => shards(Kind::Score),
        "train" => vec![task("train".into(), Kind::Train, shape.gang, shape.min_workers)],
        "generate" => shards(Kind::Generate),
        _ => Vec::new(),
    }
}

impl People {
    pub(super) fn draw(random: &mut KeyedRandom, machines: usize) -> People {
        let mut draw = |from: u64, to: u64| from + random.below(to - from + 1);
        let mut planned = vec![(10, Command::Submit("r".into()))];
        let mut shapes = BTreeMap::new();
        for run in ["r", "s"] {
            let gang = draw(1, machines.min(3) as u64) as u32;
            let min_workers = (draw(0, 1) == 1).then_some(1);
            shapes.insert(run.to_owned(), Shape { shards: draw(1, 5) as u32, gang, min_workers });
        }
        if draw(0, 1) == 1 {
            planned.push((draw(100, 40_000), Command::Submit("s".into())));
        }
        for _ in 0..draw(0, 3) {
            let at_ms = draw(2000, TROUBLE_MS - 30_000);
            let run = if draw(0, 2) == 0 { "s" } else { "r" }.to_owned();
            match draw(0, 7) {
                0 => {
                    planned.push((at_ms, Command::Cancel(run.clone())));
                    planned.push((at_ms + draw(1, 9000), Command::Submit(run)));
                }
                1 => planned.push((at_ms, Command::Cancel(run))),
                2 => planned.push((at_ms, Command::Submit(run))),
                3 | 4 => planned.push((at_ms, Command::Drain(format!("w{}", draw(0, machines as u64 - 1))))),
                _ => {
                    planned.push((at_ms, Command::Pause(run.clone())));
                    planned.push((at_ms + draw(1, 15_000), Command::Resume(run)));
                }
            }
        }
        planned.sort_by_key(|(at_ms, _)| *at_ms);
        People { shapes, planned: planned.into(), asked: None, next: 0, cancelled: BTreeSet::new() }
    }

    pub(super) fn shape(&self, run: &str) -> Shape {
        self.shapes[run]
    }

    /// Nobody will answer what was asked: it is asked again.
    pub(super) fn unanswered(&mut self) {
        if let Some((_, command)) = self.asked.take() {
            self.planned.push_front((0, command));
        }
    }

    /// Returns whether there is nothing to ask for any more.
    pub(super) fn is_content(&self) -> bool {
        self.planned.is_empty() && self.asked.is_none()
    }

    /// When all is well, what was paused goes on.
    pub(super) fn calm(&mut self) {
        let at_ms = self.planned.back().map_or(0, |(at_ms, _)| *at_ms);
        for run in self.shapes.keys() {
            self.planned.push_back((at_ms, Command::Resume(run.clone())));
        }
    }

    fn event(&mut self, command: &Command) -> Event {
        match command.clone() {
            Command::Submit(run) => {
                let stage = |(index, (name, place)): (usize, &(&str, Place))| Stage {
                    name: (*name).to_owned(),
                    after: index.checked_sub(1).into_iter().collect(),
                    place: *place,
                    work: Work::Report,
                };
                let stages = STAGES.iter().enumerate().map(stage).collect();
                let source = Source { text: run.clone(), file: "run.toml".into(), folder: "/".into(), set: Vec::new() };
                Event::RunSubmitted { plan: Plan { run, stages }, source }
            }
            Command::Pause(run) => Event::PauseAsked { run },
            Command::Resume(run) => Event::ResumeAsked { run },
            Command::Cancel(run) => {
                self.cancelled.insert(run.clone());
                Event::CancelAsked { run }
            }
            Command::Drain(worker) => Event::DrainAsked { worker },
        }
    }
}

impl World {
    pub(super) fn person(&mut self) {
        self.after(250, Happening::Person);
        let elapsed_ms = self.elapsed_ms();
        if self.people.asked.is_some() || !self.control.is_up() {
            return;
        }
        let is_due = self.people.planned.front().is_some_and(|(at_ms, _)| *at_ms <= elapsed_ms);
        let Some((_, command)) = is_due.then(|| self.people.planned.pop_front()).flatten() else { return };
        let event = self.people.event(&command);
        self.people.next += 1;
        let number = self.people.next;
        self.people.asked = Some((number, command));
        self.control_input(Input::Asked { event, answer: number });
    }

    /// A person gets an answer: what it says is on the disk.
    pub(super) fn answered(&mut self, number: u64, reply: Result<(), Refusal>) {
        let Some((_, command)) = self.people.asked.take_if(|(asked, _)| *asked == number) else {
            return self.checks.fail("an answer to nobody");
        };
        self.tell(|| format!("a person is answered: {command:?}: {reply:?}"));
        if reply.is_err() {
            return;
        }
        let saved = |run: &str| self.disk.value("runs", run).map(|run| run["state"].as_str().unwrap_or("").to_owned());
        let (run, holds) = match &command {
            Command::Submit(run) => (run, saved(run).is_some()),
            Command::Pause(run) => (run, saved(run).as_deref() == Some("Paused")),
            Command::Resume(run) => (run, saved(run).is_some_and(|state| state != "Paused")),
            Command::Cancel(run) => (run, saved(run).as_deref() == Some("Cancelled")),
            Command::Drain(_) => return,
        };
        if !holds {
            self.checks.fail(&format!("{command:?} is answered before it was saved: {run} is {:?}", saved(run)));
        }
    }
}
