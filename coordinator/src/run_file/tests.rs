use super::*;

const QUICKSTART: &str = include_str!("../../../deploy/examples/quickstart.toml");

fn read(text: &str) -> Result<RunFile, Vec<String>> {
    parse(text, "run.toml", Path::new("/nowhere"), &[])
}

fn problems(text: &str) -> Vec<String> {
    read(text).unwrap_err()
}

/// A small file that is right, with lines put in after its tables' heads.
fn small(run: &str, oracle: &str, train: &str, rest: &str) -> String {
    format!(
        "[run]\nname = \"small\"\n{run}\n[data]\nworld = \"policy-shift\"\n[oracle]\nmock = true\n{oracle}\n[train]\n\
         {train}\n[[variant]]\nname = \"trace\"\n{rest}"
    )
}

#[test]
fn every_key_of_the_judgement_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let canary = dir.path().join("canary.json");
    std::fs::write(&canary, "[]").unwrap();
    let keys = format!(
        "votes = 3\nswap_wording = true\nlogprobs = true\nmin_confidence = 0.9\none_call_per_pair = true\n\
         correction_tries = 5\ncanary = {:?}\ncanary_stop = true\ncanary_tolerance_pct = 2.5\nrelabel = true",
        canary.display().to_string()
    );
    let read_keys = read(&small("", &keys, "", "")).unwrap().oracle.judging;
    let expected = judging::Judging {
        votes: 3,
        swap_wording: true,
        logprobs: true,
        min_confidence: 0.9,
        one_call_per_pair: true,
        correction_tries: 5,
        canary: Some(canary),
        canary_stop: true,
        canary_tolerance_pct: 2.5,
        relabel: true,
    };
    assert_eq!(read_keys, expected);
    assert_eq!(read(&small("", "", "", "")).unwrap().oracle.judging, judging::Judging::default());
}

#[test]
fn the_quickstart_is_read() {
    let file = read(QUICKSTART).unwrap();
    assert_eq!((file.run.name.as_str(), file.run.seed, file.world_size()), ("quickstart", 1, 2));
    assert_eq!(file.base.len(), 3);
    assert_eq!(file.deployed(), Located::Run("base".into()));
    assert_eq!(file.oracle.model, "mock-oracle");
    assert_eq!(file.oracle.base_url, None);
    let trace = &file.variants[1];
    assert_eq!(trace.method, Some(Method::Trace));
    assert_eq!(trace.score.gold_batch_size, 192);
    let args = trace.train.options.args(keys::TRAIN, Path::new("/run")).join(" ");
    assert_eq!(
        args,
        "--seed 1 --loss ipo --batch-size 16 --gradient-accumulation-steps 1 --learning-rate 0.001 --num-train-epochs 3 \
         --beta 0.125 --alpha-kl 30 --max-length 128 --lora-r 16 --lora-alpha 16 --lora-dropout 0 --lora-target-modules \
         q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj --save-steps 50 --pack-tokens 8192"
    );
    let corrected = &file.variants[2];
    assert_eq!(corrected.method, Some(Method::OraclePunish));
    assert_eq!(corrected.train.options.args(keys::TRAIN, Path::new("/run")).join(" "), args);
    let corpus = file.base[1].options.args(keys::TRAIN, Path::new("/run")).join(" ");
    assert!(
        corpus.contains("--max-steps 3500 --warmup-steps 80 --hold-until-loss 0.21 --decay-steps 1000 "),
        "{corpus}"
    );
    let base = file.base[2].options.args(keys::TRAIN, Path::new("/run")).join(" ");
    assert_eq!(
        base,
        "--seed 1 --nll-weight 1 --batch-size 32 --gradient-accumulation-steps 1 --learning-rate 0.0001 --beta 2 \
         --max-length 128 --full --replay-json-path /run/world/skill_sft.json --replay-batch-size 16 --replay-weight 1 \
         --weight-decay 0.01 --adam-beta2 0.98 --pack-tokens 8192"
    );
}

