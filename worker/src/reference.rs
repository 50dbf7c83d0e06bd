//! Reference log-probs: log π_ref of every sequence whose loss is a function of log-ratios.

use crate::collective::Collective;
use crate::control::Control;
use crate::dataset;
use crate::error::Result;
use crate::model::decoder::Decoder;
use crate::model::pack::Pack;
use crate::objective::step::{Item, log_prob_sums};

/// Computes `reference` of all items that use ratios, in packs cut by content. The ranks of a gang share the packs and
/// exchange their sums, so that every rank has all of them.
///
/// # Errors
/// The command was told to stop, or a member of the gang is gone.
pub fn fill(
    decoder: &Decoder,
    items: &mut [&mut Item],
    pack_tokens: usize,
    control: &Control,
    gang: &mut dyn Collective,
) -> Result<()> {
    let needing: Vec<&Item> = items.iter().map(|item| &**item).filter(|item| item.term.uses_ratios()).collect();
    let bar = control.bar("reference log-probs", needing.len() as u64);
    let mut sums = Vec::new();
    for (i, pack) in dataset::packs(needing.into_iter(), pack_tokens).iter().enumerate() {
        let groups: Vec<_> = pack.iter().map(|item| item.group()).collect();
        if i % gang.world_size() == gang.rank() {
            control.go_on()?;
            sums.extend(log_prob_sums(decoder, None, &Pack::new(&groups, decoder.device)));
        } else {
            sums.extend(std::iter::repeat_n(0.0, groups.iter().map(Vec::len).sum()));
        }
        bar.inc(pack.len() as u64);
    }
    bar.finish_and_clear();
    gang.all_reduce_f64(&mut sums)?;
    let mut sums = sums.into_iter();
    for item in items.iter_mut().filter(|item| item.term.uses_ratios()) {
        item.reference = sums.by_ref().take(item.sequences.len()).collect();
    }
    Ok(())
}
