//! The mock's time. It runs `speed` times as fast as the client's: plans are written in the mock's seconds, and all that
//! goes over the wire (waits, rates, dates) is in the client's, so that a client sees a faster world without contradictions.
//! In a rehearsal the client's time runs as fast as the mock's, and they share it.

use std::time::{Duration, Instant, SystemTime};

/// A clock that starts at 0.
#[derive(Debug)]
pub(super) struct Clock {
    start: Instant,
    start_unix: Duration,
    speed: f64,
    /// How much faster than the time of the client.
    for_client: f64,
    skew_s: i64,
}

impl Clock {
    /// Starts a clock; its dates are wrong by `skew_s`.
    pub(super) fn start(speed: f64, skew_s: i64) -> Clock {
        let start_unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Clock { start: Instant::now(), start_unix, speed, for_client: speed, skew_s }
    }

    /// Returns the clock of a mock whose client's time runs as fast as its own.
    pub(super) fn shared_with_client(self) -> Clock {
        Clock { for_client: 1.0, ..self }
    }

    /// Returns how long a time of the mock's is by the clock on the wall.
    pub(super) fn real(&self, span: Duration) -> Duration {
        span.div_f64(self.speed)
    }

    /// Returns the mock's time since its start.
    pub(super) fn now(&self) -> Duration {
        self.start.elapsed().mul_f64(self.speed)
    }

    /// Returns how long a time of the mock's is for the client.
    pub(super) fn for_client(&self, span: Duration) -> Duration {
        span.div_f64(self.for_client)
    }

    /// Returns a rate of the mock's as the client sees it.
    pub(super) fn rate_for_client(&self, rate: f64) -> f64 {
        rate * self.for_client
    }

    /// Returns a time of the mock's as a date of the client's, in Unix seconds, wrong by the skew.
    pub(super) fn date(&self, at: Duration) -> u64 {
        let seconds = (self.start_unix + self.for_client(at)).as_secs();
        seconds.saturating_add_signed(self.skew_s)
    }

    /// Returns a number that differs between two starts of the mock.
    pub(super) fn origin(&self) -> u64 {
        self.start_unix.as_nanos() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_is_in_the_clients_time() {
        let start_unix = Duration::from_secs(1000);
        let clock = Clock { start_unix, ..Clock::start(100.0, -300) };
        assert_eq!(clock.for_client(Duration::from_secs(60)), Duration::from_millis(600));
        assert_eq!(clock.rate_for_client(600.0), 60_000.0);
        assert_eq!(clock.date(Duration::from_secs(500)), 1000 + 5 - 300);
        let shared = clock.shared_with_client();
        assert_eq!(shared.for_client(Duration::from_secs(60)), Duration::from_secs(60));
        assert_eq!(shared.real(Duration::from_secs(60)), Duration::from_millis(600));
        assert_eq!((shared.rate_for_client(600.0), shared.date(Duration::from_secs(500))), (600.0, 1000 + 500 - 300));
    }
}
