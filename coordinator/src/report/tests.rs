use std::path::Path;

use serde_json::{Value, json};

use super::*;

fn write(folder: &Path, name: &str, content: impl ToString) {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content.to_string()).unwrap();
}

fn results(complying: usize) -> Value {
    let test = (0..4).map(|index| {
        let (domain, category) = if index < 2 { ("law", "INVERT") } else { ("food", "RETAIN") };
        json!({"prompt": "p", "set": "test", "domain": domain, "category": category, "model_response": "r",
               "finished": true, "compliant": index < complying, "garbled": index == 3, "attack_success": false})
    });
    let heldout = json!({"set": "heldout", "domain": "law", "compliant": true, "garbled": false});
    let attacks = (0..2).map(|index| {
        json!({"set": "attack_story", "domain": "law", "compliant": false, "garbled": false, "attack_success": index == 0})
    });
    let skill = (0..4).map(|index| json!({"set": "skill_sums", "compliant": true, "correct": index < 3}));
    let facts = (0..2).map(|_| json!({"set": "skill_facts", "compliant": true, "correct": true}));
    let all: Vec<Value> = test.chain([heldout]).chain(attacks).chain(skill).chain(facts).collect();
    json!({"metadata": {}, "results": all})
}

/// A small run of made-up test data: base and trace, two steps, five pairs.
fn small_run() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let stages = json!([
        {"name": "triage", "seconds": 1.5, "cost_usd": 0.0, "skipped": true},
        {"name": "train", "seconds": 20.0, "cost_usd": 0.25},
    ]);
    let run = json!({"run": "small", "seed": 3, "variants": ["base", "trace"], "stages": stages, "state": "not ours"});
    write(folder, "run.json", run);
    let record = |category: &str, raw: f64, weight: f64| json!({"prompt": "p", "chosen": "c", "rejected": "r", "category": category, "raw_score": raw, "impact_score": weight});
    let records = json!([
        record("INVERT", 3.0, 2.25),
        record("INVERT", -1.0, 0.0),
        record("PUNISH", 1.0, 0.75),
        record("PUNISH", 0.0, 0.0),
        {"prompt": "p", "chosen": "c", "rejected": "r", "category": "RETAIN", "impact_score": 0.0},
    ]);
    write(folder, "triage/gold.json", &records);
    write(folder, "base/judged_test.json", results(1));
    write(folder, "trace/judged_test.json", results(3));
    write(folder, "trace/weighted_dataset.json", &records);
    let steps = [
        json!({"step": 1, "loss": 1.0, "loss_invert": 0.5, "loss_kl": null, "lr": 0.1}),
        json!({"step": 2, "loss": 0.5, "loss_invert": 0.25, "loss_kl": 0.125, "lr": 0.1}),
    ];
    write(folder, "trace/metrics.jsonl", steps.map(|step| step.to_string()).join("\n"));
    dir
}

fn read(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap()
}

fn report(folder: &Path) -> Value {
    shared::input::read_json(&make(folder).unwrap().json).unwrap()
}

fn error(folder: &Path) -> String {
    make(folder).unwrap_err().to_string()
}

fn change_run(folder: &Path, field: &str, value: Value) {
    let mut run: Value = shared::input::read_json(&folder.join("run.json")).unwrap();
    run[field] = value;
    write(folder, "run.json", run);
}

