//! What fails, when, and for how long.

use shared::keyed_random::KeyedRandom;

use super::machine::MachineEvent;
use super::wire::Way;
use super::world::{Happening, TROUBLE_MS, World};

/// Something that fails, with milliseconds until it is mended.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    KillWorker {
        machine: usize,
        restart_ms: u64,
    },
    /// Its machine is gone: no connection ends.
    LoseWorker {
        machine: usize,
        restart_ms: u64,
    },
    TerminateWorker {
        machine: usize,
    },
    FreezeWorker {
        machine: usize,
        ms: u64,
    },
    /// From the coordinator, in one direction or both.
    CutWorker {
        machine: usize,
        ways: [bool; 2],
        ms: u64,
        connection_survives: bool,
    },
    CutMembers {
        machine: usize,
        ms: u64,
    },
    ResetConnection {
        machine: usize,
    },
    KillCoordinator {
        restart_ms: u64,
    },
    FreezeCoordinator {
        ms: u64,
    },
    SlowDisk {
        ms: u64,
    },
    FullDisk {
        ms: u64,
    },
    SlowNetwork {
        ms: u64,
    },
    KillOracle {
        restart_ms: u64,
    },
    CutOracle {
        ms: u64,
    },
    /// A cut ends.
    MendWorker {
        machine: usize,
        connection_survives: bool,
    },
    MendMembers {
        machine: usize,
    },
}

#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) planned: Vec<(u64, Fault)>,
    pub(super) slow_network_until_ms: u64,
    /// When something last began or ceased to fail.
    disturbed_ms: u64,
}

impl Faults {
    pub(super) fn draw(random: &mut KeyedRandom, machines: usize) -> Faults {
        let mut draw = |from: u64, to: u64| from + random.below(to - from + 1);
        let mut planned = Vec::new();
        for _ in 0..draw(0, 14) {
            let at_ms = draw(50, TROUBLE_MS - 1);
            let machine = draw(0, machines as u64 - 1) as usize;
            let restart_ms = draw(100, 12_000);
            let ms = draw(50, 25_000);
            let fault = match draw(0, 17) {
                0..=2 => Fault::KillWorker { machine, restart_ms },
                3 => Fault::LoseWorker { machine, restart_ms },
                4 => Fault::TerminateWorker { machine },
                5 => Fault::FreezeWorker { machine, ms },
                6 => {
                    let ways = [[true, true], [true, false], [false, true]][draw(0, 2) as usize];
                    Fault::CutWorker { machine, ways, ms, connection_survives: draw(0, 1) == 1 }
                }
                7 => Fault::CutMembers { machine, ms },
                8 | 9 => Fault::ResetConnection { machine },
                10..=12 => Fault::KillCoordinator { restart_ms },
                13 => Fault::FreezeCoordinator { ms },
                14 if draw(0, 1) == 1 => Fault::FullDisk { ms: ms / 4 },
                14 => Fault::SlowDisk { ms },
                15 => Fault::SlowNetwork { ms },
                16 => Fault::KillOracle { restart_ms },
                _ => Fault::CutOracle { ms },
            };
            planned.push((at_ms, fault));
        }
        planned.sort_by_key(|(at_ms, _)| *at_ms);
        Faults { planned, slow_network_until_ms: 0, disturbed_ms: 0 }
    }
}

impl World {
    /// Returns since when nothing fails that keeps the coordinator from hearing of a gang and telling it.
    pub(super) fn quiet_since_ms(&self) -> u64 {
        let is_cut = self.machines.iter().any(|machine| machine.cut != [false; 2]);
        if is_cut || !self.control.is_up() {
            return self.now_ms;
        }
        let frozen_ms = self.machines.iter().map(|machine| machine.frozen_until_ms).max().unwrap_or(0);
        let lasting = [
            self.faults.disturbed_ms,
            self.faults.slow_network_until_ms,
            self.disk.slow_until_ms,
            self.disk.full_until_ms,
            self.control.frozen_until_ms,
            frozen_ms,
        ];
        lasting.into_iter().max().unwrap_or(0)
    }

