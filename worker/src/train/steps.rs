//! The loop of a training: batches, updates, validations, checkpoints, and orders to stop.

use std::time::Instant;

use super::TrainArgs;
use super::best::{self, Best};
use super::checkpoint::{self, Checkpoints};
use super::curves::Curves;
use super::gang::GangTimes;
use super::metrics::{Figures, StepMetrics};
use super::optimizer::Optimizer;
use super::rounds::Rounds;
use super::run_folder::RunFolder;
use super::saved;
use super::update::{self, StepRecords};
use super::validation::Validation;
use crate::collective::Collective;
use crate::control::{Control, Stop};
use crate::error::{Error, Result};
use crate::in_flight::{self, InFlight};
use crate::objective::step::{DropoutKey, Item, Policy};

/// What a run computes on.
pub struct Sets<'a> {
    pub items: &'a mut [Option<Item>],
    /// The group of each item, for batches by category.
    pub groups: &'a [usize],
    pub replay: &'a [Item],
    pub validation: Option<&'a Validation>,
    pub u2a: Option<U2a<'a>>,
}

/// The rounds of U2A, and the scores that the first begins with.
pub struct U2a<'a> {
    pub rounds: &'a mut Rounds,
    pub scores: &'a [Option<f64>],
}

/// What the loop came to.
pub struct Trained {
    /// Computed in this process and its gang.
    pub tokens: usize,
    /// The best validation; known to the first rank alone.
    pub best: Option<Best>,
    /// The last validation.
    pub last: Option<Figures>,
    /// For the summary.
    pub checkpoints: serde_json::Value,
    /// Where the time of the steps went.
    pub times: GangTimes,
}

