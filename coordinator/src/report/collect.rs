//! Reads a run's folder; the only part of the report that touches files.

use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};
use shared::quality::Figures;
use shared::record::{Category, Record};
use shared::{Error, Result, input};

use super::{BASE, Oracle, Report, Stage, Triage, Variant, curves, measure, scores};
use crate::stage::CURVATURE_REPORT;

/// Variants whose update weighs records by impact scores; the others have none worth a histogram.
const WEIGHTED: [&str; 5] = ["trace", "oracle-punish", "no-kl", "no-triage", "u2a"];

/// What a report takes from run.json; the run keeps more there.
#[derive(Deserialize)]
struct RunFile {
    run: String,
    seed: u64,
    variants: Vec<String>,
    /// Variants whose records were scored; by their names where this is not said.
    #[serde(default)]
    scored: Option<Vec<String>>,
    /// None in a folder that was put together by hand.
    #[serde(default)]
    stages: Vec<Stage>,
    #[serde(default)]
    oracle: Option<Oracle>,
}

#[derive(Deserialize)]
struct Judged {
    results: Vec<Map<String, Value>>,
}

/// What a report takes from train_summary.json.
#[derive(Default, Deserialize)]
struct Trained {
    /// None in one that was written before there were such figures.
    #[serde(default)]
    promoted: Option<Figures>,
}

pub(super) fn report(folder: &Path) -> Result<Report> {
    let run_file = folder.join("run.json");
    let run: RunFile = input::read_json(&run_file)?;
    if run.variants.is_empty() {
        return Err(Error::file(&run_file, "\"variants\" is empty; name what the report compares"));
    }
    let is_scored = |name: &String| match &run.scored {
        Some(scored) => scored.contains(name),
        None => WEIGHTED.contains(&name.as_str()),
    };
    let variants = run.variants.iter().map(|name| variant(folder, &run_file, name, is_scored(name)));
    let variants = variants.collect::<Result<_>>()?;
    let RunFile { run, seed, stages, oracle, .. } = run;
    Ok(Report { run, seed, variants, triage: triage(folder)?, stages, oracle })
}

fn variant(folder: &Path, run_file: &Path, name: &str, is_scored: bool) -> Result<Variant> {
    let is_one_folder = Path::new(name).components().count() == 1 && Path::new(name).file_name().is_some();
    if !is_one_folder {
        return Err(Error::file(run_file, format!("\"variants\": {name:?} is not the name of a folder of the run")));
    }
    let own = folder.join(name);
    let judged_file = own.join("judged_test.json");
    let mut judged: Judged = input::read_json(&judged_file)?;
    let all = judged.results.len();
    judged.results.retain(|result| !result.contains_key("undecided"));
    let undecided = all - judged.results.len();
    let measured = measure::of(&judged.results, &judged_file)?;

    let score = if is_scored {
        let weighted = own.join("weighted_dataset.json");
        let report = own.join(CURVATURE_REPORT);
        let curvature = if report.exists() { input::read_json(&report)? } else { Vec::new() };
        Some(scores::of(&input::read_all::<Record>(&weighted)?, curvature, &weighted)?)
    } else {
        None
    };
    let (loss_curves, ranks) = if name == BASE {
        (None, Vec::new())
    } else {
        let file = own.join("metrics.jsonl");
        let metrics = input::read_all(&file)?;
        (Some(curves::of(&metrics, &file)?), curves::ranks(&metrics))
    };
    let summary = own.join("train_summary.json");
    // A folder that was put together by hand has none.
    let trained: Trained = if summary.exists() { input::read_json(&summary)? } else { Trained::default() };
    Ok(Variant { name: name.to_owned(), measured, undecided, score, promoted: trained.promoted, loss_curves, ranks })
}

fn triage(folder: &Path) -> Result<Triage> {
    #[derive(Deserialize)]
    struct Labelled {
        category: Category,
    }
    let folder = folder.join("triage");
    let mut counts = Triage {
        uncertain: count_where_there(&folder.join("gold_uncertain.json"))?,
        dead_letter: count_where_there(&folder.join("gold_dead_letter.json"))?,
        uncorrected: match folder.join("corrected.json") {
            file if file.exists() => crate::corrections::count(&file)?.missing,
            _ => 0,
        },
        ..Triage::default()
    };
    input::for_each(&folder.join("gold.json"), |_, record: Labelled| {
        let count = match record.category {
            Category::Invert => &mut counts.invert,
            Category::Punish => &mut counts.punish,
            Category::Retain => &mut counts.retain,
        };
        *count += 1;
        Ok(())
    })?;
    Ok(counts)
}

/// Counts the elements of an array that is written only when there are some.
fn count_where_there(file: &Path) -> Result<usize> {
    if !file.exists() {
        return Ok(0);
    }
    input::for_each(file, |_, _: IgnoredAny| Ok(()))
}
