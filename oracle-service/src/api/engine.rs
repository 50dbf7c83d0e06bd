//! Sends requests: known answers from the ledger, others once, many at a time, again where a failure may pass.
//!
//! A request that waits for its next try holds no place in line, so that others go on meanwhile. Equal requests of one
//! process are sent once: within a job they wait for the same answer, and of two jobs' the one that is let out first is.

mod batched;
mod home;
mod outing;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use shared::store::Change;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::account::{Account, Reservation, Retuned};
use super::batch::Front;
use super::bill::Bill;
pub(crate) use super::bill::BillNow;
use super::budget::Money;
use super::endpoint::Endpoints;
use super::gate::{Admission, EndpointView, Gate, Pause, Retune, Size};
use super::ledger::{Answer, Ledger};
use super::request::Request;
use super::retry::{self, Course, TRIES, Trouble};
use super::time::Time;
use super::tokens::{self, Counter};
use crate::error::{Error, Result};
use crate::fault::{self, Fault};
use batched::{Batches, Note};
pub(crate) use home::Home;
use outing::Out;
use shared::prices::{Prices, Tokens};

/// Requests that are asked for, by key: who asks the same waits for the same answer.
type InFlight = Arc<Mutex<HashMap<String, watch::Receiver<Option<Asked>>>>>;

/// What asking came to.
#[derive(Debug, Clone)]
// Nearly all are answers; a box each would only cost.
#[allow(clippy::large_enum_variant)]
pub(crate) enum Asked {
    Answered(Answer),
    /// There is no answer for this item, and why.
    Dead(String),
}

/// Answers questions of one job. Once it is dropped nothing new is sent; answers on their way are still stored.
pub(crate) struct Engine {
    shared: Arc<Shared>,
    batches: Batches,
    _dropped: DropGuard,
}

/// How a job asks.
pub(crate) struct Setup {
    pub(crate) endpoints: Endpoints,
    pub(crate) model: String,
    /// Requests on their way at once.
    pub(crate) concurrency: usize,
    pub(crate) prices: Prices,
    /// Who pays.
    pub(crate) account: String,
    /// Name of the job's bill where the job may be asked for again; what it paid before is on it.
    pub(crate) bill: Option<String>,
    /// What the account may pay in all; what was set before stays where none is given.
    pub(crate) max_cost_usd: Option<f64>,
    /// From sending a request to the last byte of its answer.
    pub(crate) deadline: Duration,
    /// Whether it waits where someone must act, instead of ending.
    pub(crate) is_patient: bool,
    /// A death on plan, for tests.
    pub(crate) fault: Option<Fault>,
}

struct Shared {
    ledger: Ledger,
    front: Front,
    note: Note,
    /// Of this job, queued ones too.
    in_flight: InFlight,
    /// Of all jobs, those that are out.
    out: Out,
    gate: Arc<Gate>,
    counter: Counter,
    account: Arc<Account>,
    /// The job's own limit on the account.
    max_cost: Option<Money>,
    prices: Prices,
    bill: Bill,
    fault: Option<Fault>,
    time: Time,
    dropped: CancellationToken,
}

/// A hold on a job from outside, to look at it and to change how it runs.
#[derive(Clone)]
pub(crate) struct Handle(Arc<Shared>);

impl Engine {
    /// Returns an engine for a job.
    ///
    /// # Errors
    /// The HTTP client cannot be made, account or bill cannot be read, or there is a cap and no price to keep it by.
    pub(crate) fn new(home: &Home, setup: Setup) -> Result<Engine> {
        let account = home.account(&setup.account)?;
        let max_cost = setup.max_cost_usd.map(Money::of_usd);
        match Retuned::of(home.ledger.store(), &setup.account)?.filter(|retuned| retuned.instead_of == max_cost) {
            Some(retuned) => account.set_cap(retuned.cap),
            None if max_cost.is_some() => account.set_cap(max_cost),
            None => {}
        }
        let dropped = CancellationToken::new();
        let endpoints = setup.endpoints.iter().map(|spec| home.endpoint(spec, &setup)).collect::<Result<Vec<_>>>()?;
        let gate = Gate::new(
            endpoints,
            account.clone(),
            setup.concurrency.max(1),
            setup.is_patient,
            home.time,
            home.changed.clone(),
            dropped.clone(),
        );
        Ok(Engine {
            _dropped: dropped.clone().drop_guard(),
            batches: Batches::new(home, &setup)?,
            shared: Arc::new(Shared {
                ledger: home.ledger.clone(),
                front: Front::default(),
                note: Note::default(),
                in_flight: InFlight::default(),
                out: home.out.clone(),
                gate,
                counter: Counter::new(&setup.model),
                account,
                max_cost,
                prices: setup.prices,
                bill: Bill::new(setup.bill, &home.ledger)?,
                fault: setup.fault,
                time: home.time,
                dropped,
            }),
        })
    }

