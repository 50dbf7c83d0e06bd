//! Options of impact scores, and what they come to.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;
use shared::weights::WeightNorm;

use crate::error::{Error, Result};
use crate::objective::loss::PreferenceLoss;
use crate::objective::method::Recipe;
use crate::objective::step::Settings;

/// How impact scores are made.
#[derive(Debug, Clone, Args, Serialize)]
pub struct ScoreArgs {
    /// Pairs of the gold batch that stands for the new policy.
    #[arg(long, default_value_t = 64)]
    pub gold_batch_size: usize,
    /// Gold pairs a forward pass.
    #[arg(long, default_value_t = 2)]
    pub pa_batch_size: usize,
    /// A gold batch to use instead of drawing one: [{prompt, chosen, rejected}].
    #[arg(long, value_name = "FILE")]
    // Runs are told apart by its content, not by its name.
    #[serde(skip)]
    pub gold: Option<PathBuf>,
    /// Where the direction that is scored along, the gold batch's gradient, is kept: read if it is there and of the same
    /// model, adapter, batch and curvature, else written.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub gold_gradient: Option<PathBuf>,
    /// Seed of the draw of the gold batch.
    #[arg(long, default_value_t = 42)]
    pub gold_seed: u64,
    /// Pairs the PUNISH records of a drawn gold batch with their corrections where they have one, instead of the
    /// compliant response to another prompt; oracle-punish and dpo-gold do so anyway.
    #[arg(long)]
    // What is not in use is not in the keys of runs that were begun before there was such an option.
    #[serde(skip_serializing_if = "is_default")]
    pub gold_corrections: bool,
    /// Scores a record that is in the gold batch along the gradient of the other pairs only.
    #[arg(long)]
    #[serde(skip_serializing_if = "is_default")]
    pub leave_gold_out: bool,
    /// What a score is divided by: nothing; the scored tokens of the record's responses; or the lengths of both
    /// gradients, which costs a backward pass a record.
    #[arg(long, value_enum, default_value = "raw")]
    #[serde(skip_serializing_if = "is_default")]
    pub score_scale: Scale,
    /// Fresh adapters whose scores are averaged: those of --seed and the seeds after it. A score is a projection along a
    /// random A (spec 5.6); the scores of all seeds are written, and the summary tells how far they agree.
    #[arg(long, value_name = "K", default_value_t = 1)]
    #[serde(skip_serializing_if = "is_one")]
    pub score_seeds: u64,
    /// Which parameters the gradients are of: an adapter's factors; the weights that it would change, what the average
    /// over all seeds tends to where these have inputs of one width; or all weights of the model.
    #[arg(long, value_enum, default_value = "adapter")]
    #[serde(skip_serializing_if = "is_default")]
    pub score_space: ScoreSpace,
    /// Writes what each layer adds to a record's score; costs a backward pass a record.
    #[arg(long)]
    #[serde(skip_serializing_if = "is_default")]
    pub score_layers: bool,
    /// The curvature H of the conflict records' mean loss: none takes γ·I in its place; cg solves (H + γI)·v = g_J by
    /// conjugate gradients and scores along v.
    #[arg(long, value_enum, default_value = "none")]
    #[serde(skip_serializing_if = "is_default")]
    pub curvature: Curvature,
    /// Options of the curvature.
    #[command(flatten)]
    #[serde(flatten, skip_serializing_if = "is_default")]
    pub cg: CgArgs,
    /// Damping γ. Without --curvature cg it divides every score, and any positive value gives the same weights (spec 5.6).
    #[arg(long, default_value_t = 1.0)]
    pub lamda: f64,
    /// How weights are normalised: mean 1 over the conflict records, or sum 1 as the reference.
    #[arg(long, default_value = "mean1", value_name = "mean1|reference")]
    pub weight_norm: WeightNorm,
    /// Tokens computed together at most; the prompt of a pair counts once.
    #[arg(long, default_value_t = crate::dataset::PACK_TOKENS)]
    pub pack_tokens: usize,
}

