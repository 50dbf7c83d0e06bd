//! The scheduler, scenario by scenario.

mod env;
mod gangs;
mod invariants;
mod random;

use proto::coordinator::task_ended::How;
use proto::coordinator::{Failed, Finished, Hello, Stopped, TaskEnded, TaskProgress, TaskRef};

use super::event::*;
use super::*;
use env::{TestEnv, plan, source};

fn task_of(env: &TestEnv, stage: usize, index: usize) -> run::Task {
    env.scheduler.runs()["r"].stages[stage].tasks()[index].clone()
}

/// Brings the run to the gang.
fn to_the_gang(env: &mut TestEnv) {
    env.submit();
    loop {
        env.work();
        if !env.scheduler.runs()["r"].stages[3].tasks().is_empty() {
            return;
        }
        for name in env.workers.keys().cloned().collect::<Vec<_>>() {
            env.compute(&name);
        }
    }
}

#[test]
fn a_run_goes_through_its_stages_in_order() {
    let mut env = TestEnv::new(2);
    env.submit();
    assert_eq!(env.last_reply, Some(Ok(())));
    assert!(env.settle());
    assert_eq!(env.state(), RunState::Done);
    assert_eq!(env.starts, 6);
}

#[test]
fn a_worker_lost_in_a_shard_costs_that_shard_only() {
    let mut env = TestEnv::new(2);
    env.submit();
    while env.scheduler.runs()["r"].stages[2].tasks().is_empty() {
        env.work();
    }
    env.compute("w1");
    env.die("w0");
    for _ in 0..7 {
        env.pass(100);
    }
    let lost = task_of(&env, 2, 0);
    assert_eq!((lost.state == TaskState::Waiting, lost.lost, lost.failed), (true, 1, 0));
    assert!(task_of(&env, 2, 1).is_done());
    assert!(env.settle());
    assert_eq!(env.state(), RunState::Done);
}

#[test]
fn a_gang_that_loses_a_member_starts_a_new_attempt_with_a_new_secret() {
    let mut env = TestEnv::new(2);
    to_the_gang(&mut env);
    env.compute("w0");
    env.compute("w1");
    let first = env.workers["w0"].running.clone().unwrap();
    assert!(env.workers["w0"].met && env.workers["w1"].met);
    env.die("w1");
    env.connect("w1");
    assert_eq!(env.workers["w0"].told, Some(StopReason::GangBroken), "the other member is told at once");
    assert_eq!(task_of(&env, 3, 0).attempt, 1, "the attempt is over when all its members have ended");
    env.compute("w0");
    let second = env.workers["w0"].running.clone().unwrap();
    assert_eq!(second.task.as_ref().unwrap().attempt, 2);
    assert_ne!(first.gang_secret, second.gang_secret);
    assert!(env.settle());
    assert_eq!(env.state(), RunState::Done);
}

#[test]
fn a_stale_message_is_dropped() {
    let mut env = TestEnv::new(2);
    to_the_gang(&mut env);
    let old = env.workers["w0"].running.clone().unwrap().task.unwrap();
    let before = env.scheduler.runs().clone();
    let stale = TaskRef { attempt: old.attempt + 1, ..old };
    let ended = TaskEnded { task: Some(stale), how: Some(How::Finished(Finished::default())) };
    env.apply(Event::TaskEnded { worker: "w0".into(), ended });
    assert_eq!(*env.scheduler.runs(), before);
}

/// Each submission counts its attempts from 1: what an earlier one's first attempt says is not the later one's.
#[test]
fn the_end_of_an_earlier_submissions_attempt_ends_none_of_a_later_one() {
    let mut env = TestEnv::new(2);
    to_the_gang(&mut env);
    let old = env.workers["w0"].running.clone().unwrap().task;
    env.apply(Event::CancelAsked { run: "r".into() });
    ["w0", "w1"].iter().for_each(|name| env.compute(name));
    to_the_gang(&mut env);
    let new = env.workers["w0"].running.clone().unwrap().task;
    assert_eq!(old.as_ref().map(|task| task.attempt), new.as_ref().map(|task| task.attempt));
    let before = env.scheduler.runs().clone();
    let ended = TaskEnded { task: old, how: Some(How::Finished(Finished::default())) };
    env.apply(Event::TaskEnded { worker: "w0".into(), ended });
    assert_eq!(*env.scheduler.runs(), before);
}

