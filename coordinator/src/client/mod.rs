//! People's commands to a running coordinator.

mod table;
pub(crate) mod watch;

use std::path::PathBuf;

use proto::coordinator::runs_client::RunsClient;
use proto::coordinator::{
    DrainWorkerRequest, ListWorkersRequest, LogsRequest, RunName, RunStatus, StatusRequest, SubmitReply, SubmitRequest,
};
use serde::Serialize;
use shared::net::{SendToken, Token};
use shared::{Error, Result};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

/// Which coordinator.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Target {
    /// The coordinator's address
    #[arg(long, env = "TRACE_COORDINATOR", default_value = "http://127.0.0.1:7400", value_name = "URL")]
    pub(crate) coordinator: String,
    /// File with the cluster's token, instead of TRACE_TOKEN
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

/// A connection to a coordinator.
#[derive(Clone)]
pub(crate) struct Client {
    url: String,
    runs: RunsClient<InterceptedService<Channel, SendToken>>,
}

/// Submits a run file: checks it, starts the run or goes on with it
#[derive(Debug, clap::Args)]
pub(crate) struct SubmitArgs {
    /// The run file (TOML)
    file: PathBuf,
    /// Overrides a key of the run file: train.beta=0.5
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    #[command(flatten)]
    target: Target,
    /// Print the run's state as JSON
    #[arg(long)]
    json: bool,
}

/// Shows the state of all runs, or of one with its stages
#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    /// Name of the run
    run: Option<String>,
    #[command(flatten)]
    target: Target,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One run, on one coordinator.
#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    /// Name of the run
    run: String,
    #[command(flatten)]
    target: Target,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints what happened in a run, oldest first
#[derive(Debug, clap::Args)]
pub(crate) struct LogsArgs {
    /// Name of the run
    run: String,
    /// Go on until the run ends
    #[arg(long, short)]
    follow: bool,
    #[command(flatten)]
    target: Target,
    /// Print a JSON line an entry
    #[arg(long)]
    json: bool,
}

/// Lists the workers
#[derive(Debug, clap::Args)]
pub(crate) struct WorkersArgs {
    #[command(flatten)]
    target: Target,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Lets a worker finish its task and leave
#[derive(Debug, clap::Args)]
pub(crate) struct DrainArgs {
    /// Name of the worker
    worker: String,
    #[command(flatten)]
    target: Target,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is done to a run.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Act {
    Cancel,
    Pause,
    Resume,
}

impl Target {
    pub(crate) fn connect(&self) -> Result<Client> {
        let token = Token::load(std::env::var("TRACE_TOKEN").ok().as_deref(), self.token_file.as_deref())?;
        Client::new(&self.coordinator, token)
    }
}

impl Client {
    /// Returns a client that connects when it is first used.
    ///
    /// # Errors
    /// The address is none.
    pub(crate) fn new(url: &str, token: Option<Token>) -> Result<Client> {
        let runs = RunsClient::with_interceptor(shared::net::channel(url)?, SendToken(token))
            .max_decoding_message_size(proto::MAX_MESSAGE_BYTES);
        Ok(Client { url: url.to_owned(), runs })
    }

    /// Submits a run file.
    ///
    /// # Errors
    /// The coordinator cannot be reached or refuses; the file has problems (all of them are named).
    pub(crate) async fn submit(&mut self, request: SubmitRequest) -> Result<RunStatus> {
        let file = request.file.clone();
        let reply = self.runs.submit(request).await;
        self.submitted(&file, reply)
    }

    fn submitted(&self, file: &str, reply: std::result::Result<Response<SubmitReply>, Status>) -> Result<RunStatus> {
        let reply = reply.map_err(|status| self.error(&status))?.into_inner();
        match reply.run {
            Some(run) if reply.problems.is_empty() => Ok(run),
            _ => Err(Error::Config(format!("{file} cannot be run:\n  {}", reply.problems.join("\n  ")))),
        }
    }

    /// Submits a run file in place of whatever its run is at: one that goes on with other settings is cancelled first, a
    /// paused one resumed. For a coordinator that serves no one else.
    ///
    /// # Errors
    /// As [`Client::submit`].
    pub(crate) async fn submit_over(&mut self, request: SubmitRequest, run: &str) -> Result<RunStatus> {
        let name = RunName { run: run.to_owned() };
        let mut reply = self.runs.submit(request.clone()).await;
        if matches!(&reply, Err(status) if status.code() == Code::FailedPrecondition) {
            self.runs.cancel(name.clone()).await.map_err(|status| self.error(&status))?;
            reply = self.runs.submit(request.clone()).await;
        }
        let status = self.submitted(&request.file, reply)?;
        if status.state == "paused" {
            let resumed = self.runs.resume(name).await.map_err(|status| self.error(&status))?;
            return Ok(resumed.into_inner());
        }
        Ok(status)
    }

