//! The data stages: files of pairs in, files of pairs out.
//!
//! For the same seed they give what the reference's scripts give (spec 1.2, 1.4, 1.5). Records pass through with all
//! their fields in their order; what cannot be used goes to a quarantine file beside the output, never silently away.

mod noise;
pub(crate) mod policy_shift;
pub(crate) mod prepare;
mod row;
pub(crate) mod split;

use std::path::Path;

use serde::Serialize;
use shared::quarantine::Quarantine;
use shared::{Error, Result};

// What a command does is documented at its arguments; a comment here would hide that from `--help`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Prepare(prepare::Args),
    Split(split::Args),
    Noise(noise::Args),
    PolicyShift(policy_shift::Args),
}

pub(crate) fn run(command: Command) -> Result<()> {
    match command {
        Command::Prepare(args) => prepare::run(&args),
        Command::Split(args) => split::run(&args),
        Command::Noise(args) => noise::run(&args),
        Command::PolicyShift(args) => policy_shift::run(&args),
    }
}

/// Writes the quarantine beside `output` and says so.
fn keep_quarantine(quarantine: &Quarantine, output: &Path) -> Result<()> {
    if let Some(path) = quarantine.write_beside(output)? {
        let count = quarantine.len();
        tracing::warn!(count, file = %path.display(), "records with empty text set aside");
    }
    Ok(())
}

/// Prints a command's result for scripts.
pub(crate) fn print_json<T: Serialize>(result: &T) -> Result<()> {
    let text = serde_json::to_string_pretty(result).map_err(|error| Error::Config(error.to_string()))?;
    println!("{text}");
    Ok(())
}
