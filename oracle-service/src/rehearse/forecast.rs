//! From what happened in the rehearsal to what the whole job will be: pure.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use crate::api::batch::Mode;
use crate::mock::{Plan, Stats};

/// What happened.
#[derive(Debug, Serialize)]
pub(super) struct Rehearsed {
    pub(super) mode: Mode,
    pub(super) speed_asked_for: f64,
    /// At which it ran.
    pub(super) speed: f64,
    /// Questions that were to be asked.
    pub(super) questions: u64,
    /// Those with an answer in words.
    pub(super) answered: u64,
    /// Of them, those that are neither of the two words.
    pub(super) unclear: u64,
    /// Questions without an answer, by reason.
    pub(super) dead: BTreeMap<String, u64>,
    /// By the clock, not the mock's.
    pub(super) wall_s: f64,
    /// What limits, latency and concurrency allow, in questions per second.
    pub(super) ceiling_per_s: Option<f64>,
    /// None where the price table does not know the model.
    pub(super) cost_usd: Option<f64>,
    pub(super) prompt_tokens: u64,
    pub(super) cached_tokens: u64,
    pub(super) completion_tokens: u64,
    pub(super) prices: String,
    /// Requests that the mock charged more than once.
    pub(super) paid_twice: u64,
    pub(super) stats: Stats,
    /// Why it did not get to its end.
    pub(super) stopped: Option<String>,
}

/// What the whole job will be.
#[derive(Debug, Serialize)]
pub(super) struct Forecast {
    pub(super) questions: u64,
    /// By what was measured.
    pub(super) duration_s: f64,
    /// By limits, latency and concurrency alone.
    pub(super) duration_at_least_s: Option<f64>,
    /// How much faster than the clock the server's side of the rehearsal alone went by; none where nothing holds it up or
    /// batches are waited for.
    pub(super) speed_reached: Option<f64>,
    pub(super) cost_usd: Option<f64>,
    pub(super) prompt_tokens: f64,
    pub(super) cached_tokens: f64,
    pub(super) completion_tokens: f64,
    /// Answers 429 for being over a limit.
    pub(super) rate_limited: f64,
    /// By the plan's names.
    pub(super) failures: BTreeMap<String, f64>,
    /// Requests sent again.
    pub(super) repeats: f64,
    pub(super) unclear: f64,
    pub(super) without_answer: BTreeMap<String, f64>,
    /// The share of what the limits allowed that was used.
    pub(super) limit_used_share: Option<f64>,
    pub(super) rehearsed: Rehearsed,
}

/// Returns how many questions a second limits, latency and concurrency allow; none where nothing holds them up.
pub(super) fn ceiling(plan: &Plan, concurrency: usize, tokens_of_a_question: f64) -> Option<f64> {
    let latency = mean_latency_s(plan);
    let by_latency = (latency > 0.0).then(|| concurrency as f64 / latency);
    let by_requests = mean_rate(plan, |step| plan.limits[step].rpm).map(|rpm| rpm / 60.0);
    let by_tokens = mean_rate(plan, |step| plan.limits[step].tpm).map(|tpm| tpm / 60.0 / tokens_of_a_question);
    [by_latency, by_requests, by_tokens].into_iter().flatten().reduce(f64::min)
}

fn mean_latency_s(plan: &Plan) -> f64 {
    /// A verdict's tokens, nearly.
    const ANSWER: u64 = 4;
    const DRAWS: u64 = 1000;
    (0..DRAWS).map(|n| plan.latency.draw(0, n, ANSWER).as_secs_f64()).sum::<f64>() / DRAWS as f64
}

/// Returns a limit's mean per minute: over a round of the schedule, or the last step's, which stays.
fn mean_rate(plan: &Plan, rate: impl Fn(usize) -> Option<f64>) -> Option<f64> {
    let Some(repeat) = plan.limits_repeat_s else { return rate(plan.limits.len().checked_sub(1)?) };
    let end = |step: usize| plan.limits.get(step + 1).map_or(repeat, |next| next.at_s);
    let steps = 0..plan.limits.len();
    let whole = steps.map(|step| rate(step).map(|rate| rate * (end(step) - plan.limits[step].at_s) / repeat));
    // A step without this limit lets anything through, so there is no mean to name.
    whole.sum::<Option<f64>>().filter(|_| !plan.limits.is_empty())
}

