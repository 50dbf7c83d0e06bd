//! What this process used, where its time went, and what this machine has.

use std::time::{Duration, Instant};

use tch::Device;

/// Where the time of updates went. On the CPU every phase ends before the next begins; a GPU works on while the host goes
/// ahead, so what it has left to do counts where the host next waits: at the head's values and at the gradient norm.
#[derive(Debug, Clone, Copy, Default)]
pub struct Phases {
    /// Tokens to hidden states.
    pub forward: Duration,
    /// Hidden states to log-probs, KLs and their gradients.
    pub head: Duration,
    /// Hidden states and log-probs of π_ref.
    pub reference: Duration,
    /// Gradients of the hidden states to gradients of what is trained.
    pub backward: Duration,
    /// Gradient norm and AdamW.
    pub optimiser: Duration,
}

/// Runs work and adds its time to a phase.
pub fn timed<T>(phase: &mut Duration, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let result = work();
    *phase += begun.elapsed();
    result
}

/// Returns the largest resident memory of this process so far, in GiB; 0 where the system does not tell.
pub fn peak_rss_gib() -> f64 {
    kib("/proc/self/status", "VmHWM:") as f64 / f64::from(1 << 20)
}

/// Returns the resident memory of this process in bytes; 0 where the system does not tell.
pub fn rss_bytes() -> u64 {
    kib("/proc/self/status", "VmRSS:") * 1024
}

/// Returns the memory of a CUDA device in bytes, as nvidia-smi tells it; `tch` has no call for it.
pub fn cuda_memory_bytes(device: Device) -> Option<u64> {
    let Device::Cuda(number) = device else { return None };
    let query = ["--query-gpu=memory.total", "--format=csv,noheader,nounits", "-i", &number.to_string()];
    let told =
        std::process::Command::new("nvidia-smi").args(query).output().ok().filter(|told| told.status.success())?;
    let mib: u64 = String::from_utf8(told.stdout).ok()?.trim().parse().ok()?;
    Some(mib << 20)
}

/// Returns the memory of this machine in bytes; 0 where the system does not tell.
pub fn memory_bytes() -> u64 {
    kib("/proc/meminfo", "MemTotal:") * 1024
}

fn kib(file: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.trim().trim_end_matches("kB").trim().parse().unwrap_or(0)
}
