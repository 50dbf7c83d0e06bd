//! Options of `worker train`, checked together before anything is loaded.

use std::path::{Component, Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::gang::GangArgs;
use super::optim::AdamWSettings;
use super::pace::{Hold, Pace};
use super::schedule::{self, Batching, Plan};
use super::u2a::U2aArgs;
use super::validation::ValidationArgs;
use crate::error::{Error, Result};
use crate::objective::loss::PreferenceLoss;
use crate::objective::method::{Method, Recipe};
use crate::objective::step::Settings;
use crate::options::{LoraArgs, ModelArgs, QualityArgs, TextArgs};
use crate::score::options::{Curvature, ScoreSpace};
use crate::score::{ScoreArgs, ScoreSettings};

/// Re-aligns a model on triaged records: writes an adapter folder (or full weights), metrics and checkpoints.
///
/// Unscored records are scored first; scored ones bring their weights. The same command with the same --run-name goes
/// on where an interrupted one ended, to the same bits. SIGTERM or Ctrl-C: the run stops after its present step with a
/// checkpoint, in a gang after the same step on every rank, and ends with exit code 75; a second one ends it at once.
/// Records with an empty prompt or response are set aside in the run's folder with a warning; the exit code is 0 all the
/// same.
#[derive(Debug, Clone, Args)]
#[command(allow_negative_numbers = true)]
pub struct TrainArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Records: JSON array or JSON lines, .gz and .xz too.
    #[arg(long, visible_alias = "records", alias = "jsonl-path", value_name = "FILE")]
    pub dataset_json_path: PathBuf,
    /// Takes the first N records of the file alone.
    #[arg(long, value_name = "N")]
    pub sample_size: Option<usize>,
    /// Accepted for the reference's command lines: the form of a file is told by its content.
    #[arg(long, hide = true, value_enum)]
    pub dataset_source: Option<DatasetSource>,
    /// Folder of runs [default: runs/trace and the like, by method].
    #[arg(long, value_name = "DIR")]
    pub output_dir: Option<PathBuf>,
    /// Name of the run's folder; needed to resume. Without it the folder carries model, data set and time.
    #[arg(long, value_name = "NAME")]
    pub run_name: Option<String>,
    /// A checkpoint folder to go on from: its parent is the run's folder.
    #[arg(long, value_name = "DIR", conflicts_with = "run_name")]
    pub resume_from_checkpoint: Option<PathBuf>,
    /// The recipe.
    #[arg(long, value_enum, default_value = "trace")]
    pub method: Method,
    /// The loss of preference terms [default: dpo; by method for rdpo, cdpo, ipo]. Impact scores are those of the DPO
    /// loss, whatever is chosen here.
    #[arg(long, value_enum)]
    pub loss: Option<PreferenceLoss>,
    /// ε of the cdpo and rdpo losses, from 0 to below 0.5.
    #[arg(long, default_value_t = 0.0)]
    pub label_smoothing: f64,
    /// Factor of an added mean-token NLL on the preferred response.
    #[arg(long, default_value_t = 0.0)]
    pub nll_weight: f64,
    /// Records of a batch; how many are computed together depends on --pack-tokens alone.
    #[arg(long, default_value_t = 1)]
    pub batch_size: usize,
    /// Batches an update; batch size × accumulation is the global batch.
    #[arg(long, default_value_t = 4)]
    pub gradient_accumulation_steps: usize,
    /// Peak learning rate.
    #[arg(long, default_value_t = 1e-4)]
    pub learning_rate: f64,
    /// Passes over the records.
    #[arg(long, alias = "epochs", default_value_t = 1)]
    pub num_train_epochs: u64,
    /// Stops after so many updates, whatever the epochs say.
    #[arg(long)]
    pub max_steps: Option<u64>,
    /// Updates of linear warm-up [default: 100, or a tenth of a shorter run].
    #[arg(long)]
    pub warmup_steps: Option<u64>,
    /// Keeps the learning rate at its peak until the mean loss of the last 50 updates is this or less, then lets it fall
    /// over --decay-steps; the run ends there, or with its last update [default: half a cosine over the run].
    #[arg(long, value_name = "LOSS", requires = "decay_steps")]
    pub hold_until_loss: Option<f64>,
    /// Updates over which a held learning rate falls to 0.
    #[arg(long, value_name = "N", requires = "hold_until_loss")]
    pub decay_steps: Option<u64>,
    /// Ends the run after an update whose gradient has this norm or less, before clipping: ε of the method's Algorithm 1
    /// [default: the run ends with its last update].
    #[arg(long, value_name = "EPS")]
    pub stop_at_grad_norm: Option<f64>,
    /// What a batch is made of.
    #[arg(long, value_enum, default_value = "mixed")]
    pub batching: Batching,
    /// β of the losses.
    #[arg(long, default_value_t = 0.3)]
    pub beta: f64,
    /// Weight of the KL anchor on RETAIN records.
    #[arg(long, default_value_t = 0.1)]
    pub alpha_kl: f64,
    /// Longest sequence in tokens.
    #[arg(long, default_value_t = 256)]
    pub max_length: usize,
    /// Accepted for the reference's command lines: an adapter is the default; see --full.
    #[arg(long)]
    pub use_lora: bool,
    /// Accepted for the reference's command lines: corrections are made beforehand, by `oracle-service correct`.
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub oracle_max_tokens: u32,
    /// Trains all weights instead of an adapter; the output is a full model folder.
    #[arg(long, visible_alias = "no-lora", conflicts_with_all = ["use_lora", "init_adapter"])]
    pub full: bool,
    /// Draws the start weights from --seed instead of reading them; the folder needs config.json and tokenizer only.
    #[arg(long, requires = "full")]
    pub from_scratch: bool,
    /// Saves memory: keeps the input of every layer only, and computes the layers once more on the way back.
    #[arg(long)]
    pub recompute: bool,
    /// For --full over several ranks: shares the weights out as well as the optimiser's state, and gathers them layer by layer
    /// where they are needed. Less memory for more traffic; layers are computed once more, as with --recompute.
    #[arg(long, requires = "full")]
    pub shard_parameters: bool,
    /// An adapter folder to start from (π_ref stays the base).
    #[arg(long, value_name = "DIR")]
    pub init_adapter: Option<PathBuf>,
    /// Weight 1 for every record that would be weighted.
    #[arg(long)]
    pub uniform_weights: bool,
    /// Scores again though the records bring weights.
    #[arg(long, conflicts_with = "uniform_weights")]
    pub rescore: bool,
    /// Scores the conflict's records again after every so many updates, at the adapter as it is then, and weighs them anew.
    #[arg(long, value_name = "UPDATES", conflicts_with_all = ["uniform_weights", "full"])]
    pub rescore_every: Option<u64>,
    /// Reference log-probs by content, shared by runs over the same records: what the file holds is not computed again,
    /// what it lacks is added.
    #[arg(long, value_name = "FILE")]
    pub reference_logps: Option<PathBuf>,
    /// SFT records of which some are replayed at every update: {prompt, chosen}.
    #[arg(long, value_name = "FILE")]
    pub replay_json_path: Option<PathBuf>,
    /// Records replayed an update.
    #[arg(long, default_value_t = 16)]
    pub replay_batch_size: usize,
    /// Factor of the replay's mean-token NLL.
    #[arg(long, default_value_t = 1.0)]
    pub replay_weight: f64,
    /// Seed of the adapter's start, data order and dropout.
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Largest gradient norm; 0 switches clipping off.
    #[arg(long, default_value_t = 1.0)]
    pub max_grad_norm: f64,
    /// Decoupled weight decay.
    #[arg(long, default_value_t = 0.0)]
    pub weight_decay: f64,
    /// Decay of AdamW's first moment.
    #[arg(long, default_value_t = 0.9)]
    pub adam_beta1: f64,
    /// Decay of AdamW's second moment.
    #[arg(long, default_value_t = 0.999)]
    pub adam_beta2: f64,
    /// ε of AdamW.
    #[arg(long, default_value_t = 1e-8)]
    pub adam_epsilon: f64,
    /// Updates between checkpoints.
    #[arg(long, default_value_t = 500)]
    pub save_steps: u64,
    /// Goes on from a checkpoint whatever the number of ranks that wrote it: a gang may continue with fewer or more members. The
    /// batches stay the same and the losses too, to rounding; equal bits are given up. metrics.jsonl tells the ranks of each step.
    #[arg(long)]
    pub any_world_size: bool,
    /// Checkpoints kept.
    #[arg(long, default_value_t = 2)]
    pub save_total_limit: usize,
    /// Prints the summary as JSON.
    #[arg(long)]
    pub json: bool,
    /// Text options.
    #[command(flatten)]
    pub text: TextArgs,
    /// Adapter options.
    #[command(flatten)]
    pub lora: LoraArgs,
    /// Score options.
    #[command(flatten)]
    pub score: ScoreArgs,
    /// Options of validation.
    #[command(flatten)]
    pub validation: ValidationArgs,
    /// Options of the quality filter.
    #[command(flatten)]
    pub quality: QualityArgs,
    /// Options of U2A.
    #[command(flatten)]
    pub u2a: U2aArgs,
    /// Gang options.
    #[command(flatten)]
    pub gang: GangArgs,
}

