//! All weights trained over ranks that share optimiser, gradients and weights out, against one process that holds
//! everything: the same weights, moments and norms, to 1e-5, for every world size and mode.

use clap::Parser;

use super::*;
use crate::collective::Collective;
use crate::collective::ring::tests::formed;
use crate::objective::step::Policy;
use crate::train::TrainArgs;
use crate::train::optim::AdamW;
use crate::train::optimizer::Optimizer;
use crate::train::sharded::Sharded;
use crate::train::update::{self, StepRecords};

const UPDATES: u64 = 3;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: TrainArgs,
}

fn args() -> TrainArgs {
    // Packs of one or two records, so that ranks make different numbers of passes.
    let line = "train --model x --dataset-json-path x --full --alpha-kl 0.7 --beta 0.3 --nll-weight 0.2 --pack-tokens 100 \
                --weight-decay 0.1 --replay-batch-size 2";
    Line::parse_from(line.split_whitespace()).args
}

/// How a rank holds what it trains.
#[derive(Debug, Clone, Copy)]
struct Mode {
    recompute: bool,
    is_spread: bool,
}

/// What a run of some updates leaves.
struct Left {
    norms: Vec<f64>,
    loss: f64,
    /// Weights, and moments where one process holds them: by name.
    tensors: Vec<(String, Vec<f64>)>,
}

fn train(name: &str, mode: Mode, gang: &mut dyn Collective) -> Left {
    let (decoder, frozen, args) = (decoder(name), decoder(name), args());
    shake(&decoder.named_parameters());
    let items: Vec<Option<Item>> =
        with_references(&frozen, all_terms(MaskMode::Exact, 256)).into_iter().map(Some).collect();
    let replay =
        vec![item(MaskMode::Exact, 256, 3, Term::Imitate, 1.0), item(MaskMode::Exact, 256, 0, Term::Imitate, 1.0)];
    let mut optimizer = match gang.world_size() {
        1 => Optimizer::Whole(AdamW::new(args.adam(), decoder.named_parameters(), false)),
        _ => {
            let sharded = Sharded::new(args.adam(), &decoder, Some(&frozen), false, &*gang, mode.is_spread);
            Optimizer::Sharded(Box::new(sharded))
        }
    };
    let policy =
        Policy { decoder: &decoder, adapter: None, reference: &frozen, train_head: true, recompute: mode.recompute };
    let batch: Vec<usize> = (0..items.len()).collect();
    let mut left = Left { norms: Vec::new(), loss: 0.0, tensors: Vec::new() };
    for step in 0..UPDATES {
        optimizer.zero_grad();
        let records = StepRecords { items: &items, batch: &batch, replay: &replay, step };
        let mut sums = update::compute(&args, policy, records, None, &mut optimizer, gang).unwrap();
        update::exchange(&mut sums, &mut optimizer, gang).unwrap();
        let norm = optimizer.gradient_norm(gang).unwrap();
        left.norms.push(norm);
        left.loss = sums.parts.total();
        optimizer.update(1e-3, 0.5 / norm, gang).unwrap();
    }
    optimizer
        .with_weights(gang, |_| {
            left.tensors = decoder
                .named_parameters()
                .into_iter()
                .map(|(name, t)| (name, crate::objective::step::to_f64(&t)))
                .collect();
            Ok(())
        })
        .unwrap();
    left
}

#[test]
fn ranks_that_share_everything_out_train_what_one_process_trains() {
    for name in ["tied", "untied"] {
        let alone = train(name, Mode { recompute: false, is_spread: false }, &mut Alone);
        for world_size in 2..=4 {
            for (recompute, is_spread) in [(false, false), (true, false), (true, true)] {
                let mode = Mode { recompute, is_spread };
                let lefts = std::thread::scope(|scope| {
                    let ranks = formed(world_size, 1).into_iter();
                    let threads: Vec<_> =
                        ranks.map(|mut gang| scope.spawn(move || train(name, mode, &mut *gang))).collect();
                    threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
                });
                for (rank, left) in lefts.iter().enumerate() {
                    let what = format!("{name}, {mode:?}, rank {rank} of {world_size}");
                    close(&format!("{what}: norms"), &left.norms, &alone.norms, TIGHT);
                    assert!((left.loss - alone.loss).abs() < 1e-5 * alone.loss.abs(), "{what}: loss");
                    for ((name, ours), (_, theirs)) in left.tensors.iter().zip(&alone.tensors) {
                        close(&format!("{what}: {name}"), ours, theirs, TIGHT);
                    }
                    assert_eq!(left.tensors, lefts[0].tensors, "{what}: the same bits on every rank");
                }
            }
        }
    }
}
