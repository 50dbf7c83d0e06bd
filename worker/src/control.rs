//! What a running command listens to and tells: stop orders, progress, planned deaths.
//!
//! The one-machine commands show a bar on standard error; a worker under a coordinator passes the same progress on and
//! may be told to stop, which a command obeys at its next step, pack or batch.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::error::{Error, Result};
use crate::fault::{self, Fault};
use crate::fence::Attempt;

/// Why a command is to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Its result is not wanted any more.
    Cancelled = 1,
    /// It will go on later where it was.
    Paused = 2,
}

/// Tells a running command to stop; clones tell the same one.
#[derive(Debug, Clone, Default)]
pub struct StopFlag(Arc<AtomicU8>);

impl StopFlag {
    /// Tells it; a cancellation outweighs a pause.
    pub fn set(&self, stop: Stop) {
        let _ = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |now| {
            (now != Stop::Cancelled as u8).then_some(stop as u8)
        });
    }

    /// Returns what it was told.
    pub fn get(&self) -> Option<Stop> {
        match self.0.load(Ordering::SeqCst) {
            0 => None,
            1 => Some(Stop::Cancelled),
            _ => Some(Stop::Paused),
        }
    }
}

/// How far a piece of work is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// What is counted.
    pub work: String,
    /// Where this command went on: so much an earlier one had kept.
    pub begun_at: u64,
    /// What is done of it, that included.
    pub done: u64,
    /// All there is to do.
    pub total: u64,
    /// For people.
    pub note: String,
}

/// Takes progress.
pub type Sink = Box<dyn Fn(Progress) + Send + Sync>;

/// A running command's line to whoever started it.
#[derive(Default)]
pub struct Control {
    fault: Option<Arc<Fault>>,
    stop: StopFlag,
    sink: Option<Sink>,
    attempt: Option<Attempt>,
}

impl Control {
    /// For a command that a person started.
    pub fn alone(fault: Option<Arc<Fault>>) -> Control {
        Control { fault, ..Control::default() }
    }

    /// The same, told to stop by a flag.
    pub fn stopped_by(self, stop: StopFlag) -> Control {
        Control { stop, ..self }
    }

    /// For a task of a coordinator.
    pub fn of_task(fault: Option<Arc<Fault>>, stop: StopFlag, sink: Sink, attempt: Option<Attempt>) -> Control {
        Control { fault, stop, sink: Some(sink), attempt }
    }

    /// Returns which attempt the command is, where a coordinator counts them.
    pub fn attempt(&self) -> Option<&Attempt> {
        self.attempt.as_ref()
    }

    /// Returns the plan of deaths, for another thread of the command.
    pub fn fault(&self) -> Option<Arc<Fault>> {
        self.fault.clone()
    }

    /// Passes a named point: dies or hangs here if the plan says so.
    pub fn pass(&self, point: &str) {
        fault::pass_or_hang(self.fault.as_deref(), point);
    }

    /// Returns whether the command was told to stop.
    pub fn stop(&self) -> Option<Stop> {
        self.stop.get()
    }

    /// Goes on, unless the command was told to stop.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn go_on(&self) -> Result<()> {
        if self.stop().is_some() { Err(Error::Stopped) } else { Ok(()) }
    }

    /// Begins to show how far a piece of work is.
    pub fn bar(&self, name: &'static str, length: u64) -> Bar<'_> {
        self.bar_from(0, name, length)
    }

    /// The same of one that goes on: `begun_at` of its length was done and kept before.
    pub fn bar_from(&self, begun_at: u64, name: &'static str, length: u64) -> Bar<'_> {
        let style = ProgressStyle::with_template("{prefix:>20} [{bar:32}] {pos}/{len} {per_sec} eta {eta} {msg}")
            .expect("the template is a constant")
            .progress_chars("=> ");
        let target = if self.sink.is_some() { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let shown = ProgressBar::with_draw_target(Some(length), target).with_style(style).with_prefix(name);
        shown.set_position(begun_at);
        shown.reset_eta();
        let bar = Bar { shown, sink: self.sink.as_ref(), name, begun_at };
        bar.tell("");
        bar
    }
}

/// How far a piece of work is.
pub struct Bar<'a> {
    shown: ProgressBar,
    sink: Option<&'a Sink>,
    name: &'static str,
    begun_at: u64,
}

impl Bar<'_> {
    /// There is more or less to do than was thought.
    pub fn set_length(&self, length: u64) {
        self.shown.set_length(length);
    }

    /// So much more is done.
    pub fn inc(&self, n: u64) {
        self.advance(n, String::new());
    }

    /// So much more is done; `note` is for people.
    pub fn advance(&self, n: u64, note: String) {
        self.shown.inc(n);
        self.tell(&note);
        self.shown.set_message(note);
    }

    /// All is done.
    pub fn finish_and_clear(&self) {
        self.shown.finish_and_clear();
    }

    fn tell(&self, note: &str) {
        if let Some(sink) = self.sink {
            let note = if note.is_empty() { self.name.to_owned() } else { format!("{}: {note}", self.name) };
            sink(Progress {
                work: self.name.to_owned(),
                begun_at: self.begun_at,
                done: self.shown.position(),
                total: self.shown.length().unwrap_or(0),
                note,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cancellation_outweighs_a_pause() {
        let flag = StopFlag::default();
        assert_eq!(flag.get(), None);
        flag.clone().set(Stop::Paused);
        assert_eq!(flag.get(), Some(Stop::Paused));
        flag.set(Stop::Cancelled);
        flag.set(Stop::Paused);
        assert_eq!(flag.get(), Some(Stop::Cancelled));
    }

    #[test]
    fn progress_goes_to_whoever_started_the_task() {
        let (sender, told) = std::sync::mpsc::channel();
        let sink: Sink = Box::new(move |progress| sender.send(progress).unwrap());
        let control = Control::of_task(None, StopFlag::default(), sink, None);
        let bar = control.bar_from(4, "train", 9);
        bar.advance(1, "loss 0.5".into());
        bar.set_length(8);
        bar.inc(2);
        let told: Vec<_> = told.try_iter().collect();
        let told_of =
            |done, total, note: &str| Progress { work: "train".into(), begun_at: 4, done, total, note: note.into() };
        assert_eq!(told, [told_of(4, 9, "train"), told_of(5, 9, "train: loss 0.5"), told_of(7, 8, "train")]);
    }
}
