//! How the oracle service is asked until a job is done, as decisions: what an answer or a failure means, when to ask again,
//! what stands on the bill. No I/O and no clock.

use std::time::Duration;

use proto::oracle::Ended;
use proto::oracle::job_event::Event;
use tonic::{Code, Status};

use super::{Bill, Progress};

/// A service that says nothing for so long is given up.
const PATIENCE: Duration = Duration::from_secs(300);
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// Calls after which the account is saved while the work goes on.
const SAVE_EVERY: u64 = 50;

/// Asks for one job, again and again where it must.
pub(crate) struct Asking {
    /// Of the service, for people.
    address: String,
    account: Account,
    tries: u32,
    away: Duration,
}

/// What is done next.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Next {
    /// Listen on; people may be told how far it is.
    Listen(Option<Progress>),
    /// Ask for the same job again after a while.
    Ask {
        after: Duration,
        told: Progress,
    },
    Done(Ended),
    GiveUp(String),
}

impl Asking {
    /// Begins with what the stage's earlier attempts have paid.
    pub(crate) fn new(address: String, paid: Bill) -> Asking {
        let account = Account { saved: paid.calls, bill: paid };
        Asking { address, account, tries: 0, away: Duration::ZERO }
    }

    /// Returns what the stage has cost.
    pub(crate) fn bill(&self) -> &Bill {
        &self.account.bill
    }

    /// Returns whether the bill is to be saved now; it is then taken to be.
    pub(crate) fn is_to_be_saved(&mut self, next: &Next) -> bool {
        let is_due = !matches!(next, Next::Listen(_)) || self.account.bill.calls >= self.account.saved + SAVE_EVERY;
        if is_due {
            self.account.saved = self.account.bill.calls;
        }
        is_due
    }

    /// The service said something.
    pub(crate) fn heard(&mut self, event: Option<Event>) -> Next {
        (self.tries, self.away) = (0, Duration::ZERO);
        match event {
            Some(Event::Progress(now)) => {
                if let Some(bill) = &now.bill {
                    self.account.charge(bill);
                }
                let cost_usd = self.account.bill.cost_usd;
                Next::Listen(Some(Progress { done: now.done, total: now.total, cost_usd, note: note(&now) }))
            }
            Some(Event::Ended(ended)) => {
                if let Some(bill) = &ended.bill {
                    self.account.settle(bill);
                }
                Next::Done(ended)
            }
            None => Next::Listen(None),
        }
    }

    /// The call failed, or ended without a result.
    pub(crate) fn failed(&mut self, status: &Status) -> Next {
        let (address, message) = (&self.address, status.message());
        if !may_come_back(status.code()) {
            return Next::GiveUp(format!("the oracle service: {message}"));
        }
        if self.away >= PATIENCE {
            return Next::GiveUp(format!(
                "no oracle service answers at {address} since {} s ({message}); start it and submit the run again: what \
                 was answered is kept",
                self.away.as_secs(),
            ));
        }
        self.tries += 1;
        let after = wait(self.tries);
        self.away += after;
        let note = format!("waiting for the oracle service at {address} ({message})");
        let cost_usd = self.account.bill.cost_usd;
        Next::Ask { after, told: Progress { note, cost_usd, ..Progress::default() } }
    }
}

/// Returns what a job waits for and what it will cost, for people.
fn note(now: &proto::oracle::Progress) -> String {
    let mut parts = Vec::new();
    if !now.note.is_empty() {
        parts.push(now.note.clone());
    }
    if let Some(projected) = now.projected_usd {
        let cap = now.bill.as_ref().and_then(|bill| bill.cap_usd);
        parts.push(match cap {
            Some(cap) => format!("about ${projected:.2} at the end, the run's limit is ${cap:.2}"),
            None => format!("about ${projected:.2} at the end"),
        });
    }
    parts.join("; ")
}

/// Returns how long to wait before asking for the n-th time again.
fn wait(tries: u32) -> Duration {
    FIRST_WAIT.saturating_mul(1 << (tries - 1).min(10)).min(LONGEST_WAIT)
}

/// Returns whether a failed call says that the service is gone, not that it refuses.
fn may_come_back(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Aborted | Code::Internal)
}

/// What a stage has cost. The service counts what earlier attempts paid, as it comes to their answers again: until it has
/// come to all of them, the account stands where they left it.
struct Account {
    bill: Bill,
    /// Calls on it when it was saved last.
    saved: u64,
}

