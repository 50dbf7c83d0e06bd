//! The records whose loss's curvature the scores of a variant take into account: the same ones for all shards.

use shared::output::ArrayWriter;
use shared::python_random::PythonRandom;
use shared::record::Record;
use shared::{Error, Result};

use super::{Context, args};

/// Records where a variant's run file names no number; the worker's own default.
const SAMPLE: usize = 64;

/// Draws records from those that get a score (`positions`) and writes them into the variant's folder.
pub(super) fn write(context: &Context, variant: usize, records: &[Record], positions: &[usize]) -> Result<()> {
    let settings = &context.variant(variant).score;
    let count = settings.options.number("curvature_sample").map_or(SAMPLE, |count| count as usize);
    if positions.is_empty() {
        let file = context.records(variant);
        return Err(Error::file(&file, "holds no record of the conflict that a curvature could be taken of"));
    }
    let mut drawn = match count < positions.len() {
        true => PythonRandom::new(settings.gold_seed).sample(positions.len(), count),
        false => (0..positions.len()).collect(),
    };
    drawn.sort_unstable();
    let mut writer = ArrayWriter::create(&context.of_variant(variant, args::CURVATURE))?;
    drawn.into_iter().try_for_each(|at| writer.push(&records[positions[at]]))?;
    writer.finish()?;
    Ok(())
}