/// What a score ⟨g_J, g_i⟩ is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scale {
    /// Nothing, as published.
    #[default]
    Raw,
    /// The number of scored tokens of all responses that the record's term reads: long responses, and terms of two, do
    /// not count more.
    Length,
    /// ‖g_J‖·‖g_i‖: the cosine of the two gradients.
    Cosine,
}

/// The parameters that gradients are taken of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ScoreSpace {
    /// The factors of the adapter, as published.
    #[default]
    Adapter,
    /// The weights of the linear layers that an adapter would change.
    Targets,
    /// Every weight of the model.
    Full,
}

/// What stands for the Hessian of the records' loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Curvature {
    /// γ·I, as published.
    #[default]
    None,
    /// H + γ·I with H the Gauss-Newton matrix.
    Cg,
}

/// How the curvature is taken and solved for.
#[derive(Debug, Clone, PartialEq, Args, Serialize)]
pub struct CgArgs {
    /// Conflict records that the curvature is taken of, drawn by --gold-seed; without effect where a file gives them.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub curvature_sample: usize,
    /// Records that the curvature is taken of, instead of a sample of those that are scored.
    #[arg(long, value_name = "FILE")]
    // Told apart by its content.
    #[serde(skip)]
    pub curvature_json_path: Option<PathBuf>,
    /// Iterations of the solver at most.
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub cg_iterations: usize,
    /// The solver ends at a residual of this share of ‖g_J‖.
    #[arg(long, value_name = "SHARE", default_value_t = 1e-5)]
    pub cg_tolerance: f64,
    /// Gradients of records that are kept to precondition the solver, the longest ones: memory (each is as large as the
    /// parameters of --score-space in f32) for fewer iterations.
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub cg_rank: usize,
}

