//! `coordinator bench`: measures the coordinator under a load of simulated workers, and the opening of its state.
//!
//! Everything goes the way of a real run: a run file is submitted to a coordinator that is a process of its own, its stage
//! is cut into tasks, workers dial in and speak the protocol. They only compute nothing.

mod figures;
mod load;
mod open;
mod server;
mod setting;
mod worker;

use std::path::Path;

use shared::Result;

/// What is measured.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Load(load::Args),
    Open(open::Args),
}

pub(crate) fn run(command: &Command) -> Result<()> {
    match command {
        Command::Load(args) => load::run(args),
        Command::Open(args) => open::run(args),
    }
}

/// Returns how much the files of a folder hold.
fn folder_mib(folder: &Path) -> f64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(data) if data.is_dir() => folder_mib(&entry.path()),
        Ok(data) => data.len() as f64 / f64::from(1 << 20),
        Err(_) => 0.0,
    };
    entries.map(size).sum()
}
