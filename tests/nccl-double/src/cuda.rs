//! The CUDA runtime: one device, memory of the host, streams that are threads.
#![allow(non_snake_case, clippy::missing_safety_doc)]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use crate::Status;

const INVALID_VALUE: Status = 1;
const INVALID_HANDLE: Status = 400;
const NOT_READY: Status = 600;

type Work = Box<dyn FnOnce() + Send>;

/// A stream: what it was given, and how much of that is done.
pub struct Queue {
    work: Sender<Work>,
    given: AtomicU64,
    done: Arc<AtomicU64>,
    /// It waits for an event that was recorded after its last collective.
    pub is_after_default: std::sync::atomic::AtomicBool,
}

thread_local! {
    static DEVICE: Cell<Option<c_int>> = const { Cell::new(None) };
}

static STREAMS: Mutex<BTreeMap<usize, Arc<Queue>>> = Mutex::new(BTreeMap::new());
static EVENTS: Mutex<BTreeMap<usize, bool>> = Mutex::new(BTreeMap::new());
static BLOCKS: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());
static NEXT: AtomicU64 = AtomicU64::new(1);

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns whether this thread has chosen its device.
pub fn has_device() -> bool {
    DEVICE.with(Cell::get).is_some()
}

/// Returns a stream that was made.
pub fn stream(handle: *mut c_void) -> Option<Arc<Queue>> {
    locked(&STREAMS).get(&(handle as usize)).cloned()
}

/// Returns whether so many bytes are device memory.
pub fn is_device(pointer: *const c_void, bytes: usize) -> bool {
    let at = pointer as usize;
    let blocks = locked(&BLOCKS);
    blocks.range(..=at).next_back().is_some_and(|(start, length)| at + bytes <= start + length)
}

impl Queue {
    /// Gives the stream work.
    pub fn give(&self, work: impl FnOnce() + Send + 'static) {
        self.given.fetch_add(1, Ordering::SeqCst);
        let done = self.done.clone();
        let _ = self.work.send(Box::new(move || {
            work();
            done.fetch_add(1, Ordering::SeqCst);
        }));
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cudaGetDeviceCount(count: *mut c_int) -> Status {
    // SAFETY: the caller's promise.
    unsafe { *count = 1 };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cudaSetDevice(device: c_int) -> Status {
    if device != 0 {
        return 101;
    }
    DEVICE.with(|own| own.set(Some(device)));
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cudaMalloc(pointer: *mut *mut c_void, bytes: usize) -> Status {
    let block = vec![0u64; bytes.div_ceil(8).max(1)].into_boxed_slice();
    let length = block.len() * 8;
    let at = Box::into_raw(block).cast::<c_void>();
    locked(&BLOCKS).insert(at as usize, length);
    // SAFETY: the caller's promise.
    unsafe { *pointer = at };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cudaFree(pointer: *mut c_void) -> Status {
    if pointer.is_null() {
        return 0;
    }
    let Some(length) = locked(&BLOCKS).remove(&(pointer as usize)) else { return INVALID_VALUE };
    // SAFETY: made by cudaMalloc with this length, and freed once.
    drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(pointer.cast::<u64>(), length / 8)) });
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cudaMemcpyAsync(
    to: *mut c_void,
    from: *const c_void,
    bytes: usize,
    _kind: c_int,
    handle: *mut c_void,
) -> Status {
    let (Some(stream), true) = (stream(handle), has_device()) else { return INVALID_HANDLE };
    if !is_device(to, bytes) && !is_device(from, bytes) {
        return INVALID_VALUE;
    }
    let (to, from) = (to as usize, from as usize);
    // SAFETY: both stay until the stream is done, as the caller promises.
    stream.give(move || unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) });
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cudaStreamCreateWithFlags(handle: *mut *mut c_void, flags: c_uint) -> Status {
    if flags != 1 || !has_device() {
        return INVALID_VALUE;
    }
    let (work, queue) = channel::<Work>();
    std::thread::spawn(move || queue.into_iter().for_each(|work| work()));
    let made = Queue { work, given: AtomicU64::new(0), done: Arc::default(), is_after_default: Default::default() };
    let name = NEXT.fetch_add(1, Ordering::SeqCst) as usize;
    locked(&STREAMS).insert(name, Arc::new(made));
    // SAFETY: the caller's promise.
    unsafe { *handle = name as *mut c_void };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cudaStreamQuery(handle: *mut c_void) -> Status {
    let Some(stream) = stream(handle) else { return INVALID_HANDLE };
    let is_done = stream.done.load(Ordering::SeqCst) == stream.given.load(Ordering::SeqCst);
    if is_done { 0 } else { NOT_READY }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cudaStreamDestroy(handle: *mut c_void) -> Status {
    match locked(&STREAMS).remove(&(handle as usize)) {
        Some(_) => 0,
        None => INVALID_HANDLE,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cudaEventCreateWithFlags(event: *mut *mut c_void, flags: c_uint) -> Status {
    if flags != 2 {
        return INVALID_VALUE;
    }
    let name = NEXT.fetch_add(1, Ordering::SeqCst) as usize;
    locked(&EVENTS).insert(name, false);
    // SAFETY: the caller's promise.
    unsafe { *event = name as *mut c_void };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cudaEventRecord(event: *mut c_void, handle: *mut c_void) -> Status {
    // Of the default stream alone: its work is done when it is given, here.
    match locked(&EVENTS).get_mut(&(event as usize)) {
        Some(recorded) if handle.is_null() && has_device() => {
            *recorded = true;
            0
        }
        _ => INVALID_HANDLE,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cudaStreamWaitEvent(handle: *mut c_void, event: *mut c_void, _flags: c_uint) -> Status {
    let Some(stream) = stream(handle) else { return INVALID_HANDLE };
    match locked(&EVENTS).get_mut(&(event as usize)) {
        Some(recorded) if *recorded => {
            *recorded = false;
            stream.is_after_default.store(true, Ordering::SeqCst);
            0
        }
        _ => INVALID_HANDLE,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cudaEventQuery(event: *mut c_void) -> Status {
    // What is given to the default stream is done when its call returns.
    locked(&EVENTS).get(&(event as usize)).map_or(INVALID_HANDLE, |_| 0)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cudaEventDestroy(event: *mut c_void) -> Status {
    locked(&EVENTS).remove(&(event as usize)).map_or(INVALID_HANDLE, |_| 0)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cudaGetErrorString(status: Status) -> *const c_char {
    let words: &[u8] = match status {
        INVALID_VALUE => b"invalid argument\0",
        101 => b"invalid device ordinal\0",
        INVALID_HANDLE => b"invalid resource handle\0",
        NOT_READY => b"device not ready\0",
        _ => b"unknown error\0",
    };
    words.as_ptr().cast()
}
