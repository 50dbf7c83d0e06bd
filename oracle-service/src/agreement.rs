//! How far other ways to ask agree with the judge's own: two calls against one call per pair, the swapped wording, another
//! model. Every answer goes through the ledger, so labels made before cost nothing here, and the other way round.

mod compare;

use std::path::PathBuf;

use futures::{StreamExt, TryStreamExt};
use serde::Serialize;
use shared::python_random::PythonRandom;
use shared::record::Record;

use crate::api::engine::BillNow;
use crate::api::request::{Form, Model, Wording};
use crate::error::Result;
use crate::judging::{Ballot, Judged, Panel};
use crate::oracle::{Asker, Decision, Oracle, OracleArgs};
use crate::progress::{Progress, Shown, Sink};
use crate::{Outcome, table};
use compare::{Comparison, Tally};

/// Measures how far other ways to ask agree with the judge's own
///
/// The judge's own way is two calls a pair in the plain wording. By default one call per pair is compared with it; other
/// ways are named by --against. Shares come with their 95 % Wilson intervals and Cohen's kappa. Responses without a verdict
/// on either side are counted and left out.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Pairs {prompt, chosen, rejected}: JSON array or JSON lines, .gz and .xz too
    #[arg(long, value_name = "FILE")]
    input_json: PathBuf,
    /// Draw this many pairs at random, without replacement, instead of taking all
    #[arg(long, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    sample: Option<usize>,
    /// Seed of the draw
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Ways to compare with: one-call, swapped, or model:NAME for another model of the same API
    #[arg(long, value_name = "WAY", value_delimiter = ',', default_value = "one-call")]
    against: Vec<Way>,
    #[command(flatten)]
    oracle: OracleArgs,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// A way to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Way {
    OneCall,
    Swapped,
    Model(String),
}

impl std::str::FromStr for Way {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Way, String> {
        match text.split_once(':') {
            None if text == "one-call" => Ok(Way::OneCall),
            None if text == "swapped" => Ok(Way::Swapped),
            Some(("model", name)) if !name.is_empty() => Ok(Way::Model(name.to_owned())),
            _ => Err("expected one-call, swapped or model:NAME".to_owned()),
        }
    }
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Way::OneCall => f.write_str("one call per pair"),
            Way::Swapped => f.write_str("swapped wording"),
            Way::Model(name) => f.write_str(name),
        }
    }
}

/// What was measured, for people and scripts.
#[derive(Debug, Serialize)]
struct Report {
    pairs: usize,
    judge: String,
    comparisons: Vec<Comparison>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bill: Option<BillNow>,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let Oracle::Model(asker) = args.oracle.open()? else {
        return Err(shared::Error::Config("rules agree with themselves; give --policy FILE".into()).into());
    };
    let shown = Shown::new("judge-agreement");
    let report = crate::block_on(measure(args, &asker, &|progress| shown.show(progress)));
    shown.finish();
    let report = report?;
    if args.json {
        table::print_json(&report)?;
    } else {
        report.print();
    }
    let complete = report.comparisons.iter().all(Comparison::is_complete);
    Ok(if complete { Outcome::Complete } else { Outcome::Incomplete })
}

async fn measure(args: &Args, asker: &Asker, sink: Sink<'_>) -> Result<Report> {
    let records: Vec<Record> = shared::input::read_all(&args.input_json)?;
    if let Some(index) = records.iter().position(|record| record.rejected.is_none()) {
        return Err(shared::Error::field(&args.input_json, index, "rejected", "is missing").into());
    }
    let drawn = match args.sample {
        Some(sample) if sample < records.len() => PythonRandom::new(args.seed).sample(records.len(), sample),
        _ => (0..records.len()).collect(),
    };
    let total = drawn.len() as u64;
    let mut tallies = vec![Tally::default(); args.against.len()];
    let mut judged = futures::stream::iter(drawn)
        .map(|index| {
            let record = &records[index];
            async move { verdicts(asker, record, &args.against).await }
        })
        .buffered(4 * asker.concurrency);
    let mut done = 0;
    while let Some((own, others)) = judged.try_next().await? {
        for (tally, other) in tallies.iter_mut().zip(others) {
            tally.add(own, other);
        }
        done += 1;
        let (bill, waiting) = (Some(asker.engine.bill()), asker.engine.waiting());
        sink(Progress { done, total, bill, waiting });
    }
    drop(judged);
    let comparisons = args.against.iter().zip(&tallies).map(|(way, tally)| tally.compare(way.to_string())).collect();
    Ok(Report { pairs: done as usize, judge: asker.model.name.clone(), comparisons, bill: Some(asker.engine.bill()) })
}

/// Verdicts on both responses of a pair: whether they comply; none where there is no verdict.
type Verdicts = [Option<bool>; 2];

async fn verdicts(asker: &Asker, record: &Record, ways: &[Way]) -> Result<(Verdicts, Vec<Verdicts>)> {
    let prompt = record.prompt.prompt_text();
    let responses = [record.chosen.response(), record.rejected.clone().unwrap_or_default().response()];
    let responses = [responses[0].as_str(), responses[1].as_str()];
    let form = Form { logprobs: asker.judging.with_logprobs(), ..Form::default() };
    let panel = |form: Form| Panel { forms: vec![form], ..asker.panel(None) };
    let own = two_calls(&panel(form), &prompt, responses).await?;
    let mut others = Vec::with_capacity(ways.len());
    for way in ways {
        others.push(match way {
            Way::OneCall => panel(form).pair(&prompt, responses).await?.map(verdict),
            Way::Swapped => two_calls(&panel(Form { wording: Wording::Swapped, ..form }), &prompt, responses).await?,
            Way::Model(name) => {
                let model = Model { name: name.clone(), ..asker.model.clone() };
                two_calls(&Panel { model: &model, ..panel(form) }, &prompt, responses).await?
            }
        });
    }
    Ok((own, others))
}

async fn two_calls(panel: &Panel<'_>, prompt: &str, [chosen, rejected]: [&str; 2]) -> Result<Verdicts> {
    let (chosen, rejected) = futures::try_join!(panel.response(prompt, chosen), panel.response(prompt, rejected))?;
    Ok([chosen, rejected].map(verdict))
}

fn verdict(ballots: Vec<Ballot>) -> Option<bool> {
    match Judged::voted(String::new(), ballots, None).decision {
        Decision::Compliant => Some(true),
        Decision::Violates => Some(false),
        _ => None,
    }
}

impl Report {
    fn print(&self) {
        println!("{} pairs; compared with {}, two calls a pair, plain wording", self.pairs, self.judge);
        println!("{:<22} {:<10} {:>7} {:>6}  {:<20} {:>7}", "way", "of", "n", "left", "agreement %", "kappa");
        for comparison in &self.comparisons {
            comparison.print();
        }
        if let Some(bill) = &self.bill {
            table::print_bill(bill);
        }
    }
}
