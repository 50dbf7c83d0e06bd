//! The coordinator's disk: commits are whole or not there.

use std::collections::BTreeMap;

use serde_json::Value;
use shared::store::Change;

use super::world::World;

#[derive(Debug, Default)]
pub(super) struct Disk {
    /// By tree and key.
    pub(super) records: BTreeMap<(String, String), String>,
    /// What the last commit replaced.
    undo: Vec<((String, String), Option<String>)>,
    pub(super) slow_until_ms: u64,
    pub(super) full_until_ms: u64,
}

impl Disk {
    pub(super) fn commit(&mut self, changes: &[Change]) {
        self.undo.clear();
        for change in changes {
            let key = (change.name().0.to_owned(), change.name().1.to_owned());
            let before = match change.value() {
                Some(value) => self.records.insert(key.clone(), value.to_owned()),
                None => self.records.remove(&key),
            };
            self.undo.push((key, before));
        }
    }

    /// Loses the last commit, as a disk does that was not told to flush.
    pub(super) fn lose_last(&mut self) {
        for (key, before) in self.undo.drain(..).rev() {
            match before {
                Some(value) => self.records.insert(key, value),
                None => self.records.remove(&key),
            };
        }
    }

    pub(super) fn value(&self, tree: &str, key: &str) -> Option<Value> {
        let text = self.records.get(&(tree.to_owned(), key.to_owned()))?;
        Some(serde_json::from_str(text).expect("records are JSON"))
    }
}

impl World {
    /// Returns how long a commit takes.
    pub(super) fn commit_ms(&mut self) -> u64 {
        let slowest = if self.now_ms < self.disk.slow_until_ms { 3000 } else { 8 };
        self.draw(1, slowest)
    }
}