impl Default for CgArgs {
    fn default() -> Self {
        CgArgs { curvature_sample: 64, curvature_json_path: None, cg_iterations: 50, cg_tolerance: 1e-5, cg_rank: 16 }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn is_one(count: &u64) -> bool {
    *count == 1
}

/// More adapters than this are a mistake.
const MOST_SEEDS: u64 = 100;

impl ScoreArgs {
    /// Checks the options; `init_adapter` says whether records are scored at an adapter that is given.
    ///
    /// # Errors
    /// A count of 0, a γ that is not positive, or options that exclude each other.
    pub fn validate(&self, init_adapter: bool) -> Result<()> {
        let refuse = |problem: String| Err(Error::Config(problem));
        for (name, value) in [
            ("--gold-batch-size", self.gold_batch_size),
            ("--pa-batch-size", self.pa_batch_size),
            ("--pack-tokens", self.pack_tokens),
            ("--curvature-sample", self.cg.curvature_sample),
            ("--cg-iterations", self.cg.cg_iterations),
        ] {
            if value == 0 {
                return refuse(format!("{name} is 0; expected at least 1"));
            }
        }
        if !(1..=MOST_SEEDS).contains(&self.score_seeds) {
            return refuse(format!("--score-seeds is {}; expected 1 to {MOST_SEEDS}", self.score_seeds));
        }
        if self.score_seeds > 1 && self.score_space != ScoreSpace::Adapter {
            return refuse(
                "--score-seeds averages over adapters; the other values of --score-space have no seed: leave out one of \
                 the two"
                    .into(),
            );
        }
        if self.score_seeds > 1 && init_adapter {
            return refuse(
                "--score-seeds averages over fresh adapters, --init-adapter gives one: leave out one of the two".into(),
            );
        }
        let tolerance = self.cg.cg_tolerance;
        if !(tolerance > 0.0 && tolerance < 1.0) {
            return refuse(format!("--cg-tolerance is {tolerance}; expected a share above 0 and below 1"));
        }
        if self.curvature == Curvature::None && self.cg != CgArgs::default() {
            return refuse(
                "--curvature-sample, --curvature-json-path, --cg-iterations, --cg-tolerance and --cg-rank have an effect \
                 with --curvature cg only"
                    .into(),
            );
        }
        if self.curvature == Curvature::Cg && self.leave_gold_out {
            return refuse(
                "--leave-gold-out and --curvature cg: every record of the gold batch would need a solution of its own; \
                 leave out one of the two"
                    .into(),
            );
        }
        Ok(shared::weights::check_gamma(self.lamda)?)
    }

    /// Returns the options that a raw score depends on beside its gold batch and direction, for keys.
    pub fn shaping(&self) -> serde_json::Value {
        let mut options = serde_json::to_value(self).expect("options are plain data");
        let map = options.as_object_mut().expect("options have names");
        for of_others in ["gold_batch_size", "gold_seed", "gold_corrections", "weight_norm"] {
            map.remove(of_others);
        }
        if self.curvature == Curvature::None {
            map.remove("lamda");
        }
        options
    }

    /// Returns what shapes the scores, with what else they depend on: whose terms, β, the seed of the adapter, the longest
    /// sequence.
    pub fn settings(&self, recipe: Recipe, beta: f64, seed: u64, max_length: usize) -> ScoreSettings {
        ScoreSettings {
            recipe: Recipe { alpha_kl: 0.0, ..recipe },
            beta,
            seed,
            max_length,
            raw_only: false,
            args: self.clone(),
        }
    }
}

/// What shapes a score besides model and records.
#[derive(Debug, Clone)]
pub struct ScoreSettings {
    /// Whose loss terms are scored. The anchor has no score, so α_KL is 0.
    pub recipe: Recipe,
    /// β (has no effect on the weights at a fresh adapter, spec 5.6).
    pub beta: f64,
    /// Seed of the first fresh adapter.
    pub seed: u64,
    /// Longest sequence.
    pub max_length: usize,
    /// Only raw scores are wanted, of a part of a file: nothing is normalised, and a part may hold nothing to score.
    pub raw_only: bool,
    /// The options.
    pub args: ScoreArgs,
}

impl ScoreSettings {
    /// Returns the loss that scores are derivatives of: DPO's, whatever is trained.
    pub fn objective(&self) -> Settings {
        Settings { beta: self.beta, epsilon: 0.0, alpha_kl: 0.0, loss: PreferenceLoss::Dpo, nll_weight: 0.0 }
    }

    /// Returns whether a record's own gradient is needed, beyond its product with g_J.
    pub fn needs_own_gradients(&self) -> bool {
        self.args.score_layers || self.args.score_scale == Scale::Cosine
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        score: ScoreArgs,
    }

    fn parsed(line: &str) -> ScoreArgs {
        Command::parse_from(std::iter::once("score").chain(line.split_whitespace())).score
    }

    #[test]
    fn options_that_exclude_each_other_are_refused_by_name() {
        for (line, named) in [
            ("--score-seeds 0", "--score-seeds"),
            ("--score-seeds 3 --score-space full", "--score-space"),
            ("--cg-iterations 3", "--curvature cg"),
            ("--curvature cg --leave-gold-out", "--leave-gold-out"),
            ("--curvature cg --cg-tolerance 0", "--cg-tolerance"),
            ("--curvature cg --curvature-sample 0", "--curvature-sample"),
            ("--lamda 0", "--lamda"),
        ] {
            let error = parsed(line).validate(false).expect_err(line).to_string();
            assert!(error.contains(named), "{line}: {error}");
        }
        for line in
            ["", "--score-seeds 3 --score-scale cosine", "--curvature cg --cg-iterations 3", "--score-space full"]
        {
            parsed(line).validate(false).unwrap();
        }
    }

    /// Runs that were begun before an option existed go on.
    #[test]
    fn options_at_their_defaults_leave_no_trace_in_keys() {
        let key = serde_json::to_value(parsed("")).unwrap();
        let names: Vec<&str> = key.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(names, ["gold_batch_size", "pa_batch_size", "gold_seed", "lamda", "weight_norm", "pack_tokens"]);
        let key = serde_json::to_value(parsed("--curvature cg --cg-iterations 9 --score-scale length")).unwrap();
        assert_eq!((&key["cg_iterations"], &key["score_scale"]), (&serde_json::json!(9), &serde_json::json!("length")));
    }
}
