//! The coordinator: its command line and what stands behind it.
//!
//! Today that is the data stages of one machine and the report on a run; each is a command with files in and files out, and a thin shell around
//! pure decisions. Results go to standard output, progress and log lines to standard error.

mod data;
mod progress;
mod report;

use shared::Result;

/// Prepares data for re-aligning a language model to a changed policy.
#[derive(Debug, clap::Parser)]
#[command(name = "coordinator", version, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Prepares data sets: base pairs, splits, label noise
    #[command(subcommand)]
    Data(data::Command),
    // Documented at its arguments, for `--help`.
    Report(report::Args),
}

/// Runs one command.
pub fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Data(command) => data::run(command),
        Command::Report(args) => report::run(&args),
    }
}
