//! The client's time. It is the clock's; in a rehearsal it runs faster, so that every wait of the client is as short beside
//! the server's as it will be in earnest.

use std::time::{Duration, Instant};

/// A way to tell the time and to wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Time {
    start: Instant,
    speed: f64,
}

impl Default for Time {
    fn default() -> Time {
        Time::faster(1.0)
    }
}

impl Time {
    /// Returns a time that runs so much faster than the clock.
    pub(crate) fn faster(speed: f64) -> Time {
        Time { start: Instant::now(), speed }
    }

    /// Returns the time.
    pub(crate) fn now(&self) -> Instant {
        if self.speed == 1.0 {
            return Instant::now();
        }
        self.start + self.start.elapsed().mul_f64(self.speed)
    }

    /// Waits.
    pub(crate) async fn sleep(self, span: Duration) {
        tokio::time::sleep(span.div_f64(self.speed)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_passes_faster_than_the_clock() {
        let (time, clock) = (Time::faster(1000.0), Instant::now());
        let begun = time.now();
        time.sleep(Duration::from_secs(20)).await;
        assert!(time.now() - begun >= Duration::from_secs(20));
        assert!(clock.elapsed() < Duration::from_secs(10), "it waited by the clock");
        let plain = Time::default();
        assert!(plain.now().elapsed() < Duration::from_secs(10));
    }
}
