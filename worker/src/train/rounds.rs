//! Rounds of a run: at the beginning of a round the weights follow the scores at the present adapter.
//!
//! One schedule is cut into rounds: U2A's are T shares of its updates, those of --rescore-every so many updates each. Where a
//! later round begins, J and every δ are computed anew against the same gold batch, with real log-ratios. U2A's weights take a
//! step ([`u2a::reweighted`]); impact weights are made of the new scores as they were of the first ones. `round-N.json`, under
//! `u2a` or `rescored`, holds what each round began with; it is written before any checkpoint of the round, so a resumed run
//! reads the last one it has passed. The ranks of a gang share the work and take the first rank's weights.

use std::collections::HashMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use tch::{Kind, Tensor};

use super::TrainArgs;
use super::run_folder::RunFolder;
use super::u2a;
use crate::collective::{Collective, Numbers, Op};
use crate::control::Control;
use crate::dataset::{self, DataSet, GoldFile};
use crate::error::{Error, Result};
use crate::objective::step::{self, Item, LossParts, Policy, Settings};
use crate::reference::{self, Known};
use crate::score::engine::Engine;
use crate::score::options::ScoreSpace;
use crate::score::point::Point;
use crate::score::vector::Vector;
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
    /// Where the records stand.
    records_file: PathBuf,
    settings: ScoreSettings,
    objective: Settings,
    rule: Rule,
    done: Vec<Round>,
}

/// When later rounds begin, and how the weights follow.
enum Rule {
    /// After these updates; ω takes a step along δ. J has to come down by `tolerance`.
    U2a { begins: Vec<u64>, eta: f64, tolerance: Option<f64> },
    /// After every so many updates; weights are made of δ.
    Impact { every: u64 },
}

impl Rule {
    fn of(args: &TrainArgs, total: u64) -> Option<Rule> {
        match args.rescore_every {
            Some(every) => Some(Rule::Impact { every }),
            None if args.u2a.has_rounds() => Some(Rule::U2a {
                begins: u2a::beginnings(total, args.u2a.u2a_rounds),
                eta: args.u2a.eta(),
                tolerance: args.u2a.u2a_tolerance,
            }),
            None => None,
        }
    }

    /// Returns whether a later round begins after so many updates.
    fn begins_at(&self, step: u64) -> bool {
        match self {
            Rule::U2a { begins, .. } => begins.contains(&step),
            Rule::Impact { every } => step > 0 && step.is_multiple_of(*every),
        }
    }

    /// Returns how many later rounds have begun by then.
    fn begun_by(&self, step: u64) -> u64 {
        match self {
            Rule::U2a { begins, .. } => begins.iter().filter(|begin| **begin <= step).count() as u64,
            Rule::Impact { every } => step / every,
        }
    }

    /// The folder of the rounds' files in a run's.
    fn folder(&self) -> &'static str {
        match self {
            Rule::U2a { .. } => "u2a",
            Rule::Impact { .. } => "rescored",
        }
    }
}

