use serde_json::{Value, json};
use shared::output::write_json;

use super::*;

const QUICKSTART: &str = include_str!("../../../deploy/examples/quickstart.toml");

/// A run's folder, whose stages a test carries out by hand.
pub(super) struct TestRun {
    pub(super) dir: tempfile::TempDir,
    pub(super) context: Context,
}

impl TestRun {
    pub(super) fn new(text: &str, set: &[&str]) -> TestRun {
        let dir = tempfile::tempdir().unwrap();
        let context = context(&dir.path().join("run"), text, set, 1);
        TestRun { dir, context }
    }

    /// Goes on with other settings, as another submission.
    pub(super) fn resubmit(&mut self, set: &[&str]) {
        self.context = context(&self.context.run_dir, QUICKSTART, set, self.context.incarnation + 1);
    }

    pub(super) fn index(&self, stage: &str) -> usize {
        self.context.plan.stages.iter().position(|own| own.name == stage).unwrap()
    }

    fn begin(&self, stage: &str) -> Begun {
        begin(&self.context, self.index(stage)).unwrap()
    }

    /// Begins a stage that is not done.
    pub(super) fn todo(&self, stage: &str) -> Vec<Task> {
        match self.begin(stage) {
            Begun::Todo(tasks) => tasks,
            Begun::Done(_) => panic!("{stage} is done"),
        }
    }

    fn is_done(&self, stage: &str) -> bool {
        matches!(self.begin(stage), Begun::Done(_))
    }

    pub(super) fn finish(&self, stage: &str) -> Outcome {
        finish(&self.context, self.index(stage), 2.5).unwrap()
    }

    pub(super) fn write(&self, path: &str, content: &str) {
        let path = self.context.run_dir.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    pub(super) fn json(&self, path: &str) -> Value {
        shared::input::read_json(&self.context.run_dir.join(path)).unwrap()
    }

    fn has(&self, path: &str) -> bool {
        self.context.run_dir.join(path).exists()
    }

    fn carry_out(&self, stage: &str) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let work = carry_out(&self.context, self.index(stage), &|_| {}, CancellationToken::new());
        runtime.block_on(work).unwrap();
    }

    /// Puts what earlier stages would have left: a deployed model and labelled records.
    fn deployed_and_labelled(&self, records: usize) {
        self.write("base/config.json", "{}");
        self.write("base/model.safetensors", "weights");
        let record = |index: usize| {
            let category = ["INVERT", "RETAIN", "PUNISH"][index % 3];
            json!({"prompt": format!("p{index}"), "chosen": if index == 4 { "" } else { "c" }, "rejected": "r",
                   "category": category, "domain": "law"})
        };
        write_json(&self.context.run_dir.join("triage/corrected.json"), &(0..records).map(record).collect::<Vec<_>>())
            .unwrap();
    }

    /// Scores the variant trace, whose gold batch is drawn; the score of a record is a function of it.
    fn score(&self, raw: impl Fn(&Value) -> f64) -> Outcome {
        for task in self.todo("score-trace") {
            let mut records: Vec<Value> = shared::input::read_all(&records_of(self, &task)).unwrap();
            records.iter_mut().for_each(|record| record["raw_score"] = json!(raw(record)));
            write_json(&self.context.run_dir.join(&task.outputs[0]), &records).unwrap();
        }
        self.finish("score-trace")
    }

    fn trained(&self, folder: &str) {
        for file in
            ["metrics.jsonl", "train_summary.json", "run.json", "adapter_config.json", "adapter_model.safetensors"]
        {
            self.write(&format!("{folder}/{file}"), file);
        }
    }
}

fn context(run_dir: &Path, text: &str, set: &[&str], incarnation: u64) -> Context {
    let set: Vec<String> = set.iter().map(|text| (*text).to_owned()).collect();
    let file = crate::run_file::parse(text, "run.toml", Path::new("/"), &set).unwrap();
    let plan = crate::run_file::plan(&file);
    Context { run_dir: run_dir.to_owned(), file: Arc::new(file), plan: Arc::new(plan), oracle: None, incarnation }
}

