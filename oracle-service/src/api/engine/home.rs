//! What the jobs of a process share: the ledger, endpoints with their limits and health, accounts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::{Out, Setup};
use crate::api::account::{Account, Retuned};
use crate::api::budget::Money;
use crate::api::endpoint::{Endpoint, Spec};
use crate::api::health::LONGEST_OUTAGE;
use crate::api::ledger::Ledger;
use crate::api::time::Time;
use crate::error::Result;

/// What is shared by all jobs of a process.
#[derive(Clone)]
pub(crate) struct Home {
    pub(crate) ledger: Ledger,
    pub(super) out: Out,
    endpoints: Arc<Mutex<HashMap<String, Arc<Endpoint>>>>,
    accounts: Arc<Mutex<HashMap<String, Arc<Account>>>>,
    /// Told whenever limits, money or places may have become free.
    pub(super) changed: Arc<Notify>,
    /// Held by the job that has batches.
    pub(super) batch_turn: Arc<tokio::sync::Mutex<()>>,
    longest_outage: Duration,
    pub(super) time: Time,
}

impl Home {
    pub(crate) fn new(ledger: Ledger) -> Home {
        Home {
            ledger,
            out: Out::default(),
            endpoints: Arc::default(),
            accounts: Arc::default(),
            changed: Arc::default(),
            batch_turn: Arc::default(),
            longest_outage: LONGEST_OUTAGE,
            time: Time::default(),
        }
    }

    /// Has an endpoint that fails waited for so long at most, before the items that are left at it are given up.
    pub(crate) fn waiting_for(self, longest_outage: Duration) -> Home {
        Home { longest_outage, ..self }
    }

    /// Returns whether a job has batches, which no other may touch.
    pub(crate) fn has_batches_under_way(&self) -> bool {
        self.batch_turn.try_lock().is_err()
    }

    /// Has jobs wait in another time than the clock's.
    pub(crate) fn in_time(self, time: Time) -> Home {
        Home { time, ..self }
    }

    /// Returns an account, from the ledger when it is first named.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub(crate) fn account(&self, name: &str) -> Result<Arc<Account>> {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = accounts.get(name) {
            return Ok(account.clone());
        }
        let account = Account::new(name, self.ledger.accounts()?);
        accounts.insert(name.to_owned(), account.clone());
        Ok(account)
    }

    /// Forgets a cap that an operator set in place of another than the job now names: the job's word is the later one.
    ///
    /// # Errors
    /// The ledger cannot be read, or the disk refused.
    pub(crate) async fn heed_cap(&self, account: &str, max_cost_usd: Option<f64>) -> Result<()> {
        let named = max_cost_usd.map(Money::of_usd);
        let store = self.ledger.store();
        if Retuned::of(store, account)?.is_some_and(|retuned| retuned.instead_of != named) {
            store.commit(vec![Retuned::forgotten(account)]).await?;
            self.account(account)?.set_cap(named);
        }
        Ok(())
    }

    /// Returns an endpoint, which all jobs that name it share.
    ///
    /// # Errors
    /// The HTTP client cannot be made.
    pub(super) fn endpoint(&self, spec: &Spec, setup: &Setup) -> Result<Arc<Endpoint>> {
        let mut endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        let identity = format!("{} {:?}", spec.identity(&setup.model), setup.deadline);
        if let Some(endpoint) = endpoints.get(&identity) {
            // Jobs that share a key share its limits; the latest job's word counts.
            if spec.limits() != endpoint.spec.limits() {
                endpoint.lock().pacer.set(spec.limits(), self.time.now());
            }
            return Ok(endpoint.clone());
        }
        let endpoint = Arc::new(Endpoint::new(spec, setup.deadline, self.longest_outage, self.time.now())?);
        endpoints.insert(identity, endpoint.clone());
        Ok(endpoint)
    }
}
