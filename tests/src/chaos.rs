//! Real chaos: a training on three real workers, disturbed on a seeded schedule, must end with the bytes of an undisturbed one.
//!
//! Workers and the coordinator are killed (SIGKILL) and started again at once, as a supervisor would; workers are stopped
//! (SIGSTOP) for longer than the coordinator waits for a heartbeat, and go on; where namespaces can be made, workers are cut off
//! from the network, for a moment or for longer than that. Which, and after how many steps, a seed says; within a step the moment
//! is the machine's. The coordinator gives a run up after twenty losses without a step or a checkpoint between them, so the kills are
//! spread over several runs, each of them compared: weights, figures of every step, and the optimiser's state of the last checkpoint.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::cluster::{Cluster, poll_until};
use crate::network::Network;
use crate::runs::{is_done, stage, tiny};
use crate::safetensors;

const STEPS: u64 = 100;
/// Disturbances of one run at most: fewer than the losses that end it, even where no step comes between them.
const MOST: u32 = 12;
const WORKERS: u64 = 3;
/// All weights are trained: the optimiser's state is in the ranks' parts of a checkpoint.
const FILES: [&str; 6] = [
    "model.safetensors",
    "metrics.jsonl",
    "checkpoint-99/state.json",
    "checkpoint-99/shard-00000-of-00003.safetensors",
    "checkpoint-99/shard-00001-of-00003.safetensors",
    "checkpoint-99/shard-00002-of-00003.safetensors",
];
const PATIENCE: Duration = Duration::from_secs(120);

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// SIGKILLs in total.
    pub kills: u32,
    /// Of the schedule.
    pub seed: u64,
    /// Interval of the workers' heartbeats; one is lost after five without.
    pub heartbeat_ms: u32,
    /// Says on standard error what is done.
    pub tells: bool,
}

/// What came of it. Times are in seconds.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Trainings that were disturbed.
    pub runs: u32,
    /// From a worker's SIGKILL to the first step of the next attempt; the worker's own start is in it.
    pub worker_killed: Vec<f64>,
    /// From the coordinator's SIGKILL to its answer after the restart; training goes on meanwhile.
    pub coordinator_killed: Vec<f64>,
    /// From a worker's SIGCONT to the first step after it.
    pub worker_stopped: Vec<f64>,
    /// From the mending of a worker's cut to the first step after it.
    pub worker_cut: Vec<f64>,
    /// Why no network can be cut here, if so.
    pub uncut: Option<String>,
    /// SIGKILLs, those during a recovery included, which have no time of their own.
    pub kills: u32,
    /// Files that differ from the undisturbed run's.
    pub misses: Vec<String>,
}

impl Outcome {
    /// Returns the figures as JSON.
    pub fn json(&self) -> Value {
        json!({
            "runs": self.runs, "kills": self.kills, "stops": self.worker_stopped.len(), "cuts": self.worker_cut.len(),
            "uncut": self.uncut, "misses": self.misses,
            "seconds": {
                "worker_killed": percentiles(&self.worker_killed),
                "coordinator_killed": percentiles(&self.coordinator_killed),
                "worker_stopped": percentiles(&self.worker_stopped),
                "worker_cut": percentiles(&self.worker_cut),
            },
        })
    }
}

/// Returns number, percentiles (nearest rank) and maximum of some seconds.
fn percentiles(seconds: &[f64]) -> Value {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |percent: usize| sorted.get((sorted.len() * percent).div_ceil(100).max(1) - 1);
    json!({"n": sorted.len(), "p50": at(50), "p90": at(90), "p99": at(99), "max": sorted.last()})
}

/// Numbers of a seed (splitmix64).
struct Schedule(u64);

impl Schedule {
    /// Draws one of `from..=to`.
    fn draw(&mut self, from: u64, to: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        from + (z ^ (z >> 31)) % (to - from + 1)
    }
}

/// How far a training is: the file's inode, which an attempt gets anew, and its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Rows {
    inode: u64,
    steps: u64,
}

struct Chaos {
    plan: Plan,
    cluster: Cluster,
    schedule: Schedule,
    outcome: Outcome,
}

