//! The learning rate of a run, and where the run ends: a function of settings, step and the losses seen so far.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::schedule;

/// Updates whose mean loss decides; one batch alone says little.
pub const WINDOW: usize = 50;

/// The peak is held until a loss is reached, then the rate falls.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hold {
    /// Mean loss of the last [`WINDOW`] updates at which the rate begins to fall.
    pub until_loss: f64,
    /// Updates of the fall, half a cosine to 0.
    pub decay_steps: u64,
}

/// What the losses so far have decided; part of a checkpoint, so that a resumed run ends where an undisturbed one does.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// Losses of the last updates, oldest first, at most [`WINDOW`].
    recent: VecDeque<f64>,
    /// Step (from 0) at which the rate begins to fall.
    falls_from: Option<u64>,
    /// Updates after which the gradient was small enough to end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ended_after: Option<u64>,
}

impl Seen {
    /// Returns whether there is nothing to keep.
    pub fn is_empty(&self) -> bool {
        *self == Seen::default()
    }
}

/// The pace of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Pace {
    peak: f64,
    warmup: u64,
    most: u64,
    hold: Option<Hold>,
    /// ε of Algorithm 1: a gradient of this norm or less ends the run.
    least_gradient: Option<f64>,
    seen: Seen,
}

impl Pace {
    /// Of a run of at most `most` updates: warm-up, then half a cosine to 0 (spec 6), or a held peak before the fall.
    pub fn new(peak: f64, warmup: u64, most: u64, hold: Option<Hold>) -> Pace {
        Pace { peak, warmup, most, hold, least_gradient: None, seen: Seen::default() }
    }

    /// Has the run end after an update whose gradient had a norm of `epsilon` or less, before clipping.
    pub fn until_gradient(self, epsilon: Option<f64>) -> Pace {
        Pace { least_gradient: epsilon, ..self }
    }

    /// Returns what a checkpoint keeps.
    pub fn seen(&self) -> &Seen {
        &self.seen
    }

    /// Goes on from a checkpoint.
    pub fn restore(&mut self, seen: Seen) {
        self.seen = seen;
    }

    /// Returns the number of updates of the run, as far as is known now.
    pub fn total(&self) -> u64 {
        let planned = match (self.hold, self.seen.falls_from) {
            (Some(hold), Some(from)) => from + hold.decay_steps,
            _ => self.most,
        };
        self.seen.ended_after.map_or(planned, |ended| ended.min(planned))
    }

    /// Returns the learning rate of a step (from 0).
    pub fn rate(&self, step: u64) -> f64 {
        match (self.hold, self.seen.falls_from) {
            (None, _) => schedule::learning_rate(self.peak, self.warmup, self.most, step),
            (Some(hold), Some(from)) if step >= from => {
                schedule::learning_rate(self.peak, 0, hold.decay_steps, step - from)
            }
            _ if step < self.warmup => self.peak * step as f64 / self.warmup as f64,
            _ => self.peak,
        }
    }

