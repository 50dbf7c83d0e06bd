//! How a gang's calls travel: over NCCL between CUDA devices, or over the TCP ring. Decided before anything is exchanged, by all members
//! alike; what was decided is never quietly replaced.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::{Args, ValueEnum};
use tch::Device;

use super::nccl::communicator::Limits;
use super::nccl::library::UniqueId;
use super::nccl::{self, NcclGang};
use super::ring::{self, Ring};
use super::{Collective, Numbers};
use crate::error::{Error, Result};
use crate::fault::Fault;
use crate::pulse::Pulse;

/// What `--collective` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Choice {
    /// NCCL on a CUDA device, the ring on the processor.
    #[default]
    Auto,
    /// NCCL; an error where it cannot be loaded or finds no device.
    Nccl,
    /// The TCP ring; tensors of a CUDA device go through the host's memory.
    Ring,
}

/// How the members of a gang exchange.
#[derive(Debug, Clone, Copy, Args)]
pub struct ExchangeArgs {
    /// How the members of a gang exchange: auto is NCCL on a CUDA device, else the TCP ring. See TRACE_NCCL_LIBRARY in docs/gangs.md
    #[arg(long, value_enum, default_value = "auto")]
    pub collective: Choice,
    /// Seconds that a call of a gang may take, waiting for the slowest member included; then the attempt is over
    #[arg(long, default_value_t = 600, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub call_deadline_s: u64,
}

impl ExchangeArgs {
    /// Returns how long a call may take.
    pub fn call_deadline(&self) -> Duration {
        Duration::from_secs(self.call_deadline_s)
    }
}

/// How calls travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Over TCP.
    Ring,
    /// Between CUDA devices.
    Nccl,
}

impl Choice {
    /// Returns how members on such a device exchange.
    pub fn on(self, device: Device) -> Transport {
        match self {
            Choice::Auto if device.is_cuda() => Transport::Nccl,
            Choice::Nccl => Transport::Nccl,
            Choice::Auto | Choice::Ring => Transport::Ring,
        }
    }
}

/// Ends a gang's calls from another thread.
#[derive(Debug)]
pub struct Aborter {
    ring: ring::Aborter,
    nccl: Arc<AtomicBool>,
}

impl Aborter {
    /// Makes the present call, and every later one, fail at once.
    pub fn abort(&self) {
        self.nccl.store(true, Ordering::SeqCst);
        self.ring.abort();
    }
}

/// A gang whose members have met in a ring, and who ends its calls.
pub struct Met {
    ring: Ring,
    nccl: Arc<AtomicBool>,
    pulse: Arc<Pulse>,
}

impl Met {
    /// Begins with the ring in which the members have proven to be of one attempt.
    pub fn new(ring: Ring) -> Met {
        Met { ring, nccl: Arc::default(), pulse: Arc::default() }
    }

    /// Lets `pulse` tell whether anything moves in the gang's calls; see [`Ring::watched`] for the plan.
    pub fn watched(self, pulse: Arc<Pulse>, fault: Option<Arc<Fault>>) -> Met {
        Met { ring: self.ring.watched(pulse.clone(), fault), pulse, ..self }
    }

    /// Returns what ends the calls of this gang, also of the way from the ring to NCCL.
    ///
    /// # Errors
    /// The system has no more file descriptors.
    pub fn aborter(&self) -> Result<Aborter> {
        Ok(Aborter { ring: self.ring.aborter()?, nccl: self.nccl.clone() })
    }

