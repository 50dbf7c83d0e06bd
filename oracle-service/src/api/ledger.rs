//! The ledger: an intent before every paid request, its answer after, both on the disk before they count.
//!
//! A request whose answer is here is never sent again, by whatever job. After a crash at any instant only requests with
//! an intent and no answer can be sent twice: those that were in flight. A ledger that is damaged is set aside; a new one
//! is made of its whole lines and of the exports beside it, and what is lost all the same is told answer by answer.

mod exports;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shared::output::LinesWriter;
use shared::store::{Change, Found, Salvaged, Store};
use shared::{Error, Result};

use super::account::{self, Slot};
use super::budget::Money;
use exports::Exports;
use shared::prices::Tokens;

const ANSWERS: &str = "answers";
const INTENTS: &str = "intents";
/// Answers that someone wants to be asked for again, by their keys and, where one was asked for again more than once, a
/// number.
const MOVED_ASIDE: &str = "moved-aside";
/// Answers in one commit at most.
const SETTLED_AT_ONCE: usize = 128;
/// Lost answers that are named in the log; all of them are in the loss file.
const NAMED: usize = 20;

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
    /// The bill it was put on, where that has a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) bill: Option<String>,
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
    exports: Arc<Exports>,
}

/// An item of a damaged ledger, for the loss file.
#[derive(Serialize)]
struct Loss<'a> {
    /// Key of the answer or intent; none where it cannot be read any more.
    key: Option<&'a str>,
    /// `answers` or `intents`.
    kind: Option<&'a str>,
    /// Line of the damaged log, from 1.
    line: u64,
    byte: u64,
    /// Taken from the last export.
    restored: bool,
}

impl Ledger {
    /// Opens the ledger of a state folder; a damaged one is set aside and made anew.
    ///
    /// # Errors
    /// Another process has it; the disk.
    pub(crate) fn open(folder: &Path) -> Result<Ledger> {
        let (store, salvaged) = Store::open_salvaging(folder)?;
        // What a service left that was killed leads nowhere, or to another ledger's service.
        crate::served::forget(folder);
        let exports_folder = folder.join("exports");
        if let Some(salvaged) = salvaged {
            let aside = salvaged.set_aside.join("exports");
            refill(&store, &exports_folder, &aside)?;
            report(&store, &salvaged)?;
        } else if exports::exported_bytes(&exports_folder)? > store.committed_bytes() {
            // The log is shorter than what was exported of it: it was lost, or is an older copy.
            let aside = folder.join(format!("exports.of-a-longer-log-{}", store.committed_bytes()));
            let filled = refill(&store, &exports_folder, &aside)?;
            tracing::warn!(
                "{}: the log was shorter than its exports; {filled} answers are taken from them",
                folder.display()
            );
        }
        let open = store.count(INTENTS)?;
        if open > 0 {
            tracing::warn!(
                "{open} requests were in flight when the ledger was last in use; their answers may have been paid for and \
                 are asked for again when they are needed"
            );
        }
        let exports = Arc::new(Exports::new(store.clone(), &exports_folder)?);
        Ok(Ledger { store, folder: folder.to_owned(), exports })
    }

