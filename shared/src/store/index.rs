//! The index: where each key's value lies in the log.
//!
//! sled holds it, but for the latest changes: those are kept in memory and brought into sled some thousands at a time, in
//! order of keys. A key that comes and goes in between, as an intent does, never gets there. What is in memory alone is
//! read again from the log when the store is opened, so an index that lost its end costs milliseconds.
//!
//! Keys are inserted one by one: sled frees memory by the number of its operations, and large batches outgrow it. A
//! death among them leaves keys in sled that the log brings again; the line that set a key first is kept with it, so
//! that the count of keys stays right.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::line::Place;
use crate::error::{Error, Result};

/// Where the index keeps how much of the log it holds; no tree has these names.
const STATE: &[u8] = b"\0state";
/// How much it will hold when the changes being brought in are all there.
const REACHES: &[u8] = b"\0reaches";
/// Latest changes kept in memory until they are brought in.
const RECENT: usize = 16_384;
/// Beside commits, so many keys are brought in at a time, and nothing for so long after: a thousand at once would have those
/// who wait for a commit wait for the processor.
const AT_ONCE: usize = 64;
const AFTER: Duration = Duration::from_millis(2);
const CACHE_BYTES: u64 = 16 << 20;
/// An index that threads still hold is asked for again so often, after so long each time.
const RELEASE_TRIES: u32 = 100;
const RELEASE_WAIT: Duration = Duration::from_millis(20);

/// How much of the log was taken in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Applied {
    pub(super) commits: u64,
    pub(super) bytes: u64,
}

/// What sled knows of itself.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct State {
    applied: Applied,
    counts: BTreeMap<String, u64>,
}

/// Latest changes by key; none removes it.
type Table = BTreeMap<Vec<u8>, Option<Place>>;

