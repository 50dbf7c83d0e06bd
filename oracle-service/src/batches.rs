//! The command `batches`: what a state folder has in batches, and taking it back.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::Serialize;

use crate::api::batch::{self, PaceArgs, Part, Parts, Phase};
use crate::api::endpoint::Endpoints;
use crate::api::engine::{BillNow, Engine, Home, Setup};
use crate::api::ledger::Ledger;
use crate::api::options::DEADLINE;
use crate::api::pacer::PerMinute;
use crate::error::Result;
use crate::progress::Shown;
use crate::{Outcome, oracle, table};
use shared::prices::Prices;

/// Lists the batches of a state folder, or cancels those that are open
///
/// What a cancelled batch has answered is paid for and kept in the ledger; the rest is asked again when a job needs it.
/// A state folder in use must be let go first: stop the job, its batches stay where they are.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder of the ledger
    #[arg(long, value_name = "DIR", default_value = "oracle-state")]
    state: PathBuf,
    /// Cancel all open batches at the API and take back what they have not answered; the key comes from OPENAI_API_KEY
    #[arg(long)]
    cancel: bool,
    /// Price table (TOML) instead of the program's own
    #[arg(long, value_name = "FILE")]
    prices: Option<PathBuf>,
    /// Endpoints (TOML) of the job, whose first one has its batches, instead of OPENAI_API_KEY
    #[arg(long, value_name = "FILE")]
    endpoints: Option<PathBuf>,
    #[command(flatten)]
    pace: PaceArgs,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// A batch, for people and scripts.
#[derive(Debug, Serialize)]
struct Row {
    part: u32,
    attempt: u32,
    job: String,
    state: &'static str,
    requests: u64,
    /// Answered or refused, as far as the API says.
    progressed: u64,
    answered: Option<u64>,
    taken_back: bool,
    batch: Option<String>,
    tag: String,
}

#[derive(Debug, Serialize)]
struct Listed {
    batches: Vec<Row>,
    /// What cancelled batches had answered and not told yet, by API.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    bills: Vec<BillNow>,
}

impl From<Part> for Row {
    fn from(part: Part) -> Row {
        let (batch, answered) = match &part.phase {
            Phase::Running { batch } | Phase::Ended { batch } => (Some(batch.id.clone()), None),
            Phase::Done { answered, .. } => (None, Some(*answered)),
            Phase::Spooled | Phase::Creating { .. } => (None, None),
        };
        Row {
            part: part.number,
            attempt: part.attempt,
            state: part.state(),
            requests: part.requests,
            progressed: part.progressed(),
            answered,
            taken_back: part.taken_back,
            batch,
            tag: part.tag(),
            job: part.job,
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    if !args.state.is_dir() {
        return Err(shared::Error::file(&args.state, "is no folder; name the ledger's by --state").into());
    }
    let home = Home::new(Ledger::open(&args.state)?);
    let parts = Parts::of(&home.ledger);
    let bills = if args.cancel { cancel(args, &home, &parts)? } else { Vec::new() };
    let batches: Vec<Row> = parts.all()?.into_iter().map(Row::from).collect();
    let listed = Listed { batches, bills };
    if args.json {
        table::print_json(&listed)?;
    } else {
        listed.print();
    }
    Ok(Outcome::Complete)
}

fn cancel(args: &Args, home: &Home, parts: &Parts) -> Result<Vec<BillNow>> {
    let urls: BTreeSet<String> = parts.all()?.into_iter().filter(Part::is_open).map(|part| part.base_url).collect();
    let mut bills = Vec::new();
    for url in urls {
        let endpoints = match &args.endpoints {
            Some(file) => Endpoints::load(file, |name| std::env::var(name).ok())?,
            None => Endpoints::single(&url, oracle::key()?, PerMinute::default()),
        };
        let setup = Setup {
            endpoints,
            model: String::new(),
            concurrency: 1,
            prices: Prices::load(args.prices.as_deref())?,
            account: oracle::ACCOUNT.to_owned(),
            bill: None,
            max_cost_usd: None,
            deadline: DEADLINE,
            is_patient: false,
            fault: None,
        };
        let engine = Engine::new(home, setup)?;
        let shown = Shown::new("cancel");
        let cancelled = crate::block_on(batch::cancel(&engine, &args.pace, &|progress| shown.show(progress)));
        shown.finish();
        cancelled?;
        bills.push(engine.bill());
    }
    Ok(bills)
}

impl Listed {
    fn print(&self) {
        if self.batches.is_empty() {
            println!("no batches");
            return;
        }
        println!(
            "{:>5} {:>7} {:<12} {:>10} {:>10}  {:<26} job",
            "part", "attempt", "state", "requests", "done", "batch"
        );
        for row in &self.batches {
            let Row { part, attempt, requests, .. } = row;
            let state = if row.taken_back && row.answered.is_some() { "taken back" } else { row.state };
            let done = row.answered.unwrap_or(row.progressed);
            let batch = row.batch.as_deref().unwrap_or("");
            println!("{part:>5} {attempt:>7} {state:<12} {requests:>10} {done:>10}  {batch:<26} {}", row.job);
        }
        self.bills.iter().for_each(table::print_bill);
    }
}
