//! The oracle service as its client sees it: a job's stream, answers that are paid once and kept, and a process and a network
//! that fail.

use std::collections::BTreeMap;

use proto::oracle::job_event::Event as Said;
use proto::oracle::{Bill as Billed, Ended, Progress as Got};
use tonic::Status;

use super::control::{ControlEvent, Input};
use super::world::{Happening, World};
use crate::scheduler::event::{Event, Ticket};
use crate::scheduler::run::RunState;
use crate::stage::Bill;
use crate::stage::asking::{Asking, Next};

/// Questions of a job.
const QUESTIONS: u64 = 25;
/// A connection that brings nothing is given up after so long.
const SILENCE_MS: u64 = 20_000;

#[derive(Debug)]
pub(super) enum OracleEvent {
    Start,
    /// The next question of a stream's job is answered.
    Answers(u64),
}

#[derive(Default)]
pub(super) struct Oracle {
    life: u32,
    is_down: bool,
    pub(super) cut_until_ms: u64,
    pub(super) streams: BTreeMap<u64, Stream>,
    next: u64,
    /// Answers in its ledger.
    paid: BTreeMap<(String, usize), u64>,
    /// What the coordinator has saved of the bills.
    bills: BTreeMap<(String, usize), Bill>,
}

/// A job as it is carried out for one that asked.
pub(super) struct Stream {
    ticket: Ticket,
    of: (String, usize),
    reached: u64,
}

/// A stage that asks.
pub(super) struct Ask {
    of: (String, usize),
    asking: Asking,
    pub(super) stream: u64,
}

impl World {
    fn say_later(&mut self, ms: u64, ticket: Ticket, stream: u64, said: Option<Said>) {
        let life = self.control.life;
        self.after(ms, Happening::Control(life, ControlEvent::OracleSaid(ticket, stream, said)));
    }

    pub(super) fn begin_asking(&mut self, run: &str, stage: usize, ticket: Ticket) {
        let of = (run.to_owned(), stage);
        let paid = self.oracle.bills.get(&of).cloned().unwrap_or_default();
        let ask = Ask { of, asking: Asking::new("oracle".to_owned(), paid), stream: 0 };
        self.control.process.as_mut().expect("it is up").asks.insert(ticket.0, ask);
        self.ask(ticket);
    }

    /// Opens a job's stream.
    pub(super) fn ask(&mut self, ticket: Ticket) {
        let after_ms = self.delay_ms();
        self.oracle.next += 1;
        let number = self.oracle.next;
        let asks = self.control.process.as_mut().map(|process| &mut process.asks);
        let Some(ask) = asks.and_then(|asks| asks.get_mut(&ticket.0)) else { return };
        ask.stream = number;
        let of = ask.of.clone();
        if self.now_ms < self.oracle.cut_until_ms {
            return self.say_later(5000, ticket, number, None);
        }
        if self.oracle.is_down {
            return self.say_later(after_ms, ticket, number, None);
        }
        self.oracle.streams.insert(number, Stream { ticket, of, reached: 0 });
        let life = self.oracle.life;
        self.after(after_ms, Happening::Oracle(life, OracleEvent::Answers(number)));
    }

    pub(super) fn oracle_said(&mut self, ticket: Ticket, stream: u64, said: Option<Said>) {
        let asks = self.control.process.as_mut().map(|process| &mut process.asks);
        let Some(ask) = asks.and_then(|asks| asks.get_mut(&ticket.0)).filter(|ask| ask.stream == stream) else {
            return;
        };
        let next = match said {
            Some(said) => ask.asking.heard(Some(said)),
            None => ask.asking.failed(&Status::unavailable("it is gone")),
        };
        if ask.asking.is_to_be_saved(&next) {
            let before = self.oracle.bills.insert(ask.of.clone(), ask.asking.bill().clone());
            let (before, now) = (before.map_or(0, |bill| bill.calls), ask.asking.bill().calls);
            if now < before {
                self.checks.fail(&format!("the bill goes back from {before} to {now} calls"));
            }
        }
        let progressed = |progress| Input::Happened(Event::StageProgressed { ticket, progress });
        match next {
            Next::Listen(None) => {}
            Next::Listen(Some(progress)) => self.control_input(progressed(progress)),
            Next::Ask { after, told } => {
                self.control_input(progressed(told));
                let life = self.control.life;
                self.after(after.as_millis() as u64, Happening::Control(life, ControlEvent::Ask(ticket)));
            }
            Next::Done(_) => {
                self.control.process.as_mut().expect("it is up").asks.remove(&ticket.0);
                self.control_input(Input::Happened(Event::StageCarriedOut { ticket, done: Ok(()) }));
            }
            Next::GiveUp(problem) => self.checks.fail(&format!("a stage gives the oracle service up: {problem}")),
        }
    }

    pub(super) fn oracle_event(&mut self, life: u32, event: OracleEvent) {
        if life != self.oracle.life {
            return;
        }
        match event {
            OracleEvent::Start => self.oracle.is_down = false,
            OracleEvent::Answers(number) => self.answers(number),
        }
    }

    fn answers(&mut self, number: u64) {
        let is_cut = self.now_ms < self.oracle.cut_until_ms;
        let Some(stream) = self.oracle.streams.get_mut(&number) else { return };
        stream.reached += 1;
        let (ticket, reached) = (stream.ticket, stream.reached);
        // What another stream of the same job has had answered costs nothing.
        let paid = self.oracle.paid.entry(stream.of.clone()).or_default();
        let is_kept = reached <= *paid;
        *paid = (*paid).max(reached);
        let bill = Some(Billed { calls: reached, ..Billed::default() });
        if is_cut {
            self.oracle.streams.remove(&number);
            return self.say_later(SILENCE_MS, ticket, number, None);
        }
        let after_ms = self.delay_ms();
        if reached == QUESTIONS {
            self.oracle.streams.remove(&number);
            return self.say_later(
                after_ms + 1000,
                ticket,
                number,
                Some(Said::Ended(Ended { bill, ..Ended::default() })),
            );
        }
        let got = Got { done: reached, total: QUESTIONS, bill, ..Got::default() };
        self.say_later(after_ms, ticket, number, Some(Said::Progress(got)));
        let next_ms = if is_kept { 2 } else { self.draw(20, 900) };
        let life = self.oracle.life;
        self.after(next_ms, Happening::Oracle(life, OracleEvent::Answers(number)));
    }

    pub(super) fn kill_oracle(&mut self, down_ms: u64) {
        self.tell(|| "oracle service dies".to_owned());
        for (number, stream) in std::mem::take(&mut self.oracle.streams) {
            let after_ms = self.delay_ms();
            self.say_later(after_ms, stream.ticket, number, None);
        }
        self.oracle.life += 1;
        self.oracle.is_down = true;
        let life = self.oracle.life;
        self.after(down_ms, Happening::Oracle(life, OracleEvent::Start));
    }

    /// What a run that is done has paid is every question, once.
    pub(super) fn check_bills(&mut self) {
        let runs = self.control.scheduler().expect("it is calm").runs();
        let done: Vec<String> =
            runs.iter().filter(|(_, run)| run.state == RunState::Done).map(|(name, _)| name.clone()).collect();
        for run in done {
            let calls = self.oracle.bills.get(&(run.clone(), 1)).map(|bill| bill.calls);
            if calls != Some(QUESTIONS) {
                self.checks.fail(&format!("{run} has paid {calls:?} of {QUESTIONS} calls"));
            }
        }
    }
}
