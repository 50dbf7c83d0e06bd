//! NCCL: communicators over shared memory, every call checked.
#![allow(non_snake_case, clippy::missing_safety_doc, clippy::too_many_arguments)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::cuda::{self, Queue};
use crate::plan::Plan;
use crate::shared::{Gone, Said, Shared};
use crate::{IN_PROGRESS, INVALID_ARGUMENT, INVALID_USAGE, REMOTE_ERROR, SUCCESS, SYSTEM_ERROR, Status, fail};

const VERSION: c_int = 22_907;
const ID_BYTES: usize = 128;
const MARK: &str = "nccl-double-";

/// `ncclUniqueId`
#[repr(C)]
#[derive(Clone, Copy)]
pub struct UniqueId([u8; ID_BYTES]);

/// The first fields of `ncclConfig_t`.
#[repr(C)]
pub struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
}

struct Communicator {
    shared: OnceLock<Shared>,
    world_size: usize,
    plan: Plan,
    status: AtomicI32,
    why: Mutex<String>,
    collectives: AtomicU64,
    /// Given to a stream and not done: an end waits for them, so that their memory may be freed after it.
    under_way: AtomicU64,
    is_finalized: AtomicBool,
    /// Set before the memory is there, and handed to it.
    aborted: Arc<AtomicBool>,
}

#[derive(Clone, Copy)]
enum Call {
    AllReduce = 1,
    Reduce,
    ReduceScatter,
    AllGather,
    Broadcast,
}

/// One collective as it was asked for.
#[derive(Clone, Copy)]
struct Collective {
    call: Call,
    from: usize,
    to: usize,
    count: usize,
    kind: c_int,
    op: c_int,
    root: usize,
}

/// A group's collectives, with their communicators and streams.
type Pending = Vec<(Arc<Communicator>, Arc<Queue>, Collective)>;

thread_local! {
    static GROUP: RefCell<Option<Pending>> = const { RefCell::new(None) };
}

static COMMUNICATORS: Mutex<BTreeMap<usize, Arc<Communicator>>> = Mutex::new(BTreeMap::new());
static NEXT: AtomicU64 = AtomicU64::new(1);

fn known() -> std::sync::MutexGuard<'static, BTreeMap<usize, Arc<Communicator>>> {
    COMMUNICATORS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn communicator(handle: *mut c_void) -> Result<Arc<Communicator>, Status> {
    let found = known().get(&(handle as usize)).cloned();
    found.ok_or_else(|| fail(INVALID_ARGUMENT, "there is no such communicator: not made, or destroyed"))
}

fn status_of(done: Result<(), Status>) -> Status {
    done.err().unwrap_or(SUCCESS)
}

impl Communicator {
    fn set(&self, status: Status, why: &str) {
        *self.why.lock().unwrap_or_else(PoisonError::into_inner) = why.to_owned();
        self.status.store(status, Ordering::SeqCst);
    }

