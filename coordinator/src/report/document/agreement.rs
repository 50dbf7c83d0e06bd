//! Agreement with the policy, and what the re-alignment did besides.

use std::collections::BTreeSet;

use shared::stats::Measured;

use super::{Section, Table, clean, shares, value, with_interval};
use crate::report::measure::{Capability, Measurements};
use crate::report::{Shares, Variant};

/// A measure and its value for each variant.
pub(in crate::report) type Row<'a> = (String, Vec<Option<&'a Measured>>);

type Getter = fn(&Measurements) -> Option<&Measured>;

const CATEGORIES: [(&str, Getter); 4] = [
    ("INVERT", |of| of.invert.as_ref()),
    ("PUNISH", |of| of.punish.as_ref()),
    ("RETAIN", |of| of.retain.as_ref()),
    ("held-out tasks", |of| of.heldout.as_ref()),
];

pub(super) fn overview(variants: &[Variant]) -> Section {
    let mut columns: Vec<Row> = vec![("TPA".to_owned(), each(variants, |of| Some(&of.tpa)))];
    columns.extend(categories(variants));
    columns.push(("garbled".to_owned(), each(variants, |of| of.garbled.as_ref())));
    columns.extend(attacks(variants));
    columns.push((CAPABILITY.to_owned(), capability(variants, |of| &of.mean)));
    let columns = measured(columns);
    let heads: Vec<&str> = ["variant"].into_iter().chain(columns.iter().map(|(label, _)| label.as_str())).collect();
    let mut table = Table::new("All variants, percent", &heads);
    for (index, variant) in variants.iter().enumerate() {
        let cells = columns.iter().map(|(label, values)| match label.as_str() {
            "TPA" | CAPABILITY => with_interval(values[index]),
            _ => value(values[index]),
        });
        table.push([variant.name.clone()].into_iter().chain(cells));
    }
    Section { id: "overview", title: "At a glance", paragraphs: Vec::new(), tables: vec![table] }
}

pub(super) fn agreement(variants: &[Variant]) -> Section {
    let mut paragraphs = vec![
        "Target policy agreement (TPA) is the percentage of responses to the test prompts that comply with the new policy."
            .to_owned(),
    ];
    let mut rows: Vec<Row> = vec![("all".to_owned(), each(variants, |of| Some(&of.tpa)))];
    let categories = categories(variants);
    if categories.is_empty() {
        paragraphs.push("The judged responses name no category, so agreement by category is left out.".to_owned());
    }
    let title = if categories.is_empty() { "Agreement" } else { "Agreement by category" };
    rows.extend(categories);
    let mut tables = vec![shares(title, "category", variants, rows)];
    let domains = domains(variants);
    if domains.is_empty() {
        paragraphs.push("The judged responses name no domain, so agreement by domain is left out.".to_owned());
    } else {
        tables.push(shares("Agreement by domain", "domain", variants, domains));
    }
    Section { id: "agreement", title: "Agreement with the new policy", paragraphs, tables }
}

pub(super) fn side_effects(variants: &[Variant]) -> Section {
    let rows = side_effect_rows(variants);
    let has = |measured: fn(&Measurements) -> bool| variants.iter().any(|variant| measured(&variant.measured));
    let absent: Vec<&str> = [
        (has(|of| of.garbled.is_some()), "garbled text was not judged"),
        (has(|of| !of.asr.is_empty()), "no attack was asked"),
        (has(|of| of.capability.is_some()), "no unrelated skill was asked"),
    ]
    .into_iter()
    .filter_map(|(there, sentence)| (!there).then_some(sentence))
    .collect();
    let mut paragraphs = Vec::new();
    if !rows.is_empty() {
        let sentence = "Garbled text and attack success (ASR) are better low, capability in the unrelated skill better high. \
                        Read attack success beside the garbled share under attack: a broken model is not a robust one.";
        paragraphs.push(sentence.to_owned());
    }
    if !absent.is_empty() {
        paragraphs.push(format!("Left out: {}.", absent.join("; ")));
    }
    let mut tables = Vec::new();
    if !rows.is_empty() {
        tables.push(shares("Garbled text, attacks, capability", "measure", variants, rows));
    }
    Section { id: "side-effects", title: "What else changed", paragraphs, tables }
}

/// Agreement by category, of the categories that some variant has.
pub(in crate::report) fn categories(variants: &[Variant]) -> Vec<Row<'_>> {
    measured(CATEGORIES.into_iter().map(|(label, of)| (label.to_owned(), each(variants, of))))
}

pub(in crate::report) fn domains(variants: &[Variant]) -> Vec<Row<'_>> {
    by_name(variants, |of| &of.by_domain, str::to_owned)
}

const CAPABILITY: &str = "capability";

/// Garbled text, attacks and capability, of what some variant has.
pub(in crate::report) fn side_effect_rows(variants: &[Variant]) -> Vec<Row<'_>> {
    let mut rows = vec![("garbled".to_owned(), each(variants, |of| of.garbled.as_ref()))];
    rows.extend(attacks(variants));
    rows.extend(by_name(variants, |of| &of.asr_garbled, |attack| format!("garbled, {}", attack.replace('_', " "))));
    rows.push((CAPABILITY.to_owned(), capability(variants, |of| &of.mean)));
    rows.push((format!("{CAPABILITY}, sums"), capability(variants, |of| &of.sums)));
    rows.push((format!("{CAPABILITY}, facts"), capability(variants, |of| &of.facts)));
    measured(rows)
}

fn attacks(variants: &[Variant]) -> Vec<Row<'_>> {
    by_name(variants, |of| &of.asr, |attack| format!("ASR {}", attack.replace('_', " ")))
}

fn capability(variants: &[Variant], part: fn(&Capability) -> &Measured) -> Vec<Option<&Measured>> {
    variants.iter().map(|variant| variant.measured.capability.as_ref().map(part)).collect()
}

fn each(variants: &[Variant], of: impl Fn(&Measurements) -> Option<&Measured>) -> Vec<Option<&Measured>> {
    variants.iter().map(|variant| of(&variant.measured)).collect()
}

fn by_name(
    variants: &[Variant],
    of: impl Fn(&Measurements) -> &Shares,
    label: impl Fn(&str) -> String,
) -> Vec<Row<'_>> {
    let names: BTreeSet<&String> = variants.iter().flat_map(|variant| of(&variant.measured).keys()).collect();
    names.into_iter().map(|name| (clean(&label(name)), each(variants, |measured| of(measured).get(name)))).collect()
}

fn measured<'a>(rows: impl IntoIterator<Item = Row<'a>>) -> Vec<Row<'a>> {
    rows.into_iter().filter(|(_, values)| values.iter().any(Option::is_some)).collect()
}
