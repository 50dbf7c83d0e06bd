//! The objective on records that are not trained on: which, when, and the figures of each time.
//!
//! The terms are those that the recipe gives these records, each with weight 1 and without dropout: what is compared over a run
//! must not depend on weights. The sum is divided by the number of records, as a batch's is. Reference log-probs are computed once;
//! an anchor needs whole distributions of π_ref, which are computed anew each time.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::TrainArgs;
use super::metrics::Figures;
use crate::collective::{Collective, Op};
use crate::control::Control;
use crate::dataset::{self, DataSet, Truncated};
use crate::error::{Error, Result};
use crate::model::decoder::Decoder;
use crate::objective::step::{self, Item, LossParts, Policy};
use crate::reference::{self, Known};
use crate::score;
use crate::text::Encoder;

/// Options of validation.
#[derive(Debug, Clone, Default, Args)]
pub struct ValidationArgs {
    /// Records on which the loss is measured during the run, triaged as those that are trained on. What has the lowest loss is
    /// kept in the run's folder under best/; without such a file nothing is.
    #[arg(long, value_name = "FILE")]
    pub validation_json_path: Option<PathBuf>,
    /// Updates between validations [default: as --save-steps]; the last update is followed by one in any case.
    #[arg(long, value_name = "N", requires = "validation_json_path")]
    pub eval_steps: Option<u64>,
    /// The run's folder holds in the end what is in best/ instead of what the last update left.
    #[arg(long, requires = "validation_json_path")]
    pub load_best: bool,
}

impl ValidationArgs {
    /// Checks the options.
    ///
    /// # Errors
    /// A count of 0.
    pub fn validate(&self) -> Result<()> {
        match self.eval_steps {
            Some(0) => Err(Error::Config("--eval-steps is 0; expected at least 1".into())),
            _ => Ok(()),
        }
    }
}

/// The records of a run's validation.
pub(super) struct Validation {
    pub(super) set: DataSet,
    items: Vec<Item>,
    every: u64,
}

impl Validation {
    /// Reads and tokenises the records; none where the run has no validation.
    ///
    /// # Errors
    /// The file or a record is unusable, or no record has a loss with the run's method.
    pub(super) fn read(args: &TrainArgs, encoder: &Encoder) -> Result<Option<Validation>> {
        let Some(file) = &args.validation.validation_json_path else { return Ok(None) };
        let set = DataSet::read(file, args.method)?;
        let items: Vec<Item> = set.items(encoder, &args.recipe(), args.max_length)?.into_iter().flatten().collect();
        if items.is_empty() {
            let problem = format!(
                "none of its {} records has a loss with method {}, so there is nothing to validate by",
                set.records.len(),
                args.method.name()
            );
            return Err(shared::error::Error::file(file, problem).into());
        }
        Ok(Some(Validation { set, items, every: args.validation.eval_steps.unwrap_or(args.save_steps) }))
    }

    /// Returns what of it shapes a run's folder.
    pub(super) fn key(&self, args: &TrainArgs) -> Value {
        let records = score::content_hash(&self.set.records);
        json!({"records": records, "eval_steps": self.every, "load_best": args.validation.load_best})
    }

    /// Returns what has a loss.
    pub(super) fn items(&self) -> &[Item] {
        &self.items
    }

    /// Says what was cut.
    pub(super) fn warn(&self, args: &TrainArgs) {
        Truncated::of(&self.items).warn(&self.set.file, args.max_length);
    }

    /// Computes the reference log-probs.
    ///
    /// # Errors
    /// The command was told to stop, or a member of the gang is gone.
    pub(super) fn fill(
        &mut self,
        reference: &Decoder,
        pack_tokens: usize,
        control: &Control,
        gang: &mut dyn Collective,
    ) -> Result<()> {
        let mut items: Vec<&mut Item> = self.items.iter_mut().collect();
        reference::fill(reference, &mut items, &Known::default(), None, pack_tokens, control, gang)
    }

    /// Returns whether there is a validation after so many updates, of `total` as far as is known.
    pub(super) fn is_due(&self, step: u64, total: u64) -> bool {
        step.is_multiple_of(self.every) || step == total
    }

    /// Returns how many validations lie before the end of a run that goes on after `step` updates.
    pub(super) fn done_by(&self, step: u64) -> u64 {
        step / self.every
    }

    /// Measures the objective, the packs dealt over the ranks and their sums exchanged: every rank has the same figures.
    ///
    /// # Errors
    /// A loss is not finite, or a member of the gang is gone.
    pub(super) fn measure(
        &self,
        args: &TrainArgs,
        policy: Policy<'_>,
        (step, epoch): (u64, u64),
        gang: &mut dyn Collective,
    ) -> Result<Figures> {
        let mut parts = LossParts::default();
        for (i, pack) in dataset::packs(self.items.iter(), args.score.pack_tokens).iter().enumerate() {
            gang.check()?;
            if i % gang.world_size() == gang.rank() {
                let sums = step::evaluate(policy, pack, &args.objective());
                parts.add(
                    &sums.map_err(|bad| bad.in_file(&self.set.file, "lower --learning-rate or remove the record"))?,
                );
            }
        }
        let mut numbers = parts.numbers();
        gang.all_reduce(numbers.as_mut_slice().into(), Op::Sum)?;
        let parts = LossParts::from_numbers(numbers);
        Ok(Figures::new(step, epoch, &parts, self.set.records.len(), args.alpha_kl))
    }
}