/// Where the reference's DPO scripts take their records from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DatasetSource {
    /// A download from the Hugging Face hub.
    Hf,
    /// JSON lines.
    Jsonl,
    /// A JSON array.
    Json,
}

impl TrainArgs {
    /// Checks the options against each other.
    ///
    /// # Errors
    /// The first option that makes no sense, by name.
    pub fn validate(&self) -> Result<()> {
        let refuse = |problem: String| Err(Error::Config(problem));
        for (name, value) in [
            ("--batch-size", self.batch_size as u64),
            ("--gradient-accumulation-steps", self.gradient_accumulation_steps as u64),
            ("--num-train-epochs", self.num_train_epochs),
            ("--max-steps", self.max_steps.unwrap_or(1)),
            ("--decay-steps", self.decay_steps.unwrap_or(1)),
            ("--sample-size", self.sample_size.unwrap_or(1) as u64),
            ("--rescore-every", self.rescore_every.unwrap_or(1)),
            ("--save-steps", self.save_steps),
            ("--replay-batch-size", self.replay_batch_size as u64),
        ] {
            if value == 0 {
                return refuse(format!("{name} is 0; expected at least 1"));
            }
        }
        if let Some(name) = self.run_name.as_deref().filter(|name| !is_folder_name(name)) {
            return refuse(format!(
                "--run-name is {name:?}; expected the name of one folder, which goes into --output-dir"
            ));
        }
        if self.dataset_source == Some(DatasetSource::Hf) {
            return refuse(
                "--dataset-source hf: nothing is downloaded here; get the file and name it by --dataset-json-path"
                    .into(),
            );
        }
        for (name, value, low) in [
            ("--learning-rate", self.learning_rate, 0.0),
            ("--alpha-kl", self.alpha_kl, 0.0),
            ("--hold-until-loss", self.hold_until_loss.unwrap_or(0.0), 0.0),
            ("--stop-at-grad-norm", self.stop_at_grad_norm.unwrap_or(0.0), 0.0),
            ("--nll-weight", self.nll_weight, 0.0),
            ("--replay-weight", self.replay_weight, 0.0),
            ("--weight-decay", self.weight_decay, 0.0),
            ("--max-grad-norm", self.max_grad_norm, 0.0),
        ] {
            if !value.is_finite() || value < low {
                return refuse(format!("{name} is {value}; expected a number from {low}"));
            }
        }
        for (name, value) in [("--adam-beta1", self.adam_beta1), ("--adam-beta2", self.adam_beta2)] {
            if !(0.0..1.0).contains(&value) {
                return refuse(format!("{name} is {value}; expected 0 to below 1"));
            }
        }
        if !self.adam_epsilon.is_finite() || self.adam_epsilon <= 0.0 {
            return refuse(format!("--adam-epsilon is {}; expected a positive number", self.adam_epsilon));
        }
        if !self.beta.is_finite() || self.beta <= 0.0 {
            return refuse(format!("--beta is {}; expected a positive number", self.beta));
        }
        self.score.validate(self.init_adapter.is_some())?;
        if !(0.0..0.5).contains(&self.label_smoothing) {
            return refuse(format!("--label-smoothing is {}; expected 0 to below 0.5", self.label_smoothing));
        }
        let smoothed = matches!(self.preference_loss(), PreferenceLoss::Cdpo | PreferenceLoss::Rdpo);
        if smoothed && self.label_smoothing == 0.0 {
            return refuse(
                "cdpo and rdpo with --label-smoothing 0 are plain dpo; give the noise rate, e.g. 0.1".into(),
            );
        }
        if !smoothed && self.label_smoothing != 0.0 {
            return refuse("--label-smoothing has an effect with the cdpo and rdpo losses only".into());
        }
        self.u2a.validate(self.method)?;
        self.quality.validate()?;
        self.validation.validate()?;
        self.check_rounds()?;
        self.lora.config().map(|_| ())
    }

