//! The files of checkpoints: their names, how they get them, and what is read back.
//!
//! ```text
//! checkpoint-N/                          N = optimiser steps done
//!   state.json                           step, key of the run, hash of the tensors, ranks that wrote slices, its own hash
//!   state.safetensors                    what is whole, by the first rank
//!   shard-RRRRR-of-WWWWW.safetensors     a rank's slices, where the optimiser is sharded
//!   shard-RRRRR-of-WWWWW.json            where they lie in their rows, their hash, its own hash
//! ```
//!
//! All of it is written in a folder beside, `checkpoint-N.TOKEN.tmp`, whose token is the attempt's own: a process of an older
//! attempt that was frozen while it wrote finds its folder removed, not filled by another. `state.json` comes last, then the
//! folder gets its final name. What stands under a final name is whole, unless the disk damaged it, which the hashes tell.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::slices::{self, Place, Slice};
use crate::error::{Error, Result};
use crate::model::tensor_file::{self, TensorFile};
use crate::train::pace::Seen;

const FORMAT: u32 = 2;
const STATE: &str = "state.json";
const TENSORS: &str = "state.safetensors";

/// The readable half of a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Format version.
    pub format: u32,
    /// Optimiser steps done.
    pub step: u64,
    /// Key of everything that shapes the run; a checkpoint of another key is not continued.
    pub run_key: String,
    /// What the losses so far have decided about the learning rate.
    #[serde(default, skip_serializing_if = "Seen::is_empty")]
    pub seen: Seen,
    /// BLAKE3 of `state.safetensors`.
    pub tensors_blake3: String,
    /// Ranks that wrote slices; 0 where nothing is sharded.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub shards: usize,
    /// BLAKE3 of all this, as it is written without this.
    #[serde(default)]
    own_blake3: String,
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(shards: &usize) -> bool {
    *shards == 0
}

/// What a checkpoint of any format says first.
#[derive(Deserialize)]
struct OnlyFormat {
    format: u32,
}

/// The readable half of a rank's slices.
#[derive(Debug, Serialize, Deserialize)]
struct ShardState {
    format: u32,
    step: u64,
    slices: BTreeMap<String, Place>,
    /// BLAKE3 of the file of the same name.
    tensors_blake3: String,
    /// BLAKE3 of all this, as it is written without this.
    #[serde(default)]
    own_blake3: String,
}

/// What says of itself whether it is as it was written.
trait Sealed: Serialize + DeserializeOwned {
    fn seal(&mut self) -> &mut String;

    fn hash(&mut self) -> String {
        self.seal().clear();
        blake3::hash(&serde_json::to_vec(self).expect("it is plain data")).to_hex().to_string()
    }

    fn sealed(mut self) -> Self {
        *self.seal() = self.hash();
        self
    }

    /// Reads one that is as it was written.
    fn read(file: &Path) -> Result<Self> {
        let mut read: Self = shared::input::read_json(file)?;
        let said = read.seal().clone();
        if read.hash() != said {
            return Err(Error::model(file, "is damaged: its hash is not the one recorded in it"));
        }
        Ok(read)
    }
}

impl Sealed for State {
    fn seal(&mut self) -> &mut String {
        &mut self.own_blake3
    }
}

impl Sealed for ShardState {
    fn seal(&mut self) -> &mut String {
        &mut self.own_blake3
    }
}

/// A checkpoint that is being written.
#[derive(Debug, Clone)]
pub(super) struct Unfinished {
    run_dir: PathBuf,
    step: u64,
    token: u64,
}

impl Unfinished {
    /// Returns one of which nothing is there yet.
    pub(super) fn new(run_dir: &Path, step: u64, token: u64) -> Unfinished {
        Unfinished { run_dir: run_dir.to_owned(), step, token }
    }

    fn target(&self) -> PathBuf {
        self.run_dir.join(format!("checkpoint-{}", self.step))
    }

    fn beside(&self) -> PathBuf {
        self.run_dir.join(format!("checkpoint-{}.{}.tmp", self.step, self.token))
    }

