//! The worker's command line: which command runs, and what it prints.

use std::sync::Arc;

use clap::{Parser, Subcommand};
use serde_json::{Value, json};

use crate::collective::Collective;
use crate::control::{Control, StopFlag};
use crate::error::{Error, Result};
use crate::fault::Fault;
use crate::{bench, determinism, generate, hub, logprobs, merge, panic, plan, score, serve, signals, train};

/// Computes with language models: log-probs, impact scores, re-alignment, generation.
#[derive(Debug, Parser)]
#[command(name = "worker", version, about, infer_long_args = false)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Dies at a planned point, for tests: POINT=N.
    #[arg(long, global = true, hide = true, env = "TRACE_FAULT", value_name = "POINT=N")]
    fault: Option<Fault>,
    /// On CUDA, takes kernels that give the same bits every time, which are slower; the processor's always do. What has no such
    /// kernel is an error, and CUBLAS_WORKSPACE_CONFIG=:4096:8 must be set
    #[arg(long, global = true, env = "TRACE_DETERMINISTIC", value_parser = clap::builder::FalseyValueParser::new())]
    deterministic: bool,
}

/// What a worker can do.
#[derive(Debug, Clone, Subcommand)]
#[allow(clippy::large_enum_variant, missing_docs)]
pub(crate) enum Command {
    Serve(serve::ServeCommand),
    Logprobs(logprobs::LogProbsCommand),
    Score(score::command::ScoreCommand),
    Train(train::TrainArgs),
    Generate(generate::GenerateCommand),
    Merge(merge::MergeCommand),
    Fetch(hub::FetchCommand),
    Plan(plan::PlanCommand),
    #[command(subcommand)]
    Bench(bench::BenchCommand),
}

impl Command {
    /// Returns the command with the folder of its model, where that was named by hub id.
    fn with_model_here(&self, control: &Control) -> Result<Command> {
        let mut command = self.clone();
        let (model, hub) = match &mut command {
            Command::Logprobs(args) => (&mut args.model.model_name_or_path, &args.model.hub),
            Command::Score(args) => (&mut args.model.model_name_or_path, &args.model.hub),
            Command::Train(args) => (&mut args.model.model_name_or_path, &args.model.hub),
            Command::Generate(args) => (&mut args.model.model_name_or_path, &args.model.hub),
            Command::Bench(args) => match args.of_model_mut() {
                Some(args) => (&mut args.model.model_name_or_path, &args.model.hub),
                None => return Ok(command),
            },
            Command::Merge(args) => (&mut args.base_model_path, &args.hub),
            Command::Fetch(args) => (&mut args.model, &args.hub),
            Command::Plan(args) => {
                let model = &mut args.model;
                model.model_name_or_path = hub::resolve_description(&model.model_name_or_path, &model.hub, control)?;
                return Ok(command);
            }
            Command::Serve(_) => return Ok(command),
        };
        *model = hub::resolve(model, hub, control)?;
        Ok(command)
    }
}

/// What a command came to.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) summary: Value,
    /// Some records that could be read got no result; the outputs say which.
    pub(crate) incomplete: bool,
}

/// Runs a command. Returns the exit code: 0, or 3 where some records got no result. Records that are set aside because a
/// text is empty are warned of and counted, and do not change it.
///
/// # Errors
/// What stopped the command; its message is for the user.
pub fn run(cli: Cli) -> Result<u8> {
    if cli.deterministic {
        determinism::switch_on()?;
    }
    if let Command::Serve(args) = &cli.command {
        serve::run(args, cli.fault)?;
        return Ok(0);
    }
    let mut control = Control::alone(cli.fault.map(Arc::new));
    // The commands that stop at a step, pack or batch; any other one a signal ends at once.
    if matches!(cli.command, Command::Train(_) | Command::Score(_) | Command::Generate(_)) {
        let stop = StopFlag::default();
        signals::stop_on(stop.clone())?;
        control = control.stopped_by(stop);
    }
    let done = panic::refusals_are_errors(|| carry_out(&cli.command, &control, None))?;
    let (json, lines) = match &cli.command {
        Command::Logprobs(args) => (args.json, true),
        Command::Score(args) => (args.json, true),
        Command::Train(args) => (args.json, true),
        Command::Generate(args) => (args.json, true),
        Command::Bench(args) => (args.json(), true),
        Command::Plan(args) => (args.json, true),
        Command::Merge(_) | Command::Fetch(_) | Command::Serve(_) => (false, false),
    };
    match &done.summary {
        Value::String(text) => println!("{text}"),
        summary if lines => print(summary, json),
        summary => println!("{summary}"),
    }
    Ok(if done.incomplete { 3 } else { 0 })
}

