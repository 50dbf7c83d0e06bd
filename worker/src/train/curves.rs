//! The figures of a run, update by update: `metrics.jsonl`, `speed.jsonl` and TensorBoard's events.

use std::time::Instant;

use super::metrics::{MetricsFile, Speed, StepMetrics};
use super::run_folder::RunFolder;
use super::tensorboard::EventFile;
use crate::error::Result;
use crate::measure;

/// Where a run's figures go, step by step.
pub(super) struct Curves {
    pub(super) metrics: MetricsFile,
    speed: MetricsFile,
    events: EventFile,
}

impl Curves {
    /// Opens the files of a run that goes on after `start` updates.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub(super) fn open(run: &RunFolder, start: u64) -> Result<Self> {
        Ok(Curves {
            metrics: MetricsFile::open(&run.path, start)?,
            speed: MetricsFile::open_speed(&run.path, start)?,
            events: EventFile::open(&run.path, start)?,
        })
    }

    /// Appends one update, which began then.
    ///
    /// # Errors
    /// A file cannot be written, e.g. the disk is full.
    pub(super) fn append(&mut self, metrics: &StepMetrics, begun: Instant) -> Result<()> {
        let seconds = begun.elapsed().as_secs_f64();
        let tokens_per_s = metrics.tokens as f64 / seconds;
        let speed = Speed { step: metrics.step, seconds, tokens_per_s, peak_gib: measure::peak_rss_gib() };
        self.metrics.append(metrics)?;
        self.speed.append(&speed)?;
        self.events.append(metrics, &speed)
    }
}
