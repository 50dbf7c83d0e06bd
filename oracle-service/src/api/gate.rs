//! The one way out: who may send next, where to, and with which money; or why nobody may.
//!
//! Requests pass one by one in the order they came, repeated ones among the new. A job that cannot go on pauses: a patient
//! one waits until it is resumed, its cap raised, or a look finds the reason gone; another ends once what is on its way is
//! stored.

mod ticket;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::account::{Account, Reservation};
use super::budget::{Money, Refused};
use super::endpoint::Endpoint;
use super::health::Halt;
use super::limits::Heard;
use super::pacer::{PacerView, PerMinute, Permit};
use super::time::Time;
pub(super) use ticket::Ticket;

/// Whatever happens, it is looked again after so long.
const LOOK: Duration = Duration::from_secs(60);
/// Waits shorter than that are nothing to tell.
const WORTH_TELLING: Duration = Duration::from_secs(1);

/// What a request needs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    /// Likely tokens, for the pacer.
    pub(super) tokens: f64,
    /// What it costs at most.
    pub(super) worst: Money,
}

/// Why a job does not go on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Pause {
    /// An operator said so.
    Asked,
    /// The judge's known answers have changed.
    Canary(String),
    /// The cap leaves no room for the next request.
    Cap { cap: Money, counted: Money },
    /// No endpoint will answer before someone acts.
    Refused(String),
    /// No endpoint answers.
    Away(String),
}

impl std::fmt::Display for Pause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Pause::Asked => f.write_str("paused by an operator; resume it to go on"),
            Pause::Cap { cap, counted } => write!(
                f,
                "the cost limit of ${:.4} is reached (${:.4} are spent or may be); raise it to go on",
                cap.usd(),
                counted.usd()
            ),
            Pause::Canary(alarm) => write!(f, "{alarm}; resume to go on all the same"),
            Pause::Refused(reason) | Pause::Away(reason) => f.write_str(reason),
        }
    }
}

/// The way out of one job.
pub(super) struct Gate {
    endpoints: Vec<Arc<Endpoint>>,
    account: Arc<Account>,
    state: Mutex<State>,
    turn: tokio::sync::Mutex<()>,
    changed: Arc<Notify>,
    is_patient: bool,
    time: Time,
    dropped: CancellationToken,
}

struct State {
    is_paused: bool,
    /// Why the job itself does not go on, until it is resumed.
    alarm: Option<String>,
    pause: Option<Pause>,
    /// Why an impatient job has ended: nothing smaller may slip through after.
    stopped: Option<Pause>,
    waits: Option<String>,
    concurrency: usize,
    in_flight: usize,
    /// Requests over weights of the endpoint that was last in turn.
    turn: f64,
}

/// What became of the wish to send.
pub(super) enum Admission {
    Go(Ticket),
    /// The job cannot go on and does not wait.
    Stopped(Pause),
    /// Nobody wants it any more.
    Dropped,
}

enum Step {
    Go(Ticket),
    Wait(Duration, Option<String>),
    /// There may be money once requests on their way have cost less than their worst case.
    Later,
    Paused(Pause, Duration),
}

/// An endpoint's state, for people.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct EndpointView {
    pub(crate) name: String,
    pub(crate) in_flight: usize,
    pub(crate) concurrency: Option<usize>,
    pub(crate) weight: f64,
    pub(crate) pacing: PacerView,
    pub(crate) halted: Option<String>,
}

/// What an operator changes while a job runs; what is none stays.
#[derive(Debug, Clone, Default)]
pub(crate) struct Retune {
    /// Requests of the job on their way at once.
    pub(crate) concurrency: Option<usize>,
    /// Endpoint the rest is about; all where none is named.
    pub(crate) endpoint: Option<String>,
    /// Requests and tokens a minute; 0 takes the limit away.
    pub(crate) requests_per_minute: Option<f64>,
    pub(crate) tokens_per_minute: Option<f64>,
    pub(crate) weight: Option<f64>,
}

impl Gate {
    pub(super) fn new(
        endpoints: Vec<Arc<Endpoint>>,
        account: Arc<Account>,
        concurrency: usize,
        is_patient: bool,
        time: Time,
        changed: Arc<Notify>,
        dropped: CancellationToken,
    ) -> Arc<Gate> {
        let state = State {
            is_paused: false,
            alarm: None,
            pause: None,
            stopped: None,
            waits: None,
            concurrency,
            in_flight: 0,
            turn: 0.0,
        };
        let turn = tokio::sync::Mutex::default();
        Arc::new(Gate { endpoints, account, state: Mutex::new(state), turn, changed, is_patient, time, dropped })
    }

