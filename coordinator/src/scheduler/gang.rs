//! What gangs wait for, in words; when a gang that runs with fewer members than it wants starts again with more; and when
//! one that still beats is stuck.

/// A gang that runs with fewer members than it wants is not stopped for more before it has run for so many heartbeats: each
/// start costs the loading of the model, and workers may come one by one.
const GROW_AFTER_HEARTBEATS: u64 = 30;
/// Workers named in a reason at most.
const NAMED: usize = 3;

/// Why a worker is not free. In this order they are named: what concerns people first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Why<'a> {
    Draining,
    Lost,
    Unusable,
    Away,
    Joining,
    /// It has not left an attempt that is over.
    Staying,
    /// With a task of this run and stage.
    Busy(&'a str, &'a str),
    Left,
}

impl Why<'_> {
    fn words(self) -> String {
        match self {
            Why::Draining => "draining".to_owned(),
            Why::Lost => "lost".to_owned(),
            Why::Unusable => "unusable".to_owned(),
            Why::Away => "away".to_owned(),
            Why::Joining => "joining".to_owned(),
            Why::Staying => "has not left an attempt that is over".to_owned(),
            Why::Busy(run, stage) => format!("busy with {run}/{stage}"),
            Why::Left => "left".to_owned(),
        }
    }
}

/// Says what a task waits for: so many workers of those it wants are free, the others are not for these reasons.
pub(super) fn waiting<'a>(wanted: usize, free: usize, others: impl Iterator<Item = (&'a str, Why<'a>)>) -> String {
    let mut count = 0;
    let mut named: Vec<(Why<'a>, &'a str)> = Vec::with_capacity(NAMED + 1);
    for (name, why) in others {
        count += 1;
        let at = named.partition_point(|before| *before <= (why, name));
        if at < NAMED {
            named.insert(at, (why, name));
            named.truncate(NAMED);
        }
    }
    let mut text = format!("waiting: {} of {wanted} workers", free.min(wanted));
    for (index, (why, name)) in named.iter().enumerate() {
        text += if index == 0 { "; " } else { ", " };
        text += &format!("{name} {}", why.words());
    }
    if count > named.len() {
        text += &format!(" and {} more", count - named.len());
    }
    text
}

/// Says who of a gang that forms has not yet told where it listens.
pub(super) fn forming<'a>(members: impl Iterator<Item = (&'a str, bool)>) -> String {
    let (mut count, mut missing) = (0, Vec::new());
    for (name, listens) in members {
        count += 1;
        if !listens {
            missing.push(name);
        }
    }
    format!("forming: {} of {count} members listen; not yet: {}", count - missing.len(), missing.join(", "))
}

/// Returns with how many members a gang starts again that has run with fewer than it wants; none where it goes on as it is.
pub(super) fn grown(ran_ms: u64, heartbeat_ms: u64, members: usize, wanted: usize, free: usize) -> Option<usize> {
    let more = wanted.saturating_sub(members).min(free);
    (more > 0 && ran_ms >= heartbeat_ms.saturating_mul(GROW_AFTER_HEARTBEATS)).then_some(members + more)
}

/// Returns for how long nothing has moved in a gang that is stuck; none where it is not. Of every member that has not ended:
/// for how long nothing has come or gone in the call it is in, 0 while it computes or where that is not known. As long as one
/// of them computes, the others wait for it as they should.
pub(super) fn stuck(mut still_ms: impl Iterator<Item = u64>, limit_ms: u64) -> Option<u64> {
    let first = still_ms.next()?;
    let least = still_ms.fold(first, u64::min);
    (least > limit_ms).then_some(least)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_name_who_is_missing_and_why() {
        let busy = Why::Busy("r", "score-trace");
        // Wanted, free, who is not and why; words.
        type Row<'a> = (usize, usize, &'a [(&'a str, Why<'a>)], &'a str);
        let table: [Row<'_>; 7] = [
            (4, 3, &[("gpu-2", Why::Draining)], "waiting: 3 of 4 workers; gpu-2 draining"),
            (2, 1, &[], "waiting: 1 of 2 workers"),
            (2, 5, &[], "waiting: 2 of 2 workers"),
            (2, 0, &[("b", busy), ("a", Why::Lost)], "waiting: 0 of 2 workers; a lost, b busy with r/score-trace"),
            (2, 1, &[("b", Why::Joining), ("a", Why::Joining)], "waiting: 1 of 2 workers; a joining, b joining"),
            (3, 1, &[("a", Why::Unusable), ("b", Why::Away)], "waiting: 1 of 3 workers; a unusable, b away"),
            (
                9,
                0,
                &[("e", Why::Left), ("d", busy), ("c", busy), ("b", busy), ("a", Why::Draining)],
                "waiting: 0 of 9 workers; a draining, b busy with r/score-trace, c busy with r/score-trace and 2 more",
            ),
        ];
        for (wanted, free, others, expected) in table {
            assert_eq!(waiting(wanted, free, others.iter().copied()), expected);
        }
    }

    #[test]
    fn a_gang_that_forms_names_who_has_not_come() {
        let members = [("a", true), ("b", false), ("c", false)];
        assert_eq!(forming(members.into_iter()), "forming: 1 of 3 members listen; not yet: b, c");
    }

    #[test]
    fn a_gang_is_stuck_when_all_of_it_wait_for_each_other() {
        let table: [(&[u64], Option<u64>); 6] = [
            (&[600, 501], Some(501)),
            (&[600, 500], None),
            // One computes a long step.
            (&[60_000, 60_000, 0], None),
            // The others have ended.
            (&[600], Some(600)),
            (&[], None),
            (&[0], None),
        ];
        for (still_ms, expected) in table {
            assert_eq!(stuck(still_ms.iter().copied(), 500), expected, "{still_ms:?}");
        }
    }

    #[test]
    fn a_gang_grows_when_it_has_run_a_while_and_somebody_is_free() {
        // Milliseconds it ran, members, wanted, free; members then. A heartbeat is 100 ms.
        let table = [
            (3000, 1, 2, 1, Some(2)),
            (2999, 1, 2, 1, None),
            (9000, 1, 2, 0, None),
            (9000, 2, 2, 3, None),
            (9000, 1, 4, 2, Some(3)),
            (9000, 1, 4, 9, Some(4)),
        ];
        for (ran_ms, members, wanted, free, expected) in table {
            assert_eq!(grown(ran_ms, 100, members, wanted, free), expected, "{ran_ms} {members} {wanted} {free}");
        }
    }
}
