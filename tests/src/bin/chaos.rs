//! `chaos`: disturbs a training on real workers and compares its bytes; see `cluster_tests::chaos`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use cluster_tests::chaos::{self, Plan};
use serde_json::Value;

/// Kills, stops and cuts off the processes of a training on three real workers on a seeded schedule, and compares weights,
/// figures and optimiser state with an undisturbed run's.
///
/// Starts a coordinator, an oracle service, a mock of its API and three workers of one thread each in a temporary folder. Of twelve
/// disturbances, seven kill a worker, two the coordinator, one stops a worker (SIGSTOP, later SIGCONT) and two cut a worker off
/// from the network (in a namespace of its own; as root, else none is cut and the reason is printed); only kills count as kills. Prints how long recovery took. Exit code 0 when every byte is the same, 1 else.
#[derive(Debug, Parser)]
#[command(name = "chaos")]
struct Args {
    /// SIGKILLs in total, spread over as many trainings as they need.
    #[arg(long, default_value_t = 50, value_name = "N")]
    kills: u32,
    /// Seed of the schedule: which process, and after how many steps.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Interval of the workers' heartbeats; a silent worker is lost after five.
    #[arg(long, default_value_t = 200, value_name = "MS")]
    heartbeat_ms: u32,
    /// Takes worker, coordinator and oracle-service from this folder [default: they are built].
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Prints the figures as JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let Args { kills, seed, heartbeat_ms, programs, json } = Args::parse();
    if let Some(folder) = &programs {
        cluster_tests::take_programs_from(folder);
    }
    let outcome = chaos::run(Plan { kills, seed, heartbeat_ms, tells: true });
    let figures = outcome.json();
    if json {
        println!("{figures}");
    } else {
        let [kills, stops, cuts, runs] = ["kills", "stops", "cuts", "runs"].map(|name| &figures[name]);
        println!("{kills} kills, {stops} stops and {cuts} cuts in {runs} runs, seed {seed}");
        println!("{:>20}  {:>4}  {:>7}  {:>7}  {:>7}  {:>7}", "seconds after", "n", "p50", "p90", "p99", "max");
        for (name, row) in figures["seconds"].as_object().into_iter().flatten() {
            let cell = |field: &str| row[field].as_f64().map_or("–".to_owned(), |seconds| format!("{seconds:.2}"));
            let [p50, p90, p99, max] = ["p50", "p90", "p99", "max"].map(cell);
            println!("{name:>20}  {:>4}  {p50:>7}  {p90:>7}  {p99:>7}  {max:>7}", row["n"]);
        }
        let misses = figures["misses"].as_array().map_or(&[][..], Vec::as_slice);
        match misses {
            [] => println!("every file has the bytes of the undisturbed run's"),
            some => some.iter().filter_map(Value::as_str).for_each(|name| println!("differs: {name}")),
        }
    }
    if outcome.misses.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
