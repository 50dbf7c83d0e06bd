//! The course of a batch in time, from validation to its end: pure, time is an argument.
//!
//! ```text
//! validating ─▶ in_progress ─▶ finalizing ─▶ completed
//!      │             ├─ window over ─▶ expired
//!      │             └─ cancel ─▶ cancelling ─▶ cancelled
//!      └─▶ failed
//! ```

use std::time::Duration;

use super::plan::BatchPace;

/// Where a batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Validating,
    Failed,
    InProgress,
    Finalizing,
    Completed,
    Expired,
    Cancelling,
    Cancelled,
}

/// A batch in time.
#[derive(Debug, Clone)]
pub(super) struct Course {
    pub(super) pace: BatchPace,
    pub(super) created: Duration,
    pub(super) lines: usize,
    /// It does not pass its validation.
    pub(super) fails: bool,
    /// It is planned to come to a halt half way.
    pub(super) halts: bool,
    pub(super) cancelled: Option<Duration>,
}

impl Status {
    /// Returns the API's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Status::Validating => "validating",
            Status::Failed => "failed",
            Status::InProgress => "in_progress",
            Status::Finalizing => "finalizing",
            Status::Completed => "completed",
            Status::Expired => "expired",
            Status::Cancelling => "cancelling",
            Status::Cancelled => "cancelled",
        }
    }

    /// Tells whether nothing will change any more.
    pub(super) fn is_final(self) -> bool {
        matches!(self, Status::Failed | Status::Completed | Status::Expired | Status::Cancelled)
    }
}

impl Course {
    /// Returns where it is.
    pub(super) fn status(&self, now: Duration) -> Status {
        if let Some(cancelled) = self.cancelled.filter(|cancelled| now >= *cancelled) {
            let over = now >= cancelled + seconds(self.pace.cancel_s);
            return if over { Status::Cancelled } else { Status::Cancelling };
        }
        if now < self.in_progress_at() {
            return Status::Validating;
        }
        if self.fails {
            return Status::Failed;
        }
        if self.expires() {
            return if now < self.expires_at() { Status::InProgress } else { Status::Expired };
        }
        if now < self.finalizing_at() {
            Status::InProgress
        } else if now < self.completed_at() {
            Status::Finalizing
        } else {
            Status::Completed
        }
    }

    /// Returns how many lines are worked on.
    pub(super) fn done(&self, now: Duration) -> usize {
        let end = self.cancelled.unwrap_or(Duration::MAX).min(self.expires_at());
        let now = now.min(end);
        if self.fails || now < self.in_progress_at() {
            return 0;
        }
        let most = if self.halts { self.lines / 2 } else { self.lines };
        let run = self.pace.run_s;
        let share = if run > 0.0 { (now - self.in_progress_at()).as_secs_f64() / run } else { 1.0 };
        ((self.lines as f64 * share.min(1.0)) as usize).min(most)
    }

    /// Stops it, where it has not ended; tells whether it does.
    pub(super) fn cancel(&mut self, now: Duration) -> bool {
        let status = self.status(now);
        if status.is_final() || status == Status::Finalizing {
            return false;
        }
        self.cancelled.get_or_insert(now);
        true
    }

    pub(super) fn in_progress_at(&self) -> Duration {
        self.created + seconds(self.pace.validate_s)
    }

    pub(super) fn finalizing_at(&self) -> Duration {
        self.in_progress_at() + seconds(self.pace.run_s)
    }

    pub(super) fn completed_at(&self) -> Duration {
        self.finalizing_at() + seconds(self.pace.finalize_s)
    }

    pub(super) fn expires_at(&self) -> Duration {
        self.created + seconds(self.pace.window_s)
    }

    pub(super) fn cancelled_at(&self) -> Option<Duration> {
        self.cancelled.map(|at| at + seconds(self.pace.cancel_s))
    }

    fn expires(&self) -> bool {
        self.halts || self.completed_at() > self.expires_at()
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn course() -> Course {
        let pace = BatchPace { validate_s: 10.0, run_s: 100.0, finalize_s: 5.0, window_s: 1000.0, cancel_s: 3.0 };
        Course { pace, created: seconds(1.0), lines: 50, fails: false, halts: false, cancelled: None }
    }

    fn seen(course: &Course, times: &[f64]) -> Vec<(&'static str, usize)> {
        times.iter().map(|at| (course.status(seconds(*at)).name(), course.done(seconds(*at)))).collect()
    }

    #[test]
    fn a_batch_goes_through_its_states() {
        let expected =
            [("validating", 0), ("in_progress", 0), ("in_progress", 25), ("finalizing", 50), ("completed", 50)];
        assert_eq!(seen(&course(), &[1.0, 11.0, 61.0, 111.0, 116.0]), expected);
        let failing = Course { fails: true, ..course() };
        assert_eq!(seen(&failing, &[1.0, 11.0, 999.0]), [("validating", 0), ("failed", 0), ("failed", 0)]);
        let at_once = Course { pace: BatchPace::default(), ..course() };
        assert_eq!(seen(&at_once, &[1.0]), [("completed", 50)]);
    }

    #[test]
    fn the_window_ends_a_batch_that_is_late_or_halts() {
        let halting = Course { halts: true, ..course() };
        assert_eq!(
            seen(&halting, &[500.0, 1000.9, 1001.0]),
            [("in_progress", 25), ("in_progress", 25), ("expired", 25)]
        );
        let mut late = course();
        late.pace.run_s = 10_000.0;
        assert_eq!(seen(&late, &[1000.0, 1001.0, 9000.0]), [("in_progress", 4), ("expired", 4), ("expired", 4)]);
    }

    #[test]
    fn cancelling_keeps_what_is_done() {
        let mut cancelled = course();
        assert!(cancelled.cancel(seconds(61.0)) && cancelled.cancel(seconds(62.0)));
        assert_eq!(
            seen(&cancelled, &[61.0, 63.0, 64.0, 9999.0])[1..],
            [("cancelling", 25), ("cancelled", 25), ("cancelled", 25)]
        );
        let mut ended = course();
        assert!(!ended.cancel(seconds(112.0)) && !ended.cancel(seconds(120.0)), "too late");
        assert_eq!(ended.status(seconds(120.0)), Status::Completed);
    }
}
