//! Counts what a job would ask: its items are judged by the code that judges them, which waits for ever at the first answer
//! that the ledger does not have.

use std::cell::RefCell;
use std::path::Path;

use futures::FutureExt;
use shared::rules::Judge;

use crate::api::ledger::Ledger;
use crate::api::request::{Asked, Form, Model, Request, asked};
use crate::api::tokens::Counter;
use crate::error::Result;
use crate::items::{Item, Work};
use crate::judging::correcting::{CorrectionLimit, Writer};
use crate::judging::{Count, Found, Judged, Judging, PairForm, Panel, Source};
use crate::oracle::Decision;
use crate::{items, review};

/// Items that are counted at most.
const SAMPLE: usize = 2000;
/// Shortest prefix that is cached, and in steps of how many tokens.
const CACHED_FROM: u64 = 1024;
const CACHED_STEP: u64 = 128;
/// The longer of the two answers, and of a pair's.
const LONGEST_VERDICT: &str = "NON-COMPLIANT";
const LONGEST_PAIR: &str = "{\"response_a\":\"NON-COMPLIANT\",\"response_b\":\"NON-COMPLIANT\"}";

/// How a job asks.
pub(super) struct Asking<'a> {
    pub(super) model: &'a Model,
    pub(super) ledger: Option<&'a Ledger>,
    pub(super) judging: Judging,
    pub(super) pairs: PairForm,
    pub(super) limit: CorrectionLimit,
    pub(super) world: Option<&'a Judge>,
}

/// What was counted.
#[derive(Debug, Default)]
pub(super) struct Counted {
    pub(super) items: u64,
    pub(super) reused: u64,
    /// Requests without an answer.
    pub(super) missing: u64,
    /// Of these, those whose tokens were counted, and of how many items.
    sampled: u64,
    pub(super) sampled_items: u64,
    /// Tokens of the sampled requests.
    pub(super) prompt: u64,
    pub(super) completion: u64,
    pub(super) cacheable: u64,
    /// Of the first request.
    pub(super) first_cacheable: u64,
}

impl Counted {
    /// Returns what is counted of the sampled requests as that of all.
    pub(super) fn whole(&self, sampled: u64) -> u64 {
        let (sampled, of) = (u128::from(sampled) * u128::from(self.missing), u128::from(self.sampled.max(1)));
        ((sampled + of / 2) / of) as u64
    }
}