#[test]
fn a_task_that_fails_by_itself_three_times_fails_its_run_with_its_words() {
    let mut env = TestEnv::new(2);
    to_the_gang(&mut env);
    for _ in 0..3 {
        env.end("w0", How::Failed(Failed { problem: "record 7 is NaN".into(), infrastructure: false, held: false }));
        env.compute("w1");
        env.pass(100);
    }
    assert_eq!(env.state(), RunState::Failed);
    let run = &env.scheduler.runs()["r"];
    assert_eq!(run.reason, "stage train: train: record 7 is NaN");
}

/// A worker that stands still is lost, but lives and holds the files of its task: attempts elsewhere are refused until it
/// is gone. That is no failure of the task, and the tries do not come one upon the other.
#[test]
fn what_a_lost_worker_holds_is_waited_for() {
    let mut env = TestEnv::new(3);
    env.submit();
    while env.scheduler.runs()["r"].stages[2].tasks().is_empty() {
        env.work();
    }
    env.disconnect("w0");
    let held =
        || How::Failed(Failed { problem: "journal: is in use by process 7".into(), infrastructure: true, held: true });
    let begun_ms = env.now_ms;
    let mut starts = Vec::new();
    while env.now_ms < begun_ms + 20_000 {
        for name in ["w1", "w2"] {
            let running = env.workers[name].running.clone().and_then(|run| run.task);
            match running {
                Some(task) if task.stage == "score" && task.task == "shard-0" => {
                    starts.push(env.now_ms);
                    env.end(name, held());
                }
                Some(_) => env.compute(name),
                None => {}
            }
        }
        env.pass(50);
    }
    let pauses: Vec<u64> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses.windows(2).all(|pair| pair[1] >= pair[0]), "pauses grow: {pauses:?}");
    assert!((5..12).contains(&starts.len()), "{pauses:?}");
    let task = task_of(&env, 2, 0);
    assert_eq!((task.failed, env.state()), (0, RunState::Running));
    assert!(task.note.contains("is in use by process 7") && task.note.contains("again in"), "{}", task.note);
    assert!(env.settle());
    assert_eq!(env.state(), RunState::Done);
}

#[test]
fn a_restarted_coordinator_adopts_what_still_runs() {
    let mut env = TestEnv::new(2);
    to_the_gang(&mut env);
    env.compute("w0");
    env.compute("w1");
    env.restart();
    env.pass(100);
    env.connect("w0");
    env.connect("w1");
    env.pass(100);
    let task = task_of(&env, 3, 0);
    assert_eq!((task.attempt, task.lost), (1, 0));
    assert!(matches!(task.state, TaskState::Running { .. }));
    assert!(env.settle());
    assert_eq!(env.state(), RunState::Done);
}

#[test]
fn an_end_that_nobody_heard_is_told_in_the_next_hello() {
    let mut env = TestEnv::new(2);
    to_the_gang(&mut env);
    env.compute("w0");
    env.compute("w1");
    env.disconnect("w0");
    env.compute("w0");
    assert!(env.workers["w0"].unstored.is_some());
    env.compute("w1");
    env.connect("w0");
    assert!(env.workers["w0"].unstored.is_none());
    assert!(env.settle());
    assert_eq!(env.state(), RunState::Done);
}

#[test]
fn a_paused_run_stops_and_goes_on_and_a_cancelled_one_is_over() {
    let mut env = TestEnv::new(2);
    to_the_gang(&mut env);
    env.compute("w0");
    env.compute("w1");
    env.apply(Event::PauseAsked { run: "r".into() });
    assert_eq!(env.workers["w1"].told, Some(StopReason::Paused));
    env.compute("w0");
    env.compute("w1");
    env.pass(1000);
    let task = task_of(&env, 3, 0);
    assert_eq!((&task.state, task.lost, task.failed), (&TaskState::Waiting, 0, 0));
    env.apply(Event::ResumeAsked { run: "r".into() });
    assert!(matches!(task_of(&env, 3, 0).state, TaskState::Running { .. }));
    env.apply(Event::CancelAsked { run: "r".into() });
    assert_eq!(env.state(), RunState::Cancelled);
    assert!(env.workers["w0"].told.is_some());
    env.apply(Event::CancelAsked { run: "r".into() });
    assert!(matches!(&env.last_reply, Some(Err(Refusal::NotNow(problem))) if problem.contains("cancelled")));
    env.apply(Event::CancelAsked { run: "other".into() });
    assert!(matches!(&env.last_reply, Some(Err(Refusal::NotFound(_)))));
    env.compute("w0");
    env.compute("w1");
    env.submit();
    assert!(env.settle());
    assert_eq!(env.state(), RunState::Done);
}