    /// Returns whether the weights may change in the run.
    pub fn has_rounds(&self) -> bool {
        self.u2a.has_rounds() || self.rescore_every.is_some()
    }

    /// Refuses what a score at the adapter of a running training cannot have.
    fn check_rounds(&self) -> Result<()> {
        let option = match (self.rescore_every, self.u2a.u2a_rounds) {
            (Some(_), _) if self.method == Method::U2a || !self.method.is_weighted() => {
                let instead = if self.method == Method::U2a { "; see --u2a-rounds" } else { ", which has no weights" };
                let name = self.method.name();
                return Err(Error::Config(format!("--rescore-every is not for method {name}{instead}")));
            }
            (Some(_), _) => "--rescore-every",
            (None, 1) => return Ok(()),
            (None, _) => "--u2a-rounds",
        };
        let score = &self.score;
        let problem = if score.leave_gold_out {
            "--leave-gold-out: a round's scores count a record's own gold pairs"
        } else if score.score_seeds > 1 || score.score_space != ScoreSpace::Adapter {
            "--score-seeds or --score-space: a round's scores are taken at the adapter that is trained"
        } else if score.curvature != Curvature::None {
            "--curvature cg: a round's scores are taken along the gold gradient itself"
        } else {
            return Ok(());
        };
        Err(Error::Config(format!("{option} and {problem}; leave out one of the two")))
    }

