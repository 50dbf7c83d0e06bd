use proto::coordinator::{Drain, EndedStored, Finished, Peers, Refused, StopTask, Stopped};

use super::*;

const TICK: Event = Event::Tick { still_ms: 0 };

fn task(attempt: u32) -> TaskRef {
    TaskRef { run: "r".into(), stage: "train".into(), task: "train".into(), attempt, submission: 7 }
}

fn order(attempt: u32) -> Event {
    Event::Told(Told::Run(RunTask { task: Some(task(attempt)), world_size: 2, ..RunTask::default() }))
}

fn finished(attempt: u32) -> TaskEnded {
    TaskEnded { task: Some(task(attempt)), how: Some(How::Finished(Finished::default())) }
}

fn stored(attempt: u32) -> Event {
    Event::Told(Told::EndedStored(EndedStored { task: Some(task(attempt)) }))
}

fn leaves() -> Act {
    Act::Say(Said::Leaving(Leaving { reason: "it was told to stop".into() }))
}

/// A link that has dialled at 0 and was welcomed; its heartbeats come every second.
fn joined() -> Link {
    let mut link = Link::new(Hello { name: "w".into(), ..Hello::default() });
    assert_eq!(link.apply(0, TICK), [Act::Dial]);
    link.apply(0, Event::Connected);
    let welcome = Welcome { heartbeat_ms: 1000, ..Welcome::default() };
    assert_eq!(link.apply(0, Event::Told(Told::Welcome(welcome.clone()))), [Act::LookAtFolder(welcome)]);
    link.apply(0, Event::FolderSeen { problem: String::new() });
    link
}

fn hello(link: &mut Link, now_ms: u64) -> Hello {
    assert_eq!(link.apply(now_ms, TICK), [Act::Dial]);
    match link.apply(now_ms, Event::Connected).into_iter().next() {
        Some(Act::Say(Said::Hello(hello))) => hello,
        other => panic!("a connection begins with Hello, not {other:?}"),
    }
}

#[test]
fn it_dials_with_growing_pauses_and_quickly_again_after_a_connection_that_lasted() {
    let mut link = Link::new(Hello::default());
    let mut now_ms = 0;
    let mut pauses = Vec::new();
    for _ in 0..8 {
        assert_eq!(link.apply(now_ms, TICK), [Act::Dial]);
        assert_eq!(link.wake_ms(), None, "a dial ends by itself");
        link.apply(now_ms, Event::Disconnected);
        pauses.push(link.wake_ms().unwrap() - now_ms);
        now_ms = link.wake_ms().unwrap();
    }
    assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    link.apply(now_ms, TICK);
    link.apply(now_ms, Event::Connected);
    link.apply(now_ms + 60_000, Event::Disconnected);
    assert_eq!(link.wake_ms(), Some(now_ms + 60_100));
}

#[test]
fn heartbeats_name_what_runs_and_are_not_made_up_for_after_a_standstill() {
    let mut link = joined();
    let beat = |running, still_ms| [Act::Say(Said::Heartbeat(Heartbeat { running, still_ms }))];
    assert_eq!(link.apply(0, TICK), beat(None, 0));
    assert_eq!(link.wake_ms(), Some(1000));
    link.apply(10, order(1));
    assert_eq!(link.apply(7300, Event::Tick { still_ms: 70 }), beat(Some(task(1)), 70));
    assert_eq!(link.wake_ms(), Some(8300));
}

#[test]
fn an_end_is_said_again_with_every_hello_until_it_is_stored() {
    let mut link = joined();
    assert!(matches!(link.apply(1, order(1))[..], [Act::Begin(_)]));
    link.apply(2, Event::Disconnected);
    assert_eq!(link.apply(3, Event::Ended(finished(1))), [], "nobody hears it");
    for now_ms in [200, 10_000] {
        let hello = hello(&mut link, now_ms);
        assert_eq!((hello.running, hello.ended), (None, Some(finished(1))));
        link.apply(now_ms + 1, stored(2));
        link.apply(now_ms + 2, Event::Disconnected);
    }
    hello(&mut link, 20_000);
    link.apply(20_001, stored(1));
    link.apply(20_002, Event::Disconnected);
    assert_eq!(hello(&mut link, 40_000).ended, None);
}