    /// Returns the answer to a request, from the ledger or from the API.
    ///
    /// # Errors
    /// No request can succeed until someone acts: the key, the quota, the address, the disk.
    pub(crate) async fn ask(&self, request: &Request) -> Result<Asked> {
        let shared = &self.shared;
        let key = request.key();
        loop {
            if let Some(answer) = shared.ledger.answer(&key)? {
                shared.found(&key, &answer);
                return Ok(Asked::Answered(answer));
            }
            shared.front.pass(&key, request).await?;
            // Others ask the same at this moment: one request serves all.
            let (sender, mut other) = {
                let mut in_flight = shared.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
                match in_flight.get(&key) {
                    Some(other) => (None, other.clone()),
                    None => {
                        let (sender, receiver) = watch::channel(None);
                        in_flight.insert(key.clone(), receiver.clone());
                        (Some(sender), receiver)
                    }
                }
            };
            let Some(sender) = sender else {
                match other.wait_for(Option::is_some).await.map(|found| found.clone()) {
                    Ok(Some(asked)) => {
                        match &asked {
                            Asked::Answered(answer) => shared.bill.found(&key, answer),
                            Asked::Dead(_) => shared.bill.reuse(),
                        }
                        return Ok(asked);
                    }
                    // It came to nothing there; here it may.
                    _ => continue,
                }
            };
            // A task of its own: an answer on its way is paid for, whether its job still wants it or not.
            let (own, key, request) = (shared.clone(), key.clone(), request.clone());
            let sending = tokio::spawn(async move {
                let outcome = own.send(&key, &request).await;
                own.in_flight.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
                if let Ok(Some(asked)) = &outcome {
                    sender.send_replace(Some(asked.clone()));
                }
                outcome
            });
            let outcome = match sending.await {
                Ok(outcome) => outcome?,
                // The process ends: whoever asked goes with it.
                Err(error) if error.is_cancelled() => None,
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            };
            return Ok(outcome.unwrap_or(Asked::Dead("its job was dropped".into())));
        }
    }

    /// Returns what the job cost so far.
    pub(crate) fn bill(&self) -> BillNow {
        self.shared.bill()
    }

    /// Returns what requests wait for, where one does.
    pub(crate) fn waiting(&self) -> Option<String> {
        self.shared.waits()
    }

    /// Stops sending for a canary's alarm and waits until the job is resumed.
    ///
    /// # Errors
    /// The job does not wait, or is not wanted any more.
    pub(crate) async fn alarmed(&self, alarm: String) -> Result<()> {
        let gate = &self.shared.gate;
        if !self.is_patient() {
            return Err(Error::Paused(format!("{alarm}, or leave --canary-stop out to go on all the same")));
        }
        gate.alarm(alarm.clone());
        if gate.resumed().await { Ok(()) } else { Err(Error::Paused(alarm)) }
    }

    /// Returns a hold on the job.
    pub(crate) fn handle(&self) -> Handle {
        Handle(self.shared.clone())
    }
}

impl Handle {
    /// Stops sending; what is on its way is still stored.
    pub(crate) fn pause(&self) {
        self.0.gate.pause();
    }

    /// Goes on.
    pub(crate) fn resume(&self) {
        self.0.gate.resume();
    }

    /// Changes limits. Returns whether the endpoint it names is there.
    pub(crate) fn retune(&self, retune: &Retune) -> bool {
        self.0.gate.retune(retune, self.0.time.now())
    }