    /// Goes on by the transport that is asked for. Over NCCL the communicator has the name that the members were told
    /// with their addresses; where nobody told them (`None`), the first rank's name goes over the ring.
    ///
    /// # Errors
    /// Members ask for different transports; NCCL or the CUDA runtime is not there, finds no device, or a member does not come.
    pub fn travel(
        mut self,
        exchange: ExchangeArgs,
        device: Device,
        named: Option<&[u8]>,
    ) -> Result<Box<dyn Collective>> {
        let transport = exchange.collective.on(device);
        let all = self.ring.all_gather_number(f64::from(u8::from(transport == Transport::Nccl)))?;
        if let Some(other) = all.iter().position(|other| *other != all[self.ring.rank()]) {
            let name = |is_nccl: f64| if is_nccl == 0.0 { "the ring" } else { "NCCL" };
            let (rank, own, theirs) = (self.ring.rank(), name(all[self.ring.rank()]), name(all[other]));
            return Err(Error::Config(format!(
                "rank {rank} exchanges over {own}, rank {other} over {theirs}: give all members the same --collective and the \
                 same kind of device"
            )));
        }
        match transport {
            Transport::Ring => Ok(Box::new(self.ring)),
            Transport::Nccl => self.over_nccl(exchange.call_deadline(), device, named),
        }
    }

    fn over_nccl(mut self, call: Duration, device: Device, named: Option<&[u8]>) -> Result<Box<dyn Collective>> {
        let (rank, world_size) = (self.ring.rank(), self.ring.world_size());
        let libraries = nccl::load_as_told().and_then(|libraries| {
            let id = match named {
                Some(bytes) => UniqueId::from_bytes(bytes)?,
                None if rank == 0 => libraries.nccl.unique_id()?,
                None => UniqueId([0; UniqueId::BYTES]),
            };
            Ok((libraries, id))
        });
        // All hear of it where one cannot, before anyone waits for it in NCCL.
        let able = self.ring.all_gather_number(f64::from(u8::from(libraries.is_ok())))?;
        let (libraries, mut id) = libraries?;
        if let Some(other) = able.iter().position(|able| *able == 0.0) {
            return Err(Error::Gang(format!("rank {other} cannot use NCCL; its own error says why")));
        }
        if named.is_none() {
            // Bytes as numbers, since numbers are what is exchanged.
            let mut name: Vec<f32> = id.0.iter().map(|byte| f32::from(*byte)).collect();
            self.ring.broadcast(Numbers::from(name.as_mut_slice()), 0)?;
            id.0.iter_mut().zip(name).for_each(|(byte, number)| *byte = number as u8);
        }
        let at = match device {
            Device::Cuda(number) => number,
            // Numbers of the host go through a device all the same.
            _ => 0,
        };
        let limits = Limits { form: Duration::from_secs(60), call, abort: Duration::from_secs(20) };
        let gang = NcclGang::form(&libraries, id, (rank, world_size), at, limits, self.nccl)?.watched(self.pulse);
        tracing::info!(rank, world_size, "the gang exchanges over NCCL");
        Ok(Box::new(gang))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_decides_only_where_nothing_is_asked_for() {
        for (choice, on_cpu, on_gpu) in [
            (Choice::Auto, Transport::Ring, Transport::Nccl),
            (Choice::Nccl, Transport::Nccl, Transport::Nccl),
            (Choice::Ring, Transport::Ring, Transport::Ring),
        ] {
            assert_eq!((choice.on(Device::Cpu), choice.on(Device::Cuda(1))), (on_cpu, on_gpu));
        }
    }

    #[test]
    fn members_that_would_travel_apart_are_told() {
        let choices = [Choice::Ring, Choice::Nccl];
        let rings = ring::tests::rings(2);
        let errors: Vec<String> = std::thread::scope(|scope| {
            let start = |(ring, collective)| {
                let exchange = ExchangeArgs { collective, call_deadline_s: 60 };
                scope.spawn(move || Met::new(ring).travel(exchange, Device::Cpu, None).err().unwrap().to_string())
            };
            let threads: Vec<_> = rings.into_iter().zip(choices).map(start).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(errors[0].contains("rank 0 exchanges over the ring, rank 1 over NCCL"), "{errors:?}");
        assert!(errors[1].contains("rank 1 exchanges over NCCL, rank 0 over the ring"), "{errors:?}");
    }
}
