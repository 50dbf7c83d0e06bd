//! The coordinator's process: the driver's core, with everything around it that the driver's shell does.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proto::coordinator::Welcome;
use proto::coordinator::to_worker::Message as Told;
use shared::store::Change;

use super::Mistake;
use super::oracle::Ask;
use super::people::plan_tasks;
use super::wire::{Parcel, Way};
use super::world::{Happening, TIMING, World};
use crate::driver::core::{self, Act, Core};
use crate::plan::Place;
use crate::records::{Found, Records};
use crate::scheduler::Scheduler;
use crate::scheduler::event::{Begun, Event, StageWork, Ticket};
use crate::stage::Outcome;

/// Connections and whoever waits for an answer are numbers here.
pub(super) type Input = core::Input<u64, u64>;

#[derive(Debug)]
pub(super) enum ControlEvent {
    Start,
    Tick,
    /// The commit is on the disk.
    Committed,
    /// Its own work on a stage comes back.
    Worked(StageWork),
    /// The oracle service is asked for a job, anew where it was before.
    Ask(Ticket),
    /// It has said something on a job's stream, or the stream is over.
    OracleSaid(Ticket, u64, Option<proto::oracle::job_event::Event>),
}

#[derive(Default)]
pub(super) struct Control {
    pub(super) life: u32,
    pub(super) process: Option<Process>,
    pub(super) frozen_until_ms: u64,
}

pub(super) struct Process {
    pub(super) core: Core<u64, u64>,
    inbox: VecDeque<Input>,
    committing: Option<Vec<Change>>,
    is_tick_due: bool,
    /// Pieces of its own work that somebody waits for.
    pub(super) work: BTreeSet<u64>,
    pub(super) asks: BTreeMap<u64, Ask>,
}

impl Control {
    pub(super) fn is_up(&self) -> bool {
        self.process.is_some()
    }

    pub(super) fn scheduler(&self) -> Option<&Scheduler> {
        self.process.as_ref().map(|process| process.core.scheduler())
    }

    /// Describes what has not ended, and all workers, for people.
    pub(super) fn describe(&self) -> String {
        let Some(scheduler) = self.scheduler() else { return "the coordinator is down".to_owned() };
        let mut text = String::new();
        for (name, run) in scheduler.runs().iter().filter(|(_, run)| !run.state.is_ended()) {
            text += &format!("\n  {name} {:?}", run.state);
            for (stage, plan) in run.stages.iter().zip(&run.plan.stages).filter(|(stage, _)| !stage.is_done()) {
                text += &format!("\n    {} {:?}", plan.name, stage.ticket());
                for task in stage.tasks() {
                    text += &format!("\n      {} {} {:?} {}", task.plan.name, task.attempt, task.state, task.note);
                }
            }
        }
        for (name, worker) in scheduler.workers() {
            text +=
                &format!("\n  {name} ({}) {:?}, connected {}", worker.hello.instance, worker.state, worker.connected);
        }
        text
    }
}

impl World {
    fn control_after(&mut self, ms: u64, event: ControlEvent) {
        let life = self.control.life;
        self.after(ms, Happening::Control(life, event));
    }

    /// Starts the coordinator with what is on its disk.
    pub(super) fn start_control(&mut self) {
        self.control.life += 1;
        let (records, runs) = Records::load(Found::of(&self.disk.records)).expect("what was saved can be read");
        let scheduler = Scheduler::new(TIMING, [self.control.life as u8; 32], runs);
        let welcome = Welcome { heartbeat_ms: TIMING.heartbeat_ms as u32, ..Welcome::default() };
        let mut core = Core::new(scheduler, records, welcome);
        core.take(self.now_ms, Input::Happened(Event::Started));
        self.control.process = Some(Process {
            core,
            inbox: VecDeque::new(),
            committing: None,
            is_tick_due: false,
            work: BTreeSet::new(),
            asks: BTreeMap::new(),
        });
        self.control.frozen_until_ms = 0;
        self.disturb();
        self.tell(|| "coordinator starts".to_owned());
        self.save_then_do();
        self.control_after(TIMING.heartbeat_ms / 2, ControlEvent::Tick);
    }

