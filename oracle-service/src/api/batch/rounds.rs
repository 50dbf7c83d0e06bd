//! The rounds of a job: gather what has no answer, have it answered, look again; then the ordinary pass over the ledger.
//!
//! ```text
//! walk: what has no answer? ─▶ parts on disk ─▶ saved ─▶ driven to their end ─▶ walk again …
//!                                                                                 │ nothing is left
//!                                                                                 ▼
//!                                                       the ordinary pass: the ledger, and online what batches gave up
//! ```
//!
//! A later round finds what the answers of an earlier one made necessary: an unclear verdict is asked again, a correction
//! is judged. Whatever the mode, batches that an earlier run left open are waited for first: they are paid for.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::board::Board;
use super::drive::{Deadline, Driver};
use super::gather::{Counts, Front, Walk};
use super::lines::{self, Key};
use super::options::{BatchArgs, Mode};
use super::part::{Part, Phase};
use super::parts::{Origin, Parts};
use super::plan::{Division, Known, divide};
use crate::api::engine::{Engine, now_ms};
use crate::error::{Error, Result};
use crate::progress::{Progress, Sink};

/// Has the questions of a job answered in batches, as far as its mode says so. `walk` visits
/// every item of the job; it is called several times.
///
/// # Errors
/// No question can be answered until someone acts. What batches have is as far as it got.
pub(crate) async fn run(
    engine: &Engine,
    args: &BatchArgs,
    job: &str,
    sink: Sink<'_>,
    walk: impl AsyncFn(&Front) -> Result<()>,
) -> Result<()> {
    let parts = engine.parts();
    if args.mode == Mode::Online && !parts.all()?.iter().any(Part::is_open) {
        return Ok(());
    }
    // One job at a time has batches: what another has open may hold the same questions.
    let _turn = engine.batch_turn().lock().await;
    parts.sweep()?;
    let rounds = Rounds { engine, parts, args, job, sink, begun: engine.time().now() };
    let deadline = rounds.deadline().await?;
    let rounds = async {
        while rounds.round(deadline, &walk).await? {}
        Ok(())
    };
    let done: Result<()> = rounds.await;
    engine.note(None);
    done?;
    parts.ended(job).await
}

struct Rounds<'a> {
    engine: &'a Engine,
    parts: &'a Parts,
    args: &'a BatchArgs,
    job: &'a str,
    sink: Sink<'a>,
    begun: Instant,
}

impl Rounds<'_> {
    /// Returns when the job must be done, counted from its first start.
    async fn deadline(&self) -> Result<Option<Deadline>> {
        let Some(deadline) = self.args.deadline.filter(|_| self.args.mode == Mode::Auto) else { return Ok(None) };
        let now = now_ms();
        let past = Duration::from_millis(now.saturating_sub(self.parts.begun(self.job, now).await?));
        let at = self.engine.time().now() + deadline.saturating_sub(past);
        Ok(Some(Deadline { at, online: 0, online_per_minute: f64::from(self.args.online_rpm) }))
    }

    /// Does a round; returns whether another is to follow.
    async fn round(&self, deadline: Option<Deadline>, walk: &impl AsyncFn(&Front) -> Result<()>) -> Result<bool> {
        let known = self.parts.all()?;
        let mut claimed = claims(&known);
        let next_number = known.iter().map(|part| part.number).max().unwrap_or(0) + 1;
        let mut open: Vec<Part> = known.into_iter().filter(Part::is_open).collect();
        for part in &open {
            if part.base_url != self.engine.base_url() {
                let problem = format!(
                    "batches of {} are open in this state folder; finish them with that --base-url, or take them back with \
                     `oracle-service batches --cancel`",
                    part.base_url
                );
                return Err(Error::Paused(problem));
            }
            claimed.extend(self.parts.keys(part)?);
        }
        let division = self.divide(deadline, &claimed, walk).await?;
        if division.batch > 0 {
            let origin = Origin {
                job: self.job.to_owned(),
                base_url: self.engine.base_url().to_owned(),
                account: self.engine.account_name().to_owned(),
                alias: self.engine.alias().map(str::to_owned),
            };
            let gathering = Walk::gathering(claimed.clone(), self.parts, origin, next_number, division.batch);
            let gathered = self.walk(gathering, walk).await?.finish()?;
            self.pass("batch.gathered");
            self.parts.save(&gathered, None).await?;
            self.pass("batch.saved");
            for part in &gathered {
                claimed.extend(self.parts.keys(part)?);
            }
            open.extend(gathered);
        }
        if open.is_empty() {
            return Ok(false);
        }
        let requests: u64 = open.iter().map(|part| part.requests).sum();
        tracing::info!("{}: {requests} requests in {} batches; {}", self.job, open.len(), division.why);
        let next_number = open.iter().map(|part| part.number).max().unwrap_or(0).max(next_number) + 1;
        let report = |board: &mut Board| {
            let (done, total) = board.done();
            let waiting = Some(board.line(self.engine.time().now() - self.begun));
            self.engine.note(waiting.clone());
            (self.sink)(Progress { done, total, bill: Some(self.engine.bill()), waiting });
        };
        let driver = Driver::new(self.engine, &self.args.pace, next_number, &report);
        // What is late anyway waits for its batch.
        let deadline =
            deadline.filter(|_| !division.late).map(|deadline| Deadline { online: division.online, ..deadline });
        let driven = driver.drive(open, deadline);
        let taken_back = if division.online > 0 {
            let online = async { self.walk(Walk::around(claimed), walk).await.map(drop) };
            futures::try_join!(driven, online)?.0
        } else {
            driven.await?
        };
        Ok(self.args.mode != Mode::Online && !taken_back)
    }

    /// Decides how many of the questions without an answer go into batches.
    async fn divide(
        &self,
        deadline: Option<Deadline>,
        claimed: &HashSet<Key>,
        walk: &impl AsyncFn(&Front) -> Result<()>,
    ) -> Result<Division> {
        match self.args.mode {
            Mode::Online => {
                Ok(Division { batch: 0, online: 0, late: false, why: "they were left open by an earlier run".into() })
            }
            Mode::Batch => {
                Ok(Division { batch: u64::MAX, online: 0, late: false, why: "batches take up to a day".into() })
            }
            Mode::Auto => {
                let Counts { requests, worst, model } = self.walk(Walk::counting(claimed.clone()), walk).await?.counts;
                let known = Known {
                    requests,
                    deadline: deadline.map(|deadline| deadline.at.saturating_duration_since(self.engine.time().now())),
                    online_per_minute: f64::from(self.args.online_rpm),
                    prices: self.engine.prices_of(&model, worst),
                };
                Ok(divide(known))
            }
        }
    }

    /// Walks through the job's items with the engine's front set.
    async fn walk(&self, front: Walk, walk: &impl AsyncFn(&Front) -> Result<()>) -> Result<Walk> {
        self.engine.front().set(front);
        let walked = walk(self.engine.front()).await;
        let front = self.engine.front().take().expect("a walk ends here");
        walked.map(|()| front)
    }

    fn pass(&self, point: &str) {
        self.args.pace.pass(point);
    }
}

/// Returns the requests that no batch is to take any more.
fn claims(parts: &[Part]) -> HashSet<Key> {
    let left = parts.iter().filter_map(|part| match &part.phase {
        Phase::Done { left, .. } => Some(left),
        _ => None,
    });
    left.flatten().filter_map(|key| lines::number(key)).collect()
}