#[test]
fn a_member_that_was_away_when_its_run_was_paused_is_told_what_the_others_were() {
    // A gang that has not met has no step to pause at.
    let mut env = TestEnv::new(2);
    to_the_gang(&mut env);
    env.disconnect("w1");
    env.apply(Event::PauseAsked { run: "r".into() });
    assert_eq!(env.workers["w1"].told, None);
    env.connect("w1");
    assert_eq!((env.workers["w0"].told, env.workers["w1"].told), (Some(StopReason::Cancelled), env.workers["w0"].told));

    let mut env = TestEnv::new(2);
    to_the_gang(&mut env);
    env.compute("w0");
    env.compute("w1");
    env.disconnect("w1");
    env.apply(Event::PauseAsked { run: "r".into() });
    env.connect("w1");
    assert_eq!((env.workers["w0"].told, env.workers["w1"].told), (Some(StopReason::Paused), env.workers["w0"].told));
}

#[test]
fn who_was_lost_is_told_of_for_a_day() {
    let mut env = TestEnv::new(2);
    env.now_ms += 2 * worker::FORGOTTEN_MS;
    env.pass(100);
    env.die("w1");
    env.pass(1000);
    assert_eq!(env.scheduler.workers()["w1"].state, WorkerState::Lost);
    // Nearly a day passes.
    env.scheduler.workers.get_mut("w1").unwrap().heard_ms = env.now_ms - worker::FORGOTTEN_MS + 500;
    env.pass(400);
    assert!(env.scheduler.workers().contains_key("w1"));
    env.pass(200);
    assert!(!env.scheduler.workers().contains_key("w1") && env.scheduler.workers().contains_key("w0"));
    env.connect("w1");
    assert!(env.scheduler.workers().contains_key("w1"));
}

#[test]
fn a_drained_worker_gets_no_new_task() {
    let mut env = TestEnv::new(3);
    env.apply(Event::DrainAsked { worker: "w0".into() });
    env.submit();
    while env.scheduler.runs()["r"].stages[2].tasks().is_empty() {
        env.work();
    }
    assert!(env.workers["w0"].running.is_none());
    assert!(env.workers["w1"].running.is_some() && env.workers["w2"].running.is_some());
}

#[test]
fn a_worker_that_was_away_is_told_again_that_it_is_drained() {
    let mut env = TestEnv::new(1);
    env.disconnect("w0");
    env.apply(Event::DrainAsked { worker: "w0".into() });
    assert!(!env.workers["w0"].leaving);
    env.connect("w0");
    assert!(env.workers["w0"].leaving);
}

#[test]
fn a_stage_that_fails_stops_its_other_tasks() {
    let mut env = TestEnv::new(2);
    env.submit();
    while env.scheduler.runs()["r"].stages[2].tasks().is_empty() {
        env.work();
    }
    // Shard 1 goes on at w1; w0 fails at shard 0 whenever it has that, and does another while it waits.
    while env.state() == RunState::Running {
        if env.workers["w0"].running.clone().unwrap().task.unwrap().task == "shard-0" {
            env.end(
                "w0",
                How::Failed(Failed { problem: "record 7 is NaN".into(), infrastructure: false, held: false }),
            );
        } else {
            env.pass(100);
            env.compute("w0");
        }
    }
    assert_eq!(env.state(), RunState::Failed);
    let left = env.workers.values().find(|worker| worker.running.is_some()).unwrap();
    assert_eq!(left.told, Some(StopReason::Cancelled));
}

