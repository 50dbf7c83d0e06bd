//! Log lines of the programs: to standard error, so that standard output stays for results.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts logging at the levels of `RUST_LOG`, or at `default` where it is not set: `info`, or `worker=debug,warn`.
///
/// Times and module names are left out, colours too where no terminal reads them. Call it once, from `main`.
pub fn init(default: &str) {
    let levels = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let lines = tracing_subscriber::fmt().with_env_filter(levels).with_writer(std::io::stderr);
    // A second call, in a test that runs a main, keeps the first logger.
    let _ = lines.with_ansi(std::io::stderr().is_terminal()).with_target(false).without_time().try_init();
}