    /// The coordinator's process is gone.
    pub(super) fn kill_control(&mut self, restart_ms: u64) {
        let Some(process) = self.control.process.take() else { return };
        self.tell(|| "coordinator dies".to_owned());
        if let Some(changes) = &process.committing {
            // It may have reached the disk all the same.
            if self.rarely(2) {
                self.commit(changes);
            }
            self.count("coordinator killed in a commit");
        } else if self.mistake == Some(Mistake::CommitLost) {
            self.disk.lose_last();
        }
        let own: Vec<u64> = self.wires.keys().copied().collect();
        for number in own {
            self.tear(number, Way::ToMachine);
        }
        self.oracle.streams.clear();
        self.people.unanswered();
        self.control.frozen_until_ms = 0;
        let life = self.control.life;
        self.after(restart_ms, Happening::Control(life, ControlEvent::Start));
    }

    pub(super) fn control_event(&mut self, life: u32, event: ControlEvent) {
        if matches!(event, ControlEvent::Start) {
            if !self.control.is_up() && life == self.control.life {
                self.start_control();
            }
            return;
        }
        if life != self.control.life {
            return;
        }
        let Some(process) = &mut self.control.process else { return };
        match event {
            ControlEvent::Start => {}
            ControlEvent::Tick => {
                process.is_tick_due = self.mistake != Some(Mistake::NoTicks);
                self.control_after(TIMING.heartbeat_ms / 2, ControlEvent::Tick);
                self.turn();
            }
            ControlEvent::Committed => {
                let changes = process.committing.take().expect("a commit was on its way");
                if self.now_ms < self.disk.full_until_ms {
                    // The store takes nothing more: the process ends, and is started again.
                    self.count("full disk");
                    let restart_ms = self.draw(500, 3000);
                    return self.kill_control(restart_ms);
                }
                self.commit(&changes);
                self.do_all();
                self.turn();
            }
            ControlEvent::Worked(work) => {
                if process.work.remove(&work.ticket().0) {
                    let event = self.worked(work);
                    self.control_input(Input::Happened(event));
                }
            }
            ControlEvent::Ask(ticket) => self.ask(ticket),
            ControlEvent::OracleSaid(ticket, stream, event) => self.oracle_said(ticket, stream, event),
        }
    }

    /// Something comes into the driver's inbox.
    pub(super) fn control_input(&mut self, input: Input) {
        let Some(process) = &mut self.control.process else { return };
        process.inbox.push_back(input);
        self.turn();
    }

    /// Decides about all that has come, unless a commit is on its way.
    fn turn(&mut self) {
        let now_ms = self.now_ms;
        let Some(process) = self.control.process.as_mut().filter(|process| process.committing.is_none()) else {
            return;
        };
        let inputs = std::mem::take(&mut process.inbox);
        let tick = std::mem::take(&mut process.is_tick_due).then_some(Input::Happened(Event::Tick));
        if inputs.is_empty() && tick.is_none() {
            return;
        }
        for input in inputs.into_iter().chain(tick) {
            self.note_input(&input);
            let input = self.with_mistake(input);
            let process = self.control.process.as_mut().expect("it was just there");
            process.core.take(now_ms, input);
            process.core.scheduler().check_invariants();
        }
        self.save_then_do();
    }

    /// Saves what was decided, then does it.
    fn save_then_do(&mut self) {
        let process = self.control.process.as_mut().expect("it decides");
        let changes = process.core.changes();
        if changes.is_empty() {
            return self.do_all();
        }
        process.committing = Some(changes);
        let after_ms = self.commit_ms();
        self.control_after(after_ms, ControlEvent::Committed);
        if self.mistake == Some(Mistake::ToldBeforeSaved) {
            self.do_all();
        }
    }

    fn commit(&mut self, changes: &[Change]) {
        self.check_changes(changes);
        self.disk.commit(changes);
    }

    fn do_all(&mut self) {
        let process = self.control.process.as_mut().expect("it has decided");
        for act in process.core.acts() {
            self.act(act);
        }
    }

