//! The worker's command line: which command runs, and what it prints.

use clap::{Parser, Subcommand};
use serde_json::Value;

use crate::error::Result;
use crate::fault::Fault;
use crate::{bench, generate, logprobs, merge, score, train};

/// Computes with language models: log-probs, impact scores, re-alignment, generation.
#[derive(Debug, Parser)]
#[command(name = "worker", version, about, infer_long_args = false)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Dies at a planned point, for tests: POINT=N.
    #[arg(long, global = true, hide = true, env = "TRACE_FAULT", value_name = "POINT=N")]
    fault: Option<Fault>,
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant)]
enum Command {
    Logprobs(logprobs::LogProbsCommand),
    Score(score::command::ScoreCommand),
    Train(train::TrainArgs),
    Generate(generate::GenerateCommand),
    Merge(merge::MergeCommand),
    Bench(bench::BenchCommand),
}

/// Runs a command. Returns the exit code: 0, or 3 where some records got no result.
///
/// # Errors
/// What stopped the command; its message is for the user.
pub fn run(cli: Cli) -> Result<u8> {
    let fault = cli.fault.as_ref();
    match &cli.command {
        Command::Logprobs(args) => {
            let (records, failed) = logprobs::run(args)?;
            println!("{records} records written to {}", args.out.display());
            if failed > 0 {
                tracing::warn!("{failed} of them have no numbers; \"error\" in their lines says why");
                return Ok(3);
            }
        }
        Command::Score(args) => print(&score::command::run(args, fault)?, args.json),
        Command::Train(args) => print(&train::run(args, fault)?, args.json),
        Command::Generate(args) => {
            let summary = generate::run(args, fault)?;
            print(&summary, args.json);
            if summary["set_aside"].as_u64() > Some(0) {
                return Ok(3);
            }
        }
        Command::Merge(args) => println!("merged model in {}", merge::run(args)?.display()),
        Command::Bench(args) => print(&bench::run(args)?, args.json),
    }
    Ok(0)
}

/// Prints a summary: one JSON object, or a line a field.
fn print(summary: &Value, json: bool) {
    if json {
        println!("{summary}");
        return;
    }
    for (name, value) in summary.as_object().into_iter().flatten() {
        match value {
            Value::String(text) => println!("{name:>16}  {text}"),
            Value::Number(n) if n.is_f64() => println!("{name:>16}  {:.3}", n.as_f64().unwrap_or_default()),
            other => println!("{name:>16}  {other}"),
        }
    }
}
