//! Where results go: never over an input, never over a gold batch that was given, quietly when nobody reads the table.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Stdio};

use cluster_tests::{Folder, golden, golden_values, worker};
use serde_json::json;

const SCORE: &str = "score --model-name-or-path {tied} --dataset-json-path records.json --lora-r 2 --gold-batch-size 6";

#[test]
fn an_output_is_never_one_of_the_inputs() {
    let folder = Folder::new();
    std::os::unix::fs::symlink(folder.path("records.json"), folder.path("link.json")).unwrap();
    std::fs::hard_link(folder.path("records.json"), folder.path("hard.json")).unwrap();
    folder.write_json("mine.json", &golden_values()["gold"]);
    for name in ["records.json", "./records.json", "link.json", "hard.json"] {
        folder.refused(&format!("{SCORE} --out {name}"), &["--out", "--dataset-json-path", "choose another output"]);
        let logprobs = format!("logprobs --model-name-or-path {{tied}} --records records.json --out {name}");
        folder.refused(&logprobs, &["--out", "--records"]);
        let generate = format!("generate --model-name-or-path {{tied}} --prompts records.json --out {name}");
        folder.refused(&generate, &["--out", "--prompts"]);
        folder.refused(&format!("{SCORE} --out scored.json --gold-out {name}"), &["--gold-out"]);
    }
    folder.refused(&format!("{SCORE} --gold mine.json --out mine.json"), &["--out", "--gold"]);
    folder.refused(&format!("{SCORE} --out a.json --gold-out ./a.json"), &["--gold-out", "--out"]);
}

/// The run's own copy would go to the very file that was given.
#[test]
fn a_gold_batch_that_was_given_stays_as_it_is() {
    let folder = Folder::new();
    let text = format!("  {}\n", golden_values()["gold"]);
    std::fs::create_dir_all(folder.path("runs/r")).unwrap();
    folder.write("gold.json", &text);
    folder.write("runs/r/gold.json", &text);
    let scored = folder.succeed(&format!("{SCORE} --gold gold.json --out other/scored.json --json"));
    let summary: serde_json::Value = serde_json::from_str(&scored.out).unwrap();
    assert_eq!(summary["gold"], "gold.json", "the one that was used");
    assert!(folder.bytes("gold.json") == text.as_bytes());
    folder.succeed(
        "train --model-name-or-path {tied} --dataset-json-path records.json --output-dir runs --run-name r --lora-r 2 \
         --batch-size 5 --gold runs/r/gold.json",
    );
    assert!(folder.bytes("runs/r/gold.json") == text.as_bytes());
}

/// Found before anything is computed: even the model is not looked for.
#[test]
fn an_output_that_cannot_be_written_is_refused_first() {
    let folder = Folder::new();
    let logprobs = "logprobs --model nowhere --records records.json";
    let generate = "generate --model nowhere --prompts records.json";
    for command in ["score --model nowhere --records records.json", logprobs, generate] {
        for out in [".", "/dev/null"] {
            folder.refused(&format!("{command} --out {out}"), &["--out", out]);
        }
    }
}

#[test]
fn a_benchmark_names_the_type_and_counts_the_pairs_it_left_out() {
    let folder = Folder::new();
    let pair = json!({"prompt": "one", "chosen": "two", "rejected": "three"});
    folder.write_json(
        "pairs.json",
        &json!([{"prompt": "one", "chosen": "two"}, pair, {"prompt": "", "chosen": "x"}, pair]),
    );
    let bench = "bench generate --model {tied} --pairs pairs.json --max-new-tokens 2 --json";
    for (dtype, name) in [("auto", "f32"), ("bf16", "bf16")] {
        let outcome = folder.succeed(&format!("{bench} --dtype {dtype}"));
        let figures: serde_json::Value = serde_json::from_str(&outcome.out).unwrap();
        assert_eq!((&figures["pairs"], &figures["left_out"]), (&json!(2), &json!(2)), "{figures}");
        assert_eq!(figures["dtype"], name);
    }
}

/// The name of a file is the system's bytes; a gold batch is told apart by its content.
#[test]
fn a_gold_batch_may_have_any_name() {
    let folder = Folder::new();
    folder.write_json("mine.json", &golden_values()["gold"]);
    let train = "train --model-name-or-path {tied} --dataset-json-path records.json --output-dir runs --run-name r \
        --lora-r 2 --batch-size 5 --num-train-epochs 2";
    let odd = r#"cp mine.json $'\xff.json'; set -- "$@" --gold $'\xff.json'"#;
    let killed = folder.run_after(odd, &format!("{train} --fault train.step=2"));
    assert_eq!(killed.signal, Some(9), "{killed:#?}");
    folder.succeed(&format!("{train} --gold mine.json"));
}

#[test]
fn without_a_name_responses_are_named_after_prompts_and_model() {
    let folder = Folder::new();
    folder.write_json("asked.json", &json!([{"prompt": "one"}, {"prompt": "two"}]));
    let generate = "generate --model-name-or-path {tied} --prompts asked.json --max-new-tokens 2";
    folder.succeed(generate);
    folder.succeed(&format!("{generate} --adapter {{adapter}} --output-dir other --sample-size 1"));
    let model = golden("tied").file_name().unwrap().to_str().unwrap().to_owned();
    let adapter = golden("adapter").file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(folder.json(&format!("benchmark_TPA/asked_{model}_2.json"))["results"].as_array().unwrap().len(), 2);
    folder.json(&format!("other/asked_{model}_{adapter}_1.json"));
}

/// `worker … | head`: the files are written, the table is cut, nothing panics.
#[test]
fn a_reader_that_stops_is_no_failure_of_ours() {
    let folder = Folder::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut program = Command::new(worker());
    program.args(["logprobs", "--threads", "1", "--records", "records.json", "--out", "out.jsonl"]);
    program.arg("--model-name-or-path").arg(golden("tied"));
    let child = program.current_dir(folder.path("")).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(141), "{err}");
    assert!(!err.contains("panicked"), "{err}");
    assert_eq!(folder.lines("out.jsonl").len(), 10);
}

#[test]
fn a_journal_in_use_names_its_holder() {
    let folder = Folder::new();
    let journal = std::fs::File::create(folder.path("scored.json.journal")).unwrap();
    rustix::fs::flock(&journal, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let holder = format!("in use by process {}", std::process::id());
    folder.refused(&format!("{SCORE} --out scored.json"), &["scored.json.journal", &holder, "choose another output"]);
}

#[test]
fn a_run_folder_in_use_names_its_holder() {
    let folder = Folder::new();
    std::fs::create_dir_all(folder.path("runs/r")).unwrap();
    let run = std::fs::File::create(folder.path("runs/r/run.lock")).unwrap();
    rustix::fs::flock(&run, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let holder = format!("in use by process {}", std::process::id());
    folder.refused(
        "train --model-name-or-path {tied} --dataset-json-path records.json --output-dir runs --run-name r",
        &["runs/r", &holder, "choose another --run-name"],
    );
}
