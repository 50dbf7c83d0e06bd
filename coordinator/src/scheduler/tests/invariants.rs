//! What must hold in the scheduler after every event.

use super::super::*;

impl Scheduler {
    /// Checks what must hold after every event.
    pub(crate) fn check_invariants(&self) {
        for (name, worker) in &self.workers {
            let is_free = worker.state == WorkerState::Idle && worker.connected && worker.leaving.is_none();
            assert!(!is_free || self.maybe_free.contains(name), "{name} is free and not known as such");
        }
        for (name, run) in &self.runs {
            for (stage, index, task) in run.stages.iter().enumerate().flat_map(running_tasks) {
                for member in task.members().iter().filter(|member| !member.ended) {
                    let held = self.holds.get(&member.worker);
                    assert_eq!(held, Some(&(name.clone(), stage, index)), "{}'s task is not found", member.worker);
                }
            }
            for tasks in run.stages.iter().filter_map(Stage::work) {
                let anew = Tasks::of(tasks.common().to_vec(), tasks.to_vec());
                assert_eq!(*tasks, anew, "what is counted is not what is there");
            }
        }
        let mut busy: BTreeMap<&str, String> = BTreeMap::new();
        for (name, run) in &self.runs {
            for (index, stage) in run.stages.iter().enumerate() {
                for task in stage.tasks() {
                    if let TaskState::Running { members, .. } = &task.state {
                        let (most, least) = task.plan.members();
                        assert!((least..=most).contains(&members.len()), "a gang is whole, or as small as it may be");
                        for member in members.iter().filter(|member| !member.ended) {
                            let label = format!("{name}/{index}/{}", task.plan.name);
                            let other = busy.insert(&member.worker, label);
                            assert_eq!(other, None, "{} has two tasks", member.worker);
                            let worker = self.workers.get(&member.worker).expect("a member is known");
                            assert_eq!(worker.hello.instance, member.instance, "a member is the same process");
                        }
                    }
                }
                if !stage.tasks().is_empty() {
                    let done = |&needed: &usize| run.stages[needed].is_done();
                    assert!(run.plan.stages[index].after.iter().all(done), "a stage works after those it needs");
                }
            }
            assert_eq!(run.state.is_ended(), run.ended_ms.is_some(), "an ended run has its time");
        }
    }
}
