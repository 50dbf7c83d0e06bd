//! Which plots a report has, by section of its document. Pure: a report in, SVGs with their captions out.

use std::collections::BTreeMap;

use serde::Serialize;

use super::document::agreement::{Row, categories, domains, side_effect_rows};
use super::document::clean;
use super::document::cost::{duration, outcomes, percent, usd};
use super::document::training::{drawn_parts, part_name};
use super::plot::mark::Style;
use super::plot::{Name, bars, dots, histogram, lines};
use super::{BASE, Report, Stage, Triage, Variant};

/// More domains than this are drawn as two plots, which stand side by side where there is room.
const DOMAINS_OF_A_PLOT: usize = 8;

#[derive(Debug, Serialize)]
pub(super) struct Figure {
    title: String,
    /// What else is to be known to read it.
    note: String,
    /// Markup.
    svg: String,
}

impl Figure {
    fn new(title: &str, note: impl Into<String>, svg: String) -> Self {
        Self { title: title.to_owned(), note: note.into(), svg }
    }
}

/// Returns the plots of each section that has some.
pub(super) fn of(report: &Report, styles: &[Style]) -> BTreeMap<&'static str, Vec<Figure>> {
    let variants = &report.variants;
    let side_effects = shares("side-effects", "Garbled, attacks, capability", &side_effect_rows(variants), styles);
    let mut figures = BTreeMap::from([
        ("agreement", agreement(variants, styles)),
        ("side-effects", side_effects.into_iter().collect()),
        ("losses", losses(variants, styles)),
        ("scores", scores(variants, styles)),
        ("triage", vec![triage(&report.triage)]),
        ("cost", stages(&report.stages)),
    ]);
    figures.retain(|_, figures| !figures.is_empty());
    figures
}

/// The look of each variant: grey for the base, colours for the others in their order.
pub(super) fn styles(variants: &[Variant]) -> Vec<Style> {
    let mut trained = 0;
    let mut style = |variant: &Variant| {
        if variant.name == BASE {
            return Style::BASE;
        }
        trained += 1;
        Style::trained(trained - 1)
    };
    variants.iter().map(&mut style).collect()
}

fn agreement(variants: &[Variant], styles: &[Style]) -> Vec<Figure> {
    let mut figures = vec![overall(variants, styles)];
    figures.extend(shares("categories", "TPA by category", &categories(variants), styles));
    let domains = domains(variants);
    let plots = if domains.len() > DOMAINS_OF_A_PLOT { 2 } else { 1 };
    for (index, rows) in domains.chunks(domains.len().div_ceil(plots).max(1)).enumerate() {
        let part = if plots > 1 { format!(" ({} of {plots})", index + 1) } else { String::new() };
        figures.extend(shares(&format!("domains-{index}"), &format!("TPA by domain{part}"), rows, styles));
    }
    figures
}

const SHARES: &str = "Percent of responses for each variant, with 95 % intervals. The table below has the numbers.";

fn overall(variants: &[Variant], styles: &[Style]) -> Figure {
    let row = |(variant, style): (&'_ Variant, &Style)| dots::Row {
        label: clean(&variant.name),
        marks: vec![(*style, Some(variant.measured.tpa))],
    };
    let rows: Vec<dots::Row> = variants.iter().zip(styles).map(row).collect();
    let title = "TPA overall";
    Figure::new(title, "", dots::draw(Name { id: "overall", title, description: SHARES }, &rows))
}

/// A plot of shares; without rows, none.
fn shares(id: &str, title: &str, rows: &[Row], styles: &[Style]) -> Option<Figure> {
    let rows: Vec<dots::Row> = rows
        .iter()
        .map(|(label, values)| dots::Row {
            label: label.clone(),
            marks: styles.iter().copied().zip(values.iter().map(|value| value.copied())).collect(),
        })
        .collect();
    let svg = dots::draw(Name { id, title, description: SHARES }, &rows);
    (!rows.is_empty()).then(|| Figure::new(title, "", svg))
}

/// A plot a part of the loss, the total first.
fn losses(variants: &[Variant], styles: &[Style]) -> Vec<Figure> {
    let plot = |(index, part): (usize, &str)| {
        let lines: Vec<lines::Line> = variants
            .iter()
            .zip(styles)
            .filter_map(|(variant, style)| {
                let curves = variant.loss_curves.as_ref()?;
                Some(lines::Line { style: *style, steps: &curves.step, values: curves.parts.get(part)? })
            })
            .collect();
        let title = format!("Loss by step: {}", clean(part_name(part)));
        let description = "One curve for each trained variant. The tables below have values at some of the steps.";
        let svg = lines::draw(Name { id: &format!("loss-{index}"), title: &title, description }, &lines);
        Figure::new(&title, "", svg)
    };
    drawn_parts(variants).into_iter().enumerate().map(plot).collect()
}

fn scores(variants: &[Variant], styles: &[Style]) -> Vec<Figure> {
    let plot = |(index, (variant, style)): (usize, (&Variant, &Style))| {
        let scores = variant.score.as_ref()?;
        let title = format!("Raw impact scores: {}", clean(&variant.name));
        let description = "Records by score. The tables below have the share clamped and the records of every bin.";
        let name = Name { id: &format!("scores-{index}"), title: &title, description };
        let svg = histogram::draw(name, &scores.histogram, *style);
        let note = format!("{:.1} % of {} conflict records clamped (grey).", scores.clamped_share, scores.n);
        Some(Figure::new(&title, note, svg))
    };
    variants.iter().zip(styles).enumerate().filter_map(plot).collect()
}

fn triage(triage: &Triage) -> Figure {
    let bar = |(name, count): (&str, usize)| bars::Bar {
        label: name.to_owned(),
        shown: format!("{count} ({} %)", percent(count, triage)),
        amount: count as f64,
        pale: false,
    };
    let title = "Pairs by outcome";
    let description = "How many pairs the triage put where. The table has the numbers.";
    let svg = bars::draw(Name { id: "triage", title, description }, &outcomes(triage).map(bar));
    Figure::new(title, "", svg)
}

/// Time by stage, and cost where something was paid.
fn stages(stages: &[Stage]) -> Vec<Figure> {
    let plot = |id, title, amount: fn(&Stage) -> f64, shown: fn(f64) -> String| {
        let bar = |stage: &Stage| bars::Bar {
            label: clean(&stage.name),
            shown: shown(amount(stage)),
            amount: amount(stage),
            pale: stage.skipped,
        };
        let bars: Vec<bars::Bar> = stages.iter().filter(|stage| amount(stage) > 0.0).map(bar).collect();
        let svg = bars::draw(Name { id, title, description: "A bar a stage. The table has the numbers." }, &bars);
        let earlier = if bars.iter().any(|bar| bar.pale) { "Pale: finished by an earlier invocation." } else { "" };
        (!bars.is_empty()).then(|| Figure::new(title, earlier, svg))
    };
    let time = plot("time", "Time by stage", |stage| stage.seconds, duration);
    let cost = plot("cost-bars", "Cost by stage (USD)", |stage| stage.cost_usd, usd);
    time.into_iter().chain(cost).collect()
}
