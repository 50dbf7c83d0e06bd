//! Export: the ledger's answers as plain lines.

use std::path::PathBuf;

use serde::Serialize;
use shared::output::LinesWriter;

use crate::Outcome;
use crate::api::ledger::{Answer, Ledger};
use crate::error::Result;

/// Writes every stored answer as a JSON line: key, text, finish, model, tokens, time
///
/// The key is the BLAKE3 hash of the request, by which the ledger finds the answer again.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder of the ledger
    #[arg(long, value_name = "DIR", default_value = "oracle-state")]
    state: PathBuf,
    /// File for the lines
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Serialize)]
struct Line<'a> {
    key: &'a str,
    #[serde(flatten)]
    answer: &'a Answer,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    if !args.state.is_dir() {
        return Err(shared::Error::file(&args.state, "is no folder; name the ledger's by --state").into());
    }
    let mut out = LinesWriter::create(&args.out)?;
    Ledger::open(&args.state)?.visit(|key, answer| out.push(&Line { key, answer: &answer }))?;
    println!("{} answers written to {}", out.finish()?, args.out.display());
    Ok(Outcome::Complete)
}