    /// Changes the cap of the job's account. The record that keeps it belongs into the ledger.
    pub(crate) fn set_cap(&self, cap_usd: Option<f64>) -> Change {
        let cap = cap_usd.map(Money::of_usd);
        self.0.account.set_cap(cap);
        self.0.gate.look_again();
        Retuned { cap, instead_of: self.0.max_cost }.change(self.0.account.name())
    }

    /// Returns why the job does not go on, where it does not.
    pub(crate) fn paused(&self) -> Option<Pause> {
        self.0.gate.paused()
    }

    /// Returns what requests wait for, where one does.
    pub(crate) fn waits(&self) -> Option<String> {
        self.0.waits()
    }

    /// Returns what the job cost so far.
    pub(crate) fn bill(&self) -> BillNow {
        self.0.bill()
    }

    /// Returns the requests on their way, and how many there may be.
    pub(crate) fn in_flight(&self) -> (usize, usize) {
        self.0.gate.in_flight()
    }

    /// Returns how the job's endpoints are doing.
    pub(crate) fn endpoints(&self) -> Vec<EndpointView> {
        self.0.gate.endpoints(self.0.time.now())
    }
}

impl Shared {
    /// Sends a request until it has an answer or is given up; none where the job was dropped before it was sent.
    async fn send(&self, key: &str, request: &Request) -> Result<Option<Asked>> {
        let model = request.body["model"].as_str().unwrap_or_default();
        let (item, worst) = (retry::word(key), self.worst(model, &request.body)?);
        let mut money: Option<Reservation> = None;
        let (mut tries, mut attempts, mut has_intent) = (0, 0, false);
        let mut first_failure: Option<Instant> = None;
        loop {
            let counted = self.gate.counts_tokens().then(|| self.counter.prompt(&request.body));
            let size = Size { tokens: self.counter.likely(counted, &request.body), worst };
            let admission = self.gate.admit(size, &mut money).await;
            let mut ticket = match admission {
                Admission::Go(ticket) => ticket,
                Admission::Dropped | Admission::Stopped(_) => {
                    // The intent of another job's equal request stays.
                    let _outing = self.out.begin_after_others(key).await;
                    self.withdraw(key, money.as_ref().filter(|_| has_intent)).await?;
                    return match admission {
                        Admission::Stopped(pause) => Err(Error::Paused(pause.to_string())),
                        _ => Ok(None),
                    };
                }
            };
            let outing = match self.out.begin(key) {
                Ok(outing) => outing,
                Err(other) => {
                    // Another job has just sent the same.
                    drop(ticket);
                    other.back().await;
                    continue;
                }
            };
            // It may have stored it while this one waited to be let out.
            if let Some(answer) = self.ledger.answer(key)? {
                self.withdraw(key, money.as_ref().filter(|_| has_intent)).await?;
                self.bill.found(key, &answer);
                return Ok(Some(Asked::Answered(answer)));
            }
            let paid = money.as_mut().expect("a request is admitted with its money");
            // Before every try: another job that gave the same question up may have taken the intent back meanwhile.
            fault::pass(self.fault.as_ref(), "online.intend");
            self.ledger.intend(key, model, now_ms(), paid.opened()).await?;
            has_intent = true;
            attempts += 1;
            let mut body = request.body.clone();
            let spec = &ticket.endpoint().spec;
            if let Some(alias) = &spec.model {
                body["model"] = alias.clone().into();
            }
            let endpoint = spec.name.clone();
            fault::pass(self.fault.as_ref(), "online.send");
            let exchange = ticket.endpoint().api.complete(body, now_ms).await;
            fault::pass(self.fault.as_ref(), "online.settle");
            let trouble = match exchange.outcome {
                Ok(mut answer) => {
                    let used = answer.tokens.prompt + answer.tokens.completion;
                    ticket.answered(exchange.has_usage.then_some(used as f64), &exchange.heard);
                    self.counter.reported(counted.unwrap_or(0), answer.tokens.prompt);
                    // What does not say what it took is taken for the worst.
                    let cost = if exchange.has_usage { self.cost(&answer, model) } else { Some(worst) };
                    answer.attempts = attempts;
                    answer.endpoint = endpoint;
                    answer.cost_usd = cost.map(Money::usd);
                    answer.bill = self.bill.name();
                    self.ledger.settle(key, &answer, paid.settled(cost.unwrap_or_default())).await?;
                    fault::pass(self.fault.as_ref(), "online.count");
                    if self.bill.charge(key, answer.tokens, cost) {
                        tracing::warn!("the price table does not know model {model:?}; its cost is counted as 0");
                    }
                    return Ok(Some(Asked::Answered(answer)));
                }
                Err(trouble) => trouble,
            };
            let last = trouble.to_string();
            if trouble.may_be_charged() {
                self.ledger.withdraw(key, Some(paid.lost())).await?;
                (money, has_intent) = (None, false);
            }
            match trouble.course() {
                Course::Slower => {
                    ticket.slowed(&exchange.heard);
                    continue;
                }
                Course::Halt(reason) => {
                    ticket.halted(&reason);
                    continue;
                }
                Course::GiveUpItem(reason) => {
                    ticket.declined();
                    self.withdraw(key, money.as_ref()).await?;
                    return Ok(Some(Asked::Dead(reason)));
                }
                // A server that cannot be reached is no item's fault.
                Course::Again if matches!(trouble, Trouble::Connection { is_sent: false, .. }) => {
                    ticket.unreached(&last)
                }
                Course::Again => {
                    first_failure.get_or_insert_with(|| self.time.now());
                    tries += u32::from(ticket.failed(item, &last));
                }
            }
            if tries >= TRIES {
                // Nothing ever came back: the address is wrong or the server away, and no other item will fare better.
                if matches!(trouble, Trouble::Connection { .. }) && ticket.gone(&last) {
                    tries = 0;
                    continue;
                }
                if !ticket.gives_up(first_failure.unwrap_or_else(|| self.time.now()), &last) {
                    // An outage is nobody's fault: its tries begin anew.
                    (tries, first_failure) = (0, None);
                    continue;
                }
                self.withdraw(key, money.as_ref()).await?;
                return Ok(Some(Asked::Dead(format!("no answer after {TRIES} tries, the last time: {last}"))));
            }
            drop((ticket, outing));
            let pause = retry::wait(key, tries + 1);
            tracing::debug!(attempts, ?pause, %last, "a request failed and is tried again");
            tokio::select! {
                () = self.time.sleep(pause) => {}
                // The gate sees that it was dropped.
                () = self.dropped.cancelled() => {}
            }
        }
    }

