//! The oracle service: labels pairs under the new policy, writes corrections, judges responses.
//!
//! Today its commands judge by a rule file on this machine (`shared::rules`); a language model behind an API comes with
//! the service. A command reads a file, decides record by record with pure functions, and writes files that are whole or
//! absent. Results go to standard output, progress and log lines to standard error.

mod correct;
mod error;
mod judge;
mod progress;
mod table;
mod triage;

use std::path::PathBuf;
use std::process::ExitCode;

pub use error::{Error, Result};
use shared::rules::Judge;

/// Labels preference pairs under a new policy, writes corrections and judges responses.
#[derive(Debug, clap::Parser)]
#[command(name = "oracle-service", version, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

// What a command does is documented at its arguments; a comment here would hide that from `--help`.
#[derive(Debug, clap::Subcommand)]
enum Command {
    Triage(triage::Args),
    Correct(correct::Args),
    Judge(judge::Args),
}

/// Who decides.
#[derive(Debug, clap::Args)]
struct JudgeArgs {
    /// Rule file to judge by (TOML): a world, or patterns with their verdicts
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
}

impl JudgeArgs {
    fn load(&self) -> Result<(&PathBuf, Judge)> {
        let path = self.rules.as_ref().ok_or(Error::NoJudge)?;
        Ok((path, Judge::load(path)?))
    }
}

/// How a command ended that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Every record has its answer.
    Complete,
    /// Some records have none; the output says which.
    Incomplete,
}

impl Outcome {
    /// Returns the exit code: 0, or 3 where records are left without an answer.
    pub fn exit_code(self) -> ExitCode {
        match self {
            Outcome::Complete => ExitCode::SUCCESS,
            Outcome::Incomplete => ExitCode::from(3),
        }
    }
}

/// Runs one command.
pub fn run(cli: Cli) -> Result<Outcome> {
    match cli.command {
        Command::Triage(args) => triage::run(&args),
        Command::Correct(args) => correct::run(&args),
        Command::Judge(args) => judge::run(&args),
    }
}
