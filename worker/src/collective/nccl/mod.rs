//! A gang over NCCL: tensors on a CUDA device are exchanged where they are; numbers of the host go through the device.
//!
//! NCCL promises neither an order of additions nor the same one for different calls, so a sum by [`Collective::all_reduce`] may
//! differ from the same by [`Collective::reduce_scatter`] in its last bits; one call on one set of machines is the same every
//! time. A maximum over NaN is not told.

#![allow(unsafe_code)]

pub mod communicator;
pub mod library;
#[cfg(test)]
mod tests;

use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tch::Kind;

use self::communicator::{Communicator, Libraries, Limits, begun};
use self::library::{Comm, Cuda, Nccl, Stream, UniqueId};
use super::numbers::{Numbers, Op};
use super::{Collective, shard};
use crate::error::{Error, Result};
use crate::pulse::Pulse;

/// Loads NCCL and the CUDA runtime: from the paths given, else as the system finds them.
///
/// # Errors
/// One of them is not there, lacks a call, or is too old; says what to do.
pub fn load(nccl: Option<&Path>, cuda: Option<&Path>) -> Result<Libraries> {
    let advice = |error: Error| {
        Error::Config(format!(
            "{error}; NCCL is in the package nvidia-nccl-cu13 and the CUDA runtime in nvidia-cuda-runtime (deploy/libtorch.sh \
             --cuda brings both): put their folder into LD_LIBRARY_PATH or name the files by TRACE_NCCL_LIBRARY and \
             TRACE_CUDART_LIBRARY, or take --collective ring"
        ))
    };
    let found = |given: Option<&Path>, name: &str| given.map_or_else(|| PathBuf::from(name), Path::to_owned);
    let nccl = Nccl::load(&found(nccl, "libnccl.so.2")).map_err(advice)?;
    let version = nccl.version().map_err(advice)?;
    let cuda = Cuda::load(&found(cuda, "libcudart.so.13")).map_err(advice)?;
    tracing::info!(version, library = %nccl.path.display(), "NCCL");
    Ok(Libraries { nccl: Arc::new(nccl), cuda: Arc::new(cuda) })
}

/// As [`load`], from the paths that `TRACE_NCCL_LIBRARY` and `TRACE_CUDART_LIBRARY` name.
///
/// # Errors
/// See [`load`].
pub fn load_as_told() -> Result<Libraries> {
    let named = |variable: &str| std::env::var_os(variable).map(PathBuf::from);
    load(named("TRACE_NCCL_LIBRARY").as_deref(), named("TRACE_CUDART_LIBRARY").as_deref())
}

/// One member's place in a gang over NCCL.
#[derive(Debug)]
pub struct NcclGang {
    rank: usize,
    world_size: usize,
    communicator: Communicator,
    staging: Staging,
}

/// Room on the device for numbers of the host.
#[derive(Debug)]
struct Staging {
    pointer: *mut c_void,
    bytes: usize,
}

// SAFETY: device memory may be used by any thread, one at a time.
unsafe impl Send for Staging {}

/// Numbers as NCCL sees them, on the device.
#[derive(Clone, Copy)]
struct Buffer {
    pointer: *mut c_void,
    length: usize,
    /// `ncclDataType_t`
    kind: c_int,
    /// Bytes of a number.
    size: usize,
}

impl Buffer {
    fn at(self, place: usize) -> *mut c_void {
        self.pointer.wrapping_byte_add(place * self.size)
    }
}

impl NcclGang {
    /// Joins the other members on a CUDA device; all give the same id. The flag, once set, ends the present call and all later ones.
    ///
    /// # Errors
    /// See [`Communicator::form`].
    pub fn form(
        libraries: &Libraries,
        id: UniqueId,
        (rank, world_size): (usize, usize),
        device: usize,
        limits: Limits,
        abort: Arc<AtomicBool>,
    ) -> Result<NcclGang> {
        let communicator = Communicator::form(libraries, id, (rank, world_size), device, limits, abort)?;
        Ok(NcclGang { rank, world_size, communicator, staging: Staging { pointer: null_mut(), bytes: 0 } })
    }

