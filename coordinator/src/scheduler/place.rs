//! Who runs what.
//!
//! Wanted: a worker has one task at most; a gang starts with exactly its number of members or not at all; tasks are served
//! in their order, so that a waiting gang is not starved by the shards behind it; a task that can never be served keeps
//! nothing from others. The reason for waiting is returned with the decision.

/// A task that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) world_size: usize,
}

/// What is decided about a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// By worker, in rank order.
    Run(Vec<String>),
    Wait(String),
}

/// Decides about waiting tasks, in their order. `idle` workers can take one now, `usable` counts all that could in time.
pub(super) fn place(wanted: &[Wanted], mut idle: Vec<String>, usable: usize) -> Vec<Decision> {
    idle.sort();
    let mut idle = std::collections::VecDeque::from(idle);
    let mut reserved = false;
    let decide = |task: &Wanted| {
        let needed = task.world_size.max(1);
        if usable < needed {
            return Decision::Wait(format!("needs {needed} workers, {usable} have joined"));
        }
        if reserved || idle.len() < needed {
            // What is free is kept for the first that waits.
            reserved = true;
            return Decision::Wait(format!("waiting for {needed} free workers of {usable}"));
        }
        Decision::Run(idle.drain(..needed).collect())
    };
    wanted.iter().map(decide).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(sizes: &[usize]) -> Vec<Wanted> {
        sizes.iter().map(|&world_size| Wanted { world_size }).collect()
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn tasks_are_served_in_order_by_workers_in_order_of_names() {
        let decisions = place(&sizes(&[1, 2, 1]), names(&["c", "a", "b"]), 3);
        assert_eq!(decisions[..2], [Decision::Run(names(&["a"])), Decision::Run(names(&["b", "c"]))]);
        assert_eq!(decisions[2], Decision::Wait("waiting for 1 free workers of 3".into()));
    }

    #[test]
    fn a_gang_that_waits_keeps_what_is_free() {
        let decisions = place(&sizes(&[3, 1]), names(&["a", "b"]), 3);
        assert_eq!(decisions[0], Decision::Wait("waiting for 3 free workers of 3".into()));
        assert!(matches!(decisions[1], Decision::Wait(_)));
    }

    #[test]
    fn a_gang_that_cannot_be_served_keeps_nothing_from_others() {
        let decisions = place(&sizes(&[4, 1]), names(&["a", "b"]), 2);
        assert_eq!(decisions[0], Decision::Wait("needs 4 workers, 2 have joined".into()));
        assert_eq!(decisions[1], Decision::Run(names(&["a"])));
    }
}