    /// Waits until a request may be sent. Money set aside for it before is used.
    pub(super) async fn admit(self: &Arc<Gate>, size: Size, money: &mut Option<Reservation>) -> Admission {
        let mut turn = None;
        loop {
            if turn.is_none() {
                turn = tokio::select! {
                    turn = self.turn.lock() => Some(turn),
                    () = self.dropped.cancelled() => return Admission::Dropped,
                };
            }
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.dropped.is_cancelled() {
                return Admission::Dropped;
            }
            if let Some(pause) = self.lock().stopped.clone() {
                return Admission::Stopped(pause);
            }
            let wait = match self.step(size, money, self.time.now()) {
                Step::Go(ticket) => {
                    self.tell(None, None);
                    return Admission::Go(ticket);
                }
                Step::Wait(wait, why) => {
                    self.tell(None, why);
                    wait
                }
                Step::Later => {
                    self.tell(None, None);
                    // What it waits for may itself wait for its turn, to be sent again with the money it has.
                    turn = None;
                    LOOK
                }
                Step::Paused(pause, look) => {
                    if !self.is_patient {
                        let mut state = self.lock();
                        if state.in_flight == 0 {
                            state.stopped = Some(pause.clone());
                            return Admission::Stopped(pause);
                        }
                    }
                    self.tell(Some(pause), None);
                    look
                }
            };
            tokio::select! {
                () = changed => {}
                () = self.time.sleep(wait) => {}
                () = self.dropped.cancelled() => return Admission::Dropped,
            }
        }
    }

    fn step(self: &Arc<Gate>, size: Size, money: &mut Option<Reservation>, now: Instant) -> Step {
        let mut state = self.lock();
        if state.is_paused {
            return Step::Paused(Pause::Asked, LOOK);
        }
        if let Some(alarm) = &state.alarm {
            return Step::Paused(Pause::Canary(alarm.clone()), LOOK);
        }
        if state.in_flight >= state.concurrency {
            return Step::Wait(LOOK, None);
        }
        if money.is_none() {
            match self.account.reserve(size.worst) {
                Ok(reservation) => *money = Some(reservation),
                Err(Refused::Later) => return Step::Later,
                Err(Refused::Reached) => {
                    let budget = self.account.budget();
                    let cap = budget.cap.unwrap_or_default();
                    return Step::Paused(Pause::Cap { cap, counted: budget.spent + budget.lost }, LOOK);
                }
            }
        }
        let mut wait = LOOK;
        let (mut refused, mut away) = (None, None);
        // How long until the pace of an endpoint that is used allows the request.
        let mut paced: Option<Duration> = None;
        let mut usable = 0;
        let mut best: Option<(f64, &Arc<Endpoint>)> = None;
        for endpoint in &self.endpoints {
            let mut of = endpoint.lock();
            let look = of.health.wait(now);
            if let Some(halt) = of.health.halt() {
                wait = wait.min(look.unwrap_or(LOOK));
                match halt {
                    Halt::Refused(reason) => refused = Some(reason.clone()),
                    Halt::Away(reason) if self.is_patient || !of.health.is_hopeless() => away = Some(reason.clone()),
                    Halt::Away(reason) => refused = Some(reason.clone()),
                }
                if look != Some(Duration::ZERO) {
                    continue;
                }
            } else {
                usable += 1;
            }
            if of.concurrency.is_some_and(|most| of.in_flight >= most) {
                continue;
            }
            let own = of.pacer.wait(size.tokens, now);
            if !own.is_zero() {
                wait = wait.min(own);
                paced = Some(paced.map_or(own, |least| least.min(own)));
                continue;
            }
            let turn = of.turn.max(state.turn);
            if best.is_none_or(|(least, _)| turn < least) {
                best = Some((turn, endpoint));
            }
        }
        if let Some((turn, endpoint)) = best {
            let mut of = endpoint.lock();
            of.turn = turn + 1.0 / of.weight;
            of.in_flight += 1;
            let is_look = of.health.sent();
            let permit = of.pacer.take(size.tokens, now);
            drop(of);
            state.turn = turn;
            state.in_flight += 1;
            let (gate, endpoint) = (self.clone(), endpoint.clone());
            return Step::Go(Ticket { gate, endpoint, permit, is_told: false, is_look });
        }
        if usable == 0 {
            match (refused, away) {
                (_, Some(reason)) if self.is_patient => return Step::Paused(Pause::Away(reason), wait),
                // An outage is waited for even where a refusal is not.
                (_, Some(reason)) => return Step::Wait(wait, Some(reason)),
                (Some(reason), None) => return Step::Paused(Pause::Refused(reason), wait),
                (None, None) => {}
            }
        }
        let told = paced.filter(|paced| *paced > WORTH_TELLING && *paced < LOOK);
        Step::Wait(wait, told.map(|paced| format!("the rate limit; next request in {:.0} s", paced.as_secs_f64())))
    }

