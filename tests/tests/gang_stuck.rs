//! A network that swallows everything between the members of a gang, or a call of NCCL that hangs, while the coordinator hears
//! them all: every member waits in its call and goes on to beat. The attempt is broken within about five heartbeats, not at the
//! deadline of the call, and the next one goes on from the last checkpoint to the same bytes.
//!
//! And a device that hangs in a computation: the others leave at their call's deadline, and after a while the next attempt begins
//! without the worker, whose process lives.
//!
//! What hangs is planned. The training is done four times in one folder, first undisturbed.
#![allow(clippy::unwrap_used)]

use cluster_tests::cluster::Cluster;
use cluster_tests::runs::is_done;

const PRODUCTS: [&str; 2] = ["base/model.safetensors", "base/metrics.jsonl"];

#[test]
fn a_gang_whose_network_swallows_everything_is_broken_soon_and_goes_on_to_the_same_bytes() {
    let mut cluster = Cluster::new();
    cluster.heartbeat_ms = 200;
    cluster.start_all(3, 2);
    cluster.submit(&[]);
    cluster.wait_for_stage("base-sft", "is done", is_done);
    let undisturbed = PRODUCTS.map(|name| cluster.product(name));
    cluster.cancel();

    let double = cluster_tests::nccl_double().display().to_string();
    let nccl = [("TRACE_NCCL_LIBRARY", double.as_str()), ("TRACE_CUDART_LIBRARY", double.as_str())];
    let hanging = [&nccl[..], &[("NCCL_DOUBLE_PLAN", "hang=30,once")]].concat();
    let over_nccl: &[&str] = &["--collective", "nccl"];
    // Options and variables of the worker that does not hang and of the one that does, and what that one tells.
    type Side<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)]);
    let ways: [(Side<'_>, Side<'_>, &str); 2] = [
        ((&[], &[]), (&["--fault", "ring.call=10:hang"], &[]), "hung as planned"),
        ((over_nccl, &nccl), (over_nccl, &hanging), "exchanges over NCCL"),
    ];
    let same_bytes = |cluster: &Cluster, what: &str| {
        for (name, undisturbed) in PRODUCTS.iter().zip(&undisturbed) {
            assert!(cluster.product(name) == *undisturbed, "{name} differs after the hang ({what})");
        }
    };
    let train_again = |cluster: &mut Cluster, first: Side<'_>, second: Side<'_>| {
        cluster.forget_stage("base-sft", &["base"]);
        for (name, (options, variables)) in [("w1", first), ("w2", second)] {
            cluster.replace_worker(name, options, variables);
        }
        let before = cluster.run_log().len();
        cluster.submit(&[]);
        cluster.wait_for_stage("base-sft", "is done", is_done);
        cluster.run_log()[before..].to_owned()
    };
    for (first, second, told) in ways {
        let log = train_again(&mut cluster, first, second);
        let words = "nothing has moved between them for ";
        let (_, rest) = log.split_once(words).unwrap_or_else(|| panic!("{words:?} is not in\n{log}"));
        let still_ms: u64 = rest.split(' ').next().unwrap().parse().unwrap();
        // Five heartbeats of 200 ms, the one that told, and what a busy machine takes; the call's deadline is ten minutes.
        assert!((1001..30_000).contains(&still_ms), "found after {still_ms} ms");
        assert!(log.contains("attempt 2 on w1, w2"), "{log}");
        assert!(cluster.log("w2").contains(told), "{}", cluster.log("w2"));
        same_bytes(&cluster, told);
        cluster.cancel();
    }

    cluster.start_worker("w3", &[], &[]);
    cluster.wait_for_worker("w3", "idle");
    let soon: &[&str] = &["--call-deadline-s", "5"];
    let log = train_again(&mut cluster, (soon, &[]), (&["--fault", "train.step=10:hang"], &[]));
    for words in ["attempt 1 is over, and w2 has not left it within 20 s", "attempt 2 on w1, w3"] {
        assert!(log.contains(words), "{words:?} is not in\n{log}");
    }
    same_bytes(&cluster, "of a device");
}
