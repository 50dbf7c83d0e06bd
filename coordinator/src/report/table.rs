//! The report for people. Pure: a report in, text out.

use std::fmt::Write;

use shared::stats::Measured;

use super::{Report, Variant};

const DASH: &str = "–";

pub(super) fn of(report: &Report) -> String {
    let mut text = format!("run {}, seed {}\n\n", report.run, report.seed);
    let counts: usize = report.triage.values().sum();
    let triage = report
        .triage
        .iter()
        .map(|(name, count)| format!("{name} {count} ({:.1} %)", 100.0 * *count as f64 / counts.max(1) as f64));
    line(&mut text, &format!("triaged pairs: {}", triage.collect::<Vec<_>>().join(", ")));
    line(&mut text, "");
    agreement(&mut text, &report.variants);
    domains(&mut text, &report.variants);
    training(&mut text, &report.variants);
    stages(&mut text, report);
    text
}

fn line(text: &mut String, content: &str) {
    text.push_str(content);
    text.push('\n');
}

/// Writes rows of cells, the first left-aligned, the others right-aligned to the widest of their column.
fn grid(text: &mut String, rows: &[Vec<String>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    for row in rows {
        let mut cells = String::new();
        for (column, cell) in row.iter().enumerate() {
            // Writing to a string cannot fail.
            let _ = match column {
                0 => write!(cells, "{cell:<width$}", width = widths[0]),
                _ => write!(cells, "  {cell:>width$}", width = widths[column]),
            };
        }
        line(text, cells.trim_end());
    }
    line(text, "");
}

fn value(measured: Option<&Measured>) -> String {
    measured.map_or(DASH.to_owned(), |measured| format!("{:.1}", measured.value))
}

fn with_interval(measured: Option<&Measured>) -> String {
    measured.map_or(DASH.to_owned(), |Measured { value, low, high, .. }| format!("{value:.1} ({low:.1}–{high:.1})"))
}

fn agreement(text: &mut String, variants: &[Variant]) {
    line(text, "percent of responses, 95 % interval in brackets");
    let heads = [
        "variant",
        "TPA",
        "INVERT",
        "PUNISH",
        "RETAIN",
        "garbled",
        "held-out",
        "ASR story",
        "ASR suffix",
        "capability",
    ];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for variant in variants {
        let measured = &variant.measured;
        rows.push(vec![
            variant.name.clone(),
            with_interval(Some(&measured.tpa)),
            value(measured.invert.as_ref()),
            value(measured.punish.as_ref()),
            value(measured.retain.as_ref()),
            value(measured.garbled.as_ref()),
            value(measured.heldout.as_ref()),
            value(measured.asr.get("story")),
            value(measured.asr.get("suffix")),
            with_interval(measured.capability.as_ref().map(|capability| &capability.mean)),
        ]);
    }
    grid(text, &rows);
}

fn domains(text: &mut String, variants: &[Variant]) {
    let mut names: Vec<&String> = variants.iter().flat_map(|variant| variant.measured.by_domain.keys()).collect();
    names.sort();
    names.dedup();
    if names.is_empty() {
        return;
    }
    line(text, "TPA by domain");
    let mut rows = vec![vec!["domain".to_owned(), "n".to_owned()]];
    rows[0].extend(variants.iter().map(|variant| variant.name.clone()));
    for name in names {
        let n = variants.iter().find_map(|variant| variant.measured.by_domain.get(name)).map_or(0, |one| one.n);
        let mut row = vec![name.clone(), n.to_string()];
        row.extend(variants.iter().map(|variant| value(variant.measured.by_domain.get(name))));
        rows.push(row);
    }
    grid(text, &rows);
}

fn training(text: &mut String, variants: &[Variant]) {
    let heads = ["variant", "clamped %", "weight INVERT", "weight PUNISH", "steps", "first loss", "last loss"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for variant in variants.iter().filter(|variant| variant.score.is_some() || variant.loss_curves.is_some()) {
        let score = variant.score.as_ref();
        let number = |number: Option<f64>| number.map_or(DASH.to_owned(), |number| format!("{number:.3}"));
        let weight = |category| number(score.and_then(|score| score.mean_weight.get(category).copied()));
        let curves = variant.loss_curves.as_ref();
        let loss = curves.and_then(|curves| curves.parts.get("loss"));
        rows.push(vec![
            variant.name.clone(),
            score.map_or(DASH.to_owned(), |score| format!("{:.1}", score.clamped_share)),
            weight("INVERT"),
            weight("PUNISH"),
            curves.and_then(|curves| curves.step.last()).map_or(DASH.to_owned(), u64::to_string),
            number(loss.and_then(|loss| loss.first().copied().flatten())),
            number(loss.and_then(|loss| loss.last().copied().flatten())),
        ]);
    }
    if rows.len() > 1 {
        line(text, "training");
        grid(text, &rows);
    }
}

fn stages(text: &mut String, report: &Report) {
    if report.stages.is_empty() {
        return;
    }
    let mut rows = vec![["stage", "seconds", "cost (USD)"].map(str::to_owned).to_vec()];
    let row =
        |name: &str, seconds: f64, cost: f64| vec![name.to_owned(), format!("{seconds:.1}"), format!("{cost:.2}")];
    rows.extend(report.stages.iter().map(|stage| row(&stage.name, stage.seconds, stage.cost_usd)));
    let seconds = report.stages.iter().map(|stage| stage.seconds).sum();
    rows.push(row("total", seconds, report.stages.iter().map(|stage| stage.cost_usd).sum()));
    grid(text, &rows);
}
