//! U2A in rounds, the filter of promoted responses and validation from a run file, through all stages by `coordinator run
//! --local 2`: what each leaves in its folder and in the report, and that a second run finds all of it done. `coordinator
//! explain` tells of a record what the run left of it, with pulls that add up to its score.
#![allow(clippy::unwrap_used)]

use cluster_tests::local::{LocalRun, check};
use serde_json::Value;

#[test]
fn recipes_of_a_run_file_leave_their_figures() {
    let run = LocalRun::of("recipes");
    run.finish();
    let json = |name: &str| -> Value { serde_json::from_slice(&run.product(name)).unwrap() };
    let report = json("report/report.json");
    let variant =
        |name: &str| report["variants"].as_array().unwrap().iter().find(|of| of["name"] == name).unwrap().clone();

    // U2A: scored in shards, weighed in two rounds by a gang, promoting nothing.
    assert_eq!(json("u2a/weighted_dataset.json")[0]["score_method"], "u2a");
    let rounds = [1, 2].map(|number| json(&format!("u2a/u2a/round-{number}.json")));
    assert_eq!(rounds.each_ref().map(|round| round["step"].as_u64().unwrap()), [0, 3]);
    assert_eq!(rounds.each_ref().map(|round| round["records"].as_array().unwrap().len()), [40, 40]);
    assert_eq!(variant("u2a")["promoted"]["promoted"], 0);
    assert!(variant("u2a")["score"]["n"].as_u64().unwrap() > 40);

    // The filter: scores and training agree on the terms, and the report says what was left out.
    assert_eq!(json("oracle-punish/weighted_dataset.json")[0]["score_method"], "oracle-punish+quality-12");
    let promoted = &variant("oracle-punish")["promoted"];
    let listed = json("oracle-punish/quality.json").as_array().unwrap().len();
    assert_eq!((&promoted["filter"], promoted["filtered"].as_u64()), (&"on".into(), Some(listed as u64)));
    assert!(listed > 0 && promoted["promoted"].as_u64().unwrap() > listed as u64, "{promoted}");
    assert!(String::from_utf8(run.product("report/report.md")).unwrap().contains("Promoted responses"));

    // Validation: two times a run, and the best at the root where that was asked for.
    for name in ["u2a", "oracle-punish"] {
        let rows = String::from_utf8(run.product(&format!("{name}/validation.jsonl"))).unwrap();
        assert_eq!(rows.lines().count(), 2, "{rows}");
        assert_eq!(json(&format!("{name}/train_summary.json"))["validation"]["records"], 40);
    }
    let adapter = |folder: &str| run.product(&format!("{folder}/adapter_model.safetensors"));
    assert!(adapter("oracle-punish") == adapter("oracle-punish/best"));

    options_of_scores(&run);
    explanations(&run);

    let before = run.log().len();
    run.finish();
    let again = run.log()[before..].to_owned();
    assert!(again.matches(": begins").count() <= 1, "only the report is made again: {again}");
}

/// Curvature of the same records for all shards, two seeds, layers; corrections in the gold batch; weights made anew.
fn options_of_scores(run: &LocalRun) {
    let json = |name: &str| -> Value { serde_json::from_slice(&run.product(name)).unwrap() };
    assert_eq!(json("curved/curvature.json").as_array().unwrap().len(), 6);
    let records = json("curved/weighted_dataset.json");
    let mut scored = 0;
    for record in records.as_array().unwrap().iter().filter(|record| record["category"] != "RETAIN") {
        assert_eq!(record["score_by_seed"].as_array().unwrap().len(), 2, "{record}");
        let layers: f64 = record["score_by_layer"].as_array().unwrap().iter().map(|part| part.as_f64().unwrap()).sum();
        let score = record["raw_score"].as_f64().unwrap();
        assert!((layers - score).abs() <= 1e-3 * score.abs().max(1e-6), "{record}");
        scored += 1;
    }
    assert!(scored > 20, "{scored}");
    let gold = json("curved/gold.json");
    let punish: Vec<&Value> =
        gold.as_array().unwrap().iter().filter(|pair| pair["origin"]["category"] == "PUNISH").collect();
    assert!(!punish.is_empty() && punish.iter().all(|pair| pair["origin"]["chosen_from"] == "correction"), "{gold}");
    let steps = [1, 2, 3].map(|number| json(&format!("again/rescored/round-{number}.json"))["step"].clone());
    assert_eq!(steps, [0, 2, 4]);
    let told = run.explain(record_of(&records, "INVERT"), &["--variant", "curved", "--json"]);
    check(&told);
    let told: Value = serde_json::from_slice(&told.stdout).unwrap();
    let sum: f64 =
        told[0]["pulls"]["pulls"].as_array().unwrap().iter().map(|pair| pair["pull"].as_f64().unwrap()).sum();
    let score = told[0]["score"]["raw_score"].as_f64().unwrap();
    let largest = records
        .as_array()
        .unwrap()
        .iter()
        .map(|record| record["raw_score"].as_f64().unwrap().abs())
        .fold(0.0, f64::max);
    assert!((sum - score).abs() < 1e-2 * largest, "{sum} is not {score}");
}

