//! One update's gradient: forward, loss and backward over the records dealt to this rank, and the exchange with the others.

use super::optim::AdamW;
use super::{TrainArgs, schedule};
use crate::collective::{self, Collective, Op};
use crate::control::Stop;
use crate::dataset;
use crate::error::Result;
use crate::objective::step::{self, DropoutKey, Item, LossParts, Policy};

/// A step's sums, this rank's own at first, the gang's after [`exchange`].
#[derive(Debug, Default)]
pub(super) struct StepSums {
    pub(super) parts: LossParts,
    /// Mean-token NLL of the replay batch.
    pub(super) replayed: f64,
    /// What any rank was told; all obey at the same step.
    pub(super) stop: Option<Stop>,
}

/// Adds sums and gradients over the ranks.
pub(super) fn exchange(sums: &mut StepSums, optimizer: &mut AdamW, gang: &mut dyn Collective) -> Result<()> {
    if gang.world_size() == 1 {
        return Ok(());
    }
    let told = |stop| f64::from(u8::from(sums.stop == Some(stop)));
    let mut numbers = sums.parts.numbers().to_vec();
    numbers.extend([sums.replayed, told(Stop::Cancelled), told(Stop::Paused)]);
    gang.all_reduce(numbers.as_mut_slice().into(), Op::Sum)?;
    let mut gradients = optimizer.flat_gradients();
    gang.all_reduce(gradients.as_mut_slice().into(), Op::Sum)?;
    optimizer.set_flat_gradients(&gradients);
    sums.parts = LossParts::from_numbers(numbers[..LossParts::NUMBERS].try_into().expect("as many"));
    let rest = &numbers[LossParts::NUMBERS..];
    sums.replayed = rest[0];
    sums.stop = match (rest[1] > 0.0, rest[2] > 0.0) {
        (true, _) => Some(Stop::Cancelled),
        (false, true) => Some(Stop::Paused),
        (false, false) => None,
    };
    Ok(())
}

/// This rank's part of a step: forward, loss and backward over the records dealt to it.
pub(super) fn own_pass(
    args: &TrainArgs,
    policy: Policy<'_>,
    items: &[Option<Item>],
    batch: &[usize],
    dropout: Option<DropoutKey>,
    gang: &dyn Collective,
) -> Result<LossParts> {
    let settings = args.objective();
    let scale = 1.0 / batch.len() as f64;
    let costs: Vec<usize> = batch.iter().map(|&i| items[i].as_ref().map_or(0, Item::tokens)).collect();
    let own = &collective::deal(&costs, gang.world_size())[gang.rank()];
    let mut parts = LossParts::default();
    // An item of weight 0 adds nothing until a later round gives it one: its loss is a function of log-ratios, without the NLL that has a weight
    // of its own.
    let counts = |item: &&Item| item.weight != 0.0 || !item.term.uses_ratios() || settings.nll_weight != 0.0;
    let present = own.iter().filter_map(|&position| items[batch[position]].as_ref()).filter(counts);
    for pack in dataset::packs(present, args.score.pack_tokens) {
        let sums = step::accumulate(policy, &pack, &settings, scale, dropout);
        parts.add(&sums.map_err(|bad| bad.in_file(&args.dataset_json_path, ADVICE))?);
    }
    Ok(parts)
}

/// What to do about a loss that is not finite.
const ADVICE: &str = "lower --learning-rate or remove the record; at the first step, look at the model's weights and \
                      --dtype";

/// This rank's part of a step's replay batch; returns its part of the mean-token NLL.
pub(super) fn replay_pass(
    args: &TrainArgs,
    policy: Policy<'_>,
    replay: &[Item],
    step: u64,
    gang: &dyn Collective,
) -> Result<f64> {
    let picked = schedule::replay_batch(args.seed, step, replay.len(), args.replay_batch_size);
    let scale = args.replay_weight / picked.len() as f64;
    let costs: Vec<usize> = picked.iter().map(|&i| replay[i].tokens()).collect();
    let own = &collective::deal(&costs, gang.world_size())[gang.rank()];
    let mut nll = 0.0;
    for pack in dataset::packs(own.iter().map(|&position| &replay[picked[position]]), args.score.pack_tokens) {
        let file = args.replay_json_path.as_deref().unwrap_or(&args.dataset_json_path);
        let sums = step::accumulate(policy, &pack, &args.objective(), scale, None);
        nll += sums.map_err(|bad| bad.in_file(file, ADVICE))?.nll;
    }
    Ok(nll / picked.len() as f64)
}
