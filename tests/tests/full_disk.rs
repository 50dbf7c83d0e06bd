//! A disk that fills up, as a limit on the size of files: every command says which file could not be written, keeps
//! the earlier output, leaves no partial one, and the same command completes once there is room.
//!
//! `ulimit -f` counts KiB; with its signal ignored, a write beyond it fails as one on a full disk does.

use cluster_tests::{Folder, Outcome, check_refusal};

fn with_room(folder: &Folder, kib: u32, command: &str) -> Outcome {
    folder.run_after(&format!("trap '' XFSZ; ulimit -f {kib}"), command)
}

#[track_caller]
fn no_partial_file(folder: &Folder) {
    for path in folder.snapshot().keys() {
        assert_ne!(path.extension().and_then(|e| e.to_str()), Some("tmp"), "{} is left", path.display());
    }
}

#[test]
fn record_outputs_keep_the_earlier_file() {
    let folder = Folder::new();
    for (command, out) in [
        (
            "score --model-name-or-path {tied} --dataset-json-path records.json --out out.json --gold-batch-size 6",
            "out.json",
        ),
        ("logprobs --model-name-or-path {tied} --records records.json --out out.jsonl --per-token", "out.jsonl"),
        (
            "generate --model-name-or-path {tied} --prompts records.json --out responses.json --max-new-tokens 8",
            "responses.json",
        ),
    ] {
        folder.write(out, "earlier");
        let outcome = with_room(&folder, 1, command);
        check_refusal(command, &outcome, &[]);
        assert!(outcome.err.contains("File too large"), "{}", outcome.err);
        assert!(folder.bytes(out) == b"earlier", "{out} was touched");
        no_partial_file(&folder);
        folder.succeed(command);
        assert!(folder.bytes(out).len() > 1024);
    }
}

#[test]
fn training_goes_on_to_the_same_bytes_once_there_is_room() {
    let folder = Folder::new();
    let command = |name: &str| {
        format!(
            "train --model-name-or-path {{tied}} --dataset-json-path records.json --output-dir runs --run-name {name} \
             --method dpo --lora-r 8 --batch-size 2 --gradient-accumulation-steps 1 --num-train-epochs 2 --save-steps 3"
        )
    };
    folder.succeed(&command("whole"));
    let outcome = with_room(&folder, 10, &command("full"));
    check_refusal("train", &outcome, &["checkpoint-3", "File too large"]);
    assert!(!folder.path("runs/full/checkpoint-3").exists());
    folder.succeed(&command("full"));
    for file in ["adapter_model.safetensors", "metrics.jsonl"] {
        let (whole, full) = (format!("runs/whole/{file}"), format!("runs/full/{file}"));
        assert!(folder.bytes(&whole) == folder.bytes(&full), "{file}");
    }
}

#[test]
fn merging_keeps_the_earlier_model() {
    let folder = Folder::new();
    let command = "merge --base-model-path {tied} --lora-path {adapter} --output-path merged";
    folder.copy_golden("tied", "merged");
    let before = folder.snapshot();
    let outcome = with_room(&folder, 50, command);
    check_refusal(command, &outcome, &["merged/", "model.safetensors", "untouched"]);
    assert!(folder.snapshot() == before);
    folder.succeed(command);
    assert!(folder.snapshot() != before);
}
