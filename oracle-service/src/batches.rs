//! The command `batches`: what a state folder has in batches, and taking it back.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::api::batch::{self, PaceArgs, Part, Parts, Phase};
use crate::api::endpoint::Endpoints;
use crate::api::engine::{BillNow, Engine, Home, Setup};
use crate::api::options::DEADLINE;
use crate::api::pacer::PerMinute;
use crate::error::{Error, Result};
use crate::progress::{Shown, Sink};
use crate::served::{self, Held};
use crate::{Outcome, oracle, table};
use shared::prices::Prices;

/// Lists the batches of a state folder, or cancels those that are open
///
/// What a cancelled batch has answered is paid for and kept in the ledger; the rest is asked again when a job needs it.
/// Where a service has the folder, it lists and cancels them, unless one of its jobs has batches under way: drop that job
/// first, its batches stay where they are.
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
    /// File with the cluster's token, instead of TRACE_TOKEN, where a service has the folder
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// A batch, for people and scripts.
#[derive(Debug, Serialize, Deserialize)]
struct Row {
    part: u32,
    attempt: u32,
    job: String,
    state: String,
    requests: u64,
    /// Answered or refused, as far as the API says.
    progressed: u64,
    answered: Option<u64>,
    taken_back: bool,
    batch: Option<String>,
    tag: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Listed {
    batches: Vec<Row>,
    /// What cancelled batches had answered and not told yet, by API.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
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
            state: part.state().to_owned(),
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

/// How batches are cancelled.
pub(crate) struct Cancel<'a> {
    pub(crate) prices: Option<&'a Path>,
    pub(crate) endpoints: Option<&'a Path>,
    pub(crate) pace: PaceArgs,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let listed = match served::open(&args.state)? {
        Held::Open(ledger) => {
            let home = Home::new(ledger);
            let (prices, endpoints) = (args.prices.as_deref(), args.endpoints.as_deref());
            let cancel = args.cancel.then(|| Cancel { prices, endpoints, pace: args.pace.clone() });
            let shown = Shown::new("cancel");
            let listed = crate::block_on(listed(&home, cancel.as_ref(), &|progress| shown.show(progress)));
            shown.finish();
            listed?
        }
        Held::Served { url, problem } => {
            let path = |path: &Option<PathBuf>| -> Result<String> {
                let Some(path) = path else { return Ok(String::new()) };
                let whole = std::path::absolute(path).map_err(|source| shared::Error::io("find", path, source))?;
                Ok(whole.display().to_string())
            };
            let request = proto::oracle::BatchesRequest {
                cancel: args.cancel,
                prices: path(&args.prices)?,
                endpoints: path(&args.endpoints)?,
                poll_s: args.pace.batch_poll.as_secs_f64(),
            };
            let reply = served::call(&url, &problem, args.token_file.as_deref(), async |mut client| {
                Ok(client.batches(request).await?.into_inner())
            })?;
            let unread = |error: serde_json::Error| Error::Service { url, problem: error.to_string() };
            serde_json::from_str(&reply.listed_json).map_err(unread)?
        }
    };
    if args.json {
        table::print_json(&listed)?;
    } else {
        listed.print();
    }
    Ok(Outcome::Complete)
}

/// Lists the batches of a ledger, after those that are open were cancelled where that is wanted.
///
/// # Errors
/// The ledger cannot be read; an API cannot be used until someone acts.
pub(crate) async fn listed(home: &Home, cancel: Option<&Cancel<'_>>, sink: Sink<'_>) -> Result<Listed> {
    let parts = Parts::of(&home.ledger);
    let mut bills = Vec::new();
    if let Some(cancel) = cancel {
        let open = parts.all()?.into_iter().filter(Part::is_open);
        let urls: BTreeSet<String> = open.map(|part| part.base_url).collect();
        for url in urls {
            let endpoints = match cancel.endpoints {
                Some(file) => Endpoints::load(file, |name| std::env::var(name).ok())?,
                None => Endpoints::single(&url, oracle::key()?, PerMinute::default()),
            };
            let setup = Setup {
                endpoints,
                model: String::new(),
                concurrency: 1,
                prices: Prices::load(cancel.prices)?,
                account: oracle::ACCOUNT.to_owned(),
                bill: None,
                max_cost_usd: None,
                deadline: DEADLINE,
                is_patient: false,
                fault: None,
            };
            let engine = Engine::new(home, setup)?;
            batch::cancel(&engine, &cancel.pace, sink).await?;
            bills.push(engine.bill());
        }
    }
    Ok(Listed { batches: parts.all()?.into_iter().map(Row::from).collect(), bills })
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
            let state = if row.taken_back && row.answered.is_some() { "taken back" } else { &row.state };
            let done = row.answered.unwrap_or(row.progressed);
            let batch = row.batch.as_deref().unwrap_or("");
            println!("{part:>5} {attempt:>7} {state:<12} {requests:>10} {done:>10}  {batch:<26} {}", row.job);
        }
        self.bills.iter().for_each(table::print_bill);
    }
}
