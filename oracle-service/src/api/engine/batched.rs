//! What batches need of an engine: where they go, who pays, and where their answers count.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Answer, Engine, Home, Money, Result, Setup, Tokens};
use crate::api::account::{Account, Reservation};
use crate::api::batch::{Api, Front, Parts};
use crate::api::budget::Refused;
use crate::api::time::Time;

/// What first rounds in batches need.
pub(super) struct Batches {
    home: Home,
    api: Api,
    parts: Parts,
    /// The name of the account that pays.
    account: String,
    base_url: String,
    alias: Option<String>,
    is_patient: bool,
}

/// How batches are doing, for people; it stands before what online requests wait for.
pub(super) type Note = Mutex<Option<String>>;

impl Batches {
    /// Returns the batches of a job. They go to its first endpoint.
    pub(super) fn new(home: &Home, setup: &Setup) -> Result<Batches> {
        let spec = setup.endpoints.iter().next().expect("a job has an endpoint");
        Ok(Batches {
            api: Api::new(spec)?,
            parts: Parts::of(&home.ledger),
            home: home.clone(),
            account: setup.account.clone(),
            base_url: spec.base_url.trim_end_matches('/').to_owned(),
            alias: spec.model.clone(),
            is_patient: setup.is_patient,
        })
    }
}

impl Engine {
    /// Returns where requests without an answer go.
    pub(in crate::api) fn front(&self) -> &Front {
        &self.shared.front
    }

    /// Returns whether the job walks through its items to gather batches.
    pub(crate) fn is_gathering(&self) -> bool {
        self.front().is_walking()
    }

    /// Returns the parts of the ledger.
    pub(in crate::api) fn parts(&self) -> &Parts {
        &self.batches.parts
    }

    /// Returns the API of files and batches.
    pub(in crate::api) fn batch_api(&self) -> &Api {
        &self.batches.api
    }

    /// Returns what the job holds that has batches.
    pub(in crate::api) fn batch_turn(&self) -> &tokio::sync::Mutex<()> {
        &self.batches.home.batch_turn
    }

    /// Returns the address that batches go to.
    pub(in crate::api) fn base_url(&self) -> &str {
        &self.batches.base_url
    }

    /// Returns what the model is called there, where it has another name.
    pub(in crate::api) fn alias(&self) -> Option<&str> {
        self.batches.alias.as_deref()
    }

    /// Returns the name of the account that pays.
    pub(in crate::api) fn account_name(&self) -> &str {
        &self.batches.account
    }

    /// Returns whether the job waits where someone must act, instead of ending.
    pub(in crate::api) fn is_patient(&self) -> bool {
        self.batches.is_patient
    }

    /// Returns whether an operator or an alarm has paused the job.
    pub(in crate::api) fn is_paused(&self) -> bool {
        self.shared.gate.is_paused()
    }

    /// Returns the time in which the job waits.
    pub(in crate::api) fn time(&self) -> Time {
        self.shared.time
    }

    /// Tells how batches are doing.
    pub(in crate::api) fn note(&self, note: Option<String>) {
        *self.shared.note.lock().unwrap_or_else(PoisonError::into_inner) = note;
    }

    /// Returns what tokens cost online and in batches; none where the price table does not know the model.
    pub(in crate::api) fn prices_of(&self, model: &str, tokens: Tokens) -> Option<(f64, f64)> {
        self.shared.prices.cost(model, tokens).zip(self.shared.prices.batch_cost(model, tokens))
    }

    /// Sets aside what a batch may cost; what is on its way already, whatever the cap.
    ///
    /// # Errors
    /// The account cannot be read; there is a cap and no price to keep it by.
    pub(in crate::api) fn reserve_batch(
        &self,
        account: &str,
        model: &str,
        worst: Tokens,
        on_its_way: bool,
    ) -> Result<std::result::Result<Reservation, Refused>> {
        let account: Arc<Account> = self.batches.home.account(account)?;
        let worst = match self.prices_of(model, worst) {
            Some((_, usd)) => Money::of_usd(usd),
            None if account.budget().cap.is_some() && !on_its_way => {
                let problem =
                    format!("the price table does not know model {model:?}, so that no cost limit can be kept");
                return Err(shared::Error::Config(problem + "; add it to the table (--prices FILE)").into());
            }
            None => Money::default(),
        };
        Ok(if on_its_way { Ok(account.incur(worst)) } else { account.reserve(worst) })
    }

    /// Prices an answer that came with a batch.
    pub(in crate::api) fn price_batched(&self, answer: &Answer, asked_model: &str) -> Option<Money> {
        let price = |model: &str| self.shared.prices.batch_cost(model, answer.tokens);
        price(&answer.model).or_else(|| price(asked_model)).map(Money::of_usd)
    }

    /// Returns the name of the job's bill, where it has one.
    pub(in crate::api) fn bill_name(&self) -> Option<String> {
        self.shared.bill.name()
    }

    /// Counts an answer that came with a batch and is in the ledger.
    pub(in crate::api) fn count_batched(&self, key: &str, answer: &Answer) {
        if self.shared.bill.charge(key, answer.tokens, answer.cost_usd.map(Money::of_usd)) {
            tracing::warn!("the price table does not know model {:?}; its cost is counted as 0", answer.model);
        }
    }
}
