//! What a report tells, once for all its forms: sections of sentences and tables. Pure: a report in, texts out.
//!
//! What was not measured is left out with a sentence, or is a dash where other variants have it; never a zero.

pub(super) mod agreement;
pub(super) mod cost;
mod headline;
pub(super) mod training;

use serde::Serialize;
use shared::stats::Measured;

use super::{Report, Variant};

const DASH: &str = "–";

#[derive(Debug, Serialize)]
pub(super) struct Document {
    pub(super) run: String,
    pub(super) facts: String,
    /// What was gained and lost, a line a variant.
    pub(super) headline: Vec<headline::Line>,
    pub(super) sections: Vec<Section>,
}

#[derive(Debug, Serialize)]
pub(super) struct Section {
    /// By which plots find their place.
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    pub(super) paragraphs: Vec<String>,
    pub(super) tables: Vec<Table>,
}

/// Rows of as many cells as there are heads; the first names the row.
#[derive(Debug, Serialize)]
pub(super) struct Table {
    pub(super) title: String,
    pub(super) heads: Vec<String>,
    pub(super) rows: Vec<Vec<String>>,
    /// Long tables that say what a plot shows: folded away on the page, not printed.
    pub(super) detail: bool,
}

impl Table {
    fn new(title: impl Into<String>, heads: &[&str]) -> Self {
        let heads = heads.iter().map(|head| clean(head)).collect();
        Self { title: clean(&title.into()), heads, rows: Vec::new(), detail: false }
    }

    fn push(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells: Vec<String> = cells.into_iter().map(|cell| clean(&cell)).collect();
        debug_assert_eq!(cells.len(), self.heads.len(), "a row of {}", self.title);
        self.rows.push(cells);
    }
}

pub(super) fn of(report: &Report) -> Document {
    let mut sections = vec![
        agreement::overview(&report.variants),
        agreement::agreement(&report.variants),
        agreement::side_effects(&report.variants),
        training::losses(&report.variants),
        training::scores(&report.variants),
        cost::triage(&report.triage),
        cost::cost(report),
        reading(report),
    ];
    for paragraph in sections.iter_mut().flat_map(|section| &mut section.paragraphs) {
        *paragraph = clean(paragraph);
    }
    let names: Vec<&str> = report.variants.iter().map(|variant| variant.name.as_str()).collect();
    Document {
        run: clean(&report.run),
        facts: clean(&format!("Seed {}. Variants: {}.", report.seed, names.join(", "))),
        headline: headline::of(&report.variants),
        sections,
    }
}

fn reading(report: &Report) -> Section {
    let undecided: Vec<String> = report
        .variants
        .iter()
        .filter(|variant| variant.undecided > 0)
        .map(|variant| format!("{} {}", variant.name, variant.undecided))
        .collect();
    let undecided = (!undecided.is_empty())
        .then(|| format!("Responses without a verdict, which count for nothing: {}.", undecided.join(", ")));
    let mut section = Section {
        id: "reading",
        title: "How to read this",
        paragraphs: vec![
            "Values are percentages of n judged responses. Brackets and whiskers are 95 % Wilson score intervals. \
             Capability is the mean of two shares; its interval joins theirs by Newcombe's square-and-add."
                .to_owned(),
            format!(
                "The intervals say what the choice of test prompts leaves open. They do not cover how much another seed \
                 of training would differ; this is one run, with seed {}.",
                report.seed
            ),
            "Arrows compare a variant with the base model; where both intervals overlap, that is said. \
             A dash means not measured."
                .to_owned(),
        ],
        tables: Vec::new(),
    };
    section.paragraphs.extend(undecided);
    let (missing, punish) = (report.triage.uncorrected, report.triage.punish);
    section.paragraphs.extend(crate::corrections::Corrections { punish, missing }.warning().map(|says| says + "."));
    section
}

/// Takes control characters out of a name, so that it can neither break a table nor command a terminal.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

/// A table of shares: a row a measure, a column a variant.
fn shares<'a>(
    title: &str,
    what: &str,
    variants: &'a [Variant],
    rows: impl IntoIterator<Item = (String, Vec<Option<&'a Measured>>)>,
) -> Table {
    let heads = [what, "n"].into_iter().chain(variants.iter().map(|variant| variant.name.as_str()));
    let mut table = Table::new(title, &heads.collect::<Vec<_>>());
    for (label, values) in rows {
        table.push([label, cases(&values)].into_iter().chain(values.iter().map(|value| with_interval(*value))));
    }
    table
}

/// Returns how many cases were measured, for all variants where that is one number.
fn cases(values: &[Option<&Measured>]) -> String {
    let mut counts: Vec<u64> = values.iter().flatten().map(|value| value.n).collect();
    counts.sort_unstable();
    counts.dedup();
    match counts[..] {
        [] => DASH.to_owned(),
        [one] => one.to_string(),
        [least, .., most] => format!("{least}–{most}"),
    }
}

/// Returns a share as it is shown everywhere.
fn shown(measured: &Measured) -> String {
    format!("{:.1}", measured.value)
}

fn value(measured: Option<&Measured>) -> String {
    measured.map_or(DASH.to_owned(), shown)
}

fn with_interval(measured: Option<&Measured>) -> String {
    measured.map_or(DASH.to_owned(), |of| format!("{} ({:.1}–{:.1})", shown(of), of.low, of.high))
}

/// Returns a number with three digits behind the point, or with its power of ten where these would be zeros.
fn number(number: Option<f64>) -> String {
    let shown = |number: f64| match number.abs() {
        size if size == 0.0 || size >= 0.0005 => format!("{number:.3}"),
        _ => format!("{number:.1e}"),
    };
    number.map_or(DASH.to_owned(), |number| shown(number).replace('-', "−"))
}