    /// Something was disturbed just now.
    pub(super) fn disturb(&mut self) {
        self.faults.disturbed_ms = self.now_ms;
    }

    pub(super) fn fault(&mut self, fault: Fault) {
        if self.is_calm {
            return;
        }
        self.disturb();
        self.tell(|| format!("fault: {fault:?}"));
        let now_ms = self.now_ms;
        match fault {
            Fault::KillWorker { machine, restart_ms } => {
                self.count("worker killed");
                self.end_machine(machine, false, restart_ms);
            }
            Fault::LoseWorker { machine, restart_ms } => {
                self.count("worker gone without a word");
                self.end_machine(machine, true, restart_ms);
            }
            Fault::TerminateWorker { machine } => {
                self.count("worker told to stop");
                self.machine_after(machine, 0, MachineEvent::Terminate);
            }
            Fault::FreezeWorker { machine, ms } => {
                self.count("worker frozen");
                self.machines[machine].frozen_until_ms = now_ms + ms;
            }
            Fault::CutWorker { machine, ways, ms, connection_survives } => {
                self.count("worker cut off");
                self.machines[machine].cut = ways;
                self.after(ms, Happening::Fault(Fault::MendWorker { machine, connection_survives }));
            }
            Fault::MendWorker { machine, connection_survives } => {
                self.machines[machine].cut = [false; 2];
                self.mend_wires(machine, !connection_survives);
            }
            Fault::CutMembers { machine, ms } => {
                self.count("members cut off");
                self.machines[machine].is_cut_from_peers = true;
                self.after(ms, Happening::Fault(Fault::MendMembers { machine }));
            }
            Fault::MendMembers { machine } => self.machines[machine].is_cut_from_peers = false,
            Fault::ResetConnection { machine } => {
                self.count("connection reset");
                if let Some(wire) = self.machines[machine].process.as_ref().and_then(|process| process.wire) {
                    Way::BOTH.into_iter().for_each(|way| self.tear(wire, way));
                }
            }
            Fault::KillCoordinator { restart_ms } => {
                self.count("coordinator killed");
                self.kill_control(restart_ms);
            }
            Fault::FreezeCoordinator { ms } => {
                self.count("coordinator frozen");
                self.control.frozen_until_ms = now_ms + ms;
            }
            Fault::SlowDisk { ms } => {
                self.count("slow disk");
                self.disk.slow_until_ms = now_ms + ms;
            }
            Fault::FullDisk { ms } => self.disk.full_until_ms = now_ms + ms,
            Fault::SlowNetwork { ms } => {
                self.count("slow network");
                self.faults.slow_network_until_ms = now_ms + ms;
            }
            Fault::KillOracle { restart_ms } => {
                self.count("oracle killed");
                self.kill_oracle(restart_ms);
            }
            Fault::CutOracle { ms } => {
                self.count("oracle cut off");
                self.oracle.cut_until_ms = now_ms + ms;
            }
        }
    }

    /// What lasts is mended; whoever is down is started again by those that were going to.
    pub(super) fn calm(&mut self) {
        self.disturb();
        self.is_calm = true;
        self.tell(|| "calm".to_owned());
        let now_ms = self.now_ms;
        for machine in 0..self.machines.len() {
            let own = &mut self.machines[machine];
            own.frozen_until_ms = own.frozen_until_ms.min(now_ms);
            own.cut = [false; 2];
            own.is_cut_from_peers = false;
            self.mend_wires(machine, false);
        }
        self.control.frozen_until_ms = self.control.frozen_until_ms.min(now_ms);
        for until_ms in [
            &mut self.disk.slow_until_ms,
            &mut self.disk.full_until_ms,
            &mut self.faults.slow_network_until_ms,
            &mut self.oracle.cut_until_ms,
        ] {
            *until_ms = (*until_ms).min(now_ms);
        }
        self.people.calm();
    }
}