#[test]
fn a_stage_is_done_until_an_output_or_a_parameter_changes() {
    let mut run = TestRun::new(QUICKSTART, &[]);
    assert_eq!(run.todo("world"), []);
    run.carry_out("world");
    let outcome = run.finish("world");
    assert_eq!(outcome, Outcome { seconds: 2.5, ..Outcome::default() });
    assert!(matches!(run.begin("world"), Begun::Done(done) if done == outcome));
    assert!(!run.has("stages/world.begun.json"));
    // Finishing again after a crash changes nothing.
    assert_eq!(finish(&run.context, 0, 9.0).unwrap(), outcome);

    run.write("world/pairs.json", "[]");
    run.todo("world");
    assert!(!run.has("world/world.json"), "stale outputs go before the work begins");
    run.carry_out("world");
    run.finish("world");
    assert!(run.is_done("world"));
    run.resubmit(&["train.beta=0.5"]);
    assert!(run.is_done("world"), "settings of other stages do not matter");
    run.resubmit(&["run.seed=2"]);
    assert!(!run.is_done("world"));
}

#[test]
fn a_stage_is_done_again_when_an_input_changes() {
    let run = TestRun::new(QUICKSTART, &[]);
    run.deployed_and_labelled(12);
    let tasks = run.todo("gold-trace");
    let gold = run.json("trace/gold.json");
    assert_eq!(tasks[0].outputs, [PathBuf::from("trace/gold_gradient.safetensors")]);
    let args = tasks[0].args.join(" ").replace(&run.context.run_dir.display().to_string(), "RUN");
    assert_eq!(
        args,
        "--model-name-or-path RUN/base --method trace --gold RUN/trace/gold.json --gold-gradient \
         RUN/trace/gold_gradient.safetensors --seed 1 --beta 0.125 --max-length 128 --lora-r 16 --lora-alpha 16 \
         --lora-dropout 0 --lora-target-modules q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj --pack-tokens \
         8192 --pa-batch-size 64 --gold-only"
    );
    let origin = |index: usize| gold[index]["origin"]["record"].as_u64().unwrap();
    assert!((0..gold.as_array().unwrap().len()).all(|index| origin(index) != 4), "{gold}");
    run.write("trace/gold_gradient.safetensors", "gradient");
    run.finish("gold-trace");
    assert!(run.is_done("gold-trace"));
    run.write("base/responses_test.json", "not of the model");
    assert!(run.is_done("gold-trace"));
    run.write("base/model.safetensors", "other weights");
    assert!(!run.is_done("gold-trace"));
    assert!(!run.has("trace/gold_gradient.safetensors"));
}

#[test]
fn scores_of_shards_become_weights_once() {
    let run = TestRun::new(QUICKSTART, &["score.shard_records=3"]);
    run.deployed_and_labelled(12);
    run.write("trace/gold.json", "[]");
    run.write("trace/gold_gradient.safetensors", "gradient");
    let tasks = run.todo("score-trace");
    // 12 records: 4 RETAIN of which one has no text; 8 of the conflict.
    assert_eq!(tasks.len(), 3);
    assert!(tasks[0].args.contains(&"--raw-only".to_owned()), "{:?}", tasks[0].args);
    let mut raw = 0.0;
    for (number, task) in tasks.iter().enumerate() {
        let records: Vec<Value> = shared::input::read_all(&records_of(&run, task)).unwrap();
        assert_eq!(records.len(), [3, 2, 3][number], "records of equal cost");
        let scores: Vec<Value> = records
            .into_iter()
            .map(|mut record| {
                record["raw_score"] = json!(raw);
                raw += 1.0;
                record
            })
            .collect();
        write_json(&run.context.run_dir.join(&task.outputs[0]), &scores).unwrap();
        let left = run.todo("score-trace").len();
        assert_eq!(left, 2 - number, "what is there is not done again");
    }
    assert_eq!(run.finish("score-trace").warning, None);
    let scored = run.json("trace/weighted_dataset.json");
    let scored = scored.as_array().unwrap();
    assert_eq!(scored.len(), 11);
    assert_eq!((&scored[0]["raw_score"], &scored[0]["impact_score"]), (&json!(0.0), &json!(0.0)));
    assert_eq!((&scored[10]["raw_score"], &scored[10]["impact_score"]), (&json!(7.0), &json!(2.0)), "mean 1 of 8");
    assert_eq!(
        scored[1],
        json!({"prompt": "p1", "chosen": "c", "rejected": "r", "category": "RETAIN", "raw_score": 0.0,
                                 "impact_score": 0.0, "domain": "law", "score_method": "trace"})
    );
    assert_eq!(run.json("trace/weighted_dataset_quarantine.json")[0]["index"], 4);
    assert!(run.is_done("score-trace"));
}

