//! A server with a bucket of its own, requests with latencies, a clock that is only counted.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use shared::keyed_random::KeyedRandom;

use super::super::limits::Told;
use super::*;

/// How a server behaves.
#[derive(Clone, Copy)]
struct Server {
    /// Requests a minute, each for ten seconds, over and over.
    requests: &'static [f64],
    tokens_per_minute: f64,
    /// Seconds of its rate that its buckets hold.
    burst_s: f64,
    /// Whether it tells its limits, and as of when an answer tells them.
    tells: bool,
    tells_at_the_end: bool,
    latency: f64,
    concurrency: usize,
}

struct Outcome {
    answered: f64,
    refused: f64,
    /// By the rates alone, without what a bucket held at the start.
    allowed: f64,
}

impl Outcome {
    fn used(&self) -> f64 {
        self.answered / self.allowed
    }

    fn refused(&self) -> f64 {
        self.refused / (self.answered + self.refused)
    }
}

const TOKENS: f64 = 200.0;

/// Runs `seconds` of a job with more work than may be done.
fn run(server: Server, seconds: f64) -> Outcome {
    let start = Instant::now();
    let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
    let mut random = KeyedRandom::new(&[7]);
    let mut pacer = Pacer::new(PerMinute::default(), start);
    let limit = |time: f64| server.requests[(time / 10.0) as usize % server.requests.len()];
    let mut levels = [server.requests[0] / 60.0 * server.burst_s, server.tokens_per_minute / 60.0 * server.burst_s];
    let (mut filled, mut time) = (0.0, 0.0);
    // Times in microseconds, whether it is the arrival, the request.
    let mut events: BinaryHeap<Reverse<(u64, bool, usize)>> = BinaryHeap::new();
    let mut requests: Vec<(Permit, Heard, bool)> = Vec::new();
    let (mut in_flight, mut waits_until) = (0, 0.0f64);
    let mut outcome = Outcome { answered: 0.0, refused: 0.0, allowed: 0.0 };
    let micros = |seconds: f64| (seconds * 1e6) as u64;
    while time < seconds {
        if in_flight < server.concurrency && time >= waits_until {
            let wait = pacer.wait(TOKENS, at(time)).as_secs_f64();
            if wait == 0.0 {
                requests.push((pacer.take(TOKENS, at(time)), Heard::default(), false));
                events.push(Reverse((
                    micros(time + server.latency * 0.1 * random.uniform()),
                    true,
                    requests.len() - 1,
                )));
                in_flight += 1;
                continue;
            }
            waits_until = time + wait + 1e-6;
        }
        let next = events.peek().map(|Reverse((at, ..))| *at as f64 / 1e6);
        let may_send = in_flight < server.concurrency;
        match next {
            Some(next) if !may_send || next <= waits_until => {
                let Reverse((_, arrives, request)) = events.pop().unwrap();
                time = time.max(next);
                // Whatever happens may let more through.
                waits_until = 0.0;
                let rates = [limit(time) / 60.0, server.tokens_per_minute / 60.0];
                for (level, rate) in levels.iter_mut().zip(rates) {
                    *level = (*level + rate * (time - filled)).min(rate * server.burst_s);
                }
                filled = time;
                let told = |levels: [f64; 2]| {
                    let told = |limit: f64, level: f64| Told { limit, remaining: level.max(0.0).floor(), reset: None };
                    Heard {
                        requests: server.tells.then(|| told(limit(time), levels[0])),
                        tokens: server.tells.then(|| told(server.tokens_per_minute, levels[1])),
                        retry_after: None,
                    }
                };
                let (permit, heard, refused) = &mut requests[request];
                if arrives {
                    *refused = levels[0] < 1.0 || levels[1] < TOKENS;
                    if !*refused {
                        levels = [levels[0] - 1.0, levels[1] - TOKENS];
                    }
                    *heard = told(levels);
                    let latency = if *refused { 0.1 } else { 0.4 + random.uniform() };
                    events.push(Reverse((micros(time + server.latency * latency), false, request)));
                } else {
                    if server.tells_at_the_end {
                        *heard = told(levels);
                    }
                    in_flight -= 1;
                    if *refused {
                        outcome.refused += 1.0;
                        pacer.refused(*permit, heard, at(time));
                    } else {
                        outcome.answered += 1.0;
                        pacer.answered(*permit, TOKENS, heard, at(time));
                    }
                }
            }
            _ => time = waits_until,
        }
    }
    let tenths = (seconds * 10.0) as usize;
    let by_requests: f64 = (0..tenths).map(|tenth| limit(tenth as f64 / 10.0) / 600.0).sum();
    let by_tokens = server.tokens_per_minute / 60.0 * seconds / TOKENS;
    outcome.allowed = by_requests.min(by_tokens);
    outcome
}

