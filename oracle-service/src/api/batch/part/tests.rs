use shared::keyed_random::KeyedRandom;

use super::*;

fn part() -> Part {
    Part {
        id: "p".into(),
        job: "triage pairs.json".into(),
        number: 1,
        attempt: 1,
        base_url: "http://a/v1".into(),
        account: "a".into(),
        model: "m".into(),
        requests: 10,
        bytes: 1000,
        worst: Tokens::default(),
        taken_back: false,
        phase: Phase::Spooled,
    }
}

fn batch(status: Status) -> Batch {
    Batch { id: "b".into(), status, completed: 0, failed: 0, output: None, errors: None, problem: None }
}

fn unclear() -> Event {
    Event::Failed(Trouble::Connection { problem: "cut".into(), is_sent: true })
}

fn refused(status: u16) -> Event {
    Event::Failed(Trouble::Status { status, code: String::new(), message: "no".into() })
}

fn not_created(event: Event) -> Event {
    match event {
        Event::Failed(trouble) => Event::NotCreated(trouble),
        other => other,
    }
}

fn fetched(again: u64) -> Event {
    Event::Fetched { answered: 10 - again, left: Vec::new(), again, stop: None }
}

/// Applies events and returns the effects of the last.
fn apply(part: &mut Part, events: impl IntoIterator<Item = Event>) -> Vec<Effect> {
    events.into_iter().map(|event| part.apply(event)).last().unwrap()
}

#[test]
fn a_part_goes_from_its_file_to_its_answers_and_saves_before_it_acts() {
    let mut part = part();
    assert_eq!(part.apply(Event::Woke), [Effect::Upload]);
    let file = || "f".to_owned();
    assert_eq!(part.apply(Event::Uploaded { file: file() }), [Effect::Save, Effect::Create { file: file() }]);
    assert_eq!(part.apply(Event::Created(batch(Status::Validating))), [Effect::Save, Effect::Rest]);
    assert_eq!(part.apply(Event::Woke), [Effect::Poll { batch: "b".into() }]);
    assert_eq!(part.apply(Event::Polled(batch(Status::Validating))), [Effect::Rest], "nothing new is not saved");
    let half = Batch { completed: 4, failed: 1, ..batch(Status::InProgress) };
    assert_eq!(part.apply(Event::Polled(half)), [Effect::Save, Effect::Rest]);
    assert_eq!((part.progressed(), part.state()), (5, "in progress"));
    let ended = Batch { output: Some("o".into()), ..batch(Status::Completed) };
    assert_eq!(part.apply(Event::Polled(ended.clone())), [Effect::Save, Effect::Fetch(ended)]);
    assert_eq!(part.apply(fetched(0)), [Effect::Save, Effect::Finish]);
    assert!(!part.is_open());
    assert_eq!(part.apply(Event::Woke), []);
}

#[test]
fn when_nobody_knows_whether_a_batch_was_made_it_is_looked_for_by_its_tag() {
    let creating = || {
        let mut part = part();
        apply(&mut part, [Event::Woke, Event::Uploaded { file: "f".into() }]);
        part
    };
    // The answer was lost, or the process died: the same.
    let mut lost = creating();
    assert!(matches!(lost.apply(not_created(unclear()))[..], [Effect::Retry(_)]));
    for mut part in [lost, creating()] {
        assert_eq!(part.apply(Event::Woke), [Effect::Find]);
        assert_eq!(part.clone().apply(Event::Found(None)), [Effect::Create { file: "f".into() }]);
        assert_eq!(part.apply(Event::Found(Some(batch(Status::InProgress)))), [Effect::Save, Effect::Rest]);
    }
    let mut refused_part = creating();
    let mut unseen = creating();
    assert!(matches!(unseen.apply(refused(401))[..], [Effect::Stop(_)]));
    assert_eq!(unseen, creating(), "a search that is refused says nothing about the batch");
    assert!(matches!(refused_part.apply(not_created(refused(400)))[..], [Effect::Save, Effect::Stop(_)]));
    assert_eq!(refused_part.phase, Phase::Spooled, "run again, it begins anew");
}

