//! What a triage will need before anything is sent: requests, tokens, and the price of each way to ask.
//!
//! Tokens are counted by tiktoken on the very requests that would be sent; of many pairs an evenly spread sample stands for
//! all. The policy's text comes first in every request, so that an API that caches prefixes has it cached after the first.

use std::path::{Path, PathBuf};

use serde::Serialize;
use shared::record::Record;

use crate::api::request::{Form, Model};
use crate::api::tokens::Counter;
use crate::error::Result;
use crate::{Outcome, oracle, table};
use shared::prices::{Prices, Tokens};

/// Pairs that are counted at most.
const SAMPLE: usize = 2000;
/// Shortest prefix that is cached, and in steps of how many tokens.
const CACHED_FROM: u64 = 1024;
const CACHED_STEP: u64 = 128;
/// The longer of the two answers.
const LONGEST_VERDICT: &str = "NON-COMPLIANT";

/// Counts what a triage would ask and what that costs, without asking
///
/// Prints requests, tokens and price for three ways: one by one, one by one where the API caches the policy's text (it
/// comes first in every request; prefixes under 1024 tokens are not cached), and as a batch. Nothing is sent.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Pairs {prompt, chosen, rejected}: JSON array or JSON lines, .gz and .xz too
    #[arg(long, value_name = "FILE")]
    input_json: PathBuf,
    /// The policy's text
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,
    /// The model, by the API's name
    #[arg(long, value_name = "MODEL", default_value = "gpt-4o")]
    oracle_model: String,
    /// Price table (TOML) instead of the program's own
    #[arg(long, value_name = "FILE")]
    prices: Option<PathBuf>,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

/// What a triage needs.
#[derive(Debug, Serialize, PartialEq)]
pub(crate) struct Estimate {
    pairs: u64,
    /// Both responses of every pair are asked about.
    requests: u64,
    prompt_tokens: u64,
    completion_tokens: u64,
    /// Of the prompt tokens, those an API with a cache has there.
    cacheable_tokens: u64,
    /// Pairs whose tokens were counted; the others are taken to be like them.
    counted_pairs: u64,
    /// None where the price table does not know the model.
    online_usd: Option<f64>,
    online_cached_usd: Option<f64>,
    batch_usd: Option<f64>,
    prices: String,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let policy = oracle::read_policy(&args.policy)?;
    let prices = Prices::load(args.prices.as_deref())?;
    let model = Model { name: args.oracle_model.clone(), policy, completion_tokens_key: false };
    let estimate = of(&args.input_json, &model, &prices)?;
    if args.json {
        table::print_json(&estimate)?;
    } else {
        estimate.print(&model.name);
    }
    Ok(Outcome::Complete)
}

/// Estimates a triage of a file.
///
/// # Errors
/// The file cannot be read.
fn of(input: &Path, model: &Model, prices: &Prices) -> Result<Estimate> {
    let total = shared::input::for_each::<Record>(input, |_, _| Ok(()))?;
    let every = total.div_ceil(SAMPLE).max(1);
    let counter = Counter::new(&model.name);
    let (mut prompt, mut counted) = (0, 0u64);
    shared::input::for_each::<Record>(input, |index, record| {
        if index % every == 0 {
            let asked = record.prompt.prompt_text();
            for response in [Some(&record.chosen), record.rejected.as_ref()].into_iter().flatten() {
                prompt += counter.prompt(&model.verdict(&asked, &response.response(), Form::default()).body);
            }
            counted += 1;
        }
        Ok(())
    })?;
    let pairs = total as u64;
    let requests = 2 * pairs;
    let scaled =
        |tokens: u64| if counted == 0 { 0 } else { (tokens as f64 * pairs as f64 / counted as f64).round() as u64 };
    let tokens =
        Tokens { prompt: scaled(prompt), cached: 0, completion: requests * (counter.text(LONGEST_VERDICT) + 1) };
    // The first request fills the cache.
    let cacheable = cacheable(counter.text(&model.policy)) * requests.saturating_sub(1);
    let cached = Tokens { cached: cacheable.min(tokens.prompt), ..tokens };
    Ok(Estimate {
        pairs,
        requests,
        prompt_tokens: tokens.prompt,
        completion_tokens: tokens.completion,
        cacheable_tokens: cached.cached,
        counted_pairs: counted,
        online_usd: prices.cost(&model.name, tokens),
        online_cached_usd: prices.cost(&model.name, cached),
        batch_usd: prices.batch_cost(&model.name, tokens),
        prices: prices.origin(),
    })
}

/// Returns how much of a prefix is cached.
fn cacheable(prefix: u64) -> u64 {
    if prefix < CACHED_FROM { 0 } else { prefix / CACHED_STEP * CACHED_STEP }
}

impl Estimate {
    fn print(&self, model: &str) {
        println!("{:<22} {:>14}", "pairs", self.pairs);
        println!("{:<22} {:>14}", "requests", self.requests);
        println!("{:<22} {:>14}", "tokens sent", self.prompt_tokens);
        println!("{:<22} {:>14}", "  of these cacheable", self.cacheable_tokens);
        println!("{:<22} {:>14}", "tokens received", self.completion_tokens);
        let price = |usd: Option<f64>| usd.map_or("not known".to_owned(), |usd| format!("${usd:.4}"));
        println!("{:<22} {:>14}", "online", price(self.online_usd));
        println!("{:<22} {:>14}", "online, policy cached", price(self.online_cached_usd));
        println!("{:<22} {:>14}", "batch", price(self.batch_usd));
        println!(
            "tokens of {} pairs were counted, the others are taken to be like them; nothing was sent",
            self.counted_pairs
        );
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
mod tests {
    use super::*;

    fn estimate(policy: String, pairs: usize, model: &str) -> Estimate {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pairs.jsonl");
        let line = "{\"prompt\": \"hello world\", \"chosen\": \"yes\", \"rejected\": \"no\"}\n";
        std::fs::write(&file, line.repeat(pairs)).unwrap();
        let model = Model { name: model.into(), policy, completion_tokens_key: false };
        of(&file, &model, &Prices::load(None).unwrap()).unwrap()
    }

    #[test]
    fn three_ways_to_ask_have_three_prices() {
        let long = "Be kind. ".repeat(700);
        let estimate = estimate(long, 5000, "gpt-4o");
        assert_eq!((estimate.pairs, estimate.requests, estimate.counted_pairs), (5000, 10_000, 1667));
        let (online, cached, batch) =
            (estimate.online_usd.unwrap(), estimate.online_cached_usd.unwrap(), estimate.batch_usd.unwrap());
        assert_eq!(batch, online / 2.0);
        assert!(cached < 0.6 * online && cached > 0.5 * online, "{cached} {online}");
        assert_eq!(estimate.cacheable_tokens % CACHED_STEP, 0);
        let paid = estimate.prompt_tokens as f64 * 2.5e-6 + estimate.completion_tokens as f64 * 10e-6;
        assert!((paid - online).abs() < 1e-6);
    }

    #[test]
    fn short_prefixes_are_not_cached_and_unknown_models_have_no_price() {
        let short = estimate("Be kind.".into(), 3, "gpt-4o");
        assert_eq!((short.cacheable_tokens, short.online_usd), (0, short.online_cached_usd));
        assert_eq!(estimate("Be kind.".into(), 3, "other").online_usd, None);
        assert_eq!([1023, 1024, 1200].map(cacheable), [0, 1024, 1152]);
    }
}
