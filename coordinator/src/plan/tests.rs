use std::path::Path;

use super::*;

const QUICKSTART: &str = include_str!("../../../deploy/examples/quickstart.toml");

fn plan(text: &str, set: &[&str]) -> Plan {
    let set: Vec<String> = set.iter().map(|text| (*text).to_owned()).collect();
    of(&crate::run_file::parse(text, "run.toml", Path::new("/"), &set).unwrap())
}

/// Every stage as `name(who): names of those before`.
fn told(plan: &Plan) -> Vec<String> {
    let who = |place| match place {
        Place::Coordinator => "c",
        Place::Oracle => "o",
        Place::Workers => "w",
    };
    plan.stages
        .iter()
        .map(|stage| {
            let after: Vec<&str> = stage.after.iter().map(|index| plan.stages[*index].name.as_str()).collect();
            format!("{}({}): {}", stage.name, who(stage.place), after.join(" "))
        })
        .collect()
}

#[test]
fn the_quickstart_makes_its_base_beside_the_labels() {
    assert_eq!(
        told(&plan(QUICKSTART, &[])),
        [
            "world(c): ",
            "triage(o): world",
            "correct(o): triage",
            "base-skill(w): world",
            "base-sft(w): world base-skill",
            "base-old-policy(w): world base-sft",
            "generate-base(w): world base-old-policy",
            "judge-base(o): generate-base",
            "gold-trace(w): correct base-old-policy",
            "score-trace(w): gold-trace",
            "train-trace(w): score-trace",
            "generate-trace(w): train-trace",
            "judge-trace(o): generate-trace",
            "gold-oracle-punish(w): correct base-old-policy",
            "score-oracle-punish(w): gold-oracle-punish",
            "train-oracle-punish(w): score-oracle-punish",
            "generate-oracle-punish(w): train-oracle-punish",
            "judge-oracle-punish(o): generate-oracle-punish",
            "report(c): triage judge-base judge-trace judge-oracle-punish",
        ]
    );
}

#[test]
fn stages_follow_from_methods_and_data() {
    let file = "[run]\nname = \"x\"\n[data]\nworld = \"policy-shift\"\n[oracle]\nmock = true\n";
    let with = |rest: &str, set: &[&str]| told(&plan(&format!("{file}{rest}"), set)).join("\n");
    let dpo = with("[[variant]]\nname = \"dpo\"", &[]);
    assert!(!dpo.contains("gold") && !dpo.contains("score") && !dpo.contains("correct"), "{dpo}");
    let gold = with("[[variant]]\nname = \"dpo-gold\"", &[]);
    assert!(gold.contains("correct(o): triage\ntrain-dpo-gold(w): correct"), "{gold}");
    let split = with("[[variant]]\nname = \"trace\"", &["data.split=stratified", "eval.merge=true"]);
    assert!(split.contains("split(c): triage\ngold-trace(w): split"), "{split}");
    assert!(split.contains("merge-trace(w): train-trace\ngenerate-trace(w): merge-trace"), "{split}");
    let uniform = with("[[variant]]\nname = \"trace\"\ntrain.uniform_weights = true", &[]);
    assert!(!uniform.contains("score"), "{uniform}");
}

#[test]
fn stages_stand_after_those_they_need() {
    let plan = plan(QUICKSTART, &["data.split=uniform"]);
    for (index, stage) in plan.stages.iter().enumerate() {
        assert!(stage.after.iter().all(|before| *before < index), "{}", stage.name);
        assert_eq!(plan.stages.iter().filter(|other| other.name == stage.name).count(), 1);
    }
}