    fn failed(&self, error: impl std::fmt::Display) -> Error {
        Error::model(self.target(), format!("checkpoint could not be written: {error}; earlier ones are untouched"))
    }

    /// Removes what other attempts left unfinished. For the first rank alone; `check` says whether the run is still its own. What
    /// cannot be removed is told and stays: it is in nobody's way.
    ///
    /// # Errors
    /// The run's folder cannot be read, or is another attempt's.
    pub(super) fn remove_others(&self, check: impl Fn() -> Result<()>) -> Result<()> {
        let others = unfinished(&self.run_dir)?.into_iter().filter(|(token, _)| *token != Some(self.token));
        for (_, left) in others {
            // One of a newer attempt may be among what was found.
            check()?;
            if let Err(problem) = std::fs::remove_dir_all(&left) {
                tracing::warn!("{}: left unfinished, and could not be removed: {problem}", left.display());
            }
        }
        Ok(())
    }

    /// Writes what is whole; returns its hash.
    ///
    /// # Errors
    /// The disk.
    pub(super) fn write_whole(&self, tensors: &[(String, Tensor)]) -> Result<String> {
        self.write(TENSORS, tensors)
    }

    /// Writes a rank's slices and what they are.
    ///
    /// # Errors
    /// The disk.
    pub(super) fn write_shard(&self, (rank, world_size): (usize, usize), slices: &[Slice]) -> Result<()> {
        let tensors: Vec<_> = slices.iter().map(|slice| (slice.name.clone(), slice.numbers.shallow_clone())).collect();
        let [json, file] = shard_files(rank, world_size);
        let tensors_blake3 = self.write(&file, &tensors)?;
        let place = |slice: &Slice| Place { start: slice.range.start, end: slice.range.end, of: slice.of };
        let slices = slices.iter().map(|slice| (slice.name.clone(), place(slice))).collect();
        let (format, step, own_blake3) = (FORMAT, self.step, String::new());
        let state = ShardState { format, step, slices, tensors_blake3, own_blake3 }.sealed();
        shared::output::write_json(&self.beside().join(json), &state).map_err(|e| self.failed(e))
    }

    fn write(&self, name: &str, tensors: &[(String, Tensor)]) -> Result<String> {
        let file = self.beside().join(name);
        let written = std::fs::create_dir_all(self.beside()).map_err(|e| self.failed(e));
        written.and_then(|()| tensor_file::write(&file, tensors)).and_then(|()| hash(&file)).map_err(|e| match e {
            Error::Model { problem, .. } => self.failed(format!("{name}: {problem}")),
            other => self.failed(other),
        })
    }

    /// Completes the checkpoint: everything else is there.
    ///
    /// # Errors
    /// A rank's part is not there; the disk.
    pub(super) fn complete(&self, state: &State) -> Result<()> {
        let mut parts = (0..state.shards).flat_map(|rank| shard_files(rank, state.shards));
        if let Some(part) = parts.find(|part| !self.beside().join(part).exists()) {
            return Err(self.failed(format!("{part} is not there any more")));
        }
        shared::output::write_json(&self.beside().join(STATE), state).map_err(|e| self.failed(e))
    }

    /// Gives the checkpoint its name, in place of one that is there.
    ///
    /// # Errors
    /// The disk, or the folder was removed: another attempt has the run now.
    pub(super) fn rename(&self) -> Result<()> {
        let (target, beside) = (self.target(), self.beside());
        let aside = self.run_dir.join(format!("checkpoint-{}.{}.1.tmp", self.step, self.token));
        let had_one = target.exists();
        if had_one {
            std::fs::rename(&target, &aside).map_err(|e| self.failed(e))?;
        }
        if let Err(error) = std::fs::rename(&beside, &target) {
            // Frozen since the run was last checked: what was there is a newer attempt's.
            if had_one {
                let _ = std::fs::rename(&aside, &target);
            }
            return Err(self.failed(error));
        }
        if had_one {
            std::fs::remove_dir_all(&aside).map_err(|e| self.failed(e))?;
        }
        std::fs::File::open(&self.run_dir).and_then(|dir| dir.sync_all()).map_err(|e| self.failed(e))
    }