/// Returns the file of records of a shard's task.
fn records_of(run: &TestRun, task: &Task) -> PathBuf {
    run.context.run_dir.join(task.outputs[0].to_str().unwrap().replace("scores-", "records-"))
}

#[test]
fn a_shard_of_other_records_is_not_joined() {
    let run = TestRun::new(QUICKSTART, &[]);
    run.deployed_and_labelled(3);
    run.write("trace/gold.json", "[]");
    run.write("trace/gold_gradient.safetensors", "gradient");
    // As a version that cut by numbers named it.
    run.write("stages/score-trace/scores-0000.json", "[]");
    let tasks = run.todo("score-trace");
    let scores = tasks[0].outputs[0].to_str().unwrap();
    let failed = || finish(&run.context, run.index("score-trace"), 0.0).unwrap_err().to_string();
    let error = failed();
    assert!(
        error.contains(scores) && error.contains("is missing") && error.contains("submit the run again"),
        "{error}"
    );
    let other = json!({"prompt": "x", "chosen": "c", "rejected": "r", "raw_score": 1.0});
    run.write(scores, &json!([other, other]).to_string());
    let error = failed();
    assert!(error.contains(&format!("{scores}: record 0: is another record")), "{error}");
    run.write(scores, &json!([other]).to_string());
    let error = failed();
    assert!(error.contains("holds 1 scores for 2 records"), "{error}");
}

#[test]
fn what_is_wanting_in_scores_and_gold_batch_is_told() {
    let run = TestRun::new(QUICKSTART, &[]);
    run.deployed_and_labelled(12);
    run.todo("gold-trace");
    run.write("trace/gold_gradient.safetensors", "gradient");
    let warning = run.finish("gold-trace").warning.unwrap();
    assert!(
        warning.starts_with("the gold batch has 11 of the 192 pairs asked for (4 INVERT, 4 PUNISH, 3 RETAIN)"),
        "{warning}"
    );
    let warning = run.score(|record| if record["category"] == "INVERT" { 1.0 } else { -1.0 }).warning.unwrap();
    assert!(warning.starts_with("no PUNISH record gets a weight"), "{warning}");
    assert!(warning.contains("(clamped: INVERT 0 of 4, PUNISH 4 of 4)"), "{warning}");
}

