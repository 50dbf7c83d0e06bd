//! The run's reference log-probs: `reference_logps.json` in its folder, by content, whole before the first update.

use crate::collective::Collective;
use crate::control::Control;
use crate::dataset::DataSet;
use crate::error::Result;
use crate::journal::Journal;
use crate::model::decoder::Decoder;
use crate::objective::step::Item;
use crate::reference::{self, Keys, Known};

use super::options::TrainArgs;
use super::run_folder::RunFolder;

/// Returns the log-probs that records and --reference-logps bring.
///
/// # Errors
/// Something else stands where a log-prob should.
pub fn given(args: &TrainArgs, set: &DataSet) -> Result<Known> {
    let mut known = Known::default();
    known.add_records(&set.records, |at| set.index[at], &set.file)?;
    if let Some(file) = &args.reference_logps {
        known.add_file(file)?;
    }
    Ok(known)
}

/// Sets the reference log-probs of all items: as [`given`], as the run's own scoring or an earlier start of it found
/// them, else computed by `decoder`, which must hold π_ref. A run that is interrupted here goes on with the pack it was
/// at.
///
/// # Errors
/// A file that should hold log-probs does not; the run is another process's; or as [`reference::fill`].
pub fn fill(
    args: &TrainArgs,
    run: &RunFolder,
    decoder: &Decoder,
    mut known: Known,
    items: &mut [Option<Item>],
    control: &Control,
    gang: &mut dyn Collective,
) -> Result<()> {
    let file = run.path.join("reference_logps.json");
    if run.is_owned() {
        let weighted = super::weights::weighted_file(run);
        if weighted.exists() {
            let records: Vec<shared::record::Record> = shared::input::read_all(&weighted)?;
            known.add_records(&records, |at| at, &weighted)?;
        }
        // The run's own come last: what it began with it goes on with.
        known.add_file(&file)?;
    }
    let mut journal = match run.is_owned() {
        true => Some(known.resume(&run.path.join("reference_logps.journal"), control.attempt())?),
        false => None,
    };
    let mut all: Vec<&mut Item> = items.iter_mut().flatten().collect();
    reference::fill(decoder, &mut all, &known, journal.as_mut(), args.score.pack_tokens, control, gang)?;
    if run.is_owned() {
        run.check()?;
        let used = reference::by_key(&Keys::of(decoder), items.iter().flatten());
        if !used.is_empty() {
            shared::output::write_json(&file, &used)?;
            if let Some(given) = &args.reference_logps {
                let mut all = Known::default();
                all.add_file(given)?;
                shared::output::write_json(given, &all.with(used))?;
            }
        }
    }
    journal.map_or(Ok(()), Journal::remove)
}
