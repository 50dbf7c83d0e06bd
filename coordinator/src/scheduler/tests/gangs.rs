//! Gangs that lose and win members, stand still, or never come to anything.

use super::*;

/// Both members of the first attempt have met.
fn met(min_workers: Option<u32>) -> TestEnv {
    let mut env = TestEnv::new(2);
    env.min_workers = min_workers;
    to_the_gang(&mut env);
    ["w0", "w1"].iter().for_each(|name| env.compute(name));
    assert!(env.workers["w0"].met && env.workers["w1"].met);
    env
}

fn gang(env: &TestEnv) -> Vec<String> {
    task_of(env, 3, 0).members().iter().map(|member| member.worker.clone()).collect()
}

fn pass_in_beats(env: &mut TestEnv, ms: u64) {
    (0..ms / 100).for_each(|_| env.pass(100));
}

fn tell(env: &mut TestEnv, name: &str, done: u64) {
    tell_from(env, name, 0, done);
}

fn tell_from(env: &mut TestEnv, name: &str, begun_at: u64, done: u64) {
    let task = env.workers[name].running.clone().unwrap().task;
    let progress = TaskProgress { task, done, total: 100, note: String::new(), work: "train".into(), begun_at };
    env.apply(Event::TaskProgressed { worker: name.into(), progress });
}

#[test]
fn while_a_gang_waits_or_forms_people_are_told_for_whom() {
    let mut env = TestEnv::new(2);
    to_the_gang(&mut env);
    assert_eq!(task_of(&env, 3, 0).note, "forming: 0 of 2 members listen; not yet: w0, w1");
    env.compute("w1");
    assert_eq!(task_of(&env, 3, 0).note, "forming: 1 of 2 members listen; not yet: w0");
    env.compute("w0");
    assert_eq!(task_of(&env, 3, 0).note, "");
    env.die("w1");
    env.compute("w0");
    env.compute("w0");
    pass_in_beats(&mut env, 700);
    assert_eq!(task_of(&env, 3, 0).note, "waiting: 1 of 2 workers; w1 lost");
    env.connect("w1");
    assert_eq!(gang(&env), ["w0", "w1"]);
    env.apply(Event::DrainAsked { worker: "w1".into() });
    env.end("w0", How::Failed(Failed { problem: "a neighbour is gone".into(), infrastructure: true, held: false }));
    assert_eq!(env.workers["w1"].told, Some(StopReason::GangBroken));
    env.end("w1", How::Failed(Failed { problem: "the gang is broken".into(), infrastructure: true, held: false }));
    pass_in_beats(&mut env, 200);
    assert_eq!(task_of(&env, 3, 0).note, "waiting: 1 of 2 workers; w1 draining");
    assert_eq!(env.scheduler.kept_for(), None, "two are never there: the free one may do other work");
}

#[test]
fn a_gang_that_may_be_smaller_goes_on_with_what_is_left_and_grows_at_a_checkpoint() {
    let mut env = met(Some(1));
    env.die("w1");
    env.compute("w0");
    pass_in_beats(&mut env, 600);
    // w1 is lost by now; somebody may come in its place.
    env.pass(100);
    assert_eq!(gang(&env), [""; 0]);
    assert!(task_of(&env, 3, 0).note.contains("fewer will do in a moment"), "{}", task_of(&env, 3, 0).note);
    pass_in_beats(&mut env, 600);
    assert_eq!(gang(&env), ["w0"]);
    assert_eq!(env.workers["w0"].running.as_ref().unwrap().world_size, 1);
    assert!(env.log.iter().any(|line| line.ends_with("attempt 2 on w0 (1 of 2 workers)")), "{:?}", env.log);

    // A replacement does not stop it at once.
    env.connect("w1");
    pass_in_beats(&mut env, 2000);
    assert_eq!(env.workers["w0"].told, None);
    pass_in_beats(&mut env, 1500);
    assert_eq!(env.workers["w0"].told, Some(StopReason::Paused), "a checkpoint first");
    env.restart();
    env.workers.get_mut("w0").unwrap().told = None;
    env.connect("w1");
    env.connect("w0");
    assert_eq!(env.workers["w0"].told, Some(StopReason::Paused), "told again by the next coordinator");
    env.compute("w0");
    assert_eq!(gang(&env), ["w0", "w1"]);
    let task = task_of(&env, 3, 0);
    assert_eq!((task.attempt, task.lost, task.failed), (3, 1, 0), "growing is neither loss nor failure");
    assert!(env.settle());
    assert_eq!(env.state(), RunState::Done);
}

