//! NCCL and the CUDA runtime as tables of the calls that are made, loaded when they are needed.
//!
//! Nothing here is linked: a build without CUDA loads `libnccl.so.2` and `libcudart.so` where a gang asks for them, and
//! says what is missing otherwise. The types are those of `nccl.h` and `cuda_runtime_api.h`.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

use libloading::Library;

use crate::error::{Error, Result};

/// `ncclUniqueId`: names one communicator to its members.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct UniqueId(pub [u8; UniqueId::BYTES]);

impl UniqueId {
    /// Its size.
    pub const BYTES: usize = 128;

    /// Reads one from bytes as another member made them.
    ///
    /// # Errors
    /// They are not so many.
    pub fn from_bytes(bytes: &[u8]) -> Result<UniqueId> {
        let own = bytes.try_into().map(UniqueId);
        own.map_err(|_| {
            Error::Gang(format!("the name of NCCL's communicator has {} bytes, not {}", bytes.len(), Self::BYTES))
        })
    }
}

/// `ncclComm_t`.
pub type Comm = *mut c_void;
/// `cudaStream_t`.
pub type Stream = *mut c_void;
/// `cudaEvent_t`.
pub type Event = *mut c_void;

/// `ncclConfig_t` as of version 2.18, whose fields every later version begins with; NCCL reads as many bytes as it is told.
#[repr(C)]
pub struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
}

impl Config {
    /// Calls return at once, and are asked for how far they are.
    pub fn non_blocking() -> Config {
        const UNDEFINED: c_int = c_int::MIN;
        Config {
            size: size_of::<Config>(),
            magic: 0xcafe_beef,
            version: OLDEST as c_uint,
            blocking: 0,
            cga_cluster_size: UNDEFINED,
            min_ctas: UNDEFINED,
            max_ctas: UNDEFINED,
            net_name: std::ptr::null(),
            split_share: UNDEFINED,
        }
    }
}

/// The oldest version that is used, 2.18: the first whose non-blocking communicators can be aborted while they form.
pub const OLDEST: c_int = 21_800;
/// The version that is tried, as its wheel on PyPI has it.
pub const TRIED: c_int = 22_907;

/// What a call returned: 0 is success.
pub type Status = c_int;
/// `ncclInProgress`.
pub const IN_PROGRESS: Status = 7;
/// `cudaErrorNotReady`.
pub const NOT_READY: Status = 600;
/// `ncclSystemError` and the others, as words.
const NAMES: [&str; 8] = [
    "success",
    "unhandled CUDA error",
    "system error",
    "internal error",
    "invalid argument",
    "invalid usage",
    "remote error",
    "in progress",
];

