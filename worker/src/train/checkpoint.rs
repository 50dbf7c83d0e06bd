//! Checkpoints: everything a run needs to continue to the same bits.
//!
//! At a step's end what is to be kept is copied to host memory; a thread ([`writer`]) puts it on the disk while training goes
//! on ([`folder`] has the files). One is written at a time: the next waits for it. The run's end, a stop and an error wait for
//! the thread, too. A checkpoint that could not be written is the run's error at the next step's end; those before it stay.
//!
//! Where the optimiser is sharded, every rank writes its own slices ([`slices`]), and the first rank gives the checkpoint its
//! name when all have said that theirs are on the disk. They say it with the numbers that the ranks exchange at each step:
//! [`Checkpoints::part_is_on_disk`] goes in, the sum comes back to [`Checkpoints::heard`]. So all ranks know it after
//! the same step, and nobody waits.

pub mod folder;
pub mod slices;
pub mod snapshot;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use super::pace::Seen;
use super::run_folder::RunFolder;
use crate::collective::Collective;
use crate::control::Control;
use crate::error::{Error, Result};
use crate::fault::Fault;
use folder::{Opened, Unfinished};
use snapshot::Parts;
use writer::{Job, Phase, Terms, Writer};

/// The checkpoints of a running training, seen from one rank.
pub struct Checkpoints {
    run_dir: PathBuf,
    run_key: String,
    keep: usize,
    /// In the names of what is being written: of this attempt alone.
    token: u64,
    /// Rank and world size.
    place: (usize, usize),
    fence: Arc<dyn Fn() -> Result<()> + Send + Sync>,
    fault: Option<Arc<Fault>>,
    /// Started when the first checkpoint is expected or begins.
    writer: Option<Writer>,
    /// A sharded checkpoint is under way, and not all ranks are known to have their part on the disk. The same on all ranks.
    is_pending: bool,
    told: Told,
    waited: Duration,
}

/// What a run's checkpoints came to.
#[derive(Debug, Default, Clone, Copy)]
struct Told {
    begun: u64,
    /// How many fell due while the one before was being written.
    waited_for_earlier: u64,
    waited: Duration,
}

impl Checkpoints {
    /// Returns the checkpoints of a run, of which `keep` stay. Where `expected` says what they will hold, room for their
    /// copies is made while training goes on. Every rank calls it.
    ///
    /// # Errors
    /// A member of the gang is gone; the system has no thread left.
    pub fn open(
        run: &RunFolder,
        keep: usize,
        expected: Option<&Parts>,
        control: &Control,
        gang: &mut dyn Collective,
    ) -> Result<Checkpoints> {
        let moment = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_nanos());
        let mut own = [0; 8];
        // So many bits are a number of the gang's exchange without loss.
        own[..6].copy_from_slice(&blake3::hash(format!("{} {moment}", std::process::id()).as_bytes()).as_bytes()[..6]);
        let token = gang.first_of(u64::from_le_bytes(own) as f64)? as u64;
        if gang.rank() == 0 {
            // They may be what fills the disk.
            Unfinished::new(&run.path, 0, token).remove_others(|| run.check())?;
        }
        let guard = run.guard();
        let mut checkpoints = Checkpoints {
            run_dir: run.path.clone(),
            run_key: run.key.clone(),
            keep,
            token,
            place: (gang.rank(), gang.world_size()),
            fence: Arc::new(move || guard.as_ref().map_or(Ok(()), |place| place.check())),
            fault: control.fault(),
            writer: None,
            is_pending: false,
            told: Told::default(),
            waited: Duration::ZERO,
        };
        if let Some(parts) = expected.filter(|parts| !parts.is_empty()) {
            checkpoints.writer()?.prepare(parts.sizes());
        }
        Ok(checkpoints)
    }

    /// Returns the thread, which is started where it is not there.
    fn writer(&mut self) -> Result<&mut Writer> {
        let writer = match self.writer.take() {
            Some(writer) => writer,
            None => Writer::start(Terms {
                place: self.place,
                run_dir: self.run_dir.clone(),
                run_key: self.run_key.clone(),
                keep: self.keep,
                fence: {
                    let fence = self.fence.clone();
                    Box::new(move || fence())
                },
                fault: self.fault.clone(),
            })?,
        };
        Ok(self.writer.insert(writer))
    }

    /// Begins the checkpoint of a step: copies the parts and has them written. `sync` puts onto the disk what the checkpoint
    /// counts on. An earlier one that is still being written is waited for. Every rank calls it; without slices, ranks
    /// that have nothing whole do nothing.
    ///
    /// # Errors
    /// The earlier one could not be written, on this rank or another; a member of the gang is gone.
    pub fn begin(
        &mut self,
        (step, seen): (u64, &Seen),
        parts: &Parts,
        sync: impl Fn() -> Result<()> + Send + 'static,
        gang: &mut dyn Collective,
    ) -> Result<()> {
        let begun = Instant::now();
        let is_busy = self.writer.as_mut().map(Writer::look).transpose()?.is_some_and(|phase| phase != Phase::Idle);
        self.told.waited_for_earlier += u64::from(is_busy);
        self.finish_present(gang)?;
        if parts.is_empty() {
            return Ok(());
        }
        let unfinished = Unfinished::new(&self.run_dir, step, self.token);
        let writer = self.writer()?;
        let mut snapshot = writer.room()?;
        snapshot.take(parts);
        writer.begin(Job { unfinished, step, seen: seen.clone(), snapshot, sync: Box::new(sync) });
        self.is_pending = !parts.slices.is_empty();
        self.told.begun += 1;
        self.waited += begun.elapsed();
        self.told.waited += begun.elapsed();
        Ok(())
    }

    /// Has something written by the same thread while training goes on: the next checkpoint counts on it. An earlier one is waited
    /// for, and the time in which `prepare` copies what is to be written counts as waiting, too.
    ///
    /// # Errors
    /// What was being written could not be; the system has no thread left.
    pub fn also<W: FnOnce() -> Result<()> + Send + 'static>(&mut self, prepare: impl FnOnce() -> W) -> Result<()> {
        let begun = Instant::now();
        self.writer()?.also(Box::new(prepare()))?;
        self.waited += begun.elapsed();
        self.told.waited += begun.elapsed();
        Ok(())
    }

    /// Notices a checkpoint that could not be written. To be called at every step's end.
    ///
    /// # Errors
    /// It could not.
    pub fn check(&mut self) -> Result<()> {
        self.writer.as_mut().map_or(Ok(()), |writer| writer.look().map(drop))
    }

    /// Returns whether this rank's part of a sharded checkpoint under way is on the disk. Summed over the ranks it is to be
    /// given to [`Checkpoints::heard`] at the same step.
    ///
    /// # Errors
    /// It could not be written.
    pub fn part_is_on_disk(&mut self) -> Result<bool> {
        let phase = self.writer.as_mut().map(Writer::look).transpose()?;
        Ok(self.is_pending && phase == Some(Phase::OnDisk))
    }

    /// Hears on how many ranks the part is on the disk; when it is on all, the first rank's thread gives the checkpoint its name.
    pub fn heard(&mut self, on_disk: usize) {
        if self.is_pending && on_disk == self.place.1 {
            self.all_on_disk();
        }
    }

    fn all_on_disk(&mut self) {
        self.is_pending = false;
        if let Some(writer) = &mut self.writer {
            if self.place.0 == 0 { writer.publish() } else { writer.leave() }
        }
    }

    /// Waits until all that is being written is whole; the first rank until it has its name. Every rank calls it.
    ///
    /// # Errors
    /// It could not be written, on this rank or another; a member of the gang is gone.
    pub fn finish(&mut self, gang: &mut dyn Collective) -> Result<()> {
        self.finish_present(gang)?;
        self.writer.as_mut().map_or(Ok(()), Writer::wait_for_works)
    }

    /// As [`Checkpoints::finish`], of the checkpoint alone.
    fn finish_present(&mut self, gang: &mut dyn Collective) -> Result<()> {
        if self.is_pending {
            let written = self.writer.as_mut().map_or(Ok(()), |writer| writer.wait_for_disk());
            let all = gang.all_gather_number(f64::from(u8::from(written.is_ok())))?;
            written?;
            if let Some(rank) = all.iter().position(|is_written| *is_written != 1.0) {
                let run = self.run_dir.display();
                return Err(Error::Gang(format!("{run}: rank {rank} could not write what it keeps")));
            }
            self.all_on_disk();
        }
        self.writer.as_mut().map_or(Ok(()), Writer::wait_for_name)
    }

    /// Returns how long training has waited for checkpoints since this was last asked; nothing where there was none.
    pub fn take_waited(&mut self) -> Option<f64> {
        let waited = std::mem::take(&mut self.waited);
        (!waited.is_zero()).then_some(waited.as_secs_f64())
    }

    /// Returns what the checkpoints of this process came to, for the run's summary.
    pub fn told(&self) -> Value {
        let Told { begun, waited_for_earlier, waited } = self.told;
        json!({"written": begun, "waited_for_earlier": waited_for_earlier, "wait_seconds": waited.as_secs_f64()})
    }
}