    /// Refuses a --rescore-every that comes after the last of `total` updates.
    ///
    /// # Errors
    /// It does.
    pub fn check_rescoring(&self, total: u64) -> Result<()> {
        match self.rescore_every {
            Some(every) if every >= total => Err(Error::Config(format!(
                "--rescore-every is {every}, the run has {total} updates: no weight would be made anew; lower it or leave it out"
            ))),
            _ => Ok(()),
        }
    }

    /// Says which of the options given have nothing to set here.
    pub fn note_without_effect(&self) {
        if self.dataset_source.is_some() {
            tracing::info!("--dataset-source has no effect here: the form of a file is told by its content");
        }
    }

    /// Returns the order of batches over so many records.
    pub fn plan(&self, records: usize) -> Plan {
        Plan {
            records,
            global_batch: self.batch_size.saturating_mul(self.gradient_accumulation_steps),
            epochs: self.num_train_epochs,
            max_steps: self.max_steps,
            seed: self.seed,
        }
    }

    /// Returns the loss of preference terms.
    pub fn preference_loss(&self) -> PreferenceLoss {
        self.loss.unwrap_or(match self.method {
            Method::Rdpo => PreferenceLoss::Rdpo,
            Method::Cdpo => PreferenceLoss::Cdpo,
            Method::Ipo => PreferenceLoss::Ipo,
            _ => PreferenceLoss::Dpo,
        })
    }

    /// Returns the objective's constants.
    pub fn objective(&self) -> Settings {
        Settings {
            beta: self.beta,
            epsilon: self.label_smoothing,
            alpha_kl: self.alpha_kl,
            loss: self.preference_loss(),
            nll_weight: self.nll_weight,
        }
    }

    /// Returns the optimiser's constants.
    pub fn adam(&self) -> AdamWSettings {
        AdamWSettings {
            beta1: self.adam_beta1,
            beta2: self.adam_beta2,
            epsilon: self.adam_epsilon,
            weight_decay: self.weight_decay,
        }
    }

    /// Returns which term a record gets.
    pub fn recipe(&self) -> Recipe {
        Recipe { method: self.method, alpha_kl: self.alpha_kl, filter: self.quality.filter() }
    }

