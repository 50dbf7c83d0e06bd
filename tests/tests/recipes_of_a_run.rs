//! U2A in rounds, the filter of promoted responses and validation from a run file, through all stages by `coordinator run
//! --local 2`: what each leaves in its folder and in the report, and that a second run finds all of it done.
#![allow(clippy::unwrap_used)]

use cluster_tests::local::LocalRun;
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

    let before = run.log().len();
    run.finish();
    let again = run.log()[before..].to_owned();
    assert!(again.matches(": begins").count() <= 1, "only the report is made again: {again}");
}
