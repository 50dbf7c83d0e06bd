//! Planned deaths for tests: the process kills itself with SIGKILL at the n-th passage of a named point, or freezes itself
//! with SIGSTOP, as a machine that hangs.
//!
//! The plan is one hidden flag, `--fault POINT=N` (dies) or `--fault POINT=N:freeze`, or `TRACE_FAULT`. Without it nothing
//! happens.

use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::{Signal, getpid, kill_process};

/// A plan: which point, and at which passage.
#[derive(Debug)]
pub struct Fault {
    point: String,
    left: AtomicU64,
    signal: Signal,
}

impl std::str::FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (plan, signal) = text.strip_suffix(":freeze").map_or((text, Signal::KILL), |plan| (plan, Signal::STOP));
        let (point, count) = plan.split_once('=').ok_or("expected POINT=N or POINT=N:freeze")?;
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

/// Passes a point: dies or freezes here if the plan says so.
pub fn pass(fault: Option<&Fault>, point: &str) {
    let Some(fault) = fault.filter(|fault| fault.point == point) else { return };
    if fault.left.fetch_sub(1, Ordering::Relaxed) == 1 {
        let _ = kill_process(getpid(), fault.signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_names_point_passage_and_what_happens() {
        let of = |text: &str| text.parse::<Fault>().map(|fault| (fault.point, fault.left.into_inner(), fault.signal));
        assert_eq!(of("train.step=5"), Ok(("train.step".into(), 5, Signal::KILL)));
        assert_eq!(of("score.pack=2:freeze"), Ok(("score.pack".into(), 2, Signal::STOP)));
        for wrong in ["train.step", "train.step=x", "train.step=2:melt", ":freeze"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
