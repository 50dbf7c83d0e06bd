//! Reference log-probs: log π_ref of every sequence whose loss is a function of log-ratios.

use crate::dataset;
use crate::model::decoder::Decoder;
use crate::model::pack::Pack;
use crate::objective::step::{Item, log_prob_sums};
use crate::progress;

/// Computes `reference` of all items that use ratios, in packs cut by content.
pub fn fill(decoder: &Decoder, items: &mut [&mut Item], pack_tokens: usize) {
    let needing: Vec<&Item> = items.iter().map(|item| &**item).filter(|item| item.term.uses_ratios()).collect();
    let bar = progress::bar("reference log-probs", needing.len() as u64);
    let mut sums = Vec::new();
    for pack in dataset::packs(needing.into_iter(), pack_tokens) {
        let sequences: Vec<_> = pack.iter().flat_map(|item| item.sequences.iter().map(|s| (s, item.want()))).collect();
        sums.extend(log_prob_sums(decoder, None, &Pack::new(&sequences, decoder.device)));
        bar.inc(pack.len() as u64);
    }
    bar.finish_and_clear();
    let mut sums = sums.into_iter();
    for item in items.iter_mut().filter(|item| item.term.uses_ratios()) {
        item.reference = sums.by_ref().take(item.sequences.len()).collect();
    }
}