impl Asking<'_> {
    /// Counts a job's requests.
    ///
    /// # Errors
    /// Its input or the ledger cannot be read.
    pub(super) fn count(&self, work: Work, input: &Path) -> Result<Counted> {
        let mut total = 0usize;
        for item in items::items(work, input, self.world)? {
            total += usize::from(item?.is_some());
        }
        let every = total.div_ceil(SAMPLE).max(1);
        let counter = Counter::new(&self.model.name);
        let mut counted = Counted::default();
        // Items of which something is asked, so that the sample is of these.
        let mut asked_about = 0;
        for item in items::items(work, input, self.world)? {
            let Some(item) = item? else { continue };
            counted.items += 1;
            if self.ledger.is_none() && asked_about % every != 0 {
                asked_about += 1;
                counted.missing += self.requests_of(&item);
                continue;
            }
            let Found { reused, missing } = self.found(&item)?;
            counted.reused += reused;
            counted.missing += missing.len() as u64;
            if missing.is_empty() {
                continue;
            }
            if asked_about % every == 0 {
                missing.iter().for_each(|request| counted.add(request, &item, self, &counter));
                counted.sampled_items += 1;
            }
            asked_about += 1;
        }
        Ok(counted)
    }

    /// Returns how many requests an item takes of which nothing is known.
    fn requests_of(&self, item: &Item) -> u64 {
        let forms = self.judging.forms(None).len() as u64;
        match item {
            Item::Pair { .. } if self.pairs == PairForm::OneCall => forms,
            Item::Pair { .. } => 2 * forms,
            Item::Correction { .. } => 1 + forms,
            Item::Response { .. } => forms,
        }
    }

    /// Returns what an item needs and has.
    fn found(&self, item: &Item) -> Result<Found> {
        let count = Count { ledger: self.ledger, found: RefCell::default() };
        // Who waits for an answer waits for ever: one look tells all.
        tokio::task::unconstrained(self.ask(&count, item)).now_or_never().transpose()?;
        let mut found = count.found.into_inner();
        if let Item::Correction { prompt, violating } = item
            && found.missing.last().is_some_and(|request| matches!(kind(request), Some(Asked::Correction { .. })))
        {
            // What will be written is judged, too; the reply it replaces stands for it.
            let verdict = |form: Form| self.model.verdict(prompt, violating, form);
            found.missing.extend(self.judging.forms(None).into_iter().map(verdict));
        }
        Ok(found)
    }

    async fn ask(&self, count: &Count<'_>, item: &Item) -> Result<()> {
        let (source, model) = (Source::Counted(count), self.model);
        let panel = Panel { source, model, forms: self.judging.forms(None) };
        match item {
            Item::Pair { prompt, chosen, rejected } => match self.pairs {
                PairForm::Both => {
                    futures::try_join!(self.judge(&panel, prompt, chosen), self.judge(&panel, prompt, rejected))?;
                }
                PairForm::SkipRejected => {
                    // Where it is not known whether the rejected one is needed, it may be.
                    let chosen = self.judge(&panel, prompt, chosen).now_or_never().transpose()?;
                    if chosen.is_none_or(|chosen| chosen.decision == Decision::Violates) {
                        self.judge(&panel, prompt, rejected).await?;
                    }
                }
                PairForm::OneCall => {
                    if self.review(prompt, chosen)?.is_none() || self.review(prompt, rejected)?.is_none() {
                        panel.pair(prompt, [chosen, rejected]).await?;
                    }
                }
            },
            Item::Correction { prompt, violating } => {
                let writer = Writer { source, model, limit: self.limit };
                writer.correct(prompt, violating, async |text| self.judge(&panel, prompt, text).await).await?;
            }
            Item::Response { prompt, response } => {
                self.judge(&panel, prompt, response).await?;
            }
        }
        Ok(())
    }

    async fn judge(&self, panel: &Panel<'_>, prompt: &str, response: &str) -> Result<Judged> {
        if let Some(judged) = self.review(prompt, response)? {
            return Ok(judged);
        }
        let ballots = panel.response(prompt, response).await?;
        Ok(Judged::voted(String::new(), ballots, self.judging.min_confidence))
    }

    /// Returns a person's verdict, which needs no request.
    fn review(&self, prompt: &str, response: &str) -> Result<Option<Judged>> {
        let Some(ledger) = self.ledger else { return Ok(None) };
        let item = review::item(&self.model.policy, prompt, response);
        let review = review::of(ledger, &item)?;
        Ok(review.map(|review| Judged::reviewed(item, review)))
    }
}

impl Counted {
    /// Counts the tokens of a request about an item.
    fn add(&mut self, request: &Request, item: &Item, asking: &Asking<'_>, counter: &Counter) {
        self.prompt += counter.prompt(&request.body);
        self.completion += 1 + match (kind(request), item) {
            (Some(Asked::Correction { .. }), Item::Correction { violating, .. }) => {
                counter.text(violating).min(u64::from(asking.limit.max_tokens).saturating_sub(1))
            }
            (Some(Asked::Pair { .. }), _) => counter.text(LONGEST_PAIR),
            _ => counter.text(LONGEST_VERDICT),
        };
        let prefix = request.body["messages"][0]["content"].as_str().unwrap_or_default();
        let cacheable = cacheable(counter.text(prefix));
        if self.sampled == 0 {
            self.first_cacheable = cacheable;
        }
        self.cacheable += cacheable;
        self.sampled += 1;
    }
}

fn kind(request: &Request) -> Option<Asked<'_>> {
    asked(request.body["messages"][1]["content"].as_str()?)
}

/// Returns how much of a prefix is cached.
pub(super) fn cacheable(prefix: u64) -> u64 {
    if prefix < CACHED_FROM { 0 } else { prefix / CACHED_STEP * CACHED_STEP }
}