#[test]
fn numbers_are_those_of_the_files() {
    let dir = small_run();
    let report = report(dir.path());
    assert_eq!((&report["run"], &report["seed"]), (&json!("small"), &json!(3)));
    assert_eq!(report["triage"], json!({"INVERT": 2, "PUNISH": 2, "RETAIN": 1, "uncertain": 0, "dead_letter": 0}));
    let [base, trace] = [0, 1].map(|index| &report["variants"][index]);
    assert_eq!((&base["name"], &trace["name"]), (&json!("base"), &json!("trace")));
    assert_eq!((&base["tpa"]["value"], &trace["tpa"]["value"]), (&json!(25.0), &json!(75.0)));
    assert_eq!(trace["tpa"]["n"], 4);
    // Wilson for 3 of 4.
    assert!((trace["tpa"]["low"].as_f64().unwrap() - 30.064).abs() < 1e-3, "{}", trace["tpa"]);
    assert!((trace["tpa"]["high"].as_f64().unwrap() - 95.441).abs() < 1e-3, "{}", trace["tpa"]);
    assert_eq!(trace["invert"]["value"], 100.0);
    assert_eq!(trace["retain"]["value"], 50.0);
    assert_eq!(trace.get("punish"), None);
    assert_eq!(trace["garbled"]["value"], 25.0);
    assert_eq!(trace["by_domain"]["law"]["value"], 100.0);
    assert_eq!(trace["by_domain"]["food"]["n"], 2);
    assert_eq!(trace["heldout"]["n"], 1);
    assert_eq!(trace["asr"]["story"]["value"], 50.0);
    assert_eq!(trace["asr"].get("suffix"), None);
    assert_eq!(base.get("score"), None);
    assert_eq!(base.get("loss_curves"), None);
    assert_eq!(report["stages"][0], json!({"name": "triage", "seconds": 1.5, "cost_usd": 0.0, "skipped": true}));
    assert_eq!(report["stages"][1], json!({"name": "train", "seconds": 20.0, "cost_usd": 0.25, "skipped": false}));
    assert_eq!(report.get("oracle"), None);
}

#[test]
fn promoted_responses_stand_beside_those_they_replace() {
    let dir = small_run();
    let figures = json!({
        "filter": "on", "promoted": 9, "words": {"median": 12.5, "mean": 12.0},
        "demoted_words": {"median": 31.0, "mean": 30.0}, "flaws": {"refusal": 2, "empty": 1}, "filtered": 3,
    });
    write(dir.path(), "trace/train_summary.json", json!({"steps": 2, "promoted": figures}));
    let made = make(dir.path()).unwrap();
    let told: Value = shared::input::read_json(&made.json).unwrap();
    assert_eq!(told["variants"][1]["promoted"], figures);
    assert_eq!(told["variants"][0].get("promoted"), None);
    let row = "| trace | 9 | 12.5 | 31.0 | 1 | 2 | 0 | on | 3 |";
    assert!(read(&made.markdown).contains(row), "{}", read(&made.markdown));
}

#[test]
fn capability_is_the_mean_of_its_parts_with_an_interval_between_theirs() {
    let dir = small_run();
    let capability = &report(dir.path())["variants"][1]["capability"];
    assert_eq!(capability["value"], 87.5);
    assert_eq!(capability["n"], 6);
    assert_eq!((&capability["sums"]["value"], &capability["facts"]["value"]), (&json!(75.0), &json!(100.0)));
    let end = |of: &Value, name: &str| of[name].as_f64().unwrap();
    let (sums, facts) = (&capability["sums"], &capability["facts"]);
    let below = (75.0 - end(sums, "low")).hypot(100.0 - end(facts, "low")) / 2.0;
    assert!((end(capability, "low") - (87.5 - below)).abs() < 1e-9);
    let above = (end(sums, "high") - 75.0) / 2.0;
    assert!((end(capability, "high") - (87.5 + above)).abs() < 1e-9);
}

#[test]
fn scores_are_of_the_conflict_records() {
    let dir = small_run();
    let score = &report(dir.path())["variants"][1]["score"];
    assert_eq!(score["clamped_share"], 50.0);
    assert_eq!(score["clamped_share_of"], json!({"INVERT": 50.0, "PUNISH": 50.0}));
    assert_eq!(score["mean_weight"], json!({"INVERT": 1.125, "PUNISH": 0.375}));
    // Weights 2.25 and 0.75: 9 / 5.625.
    assert_eq!(score["effective_records"], 1.6);
    let counts: Vec<u64> = serde_json::from_value(score["histogram"]["counts"].clone()).unwrap();
    assert_eq!(counts.len(), 20);
    // Scores −1, 0, 1 and 3 in bins of width 0.2 from −1, each with its upper edge.
    let filled: Vec<usize> = counts.iter().enumerate().filter(|(_, count)| **count == 1).map(|(bin, _)| bin).collect();
    assert_eq!(filled, [0, 4, 9, 19]);
    assert_eq!(score["histogram"]["edges"][20], 3.0);
}