    /// Lets `pulse` tell whether the gang is in a call. How far a call is NCCL does not say: it counts as moving for as long as
    /// its numbers may take on a slow network, the first call a minute longer; from then on nothing moves.
    pub fn watched(mut self, pulse: Arc<Pulse>) -> NcclGang {
        self.communicator.watch_by(pulse);
        self
    }

    /// Makes calls on numbers wherever they are, and waits until they are done.
    fn on(
        &mut self,
        what: &str,
        numbers: Numbers<'_>,
        calls: impl FnOnce(&Nccl, Buffer, Comm, Stream) -> Result<()>,
    ) -> Result<()> {
        let (pointer, length, kind, size) = match numbers {
            Numbers::F32(numbers) => (numbers.as_mut_ptr().cast(), numbers.len(), 7, 4),
            Numbers::F64(numbers) => (numbers.as_mut_ptr().cast(), numbers.len(), 8, 8),
            Numbers::Bf16(numbers) => (numbers.as_mut_ptr().cast(), numbers.len(), 9, 2),
            Numbers::Device(tensor) => {
                let (kind, size) = match tensor.kind() {
                    Kind::Float => (7, 4),
                    Kind::Double => (8, 8),
                    Kind::BFloat16 => (9, 2),
                    other => return Err(Error::Gang(format!("numbers of type {other:?} are not exchanged"))),
                };
                let buffer = Buffer { pointer: tensor.data_ptr(), length: tensor.numel(), kind, size };
                if buffer.length == 0 {
                    return Ok(());
                }
                return self.communicator.call(what, buffer.length * size, |libraries, comm, stream| {
                    calls(&libraries.nccl, buffer, comm, stream)
                });
            }
        };
        if length == 0 {
            return Ok(());
        }
        let bytes = length * size;
        let buffer = Buffer { pointer: self.room(bytes)?, length, kind, size };
        self.communicator.call(what, bytes, |libraries, comm, stream| {
            copy(&libraries.cuda, buffer.pointer, pointer, bytes, stream)?;
            calls(&libraries.nccl, buffer, comm, stream)
        })?;
        // Only now: a copy to the host's memory waits without a deadline for what is before it.
        self.communicator
            .call(what, bytes, |libraries, _, stream| copy(&libraries.cuda, pointer, buffer.pointer, bytes, stream))
    }

    /// Returns device memory of at least so many bytes.
    fn room(&mut self, bytes: usize) -> Result<*mut c_void> {
        if self.staging.bytes < bytes {
            let cuda = self.communicator.libraries().cuda.clone();
            self.communicator.on_device()?;
            let _watched = self.communicator.watched();
            // SAFETY: nothing in flight uses the old room, since every call is waited for; the new pointer is CUDA's.
            unsafe {
                let _ = (cuda.free)(self.staging.pointer);
                self.staging = Staging { pointer: null_mut(), bytes: 0 };
                cuda.checked("cudaMalloc", (cuda.malloc)(&raw mut self.staging.pointer, bytes))?;
            }
            self.staging.bytes = bytes;
        }
        Ok(self.staging.pointer)
    }

    fn shards(&self, length: usize) -> Vec<Range<usize>> {
        (0..self.world_size).map(|rank| shard(length, rank, self.world_size)).collect()
    }
}

impl Drop for NcclGang {
    fn drop(&mut self) {
        // After a call that failed something may still use it; the memory goes with the process.
        if self.communicator.is_whole() {
            let _watched = self.communicator.watched();
            // SAFETY: nothing in flight uses it, and nothing will.
            let _ = unsafe { (self.communicator.libraries().cuda.free)(self.staging.pointer) };
        }
    }
}

fn copy(cuda: &Cuda, to: *mut c_void, from: *const c_void, bytes: usize, stream: Stream) -> Result<()> {
    // SAFETY: both are memory of at least so many bytes, and stay until the stream is done.
    cuda.checked("cudaMemcpyAsync", unsafe { (cuda.memcpy)(to, from, bytes, 4, stream) })
}

fn code(op: Op) -> c_int {
    match op {
        Op::Sum => 0,
        Op::Max => 2,
    }
}