    /// Until the communicator is given up.
    fn hang(&self) {
        while !self.aborted.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Carries a collective out, on a stream's thread.
    fn carry_out(&self, collective: Collective, number: u64) {
        if self.status.load(Ordering::SeqCst) == IN_PROGRESS {
            self.status.store(SUCCESS, Ordering::SeqCst);
        }
        let shared = self.shared.get().expect("it was formed");
        if self.aborted.load(Ordering::SeqCst) {
            return;
        }
        if self.plan.hang == Some(number) {
            return self.hang();
        }
        if self.plan.fail == Some(number) {
            return self.set(REMOTE_ERROR, "as planned");
        }
        match exchange(shared, collective) {
            Ok(Ok(())) | Err(Gone) => {}
            Ok(Err(why)) => self.set(INVALID_USAGE, &why),
        }
    }
}

fn size(kind: c_int) -> Option<usize> {
    Some(match kind {
        7 => 4,
        8 => 8,
        9 => 2,
        _ => return None,
    })
}

/// Two meetings: everybody's numbers and words are there; everybody has taken what it needs.
fn exchange(shared: &Shared, own: Collective) -> Result<Result<(), String>, Gone> {
    let Collective { call, from, to, count, kind, op, root } = own;
    let bytes = count * size(kind).expect("it was checked");
    let (world, rank) = (shared.world_size, shared.rank);
    let sent = match call {
        Call::ReduceScatter => bytes * world,
        Call::Broadcast if rank != root => 0,
        _ => bytes,
    };
    // SAFETY: checked to be device memory, and this rank's room.
    unsafe { std::ptr::copy_nonoverlapping(from as *const u8, shared.room(rank, sent), sent) };
    let said = Said { call: call as u64, count: count as u64, kind: kind as u64, op: op as u64, root: root as u64 };
    shared.say(said);
    shared.meet()?;
    let others: Vec<Said> = (0..world).map(|rank| shared.said(rank)).collect();
    let differs = others.iter().any(|other| *other != said);
    if !differs {
        let room = |rank: usize, at: usize| shared.room(rank, at + bytes).wrapping_add(at).cast_const();
        // SAFETY: rooms hold what their ranks sent until the second meeting; `to` was checked to be device memory.
        unsafe {
            match call {
                Call::AllReduce => reduce(kind, op, count, to, |rank| room(rank, 0), world),
                Call::Reduce if rank == root => reduce(kind, op, count, to, |rank| room(rank, 0), world),
                Call::Reduce => {}
                Call::ReduceScatter => reduce(kind, op, count, to, |other| room(other, rank * bytes), world),
                Call::AllGather => {
                    for other in 0..world {
                        std::ptr::copy_nonoverlapping(room(other, 0), (to + other * bytes) as *mut u8, bytes);
                    }
                }
                Call::Broadcast => std::ptr::copy_nonoverlapping(room(root, 0), to as *mut u8, bytes),
            }
        }
    }
    shared.meet()?;
    Ok(if differs { Err(format!("the ranks make different calls: {others:?}")) } else { Ok(()) })
}

/// # Safety
/// Every rank's numbers are there, and `to` has room for as many.
unsafe fn reduce(kind: c_int, op: c_int, count: usize, to: usize, of: impl Fn(usize) -> *const u8, world: usize) {
    macro_rules! typed {
        ($type:ty, $plus:expr, $larger:expr) => {
            for at in 0..count {
                // SAFETY: the caller's promise; rooms and device memory are aligned.
                unsafe {
                    let number = |rank: usize| *of(rank).cast::<$type>().add(at);
                    let mut sum = number(0);
                    for rank in 1..world {
                        sum = if op == 0 { $plus(sum, number(rank)) } else { $larger(sum, number(rank)) };
                    }
                    *(to as *mut $type).add(at) = sum;
                }
            }
        };
    }
    match kind {
        7 => typed!(f32, |a: f32, b: f32| a + b, f32::max),
        8 => typed!(f64, |a: f64, b: f64| a + b, f64::max),
        _ => {
            typed!(u16, |a, b| rounded(wide(a) + wide(b)), |a, b| if wide(a) > wide(b) { a } else { b });
        }
    }
}

/// A bfloat16 as an f32.
fn wide(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The bfloat16 next to an f32, the even one of two.
fn rounded(number: f32) -> u16 {
    let bits = number.to_bits();
    (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// Checks a collective and gives it to its stream, or to the group that is open.
fn ask(handle: *mut c_void, stream: *mut c_void, own: Collective) -> Result<(), Status> {
    let usage = |why: &str| fail(INVALID_USAGE, why);
    let communicator = communicator(handle)?;
    match communicator.status.load(Ordering::SeqCst) {
        SUCCESS => {}
        IN_PROGRESS => return Err(usage("the communicator is busy: its last call is in progress")),
        _ => return Err(usage("the communicator has failed")),
    }
    if communicator.is_finalized.load(Ordering::SeqCst) {
        return Err(usage("the communicator is finalized"));
    }
    if !cuda::has_device() {
        return Err(usage("this thread has not set its device"));
    }
    let queue = cuda::stream(stream).ok_or_else(|| usage("there is no such stream"))?;
    let argument = |why: &str| fail(INVALID_ARGUMENT, why);
    let Some(size) = size(own.kind) else { return Err(argument("this type is not exchanged")) };
    if ![0, 2].contains(&own.op) || own.root >= communicator.world_size || own.count == 0 {
        return Err(argument("there is no such operation or root, or nothing to exchange"));
    }
    let (bytes, world) = (own.count * size, communicator.world_size);
    let (sent, taken) = match own.call {
        Call::ReduceScatter => (bytes * world, bytes),
        Call::AllGather => (bytes, bytes * world),
        _ => (bytes, bytes),
    };
    if !cuda::is_device(own.from as *const c_void, sent) || !cuda::is_device(own.to as *const c_void, taken) {
        return Err(argument("the numbers are not all on the device"));
    }
    let grouped = GROUP.with(|group| match &mut *group.borrow_mut() {
        Some(pending) => {
            pending.push((communicator.clone(), queue.clone(), own));
            true
        }
        None => false,
    });
    if grouped { Ok(()) } else { begin(vec![(communicator, queue, own)]) }
}

/// Gives collectives to their stream as one.
fn begin(pending: Pending) -> Result<(), Status> {
    let Some((communicator, queue, _)) = pending.first().map(|(c, q, o)| (c.clone(), q.clone(), *o)) else {
        return Ok(());
    };
    if pending.iter().any(|(other, stream, _)| !Arc::ptr_eq(other, &communicator) || !Arc::ptr_eq(stream, &queue)) {
        return Err(fail(INVALID_USAGE, "a group of several communicators or streams is not played"));
    }
    if !queue.is_after_default.swap(false, Ordering::SeqCst) {
        return Err(fail(INVALID_USAGE, "the stream does not wait for what the default stream was given"));
    }
    let number = communicator.collectives.fetch_add(1, Ordering::SeqCst) + 1;
    if communicator.plan.block == Some(number) {
        loop {
            std::thread::sleep(Duration::from_secs(1));
        }
    }
    communicator.status.store(IN_PROGRESS, Ordering::SeqCst);
    communicator.under_way.fetch_add(1, Ordering::SeqCst);
    queue.give(move || {
        pending.into_iter().for_each(|(own, _, collective)| own.carry_out(collective, number));
        communicator.under_way.fetch_sub(1, Ordering::SeqCst);
    });
    Err(IN_PROGRESS)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetVersion(version: *mut c_int) -> Status {
    // SAFETY: the caller's promise.
    unsafe { *version = VERSION };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetUniqueId(id: *mut UniqueId) -> Status {
    let name = format!("{MARK}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::SeqCst));
    let mut bytes = [0; ID_BYTES];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the caller's promise.
    unsafe { *id = UniqueId(bytes) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommInitRankConfig(
    handle: *mut *mut c_void,
    ranks: c_int,
    id: UniqueId,
    rank: c_int,
    config: *mut Config,
) -> Status {
    // SAFETY: the caller's promise.
    let Config { size, magic, version, blocking } = unsafe { config.read() };
    if size < 48 || magic != 0xcafe_beef || version < 21_800 || blocking != 0 {
        return fail(INVALID_ARGUMENT, "this is no configuration of a non-blocking communicator");
    }
    let name = String::from_utf8_lossy(&id.0).trim_end_matches('\0').to_owned();
    let (Ok(world_size), Ok(rank)) = (usize::try_from(ranks), usize::try_from(rank)) else {
        return fail(INVALID_ARGUMENT, "negative ranks");
    };
    if !name.starts_with(MARK) || rank >= world_size || world_size > crate::shared::RANKS {
        return fail(INVALID_ARGUMENT, "there is no such id, or no such rank");
    }
    if !cuda::has_device() {
        return fail(INVALID_USAGE, "this thread has not set its device");
    }
    let own = Arc::new(Communicator {
        shared: OnceLock::new(),
        world_size,
        plan: Plan::of(rank),
        status: AtomicI32::new(IN_PROGRESS),
        why: Mutex::default(),
        collectives: AtomicU64::new(0),
        under_way: AtomicU64::new(0),
        is_finalized: AtomicBool::new(false),
        aborted: Arc::default(),
    });
    let at = NEXT.fetch_add(1, Ordering::SeqCst) as usize;
    known().insert(at, own.clone());
    // SAFETY: the caller's promise.
    unsafe { *handle = at as *mut c_void };
    std::thread::spawn(move || {
        if own.plan.init_hangs {
            return own.hang();
        }
        match Shared::open(&name, rank, world_size) {
            Err(error) => own.set(SYSTEM_ERROR, &error.to_string()),
            Ok(mut shared) => {
                shared.aborted = own.aborted.clone();
                let met = shared.meet();
                if rank == 0 {
                    // Everybody has it mapped.
                    let _ = met.is_ok().then(|| std::fs::remove_file(format!("/dev/shm/{name}")));
                }
                let _ = own.shared.set(shared);
                if met.is_ok() {
                    own.status.store(SUCCESS, Ordering::SeqCst);
                }
            }
        }
    });
    IN_PROGRESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommGetAsyncError(handle: *mut c_void, status: *mut Status) -> Status {
    status_of(communicator(handle).map(|own| {
        let found = own.status.load(Ordering::SeqCst);
        if ![SUCCESS, IN_PROGRESS].contains(&found) {
            fail(found, &own.why.lock().unwrap_or_else(PoisonError::into_inner));
        }
        // SAFETY: the caller's promise.
        unsafe { *status = found };
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommFinalize(handle: *mut c_void) -> Status {
    status_of(communicator(handle).and_then(|own| match own.is_finalized.swap(true, Ordering::SeqCst) {
        true => Err(fail(INVALID_USAGE, "the communicator is finalized already")),
        false => Ok(()),
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommDestroy(handle: *mut c_void) -> Status {
    status_of(communicator(handle).and_then(|own| {
        known().remove(&(handle as usize));
        match own.is_finalized.load(Ordering::SeqCst) {
            true => Ok(()),
            false => Err(fail(INVALID_USAGE, "destroyed before it was finalized")),
        }
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommAbort(handle: *mut c_void) -> Status {
    status_of(communicator(handle).map(|own| {
        own.aborted.store(true, Ordering::SeqCst);
        if own.plan.abort_hangs {
            loop {
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        while own.under_way.load(Ordering::SeqCst) > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        known().remove(&(handle as usize));
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGroupStart() -> Status {
    GROUP.with(|group| match &mut *group.borrow_mut() {
        Some(_) => fail(INVALID_USAGE, "a group within a group is not played"),
        empty => {
            *empty = Some(Vec::new());
            SUCCESS
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGroupEnd() -> Status {
    match GROUP.with(|group| group.borrow_mut().take()) {
        Some(pending) => status_of(begin(pending)),
        None => fail(INVALID_USAGE, "a group ends that was not begun"),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetErrorString(_status: Status) -> *const c_char {
    c"an error of the stand-in".as_ptr()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclAllReduce(
    from: *const c_void,
    to: *mut c_void,
    count: usize,
    kind: c_int,
    op: c_int,
    handle: *mut c_void,
    stream: *mut c_void,
) -> Status {
    let own = Collective { call: Call::AllReduce, from: from as usize, to: to as usize, count, kind, op, root: 0 };
    status_of(ask(handle, stream, own))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclReduce(
    from: *const c_void,
    to: *mut c_void,
    count: usize,
    kind: c_int,
    op: c_int,
    root: c_int,
    handle: *mut c_void,
    stream: *mut c_void,
) -> Status {
    let root = usize::try_from(root).unwrap_or(usize::MAX);
    let own = Collective { call: Call::Reduce, from: from as usize, to: to as usize, count, kind, op, root };
    status_of(ask(handle, stream, own))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclReduceScatter(
    from: *const c_void,
    to: *mut c_void,
    count: usize,
    kind: c_int,
    op: c_int,
    handle: *mut c_void,
    stream: *mut c_void,
) -> Status {
    let own = Collective { call: Call::ReduceScatter, from: from as usize, to: to as usize, count, kind, op, root: 0 };
    status_of(ask(handle, stream, own))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclAllGather(
    from: *const c_void,
    to: *mut c_void,
    count: usize,
    kind: c_int,
    handle: *mut c_void,
    stream: *mut c_void,
) -> Status {
    let own = Collective { call: Call::AllGather, from: from as usize, to: to as usize, count, kind, op: 0, root: 0 };
    status_of(ask(handle, stream, own))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclBroadcast(
    from: *const c_void,
    to: *mut c_void,
    count: usize,
    kind: c_int,
    root: c_int,
    handle: *mut c_void,
    stream: *mut c_void,
) -> Status {
    let root = usize::try_from(root).unwrap_or(usize::MAX);
    let own = Collective { call: Call::Broadcast, from: from as usize, to: to as usize, count, kind, op: 0, root };
    status_of(ask(handle, stream, own))
}