/// Returns the exit code for what stopped a command: 75 where it was told to, 1 else.
pub fn exit_code(error: &Error) -> u8 {
    if matches!(error, Error::Stopped) { signals::STOPPED } else { 1 }
}

/// Runs a command that computes. `gang` is the one a coordinator formed; without it, training joins what its options name.
///
/// # Errors
/// What stopped the command.
pub(crate) fn carry_out(command: &Command, control: &Control, gang: Option<&mut dyn Collective>) -> Result<Done> {
    let complete = |summary| Done { summary, incomplete: false };
    Ok(match &command.with_model_here(control)? {
        Command::Logprobs(args) => {
            let summary = logprobs::run(args, control)?;
            let incomplete = summary["not_finite"].as_u64() > Some(0);
            Done { summary, incomplete }
        }
        Command::Score(args) => complete(score::command::run(args, control)?),
        Command::Train(args) => complete(match gang {
            Some(gang) => train::run(args, control, gang)?,
            None => train::run(args, control, &mut *args.gang.join(|| args.model.device())?)?,
        }),
        Command::Generate(args) => complete(generate::run(args, control)?),
        Command::Merge(args) => complete(json!(format!("merged model in {}", merge::run(args, control)?.display()))),
        Command::Fetch(args) if args.model.is_dir() => complete(json!(args.model.display().to_string())),
        Command::Fetch(args) => return Err(Error::model(&args.model, "is neither a hub id, ORG/NAME, nor a folder")),
        Command::Bench(args) => complete(bench::run(args, control)?),
        Command::Plan(args) => complete(plan::run(args)?),
        Command::Serve(_) => return Err(Error::Config("a worker cannot be a task of a worker".into())),
    })
}

/// Parses a task: the options after `worker KIND`, as on a command line. The thread count and the device are the
/// worker's own.
///
/// # Errors
/// The options are wrong; the message says which.
pub(crate) fn command_of(kind: &str, args: &[String], threads: u32, device: &str) -> Result<Command> {
    let mut words = vec!["worker".to_owned(), kind.to_owned()];
    words.extend_from_slice(args);
    if kind != "merge" {
        words.extend(["--threads".to_owned(), threads.to_string(), "--device".to_owned(), device.to_owned()]);
    }
    let cli = Cli::try_parse_from(words);
    cli.map(|cli| cli.command).map_err(|error| Error::Config(format!("the task's options: {error}")))
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
            Value::Array(rows) if rows.first().is_some_and(Value::is_object) => print_table(name, rows),
            other => println!("{name:>16}  {other}"),
        }
    }
}

/// Prints objects, the fields of the first one first: a line of their names, then a line each.
fn print_table(name: &str, rows: &[Value]) {
    let mut names: Vec<&str> = Vec::new();
    for (field, _) in rows.iter().filter_map(Value::as_object).flatten() {
        if !names.contains(&field.as_str()) {
            names.push(field);
        }
    }
    let cell = |row: &Value, field: &str| match &row[field] {
        Value::Number(n) if n.is_f64() => format!("{:.3}", n.as_f64().unwrap_or_default()),
        Value::String(text) => text.clone(),
        Value::Null => "–".to_owned(),
        other => other.to_string(),
    };
    let head = std::iter::once(names.iter().map(|field| (*field).to_owned()).collect::<Vec<_>>());
    let lines: Vec<Vec<String>> =
        head.chain(rows.iter().map(|row| names.iter().map(|field| cell(row, field)).collect())).collect();
    let width = |at: usize| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..names.len()).map(width).collect();
    for (number, line) in lines.iter().enumerate() {
        let cells: Vec<String> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}")).collect();
        println!("{:>16}  {}", if number == 0 { name } else { "" }, cells.join("  "));
    }
}
