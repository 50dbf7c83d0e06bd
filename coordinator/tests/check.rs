//! `coordinator check` and what `coordinator run --local` refuses before it starts anything.
#![allow(clippy::unwrap_used, missing_docs, dead_code)]

mod support;

use support::Folder;

const RUN: &str = "[run]\nname = \"small\"\nworld_size = 2\n[data]\nworld = \"policy-shift\"\n[oracle]\nmock = true\n\
                   [[variant]]\nname = \"trace\"\n";

#[test]
fn a_run_file_is_checked_without_starting_anything() {
    let folder = Folder::new();
    folder.write("run.toml", RUN);
    let text = folder.succeed("check run.toml");
    assert!(text.starts_with("run small: 8 stages\n") && text.contains("oracle calls"), "{text}");
    let json: serde_json::Value =
        serde_json::from_str(&folder.succeed("check run.toml --json --set data.split=stratified")).unwrap();
    assert_eq!(json["plan"]["stages"][2]["name"], "split");
    assert_eq!((&json["estimate"]["pairs"], &json["problems"]), (&1200.into(), &serde_json::json!([])));
    assert_eq!(folder.files(), ["run.toml"]);
}

#[test]
fn all_problems_are_told_and_nothing_is_started() {
    let folder = Folder::new();
    folder.write("run.toml", RUN.replace("mock", "mook"));
    let outcome = folder.run("check run.toml --set train.bet=1");
    assert_eq!(outcome.code, Some(1));
    for says in [
        "3 problems in run.toml:\n",
        "run.toml:6: oracle.policy: is missing",
        "run.toml:7: oracle.mook: unknown key; did you mean mock?",
        "--set train.bet=1: unknown key; did you mean beta?",
    ] {
        assert!(outcome.err.contains(says), "{}", outcome.err);
    }
    folder.fail("run run.toml --local 2", "did you mean mock?");
}

#[test]
fn a_gang_larger_than_the_workers_is_refused() {
    let folder = Folder::new();
    folder.write("run.toml", RUN);
    folder.fail("run run.toml --local 1", "run.world_size is 2, --local 1 starts too few workers");
    folder.fail("run missing.toml --local 1", "missing.toml: cannot read");
}