#[test]
fn a_batch_that_failed_as_a_whole_gets_another_tag() {
    let failed = |code: &str| {
        let problem = Some(Problem { code: code.into(), message: "m".into() });
        Event::Polled(Batch { problem, ..batch(Status::Failed) })
    };
    let mut full = part();
    let tag = full.tag();
    let begin = [Event::Woke, Event::Uploaded { file: "f".into() }, Event::Created(batch(Status::Validating))];
    apply(&mut full, begin.clone());
    assert!(matches!(full.apply(failed("token_limit_exceeded"))[..], [Effect::Save, Effect::Queue(_)]));
    assert_ne!(full.tag(), tag);
    assert_eq!(full.apply(Event::Woke), [Effect::Upload]);
    let mut wrong = part();
    apply(&mut wrong, begin);
    let effects = wrong.apply(failed("model_not_found"));
    assert!(
        matches!(&effects[..], [Effect::Save, Effect::Stop(why)] if why.contains("model_not_found")),
        "{effects:?}"
    );
}

#[test]
fn what_is_taken_back_is_cancelled_wherever_it_is_and_what_was_answered_is_kept() {
    let created = [Event::Woke, Event::Uploaded { file: "f".into() }];
    let running = [&created[..], &[Event::Created(batch(Status::InProgress))]].concat();

    let mut spooled = part();
    assert_eq!(apply(&mut spooled, [Event::TakenBack, Event::Woke]), [Effect::Save, Effect::Finish]);
    let mut creating = part();
    assert_eq!(apply(&mut creating, [&created[..], &[Event::TakenBack, Event::Woke]].concat()), [Effect::Find]);
    assert_eq!(creating.clone().apply(Event::Found(None)), [Effect::Save, Effect::Finish]);
    let found = creating.apply(Event::Found(Some(batch(Status::InProgress))));
    assert_eq!(found, [Effect::Save, Effect::Cancel { batch: "b".into() }]);

    let mut part = part();
    apply(&mut part, [&running[..], &[Event::TakenBack, Event::Woke]].concat());
    assert_eq!(part.apply(Event::Polled(batch(Status::InProgress))), [Effect::Cancel { batch: "b".into() }]);
    assert_eq!(part.apply(Event::Cancelling(batch(Status::Cancelling))), [Effect::Save, Effect::Rest]);
    assert_eq!(part.apply(Event::Polled(batch(Status::Cancelling))), [Effect::Rest], "once is enough");
    let mut late = part.clone();
    assert!(matches!(late.apply(refused(409))[..], [Effect::Retry(_)]), "it ended meanwhile");
    let effects = part.apply(Event::Polled(batch(Status::Cancelled)));
    assert_eq!(effects, [Effect::Save, Effect::Fetch(batch(Status::Cancelled))]);
    assert_eq!(part.apply(fetched(3)), [Effect::Save, Effect::Finish]);
    assert_eq!(part.split(&mut Left { again: vec![1], ..Left::default() }), (vec![], vec![]));
}

#[test]
fn a_batch_cancelled_by_someone_else_is_not_quietly_sent_again() {
    let mut part = Part { phase: Phase::Ended { batch: batch(Status::Cancelled) }, ..part() };
    let effects = part.apply(fetched(3));
    assert!(matches!(&effects[..], [Effect::Save, Effect::Stop(why)] if why.contains("someone else")), "{effects:?}");
}

#[test]
fn what_failed_often_enough_is_left_to_the_online_api() {
    let left = || Left { again: vec![1, 2], refused: vec![(3, "long".into())], stop: None };
    let text = super::super::lines::text;
    assert_eq!(part().split(&mut left()), (vec![1, 2], vec![text(3)]));
    let last = Part { attempt: ATTEMPTS, ..part() };
    assert_eq!(last.split(&mut left()), (vec![], vec![text(3), text(1), text(2)]));
    let stopped = Left { stop: Some("quota".into()), ..left() };
    assert_eq!(last.split(&mut stopped.clone()).0, [1, 2], "what was not tried is not given up");
}

