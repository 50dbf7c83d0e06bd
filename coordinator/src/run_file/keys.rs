//! The keys that become the worker's options: one table for checking a run file and for building the commands.
//!
//! A key carries the option's name in snake case. What is left out is not passed, so defaults are the worker's own.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Located;

/// A key of a run file that is an option of the worker.
pub(crate) struct Key {
    pub(crate) section: Section,
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// Commands that know the option: a sum of [`SCORE`], [`TRAIN`] and [`GENERATE`].
    takes: u8,
}

/// Table of a run file where a key stands; a base step takes those of `Train`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Section {
    Model,
    Score,
    Train,
    Eval,
}

/// What a key's value must be.
pub(crate) enum Kind {
    /// A whole number from this one.
    Count(u64),
    Number(Range),
    Flag,
    Choice(&'static [&'static str]),
    /// A list of words, passed with commas between them.
    Words(&'static [&'static str]),
    /// YYYY-MM-DD.
    Date,
    File,
    /// An adapter folder.
    Adapter,
}

/// Numbers allowed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Range {
    /// From 0.
    NotNegative,
    /// Above 0.
    Positive,
    /// From 0 to below this.
    Below(f64),
    /// Above 0, to 1.
    Share,
    /// Above 0 and below 1.
    Fraction,
    /// Other than 0.
    NotZero,
}

impl Range {
    pub(crate) fn holds(self, value: f64) -> bool {
        match self {
            Range::NotNegative => value >= 0.0,
            Range::Positive => value > 0.0,
            Range::Below(end) => (0.0..end).contains(&value),
            Range::Share => value > 0.0 && value <= 1.0,
            Range::Fraction => value > 0.0 && value < 1.0,
            Range::NotZero => value != 0.0,
        }
    }

    pub(crate) fn expected(self) -> String {
        match self {
            Range::NotNegative => "a number from 0".into(),
            Range::Positive => "a number above 0".into(),
            Range::Below(end) => format!("a number from 0 to below {end}"),
            Range::Share => "a number above 0, to 1".into(),
            Range::Fraction => "a number above 0 and below 1".into(),
            Range::NotZero => "a number other than 0".into(),
        }
    }
}

/// Which of the worker's commands.
pub(crate) type Command = u8;
pub(crate) const SCORE: Command = 1;
pub(crate) const TRAIN: Command = 2;
pub(crate) const GENERATE: Command = 4;

const ALL: Command = SCORE | TRAIN | GENERATE;

