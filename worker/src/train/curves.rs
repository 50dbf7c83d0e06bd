//! The figures of a run, update by update: `metrics.jsonl`, `speed.jsonl`, TensorBoard's events, and `validation.jsonl` where the
//! run has a validation.

use std::time::Instant;

use super::best::{self, Best};
use super::metrics::{Figures, MetricsFile, Speed, StepMetrics};
use super::run_folder::RunFolder;
use super::tensorboard::EventFile;
use crate::error::Result;
use crate::measure;

/// Where a run's figures go, step by step.
pub(super) struct Curves {
    metrics: MetricsFile,
    speed: MetricsFile,
    events: EventFile,
    validation: Option<MetricsFile>,
    /// The best validation so far.
    pub(super) best: Option<Best>,
}

impl Curves {
    /// Opens the files of a run that goes on after `start` updates, and `validations` validations where it has them.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub(super) fn open(run: &RunFolder, start: u64, validations: Option<u64>) -> Result<Self> {
        let opened = validations.map(|count| MetricsFile::open_validation(&run.path, count)).transpose()?;
        let best = opened.as_ref().and_then(|(_, rows)| Best::of(rows));
        if opened.is_some() {
            best::recover(&run.path, best)?;
        }
        Ok(Curves {
            validation: opened.map(|(file, _)| file),
            best,
            metrics: MetricsFile::open(&run.path, start)?,
            speed: MetricsFile::open_speed(&run.path, start)?,
            events: EventFile::open(&run.path, start)?,
        })
    }

    /// Appends one validation; returns whether it is the best so far.
    ///
    /// # Errors
    /// A file cannot be written, e.g. the disk is full.
    pub(super) fn append_validation(&mut self, metrics: &Figures) -> Result<bool> {
        if let Some(file) = &mut self.validation {
            file.append(metrics)?;
        }
        self.events.append_validation(metrics)?;
        let is_best = Best::is_beaten(self.best, metrics);
        if is_best {
            self.best = Some(Best::from(metrics));
        }
        Ok(is_best)
    }

    /// Returns what puts everything a checkpoint counts on onto the disk, for the thread that writes it.
    pub(super) fn syncer(&self) -> impl Fn() -> Result<()> + Send + use<> {
        let files: Vec<MetricsFile> = self.validation.iter().chain([&self.metrics]).cloned().collect();
        move || files.iter().try_for_each(MetricsFile::sync)
    }

    /// Appends one update, which began then and for whose begin training waited so many seconds for checkpoints.
    ///
    /// # Errors
    /// A file cannot be written, e.g. the disk is full.
    pub(super) fn append(&mut self, metrics: &StepMetrics, begun: Instant, waited: Option<f64>) -> Result<()> {
        let seconds = begun.elapsed().as_secs_f64();
        let tokens_per_s = metrics.tokens as f64 / seconds;
        let (step, peak_gib) = (metrics.figures.step, measure::peak_rss_gib());
        let speed = Speed { step, seconds, tokens_per_s, peak_gib, checkpoint_wait_seconds: waited };
        self.metrics.append(metrics)?;
        self.speed.append(&speed)?;
        self.events.append(metrics, &speed)
    }
}