impl Account {
    /// Takes a bill on its way.
    fn charge(&mut self, bill: &proto::oracle::Bill) {
        if bill.calls >= self.bill.calls {
            self.settle(bill);
        }
    }

    /// Takes the last bill, which is the whole.
    fn settle(&mut self, bill: &proto::oracle::Bill) {
        self.bill = Bill {
            calls: bill.calls,
            reused: bill.reused,
            prompt_tokens: bill.prompt_tokens,
            completion_tokens: bill.completion_tokens,
            cached_tokens: bill.cached_tokens,
            cost_usd: bill.cost_usd,
            prices: bill.prices.clone(),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bill(calls: u64, reused: u64) -> proto::oracle::Bill {
        proto::oracle::Bill { calls, reused, cost_usd: calls as f64, ..Default::default() }
    }

    fn progress(calls: u64, reused: u64) -> Option<Event> {
        Some(Event::Progress(proto::oracle::Progress { bill: Some(bill(calls, reused)), ..Default::default() }))
    }

    #[test]
    fn an_account_stands_until_the_next_attempt_has_come_so_far_and_the_last_bill_is_the_whole() {
        let mut first = Asking::new("url".into(), Bill::default());
        first.heard(progress(40, 10));
        // Cut off; the next attempt comes to its 40 answers, to three more that were paid and not told, and to new ones.
        let mut second = Asking::new("url".into(), first.bill().clone());
        let mut after = |calls, reused| {
            second.heard(progress(calls, reused));
            (second.bill().calls, second.bill().reused, second.bill().cost_usd)
        };
        assert_eq!(after(5, 1), (40, 10, 40.0));
        assert_eq!(after(43, 10), (43, 10, 43.0));
        assert_eq!(after(103, 10), (103, 10, 103.0));
        let ended = Ended { bill: Some(bill(100, 10)), ..Ended::default() };
        assert_eq!(second.heard(Some(Event::Ended(ended.clone()))), Next::Done(ended));
        assert_eq!(second.bill().calls, 100);
    }

    #[test]
    fn a_bill_is_saved_now_and_then_and_whenever_a_call_is_over() {
        let mut asking = Asking::new("url".into(), Bill::default());
        let mut saved = Vec::new();
        for calls in (10..=120).step_by(10) {
            let next = asking.heard(progress(calls, 0));
            if asking.is_to_be_saved(&next) {
                saved.push(calls);
            }
        }
        assert_eq!(saved, [50, 100]);
        let next = asking.failed(&Status::unavailable("gone"));
        assert!(asking.is_to_be_saved(&next));
    }

    #[test]
    fn a_service_that_is_gone_is_asked_again_and_one_that_refuses_is_not() {
        let mut asking = Asking::new("url".into(), Bill::default());
        assert!(matches!(asking.failed(&Status::invalid_argument("no such model")), Next::GiveUp(_)));
        let mut away = Duration::ZERO;
        let problem = loop {
            match asking.failed(&Status::unavailable("refused")) {
                Next::Ask { after, .. } => away += after,
                Next::GiveUp(problem) => break problem,
                other => panic!("{other:?}"),
            }
        };
        assert!(away >= PATIENCE && problem.contains("no oracle service answers at url since"), "{problem}");
        // A word from it begins the count anew.
        asking.heard(None);
        assert!(
            matches!(asking.failed(&Status::unavailable("refused")), Next::Ask { after, .. } if after == FIRST_WAIT)
        );
    }

    #[test]
    fn a_note_says_what_a_job_waits_for_and_what_it_will_cost() {
        let mut now = proto::oracle::Progress::default();
        assert_eq!(note(&now), "");
        now.projected_usd = Some(12.345);
        assert_eq!(note(&now), "about $12.35 at the end");
        now.note = "paused: the quota".into();
        now.bill = Some(proto::oracle::Bill { cap_usd: Some(20.0), ..Default::default() });
        assert_eq!(note(&now), "paused: the quota; about $12.35 at the end, the run's limit is $20.00");
    }

    #[test]
    fn waits_grow_to_a_bound() {
        assert_eq!(wait(1), FIRST_WAIT);
        assert!(wait(3) > wait(2));
        assert_eq!(wait(40), LONGEST_WAIT);
    }
}