#[test]
fn how_records_were_scored_is_told_afterwards() {
    let run = TestRun::new(QUICKSTART, &[]);
    let run_dir = &run.context.run_dir;
    run.deployed_and_labelled(12);
    run.todo("gold-trace");
    run.write("trace/gold_gradient.safetensors", "gradient");
    run.finish("gold-trace");
    assert_eq!(scored::variants(run_dir), [""; 0]);
    let says = |variant: &str| scored::of(run_dir, variant).unwrap_err().to_string();
    assert!(says("trace").contains("variant trace has no scores: it is scored later"), "{}", says("trace"));
    run.todo("score-trace");
    assert!(says("trace").contains("is being scored"), "{}", says("trace"));
    run.score(|_| 1.0);

    assert_eq!(scored::variants(run_dir), ["trace"]);
    assert!(says("trac").contains("(scored are: trace)"), "{}", says("trac"));
    let told = scored::of(run_dir, "trace").unwrap();
    assert_eq!((told.method.name(), &told.model), ("trace", &run_dir.join("base")));
    assert_eq!(
        (&told.records, &told.weighted),
        (&run_dir.join("triage/corrected.json"), &run_dir.join("trace/weighted_dataset.json"))
    );
    let args = told.explain_args(7).join(" ").replace(&run_dir.display().to_string(), "RUN");
    assert!(
        args.starts_with("--model-name-or-path RUN/base --method trace --gold RUN/trace/gold.json --seed 1 "),
        "{args}"
    );
    assert!(args.ends_with(" --dataset-json-path RUN/triage/corrected.json --explain 7 --json"), "{args}");
    assert!(!args.contains("--raw-only"), "{args}");

    told.check_inputs().unwrap();
    run.write("base/model.safetensors", "other weights");
    let error = told.check_inputs().unwrap_err().to_string();
    assert!(error.contains("base/model.safetensors") && error.contains("submit the run again"), "{error}");
    std::fs::remove_dir_all(run_dir.join("base")).unwrap();
    let error = told.check_inputs().unwrap_err().to_string();
    assert!(error.contains("base: is missing; the scores of trace were made with this model"), "{error}");
    run.write("trace/weighted_dataset.json", "[]");
    assert!(says("trace").contains("trace/weighted_dataset.json: is not there any more"), "{}", says("trace"));
}

#[test]
fn an_interrupted_training_stays_and_a_stale_one_goes() {
    let mut run = TestRun::new(QUICKSTART, &[]);
    run.deployed_and_labelled(3);
    run.write("trace/weighted_dataset.json", "[]");
    let tasks = run.todo("train-trace");
    assert_eq!((tasks[0].kind, tasks[0].world_size), (Kind::Train, 2));
    let args = tasks[0].args.join(" ").replace(&run.context.run_dir.display().to_string(), "RUN");
    assert!(
        args.starts_with(
            "--model-name-or-path RUN/base --dataset-json-path RUN/trace/weighted_dataset.json --output-dir RUN \
             --run-name trace --method trace --seed 1 --loss ipo"
        ),
        "{args}"
    );
    run.write("trace/checkpoint-50/state.json", "{}");
    run.todo("train-trace");
    assert!(run.has("trace/checkpoint-50/state.json"), "the same settings go on");
    run.resubmit(&[]);
    run.todo("train-trace");
    assert!(run.has("trace/checkpoint-50/state.json"), "in another submission too");

    run.resubmit(&["train.learning_rate=0.5"]);
    run.todo("train-trace");
    assert!(!run.has("trace/checkpoint-50"), "other settings start anew");
    assert!(run.has("trace/weighted_dataset.json"), "what other stages made stays");
    run.trained("trace");
    run.finish("train-trace");
    assert!(run.is_done("train-trace"));
    std::fs::remove_file(run.context.run_dir.join("trace/adapter_model.safetensors")).unwrap();
    run.todo("train-trace");
    assert!(!run.has("trace/train_summary.json"), "a damaged result is made anew");
}

#[test]
fn a_training_without_its_output_is_no_success() {
    let run = TestRun::new(QUICKSTART, &[]);
    run.deployed_and_labelled(3);
    run.write("trace/weighted_dataset.json", "[]");
    run.todo("train-trace");
    let error = finish(&run.context, run.index("train-trace"), 1.0).unwrap_err().to_string();
    assert!(error.contains("stage train-trace ended without its output"), "{error}");
}