    /// Returns what a refused call means to a person.
    fn error(&self, status: &Status) -> Error {
        let url = &self.url;
        Error::Config(match status.code() {
            Code::Unavailable => format!(
                "no coordinator answers at {url} ({}); start one with `coordinator serve`, or name its address by \
                 --coordinator",
                cause(status)
            ),
            Code::Unauthenticated => format!("{url}: {}", status.message()),
            _ => status.message().to_owned(),
        })
    }
}

fn cause(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        text = error.to_string();
        cause = error.source();
    }
    text
}

/// Returns a request for a run file.
///
/// # Errors
/// It cannot be read.
pub(crate) fn submission(file: &std::path::Path, set: &[String]) -> Result<SubmitRequest> {
    let text = std::fs::read_to_string(file).map_err(|source| Error::io("read", file, source))?;
    let folder = file.canonicalize().map_err(|source| Error::io("find", file, source))?;
    let folder = folder.parent().unwrap_or(std::path::Path::new("/")).display().to_string();
    let here = std::env::current_dir().map_err(|source| Error::io("find", std::path::Path::new("."), source))?;
    let set = crate::run_file::set_from(&here, set);
    Ok(SubmitRequest { text, file: file.display().to_string(), folder, set })
}

fn print_json<T: Serialize + ?Sized>(value: &T) {
    println!("{}", serde_json::to_string_pretty(value).expect("messages are plain data"));
}

pub(crate) async fn submit(args: &SubmitArgs) -> Result<()> {
    let run = args.target.connect()?.submit(submission(&args.file, &args.set)?).await?;
    if args.json {
        print_json(&run);
    } else {
        println!("run {} is {}; `coordinator watch {}` shows it", run.run, run.state, run.run);
    }
    Ok(())
}

pub(crate) async fn status(args: &StatusArgs) -> Result<()> {
    let mut client = args.target.connect()?;
    let request = StatusRequest { run: args.run.clone().unwrap_or_default() };
    let reply = client.runs.status(request).await.map_err(|status| client.error(&status))?.into_inner();
    match (args.json, &args.run) {
        (true, None) => print_json(&reply.runs),
        (true, Some(_)) => print_json(&reply.runs[0]),
        (false, None) => print!("{}", table::runs(&reply.runs)),
        (false, Some(_)) => print!("{}", table::run(&reply.runs[0])),
    }
    Ok(())
}

pub(crate) async fn act(act: Act, args: &RunArgs) -> Result<()> {
    let mut client = args.target.connect()?;
    let name = RunName { run: args.run.clone() };
    let reply = match act {
        Act::Cancel => client.runs.cancel(name).await,
        Act::Pause => client.runs.pause(name).await,
        Act::Resume => client.runs.resume(name).await,
    };
    let run = reply.map_err(|status| client.error(&status))?.into_inner();
    if args.json {
        print_json(&run);
    } else {
        println!("run {} is {}", run.run, run.state);
    }
    Ok(())
}

/// Shows a run until it ends. Returns whether it was done.
pub(crate) async fn watch(args: &RunArgs) -> Result<bool> {
    let mut client = args.target.connect()?;
    let run = watch::until_end(&mut client, &args.run, args.json).await?;
    if !args.json {
        let reason = if run.reason.is_empty() { String::new() } else { format!(": {}", run.reason) };
        eprintln!("run {} is {}{reason}", run.run, run.state);
    }
    Ok(run.state == "done")
}

pub(crate) async fn logs(args: &LogsArgs) -> Result<()> {
    let mut client = args.target.connect()?;
    let request = LogsRequest { run: args.run.clone(), follow: args.follow };
    let mut lines = client.runs.logs(request).await.map_err(|status| client.error(&status))?.into_inner();
    while let Some(line) = lines.message().await.map_err(|status| client.error(&status))? {
        if args.json {
            println!("{}", serde_json::to_string(&line).expect("messages are plain data"));
        } else {
            println!("{} {}", table::time(line.at_ms), line.text);
        }
    }
    Ok(())
}

pub(crate) async fn workers(args: &WorkersArgs) -> Result<()> {
    let mut client = args.target.connect()?;
    let reply = client.runs.list_workers(ListWorkersRequest {}).await.map_err(|status| client.error(&status))?;
    let workers = reply.into_inner().workers;
    if args.json {
        print_json(&workers);
    } else {
        print!("{}", table::workers(&workers));
    }
    Ok(())
}

pub(crate) async fn drain(args: &DrainArgs) -> Result<()> {
    let mut client = args.target.connect()?;
    let request = DrainWorkerRequest { name: args.worker.clone() };
    let worker = client.runs.drain_worker(request).await.map_err(|status| client.error(&status))?.into_inner();
    if args.json {
        print_json(&worker);
    } else {
        // A free one may be gone before it is looked at.
        let verb = if worker.state == "left" { "has" } else { "is" };
        println!("worker {} {verb} {}", worker.name, worker.state);
    }
    Ok(())
}
