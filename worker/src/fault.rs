//! Planned deaths for tests: the process kills itself with SIGKILL at the n-th passage of a named point, or freezes itself
//! with SIGSTOP, as a machine that hangs; or a thread of it stands still there while the others go on.
//!
//! The plan is one hidden flag, `--fault POINT=N` (dies), `POINT=N:freeze` or `POINT=N:hang`, or `TRACE_FAULT`. Without it nothing
//! happens.

use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::Signal;

/// A plan: which point, and at which passage.
#[derive(Debug)]
pub struct Fault {
    point: String,
    left: AtomicU64,
    /// Sent to the process; where there is none, the thread hangs.
    signal: Option<Signal>,
}

impl std::str::FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ends = [(":freeze", Some(Signal::STOP)), (":hang", None)];
        let ends = ends.into_iter().find_map(|(end, signal)| Some((text.strip_suffix(end)?, signal)));
        let (plan, signal) = ends.unwrap_or((text, Some(Signal::KILL)));
        let (point, count) = plan.split_once('=').ok_or("expected POINT=N, POINT=N:freeze or POINT=N:hang")?;
        let left = count.parse().map_err(|_| format!("{count:?} is not a count"))?;
        Ok(Fault { point: point.to_owned(), left: AtomicU64::new(left), signal })
    }
}

impl Clone for Fault {
    fn clone(&self) -> Self {
        let left = AtomicU64::new(self.left.load(Ordering::Relaxed));
        Fault { point: self.point.clone(), left, signal: self.signal }
    }
}

/// Passes a point: dies or freezes here if the plan says so. Returns whether the plan says that the caller hangs here.
#[must_use]
pub fn pass(fault: Option<&Fault>, point: &str) -> bool {
    let Some(fault) = fault.filter(|fault| fault.point == point) else { return false };
    if fault.left.fetch_sub(1, Ordering::Relaxed) != 1 {
        return false;
    }
    if let Some(signal) = fault.signal {
        // To this thread: one that is sent to the process may reach another thread first, and this one would go on meanwhile.
        // SAFETY: the call takes a number, and touches no memory of ours.
        #[allow(unsafe_code)]
        unsafe {
            libc::raise(signal.as_raw());
        }
    }
    fault.signal.is_none()
}

/// Passes a point: dies, freezes or hangs here if the plan says so.
pub fn pass_or_hang(fault: Option<&Fault>, point: &str) {
    if pass(fault, point) {
        loop {
            std::thread::park();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_names_point_passage_and_what_happens() {
        let of = |text: &str| text.parse::<Fault>().map(|fault| (fault.point, fault.left.into_inner(), fault.signal));
        assert_eq!(of("train.step=5"), Ok(("train.step".into(), 5, Some(Signal::KILL))));
        assert_eq!(of("score.pack=2:freeze"), Ok(("score.pack".into(), 2, Some(Signal::STOP))));
        assert_eq!(of("ring.call=3:hang"), Ok(("ring.call".into(), 3, None)));
        for wrong in ["train.step", "train.step=x", "train.step=2:melt", ":freeze"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
