//! What a job will need before anything is sent: requests, tokens, and the price of each way to ask.
//!
//! What would be asked is found by the code that asks, with the ledger alone to answer it. Tokens are counted by tiktoken
//! on the very requests that would be sent; of many items an evenly spread sample stands for all. The policy's text comes
//! first in every request, so that an API that caches prefixes has it cached after the first.

mod count;

use std::path::PathBuf;

use serde::Serialize;
use shared::rules::Judge;

use crate::api::request::Model;
use crate::correct::CORRECTION_TRIES;
use crate::error::Result;
use crate::items::Work;
use crate::judging::correcting::CorrectionLimit;
use crate::judging::{Judging, PairForm};
use crate::{Outcome, oracle, served, table};
use count::{Asking, Counted};
use shared::prices::{Prices, Tokens};

/// Counts what a triage, its corrections or a judging would ask and what that costs, without asking
///
/// Prints requests, tokens and price for three ways: one by one, one by one where the API caches the policy's text (it
/// comes first in every request; prefixes under 1024 tokens are not cached), and as a batch. With --state, answers that the
/// ledger has are not counted. Nothing is sent.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The command it is for
    #[arg(long, value_enum, default_value_t = Work::Triage)]
    work: Work,
    /// Its input: pairs to triage, triaged records to correct, or responses to judge
    #[arg(long, visible_alias = "responses-json", value_name = "FILE")]
    input_json: PathBuf,
    /// The policy's text
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,
    /// The model, by the API's name
    #[arg(long, value_name = "MODEL", default_value = "gpt-4o")]
    oracle_model: String,
    /// Folder of a ledger, whose answers are not asked for again; no service or command may use it at the moment
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Price table (TOML) instead of the program's own
    #[arg(long, value_name = "FILE")]
    prices: Option<PathBuf>,
    /// Name the answer's limit max_completion_tokens, as newer models want it
    #[arg(long)]
    max_completion_tokens: bool,
    #[command(flatten)]
    judging: Judging,
    /// Triage: do not ask about the rejected response where the chosen one complies
    #[arg(long)]
    skip_rejected_when_chosen_complies: bool,
    /// Triage: judge both responses of a pair in one call
    #[arg(long, conflicts_with = "skip_rejected_when_chosen_complies")]
    one_call_per_pair: bool,
    /// Corrections: longest one in tokens
    #[arg(long, value_name = "N", default_value_t = 512)]
    oracle_max_tokens: u32,
    /// Corrections: write one at most this often
    #[arg(long, value_name = "N", default_value_t = CORRECTION_TRIES, value_parser = clap::value_parser!(u32).range(1..=20))]
    correction_tries: u32,
    /// Judging: rule file of the world the prompts are of; what it tells by itself is not asked about
    #[arg(long, value_name = "FILE")]
    world: Option<PathBuf>,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

/// What a job needs.
#[derive(Debug, Serialize, PartialEq)]
pub(crate) struct Estimate {
    work: Work,
    /// Pairs, PUNISH records, or responses that the world does not tell by itself.
    items: u64,
    /// To be sent.
    requests: u64,
    /// Answers that the ledger has.
    reused: u64,
    prompt_tokens: u64,
    completion_tokens: u64,
    /// Of the prompt tokens, those an API with a cache has there.
    cacheable_tokens: u64,
    /// Items whose tokens were counted; the others are taken to be like them.
    counted_items: u64,
    /// None where the price table does not know the model.
    online_usd: Option<f64>,
    online_cached_usd: Option<f64>,
    batch_usd: Option<f64>,
    prices: String,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let policy = oracle::read_policy(&args.policy)?;
    let prices = Prices::load(args.prices.as_deref())?;
    let model = Model { name: args.oracle_model.clone(), policy, completion_tokens_key: args.max_completion_tokens };
    let ledger = args.state.as_deref().map(|state| served::open_own(state, "estimate")).transpose()?;
    let world = args.world.as_deref().map(Judge::load).transpose()?;
    let asking = Asking {
        model: &model,
        ledger: ledger.as_ref(),
        judging: args.judging,
        pairs: match (args.one_call_per_pair, args.skip_rejected_when_chosen_complies) {
            (true, _) => PairForm::OneCall,
            (_, true) => PairForm::SkipRejected,
            _ => PairForm::Both,
        },
        limit: CorrectionLimit { max_tokens: args.oracle_max_tokens, tries: args.correction_tries },
        world: world.as_ref(),
    };
    let counted = asking.count(args.work, &args.input_json)?;
    let estimate = Estimate::of(args.work, &counted, &model.name, &prices);
    if args.json {
        table::print_json(&estimate)?;
    } else {
        estimate.print(&model.name, &asking);
    }
    Ok(Outcome::Complete)
}

impl Estimate {
    fn of(work: Work, counted: &Counted, model: &str, prices: &Prices) -> Estimate {
        let tokens =
            Tokens { prompt: counted.whole(counted.prompt), cached: 0, completion: counted.whole(counted.completion) };
        // The first request fills the cache.
        let cacheable = counted.whole(counted.cacheable).saturating_sub(counted.first_cacheable);
        let cached = Tokens { cached: cacheable.min(tokens.prompt), ..tokens };
        Estimate {
            work,
            items: counted.items,
            requests: counted.missing,
            reused: counted.reused,
            prompt_tokens: tokens.prompt,
            completion_tokens: tokens.completion,
            cacheable_tokens: cached.cached,
            counted_items: counted.sampled_items,
            online_usd: prices.cost(model, tokens),
            online_cached_usd: prices.cost(model, cached),
            batch_usd: prices.batch_cost(model, tokens),
            prices: prices.origin(),
        }
    }

    fn print(&self, model: &str, asking: &Asking<'_>) {
        println!("{:<22} {:>14}", self.work.items(), self.items);
        println!("{:<22} {:>14}", "requests", self.requests);
        if asking.ledger.is_some() {
            println!("{:<22} {:>14}", "answers reused", self.reused);
        }
        println!("{:<22} {:>14}", "tokens sent", self.prompt_tokens);
        println!("{:<22} {:>14}", "  of these cacheable", self.cacheable_tokens);
        println!("{:<22} {:>14}", "tokens received", self.completion_tokens);
        let price = |usd: Option<f64>| usd.map_or("not known".to_owned(), |usd| format!("${usd:.4}"));
        println!("{:<22} {:>14}", "online", price(self.online_usd));
        println!("{:<22} {:>14}", "online, policy cached", price(self.online_cached_usd));
        println!("{:<22} {:>14}", "batch", price(self.batch_usd));
        println!(
            "tokens of {} {} were counted, the others are taken to be like them; nothing was sent",
            self.counted_items,
            self.work.items()
        );
        match self.work {
            Work::Triage if asking.pairs == PairForm::SkipRejected => {
                println!("at most: a rejected response is not asked about where the chosen one is found to comply");
            }
            Work::Correct => println!(
                "each correction is taken to be accepted at its first try and as long as the reply it replaces; there are \
                 at most {} tries",
                asking.limit.tries
            ),
            Work::Triage | Work::Judge => {}
        }
        match self.online_usd {
            Some(_) => println!("prices: {}", self.prices),
            None => println!(
                "the price table ({}) does not know {model:?}; add it and name the table by --prices",
                self.prices
            ),
        }
    }
}

#[cfg(test)]
mod tests;
