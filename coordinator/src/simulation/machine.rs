//! A worker's process on its machine: its link to the coordinator, and a device with one task at most.

use std::collections::VecDeque;

use proto::coordinator::from_worker::Message as Said;
use proto::coordinator::task_ended::How;
use proto::coordinator::{Failed, Hello, RunTask, StopReason, Stopped, TaskEnded, TaskProgress};
use shared::link::{Act, Event, Link};

use super::Mistake;
use super::attempt::Key;
use super::wire::{Parcel, Way, Wire};
use super::world::{Happening, World};

#[derive(Debug)]
pub(super) enum MachineEvent {
    /// Somebody starts the worker again.
    Start,
    /// Its link wanted to be woken at this time of its own clock.
    Wake(u64),
    /// Dialling came to a connection, or to none.
    Dialled(Option<u64>),
    /// The task of this attempt ends.
    Ends(Key, How),
    Progressed(TaskProgress),
    /// It has looked at the artifact folder, for this connection.
    Looked(Option<u64>, String),
    /// The process is told to stop.
    Terminate,
}

pub(super) struct Machine {
    pub(super) name: String,
    pub(super) life: u32,
    pub(super) process: Option<Process>,
    pub(super) frozen_until_ms: u64,
    /// What it sends to the coordinator, or hears from it, is held up.
    pub(super) cut: [bool; 2],
    /// What it sends to other workers, or hears from them.
    pub(super) is_cut_from_peers: bool,
}

pub(super) struct Process {
    link: Link,
    /// Its clock begins with it.
    begun_ms: u64,
    wakes_ms: Option<u64>,
    pub(super) wire: Option<u64>,
    is_dialling: bool,
    pub(super) device: Option<Device>,
}

/// The task that runs.
pub(super) struct Device {
    pub(super) key: Key,
    pub(super) rank: u32,
}

impl Machine {
    pub(super) fn new(index: usize) -> Machine {
        Machine {
            name: format!("w{index}"),
            life: 0,
            process: None,
            frozen_until_ms: 0,
            cut: [false; 2],
            is_cut_from_peers: false,
        }
    }

    pub(super) fn is_cut(&self, way: Way) -> bool {
        self.cut[way as usize]
    }

    pub(super) fn instance(&self) -> String {
        format!("{}-{}", self.name, self.life)
    }
}

impl World {
    pub(super) fn machine_after(&mut self, machine: usize, ms: u64, event: MachineEvent) {
        let life = self.machines[machine].life;
        self.after(ms, Happening::Machine(machine, life, event));
    }

    pub(super) fn start_machine(&mut self, index: usize) {
        let now_ms = self.now_ms;
        let machine = &mut self.machines[index];
        machine.life += 1;
        let hello = Hello {
            name: machine.name.clone(),
            instance: machine.instance(),
            protocol_version: proto::PROTOCOL_VERSION,
            ..Hello::default()
        };
        machine.process = Some(Process {
            link: Link::new(hello),
            begun_ms: now_ms,
            wakes_ms: None,
            wire: None,
            is_dialling: false,
            device: None,
        });
        let instance = machine.instance();
        self.tell(|| format!("{instance} starts"));
        self.link(index, Event::Tick { still_ms: 0 });
    }

    /// The process is gone. `restart_ms` later somebody starts it again.
    pub(super) fn end_machine(&mut self, index: usize, is_silent: bool, restart_ms: u64) {
        let Some(process) = self.machines[index].process.take() else { return };
        let instance = self.machines[index].instance();
        self.tell(|| format!("{instance} is gone"));
        if let Some(wire) = process.wire
            && !is_silent
        {
            self.tear(wire, Way::ToControl);
        }
        if let Some(device) = &process.device {
            self.member_gone(&device.key, device.rank);
        }
        self.machines[index].frozen_until_ms = 0;
        self.machine_after(index, restart_ms, MachineEvent::Start);
    }

