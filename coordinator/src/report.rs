//! The report on a run: reads what its stages left in the run's folder and writes `report/report.json`, `.md`, `.html`.
//!
//! Reading is [`collect`]'s, numbers are made by pure functions ([`measure`], [`scores`], [`curves`]). [`document`] says
//! once what is told, as sections of sentences and tables; [`text`], [`markdown`] and [`html`] lay it out, the page with
//! [`figures`]. A file that should be there and is not is an error that names it: a report is never silently partial.
//!
//! ```text
//! RUN/run.json                         {"run": NAME, "seed": N, "variants": ["base", "trace", …], "scored": ["trace", …],
//!                                       "stages": [{"name", "seconds", "cost_usd", "skipped"}, …],
//!                                       "oracle": {"model", "prices", "calls", "reused", "prompt_tokens",
//!                                                  "cached_tokens", "completion_tokens", "cost_usd"} if one was asked}
//! RUN/triage/gold.json                 triaged pairs
//! RUN/triage/gold_uncertain.json       pairs the judge was not sure of; none where absent
//! RUN/triage/gold_dead_letter.json     pairs that got no answer; none where absent
//! RUN/triage/corrected.json            the pairs with corrections; none were asked for where absent
//! RUN/<variant>/judged_test.json       judged responses
//! RUN/<variant>/metrics.jsonl          a line a step; not for base
//! RUN/<variant>/train_summary.json     what training says of the responses it promoted; not for base
//! RUN/<variant>/weighted_dataset.json  scored records, for variants that weigh them
//! ```

mod collect;
mod curves;
mod document;
mod figures;
mod html;
mod markdown;
mod measure;
mod plot;
mod scores;
mod text;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shared::Result;
use shared::output::{write_atomic, write_json};
use shared::quality::Figures;
use shared::stats::Measured;

/// Makes the report on a run: report/report.json, report.md and report.html in the run's folder
///
/// The run's folder holds run.json ({"run", "seed", "variants", "stages"}), triage/gold.json and a folder a variant with
/// judged_test.json (from `oracle-service judge`), metrics.jsonl (all but base) and, where the variant weighs its records,
/// weighted_dataset.json. Percentages are 0–100 with 95 % Wilson intervals. The page is one file that needs no network.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder of the run; the report is written into its folder "report"
    #[arg(long, value_name = "DIR")]
    run_dir: PathBuf,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// What `report.json` holds.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    run: String,
    seed: u64,
    variants: Vec<Variant>,
    /// Pairs by outcome.
    triage: Triage,
    /// In the order they ran.
    stages: Vec<Stage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    oracle: Option<Oracle>,
}

#[derive(Debug, Serialize)]
struct Variant {
    name: String,
    #[serde(flatten)]
    measured: measure::Measurements,
    /// Responses without a verdict; they count for nothing.
    #[serde(skip_serializing_if = "is_zero")]
    undecided: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<scores::Scores>,
    /// The responses that training promoted.
    #[serde(skip_serializing_if = "Option::is_none")]
    promoted: Option<Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    loss_curves: Option<curves::Curves>,
    /// With how many ranks it trained, where that could change.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ranks: Vec<curves::Ranks>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Serialize)]
struct Triage {
    #[serde(rename = "INVERT")]
    invert: usize,
    #[serde(rename = "PUNISH")]
    punish: usize,
    #[serde(rename = "RETAIN")]
    retain: usize,
    uncertain: usize,
    dead_letter: usize,
    /// PUNISH pairs for which corrections were asked and none was accepted.
    #[serde(skip_serializing_if = "is_zero")]
    uncorrected: usize,
}

/// What a stage took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Stage {
    name: String,
    seconds: f64,
    #[serde(default)]
    cost_usd: f64,
    /// Whether an earlier invocation had finished it.
    #[serde(default)]
    skipped: bool,
}

/// What was asked of a paid judge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Oracle {
    model: String,
    /// Source and date of the prices.
    prices: String,
    calls: u64,
    /// Answers taken from earlier calls.
    reused: u64,
    prompt_tokens: u64,
    /// Of the prompt tokens, those the API had in its cache.
    #[serde(default)]
    cached_tokens: u64,
    completion_tokens: u64,
    cost_usd: f64,
}

/// A report and where it was written.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) report: Report,
    /// The tables for people.
    pub(crate) text: String,
    pub(crate) json: PathBuf,
    pub(crate) markdown: PathBuf,
    pub(crate) html: PathBuf,
}

/// Makes the report on a run's folder. Each file appears whole or not at all, none before all could be made.
pub(crate) fn make(run_dir: &Path) -> Result<Made> {
    let report = collect::report(run_dir)?;
    let document = document::of(&report);
    let page = html::of(&report, &document)?;
    let folder = run_dir.join("report");
    let [json, markdown, html] = ["report.json", "report.md", "report.html"].map(|name| folder.join(name));
    write_json(&json, &report)?;
    write_atomic(&markdown, markdown::of(&document).as_bytes())?;
    write_atomic(&html, page.as_bytes())?;
    Ok(Made { text: text::of(&document), report, json, markdown, html })
}

/// Returns a report's tables for people, without writing anything.
pub(crate) fn text(run_dir: &Path) -> Result<String> {
    Ok(text::of(&document::of(&collect::report(run_dir)?)))
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let made = make(&args.run_dir)?;
    if args.json {
        return crate::data::print_json(&made.report);
    }
    print!("{}", made.text);
    for file in [&made.json, &made.markdown, &made.html] {
        println!("written: {}", file.display());
    }
    Ok(())
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// A share by name of the thing it is of.
type Shares = BTreeMap<String, Measured>;

/// The variant that is the deployed model itself: nothing was trained, the others are compared with it.
const BASE: &str = "base";

#[cfg(test)]
mod tests;