#[derive(Debug)]
pub(super) struct Index {
    sled: sled::Db,
    recent: RwLock<Recent>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct Recent {
    latest: Table,
    applied: Applied,
    /// On its way into sled.
    leaving: Option<Arc<Table>>,
    /// sled refused; what is in memory stays there until the store is opened again.
    stuck: bool,
}

/// Changes on their way into sled.
pub(super) struct Leaving {
    table: Arc<Table>,
    applied: Applied,
}

pub(super) fn index_key(tree: &str, key: &str) -> Vec<u8> {
    [tree.as_bytes(), b"\0", key.as_bytes()].concat()
}

impl Index {
    /// Opens an index; the error is the reason to make it anew. `belongs` says whether the log has a line's end there.
    pub(super) fn open(path: &Path, belongs: impl Fn(u64) -> bool) -> std::result::Result<Index, String> {
        let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None);
        // A damaged file has been seen to panic inside sled.
        let open = || std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| config.open()));
        let is_held = |opened: &std::thread::Result<sled::Result<sled::Db>>| matches!(opened, Ok(Err(sled::Error::Io(error))) if error.to_string().contains("could not acquire lock"));
        let mut opened = open();
        // The folder is ours: who holds the index can only be threads of an earlier one in this process that are not done.
        for _ in 0..RELEASE_TRIES {
            if !is_held(&opened) {
                break;
            }
            std::thread::sleep(RELEASE_WAIT);
            opened = open();
        }
        let sled = opened.map_err(|_| "cannot be read".to_owned())?.map_err(|error| error.to_string())?;
        let known = |key| sled.get(key).map_err(|error| error.to_string());
        let state = match known(STATE)? {
            Some(state) => serde_json::from_slice(&state).map_err(|error| error.to_string())?,
            None if sled.is_empty() || known(REACHES)?.is_some() => State::default(),
            None => return Err("is of an earlier form".into()),
        };
        let reaches = known(REACHES)?.and_then(|bytes| Some(u64::from_le_bytes((*bytes).try_into().ok()?)));
        if !belongs(state.applied.bytes) || !belongs(reaches.unwrap_or(0)) {
            return Err("does not belong to the log beside it".into());
        }
        let recent = Recent { applied: state.applied, ..Recent::default() };
        Ok(Index { sled, recent: RwLock::new(recent), state: Mutex::new(state) })
    }

    /// Returns how much of the log was taken in.
    pub(super) fn applied(&self) -> Applied {
        self.recent.read().unwrap_or_else(PoisonError::into_inner).applied
    }

    /// Takes commits in. Where it returns changes, they are for [`Index::bring_in_slowly`], on whatever thread.
    pub(super) fn note(
        &self,
        changes: impl IntoIterator<Item = (Vec<u8>, Option<Place>)>,
        applied: Applied,
    ) -> Option<Leaving> {
        let mut recent = self.recent.write().unwrap_or_else(PoisonError::into_inner);
        recent.latest.extend(changes);
        recent.applied = applied;
        if recent.latest.len() < RECENT || recent.leaving.is_some() || recent.stuck {
            return None;
        }
        recent.leave()
    }

    /// Returns all changes that are in memory alone.
    pub(super) fn rest(&self) -> Option<Leaving> {
        let mut recent = self.recent.write().unwrap_or_else(PoisonError::into_inner);
        (recent.leaving.is_none() && !recent.stuck && !recent.latest.is_empty()).then(|| recent.leave()).flatten()
    }

    /// Brings changes into sled, as fast as it can.
    pub(super) fn bring_in(&self, leaving: &Leaving) {
        self.brought_in(self.try_bring_in(leaving, || {}));
    }

    /// Brings changes into sled beside commits: with pauses, unless as many more have come meanwhile or `is_over` says that no more
    /// commits come.
    pub(super) fn bring_in_slowly(&self, leaving: &Leaving, is_over: &AtomicBool) {
        let is_behind = || self.recent.read().unwrap_or_else(PoisonError::into_inner).latest.len() >= RECENT;
        let pause = || {
            if !is_over.load(Ordering::Relaxed) && !is_behind() {
                std::thread::sleep(AFTER);
            }
        };
        self.brought_in(self.try_bring_in(leaving, pause));
    }

    fn brought_in(&self, outcome: sled::Result<()>) {
        let mut recent = self.recent.write().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(()) => recent.leaving = None,
            Err(error) => {
                tracing::error!("the index cannot be written ({error}); it is brought up to the log at the next start");
                recent.stuck = true;
            }
        }
    }

    fn try_bring_in(&self, Leaving { table, applied }: &Leaving, pause: impl Fn()) -> sled::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = state.applied.bytes;
        // Keys that came in a flush cut short by a death are not in the counts yet.
        let counted = |born: u64| born < before;
        self.sled.insert(REACHES, &applied.bytes.to_le_bytes())?;
        let mut end = sled::Batch::default();
        for (number, (key, place)) in table.iter().enumerate() {
            if number % AT_ONCE == AT_ONCE - 1 {
                pause();
            }
            let old = self.sled.get(key)?.and_then(|old| Place::from_bytes(&old));
            let born = old.map(|(_, born)| born);
            let tree = key.split(|byte| *byte == 0).next().unwrap_or_default();
            let count = state.counts.entry(String::from_utf8_lossy(tree).into_owned()).or_default();
            match place {
                Some(place) => {
                    self.sled.insert(key, &place.to_bytes(born.unwrap_or(place.line)))?;
                    *count += u64::from(!born.is_some_and(counted));
                }
                None if born.is_some() => {
                    end.remove(key.as_slice());
                    *count = count.saturating_sub(u64::from(born.is_some_and(counted)));
                }
                None => {}
            }
        }
        self.sled.flush()?;
        state.applied = *applied;
        end.insert(STATE, serde_json::to_vec(&*state).expect("plain data"));
        self.sled.apply_batch(end)?;
        self.sled.flush().map(|_| ())
    }

    /// Returns where a key's value lies.
    pub(super) fn get(&self, key: &[u8]) -> sled::Result<Option<Place>> {
        {
            let recent = self.recent.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(place) = recent.get(key) {
                return Ok(place);
            }
        }
        Ok(self.sled.get(key)?.and_then(|bytes| Place::from_bytes(&bytes)).map(|(place, _)| place))
    }

    /// Calls `visit` for every key with a prefix and its place, in order of keys.
    pub(super) fn visit(&self, prefix: &[u8], mut visit: impl FnMut(&[u8], Place) -> Result<()>) -> Result<()> {
        let recent = self.recent.read().unwrap_or_else(PoisonError::into_inner).with_prefix(prefix);
        let mut recent = recent.into_iter().peekable();
        for entry in self.sled.scan_prefix(prefix) {
            let (key, bytes) = entry.map_err(|error| unreadable(&error))?;
            while let Some((earlier, place)) = recent.next_if(|(other, _)| other.as_slice() < &*key) {
                place.map_or(Ok(()), |place| visit(&earlier, place))?;
            }
            let place = match recent.next_if(|(other, _)| other.as_slice() == &*key) {
                Some((_, place)) => place,
                None => Place::from_bytes(&bytes).map(|(place, _)| place),
            };
            place.map_or(Ok(()), |place| visit(&key, place))?;
        }
        for (key, place) in recent {
            place.map_or(Ok(()), |place| visit(&key, place))?;
        }
        Ok(())
    }

    /// Returns how many keys a tree has. Waits for what is being brought in.
    pub(super) fn count(&self, tree: &str) -> sled::Result<u64> {
        // The state first: what is brought in meanwhile is waited for and not counted twice.
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = self.recent.read().unwrap_or_else(PoisonError::into_inner).with_prefix(&index_key(tree, ""));
        let mut count = state.counts.get(tree).copied().unwrap_or(0);
        for (key, place) in recent {
            let known = self.sled.get(key)?.and_then(|old| Place::from_bytes(&old));
            let known = known.is_some_and(|(_, born)| born < state.applied.bytes);
            match (known, place) {
                (false, Some(_)) => count += 1,
                (true, None) => count = count.saturating_sub(1),
                _ => {}
            }
        }
        Ok(count)
    }
}

pub(super) fn unreadable(error: &sled::Error) -> Error {
    Error::Config(format!("the store's index cannot be read ({error}); remove its folder index/, it is made anew"))
}

impl Recent {
    fn leave(&mut self) -> Option<Leaving> {
        let table = Arc::new(std::mem::take(&mut self.latest));
        self.leaving = Some(table.clone());
        Some(Leaving { table, applied: self.applied })
    }

    fn get(&self, key: &[u8]) -> Option<Option<Place>> {
        let leaving = || self.leaving.as_ref().and_then(|table| table.get(key));
        self.latest.get(key).or_else(leaving).copied()
    }

    fn with_prefix(&self, prefix: &[u8]) -> Table {
        let of = |table: &Table| {
            let from = table.range(prefix.to_vec()..);
            from.take_while(|(key, _)| key.starts_with(prefix)).map(|(key, place)| (key.clone(), *place)).collect()
        };
        let mut all: Table = self.leaving.as_deref().map(of).unwrap_or_default();
        all.extend(of(&self.latest));
        all
    }
}
