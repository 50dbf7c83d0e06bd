//! How a job's requests are divided: into files that a batch may have, and between batches and the online API. Pure.

use std::time::Duration;

/// What the API takes in one file.
pub(super) const MOST_REQUESTS: u64 = 50_000;
pub(super) const MOST_BYTES: u64 = 200_000_000;
/// In this time the API promises to end a batch.
const WINDOW: Duration = Duration::from_secs(24 * 3600);
/// For what follows a batch: unclear answers, expired requests.
const FOLLOW_UPS: Duration = Duration::from_secs(3600);
/// For fewer requests nobody waits up to a day.
const FEWEST: u64 = 100;
/// Of the time that the online API needs for the rest of a batch, in which it is taken back.
const CAUTION: f64 = 1.25;

/// A file that is being filled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Filled {
    pub(super) requests: u64,
    pub(super) bytes: u64,
}

impl Filled {
    /// Returns whether another line still fits.
    pub(super) fn has_room(self, line: u64) -> bool {
        self.requests < MOST_REQUESTS && self.bytes.saturating_add(line) <= MOST_BYTES
    }

    pub(super) fn add(&mut self, line: u64) {
        self.requests += 1;
        self.bytes += line;
    }
}

/// What is known before anything is sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Known {
    /// Requests without an answer.
    pub(super) requests: u64,
    /// Time until the job must be done; none where it does not matter.
    pub(super) deadline: Option<Duration>,
    /// Requests a minute that the online API takes.
    pub(super) online_per_minute: f64,
    /// Price of all of them online and in batches, in USD; none where the price table does not know the model.
    pub(super) prices: Option<(f64, f64)>,
}

/// Who answers how many requests.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Division {
    pub(super) batch: u64,
    pub(super) online: u64,
    /// Some cannot be answered before the deadline by anyone; those wait for their batches.
    pub(super) late: bool,
    /// For people.
    pub(super) why: String,
}

/// Divides requests between batches (half the price, up to a day) and the online API.
///
/// Price alone speaks for batches, wherever they are cheaper; the deadline speaks against them. With a day and an hour to
/// spare all go into batches. With less, batches get no more than the online API could answer in half the time: what they
/// have not answered in time is taken back and asked online (see [`must_take_back`]), so that a late batch costs the
/// online price and not the deadline. What neither can do in time goes into batches and may be late.
pub(super) fn divide(known: Known) -> Division {
    let all = known.requests;
    let online = |why: &str| Division { batch: 0, online: all, late: false, why: why.to_owned() };
    if all < FEWEST {
        return online("few requests are not worth a batch");
    }
    match known.prices {
        Some((online_usd, batch_usd)) if batch_usd >= online_usd => return online("batches are not cheaper"),
        _ => {}
    }
    let batches = |batch: u64, why: String| Division { batch, online: all - batch, late: false, why };
    let Some(deadline) = known.deadline else { return batches(all, "no deadline: batches are cheaper".into()) };
    if deadline >= WINDOW + FOLLOW_UPS {
        return batches(all, "the deadline leaves a day for batches".into());
    }
    let online_can = (known.online_per_minute.max(0.0) * deadline.as_secs_f64() / 60.0) as u64;
    if online_can < all {
        let late = format!(
            "the online API answers about {online_can} in the time that is left; the others go into batches and may be late"
        );
        return Division { late: true, ..batches(all - online_can, late) };
    }
    let batch = all.min(online_can / 2);
    batches(batch, "under a day: batches get what can still be taken back and asked online in time".into())
}

/// Returns whether batches must be cancelled now, so that the online API can answer `unanswered` requests, theirs and its
/// own, before the deadline.
pub(super) fn must_take_back(left: Duration, unanswered: u64, online_per_minute: f64) -> bool {
    unanswered > 0 && unanswered as f64 / online_per_minute * 60.0 * CAUTION >= left.as_secs_f64()
}

/// Returns the time until all is answered at the pace so far; none where there is no pace yet.
pub(super) fn time_left(answered: u64, all: u64, taken: Duration) -> Option<Duration> {
    if answered == 0 || answered >= all {
        return None;
    }
    Duration::try_from_secs_f64(taken.as_secs_f64() * (all - answered) as f64 / answered as f64).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn known(requests: u64, deadline: Option<Duration>) -> Known {
        Known { requests, deadline, online_per_minute: 1000.0, prices: Some((10.0, 5.0)) }
    }

    fn divided(known: Known) -> (u64, u64) {
        let Division { batch, online, late, why } = divide(known);
        assert_eq!(batch + online, known.requests, "{why}");
        assert_eq!(late, why.contains("may be late"));
        (batch, online)
    }

    #[test]
    fn a_file_holds_what_the_api_takes() {
        let mut filled = Filled::default();
        while filled.has_room(1) {
            filled.add(1);
        }
        assert_eq!(filled.requests, 50_000);
        let mut large = Filled { requests: 3, bytes: 199_999_990 };
        assert!(large.has_room(10) && !large.has_room(11));
        large.add(10);
        assert!(!large.has_room(1));
    }

    #[test]
    fn price_alone_speaks_for_batches() {
        assert_eq!(divided(known(1_000_000, None)), (1_000_000, 0));
        assert_eq!(divided(known(1_000_000, Some(72 * HOUR))), (1_000_000, 0));
        assert_eq!(divided(known(99, None)), (0, 99));
        assert_eq!(divided(Known { prices: Some((5.0, 5.0)), ..known(1000, None) }), (0, 1000));
        assert_eq!(divided(Known { prices: None, ..known(1000, None) }), (1000, 0));
    }

    #[test]
    fn under_a_day_batches_get_what_can_be_taken_back() {
        // 12 hours online: 720 000 requests.
        assert_eq!(divided(known(200_000, Some(12 * HOUR))), (200_000, 0));
        assert_eq!(divided(known(500_000, Some(12 * HOUR))), (360_000, 140_000));
        assert_eq!(divided(known(1_000_000, Some(12 * HOUR))), (280_000, 720_000));
        assert_eq!(divided(known(1000, Some(Duration::ZERO))), (1000, 0));
    }

    #[test]
    fn batches_are_taken_back_in_time_and_not_before() {
        // 60 000 requests take an hour online.
        assert!(!must_take_back(2 * HOUR, 60_000, 1000.0));
        assert!(must_take_back(HOUR + HOUR / 5, 60_000, 1000.0));
        assert!(must_take_back(HOUR, 60_000, 1000.0));
        assert!(must_take_back(Duration::ZERO, 1, 1000.0), "late is better than later");
        assert!(!must_take_back(HOUR, 0, 1000.0));
    }

    #[test]
    fn what_batches_get_can_be_taken_back_at_half_time() {
        for requests in [1000, 100_000, 360_000, 700_000] {
            let (batch, _) = divided(known(requests, Some(12 * HOUR)));
            assert!(!must_take_back(9 * HOUR, batch, 1000.0));
            let back = (0..=12 * 60).rev().map(|minute| Duration::from_secs(60 * minute));
            let back = back.into_iter().find(|left| must_take_back(*left, batch, 1000.0)).unwrap();
            assert!(batch as f64 / 1000.0 <= back.as_secs_f64() / 60.0, "{requests}: {back:?}");
        }
    }

    #[test]
    fn the_pace_so_far_tells_the_rest() {
        assert_eq!(time_left(0, 10, HOUR), None);
        assert_eq!(time_left(4, 10, 2 * HOUR), Some(3 * HOUR));
        assert_eq!(time_left(10, 10, HOUR), None);
    }
}
