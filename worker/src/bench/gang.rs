//! Updates of one rank against those of several: real `worker train` processes of a gang on this machine, on the same
//! batches, in turn.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::error::{Error, Result};
use crate::options::ModelArgs;

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Trained {
    /// An adapter: every rank holds all of the optimiser's state.
    Lora,
    /// All weights: ranks share out the optimiser's state.
    Full,
    /// All weights, and ranks share these out, too.
    Spread,
}

/// Measures what more ranks on this machine bring: processes of `worker train`, method dpo, on the loopback interface.
///
/// Of each number of ranks, over the rounds' medians: seconds of an update; how many times as fast as the first number of ranks;
/// the shares of a step spent in calls and in waiting for the slowest rank, of the rank with the largest; and the
/// largest resident memory of a rank. Calls made beside the computation count only as far as it waits for them.
#[derive(Debug, Clone, Args)]
pub struct GangBench {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Pairs {prompt, chosen, rejected}.
    #[arg(long, value_name = "FILE")]
    pub pairs: std::path::PathBuf,
    /// Numbers of ranks, the first of which the others are compared with.
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    pub ranks: Vec<usize>,
    /// What is trained.
    #[arg(long, value_enum, default_value = "lora")]
    pub trained: Trained,
    /// Computes layers once more on the way back, so that calls go on beside them.
    #[arg(long)]
    pub recompute: bool,
    /// Pairs an update.
    #[arg(long, default_value_t = 16)]
    pub batch_size: usize,
    /// Updates of a run.
    #[arg(long, default_value_t = 4)]
    pub updates: usize,
    /// Longest sequence in tokens.
    #[arg(long, default_value_t = 256)]
    pub max_length: usize,
    /// Tokens computed together at most.
    #[arg(long, default_value_t = 1024)]
    pub pack_tokens: usize,
    /// Rounds, of which the median counts.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Prints JSON instead of lines.
    #[arg(long)]
    pub json: bool,
}

/// Runs the benchmark and returns its figures.
///
/// # Errors
/// An option is 0, or a run fails; its own error is shown.
pub fn run(args: &GangBench) -> Result<Value> {
    if [args.rounds, args.batch_size, args.updates].contains(&0) || args.ranks.is_empty() || args.ranks.contains(&0) {
        return Err(Error::Config("--rounds, --batch-size, --updates and --ranks are at least 1".into()));
    }
    let mut runs: Vec<Vec<Vec<Value>>> = args.ranks.iter().map(|_| Vec::new()).collect();
    // In turn, so that a machine that slows down slows all of them down.
    for _ in 0..args.rounds {
        for (runs, &ranks) in runs.iter_mut().zip(&args.ranks) {
            runs.push(once(args, ranks)?);
        }
    }
    let mut rows = Vec::new();
    for (runs, &ranks) in runs.iter().zip(&args.ranks) {
        let of = |run: &[Value], field: &str| {
            let numbers = run.iter().filter_map(|rank| rank.pointer(field)?.as_f64());
            numbers.fold(0.0, f64::max)
        };
        let middle = |field: &str| median(runs.iter().map(|run| of(run, field)).collect());
        let mut row = json!({
            "ranks": ranks, "update_s": middle("/step_seconds") / args.updates as f64,
            "call_share": middle("/gang/call_share"), "waited_share": middle("/gang/waited_share"),
            "peak_rss_gib": middle("/peak_rss_gib"),
        });
        let first = rows.first().map_or(&row, |first| first)["update_s"].as_f64().unwrap_or(f64::NAN);
        row["speedup"] = json!(first / row["update_s"].as_f64().unwrap_or(f64::NAN));
        rows.push(row);
    }
    Ok(json!({"rounds": args.rounds, "updates": args.updates, "gangs": rows}))
}

/// Trains once with so many ranks; returns their summaries.
fn once(args: &GangBench, ranks: usize) -> Result<Vec<Value>> {
    let folder = TempDir::new().map_err(|e| Error::Config(format!("a folder for the runs: {e}")))?;
    let peers = addresses(ranks)?;
    let children = (0..ranks).map(|rank| start(args, folder.path(), &peers, rank)).collect::<Result<Vec<_>>>()?;
    children.into_iter().map(summary).collect()
}

/// Ports that were free a moment ago.
fn addresses(ranks: usize) -> Result<Vec<String>> {
    let bound: std::io::Result<Vec<TcpListener>> = (0..ranks).map(|_| TcpListener::bind("127.0.0.1:0")).collect();
    let listeners = bound.map_err(|e| Error::Config(format!("no port for the ranks: {e}")))?;
    let address = |listener: &TcpListener| listener.local_addr().map(|address| address.to_string());
    let addresses: std::io::Result<Vec<String>> = listeners.iter().map(address).collect();
    addresses.map_err(|e| Error::Config(format!("no port for the ranks: {e}")))
}

fn start(args: &GangBench, folder: &Path, peers: &[String], rank: usize) -> Result<Child> {
    let program = std::env::current_exe().map_err(|e| Error::Config(format!("this program's own file: {e}")))?;
    let mut command = Command::new(program);
    let dtype = format!("{:?}", args.model.dtype).to_lowercase();
    command.arg("train").arg("--model").arg(&args.model.model_name_or_path).arg("--dataset-json-path").arg(&args.pairs);
    command.arg("--output-dir").arg(folder);
    let threads = args.model.threads.unwrap_or(1);
    let options = format!(
        "--method dpo --run-name r --json --device cpu --dtype {dtype} --threads {threads} --batch-size {} \
         --gradient-accumulation-steps 1 --max-steps {} --warmup-steps 0 --lora-dropout 0 --max-length {} --pack-tokens {} \
         --sample-size {}",
        args.batch_size,
        args.updates,
        args.max_length,
        args.pack_tokens,
        args.batch_size * args.updates,
    );
    command.args(options.split_whitespace());
    match args.trained {
        Trained::Lora => {}
        Trained::Full => drop(command.arg("--full")),
        Trained::Spread => drop(command.args(["--full", "--shard-parameters"])),
    }
    if args.recompute {
        command.arg("--recompute");
    }
    if peers.len() > 1 {
        command.args(["--rank", &rank.to_string(), "--peers", &peers.join(",")]);
        command.env("TRACE_GANG_SECRET", "known to this benchmark's own processes");
    }
    command.stdout(Stdio::piped()).stdin(Stdio::null()).stderr(Stdio::inherit());
    command.spawn().map_err(|e| Error::Config(format!("a rank does not start: {e}")))
}

fn summary(child: Child) -> Result<Value> {
    let output = child.wait_with_output().map_err(|e| Error::Config(format!("a rank: {e}")))?;
    if !output.status.success() {
        return Err(Error::Config(format!("a rank ended with {}; its error is above", output.status)));
    }
    serde_json::from_slice(&output.stdout).map_err(|e| Error::Config(format!("a rank's summary: {e}")))
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}
