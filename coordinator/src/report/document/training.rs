//! What training and scoring left: losses by part, impact scores.

use std::collections::BTreeSet;

use shared::quality::{Flaw, Mode};

use super::{DASH, Section, Table, number};
use crate::report::Variant;
use crate::report::curves::Curves;
use crate::report::scores::Scores;

/// Rows of a table of losses, evenly spaced over the training.
const SHOWN_STEPS: usize = 10;

pub(super) fn losses(variants: &[Variant]) -> Section {
    let trained: Vec<(&Variant, &Curves)> =
        variants.iter().filter_map(|variant| Some((variant, variant.loss_curves.as_ref()?))).collect();
    let mut summary = Table::new("Loss", &["variant", "steps", "first", "last"]);
    let mut tables = Vec::new();
    for (variant, curves) in &trained {
        let loss = curves.parts.get("loss");
        summary.push([
            variant.name.clone(),
            curves.step.last().map_or(DASH.to_owned(), u64::to_string),
            number(loss.and_then(|loss| loss.first().copied().flatten())),
            number(loss.and_then(|loss| loss.last().copied().flatten())),
        ]);
        tables.push(by_part(&variant.name, curves));
    }
    tables.extend(promoted(variants));
    let mut paragraphs = Vec::new();
    if trained.is_empty() {
        paragraphs.push("Nothing was trained.".to_owned());
    } else {
        tables.insert(0, summary);
        paragraphs.push(format!("Losses are sums over a batch divided by its number of records. {}", points(&trained)));
        paragraphs.extend(variants.iter().filter_map(changed_ranks));
        let parts: Vec<&str> = zero_parts(variants).into_iter().map(part_name).collect();
        if !parts.is_empty() {
            paragraphs.push(format!("Zero at every step, so not drawn: {}.", parts.join(", ")));
        }
    }
    Section { id: "losses", title: "Training", paragraphs, tables }
}

/// Says with how many workers a variant trained, where that changed.
fn changed_ranks(variant: &Variant) -> Option<String> {
    let parts: Vec<String> =
        variant.ranks.iter().map(|part| format!("{} up to step {}", part.ranks, part.last_step)).collect();
    (parts.len() > 1).then(|| {
        let parts = parts.join(", ");
        format!("The number of workers that trained {} changed: {parts}. Its bits depend on when it did.", variant.name)
    })
}

/// What training promoted, beside what gave way to it; none where nothing was promoted.
fn promoted(variants: &[Variant]) -> Option<Table> {
    let heads =
        ["variant", "promoted", "median words", "of those replaced", "empty", "evasive", "short", "filter", "left out"];
    let mut table = Table::new("Promoted responses", &heads);
    for variant in variants {
        let Some(figures) = variant.promoted.as_ref().filter(|figures| figures.promoted > 0) else { continue };
        let count = |flaws: &[Flaw]| flaws.iter().filter_map(|flaw| figures.flaws.get(flaw)).sum::<usize>().to_string();
        let mode = match figures.filter {
            Mode::Off => "off",
            Mode::Report => "report",
            Mode::On => "on",
        };
        table.push([
            variant.name.clone(),
            figures.promoted.to_string(),
            format!("{:.1}", figures.words.median),
            format!("{:.1}", figures.demoted_words.median),
            count(&[Flaw::Empty]),
            count(&[Flaw::Refusal, Flaw::NonAnswer, Flaw::RepeatsPrompt]),
            count(&[Flaw::Short]),
            mode.to_owned(),
            figures.filtered.to_string(),
        ]);
    }
    (!table.rows.is_empty()).then_some(table)
}

/// Says how far curves were thinned.
fn points(trained: &[(&Variant, &Curves)]) -> String {
    let mut per_point: Vec<(usize, Vec<&str>)> = Vec::new();
    for (variant, curves) in trained {
        match per_point.iter_mut().find(|(steps, _)| *steps == curves.steps_per_point) {
            Some((_, names)) => names.push(&variant.name),
            None => per_point.push((curves.steps_per_point, vec![&variant.name])),
        }
    }
    let mean = |steps: usize| {
        if steps == 1 { "one step".to_owned() } else { format!("the mean of {steps} steps (the last of what remains)") }
    };
    match &per_point[..] {
        [(steps, _)] => format!("Each point is {}.", mean(*steps)),
        _ => {
            let each: Vec<String> =
                per_point.iter().map(|(steps, names)| format!("{} for {}", mean(*steps), names.join(", "))).collect();
            format!("Each point is {}.", each.join("; "))
        }
    }
}

/// All losses at some of the points; each row is one point of the curves.
fn by_part(name: &str, curves: &Curves) -> Table {
    let parts: Vec<&String> = curves.parts.keys().collect();
    let heads: Vec<&str> = ["up to step"].into_iter().chain(parts.iter().map(|part| part_name(part))).collect();
    let all = curves.step.len();
    let shown = all.min(SHOWN_STEPS);
    let mut table = Table::new(format!("Losses of {}: {shown} of {all} points", name), &heads);
    table.detail = true;
    for place in 0..shown {
        // From the first to the last point.
        let point = if shown > 1 { place * (all - 1) / (shown - 1) } else { 0 };
        let values = parts.iter().map(|part| number(curves.parts[*part].get(point).copied().flatten()));
        table.push([curves.step[point].to_string()].into_iter().chain(values));
    }
    table
}

