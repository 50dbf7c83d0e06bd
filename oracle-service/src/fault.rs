//! Planned deaths for tests: the process ends itself, as if killed, at the n-th passage of a named point.
//!
//! The plan is one hidden flag, `--fault POINT=N` or `TRACE_FAULT`. A point's name may be the beginning of several:
//! `batch=7` is the seventh passage of any of `batch.save`, `batch.upload` … Without a plan nothing happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A plan: which point, and at which passage. Clones count together.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    point: String,
    left: Arc<AtomicU64>,
}

impl std::str::FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Fault, String> {
        let (point, count) = text.split_once('=').ok_or("expected POINT=N")?;
        let left = count.parse().map_err(|_| format!("{count:?} is not a count"))?;
        Ok(Fault { point: point.to_owned(), left: Arc::new(AtomicU64::new(left)) })
    }
}

impl Fault {
    fn is_due(&self, point: &str) -> bool {
        let rest = point.strip_prefix(self.point.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            && self.left.fetch_sub(1, Ordering::Relaxed) == 1
    }
}

/// Passes a point: dies here if the plan says so.
pub(crate) fn pass(fault: Option<&Fault>, point: &str) {
    if fault.is_some_and(|fault| fault.is_due(point)) {
        // Nothing is unwound and nothing flushed, as with SIGKILL.
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_counts_the_passages_of_its_point_and_of_those_below_it() {
        let fault: Fault = "batch=3".parse().unwrap();
        let due: Vec<bool> = ["batch.save", "batching", "batch", "batch.save", "batch"]
            .iter()
            .map(|point| fault.is_due(point))
            .collect();
        assert_eq!(due, [false, false, false, true, false]);
        for wrong in ["batch", "batch=x", "batch=-1"] {
            assert!(wrong.parse::<Fault>().is_err(), "{wrong}");
        }
    }
}
