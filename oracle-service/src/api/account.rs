//! Who pays: an account with its cap, kept in the ledger so that neither a crash nor a new start forgets what was spent.
//!
//! An account is written in slots. A request on its way has one to itself, so that the slot's records reach the ledger in
//! the order they were made, each in the same commit as the intent or the answer it belongs to. A slot that is found open
//! is of a request that was on its way at a crash: it may have been charged, and counts as lost.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use shared::store::{Change, Store};

use super::budget::{Budget, Money, Refused};

/// The ledger's tree of accounts.
pub(super) const TREE: &str = "accounts";
/// The ledger's tree of caps that operators have set.
const CAPS: &str = "caps";

/// A cap that an operator has set, in place of the one that the job was given; a job that is given another has a later word.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Retuned {
    /// None takes the limit away.
    pub(super) cap: Option<Money>,
    pub(super) instead_of: Option<Money>,
}

impl Retuned {
    /// Returns what was set for an account.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(super) fn of(store: &Store, account: &str) -> shared::Result<Option<Retuned>> {
        store.get(CAPS, account)
    }

    /// Returns the change that forgets what was set.
    pub(super) fn forgotten(account: &str) -> Change {
        Change::remove(CAPS, account)
    }

    /// Returns the record.
    pub(super) fn change(&self, account: &str) -> Change {
        Change::put(CAPS, account, self)
    }
}

/// An account.
#[derive(Debug)]
pub(crate) struct Account {
    name: String,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    budget: Budget,
    slots: Vec<Slot>,
    free: Vec<usize>,
}

/// What requests that used a slot came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Slot {
    spent: Money,
    #[serde(default)]
    lost: Money,
    /// The worst case of the request on its way; 0 for none.
    #[serde(default)]
    open: Money,
}

/// Money set aside for one request. Dropped, it is given back, and its slot with it.
#[derive(Debug)]
pub(crate) struct Reservation {
    account: Arc<Account>,
    slot: usize,
    worst: Money,
    is_open: bool,
}

impl Account {
    /// Returns an account as its slots in the ledger say: `NAME/NUMBER` and what is there.
    pub(super) fn new(name: &str, stored: impl IntoIterator<Item = (String, Slot)>) -> Arc<Account> {
        let mut state = State { budget: Budget::default(), slots: Vec::new(), free: Vec::new() };
        for (key, mut slot) in stored {
            let Some(number) = key.rsplit_once('/').filter(|(of, _)| *of == name) else { continue };
            let Ok(number) = number.1.parse::<u32>() else { continue };
            let number = number as usize;
            slot.lost += std::mem::take(&mut slot.open);
            state.budget.spent += slot.spent;
            state.budget.lost += slot.lost;
            if state.slots.len() <= number {
                state.slots.resize(number + 1, Slot::default());
            }
            state.slots[number] = slot;
        }
        state.free = (0..state.slots.len()).rev().collect();
        Arc::new(Account { name: name.to_owned(), state: Mutex::new(state) })
    }

    /// Returns how the account stands.
    pub(crate) fn budget(&self) -> Budget {
        self.lock().budget
    }

    /// Returns its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Changes the cap.
    pub(crate) fn set_cap(&self, cap: Option<Money>) {
        self.lock().budget.cap = cap;
    }

    /// Sets money aside.
    ///
    /// # Errors
    /// The cap leaves no room.
    pub(crate) fn reserve(self: &Arc<Account>, worst: Money) -> Result<Reservation, Refused> {
        self.lock().budget.reserve(worst)?;
        Ok(self.reservation(worst))
    }

    /// Sets money aside for what is on its way already, whatever the cap.
    pub(crate) fn incur(self: &Arc<Account>, worst: Money) -> Reservation {
        self.lock().budget.reserved += worst;
        self.reservation(worst)
    }

    fn reservation(self: &Arc<Account>, worst: Money) -> Reservation {
        let mut state = self.lock();
        let slot = state.free.pop().unwrap_or_else(|| {
            state.slots.push(Slot::default());
            state.slots.len() - 1
        });
        Reservation { account: self.clone(), slot, worst, is_open: true }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reservation {
    /// Returns the record to be committed with the intent.
    pub(crate) fn opened(&self) -> Change {
        let worst = self.worst;
        self.change(|_, slot| slot.open = worst)
    }

    /// Settles what the answer cost; the record belongs into the answer's commit, and this may be dropped after it.
    pub(crate) fn settled(&mut self, cost: Money) -> Change {
        self.is_open = false;
        let worst = self.worst;
        self.change(|budget, slot| {
            budget.settle(worst, cost);
            slot.spent += cost;
            slot.open = Money::default();
        })
    }

    /// Counts the whole as lost: the request may have been charged.
    pub(crate) fn lost(&mut self) -> Change {
        self.is_open = false;
        let worst = self.worst;
        self.change(|budget, slot| {
            budget.lose(worst);
            slot.lost += worst;
            slot.open = Money::default();
        })
    }

    /// Returns the record of a request that was not charged and will not be sent again.
    pub(crate) fn closed(&self) -> Change {
        self.change(|_, slot| slot.open = Money::default())
    }

    fn change(&self, make: impl FnOnce(&mut Budget, &mut Slot)) -> Change {
        let mut state = self.account.lock();
        let State { budget, slots, .. } = &mut *state;
        let slot = &mut slots[self.slot];
        make(budget, slot);
        Change::put(TREE, format!("{}/{}", self.account.name, self.slot), slot)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut state = self.account.lock();
        if self.is_open {
            state.budget.release(self.worst);
        }
        state.free.push(self.slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usd(usd: f64) -> Money {
        Money::of_usd(usd)
    }

    #[test]
    fn what_was_open_at_a_crash_counts_as_lost() {
        let stored = [
            ("job/0".to_owned(), Slot { spent: usd(2.0), lost: usd(0.5), open: usd(0.25) }),
            ("job/2".to_owned(), Slot { spent: usd(1.0), ..Slot::default() }),
            ("job 2/0".to_owned(), Slot { spent: usd(8.0), ..Slot::default() }),
            ("job/x".to_owned(), Slot { spent: usd(8.0), ..Slot::default() }),
        ];
        let account = Account::new("job", stored);
        let budget = account.budget();
        assert_eq!((budget.spent, budget.lost, budget.reserved), (usd(3.0), usd(0.75), usd(0.0)));
    }

    #[test]
    fn a_slot_is_one_requests_until_it_is_dropped() {
        let account = Account::new("job", []);
        account.set_cap(Some(usd(1.0)));
        let mut first = account.reserve(usd(0.4)).unwrap();
        let second = account.reserve(usd(0.4)).unwrap();
        assert_ne!(first.slot, second.slot);
        assert!(matches!(account.reserve(usd(0.4)), Err(Refused::Later)));
        let opened = first.opened();
        assert_ne!(opened, first.settled(usd(0.1)));
        drop(second);
        let third = account.reserve(usd(0.8)).unwrap();
        assert_ne!(first.slot, third.slot, "its answer is not committed yet");
        drop(first);
        assert_eq!(account.budget().spent, usd(0.1));
        assert_eq!(account.budget().reserved, usd(0.8));
    }
}