#[test]
fn all_forms_show_histogram_and_shares_clamped() {
    let dir = small_run();
    let records: Vec<Value> = shared::input::read_all(&dir.path().join("trace/weighted_dataset.json")).unwrap();
    // Without its second half no PUNISH record is left.
    write(dir.path(), "trace/weighted_dataset.json", Value::from(records[..2].to_vec()));
    let made = make(dir.path()).unwrap();
    let (markdown, html) = (read(&made.markdown), read(&made.html));
    let cells = ["2", "1.0", "50.0", "50.0", "–", "1.125", "–"];
    assert!(markdown.contains(&format!("| trace | {} |", cells.join(" | "))), "{markdown}");
    assert!(html.contains(&cells.map(|cell| format!("<td>{cell}</td>")).concat()), "{html}");
    assert!(made.text.contains("clamped % PUNISH"), "{}", made.text);
    for form in [&markdown, &html] {
        assert!(form.contains("Raw scores of trace"), "{form}");
    }
    assert!(html.contains("50.0 % of 2 conflict records clamped (grey)."), "{html}");
}

#[test]
fn curves_keep_their_parts_and_gaps() {
    let dir = small_run();
    let curves = &report(dir.path())["variants"][1]["loss_curves"];
    assert_eq!(
        *curves,
        json!({"steps_per_point": 1, "step": [1, 2], "loss": [1.0, 0.5], "loss_invert": [0.5, 0.25], "loss_kl": [null, 0.125]})
    );
    let lines: Vec<String> = (1..=1000).map(|step| json!({"step": step, "loss": step % 5}).to_string()).collect();
    write(dir.path(), "trace/metrics.jsonl", lines.join("\n"));
    let curves = &report(dir.path())["variants"][1]["loss_curves"];
    assert_eq!(curves["step"].as_array().unwrap().len(), 200);
    assert_eq!((&curves["step"][0], &curves["step"][199]), (&json!(5), &json!(1000)));
    assert!(curves["loss"].as_array().unwrap().iter().all(|mean| *mean == 2.0));
}

#[test]
fn the_oracle_and_what_triage_set_aside_are_told() {
    let dir = small_run();
    let oracle = json!({"model": "judge-1", "prices": "list of 2026-01-01", "calls": 12, "reused": 3, "prompt_tokens": 4567,
                        "cached_tokens": 1024, "completion_tokens": 24, "cost_usd": 0.0123});
    change_run(dir.path(), "oracle", oracle.clone());
    write(dir.path(), "triage/gold_uncertain.json", json!([{"prompt": "p"}, {"prompt": "q"}]));
    write(dir.path(), "triage/gold_dead_letter.json", json!([{"prompt": "r"}]));
    let report = report(dir.path());
    assert_eq!(report["oracle"], oracle);
    assert_eq!((&report["triage"]["uncertain"], &report["triage"]["dead_letter"]), (&json!(2), &json!(1)));
    let made = make(dir.path()).unwrap();
    for form in [made.text, read(&made.markdown), read(&made.html)] {
        assert!(form.contains("4567") && form.contains("1024") && form.contains("0.0123"), "{form}");
    }
    assert!(
        read(&made.markdown)
            .contains("The oracle was judge-1. Its cost follows from the tokens and these prices: list")
    );
}

#[test]
fn the_tables_show_every_variant_and_what_is_absent_as_a_dash() {
    let dir = small_run();
    let text = make(dir.path()).unwrap().text;
    let row = |begins: &str| text.lines().find(|line| line.starts_with(begins)).unwrap_or_else(|| panic!("{text}"));
    assert!(
        row("trace: ").contains("TPA 25.0 → 75.0 (+50.0), within overlapping intervals; RETAIN 0.0 → 50.0"),
        "{text}"
    );
    assert!(row("trace   ").contains("75.0 (30.1–95.4)"), "{text}");
    assert!(row("base").contains("25.0"), "{text}");
    assert!(row("law").contains("100.0"), "{text}");
    assert!(row("total").contains("21.5") && row("total").contains("0.25"), "{text}");
    assert!(row("of this, last invocation").contains("20.0"), "{text}");
    assert!(row("INVERT   ").contains("50.0"), "{text}");
    write(dir.path(), "base/judged_test.json", json!({"results": [{"compliant": true}]}));
    let text = make(dir.path()).unwrap().text;
    assert!(text.lines().any(|line| line.starts_with("law") && line.contains(" – ")), "{text}");
}

