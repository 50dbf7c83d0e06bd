//! How far a job's batches are, for people. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use super::part::Part;
use super::plan::time_left;

/// How far batches are.
#[derive(Debug, Default)]
pub(super) struct Board {
    parts: BTreeMap<String, Entry>,
    /// Requests that were answered when the watch began.
    before: Option<u64>,
    /// Why one of them does not go on.
    trouble: Option<String>,
}

#[derive(Debug)]
struct Entry {
    state: &'static str,
    progressed: u64,
    requests: u64,
}

impl Board {
    /// Takes note of a part.
    pub(super) fn note(&mut self, part: &Part) {
        let entry = Entry { state: part.state(), progressed: part.progressed(), requests: part.requests };
        self.parts.insert(part.id.clone(), entry);
    }

    /// Takes note of a part that goes on as another, of which only `requests` are still to be answered.
    pub(super) fn goes_on(&mut self, part: &Part, requests: u64) {
        if let Some(entry) = self.parts.get_mut(&part.id) {
            entry.requests = entry.requests.saturating_sub(requests);
            entry.progressed = entry.progressed.min(entry.requests);
        }
    }

    /// Takes note of what a part waits for.
    pub(super) fn trouble(&mut self, why: Option<String>) {
        self.trouble = why;
    }

    /// Returns how many requests the API has worked off, and how many there are.
    pub(super) fn done(&self) -> (u64, u64) {
        let sum = |of: fn(&Entry) -> u64| self.parts.values().map(of).sum();
        (sum(|entry| entry.progressed), sum(|entry| entry.requests))
    }

    /// Returns a line on the state of things, `taken` after the first.
    pub(super) fn line(&mut self, taken: Duration) -> String {
        let mut by_state: BTreeMap<&str, usize> = BTreeMap::new();
        for entry in self.parts.values() {
            *by_state.entry(entry.state).or_default() += 1;
        }
        let states: Vec<String> = by_state.iter().map(|(state, count)| format!("{count} {state}")).collect();
        let mut line = format!("batches: {}", states.join(", "));
        let (done, all) = self.done();
        let before = *self.before.get_or_insert(done);
        if let Some(left) = time_left(done.saturating_sub(before), all.saturating_sub(before), taken) {
            line += &format!("; about {} left", rough(left));
        }
        if let Some(trouble) = &self.trouble {
            line += &format!("; {trouble}");
        }
        line
    }
}

fn rough(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..7200 => format!("{} min", seconds.div_ceil(60)),
        seconds => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::super::part::{Batch, Phase, Status};
    use super::*;
    use shared::prices::Tokens;

    fn part(id: &str, phase: Phase) -> Part {
        Part {
            id: id.into(),
            job: "j".into(),
            number: 1,
            attempt: 1,
            base_url: String::new(),
            account: String::new(),
            model: "m".into(),
            requests: 100,
            bytes: 1,
            worst: Tokens::default(),
            taken_back: false,
            phase,
        }
    }

    fn running(completed: u64) -> Phase {
        let (status, output, errors) = (Status::InProgress, None, None);
        Phase::Running { batch: Batch { id: "b".into(), status, completed, failed: 0, output, errors, problem: None } }
    }

    #[test]
    fn the_line_counts_batches_by_state_and_tells_the_time_left() {
        let mut board = Board::default();
        board.note(&part("a", running(20)));
        board.note(&part("b", Phase::Spooled));
        assert_eq!(board.line(Duration::ZERO), "batches: 1 in progress, 1 to be sent");
        board.note(&part("a", running(80)));
        // 60 of the 180 that were left took an hour.
        assert_eq!(board.line(Duration::from_secs(3600)), "batches: 1 in progress, 1 to be sent; about 2 h 0 min left");
        assert_eq!(board.done(), (80, 200));
        board.trouble(Some("HTTP 500 : no".into()));
        assert!(board.line(Duration::from_secs(3600)).ends_with("left; HTTP 500 : no"));
    }

    #[test]
    fn requests_that_go_on_in_another_part_count_once() {
        let mut board = Board::default();
        let done = part("a", Phase::Done { answered: 70, left: Vec::new() });
        board.note(&done);
        board.goes_on(&done, 30);
        board.note(&Part { requests: 30, ..part("c", Phase::Spooled) });
        assert_eq!(board.done(), (70, 100));
    }
}