    /// Stops sending; what is on its way is still stored.
    pub(super) fn pause(&self) {
        self.lock().is_paused = true;
        self.changed.notify_waiters();
    }

    /// Stops sending for a canary's alarm, until the job is resumed.
    pub(super) fn alarm(&self, alarm: String) {
        self.lock().alarm = Some(alarm);
        self.changed.notify_waiters();
    }

    /// Waits until the job is neither paused by an operator nor by an alarm. Returns whether it is still wanted.
    pub(super) async fn resumed(&self) -> bool {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let why = {
                let state = self.lock();
                match (state.is_paused, &state.alarm) {
                    (true, _) => Pause::Asked,
                    (false, Some(alarm)) => Pause::Canary(alarm.clone()),
                    (false, None) => return true,
                }
            };
            self.tell(Some(why), None);
            tokio::select! {
                () = changed => {}
                () = self.dropped.cancelled() => return false,
            }
        }
    }

    /// Goes on, and looks again at endpoints that refused.
    pub(super) fn resume(&self) {
        let mut state = self.lock();
        (state.is_paused, state.alarm, state.pause) = (false, None, None);
        drop(state);
        for endpoint in &self.endpoints {
            endpoint.lock().health.look_now();
        }
        self.changed.notify_waiters();
    }

    /// Changes limits. Returns whether the endpoint it names is there.
    pub(super) fn retune(&self, retune: &Retune, now: Instant) -> bool {
        let is_meant =
            |endpoint: &&Arc<Endpoint>| retune.endpoint.as_ref().is_none_or(|name| *name == endpoint.spec.name);
        if !self.endpoints.iter().any(|endpoint| is_meant(&endpoint)) {
            return false;
        }
        if let Some(concurrency) = retune.concurrency {
            self.lock().concurrency = concurrency.max(1);
        }
        for endpoint in self.endpoints.iter().filter(is_meant) {
            let mut of = endpoint.lock();
            let limit = |new: Option<f64>, old: Option<f64>| new.map_or(old, |new| (new > 0.0).then_some(new));
            let own = of.pacer.own();
            let limits = PerMinute {
                requests: limit(retune.requests_per_minute, own.requests),
                tokens: limit(retune.tokens_per_minute, own.tokens),
            };
            of.pacer.set(limits, now);
            of.weight = retune.weight.unwrap_or(of.weight);
        }
        self.changed.notify_waiters();
        true
    }

    /// Returns why the job does not go on, where it does not.
    pub(super) fn paused(&self) -> Option<Pause> {
        self.lock().pause.clone()
    }

    /// Returns whether the job was paused, by a person or by an alarm.
    pub(super) fn is_paused(&self) -> bool {
        let state = self.lock();
        state.is_paused || state.alarm.is_some()
    }

    /// Returns what requests wait for, where one does.
    pub(super) fn waits(&self) -> Option<String> {
        let state = self.lock();
        state.pause.as_ref().map(|pause| format!("paused: {pause}")).or_else(|| state.waits.clone())
    }

    /// Returns the requests on their way, and how many there may be.
    pub(super) fn in_flight(&self) -> (usize, usize) {
        let state = self.lock();
        (state.in_flight, state.concurrency)
    }

    pub(super) fn endpoints(&self, now: Instant) -> Vec<EndpointView> {
        let view = |endpoint: &Arc<Endpoint>| {
            let of = endpoint.lock();
            EndpointView {
                name: endpoint.spec.name.clone(),
                in_flight: of.in_flight,
                concurrency: of.concurrency,
                weight: of.weight,
                pacing: of.pacer.view(now),
                halted: of.health.halt().map(|halt| halt.reason().to_owned()),
            }
        };
        self.endpoints.iter().map(view).collect()
    }

    /// Returns whether any endpoint limits tokens, so that it pays to count them.
    pub(super) fn counts_tokens(&self) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.lock().pacer.counts_tokens())
    }

    /// Says that money or limits have changed.
    pub(super) fn look_again(&self) {
        self.changed.notify_waiters();
    }

    fn tell(&self, pause: Option<Pause>, waits: Option<String>) {
        let mut state = self.lock();
        if pause.is_some() && state.pause != pause {
            let reason = pause.as_ref().map(ToString::to_string).unwrap_or_default();
            tracing::warn!(reason, "the job pauses");
        } else if pause.is_none() && state.pause.is_some() {
            tracing::info!("the job goes on");
        }
        (state.pause, state.waits) = (pause, waits);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