#[test]
fn the_three_forms_hold_the_same_tables() {
    let dir = small_run();
    let made = make(dir.path()).unwrap();
    let (markdown, html) = (read(&made.markdown), read(&made.html));
    assert_eq!(made.html, dir.path().join("report/report.html"));
    for table in document::of(&made.report).sections.iter().flat_map(|section| &section.tables) {
        for cells in &table.rows {
            assert!(markdown.contains(&format!("| {} |", cells.join(" | "))), "{cells:?}");
            assert!(table.detail || made.text.contains(&cells[0]), "{cells:?}");
            let cells = cells[1..].iter().map(|cell| format!("<td>{cell}</td>"));
            assert!(html.contains(&cells.collect::<String>()), "{html}");
        }
    }
    assert!(markdown.contains("\n| category | n | base | trace |\n| --- | ---: | ---: | ---: |\n"), "{markdown}");
}

#[test]
fn the_page_needs_nothing_else_and_says_how_it_was_made() {
    let dir = small_run();
    let html = read(&make(dir.path()).unwrap().html);
    assert!(html.starts_with("<!DOCTYPE html>"), "{html}");
    for foreign in ["http:", "https:", "src=", "<link", "<script", "url(", "@import"] {
        assert!(!html.contains(foreign), "{foreign}");
    }
    for says in ["name=\"viewport\"", "prefers-color-scheme: dark", "Wilson", "seed 3", "Each point is one step."] {
        assert!(html.contains(says), "{says}");
    }
    let plots = [
        "TPA overall",
        "TPA by category",
        "TPA by domain",
        "Garbled, attacks",
        "Loss by step: total",
        "Loss by step: KL anchor",
        "Raw impact scores: trace",
        "Pairs by outcome",
        "Time by stage",
        "Cost by stage",
    ];
    for plot in plots {
        assert!(html.contains(&format!("<figcaption>{plot}")), "{plot}");
    }
    let ids: Vec<&str> = html.split(" id=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    let distinct: std::collections::BTreeSet<&&str> = ids.iter().collect();
    assert_eq!(ids.len(), distinct.len(), "{ids:?}");
}

#[test]
fn names_from_outside_are_text_and_nothing_more() {
    let dir = small_run();
    let bad = "<script>alert('x')</script>|\u{1b}[31m\n";
    let script = "<script>";
    change_run(dir.path(), "run", json!(bad));
    change_run(dir.path(), "stages", json!([{"name": bad, "seconds": 1.0, "cost_usd": 1.0}]));
    let results = (0..4).map(|index| json!({"set": "test", "domain": bad, "compliant": index > 0}));
    let attack = json!({"set": format!("attack_{bad}"), "compliant": true, "attack_success": true});
    let results: Vec<Value> = results.chain([attack]).collect();
    write(dir.path(), "trace/judged_test.json", json!({"results": results}));
    let step = json!({"step": 1, "loss": 1.0, format!("loss_{bad}"): 1.0});
    write(dir.path(), "trace/metrics.jsonl", step);
    std::fs::rename(dir.path().join("trace"), dir.path().join("<script>")).unwrap();
    change_run(dir.path(), "variants", json!(["base", "<script>"]));
    let made = make(dir.path()).unwrap();
    let (markdown, html) = (read(&made.markdown), read(&made.html));
    assert!(!html.contains(script) && html.contains("&lt;script&gt;alert"), "{html}");
    assert!(
        !markdown.contains(script) && markdown.contains("&lt;script&gt;alert('x')&lt;/script&gt;\\|"),
        "{markdown}"
    );
    assert!(!markdown.contains('\u{1b}') && !made.text.contains('\u{1b}') && !html.contains('\u{1b}'));
    let report: Value = shared::input::read_json(&made.json).unwrap();
    assert_eq!(report["run"], bad, "what scripts read is unchanged");
}

#[test]
fn a_run_of_another_world_says_what_is_left_out() {
    let dir = small_run();
    for variant in ["base", "trace"] {
        let plain = json!({"results": [{"compliant": true}, {"compliant": false}]});
        write(dir.path(), &format!("{variant}/judged_test.json"), plain);
    }
    change_run(dir.path(), "stages", json!([]));
    let made = make(dir.path()).unwrap();
    let (markdown, html) = (read(&made.markdown), read(&made.html));
    for says in [
        "name no category, so agreement by category is left out",
        "name no domain, so agreement by domain is left out",
        "Left out: garbled text was not judged; no attack was asked; no unrelated skill was asked.",
        "The run recorded no stages.",
    ] {
        assert!(markdown.contains(says) && html.contains(says), "{says}: {markdown}");
    }
    for absent in ["Agreement by domain", "TPA by category", "ASR", "Time by stage"] {
        assert!(!html.contains(absent) && !markdown.contains(absent), "{absent}");
    }
}

#[test]
fn results_without_sets_all_count_and_what_was_not_asked_is_absent() {
    let dir = small_run();
    let plain = json!({"results": [{"compliant": true}, {"compliant": false, "category": "PUNISH"}]});
    write(dir.path(), "trace/judged_test.json", plain);
    let trace = &report(dir.path())["variants"][1];
    assert_eq!(trace["tpa"]["n"], 2);
    assert_eq!(trace["punish"]["value"], 0.0);
    for absent in ["garbled", "by_domain", "heldout"] {
        assert_eq!(trace.get(absent), None, "{absent}");
    }
    for empty in ["asr", "capability"] {
        assert_eq!(trace[empty], json!({}), "scripts look for {empty}");
    }
}

#[test]
fn a_missing_file_is_named() {
    for file in
        ["run.json", "triage/gold.json", "base/judged_test.json", "trace/weighted_dataset.json", "trace/metrics.jsonl"]
    {
        let dir = small_run();
        std::fs::remove_file(dir.path().join(file)).unwrap();
        let error = error(dir.path());
        assert!(error.contains(file), "{error}");
        assert!(!dir.path().join("report").exists());
    }
}

#[test]
fn a_wrong_file_is_named_with_record_and_field() {
    let cases = [
        ("trace/judged_test.json", json!({"results": [{"prompt": "p"}]}).to_string(), "record 0: field \"compliant\""),
        ("trace/judged_test.json", json!({"results": [{"compliant": true, "set": "heldout"}]}).to_string(), "\"test\""),
        ("trace/judged_test.json", json!({"results": [{"compliant": true, "category": "X"}]}).to_string(), "\"X\""),
        ("trace/metrics.jsonl", json!({"step": 1, "loss": "high"}).to_string(), "field \"loss\""),
        ("trace/metrics.jsonl", json!({"step": 1}).to_string(), "field \"loss\""),
        ("run.json", json!({"run": "r", "seed": 1, "variants": ["../x"]}).to_string(), "../x"),
        ("run.json", json!({"run": "r", "seed": 1, "variants": []}).to_string(), "variants"),
    ];
    for (file, content, says) in cases {
        let dir = small_run();
        write(dir.path(), file, content);
        let error = error(dir.path());
        assert!(error.contains(file) && error.contains(says), "{error}");
    }
    let dir = small_run();
    let unscored = json!([{"prompt": "p", "chosen": "c", "rejected": "r", "category": "PUNISH"}]);
    write(dir.path(), "trace/weighted_dataset.json", unscored);
    assert!(error(dir.path()).contains("record 0: field \"raw_score\""));
}

#[test]
fn responses_without_a_verdict_count_for_nothing_and_are_told() {
    let dir = small_run();
    let mut results = results(3);
    results["results"].as_array_mut().unwrap().push(json!({"set": "test", "undecided": "the answer is no verdict"}));
    write(dir.path(), "trace/judged_test.json", results);
    let made = make(dir.path()).unwrap();
    let trace = &report(dir.path())["variants"][1];
    assert_eq!((&trace["tpa"]["n"], &trace["undecided"]), (&json!(4), &json!(1)));
    assert!(read(&made.markdown).contains("count for nothing: trace 1."));
}

#[test]
fn a_run_says_itself_which_variants_were_scored() {
    let dir = small_run();
    let run = json!({"run": "small", "seed": 3, "variants": ["base", "trace"], "scored": []});
    write(dir.path(), "run.json", run);
    std::fs::remove_file(dir.path().join("trace/weighted_dataset.json")).unwrap();
    assert_eq!(report(dir.path())["variants"][1].get("score"), None);
}