fn record_of(records: &Value, category: &str) -> usize {
    records.as_array().unwrap().iter().position(|record| record["category"] == category).unwrap()
}

/// What is told of records of the conflict and of RETAIN, and of those that are not there.
fn explanations(run: &LocalRun) {
    let weighted = ["oracle-punish", "u2a"].map(|variant| -> Vec<Value> {
        serde_json::from_slice(&run.product(&format!("{variant}/weighted_dataset.json"))).unwrap()
    });
    let number = |value: &Value| value.as_f64().unwrap();
    for category in ["INVERT", "PUNISH"] {
        let at = weighted[0].iter().position(|record| record["category"] == category).unwrap();
        let told = run.explain(at, &["--json", "--no-pulls"]);
        check(&told);
        let told: Value = serde_json::from_slice(&told.stdout).unwrap();
        let names: Vec<&str> = told.as_array().unwrap().iter().map(|of| of["variant"].as_str().unwrap()).collect();
        assert_eq!(names, ["again", "curved", "oracle-punish", "u2a"]);
        for (name, weighted) in ["oracle-punish", "u2a"].into_iter().zip(&weighted) {
            let told = run.explain(at, &["--variant", name, "--json"]);
            check(&told);
            let told: Value = serde_json::from_slice(&told.stdout).unwrap();
            let told = &told[0];
            let (score, record) = (&told["score"], &weighted[at]);
            assert_eq!((&told["prompt"], &told["category"]), (&record["prompt"], &record["category"]));
            assert_eq!((&score["raw_score"], &score["weight"]), (&record["raw_score"], &record["impact_score"]));
            let better =
                weighted.iter().filter(|other| number(&other["impact_score"]) > number(&score["weight"])).count();
            if score["is_clamped"] == false {
                assert_eq!(score["rank"].as_u64().unwrap() as usize, better + 1);
            }
            let pulls = told["pulls"]["pulls"].as_array().unwrap();
            assert_eq!(pulls.len(), 12);
            let sum: f64 = pulls.iter().map(|pair| number(&pair["pull"])).sum();
            let largest = weighted.iter().map(|record| number(&record["raw_score"]).abs()).fold(0.0, f64::max);
            assert!((sum - number(&score["raw_score"])).abs() < 1e-5 * largest, "{sum} is not {}", score["raw_score"]);
            // The violating response is `chosen` in a PUNISH record and `rejected` in an INVERT record, by the mock's word.
            let violating = &told["verdicts"][usize::from(category == "INVERT")];
            assert_eq!(violating["verdict"], "NON-COMPLIANT");
            assert_eq!(violating["grounds"]["verdict"], "NON-COMPLIANT", "{violating}");
        }
        let told = run.explain(at, &["--variant", "u2a", "--top", "3"]);
        check(&told);
        let told = String::from_utf8(told.stdout).unwrap();
        for says in ["u2a: raw score", "scored records", "judged by mock", "gold pairs pull for it", "(9 more; --top 0"]
        {
            assert!(told.contains(says), "{says}: {told}");
        }
    }
    let kept = weighted[0].iter().position(|record| record["category"] == "RETAIN").unwrap();
    let told = run.explain(kept, &["--variant", "oracle-punish"]);
    check(&told);
    let told = String::from_utf8(told.stdout).unwrap();
    assert!(told.contains("the method gives none to this RETAIN record"), "{told}");
    for (record, options, says) in [
        (999, &["--no-pulls"][..], "splits/trace/train1.json: there is no record 999: it holds 160 records"),
        (0, &["--variant", "base"], "variant base has no scores"),
    ] {
        let refused = run.explain(record, options);
        let message = String::from_utf8(refused.stderr).unwrap();
        assert!(!refused.status.success() && message.contains(says), "{message}");
    }
}
