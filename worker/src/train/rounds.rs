//! U2A's outer rounds: at the beginning of a round the weights follow the scores at the present adapter.
//!
//! A run of T rounds is one schedule cut into T shares of updates. Where a later share begins, J and every δ are computed anew
//! against the same gold batch, with real log-ratios, and the weights take a step ([`u2a::reweighted`]). `u2a/round-N.json` holds
//! what each round began with; it is written before any checkpoint of the round, so a resumed run reads the last one it has passed.
//! The ranks of a gang share the work and take the first rank's weights.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::TrainArgs;
use super::run_folder::RunFolder;
use super::u2a;
use crate::collective::Collective;
use crate::control::Control;
use crate::dataset::{self, DataSet, GoldFile};
use crate::error::{Error, Result};
use crate::model::lora::Lora;
use crate::model::tangent::Direction;
use crate::objective::step::{self, Item, LossParts, Policy, Settings, to_f64};
use crate::reference::{self, Known};
use crate::score::{self, ScoreSettings, direction};
use crate::text::Encoder;

/// What a round began with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Round {
    /// From 1.
    pub(super) round: u64,
    /// Updates done before it.
    pub(super) step: u64,
    /// J, the summed preference loss of the gold pairs.
    pub(super) objective: f64,
    /// J has come down by less than --u2a-tolerance: the run ended here.
    pub(super) is_end: bool,
    /// The records it trains on.
    pub(super) records: Vec<Weighted>,
}

/// A record's share in a round.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Weighted {
    /// Its index in the file.
    record: usize,
    /// δ
    delta: f64,
    /// ω
    omega: f64,
}

/// The rounds of a run.
pub(super) struct Rounds {
    gold: Vec<Item>,
    gold_file: PathBuf,
    settings: ScoreSettings,
    objective: Settings,
    /// Updates after which a later round begins.
    begins: Vec<u64>,
    eta: f64,
    tolerance: Option<f64>,
    done: Vec<Round>,
}

impl Rounds {
    /// Makes the rounds of a run of `total` updates: none where it has but one, over all records.
    ///
    /// # Errors
    /// The gold batch is unusable, or a member of the gang is gone.
    pub(super) fn new(
        args: &TrainArgs,
        set: &DataSet,
        encoder: &Encoder,
        policy: Policy<'_>,
        total: u64,
        control: &Control,
        gang: &mut dyn Collective,
    ) -> Result<Option<Rounds>> {
        if !args.u2a.has_rounds() {
            return Ok(None);
        }
        let settings = args.score_settings();
        let pairs = score::gold_batch(set, &settings)?;
        let file = match &settings.gold {
            Some(file) => GoldFile::Given(file),
            None => GoldFile::DrawnFrom(&set.file),
        };
        let mut gold = dataset::gold_items(encoder, &pairs, file, settings.max_length)?;
        reference::fill(
            policy.reference,
            &mut gold.iter_mut().collect::<Vec<_>>(),
            &Known::default(),
            None,
            settings.pack_tokens,
            control,
            gang,
        )?;
        Ok(Some(Rounds {
            gold,
            gold_file: file.path().to_owned(),
            objective: settings.objective(),
            settings,
            begins: u2a::beginnings(total, args.u2a.u2a_rounds),
            eta: args.u2a.eta(),
            tolerance: args.u2a.u2a_tolerance,
            done: Vec::new(),
        }))
    }

    /// Begins the first round, or takes up the last one that began by `step`. `scores` are the δ of the records at the start.
    ///
    /// # Errors
    /// A round's file is missing or of other records, a number is not finite, or a member of the gang is gone.
    pub(super) fn start(
        &mut self,
        run: &RunFolder,
        policy: Policy<'_>,
        items: &mut [Option<Item>],
        scores: &[Option<f64>],
        step: u64,
        gang: &mut dyn Collective,
    ) -> Result<()> {
        if step == 0 {
            let objective = self.objective(policy, gang)?;
            let scored = items.iter().zip(scores).filter_map(|(item, score)| item.as_ref().zip(*score));
            let records = scored.map(|(item, delta)| Weighted { record: item.record, delta, omega: item.weight });
            let first = Round { round: 1, step: 0, objective, is_end: false, records: records.collect() };
            return self.keep(run, first);
        }
        for round in 1..=1 + self.begins.iter().filter(|begin| **begin <= step).count() as u64 {
            let file = file(run, round);
            if !file.exists() {
                let problem = format!(
                    "is not there, though the checkpoint of step {step} is of this round or a later one; restore it, or \
                     remove the run's checkpoints to start over"
                );
                return Err(Error::model(&file, problem));
            }
            self.done.push(shared::input::read_json(&file)?);
        }
        let last = self.done.last().expect("the first round's file was read");
        let present: Vec<&mut Item> = items.iter_mut().flatten().collect();
        if !last.records.iter().map(|of| of.record).eq(present.iter().map(|item| item.record)) {
            return Err(Error::model(
                file(run, last.round),
                "is of other records than the run trains on; remove the folder",
            ));
        }
        for (item, of) in present.into_iter().zip(&last.records) {
            item.weight = of.omega;
        }
        Ok(())
    }