    /// Returns the store below, for what else must survive with the answers: accounts, batches, people's verdicts, judges
    /// of inputs, canaries.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Returns a stored answer. One that is damaged on the disk is taken from the exports; where it is in none of them,
    /// its loss is told and it counts as unknown.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(crate) fn answer(&self, key: &str) -> Result<Option<Answer>> {
        match self.store.find(ANSWERS, key)? {
            Found::Value(answer) => Ok(Some(answer)),
            Found::Nothing => Ok(None),
            Found::Damaged(problem) => {
                let found = self.exports.find(key)?;
                match &found {
                    Some(_) => tracing::warn!("{problem}; it is taken from the last export"),
                    None => tracing::warn!("{problem}, and in no export; this answer is lost and asked for again"),
                }
                Ok(found)
            }
        }
    }

    /// Calls `visit` for every answer and its key, in order of keys, one in memory at a time.
    ///
    /// # Errors
    /// The store cannot be read; what `visit` returns.
    pub(crate) fn visit(&self, visit: impl FnMut(&str, Answer) -> Result<()>) -> Result<()> {
        self.store.visit(ANSWERS, visit)
    }

    /// Returns how many answers are stored.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(crate) fn count(&self) -> Result<u64> {
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
        let changes = vec![Change::put(ANSWERS, key, answer), Change::remove(INTENTS, key), account];
        self.store.commit(changes).await?;
        Exports::settled(&self.exports);
        Ok(())
    }

    /// Stores answers that came together, some at a time: reading one reads its whole commit.
    ///
    /// # Errors
    /// The disk refused: those that are not stored yet can be stored again.
    pub(super) async fn settle_all<'a>(&self, answers: impl Iterator<Item = (String, &'a Answer)>) -> Result<()> {
        let mut answers = answers.map(|(key, answer)| Change::put(ANSWERS, key, answer)).peekable();
        while answers.peek().is_some() {
            let changes: Vec<Change> = answers.by_ref().take(SETTLED_AT_ONCE).collect();
            let count = changes.len();
            self.store.commit(changes).await?;
            (0..count).for_each(|_| Exports::settled(&self.exports));
        }
        Ok(())
    }

    /// Moves answers aside, so that they are asked for again: they stay on the disk and are not found any more. Returns
    /// how many there were.
    ///
    /// # Errors
    /// The store cannot be read, or the disk refused.
    pub(crate) fn move_aside(&self, keys: &std::collections::BTreeSet<String>) -> Result<u64> {
        let (mut moved, mut changes) = (0, Vec::new());
        for (number, key) in keys.iter().enumerate() {
            if let Some(answer) = self.answer(key)? {
                changes
                    .extend([Change::put(MOVED_ASIDE, self.place_aside(key)?, &answer), Change::remove(ANSWERS, key)]);
                moved += 1;
            }
            let is_last = number + 1 == keys.len();
            if !changes.is_empty() && (is_last || changes.len() >= SETTLED_AT_ONCE) {
                self.store.commit_blocking(std::mem::take(&mut changes))?;
            }
        }
        Ok(moved)
    }

    /// Calls `visit` for every answer that was moved aside.
    ///
    /// # Errors
    /// The store cannot be read; what `visit` returns.
    pub(super) fn visit_moved_aside(&self, mut visit: impl FnMut(&Answer) -> Result<()>) -> Result<()> {
        self.store.visit(MOVED_ASIDE, |_, answer: Answer| visit(&answer))
    }

    fn place_aside(&self, key: &str) -> Result<String> {
        for again in 1.. {
            let place = if again == 1 { key.to_owned() } else { format!("{key}/{again}") };
            if matches!(self.store.find::<Answer>(MOVED_ASIDE, &place)?, Found::Nothing) {
                return Ok(place);
            }
        }
        unreachable!("there is always a next number")
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

impl Ledger {
    /// Adds made-up answers with these numbers, for the benchmark of large ledgers.
    ///
    /// # Errors
    /// The disk refused.
    pub(crate) async fn fill(&self, numbers: std::ops::Range<u64>) -> Result<()> {
        use futures::{StreamExt, TryStreamExt};
        let tokens = Tokens { prompt: 1200, cached: 1024, completion: 2 };
        let answer = Answer {
            text: Some("NON-COMPLIANT".into()),
            finish: "stop".into(),
            model: "gpt-4o-2024-11-20".into(),
            tokens,
            fingerprint: Some("fp_0123456789".into()),
            attempts: 1,
            cost_usd: Some(0.0031),
            endpoint: "openai".into(),
            ..Answer::default()
        };
        let account = account::Account::new("bench", []);
        let settled = futures::stream::iter(numbers).map(|number| {
            let (key, answer) = (blake3::hash(&number.to_le_bytes()).to_hex()[..32].to_owned(), &answer);
            let mut money = account.incur(Money::default());
            async move {
                self.intend(&key, &answer.model, number, money.opened()).await?;
                self.settle(&key, answer, money.settled(Money::default())).await
            }
        });
        settled.buffer_unordered(2048).try_collect().await
    }
}

/// Takes what a store lacks from the exports, then sets them aside: they speak of another log. Answers that were moved
/// aside stay so. Returns how many answers were taken.
fn refill(store: &Store, exports: &Path, aside: &Path) -> Result<u64> {
    let (mut filled, mut waiting) = (0, Vec::new());
    let mut moved_aside = HashSet::new();
    store.visit(MOVED_ASIDE, |place, answer: Answer| {
        let key = place.split('/').next().unwrap_or(place).to_owned();
        moved_aside.insert((key, answer.at_ms));
        Ok(())
    })?;
    exports::visit(exports, |key, answer| {
        let place = (key, answer.at_ms);
        if moved_aside.contains(&place) || matches!(store.find::<Answer>(ANSWERS, &place.0)?, Found::Value(_)) {
            return Ok(());
        }
        let key = place.0;
        filled += 1;
        waiting.push(Change::put(ANSWERS, key, &answer));
        if waiting.len() == 64 {
            store.commit_blocking(std::mem::take(&mut waiting))?;
        }
        Ok(())
    })?;
    store.commit_blocking(waiting)?;
    match std::fs::rename(exports, aside) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(Error::io("set aside", exports, source)),
        _ => Ok(filled),
    }
}

/// Writes the loss file and names the first of what is lost.
fn report(store: &Store, Salvaged { set_aside, kept, lost }: &Salvaged) -> Result<()> {
    let path = set_aside.join("loss.jsonl");
    let mut file = LinesWriter::create(&path)?;
    let mut gone = 0;
    for lost in lost {
        let mut write = |key: Option<&str>, kind: Option<&str>, restored: bool| {
            if !restored && kind != Some(INTENTS) {
                gone += 1;
                if gone <= NAMED {
                    tracing::warn!("lost: answer {} (line {} of the log)", key.unwrap_or("of unknown key"), lost.line);
                }
            }
            file.push(&Loss { key, kind, line: lost.line, byte: lost.byte, restored })
        };
        if lost.keys.is_empty() {
            write(None, None, false)?;
        }
        for (kind, key) in &lost.keys {
            let restored = kind == ANSWERS && matches!(store.find::<Answer>(ANSWERS, key)?, Found::Value(_));
            write(Some(key), Some(kind), restored)?;
        }
    }
    file.finish()?;
    tracing::warn!(
        "the ledger's log was damaged and is set aside in {}: {kept} commits go on, {} lines were damaged, {gone} answers \
         are lost and asked for again when they are needed; all are listed in {}",
        set_aside.display(),
        lost.len(),
        path.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests;
