//! All weights trained by a gang whose ranks share out optimiser, gradients and, where asked, the weights: one process's curve, in
//! every mode; a member killed, also while checkpoints are written in parts, and the same bytes at the end.

#![allow(clippy::unwrap_used)]

use cluster_tests::{Folder, safetensors};
use serde_json::Value;

/// With an anchor, so that a frozen copy is shared out too; the ranks make different numbers of passes.
const FULL: &str = "train --model-name-or-path {untied} --dataset-json-path records.json --output-dir runs --method no-impact \
    --full --batch-size 5 --gradient-accumulation-steps 1 --num-train-epochs 3 --save-steps 2 --learning-rate 1e-3 \
    --pack-tokens 150 --validation-json-path records.json --eval-steps 3";
const MODES: [&str; 3] = ["", "--recompute", "--shard-parameters"];

/// A figure of every step.
fn of(folder: &Folder, name: &str, figure: &str) -> Vec<f64> {
    let number = |line: &Value| line[figure].as_f64().unwrap();
    folder.lines(&format!("runs/{name}/metrics.jsonl")).iter().map(number).collect()
}

/// How far the weights of two runs are apart: the largest difference in a tensor by its largest number.
fn furthest(folder: &Folder, names: [&str; 2]) -> f64 {
    let [ours, expected] =
        names.map(|name| safetensors::f32s(&folder.bytes(&format!("runs/{name}/model.safetensors"))));
    assert_eq!(ours.len(), expected.len());
    let apart = |(name, expected): (&String, &Vec<f32>)| {
        let ours = &ours[name];
        assert!(ours.len() == expected.len() && ours.iter().all(|number| number.is_finite()), "{name}");
        let largest = expected.iter().fold(f32::MIN_POSITIVE, |most, number| most.max(number.abs()));
        let differences = expected.iter().zip(ours).map(|(a, b)| (a - b).abs());
        f64::from(differences.fold(0f32, f32::max) / largest)
    };
    expected.iter().map(apart).fold(0.0, f64::max)
}

#[test]
fn every_way_to_share_out_follows_the_curve_of_one_process() {
    let folder = Folder::new();
    folder.succeed(&format!("{FULL} --run-name alone"));
    let (expected, norms) = (of(&folder, "alone", "loss"), of(&folder, "alone", "grad_norm"));
    assert_eq!(expected.len(), 6);
    for world in 2..=4 {
        for (mode, options) in MODES.iter().enumerate() {
            let name = format!("{world}-{mode}");
            folder.gang(&format!("{FULL} {options} --run-name {name}"), world);
            assert_eq!(of(&folder, &name, "loss").len(), 6);
            for (step, (a, b)) in expected.iter().zip(of(&folder, &name, "loss")).enumerate() {
                assert!((a - b).abs() <= 1e-5 * a.abs(), "{world} ranks {options}, step {step}: {b}, alone {a}");
            }
            for (step, (a, b)) in norms.iter().zip(of(&folder, &name, "grad_norm")).enumerate() {
                assert!((a - b).abs() <= 1e-5 * a.abs(), "{world} ranks {options}, step {step}: norm {b}, alone {a}");
            }
            let off = furthest(&folder, [&name, "alone"]);
            assert!(off <= 1e-5, "{world} ranks {options}: weights are {off} off");
            // Each rank kept a part, and the parts are in files of their own.
            for rank in 0..world {
                let part = format!("runs/{name}/checkpoint-4/shard-{rank:05}-of-{world:05}.safetensors");
                assert!(folder.path(&part).exists(), "{part}");
            }
        }
    }
}

/// Parts of bf16 weights, each rank with f32 masters of its own, follow one process's curve as far as bf16 gradients
/// allow, which are summed in another order.
#[test]
fn bf16_weights_have_their_f32_masters_on_the_ranks() {
    let folder = Folder::new();
    let full = format!("{FULL} --dtype bf16");
    folder.succeed(&format!("{full} --run-name alone"));
    let expected = of(&folder, "alone", "loss");
    for (mode, options) in MODES.iter().enumerate() {
        folder.gang(&format!("{full} {options} --run-name {mode}"), 3);
        let found = of(&folder, &mode.to_string(), "loss");
        let furthest = expected.iter().zip(&found).map(|(a, b)| (a - b).abs() / a.abs()).fold(0.0, f64::max);
        println!("3 ranks {options}: losses {furthest:.1e} off");
        assert!(found.len() == 6 && furthest <= 5e-2, "3 ranks {options}: {found:?}, alone {expected:?}");
        let masters = (0..3).map(|rank| {
            let part = folder.bytes(&format!("runs/{mode}/checkpoint-4/shard-{rank:05}-of-00003.safetensors"));
            safetensors::sizes(&part, "master.")
                .into_iter()
                .map(|(dtype, numbers)| {
                    assert_eq!(dtype, "F32");
                    numbers
                })
                .sum::<usize>()
        });
        let weights = safetensors::sizes(&folder.bytes(&format!("runs/{mode}/model.safetensors")), "");
        let weights: usize = weights
            .into_iter()
            .map(|(dtype, numbers)| {
                assert_eq!(dtype, "BF16");
                numbers
            })
            .sum();
        let masters: Vec<usize> = masters.collect();
        assert_eq!(masters.iter().sum::<usize>(), weights, "every weight has one master: {masters:?}");
        assert!(masters.iter().all(|part| part.abs_diff(weights / 3) < weights / 20), "{masters:?}");
    }
}

#[test]
fn a_member_may_die_at_any_point_of_a_sharded_run() {
    let folder = Folder::new();
    let modes = MODES.iter().chain(&["--dtype bf16 --shard-parameters"]);
    for (mode, options) in modes.enumerate() {
        let whole = format!("whole-{mode}");
        folder.gang(&format!("{FULL} {options} --run-name {whole}"), 2);
        let points = [(1, "train.step=3"), (0, "train.step=5"), (1, "checkpoint.begun=2"), (0, "checkpoint.written=2")];
        for (victim, point) in points {
            let name = format!("{mode}-{victim}-{point}").replace(['=', '.'], "-");
            let command = format!("{FULL} {options} --run-name {name}");
            for (rank, child) in folder.start_gang(&command, 2, Some((victim, point))).into_iter().enumerate() {
                let output = child.wait_with_output().unwrap();
                assert!(!output.status.success(), "{name}, rank {rank}");
            }
            folder.gang(&command, 2);
            let mut files =
                vec!["model.safetensors".to_owned(), "metrics.jsonl".to_owned(), "validation.jsonl".to_owned()];
            files.extend((0..2).map(|rank| format!("checkpoint-4/shard-{rank:05}-of-00002.safetensors")));
            folder.same_runs(&files.iter().map(String::as_str).collect::<Vec<_>>(), [&whole, &name], point);
        }
    }
}
