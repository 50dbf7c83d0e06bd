//! The oracle service: labels pairs under the new policy, writes corrections, judges responses.
//!
//! A command, or a job of the service, reads a file, asks a rule file or a language model item by item, and writes files
//! that are whole or absent. Every paid answer is in the ledger before it counts, so nothing is paid for twice. Results
//! go to standard output, progress and log lines to standard error.

mod agreement;
mod api;
mod batches;
mod bench;
mod canary;
mod control;
mod correct;
mod error;
mod estimate;
mod explain;
mod export;
mod fault;
mod items;
mod judge;
mod judging;
mod mock;
mod oracle;
mod ordered;
mod progress;
mod rehearse;
mod relabel;
mod requeue;
mod review;
mod served;
mod service;
mod table;
mod triage;

use std::future::Future;
use std::process::ExitCode;

pub use error::{Error, Result};

/// Labels preference pairs under a new policy, writes corrections and judges responses.
#[derive(Debug, clap::Parser)]
#[command(name = "oracle-service", version, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

// What a command does is documented at its arguments; a comment here would hide that from `--help`.
#[derive(Debug, clap::Subcommand)]
#[allow(clippy::large_enum_variant)]
enum Command {
    Triage(triage::Args),
    Correct(correct::Args),
    Judge(judge::Args),
    Batches(batches::Args),
    JudgeAgreement(agreement::Args),
    Explain(explain::Args),
    Review(review::Args),
    Requeue(requeue::Args),
    Export(export::Args),
    Estimate(estimate::Args),
    Status(control::StatusArgs),
    Pause(control::PauseArgs),
    Resume(control::ResumeArgs),
    Retune(control::RetuneArgs),
    Serve(service::Args),
    Mock(mock::Args),
    Rehearse(rehearse::Args),
    Bench(bench::Args),
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
///
/// # Errors
/// What stopped it; the message is for the user.
pub fn run(cli: Cli) -> Result<Outcome> {
    match cli.command {
        Command::Triage(args) => triage::run(&args),
        Command::Correct(args) => correct::run(&args),
        Command::Judge(args) => judge::run(&args),
        Command::Batches(args) => batches::run(&args),
        Command::JudgeAgreement(args) => agreement::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Review(args) => review::run(&args),
        Command::Requeue(args) => requeue::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Estimate(args) => estimate::run(&args),
        Command::Status(args) => control::status(&args),
        Command::Pause(args) => control::pause(&args),
        Command::Resume(args) => control::resume(&args),
        Command::Retune(args) => control::retune(&args),
        Command::Serve(args) => service::run(&args),
        Command::Mock(args) => mock::run(&args),
        Command::Rehearse(args) => rehearse::run(&args),
        Command::Bench(args) => bench::run(&args),
    }
}

/// Runs a command's work to its end.
fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.map_err(|error| Error::Serve(error.to_string()))?.block_on(work)
}
