use std::ffi::CString;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::super::conformance::{self, Order};
use super::*;

const LIMITS: Limits =
    Limits { form: Duration::from_secs(60), call: Duration::from_secs(60), abort: Duration::from_secs(60) };

/// Builds the stand-in for both libraries once and returns its file.
fn double() -> &'static Path {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    FILE.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut cargo = Command::new(env!("CARGO"));
        cargo.current_dir(root).args([
            "build",
            "--quiet",
            "--locked",
            "--package",
            "nccl-double",
            "--message-format=json",
        ]);
        let output = cargo.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let messages = String::from_utf8(output.stdout).unwrap();
        let files = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let is_double = |file: &String| file.ends_with("libnccl_double.so");
        let mut names = files.flat_map(|message| {
            let names = message["filenames"].as_array().cloned().unwrap_or_default();
            names.into_iter().filter_map(|name| name.as_str().map(str::to_owned)).collect::<Vec<_>>()
        });
        PathBuf::from(names.find(is_double).expect("cargo names what it built"))
    })
}

fn libraries() -> Libraries {
    load(Some(double()), Some(double())).unwrap()
}

/// Plans for the communicators that this thread makes.
fn plan(text: &str) {
    // SAFETY: the symbol's type is that of the stand-in.
    unsafe {
        let library = libloading::Library::new(double()).unwrap();
        let plan = library.get::<unsafe extern "C" fn(*const std::ffi::c_char)>(b"nccl_double_plan\0").unwrap();
        plan(CString::new(text).unwrap().as_ptr());
        // It is loaded by others, too, and stays.
        std::mem::forget(library);
    }
}