    /// Begins the round that is due after `step` updates, if there is one: scores, weights, and their file. Returns whether the
    /// run ends here.
    ///
    /// # Errors
    /// A number is not finite, the folder cannot be written, or a member of the gang is gone.
    pub(super) fn begin(
        &mut self,
        run: &RunFolder,
        policy: Policy<'_>,
        items: &mut [Option<Item>],
        step: u64,
        gang: &mut dyn Collective,
    ) -> Result<bool> {
        if !self.begins.contains(&step) {
            return Ok(false);
        }
        let present: Vec<&mut Item> = items.iter_mut().flatten().collect();
        let (objective, deltas) =
            self.rescore(policy, &present.iter().map(|item| &**item).collect::<Vec<_>>(), gang)?;
        let before = self.done.last().expect("the first round began").objective;
        let is_end = self.tolerance.is_some_and(|least| before - objective < least);
        let omegas: Vec<f64> = present.iter().map(|item| item.weight).collect();
        let mut omegas = if is_end { omegas } else { u2a::reweighted(&omegas, &deltas, self.eta) };
        first_rank_of(&mut omegas, gang)?;
        let mut records = Vec::with_capacity(present.len());
        for ((item, delta), omega) in present.into_iter().zip(deltas).zip(omegas) {
            item.weight = omega;
            records.push(Weighted { record: item.record, delta, omega });
        }
        self.keep(run, Round { round: self.done.len() as u64 + 1, step, objective, is_end, records })?;
        Ok(is_end)
    }

    /// Returns J at the present parameters, the pairs dealt over the ranks.
    ///
    /// # Errors
    /// It is not finite, or a member of the gang is gone.
    pub(super) fn objective(&self, policy: Policy<'_>, gang: &mut dyn Collective) -> Result<f64> {
        let mut sums = LossParts::default();
        for (i, pack) in dataset::packs(self.gold.iter(), self.settings.pack_tokens).iter().enumerate() {
            if i % gang.world_size() == gang.rank() {
                let parts = step::evaluate(policy, pack, &self.objective);
                sums.add(&parts.map_err(|bad| bad.in_file(&self.gold_file, ADVICE))?);
            }
        }
        let mut sum = [sums.total()];
        gang.all_reduce_f64(&mut sum)?;
        Ok(sum[0])
    }

    /// Returns how the rounds went, for the summary.
    pub(super) fn told(&self) -> Vec<serde_json::Value> {
        let told = |round: &Round| serde_json::json!({"round": round.round, "step": round.step, "objective": round.objective, "is_end": round.is_end});
        self.done.iter().map(told).collect()
    }

    /// J and every item's δ at the present adapter.
    fn rescore(&self, policy: Policy<'_>, items: &[&Item], gang: &mut dyn Collective) -> Result<(f64, Vec<f64>)> {
        let adapter = policy.adapter.expect("rounds are refused where all weights are trained").detached();
        let (world, rank) = (gang.world_size(), gang.rank());
        let mine = |(i, _): &(usize, &[Item])| i % world == rank;
        let rows = self.settings.gold_rows;
        let own: Vec<Item> =
            self.gold.chunks(rows).enumerate().filter(mine).flat_map(|(_, chunk)| chunk.to_vec()).collect();
        let (objective, direction) =
            direction::objective_gradient(policy.decoder, &adapter, &own, &self.objective, rows, &self.gold_file)?;
        let mut sum = [objective];
        gang.all_reduce_f64(&mut sum)?;
        sum_over_ranks(&direction, gang)?;
        direction::check(&direction, &self.gold_file)?;

        let mut deltas = Vec::with_capacity(items.len());
        for (i, pack) in dataset::packs(items.iter().copied(), self.settings.pack_tokens).iter().enumerate() {
            if i % world == rank {
                let scores = direction::pack_scores(
                    policy.decoder,
                    &adapter,
                    Direction::Adapter(&direction),
                    pack,
                    &self.objective,
                    false,
                );
                deltas.extend(scores.raw);
            } else {
                deltas.extend(std::iter::repeat_n(0.0, pack.len()));
            }
        }
        gang.all_reduce_f64(&mut deltas)?;
        if let Some(bad) = deltas.iter().position(|delta| !delta.is_finite()) {
            return Err(Error::Numeric(format!(
                "record {}: its score at the beginning of a round is {}; {ADVICE}",
                items[bad].record, deltas[bad]
            )));
        }
        Ok((sum[0], deltas))
    }

    fn keep(&mut self, run: &RunFolder, round: Round) -> Result<()> {
        if run.is_owned() {
            run.check()?;
            let file = file(run, round.round);
            let folder = file.parent().unwrap_or(&run.path);
            std::fs::create_dir_all(folder).map_err(|e| Error::model(folder, e.to_string()))?;
            shared::output::write_json(&file, &round)?;
        }
        self.done.push(round);
        Ok(())
    }
}

const ADVICE: &str = "lower --learning-rate, or look at the gold batch and the record's text";

fn file(run: &RunFolder, round: u64) -> PathBuf {
    run.path.join("u2a").join(format!("round-{round}.json"))
}

/// Replaces a gradient's numbers by their sums over the ranks.
fn sum_over_ranks(gradient: &Lora, gang: &mut dyn Collective) -> Result<()> {
    if gang.world_size() == 1 {
        return Ok(());
    }
    let parameters = gradient.named_parameters();
    let mut flat: Vec<f32> = parameters.iter().flat_map(|(_, t)| to_f64(t)).map(|number| number as f32).collect();
    gang.all_reduce(&mut flat)?;
    let mut at = 0;
    for (_, tensor) in parameters {
        let end = at + tensor.numel();
        let sums = tch::Tensor::from_slice(&flat[at..end]).view(tensor.size().as_slice()).to_device(tensor.device());
        tensor.shallow_clone().copy_(&sums);
        at = end;
    }
    Ok(())
}

/// Replaces numbers by those of the first rank.
fn first_rank_of(numbers: &mut [f64], gang: &mut dyn Collective) -> Result<()> {
    if gang.rank() != 0 {
        numbers.fill(0.0);
    }
    gang.all_reduce_f64(numbers)
}