    /// Removes what was written so far.
    pub(super) fn give_up(&self) {
        // What stays is removed before the next checkpoint.
        let _ = std::fs::remove_dir_all(self.beside());
    }
}

/// Removes the oldest checkpoints beyond `keep`. Nothing else of the run's folder is touched, `best/` least of all.
///
/// # Errors
/// One cannot be removed.
pub(super) fn prune(run_dir: &Path, keep: usize) -> Result<()> {
    for (_, old) in newest_first(run_dir)?.into_iter().skip(keep.max(1)) {
        std::fs::remove_dir_all(&old).map_err(|e| Error::model(&old, format!("could not be removed: {e}")))?;
    }
    Ok(())
}

/// A checkpoint that was found whole, as far as one rank has looked.
#[derive(Debug)]
pub struct Opened {
    /// What it says of itself.
    pub state: State,
    dir: PathBuf,
    whole: TensorFile,
    shards: Vec<(TensorFile, BTreeMap<String, Place>)>,
}

impl Opened {
    /// Opens a checkpoint. The hash of every file is compared, of the slices' files those that fall to this rank.
    ///
    /// # Errors
    /// A file is missing or damaged, by name.
    pub(super) fn open(dir: &Path, (rank, world_size): (usize, usize)) -> Result<Opened> {
        let state_file = dir.join(STATE);
        let OnlyFormat { format } = shared::input::read_json(&state_file)?;
        if format != FORMAT {
            let problem = format!("has format {format}, this program reads {FORMAT}");
            return Err(Error::model(&state_file, problem));
        }
        let state = State::read(&state_file)?;
        if !dir.ends_with(format!("checkpoint-{}", state.step)) {
            return Err(Error::model(&state_file, format!("is of step {}", state.step)));
        }
        let whole = checked(&dir.join(TENSORS), Some(&state.tensors_blake3), STATE)?;
        let mut shards = Vec::with_capacity(state.shards);
        for number in 0..state.shards {
            let [json, file] = shard_files(number, state.shards);
            let shard = ShardState::read(&dir.join(&json))?;
            if (shard.format, shard.step) != (FORMAT, state.step) {
                return Err(Error::model(dir.join(&json), format!("is not of step {} in format {FORMAT}", state.step)));
            }
            let falls_here = number % world_size == rank;
            let tensors = checked(&dir.join(file), falls_here.then_some(&shard.tensors_blake3), &json)?;
            shards.push((tensors, shard.slices));
        }
        Ok(Opened { state, dir: dir.to_owned(), whole, shards })
    }

    /// Returns a tensor of this size, be it whole or in the slices of ranks.
    ///
    /// # Errors
    /// There is none of that name, or it is of another size.
    pub fn tensor(&self, name: &str, size: &[i64]) -> Result<Tensor> {
        if !self.shards.iter().any(|(_, places)| places.contains_key(name)) {
            return self.whole.tensor(name);
        }
        let of = size.iter().product::<i64>() as usize;
        Ok(self.slice(name, 0..of, of)?.reshape(size))
    }

