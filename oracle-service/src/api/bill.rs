//! What a job's answers cost so far.
//!
//! A bill with a name outlives its job: the name is stored with every answer that was put on it, so that the job, cut off
//! and asked for again, finds what it paid itself and counts it as if it were paid now. No clock and no second record is
//! needed, and an answer is on the bill as surely as it is in the ledger.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::budget::{Budget, Money};
use super::ledger::{Answer, Ledger};
use shared::Result;
use shared::prices::Tokens;

/// A running bill.
#[derive(Debug, Default)]
pub(super) struct Bill {
    name: Option<String>,
    /// Keys of the answers that are on it.
    keys: Mutex<HashSet<u128>>,
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
    /// Requests that this job paid, before it was cut off as well as now.
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
    /// Returns a job's bill. What it paid for answers that were moved aside since is on it.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub(super) fn new(name: Option<String>, ledger: &Ledger) -> Result<Bill> {
        let bill = Bill { name, ..Bill::default() };
        if bill.name.is_some() {
            ledger.visit_moved_aside(|answer| {
                if answer.bill == bill.name {
                    bill.count(answer.tokens, answer.cost_usd.map(Money::of_stored));
                }
                Ok(())
            })?;
        }
        Ok(bill)
    }

    /// Returns its name, to be stored with the answers that are put on it.
    pub(super) fn name(&self) -> Option<String> {
        self.name.clone()
    }

    /// Counts an answer that was there already, or that another job asked for at this moment: one that this job paid in
    /// an earlier attempt is put on the bill, once; others are reused.
    pub(super) fn found(&self, key: &str, answer: &Answer) {
        let is_own = self.name.is_some() && answer.bill == self.name;
        let (is_new, is_on_it) = {
            let mut keys = self.keys();
            let is_new = is_own && keys.insert(number(key));
            (is_new, keys.contains(&number(key)))
        };
        if is_new {
            self.count(answer.tokens, answer.cost_usd.map(Money::of_stored));
        } else if !(is_on_it && answer.batch.is_some()) {
            // What came with a batch of this job was counted when it came.
            self.reuse();
        }
    }

    /// Counts an outcome that another job paid.
    pub(super) fn reuse(&self) {
        self.reused.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a paid answer; returns whether it is the first without a price.
    pub(super) fn charge(&self, key: &str, tokens: Tokens, cost: Option<Money>) -> bool {
        self.keys().insert(number(key));
        self.count(tokens, cost)
    }

    fn count(&self, tokens: Tokens, cost: Option<Money>) -> bool {
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

    fn keys(&self) -> MutexGuard<'_, HashSet<u128>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Returns a key as a number: many are kept.
fn number(key: &str) -> u128 {
    u128::from_str_radix(key, 16).expect("the key of an answer is 32 hexadecimal digits")
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

    #[test]
    fn what_an_earlier_attempt_paid_is_on_the_bill_once() {
        let tokens = Tokens { prompt: 10, cached: 4, completion: 2 };
        let of = |bill: Option<&str>| Answer {
            tokens,
            cost_usd: Some(0.0021),
            bill: bill.map(str::to_owned),
            ..Answer::default()
        };
        let counts = |bill: &Bill| {
            let now = bill.now(String::new(), Budget::default());
            (now.calls, now.reused, now.prompt_tokens, now.cost_usd)
        };
        let bill = Bill { name: Some("run/triage".into()), ..Bill::default() };
        bill.charge("a", tokens, Some(Money::of_usd(0.0021)));
        // Paid before the job was cut off, and asked for by two items.
        bill.found("b", &of(Some("run/triage")));
        bill.found("b", &of(Some("run/triage")));
        bill.found("c", &of(Some("run/judge")));
        bill.found("d", &of(None));
        assert_eq!(counts(&bill), (2, 3, 20, 0.0042));

        // Without a name nothing is known of earlier attempts; what came with an own batch is counted already.
        let bill = Bill::default();
        bill.found("a", &of(None));
        bill.charge("b", tokens, Some(Money::of_usd(0.0021)));
        bill.found("b", &Answer { batch: Some("batch_1".into()), ..of(None) });
        assert_eq!(counts(&bill), (1, 1, 10, 0.0021));
    }
}
