//! `coordinator check`: a run file looked through, without starting anything.

use std::fmt::Write;
use std::path::PathBuf;

use serde::Serialize;
use shared::{Error, Result};

use crate::client;
use crate::estimate::{self, Estimate};
use crate::plan::{Place, Plan};
use crate::run_file::{self, RunFile};

/// Checks a run file: prints its stages and an estimate of what it needs, or everything that is wrong with it
///
/// Nothing is started and nothing is asked. Paths in the file start from its folder, those given by --set from here.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The run file (TOML)
    file: PathBuf,
    /// Overrides a key of the run file: train.beta=0.5, variant.trace.train.beta=0.5
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Checked<'a> {
    problems: Vec<String>,
    plan: Option<&'a Plan>,
    estimate: Option<Estimate>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let request = client::submission(&args.file, &args.set)?;
    let folder = PathBuf::from(&request.folder);
    let (file, plan) = match run_file::parse(&request.text, &request.file, &folder, &request.set) {
        Ok(file) => {
            let plan = run_file::plan(&file);
            (file, plan)
        }
        Err(problems) => {
            let what = if problems.len() == 1 { "problem" } else { "problems" };
            let error = format!("{} {what} in {}:\n  {}", problems.len(), request.file, problems.join("\n  "));
            if args.json {
                crate::data::print_json(&Checked { problems, plan: None, estimate: None })?;
            }
            return Err(Error::Config(error));
        }
    };
    let estimate = estimate::of(&file)?;
    if args.json {
        return crate::data::print_json(&Checked { problems: Vec::new(), plan: Some(&plan), estimate: Some(estimate) });
    }
    print!("{}", table(&file, &plan, &estimate));
    Ok(())
}

/// Returns the plan and the estimate for people.
fn table(file: &RunFile, plan: &Plan, estimate: &Estimate) -> String {
    let mut text = format!("run {}: {} stages\n\n", plan.run, plan.stages.len());
    let width = plan.stages.iter().map(|stage| stage.name.len()).max().unwrap_or(0);
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{:<width$}  {:<14}  after", "stage", "carried out by");
    for stage in &plan.stages {
        let after: Vec<&str> = stage.after.iter().map(|index| plan.stages[*index].name.as_str()).collect();
        let place = match stage.place {
            Place::Coordinator => "coordinator",
            Place::Oracle => "oracle service",
            Place::Workers => "workers",
        };
        let _ = writeln!(text, "{:<width$}  {place:<14}  {}", stage.name, after.join(", "));
    }
    let known = |number: Option<u64>| number.map_or("not known yet".to_owned(), grouped);
    let _ = writeln!(
        text,
        "\nestimate (tokens as a quarter of the characters, 25 % of the pairs PUNISH, nothing answered before)"
    );
    let cost = match estimate.cost_usd {
        Some(cost) => format!("{cost:.2} USD ({})", estimate.prices),
        None => format!("not known: no price for {:?} ({})", file.oracle.model, estimate.prices),
    };
    let disk = estimate.disk_bytes.map_or("not known yet".to_owned(), |bytes| format!("{:.1} MB", bytes as f64 / 1e6));
    for (name, value) in [
        ("pairs", known(estimate.pairs)),
        ("oracle calls", known(estimate.calls)),
        ("tokens sent", known(estimate.prompt_tokens)),
        ("tokens received", known(estimate.completion_tokens)),
        ("cost", cost),
        ("disk", disk),
        ("gang of training", gang(file)),
    ] {
        let _ = writeln!(text, "  {name:<17} {value}");
    }
    text
}

/// Returns how many workers train together.
fn gang(file: &RunFile) -> String {
    match (file.world_size(), file.min_workers()) {
        (wanted, None) => wanted.to_string(),
        (wanted, Some(least)) => {
            format!("{wanted}, or what is left down to {least} (the result is then not equal to the bit)")
        }
    }
}

/// Returns a number with its digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_quickstart_is_told() {
        let text = include_str!("../../deploy/examples/quickstart.toml");
        let file = run_file::parse(text, "q.toml", Path::new("/"), &[]).unwrap();
        let plan = run_file::plan(&file);
        let text = table(&file, &plan, &estimate::of(&file).unwrap());
        assert!(text.starts_with("run quickstart: 19 stages\n"), "{text}");
        assert!(text.contains("train-trace             workers         score-trace\n"), "{text}");
        assert!(text.contains("  pairs             1 200\n"), "{text}");
        assert_eq!(grouped(1_234_567), "1 234 567");
    }
}
