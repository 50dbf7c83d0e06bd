use serde_json::json;
use shared::output::write_json;

use super::*;

/// A run's folder with three pairs: one without text, an INVERT pair that the triage swapped, a RETAIN pair.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, value: Value| write_json(&dir.path().join(name), &value).unwrap();
    let pair =
        |prompt: &str, chosen: &str, rejected: &str| json!({"prompt": prompt, "chosen": chosen, "rejected": rejected});
    write(
        "data/pairs.json",
        json!([pair("other", "a", "b"), pair("p\n2", "old winner", "old loser"), pair("p3", "c", "d")]),
    );
    let mut inverted = pair("p\n2", "old loser", "old winner");
    inverted["category"] = json!("INVERT");
    inverted["chosen_violations"] = json!([]);
    inverted["rejected_violations"] = json!([0, 3]);
    let mut kept = pair("p3", "c", "d");
    kept["category"] = json!("RETAIN");
    kept["chosen_violations"] = json!([]);
    let empty = json!({"prompt": " ", "chosen": "c", "rejected": "d", "category": "RETAIN"});
    write("triage/gold.json", json!([empty, inverted, kept]));
    let line = |field: &str, verdict: &str, votes: [&str; 2]| {
        let vote = |said: &str| json!({"said": said, "answers": [{"key": format!("key-{said}"), "model": "judge-1"}]});
        json!({"index": 1, "field": field, "verdict": verdict, "confidence": 0.875, "votes": votes.map(vote)})
            .to_string()
    };
    let lines = [
        line("chosen", "NON-COMPLIANT", ["NON-COMPLIANT", "NON-COMPLIANT"]),
        line("rejected", "COMPLIANT", ["COMPLIANT", "NON-COMPLIANT"]),
    ];
    std::fs::write(dir.path().join("triage/gold_provenance.jsonl"), lines.join("\n")).unwrap();
    dir
}

fn found(dir: &tempfile::TempDir, index: usize) -> Result<(Found, usize)> {
    found::of(dir.path(), &dir.path().join("triage/gold.json"), index)
}

fn explained(found: Found, score: Option<Standing>) -> Explained {
    Explained { variant: "mine".into(), method: "trace", found, score, pulls: None }
}

#[test]
fn a_record_is_told_with_its_verdicts_and_what_they_rest_on() {
    let dir = folder();
    let (record, position) = found(&dir, 1).unwrap();
    assert_eq!(position, 0, "the record before it was set aside");
    let grounds = |at: usize| record.verdicts[at].grounds.as_ref().unwrap()["field"].as_str().unwrap();
    assert_eq!([grounds(0), grounds(1)], ["rejected", "chosen"], "the triage swapped the pair");
    let score = Standing { raw_score: 0.0125, weight: 1.5, is_clamped: false, rank: 2, scored: 40, clamped: 7 };
    let explained = explained(record, Some(score));
    let text = text::facts(&explained, false);
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    assert_eq!(lines[0], format!("record 1 of {}", dir.path().join("triage/gold.json").display()));
    assert_eq!(
        lines[1..],
        [
            "category   INVERT",
            "prompt     p 2",
            "chosen     old loser",
            "             COMPLIANT",
            "             judged by judge-1, confidence 0.875, 1 of 2 votes",
            "             answers in the ledger: key-COMPLIANT, key-NON-COMPLIANT",
            "rejected   old winner",
            "             NON-COMPLIANT, violates policies 0, 3",
            "             judged by judge-1, confidence 0.875, 2 of 2 votes",
            "             answers in the ledger: key-NON-COMPLIANT, key-NON-COMPLIANT",
            "",
            "mine (trace): raw score 1.2500e-2, weight 1.5000",
            "rank 2 of 40 scored records (1 is the largest weight); 7 of them are clamped",
        ]
    );
    assert_eq!(text::facts(&explained, true).lines().count(), 3, "the record is told once");
}

