//! Kernels that give the same bits every time, on CUDA; those of the processor always do.
//!
//! `tch` has no call for libtorch's switch. The symbols are those of `at::Context` in the libtorch that `tch` links; a release
//! without them does not link.

#![allow(unsafe_code)]

use std::ffi::c_void;

use tch::Cuda;

use crate::error::{Error, Result};

unsafe extern "C" {
    #[link_name = "_ZN2at13globalContextEv"]
    fn global_context() -> *mut c_void;
    #[link_name = "_ZN2at7Context26setDeterministicAlgorithmsEbb"]
    fn set_deterministic(context: *mut c_void, is_on: bool, warns_only: bool);
    #[link_name = "_ZNK2at7Context23deterministicAlgorithmsEv"]
    fn is_deterministic(context: *const c_void) -> bool;
}

/// Where cuBLAS is told to add up in one order.
const CUBLAS: &str = "CUBLAS_WORKSPACE_CONFIG";

/// Switches them on for this process: operations that have no such kernel fail and say so.
///
/// # Errors
/// There is a CUDA device, and the environment does not say what cuBLAS needs for it.
pub fn switch_on() -> Result<()> {
    if Cuda::is_available() && std::env::var_os(CUBLAS).is_none() {
        return Err(Error::Config(format!("--deterministic on CUDA needs {CUBLAS}=:4096:8 in the environment")));
    }
    // SAFETY: the context lives as long as the process, and the signatures are those of libtorch's headers.
    unsafe { set_deterministic(global_context(), true, false) };
    Ok(())
}

/// Returns whether they are switched on.
pub fn is_on() -> bool {
    // SAFETY: as above.
    unsafe { is_deterministic(global_context()) }
}
