//! What is known of a record, for people. Pure.

use std::fmt::Write;

use serde_json::Value;
use shared::record::Text;

use super::Explained;
use super::found::{Found, Verdict};

/// Characters of a text that are shown.
const SHOWN: usize = 72;
/// Of a gold pair's prompt, which stands in a table.
const SHOWN_IN_TABLE: usize = 60;
const SHOWN_LAYERS: usize = 5;

/// Tells the record and where it stands in a variant; what the variant before told of the record is not told again.
pub(super) fn facts(explained: &Explained, is_told: bool) -> String {
    // Writing to a string cannot fail.
    let mut text = if is_told { String::new() } else { record(&explained.found) };
    let name = match explained.variant == explained.method {
        true => explained.variant.clone(),
        false => format!("{} ({})", explained.variant, explained.method),
    };
    let Some(score) = &explained.score else {
        let category = explained.found.category.map_or("uncategorised", |category| category.name());
        let _ = writeln!(text, "\n{name}: no score and no weight; the method gives none to this {category} record");
        return text;
    };
    let clamped = if score.is_clamped { ", clamped: its score is not above 0" } else { "" };
    let _ = writeln!(text, "\n{name}: raw score {:.4e}, weight {:.4}{clamped}", score.raw_score, score.weight);
    let _ = writeln!(
        text,
        "rank {} of {} scored records (1 is the largest weight); {} of them are clamped",
        score.rank, score.scored, score.clamped
    );
    text
}

fn record(found: &Found) -> String {
    let category = found.category.map_or("none", |category| category.name());
    let mut text = format!("record {} of {}\n", found.record, found.file.display());
    let _ = writeln!(text, "{:<10} {category}", "category");
    let _ = writeln!(text, "{:<10} {}", "prompt", shorten(&found.prompt.question(), SHOWN));
    for verdict in &found.verdicts {
        let _ = writeln!(text, "{:<10} {}", verdict.field, shorten(&verdict.response, SHOWN));
        for line in said(verdict) {
            let _ = writeln!(text, "{:<10}   {line}", "");
        }
    }
    if let Some(correction) = &found.correction {
        let _ = writeln!(text, "{:<10} {}", "correction", shorten(correction, SHOWN));
    }
    text
}

/// The verdict on a response, and what it rests on as far as that is known.
fn said(verdict: &Verdict) -> Vec<String> {
    let Some(says) = verdict.verdict else { return vec!["not judged".to_owned()] };
    let violated = match &verdict.violations[..] {
        [] => String::new(),
        [one] => format!(", violates policy {one}"),
        several => {
            let several: Vec<String> = several.iter().map(i64::to_string).collect();
            format!(", violates policies {}", several.join(", "))
        }
    };
    let mut lines = vec![format!("{says}{violated}")];
    let Some(grounds) = &verdict.grounds else { return lines };
    let mut parts = Vec::new();
    if let Some(by) = grounds["review"]["by"].as_str() {
        parts.push(format!("reviewed by {by}"));
    }
    let votes = grounds["votes"].as_array().map_or(&[][..], Vec::as_slice);
    let answers = || votes.iter().filter_map(|vote| vote["answers"].as_array()).flatten();
    let mut models: Vec<&str> = answers().filter_map(|answer| answer["model"].as_str()).collect();
    models.dedup();
    if !models.is_empty() {
        parts.push(format!("judged by {}", models.join(", ")));
    }
    if let Some(confidence) = grounds["confidence"].as_f64() {
        parts.push(format!("confidence {confidence:.3}"));
    }
    if votes.len() > 1 {
        let same = votes.iter().filter(|vote| vote["said"] == grounds["verdict"]).count();
        parts.push(format!("{same} of {} votes", votes.len()));
    }
    if !parts.is_empty() {
        lines.push(parts.join(", "));
    }
    let keys: Vec<&str> = answers().filter_map(|answer| answer["key"].as_str()).collect();
    if !keys.is_empty() {
        lines.push(format!("answers in the ledger: {}", keys.join(", ")));
    }
    lines
}

/// Tells the worker's answer: the gold pairs that pull most, whatever their sign. What it does not hold is left out.
pub(super) fn pulls(answer: &Value, top: usize) -> String {
    let pairs = answer["pulls"].as_array().map_or(&[][..], Vec::as_slice);
    let pull = |pair: &Value| pair["pull"].as_f64().unwrap_or_default();
    // A sum of nothing is −0.
    let counted: Vec<f64> = pairs.iter().filter(|pair| pair["counts"] != false).map(pull).collect();
    let sum = |sign: f64| counted.iter().filter(|pull| *pull * sign > 0.0).sum::<f64>() + 0.0;
    let number = counted.iter().filter(|pull| **pull > 0.0).count();
    let mut text = String::new();
    if let Some(term) = answer["term"].as_str() {
        let _ = writeln!(text, "loss term: {term}");
    }
    let _ = writeln!(
        text,
        "{number} of {} gold pairs pull for it, {:+.4e}, the others against, {:+.4e}",
        counted.len(),
        sum(1.0),
        sum(-1.0)
    );
    if let Some(own) = answer["own_pull"].as_f64().filter(|own| *own != 0.0) {
        let raw = answer["raw_score"].as_f64().unwrap_or_default();
        let counts = if counted.len() < pairs.len() { " and does not count" } else { "" };
        let _ = writeln!(
            text,
            "its own pair in the gold batch pulls {own:+.4e}{counts}; the score computed now is {raw:.4e}"
        );
    }
    text.push_str(&layers(answer));
    let shown = if top == 0 { pairs.len() } else { top.min(pairs.len()) };
    let _ = writeln!(text, "\n{:>5}  {:>12}  {:<18}  prompt", "pair", "pull", "from");
    for pair in &pairs[..shown] {
        let prompt = serde_json::from_value::<Text>(pair["prompt"].clone()).unwrap_or_default();
        let number = pair["pair"].as_u64().map_or(String::new(), |number| number.to_string());
        let prompt = shorten(&prompt.question(), SHOWN_IN_TABLE);
        let _ = writeln!(text, "{number:>5}  {:>+12.4e}  {:<18}  {prompt}", pull(pair), origin(pair));
    }
    if shown < pairs.len() {
        let _ = writeln!(text, "({} more; --top 0 shows all)", pairs.len() - shown);
    }
    text
}

fn origin(pair: &Value) -> String {
    if pair["own"] == true {
        return "this record".to_owned();
    }
    match (pair["origin"]["category"].as_str(), pair["origin"]["record"].as_u64()) {
        (Some(category), Some(record)) => format!("{category} {record}"),
        _ => "given".to_owned(),
    }
}

/// The layers in which the pull is strongest, where the answer tells them.
fn layers(answer: &Value) -> String {
    let layer = |layer: &'_ Value| Some((layer["layer"].as_str()?.to_owned(), layer["pull"].as_f64()?));
    let mut layers: Vec<(String, f64)> = answer["layers"].as_array().into_iter().flatten().filter_map(layer).collect();
    layers.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
    let shown: Vec<String> =
        layers.iter().take(SHOWN_LAYERS).map(|(layer, pull)| format!("{layer} {pull:+.3e}")).collect();
    if shown.is_empty() { String::new() } else { format!("strongest layers: {}\n", shown.join(", ")) }
}

/// Returns the beginning of a text on one line.
fn shorten(text: &str, length: usize) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(length) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
