//! Planned deaths for tests: the process kills itself with SIGKILL at the n-th passage of a named point.
//!
//! The plan is one hidden flag, `--fault POINT=N` or `TRACE_FAULT`. Without it nothing happens.

use std::sync::atomic::{AtomicU64, Ordering};

/// A plan: which point, and at which passage.
#[derive(Debug)]
pub struct Fault {
    point: String,
    left: AtomicU64,
}

impl std::str::FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (point, count) = text.split_once('=').ok_or("expected POINT=N")?;
        let left = count.parse().map_err(|_| format!("{count:?} is not a count"))?;
        Ok(Fault { point: point.to_owned(), left: AtomicU64::new(left) })
    }
}

impl Clone for Fault {
    fn clone(&self) -> Self {
        Fault { point: self.point.clone(), left: AtomicU64::new(self.left.load(Ordering::Relaxed)) }
    }
}

/// Passes a point: dies here if the plan says so.
pub fn pass(fault: Option<&Fault>, point: &str) {
    let Some(fault) = fault.filter(|fault| fault.point == point) else { return };
    if fault.left.fetch_sub(1, Ordering::Relaxed) == 1 {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}