/// Carries the plan out.
///
/// # Panics
/// Something takes longer than two minutes, or a run fails: the processes' logs are printed.
pub fn run(plan: Plan) -> Outcome {
    let mut cluster = Cluster::new();
    cluster.heartbeat_ms = plan.heartbeat_ms;
    let names: Vec<String> = (1..=WORKERS).map(|number| format!("w{number}")).collect();
    let network = Network::new(&names);
    let outcome = Outcome { uncut: network.as_ref().err().cloned(), ..Outcome::default() };
    cluster.network = network.ok();
    cluster.start_all(3, WORKERS as usize);
    let mut chaos = Chaos { plan, cluster, schedule: Schedule(plan.seed), outcome };
    if let Some(why) = &chaos.outcome.uncut {
        chaos.tell(&format!("no network is cut: {why}"));
    }
    chaos.submit("whole");
    chaos.end("whole");
    while chaos.outcome.kills < plan.kills {
        chaos.outcome.runs += 1;
        let name = format!("disturbed-{}", chaos.outcome.runs);
        chaos.submit(&name);
        chaos.disturb(&name);
        chaos.end(&name);
        chaos.compare(&name);
    }
    chaos.outcome
}

impl Chaos {
    fn tell(&self, words: &str) {
        if self.plan.tells {
            eprintln!("{words}");
        }
    }

    fn file(&self, run: &str, name: &str) -> PathBuf {
        self.cluster.path("artifacts").join(run).join("base").join(name)
    }

    fn submit(&self, run: &str) {
        let (name, steps) = (format!("run.name={run}"), format!("base.step.sft.max_steps={STEPS}"));
        let world_size = format!("run.world_size={WORKERS}");
        self.cluster.json(&["submit", &tiny(), "--set", &name, "--set", &steps, "--set", &world_size]);
    }

    /// Waits until the training is done; nothing else of the run is wanted.
    fn end(&self, run: &str) {
        poll_until(&format!("{run} is trained"), PATIENCE, || self.is_over(run).then_some(()));
        self.cluster.wait_for_run(run, "trained", |status| is_done(stage(status, "base-sft")));
        self.cluster.json(&["cancel", run]);
        self.cluster.wait_until_idle();
    }

    fn is_over(&self, run: &str) -> bool {
        self.file(run, "train_summary.json").exists()
    }

    fn rows(&self, run: &str) -> Rows {
        let file = self.file(run, "metrics.jsonl");
        let read = std::fs::metadata(&file).and_then(|data| Ok((data.ino(), std::fs::read(&file)?)));
        read.map_or(Rows::default(), |(inode, text)| Rows {
            inode,
            steps: text.iter().filter(|&&byte| byte == b'\n').count() as u64,
        })
    }

    /// Disturbs a run until its training is nearly over, or enough was done.
    fn disturb(&mut self, run: &str) {
        let (mut furthest, mut losses) = (0, 0);
        while losses < MOST && self.outcome.kills < self.plan.kills {
            // Past what was reached before: three deaths in one step would be the step's fault.
            let target = furthest + self.schedule.draw(1, 6);
            if target + 5 > STEPS {
                return;
            }
            poll_until(&format!("{run} reaches step {target}"), PATIENCE, || {
                (self.rows(run).steps >= target).then_some(())
            });
            let before = self.rows(run);
            furthest = before.steps;
            let worker = format!("w{}", self.schedule.draw(1, WORKERS));
            losses += 1;
            let most = if self.cluster.network.is_some() { 12 } else { 10 };
            match self.schedule.draw(1, most) {
                1..=2 => self.kill_coordinator(run, before),
                3 => self.stop(run, &worker, before),
                11..=12 => self.cut(run, &worker, before),
                _ => losses += self.kill(run, &worker, before),
            }
        }
    }

    /// Kills a worker, sometimes another one while the first kill is being got over; returns how many more.
    fn kill(&mut self, run: &str, worker: &str, before: Rows) -> u32 {
        let mut begun = Instant::now();
        self.cluster.kill(worker);
        self.cluster.restart(worker);
        self.outcome.kills += 1;
        self.tell(&format!("{run}: {worker} killed at step {}", before.steps));
        let is_again = self.schedule.draw(1, 6) == 1;
        if is_again {
            std::thread::sleep(Duration::from_millis(self.schedule.draw(0, 400)));
            let other = format!("w{}", self.schedule.draw(1, WORKERS));
            begun = Instant::now();
            self.cluster.kill(&other);
            self.cluster.restart(&other);
            self.outcome.kills += 1;
            self.tell(&format!("{run}: {other} killed during the recovery"));
        }
        self.wait_for_attempt(run, before);
        self.outcome.worker_killed.push(begun.elapsed().as_secs_f64());
        u32::from(is_again)
    }

    /// Waits for the first step of an attempt after the one with these rows. A worker that was stopped may not have been missed:
    /// then the old attempt goes on.
    fn wait_for_attempt(&mut self, run: &str, before: Rows) {
        let mut first = before;
        poll_until(&format!("{run}: a step of the next attempt"), PATIENCE, || {
            self.supervise();
            let now = self.rows(run);
            if now.inode != first.inode && now.inode != 0 {
                // It begins with the rows of its checkpoint.
                first = now;
            }
            let goes_on =
                if first.inode == before.inode { now.steps > before.steps + 8 } else { now.steps > first.steps };
            (goes_on || self.is_over(run)).then_some(())
        });
    }

