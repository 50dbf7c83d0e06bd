//! The front of an engine: what becomes of a request that has no answer yet, while a job's items are walked through.
//!
//! Before its ordinary pass a job may walk through its items and throw the outcomes away: each question that the ledger
//! cannot answer is then counted, or written into a part, or asked online, as the front is set.
//!
//! Where nothing is sent, a question without an answer never comes back, and [`Front::visit`] polls an item just once: it
//! reaches all the questions that do not depend on one another, and none that does. Where some are sent, a question that
//! waits for a batch ends its item by an error instead.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use futures::FutureExt;

use super::lines::{self, Key};
use super::part::Part;
use super::parts::{Origin, Parts, Spool, worst};
use super::plan::Filled;
use crate::api::request::Request;
use crate::error::{Error, Result};
use shared::prices::Tokens;

/// Where a question without an answer goes that is not asked online.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Online,
    /// It is noted, and does not come back.
    Noted,
    /// It waits for its batch, and its item with it.
    Batch,
}

/// The front of an engine. Without a walk everything goes online.
#[derive(Debug, Default)]
pub(crate) struct Front(Mutex<Option<Walk>>);

/// One walk through a job's items.
#[derive(Debug)]
pub(super) struct Walk {
    /// In parts that are open, or given up by batches: never written into another.
    claimed: HashSet<Key>,
    /// Where requests are written to, and how many more.
    gathering: Option<Gathering>,
    /// Whether requests that no part has are asked online.
    is_online: bool,
    /// Of the requests that were not gathered.
    pub(super) counts: Counts,
}

/// Requests of a walk without an answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Counts {
    pub(super) requests: u64,
    /// The most they can cost together.
    pub(super) worst: Tokens,
    /// The model they ask.
    pub(super) model: String,
}

impl Counts {
    fn add(&mut self, request: &Request) {
        if self.requests == 0 {
            self.model = request.body["model"].as_str().unwrap_or_default().to_owned();
        }
        self.requests += 1;
        let worst = worst(request);
        self.worst.prompt += worst.prompt;
        self.worst.completion += worst.completion;
    }
}

#[derive(Debug)]
struct Gathering {
    parts: Parts,
    origin: Origin,
    next_number: u32,
    room: u64,
    spool: Option<(Spool, String)>,
    done: Vec<Part>,
}

impl Front {
    /// Begins a walk in place of any other.
    pub(super) fn set(&self, walk: Walk) {
        *self.lock() = Some(walk);
    }

    /// Ends a walk.
    pub(super) fn take(&self) -> Option<Walk> {
        self.lock().take()
    }

    /// Returns whether the job walks through its items and keeps nothing.
    pub(crate) fn is_walking(&self) -> bool {
        self.lock().is_some()
    }

    /// Passes a request without an answer: returns if it is to be asked online.
    ///
    /// # Errors
    /// It waits for its batch; the disk refused to take it.
    pub(crate) async fn pass(&self, key: &str, request: &Request) -> Result<()> {
        let place = match self.lock().as_mut() {
            Some(walk) => walk.place(key, request)?,
            None => Place::Online,
        };
        match place {
            Place::Online => Ok(()),
            Place::Noted => std::future::pending().await,
            Place::Batch => Err(Error::Later),
        }
    }

    /// Visits an item of a walk: asks what it asks, as far as that can be asked now, and throws the outcome away.
    ///
    /// # Errors
    /// Those of the item, but for what waits for a batch.
    pub(crate) async fn visit<T>(&self, item: impl Future<Output = Result<T>>) -> Result<()> {
        let sends = self.lock().as_ref().is_none_or(|walk| walk.is_online);
        let outcome = match sends {
            true => Some(item.await),
            // Tokio's own budget must not make anything else wait.
            false => tokio::task::unconstrained(item).now_or_never(),
        };
        match outcome {
            None | Some(Ok(_) | Err(Error::Later)) => Ok(()),
            Some(Err(error)) => Err(error),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Walk>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Walk {
    /// Counts what has no answer.
    pub(super) fn counting(claimed: HashSet<Key>) -> Walk {
        Walk { claimed, gathering: None, is_online: false, counts: Counts::default() }
    }

    /// Asks online what no part has.
    pub(super) fn around(claimed: HashSet<Key>) -> Walk {
        Walk { is_online: true, ..Walk::counting(claimed) }
    }

    /// Writes up to `room` requests into parts.
    pub(super) fn gathering(claimed: HashSet<Key>, parts: &Parts, origin: Origin, next_number: u32, room: u64) -> Walk {
        let gathering = Gathering { parts: parts.clone(), origin, next_number, room, spool: None, done: Vec::new() };
        Walk { gathering: Some(gathering), ..Walk::counting(claimed) }
    }

    fn place(&mut self, key: &str, request: &Request) -> Result<Place> {
        let waits = if self.is_online { Place::Batch } else { Place::Noted };
        // A key that is none of ours cannot name a line.
        let Some(number) = lines::number(key) else { return Ok(if self.is_online { Place::Online } else { waits }) };
        if self.claimed.contains(&number) {
            return Ok(waits);
        }
        if self.is_online {
            return Ok(Place::Online);
        }
        match &mut self.gathering {
            Some(gathering) if gathering.room > 0 => {
                if gathering.push(number, key, request)? {
                    self.claimed.insert(number);
                }
            }
            _ => self.counts.add(request),
        }
        Ok(Place::Noted)
    }

    /// Ends the walk and returns the parts it made, which are not saved yet.
    ///
    /// # Errors
    /// The disk refused.
    pub(super) fn finish(mut self) -> Result<Vec<Part>> {
        match &mut self.gathering {
            Some(gathering) => {
                gathering.close()?;
                Ok(std::mem::take(&mut gathering.done))
            }
            None => Ok(Vec::new()),
        }
    }
}

impl Gathering {
    /// Writes a request into the file at hand, or the next; false for one that no file can hold.
    fn push(&mut self, number: Key, key: &str, request: &Request) -> Result<bool> {
        let mut body = request.body.clone();
        if let Some(alias) = &self.origin.alias {
            body["model"] = alias.clone().into();
        }
        let line = lines::request(key, &body);
        if !Filled::default().has_room(line.len() as u64) {
            return Ok(false);
        }
        let model = request.body["model"].as_str().unwrap_or_default();
        // A batch is for one model.
        if self.spool.as_ref().is_some_and(|(spool, of)| !spool.has_room(&line) || of != model) {
            self.close()?;
        }
        let (spool, _) = match &mut self.spool {
            Some(spool) => spool,
            None => self.spool.insert((self.parts.spool()?, model.to_owned())),
        };
        spool.push(number, &line, worst(request))?;
        self.room -= 1;
        Ok(true)
    }

    fn close(&mut self) -> Result<()> {
        if let Some((spool, model)) = self.spool.take() {
            self.done.push(spool.finish(&self.origin, &model, self.next_number, 1)?);
            self.next_number += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