#[test]
fn a_member_that_leaves_costs_no_loss_and_the_rest_goes_on_where_it_may() {
    for (min_workers, goes_on) in [(None, false), (Some(1), true)] {
        let mut env = met(min_workers);
        env.terminate("w1");
        // All agree on the step to stop at.
        env.end("w0", How::Stopped(proto::coordinator::Stopped {}));
        env.compute("w1");
        env.compute("w1");
        pass_in_beats(&mut env, 1500);
        let task = task_of(&env, 3, 0);
        assert_eq!((task.lost, task.failed), (0, 0));
        assert_eq!(gang(&env) == ["w0"], goes_on, "{}", task.note);
    }
}

#[test]
fn a_gang_told_to_stop_before_its_first_step_counts_no_loss() {
    let mut env = met(Some(1));
    env.apply(Event::PauseAsked { run: "r".into() });
    env.end("w1", How::Failed(Failed { problem: "a neighbour is gone".into(), infrastructure: true, held: false }));
    env.compute("w0");
    assert_eq!((task_of(&env, 3, 0).lost, task_of(&env, 3, 0).failed), (0, 0));
}

#[test]
fn a_gang_in_which_nobody_computes_and_nothing_moves_is_broken_within_five_heartbeats() {
    let mut env = met(None);
    let still = |env: &mut TestEnv, name: &str, ms| env.workers.get_mut(name).unwrap().still_ms = ms;
    // One computes for long: the other waits as it should.
    still(&mut env, "w0", 60_000);
    pass_in_beats(&mut env, 2000);
    assert_eq!(env.workers["w0"].told, None);
    still(&mut env, "w1", 500);
    env.pass(100);
    assert_eq!(env.workers["w0"].told, None);
    still(&mut env, "w1", 600);
    env.pass(100);
    assert_eq!(env.workers["w0"].told, Some(StopReason::GangBroken));
    assert_eq!(env.workers["w1"].told, Some(StopReason::GangBroken));
    for name in ["w0", "w1"] {
        still(&mut env, name, 0);
        env.compute(name);
    }
    let task = task_of(&env, 3, 0);
    assert_eq!((task.lost, task.failed, task.attempt), (1, 0, 2));
    assert!(env.log.iter().any(|line| line.contains("nothing has moved between them for 600 ms")), "{:?}", env.log);
}

/// Loses the gang's present attempt, and waits for the next.
fn lose(env: &mut TestEnv) {
    env.end("w0", How::Failed(Failed { problem: "a neighbour is gone".into(), infrastructure: true, held: false }));
    env.compute("w1");
    for _ in 0..700 {
        if env.state() != RunState::Running || !gang(env).is_empty() {
            return;
        }
        env.pass(100);
    }
    panic!("no next attempt: {}", task_of(env, 3, 0).note);
}

#[test]
fn a_task_that_loses_its_workers_twenty_times_in_vain_is_given_up_with_the_last_loss_named() {
    let mut env = TestEnv::new(2);
    to_the_gang(&mut env);
    for lost in 1..20 {
        lose(&mut env);
        assert_eq!((task_of(&env, 3, 0).lost, task_of(&env, 3, 0).failed), (lost, 0));
    }
    assert_eq!(env.state(), RunState::Running);
    lose(&mut env);
    assert_eq!(env.state(), RunState::Failed);
    let reason = &env.scheduler.runs()["r"].reason;
    assert!(reason.contains("20 times without getting any further, the last time: a neighbour is gone"), "{reason}");
}