#[test]
fn all_problems_are_told_at_once_with_their_lines() {
    let text = "\
[run]
nam = \"x\"
seed = -1

[data]
world = \"policy-shift\"
input = \"pairs.json\"

[train]
learning_rat = 1e-3
beta = 0
lora_r = 1.5
loss = \"dpoo\"

[[variant]]
name = \"trac\"

[[variant]]
name = \"trace\"
train.alpha_kl = \"much\"
eval = 3
";
    assert_eq!(
        problems(text),
        [
            "run.toml:1: run.name: is missing: the name of the run and of its folder",
            "run.toml:1: oracle.policy: is missing: a file with the policy's text (or set mock)",
            "run.toml:2: run.nam: unknown key; did you mean name?",
            "run.toml:3: run.seed: is -1; expected a whole number from 0",
            "run.toml:7: data.input: contradicts data.world; keep one of the two",
            "run.toml:10: train.learning_rat: unknown key; did you mean learning_rate?",
            "run.toml:11: train.beta: is 0; expected a number above 0",
            "run.toml:12: train.lora_r: expected a whole number, found a number",
            "run.toml:13: train.loss: is \"dpoo\"; did you mean \"dpo\"? known: dpo, ipo, cdpo, rdpo",
            "run.toml:16: variant.trac.name: \"trac\" is no method; did you mean \"trace\"? Else name one by method = …",
            "run.toml:20: variant.trace.train.alpha_kl: expected a number, found a string",
            "run.toml:21: variant.trace.eval: expected a table, found a whole number",
        ]
    );
}

#[test]
fn a_problem_keeps_no_other_back() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("policy.txt"), " \n").unwrap();
    let text = "\
[run]
name = \"a b\"
seed = -1
[data]
world = \"policy-shft\"
split = \"stratifid\"
train1_size = 0
num_samples = 3
[oracle]
mock = 3
policy = \"policy.txt\"
base_url = \"api.openai.com\"
concurrency = 5000
max_unlabelled_pct = 101
ckpt_every = -1
[base]
lora_r = 4
[[base.step]]
name = \"a\"
method = \"sftt\"
data = \"run:data/pairs.json\"
[[base.step]]
name = \"a\"
method = \"sft\"
[score]
gold = \"run:../x\"
lamda = 0
[train]
max_steps = 5
warmup_steps = 5
replay_weight = 1
[eval]
prompts = \"run:nowhere/x.json\"
sample_size = 0
[[variant]]
name = \"trac\"
train.full = true
train.lora_r = 8
[[variant]]
name = \"rdpo\"
score.gold_seed = -1
eval.merge = 1
[[variant]]
name = \"rdpo\"
[[variant]]
method = \"dpoo\"
train.from_scratch = true
";
    let found = parse(text, "run.toml", dir.path(), &[]).unwrap_err();
    let expected = [
        "2: run.name: is \"a b\"; expected letters",
        "3: run.seed: is -1",
        "5: data.world: is \"policy-shft\"; did you mean \"policy-shift\"?",
        "6: data.split: is \"stratifid\"; did you mean \"stratified\"?",
        "7: data.train1_size: is 0",
        "8: data.num_samples: has no effect on a world",
        "10: oracle.mock: expected true or a rule file",
        "11: oracle.policy: ",
        "12: oracle.base_url: is \"api.openai.com\"",
        "13: oracle.concurrency: is 5000",
        "14: oracle.max_unlabelled_pct: is 101",
        "15: oracle.ckpt_every: is -1",
        "17: base.lora_r: has no place in a base step",
        "20: base.step.a.method: is \"sftt\"; did you mean \"sft\"?",
        "21: base.step.a.data: run:data/pairs.json: is made only with data.input",
        "22: base.step.a.data: is missing",
        "23: base.step.a.name: there is another step \"a\"",
        "26: score.gold: is \"run:../x\"; expected a path in the run's folder",
        "27: score.lamda: is 0",
        "30: train.warmup_steps: is 5, the run has 5 updates",
        "31: train.replay_weight: has no effect without",
        "33: eval.prompts: run:nowhere/x.json: no stage makes it",
        "34: eval.sample_size: is 0",
        "36: variant.trac.name: \"trac\" is no method",
        "38: variant.trac.train.lora_r: contradicts variant.trac.train.full = true",
        "39: variant.rdpo.train.loss: the loss rdpo with label_smoothing 0",
        "41: variant.rdpo.score.gold_seed: is -1",
        "42: variant.rdpo.eval.merge: expected true or false",
        "43: variant.rdpo.train.loss: the loss rdpo with label_smoothing 0",
        "44: variant.rdpo.name: there is another variant \"rdpo\"",
        "45: variant.name: is missing",
        "46: variant.method: is \"dpoo\"; did you mean \"dpo\"?",
        "47: variant.train.from_scratch: has no place in a variant",
    ];
    for (found, says) in found.iter().zip(expected) {
        assert!(found.starts_with(&format!("run.toml:{says}")), "{found}\nis not\n{says}");
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    assert!(found[7].ends_with("policy.txt is empty"), "{}", found[7]);
}