impl Rounds {
    /// Makes the rounds of a run of at most `total` updates: none where it has but one, over all records.
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
        let Some(rule) = Rule::of(args, total) else { return Ok(None) };
        let mut settings = args.score_settings();
        settings.args.score_layers = false;
        let pairs = score::gold_batch(set, &settings)?;
        let file = match &settings.args.gold {
            Some(file) => GoldFile::Given(file),
            None => GoldFile::DrawnFrom(&set.file),
        };
        let mut gold = dataset::gold_items(encoder, &pairs, file, settings.max_length)?;
        reference::fill(
            policy.reference,
            &mut gold.iter_mut().collect::<Vec<_>>(),
            &Known::default(),
            None,
            settings.args.pack_tokens,
            control,
            gang,
        )?;
        Ok(Some(Rounds {
            gold,
            gold_file: file.path().to_owned(),
            objective: settings.objective(),
            records_file: set.file.clone(),
            settings,
            rule,
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
        for round in 1..=1 + self.rule.begun_by(step) {
            let file = self.file(run, round);
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
        let present = scored(items);
        if !last.records.iter().map(|of| of.record).eq(present.iter().map(|item| item.record)) {
            return Err(Error::model(
                self.file(run, last.round),
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
        if !self.rule.begins_at(step) {
            return Ok(false);
        }
        let present = scored(items);
        let (objective, deltas) =
            self.rescore(policy, &present.iter().map(|item| &**item).collect::<Vec<_>>(), gang)?;
        let before = self.done.last().expect("the first round began").objective;
        let omegas: Vec<f64> = present.iter().map(|item| item.weight).collect();
        let (mut omegas, is_end) = match self.rule {
            Rule::U2a { tolerance: Some(least), .. } if before - objective < least => (omegas, true),
            Rule::U2a { eta, .. } => (u2a::reweighted(&omegas, &deltas, eta), false),
            Rule::Impact { .. } => (self.impact_weights(run, &present, &deltas, step), false),
        };
        gang.broadcast(omegas.as_mut_slice().into(), 0)?;
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
        for (i, pack) in dataset::packs(self.gold.iter(), self.settings.args.pack_tokens).iter().enumerate() {
            gang.check()?;
            if i % gang.world_size() == gang.rank() {
                let parts = step::evaluate(policy, pack, &self.objective);
                sums.add(&parts.map_err(|bad| bad.in_file(&self.gold_file, ADVICE))?);
            }
        }
        let mut sum = [sums.total()];
        gang.all_reduce(sum.as_mut_slice().into(), Op::Sum)?;
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
        let point = Point { decoder: policy.decoder, adapter: &adapter, is_fresh: false, space: ScoreSpace::Adapter };
        let (world, rank) = (gang.world_size(), gang.rank());
        let mine = |(i, _): &(usize, &[Item])| i % world == rank;
        let rows = self.settings.args.pa_batch_size;
        let own: Vec<Item> =
            self.gold.chunks(rows).enumerate().filter(mine).flat_map(|(_, chunk)| chunk.to_vec()).collect();
        let (objective, direction) = point
            .gradient(&own, &self.objective, rows, &mut || gang.check())
            .map_err(|bad| bad.in_file(&self.gold_file, ADVICE))?;
        let mut sum = [objective];
        gang.all_reduce(sum.as_mut_slice().into(), Op::Sum)?;
        sum_over_ranks(&direction, gang)?;
        direction::check(direction.dot(&direction), &self.gold_file)?;

        let engine = Engine::new(&[point], vec![direction], &self.settings, HashMap::new());
        let mut deltas = Vec::with_capacity(items.len());
        for (i, pack) in dataset::packs(items.iter().copied(), self.settings.args.pack_tokens).iter().enumerate() {
            gang.check()?;
            if i % world == rank {
                deltas.extend(engine.scores(pack).map_err(|bad| bad.in_file(&self.records_file, ADVICE))?.raw);
            } else {
                deltas.extend(std::iter::repeat_n(0.0, pack.len()));
            }
        }
        gang.all_reduce(deltas.as_mut_slice().into(), Op::Sum)?;
        if let Some(bad) = deltas.iter().position(|delta| !delta.is_finite()) {
            return Err(Error::Numeric(format!(
                "record {}: its score at the beginning of a round is {}; {ADVICE}",
                items[bad].record, deltas[bad]
            )));
        }
        Ok((sum[0], deltas))
    }

    /// Returns the weights of items by their scores. Where all of these are 0 or below, nothing is left to weigh by, and the
    /// weights stay.
    fn impact_weights(&self, run: &RunFolder, items: &[&mut Item], deltas: &[f64], step: u64) -> Vec<f64> {
        let (gamma, norm) = (self.settings.args.lamda, self.settings.args.weight_norm);
        let made = shared::weights::weights(deltas, gamma, norm, &self.records_file, |at| items[at].record);
        made.unwrap_or_else(|error| {
            if run.is_owned() {
                tracing::warn!("step {step}: the weights stay as they were: {error}");
            }
            items.iter().map(|item| item.weight).collect()
        })
    }

    fn file(&self, run: &RunFolder, round: u64) -> PathBuf {
        run.path.join(self.rule.folder()).join(format!("round-{round}.json"))
    }

    fn keep(&mut self, run: &RunFolder, round: Round) -> Result<()> {
        if run.is_owned() {
            run.check()?;
            let file = self.file(run, round.round);
            let folder = file.parent().unwrap_or(&run.path);
            std::fs::create_dir_all(folder).map_err(|e| Error::model(folder, e.to_string()))?;
            shared::output::write_json(&file, &round)?;
        }
        self.done.push(round);
        Ok(())
    }
}

/// Returns the items that have a score; the others, anchors, keep the weight they have.
fn scored(items: &mut [Option<Item>]) -> Vec<&mut Item> {
    items.iter_mut().flatten().filter(|item| item.term.uses_ratios()).collect()
}

const ADVICE: &str = "lower --learning-rate, or look at the gold batch and the record's text";

/// Replaces a gradient's numbers by their sums over the ranks.
fn sum_over_ranks(gradient: &Vector, gang: &mut dyn Collective) -> Result<()> {
    if gang.world_size() == 1 {
        return Ok(());
    }
    let parameters = gradient.named();
    let rows: Vec<Tensor> = parameters.iter().map(|(_, tensor)| tensor.to_kind(Kind::Float).reshape([-1])).collect();
    let mut flat = Tensor::cat(&rows, 0);
    gang.all_reduce(Numbers::of(&mut flat), Op::Sum)?;
    let mut from = 0;
    for (_, tensor) in parameters {
        let numbers = tensor.numel() as i64;
        tensor.shallow_clone().copy_(&flat.narrow(0, from, numbers).view_as(&tensor));
        from += numbers;
    }
    Ok(())
}
