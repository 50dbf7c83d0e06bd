//! What takes too long: gangs that do not meet, that stand still, and members that do not leave an attempt that is over.

use super::gang;
use super::run::{Broken, Member, TaskState};
use super::{Scheduler, running_tasks};

impl Scheduler {
    /// Breaks gangs whose members did not find each other in time.
    pub(super) fn expire_gangs(&mut self, now_ms: u64) {
        let mut late = Vec::new();
        for (name, run) in &self.runs {
            for (stage, index, task) in run.stages.iter().enumerate().flat_map(running_tasks) {
                if let TaskState::Running { met: false, since_ms, broken: None, .. } = task.state
                    && now_ms.saturating_sub(since_ms) > self.timing.form_within_ms
                {
                    late.push((name.clone(), stage, index));
                }
            }
        }
        for (run, stage, index) in late {
            let task = self.task_mut(&run, stage, index);
            if let TaskState::Running { broken, .. } = &mut task.state {
                *broken = Some(Broken::Lost("the members did not find each other in time".into()));
            }
            self.break_gang(now_ms, &run, stage, index);
            self.settle(now_ms, &run, stage, index);
            self.save(&run);
        }
    }

    /// Breaks gangs of which no member computes and between whom nothing moves: the network swallows what they send, or a
    /// call hangs.
    pub(super) fn break_stuck_gangs(&mut self, now_ms: u64) {
        let limit_ms = self.timing.lost_after_ms;
        let still_ms = |member: &Member| match self.workers.get(&member.worker) {
            Some(worker) if worker.connected && worker.hello.instance == member.instance => worker.still_ms,
            _ => 0,
        };
        let mut found = Vec::new();
        for (name, run) in &self.runs {
            for (stage, index, task) in run.stages.iter().enumerate().flat_map(running_tasks) {
                let TaskState::Running { members, met: true, broken: None, .. } = &task.state else { continue };
                let left = members.iter().filter(|member| members.len() > 1 && !member.ended);
                if let Some(ms) = gang::stuck(left.map(still_ms), limit_ms) {
                    found.push((name.clone(), stage, index, ms));
                }
            }
        }
        for (run, stage, index, ms) in found {
            let why = format!("no member computes and nothing has moved between them for {ms} ms");
            let task = self.task_mut(&run, stage, index);
            let name = task.plan.name.clone();
            if let TaskState::Running { broken, .. } = &mut task.state {
                *broken = Some(Broken::Lost(why.clone()));
            }
            self.log_stage(&run, stage, &format!("{name} is stuck: {why}"));
            self.break_gang(now_ms, &run, stage, index);
            self.settle(now_ms, &run, stage, index);
            self.save(&run);
        }
    }

    /// Goes on without members that do not leave an attempt that is over: their processes live, and their devices or disks
    /// hang. They get no other task until they have left it.
    pub(super) fn leave_stragglers(&mut self, now_ms: u64) {
        let limit_ms = self.timing.leave_within_ms;
        for worker in self.workers.values_mut() {
            let told_ms = worker.told_to_leave_ms.map(|told_ms| told_ms.max(self.listens_since_ms));
            if told_ms.is_some_and(|told_ms| now_ms.saturating_sub(told_ms) > limit_ms) {
                (worker.told_to_leave_ms, worker.stays) = (None, true);
            }
        }
        let mut late = Vec::new();
        for (name, run) in &self.runs {
            for (stage, index, task) in run.stages.iter().enumerate().flat_map(running_tasks) {
                let TaskState::Running { told_to_leave_ms: Some(told_ms), .. } = task.state else { continue };
                // What they said while the coordinator was away has yet to be heard.
                if now_ms.saturating_sub(told_ms.max(self.listens_since_ms)) > limit_ms {
                    late.push((name.clone(), stage, index));
                }
            }
        }
        for (run, stage, index) in late {
            // An earlier one of these may have failed the run.
            if self.runs[&run].stages[stage].work().is_none() {
                continue;
            }
            let task = self.task_mut(&run, stage, index);
            let about = format!("{} attempt {}", task.plan.name, task.attempt);
            let TaskState::Running { members, .. } = &mut task.state else { continue };
            let stay = members.iter_mut().filter(|member| !member.ended);
            let names: Vec<String> = stay.map(|member| (member.ended = true, member.worker.clone()).1).collect();
            for name in names.iter().filter(|name| self.workers.contains_key(*name)).cloned().collect::<Vec<_>>() {
                self.worker_mut(&name).stays = true;
            }
            let seconds = limit_ms as f64 / 1000.0;
            let who = names.join(", ");
            self.log_stage(&run, stage, &format!("{about} is over, and {who} has not left it within {seconds:.0} s"));
            self.settle(now_ms, &run, stage, index);
            self.save(&run);
        }
    }
}
