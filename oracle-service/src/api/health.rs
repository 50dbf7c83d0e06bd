//! Whether an endpoint can be used at all: pure.
//!
//! One item's failure is the item's. Failures of many items with no answer between them are the endpoint's: it is *away*,
//! and no item's tries are spent on it. So is it where few items are left and nothing was answered since the first of an
//! item's failures: nobody else's answer shows that the item is to blame. But few items cannot show either that the endpoint
//! is, so they wait for minutes, not for as long as an outage may last. An endpoint that *refuses* (its key, its quota, the
//! model) helps nobody until someone acts. Either way one request at a time is let through now and then to find out whether
//! it is over.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// So many items in a row make a failure the endpoint's.
const AWAY_ITEMS: usize = 8;
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// After so many looks it is a minute.
const HOPELESS_LOOKS: u32 = 6;
const LAST_LOOK: Duration = Duration::from_secs(60);
/// What refuses changes when someone acts; it is asked again so often.
const REFUSED_LOOK: Duration = Duration::from_secs(300);
/// Failures for so long are no outage any more, unless an operator says otherwise: the items that cause them are given up
/// one by one.
pub(crate) const LONGEST_OUTAGE: Duration = Duration::from_secs(6 * 3600);

/// So long fewer items than it takes to blame the endpoint wait for it, where it takes their requests and answers none.
const FEW_WAIT: Duration = Duration::from_secs(600);

/// Why an endpoint is not used.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Halt {
    /// It cannot be reached or answers with errors.
    Away(String),
    /// It will not answer before someone acts.
    Refused(String),
}

impl Halt {
    pub(crate) fn reason(&self) -> &str {
        match self {
            Halt::Away(reason) | Halt::Refused(reason) => reason,
        }
    }
}

/// The state of an endpoint.
#[derive(Debug)]
pub(crate) struct Health {
    longest_outage: Duration,
    halt: Option<Halt>,
    /// Items that failed since the last answer, as many of them as it takes.
    failing: BTreeSet<u64>,
    since: Option<Instant>,
    /// When it last refused.
    refused_at: Option<Instant>,
    next_look: Option<Instant>,
    looks: u32,
    is_looking: bool,
    answers: u64,
    answered_at: Option<Instant>,
}

impl Health {
    /// Returns the health of an endpoint of which nothing is known.
    pub(crate) fn new(longest_outage: Duration) -> Health {
        Health {
            longest_outage,
            halt: None,
            failing: BTreeSet::new(),
            since: None,
            refused_at: None,
            next_look: None,
            looks: 0,
            is_looking: false,
            answers: 0,
            answered_at: None,
        }
    }

    /// Returns why it is not used.
    pub(crate) fn halt(&self) -> Option<&Halt> {
        self.halt.as_ref()
    }

    /// Returns whether it may be that nothing of this API is at its address.
    pub(crate) fn may_be_nothing(&self) -> bool {
        self.answers == 0 && !self.is_by_few()
    }

    /// Returns how long until a request may be sent; zero for now, none while a look is on its way.
    pub(crate) fn wait(&self, now: Instant) -> Option<Duration> {
        match (&self.halt, self.next_look) {
            (None, _) => Some(Duration::ZERO),
            (Some(_), _) if self.is_looking => None,
            (Some(_), next) => Some(next.map_or(Duration::ZERO, |next| next.saturating_duration_since(now))),
        }
    }

    /// Notes that a request goes out. Returns whether it is the look at an endpoint that is not used.
    pub(crate) fn sent(&mut self) -> bool {
        self.is_looking = self.halt.is_some();
        self.is_looking
    }

    /// Notes that a look came to nothing: the request was not sent, or nobody learnt what became of it. The next one may
    /// look at once.
    pub(crate) fn look_is_over(&mut self) {
        self.is_looking = false;
    }

    /// Notes an answer to a request that was sent then.
    pub(crate) fn answered(&mut self, sent: Instant, now: Instant) {
        self.answers += 1;
        self.answered_at = Some(now);
        self.lives(sent);
    }

    /// Notes anything else that only a server in use says: a refusal for the rate or of one request's content.
    pub(crate) fn lives(&mut self, sent: Instant) {
        // What was sent before it began to refuse says nothing of what it does now.
        if self.refused_at.is_none_or(|refused| sent > refused) {
            let Health { answers, answered_at, .. } = *self;
            *self = Health { answers, answered_at, ..Health::new(self.longest_outage) };
        }
    }