/// Takes a run from its last whole checkpoint, or its beginning, to its last step.
#[allow(clippy::too_many_arguments)]
pub fn train(
    args: &TrainArgs,
    run: &RunFolder,
    policy: Policy<'_>,
    sets: Sets<'_>,
    optimizer: &mut Optimizer,
    in_flight: &mut InFlight,
    control: &Control,
    gang: &mut dyn Collective,
) -> Result<Trained> {
    let Sets { items, groups, replay, validation, mut u2a } = sets;
    let plan = args.plan(items.len());
    let mut pace = args.pace(plan.total_steps())?;
    let dropout_probability = match policy.adapter {
        Some(adapter) => adapter.config.dropout,
        None => 0.0,
    };
    let mut start = 0;
    if let Some(found) = checkpoint::newest_whole(&run.path, &run.key, gang)? {
        start = found.state.step;
        optimizer.restore(&found, gang)?;
        pace.restore(found.state.seen);
    }
    let starts = gang.all_gather_number(start as f64)?;
    if starts.iter().any(|other| *other != start as f64) {
        return Err(Error::Gang(format!("the ranks found checkpoints of different steps: {starts:?}")));
    }
    if start > 0 {
        tracing::info!("continuing {} from step {start} of {}", run.path.display(), pace.total());
    }
    run.check()?;
    let expected =
        ((start / args.save_steps + 1) * args.save_steps < pace.total()).then(|| optimizer.parts(run.is_owned()));
    let mut checkpoints = Checkpoints::open(run, args.save_total_limit, expected.as_ref(), control, gang)?;
    drop(expected);
    let mut curves = if run.is_owned() {
        Some(Curves::open(run, start, validation.map(|validation| validation.done_by(start)))?)
    } else {
        None
    };
    if let Some(U2a { rounds, scores }) = &mut u2a {
        rounds.start(run, policy, items, scores, start, gang)?;
    }
    let bar = control.bar_from(start, "train", pace.total());
    let (mut order, mut order_epoch) = (Vec::new(), u64::MAX);
    let (mut tokens, mut last, mut times) = (0, None, GangTimes::default());

    let (mut step, mut begun) = (start, Instant::now());
    // Earlier than the pace's where a round ends the run.
    let mut end = u64::MAX;
    while step < pace.total().min(end) {
        let epoch = plan.epoch_of(step);
        if epoch != order_epoch {
            (order, order_epoch) = (plan.epoch_order(epoch, groups), epoch);
        }
        let batch = &order[plan.batch_range(step)];
        let dropout = (dropout_probability > 0.0).then_some(DropoutKey {
            probability: dropout_probability,
            seed: args.seed,
            epoch,
            step,
        });

        let records = batch.iter().filter_map(|&i| items[i].as_ref()).map(|item| item.record);
        in_flight.at(in_flight::Kind::Step, step + 1, records)?;
        let step_begun = Instant::now();
        optimizer.zero_grad();
        let records = StepRecords { items, batch, replay, step };
        let mut sums = update::compute(args, policy, records, dropout, optimizer, gang)?;
        sums.stop = control.stop();
        sums.parts_on_disk = usize::from(checkpoints.part_is_on_disk()?);
        times.exchange(gang, |gang| update::exchange(&mut sums, optimizer, gang))?;
        checkpoints.heard(sums.parts_on_disk);

        let norm = optimizer.gradient_norm(gang)?;
        if !norm.is_finite() {
            let records: Vec<usize> = batch.iter().filter_map(|&i| items[i].as_ref()).map(|i| i.record).collect();
            return Err(Error::Numeric(format!(
                "{}: step {}: the gradient is not finite; the records of this step are {records:?}. Lower the \
                 learning rate or remove the record at fault; the last checkpoint is untouched",
                args.dataset_json_path.display(),
                step + 1
            )));
        }
        let clip = if args.max_grad_norm > 0.0 { (args.max_grad_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
        let rate = pace.rate(step);
        optimizer.update(rate, clip, gang)?;
        times.steps += step_begun.elapsed();

        tokens += sums.parts.tokens;
        let metrics = StepMetrics {
            figures: Figures::new(step + 1, epoch, &sums.parts, batch.len(), args.alpha_kl),
            loss_replay: (!replay.is_empty()).then_some(sums.replayed),
            grad_norm: norm,
            learning_rate: rate,
            tokens: sums.parts.tokens,
            world_size: args.any_world_size.then(|| gang.world_size()),
        };
        run.check()?;
        if let Some(curves) = &mut curves {
            curves.append(&metrics, std::mem::replace(&mut begun, Instant::now()), checkpoints.take_waited())?;
        }
        // A batch of records without a loss has no gradient, and says nothing of the others.
        let felt = if sums.parts.tokens > 0 { norm } else { f64::INFINITY };
        if pace.saw(step, metrics.figures.loss, felt) && run.is_owned() {
            tracing::warn!(
                "{}: the loss has not come down to --hold-until-loss; the learning rate falls all the same, so that the run \
                 ends with its {} updates",
                run.path.display(),
                pace.total()
            );
        }
        step += 1;
        bar.set_length(pace.total());
        bar.advance(1, format!("loss {:.4}", metrics.figures.loss));
        control.pass("train.step");
        if let Some(U2a { rounds, .. }) = &mut u2a
            && step < pace.total()
            && rounds.begin(run, policy, items, step, gang)?
        {
            end = step;
        }
        let total = pace.total().min(end);
        if let Some(validation) = validation.filter(|validation| validation.is_due(step, total)) {
            in_flight.at(in_flight::Kind::Validation, step, std::iter::empty())?;
            let measured = optimizer.with_weights(gang, |gang| {
                let measured = validation.measure(args, policy, (step, epoch), gang)?;
                run.check()?;
                if let Some(curves) = &mut curves
                    && curves.append_validation(&measured)?
                {
                    checkpoints.also(|| {
                        let save = saved::saver(policy, &args.model.model_name_or_path);
                        best::keeper(run, Best::from(&measured), save, control.fault())
                    })?;
                }
                Ok(measured)
            })?;
            control.pass("train.validation");
            (last, begun) = (Some(measured), Instant::now());
        }
        checkpoints.check()?;
        let is_due = step % args.save_steps == 0 || sums.stop == Some(Stop::Paused);
        if is_due && step < total {
            let sync = curves.as_ref().map(Curves::syncer);
            let sync = move || sync.as_ref().map_or(Ok(()), |sync| sync());
            checkpoints.begin((step, pace.seen()), &optimizer.parts(run.is_owned()), sync, gang)?;
        }
        if sums.stop.is_some() && step < total {
            // Whoever goes on from here finds the checkpoint whole.
            checkpoints.finish(gang)?;
            gang.barrier()?;
            if run.is_owned() && control.attempt().is_none() {
                let run = run.path.display();
                let how = match &args.run_name {
                    Some(_) => "the same command goes on from there".to_owned(),
                    None => format!("--resume-from-checkpoint {run}/checkpoint-{step} goes on from there"),
                };
                tracing::info!(
                    "{run}: stopped after step {step} of {total}, which is kept in checkpoint-{step}; {how}"
                );
            }
            return Err(Error::Stopped);
        }
    }
    checkpoints.finish(gang)?;
    bar.finish_and_clear();
    times.calls += optimizer.waited();
    let best = curves.and_then(|curves| curves.best);
    Ok(Trained { tokens, best, last, checkpoints: checkpoints.told(), times })
}
