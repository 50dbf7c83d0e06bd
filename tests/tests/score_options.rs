//! What the options of scores come to on the command line: several seeds, layers, scales, curvature; killed and gone on.
#![allow(clippy::unwrap_used)]

use cluster_tests::Folder;
use serde_json::Value;

const SCORE: &str = "score --model-name-or-path {tied} --dataset-json-path records.json --lora-r 4 --gold-batch-size 6";

fn of(folder: &Folder, file: &str, field: &str) -> Vec<f64> {
    folder.json(file).as_array().unwrap().iter().map(|record| record[field].as_f64().unwrap()).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

#[track_caller]
fn near(ours: &[f64], theirs: &[f64], tolerance: f64) {
    let largest = theirs.iter().fold(0.0f64, |largest, number| largest.max(number.abs()));
    let off = ours.iter().zip(theirs).fold(0.0f64, |most, (a, b)| most.max((a - b).abs()));
    assert!(ours.len() == theirs.len() && largest > 0.0 && off <= tolerance * largest, "{ours:?} is not {theirs:?}");
}

#[test]
fn several_seeds_are_averaged_and_their_spread_is_told() {
    let folder = Folder::new();
    let command = format!("{SCORE} --score-seeds 3 --score-layers --json");
    let summary: Value = serde_json::from_str(&folder.succeed(&format!("{command} --out seeds.json")).out).unwrap();
    assert_eq!(summary["seeds"]["count"], 3);
    let share = summary["seeds"]["reliability"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&share), "{summary}");
    let of_seed = |seed: u64| {
        let out = format!("seed-{seed}.json");
        folder.succeed(&format!("{SCORE} --seed {seed} --gold gold.json --out {out}"));
        of(&folder, &out, "raw_score")
    };
    let alone = [42, 43, 44].map(of_seed);
    let mut scored = 0;
    for (at, record) in folder.json("seeds.json").as_array().unwrap().iter().enumerate() {
        if record["category"] == "RETAIN" {
            assert!(record.get("score_by_seed").is_none() && record.get("score_by_layer").is_none(), "{record}");
            continue;
        }
        scored += 1;
        let by_seed = numbers(&record["score_by_seed"]);
        assert_eq!(by_seed, alone.each_ref().map(|scores| scores[at]));
        near(&[record["raw_score"].as_f64().unwrap()], &[by_seed.iter().sum::<f64>() / 3.0], 1e-12);
        near(&[numbers(&record["score_by_layer"]).iter().sum()], &[record["raw_score"].as_f64().unwrap()], 1e-4);
    }
    assert!(scored > 2);

    // Killed in the second pack and gone on: the same bytes.
    let command = format!("{command} --pack-tokens 150 --gold gold.json");
    folder.succeed(&format!("{command} --out whole.json"));
    folder.killed(&format!("{command} --out killed.json"), "score.pack=2");
    folder.succeed(&format!("{command} --out killed.json"));
    assert_eq!(folder.bytes("killed.json"), folder.bytes("whole.json"));

    // Scored once more without, nothing of it stays.
    folder.succeed(
        "score --model-name-or-path {tied} --dataset-json-path seeds.json --lora-r 4 --gold gold.json --out plain.json",
    );
    assert!(folder.json("plain.json").as_array().unwrap().iter().all(|record| record.get("score_by_seed").is_none()));
    near(&of(&folder, "plain.json", "raw_score"), &alone[0], 1e-6);
}

#[test]
fn curvature_turns_scores_as_far_as_the_damping_lets_it() {
    let folder = Folder::new();
    folder.succeed(&format!("{SCORE} --out plain.json"));
    let scored = |out: &str, options: &str| -> Value {
        let command = format!("{SCORE} --gold gold.json --curvature cg --json --out {out} {options}");
        serde_json::from_str(&folder.succeed(&command).out).unwrap()
    };
    let summary = scored("damped.json", "--lamda 1e9");
    assert_eq!(summary["curvature"][0]["converged"], true, "{summary}");
    near(&of(&folder, "damped.json", "impact_score"), &of(&folder, "plain.json", "impact_score"), 1e-4);
    let along = summary["curvature"][0]["along_gold"].as_f64().unwrap();
    let small = format!("--lamda {}", along * 1e-2);
    let summary = scored("curved.json", &small);
    assert!(summary["curvature"][0]["cosine"].as_f64().unwrap() < 0.999, "{summary}");
    let (curved, plain) = (of(&folder, "curved.json", "impact_score"), of(&folder, "plain.json", "impact_score"));
    assert!(curved.iter().zip(&plain).any(|(a, b)| (a - b).abs() > 1e-2), "{curved:?} as {plain:?}");

    // What a cluster does: the direction once, from the same records, then parts along it.
    let parts = format!(
        "--gold gold.json --gold-gradient g.safetensors --curvature cg {small} --curvature-json-path records.json"
    );
    folder.succeed(&format!("score --model-name-or-path {{tied}} --lora-r 4 --gold-only {parts}"));
    folder.succeed(&format!("{SCORE} --raw-only {parts} --out part.json"));
    let records = folder.json("part.json");
    for (record, whole) in records.as_array().unwrap().iter().zip(of(&folder, "curved.json", "raw_score")) {
        assert_eq!(record["raw_score"].as_f64().unwrap_or(0.0), whole, "{record}");
    }
    folder.refused(
        &format!("{SCORE} --raw-only --gold gold.json --curvature cg --out x.json"),
        &["--curvature-json-path"],
    );

    let invert = records.as_array().unwrap().iter().position(|record| record["category"] == "INVERT").unwrap();
    let explained = format!("{SCORE} --gold gold.json --curvature cg {small} --explain {invert} --json");
    let answer: Value = serde_json::from_str(&folder.succeed(&explained).out).unwrap();
    let sum = |list: &str| -> f64 {
        answer[list].as_array().unwrap().iter().map(|part| part["pull"].as_f64().unwrap()).sum()
    };
    near(&[sum("pulls"), sum("layers")], &[answer["raw_score"].as_f64().unwrap(); 2], 1e-3);
}

