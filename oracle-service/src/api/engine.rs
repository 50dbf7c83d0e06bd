//! Sends requests: known answers from the ledger, others once, many at a time, again where a failure may pass.
//!
//! A request that waits for its next try holds no place in line, so that others go on meanwhile. Equal requests of one
//! process are sent once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{Semaphore, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::ledger::{Answer, Ledger};
use super::openai::OpenAi;
use super::prices::{Prices, Tokens};
use super::request::Request;
use super::retry::{self, Course, TRIES};
use crate::error::{Error, Result};

/// Requests on their way, by key: who asks the same waits for the same answer.
type InFlight = Arc<Mutex<HashMap<String, watch::Receiver<Option<Asked>>>>>;

/// What asking came to.
#[derive(Debug, Clone)]
pub(crate) enum Asked {
    Answered(Answer),
    /// There is no answer for this item, and why.
    Dead(String),
}

/// Answers questions of one job. Once it is dropped nothing new is sent; answers on their way are still stored.
pub(crate) struct Engine {
    shared: Arc<Shared>,
    _dropped: DropGuard,
}

struct Shared {
    ledger: Ledger,
    in_flight: InFlight,
    api: OpenAi,
    base_url: String,
    places: Semaphore,
    prices: Prices,
    bill: Bill,
    waiting: Mutex<Option<String>>,
    dropped: CancellationToken,
}

/// What a job cost so far.
#[derive(Debug, Default)]
struct Bill {
    calls: AtomicU64,
    reused: AtomicU64,
    prompt: AtomicU64,
    cached: AtomicU64,
    completion: AtomicU64,
    /// In millionths of a millionth of a USD, so that sums do not depend on their order.
    cost: AtomicU64,
    unpriced: AtomicU64,
}

/// The bill as numbers.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
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
}

/// What is shared by all jobs of a process.
#[derive(Clone)]
pub(crate) struct Home {
    pub(crate) ledger: Ledger,
    in_flight: InFlight,
}

impl Home {
    pub(crate) fn new(ledger: Ledger) -> Home {
        Home { ledger, in_flight: InFlight::default() }
    }
}

impl Engine {
    /// Returns an engine for a job.
    ///
    /// # Errors
    /// The HTTP client cannot be made.
    pub(crate) fn new(home: &Home, base_url: &str, key: &str, concurrency: usize, prices: Prices) -> Result<Engine> {
        let dropped = CancellationToken::new();
        Ok(Engine {
            _dropped: dropped.clone().drop_guard(),
            shared: Arc::new(Shared {
                ledger: home.ledger.clone(),
                in_flight: home.in_flight.clone(),
                api: OpenAi::new(base_url, key)?,
                base_url: base_url.to_owned(),
                places: Semaphore::new(concurrency.max(1)),
                prices,
                bill: Bill::default(),
                waiting: Mutex::new(None),
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
                shared.bill.reused.fetch_add(1, Ordering::Relaxed);
                return Ok(Asked::Answered(answer));
            }
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
                        shared.bill.reused.fetch_add(1, Ordering::Relaxed);
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
            let outcome = sending.await.expect("sending does not panic")?;
            return Ok(outcome.unwrap_or(Asked::Dead("its job was dropped".into())));
        }
    }

    /// Returns what the job cost so far.
    pub(crate) fn bill(&self) -> BillNow {
        let bill = &self.shared.bill;
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        BillNow {
            calls: of(&bill.calls),
            reused: of(&bill.reused),
            prompt_tokens: of(&bill.prompt),
            cached_tokens: of(&bill.cached),
            completion_tokens: of(&bill.completion),
            cost_usd: of(&bill.cost) as f64 / 1e12,
            unpriced_calls: of(&bill.unpriced),
            prices: self.shared.prices.origin(),
        }
    }

    /// Returns what requests wait for, where one does.
    pub(crate) fn waiting(&self) -> Option<String> {
        self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Shared {
    /// Sends a request until it has an answer or is given up; none where the job was dropped before it was sent.
    async fn send(&self, key: &str, request: &Request) -> Result<Option<Asked>> {
        // Another job may have stored it between the look and the wait.
        if let Some(answer) = self.ledger.answer(key)? {
            self.bill.reused.fetch_add(1, Ordering::Relaxed);
            return Ok(Some(Asked::Answered(answer)));
        }
        let model = request.body["model"].as_str().unwrap_or_default();
        let mut last = String::new();
        for number in 1..=TRIES {
            let place = self.places.acquire().await.expect("places are never closed");
            if self.dropped.is_cancelled() {
                self.ledger.withdraw(key).await?;
                return Ok(None);
            }
            self.ledger.intend(key, model, now_ms()).await?;
            let outcome = self.api.complete(&request.body, now_ms).await;
            let trouble = match outcome {
                Ok(answer) => {
                    self.ledger.settle(key, &answer).await?;
                    self.count(&answer, model);
                    self.waits(None);
                    return Ok(Some(Asked::Answered(answer)));
                }
                Err(trouble) => trouble,
            };
            drop(place);
            last = trouble.to_string();
            let pause = match trouble.course() {
                Course::Again(server) => retry::wait(key, number + 1, server),
                Course::GiveUpItem(reason) => {
                    self.ledger.withdraw(key).await?;
                    return Ok(Some(Asked::Dead(reason)));
                }
                Course::StopJob(reason) => {
                    self.ledger.withdraw(key).await?;
                    return Err(Error::Api { url: self.base_url.clone(), problem: reason });
                }
            };
            if number < TRIES {
                tracing::debug!(try = number, ?pause, %last, "a request failed and is tried again");
                self.waits(Some(format!("{last}; next try in {:.1} s", pause.as_secs_f64())));
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = self.dropped.cancelled() => return Ok(None),
                }
            }
        }
        if self.bill.calls.load(Ordering::Relaxed) == 0 && last.contains("error sending request") {
            // Nothing ever came back: the address is wrong or the server away, and no other item will fare better.
            let problem = format!("cannot be reached after {TRIES} tries: {last}; nothing is lost, run again");
            return Err(Error::Api { url: self.base_url.clone(), problem });
        }
        Ok(Some(Asked::Dead(format!("no answer after {TRIES} tries, the last time: {last}"))))
    }

    fn waits(&self, why: Option<String>) {
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    fn count(&self, answer: &Answer, asked_model: &str) {
        let Tokens { prompt, cached, completion } = answer.tokens;
        let bill = &self.bill;
        bill.calls.fetch_add(1, Ordering::Relaxed);
        bill.prompt.fetch_add(prompt, Ordering::Relaxed);
        bill.cached.fetch_add(cached, Ordering::Relaxed);
        bill.completion.fetch_add(completion, Ordering::Relaxed);
        let cost = self.prices.cost(&answer.model, answer.tokens);
        match cost.or_else(|| self.prices.cost(asked_model, answer.tokens)) {
            Some(cost) => {
                bill.cost.fetch_add((cost * 1e12).round() as u64, Ordering::Relaxed);
            }
            None => {
                if bill.unpriced.fetch_add(1, Ordering::Relaxed) == 0 {
                    tracing::warn!("the price table does not know model {asked_model:?}; its cost is counted as 0");
                }
            }
        }
    }
}

/// Returns the time in Unix milliseconds.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis() as u64
}