/// Forms a world, each rank on a thread of its own with the same plan, and returns what each made of it.
fn world<T: Send>(
    world_size: usize,
    planned: &str,
    limits: Limits,
    work: impl Fn(usize, Result<NcclGang>, &Arc<AtomicBool>) -> T + Sync,
) -> Vec<T> {
    let libraries = libraries();
    let id = libraries.nccl.unique_id().unwrap();
    std::thread::scope(|scope| {
        let (work, libraries) = (&work, &libraries);
        let start = |rank| {
            scope.spawn(move || {
                plan(planned);
                let abort = Arc::new(AtomicBool::new(false));
                let gang = NcclGang::form(libraries, id, (rank, world_size), 0, limits, abort.clone());
                work(rank, gang, &abort)
            })
        };
        let threads: Vec<_> = (0..world_size).map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn it_conforms() {
    conformance::check(Order::OfTheCall, &|world_size| {
        world(world_size, "", LIMITS, |_, gang, _| Box::new(gang.unwrap()) as Box<dyn Collective>)
    });
}

#[test]
fn a_call_that_hangs_ends_at_the_deadline_on_every_rank() {
    let limits = Limits { call: Duration::from_secs(3), ..LIMITS };
    double();
    let begun = Instant::now();
    let ends = world(3, "rank=1:hang=2", limits, |_, gang, _| {
        let mut gang = gang.unwrap();
        gang.barrier().unwrap();
        let error = gang.barrier().unwrap_err().to_string();
        // Nothing is called any more.
        let again = gang.barrier().unwrap_err().to_string();
        (error, again)
    });
    for (error, again) in ends {
        assert!(error.contains("not done within") && error.contains("stuck or away"), "{error}");
        assert!(again.contains("has ended"), "{again}");
    }
    assert!(begun.elapsed() < LIMITS.call);
}

#[test]
fn every_call_ends_at_its_deadline_and_where_another_thread_ends_it() {
    conformance::check_ends(&|call| {
        world(2, "", Limits { call, ..LIMITS }, |_, gang, abort| {
            let abort = abort.clone();
            let end: conformance::End = Box::new(move || abort.store(true, Ordering::SeqCst));
            (Box::new(gang.unwrap()) as Box<dyn Collective>, end)
        })
    });
}

/// A member that uses NCCL wrongly would suffer it in silence; the stand-in says so.
#[test]
fn the_stand_in_tells_of_every_misuse() {
    let Libraries { nccl, cuda } = libraries();
    let told = |status| nccl.checked("it", status).unwrap_err().to_string();
    let id = nccl.unique_id().unwrap();
    let mut config = library::Config::non_blocking();
    let (mut comm, mut stream, mut event, mut numbers) = (null_mut(), null_mut(), null_mut(), null_mut());
    let mut bad = Vec::new();
    // SAFETY: pointers are to values of their types that outlive the calls, or refused before they are followed.
    unsafe {
        let mut init = |comm: &mut library::Comm| (nccl.init_rank_config)(comm, 1, id, 0, &raw mut config);
        bad.push((told(init(&mut comm)), "has not set its device"));
        assert_eq!((cuda.set_device)(0), 0);
        plan("hang=1");
        assert_eq!(init(&mut comm), library::IN_PROGRESS);
        let settled = |comm| {
            let begun = Instant::now();
            let mut status = library::IN_PROGRESS;
            while status == library::IN_PROGRESS {
                assert!(begun.elapsed() < LIMITS.form, "in progress for ever");
                assert_eq!((nccl.get_async_error)(comm, &raw mut status), 0);
                std::thread::yield_now();
            }
        };
        settled(comm);
        assert_eq!((cuda.stream_create)(&raw mut stream, 1), 0);
        assert_eq!((cuda.event_create)(&raw mut event, 2), 0);
        assert_eq!((cuda.malloc)(&raw mut numbers, 32), 0);
        let ready = || {
            assert_eq!((cuda.event_record)(event, null_mut()), 0);
            assert_eq!((cuda.stream_wait)(stream, event, 0), 0);
        };
        let sum = |count, kind, op, stream| (nccl.all_reduce)(numbers, numbers, count, kind, op, comm, stream);
        bad.push((told(sum(8, 7, 0, stream)), "does not wait for what the default stream was given"));
        ready();
        bad.push((told(sum(8, 3, 0, stream)), "this type is not exchanged"));
        bad.push((told(sum(8, 7, 1, stream)), "no such operation"));
        bad.push((told((nccl.broadcast)(numbers, numbers, 8, 7, 1, comm, stream)), "no such operation or root"));
        bad.push((told(sum(9, 7, 0, stream)), "not all on the device"));
        bad.push((told(sum(8, 7, 0, null_mut())), "no such stream"));
        bad.push((told((nccl.group_end)()), "was not begun"));
        // The first hangs as planned, the second waits behind it.
        assert_eq!(sum(8, 7, 0, stream), library::IN_PROGRESS);
        settled(comm);
        ready();
        assert_eq!(sum(8, 7, 0, stream), library::IN_PROGRESS);
        ready();
        bad.push((told(sum(8, 7, 0, stream)), "is busy"));
        bad.push((told((nccl.destroy)(comm)), "destroyed before it was finalized"));
        bad.push((told((nccl.abort)(comm)), "not made, or destroyed"));
        bad.push((told(sum(8, 7, 0, stream)), "not made, or destroyed"));
    }
    for (told, expected) in bad {
        assert!(told.contains(expected), "{told:?} does not say {expected:?}");
    }
}

#[test]
fn what_nccl_finds_wrong_by_itself_is_told_with_its_words() {
    let limits = Limits { call: Duration::from_millis(500), ..LIMITS };
    let ends = world(2, "rank=0:fail=1", limits, |_, gang, _| gang.unwrap().barrier().unwrap_err().to_string());
    assert!(ends[0].contains("remote error") && ends[0].contains("as planned"), "{}", ends[0]);
    assert!(ends[1].contains("not done within"), "{}", ends[1]);
}

#[test]
fn another_thread_ends_a_call_at_once() {
    double();
    let begun = Instant::now();
    let ends = world(2, "rank=1:hang=2", LIMITS, |_, gang, abort| {
        let pulse: Arc<Pulse> = Arc::default();
        let mut gang = gang.unwrap().watched(pulse.clone());
        // The first call is given time for its connections.
        gang.barrier().unwrap();
        let seen = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // What the heartbeats tell of a call that hangs.
                let mut is_still = false;
                while !is_still && begun.elapsed() < LIMITS.call / 2 {
                    std::thread::sleep(Duration::from_millis(5));
                    is_still = pulse.still() > Duration::from_millis(200);
                }
                seen.store(is_still, Ordering::SeqCst);
                abort.store(true, Ordering::SeqCst);
            });
            let error = gang.barrier().unwrap_err().to_string();
            assert_eq!(pulse.still(), Duration::ZERO, "the call is over");
            assert!(seen.load(Ordering::SeqCst), "heartbeats would not tell of it");
            error
        })
    });
    assert!(ends.iter().all(|error| error.contains("a member is gone")), "{ends:?}");
    assert!(begun.elapsed() < LIMITS.call);
}

#[test]
fn a_member_that_does_not_come_is_waited_for_until_the_deadline() {
    let limits = Limits { form: Duration::from_millis(300), ..LIMITS };
    for error in world(2, "rank=1:init-hangs", limits, |_, gang, _| gang.map(|_| ()).unwrap_err().to_string()) {
        assert!(error.contains("joining the other members: not done within"), "{error}");
    }
}

#[test]
fn ranks_that_make_different_calls_are_told() {
    let limits = Limits { call: Duration::from_secs(3), ..LIMITS };
    let ends = world(2, "", limits, |rank, gang, _| {
        let mut numbers = vec![1f32; 3 + rank];
        gang.unwrap().all_reduce(numbers.as_mut_slice().into(), Op::Sum).unwrap_err().to_string()
    });
    assert!(ends.iter().all(|error| error.contains("different calls")), "{ends:?}");
}

