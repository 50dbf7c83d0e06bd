//! What a job's answers cost so far.

use std::sync::atomic::{AtomicU64, Ordering};

use super::budget::{Budget, Money};
use super::prices::Tokens;

/// A running bill.
#[derive(Debug, Default)]
pub(super) struct Bill {
    calls: AtomicU64,
    reused: AtomicU64,
    prompt: AtomicU64,
    cached: AtomicU64,
    completion: AtomicU64,
    cost: AtomicU64,
    unpriced: AtomicU64,
}

/// The bill as numbers.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct BillNow {
    /// Requests answered now.
    pub(crate) calls: u64,
    /// Answers taken from the ledger.
    pub(crate) reused: u64,
    pub(crate) prompt_tokens: u64,
    pub(crate) cached_tokens: u64,
    pub(crate) completion_tokens: u64,
    pub(crate) cost_usd: f64,
    /// Calls to a model that the price table does not know; not in the cost.
    pub(crate) unpriced_calls: u64,
    pub(crate) prices: String,
    /// What the account has paid in all, earlier runs included.
    pub(crate) account_usd: f64,
    /// What may have been charged beyond: requests that were cut off or on their way at a crash, at their worst case.
    pub(crate) lost_usd: f64,
    /// The cap on both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cap_usd: Option<f64>,
}

impl Bill {
    /// Counts an answer from the ledger.
    pub(super) fn reuse(&self) {
        self.reused.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a paid answer; returns whether it is the first without a price.
    pub(super) fn charge(&self, tokens: Tokens, cost: Option<Money>) -> bool {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.prompt.fetch_add(tokens.prompt, Ordering::Relaxed);
        self.cached.fetch_add(tokens.cached, Ordering::Relaxed);
        self.completion.fetch_add(tokens.completion, Ordering::Relaxed);
        match cost {
            Some(cost) => {
                self.cost.fetch_add(cost.picos(), Ordering::Relaxed);
                false
            }
            None => self.unpriced.fetch_add(1, Ordering::Relaxed) == 0,
        }
    }

    pub(super) fn now(&self, prices: String, account: Budget) -> BillNow {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        BillNow {
            calls: of(&self.calls),
            reused: of(&self.reused),
            prompt_tokens: of(&self.prompt),
            cached_tokens: of(&self.cached),
            completion_tokens: of(&self.completion),
            cost_usd: Money::of_picos(of(&self.cost)).usd(),
            unpriced_calls: of(&self.unpriced),
            prices,
            account_usd: account.spent.usd(),
            lost_usd: account.lost.usd(),
            cap_usd: account.cap.map(Money::usd),
        }
    }
}

impl BillNow {
    /// Returns what an item costs where its answers must be paid for; none before anything was paid.
    pub(crate) fn usd_per_item(&self, done: u64) -> Option<f64> {
        if self.calls == 0 || done == 0 {
            return None;
        }
        let answers_per_item = (self.calls + self.reused) as f64 / done as f64;
        Some(self.cost_usd / self.calls as f64 * answers_per_item)
    }

    /// Returns what the job will have cost at its end if the rest is paid for at the rate so far.
    pub(crate) fn projected_usd(&self, done: u64, total: u64) -> Option<f64> {
        let rest = total.saturating_sub(done) as f64;
        Some(self.cost_usd + self.usd_per_item(done)? * rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_reuses_half_is_projected_by_what_it_paid() {
        // 100 items of two answers each: 100 reused, 100 paid at a cent.
        let bill = BillNow { calls: 100, reused: 100, cost_usd: 1.0, ..BillNow::default() };
        assert_eq!(bill.usd_per_item(100), Some(0.02));
        assert_eq!(bill.projected_usd(100, 400), Some(1.0 + 0.02 * 300.0));
        assert_eq!(bill.projected_usd(100, 100), Some(1.0));
        assert_eq!(BillNow::default().projected_usd(0, 10), None);
    }
}
