//! What devices do together: the members of an attempt meet, go from step to step, leave checkpoints and outputs in the shared
//! folder, stand still while one of them cannot be reached, and fail when one is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use proto::coordinator::task_ended::How;
use proto::coordinator::{Failed, Finished, Peers, RunTask, Stopped, TaskProgress, TaskRef};

use super::machine::MachineEvent;
use super::world::{Happening, TIMING, World};

/// Steps of a training, and of a shard.
const STEPS: [u64; 2] = [60, 12];
/// A member gives a call up that takes so long.
const CALL_DEADLINE_MS: u64 = 60_000;
/// Beyond the five heartbeats after which a gang is stuck: a beat that has to come, a tick, messages and a commit.
const SLACK_MS: u64 = 3 * TIMING.heartbeat_ms;

/// Where a task's files lie: run, stage, task.
pub(super) type Place = (u64, String, String, String);

/// An attempt at a task of one submission.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    submission: u64,
    run: String,
    stage: String,
    name: String,
    pub(super) attempt: u32,
}

/// The shared folder.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// Of run and stage: it is done.
    pub(super) manifests: BTreeSet<(String, usize)>,
    /// Of run, stage and task.
    pub(super) outputs: BTreeSet<(String, String, String)>,
    /// Steps in the last checkpoint.
    checkpoints: BTreeMap<(String, String, String), u64>,
    /// The latest attempt that has taken a task's files, by submission and number.
    taken: BTreeMap<(String, String, String), (u64, u32)>,
}

#[derive(Debug, Default)]
pub(super) struct Attempt {
    world_size: u32,
    secret: Vec<u8>,
    work: &'static str,
    seats: BTreeMap<u32, Seat>,
    begun_at: u64,
    step: u64,
    steps: u64,
    /// Since when its members wait for one that cannot be reached.
    still_since_ms: Option<u64>,
    is_paused: bool,
    steps_on: bool,
    begun_ms: Option<u64>,
    is_over: bool,
}

#[derive(Debug)]
struct Seat {
    machine: usize,
    address: String,
    has_met: bool,
    is_gone: bool,
}

impl Key {
    pub(super) fn of(run: &RunTask) -> Key {
        let task = run.task.clone().unwrap_or_default();
        Key { submission: task.submission, run: task.run, stage: task.stage, name: task.task, attempt: task.attempt }
    }

    pub(super) fn task(&self) -> TaskRef {
        let Key { submission, run, stage, name, attempt } = self.clone();
        TaskRef { run, stage, task: name, attempt, submission }
    }

    /// Returns which task of which submission it is an attempt at.
    pub(super) fn place(&self) -> Place {
        (self.submission, self.run.clone(), self.stage.clone(), self.name.clone())
    }

    fn folder(&self) -> (String, String, String) {
        (self.run.clone(), self.stage.clone(), self.name.clone())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shared::link::name(&self.task()))
    }
}

fn lost(problem: &str) -> How {
    How::Failed(Failed { problem: problem.to_owned(), infrastructure: true, held: false })
}

impl World {
    /// A member has been given its part.
    pub(super) fn member_begins(&mut self, machine: usize, run: &RunTask) {
        let key = Key::of(run);
        let is_training = key.stage == "train";
        let address = format!("{}:{}", self.machines[machine].instance(), key.attempt);
        let (work, steps) = match key.stage.as_str() {
            "train" => ("train", STEPS[0]),
            "score" => ("score", STEPS[1]),
            _ => ("generate", STEPS[1]),
        };
        assert!(is_training || run.world_size == 1, "only trainings have gangs");
        let from = self.files.checkpoints.get(&key.folder()).copied().unwrap_or(0);
        let attempt = self.attempts.entry(key.clone()).or_insert_with(|| Attempt {
            world_size: run.world_size,
            secret: run.gang_secret.clone(),
            work,
            steps,
            begun_at: from,
            step: from,
            ..Attempt::default()
        });
        let agrees = attempt.secret == run.gang_secret && attempt.world_size == run.world_size;
        let has_met = run.world_size == 1;
        attempt.seats.insert(run.rank, Seat { machine, address, has_met, is_gone: false });
        if !agrees {
            self.checks.fail(&format!("the members of {key} were told different things"));
        }
        self.steps_on(&key);
    }

    /// A member learns where the others listen.
    pub(super) fn meet(&mut self, machine: usize, peers: &Peers) {
        let Some(device) = self.machines[machine].process.as_ref().and_then(|process| process.device.as_ref()) else {
            return;
        };
        let (key, rank) = (device.key.clone(), device.rank);
        let attempt = self.attempts.get_mut(&key).expect("a member has begun");
        let expected: Vec<&String> = attempt.seats.values().map(|seat| &seat.address).collect();
        let named = expected.first().map(|first| first.as_bytes());
        let agrees = named == Some(&peers.nccl_id[..]) && peers.addresses.iter().eq(expected);
        if let Some(seat) = attempt.seats.get_mut(&rank) {
            seat.has_met = true;
        }
        if !agrees {
            self.checks.fail(&format!("rank {rank} of {key} is told of the wrong members: {peers:?}"));
        }
    }