#[test]
fn where_it_listens_is_said_again_until_the_gang_has_met() {
    let mut link = joined();
    link.apply(1, order(1));
    let ready =
        Act::Say(Said::PeerReady(PeerReady { task: Some(task(1)), address: "a:1".into(), nccl_id: vec![7; 128] }));
    let listening = Event::Listening { task: task(1), address: "a:1".into(), nccl_id: vec![7; 128] };
    assert_eq!(link.apply(1, listening), std::slice::from_ref(&ready));
    link.apply(2, Event::Disconnected);
    assert_eq!(hello(&mut link, 200).running, Some(task(1)));
    let seen = link.apply(201, Event::FolderSeen { problem: String::new() });
    assert_eq!(seen[1..], [ready]);
    let peers = Peers { task: Some(task(1)), addresses: vec!["a:1".into(), "b:1".into()], nccl_id: vec![7; 128] };
    let met = [Act::Meet(peers.clone())];
    assert_eq!(link.apply(202, Event::Told(Told::Peers(peers.clone()))), met);
    assert_eq!(link.apply(203, Event::Told(Told::Peers(peers))), [], "once is enough");
    assert_eq!(link.apply(204, Event::FolderSeen { problem: String::new() }).len(), 1);
}

/// A link that is welcomed and has not yet looked at the folder.
fn welcomed() -> (Link, Welcome) {
    let mut link = Link::new(Hello::default());
    link.apply(0, TICK);
    link.apply(0, Event::Connected);
    let welcome = Welcome { heartbeat_ms: 1000, artifacts: "/mnt".into(), ..Welcome::default() };
    link.apply(0, Event::Told(Told::Welcome(welcome.clone())));
    (link, welcome)
}

fn seen(problem: &str) -> Event {
    Event::FolderSeen { problem: problem.into() }
}

#[test]
fn a_folder_that_could_not_be_used_is_looked_at_again() {
    let (mut link, welcome) = welcomed();
    assert_eq!(link.apply(100, seen("no such folder")).len(), 1);
    let looks = |acts: &[Act]| acts.iter().any(|act| *act == Act::LookAtFolder(welcome.clone()));
    let looked: Vec<u64> = (0..20).filter(|n| looks(&link.apply(n * 1000, TICK))).collect();
    assert_eq!(looked, [6], "until it was seen again");
    link.apply(19_500, seen("no such folder"));
    // Not while something that was begun before still runs here.
    link.apply(19_600, order(1));
    assert!((20..30).all(|n| !looks(&link.apply(n * 1000, TICK))));
    link.apply(30_000, Event::Ended(finished(1)));
    assert!(looks(&link.apply(31_000, TICK)));
    assert_eq!(link.apply(31_001, seen("")).len(), 1);
    assert!((32..50).all(|n| !looks(&link.apply(n * 1000, TICK))), "all is well");
}

#[test]
fn a_folder_that_does_not_answer_is_told_once_and_what_it_answers_then() {
    let (mut link, _) = welcomed();
    let said = |problem: &str| Act::Say(Said::FolderSeen(FolderSeen { problem: problem.into() }));
    let told =
        (0..20).flat_map(|n| link.apply(n * 1000, TICK)).filter(|act| matches!(act, Act::Say(Said::FolderSeen(_))));
    assert_eq!(told.collect::<Vec<_>>(), [said("/mnt has not answered here for 6 s")]);
    assert_eq!(link.apply(20_000, seen("")), [said("")]);
    // An order that was on its way is told to stop, and ends first.
    let (mut link, welcome) = welcomed();
    (0..8).for_each(|n| drop(link.apply(n * 1000, TICK)));
    link.apply(7500, order(1));
    assert_eq!(link.apply(8000, seen("")), []);
    link.apply(8500, Event::Ended(finished(1)));
    assert!(link.apply(9000, TICK).contains(&Act::LookAtFolder(welcome)));
    assert_eq!(link.apply(9001, seen("")), [said("")]);
    // A task of an earlier connection goes on meanwhile.
    let (mut link, _) = welcomed();
    link.apply(1, order(1));
    let tells = |acts: Vec<Act>| acts.iter().any(|act| matches!(act, Act::Say(Said::FolderSeen(_))));
    assert!((0..60).all(|n| !tells(link.apply(n * 1000, TICK))));
    assert_eq!(link.apply(60_000, seen("")), [said("")]);
}

