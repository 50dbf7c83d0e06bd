//! `coordinator serve`: the coordinator as a process.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proto::coordinator::runs_server::RunsServer;
use proto::coordinator::workers_server::WorkersServer;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use shared::net::{RequireToken, Token};
use shared::store::Store;
use shared::{Error, Result};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;

use crate::driver::{Driver, Surroundings};
use crate::logs::Logs;
use crate::scheduler::run::Run;
use crate::scheduler::{Scheduler, Timing};
use crate::service::Service;
use crate::stage::OracleAddress;

/// Serves runs: schedules their stages on workers and the oracle service
///
/// Workers and commands connect to it. Off loopback a token is required (TRACE_TOKEN or --token-file). It may die and
/// start again at any time: workers go on, and what they did is taken up.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Address to listen at; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7400")]
    listen: SocketAddr,
    /// Folder of all runs' files, visible to every worker and the oracle service under this path
    #[arg(long, value_name = "DIR", default_value = "artifacts")]
    artifacts: PathBuf,
    /// Folder of this coordinator's state [default: ARTIFACTS/.coordinator]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Address of the oracle service
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7401")]
    oracle: String,
    /// Address of a mock of the API, up to and including /v1, for runs that ask for one
    #[arg(long, value_name = "URL")]
    mock: Option<String>,
    /// File with the cluster's token, instead of TRACE_TOKEN
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Interval of workers' heartbeats; one is lost after five without
    #[arg(long, value_name = "MS", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(20..=60_000))]
    heartbeat_ms: u64,
    /// Drive this run alone; other runs in the state folder stay as they are
    #[arg(long, value_name = "RUN")]
    only: Option<String>,
    /// End when standard input ends
    #[arg(long)]
    with_parent: bool,
}

/// Events that wait for the driver at most.
const INBOX: usize = 1024;

/// Every time that decides what is lost comes from the heartbeat: five of them without a word is a loss (never under
/// four, or one late packet would be one), and a gang has thirty to form, at least as long as a slow machine needs.
fn timing(heartbeat_ms: u64) -> Timing {
    let lost_after_ms = 5 * heartbeat_ms;
    assert!(lost_after_ms >= 4 * heartbeat_ms, "a loss is never under four heartbeats");
    Timing {
        heartbeat_ms,
        lost_after_ms,
        form_within_ms: (30 * heartbeat_ms).max(20_000),
        leave_within_ms: (60 * heartbeat_ms).max(20_000),
    }
}

/// Lets this process hold as many connections as the system allows: each is an open file, and the usual limit is 1024.
pub(crate) fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if limit != raised
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    raise_open_files();
    let token = Token::load(std::env::var("TRACE_TOKEN").ok().as_deref(), args.token_file.as_deref())?;
    shared::net::check_listen(&args.listen, token.as_ref())?;
    let cannot = |doing: &str, error: std::io::Error| Error::Config(format!("cannot {doing}: {error}"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.map_err(|error| cannot("start", error))?.block_on(async {
        let stop = shared::shutdown::on_signals(args.with_parent).map_err(|error| cannot("receive signals", error))?;
        let listener = TcpListener::bind(args.listen).await;
        let listener = listener.map_err(|error| {
            Error::Config(format!("cannot listen at {}: {error}; choose another --listen address", args.listen))
        })?;
        let address = listener.local_addr().map_err(|error| cannot("listen", error))?;
        serve(listener, args, token, stop, || println!("listening on http://{address}")).await
    })
}

/// Serves on a bound listener until told to stop; `ready` is called once requests are taken.
pub(crate) async fn serve(
    listener: TcpListener,
    args: &Args,
    token: Option<Token>,
    stop: CancellationToken,
    ready: impl FnOnce(),
) -> Result<()> {
    std::fs::create_dir_all(&args.artifacts).map_err(|source| Error::io("make", &args.artifacts, source))?;
    let artifacts = args.artifacts.canonicalize();
    let artifacts = artifacts.map_err(|source| Error::io("find", &args.artifacts, source))?;
    let state = args.state.clone().unwrap_or_else(|| artifacts.join(".coordinator"));
    let store = Store::open(&state)?;
    let logs = Logs::open(&state.join("logs"))?;
    let probe = probe(&artifacts)?;
    let timing = timing(args.heartbeat_ms);
    let (inbox_in, inbox) = mpsc::channel(INBOX);
    let (changes_in, changes) = watch::channel(0);
    let surroundings = Surroundings {
        artifacts,
        oracle: Some(OracleAddress { url: args.oracle.clone(), token: token.clone(), mock: args.mock.clone() }),
        heartbeat: Duration::from_millis(timing.heartbeat_ms),
        probe,
    };
    let seed = random()?;
    let scheduler = |mut runs: BTreeMap<String, Run>| {
        if let Some(only) = &args.only {
            runs.retain(|name, _| name == only);
        }
        Scheduler::new(timing, seed, runs)
    };
    let driver = Driver::new(store, logs.clone(), surroundings, scheduler, (inbox_in.clone(), inbox), changes_in)?;

    let service = Service { inbox: inbox_in, changes, logs, only: args.only.clone(), connections: Arc::default() };
    let runs = RunsServer::new(service.clone()).max_decoding_message_size(proto::MAX_MESSAGE_BYTES);
    let workers = WorkersServer::new(service).max_decoding_message_size(proto::MAX_MESSAGE_BYTES);
    let server = shared::net::server()
        .add_service(InterceptedService::new(runs, RequireToken(token.clone())))
        .add_service(InterceptedService::new(workers, RequireToken(token)))
        .serve_with_incoming(shared::net::incoming(listener));
    ready();
    tokio::select! {
        driven = driver.run(stop.clone()) => driven,
        served = server => served.map_err(|error| Error::Config(format!("serving ended: {error}"))),
    }
}

/// Writes the file by which workers prove that they see the same folder.
fn probe(artifacts: &Path) -> Result<(PathBuf, String)> {
    let file = artifacts.join(".cluster");
    let content: String = random()?.iter().map(|byte| format!("{byte:02x}")).collect();
    shared::output::write_atomic(&file, content.as_bytes())?;
    Ok((file, content))
}

fn random() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    let path = Path::new("/dev/urandom");
    std::fs::File::open(path)
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut bytes))
        .map_err(|source| Error::io("read", path, source))?;
    Ok(bytes)
}
