//! `coordinator explain`: why a record has the weight it has.
//!
//! Everything is read from the run's folder ([`found`], [`standing`]); only the pulls of the gold pairs are computed, by
//! the worker's own scoring with the options of the run ([`pulls`]). [`text`] lays it out for people. No lock is taken and
//! nothing is written: a coordinator may work on the run meanwhile.

mod found;
mod pulls;
mod standing;
mod text;

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;
use shared::{Error, Result};

use crate::stage::scored::{self, Scored};
use found::Found;
use standing::Standing;

const EXAMPLES: &str = "\
Examples:
  coordinator explain quickstart 17
  coordinator explain /mnt/trace/production 17 --variant trace --top 3";

/// Explains a record's weight: its verdicts, score, weight and rank, and the gold pairs that pull it most
///
/// Shows for every variant whose records are scored (or for one, --variant) what the oracle said of both responses, the raw
/// score ⟨g_J, g_i⟩, the weight in training, the rank among all scored records, and the gold pairs that pull the score most,
/// for it (+) or against it (−). The pulls add up to the raw score; `worker score --explain` computes them with the options
/// of the run, for which the program `worker` must lie beside this one and the run's model be there. Nothing is written and
/// no lock is taken: the run may be going on.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The run: its folder, or its name in the folder of all runs
    run: String,
    /// The record: its index, from 0, in the file that the variant's records were taken from
    record: usize,
    /// Explain the weight in this variant alone
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// Gold pairs to show, the strongest first; 0 for all
    #[arg(long, default_value_t = 10, value_name = "N")]
    top: usize,
    /// Leave out the pulls of the gold pairs: needs neither the worker nor the model
    #[arg(long)]
    no_pulls: bool,
    /// What the worker computes on [default: its own choice]
    #[arg(long, value_name = "auto|cpu|cuda|cuda:N", conflicts_with = "no_pulls")]
    device: Option<String>,
    /// Threads of the worker [default: all cores]
    #[arg(long, value_name = "N", conflicts_with = "no_pulls")]
    threads: Option<u32>,
    /// Folder of all runs' files
    #[arg(long, default_value = "artifacts", value_name = "DIR")]
    artifacts: PathBuf,
    /// Print all of it as JSON, every gold pair included
    #[arg(long)]
    json: bool,
}

/// What is known of a record in one variant.
#[derive(Debug, Serialize)]
struct Explained {
    variant: String,
    /// Whose loss terms were scored.
    method: &'static str,
    #[serde(flatten)]
    found: Found,
    /// None where the method gives the record no score.
    score: Option<Standing>,
    /// The worker's answer; none where it was not asked or there is no score.
    #[serde(skip_serializing_if = "Option::is_none")]
    pulls: Option<Value>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let run_dir = folder(&args.run, &args.artifacts)?;
    let names = match &args.variant {
        Some(name) => vec![name.clone()],
        None => scored::variants(&run_dir),
    };
    if names.is_empty() {
        return Err(Error::file(
            &run_dir,
            "no variant of the run has scores yet; `coordinator status` says how far it is, and a run without weighted \
             variants has none",
        ));
    }
    let mut all: Vec<Explained> = Vec::new();
    for name in &names {
        let scored = scored::of(&run_dir, name)?;
        let mut explained = explained(&run_dir, &scored, args.record)?;
        if !args.json {
            let is_told = all.last().is_some_and(|before| before.found == explained.found);
            print!("{}", text::facts(&explained, is_told));
        }
        if explained.score.is_some() && !args.no_pulls {
            let worker = pulls::Worker { device: args.device.as_deref(), threads: args.threads };
            let answer = worker.explain(&scored, args.record)?;
            if !args.json {
                print!("{}", text::pulls(&answer, args.top));
            }
            explained.pulls = Some(answer);
        }
        all.push(explained);
    }
    if args.json { crate::data::print_json(&all) } else { Ok(()) }
}

/// Finds a run's folder by its path or its name.
fn folder(run: &str, artifacts: &Path) -> Result<PathBuf> {
    let named = artifacts.join(run);
    for folder in [Path::new(run), &named] {
        if folder.join("stages").is_dir() {
            return folder.canonicalize().map_err(|source| Error::io("find", folder, source));
        }
    }
    Err(Error::Config(format!(
        "there is no run {run}: neither {run} nor {} is the folder of a run that has begun; name its folder, or the folder \
         of all runs by --artifacts",
        named.display()
    )))
}

/// Returns what a run's folder tells of a record in one variant.
fn explained(run_dir: &Path, scored: &Scored, record: usize) -> Result<Explained> {
    let (found, position) = found::of(run_dir, &scored.records, record)?;
    let score = standing::of(&scored.weighted, scored.method, position)?;
    Ok(Explained { variant: scored.variant.clone(), method: scored.method.name(), found, score, pulls: None })
}

#[cfg(test)]
mod tests;