/// An API that loses answers, and a process that dies, at drawn places.
struct World {
    random: KeyedRandom,
    part: Part,
    saved: Part,
    batches: Vec<(String, Batch)>,
    created: usize,
    steps: usize,
}

impl World {
    /// Carries out an effect; none where the process died or the answer was lost on the way.
    fn carry_out(&mut self, effect: &Effect) -> Option<Event> {
        match effect {
            Effect::Save => {
                self.saved = self.part.clone();
                None
            }
            Effect::Upload => Some(Event::Uploaded { file: "f".into() }),
            Effect::Find => {
                let tag = self.part.tag();
                Some(Event::Found(self.batches.iter().find(|(of, _)| *of == tag).map(|(_, batch)| batch.clone())))
            }
            Effect::Create { .. } => {
                self.created += 1;
                let made = Batch { id: format!("b{}", self.created), ..batch(Status::Validating) };
                self.batches.push((self.part.tag(), made.clone()));
                Some(Event::Created(made))
            }
            Effect::Poll { batch: id } | Effect::Cancel { batch: id } => {
                let roll = self.random.below(6);
                let (_, found) = self.batches.iter_mut().find(|(_, batch)| batch.id == *id).unwrap();
                found.status = match (found.status, roll) {
                    (status, 0) => status,
                    (Status::Validating, 1) => Status::Failed,
                    (Status::Validating, _) => Status::InProgress,
                    (Status::InProgress, _) if matches!(effect, Effect::Cancel { .. }) => Status::Cancelling,
                    (Status::InProgress, 1) => Status::Expired,
                    (Status::InProgress | Status::Finalizing, 2) => Status::Completed,
                    (Status::Cancelling, _) => Status::Cancelled,
                    (status, _) => status,
                };
                if found.status == Status::Failed {
                    found.problem = Some(Problem { code: "token_limit_exceeded".into(), message: String::new() });
                }
                Some(match effect {
                    Effect::Cancel { .. } => Event::Cancelling(found.clone()),
                    _ => Event::Polled(found.clone()),
                })
            }
            Effect::Fetch(_) => Some(fetched(0)),
            Effect::Rest | Effect::Retry(_) | Effect::Queue(_) => Some(Event::Woke),
            Effect::Stop(why) => panic!("nothing here stops a job: {why}"),
            Effect::Finish => None,
        }
    }
}

#[test]
fn whatever_dies_or_is_lost_no_live_batch_is_made_twice() {
    for seed in 0..3000 {
        let mut world = World {
            random: KeyedRandom::new(&[44, seed]),
            part: part(),
            saved: part(),
            batches: Vec::new(),
            created: 0,
            steps: 0,
        };
        let mut event = Event::Woke;
        'life: while world.saved.is_open() {
            world.steps += 1;
            assert!(world.steps < 500, "seed {seed}: it comes to no end: {:?}", world.part);
            if world.random.below(40) == 0 {
                world.part.apply(Event::TakenBack);
                world.saved = world.part.clone();
            }
            let effects = world.part.apply(event);
            let live = world.part.clone();
            assert!(!effects.is_empty(), "seed {seed}: nothing is to be done in {live:?}");
            event = Event::Woke;
            for effect in effects {
                let fate = world.random.below(12);
                if fate == 0 {
                    // Died before.
                    world.part = world.saved.clone();
                    continue 'life;
                }
                let outcome = world.carry_out(&effect);
                if fate == 1 {
                    // Died after.
                    world.part = world.saved.clone();
                    event = Event::Woke;
                    continue 'life;
                }
                if let Some(next) = outcome {
                    event = match effect {
                        Effect::Create { .. } if fate == 2 => not_created(unclear()),
                        Effect::Rest | Effect::Retry(_) | Effect::Queue(_) => next,
                        _ if fate == 2 => unclear(),
                        _ => next,
                    };
                }
            }
        }
        for (tag, batch) in &world.batches {
            let same = world.batches.iter().filter(|(other, _)| other == tag).count();
            assert_eq!(same, 1, "seed {seed}: {tag} was made twice: {batch:?}");
        }
    }
}
