//! The update's speed: what `worker train` does between two checkpoints, on items in memory.

use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde_json::{Value, json};
use shared::record::Category;

use super::flops::{self, Work};
use super::{ModelBench, SETTINGS};
use crate::collective::Alone;
use crate::control::Control;
use crate::dataset;
use crate::error::Result;
use crate::measure::{Phases, timed};
use crate::model::decoder::Decoder;
use crate::model::lora::Lora;
use crate::model::pack::Pack;
use crate::objective::step::{self, Item, Policy};
use crate::placement;
use crate::reference::{self, Known};
use crate::train::optim::{AdamW, AdamWSettings};

/// What an update is measured on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Case {
    /// INVERT pairs with known reference log-probs.
    Invert,
    /// INVERT pairs whose reference log-probs are computed in the measured time.
    WithReference,
    /// INVERT, PUNISH and RETAIN in turn, reference log-probs known; the anchor's pass over π_ref is in the time.
    Mix,
    /// INVERT pairs with known reference log-probs, all weights trained.
    Full,
}

/// Categories of [`Case::Mix`], in turn.
pub const CYCLE: [Category; 3] = [Category::Invert, Category::Punish, Category::Retain];

/// Measures updates over all items, after one that is not counted.
///
/// # Errors
/// A loss is not finite, or the command was told to stop.
pub fn measure(
    args: &ModelBench,
    decoder: &Decoder,
    adapter: &Lora,
    items: &mut [Item],
    control: &Control,
) -> Result<Value> {
    let known = args.case != Case::WithReference;
    let fill = |items: &mut [Item]| {
        let mut all: Vec<&mut Item> = items.iter_mut().collect();
        reference::fill(decoder, &mut all, &Known::default(), None, args.pack_tokens, control, &mut Alone)
    };
    let adapter = (args.case != Case::Full).then_some(adapter);
    let trained = adapter.map_or_else(|| decoder.named_parameters(), Lora::named_parameters);
    let adam = AdamWSettings { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 };
    let rounded = adapter.is_none() && decoder.dtype == tch::Kind::BFloat16;
    // All items but those of the first update, which prepares the machine.
    let first = args.batch_size.min(items.len());
    fill(&mut items[..first])?;
    if known {
        fill(&mut items[first..])?;
    }
    let mut optimizer = AdamW::new(adam, trained, rounded);
    let policy =
        Policy { decoder, adapter, reference: decoder, train_head: adapter.is_none(), recompute: args.recompute };
    update(args, policy, &items[..first], &mut optimizer, &mut Phases::default())?;

    let mut phases = Phases::default();
    let begun = Instant::now();
    for batch in items.chunks_mut(args.batch_size) {
        if !known {
            timed(&mut phases.reference, || fill(batch))?;
        }
        update(args, policy, batch, &mut optimizer, &mut phases)?;
    }
    placement::finish(decoder.device);
    let seconds = begun.elapsed().as_secs_f64();
    let lora = adapter.map(|adapter| &adapter.config);
    let of = |phase: Duration| phase.as_secs_f64();
    Ok(json!({
        "case": args.case.to_possible_value().map(|v| v.get_name().to_owned()), "recompute": args.recompute,
        "seconds": seconds, "updates": optimizer.step - 1,
        "gflop": flops::update_gflop(&decoder.config, lora, work(items, decoder)),
        "phases": {
            "forward_s": of(phases.forward), "head_s": of(phases.head), "reference_s": of(phases.reference),
            "backward_s": of(phases.backward), "optimiser_s": of(phases.optimiser),
        },
    }))
}

fn update(
    args: &ModelBench,
    policy: Policy<'_>,
    batch: &[Item],
    optimizer: &mut AdamW,
    phases: &mut Phases,
) -> Result<()> {
    optimizer.zero_grad();
    let scale = 1.0 / batch.len() as f64;
    for pack in dataset::packs(batch.iter(), args.pack_tokens) {
        step::accumulate_timed(policy, &pack, &SETTINGS, scale, None, phases)
            .map_err(|bad| bad.in_file(&args.pairs, "look at the model's weights and --dtype"))?;
    }
    timed(&mut phases.optimiser, || {
        let norm = optimizer.gradient_norm();
        optimizer.update(1e-4, (1.0 / (norm + 1e-6)).min(1.0));
    });
    Ok(())
}

fn work(items: &[Item], decoder: &Decoder) -> Work {
    let mut work = Work::default();
    for item in items {
        let pack = Pack::new(&[item.group()], decoder.device);
        work.rows += pack.rows.len() as f64;
        work.head_rows += pack.scored_counts.iter().chain(&pack.kl_counts).sum::<usize>() as f64;
        work.attended += pack.blocks.iter().map(|block| block.positions.len().pow(2) as f64).sum::<f64>();
    }
    work
}