const LAYERS: &[&str] = &["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "all-linear"];
pub(crate) const LOSSES: &[&str] = &["dpo", "ipo", "cdpo", "rdpo"];

const fn key(section: Section, name: &'static str, takes: Command, kind: Kind) -> Key {
    Key { section, name, kind, takes }
}

/// Every key, in the order in which options are written.
#[rustfmt::skip]
pub(crate) const KEYS: &[Key] = &[
    key(Section::Model, "dtype", ALL, Kind::Choice(&["auto", "f32", "bf16"])),
    key(Section::Model, "text_rule", ALL, Kind::Choice(&["all", "reference"])),
    key(Section::Model, "date", ALL, Kind::Date),

    // Of the update; what the scores depend on too is passed to both, so that a score is that of the loss trained.
    key(Section::Train, "seed", ALL, Kind::Count(0)),
    key(Section::Train, "loss", TRAIN, Kind::Choice(LOSSES)),
    key(Section::Train, "label_smoothing", TRAIN, Kind::Number(Range::Below(0.5))),
    key(Section::Train, "nll_weight", TRAIN, Kind::Number(Range::NotNegative)),
    key(Section::Train, "batch_size", TRAIN, Kind::Count(1)),
    key(Section::Train, "gradient_accumulation_steps", TRAIN, Kind::Count(1)),
    key(Section::Train, "learning_rate", TRAIN, Kind::Number(Range::NotNegative)),
    key(Section::Train, "num_train_epochs", TRAIN, Kind::Count(1)),
    key(Section::Train, "max_steps", TRAIN, Kind::Count(1)),
    key(Section::Train, "warmup_steps", TRAIN, Kind::Count(0)),
    key(Section::Train, "hold_until_loss", TRAIN, Kind::Number(Range::NotNegative)),
    key(Section::Train, "decay_steps", TRAIN, Kind::Count(1)),
    key(Section::Train, "stop_at_grad_norm", TRAIN, Kind::Number(Range::NotNegative)),
    key(Section::Train, "batching", TRAIN, Kind::Choice(&["mixed", "by-category"])),
    key(Section::Train, "beta", SCORE | TRAIN, Kind::Number(Range::Positive)),
    key(Section::Train, "alpha_kl", TRAIN, Kind::Number(Range::NotNegative)),
    key(Section::Train, "max_length", SCORE | TRAIN, Kind::Count(1)),
    key(Section::Train, "mask", SCORE | TRAIN, Kind::Choice(&["exact", "reference"])),
    key(Section::Train, "full", TRAIN, Kind::Flag),
    key(Section::Train, "from_scratch", TRAIN, Kind::Flag),
    key(Section::Train, "recompute", TRAIN, Kind::Flag),
    key(Section::Train, "shard_parameters", TRAIN, Kind::Flag),
    key(Section::Train, "init_adapter", SCORE | TRAIN, Kind::Adapter),
    key(Section::Train, "lora_r", SCORE | TRAIN, Kind::Count(1)),
    key(Section::Train, "lora_alpha", SCORE | TRAIN, Kind::Number(Range::NotZero)),
    key(Section::Train, "use_rslora", SCORE | TRAIN, Kind::Flag),
    key(Section::Train, "lora_dropout", SCORE | TRAIN, Kind::Number(Range::Below(1.0))),
    key(Section::Train, "lora_target_modules", SCORE | TRAIN, Kind::Words(LAYERS)),
    key(Section::Train, "uniform_weights", TRAIN, Kind::Flag),
    key(Section::Train, "rescore_every", TRAIN, Kind::Count(1)),
    key(Section::Train, "quality_filter", SCORE | TRAIN, Kind::Choice(&["off", "report", "on"])),
    key(Section::Train, "quality_min_words", SCORE | TRAIN, Kind::Count(1)),
    key(Section::Train, "u2a_top", TRAIN, Kind::Count(1)),
    key(Section::Train, "u2a_rounds", TRAIN, Kind::Count(1)),
    key(Section::Train, "u2a_eta", TRAIN, Kind::Number(Range::NotNegative)),
    key(Section::Train, "u2a_tolerance", TRAIN, Kind::Number(Range::NotNegative)),
    key(Section::Train, "validation_json_path", TRAIN, Kind::File),
    key(Section::Train, "eval_steps", TRAIN, Kind::Count(1)),
    key(Section::Train, "load_best", TRAIN, Kind::Flag),
    key(Section::Train, "replay_json_path", TRAIN, Kind::File),
    key(Section::Train, "replay_batch_size", TRAIN, Kind::Count(1)),
    key(Section::Train, "replay_weight", TRAIN, Kind::Number(Range::NotNegative)),
    key(Section::Train, "max_grad_norm", TRAIN, Kind::Number(Range::NotNegative)),
    key(Section::Train, "weight_decay", TRAIN, Kind::Number(Range::NotNegative)),
    key(Section::Train, "adam_beta1", TRAIN, Kind::Number(Range::Below(1.0))),
    key(Section::Train, "adam_beta2", TRAIN, Kind::Number(Range::Below(1.0))),
    key(Section::Train, "adam_epsilon", TRAIN, Kind::Number(Range::Positive)),
    key(Section::Train, "save_steps", TRAIN, Kind::Count(1)),
    key(Section::Train, "save_total_limit", TRAIN, Kind::Count(1)),
    key(Section::Train, "pack_tokens", SCORE | TRAIN, Kind::Count(1)),

    key(Section::Score, "pa_batch_size", SCORE, Kind::Count(1)),
    // Instead of training's; passed by the key above.
    key(Section::Score, "pack_tokens", 0, Kind::Count(1)),
    key(Section::Score, "gold_corrections", SCORE, Kind::Flag),
    key(Section::Score, "leave_gold_out", SCORE, Kind::Flag),
    key(Section::Score, "score_scale", SCORE, Kind::Choice(&["raw", "length", "cosine"])),
    key(Section::Score, "score_seeds", SCORE, Kind::Count(1)),
    key(Section::Score, "score_space", SCORE, Kind::Choice(&["adapter", "targets", "full"])),
    key(Section::Score, "score_layers", SCORE, Kind::Flag),
    key(Section::Score, "curvature", SCORE, Kind::Choice(&["none", "cg"])),
    key(Section::Score, "curvature_sample", SCORE, Kind::Count(1)),
    key(Section::Score, "cg_iterations", SCORE, Kind::Count(1)),
    key(Section::Score, "cg_tolerance", SCORE, Kind::Number(Range::Fraction)),
    key(Section::Score, "cg_rank", SCORE, Kind::Count(0)),

    key(Section::Eval, "max_new_tokens", GENERATE, Kind::Count(1)),
    key(Section::Eval, "batch_size", GENERATE, Kind::Count(1)),
    key(Section::Eval, "temperature", GENERATE, Kind::Number(Range::NotNegative)),
    key(Section::Eval, "top_p", GENERATE, Kind::Number(Range::Share)),
];

/// Returns the keys of a table.
pub(crate) fn of(section: Section) -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(move |key| key.section == section)
}