/// Makes several calls as one.
fn grouped(nccl: &Nccl, calls: impl FnOnce() -> Result<()>) -> Result<()> {
    // SAFETY: no arguments; every start has its end.
    begun(nccl, "ncclGroupStart", unsafe { (nccl.group_start)() })?;
    let made = calls();
    // SAFETY: as above.
    let ended = begun(nccl, "ncclGroupEnd", unsafe { (nccl.group_end)() });
    made.and(ended)
}

// SAFETY, of every call below: the pointers are to device memory of the length and type that is told, and stay until the call
// has been waited for; communicator and stream are the ones that this member made.
impl Collective for NcclGang {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn check(&self) -> Result<()> {
        self.communicator.check()
    }

    fn reduce_scatter(&mut self, numbers: Numbers<'_>, op: Op) -> Result<()> {
        let (shards, rank, world_size) = (self.shards(numbers.len()), self.rank, self.world_size);
        self.on("a reduce-scatter", numbers, |nccl, buffer, comm, stream| {
            if buffer.length % world_size == 0 {
                let own = buffer.at(shards[rank].start);
                let count = buffer.length / world_size;
                // SAFETY: see above.
                let status =
                    unsafe { (nccl.reduce_scatter)(buffer.pointer, own, count, buffer.kind, code(op), comm, stream) };
                return begun(nccl, "ncclReduceScatter", status);
            }
            // Shards of different lengths: each is a sum at its own rank.
            grouped(nccl, || {
                shards.iter().enumerate().filter(|(_, shard)| !shard.is_empty()).try_for_each(|(root, shard)| {
                    let at = buffer.at(shard.start);
                    // SAFETY: see above.
                    let status = unsafe {
                        (nccl.reduce)(at, at, shard.len(), buffer.kind, code(op), root as c_int, comm, stream)
                    };
                    begun(nccl, "ncclReduce", status)
                })
            })
        })
    }

    fn all_gather(&mut self, numbers: Numbers<'_>) -> Result<()> {
        let (shards, rank, world_size) = (self.shards(numbers.len()), self.rank, self.world_size);
        self.on("an all-gather", numbers, |nccl, buffer, comm, stream| {
            if buffer.length % world_size == 0 {
                let own = buffer.at(shards[rank].start);
                let count = buffer.length / world_size;
                // SAFETY: see above.
                let status = unsafe { (nccl.all_gather)(own, buffer.pointer, count, buffer.kind, comm, stream) };
                return begun(nccl, "ncclAllGather", status);
            }
            grouped(nccl, || {
                shards.iter().enumerate().filter(|(_, shard)| !shard.is_empty()).try_for_each(|(root, shard)| {
                    let at = buffer.at(shard.start);
                    // SAFETY: see above.
                    let status =
                        unsafe { (nccl.broadcast)(at, at, shard.len(), buffer.kind, root as c_int, comm, stream) };
                    begun(nccl, "ncclBroadcast", status)
                })
            })
        })
    }

    fn all_reduce(&mut self, numbers: Numbers<'_>, op: Op) -> Result<()> {
        self.on("an all-reduce", numbers, |nccl, buffer, comm, stream| {
            let Buffer { pointer, length, kind, .. } = buffer;
            // SAFETY: see above.
            let status = unsafe { (nccl.all_reduce)(pointer, pointer, length, kind, code(op), comm, stream) };
            begun(nccl, "ncclAllReduce", status)
        })
    }

    fn broadcast(&mut self, numbers: Numbers<'_>, root: usize) -> Result<()> {
        self.on("a broadcast", numbers, |nccl, buffer, comm, stream| {
            let Buffer { pointer, length, kind, .. } = buffer;
            // SAFETY: see above.
            let status = unsafe { (nccl.broadcast)(pointer, pointer, length, kind, root as c_int, comm, stream) };
            begun(nccl, "ncclBroadcast", status)
        })
    }

    fn barrier(&mut self) -> Result<()> {
        self.all_reduce(vec![0f32; self.world_size].as_mut_slice().into(), Op::Sum)
    }
}
