//! Wiring: arguments, logging, exit code.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    shared::cli::end_quietly_on_broken_pipe();
    shared::logging::init("info");
    let cli = oracle_service::Cli::parse_from(shared::cli::normalise_flags(std::env::args_os()));
    match oracle_service::run(cli) {
        Ok(outcome) => outcome.exit_code(),
        Err(error) => {
            eprintln!("error: {error}");
            error.exit_code()
        }
    }
}