    /// Takes the loss of a step and the norm of its gradient. Returns whether the rate falls from the next step on though the loss was not reached,
    /// because the run must end.
    pub fn saw(&mut self, step: u64, loss: f64, gradient_norm: f64) -> bool {
        if self.least_gradient.is_some_and(|least| gradient_norm <= least) {
            self.seen.ended_after.get_or_insert(step + 1);
        }
        let Some(hold) = self.hold.filter(|_| self.seen.falls_from.is_none()) else { return false };
        let recent = &mut self.seen.recent;
        if recent.len() == WINDOW {
            recent.pop_front();
        }
        recent.push_back(loss);
        let next = step + 1;
        let is_reached = next >= self.warmup
            && recent.len() == WINDOW
            && recent.iter().sum::<f64>() <= hold.until_loss * WINDOW as f64;
        let must_end = next + hold.decay_steps >= self.most;
        if is_reached || must_end {
            self.seen = Seen { recent: VecDeque::new(), falls_from: Some(next), ..self.seen };
        }
        must_end && !is_reached
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLD: Hold = Hold { until_loss: 0.5, decay_steps: 100 };

    fn run(pace: &mut Pace, loss: impl Fn(u64) -> f64) -> (Vec<f64>, bool) {
        let (mut rates, mut step, mut is_short) = (Vec::new(), 0, false);
        while step < pace.total() {
            rates.push(pace.rate(step));
            is_short |= pace.saw(step, loss(step), 1.0);
            step += 1;
        }
        (rates, is_short)
    }

    #[test]
    fn without_a_hold_the_rate_is_that_of_the_schedule() {
        let mut pace = Pace::new(1e-3, 10, 100, None);
        let (rates, _) = run(&mut pace, |_| 0.0);
        assert_eq!(rates, (0..100).map(|step| schedule::learning_rate(1e-3, 10, 100, step)).collect::<Vec<_>>());
        assert!(pace.seen().is_empty());
    }

    #[test]
    fn the_peak_is_held_until_the_mean_loss_is_reached() {
        let mut pace = Pace::new(1.0, 10, 1000, Some(HOLD));
        // 0.5 is the mean of the last 50 when 25 of them are 0.
        let (rates, is_short) = run(&mut pace, |step| if step < 200 { 1.0 } else { 0.0 });
        assert_eq!((rates.len(), is_short), (225 + 100, false));
        assert_eq!((rates[0], rates[5]), (0.0, 0.5));
        assert!(rates[10..=225].iter().all(|rate| *rate == 1.0));
        assert!((rates[275] - 0.5).abs() < 1e-12 && rates[324] < 1e-3);
    }

    #[test]
    fn a_loss_out_of_reach_leaves_time_for_the_fall_and_is_told() {
        let mut pace = Pace::new(1.0, 10, 300, Some(HOLD));
        let (rates, is_short) = run(&mut pace, |_| 1.0);
        assert_eq!((rates.len(), is_short), (300, true));
        assert_eq!((rates[200], rates[199]), (1.0, 1.0));
        assert!(rates[201] < 1.0);
    }

    #[test]
    fn a_resumed_pace_goes_on_alike() {
        let loss = |step: u64| 1.0 / (1.0 + step as f64 / 100.0);
        let mut whole = Pace::new(1.0, 10, 1000, Some(HOLD));
        let (rates, _) = run(&mut whole, loss);
        for cut in [3, 60, rates.len() as u64 - 101, rates.len() as u64 - 100, rates.len() as u64 - 7] {
            let mut first = Pace::new(1.0, 10, 1000, Some(HOLD));
            (0..cut).for_each(|step| {
                first.saw(step, loss(step), 1.0);
            });
            let kept = serde_json::to_string(first.seen()).unwrap();
            let mut second = Pace::new(1.0, 10, 1000, Some(HOLD));
            second.restore(serde_json::from_str(&kept).unwrap());
            let rest: Vec<f64> = (cut..rates.len() as u64)
                .map(|step| {
                    let rate = second.rate(step);
                    second.saw(step, loss(step), 1.0);
                    rate
                })
                .collect();
            assert_eq!(rest, rates[cut as usize..]);
            assert_eq!(second.total(), rates.len() as u64);
        }
    }

    #[test]
    fn a_small_gradient_ends_the_run_also_when_it_is_resumed() {
        for hold in [None, Some(HOLD)] {
            let new = || Pace::new(1.0, 10, 1000, hold).until_gradient(Some(0.01));
            let mut pace = new();
            (0..40).for_each(|step| {
                pace.saw(step, 1.0, 0.011);
            });
            assert_eq!(pace.total(), 1000);
            pace.saw(40, 1.0, 0.01);
            assert_eq!(pace.total(), 41);
            let mut resumed = new();
            resumed.restore(serde_json::from_str(&serde_json::to_string(pace.seen()).unwrap()).unwrap());
            assert_eq!(resumed.total(), 41);
        }
    }
}
