//! Where parts live: their records in the ledger's store, their files of requests in its folder `batches`.
//!
//! A record counts once it is in the store; a file without one is the rest of a gathering that died, and goes.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shared::store::Change;

use super::lines::{self, Key};
use super::part::{Part, Phase};
use super::plan::Filled;
use crate::api::ledger::{Answer, Ledger};
use crate::api::request::Request;
use crate::api::tokens;
use crate::error::Result;
use shared::prices::Tokens;

const PARTS: &str = "batch_parts";
const BEGUN: &str = "batch_jobs";

/// The parts of a ledger.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    ledger: Ledger,
    folder: PathBuf,
}

/// When a job with a deadline began.
#[derive(Debug, Serialize, Deserialize)]
struct Begun {
    at_ms: u64,
}

/// What parts have in common that one job makes.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    pub(super) job: String,
    pub(super) base_url: String,
    pub(super) account: String,
    /// What the model is called there, where it has another name.
    pub(super) alias: Option<String>,
}

impl Parts {
    /// Returns the parts of a ledger.
    pub(crate) fn of(ledger: &Ledger) -> Parts {
        Parts { ledger: ledger.clone(), folder: ledger.folder().join("batches") }
    }

    /// Returns all parts, in the order of their numbers.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(crate) fn all(&self) -> Result<Vec<Part>> {
        let parts: Vec<(String, Part)> = self.ledger.store().scan(PARTS)?;
        let mut parts: Vec<Part> = parts.into_iter().map(|(_, part)| part).collect();
        parts.sort_by_key(|part| part.number);
        Ok(parts)
    }

    /// Saves parts and what their account paid, all or none.
    ///
    /// # Errors
    /// The disk refused.
    pub(super) async fn save(&self, parts: impl IntoIterator<Item = &Part>, paid: Option<Change>) -> Result<()> {
        let parts = parts.into_iter().map(|part| Change::put(PARTS, &part.id, part));
        let changes: Vec<Change> = parts.chain(paid).collect();
        if !changes.is_empty() {
            self.ledger.store().commit(changes).await?;
        }
        Ok(())
    }

    /// Stores answers that came with a batch.
    ///
    /// # Errors
    /// The disk refused.
    pub(super) async fn settle(&self, answers: &[(Key, Answer)]) -> Result<()> {
        Ok(self.ledger.settle_all(answers.iter().map(|(key, answer)| (lines::text(*key), answer))).await?)
    }

    /// Returns whether a request has its answer.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(super) fn is_answered(&self, key: Key) -> Result<bool> {
        Ok(self.ledger.answer(&lines::text(key))?.is_some())
    }

    /// Returns where a part's requests lie.
    pub(super) fn file(&self, part: &Part) -> PathBuf {
        self.folder.join(format!("{}.jsonl", part.id))
    }

    /// Returns the keys of a part's requests.
    ///
    /// # Errors
    /// Its file is gone or not what was written.
    pub(super) fn keys(&self, part: &Part) -> Result<HashSet<Key>> {
        let path = self.file(part);
        let mut keys = HashSet::with_capacity(part.requests as usize);
        for line in BufReader::new(open(&path)?).lines() {
            let line = line.map_err(|source| shared::Error::io("read", &path, source))?;
            let problem = "holds a line that is no request; the requests of this batch cannot be told";
            keys.insert(lines::key_of_request(&line).ok_or_else(|| shared::Error::file(&path, problem))?);
        }
        Ok(keys)
    }

    /// Writes some requests of a part into a new part, the next attempt.
    ///
    /// # Errors
    /// The disk.
    pub(super) fn rest(&self, part: &Part, keys: &[Key], number: u32) -> Result<Part> {
        let (wanted, path) = (keys.iter().copied().collect::<HashSet<Key>>(), self.file(part));
        let mut spool = Spool::begin(&self.folder)?;
        for line in BufReader::new(open(&path)?).lines() {
            let line = line.map_err(|source| shared::Error::io("read", &path, source))?;
            if let Some(key) = lines::key_of_request(&line).filter(|key| wanted.contains(key)) {
                let share = |whole: u64| whole.div_ceil(part.requests.max(1));
                let Tokens { prompt, completion, .. } = part.worst;
                let worst = Tokens { prompt: share(prompt), cached: 0, completion: share(completion) };
                spool.push(key, &format!("{line}\n"), worst)?;
            }
        }
        let Part { job, base_url, account, .. } = part.clone();
        let origin = Origin { job, base_url, account, alias: None };
        spool.finish(&origin, &part.model, number, part.attempt + 1)
    }

    /// Removes the file of a part that is done, and files that belong to none.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub(super) fn sweep(&self) -> Result<()> {
        if !self.folder.is_dir() {
            return Ok(());
        }
        let open: HashSet<PathBuf> =
            self.all()?.iter().filter(|part| part.is_open()).map(|part| self.file(part)).collect();
        let io = |source| shared::Error::io("read", &self.folder, source);
        for entry in std::fs::read_dir(&self.folder).map_err(io)? {
            let path = entry.map_err(io)?.path();
            if !open.contains(&path) {
                std::fs::remove_file(&path).map_err(|source| shared::Error::io("remove", &path, source))?;
            }
        }
        Ok(())
    }

    /// Begins a file of requests.
    ///
    /// # Errors
    /// The disk.
    pub(super) fn spool(&self) -> Result<Spool> {
        Spool::begin(&self.folder)
    }

    /// Returns when a job began: now, or when it did before it was interrupted.
    ///
    /// # Errors
    /// The disk.
    pub(super) async fn begun(&self, job: &str, now_ms: u64) -> Result<u64> {
        if let Some(Begun { at_ms }) = self.ledger.store().get(BEGUN, job)? {
            return Ok(at_ms);
        }
        self.ledger.store().commit(vec![Change::put(BEGUN, job, &Begun { at_ms: now_ms })]).await?;
        Ok(now_ms)
    }

    /// Forgets when a job began: it has ended.
    ///
    /// # Errors
    /// The disk.
    pub(super) async fn ended(&self, job: &str) -> Result<()> {
        Ok(self.ledger.store().commit(vec![Change::remove(BEGUN, job)]).await?)
    }
}