#[test]
fn orders_of_other_attempts_change_nothing_and_a_second_task_is_refused() {
    let mut link = joined();
    link.apply(1, order(2));
    assert_eq!(link.apply(1, order(2)), [], "the same order again");
    let stop = |attempt, reason: StopReason| {
        Event::Told(Told::Stop(StopTask { task: Some(task(attempt)), reason: reason.into() }))
    };
    assert_eq!(link.apply(2, stop(1, StopReason::Cancelled)), []);
    assert_eq!(link.apply(2, stop(2, StopReason::GangBroken)), [Act::Stop(StopReason::GangBroken)]);
    match &link.apply(3, order(3))[..] {
        [Act::Say(Said::Ended(TaskEnded { task: Some(refused), how: Some(How::Failed(failed)) }))] => {
            assert_eq!(*refused, task(3));
            assert!(failed.infrastructure && failed.problem.contains("busy with r/train/train attempt 2"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(link.running(), Some(&task(2)));
}

#[test]
fn a_task_that_cannot_begin_is_no_fault_of_its_own() {
    let mut link = joined();
    link.apply(1, order(1));
    let said = link.apply(1, Event::NotBegun { task: task(1), problem: "no port".into() });
    assert_eq!(said, [Act::Say(Said::Ended(failed(task(1), "no port".into())))]);
    assert_eq!(link.running(), None);
}

#[test]
fn told_to_stop_it_ends_its_task_waits_until_the_end_is_stored_and_leaves() {
    let mut link = joined();
    link.apply(1, order(1));
    assert_eq!(link.apply(2, Event::StopAsked), [Act::Stop(StopReason::Paused), leaves()]);
    let ended = TaskEnded { task: Some(task(1)), how: Some(How::Stopped(Stopped {})) };
    assert_eq!(link.apply(3, Event::Ended(ended.clone())), [Act::Say(Said::Ended(ended))]);
    assert_eq!(link.apply(4, stored(1)), [Act::Leave]);
    assert_eq!(link.wake_ms(), None);
}

#[test]
fn a_leaving_worker_waits_no_longer_than_the_farewell() {
    let mut link = joined();
    link.apply(1, order(1));
    link.apply(2, Event::StopAsked);
    link.apply(3, Event::Ended(finished(1)));
    let left_ms = loop {
        let now_ms = link.wake_ms().unwrap();
        if link.apply(now_ms, TICK).last() == Some(&Act::Leave) {
            break now_ms;
        }
    };
    assert_eq!(left_ms, 10_003);
}

#[test]
fn an_idle_worker_waits_for_the_coordinator_to_close_and_leaves_at_once_where_there_is_none() {
    let mut link = joined();
    assert_eq!(link.apply(1, Event::StopAsked), [leaves()]);
    assert_eq!(link.apply(2, Event::Disconnected), [Act::Leave]);
    let mut alone = Link::new(Hello::default());
    assert_eq!(alone.apply(0, TICK), [Act::Dial]);
    assert_eq!(alone.apply(1, Event::StopAsked), [Act::Leave]);
}

#[test]
fn a_drained_worker_takes_no_task_and_goes_after_its_own() {
    let mut link = joined();
    link.apply(1, order(1));
    assert_eq!(link.apply(2, Event::Told(Told::Drain(Drain {}))), []);
    link.apply(3, Event::Ended(finished(1)));
    assert!(matches!(link.apply(4, order(2))[..], [Act::Say(Said::Ended(_))]));
    assert_eq!(link.apply(5, stored(1)), [Act::Leave]);
    assert_eq!(joined().apply(1, Event::Told(Told::Drain(Drain {}))), [Act::Leave]);
}

#[test]
fn a_refused_worker_ends_with_the_reason() {
    let refused = Event::Told(Told::Refused(Refused { reason: "another version".into() }));
    assert_eq!(joined().apply(1, refused), [Act::Refused("another version".into())]);
}

#[test]
fn an_order_that_comes_twice_is_one() {
    let mut link = joined();
    assert!(matches!(link.apply(1, order(1))[..], [Act::Begin(_)]));
    assert_eq!(link.apply(2, order(1)), []);
    link.apply(3, Event::Ended(finished(1)));
    assert_eq!(link.apply(4, order(1)), []);
    assert!(matches!(link.apply(5, order(2))[..], [Act::Begin(_)]));
}

#[test]
fn progress_is_told_twice_a_second_at_most_and_what_begins_at_once() {
    let mut link = joined();
    link.apply(1, order(1));
    let of = |attempt, work: &str, done| TaskProgress {
        task: Some(task(attempt)),
        done,
        work: work.into(),
        ..TaskProgress::default()
    };
    let progress = |work: &str, done| of(1, work, done);
    let told = (0..30u64).map(|n| link.apply(100 * n, Event::Progressed(progress("score", n))).len());
    assert_eq!(told.sum::<usize>(), 6);
    // But that another work begins is told at once.
    assert_eq!(link.apply(2910, Event::Progressed(progress("train", 4))).len(), 1);
    assert_eq!(link.apply(2920, Event::Progressed(progress("train", 5))).len(), 0);
    assert_eq!(link.apply(2930, Event::Progressed(of(2, "train", 4))).len(), 1);
}
