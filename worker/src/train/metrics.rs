//! One line a step in `metrics.jsonl`: losses by part, margins, gradient norm, learning rate. What depends on the clock is
//! in `speed.jsonl`, so that a resumed run leaves the same bytes as an undisturbed one; on
//! resume, lines after the checkpoint are cut off and written again, in a new file: what a process that was given up may
//! still write into the old one is lost.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::objective::step::LossParts;

/// Figures of the objective over a set of records: a step's batch, or a validation. Losses are sums divided by the number of
/// records.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Optimiser steps done, this one included.
    pub step: u64,
    /// Epoch of the last of them, from 0.
    pub epoch: u64,
    /// Total.
    pub loss: f64,
    /// Preference part.
    pub loss_invert: f64,
    /// Punishment part.
    pub loss_punish: f64,
    /// Anchor part, with α_KL.
    pub loss_kl: f64,
    /// NLL part (SFT, added NLL), replay not included.
    pub loss_nll: f64,
    /// Mean Δ of preference terms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
    /// Share of preference terms with Δ > 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Mean KL of RETAIN records, without α_KL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
}

impl Figures {
    /// Makes the figures of sums over `records` records.
    pub fn new(step: u64, epoch: u64, parts: &LossParts, records: usize, alpha_kl: f64) -> Self {
        let n = records as f64;
        let mean = |sum: f64| (parts.preferences > 0).then(|| sum / parts.preferences as f64);
        Figures {
            step,
            epoch,
            loss: parts.total() / n,
            loss_invert: parts.invert / n,
            loss_punish: parts.punish / n,
            loss_kl: parts.kl / n,
            loss_nll: parts.nll / n,
            margin: mean(parts.margin),
            accuracy: mean(parts.accurate as f64),
            kl: (parts.anchors > 0).then(|| parts.kl / alpha_kl / parts.anchors as f64),
        }
    }
}

/// A step's figures, and what the optimiser knows of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Those of its batch.
    #[serde(flatten)]
    pub figures: Figures,
    /// Mean-token NLL of the replay batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_replay: Option<f64>,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Tokens computed.
    pub tokens: usize,
    /// Ranks that computed it, where that may change within a run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub world_size: Option<usize>,
}

/// What a step took, on this machine; of the whole gang where there is one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Optimiser step, from 1.
    pub step: u64,
    /// Seconds since the step before.
    pub seconds: f64,
    /// Tokens computed a second.
    pub tokens_per_s: f64,
    /// Largest resident memory of this process so far, in GiB.
    pub peak_gib: f64,
    /// Of the seconds, those that training waited for checkpoints: copies, and an earlier one that was still being written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_wait_seconds: Option<f64>,
}

/// The open file; clones write to the same one.
#[derive(Debug, Clone)]
pub struct MetricsFile {
    path: PathBuf,
    file: Arc<File>,
}

impl MetricsFile {
    /// Opens `metrics.jsonl` of a run, keeping its first `steps` lines.
    ///
    /// # Errors
    /// The file cannot be read or written, or has fewer lines.
    pub fn open(run_dir: &Path, steps: u64) -> Result<Self> {
        Self::keeping(run_dir.join("metrics.jsonl"), steps, true)
    }

    /// Opens `speed.jsonl` of a run, keeping its first `steps` lines or what there is of them.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn open_speed(run_dir: &Path, steps: u64) -> Result<Self> {
        Self::keeping(run_dir.join("speed.jsonl"), steps, false)
    }

    /// Opens `validation.jsonl` of a run, keeping its first `rows` lines; returns these too.
    ///
    /// # Errors
    /// The file cannot be read or written, or has fewer lines.
    pub fn open_validation(run_dir: &Path, rows: u64) -> Result<(Self, Vec<Figures>)> {
        let path = run_dir.join("validation.jsonl");
        let file = Self::keeping(path.clone(), rows, true)?;
        // A file of records without any is an error; this one begins so.
        let kept = if rows == 0 { Vec::new() } else { shared::input::read_all(&path)? };
        Ok((file, kept))
    }

    fn keeping(path: PathBuf, steps: u64, all_needed: bool) -> Result<Self> {
        let io = |e: std::io::Error| Error::model(&path, e.to_string());
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(io(e)),
        };
        let whole = text.iter().filter(|&&b| b == b'\n').count() as u64;
        if all_needed && whole < steps {
            return Err(Error::model(
                &path,
                format!(
                    "has {whole} whole lines, {steps} belong to the checkpoint: the file is damaged; restore it, or remove \
                     the run's checkpoints to start over"
                ),
            ));
        }
        let kept: usize = text.split_inclusive(|&b| b == b'\n').take(whole.min(steps) as usize).map(<[u8]>::len).sum();
        shared::output::write_atomic(&path, &text[..kept])?;
        let file = File::options().append(true).open(&path).map_err(io)?;
        Ok(MetricsFile { path, file: Arc::new(file) })
    }

    /// Makes sure that everything appended is on the disk; called before a checkpoint counts on it.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::model(&self.path, e.to_string()))
    }

    /// Appends one step.
    ///
    /// # Errors
    /// The file cannot be written, e.g. the disk is full.
    pub fn append(&mut self, figures: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(figures).expect("numbers only");
        line.push(b'\n');
        self.file.as_ref().write_all(&line).map_err(|e| Error::model(&self.path, e.to_string()))
    }
}