#[test]
fn what_variants_share_is_checked_without_any() {
    let found = problems(
        "[run]\nname = \"x\"\n[data]\nworld = \"policy-shift\"\n[oracle]\nmock = true\n[train]\nfull = true\nlora_r = 4\n",
    );
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[1].starts_with("run.toml:9: train.lora_r: contradicts train.full = true"), "{found:#?}");
}

#[test]
fn a_filter_that_acts_is_in_the_name_of_the_weights() {
    let name = |train: &str, method: &str| {
        let file = read(&small("", "", train, &format!("[[variant]]\nname = \"{method}\"\n"))).unwrap();
        let variant = &file.variants[1];
        variant.scored_as(variant.method.unwrap())
    };
    assert_eq!(name("", "no-kl"), "trace");
    assert_eq!(name("quality_filter = \"report\"", "no-kl"), "trace");
    assert_eq!(name("quality_filter = \"on\"", "no-kl"), "trace+quality-3");
    assert_eq!(name("quality_filter = \"on\"\nquality_min_words = 8", "oracle-punish"), "oracle-punish+quality-8");
    assert_eq!(name("quality_filter = \"on\"", "u2a"), "u2a", "it promotes nothing");
}

#[test]
fn memory_of_a_training_is_a_matter_of_the_run_file_too() {
    let saving = "full = true\nrecompute = true\nshard_parameters = true";
    let file = read(&small("", "", saving, "")).unwrap();
    let args = file.variants[0].train.options.args(keys::TRAIN, Path::new("/run")).join(" ");
    assert!(args.contains("--full --recompute --shard-parameters"), "{args}");
}

#[test]
fn syntax_errors_have_lines_too() {
    let found = problems("[run]\nname = \"x\nseed = 1\n[data\n");
    assert!(found[0].starts_with("run.toml:2: ") && found.len() > 1, "{found:?}");
}