#[test]
fn a_record_of_retain_has_no_score_and_one_that_was_not_judged_says_so() {
    let dir = folder();
    std::fs::remove_file(dir.path().join("triage/gold_provenance.jsonl")).unwrap();
    let (record, position) = found(&dir, 2).unwrap();
    assert_eq!((position, &record.verdicts[1].verdict, &record.verdicts[0].grounds), (1, &None, &None));
    let text = text::facts(&explained(record, None), false);
    assert!(
        text.contains("not judged")
            && text.contains("no score and no weight; the method gives none to this RETAIN record"),
        "{text}"
    );
}

#[test]
fn records_that_are_not_there_are_refused() {
    let dir = folder();
    let says = |index: usize| found(&dir, index).unwrap_err().to_string();
    assert!(says(3).contains("there is no record 3: it holds 3 records, from 0 to 2"), "{}", says(3));
    assert!(says(0).contains("record 0: field \"prompt\": is empty, so the record was set aside"), "{}", says(0));
}

#[test]
fn a_run_is_found_by_folder_or_name_and_else_told_where_it_was_looked_for() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("mine/stages")).unwrap();
    let path = dir.path().join("mine").canonicalize().unwrap();
    assert_eq!(super::folder("mine", dir.path()).unwrap(), path);
    assert_eq!(super::folder(path.to_str().unwrap(), Path::new("artifacts")).unwrap(), path);
    let error = super::folder("other", dir.path()).unwrap_err().to_string();
    assert!(error.starts_with("there is no run other: neither other nor ") && error.contains("--artifacts"), "{error}");
}

fn answer() -> Value {
    let pair = |number: usize, pull: f64, own: bool, origin: Value| json!({"pair": number, "pull": pull, "own": own, "prompt": format!("gold {number}"), "origin": origin});
    json!({"record": 1, "term": "chosen over rejected", "raw_score": 0.5, "own_pull": 2.0, "pulls": [
        pair(4, 2.0, true, json!({"category": "INVERT", "record": 1})),
        pair(0, -1.75, false, json!({"category": "RETAIN", "record": 9})),
        pair(2, 0.25, false, Value::Null),
    ]})
}

#[test]
fn the_strongest_pulls_are_shown_and_what_the_answer_lacks_is_left_out() {
    let text = text::pulls(&answer(), 2);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines,
        [
            "loss term: chosen over rejected",
            "2 of 3 gold pairs pull for it, +2.2500e0, the others against, -1.7500e0",
            "its own pair in the gold batch pulls +2.0000e0; the score computed now is 5.0000e-1",
            "",
            " pair          pull  from                prompt",
            "    4     +2.0000e0  this record         gold 4",
            "    0     -1.7500e0  RETAIN 9            gold 0",
            "(1 more; --top 0 shows all)",
        ]
    );
    assert!(text::pulls(&answer(), 0).contains("    2    +2.5000e-1  given"), "{}", text::pulls(&answer(), 0));
    assert!(text::pulls(&json!({}), 10).starts_with("0 of 0 gold pairs pull for it"));
}

#[test]
fn a_pair_that_is_left_out_is_not_in_the_sums() {
    let mut answer = answer();
    answer["pulls"][0]["counts"] = json!(false);
    let text = text::pulls(&answer, 1);
    assert!(text.contains("1 of 2 gold pairs pull for it, +2.5000e-1, the others against, -1.7500e0\n"), "{text}");
    assert!(text.contains("pulls +2.0000e0 and does not count; the score"), "{text}");
}

#[test]
fn layers_are_shown_where_the_answer_has_them() {
    let mut answer = answer();
    answer["layers"] = json!([
        {"layer": "0", "pull": 0.25}, {"layer": "1", "pull": -0.5}, {"layer": "outside", "pull": 0.1}, {"layer": "2"}, "odd"
    ]);
    let text = text::pulls(&answer, 0);
    assert!(text.contains("strongest layers: 1 -5.000e-1, 0 +2.500e-1, outside +1.000e-1\n"), "{text}");
}