fn open(path: &Path) -> Result<File> {
    Ok(File::open(path).map_err(|source| shared::Error::io("open", path, source))?)
}

/// A file of requests that is being written.
#[derive(Debug)]
pub(super) struct Spool {
    folder: PathBuf,
    path: PathBuf,
    file: BufWriter<File>,
    hash: blake3::Hasher,
    filled: Filled,
    worst: Tokens,
}

impl Spool {
    fn begin(folder: &Path) -> Result<Spool> {
        std::fs::create_dir_all(folder).map_err(|source| shared::Error::io("make", folder, source))?;
        let free = |n: &u32| !folder.join(format!("gathering-{n}")).exists();
        let path = folder.join(format!("gathering-{}", (0..).find(free).unwrap_or_default()));
        let file = File::create(&path).map_err(|source| shared::Error::io("create", &path, source))?;
        let file = BufWriter::with_capacity(1 << 18, file);
        let (folder, hash) = (folder.to_owned(), blake3::Hasher::new());
        Ok(Spool { folder, path, file, hash, filled: Filled::default(), worst: Tokens::default() })
    }

    /// Returns whether a line still fits.
    pub(super) fn has_room(&self, line: &str) -> bool {
        self.filled.has_room(line.len() as u64)
    }

    pub(super) fn push(&mut self, key: Key, line: &str, worst: Tokens) -> Result<()> {
        self.file.write_all(line.as_bytes()).map_err(|source| shared::Error::io("write", &self.path, source))?;
        self.hash.update(&key.to_le_bytes());
        self.filled.add(line.len() as u64);
        self.worst.prompt += worst.prompt;
        self.worst.completion += worst.completion;
        Ok(())
    }

    /// Syncs the file and gives it its name. The part is not saved yet.
    pub(super) fn finish(mut self, origin: &Origin, model: &str, number: u32, attempt: u32) -> Result<Part> {
        let io = |source| shared::Error::io("write", &self.path, source);
        self.file.flush().and_then(|()| self.file.get_ref().sync_all()).map_err(io)?;
        self.hash.update(format!("{} {number}", origin.job).as_bytes());
        let part = Part {
            id: self.hash.finalize().to_hex()[..16].to_owned(),
            job: origin.job.clone(),
            number,
            attempt,
            base_url: origin.base_url.clone(),
            account: origin.account.clone(),
            model: model.to_owned(),
            requests: self.filled.requests,
            bytes: self.filled.bytes,
            worst: self.worst,
            taken_back: false,
            phase: Phase::Spooled,
        };
        let target = self.folder.join(format!("{}.jsonl", part.id));
        std::fs::rename(&self.path, &target).map_err(|source| shared::Error::io("rename", &self.path, source))?;
        if let Ok(folder) = File::open(&self.folder) {
            // Some file systems cannot sync a folder; the rename stands all the same.
            let _ = folder.sync_all();
        }
        Ok(part)
    }
}

/// Returns the most that a request can cost, in tokens.
pub(super) fn worst(request: &Request) -> Tokens {
    Tokens { prompt: tokens::most(&request.body), cached: 0, completion: tokens::completion_limit(&request.body) }
}
