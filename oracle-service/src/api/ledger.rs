//! The ledger: an intent before every paid request, its answer after, both on the disk before they count.
//!
//! A request whose answer is here is never sent again, by whatever job. After a crash at any instant only requests with
//! an intent and no answer can be sent twice: those that were in flight.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shared::Result;
use shared::store::{Change, Store};

use super::account::{self, Slot};
use super::prices::Tokens;

const ANSWERS: &str = "answers";
const INTENTS: &str = "intents";

/// A stored answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// The text; none where the model sent none (refused, filtered).
    pub(crate) text: Option<String>,
    /// Why it ended, and a refusal's words where there are any.
    pub(crate) finish: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) refusal: Option<String>,
    /// The model that answered, by its own name.
    pub(crate) model: String,
    pub(crate) tokens: Tokens,
    /// When it came, in Unix milliseconds.
    pub(crate) at_ms: u64,
    /// The server's name for the configuration that answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) fingerprint: Option<String>,
    /// How likely each token of the text was, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) logprobs: Option<Vec<TokenLogprob>>,
    /// How often it was sent until the answer came; 0 in answers older than the count.
    #[serde(default)]
    pub(crate) attempts: u32,
    /// What it cost; none where the price table does not know the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cost_usd: Option<f64>,
    /// Which endpoint answered.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) endpoint: String,
    /// The batch it came with; none where it was asked alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) batch: Option<String>,
}

/// One token of an answer with its log-probability, and the likeliest tokens of its place.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct TokenLogprob {
    pub(crate) token: String,
    pub(crate) logprob: f64,
    #[serde(default, skip_serializing_if = "Vec::is_empty", rename = "top_logprobs")]
    pub(crate) top: Vec<TopLogprob>,
}

/// A token that could have stood in a place.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct TopLogprob {
    pub(crate) token: String,
    pub(crate) logprob: f64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Intent {
    model: String,
    at_ms: u64,
}

/// An open ledger; clones are handles on the same one.
#[derive(Debug, Clone)]
pub(crate) struct Ledger {
    store: Store,
    folder: PathBuf,
}

impl Ledger {
    /// Opens the ledger of a state folder.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub(crate) fn open(folder: &Path) -> Result<Ledger> {
        let ledger = Ledger { store: Store::open(folder)?, folder: folder.to_owned() };
        let open: Vec<(String, Intent)> = ledger.store.scan(INTENTS)?;
        if !open.is_empty() {
            tracing::warn!(
                "{} requests were in flight when the ledger was last in use; their answers may have been paid for and are \
                 asked for again when they are needed",
                open.len()
            );
        }
        Ok(ledger)
    }

    /// Returns the store, which holds more than answers: people's verdicts, judges of inputs, canaries.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Returns a stored answer.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(crate) fn answer(&self, key: &str) -> Result<Option<Answer>> {
        self.store.get(ANSWERS, key)
    }

    /// Returns all answers by key.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(crate) fn answers(&self) -> Result<Vec<(String, Answer)>> {
        self.store.scan(ANSWERS)
    }

    /// Returns how many answers are stored.
    pub(crate) fn count(&self) -> usize {
        self.store.count(ANSWERS)
    }

    /// Notes that a request is about to be sent, and what it may cost.
    ///
    /// # Errors
    /// The disk refused: the request must not be sent.
    pub(super) async fn intend(&self, key: &str, model: &str, at_ms: u64, account: Change) -> Result<()> {
        let intent = Intent { model: model.to_owned(), at_ms };
        self.store.commit(vec![Change::put(INTENTS, key, &intent), account]).await
    }

    /// Stores an answer, and what its account paid.
    ///
    /// # Errors
    /// The disk refused: the answer is lost.
    pub(super) async fn settle(&self, key: &str, answer: &Answer, account: Change) -> Result<()> {
        self.store.commit(vec![Change::put(ANSWERS, key, answer), Change::remove(INTENTS, key), account]).await
    }

    /// Stores answers that came together.
    ///
    /// # Errors
    /// The disk refused: none of them is stored.
    pub(super) async fn settle_all<'a>(&self, answers: impl Iterator<Item = (String, &'a Answer)>) -> Result<()> {
        self.store.commit(answers.map(|(key, answer)| Change::put(ANSWERS, key, answer)).collect()).await
    }

    /// Returns the store below, for what else must survive with the answers.
    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// Returns the state folder.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Notes that a request brought no answer and will not be repeated.
    ///
    /// # Errors
    /// The disk refused.
    pub(super) async fn withdraw(&self, key: &str, account: Option<Change>) -> Result<()> {
        self.store.commit([Change::remove(INTENTS, key)].into_iter().chain(account).collect()).await
    }

    /// Returns what accounts have paid, slot by slot.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(super) fn accounts(&self) -> Result<Vec<(String, Slot)>> {
        self.store.scan(account::TREE)
    }
}