#[test]
fn base_steps_follow_each_other() {
    let run = TestRun::new(QUICKSTART, &[]);
    let args = |step: usize| {
        args::base(&run.context, step).join(" ").replace(&run.context.run_dir.display().to_string(), "RUN")
    };
    assert!(args(0).starts_with(
        "--model-name-or-path RUN/world/model --dataset-json-path RUN/world/skill_sft.json --output-dir RUN/pretrain \
         --run-name skill --method sft"
    ));
    assert!(args(0).contains("--full --from-scratch"), "{}", args(0));
    assert!(args(2).starts_with(
        "--model-name-or-path RUN/pretrain/sft --dataset-json-path RUN/world/old_pairs_dpo.json --output-dir RUN \
         --run-name base --method dpo"
    ));
}

#[test]
fn responses_of_shards_are_joined_in_order() {
    let run = TestRun::new(QUICKSTART, &["eval.shard_prompts=2"]);
    run.deployed_and_labelled(3);
    run.trained("trace");
    let prompts = json!([{"prompt": "a", "category": "INVERT"}, {"prompt": ""}, {"prompt": "b"}, {"prompt": "c"}]);
    run.write("world/prompts_test.json", &prompts.to_string());
    let tasks = run.todo("generate-trace");
    assert_eq!(tasks.len(), 2);
    let args = tasks[1].args.join(" ").replace(&run.context.run_dir.display().to_string(), "RUN");
    assert_eq!(
        args,
        "--model-name-or-path RUN/base --adapter RUN/trace --seed 1 --max-new-tokens 48 --batch-size 128 --prompts \
         RUN/stages/generate-trace/prompts-0001.json --out RUN/stages/generate-trace/responses-0001.json --item-offset 2"
    );
    for task in &tasks {
        let prompts = task.outputs[0].to_str().unwrap().replace("responses", "prompts");
        let mut items = run.json(&prompts);
        items.as_array_mut().unwrap().iter_mut().for_each(|item| item["model_response"] = json!("r"));
        let shard = json!({"metadata": {"model_path": "m", "adapter": null, "test_json": "x", "sample_size": 2, "seed": 1,
                                        "bin_counts": {}}, "results": items});
        run.write(task.outputs[0].to_str().unwrap(), &shard.to_string());
    }
    run.finish("generate-trace");
    let joined = run.json("trace/responses_test.json");
    let order: Vec<&str> =
        joined["results"].as_array().unwrap().iter().map(|r| r["prompt"].as_str().unwrap()).collect();
    assert_eq!(order, ["a", "b", "c"]);
    assert_eq!(joined["metadata"]["sample_size"], 3);
    assert_eq!(joined["metadata"]["bin_counts"], json!({"INVERT": 1}));
    assert!(joined["metadata"]["test_json"].as_str().unwrap().ends_with("world/prompts_test.json"));
    assert_eq!(run.json("trace/responses_test_quarantine.json")[0]["index"], 1);
}

#[test]
fn a_missing_input_is_named() {
    let run = TestRun::new(QUICKSTART, &[]);
    let error = begin(&run.context, run.index("triage")).unwrap_err().to_string();
    assert!(error.contains("world/pairs.json"), "{error}");
    run.write("base/README.md", "");
    let error = begin(&run.context, run.index("gold-trace")).unwrap_err().to_string();
    assert!(error.contains("base: holds no model"), "{error}");
}

#[test]
fn the_summary_tells_which_stages_were_done_before() {
    let mut run = TestRun::new(QUICKSTART, &[]);
    run.todo("world");
    run.carry_out("world");
    run.finish("world");
    run.resubmit(&[]);
    run.deployed_and_labelled(3);
    run.todo("gold-trace");
    run.write("trace/gold_gradient.safetensors", "g");
    run.finish("gold-trace");
    summary::write(&run.context).unwrap();
    assert_eq!(
        run.json("run.json"),
        json!({"run": "quickstart", "seed": 1, "variants": ["base", "trace", "oracle-punish"],
               "scored": ["trace", "oracle-punish"], "stages": [
            {"name": "world", "seconds": 2.5, "cost_usd": 0.0, "skipped": true},
            {"name": "gold-trace", "seconds": 2.5, "cost_usd": 0.0, "skipped": false},
        ]})
    );
    assert!(run.dir.path().exists());
}
