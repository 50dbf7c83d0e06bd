//! What was charged, request by request.

use std::collections::BTreeMap;

use serde::Serialize;

use shared::prices::{Prices, Tokens};

/// What was charged. A batch's lines cost half.
#[derive(Debug, Default)]
pub(super) struct Bill {
    online: Sum,
    batch: Sum,
    /// By the hash of the request's body.
    requests: BTreeMap<u128, Charged>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    calls: u64,
    tokens: Tokens,
}

#[derive(Debug, Clone, Copy)]
struct Charged {
    tokens: Tokens,
    times: u64,
    batch_times: u64,
}

/// The bill as it is told.
#[derive(Debug, Serialize)]
pub(crate) struct Told<'a> {
    /// Of online and batch requests together.
    pub(crate) calls: u64,
    pub(crate) prompt_tokens: u64,
    pub(crate) cached_tokens: u64,
    pub(crate) completion_tokens: u64,
    /// How many of the calls were lines of batches, at half the price.
    pub(crate) batch_calls: u64,
    /// None where the price table does not know the model.
    pub(crate) cost_usd: Option<f64>,
    pub(crate) requests: BTreeMap<String, ToldRequest<'a>>,
}

/// One request of it.
#[derive(Debug, Serialize)]
pub(crate) struct ToldRequest<'a> {
    model: &'a str,
    prompt_tokens: u64,
    completion_tokens: u64,
    /// How often it was paid, online or in batches.
    times: u64,
    #[serde(skip_serializing_if = "is_zero")]
    batch_times: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Bill {
    pub(super) fn charge(&mut self, hash: u128, tokens: Tokens, in_batch: bool) {
        let sum = if in_batch { &mut self.batch } else { &mut self.online };
        sum.calls += 1;
        sum.tokens.prompt += tokens.prompt;
        sum.tokens.cached += tokens.cached;
        sum.tokens.completion += tokens.completion;
        let charged = self.requests.entry(hash).or_insert(Charged { tokens, times: 0, batch_times: 0 });
        charged.times += 1;
        charged.batch_times += u64::from(in_batch);
    }

    /// Returns how many requests were charged more than once.
    pub(super) fn paid_twice(&self) -> u64 {
        self.requests.values().filter(|charged| charged.times > 1).count() as u64
    }

    pub(super) fn told<'a>(&self, model: &'a str, prices: &Prices) -> Told<'a> {
        let (online, batch) = (self.online, self.batch);
        let cost = prices.cost(model, online.tokens).zip(prices.cost(model, batch.tokens));
        let requests = self.requests.iter().map(|(hash, charged)| {
            let request = ToldRequest {
                model,
                prompt_tokens: charged.tokens.prompt,
                completion_tokens: charged.tokens.completion,
                times: charged.times,
                batch_times: charged.batch_times,
            };
            (format!("{hash:032x}"), request)
        });
        Told {
            calls: online.calls + batch.calls,
            prompt_tokens: online.tokens.prompt + batch.tokens.prompt,
            cached_tokens: online.tokens.cached + batch.tokens.cached,
            completion_tokens: online.tokens.completion + batch.tokens.completion,
            batch_calls: batch.calls,
            cost_usd: cost.map(|(online, batch)| online + batch / 2.0),
            requests: requests.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_batches_cost_half_and_are_marked() {
        let mut bill = Bill::default();
        let tokens = Tokens { prompt: 1_000_000, cached: 0, completion: 100_000 };
        bill.charge(1, tokens, false);
        bill.charge(1, tokens, false);
        bill.charge(2, tokens, true);
        let prices = Prices::load(None).unwrap();
        let told = bill.told("mock-oracle", &prices);
        assert_eq!((told.calls, told.batch_calls, told.prompt_tokens), (3, 1, 3_000_000));
        assert!((told.cost_usd.unwrap() - 2.5 * 1.4).abs() < 1e-9, "{told:?}");
        let times: Vec<_> = told.requests.values().map(|request| (request.times, request.batch_times)).collect();
        assert_eq!(times, [(2, 0), (1, 1)]);
        assert_eq!(bill.told("unknown", &prices).cost_usd, None);
    }
}
