//! Connections between workers and the coordinator.
//!
//! A connection's messages arrive in order and once; what two connections bring arrives in any order. While a machine is cut
//! off they wait, and come when it is not any more, or are lost with the connection. In loose histories, which no real
//! connection has, messages may also come twice, and a worker's words overtake each other.

use std::collections::VecDeque;

use proto::coordinator::from_worker::Message as Said;
use proto::coordinator::to_worker::Message as Told;
use shared::link;

use super::world::{Happening, World};
use crate::driver::core::Input;

/// Orders that wait for a slow connection at most, as in the driver.
const OUTGOING: usize = 64;

/// A direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    ToControl,
    ToMachine,
}

impl Way {
    pub(super) const BOTH: [Way; 2] = [Way::ToControl, Way::ToMachine];
}

/// What travels.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "few are on their way at a time")]
pub(super) enum Parcel {
    Said(Said),
    Told(Told),
    /// The other side has closed.
    End,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) machine: usize,
    pub(super) control_life: u32,
    /// Of whom it said Hello.
    pub(super) worker: Option<String>,
    ways: [Lane; 2],
}

#[derive(Debug, Default)]
struct Lane {
    parcels: VecDeque<Parcel>,
    /// When the last one that was sent arrives.
    last_ms: u64,
    /// So many have arrived at a cut.
    held: usize,
    is_ended: bool,
}

impl Wire {
    pub(super) fn new(machine: usize, control_life: u32) -> Wire {
        Wire { machine, control_life, worker: None, ways: [Lane::default(), Lane::default()] }
    }

    fn lane(&mut self, way: Way) -> &mut Lane {
        &mut self.ways[way as usize]
    }

    /// Returns whether no more orders can be taken.
    pub(super) fn is_full(&self) -> bool {
        self.ways[Way::ToMachine as usize].parcels.len() >= OUTGOING
    }

    /// Returns whether nobody hears what the coordinator says on it.
    pub(super) fn is_closed_to_machine(&self) -> bool {
        self.ways[Way::ToMachine as usize].is_ended
    }
}

impl World {
    /// Returns how long something takes from one machine to another.
    pub(super) fn delay_ms(&mut self) -> u64 {
        let slowest = if self.now_ms < self.faults.slow_network_until_ms { 4000 } else { 15 };
        if self.rarely(60) { self.draw(50, 600) } else { self.draw(1, slowest) }
    }

    /// Sends something; nothing follows an end.
    pub(super) fn send(&mut self, number: u64, way: Way, parcel: Parcel) {
        let delay_ms = self.delay_ms();
        let now_ms = self.now_ms;
        let Some(wire) = self.wires.get_mut(&number) else { return };
        let lane = wire.lane(way);
        if lane.is_ended {
            return;
        }
        lane.is_ended = matches!(parcel, Parcel::End);
        lane.parcels.push_back(parcel);
        lane.last_ms = lane.last_ms.max(now_ms + delay_ms);
        let after_ms = lane.last_ms - now_ms;
        self.after(after_ms, Happening::Arrives(number, way));
    }

    /// Drops some of what is on its way, then ends the direction.
    pub(super) fn tear(&mut self, number: u64, way: Way) {
        let Some(wire) = self.wires.get_mut(&number) else { return };
        let lane = wire.lane(way);
        if lane.is_ended {
            return;
        }
        let length = lane.parcels.len() as u64;
        let left = self.draw(0, length) as usize;
        let wire = self.wires.get_mut(&number).expect("it was just there");
        let lane = wire.lane(way);
        lane.parcels.truncate(left);
        lane.held = lane.held.min(left);
        self.send(number, way, Parcel::End);
    }

    pub(super) fn arrives(&mut self, number: u64, way: Way) {
        let Some(wire) = self.wires.get_mut(&number) else { return };
        if self.machines[wire.machine].is_cut(way) {
            wire.lane(way).held += 1;
            return;
        }
        let mut place = 0;
        let mut again = false;
        if self.is_loose && !self.is_calm {
            let lane = &self.wires[&number].ways[way as usize].parcels;
            let may_move = |at: usize| {
                let parcel = lane.get(at);
                parcel.is_some_and(|parcel| !matches!(parcel, Parcel::End | Parcel::Said(Said::Hello(_))))
            };
            let (can_be_overtaken, can_be_doubled) = (way == Way::ToControl && may_move(0) && may_move(1), may_move(0));
            if can_be_overtaken && self.rarely(12) {
                place = 1;
                self.count("message overtaken");
            } else if can_be_doubled && self.rarely(12) {
                again = true;
                self.count("message doubled");
            }
        }
        let lane = self.wires.get_mut(&number).expect("it was just there").lane(way);
        // What was torn off does not arrive.
        let Some(parcel) = lane.parcels.remove(place) else { return };
        if again {
            lane.parcels.push_front(parcel.clone());
            let after_ms = self.draw(1, 400);
            self.after(after_ms, Happening::Arrives(number, way));
        }
        match way {
            Way::ToControl => self.reaches_control(number, parcel),
            Way::ToMachine => self.reaches_machine(number, parcel),
        }
    }

    fn reaches_control(&mut self, number: u64, parcel: Parcel) {
        let Some(wire) = self.wires.get_mut(&number) else { return };
        if wire.control_life != self.control.life || !self.control.is_up() {
            return;
        }
        let input = match parcel {
            Parcel::Said(Said::Hello(hello)) => {
                wire.worker = Some(hello.name.clone());
                Input::Connected { hello, connection: number, outgoing: number }
            }
            Parcel::Said(message) => {
                let Some(worker) = wire.worker.clone() else { return };
                Input::Said { worker, connection: number, message }
            }
            Parcel::End => {
                let Some(worker) = wire.worker.clone() else { return };
                Input::Disconnected { worker, connection: number }
            }
            Parcel::Told(_) => unreachable!("orders go the other way"),
        };
        self.control_input(input);
    }

    fn reaches_machine(&mut self, number: u64, parcel: Parcel) {
        let wire = &self.wires[&number];
        let machine = wire.machine;
        let own = self.machines[machine].process.as_ref().and_then(|process| process.wire);
        if own != Some(number) {
            return;
        }
        let event = match parcel {
            Parcel::Told(message) => link::Event::Told(message),
            Parcel::End => {
                self.drop_wire(machine);
                link::Event::Disconnected
            }
            Parcel::Said(_) => unreachable!("words go the other way"),
        };
        self.link(machine, event);
    }

    /// What waits at a cut of a machine goes on, or its connections are torn.
    pub(super) fn mend_wires(&mut self, machine: usize, are_torn: bool) {
        let own: Vec<u64> = self.wires.iter().filter(|(_, wire)| wire.machine == machine).map(|(n, _)| *n).collect();
        for number in own {
            for way in Way::BOTH {
                let held = std::mem::take(&mut self.wires.get_mut(&number).expect("it is there").lane(way).held);
                for _ in 0..held {
                    self.after(1, Happening::Arrives(number, way));
                }
                if are_torn {
                    self.tear(number, way);
                }
            }
        }
    }
}
