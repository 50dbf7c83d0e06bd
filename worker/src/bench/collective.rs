//! The speed of a gang's calls by size and number of ranks, all on this machine, beside what plain connections and the
//! additions alone take.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::collective::nccl::communicator::{Libraries, Limits};
use crate::collective::nccl::library::UniqueId;
use crate::collective::nccl::{self, NcclGang};
use crate::collective::numbers::{Numbers, Op};
use crate::collective::ring::{self, Membership, Ring};
use crate::collective::transport::{Choice, Transport};
use crate::collective::{Collective, shard};
use crate::error::{Error, Result};

/// A call that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Call {
    /// Sums on every rank.
    AllReduce,
    /// Maxima on every rank.
    AllReduceMax,
    /// Sums, a shard a rank.
    ReduceScatter,
    /// Every rank's shard on every rank.
    AllGather,
    /// One rank's numbers on every rank.
    Broadcast,
}

/// Measures the calls of a gang: a ring of threads on the loopback interface, or NCCL with a CUDA device a rank.
///
/// Of each call, size and world: the median time, GB of the buffer a second, and GB a second that a rank sends in a ring (over NCCL,
/// which may go other ways, what its own tests call bus bandwidth). Beside the ring's sums of two ranks, from 1 MiB: what the same
/// bytes take over plain connections, both directions at once, and what the additions take, in the same rounds;
/// `share_of_plain` is these two by the call's own time.
#[derive(Debug, Clone, Args)]
pub struct CollectiveBench {
    /// What is measured; all calls where none is named.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub calls: Vec<Call>,
    /// Numbers of ranks.
    #[arg(long, value_delimiter = ',', default_value = "2,3,4")]
    pub ranks: Vec<usize>,
    /// Sizes of the buffer in KiB, of f32.
    #[arg(long, value_delimiter = ',', default_value = "4,256,4096,65536")]
    pub kib: Vec<usize>,
    /// How the ranks exchange: auto is NCCL where there is a CUDA device, else the ring.
    #[arg(long, value_enum, default_value = "auto")]
    pub collective: Choice,
    /// Connections between neighbours of a ring.
    #[arg(long, default_value_t = ring::LANES)]
    pub lanes: u8,
    /// Rounds, of which the median counts.
    #[arg(long, default_value_t = 7)]
    pub rounds: usize,
    /// Prints JSON instead of lines.
    #[arg(long)]
    pub json: bool,
}

/// Runs the benchmark and returns its figures.
///
/// # Errors
/// An option is 0, or the ring does not form.
pub fn run(args: &CollectiveBench) -> Result<Value> {
    if args.rounds == 0 || args.lanes == 0 || args.kib.contains(&0) || args.ranks.iter().any(|ranks| *ranks < 2) {
        return Err(Error::Config("--rounds, --lanes and --kib are at least 1, --ranks at least 2".into()));
    }
    let device = if tch::Cuda::is_available() { Device::Cuda(0) } else { Device::Cpu };
    let way = match args.collective.on(device) {
        Transport::Ring => Way::Ring,
        Transport::Nccl => {
            let libraries = nccl::load_as_told()?;
            let (devices, ranks) = (libraries.cuda.devices()?, args.ranks.iter().copied().max().unwrap_or(0));
            // The stand-in of the tests has one device for all.
            if device.is_cuda() && devices < ranks {
                return Err(Error::Config(format!(
                    "{ranks} ranks over NCCL need as many CUDA devices, there are {devices}: give fewer --ranks, or --collective ring"
                )));
            }
            Way::Nccl(libraries)
        }
    };
    let calls = if args.calls.is_empty() { Call::value_variants() } else { &args.calls };
    let mut rows = Vec::new();
    for &ranks in &args.ranks {
        for &call in calls {
            for &kib in &args.kib {
                let length = kib * 1024 / size_of::<f32>();
                let seconds = median(of_world(&way, call, ranks, length, args)?);
                let (bytes, sent) = ((length * size_of::<f32>()) as f64, sent_bytes(call, ranks, length));
                let mut row = json!({
                    "ranks": ranks, "call": call.to_possible_value().map(|value| value.get_name().to_owned()), "kib": kib,
                    "ms": 1e3 * seconds, "GB_per_s": bytes / seconds / 1e9,
                    "sent_GB": sent / 1e9, "sent_GB_per_s": sent / seconds / 1e9,
                });
                if matches!(way, Way::Ring) && ranks == 2 && call == Call::AllReduce && kib >= COMPARED_FROM_KIB {
                    let plain = median(plain(length, args)?);
                    let additions = median((0..args.rounds).map(|_| additions(length / 2)).collect());
                    row["plain_ms"] = json!(1e3 * plain);
                    row["additions_ms"] = json!(1e3 * additions);
                    row["share_of_plain"] = json!((plain + additions) / seconds);
                }
                rows.push(row);
            }
        }
    }
    let (collective, lanes) = match way {
        Way::Ring => ("ring", Some(args.lanes)),
        Way::Nccl(_) => ("nccl", None),
    };
    Ok(json!({"collective": collective, "lanes": lanes, "rounds": args.rounds, "calls": rows}))
}