impl Key {
    /// Returns the option's name on a command line.
    pub(crate) fn flag(&self) -> String {
        format!("--{}", self.name.replace('_', "-"))
    }
}

/// Checked values of keys.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Options(pub(super) BTreeMap<String, Setting>);

/// A checked value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Setting {
    Flag(bool),
    Text(String),
    Path(Located),
}

impl Options {
    /// Returns these options with those of `over` instead where it has them.
    pub(crate) fn overlaid(&self, over: &Options) -> Options {
        let mut all = self.0.clone();
        all.extend(over.0.iter().map(|(name, setting)| (name.clone(), setting.clone())));
        Options(all)
    }

    /// Returns the options as a command takes them; what it does not know is left out.
    pub(crate) fn args(&self, command: Command, run_dir: &Path) -> Vec<String> {
        let mut args = Vec::new();
        for key in KEYS.iter().filter(|key| key.takes & command != 0) {
            match self.0.get(key.name) {
                Some(Setting::Flag(true)) => args.push(key.flag()),
                Some(Setting::Text(text)) => args.extend([key.flag(), text.clone()]),
                Some(Setting::Path(path)) => args.extend([key.flag(), path.at(run_dir).display().to_string()]),
                Some(Setting::Flag(false)) | None => {}
            }
        }
        args
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub(crate) fn is_on(&self, name: &str) -> bool {
        self.0.get(name) == Some(&Setting::Flag(true))
    }

    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        match self.0.get(name)? {
            Setting::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn number(&self, name: &str) -> Option<f64> {
        self.text(name)?.parse().ok()
    }

    pub(crate) fn path(&self, name: &str) -> Option<&Located> {
        match self.0.get(name)? {
            Setting::Path(path) => Some(path),
            _ => None,
        }
    }

    /// Returns the files that a training reads besides its records.
    pub(crate) fn training_files(&self) -> impl Iterator<Item = &Located> {
        ["replay_json_path", "validation_json_path"].into_iter().filter_map(|name| self.path(name))
    }

    /// Sets a text where there is none yet.
    pub(crate) fn default_text(&mut self, name: &str, text: impl ToString) {
        self.0.entry(name.to_owned()).or_insert_with(|| Setting::Text(text.to_string()));
    }
}