impl Forecast {
    /// Returns what a job of so many questions will be.
    pub(super) fn of(rehearsed: Rehearsed, questions: u64) -> Forecast {
        let over: u64 = rehearsed.dead.values().sum();
        let done = (rehearsed.answered + over).max(1);
        let times = questions as f64 / done as f64;
        let ceiling = rehearsed.ceiling_per_s.filter(|_| rehearsed.mode == Mode::Online);
        let at_least = ceiling.map(|ceiling| questions as f64 / ceiling);
        let speed_reached = ceiling.map(|ceiling| (done as f64 / ceiling / rehearsed.wall_s).min(rehearsed.speed));
        let measured = rehearsed.wall_s * rehearsed.speed;
        let by_measure = match rehearsed.mode {
            Mode::Online => measured * times,
            // A batch takes its time, however many lines it has, and all are under way together.
            Mode::Batch => measured,
            // What was asked online takes as much longer as there is more of it.
            Mode::Auto => {
                let online = rehearsed.stats.requests as f64 * times;
                measured.max(rehearsed.ceiling_per_s.map_or(0.0, |ceiling| online / ceiling))
            }
        };
        let whole = |counts: &BTreeMap<String, u64>| {
            counts.iter().map(|(name, count)| (name.clone(), *count as f64 * times)).collect()
        };
        let used = [&rehearsed.stats.limits.requests, &rehearsed.stats.limits.tokens];
        let used = used.into_iter().flatten().map(|used| used.used_share).reduce(f64::max);
        Forecast {
            questions,
            // A sample may live on the burst that the whole job has only once.
            duration_s: by_measure.max(at_least.unwrap_or(0.0)),
            duration_at_least_s: at_least,
            speed_reached,
            cost_usd: rehearsed.cost_usd.map(|cost| cost * times),
            prompt_tokens: rehearsed.prompt_tokens as f64 * times,
            cached_tokens: rehearsed.cached_tokens as f64 * times,
            completion_tokens: rehearsed.completion_tokens as f64 * times,
            rate_limited: rehearsed.stats.rate_limited as f64 * times,
            failures: whole(&rehearsed.stats.planned_failures),
            repeats: (rehearsed.stats.requests + rehearsed.stats.batch_lines).saturating_sub(done) as f64 * times,
            unclear: rehearsed.unclear as f64 * times,
            without_answer: whole(&rehearsed.dead),
            limit_used_share: used,
            rehearsed,
        }
    }

    /// Returns it for people.
    pub(super) fn table(&self) -> String {
        let mut text = String::new();
        let mut row = |name: &str, value: String| {
            let _ = writeln!(text, "{name:<24} {value}");
        };
        let rehearsed = &self.rehearsed;
        row("questions", format!("{} ({} rehearsed)", self.questions, rehearsed.questions));
        let mut speed = format!("{:.0}x asked for, {:.0}x run", rehearsed.speed_asked_for, rehearsed.speed);
        if rehearsed.speed < rehearsed.speed_asked_for {
            speed += " (this machine follows no more requests)";
        }
        if let Some(reached) = self.speed_reached {
            let _ = write!(speed, ", {reached:.1}x reached");
        }
        row("speed", speed);
        row("duration", format!("at most {}", span(self.duration_s)));
        match self.duration_at_least_s {
            Some(at_least) => row("", format!("at least {} (limits, latency, concurrency alone)", span(at_least))),
            None if rehearsed.mode != Mode::Online => {
                row("", "batches take their time, however many questions they hold".to_owned());
            }
            None => row("", "nothing on the server's side holds it up; the rest is this machine".to_owned()),
        }
        match self.cost_usd {
            Some(cost) => row("price", format!("${cost:.2} ({})", rehearsed.prices)),
            None => row("price", format!("unknown: the table does not know the model ({})", rehearsed.prices)),
        }
        let (prompt, cached) = (self.prompt_tokens, self.cached_tokens);
        row("tokens", format!("{prompt:.0} ({cached:.0} of them cached) + {:.0}", self.completion_tokens));
        row("over a limit (429)", format!("{:.0}", self.rate_limited));
        if let Some(used) = self.limit_used_share {
            row("limit used", format!("{:.1} %", 100.0 * used));
        }
        for (name, count) in &self.failures {
            row(&format!("failure {name}"), format!("{count:.0}"));
        }
        row("requests sent again", format!("{:.0}", self.repeats));
        row("unclear answers", format!("{:.0}", self.unclear));
        for (reason, count) in &self.without_answer {
            row("without an answer", format!("{count:.0}: {reason}"));
        }
        row("charged twice", format!("{} of the rehearsed", rehearsed.paid_twice));
        if let Some(reason) = &rehearsed.stopped {
            row("it would stop", format!("after {} answers: {reason}", rehearsed.answered));
        }
        let _ = writeln!(
            text,
            "\nThe client waits in the same fast time. This machine's processor and disk are not scaled: what they take\n\
             counts {:.0} times in the duration; --speed 1 rehearses them as they are.",
            rehearsed.speed
        );
        text
    }
}