    /// Starts workers again that have ended by themselves: one that comes back before the end of its last connection was noticed is
    /// refused.
    fn supervise(&mut self) {
        for worker in (1..=WORKERS).map(|number| format!("w{number}")) {
            if self.cluster.ended(&worker).is_some() {
                self.tell(&format!("{worker} is started again"));
                self.cluster.restart(&worker);
            }
        }
    }

    fn kill_coordinator(&mut self, run: &str, before: Rows) {
        let begun = Instant::now();
        self.cluster.kill("coordinator");
        self.outcome.kills += 1;
        self.tell(&format!("{run}: the coordinator killed at step {}", before.steps));
        std::thread::sleep(Duration::from_millis(self.schedule.draw(0, 300)));
        self.cluster.restart("coordinator");
        self.cluster.json(&["status", run]);
        self.outcome.coordinator_killed.push(begun.elapsed().as_secs_f64());
        poll_until(&format!("{run}: training goes on"), PATIENCE, || {
            (self.rows(run).steps > before.steps || self.rows(run).inode != before.inode || self.is_over(run))
                .then_some(())
        });
    }

    /// Stops a worker for longer than its heartbeats may be missing.
    fn stop(&mut self, run: &str, worker: &str, before: Rows) {
        let limit = u64::from(self.plan.heartbeat_ms) * 5;
        let pause = Duration::from_millis(limit + self.schedule.draw(100, 1000));
        self.cluster.signal(worker, Signal::STOP);
        self.tell(&format!("{run}: {worker} stopped at step {} for {pause:?}", before.steps));
        std::thread::sleep(pause);
        let begun = Instant::now();
        self.cluster.signal(worker, Signal::CONT);
        self.wait_for_attempt(run, before);
        self.outcome.worker_stopped.push(begun.elapsed().as_secs_f64());
    }

    /// Cuts a worker off, for less or for more than its heartbeats may be missing.
    fn cut(&mut self, run: &str, worker: &str, before: Rows) {
        let limit = u64::from(self.plan.heartbeat_ms) * 5;
        let (from, to) = if self.schedule.draw(0, 1) == 0 { (50, limit / 2) } else { (limit + 100, 3 * limit) };
        let pause = Duration::from_millis(self.schedule.draw(from, to));
        let network = self.cluster.network.as_ref().expect("there is one to cut");
        network.cut(worker);
        self.tell(&format!("{run}: {worker} cut off at step {} for {pause:?}", before.steps));
        std::thread::sleep(pause);
        let begun = Instant::now();
        network.mend(worker);
        self.wait_for_attempt(run, before);
        self.outcome.worker_cut.push(begun.elapsed().as_secs_f64());
    }

    fn compare(&mut self, run: &str) {
        for name in FILES {
            if name.contains("shard-") {
                let of_state = safetensors::f32s(&std::fs::read(self.file("whole", name)).expect("it is there"));
                for kind in ["parameter.", "first.", "second."] {
                    assert!(of_state.keys().any(|tensor| tensor.starts_with(kind)), "{name} has no {kind}");
                }
            }
            let read = |run: &str| {
                let file = self.file(run, name);
                std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
            };
            if read("whole") != read(run) {
                self.outcome.misses.push(format!("{run}/{name}"));
            }
        }
        self.tell(&format!("{run}: compared; {} kills so far", self.outcome.kills));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let seconds: Vec<f64> = (1..=50).rev().map(f64::from).collect();
        assert_eq!(percentiles(&seconds), json!({"n": 50, "p50": 25.0, "p90": 45.0, "p99": 50.0, "max": 50.0}));
        assert_eq!(percentiles(&[]), json!({"n": 0, "p50": null, "p90": null, "p99": null, "max": null}));
        assert_eq!(percentiles(&[2.0])["p50"], 2.0);
    }

    #[test]
    fn a_seed_gives_one_schedule_within_its_bounds() {
        let draw = |seed| {
            let mut schedule = Schedule(seed);
            (0..100).map(|_| schedule.draw(3, 7)).collect::<Vec<_>>()
        };
        assert!(draw(1) == draw(1) && draw(1) != draw(2));
        assert!(draw(1).iter().all(|drawn| (3..=7).contains(drawn)) && draw(1).contains(&3) && draw(1).contains(&7));
    }
}
