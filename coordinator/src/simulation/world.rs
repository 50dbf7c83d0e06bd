//! Time, the queue of what is going to happen, and who it happens to.

use std::collections::BTreeMap;

use shared::keyed_random::KeyedRandom;

use super::attempt::{Attempt, Files, Key};
use super::checks::Checks;
use super::control::{Control, ControlEvent};
use super::disk::Disk;
use super::faults::{Fault, Faults};
use super::machine::{Machine, MachineEvent};
use super::oracle::{Oracle, OracleEvent};
use super::people::People;
use super::wire::{Way, Wire};
use super::{Counts, Mistake};
use crate::scheduler::Timing;

pub(super) const TIMING: Timing =
    Timing { heartbeat_ms: 1000, lost_after_ms: 5000, form_within_ms: 30_000, leave_within_ms: 60_000 };
/// When a history begins.
const BEGIN_MS: u64 = 1_000_000_000;
/// Faults happen within so long.
pub(super) const TROUBLE_MS: u64 = 90_000;
/// Once all is well, every run ends within so long.
const PATIENCE_MS: u64 = 30 * 60_000;
/// When all have ended, so much time must show that everybody is at rest.
const REST_MS: u64 = 60_000;
/// Things that happen in one millisecond at most; more is a loop.
const AT_ONCE: u32 = 20_000;

/// What histories must hold now and then, or they show nothing.
pub(super) const MUST_HAPPEN: [&str; 23] = [
    "worker killed",
    "worker gone without a word",
    "worker told to stop",
    "worker frozen",
    "worker cut off",
    "members cut off",
    "connection reset",
    "coordinator killed",
    "coordinator killed in a commit",
    "coordinator frozen",
    "slow disk",
    "full disk",
    "slow network",
    "oracle killed",
    "oracle cut off",
    "message doubled",
    "message overtaken",
    "attempt adopted",
    "attempt fenced",
    "gang stuck",
    "smaller gang",
    "member left behind",
    "folder unusable",
];

/// Something that is going to happen.
#[derive(Debug)]
pub(super) enum Happening {
    /// To a life of the coordinator.
    Control(u32, ControlEvent),
    /// To a life of a worker on a machine.
    Machine(usize, u32, MachineEvent),
    /// The next message of this direction arrives.
    Arrives(u64, Way),
    /// An attempt gets further, if it can.
    Step(Key),
    /// To a life of the oracle service.
    Oracle(u32, OracleEvent),
    Fault(Fault),
    /// A person looks whether there is something to ask for.
    Person,
    /// No fault happens from now on, and those that last are mended.
    Calm,
}

pub(super) struct World {
    pub(super) now_ms: u64,
    pub(super) random: KeyedRandom,
    pub(super) mistake: Option<Mistake>,
    /// Messages of a connection may come twice or overtake each other, which no real one does.
    pub(super) is_loose: bool,
    pub(super) is_calm: bool,
    queue: BTreeMap<(u64, u64), Happening>,
    next: u64,
    pub(super) control: Control,
    pub(super) disk: Disk,
    pub(super) machines: Vec<Machine>,
    pub(super) wires: BTreeMap<u64, Wire>,
    pub(super) attempts: BTreeMap<Key, Attempt>,
    pub(super) files: Files,
    pub(super) oracle: Oracle,
    pub(super) people: People,
    pub(super) faults: Faults,
    pub(super) checks: Checks,
    pub(super) counts: Counts,
    /// Until when devices hang that were told to stop.
    pub(super) hangs_until_ms: u64,
    told: Option<Vec<String>>,
}

impl World {
    pub(super) fn new(seed: u64, mistake: Option<Mistake>, told: bool) -> World {
        let mut random = KeyedRandom::new(&[0x51_4d, seed]);
        let machines = 2 + random.below(3) as usize;
        let faults = Faults::draw(&mut random, machines);
        let people = People::draw(&mut random, machines);
        let mut world = World {
            now_ms: BEGIN_MS,
            is_loose: seed % 4 == 3,
            random,
            mistake,
            is_calm: false,
            queue: BTreeMap::new(),
            next: 0,
            control: Control::default(),
            disk: Disk::default(),
            machines: (0..machines).map(Machine::new).collect(),
            wires: BTreeMap::new(),
            attempts: BTreeMap::new(),
            files: Files::default(),
            oracle: Oracle::default(),
            people,
            faults,
            checks: Checks::default(),
            counts: Counts::new(),
            hangs_until_ms: 0,
            told: told.then(Vec::new),
        };
        world.start_control();
        for machine in 0..machines {
            world.start_machine(machine);
        }
        for (after_ms, fault) in world.faults.planned.clone() {
            world.after(after_ms, Happening::Fault(fault));
        }
        world.after(TROUBLE_MS, Happening::Calm);
        world.after(10, Happening::Person);
        world
    }

