//! The folder of one run: its name, its key, and whether it is complete.
//!
//! `run.json` holds every setting that shapes the result, written when scoring is done and training begins; a later
//! command that differs is refused with the settings that differ, once there is anything to lose (scores or a
//! checkpoint). `train_summary.json` is written last: where it is, the run is complete. A command that is refused leaves
//! no empty folder behind. `run.lock` is there while a process works in the folder, or after one was killed; see
//! [`crate::fence`] for who may take it over.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::{Map, Value};

use super::TrainArgs;
use crate::collective::Collective;
use crate::dataset::DataSet;
use crate::error::{Error, Result};
use crate::fence::{Attempt, Place, Wish};
use crate::in_flight::InFlight;

/// The note of what is computed, in the folder.
const IN_FLIGHT: &str = "train.in_flight";

/// An open run folder.
#[derive(Debug)]
pub struct RunFolder {
    /// Where it is.
    pub path: PathBuf,
    /// Hash of all that shapes the run; known after [`RunFolder::begin`].
    pub key: String,
    /// Held while this process works in the folder; by the gang's first rank alone.
    lock: Option<Arc<Place>>,
    /// Folders that this command made, the innermost first.
    made: Vec<PathBuf>,
    is_complete: bool,
}

impl RunFolder {
    /// Makes the folder the options name. Only its owner, the first rank, writes in it. `attempt` is the one that asks, where
    /// a coordinator counts them.
    ///
    /// # Errors
    /// It cannot be made, a checkpoint to resume from is not in a run folder, or a gang would have no common name for it.
    pub fn open(args: &TrainArgs, is_owner: bool, attempt: Option<&Attempt>) -> Result<Self> {
        let path = if let Some(checkpoint) = &args.resume_from_checkpoint {
            folder_of(checkpoint)?
        } else if let Some(name) = &args.run_name {
            args.runs_dir().join(name)
        } else {
            if !is_owner {
                return Err(Error::Config("a gang's run needs --run-name: its members share the folder".into()));
            }
            let model = crate::model_folder::base_name(&args.model.model_name_or_path);
            let data = shared::output::stem(&args.dataset_json_path);
            args.runs_dir().join(format!("{model}__{data}__{}", time_stamp(SystemTime::now())))
        };
        if !is_owner {
            return Ok(RunFolder { path, key: String::new(), lock: None, made: Vec::new(), is_complete: false });
        }
        let made = path.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists());
        let made = made.map(Path::to_owned).collect();
        std::fs::create_dir_all(&path).map_err(|e| Error::model(&path, e.to_string()))?;
        let wish = Wish { attempt, named: &path, instead: "choose another --run-name" };
        let lock = Place::lock(&path.join("run.lock"), &wish)?;
        Ok(RunFolder { path, key: String::new(), lock: Some(Arc::new(lock)), made, is_complete: false })
    }

    /// Makes sure that the folder is still this process's; to be called before anything is written in it.
    ///
    /// # Errors
    /// A newer attempt has taken it over.
    pub fn check(&self) -> Result<()> {
        self.lock.as_ref().map_or(Ok(()), |lock| lock.check())
    }

    /// Returns what another thread asks whether the folder is still this process's; nothing where it is not to begin with.
    pub fn guard(&self) -> Option<Arc<Place>> {
        self.lock.clone()
    }

    /// Compares what shapes the run with what is recorded. Returns the summary of a complete run.
    ///
    /// # Errors
    /// The folder belongs to a run with other settings: the message lists them.
    pub fn begin(&mut self, key: &Value) -> Result<Option<Value>> {
        self.key = crate::score::shared_hash(key);
        if !self.is_owned() {
            return Ok(None);
        }
        let file = self.path.join("run.json");
        if !file.exists() || !self.has_results()? {
            return Ok(None);
        }
        let recorded: Value = shared::input::read_json(&file)?;
        let differences = differences(&recorded, key);
        if !differences.is_empty() {
            return Err(Error::Config(format!(
                "{}: holds a run with other settings ({}); choose another --run-name, or remove the folder",
                self.path.display(),
                differences.join("; ")
            )));
        }
        let summary = self.path.join("train_summary.json");
        self.is_complete = summary.exists();
        Ok(if self.is_complete { Some(shared::input::read_json(&summary)?) } else { None })
    }

    /// Records what shapes the run: from now on the folder is this run's.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn bind(&self, key: &Value) -> Result<()> {
        self.check()?;
        Ok(shared::output::write_json(&self.path.join("run.json"), key)?)
    }

    /// Returns whether there is work in the folder that another run would have to throw away.
    fn has_results(&self) -> Result<bool> {
        let is_there = |name: &str| self.path.join(name).exists();
        Ok(is_there("weighted_dataset.json")
            || is_there("train_summary.json")
            || super::checkpoint::newest(&self.path)?.is_some())
    }

    /// Returns whether this process writes in the folder.
    pub fn is_owned(&self) -> bool {
        self.lock.is_some()
    }

    /// Returns the summary of a complete run.
    ///
    /// # Errors
    /// It is not there, or cannot be read.
    pub fn summary(&self) -> Result<Value> {
        Ok(shared::input::read_json(&self.path.join("train_summary.json"))?)
    }

    /// Writes the summary that marks the run complete.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn finish(&mut self, summary: Value) -> Result<Value> {
        self.check()?;
        shared::output::write_json(&self.path.join("train_summary.json"), &summary)?;
        self.is_complete = true;
        Ok(summary)
    }

    /// Reads what was in flight when the attempt before ended; the first rank's word counts.
    ///
    /// # Errors
    /// Three attempts in a row died in one piece, which the first rank names; a member of the gang is gone.
    pub(super) fn in_flight(&self, records: &Path, gang: &mut dyn Collective) -> Result<InFlight> {
        let opened = match self.is_owned() {
            true => InFlight::open(&self.path.join(IN_FLIGHT), &self.key, records),
            false => Ok(InFlight::unkept()),
        };
        if gang.first_of(f64::from(u8::from(opened.is_err())))? != 0.0 && opened.is_ok() {
            // Its error is the one that is to be told, whichever rank ends first.
            return Err(Error::Gang(format!(
                "{}: three attempts in a row died in one step; the first rank names it",
                records.display()
            )));
        }
        opened
    }

    /// Says, of a rank that is not the first, that it ends by an error of its own, not of the step's records.
    pub(super) fn excuse_step(&self) {
        if !self.is_owned() {
            InFlight::excuse(&self.path.join(IN_FLIGHT));
        }
    }

    /// Writes what was set aside of the records, the replay and the validation.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub(super) fn keep_set_aside(
        &self,
        set: &DataSet,
        replay: Option<&DataSet>,
        validation: Option<&DataSet>,
    ) -> Result<()> {
        let beside = |file: &Path, part: &str| self.path.join(format!("{}{part}.json", shared::output::stem(file)));
        set.set_aside(&beside(&set.file, ""))?;
        for (set, part) in [(replay, "_replay"), (validation, "_validation")] {
            if let Some(set) = set {
                set.set_aside(&beside(&set.file, part))?;
            }
        }
        Ok(())
    }
}

