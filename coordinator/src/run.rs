//! `coordinator run`: a run file to its report, on this machine alone or on a cluster.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use proto::coordinator::RunStatus;
use shared::{Error, Result};

use crate::client::{self, Target, watch};
use crate::local::{self, Ended, Local};
use crate::run_file::{self, RunFile};
use crate::{block_on, report};

/// Runs a run file to its report: on a coordinator, or on this machine with --local
///
/// With --local everything the run needs is started here and ended with it: a mock of the oracle's API if the file asks for
/// one, the oracle service, a coordinator, N workers. Stopped by Ctrl-C or killed, the same command goes on where it was.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The run file (TOML)
    file: PathBuf,
    /// Start everything here, with N workers
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    local: Option<u32>,
    /// Folder of all runs' files, with --local [default: artifacts]
    #[arg(long, value_name = "DIR", requires = "local")]
    artifacts: Option<PathBuf>,
    /// Overrides a key of the run file: train.beta=0.5, variant.trace.train.beta=0.5
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    #[command(flatten)]
    target: Target,
    /// Print the run's state as JSON lines
    #[arg(long)]
    json: bool,
}

/// What a shell reports for a program that was interrupted.
const INTERRUPTED: u8 = 130;

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let status = match args.local {
        Some(workers) => match run_here(args, workers)? {
            Ended::Run(status) => status,
            Ended::Stopped => {
                eprintln!("stopped; the same command goes on where it was");
                return Ok(ExitCode::from(INTERRUPTED));
            }
        },
        None => block_on(async {
            let request = client::submission(&args.file, &args.set)?;
            let mut client = args.target.connect()?;
            let run = client.submit(request).await?.run;
            watch::until_end(&mut client, &run, args.json).await
        })?,
    };
    tell(&status, args.json)
}

fn run_here(args: &Args, workers: u32) -> Result<Ended> {
    let mut set = args.set.clone();
    let mut file = parse(&args.file, &set)?;
    match file.run.world_size {
        None => {
            set.push(format!("run.world_size={workers}"));
            file = parse(&args.file, &set)?;
        }
        Some(size) if file.min_workers().unwrap_or(size) > workers => {
            return Err(Error::Config(format!(
                "run.world_size is {size}, --local {workers} starts too few workers for such a gang; start {size}, or add \
                 --set run.world_size={workers}"
            )));
        }
        Some(_) => {}
    }
    let artifacts = args.artifacts.clone().unwrap_or_else(|| PathBuf::from("artifacts"));
    let request = client::submission(&args.file, &set)?;
    block_on(local::run(Local { artifacts: &artifacts, workers, file: &file, request, json: args.json }))
}

/// Checks the file before anything is started.
fn parse(file: &Path, set: &[String]) -> Result<RunFile> {
    let request = client::submission(file, set)?;
    run_file::parse(&request.text, &request.file, Path::new(&request.folder), &request.set)
        .map_err(|problems| Error::Config(format!("{} cannot be run:\n  {}", request.file, problems.join("\n  "))))
}

/// Prints the report's tables and where it lies, or why there is none.
fn tell(status: &RunStatus, json: bool) -> Result<ExitCode> {
    if status.state != "done" {
        eprintln!("run {} is {}: {}", status.run, status.state, status.reason);
        return Ok(ExitCode::FAILURE);
    }
    if json {
        return Ok(ExitCode::SUCCESS);
    }
    let folder = Path::new(&status.report);
    match folder.parent() {
        // On another machine the folder may not be visible; its path is told all the same.
        Some(run_dir) if folder.is_dir() => print!("{}", report::text(run_dir)?),
        _ => {}
    }
    println!("report: {}", folder.join("report.html").display());
    Ok(ExitCode::SUCCESS)
}