/// How the ranks exchange.
enum Way {
    Ring,
    Nccl(Libraries),
}

/// Bytes that the rank which sends most sends in a call.
fn sent_bytes(call: Call, ranks: usize, length: usize) -> f64 {
    let bytes = (length * size_of::<f32>()) as f64;
    let share = (ranks - 1) as f64 / ranks as f64;
    match call {
        Call::AllReduce | Call::AllReduceMax => 2.0 * share * bytes,
        Call::ReduceScatter | Call::AllGather => share * bytes,
        Call::Broadcast => bytes,
    }
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// Below, plain connections are measured by how fast threads begin.
const COMPARED_FROM_KIB: usize = 1024;

const PATIENCE: Duration = Duration::from_secs(60);

/// Forms a world; each rank of it is to be finished by the thread that it is for, at the same time as the others.
fn world<'a>(way: &'a Way, ranks: usize, args: &CollectiveBench) -> Result<Vec<Joining<'a>>> {
    let lanes = args.lanes;
    if let Way::Nccl(libraries) = way {
        let (id, devices) = (libraries.nccl.unique_id()?, libraries.cuda.devices()?);
        let join = |rank: usize| -> Joining<'a> { Box::new(move || over_nccl(libraries, id, (rank, ranks), devices)) };
        return Ok((0..ranks).map(join).collect());
    }
    let listen =
        |_| TcpListener::bind("127.0.0.1:0").and_then(|listener| Ok((listener.local_addr()?.to_string(), listener)));
    let listening: std::io::Result<Vec<_>> = (0..ranks).map(listen).collect();
    let (peers, listeners): (Vec<String>, Vec<TcpListener>) =
        listening.map_err(|error| failed(&error))?.into_iter().unzip();
    let join = |(rank, listener): (usize, TcpListener)| -> Joining<'a> {
        let membership = Membership {
            rank,
            peers: peers.clone(),
            secret: [0; 32],
            label: "bench".into(),
            lanes,
            form_deadline: PATIENCE,
            call_deadline: PATIENCE,
            given_up: Arc::default(),
        };
        Box::new(move || Ok((Box::new(Ring::form(&listener, &membership)?) as Box<dyn Collective>, Device::Cpu)))
    };
    Ok(listeners.into_iter().enumerate().map(join).collect())
}

/// Joins a world and says where the rank's numbers lie.
type Joining<'a> = Box<dyn FnOnce() -> Result<(Box<dyn Collective>, Device)> + Send + 'a>;

fn over_nccl(
    libraries: &Libraries,
    id: UniqueId,
    (rank, ranks): (usize, usize),
    devices: usize,
) -> Result<(Box<dyn Collective>, Device)> {
    let at = rank % devices.max(1);
    let limits = Limits { form: PATIENCE, call: PATIENCE, abort: Duration::from_secs(20) };
    let gang = NcclGang::form(libraries, id, (rank, ranks), at, limits, Arc::default())?;
    Ok((Box::new(gang), if tch::Cuda::is_available() { Device::Cuda(at) } else { Device::Cpu }))
}

