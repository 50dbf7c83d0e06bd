//! Reads a run's folder; the only part of the report that touches files.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use shared::record::{Category, Record};
use shared::{Error, Result, input};

use super::{Report, Variant, curves, measure, scores};

/// The variant that is the deployed model itself: nothing was trained, so there are no scores and no curves.
const BASE: &str = "base";
/// Variants whose update weighs records by impact scores; the others have none worth a histogram.
const WEIGHTED: [&str; 5] = ["trace", "oracle-punish", "no-kl", "no-triage", "u2a"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RunFile {
    run: String,
    seed: u64,
    variants: Vec<String>,
}

#[derive(Deserialize)]
struct Judged {
    results: Vec<Map<String, Value>>,
}

/// What a stage took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stage {
    pub(super) name: String,
    pub(super) seconds: f64,
    #[serde(default)]
    pub(super) cost_usd: f64,
}

pub(super) fn report(folder: &Path) -> Result<Report> {
    let run_file = folder.join("run.json");
    let run: RunFile = input::read_json(&run_file)?;
    if run.variants.is_empty() {
        return Err(Error::file(&run_file, "\"variants\" is empty; name what the report compares"));
    }
    let variants = run.variants.iter().map(|name| variant(folder, &run_file, name)).collect::<Result<_>>()?;
    Ok(Report { run: run.run, seed: run.seed, variants, triage: triage(folder)?, stages: stages(folder)? })
}

fn variant(folder: &Path, run_file: &Path, name: &str) -> Result<Variant> {
    let is_one_folder = Path::new(name).components().count() == 1 && Path::new(name).file_name().is_some();
    if !is_one_folder {
        return Err(Error::file(run_file, format!("\"variants\": {name:?} is not the name of a folder of the run")));
    }
    let own = folder.join(name);
    let judged_file = own.join("judged_test.json");
    let judged: Judged = input::read_json(&judged_file)?;
    let measured = measure::of(&judged.results, &judged_file)?;

    let score = if WEIGHTED.contains(&name) {
        let weighted = own.join("weighted_dataset.json");
        Some(scores::of(&input::read_all::<Record>(&weighted)?, &weighted)?)
    } else {
        None
    };
    let loss_curves = if name == BASE {
        None
    } else {
        let metrics = own.join("metrics.jsonl");
        Some(curves::of(&input::read_all(&metrics)?, &metrics)?)
    };
    Ok(Variant { name: name.to_owned(), measured, score, loss_curves })
}

fn triage(folder: &Path) -> Result<BTreeMap<&'static str, usize>> {
    #[derive(Deserialize)]
    struct Labelled {
        category: Category,
    }
    let mut counts: BTreeMap<&str, usize> = Category::ALL.map(|category| (category.name(), 0)).into();
    input::for_each(&folder.join("triage/gold.json"), |_, record: Labelled| {
        *counts.entry(record.category.name()).or_default() += 1;
        Ok(())
    })?;
    Ok(counts)
}

/// Reads the stages in the order of their file names.
fn stages(folder: &Path) -> Result<Vec<Stage>> {
    let folder = folder.join("stages");
    let entries = std::fs::read_dir(&folder).map_err(|source| Error::io("list", &folder, source))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(|source| Error::io("list", &folder, source))?.path();
        if path.extension().is_some_and(|ending| ending == "json") {
            files.push(path);
        }
    }
    files.sort();
    files.iter().map(|file| input::read_json(file)).collect()
}
