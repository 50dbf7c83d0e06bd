//! `run.json`: what the report reads about the run as a whole.

use serde::Serialize;
use shared::Result;
use shared::output::write_json;

use super::{Bill, Context, manifest};
use crate::plan::Work;

#[derive(Serialize)]
struct Summary<'a> {
    run: &'a str,
    seed: u64,
    variants: Vec<&'a str>,
    /// Variants whose records carry impact scores.
    scored: Vec<&'a str>,
    stages: Vec<Stage<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    oracle: Option<Oracle<'a>>,
}

#[derive(Serialize)]
struct Stage<'a> {
    name: &'a str,
    seconds: f64,
    cost_usd: f64,
    /// Done by an earlier submission of the run.
    skipped: bool,
}

#[derive(Serialize)]
struct Oracle<'a> {
    model: &'a str,
    #[serde(flatten)]
    bill: Bill,
}

/// Writes it from the manifests of the stages before the report.
pub(super) fn write(context: &Context) -> Result<()> {
    let mut stages = Vec::new();
    let mut total: Option<Bill> = None;
    for stage in context.plan.stages.iter().filter(|stage| stage.work != Work::Report) {
        let Some(manifest) = manifest::of(&context.run_dir, &stage.name) else { continue };
        let skipped = manifest.incarnation != context.incarnation;
        stages.push(Stage { name: &stage.name, seconds: manifest.seconds, cost_usd: manifest.cost_usd, skipped });
        if let Some(bill) = &manifest.bill {
            total.get_or_insert_default().add(bill);
        }
    }
    let scored = context.file.variants.iter().filter(|variant| variant.is_scored());
    let summary = Summary {
        run: &context.plan.run,
        seed: context.file.run.seed,
        variants: context.file.variants.iter().map(|variant| variant.name.as_str()).collect(),
        scored: scored.map(|variant| variant.name.as_str()).collect(),
        stages,
        oracle: total.map(|bill| Oracle { model: &context.file.oracle.model, bill }),
    };
    write_json(&context.at("run.json"), &summary)
}
