//! The report as one page that needs nothing else: no network, no script. Pure: a report and its document in, HTML out.
//!
//! Words and tables are the document's, laid out by `report.html`; [`super::figures`] adds the plots. The template escapes
//! everything but the plots, which escape their own texts.

use minijinja::{AutoEscape, Environment, UndefinedBehavior, context};
use serde::Serialize;
use shared::{Error, Result};

use super::document::{Document, clean};
use super::{Report, figures};

const PAGE: &str = include_str!("report.html");
const STYLE: &str = include_str!("report.css");

/// A variant's mark for the legend.
#[derive(Debug, Serialize)]
struct Entry {
    name: String,
    class: String,
    shape: String,
    /// Whether it has curves.
    trained: bool,
}

pub(super) fn of(report: &Report, document: &Document) -> Result<String> {
    let styles = figures::styles(&report.variants);
    let entries = report.variants.iter().zip(&styles).map(|(variant, style)| Entry {
        name: clean(&variant.name),
        class: style.class(),
        shape: style.shape((7.0, 7.0)),
        trained: variant.loss_curves.is_some(),
    });
    let legend: Vec<Entry> = entries.collect();
    let figures = figures::of(report, &styles);
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment
        .render_str(PAGE, context! { document, legend, figures, style => STYLE })
        .map_err(|error| Error::Config(format!("the report's page: {error:#}")))
}