    /// Notes a failure that may pass. Returns whether it counts against the item.
    pub(crate) fn failed(&mut self, item: u64, reason: &str, now: Instant) -> bool {
        if self.failing.len() < AWAY_ITEMS {
            self.failing.insert(item);
        }
        let since = *self.since.get_or_insert(now);
        if self.failing.len() < AWAY_ITEMS && self.halt.is_none() {
            return true;
        }
        self.away(reason, now);
        now.saturating_duration_since(since) >= self.patience()
    }

    /// Decides about an item that has used up its tries, the first of them failing then. Returns whether it is given up;
    /// where not, the endpoint is taken for away and the item waits with it.
    pub(crate) fn gives_up(&mut self, first_failure: Instant, reason: &str, now: Instant) -> bool {
        let others_were_answered = self.answered_at.is_some_and(|answered| answered > first_failure);
        let since = self.since.unwrap_or(first_failure);
        if others_were_answered || now.saturating_duration_since(since) >= self.patience() {
            return true;
        }
        self.away(reason, now);
        false
    }

    /// Returns how long items that fail wait for the endpoint.
    fn patience(&self) -> Duration {
        if self.is_by_few() { FEW_WAIT.min(self.longest_outage) } else { self.longest_outage }
    }

    /// Returns whether it takes requests and fails, of few items: any of these may be to blame.
    fn is_by_few(&self) -> bool {
        (1..AWAY_ITEMS).contains(&self.failing.len())
    }

    /// Takes the endpoint for away.
    pub(crate) fn away(&mut self, reason: &str, now: Instant) {
        if matches!(self.halt, Some(Halt::Refused(_))) {
            self.looked(REFUSED_LOOK, now);
            return;
        }
        let is_first = self.halt.is_none();
        self.halt = Some(Halt::Away(reason.to_owned()));
        // Failures of requests that were sent before it was found out are no looks.
        if is_first || self.is_looking {
            self.looked((FIRST_LOOK * (1 << self.looks.min(6))).min(LAST_LOOK), now);
        }
    }

    /// Takes the endpoint for away, and for nothing that waiting would help.
    pub(crate) fn hopeless(&mut self, reason: &str, now: Instant) {
        self.looks = self.looks.max(HOPELESS_LOOKS);
        self.is_looking = true;
        self.away(reason, now);
    }

    /// Returns whether it has never answered, for a minute at least, and no few items are to blame: its address is likely
    /// wrong.
    pub(crate) fn is_hopeless(&self) -> bool {
        self.halt.is_some() && self.answers == 0 && self.looks > HOPELESS_LOOKS && !self.is_by_few()
    }

    /// Notes that it will not answer before someone acts.
    pub(crate) fn refused(&mut self, reason: &str, now: Instant) {
        self.halt = Some(Halt::Refused(reason.to_owned()));
        self.refused_at = Some(now);
        self.looked(REFUSED_LOOK, now);
    }

    /// Looks again at once: someone acted.
    pub(crate) fn look_now(&mut self) {
        self.next_look = None;
        self.looks = 0;
    }