/// Declares a table: its name, what it is called in errors, and its calls.
macro_rules! table {
    ($(#[$doc:meta])* $name:ident { $($(#[$call_doc:meta])* $field:ident = $symbol:literal ($($arg:ty),*);)* }) => {
        $(#[$doc])*
        #[allow(missing_docs)]
        pub struct $name {
            $($(#[$call_doc])* pub $field: unsafe extern "C" fn($($arg),*) -> Status,)*
            /// Where it is from.
            pub path: PathBuf,
            // Its threads may outlive whoever uses it: it is never unloaded.
            handle: ManuallyDrop<Library>,
        }

        impl $name {
            /// Loads the library and looks every call up.
            ///
            /// # Errors
            /// The library cannot be loaded, or lacks a call.
            pub fn load(path: &Path) -> Result<$name> {
                // SAFETY: loading runs the library's initialisers; it is the one that whoever starts this program names.
                let library = unsafe { Library::new(path) };
                let library = library.map_err(|error| Error::Gang(format!("{}: cannot be loaded: {error}", path.display())))?;
                let missing = |symbol: &str, error: libloading::Error| {
                    Error::Gang(format!("{}: has no call {symbol}: {error}", path.display()))
                };
                Ok($name {
                    $($field: {
                        // SAFETY: the symbol's type is that of the library's header.
                        let call = unsafe { library.get(concat!($symbol, "\0").as_bytes()) };
                        *call.map_err(|error| missing($symbol, error))?
                    },)*
                    path: path.to_owned(),
                    handle: ManuallyDrop::new(library),
                })
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($name)).field("path", &self.path).finish_non_exhaustive()
            }
        }
    };
}

table! {
    /// The calls of NCCL.
    Nccl {
        get_version = "ncclGetVersion" (*mut c_int);
        get_unique_id = "ncclGetUniqueId" (*mut UniqueId);
        init_rank_config = "ncclCommInitRankConfig" (*mut Comm, c_int, UniqueId, c_int, *mut Config);
        get_async_error = "ncclCommGetAsyncError" (Comm, *mut Status);
        finalize = "ncclCommFinalize" (Comm);
        destroy = "ncclCommDestroy" (Comm);
        abort = "ncclCommAbort" (Comm);
        /// From, to, count, type, operation.
        all_reduce = "ncclAllReduce" (*const c_void, *mut c_void, usize, c_int, c_int, Comm, Stream);
        /// From, to, count, type, operation, root.
        reduce = "ncclReduce" (*const c_void, *mut c_void, usize, c_int, c_int, c_int, Comm, Stream);
        /// From, to, count a rank, type, operation.
        reduce_scatter = "ncclReduceScatter" (*const c_void, *mut c_void, usize, c_int, c_int, Comm, Stream);
        /// From, to, count a rank, type.
        all_gather = "ncclAllGather" (*const c_void, *mut c_void, usize, c_int, Comm, Stream);
        /// From, to, count, type, root.
        broadcast = "ncclBroadcast" (*const c_void, *mut c_void, usize, c_int, c_int, Comm, Stream);
        group_start = "ncclGroupStart" ();
        group_end = "ncclGroupEnd" ();
    }
}

table! {
    /// The calls of the CUDA runtime.
    Cuda {
        get_device_count = "cudaGetDeviceCount" (*mut c_int);
        set_device = "cudaSetDevice" (c_int);
        malloc = "cudaMalloc" (*mut *mut c_void, usize);
        free = "cudaFree" (*mut c_void);
        /// To, from, bytes, kind (4: told by the addresses), stream.
        memcpy = "cudaMemcpyAsync" (*mut c_void, *const c_void, usize, c_int, Stream);
        /// Flag 1: it does not wait for the default stream by itself.
        stream_create = "cudaStreamCreateWithFlags" (*mut Stream, c_uint);
        stream_query = "cudaStreamQuery" (Stream);
        stream_destroy = "cudaStreamDestroy" (Stream);
        stream_wait = "cudaStreamWaitEvent" (Stream, Event, c_uint);
        /// Flag 2: without timing.
        event_create = "cudaEventCreateWithFlags" (*mut Event, c_uint);
        event_record = "cudaEventRecord" (Event, Stream);
        event_query = "cudaEventQuery" (Event);
        event_destroy = "cudaEventDestroy" (Event);
    }
}

/// Returns the error of a call that fails on this machine whoever makes it, and again in the next attempt.
fn lasting(error: Error) -> Error {
    match error {
        Error::Gang(problem) => Error::Config(problem),
        other => other,
    }
}

impl Nccl {
    /// Returns its version as one number: 2.29.7 is 22907.
    ///
    /// # Errors
    /// It does not tell, or is older than [`OLDEST`].
    pub fn version(&self) -> Result<c_int> {
        let mut version = 0;
        // SAFETY: the pointer is to a number of this type.
        self.checked("ncclGetVersion", unsafe { (self.get_version)(&raw mut version) })?;
        if version < OLDEST {
            let problem = format!("is version {version}; {OLDEST} (2.18) or later is needed, {TRIED} was tried");
            return Err(Error::Config(format!("{}: {problem}", self.path.display())));
        }
        Ok(version)
    }

    /// Makes the name of a new communicator; one member makes it for all.
    ///
    /// # Errors
    /// NCCL finds no network interface, or otherwise fails.
    pub fn unique_id(&self) -> Result<UniqueId> {
        let mut id = UniqueId([0; UniqueId::BYTES]);
        // SAFETY: the pointer is to a name's room.
        self.checked("ncclGetUniqueId", unsafe { (self.get_unique_id)(&raw mut id) }).map_err(lasting)?;
        Ok(id)
    }

    /// Returns an error that names the call and what NCCL says of it, unless it was successful.
    pub fn checked(&self, call: &str, status: Status) -> Result<()> {
        if status == 0 { Ok(()) } else { Err(Error::Gang(format!("{call}: {}{}", name(status), self.last_words()))) }
    }

    /// What NCCL wrote of its last error, where it has the call.
    fn last_words(&self) -> String {
        type LastError = unsafe extern "C" fn(Comm) -> *const c_char;
        // SAFETY: the symbol's type is that of nccl.h; with no communicator it tells the last error of all.
        let words = unsafe {
            let call = self.handle.get::<LastError>(b"ncclGetLastError\0");
            call.ok().map(|call| call(std::ptr::null_mut())).filter(|words| !words.is_null())
        };
        // SAFETY: NCCL returns a text that ends with 0 and stays.
        let words = words.map(|words| unsafe { CStr::from_ptr(words) }.to_string_lossy().trim().to_owned());
        words.filter(|words| !words.is_empty()).map_or_else(String::new, |words| format!(" ({words})"))
    }
}

impl Cuda {
    /// Returns an error that names the call and what CUDA says of it, unless it was successful.
    pub fn checked(&self, call: &str, status: Status) -> Result<()> {
        type Words = unsafe extern "C" fn(Status) -> *const c_char;
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the symbol's type is that of cuda_runtime_api.h, and it returns a text that ends with 0 and stays.
        let words = unsafe {
            let text = self.handle.get::<Words>(b"cudaGetErrorString\0").ok().map(|words| words(status));
            text.filter(|text| !text.is_null()).map(|text| CStr::from_ptr(text).to_string_lossy().into_owned())
        };
        Err(Error::Gang(format!("{call}: {} ({status})", words.unwrap_or_else(|| "failed".into()))))
    }

    /// Returns how many devices there are.
    ///
    /// # Errors
    /// There is no driver.
    pub fn devices(&self) -> Result<usize> {
        let mut count = 0;
        // SAFETY: the pointer is to a number of this type.
        self.checked("cudaGetDeviceCount", unsafe { (self.get_device_count)(&raw mut count) })?;
        Ok(usize::try_from(count).unwrap_or(0))
    }
}

/// Returns what a status of NCCL means.
pub fn name(status: Status) -> String {
    let known = usize::try_from(status).ok().and_then(|at| NAMES.get(at));
    known.map_or_else(|| format!("status {status}"), |name| (*name).to_owned())
}
