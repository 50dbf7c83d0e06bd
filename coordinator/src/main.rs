//! Wiring: arguments, logging, exit code.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    shared::cli::end_quietly_on_broken_pipe();
    shared::logging::init("info");
    let cli = coordinator::Cli::parse_from(shared::cli::normalise_flags(std::env::args_os()));
    match coordinator::run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