    fn looked(&mut self, pause: Duration, now: Instant) {
        self.next_look = Some(now + pause);
        self.looks += 1;
        self.is_looking = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_items_failures_are_its_own_and_many_items_are_the_endpoints() {
        let start = Instant::now();
        let mut health = Health::new(LONGEST_OUTAGE);
        for _ in 0..20 {
            assert!(health.failed(1, "500", start));
        }
        for item in 2..AWAY_ITEMS as u64 {
            assert!(health.failed(item, "500", start));
        }
        assert_eq!(health.halt(), None);
        assert!(!health.failed(99, "500", start));
        assert_eq!(health.halt(), Some(&Halt::Away("500".into())));
        // An answer makes all good.
        health.answered(start, start);
        assert_eq!((health.halt(), health.wait(start)), (None, Some(Duration::ZERO)));
        assert!(health.failed(99, "500", start) && !health.may_be_nothing());
    }

    #[test]
    fn an_outage_is_looked_at_by_one_request_ever_less_often() {
        let start = Instant::now();
        let mut health = Health::new(LONGEST_OUTAGE);
        health.away("cut", start);
        health.away("cut", start);
        let mut now = start;
        for expected in [1, 2, 4, 8, 16, 32, 60, 60] {
            let wait = health.wait(now).unwrap();
            assert_eq!(wait, Duration::from_secs(expected));
            now += wait;
            assert_eq!(health.wait(now), Some(Duration::ZERO));
            health.sent();
            assert_eq!(health.wait(now), None, "one at a time");
            assert!(!health.failed(1, "cut", now), "an outage is not the item's fault");
        }
    }

    #[test]
    fn a_look_that_was_not_sent_leaves_the_next_one_free() {
        let start = Instant::now();
        let mut health = Health::new(LONGEST_OUTAGE);
        assert!(!health.sent(), "nothing to look at");
        health.away("cut", start);
        let now = start + health.wait(start).unwrap();
        assert!(health.sent() && health.wait(now).is_none());
        health.look_is_over();
        assert_eq!(health.wait(now), Some(Duration::ZERO));
    }

    #[test]
    fn an_endless_outage_ends_in_items_given_up() {
        let start = Instant::now();
        let mut health = Health::new(LONGEST_OUTAGE);
        for item in 0..AWAY_ITEMS as u64 {
            health.failed(item, "500", start);
        }
        health.sent();
        assert!(health.failed(1, "500", start + LONGEST_OUTAGE));
    }

    #[test]
    fn an_item_is_given_up_where_others_were_answered_meanwhile_and_waits_where_nobody_was() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let mut health = Health::new(Duration::from_secs(3600));
        health.answered(at(0), at(1));
        // Nothing since: an outage, with few items or one.
        for s in 2..10 {
            assert!(health.failed(7, "500", at(s)));
        }
        assert!(!health.gives_up(at(2), "500", at(10)));
        assert_eq!(health.halt(), Some(&Halt::Away("500".into())));
        health.sent();
        assert!(!health.failed(7, "500", at(12)), "a look costs no try");
        // Another item's answer ends it; this one's failures are its own from then on.
        health.answered(at(13), at(14));
        assert_eq!(health.halt(), None);
        health.failed(7, "500", at(15));
        health.answered(at(16), at(17));
        health.failed(7, "500", at(18));
        assert!(health.gives_up(at(15), "500", at(18)));
        // Few items do not wait as long as an outage may last.
        assert!(!health.gives_up(at(18), "500", at(18 + 599)) && health.gives_up(at(18), "500", at(18 + 600)));
        for item in 0..AWAY_ITEMS as u64 {
            health.failed(item, "500", at(700));
        }
        assert!(!health.gives_up(at(700), "500", at(18 + 3599)) && health.gives_up(at(700), "500", at(18 + 3600)));
    }

    #[test]
    fn one_item_of_a_server_that_answered_nobody_yet_ends_nothing_but_itself() {
        let start = Instant::now();
        let mut health = Health::new(LONGEST_OUTAGE);
        let mut now = start;
        for _ in 0..20 {
            health.failed(7, "500", now);
            if health.gives_up(start, "500", now) {
                assert!(now - start >= FEW_WAIT && now - start < 2 * FEW_WAIT, "{:?}", now - start);
                return;
            }
            assert!(!health.is_hopeless() && !health.may_be_nothing());
            now += health.wait(now).unwrap();
            health.sent();
        }
        panic!("it waits on");
    }

    #[test]
    fn what_never_answered_is_hopeless_and_what_did_is_not() {
        let start = Instant::now();
        let mut health = Health::new(LONGEST_OUTAGE);
        for _ in 0..HOPELESS_LOOKS {
            health.away("refused", start);
            health.sent();
        }
        assert!(!health.is_hopeless());
        health.away("refused", start);
        assert!(health.is_hopeless());
        let mut other = Health::new(LONGEST_OUTAGE);
        other.answered(start, start);
        other.hopeless("cut", start);
        assert!(!other.is_hopeless());
    }

    #[test]
    fn a_refusal_waits_for_someone_to_act() {
        let start = Instant::now();
        let mut health = Health::new(LONGEST_OUTAGE);
        health.refused("quota", start);
        health.answered(start, start);
        assert_eq!(health.halt(), Some(&Halt::Refused("quota".into())), "that was sent before");
        assert!(health.wait(start).unwrap() > Duration::from_secs(200));
        health.look_now();
        assert_eq!(health.wait(start), Some(Duration::ZERO));
        health.sent();
        // Cut off while looking: it still refuses, as far as one knows.
        health.failed(1, "cut", start);
        assert_eq!(health.halt(), Some(&Halt::Refused("quota".into())));
        health.lives(start + Duration::from_millis(1));
        assert_eq!(health.halt(), None);
    }
}