    /// Returns numbers of a row of so many: of a tensor that is whole, or of what ranks of whatever world size have written.
    ///
    /// # Errors
    /// There is no such row, it has another length, or a number of it is missing.
    pub fn slice(&self, name: &str, range: std::ops::Range<usize>, of: usize) -> Result<Tensor> {
        let wrong = |problem: String| Error::model(&self.dir, format!("{name}: {problem}"));
        let pieces: Vec<(&TensorFile, &Place)> =
            self.shards.iter().filter_map(|(file, places)| Some((file, places.get(name)?))).collect();
        if pieces.is_empty() {
            let whole = self.whole.tensor(name)?.reshape([-1]);
            return match whole.numel() {
                numbers if numbers == of => Ok(whole.narrow(0, range.start as i64, range.len() as i64)),
                numbers => Err(wrong(format!("has {numbers} numbers, not {of}"))),
            };
        }
        if let Some((_, other)) = pieces.iter().find(|(_, place)| place.of != of) {
            return Err(wrong(format!("has {} numbers, not {of}", other.of)));
        }
        let ranges: Vec<_> = pieces.iter().map(|(_, place)| place.start..place.end).collect();
        let parts = slices::cover(&ranges, range).map_err(|at| wrong(format!("number {at} of {of} is in no shard")))?;
        let mut found = Vec::with_capacity(parts.len());
        for part in parts {
            let (file, place) = pieces[part.piece];
            let numbers = file.tensor(name)?;
            if numbers.size() != [(place.end.saturating_sub(place.start)) as i64] {
                return Err(wrong(format!("has shape {:?} in {}", numbers.size(), file.path().display())));
            }
            found.push(numbers.narrow(0, part.from.start as i64, part.from.len() as i64));
        }
        Ok(match found.len() {
            0 => Tensor::zeros([0], (tch::Kind::Float, tch::Device::Cpu)),
            _ => Tensor::cat(&found, 0),
        })
    }
}

fn shard_files(rank: usize, world_size: usize) -> [String; 2] {
    ["json", "safetensors"].map(|ending| format!("shard-{rank:05}-of-{world_size:05}.{ending}"))
}

/// Opens a file of tensors, whose hash is known where it is to be compared.
fn checked(file: &Path, blake3: Option<&String>, recorded_in: &str) -> Result<TensorFile> {
    if blake3.map(|known| Ok::<_, Error>(hash(file)? != *known)).transpose()? == Some(true) {
        return Err(Error::model(file, format!("is damaged: its hash is not the one recorded in {recorded_in}")));
    }
    TensorFile::open(file)
}

fn hash(file: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    std::fs::File::open(file)
        .and_then(|mut reader| std::io::copy(&mut reader, &mut hasher))
        .map_err(|e| Error::model(file, e.to_string()))?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Makes a state of the present format.
pub(super) fn state(step: u64, run_key: &str, seen: &Seen, tensors_blake3: String, shards: usize) -> State {
    let (run_key, seen, own_blake3) = (run_key.to_owned(), seen.clone(), String::new());
    State { format: FORMAT, step, run_key, seen, tensors_blake3, shards, own_blake3 }.sealed()
}

/// Lists (step, folder) of all checkpoints under their final names, the newest first.
///
/// # Errors
/// The run's folder cannot be read.
pub(super) fn newest_first(run_dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let step = |name: &str| {
        let step = name.strip_prefix("checkpoint-")?.parse::<u64>().ok()?;
        // A copy under a like name (checkpoint-007, checkpoint-+7) is none of ours.
        (name == format!("checkpoint-{step}")).then_some(step)
    };
    let mut all = find(run_dir, step)?;
    all.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
    Ok(all)
}

/// Lists checkpoints that were being written when their process ended, or was given up, with the token in their names.
fn unfinished(run_dir: &Path) -> Result<Vec<(Option<u64>, PathBuf)>> {
    find(run_dir, |name| {
        let numbers = name.strip_prefix("checkpoint-")?.strip_suffix(".tmp")?;
        let token = numbers.split('.').nth(1).and_then(|token| token.parse().ok());
        numbers.chars().all(|c| c.is_ascii_digit() || c == '.').then_some(token)
    })
}

/// Lists what lies in a run's folder under names that say something.
fn find<T>(run_dir: &Path, said: impl Fn(&str) -> Option<T>) -> Result<Vec<(T, PathBuf)>> {
    let entries = match std::fs::read_dir(run_dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::model(run_dir, e.to_string())),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| Error::model(run_dir, e.to_string()))?.path();
        if let Some(said) = path.file_name().and_then(|name| name.to_str()).and_then(&said) {
            found.push((said, path));
        }
    }
    Ok(found)
}
