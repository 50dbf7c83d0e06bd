//! The driver: carries out what parts want done, all of them side by side.
//!
//! It may be dropped, or die, between any two steps: a part's record tells where it goes on.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::board::Board;
use super::http::{Api, chunk};
use super::lines::{self, Key, Sorter, Splitter};
use super::options::PaceArgs;
use super::part::{Batch, Effect, Event, Part, Status};
use super::parts::Parts;
use super::plan::must_take_back;

use crate::api::account::Reservation;
use crate::api::budget::{Money, Refused};
use crate::api::engine::{Engine, now_ms};
use crate::api::gate::Pause;
use crate::api::ledger::Answer;
use crate::api::retry::{self, TRIES, Trouble};
use crate::error::{Error, Result};

/// Files on their way up at once.
const UPLOADS: usize = 2;
/// Answers stored with one sync.
const SETTLED_AT_ONCE: usize = 1000;
/// Until it is looked again whether someone has acted.
const LOOK: Duration = Duration::from_secs(60);
/// Between two looks at a batch, at first; half as much more each time.
const FIRST_REST: Duration = Duration::from_secs(1);

/// When a job must be done.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    pub(super) at: Instant,
    /// Requests that the online API answers beside the batches.
    pub(super) online: u64,
    /// Requests a minute that the online API takes.
    pub(super) online_per_minute: f64,
}

/// Drives the parts of a job.
pub(super) struct Driver<'a> {
    engine: &'a Engine,
    api: &'a Api,
    parts: &'a Parts,
    pace: &'a PaceArgs,
    /// Takes note of the news.
    report: &'a (dyn Fn(&mut Board) + Sync),
    board: Mutex<Board>,
    uploads: Semaphore,
    next_number: AtomicU32,
    /// Something has come back from the API.
    reached: AtomicBool,
    taken_back: CancellationToken,
    /// Why a part was left as it is: the cap.
    capped: Mutex<Option<String>>,
}

/// What a batch's files came to.
struct Fetched {
    event: Event,
    /// What is to be asked again.
    rest: Option<Part>,
    cost: Money,
}