/// Returns a time in the two units that say it best.
fn span(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        3600..86_400 => format!("{} h {} min", whole / 3600, whole / 60 % 60),
        _ => format!("{} d {} h", whole / 86_400, whole / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(text: &str) -> Plan {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn the_slowest_of_limits_and_latency_is_the_ceiling() {
        let limits = "limits_repeat_s = 20\n[[limits]]\nrpm = 600\n[[limits]]\nat_s = 10\nrpm = 1200\n";
        assert_eq!(ceiling(&plan(limits), 8, 100.0), Some(15.0));
        let tokens = plan("[[limits]]\nrpm = 600\ntpm = 30000\n");
        assert_eq!(ceiling(&tokens, 8, 100.0), Some(5.0));
        let slow = plan(&format!("{limits}[latency]\nmedian_ms = 2000\n"));
        assert_eq!(ceiling(&slow, 8, 100.0), Some(4.0));
        assert_eq!(ceiling(&plan(""), 8, 100.0), None);
        let last_stays = plan("[[limits]]\nrpm = 600\n[[limits]]\nat_s = 10\nrpm = 60\n");
        assert_eq!(ceiling(&last_stays, 8, 100.0), Some(1.0));
    }

    fn rehearsed(stats: Stats) -> Rehearsed {
        Rehearsed {
            mode: Mode::Online,
            speed_asked_for: 200.0,
            speed: 100.0,
            questions: 100,
            answered: 90,
            unclear: 9,
            dead: [("refused".to_owned(), 10)].into(),
            wall_s: 0.5,
            ceiling_per_s: Some(1.0),
            cost_usd: Some(0.25),
            prompt_tokens: 1000,
            cached_tokens: 500,
            completion_tokens: 100,
            prices: "a table".to_owned(),
            paid_twice: 0,
            stats,
            stopped: None,
        }
    }

    #[test]
    fn the_whole_job_follows_by_proportion() {
        let stats =
            Stats { requests: 104, rate_limited: 1, planned_failures: [("500".into(), 3)].into(), ..Stats::default() };
        let forecast = Forecast::of(rehearsed(stats), 10_000);
        assert_eq!((forecast.cost_usd, forecast.repeats, forecast.rate_limited), (Some(25.0), 400.0, 100.0));
        assert_eq!((forecast.failures["500"], forecast.without_answer["refused"]), (300.0, 1000.0));
        assert_eq!(
            forecast.duration_s, 10_000.0,
            "50 s were measured for 100 questions: a burst; the limit is 1 a second"
        );
        let table = forecast.table();
        for part in [
            "2 h 46 min",
            "$25.00",
            "a table",
            "failure 500",
            "300",
            "1000: refused",
            "not scaled",
            "200x asked for, 100x run (this machine",
            "100.0x reached",
        ] {
            assert!(table.contains(part), "{part} is not in:\n{table}");
        }
    }

    #[test]
    fn batches_take_as_long_for_the_whole_job() {
        let stats = Stats { batch_lines: 110, ..Stats::default() };
        let batch = Rehearsed { mode: Mode::Batch, wall_s: 36.0, ..rehearsed(stats) };
        let forecast = Forecast::of(batch, 10_000);
        assert_eq!((forecast.duration_s, forecast.duration_at_least_s, forecast.repeats), (3600.0, None, 1000.0));
        let table = forecast.table();
        assert!(table.contains("at most 1 h 0 min") && table.contains("batches take their time"), "{table}");
    }

    #[test]
    fn times_read_well() {
        let shown: Vec<_> = [1.25, 61.0, 7260.0, 180_000.0].map(span).into();
        assert_eq!(shown, ["1.2 s", "1 min 1 s", "2 h 1 min", "2 d 2 h"]);
    }
}
