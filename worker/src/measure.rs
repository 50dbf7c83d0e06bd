//! What this process used, and what this machine has.

/// Returns the largest resident memory of this process so far, in GiB; 0 where the system does not tell.
pub fn peak_rss_gib() -> f64 {
    kib("/proc/self/status", "VmHWM:") as f64 / f64::from(1 << 20)
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
