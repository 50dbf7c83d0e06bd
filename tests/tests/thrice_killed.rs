//! A step or pack in which three attempts in a row have died is named with its records, by `worker train`, alone and as a gang,
//! by `worker score`, and by the run of a cluster; with its note removed the command goes on, to the bytes of an undisturbed one.
//!
//! Deterministic because deaths are planned by count and no checkpoint lies before them.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use cluster_tests::Folder;
use cluster_tests::cluster::{Cluster, poll_until};
use cluster_tests::runs::stage;

const TRAIN: &str = "train --model-name-or-path {tied} --dataset-json-path records.json --output-dir runs --method no-impact \
    --batch-size 3 --gradient-accumulation-steps 1 --max-steps 6 --num-train-epochs 9 --lora-r 4 --learning-rate 1e-3";
const SCORE: &str = "score --model-name-or-path {tied} --dataset-json-path records.json --lora-r 4 --gold-batch-size 6 --pack-tokens 150";

#[test]
fn a_step_that_kills_three_attempts_is_named() {
    let folder = Folder::new();
    folder.succeed(&format!("{TRAIN} --run-name whole"));
    let command = format!("{TRAIN} --run-name r");
    // One elsewhere does not count.
    for point in ["train.step=2", "train.step=3", "train.step=3", "train.step=3"] {
        folder.killed(&command, point);
    }
    let note = folder.json("runs/r/train.in_flight");
    let records = note["at"]["records"].as_array().unwrap();
    assert_eq!((&note["at"]["number"], records.len()), (&3.into(), 3), "{note}");
    for _ in 0..2 {
        let named = format!("records [{}, {}, {}]", records[0], records[1], records[2]);
        folder.refused(
            &command,
            &["records.json: 3 attempts in a row died in step 3", &named, "--pack-tokens", "remove runs/r"],
        );
    }
    std::fs::remove_file(folder.path("runs/r/train.in_flight")).unwrap();
    folder.succeed(&command);
    folder.same_runs(&["adapter_model.safetensors", "metrics.jsonl"], ["whole", "r"], "after three deaths");
    assert!(!folder.path("runs/r/train.in_flight").exists());
}

#[test]
fn in_a_gang_the_first_rank_names_the_step_in_which_another_died() {
    let folder = Folder::new();
    let command = format!("{TRAIN} --run-name r");
    let ends = |fault: Option<(usize, &str)>| -> Vec<(Option<i32>, String)> {
        let children = folder.start_gang(&command, 2, fault).into_iter().map(|child| child.wait_with_output().unwrap());
        children.map(|end| (end.status.code(), String::from_utf8_lossy(&end.stderr).into_owned())).collect()
    };
    // A point lies behind its step's exchange: when the second rank dies at the second, the first one has begun the third.
    for (victim, point) in [(1, "train.step=2"), (0, "train.step=3"), (1, "train.step=2")] {
        let ends = ends(Some((victim, point)));
        assert_eq!((ends[victim].0, ends[1 - victim].0), (None, Some(1)), "{ends:?}");
    }
    let ends = ends(None);
    assert!(ends.iter().all(|(code, _)| *code == Some(1)), "{ends:?}");
    assert!(ends[0].1.contains("3 attempts in a row died in step 3, records ["), "{}", ends[0].1);
    // No failure of the task: the first rank's word is told, whichever ends first.
    for part in ["the gang is broken: ", "the first rank names it"] {
        assert!(ends[1].1.contains(part), "{}", ends[1].1);
    }
}

#[test]
fn a_rank_that_cannot_write_its_part_of_a_checkpoint_is_no_death_of_the_step() {
    let folder = Folder::new();
    let command = "train --model-name-or-path {tied} --dataset-json-path records.json --output-dir runs --run-name r --full \
                   --method no-impact --batch-size 2 --gradient-accumulation-steps 1 --max-steps 4 --save-steps 2";
    // A disk that is full for one rank, more often than a step may kill.
    for turn in 0..4 {
        let children = folder.start_gang_after(command, 2, (1, "trap '' XFSZ; ulimit -f 1"));
        let ends = children.into_iter().map(|child| child.wait_with_output().unwrap());
        let ends: Vec<_> =
            ends.map(|end| (end.status.code(), String::from_utf8_lossy(&end.stderr).into_owned())).collect();
        assert!(ends.iter().all(|(code, _)| *code == Some(1)), "{turn}: {ends:?}");
        assert!(ends[0].1.contains("the gang is broken"), "{turn}: {}", ends[0].1);
        assert!(ends[1].1.contains("File too large"), "{turn}: {}", ends[1].1);
    }
    folder.gang(command, 2);
    assert!(!folder.path("runs/r/train.in_flight.excused").exists());
}

#[test]
fn a_pack_that_kills_three_attempts_is_named() {
    let folder = Folder::new();
    folder.succeed(&format!("{SCORE} --out whole.json"));
    let command = format!("{SCORE} --out out.json");
    // The first pack is in the journal after the first death.
    for point in ["score.pack=2", "score.pack=1", "score.pack=1"] {
        folder.killed(&command, point);
    }
    folder.refused(&command, &["records.json: 3 attempts in a row died in pack 2, records [", "out.json.in_flight"]);
    std::fs::remove_file(folder.path("out.json.in_flight")).unwrap();
    folder.succeed(&command);
    assert!(folder.bytes("whole.json") == folder.bytes("out.json"));
    assert!(!folder.path("out.json.in_flight").exists());
}

#[test]
fn a_run_ends_with_the_records_of_a_step_that_kills_three_attempts_of_its_gang() {
    let mut cluster = Cluster::new();
    // Nothing waits for a heartbeat here, and a slow one loses nobody by chance.
    cluster.heartbeat_ms = 1000;
    cluster.start_all(3, 1);
    let dies = ("TRACE_FAULT", "train.step=2");
    cluster.start_worker("w2", &[], &[dies]);
    cluster.wait_for_worker("w2", "idle");
    cluster.submit(&[]);
    for death in 1..=3 {
        assert_eq!(cluster.wait_for_death("w2"), Some(9), "death {death}");
        cluster.wait_until_away("w2");
        cluster.plan_death("w2", (death < 3).then_some(dies.1));
        cluster.restart("w2");
    }
    let status = poll_until("the run ends", Duration::from_secs(120), || {
        let status = cluster.json(&["status", "tiny"]);
        status["ended_ms"].is_u64().then_some(status)
    });
    let stage = stage(&status, "base-sft");
    let why = stage["note"].as_str().unwrap();
    assert!(why.contains("3 attempts in a row died in step 3, records ["), "{status}");
    assert_eq!((&status["state"], &stage["state"]), (&"failed".into(), &"failed".into()), "{status}");
    // Three losses, which say nothing of the task, and then its own failures.
    let log = cluster.run_log();
    assert_eq!(log.matches("worker w2 is lost").count(), 3, "{log}");
}
