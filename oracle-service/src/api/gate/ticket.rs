//! What becomes of a request that was let out: told to its endpoint's pace and health.

use super::*;

/// Leave to send one request to one endpoint, until dropped.
pub(in crate::api) struct Ticket {
    pub(super) gate: Arc<Gate>,
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) permit: Permit,
    pub(super) is_told: bool,
    /// It is the one look at an endpoint that is not used.
    pub(super) is_look: bool,
}

impl Ticket {
    pub(in crate::api) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// An answer came; it took `used` tokens, where that is known.
    pub(in crate::api) fn answered(&mut self, used: Option<f64>, heard: &Heard) {
        self.is_told = true;
        let mut of = self.endpoint.lock();
        let now = self.gate.time.now();
        of.pacer.answered(self.permit, used.unwrap_or(self.permit.tokens()), heard, now);
        of.health.answered(self.permit.at(), now);
    }

    /// It was refused for the rate.
    pub(in crate::api) fn slowed(&mut self, heard: &Heard) {
        self.is_told = true;
        let mut of = self.endpoint.lock();
        of.pacer.refused(self.permit, heard, self.gate.time.now());
        of.health.lives(self.permit.at());
    }

    /// It was refused for what it asks: the endpoint is well.
    pub(in crate::api) fn declined(&self) {
        self.endpoint.lock().health.lives(self.permit.at());
    }

    /// It failed in a way that may pass. Returns whether that counts against the item.
    pub(in crate::api) fn failed(&self, item: u64, reason: &str) -> bool {
        self.endpoint.lock().health.failed(item, &self.named(reason), self.gate.time.now())
    }

    /// An item has used up its tries, the first of them failing then. Returns whether it is given up, or waits for the
    /// endpoint.
    pub(in crate::api) fn gives_up(&self, first_failure: Instant, reason: &str) -> bool {
        self.endpoint.lock().health.gives_up(first_failure, &self.named(reason), self.gate.time.now())
    }

    /// The endpoint could not be reached.
    pub(in crate::api) fn unreached(&self, reason: &str) {
        let reason = self.named(&format!("cannot be reached: {reason}"));
        self.endpoint.lock().health.away(&reason, self.gate.time.now());
    }

    /// Nothing was ever heard of the endpoint, and it will not be better for another item. Returns whether that is so.
    pub(in crate::api) fn gone(&self, reason: &str) -> bool {
        let mut of = self.endpoint.lock();
        let is_so = of.health.may_be_nothing();
        if is_so {
            of.health.hopeless(&self.named(&format!("cannot be reached: {reason}")), self.gate.time.now());
        }
        is_so
    }

    /// The endpoint will not answer before someone acts.
    pub(in crate::api) fn halted(&self, reason: &str) {
        self.endpoint.lock().health.refused(&self.named(reason), self.gate.time.now());
    }

    fn named(&self, reason: &str) -> String {
        format!("{}: {reason}", self.endpoint.spec.base_url)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut of = self.endpoint.lock();
        of.in_flight -= 1;
        if !self.is_told {
            of.pacer.failed(self.permit);
        }
        // The answer may have been in the ledger by then, or the ledger could not be written: nothing was sent.
        if self.is_look {
            of.health.look_is_over();
        }
        drop(of);
        self.gate.lock().in_flight -= 1;
        self.gate.changed.notify_waiters();
    }
}
