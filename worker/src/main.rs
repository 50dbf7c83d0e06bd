//! Wiring: options, logging, exit code.

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    shared::cli::end_quietly_on_broken_pipe();
    worker::print_bugs_only();
    shared::logging::init("info");
    let cli = worker::Cli::parse_from(shared::cli::normalise_flags(std::env::args_os()));
    match worker::run(cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("worker: {error}");
            ExitCode::from(worker::exit_code(&error))
        }
    }
}