    fn act(&mut self, act: Act<u64, u64>) {
        match act {
            Act::Stage(work) => {
                match &work {
                    StageWork::CarryOut { run, stage, ticket } => {
                        let runs = self.control.scheduler().expect("it is up").runs();
                        if runs[run].plan.stages[*stage].place == Place::Oracle {
                            return self.begin_asking(run, *stage, *ticket);
                        }
                    }
                    StageWork::Finish { run, stage, .. } => self.check_outputs(run, *stage),
                    StageWork::Begin { .. } => {}
                }
                self.work_on(work);
            }
            Act::StopStage { ticket } => {
                let process = self.control.process.as_mut().expect("it is up");
                process.work.remove(&ticket.0);
                if let Some(ask) = process.asks.remove(&ticket.0) {
                    self.oracle.streams.remove(&ask.stream);
                }
            }
            Act::Send { worker, connection, outgoing, message } => self.order(&worker, connection, outgoing, message),
            Act::HangUp { outgoing } => {
                self.check_hang_up(outgoing);
                self.tell(|| format!("coordinator hangs up connection {outgoing}"));
                self.send(outgoing, Way::ToMachine, Parcel::End);
            }
            Act::Log { run, text } => {
                for (words, what) in [
                    ("is back", "attempt adopted"),
                    ("is stuck", "gang stuck"),
                    ("of 3 workers)", "smaller gang"),
                    ("has not left it", "member left behind"),
                ] {
                    if text.contains(words) {
                        self.count(what);
                    }
                }
                self.tell(|| format!("{run}: {text}"));
            }
            Act::Answer { answer, reply } => self.answered(answer, reply),
        }
    }

    fn order(&mut self, worker: &str, connection: u64, outgoing: u64, message: Told) {
        if self.mistake == Some(Mistake::NoStops) && matches!(message, Told::Stop(_)) {
            return;
        }
        self.check_order(worker, outgoing, &message);
        let is_full = self.wires.get(&outgoing).is_none_or(|wire| wire.is_full() || wire.is_closed_to_machine());
        if is_full {
            self.control_input_later(Input::Disconnected { worker: worker.to_owned(), connection });
            return;
        }
        self.tell(|| format!("to {worker}: {}", super::checks::words_of_order(&message)));
        self.send(outgoing, Way::ToMachine, Parcel::Told(message));
    }

    /// As the driver does: it is decided with what comes next.
    fn control_input_later(&mut self, input: Input) {
        self.control.process.as_mut().expect("it is up").inbox.push_back(input);
    }

    fn work_on(&mut self, work: StageWork) {
        self.control.process.as_mut().expect("it is up").work.insert(work.ticket().0);
        let after_ms = self.draw(5, 700);
        self.control_after(after_ms, ControlEvent::Worked(work));
    }

    /// Returns what a piece of its own work came to.
    fn worked(&mut self, work: StageWork) -> Event {
        let outcome = |seconds| Outcome { seconds, ..Outcome::default() };
        match work {
            StageWork::Begin { run, stage, ticket } if self.files.manifests.contains(&(run.clone(), stage)) => {
                Event::StageBegun { ticket, begun: Ok(Begun::Done(outcome(1.0))) }
            }
            StageWork::Begin { run, stage, ticket } => {
                let tasks = plan_tasks(&self.people.shape(&run), stage);
                Event::StageBegun { ticket, begun: Ok(Begun::Todo(tasks)) }
            }
            StageWork::CarryOut { ticket, .. } => Event::StageCarriedOut { ticket, done: Ok(()) },
            StageWork::Finish { run, stage, ticket, seconds } => {
                self.files.manifests.insert((run, stage));
                Event::StageFinished { ticket, done: Ok(outcome(seconds)) }
            }
        }
    }

    /// Makes the planted mistake with what comes in.
    fn with_mistake(&self, input: Input) -> Input {
        match input {
            Input::Disconnected { worker, .. } if self.mistake == Some(Mistake::OldConnectionSpeaks) => {
                let own = self.wires.iter().filter(|(_, wire)| wire.worker.as_ref() == Some(&worker));
                let connection = own.map(|(number, _)| *number).max().unwrap_or_default();
                Input::Disconnected { worker, connection }
            }
            input => input,
        }
    }
}
