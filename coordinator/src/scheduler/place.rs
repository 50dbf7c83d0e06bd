//! Who runs what.
//!
//! Wanted: a worker has one task at most; a gang starts with all its members or, where its task allows fewer and it has
//! waited long enough for them, with those that are free; tasks are served in their order, so that a waiting gang is not
//! starved by the shards behind it; a task that can never be served keeps nothing from others.

/// A task that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Members it starts with if it can.
    pub(super) most: usize,
    /// Members without which it cannot start.
    pub(super) least: usize,
    /// It still waits for all of them.
    pub(super) is_patient: bool,
}

/// What is decided about a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// By worker, in rank order.
    Run(Vec<String>),
    Wait,
}

/// What is decided about all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) decisions: Vec<Decision>,
    /// Workers that stay free.
    pub(super) left: usize,
    /// The task that they are kept for.
    pub(super) kept_for: Option<usize>,
}

/// Decides about waiting tasks, in their order. `idle` workers can take one now, `usable` counts all that could in time.
pub(super) fn place(wanted: &[Wanted], mut idle: Vec<String>, usable: usize) -> Placed {
    idle.sort();
    let mut idle = std::collections::VecDeque::from(idle);
    // What is free is kept for the first that waits.
    let mut kept_for = None;
    let mut decide = |(index, task): (usize, &Wanted)| {
        let needed = if task.is_patient { task.most } else { task.least };
        if usable < task.least {
            return Decision::Wait;
        }
        if kept_for.is_some() || idle.len() < needed {
            kept_for.get_or_insert(index);
            return Decision::Wait;
        }
        let members = task.most.min(idle.len());
        Decision::Run(idle.drain(..members).collect())
    };
    let decisions = wanted.iter().enumerate().map(&mut decide).collect();
    Placed { decisions, left: idle.len(), kept_for }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(sizes: &[usize]) -> Vec<Wanted> {
        sizes.iter().map(|&size| Wanted { most: size, least: size, is_patient: true }).collect()
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn tasks_are_served_in_order_by_workers_in_order_of_names() {
        let placed = place(&sizes(&[1, 2, 1]), names(&["c", "a", "b"]), 3);
        let expected = [Decision::Run(names(&["a"])), Decision::Run(names(&["b", "c"])), Decision::Wait];
        assert_eq!((&placed.decisions[..], placed.left), (&expected[..], 0));
        assert_eq!(place(&sizes(&[1]), names(&["a", "b"]), 2).left, 1);
    }

    #[test]
    fn a_gang_that_waits_keeps_what_is_free() {
        let placed = place(&sizes(&[3, 1]), names(&["a", "b"]), 3);
        let decisions = vec![Decision::Wait, Decision::Wait];
        assert_eq!(placed, Placed { decisions, left: 2, kept_for: Some(0) });
    }

    #[test]
    fn a_gang_that_cannot_be_served_keeps_nothing_from_others() {
        let placed = place(&sizes(&[4, 1]), names(&["a", "b"]), 2);
        let decisions = vec![Decision::Wait, Decision::Run(names(&["a"]))];
        assert_eq!(placed, Placed { decisions, left: 1, kept_for: None });
    }

    #[test]
    fn a_gang_that_may_be_smaller_starts_so_once_it_has_waited() {
        // Most, least, patient; free, usable; members that start.
        let table = [
            (3, 1, true, 3, 3, Some(3)),
            (3, 1, true, 2, 2, None),
            (3, 1, false, 2, 2, Some(2)),
            (3, 1, false, 1, 5, Some(1)),
            (3, 2, false, 1, 3, None),
            (3, 2, false, 5, 5, Some(3)),
            (3, 2, false, 1, 1, None),
        ];
        for (most, least, is_patient, free, usable, expected) in table {
            let idle = (0..free).map(|n| n.to_string()).collect();
            let placed = place(&[Wanted { most, least, is_patient }], idle, usable);
            let started = match &placed.decisions[..] {
                [Decision::Run(members)] => Some(members.len()),
                _ => None,
            };
            assert_eq!(started, expected, "{most} {least} {is_patient} {free} {usable}");
        }
    }
}