#[test]
fn contradictions_name_the_key_that_was_written() {
    let cases = [
        (small("", "", "label_smoothing = 0.1", ""), "run.toml:10: train.label_smoothing: has an effect with"),
        (small("", "", "", "train.loss = \"rdpo\""), "run.toml:13: variant.trace.train.loss: the loss rdpo with"),
        (small("", "", "full = true\nlora_r = 8", ""), "run.toml:11: train.lora_r: contradicts train.full = true"),
        (
            small("", "", "shard_parameters = true", ""),
            "run.toml:10: train.shard_parameters: has an effect with full = true only",
        ),
        (small("", "", "max_steps = 5\nwarmup_steps = 5", ""), "run.toml:11: train.warmup_steps: is 5, the run has 5"),
        (small("", "", "replay_weight = 1", ""), "run.toml:10: train.replay_weight: has no effect without"),
        (small("", "", "decay_steps = 5", ""), "run.toml:10: train.decay_steps: has no effect without hold_until_loss"),
        (small("", "", "part = \"train2\"", ""), "run.toml:10: train.part: has no effect without data.split"),
        (small("", "", "from_scratch = true", ""), "run.toml:10: train.from_scratch: has no place in a variant"),
        (
            small("", "", "", "[[variant]]\nname = \"trace\""),
            "run.toml:14: variant.trace.name: there is another variant",
        ),
        (
            small("", "", "", "train.u2a_top = 8"),
            "run.toml:13: variant.trace.train.u2a_top: has an effect with method u2a",
        ),
        (
            small("", "", "full = true", "[[variant]]\nname = \"u2a\"\ntrain.u2a_rounds = 3"),
            "run.toml:15: variant.u2a.train.u2a_rounds: contradicts full",
        ),
        (
            small("", "", "", "[[variant]]\nname = \"u2a\"\ntrain.u2a_eta = 0.1"),
            "run.toml:15: variant.u2a.train.u2a_eta: has no effect without u2a_rounds",
        ),
        (
            small("", "", "", "score.cg_rank = 4"),
            "run.toml:13: variant.trace.score.cg_rank: has an effect with curvature",
        ),
        (
            small("", "", "", "score.score_seeds = 2\nscore.score_space = \"full\""),
            "run.toml:13: variant.trace.score.score_seeds: averages over adapters",
        ),
        (
            small("", "", "rescore_every = 5", "score.curvature = \"cg\""),
            "run.toml:10: train.rescore_every: contradicts variant.trace.score.curvature",
        ),
        (
            small("", "", "rescore_every = 5", "[[variant]]\nname = \"dpo\""),
            "run.toml:10: train.rescore_every: is for trace, no-kl",
        ),
        (
            small("", "", "load_best = true", ""),
            "run.toml:10: train.load_best: has no effect without validation_json_path",
        ),
        (
            small("", "", "", "method = \"dpo\""),
            "run.toml:13: variant.trace.method: is \"dpo\", but the variant has the name",
        ),
        (
            small("", "", "", "[[variant]]\nname = \"base\"\ntrain.beta = 1"),
            "run.toml:15: variant.base.train: has no effect",
        ),
        (
            small("", "", "", "[[variant]]\nname = \"stages\"\nmethod = \"dpo\""),
            "run.toml:14: variant.stages.name: \"stages\" is",
        ),
        (
            small("", "", "", "eval.prompts = \"run:splits/trace/test.json\""),
            "run.toml:13: variant.trace.eval.prompts: run:splits",
        ),
        (small("", "mode = \"later\"", "", ""), "run.toml:8: oracle.mode: is \"later\""),
        (small("", "deadline_h = 0", "", ""), "run.toml:8: oracle.deadline_h: is 0; expected hours above 0"),
        (
            small("", "max_unlabelled_pct = 101", "", ""),
            "run.toml:8: oracle.max_unlabelled_pct: is 101; expected a share",
        ),
        (small("", "votes = 2", "", ""), "run.toml:8: oracle.votes: is 2; expected an odd number"),
        (
            small("", "min_confidence = 1.5", "", ""),
            "run.toml:8: oracle.min_confidence: is 1.5; expected a probability",
        ),
        (
            small("", "canary_stop = true", "", ""),
            "run.toml:8: oracle.canary_stop: has no effect without oracle.canary",
        ),
        (
            small("", "one_call_per_pair = true\nboth = false", "", ""),
            "run.toml:8: oracle.one_call_per_pair: contradicts both = false",
        ),
        (
            small("", "base_url = \"api.openai.com\"", "", ""),
            "run.toml:8: oracle.base_url: is \"api.openai.com\"; expected",
        ),
        (small("", "policy = \"p.txt\"", "", ""), "run.toml:8: oracle.policy: there is no file /nowhere/p.txt"),
        (small("", "", "", "[base]\nbeta = 1"), "base.step: is missing: settings of base steps without"),
        (
            small(
                "",
                "",
                "",
                "[[base.step]]\nname = \"a\"\nmethod = \"sft\"\ndata = \"run:world/skill_sft.json\"\nlora_r = 4",
            ),
            "run.toml:17: base.step.a.lora_r: has no place in a base step",
        ),
    ];
    for (text, says) in cases {
        let found = problems(&text);
        assert!(found.len() == 1 && found[0].contains(says), "{says}\n{found:#?}\n{text}");
    }
    let found = problems("[run]\nname = \"x\"\n[data]\ninput = \"a.json\"\ntrain1_size = 5\n[oracle]\nmock = true\n");
    assert_eq!(
        found,
        [
            "run.toml:1: model.path: is missing: a model folder in Hugging Face layout",
            "run.toml:1: eval.prompts: is missing: the prompts to evaluate on (with data.split: its test part)",
            "run.toml:1: [[variant]]: is missing; a run compares variants: name = \"base\", name = \"trace\", …",
            "run.toml:4: data.input: there is no file /nowhere/a.json",
            "run.toml:5: data.train1_size: has no effect without data.split = \"stratified\" or \"uniform\"",
            "run.toml:7: oracle.mock: is true without data.world; name a rule file to answer by",
        ]
    );
}