/// A journal and a kept direction belong to the records that the curvature is of.
#[test]
fn what_the_curvature_is_of_is_in_the_keys() {
    let folder = Folder::new();
    folder.succeed(&format!("{SCORE} --out plain.json"));
    let of_file = "--gold gold.json --curvature cg --lamda 1 --curvature-json-path curvature.json";
    let give = |records: &[Value]| {
        std::fs::write(folder.path("curvature.json"), serde_json::to_vec(records).unwrap()).unwrap();
    };
    let records = folder.json("records.json").as_array().unwrap().clone();
    give(&records);
    let command = format!("{SCORE} {of_file} --pack-tokens 150 --out scored.json");
    folder.killed(&command, "score.pack=2");
    let conflict = |record: &&Value| record["category"] != "RETAIN";
    give(&records.iter().filter(conflict).take(1).cloned().collect::<Vec<_>>());
    folder.refused(&command, &["scored.json.journal"]);
    std::fs::remove_file(folder.path("scored.json.journal")).unwrap();
    folder.succeed(&command);

    // The same records with other terms have another curvature.
    let scored = |method: &str, direction: &str, out: &str| {
        folder.succeed(&format!(
            "{SCORE} {of_file} --method {method} --gold-gradient {direction} --weight-norm reference --out {out}"
        ));
        of(&folder, out, "raw_score")
    };
    give(&records);
    scored("trace", "kept.safetensors", "trace.json");
    let report = folder.json("kept.json");
    assert!(report[0]["residual"].as_f64().unwrap() < 1e-4, "{report}");
    let anew = scored("no-triage", "kept.safetensors", "anew.json");
    assert_eq!(anew, scored("no-triage", "other.safetensors", "other.json"));
}

#[test]
fn a_record_that_is_all_of_the_gold_batch_cannot_be_scored_without_it() {
    let folder = Folder::new();
    let records = folder.json("records.json");
    let index = records.as_array().unwrap().iter().position(|record| record["category"] == "INVERT").unwrap();
    let gold = serde_json::json!([{
        "prompt": records[index]["prompt"], "chosen": records[index]["chosen"], "rejected": records[index]["rejected"]
    }]);
    std::fs::write(folder.path("own.json"), gold.to_string()).unwrap();
    folder.refused(
        &format!("{SCORE} --gold own.json --leave-gold-out --out x.json"),
        &[&format!("record {index}"), "--leave-gold-out leaves nothing"],
    );
}

/// Scales have the sign of the plain score, so they clamp the same records.
#[test]
fn scales_change_sizes_and_not_signs() {
    let folder = Folder::new();
    folder.succeed(&format!("{SCORE} --out plain.json"));
    let plain = of(&folder, "plain.json", "raw_score");
    for scale in ["length", "cosine"] {
        folder.succeed(&format!("{SCORE} --gold gold.json --score-scale {scale} --out {scale}.json"));
        let scaled = of(&folder, &format!("{scale}.json"), "raw_score");
        assert!(scaled.iter().zip(&plain).all(|(a, b)| a.signum() == b.signum() || *b == 0.0), "{scaled:?} {plain:?}");
        assert_ne!(scaled, plain);
        assert!(scale == "length" || scaled.iter().all(|cosine| cosine.abs() <= 1.0), "{scaled:?}");
    }
    let refused = |options: &str, says: &str| {
        folder.refused(&format!("{SCORE} --out x.json {options}"), &[says]);
    };
    refused("--score-seeds 2 --score-space full", "--score-space have no seed");
    refused("--curvature cg --leave-gold-out", "leave out one of the two");
    refused("--cg-iterations 5", "--curvature cg only");
}