/// Lets the folder go. A command that was refused before it wrote anything takes the folders away that it made.
impl Drop for RunFolder {
    fn drop(&mut self) {
        // One that another process left stays until the run is complete, as all it left.
        if let Some(lock) = self.lock.as_ref().filter(|lock| self.is_complete || !lock.was_there()) {
            // One that cannot be removed is used again.
            let _ = lock.remove();
        }
        for folder in &self.made {
            // One that holds something stays, and so do those above it.
            if std::fs::remove_dir(folder).is_err() {
                return;
            }
        }
    }
}

/// Returns the run folder of a checkpoint to resume from. Only the newest one will do: going back would leave later
/// checkpoints of another history beside it.
fn folder_of(checkpoint: &Path) -> Result<PathBuf> {
    let whole = checkpoint.canonicalize().unwrap_or_else(|_| checkpoint.to_owned());
    let parent = whole.parent().filter(|_| whole.is_dir() && whole.join("state.json").exists());
    let Some(parent) = parent else {
        return Err(Error::model(checkpoint, "is not a checkpoint folder inside a run folder"));
    };
    match super::checkpoint::newest(parent)? {
        Some((_, newest)) if newest != whole => Err(Error::model(
            checkpoint,
            format!(
                "is not the newest checkpoint of its run, that is {}; name that one, or remove it",
                newest.display()
            ),
        )),
        _ => Ok(parent.to_owned()),
    }
}

/// Lists where two keys differ, as `beta: 0.3 there, 1.0 here`.
fn differences(recorded: &Value, wanted: &Value) -> Vec<String> {
    let (mut a, mut b) = (Map::new(), Map::new());
    flatten("", recorded, &mut a);
    flatten("", wanted, &mut b);
    let names: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let show = |value: Option<&Value>| value.map_or("nothing".to_owned(), Value::to_string);
    names
        .into_iter()
        .filter(|name| a.get(*name) != b.get(*name))
        .map(|name| format!("{name}: {} there, {} here", show(a.get(name)), show(b.get(name))))
        .collect()
}

fn flatten(prefix: &str, value: &Value, into: &mut Map<String, Value>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let name =
                    if prefix.is_empty() || prefix == "options" { name.clone() } else { format!("{prefix}.{name}") };
                flatten(&name, value, into);
            }
        }
        other => {
            into.insert(prefix.to_owned(), other.clone());
        }
    }
}

/// Returns `YYYYmmdd_HHMMSS` in UTC.
fn time_stamp(now: SystemTime) -> String {
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (year, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}{month:02}{day:02}_{hour:02}{minute:02}{second:02}")
}

/// Returns the date of a day counted from 1970-01-01.
fn civil(mut days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    (year, month as u64 + 1, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::time::Duration;

    #[test]
    fn time_stamps_are_civil() {
        let at = |seconds| time_stamp(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "19700101_000000");
        assert_eq!(at(951_827_696), "20000229_123456");
        assert_eq!(at(1_798_761_599), "20261231_235959");
    }

    #[test]
    fn differences_name_the_setting() {
        let a = json!({"options": {"beta": 0.3, "lora": {"lora_r": 8}}, "model": "x"});
        let b = json!({"options": {"beta": 1.0, "lora": {"lora_r": 8}}, "model": "x"});
        assert_eq!(differences(&a, &b), ["beta: 0.3 there, 1.0 here"]);
        assert!(differences(&a, &a).is_empty());
    }
}