    /// Plans something.
    pub(super) fn after(&mut self, ms: u64, happening: Happening) {
        self.next += 1;
        self.queue.insert((self.now_ms + ms, self.next), happening);
    }

    /// Returns a number of `from..=to`.
    pub(super) fn draw(&mut self, from: u64, to: u64) -> u64 {
        from + self.random.below(to - from + 1)
    }

    /// Returns true once in so many times.
    pub(super) fn rarely(&mut self, one_in: u64) -> bool {
        self.random.below(one_in) == 0
    }

    pub(super) fn elapsed_ms(&self) -> u64 {
        self.now_ms - BEGIN_MS
    }

    pub(super) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Tells the history, where it is wanted.
    pub(super) fn tell(&mut self, text: impl FnOnce() -> String) {
        let at_ms = self.elapsed_ms();
        if let Some(told) = &mut self.told {
            told.push(format!("{:>9.3}  {}", at_ms as f64 / 1000.0, text()));
        }
    }

    /// Returns what was told.
    pub(super) fn told(&mut self) -> String {
        self.told.take().unwrap_or_default().join("\n")
    }

    /// Returns what was going to fail, for people.
    pub(super) fn plan(&self) -> String {
        let loose = if self.is_loose { ", messages doubled and overtaken" } else { "" };
        let mut text = format!("{} workers{loose}\n", self.machines.len());
        for (at_ms, fault) in &self.faults.planned {
            text += &format!("  {:>8.3} s  {fault:?}\n", *at_ms as f64 / 1000.0);
        }
        text
    }

    /// Lives until all runs have ended and all are at rest, or something is wrong.
    pub(super) fn live(&mut self) {
        let mut at_once = 0;
        let mut rest_from: Option<u64> = None;
        while self.checks.broken.is_none() {
            let Some(((at_ms, number), happening)) = self.queue.pop_first() else {
                return self.checks.fail("nothing is going to happen any more");
            };
            at_once = if at_ms == self.now_ms { at_once + 1 } else { 0 };
            if at_once > AT_ONCE {
                return self.checks.fail(&format!("it goes in circles: {happening:?}"));
            }
            self.now_ms = self.now_ms.max(at_ms);
            if let Some(until_ms) = self.frozen_until(&happening) {
                self.queue.insert((until_ms, number), happening);
                continue;
            }
            self.happens(happening);
            if self.is_calm && self.elapsed_ms() > TROUBLE_MS + PATIENCE_MS {
                let runs = self.control.describe();
                return self.checks.fail(&format!("runs never end: {runs}"));
            }
            if self.is_calm && self.all_have_ended() && self.now_ms > self.hangs_until_ms {
                if self.now_ms > *rest_from.get_or_insert(self.now_ms) + REST_MS {
                    return self.check_rest();
                }
            } else {
                rest_from = None;
            }
        }
    }

    fn happens(&mut self, happening: Happening) {
        match happening {
            Happening::Control(life, event) => self.control_event(life, event),
            Happening::Machine(machine, life, event) => self.machine_event(machine, life, event),
            Happening::Arrives(wire, way) => self.arrives(wire, way),
            Happening::Step(key) => self.step(&key),
            Happening::Oracle(life, event) => self.oracle_event(life, event),
            Happening::Fault(fault) => self.fault(fault),
            Happening::Person => self.person(),
            Happening::Calm => self.calm(),
        }
    }

    /// Returns until when whoever this happens to stands still, if so.
    fn frozen_until(&self, happening: &Happening) -> Option<u64> {
        let until_ms = match happening {
            Happening::Control(..) => self.control.frozen_until_ms,
            Happening::Machine(machine, ..) => self.machines[*machine].frozen_until_ms,
            Happening::Arrives(wire, Way::ToControl) if self.wires.contains_key(wire) => self.control.frozen_until_ms,
            Happening::Arrives(wire, Way::ToMachine) => {
                self.wires.get(wire).map_or(0, |wire| self.machines[wire.machine].frozen_until_ms)
            }
            _ => 0,
        };
        (until_ms > self.now_ms).then_some(until_ms)
    }
}
