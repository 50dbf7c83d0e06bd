use serde_json::json;

use super::*;
use crate::plan::{Kind, Place, Plan, Stage, Work};
use crate::scheduler::event::Source;

/// What a store would hold.
#[derive(Default)]
struct Saved(BTreeMap<(String, String), String>);

impl Saved {
    fn write(&mut self, changes: Vec<Change>) {
        for change in changes {
            let key = (change.name().0.to_owned(), change.name().1.to_owned());
            match change.value() {
                Some(value) => self.0.insert(key, value.to_owned()),
                None => self.0.remove(&key),
            };
        }
    }

    fn of<T: serde::de::DeserializeOwned>(&self, tree: &str) -> Vec<(String, T)> {
        let own = self.0.iter().filter(|((of, _), _)| of == tree);
        own.map(|((_, key), value)| (key.clone(), serde_json::from_str(value).unwrap())).collect()
    }

    fn load(&self) -> Result<(Records, BTreeMap<String, Run>)> {
        Records::load(Found { runs: self.of(RUNS), plans: self.of(PLANS), tasks: self.of(TASKS) })
    }

    fn count(&self, tree: &str) -> usize {
        self.0.keys().filter(|(of, _)| of == tree).count()
    }
}

fn plan_of_task(number: usize) -> plan::Task {
    let args = ["--model".to_owned(), "m".to_owned(), format!("{number}")].to_vec();
    plan::Task {
        name: format!("shard-{number}"),
        kind: Kind::Score,
        args,
        world_size: 1,
        min_workers: None,
        outputs: vec![],
    }
}

fn run() -> Run {
    let stage = Stage { name: "score".into(), after: vec![], place: Place::Workers, work: Work::Score(0) };
    let source = Source { text: "text".into(), file: "f".into(), folder: "/".into(), set: vec![] };
    Run::new(Plan { run: "r".into(), stages: vec![stage] }, source, 7)
}

fn working(tasks: usize) -> Run {
    let mut run = run();
    run.stages[0].state = StageState::Working { tasks: Tasks::new((0..tasks).map(plan_of_task).collect(), 0) };
    run
}

fn with_task_done(run: &Run, index: usize) -> Run {
    let mut run = run.clone();
    let tasks = run.stages[0].work().unwrap();
    let mut all = tasks.to_vec();
    (all[index].state, all[index].attempt) = (TaskState::Done, 1);
    run.stages[0].state = StageState::Working { tasks: Tasks::of(tasks.common().to_vec(), all) };
    run
}

#[test]
fn a_task_that_ends_costs_one_small_record() {
    let (mut saved, mut records) = (Saved::default(), Records::default());
    let run = working(100);
    saved.write(records.changes("r", &run, &BTreeSet::new()));
    assert_eq!((saved.count(PLANS), saved.count(TASKS)), (1, 0), "nothing has become of its tasks yet");
    let run = with_task_done(&run, 42);
    let changes = records.changes("r", &run, &BTreeSet::from([(0, 42)]));
    assert_eq!(changes.len(), 1, "{changes:?}");
    assert!(changes[0].value().unwrap().len() < 60, "{changes:?}");
    saved.write(changes);
    let (mut records, runs) = saved.load().unwrap();
    assert_eq!(runs["r"], run);
    assert!(records.changes("r", &run, &BTreeSet::new()).is_empty(), "what was read is known to be there");
}

#[test]
fn what_a_stage_leaves_is_removed_bit_by_bit_also_after_a_restart() {
    let (mut saved, mut records) = (Saved::default(), Records::default());
    let mut run = working(10);
    saved.write(records.changes("r", &run, &BTreeSet::new()));
    for index in 0..10 {
        run = with_task_done(&run, index);
        saved.write(records.changes("r", &run, &BTreeSet::from([(0, index)])));
    }
    run.stages[0].state = StageState::Done { seconds: 1.0, skipped: false };
    saved.write(records.changes("r", &run, &BTreeSet::new()));
    saved.write(records.obsolete(4));
    assert_eq!(saved.count(PLANS) + saved.count(TASKS), 7);
    let (mut records, runs) = saved.load().unwrap();
    assert_eq!(runs["r"], run);
    saved.write(records.obsolete(100));
    assert_eq!((saved.count(PLANS), saved.count(TASKS), saved.count(RUNS)), (0, 0, 1));
    assert!(records.obsolete(100).is_empty());
}

#[test]
fn another_submission_has_tasks_of_its_own() {
    let (mut saved, mut records) = (Saved::default(), Records::default());
    let first = with_task_done(&working(3), 1);
    saved.write(records.changes("r", &first, &BTreeSet::new()));
    let second = Run { submitted_ms: 8, ..working(3) };
    saved.write(records.changes("r", &second, &BTreeSet::new()));
    let (mut records, runs) = saved.load().unwrap();
    assert_eq!(runs["r"], second);
    saved.write(records.obsolete(100));
    assert_eq!(saved.load().unwrap().1["r"], second);
}

#[test]
fn a_run_with_its_tasks_inside_is_read_and_saved_in_todays_form() {
    let mut old = serde_json::to_value(run()).unwrap();
    let task = |number: usize, state: serde_json::Value, attempt: u32| json!({"plan": plan_of_task(number), "state": state, "attempt": attempt, "lost": 0, "failed": 0, "note": ""});
    let member = json!({"worker": "w", "instance": "i", "address": null, "ended": false});
    let running = json!({"Running": {"members": [member], "since_ms": 5, "met": true, "broken": null}});
    old["stages"][0]["state"] =
        json!({"Working": {"tasks": [task(0, json!("Done"), 1), task(1, running, 2), task(2, json!("Waiting"), 0)]}});
    let mut saved = Saved::default();
    saved.0.insert((RUNS.into(), "r".into()), old.to_string());

    let (mut records, runs) = saved.load().unwrap();
    let tasks = runs["r"].stages[0].work().unwrap();
    assert_eq!((tasks.len(), tasks.counts(), tasks[1].attempt), (3, (1, 1, 1), 2));
    assert_eq!(tasks[1].members()[0].worker, "w");
    saved.write(records.changes("r", &runs["r"], &BTreeSet::new()));
    assert_eq!((saved.count(PLANS), saved.count(TASKS)), (1, 2));
    assert!(!saved.0[&(RUNS.to_owned(), "r".to_owned())].contains("shard-"));
    assert_eq!(saved.load().unwrap().1, runs);
}

#[test]
fn a_stage_at_work_without_its_tasks_is_an_error_that_names_it() {
    let (mut saved, mut records) = (Saved::default(), Records::default());
    saved.write(records.changes("r", &working(3), &BTreeSet::new()));
    saved.0.retain(|(tree, _), _| tree != PLANS);
    let error = saved.load().unwrap_err().to_string();
    assert!(error.contains("run r, stage score"), "{error}");
}
