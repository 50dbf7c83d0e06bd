//! A stand-in for `libnccl.so.2` and `libcudart.so`: the same calls on memory that threads and processes share.
//!
//! It is strict where the real ones are silent: every call is checked for its order, type, count, stream and device, and all
//! ranks must make the same calls. "Device" memory is the host's; a stream is a thread with a queue ([`cuda`]); sums go in the
//! order of ranks ([`shared`]). Deaths and delays are planned ([`plan`]): by [`nccl_double_plan`] for the communicators that the calling
//! thread makes, or by `NCCL_DOUBLE_PLAN` for a process.

mod cuda;
mod nccl;
mod plan;
mod shared;

use std::cell::RefCell;
use std::ffi::{CString, c_char};

/// What a call returns: 0 is success.
type Status = i32;

const SUCCESS: Status = 0;
const SYSTEM_ERROR: Status = 2;
const INVALID_ARGUMENT: Status = 4;
const INVALID_USAGE: Status = 5;
const REMOTE_ERROR: Status = 6;
const IN_PROGRESS: Status = 7;

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// Notes why a call fails, for `ncclGetLastError` on this thread, and returns its status.
fn fail(status: Status, why: &str) -> Status {
    LAST.with(|last| *last.borrow_mut() = CString::new(why).unwrap_or_default());
    status
}

/// `ncclGetLastError`
///
/// # Safety
/// None is needed: the argument is not used.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetLastError(_comm: *mut std::ffi::c_void) -> *const c_char {
    LAST.with(|last| last.borrow().as_ptr())
}