#[test]
fn the_cause_outweighs_what_follows_from_it_in_whichever_order_members_end() {
    let of =
        |problem: &str, infrastructure, held| How::Failed(Failed { problem: problem.into(), infrastructure, held });
    let held = (of("journal: is in use by process 7", true, true), "will be tried again: journal: is in use", (1, 0));
    let failed = (of("three died in step 3", false, false), "failed (1 of 3): three died in step 3", (0, 1));
    for (cause, told, counts) in [held, failed] {
        for order in [["w0", "w1"], ["w1", "w0"]] {
            let mut env = met(None);
            for name in order {
                env.end(name, if name == "w0" { cause.clone() } else { of("a neighbour is gone", true, false) });
            }
            assert_eq!((task_of(&env, 3, 0).lost, task_of(&env, 3, 0).failed), counts);
            let log = env.log.join("\n");
            assert!(log.contains(told), "{order:?}: {log}");
        }
    }
}

#[test]
fn who_does_not_leave_an_attempt_that_is_over_is_waited_for_so_long_and_gets_nothing_until_it_has() {
    let mut env = met(None);
    env.workers.entry("w2".into()).or_default();
    env.connect("w2");
    let loss = || How::Failed(Failed { problem: "the call's deadline".into(), infrastructure: true, held: false });
    // Its device hangs, its heartbeats go on.
    env.end("w0", loss());
    assert_eq!(env.workers["w1"].told, Some(StopReason::GangBroken));
    assert_eq!(task_of(&env, 3, 0).note, "waiting for w1 to leave attempt 1, which is over");
    pass_in_beats(&mut env, 3000);
    assert_eq!(task_of(&env, 3, 0).attempt, 1);
    pass_in_beats(&mut env, 200);
    assert_eq!((task_of(&env, 3, 0).attempt, gang(&env)), (2, vec!["w0".to_owned(), "w2".to_owned()]));
    assert_eq!((task_of(&env, 3, 0).lost, task_of(&env, 3, 0).failed), (1, 0));
    let log = env.log.join("\n");
    assert!(log.contains("attempt 1 is over, and w1 has not left it within 3 s"), "{log}");
    // The next attempt loses one for good.
    ["w0", "w2"].iter().for_each(|name| env.compute(name));
    env.die("w2");
    env.end("w0", loss());
    pass_in_beats(&mut env, 1000);
    let note = &task_of(&env, 3, 0).note;
    assert_eq!(note, "waiting: 1 of 2 workers; w2 lost, w1 has not left an attempt that is over");
    assert_eq!(env.scheduler.kept_for(), None, "nobody knows when there are two: the free one may do other work");
    // It wakes: what it says of the old attempt changes nothing, and it is free.
    env.end("w1", loss());
    assert_eq!((task_of(&env, 3, 0).attempt, gang(&env)), (3, vec!["w0".to_owned(), "w1".to_owned()]));
}

#[test]
fn who_does_not_leave_a_cancelled_run_keeps_no_free_worker_from_another() {
    let mut env = met(None);
    env.apply(Event::CancelAsked { run: "r".into() });
    env.compute("w0");
    // The other one's device hangs, its heartbeats go on.
    env.submit();
    while env.scheduler.runs()["r"].stages[3].tasks().is_empty() {
        env.work();
        env.compute("w0");
    }
    assert!(env.scheduler.kept_for().is_some(), "it is about to leave");
    pass_in_beats(&mut env, 3500);
    assert_eq!(task_of(&env, 3, 0).note, "waiting: 1 of 2 workers; w1 has not left an attempt that is over");
    assert_eq!(env.scheduler.kept_for(), None);
    env.compute("w1");
    assert_eq!(gang(&env), ["w0", "w1"]);
}

#[test]
fn who_was_told_to_stop_before_the_first_step_is_the_cause_and_no_loss() {
    let lost = || How::Failed(Failed { problem: "a neighbour is gone".into(), infrastructure: true, held: false });
    for order in [["w0", "w1"], ["w1", "w0"]] {
        let mut env = met(None);
        for name in order {
            env.end(name, if name == "w0" { How::Stopped(Stopped {}) } else { lost() });
        }
        assert_eq!((task_of(&env, 3, 0).lost, task_of(&env, 3, 0).failed), (0, 0), "{order:?}");
    }
}

