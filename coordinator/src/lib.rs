//! The coordinator: its command line and what stands behind it.
//!
//! `serve` schedules runs on workers and the oracle service; the other commands talk to it, or prepare data and reports on
//! this machine. Decisions are pure (`scheduler`); one task owns them, saves, then acts (`driver`). Results go to standard
//! output, progress and log lines to standard error.

mod bench;
mod check;
mod client;
mod corrections;
mod data;
mod driver;
mod estimate;
mod explain;
mod local;
mod logs;
mod plan;
mod progress;
mod records;
mod report;
mod run;
mod run_file;
mod scheduler;
mod serve;
mod service;
#[cfg(test)]
mod simulation;
mod stage;
mod status;

use std::future::Future;
use std::process::ExitCode;

use shared::{Error, Result};

/// Re-aligns language models to a changed policy, from preference rows to a report.
#[derive(Debug, clap::Parser)]
#[command(name = "coordinator", version, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

// Documented at their arguments, for `--help`.
#[derive(Debug, clap::Subcommand)]
#[allow(clippy::large_enum_variant)]
enum Command {
    Run(run::Args),
    Check(check::Args),
    Serve(serve::Args),
    Submit(client::SubmitArgs),
    Status(client::StatusArgs),
    /// Shows a run until it ends: exit code 0 if it was done, 1 if not
    Watch(client::RunArgs),
    Logs(client::LogsArgs),
    /// Cancels a run
    Cancel(client::RunArgs),
    /// Stops a run with a checkpoint; `resume` goes on with it
    Pause(client::RunArgs),
    /// Goes on with a paused run
    Resume(client::RunArgs),
    Workers(client::WorkersArgs),
    Drain(client::DrainArgs),
    /// Prepares data sets: base pairs, splits, label noise
    #[command(subcommand)]
    Data(data::Command),
    Report(report::Args),
    Explain(explain::Args),
    /// Measures this program: under load, opening its state
    #[command(subcommand)]
    Bench(bench::Command),
}

/// Runs one command. Returns its exit code.
///
/// # Errors
/// What stopped it; the message is for the user.
pub fn run(cli: Cli) -> Result<ExitCode> {
    use client::Act;
    match cli.command {
        Command::Run(args) => return run::run(&args),
        Command::Check(args) => check::run(&args)?,
        Command::Serve(args) => serve::run(&args)?,
        Command::Submit(args) => block_on(client::submit(&args))?,
        Command::Status(args) => block_on(client::status(&args))?,
        Command::Watch(args) => {
            let done = block_on(client::watch(&args))?;
            return Ok(if done { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Logs(args) => block_on(client::logs(&args))?,
        Command::Cancel(args) => block_on(client::act(Act::Cancel, &args))?,
        Command::Pause(args) => block_on(client::act(Act::Pause, &args))?,
        Command::Resume(args) => block_on(client::act(Act::Resume, &args))?,
        Command::Workers(args) => block_on(client::workers(&args))?,
        Command::Drain(args) => block_on(client::drain(&args))?,
        Command::Data(command) => data::run(command)?,
        Command::Report(args) => report::run(&args)?,
        Command::Explain(args) => explain::run(&args)?,
        Command::Bench(command) => bench::run(&command)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Error::Config(format!("the async runtime: {error}")))?.block_on(work)
}
