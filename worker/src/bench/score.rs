//! The speed of scoring, by length too, and that of plain inference on the same packs: the yardstick of both its time and
//! its memory.

use std::time::Instant;

use serde_json::{Value, json};

use super::{ModelBench, SETTINGS};
use crate::collective::Alone;
use crate::control::Control;
use crate::dataset;
use crate::error::Result;
use crate::measure;
use crate::model::decoder::Decoder;
use crate::model::lora::Lora;
use crate::model::pack::Pack;
use crate::objective::step::{self, Item};
use crate::placement;
use crate::reference::{self, Known};
use crate::score::direction;
use crate::score::point::Point;

/// Measures the gold gradient, then the scores of all items, then those of each quarter by length.
///
/// # Errors
/// The loss of a gold pair is not finite, or the command was told to stop.
pub fn measure(
    args: &ModelBench,
    decoder: &Decoder,
    adapter: &Lora,
    items: &mut [Item],
    control: &Control,
) -> Result<Value> {
    let gold_pairs = items.len().min(args.batch_size);
    let mut gold: Vec<&mut Item> = items[..gold_pairs].iter_mut().collect();
    reference::fill(decoder, &mut gold, &Known::default(), None, args.pack_tokens, control, &mut Alone)?;
    let (gold, all) = (&items[..gold_pairs], items.iter().collect::<Vec<&Item>>());
    let point = Point { decoder, adapter, is_fresh: true, space: args.space };
    let begun = Instant::now();
    let made = point.gradient(gold, &SETTINGS, GOLD_ROWS, &mut || Ok(()));
    let (_, gradient) = made.map_err(|bad| bad.in_file(&args.pairs, direction::IN_GOLD))?;
    let along = point.for_passes(&gradient);
    placement::finish(decoder.device);
    let (gold_seconds, gold_peak) = (begun.elapsed().as_secs_f64(), measure::peak_rss_gib());
    let score = |items: &[&Item]| {
        timed_packs(args, items, |pack| {
            point.scores(along.as_ref().unwrap_or(&gradient), pack, &SETTINGS);
        })
    };
    Ok(json!({
        "space": args.space, "seconds": score(&all), "gold_seconds": gold_seconds, "gold_pairs": gold_pairs,
        "gold_peak_rss_gib": gold_peak, "by_length": by_length(&all, score),
    }))
}

/// Gold pairs computed together.
const GOLD_ROWS: usize = 2;

/// Measures the log-probs of all items in the packs that scoring makes of them, without a derivative.
pub fn forward(args: &ModelBench, decoder: &Decoder, items: &[Item]) -> Value {
    let all: Vec<&Item> = items.iter().collect();
    let seconds = timed_packs(args, &all, |pack| {
        let pack = Pack::new(&pack.iter().map(|item| item.group()).collect::<Vec<_>>(), decoder.device);
        step::log_prob_sums(decoder, None, &pack);
    });
    json!({ "seconds": seconds })
}

/// Returns the seconds that the packs of some items take; the work of a pack ends with numbers on the host.
fn timed_packs(args: &ModelBench, items: &[&Item], mut work: impl FnMut(&[&Item])) -> f64 {
    let begun = Instant::now();
    for pack in dataset::packs(items.iter().copied(), args.pack_tokens) {
        work(&pack);
    }
    begun.elapsed().as_secs_f64()
}

/// Cuts items, sorted by their tokens, into quarters and measures each: what grows linearly with tokens takes as many
/// milliseconds a token in each.
fn by_length(items: &[&Item], seconds: impl Fn(&[&Item]) -> f64) -> Vec<Value> {
    let mut sorted = items.to_vec();
    sorted.sort_by_key(|item| item.tokens());
    quarters(&sorted)
        .map(|quarter| {
            let tokens: usize = quarter.iter().map(|item| item.tokens()).sum();
            let (seconds, records) = (seconds(quarter), quarter.len() as f64);
            json!({
                "records": quarter.len(), "tokens_per_record": tokens as f64 / records,
                "seconds_per_record": seconds / records, "ms_per_token": 1e3 * seconds / tokens as f64,
            })
        })
        .collect()
}

/// Returns four parts of a list that differ by one item at most; fewer for a list of fewer items.
fn quarters<T>(list: &[T]) -> impl Iterator<Item = &[T]> {
    (0..4).map(|i| &list[i * list.len() / 4..(i + 1) * list.len() / 4]).filter(|quarter| !quarter.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quarters_hold_every_item_once() {
        for n in 1..20 {
            let list: Vec<usize> = (0..n).collect();
            let parts: Vec<&[usize]> = quarters(&list).collect();
            assert_eq!(parts.len(), n.min(4));
            assert_eq!(parts.concat(), list);
            let sizes = parts.iter().map(|part| part.len());
            assert!(sizes.clone().max().unwrap() - sizes.min().unwrap() <= 1);
        }
    }
}