#[test]
fn overrides_take_toml_values_and_plain_words() {
    let set = |set: &[&str]| {
        let set: Vec<String> = set.iter().map(|text| (*text).to_owned()).collect();
        parse(QUICKSTART, "q.toml", Path::new("/nowhere"), &set)
    };
    let file = set(&[
        "run.seed=7",
        "train.beta = 0.5",
        "variant.trace.train.beta=0.25",
        "base.step.sft.max_steps=10",
        "base.step.sft.warmup_steps=1",
        "model.dtype=bf16",
        "eval.merge=true",
        "score.weight_norm='reference'",
        "train.lora_target_modules=[\"q_proj\"]",
    ])
    .unwrap();
    assert_eq!(file.run.seed, 7);
    let beta = |index: usize| file.variants[index].train.options.number("beta");
    assert_eq!((beta(1), beta(2)), (Some(0.25), Some(0.5)));
    assert_eq!(file.base[1].options.text("max_steps"), Some("10"));
    assert_eq!(file.model.options.text("dtype"), Some("bf16"));
    assert_eq!(file.variants[1].score.weight_norm, WeightNorm::Reference);
    assert_eq!(file.variants[2].train.options.text("lora_target_modules"), Some("q_proj"));
    assert!(file.variants[1].is_merged() && !file.variants[0].is_merged());

    let found = set(&[
        "train.bet=1",
        "train.beta=-1",
        "train",
        "run.seed.x=1",
        "variant.tracy.train.beta=1",
        "eval={batch_size=0}",
        "score.pa_batch_size=[1",
    ])
    .unwrap_err();
    assert_eq!(
        found[..6],
        [
            "--set train.bet=1: unknown key; did you mean beta?",
            "--set train.beta=-1: is -1; expected a number above 0",
            "--set train: expected KEY=VALUE",
            "--set run.seed.x=1: run.seed is a whole number, not a table",
            "--set variant.tracy.train.beta=1: no [[variant]] is named \"tracy\"; there are: base, trace, oracle-punish",
            "--set eval={batch_size=0}: eval.batch_size: is 0; expected a whole number from 1",
        ]
    );
    assert!(found[6].starts_with("--set score.pa_batch_size=[1: the value is no TOML"), "{found:?}");
}

#[test]
fn paths_on_the_command_line_start_where_it_is_given() {
    let cases = [
        ("model.path=m", "model.path=/here/m"),
        ("model.path=\"m\"", "model.path=/here/m"),
        ("data.input=/a/b.json", "data.input=/a/b.json"),
        ("data.input=[\"b.json\", '/c.json']", "data.input=[\"/here/b.json\", \"/c.json\"]"),
        ("run.name=x", "run.name=x"),
        ("eval.prompts=run:world/p.json", "eval.prompts=run:world/p.json"),
        ("oracle.mock=true", "oracle.mock=true"),
        ("model.path=[1", "model.path=[1"),
    ];
    for (given, expected) in cases {
        assert_eq!(set_from(Path::new("/here"), &[given.to_owned()]), [expected]);
    }
}