/// Finds the newest checkpoint of a run that every rank finds whole; `None` where there is none at all. Every rank calls it;
/// the first one's list counts.
///
/// A damaged checkpoint is passed over with a warning as long as an older whole one exists.
///
/// # Errors
/// Every checkpoint is damaged, or the newest belongs to a run with other settings; a member of the gang is gone.
pub fn newest_whole(run_dir: &Path, run_key: &str, gang: &mut dyn Collective) -> Result<Option<Opened>> {
    let place = (gang.rank(), gang.world_size());
    let all = folder::newest_first(run_dir)?;
    let mut damaged = Vec::new();
    for turn in 0.. {
        // Steps are counted from 1; 0 ends the list.
        let step = gang.first_of(all.get(turn).map_or(0.0, |(step, _)| *step as f64))? as u64;
        if step == 0 {
            break;
        }
        let dir = run_dir.join(format!("checkpoint-{step}"));
        let opened = Opened::open(&dir, place);
        let is_whole = gang.all_gather_number(f64::from(u8::from(opened.is_ok())))?;
        match opened {
            Ok(opened) if is_whole.iter().all(|whole| *whole == 1.0) => {
                if opened.state.run_key != run_key {
                    return Err(Error::Config(format!(
                        "{}: belongs to a run with other settings, data or base model; give this run another \
                         --run-name, or remove the folder to start over",
                        dir.display()
                    )));
                }
                for problem in &damaged {
                    tracing::warn!("{problem}; continuing from {}", dir.display());
                }
                return Ok(Some(opened));
            }
            Ok(_) => damaged.push(Error::model(&dir, "is damaged, as another rank of the gang has found")),
            Err(error) => damaged.push(error),
        }
    }
    match damaged.into_iter().next() {
        Some(error) => Err(Error::Config(format!(
            "{error}; no whole checkpoint is left in {}: remove its checkpoint folders to start over",
            run_dir.display()
        ))),
        None => Ok(None),
    }
}

/// Returns (step, folder) of the newest checkpoint under its final name.
///
/// # Errors
/// The run folder cannot be read.
pub fn newest(run_dir: &Path) -> Result<Option<(u64, PathBuf)>> {
    Ok(folder::newest_first(run_dir)?.into_iter().next())
}

#[cfg(test)]
mod tests;