    /// Its side of the connection is closed.
    pub(super) fn drop_wire(&mut self, index: usize) {
        let wire = self.machines[index].process.as_mut().and_then(|process| process.wire.take());
        if let Some(wire) = wire {
            self.send(wire, Way::ToControl, Parcel::End);
        }
    }

    pub(super) fn machine_event(&mut self, index: usize, life: u32, event: MachineEvent) {
        let machine = &mut self.machines[index];
        if machine.life != life {
            return;
        }
        let Some(process) = &mut machine.process else {
            if matches!(event, MachineEvent::Start) {
                self.start_machine(index);
            }
            return;
        };
        match event {
            MachineEvent::Start => {}
            MachineEvent::Wake(at_ms) => {
                if process.wakes_ms == Some(at_ms) {
                    process.wakes_ms = None;
                    let key = process.device.as_ref().map(|device| device.key.clone());
                    let still_ms = key.map_or(0, |key| self.still_ms(&key, index));
                    self.link(index, Event::Tick { still_ms });
                }
            }
            MachineEvent::Dialled(wire) => {
                process.is_dialling = false;
                let is_open =
                    wire.and_then(|wire| self.wires.get(&wire)).is_some_and(|wire| !wire.is_closed_to_machine());
                if is_open {
                    process.wire = wire;
                    self.disturb();
                    self.link(index, Event::Connected);
                } else {
                    self.link(index, Event::Disconnected);
                }
            }
            MachineEvent::Ends(key, how) => {
                if process.device.as_ref().is_some_and(|device| device.key == key) {
                    process.device = None;
                    let mistaken = self.mistake == Some(Mistake::StoppedIsFinished) && matches!(how, How::Stopped(_));
                    let how = if mistaken { How::Finished(Default::default()) } else { how };
                    let ended = TaskEnded { task: Some(key.task()), how: Some(how) };
                    self.link(index, Event::Ended(ended));
                }
            }
            MachineEvent::Progressed(progress) => {
                if process.device.as_ref().is_some_and(|device| Some(device.key.task()) == progress.task) {
                    self.link(index, Event::Progressed(progress));
                }
            }
            MachineEvent::Looked(wire, problem) => {
                if process.wire == wire {
                    self.link(index, Event::FolderSeen { problem });
                }
            }
            MachineEvent::Terminate => self.link(index, Event::StopAsked),
        }
    }