    async fn withdraw(&self, key: &str, money: Option<&Reservation>) -> Result<()> {
        match money {
            Some(money) => Ok(self.ledger.withdraw(key, Some(money.closed())).await?),
            None => Ok(()),
        }
    }

    fn bill(&self) -> BillNow {
        self.bill.now(self.prices.origin(), self.account.budget())
    }

    fn waits(&self) -> Option<String> {
        let note = self.note.lock().unwrap_or_else(PoisonError::into_inner).clone();
        note.or_else(|| self.gate.waits())
    }

    /// Counts an answer that the ledger had. A walk that only gathers questions comes again.
    fn found(&self, key: &str, answer: &Answer) {
        if !self.front.is_walking() {
            self.bill.found(key, answer);
        }
    }

    /// Returns what a request costs at most.
    fn worst(&self, model: &str, body: &Value) -> Result<Money> {
        let tokens = Tokens { prompt: tokens::most(body), cached: 0, completion: tokens::completion_limit(body) };
        match self.prices.cost(model, tokens) {
            Some(usd) => Ok(Money::of_usd(usd)),
            None if self.account.budget().cap.is_some() => Err(shared::Error::Config(format!(
                "the price table does not know model {model:?}, so that no cost limit can be kept; add it to the table \
                 (--prices FILE)"
            ))
            .into()),
            None => Ok(Money::default()),
        }
    }

    fn cost(&self, answer: &Answer, asked_model: &str) -> Option<Money> {
        let cost = self.prices.cost(&answer.model, answer.tokens);
        cost.or_else(|| self.prices.cost(asked_model, answer.tokens)).map(Money::of_usd)
    }
}

/// Returns the time in Unix milliseconds.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis() as u64
}

#[cfg(test)]
mod tests;