/// Seconds of each round, the slowest rank's; one round before is not counted.
fn of_world(way: &Way, call: Call, ranks: usize, length: usize, args: &CollectiveBench) -> Result<Vec<f64>> {
    let of_rank = |rank: usize, join: Joining<'_>| -> Result<Vec<f64>> {
        let (mut gang, device) = join()?;
        let numbers = Tensor::f_full([length as i64], rank as f64, (Kind::Float, device));
        let mut numbers = numbers.map_err(|error| Error::Config(format!("a buffer of {length} numbers: {error}")))?;
        let mut seconds = Vec::with_capacity(args.rounds);
        for round in 0..=args.rounds {
            // Of the gang, since it ends for all where one fails.
            gang.barrier()?;
            let begun = Instant::now();
            let numbers = Numbers::of(&mut numbers);
            match call {
                Call::AllReduce => gang.all_reduce(numbers, Op::Sum)?,
                Call::AllReduceMax => gang.all_reduce(numbers, Op::Max)?,
                Call::ReduceScatter => gang.reduce_scatter(numbers, Op::Sum)?,
                Call::AllGather => gang.all_gather(numbers)?,
                Call::Broadcast => gang.broadcast(numbers, 0)?,
            }
            if round > 0 {
                seconds.push(begun.elapsed().as_secs_f64());
            }
        }
        Ok(seconds)
    };
    let joining = world(way, ranks, args)?;
    let of_ranks: Result<Vec<Vec<f64>>> = std::thread::scope(|scope| {
        let of_rank = &of_rank;
        let ranks = joining.into_iter().enumerate();
        let threads: Vec<_> = ranks.map(|(rank, join)| scope.spawn(move || of_rank(rank, join))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank does not panic")).collect()
    });
    let of_ranks = of_ranks?;
    Ok((0..args.rounds).map(|round| of_ranks.iter().map(|seconds| seconds[round]).fold(0.0, f64::max)).collect())
}

/// Seconds of each round in which two threads send each other a buffer's bytes over so many plain connections, both
/// directions at once: what a sum of two ranks sends.
fn plain(length: usize, args: &CollectiveBench) -> Result<Vec<f64>> {
    let bytes = length * size_of::<f32>();
    let pairs: std::io::Result<Vec<[TcpStream; 2]>> = (0..args.lanes).map(|_| connected()).collect();
    let pairs = pairs.map_err(|error| failed(&error))?;
    let mut all = Vec::with_capacity(args.rounds);
    for round in 0..=args.rounds {
        let begun = Instant::now();
        let outcome: std::io::Result<()> = std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for (lane, pair) in pairs.iter().enumerate() {
                let share = shard(bytes, lane, pairs.len()).len();
                for mut end in pair.iter().flat_map(|end| [end, end]).enumerate().map(|(at, end)| (at % 2 == 0, end)) {
                    threads.push(scope.spawn(move || transfer(end.0, &mut end.1, share)));
                }
            }
            threads.into_iter().try_for_each(|thread| thread.join().expect("a transfer does not panic"))
        });
        outcome.map_err(|error| failed(&error))?;
        if round > 0 {
            all.push(begun.elapsed().as_secs_f64());
        }
    }
    Ok(all)
}

/// Bytes that are written or read at once.
const BLOCK: usize = 256 << 10;

fn transfer(is_sent: bool, end: &mut &TcpStream, mut bytes: usize) -> std::io::Result<()> {
    let mut block = vec![0u8; BLOCK];
    while bytes > 0 {
        let now = bytes.min(BLOCK);
        if is_sent {
            end.write_all(&block[..now])?;
        } else {
            end.read_exact(&mut block[..now])?;
        }
        bytes -= now;
    }
    Ok(())
}

fn connected() -> std::io::Result<[TcpStream; 2]> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let there = TcpStream::connect(listener.local_addr()?)?;
    let here = listener.accept()?.0;
    here.set_nodelay(true)?;
    there.set_nodelay(true)?;
    Ok([here, there])
}

/// Seconds that two ranks take to add so many numbers each, at the same time.
fn additions(length: usize) -> f64 {
    let mut buffers: Vec<(Vec<f32>, Vec<f32>)> = (0..2).map(|_| (vec![1.0; length], vec![2.0; length])).collect();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for (own, other) in &mut buffers {
            scope.spawn(move || own.iter_mut().zip(&*other).for_each(|(own, other)| *own += other));
        }
    });
    let seconds = begun.elapsed().as_secs_f64();
    std::hint::black_box(&buffers);
    seconds
}

fn failed(error: &std::io::Error) -> Error {
    Error::Gang(format!("the loopback interface: {error}"))
}