    /// Something happens at a worker's link; what it decides is done.
    pub(super) fn link(&mut self, index: usize, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let Some(process) = &mut self.machines[index].process else { return };
            let now_ms = self.now_ms - process.begun_ms;
            for act in process.link.apply(now_ms, event) {
                events.extend(self.link_act(index, act));
            }
        }
        let Some(process) = &mut self.machines[index].process else { return };
        let (begun_ms, wakes_ms) = (process.begun_ms, process.link.wake_ms());
        if wakes_ms != process.wakes_ms {
            process.wakes_ms = wakes_ms;
            if let Some(at_ms) = wakes_ms {
                let after_ms = (begun_ms + at_ms).saturating_sub(self.now_ms);
                self.machine_after(index, after_ms, MachineEvent::Wake(at_ms));
            }
        }
    }

    fn link_act(&mut self, index: usize, act: Act) -> Option<Event> {
        self.machines[index].process.as_ref()?;
        match act {
            Act::Dial => {
                self.dial(index);
                None
            }
            Act::Say(mut message) => {
                if let (Said::Hello(hello), Some(Mistake::RunningUntold)) = (&mut message, self.mistake) {
                    hello.running = None;
                }
                let wire = self.machines[index].process.as_ref()?.wire?;
                self.send(wire, Way::ToControl, Parcel::Said(message));
                None
            }
            Act::LookAtFolder(_) => {
                let is_bad = !self.is_calm && self.rarely(12);
                if is_bad {
                    self.count("folder unusable");
                }
                let problem = if is_bad { "input/output error".to_owned() } else { String::new() };
                let wire = self.machines[index].process.as_ref()?.wire;
                let hangs = !self.is_calm && self.rarely(12);
                let after_ms = if hangs { self.draw(1000, 30_000) } else { self.draw(0, 20) };
                self.machine_after(index, after_ms, MachineEvent::Looked(wire, problem));
                None
            }
            Act::Begin(run) => self.begin(index, run),
            Act::Meet(peers) => {
                self.meet(index, &peers);
                None
            }
            Act::Stop(reason) => {
                self.told_to_stop(index, reason);
                None
            }
            Act::Leave => {
                self.drop_wire(index);
                let restart_ms = self.draw(1000, 20_000);
                self.end_machine(index, false, restart_ms);
                None
            }
            Act::Refused(reason) => {
                let instance = self.machines[index].instance();
                self.tell(|| format!("{instance} is refused: {reason}"));
                self.end_machine(index, false, 3000);
                None
            }
        }
    }

    fn dial(&mut self, index: usize) {
        self.drop_wire(index);
        let process = self.machines[index].process.as_mut().expect("it dials");
        assert!(!process.is_dialling, "a worker dials twice at once");
        process.is_dialling = true;
        let is_cut = Way::BOTH.iter().any(|way| self.machines[index].is_cut(*way));
        if is_cut || self.control.frozen_until_ms > self.now_ms {
            // Until the time it is given is over.
            return self.machine_after(index, 5000, MachineEvent::Dialled(None));
        }
        let after_ms = self.delay_ms();
        let wire = self.control.is_up().then(|| {
            let number = self.wires.keys().next_back().map_or(1, |last| last + 1);
            self.wires.insert(number, Wire::new(index, self.control.life));
            number
        });
        self.machine_after(index, after_ms, MachineEvent::Dialled(wire));
    }

    fn begin(&mut self, index: usize, run: RunTask) -> Option<Event> {
        let task = run.task.clone()?;
        let is_idle = self.machines[index].process.as_ref().is_some_and(|process| process.device.is_none());
        if !is_idle {
            self.checks.fail(&format!("{} is given a second task", self.machines[index].name));
        }
        if run.world_size > 1 && self.rarely(40) {
            return Some(Event::NotBegun { task, problem: "it cannot listen".to_owned() });
        }
        let key = Key::of(&run);
        let instance = self.machines[index].instance();
        self.tell(|| format!("{instance} begins {key} as rank {}", run.rank));
        let process = self.machines[index].process.as_mut()?;
        process.device = Some(Device { key: key.clone(), rank: run.rank });
        self.member_begins(index, &run);
        let address = format!("{instance}:{}", key.attempt);
        // As if over NCCL: the first rank names something that all must hear of.
        let nccl_id = if run.rank == 0 { address.clone().into_bytes() } else { Vec::new() };
        (run.world_size > 1).then_some(Event::Listening { task, address, nccl_id })
    }

    fn told_to_stop(&mut self, index: usize, reason: StopReason) {
        let Some(device) = self.machines[index].process.as_ref().and_then(|process| process.device.as_ref()) else {
            return;
        };
        let (key, rank) = (device.key.clone(), device.rank);
        let infrastructure =
            |problem: &str| How::Failed(Failed { problem: problem.to_owned(), infrastructure: true, held: false });
        let how = match reason {
            StopReason::Paused if self.pauses(&key, rank) => return,
            StopReason::GangBroken => infrastructure("its gang is broken"),
            _ => How::Stopped(Stopped {}),
        };
        self.member_gone(&key, rank);
        // Its device may hang.
        let after_ms = if self.rarely(8) { self.draw(1000, 200_000) } else { self.draw(1, 300) };
        self.hangs_until_ms = self.hangs_until_ms.max(self.now_ms + after_ms);
        self.machine_after(index, after_ms, MachineEvent::Ends(key, how));
    }
}