impl<'a> Driver<'a> {
    pub(super) fn new(
        engine: &'a Engine,
        pace: &'a PaceArgs,
        next_number: u32,
        report: &'a (dyn Fn(&mut Board) + Sync),
    ) -> Driver<'a> {
        Driver {
            engine,
            api: engine.batch_api(),
            parts: engine.parts(),
            pace,
            report,
            board: Mutex::default(),
            uploads: Semaphore::new(UPLOADS),
            next_number: AtomicU32::new(next_number),
            reached: AtomicBool::new(false),
            taken_back: CancellationToken::new(),
            capped: Mutex::default(),
        }
    }

    /// Takes everything back: what is not answered yet is cancelled.
    pub(super) fn take_back(&self) {
        self.taken_back.cancel();
    }

    /// Drives parts until all are done. Whether they were taken back, because the online API needs the time that is left
    /// until `deadline`, is returned.
    ///
    /// # Errors
    /// Nothing goes on until someone acts. All parts are as far as they got.
    pub(super) async fn drive(&self, parts: Vec<Part>, deadline: Option<Deadline>) -> Result<bool> {
        parts.iter().for_each(|part| self.board().note(part));
        let mut running: FuturesUnordered<_> = parts.into_iter().map(|part| self.part(part)).collect();
        let all = async {
            while let Some(rest) = running.try_next().await? {
                if let Some(part) = rest {
                    running.push(self.part(part));
                }
            }
            Ok::<_, Error>(())
        };
        tokio::select! {
            done = all => done?,
            never = self.watch(deadline) => match never {},
        }
        match self.capped.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(why) => Err(Error::Paused(why)),
            None => Ok(self.taken_back.is_cancelled()),
        }
    }

    /// Takes everything back when the deadline demands it.
    async fn watch(&self, deadline: Option<Deadline>) -> std::convert::Infallible {
        let Some(Deadline { at, online, online_per_minute }) = deadline else { return std::future::pending().await };
        let begun = Instant::now();
        loop {
            tokio::time::sleep(self.pace.batch_poll).await;
            let (done, all) = self.board().done();
            let left = at.saturating_duration_since(Instant::now());
            let answered_online = begun.elapsed().as_secs_f64() / 60.0 * online_per_minute;
            let online = online.saturating_sub(answered_online as u64);
            if must_take_back(left, all - done + online, online_per_minute) && !self.taken_back.is_cancelled() {
                tracing::warn!(
                    "{} requests are taken back from batches: asked online they are answered in time",
                    all - done
                );
                self.taken_back.cancel();
            }
        }
    }

    /// Drives a part to its end; returns the part that its rest went into.
    async fn part(&self, mut part: Part) -> Result<Option<Part>> {
        let (mut event, mut rest, mut tries, mut rests) = (Event::Woke, None, 0, 0);
        // How many answers the last look at the files brought, where the API had promised more.
        let mut short: Option<u64> = None;
        let (mut money, mut cost) = (None::<Reservation>, Money::default());
        while part.is_open() {
            let taking_back = part.taken_back || self.taken_back.is_cancelled();
            if money.is_none() && (part.is_on_its_way() || !taking_back) {
                money = self.admit(&part).await?;
                if money.is_none() && !self.taken_back.is_cancelled() {
                    return Ok(None);
                }
            }
            let mut effects = Vec::new();
            if self.taken_back.is_cancelled() && !part.taken_back {
                effects.extend(part.apply(Event::TakenBack));
            }
            effects.extend(part.apply(event));
            self.note(&part);
            event = Event::Woke;
            for effect in effects {
                let outcome = match effect {
                    Effect::Save => {
                        self.pass("batch.save");
                        // What it cost counts with its end; until then its worst case is set aside.
                        let paid = match (part.is_open(), &mut money) {
                            (false, Some(money)) => Some(money.settled(cost)),
                            _ => None,
                        };
                        self.parts.save(std::iter::once(&part).chain(&rest), paid).await?;
                        self.pass("batch.saved");
                        continue;
                    }
                    Effect::Upload => {
                        let _place = self.uploads.acquire().await.expect("places are never closed");
                        let file = self.parts.file(&part);
                        self.call("batch.upload", self.api.upload(&part, &file))
                            .await
                            .map(|file| Event::Uploaded { file })
                    }
                    Effect::Find => self.call("batch.find", self.api.find(&part)).await.map(Event::Found),
                    Effect::Create { file } => match self.call("batch.create", self.api.create(&part, &file)).await {
                        Ok(batch) => Ok(Event::Created(batch)),
                        Err(trouble) => {
                            event = Event::NotCreated(trouble);
                            continue;
                        }
                    },
                    Effect::Poll { batch } => self.call("batch.look", self.api.look(&batch)).await.map(Event::Polled),
                    Effect::Cancel { batch } => {
                        self.call("batch.cancel", self.api.cancel(&batch)).await.map(Event::Cancelling)
                    }
                    Effect::Fetch(batch) => match self.fetch(&part, &batch, &mut short).await? {
                        Ok(Some(Fetched { event, rest: next, cost: paid })) => {
                            (rest, cost) = (next, paid);
                            Ok(event)
                        }
                        Ok(None) => Ok(Event::Woke),
                        Err(trouble) => Err(trouble),
                    },
                    Effect::Rest => {
                        let pause = FIRST_REST.mul_f64(1.5f64.powi(rests)).min(self.pace.batch_poll);
                        rests = (rests + 1).min(20);
                        self.rest(pause, &part).await;
                        continue;
                    }
                    Effect::Queue(why) => {
                        self.trouble(Some(format!("waiting for room at the API ({why})")));
                        self.rest(self.pace.batch_poll, &part).await;
                        continue;
                    }
                    Effect::Retry(trouble) => {
                        tries += 1;
                        self.retry(&part, tries, trouble).await?;
                        continue;
                    }
                    Effect::Stop(problem) if self.engine.is_patient() && part.is_open() => {
                        self.trouble(Some(format!("paused: {problem}")));
                        self.rest(LOOK, &part).await;
                        continue;
                    }
                    Effect::Stop(problem) => return Err(Error::Paused(format!("{}: {problem}", part.base_url))),
                    Effect::Finish => continue,
                };
                event = match outcome {
                    Ok(next) => {
                        tries = 0;
                        self.trouble(None);
                        next
                    }
                    Err(trouble) => Event::Failed(trouble),
                };
            }
        }
        self.note(&part);
        if let Some(rest) = &rest {
            self.board().goes_on(&part, rest.requests);
            self.note(rest);
        }
        let file = self.parts.file(&part);
        std::fs::remove_file(&file).map_err(|source| shared::Error::io("remove", &file, source))?;
        Ok(rest)
    }

    /// Reads a batch's files and stores their answers. None where they hold fewer than the API has counted and are to be
    /// read again: a file cut short looks like requests without an answer, and those would be paid for again.
    async fn fetch(
        &self,
        part: &Part,
        batch: &Batch,
        short: &mut Option<u64>,
    ) -> Result<std::result::Result<Option<Fetched>, Trouble>> {
        let mut sorter = Sorter::new(self.parts.keys(part)?);
        let (mut answers, mut cost) = (Vec::new(), Money::default());
        for file in [&batch.output, &batch.errors].into_iter().flatten() {
            let mut response = match self.call("batch.fetch", self.api.content(file)).await {
                Ok(response) => response,
                Err(trouble) => return Ok(Err(trouble)),
            };
            let mut splitter = Splitter::default();
            loop {
                match chunk(&mut response).await {
                    Ok(Some(bytes)) => splitter.push(&bytes, |line| answers.extend(sorter.take(line, now_ms()))),
                    Ok(None) => break,
                    Err(trouble) => return Ok(Err(trouble)),
                }
                if answers.len() >= SETTLED_AT_ONCE {
                    cost += self.settle(part, batch, &mut answers).await?;
                }
            }
            splitter.finish(|line| answers.extend(sorter.take(line, now_ms())));
        }
        cost += self.settle(part, batch, &mut answers).await?;
        let answered = sorter.answered();
        if answered < batch.completed && *short != Some(answered) {
            tracing::warn!(
                "the files of batch {} hold {answered} of {} answers; read again",
                batch.id,
                batch.completed
            );
            *short = Some(answered);
            return Ok(Ok(None));
        }
        let counts = sorter.counts.clone();
        if counts != lines::Counts::default() {
            tracing::warn!(
                "batch {}: {} lines could not be read, {} were for other requests, {} came twice",
                batch.id,
                counts.broken,
                counts.foreign,
                counts.repeated
            );
        }
        let mut lines = sorter.left();
        let (again, left) = part.split(&mut lines);
        for (key, reason) in &lines.refused {
            tracing::debug!("batch {}: request {} is refused: {reason}", batch.id, lines::text(*key));
        }
        if !again.is_empty() && batch.status != Status::Cancelled {
            tracing::info!("batch {} left {} requests unanswered; they go into another", batch.id, again.len());
        }
        let next = match again.is_empty() {
            true => None,
            false => Some(self.parts.rest(part, &again, self.next_number.fetch_add(1, Ordering::Relaxed))?),
        };
        self.pass("batch.rest");
        let again = again.len() as u64;
        let event = Event::Fetched { answered, left, again, stop: lines.stop };
        Ok(Ok(Some(Fetched { event, rest: next, cost })))
    }

    /// Stores answers that the ledger does not have. Returns what all of them cost.
    async fn settle(&self, part: &Part, batch: &Batch, answers: &mut Vec<(Key, Answer)>) -> Result<Money> {
        let mut paid = Money::default();
        let mut fresh = Vec::with_capacity(answers.len());
        for (key, mut answer) in answers.drain(..) {
            let cost = self.engine.price_batched(&answer, &part.model);
            paid += cost.unwrap_or_default();
            if !self.parts.is_answered(key)? {
                answer.cost_usd = cost.map(Money::usd);
                answer.batch = Some(batch.id.clone());
                answer.attempts = part.attempt;
                answer.bill = self.engine.bill_name();
                fresh.push((key, answer));
            }
        }
        if !fresh.is_empty() {
            self.pass("batch.settle");
            self.parts.settle(&fresh).await?;
            self.pass("batch.settled");
            fresh.iter().for_each(|(key, answer)| self.engine.count_batched(&lines::text(*key), answer));
        }
        Ok(paid)
    }

    /// Does one exchange with the API.
    async fn call<T>(
        &self,
        point: &str,
        exchange: impl Future<Output = std::result::Result<T, Trouble>>,
    ) -> std::result::Result<T, Trouble> {
        self.pass(point);
        let outcome = exchange.await;
        self.pass(point);
        if matches!(outcome, Ok(_) | Err(Trouble::Status { .. })) {
            self.reached.store(true, Ordering::Relaxed);
        }
        outcome
    }

    /// Sets aside what a part may cost, once the job may go on; none where the cap leaves no room for it.
    async fn admit(&self, part: &Part) -> Result<Option<Reservation>> {
        loop {
            let on_its_way = part.is_on_its_way();
            let refused = match self.engine.is_paused() && !on_its_way {
                true => {
                    self.trouble(Some(Pause::Asked.to_string()));
                    None
                }
                false => match self.engine.reserve_batch(&part.account, &part.model, part.worst, on_its_way)? {
                    Ok(money) => return Ok(Some(money)),
                    Err(refused) => Some(refused),
                },
            };
            if refused == Some(Refused::Reached) {
                let why = format!(
                    "the cost limit leaves no room for a batch of {} requests; raise it to go on",
                    part.requests
                );
                self.trouble(Some(why.clone()));
                if !self.engine.is_patient() {
                    *self.capped.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
                    return Ok(None);
                }
            }
            self.rest(FIRST_REST.min(self.pace.batch_poll), part).await;
            if self.taken_back.is_cancelled() {
                // Nothing of it will be sent.
                return Ok(None);
            }
        }
    }

    async fn retry(&self, part: &Part, tries: u32, trouble: Trouble) -> Result<()> {
        if tries > TRIES && !self.engine.is_patient() && !self.reached.load(Ordering::Relaxed) {
            // Nothing ever came back: the address is wrong or the server away.
            let problem = format!("cannot be reached after {TRIES} tries: {trouble}");
            return Err(Error::Paused(format!("{}: {problem}", part.base_url)));
        }
        let pause = retry::wait(&part.tag(), tries + 1);
        self.trouble(Some(format!("{trouble}; next try in {:.1} s", pause.as_secs_f64())));
        self.rest(pause, part).await;
        Ok(())
    }

    /// Waits, and no longer than until everything is taken back.
    async fn rest(&self, pause: Duration, part: &Part) {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.taken_back.cancelled(), if !part.taken_back => {}
        }
    }

    fn note(&self, part: &Part) {
        let mut board = self.board();
        board.note(part);
        (self.report)(&mut board);
    }

    fn trouble(&self, why: Option<String>) {
        let mut board = self.board();
        board.trouble(why);
        (self.report)(&mut board);
    }

    fn board(&self) -> std::sync::MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass(&self, point: &str) {
        self.pace.pass(point);
    }
}