#[test]
fn files_of_the_user_are_looked_for_from_the_files_folder() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("model")).unwrap();
    for file in ["model/config.json", "model/model.safetensors", "pairs.jsonl", "rules.toml"] {
        std::fs::write(dir.path().join(file), "{}").unwrap();
    }
    let text = "[run]\nname = \"own\"\n[model]\npath = \"model\"\n[data]\ninput = \"pairs.jsonl\"\nnum_samples = 3\n\
                [oracle]\nmock = \"rules.toml\"\n[eval]\nprompts = \"run:data/pairs.json\"\n[[variant]]\nname = \"dpo\"\n";
    let file = parse(text, "own.toml", dir.path(), &[]).unwrap();
    assert_eq!(file.model.path, Located::Outside(dir.path().join("model")));
    assert_eq!(file.oracle.mock, Some(Mock::Rules(dir.path().join("rules.toml"))));
    let again: RunFile = serde_json::from_str(&serde_json::to_string(&file).unwrap()).unwrap();
    assert_eq!(again, file);
    std::fs::remove_file(dir.path().join("model/model.safetensors")).unwrap();
    let found = parse(text, "own.toml", dir.path(), &[]).unwrap_err();
    assert!(found[0].starts_with("own.toml:4: model.path: ") && found[0].contains("holds no weights"), "{found:?}");
    std::fs::remove_file(dir.path().join("model/config.json")).unwrap();
    let found = parse(text, "own.toml", dir.path(), &[]).unwrap_err();
    assert!(
        found[0].starts_with("own.toml:4: model.path: ") && found[0].contains("no folder with config.json"),
        "{found:?}"
    );
}

#[test]
fn the_examples_lack_nothing_but_the_users_own_files() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
    for (name, missing) in [("quickstart.toml", 0), ("real-model.toml", 2), ("production.toml", 2)] {
        let text = std::fs::read_to_string(folder.join(name)).unwrap();
        let found = parse(&text, name, &folder, &[]).err().unwrap_or_default();
        assert_eq!(found.len(), missing, "{found:#?}");
        assert!(found.iter().all(|problem| problem.contains("there is no file") || problem.contains("is no folder")));
    }
}

#[test]
fn a_gang_waits_for_all_its_workers_unless_the_file_says_how_few_will_do() {
    let of = |run: &str| read(&small(run, "", "", "")).map(|file| (file.world_size(), file.min_workers()));
    assert_eq!(of("world_size = 4"), Ok((4, None)));
    assert_eq!(of("world_size = 4\nexact_world = true"), Ok((4, None)));
    assert_eq!(of("world_size = 4\nmin_workers = 2"), Ok((4, Some(2))));
    assert_eq!(of("world_size = 4\nmin_workers = 1\nexact_world = false"), Ok((4, Some(1))));
    assert_eq!(of("world_size = 4\nmin_workers = 4"), Ok((4, None)), "no fewer than all");
    for (run, problem) in [
        ("world_size = 2\nmin_workers = 3", "run.toml:4: run.min_workers: is 3, but run.world_size is 2"),
        ("min_workers = 1", "run.toml:3: run.min_workers: has no effect without run.world_size"),
        ("world_size = 2\nmin_workers = 0", "run.toml:4: run.min_workers: is 0"),
        ("world_size = 2\nmin_workers = 1\nexact_world = true", "run.toml:4: run.min_workers: contradicts"),
        ("world_size = 2\nexact_world = false", "run.toml:4: run.exact_world: is false; say with how few"),
    ] {
        let problems = of(run).unwrap_err();
        assert!(problems.len() == 1 && problems[0].starts_with(problem), "{problems:?}");
    }
}