#[test]
fn a_worker_that_leaves_and_the_task_it_stops_are_told_in_the_log() {
    let mut env = TestEnv::new(2);
    to_the_gang(&mut env);
    for _ in 0..2 {
        env.compute("w0");
    }
    env.compute("w1");
    env.terminate("w1");
    env.compute("w1");
    env.compute("w0");
    let log = env.log.join("\n");
    assert!(log.contains("train: worker w1 leaves: it was told to stop"), "{log}");
    assert!(log.contains("train: train stopped; its next attempt goes on from there"), "{log}");
}

#[test]
fn a_sharded_stage_is_as_far_as_its_tasks_together() {
    let mut env = TestEnv::new(2);
    env.submit();
    while env.scheduler.runs()["r"].stages[2].tasks().is_empty() {
        env.work();
    }
    let progress = |env: &TestEnv| env.scheduler.runs()["r"].stages[2].progress();
    assert_eq!(progress(&env), (0, 0), "nothing is known yet");
    let tell = |env: &mut TestEnv, name: &str, done| {
        let task = env.workers[name].running.clone().unwrap().task;
        let progress = TaskProgress { task, done, total: 100, ..TaskProgress::default() };
        env.apply(Event::TaskProgressed { worker: name.into(), progress });
    };
    tell(&mut env, "w0", 40);
    tell(&mut env, "w1", 10);
    assert_eq!(progress(&env), (50, 500), "three shards have not begun");
    env.compute("w0");
    assert_eq!(progress(&env), (110, 500), "a finished shard is whole, whatever it told last");
    while env.scheduler.runs()["r"].stages[2].tasks().iter().any(|task| !task.is_done()) {
        ["w0", "w1"].iter().for_each(|name| env.compute(name));
        if env.scheduler.runs()["r"].stages[2].tasks().is_empty() {
            break;
        }
    }
    let (done, total) = progress(&env);
    assert!(done == total && total > 0, "{done}/{total}");
}

#[test]
fn a_second_process_of_the_same_name_is_refused_while_the_first_is_there() {
    let mut env = TestEnv::new(1);
    let hello = Hello { name: "w0".into(), instance: "other".into(), ..Hello::default() };
    let effects = env.scheduler.apply(env.now_ms, Event::WorkerHello { hello });
    let [Effect::Send { worker, message: Message::Refused(refused) }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(worker, "w0@other");
    assert!(refused.reason.contains("--name"), "{}", refused.reason);
}

#[test]
fn the_same_run_submitted_again_is_the_same_and_another_under_its_name_is_refused() {
    let mut env = TestEnv::new(1);
    env.submit();
    let before = env.scheduler.runs().clone();
    env.submit();
    assert_eq!((env.scheduler.runs().clone(), &env.last_reply), (before, &Some(Ok(()))));
    env.apply(Event::RunSubmitted { plan: plan(), source: source("b") });
    assert!(matches!(&env.last_reply, Some(Err(Refusal::NotNow(_)))));
}

#[test]
fn a_coordinator_that_was_away_itself_blames_no_worker() {
    let mut env = TestEnv::new(2);
    env.submit();
    while env.scheduler.runs()["r"].stages[2].tasks().is_empty() {
        env.work();
    }
    env.pass(100);
    env.now_ms += 10_000;
    env.apply(Event::Tick);
    assert_eq!(task_of(&env, 2, 0).lost, 0, "what workers said meanwhile is yet to be read");
    for _ in 0..6 {
        env.now_ms += 100;
        env.apply(Event::Tick);
    }
    assert_eq!(task_of(&env, 2, 0).lost, 1, "then silence is a loss as ever");
}

#[test]
fn a_restarted_coordinator_waits_for_workers_that_dial_rarely() {
    let mut env = TestEnv::new(2);
    to_the_gang(&mut env);
    env.compute("w0");
    env.compute("w1");
    env.restart();
    env.pass(5_500);
    env.connect("w0");
    env.pass(1_000);
    assert_eq!(task_of(&env, 3, 0).lost, 0);
    env.pass(2_000);
    assert_eq!(env.workers["w0"].told, Some(StopReason::GangBroken), "w1 does not come back");
}
