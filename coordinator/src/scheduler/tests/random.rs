//! The scheduler under random events, with what must hold checked after each of them.

use proto::coordinator::Failed;
use proto::coordinator::task_ended::How;
use shared::keyed_random::KeyedRandom;

use super::env::{TestEnv, plan_named, source};
use crate::scheduler::event::*;
use crate::scheduler::run::RunState;

const RUNS: [&str; 2] = ["r", "s"];

/// Tells how to see a failure again.
struct Case {
    seed: u64,
    case: u64,
}

impl Drop for Case {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("case {}; see it again with TRACE_SEED={} TRACE_CASE={}", self.case, self.seed, self.case);
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Whatever happens in whatever order, the invariants hold, attempts only grow, what is done stays done, and once things
/// calm down every run ends. A restart has nothing but what was saved.
#[test]
fn random_events_never_break_it_and_calm_brings_every_run_to_its_end() {
    let seed = number("TRACE_SEED").unwrap_or(20_261);
    println!("TRACE_SEED={seed}");
    let cases = number("TRACE_CASE").map_or(0..600, |case| case..case + 1);
    let mut ends = [0; 3];
    // Smaller gangs, such that grow, and stuck ones.
    let happenings = ["(1 of 2 workers)", "with 2 workers instead of 1", "is stuck"];
    let mut happened = [0; 3];
    for case in cases {
        let _told = Case { seed, case };
        let mut random = KeyedRandom::new(&[seed, case]);
        let mut env = TestEnv::new(2 + random.below(3) as usize);
        // Every other gang may go on with fewer members.
        env.min_workers = (case % 2 == 1).then_some(1);
        env.submit();
        // Long enough that the gang has begun, where it is what is looked at.
        for _ in 0..if env.min_workers.is_some() { 320 } else { 80 } {
            let before = env.scheduler.runs().clone();
            step(&mut env, &mut random);
            for (name, run) in env.scheduler.runs() {
                let Some(before) = before.get(name).filter(|old| old.submitted_ms == run.submitted_ms) else {
                    continue;
                };
                assert!(!before.state.is_ended() || before.state == run.state, "{name} ended and did not stay so");
                for (before, now) in before.stages.iter().zip(&run.stages) {
                    assert!(!before.is_done() || now.is_done(), "a stage that is done stays so");
                    for (before, now) in before.tasks().iter().zip(now.tasks()) {
                        assert!(before.attempt <= now.attempt, "attempts only grow");
                        assert!(!before.is_done() || now.is_done(), "a task that is done stays so");
                    }
                }
            }
        }
        for run in RUNS {
            env.apply(Event::ResumeAsked { run: run.into() });
        }
        for worker in env.workers.values_mut() {
            worker.folder_problem.clear();
        }
        env.workers.values_mut().for_each(|worker| worker.still_ms = 0);
        for name in env.workers.keys().cloned().collect::<Vec<_>>() {
            // What they said of the folder they say again.
            env.disconnect(&name);
        }
        assert!(env.settle(), "a run never ends: {:#?}\n{:#?}", env.scheduler.runs(), env.scheduler.workers());
        for (words, count) in happenings.iter().zip(&mut happened) {
            *count += env.log.iter().filter(|line| line.contains(words)).count();
        }
        for run in env.scheduler.runs().values() {
            let end = [RunState::Done, RunState::Failed, RunState::Cancelled].iter().position(|end| *end == run.state);
            ends[end.expect("all have ended")] += 1;
        }
    }
    if number("TRACE_CASE").is_none() {
        println!("ends {ends:?}, happenings {happened:?}");
        let is_mixed = ends.iter().all(|&count| count > 20) && happened.iter().all(|&count| count > 5);
        assert!(is_mixed, "the events are of one kind only: {ends:?} {happened:?}");
    }
}

/// One thing happens.
fn step(env: &mut TestEnv, random: &mut KeyedRandom) {
    let names: Vec<String> = env.workers.keys().cloned().collect();
    let name = names[random.below(names.len() as u64) as usize].clone();
    let run = RUNS[random.below(2) as usize].to_owned();
    let mut rarely = |one_in: u64| random.below(one_in) == 0;
    let kinds = [rarely(4), rarely(6), rarely(8), rarely(12)];
    let [in_four, in_six, in_eight, in_twelve] = kinds;
    match random.below(23) {
        0 if in_four => env.die(&name),
        1 => env.disconnect(&name),
        2..=4 if !env.workers[&name].connected => env.connect(&name),
        5 if in_four => env.restart(),
        6 if in_six => env.pass(4000),
        6 => env.pass(random.below(700)),
        // Its call hangs, or goes on.
        19 => {
            let worker = env.workers.get_mut(&name).expect("it is there");
            worker.still_ms = if in_four { 900 } else { 0 };
        }
        7 if in_six => {
            let (infrastructure, held) = [(false, false), (true, false), (true, true)][random.below(3) as usize];
            let failed = Failed { problem: "bad luck".into(), infrastructure, held };
            env.end(&name, How::Failed(failed));
        }
        8 if in_four => env.apply(Event::PauseAsked { run }),
        9 => env.apply(Event::ResumeAsked { run }),
        10 if in_twelve => env.apply(Event::CancelAsked { run }),
        11 if in_six => env.apply(Event::DrainAsked { worker: name }),
        12 if in_four => env.terminate(&name),
        13 if in_eight && !env.workers[&name].connected => {
            env.workers.get_mut(&name).expect("it is there").folder_problem = "there is no such folder".into();
            env.connect(&name);
        }
        14 => env.workers.get_mut(&name).expect("it is there").folder_problem.clear(),
        15 if in_twelve => env.work_fails(),
        16 if in_four => {
            // The other run, or the same one again after its end; with other settings it is refused while one goes on.
            let source = source(if in_six { "b" } else { "a" });
            env.apply(Event::RunSubmitted { plan: plan_named(&run), source });
        }
        17 | 18 => {
            env.work();
        }
        _ => env.compute(&name),
    }
}
