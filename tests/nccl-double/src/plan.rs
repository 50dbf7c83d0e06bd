//! What goes wrong, and when.
//!
//! `hang=N`: the N-th collective of a communicator never ends; `fail=N`: it ends with a remote error; `block=N`: its call does
//! not return; `init-hangs`; `abort-hangs`. With `rank=R:` in front for that rank alone, several joined by commas; with `once` among
//! them, a process's first communicator alone.

use std::cell::RefCell;
use std::ffi::{CStr, c_char};
use std::sync::atomic::{AtomicBool, Ordering};

/// The plan of one communicator.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    pub hang: Option<u64>,
    pub fail: Option<u64>,
    pub block: Option<u64>,
    pub init_hangs: bool,
    pub abort_hangs: bool,
}

thread_local! {
    static OF_THREAD: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Plans for the communicators that this thread makes from now on.
///
/// # Safety
/// The argument is a text that ends with 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nccl_double_plan(text: *const c_char) {
    // SAFETY: the caller's promise.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    OF_THREAD.with(|own| *own.borrow_mut() = Some(text));
}

impl Plan {
    /// Returns the plan for a rank.
    ///
    /// # Panics
    /// For words that are not planned for: a test's mistake.
    pub fn of(rank: usize) -> Plan {
        let text = OF_THREAD.with(|own| own.borrow().clone()).or_else(|| std::env::var("NCCL_DOUBLE_PLAN").ok());
        static FOLLOWED: AtomicBool = AtomicBool::new(false);
        let mut plan = Plan::default();
        for word in text.unwrap_or_default().split(',').filter(|word| !word.is_empty()) {
            let word = match word.strip_prefix("rank=").and_then(|rest| rest.split_once(':')) {
                Some((own, _)) if own.parse() != Ok(rank) => continue,
                Some((_, word)) => word,
                None => word,
            };
            let (name, number) = word.split_once('=').unwrap_or((word, "1"));
            let number = number.parse().expect("a number of a call");
            match name {
                "hang" => plan.hang = Some(number),
                "fail" => plan.fail = Some(number),
                "block" => plan.block = Some(number),
                "init-hangs" => plan.init_hangs = true,
                "abort-hangs" => plan.abort_hangs = true,
                "once" if FOLLOWED.swap(true, Ordering::SeqCst) => return Plan::default(),
                "once" => {}
                other => panic!("{other} is not planned for"),
            }
        }
        plan
    }
}