#[test]
fn a_run_that_fails_by_one_gang_waits_for_nobody_who_stays_in_another() {
    let mut env = TestEnv::new(4);
    env.gangs = 2;
    to_the_gang(&mut env);
    let members = |env: &TestEnv, index| -> Vec<String> {
        task_of(env, 3, index).members().iter().map(|member| member.worker.clone()).collect()
    };
    let failed =
        |infrastructure| How::Failed(Failed { problem: "record 7 is NaN".into(), infrastructure, held: false });
    for failure in 1..=3 {
        let (first, second) = (members(&env, 0), members(&env, 1));
        assert_eq!((first.len(), second.len()), (2, 2), "failure {failure}");
        env.end(&first[0], failed(false));
        if failure < 3 {
            env.end(&first[1], failed(true));
            pass_in_beats(&mut env, 1000);
        } else {
            // One stays in each, and the first gang's end is the run's.
            env.end(&second[0], failed(true));
            pass_in_beats(&mut env, 3300);
        }
    }
    assert_eq!(env.state(), RunState::Failed);
    assert_eq!(env.scheduler.runs()["r"].reason, "stage train: train: record 7 is NaN");
}

#[test]
fn a_gang_whose_members_do_not_meet_in_time_is_broken_and_that_is_a_loss() {
    let mut env = TestEnv::new(2);
    to_the_gang(&mut env);
    env.compute("w1");
    pass_in_beats(&mut env, 2000);
    assert_eq!((task_of(&env, 3, 0).attempt, env.workers["w1"].told), (1, None));
    pass_in_beats(&mut env, 200);
    for name in ["w0", "w1"] {
        assert_eq!(env.workers[name].told, Some(StopReason::GangBroken));
        let problem = "the gang is broken".to_owned();
        env.end(name, How::Failed(Failed { problem, infrastructure: true, held: false }));
    }
    assert_eq!((task_of(&env, 3, 0).lost, task_of(&env, 3, 0).failed), (1, 0));
    assert!(env.log.iter().any(|line| line.contains("did not find each other in time")), "{:?}", env.log);
}

#[test]
fn pauses_after_losses_are_no_longer_than_it_takes_to_find_one_until_there_are_many() {
    let mut env = TestEnv::new(2);
    to_the_gang(&mut env);
    let mut pauses = Vec::new();
    for _ in 1..20 {
        let before_ms = env.now_ms;
        lose(&mut env);
        pauses.push(env.now_ms - before_ms);
    }
    assert!(pauses[..10].iter().all(|pause| *pause <= 700), "{pauses:?}");
    assert!(pauses.iter().sum::<u64>() > 300_000, "a stage is not given up in an outage of some minutes: {pauses:?}");
}

#[test]
fn an_attempt_that_goes_on_from_a_later_checkpoint_shows_that_those_before_were_not_in_vain() {
    let mut env = TestEnv::new(2);
    to_the_gang(&mut env);
    tell(&mut env, "w0", 90);
    lose(&mut env);
    // Killed between two tellings, and never as far again as was told once.
    for kept in 1..=50 {
        tell_from(&mut env, "w0", kept, kept);
        let before_ms = env.now_ms;
        lose(&mut env);
        assert_eq!((task_of(&env, 3, 0).in_vain, env.now_ms - before_ms), (1, 0), "the next attempt begins at once");
    }
    assert_eq!(env.state(), RunState::Running);
    // One that only went on from where the last one did is in vain.
    tell_from(&mut env, "w0", 50, 50);
    lose(&mut env);
    assert_eq!(task_of(&env, 3, 0).in_vain, 2);
}

#[test]
fn a_task_that_gets_further_each_time_is_never_given_up_and_waits_for_nothing() {
    let mut env = TestEnv::new(2);
    to_the_gang(&mut env);
    for step in 1..=50 {
        tell(&mut env, "w0", step);
        let before_ms = env.now_ms;
        lose(&mut env);
        assert_eq!(env.now_ms, before_ms, "the next attempt begins at once");
    }
    assert_eq!((task_of(&env, 3, 0).lost, env.state()), (50, RunState::Running));
}
