//! What is said of a run where there is no terminal: a line a change. Pure; time is an argument.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::coordinator::{RunStatus, StageStatus};

use super::ending;

/// How far a running stage is is said so often.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);
/// A stage that waits for less is not worth a line.
const WAITS: Duration = Duration::from_secs(3);

/// What was said so far.
#[derive(Debug, Default)]
pub(super) struct Lines {
    run: Option<String>,
    stages: BTreeMap<String, Said>,
}

/// What was said of a stage.
#[derive(Debug, Default)]
struct Said {
    text: String,
    at: Duration,
    done: u64,
    waits_since: Option<Duration>,
}

impl Lines {
    /// Returns what is to be said now; also called while nothing changes.
    pub(super) fn of(&mut self, now: Duration, run: &RunStatus) -> Vec<String> {
        let mut lines = Vec::new();
        for stage in &run.stages {
            lines.extend(self.stages.entry(stage.name.clone()).or_default().line(now, stage));
        }
        lines.extend(self.run_line(run));
        lines
    }

    /// Says that a run is paused and that it goes on; its end is the caller's to tell.
    pub(super) fn run_line(&mut self, run: &RunStatus) -> Option<String> {
        let before = self.run.replace(run.state.clone());
        match (run.state.as_str(), before.as_deref()) {
            (now, Some(before)) if now == before => None,
            ("paused", _) => Some(format!(
                "run {} is paused ({}); `coordinator resume {}` lets it go on",
                run.run, run.reason, run.run
            )),
            ("running", Some(_)) => Some(format!("run {} goes on", run.run)),
            _ => None,
        }
    }
}

impl Said {
    fn line(&mut self, now: Duration, stage: &StageStatus) -> Option<String> {
        let waits = stage.note.starts_with("waiting");
        let says = match stage.state.as_str() {
            "waiting" => return None,
            "running" if waits => {
                let since = *self.waits_since.get_or_insert(now);
                if now.saturating_sub(since) < WAITS {
                    return None;
                }
                stage.note.clone()
            }
            "running" => "running".to_owned(),
            _ => ending(stage),
        };
        if !waits {
            self.waits_since = None;
        }
        if self.text != says {
            (self.text, self.at, self.done) = (says.clone(), now, stage.done);
            return Some(format!("{:<24} {says}", stage.name));
        }
        let is_due = says == "running" && now.saturating_sub(self.at) >= PROGRESS_EVERY;
        if !is_due || stage.total == 0 || stage.done == self.done {
            return None;
        }
        (self.at, self.done) = (now, stage.done);
        let note = if stage.note.is_empty() { String::new() } else { format!(", {}", stage.note) };
        Some(format!("{:<24} {}/{}{note}", stage.name, stage.done, stage.total))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(state: &str, stage: (&str, u64, &str)) -> RunStatus {
        let (stage_state, done, note) = stage;
        let stage = StageStatus {
            name: "score".into(),
            state: stage_state.into(),
            done,
            total: 256,
            note: note.into(),
            seconds: 2.0,
            ..Default::default()
        };
        RunStatus {
            run: "r".into(),
            state: state.into(),
            reason: if state == "paused" { "paused by a user".into() } else { String::new() },
            stages: vec![stage],
            ..Default::default()
        }
    }

    fn said(lines: &mut Lines, at: u64, status: &RunStatus) -> Vec<String> {
        let squeeze = |line: String| line.split_whitespace().collect::<Vec<_>>().join(" ");
        lines.of(Duration::from_secs(at), status).into_iter().map(squeeze).collect()
    }

    #[test]
    fn progress_is_said_now_and_then_and_a_wait_only_when_it_lasts() {
        let mut lines = Lines::default();
        let mut at = |seconds, stage| said(&mut lines, seconds, &run("running", stage));
        let waits = "waiting: 1 of 2 workers; w2 lost";
        assert_eq!(at(0, ("waiting", 0, "")), [""; 0]);
        assert_eq!(at(1, ("running", 0, "")), ["score running"]);
        assert_eq!(at(1, ("running", 0, waits)), [""; 0]);
        assert_eq!(at(2, ("running", 0, "")), [""; 0], "a short wait is not said");
        assert_eq!(at(3, ("running", 0, waits)), [""; 0]);
        assert_eq!(at(6, ("running", 0, waits)), [format!("score {waits}")]);
        assert_eq!(at(9, ("running", 0, waits)), [""; 0]);
        assert_eq!(at(10, ("running", 8, "")), ["score running"]);
        assert_eq!(at(15, ("running", 60, "")), [""; 0]);
        assert_eq!(at(20, ("running", 64, "loss 0.4")), ["score 64/256, loss 0.4"]);
        assert_eq!(at(31, ("running", 64, "loss 0.4")), [""; 0], "nothing new");
        assert_eq!(at(32, ("done", 256, "")), ["score done in 2.0 s"]);
        assert_eq!(at(60, ("done", 256, "")), [""; 0]);
    }

    #[test]
    fn a_paused_run_says_so_and_how_it_goes_on() {
        let mut lines = Lines::default();
        let paused = said(&mut lines, 0, &run("paused", ("waiting", 0, "")));
        assert_eq!(paused, ["run r is paused (paused by a user); `coordinator resume r` lets it go on"]);
        assert_eq!(said(&mut lines, 20, &run("paused", ("waiting", 0, ""))), [""; 0]);
        assert_eq!(said(&mut lines, 21, &run("running", ("waiting", 0, ""))), ["run r goes on"]);
    }
}
