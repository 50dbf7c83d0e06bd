//! The report on a run: reads what its stages left in the run's folder, writes `report.json`, prints the tables.
//!
//! Reading is [`collect`]'s, numbers are made by pure functions ([`measure`], [`scores`], [`curves`]), and the tables are
//! [`table`]'s. A file that should be there and is not is an error that names it: a report is never silently partial.
//!
//! ```text
//! RUN/run.json                         {"run": NAME, "seed": N, "variants": ["base", "trace", …]}
//! RUN/triage/gold.json                 triaged pairs
//! RUN/<variant>/judged_test.json       judged responses
//! RUN/<variant>/metrics.jsonl          a line a step; not for base
//! RUN/<variant>/weighted_dataset.json  scored records, for variants that weigh them
//! RUN/stages/<stage>.json              {"name": NAME, "seconds": S, "cost_usd": C}
//! ```

mod collect;
mod curves;
mod measure;
mod scores;
mod table;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;
use shared::Result;
use shared::output::write_json;
use shared::stats::Measured;

/// Makes the report on a run: report.json and its tables
///
/// The run's folder holds run.json ({"run", "seed", "variants"}), triage/gold.json, stages/*.json ({"name", "seconds",
/// "cost_usd"}) and a folder a variant with judged_test.json (from `oracle-service judge`), metrics.jsonl (all but base)
/// and, where the variant weighs its records, weighted_dataset.json. Percentages are 0–100 with 95 % Wilson intervals.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder of the run; report.json is written into it
    #[arg(long, value_name = "DIR")]
    run_dir: PathBuf,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// What `report.json` holds.
#[derive(Debug, Serialize)]
struct Report {
    run: String,
    seed: u64,
    variants: Vec<Variant>,
    /// Pairs by category.
    triage: BTreeMap<&'static str, usize>,
    stages: Vec<collect::Stage>,
}

#[derive(Debug, Serialize)]
struct Variant {
    name: String,
    #[serde(flatten)]
    measured: measure::Measurements,
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<scores::Scores>,
    #[serde(skip_serializing_if = "Option::is_none")]
    loss_curves: Option<curves::Curves>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let report = collect::report(&args.run_dir)?;
    let file = args.run_dir.join("report.json");
    write_json(&file, &report)?;
    if args.json {
        return crate::data::print_json(&report);
    }
    print!("{}", table::of(&report));
    println!("written: {}", file.display());
    Ok(())
}

/// A share by name of the thing it is of.
type Shares = BTreeMap<String, Measured>;

#[cfg(test)]
mod tests;
