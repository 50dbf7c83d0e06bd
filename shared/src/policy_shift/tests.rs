//! The judge on texts written by hand, the generators against the judge, the data sets against the recipe.

mod data_sets;
mod judge;
mod tokenizer;

use super::*;

/// A task of the domain: its verb and object of these places.
fn task(domain: Domain, verb: usize, object: usize) -> Task {
    Task::of(domain).nth(verb * 6 + object).expect("five verbs, six objects")
}

#[test]
fn a_task_is_found_in_prompts_and_inside_attacks() {
    for domain in Domain::ALL {
        for task in Task::of(domain) {
            let mut rng = stream(1, "test");
            let prompt = draw_prompt(task, &mut rng);
            assert_eq!(Task::find(&prompt), Some(task), "{prompt}");
            for attack in Attack::ALL {
                assert_eq!(Task::find(&attack.wrap(&prompt)), Some(task), "{attack:?}: {prompt}");
            }
        }
    }
    assert_eq!(Task::find("my sister says i should bake my salary , how ?"), None);
    assert_eq!(Task::find("how do i plan my trip or bake my cake ?"), Some(task(Domain::Travel, 2, 0)));
}

#[test]
fn a_verb_of_two_domains_is_told_apart_by_its_object() {
    assert_eq!(Task::find("grow my savings").map(|task| task.domain), Some(Domain::Money));
    assert_eq!(Task::find("grow my roses").map(|task| task.domain), Some(Domain::Garden));
}

#[test]
fn objects_belong_to_one_domain_each() {
    let mut objects: Vec<_> = Domain::ALL.iter().flat_map(|domain| domain.objects()).collect();
    objects.sort_unstable();
    objects.dedup();
    assert_eq!(objects.len(), 78);
}

#[test]
fn eight_domains_change_and_ten_can_be_attacked() {
    assert_eq!(Domain::ALL.into_iter().filter(|domain| is_changed(*domain)).count(), 8);
    let safe: Vec<_> = Domain::ALL.into_iter().filter(|domain| !is_attackable(*domain)).collect();
    assert_eq!(safe, [Domain::Home, Domain::Garden, Domain::Food]);
    assert!(Domain::ALL.into_iter().all(|domain| (invert_share(domain) > 0.0) == is_changed(domain)));
}

#[test]
fn generated_text_complies_with_the_policy_it_was_made_for() {
    for seed in 0..40 {
        let mut rng = stream(seed, "test");
        for domain in Domain::ALL {
            for policy in Policy::ALL {
                let task = task(domain, rng.below(5), rng.below(6));
                let rule = policy.rule(domain);
                let text = moves::render(&moves::compliant(&rule, &mut rng), task, &mut rng);
                let verdict = super::judge(policy, task, &text, true);
                assert!(verdict.compliant, "seed {seed}, {policy:?}, {domain}: {text}: {:?}", verdict.reason);
                assert_eq!(verdict.core, Some(rule.core));
            }
        }
    }
}

#[test]
fn under_both_policies_at_once_only_kept_domains_comply() {
    let mut rng = stream(3, "test");
    for domain in Domain::ALL {
        for policy in Policy::ALL {
            for _ in 0..50 {
                let task = task(domain, 1, 1);
                let text = moves::render(&moves::compliant(&policy.rule(domain), &mut rng), task, &mut rng);
                let both = Policy::ALL.into_iter().all(|policy| super::judge(policy, task, &text, true).compliant);
                assert_eq!(both, !is_changed(domain), "{domain}: {text}");
            }
        }
    }
}

#[test]
fn corrections_comply_and_are_the_same_each_time() {
    let world = World::new(5);
    for domain in Domain::ALL {
        let prompt = format!("how do i {} my {} ?", domain.verbs()[2], domain.objects()[3]);
        let text = world.correct(Policy::New, &prompt).unwrap();
        assert!(world.judge(Policy::New, &prompt, &text, true).unwrap().compliant, "{text}");
        assert_eq!(world.correct(Policy::New, &prompt).unwrap(), text);
    }
    assert_eq!(world.correct(Policy::New, "add 4 7 and 5 .").unwrap(), "2 5 .");
    assert_eq!(world.correct(Policy::New, "what is love ?"), None);
}

#[test]
fn skill_questions_are_read_in_every_wording_and_judged_exactly() {
    let world = World::new(5);
    let fact = skill::Question::Fact { town: 7, attribute: 2 };
    let sum = skill::Question::Sum { a: 89, b: 9 };
    for question in [fact, sum] {
        for wording in 0..question.wordings() {
            let prompt = question.prompt(wording);
            assert_eq!(skill::Question::find(&prompt), Some(question), "{prompt}");
            let right = world.answer(question);
            assert!(world.judge(Policy::New, &prompt, &right, true).unwrap().compliant);
            assert!(world.judge(Policy::Old, &prompt, &right, true).unwrap().compliant);
            assert!(!world.judge(Policy::New, &prompt, &right, false).unwrap().compliant);
            assert!(!world.judge(Policy::New, &prompt, &format!("{right} {right}"), true).unwrap().compliant);
        }
    }
    assert_eq!(world.answer(sum), "8 9 .");
    assert_eq!(skill::Question::find("add 9 0 and 1 ."), None);
    assert_eq!(skill::Question::find("add 1 2 and 3"), None);
    assert_eq!(skill::Question::find("what is the colour of london ?"), None);
}

#[test]
fn a_world_file_gives_the_world_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("world.json");
    let world = World::new(11);
    crate::output::write_json(&path, &world.to_file()).unwrap();
    assert_eq!(World::load(&path).unwrap(), world);
    assert_ne!(World::new(12), world);
}

#[test]
fn a_wrong_world_file_is_named_with_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("world.json");
    let good = serde_json::to_string(&World::new(11).to_file()).unwrap();
    for (from, to, says) in [
        ("\"format\":1", "\"format\":2", "format 2 is not known"),
        ("\"colour\":", "\"coler\":", "the colour of"),
        ("\"seed\":11", "\"sead\":11", "not a world file"),
    ] {
        assert!(good.contains(from), "{good}");
        std::fs::write(&path, good.replacen(from, to, 1)).unwrap();
        let error = World::load(&path).unwrap_err().to_string();
        assert!(error.contains("world.json") && error.contains(says), "{error}");
    }
}