const MOVING: Server = Server {
    requests: &[6000.0, 1500.0, 9000.0, 600.0, 3000.0, 4500.0],
    tokens_per_minute: 1e9,
    burst_s: 1.0,
    tells: true,
    tells_at_the_end: false,
    latency: 0.3,
    concurrency: 256,
};

#[test]
fn limits_that_move_every_ten_seconds_are_used_and_kept() {
    for burst_s in [1.0, 5.0, 60.0] {
        for latency in [0.02, 0.3, 1.0] {
            for tells_at_the_end in [false, true] {
                let outcome = run(Server { burst_s, latency, tells_at_the_end, ..MOVING }, 300.0);
                let (used, refused) = (outcome.used(), outcome.refused());
                assert!(used >= 0.95 && refused < 0.01, "burst {burst_s} s, latency {latency} s: {used} {refused}");
            }
        }
    }
}

#[test]
fn tokens_limit_as_requests_do() {
    let server = Server { requests: &[60_000.0], tokens_per_minute: 200_000.0, burst_s: 10.0, ..MOVING };
    let outcome = run(server, 300.0);
    assert!(outcome.used() >= 0.95 && outcome.refused() < 0.01, "{} {}", outcome.used(), outcome.refused());
}

#[test]
fn a_server_that_tells_nothing_is_felt_out() {
    let outcome = run(Server { tells: false, requests: &[6000.0, 3000.0], burst_s: 5.0, ..MOVING }, 600.0);
    assert!(outcome.used() >= 0.7 && outcome.refused() < 0.05, "{} {}", outcome.used(), outcome.refused());
}

#[test]
fn the_operators_limits_hold_and_can_be_changed() {
    let start = Instant::now();
    let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
    let mut pacer = Pacer::new(PerMinute { requests: Some(60.0), tokens: None }, start);
    assert!(!pacer.counts_tokens());
    pacer.take(1.0, at(0.0));
    assert_eq!(pacer.wait(1.0, at(0.0)), Duration::from_secs(1));
    pacer.set(PerMinute { requests: Some(600.0), tokens: Some(6000.0) }, at(0.0));
    assert!(pacer.counts_tokens());
    assert_eq!(pacer.wait(1.0, at(0.0)), Duration::from_millis(100));
    pacer.set(PerMinute::default(), at(0.0));
    assert_eq!(pacer.wait(1e9, at(0.0)), Duration::ZERO);
    // Larger than the bucket: it need only be full; the debt is worked off after.
    pacer.set(PerMinute { requests: None, tokens: Some(600.0) }, at(1.0));
    assert_eq!(pacer.wait(100.0, at(1.0)), Duration::ZERO);
    let permit = pacer.take(100.0, at(1.0));
    assert_eq!(pacer.wait(10.0, at(1.0)), Duration::from_secs(10));
    // It took less than was thought.
    pacer.answered(permit, 50.0, &Heard::default(), at(1.0));
    assert_eq!(pacer.wait(10.0, at(1.0)), Duration::from_secs(5));
}

#[test]
fn a_refusal_holds_everything_for_the_time_it_names() {
    let start = Instant::now();
    let mut pacer = Pacer::new(PerMinute::default(), start);
    let permits: Vec<Permit> = (0..3).map(|_| pacer.take(1.0, start)).collect();
    let named = Heard { retry_after: Some(Duration::from_secs(7)), ..Heard::default() };
    pacer.refused(permits[0], &named, start);
    pacer.refused(permits[1], &Heard::default(), start);
    assert_eq!(pacer.wait(1.0, start), Duration::from_secs(7));
    assert_eq!(pacer.view(start).held_s, 7.0);
    assert_eq!(pacer.view(start).refusals, 2);
}

#[test]
fn an_older_report_does_not_undo_a_newer_one() {
    let start = Instant::now();
    let mut pacer = Pacer::new(PerMinute::default(), start);
    let heard = |remaining| Heard { requests: Some(Told { limit: 60.0, remaining, reset: None }), ..Heard::default() };
    let (first, second) = (pacer.take(1.0, start), pacer.take(1.0, start));
    pacer.answered(second, 1.0, &heard(0.0), start);
    pacer.answered(first, 1.0, &heard(59.0), start);
    assert!(pacer.wait(1.0, start) >= Duration::from_secs(1));
}
