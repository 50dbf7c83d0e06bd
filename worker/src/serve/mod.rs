//! `worker serve`: a worker under a coordinator.
//!
//! The async side ([`link`]) holds the connection and the heartbeat; one thread ([`device`]) owns the device and computes.
//! The worker dials and never listens, but for its neighbours in a gang. It goes on computing while the coordinator is
//! away, and says what it ended until that is stored.

mod device;
mod link;

use std::path::PathBuf;

use clap::Args;
use proto::coordinator::Hello;
use shared::net::Token;

use crate::collective::transport::ExchangeArgs;
use crate::error::{Error, Result};
use crate::fault::Fault;
use crate::measure;
use crate::placement::{self, Choice};
use device::Means;

/// Serves a coordinator: computes its tasks, one at a time, until told to leave.
///
/// SIGTERM or Ctrl-C: what runs stops at its next step with a checkpoint, then the worker leaves; a second one ends it at
/// once. The artifact folder must be visible here under the coordinator's own path.
#[derive(Debug, Clone, Args)]
pub struct ServeCommand {
    /// The coordinator's address.
    #[arg(long, env = "TRACE_COORDINATOR", default_value = "http://127.0.0.1:7400", value_name = "URL")]
    coordinator: String,
    /// Name of this worker, unique in the cluster [default: host and process id].
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// What to compute on; auto is the first CUDA device where this build finds one, else the processor.
    #[arg(long, env = "TRACE_DEVICE", default_value = "auto", value_name = "auto|cpu|cuda|cuda:N")]
    device: Choice,
    /// Threads for computation; all cores where not given. Results are equal to the bit only for equal thread counts.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    threads: Option<u32>,
    /// Host at which the other members of a gang reach this worker.
    #[arg(long, default_value = "127.0.0.1", value_name = "HOST")]
    peer_addr: String,
    #[command(flatten)]
    exchange: ExchangeArgs,
    /// File with the cluster's token, instead of TRACE_TOKEN.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Leave when standard input ends.
    #[arg(long)]
    with_parent: bool,
}

/// Runs the worker until it leaves.
///
/// # Errors
/// Options are wrong, or the coordinator refuses this worker.
pub fn run(args: &ServeCommand, fault: Option<Fault>) -> Result<()> {
    let computes_on = placement::name(placement::device(args.device)?);
    let token = Token::load(std::env::var("TRACE_TOKEN").ok().as_deref(), args.token_file.as_deref())?;
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let threads = args.threads.unwrap_or(cores);
    let host = read_line("/proc/sys/kernel/hostname").unwrap_or_else(|| "localhost".to_owned());
    let pid = std::process::id();
    let hello = Hello {
        name: args.name.clone().unwrap_or_else(|| format!("{host}-{pid}")),
        instance: instance()?,
        protocol_version: proto::PROTOCOL_VERSION,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        host,
        pid,
        device: computes_on.clone(),
        memory_bytes: measure::memory_bytes(),
        threads,
        running: None,
        ended: None,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(|error| Error::Config(format!("the async runtime: {error}")))?;
    runtime.block_on(async {
        let stop = shared::shutdown::on_signals(args.with_parent);
        let stop = stop.map_err(|error| Error::Config(format!("signals cannot be received: {error}")))?;
        let device = device::start(Means { threads, device: computes_on, exchange: args.exchange }, fault)?;
        link::Link::new(&args.coordinator, token, hello, args.peer_addr.clone(), device)?.run(stop).await
    })
}

fn instance() -> Result<String> {
    use std::io::Read;
    let mut bytes = [0u8; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| Error::Config(format!("/dev/urandom: {error}")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn read_line(file: &str) -> Option<String> {
    std::fs::read_to_string(file).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}