/// A tensor of a CUDA device is exchanged where it is: here, a tensor over the stand-in's device memory.
#[test]
fn tensors_of_the_device_are_exchanged_where_they_are() {
    for sum in world(2, "", LIMITS, |rank, gang, _| {
        let mut gang = gang.unwrap();
        let pointer = gang.room(8 * 4).unwrap().cast::<u8>();
        // SAFETY: the room is of this size and stays while the gang does.
        let mut tensor = unsafe { tch::Tensor::from_blob(pointer, &[8], &[1], Kind::Float, tch::Device::Cpu) };
        let _ = tensor.fill_(1.0 + rank as f64);
        let at = tensor.data_ptr();
        gang.all_reduce(Numbers::Device(&mut tensor), Op::Sum).unwrap();
        assert_eq!(tensor.data_ptr(), at);
        let sum = Vec::<f32>::try_from(&tensor).unwrap();
        // A tensor elsewhere is not device memory.
        let mut host = tch::Tensor::zeros([8], (Kind::Float, tch::Device::Cpu));
        let error = gang.all_reduce(Numbers::Device(&mut host), Op::Sum).unwrap_err().to_string();
        assert!(error.contains("not all on the device"), "{error}");
        sum
    }) {
        assert_eq!(sum, [3.0; 8]);
    }
}

#[test]
fn what_is_not_there_is_named_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let none = load(Some(&dir.path().join("libnccl.so.2")), None).map(|_| ()).unwrap_err().to_string();
    assert!(
        none.contains("libnccl.so.2") && none.contains("TRACE_NCCL_LIBRARY") && none.contains("--collective ring"),
        "{none}"
    );
    // A library without these calls.
    let other = load(Some(Path::new("libc.so.6")), None).map(|_| ()).unwrap_err().to_string();
    assert!(other.contains("libc.so.6: has no call ncclGetVersion"), "{other}");
    let libraries = libraries();
    let id = libraries.nccl.unique_id().unwrap();
    let none = NcclGang::form(&libraries, id, (0, 1), 3, LIMITS, Arc::default()).map(|_| ()).unwrap_err().to_string();
    assert!(none.contains("CUDA device 3; there are 1"), "{none}");
}

/// Where this test is run again in a process of its own, which NCCL does not let go on.
const ALONE: &str = "TRACE_TEST_NCCL_STUCK";

#[test]
fn a_process_that_nccl_does_not_let_go_on_ends() {
    if let Ok(planned) = std::env::var(ALONE) {
        let limits = Limits { call: Duration::from_millis(200), abort: Duration::from_millis(200), ..LIMITS };
        world(1, &planned, limits, |_, gang, _| gang.unwrap().barrier());
        return;
    }
    for planned in ["hang=1,abort-hangs", "block=1"] {
        let mut again = Command::new(std::env::current_exe().unwrap());
        let name = "collective::nccl::tests::a_process_that_nccl_does_not_let_go_on_ends";
        let output = again.args(["--exact", name, "--nocapture"]).env(ALONE, planned).output().unwrap();
        assert_eq!(output.status.code(), Some(communicator::STUCK), "{planned}: {output:?}");
    }
}

/// The real library, as far as it answers without a driver.
#[test]
fn the_real_library_tells_its_version_and_makes_ids_and_needs_a_driver_for_more() {
    let given = std::env::var_os("TRACE_NCCL_LIBRARY").map(PathBuf::from);
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.libtorch.nccl/libnccl.so.2");
    let Some(file) = given.or_else(|| fetched.exists().then_some(fetched)) else {
        println!("skipped: libnccl.so.2 is not here; deploy/nccl.sh brings it");
        return;
    };
    let libraries = load(Some(&file), None).unwrap();
    let ids: Vec<_> = (0..2).map(|_| libraries.nccl.unique_id().unwrap().0).collect();
    assert_ne!(ids[0], ids[1]);
    // The CUDA runtime is there without a driver, and says so.
    match libraries.cuda.devices() {
        Ok(devices) => println!("{devices} devices are here; see deploy/gpu-smoke.sh"),
        Err(error) => {
            assert!(error.to_string().contains("cudaGetDeviceCount: "), "{error}");
            let formed = NcclGang::form(&libraries, UniqueId(ids[0]), (0, 1), 0, LIMITS, Arc::default());
            let error = formed.map(|_| ()).unwrap_err().to_string();
            assert!(error.contains("cudaGetDeviceCount: "), "{error}");
            // NCCL itself, asked all the same, fails cleanly.
            let mut comm = null_mut();
            let mut config = library::Config::non_blocking();
            // SAFETY: the pointers are to values of these types, which outlive the call.
            let status =
                unsafe { (libraries.nccl.init_rank_config)(&raw mut comm, 1, UniqueId(ids[0]), 0, &raw mut config) };
            let error = libraries.nccl.checked("ncclCommInitRankConfig", status).unwrap_err().to_string();
            println!("without a driver: {error}");
            assert!(error.contains("CUDA"), "{error}");
        }
    }
}