    fn steps_on(&mut self, key: &Key) {
        let attempt = self.attempts.get_mut(key).expect("it has begun");
        if !std::mem::replace(&mut attempt.steps_on, true) {
            let after_ms = self.draw(20, 400);
            self.after(after_ms, Happening::Step(key.clone()));
        }
    }

    /// A member's process is gone, or has left.
    pub(super) fn member_gone(&mut self, key: &Key, rank: u32) {
        if let Some(seat) = self.attempts.get_mut(key).and_then(|attempt| attempt.seats.get_mut(&rank)) {
            seat.is_gone = true;
        }
    }

    /// A member is told to stop at the next step; returns false if it has no step to stop at.
    pub(super) fn pauses(&mut self, key: &Key, rank: u32) -> bool {
        let Some(attempt) = self.attempts.get_mut(key) else { return false };
        let has_met = attempt.seats.get(&rank).is_some_and(|seat| seat.has_met);
        attempt.is_paused |= has_met;
        has_met
    }

    /// Returns for how long a member has waited for another that it cannot reach.
    pub(super) fn still_ms(&self, key: &Key, machine: usize) -> u64 {
        let attempt = self.attempts.get(key);
        let since_ms = attempt.filter(|attempt| attempt.world_size > 1).and_then(|attempt| attempt.still_since_ms);
        since_ms
            .filter(|_| self.machines[machine].frozen_until_ms <= self.now_ms)
            .map_or(0, |since_ms| self.now_ms - since_ms)
    }

    pub(super) fn step(&mut self, key: &Key) {
        let Some(attempt) = self.attempts.get_mut(key).filter(|attempt| !attempt.is_over) else { return };
        let here: Vec<(usize, bool)> =
            attempt.seats.values().filter(|seat| !seat.is_gone).map(|seat| (seat.machine, seat.has_met)).collect();
        let begun_ms = *attempt.begun_ms.get_or_insert(self.now_ms);
        if here.is_empty() {
            attempt.is_over = true;
            return;
        }
        let machines = &self.machines;
        let is_frozen = here.iter().any(|(machine, _)| machines[*machine].frozen_until_ms > self.now_ms);
        let is_cut = attempt.world_size > 1 && here.iter().any(|(machine, _)| machines[*machine].is_cut_from_peers);
        if is_frozen || is_cut {
            let since_ms = *attempt.still_since_ms.get_or_insert(self.now_ms);
            let still_ms = self.now_ms - since_ms;
            let has_met = here.iter().all(|(_, has_met)| *has_met) && here.len() == attempt.world_size as usize;
            if !is_frozen && still_ms > CALL_DEADLINE_MS {
                return self.all_end(key, &lost("a call took too long"));
            }
            let quiet_ms = self.now_ms.saturating_sub(self.quiet_since_ms());
            let is_late = still_ms.min(quiet_ms) > TIMING.lost_after_ms + SLACK_MS;
            if has_met && is_late && !is_frozen {
                self.checks
                    .fail(&format!("{key} stands still for {still_ms} ms, and its members are not told to leave it"));
            }
            return self.after(200, Happening::Step(key.clone()));
        }
        attempt.still_since_ms = None;
        if here.len() < attempt.seats.len() {
            return self.all_end(key, &lost("another member is gone"));
        }
        let all_have_met = here.len() == attempt.world_size as usize && here.iter().all(|(_, has_met)| *has_met);
        if !all_have_met {
            if self.now_ms > begun_ms + CALL_DEADLINE_MS {
                return self.all_end(key, &lost("the others have not come"));
            }
            return self.after(200, Happening::Step(key.clone()));
        }
        let own = (key.submission, key.attempt);
        let taken = self.files.taken.entry(key.folder()).or_insert(own);
        if *taken > own {
            self.count("attempt fenced");
            return self.all_end(key, &lost("a later attempt has taken over"));
        }
        *taken = own;
        let (step, is_paused) = (attempt.step, attempt.is_paused);
        if is_paused {
            self.files.checkpoints.insert(key.folder(), step);
            return self.all_end(key, &How::Stopped(Stopped {}));
        }
        if step >= attempt.steps {
            self.files.outputs.insert(key.folder());
            return self.all_end(key, &How::Finished(Finished::default()));
        }
        attempt.step += 1;
        let (begun_at, done, total) = (attempt.begun_at, attempt.step, attempt.steps);
        let work = attempt.work.to_owned();
        if done.is_multiple_of(4) {
            self.files.checkpoints.insert(key.folder(), done);
        }
        let progress = TaskProgress { task: Some(key.task()), done, total, work, begun_at, note: String::new() };
        for (machine, _) in here {
            self.machine_after(machine, 1, MachineEvent::Progressed(progress.clone()));
        }
        let after_ms = self.draw(50, 400);
        self.after(after_ms, Happening::Step(key.clone()));
    }

    /// All members that are left end, each in its own time.
    fn all_end(&mut self, key: &Key, how: &How) {
        let attempt = self.attempts.get_mut(key).expect("it runs");
        attempt.is_over = true;
        let left = attempt.seats.values_mut().filter(|seat| !seat.is_gone);
        let machines: Vec<usize> = left
            .map(|seat| {
                seat.is_gone = true;
                seat.machine
            })
            .collect();
        for machine in machines {
            let after_ms = self.draw(1, 300);
            self.machine_after(machine, after_ms, MachineEvent::Ends(key.clone(), how.clone()));
        }
    }
}
