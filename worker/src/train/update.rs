//! One update's gradient: forward, loss and backward over the records dealt to this rank, and the exchange with the others.

use super::optimizer::Optimizer;
use super::{TrainArgs, schedule};
use crate::collective::{self, Collective, Numbers, Op};
use crate::control::Stop;
use crate::dataset;
use crate::error::Result;
use crate::objective::method::Term;
use crate::objective::step::{self, DropoutKey, Item, LossParts, NotFinite, Policy};

/// A step's sums, this rank's own at first, the gang's after [`exchange`].
#[derive(Debug, Default)]
pub struct StepSums {
    pub parts: LossParts,
    /// Mean-token NLL of the replay batch.
    pub replayed: f64,
    /// What any rank was told; all obey at the same step.
    pub stop: Option<Stop>,
    /// On how many ranks the part of a sharded checkpoint under way is on the disk.
    pub parts_on_disk: usize,
}

/// Adds a step's sums over the ranks, and gradients where the passes have not done so.
pub fn exchange(sums: &mut StepSums, optimizer: &mut Optimizer, gang: &mut dyn Collective) -> Result<()> {
    if gang.world_size() == 1 {
        return Ok(());
    }
    let told = |stop| f64::from(u8::from(sums.stop == Some(stop)));
    let mut numbers = sums.parts.numbers().to_vec();
    numbers.extend([sums.replayed, told(Stop::Cancelled), told(Stop::Paused), sums.parts_on_disk as f64]);
    gang.all_reduce(numbers.as_mut_slice().into(), Op::Sum)?;
    if let Optimizer::Whole(optimizer) = optimizer {
        let mut gradients = optimizer.flat_gradients();
        gang.all_reduce(Numbers::of(&mut gradients), Op::Sum)?;
        optimizer.set_flat_gradients(&gradients);
    }
    sums.parts = LossParts::from_numbers(numbers[..LossParts::NUMBERS].try_into().expect("as many"));
    let rest = &numbers[LossParts::NUMBERS..];
    sums.replayed = rest[0];
    sums.stop = match (rest[1] > 0.0, rest[2] > 0.0) {
        (true, _) => Some(Stop::Cancelled),
        (false, true) => Some(Stop::Paused),
        (false, false) => None,
    };
    sums.parts_on_disk = rest[3] as usize;
    Ok(())
}

/// The records of a step, whoever computes them.
#[derive(Clone, Copy)]
pub struct StepRecords<'a> {
    pub items: &'a [Option<Item>],
    /// Places in `items`.
    pub batch: &'a [usize],
    pub replay: &'a [Item],
    /// Updates done before.
    pub step: u64,
}

/// A pack of a step: its loss counts `scale` times.
struct Pass<'a> {
    pack: Vec<&'a Item>,
    scale: f64,
    /// Its records are those of the replay.
    is_replay: bool,
}

/// Returns the packs of a rank in a step, in the order in which it computes them: those of the batch, then those of the replay.
fn passes<'a>(args: &TrainArgs, records: StepRecords<'a>, rank: usize, world_size: usize) -> [Vec<Pass<'a>>; 2] {
    let StepRecords { items, batch, replay, step } = records;
    let nll_weight = args.objective().nll_weight;
    let dealt = |costs: &[usize]| collective::deal(costs, world_size).swap_remove(rank);
    // An item of weight 0 adds nothing until a later round gives it one: its loss is a function of log-ratios, without the
    // NLL that has a weight of its own.
    let counts = |item: &&Item| item.weight != 0.0 || !item.term.uses_ratios() || nll_weight != 0.0;
    let own = dealt(&batch.iter().map(|&i| items[i].as_ref().map_or(0, Item::tokens)).collect::<Vec<_>>());
    let present = own.into_iter().filter_map(|position| items[batch[position]].as_ref()).filter(counts);
    let cut = |items: Vec<&'a Item>, scale, is_replay| {
        let packs = dataset::packs(items.into_iter(), args.score.pack_tokens);
        packs.into_iter().map(|pack| Pass { pack, scale, is_replay }).collect::<Vec<_>>()
    };
    let of_batch = cut(present.collect(), 1.0 / batch.len() as f64, false);
    if replay.is_empty() {
        return [of_batch, Vec::new()];
    }
    let picked = schedule::replay_batch(args.seed, step, replay.len(), args.replay_batch_size);
    let own = dealt(&picked.iter().map(|&i| replay[i].tokens()).collect::<Vec<_>>());
    let present = own.into_iter().map(|position| &replay[picked[position]]);
    [of_batch, cut(present.collect(), args.replay_weight / picked.len() as f64, true)]
}

/// This rank's part of a step: forward, loss and backward over the records dealt to it. Gradients are this rank's own, or, of a
/// sharded optimiser, summed on the way.
///
/// # Errors
/// A loss is not finite, or a member of the gang is gone.
pub fn compute(
    args: &TrainArgs,
    policy: Policy<'_>,
    records: StepRecords<'_>,
    dropout: Option<DropoutKey>,
    optimizer: &mut Optimizer,
    gang: &mut dyn Collective,
) -> Result<StepSums> {
    let (rank, world_size) = (gang.rank(), gang.world_size());
    let own = passes(args, records, rank, world_size);
    let mut sums = StepSums::default();
    match optimizer {
        Optimizer::Whole(_) => {
            for pass in own.iter().flatten() {
                gang.check()?;
                let dropout = dropout.filter(|_| !pass.is_replay);
                let parts = step::accumulate(policy, &pass.pack, &args.objective(), pass.scale, dropout);
                sums.add(args, pass, parts)?;
            }
        }
        Optimizer::Sharded(optimizer) => {
            // Every rank makes as many passes as the one with the most, since each is a sequence of calls.
            let all: Vec<_> = (0..world_size).map(|rank| passes(args, records, rank, world_size)).collect();
            optimizer.collect(gang, |flow| {
                for part in 0..own.len() {
                    let most = all.iter().map(|passes| passes[part].len()).max().unwrap_or(0);
                    for at in 0..most {
                        let of_ranks = all.iter().filter_map(|passes| passes[part].get(at));
                        let has_anchors = of_ranks.flat_map(|pass| &pass.pack).any(|item| item.term == Term::Anchor);
                        let idle = Pass { pack: Vec::new(), scale: 1.0, is_replay: false };
                        let pass = own[part].get(at).unwrap_or(&idle);
                        flow.check()?;
                        let streams = flow.of_pass(has_anchors);
                        sums.add(args, pass, step::stream(policy, streams, &pass.pack, &args.objective(), pass.scale))?;
                    }
                }
                Ok(())
            })?;
        }
    }
    let picked = args.replay_batch_size.min(records.replay.len()).max(1);
    sums.replayed /= picked as f64;
    Ok(sums)
}

impl StepSums {
    fn add(
        &mut self,
        args: &TrainArgs,
        pass: &Pass<'_>,
        parts: std::result::Result<LossParts, NotFinite>,
    ) -> Result<()> {
        let of_replay = args.replay_json_path.as_deref().filter(|_| pass.is_replay);
        let parts = parts.map_err(|bad| bad.in_file(of_replay.unwrap_or(&args.dataset_json_path), ADVICE))?;
        match pass.is_replay {
            false => self.parts.add(&parts),
            true => self.replayed += parts.nll,
        }
        Ok(())
    }
}

/// What to do about a loss that is not finite.
const ADVICE: &str = "lower --learning-rate or remove the record; at the first step, look at the model's weights and \
                      --dtype";
