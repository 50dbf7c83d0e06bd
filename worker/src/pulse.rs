//! Whether anything moves in a gang's call. The call itself tells, the heartbeat asks: a rank that computes is never still,
//! however long its step, and one that waits for the others is, as long as nothing comes or goes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// When something last moved in the present call.
#[derive(Debug)]
pub struct Pulse {
    begun: Instant,
    /// Milliseconds since `begun`, plus one; 0 outside calls.
    moved: AtomicU64,
}

impl Default for Pulse {
    fn default() -> Self {
        Pulse { begun: Instant::now(), moved: AtomicU64::new(0) }
    }
}

impl Pulse {
    /// A call begins; it ends when what is returned is dropped.
    pub fn call(&self) -> Call<'_> {
        self.moved();
        Call(self)
    }

    /// Something came or went. Only within a call.
    pub fn moved(&self) {
        self.moved.store(self.begun.elapsed().as_millis() as u64 + 1, Ordering::Relaxed);
    }

    /// Returns for how long nothing has moved in the present call; nothing outside calls.
    pub fn still(&self) -> Duration {
        match self.moved.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            moved => self.begun.elapsed().saturating_sub(Duration::from_millis(moved - 1)),
        }
    }
}

/// A call that goes on.
#[derive(Debug)]
pub struct Call<'a>(&'a Pulse);

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.0.moved.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_call_in_which_nothing_moves_is_still() {
        let long_ago = Instant::now() - Duration::from_secs(60);
        let pulse = Pulse { begun: long_ago, ..Pulse::default() };
        assert_eq!(pulse.still(), Duration::ZERO, "it computes");
        let call = pulse.call();
        assert!(pulse.still() < Duration::from_secs(30));
        pulse.moved.store(1, Ordering::Relaxed);
        assert!(pulse.still() >= Duration::from_secs(60));
        pulse.moved();
        assert!(pulse.still() < Duration::from_secs(30));
        drop(call);
        assert_eq!(pulse.still(), Duration::ZERO);
    }
}