/// Parts of the loss that some variant has and that are not zero throughout; the total first.
pub(in crate::report) fn drawn_parts(variants: &[Variant]) -> Vec<&str> {
    let zero = zero_parts(variants);
    all_parts(variants).into_iter().filter(|part| !zero.contains(part)).collect()
}

fn zero_parts(variants: &[Variant]) -> Vec<&str> {
    let is_zero = |part: &str| {
        let mut curves = variants.iter().filter_map(|variant| variant.loss_curves.as_ref()?.parts.get(part));
        part != "loss" && curves.all(|values| values.iter().flatten().all(|value| *value == 0.0))
    };
    all_parts(variants).into_iter().filter(|part| is_zero(part)).collect()
}

fn all_parts(variants: &[Variant]) -> BTreeSet<&str> {
    let curves = variants.iter().filter_map(|variant| variant.loss_curves.as_ref());
    curves.flat_map(|curves| curves.parts.keys().map(String::as_str)).collect()
}

/// Returns how a part is called on the page.
pub(in crate::report) fn part_name(part: &str) -> &str {
    match part {
        "loss" => "total",
        "loss_invert" => "INVERT",
        "loss_punish" => "PUNISH",
        "loss_kl" => "KL anchor",
        "loss_nll" => "NLL",
        other => other.strip_prefix("loss_").unwrap_or(other),
    }
}

pub(super) fn scores(variants: &[Variant]) -> Section {
    let scored: Vec<(&Variant, &Scores)> =
        variants.iter().filter_map(|variant| Some((variant, variant.score.as_ref()?))).collect();
    let heads = [
        "variant",
        "conflict records",
        "effective",
        "clamped %",
        "clamped % INVERT",
        "clamped % PUNISH",
        "mean weight INVERT",
        "mean weight PUNISH",
    ];
    let mut summary = Table::new("Impact scores", &heads);
    let mut histograms = Vec::new();
    for (variant, scores) in &scored {
        let share = |share: Option<&f64>| share.map_or(DASH.to_owned(), |share| format!("{share:.1}"));
        let clamped = |category| share(scores.clamped_share_of.get(category));
        let weight = |category| number(scores.mean_weight.get(category).copied());
        summary.push([
            variant.name.clone(),
            scores.n.to_string(),
            format!("{:.1}", scores.effective_records),
            share(Some(&scores.clamped_share)),
            clamped("INVERT"),
            clamped("PUNISH"),
            weight("INVERT"),
            weight("PUNISH"),
        ]);
        histograms.push(histogram(&variant.name, scores));
    }
    let of_seeds = seeds(&scored);
    let of_curvature = curvature(&scored);
    let sentence = if scored.is_empty() {
        "No variant weighs its records, so there are no impact scores."
    } else {
        "The impact score of a conflict record says how far its gradient goes along that of the gold batch. Scores of 0 and \
         less are clamped: such a record gets no weight. The effective number of records is (Σw)²/Σw²: so many of equal weight \
         would spread the update as much."
    };
    let tables = match scored.is_empty() {
        true => Vec::new(),
        false => [summary].into_iter().chain(of_seeds).chain(of_curvature).chain(histograms).collect(),
    };
    Section { id: "scores", title: "Impact scores", paragraphs: vec![sentence.to_owned()], tables }
}

/// How far the scores at several adapters agree.
fn seeds(scored: &[(&Variant, &Scores)]) -> Option<Table> {
    let heads = ["variant", "adapters", "deviation over adapters", "over records", "reliability of the mean"];
    let mut table = Table::new("Scores at several adapters", &heads);
    for (variant, scores) in scored {
        let Some(spread) = &scores.seeds else { continue };
        table.push([
            variant.name.clone(),
            spread.count.to_string(),
            number(Some(spread.deviation)),
            number(Some(spread.deviation_over_records)),
            spread.reliability.map_or(DASH.to_owned(), |share| format!("{share:.3}")),
        ]);
    }
    (!table.rows.is_empty()).then_some(table)
}

/// What the curvature made of the gold gradient, one row an adapter.
fn curvature(scored: &[(&Variant, &Scores)]) -> Option<Table> {
    let heads = ["variant", "records", "damping", "along the gold gradient", "iterations", "residual", "cosine"];
    let mut table = Table::new("Curvature", &heads);
    for (variant, scores) in scored {
        for report in &scores.curvature {
            table.push([
                variant.name.clone(),
                report.records.to_string(),
                format!("{:.3e}", report.gamma),
                format!("{:.3e}", report.along_gold),
                report.iterations.to_string(),
                format!("{:.1e}{}", report.residual, if report.converged { "" } else { " (not converged)" }),
                format!("{:.4}", report.cosine),
            ]);
        }
    }
    (!table.rows.is_empty()).then_some(table)
}

fn histogram(name: &str, scores: &Scores) -> Table {
    let mut table = Table::new(format!("Raw scores of {}", name), &["above", "up to", "records"]);
    table.detail = true;
    for (edges, count) in scores.histogram.edges.windows(2).zip(&scores.histogram.counts) {
        table.push([number(Some(edges[0])), number(Some(edges[1])), count.to_string()]);
    }
    table
}