    /// Returns what shapes the scores.
    pub fn score_settings(&self) -> ScoreSettings {
        self.score.settings(self.recipe(), self.beta, self.seed, self.text.score_length(self.max_length))
    }

    /// Returns the pace of a run of at most `total` updates.
    ///
    /// # Errors
    /// An explicit warm-up that is as long as the run or longer, or no room for the fall after it.
    pub fn pace(&self, total: u64) -> Result<Pace> {
        let warmup = self.warmup(total)?;
        let hold = self.hold_until_loss.zip(self.decay_steps);
        let hold = hold.map(|(until_loss, decay_steps)| Hold { until_loss, decay_steps });
        if let Some(hold) = hold.filter(|hold| warmup + hold.decay_steps >= total) {
            return Err(Error::Config(format!(
                "--decay-steps is {}, the run has at most {total} updates, {warmup} of them warm-up: there is no room to hold \
                 the learning rate; raise --max-steps or lower --decay-steps",
                hold.decay_steps
            )));
        }
        Ok(Pace::new(self.learning_rate, warmup, total, hold).until_gradient(self.stop_at_grad_norm))
    }

    fn warmup(&self, total: u64) -> Result<u64> {
        match self.warmup_steps {
            Some(warmup) if warmup >= total => Err(Error::Config(format!(
                "--warmup-steps is {warmup}, the run has {total} updates: it would never reach its learning rate; \
                 lower it, or leave it out for a tenth of the run"
            ))),
            Some(warmup) => Ok(warmup),
            None => Ok(schedule::default_warmup(total)),
        }
    }

    /// Returns every option that shapes the result, by name: a run is continued only when all are equal.
    pub fn key(&self) -> Value {
        let mut key = json!({
            "method": self.method, "loss": self.preference_loss(), "label_smoothing": self.label_smoothing,
            "nll_weight": self.nll_weight, "batch_size": self.batch_size,
            "gradient_accumulation_steps": self.gradient_accumulation_steps, "learning_rate": self.learning_rate,
            "num_train_epochs": self.num_train_epochs, "max_steps": self.max_steps,
            "warmup_steps": self.warmup_steps, "hold_until_loss": self.hold_until_loss, "decay_steps": self.decay_steps,
            "stop_at_grad_norm": self.stop_at_grad_norm, "batching": self.batching,
            "beta": self.beta, "alpha_kl": self.alpha_kl,
            "max_length": self.max_length, "full": self.full, "from_scratch": self.from_scratch,
            "uniform_weights": self.uniform_weights, "rescore": self.rescore,
            "replay_batch_size": self.replay_batch_size, "replay_weight": self.replay_weight, "seed": self.seed,
            "max_grad_norm": self.max_grad_norm, "adam": self.adam(), "text": self.text, "lora": self.lora,
            "score": self.score,
        });
        // What is not in use is not in the keys of runs that were begun before there was such an option.
        if self.method == Method::U2a {
            key["u2a"] = self.u2a.key();
        }
        if let Some(every) = self.rescore_every {
            key["rescore_every"] = json!(every);
        }
        if self.quality.filter().acts() {
            key["quality_min_words"] = json!(self.quality.quality_min_words);
        }
        key
    }

    /// Returns the folder of runs.
    pub fn runs_dir(&self) -> PathBuf {
        self.output_dir.clone().unwrap_or_else(|| {
            let name = match self.method {
                Method::OraclePunish => "runs/trace_oracle".to_owned(),
                Method::NoImpact => "runs/trace_no_impact".to_owned(),
                Method::NoTriage => "runs/trace_notriage".to_owned(),
                other => format!("runs/{}", other.name()),
            };
            PathBuf::from(name)
        })
    }
}

/// Returns whether a name is one part of a path: neither empty, nor a path of several, nor `.` or `..`.
fn is_folder_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_name_is_one_part_of_a_path() {
        for name in ["w", "a.b", "..c", "with space", "ü"] {
            assert!(is_folder_name(name), "{name:?}");
        }
        for name in ["", ".", "..", "../esc", "/abs", "a/b", "a/", "./a"] {
            assert!(!is_folder_name(name), "{name:?}");
        }
    }
}
