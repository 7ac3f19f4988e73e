//! Tells a transfer that goes slowly from one that only looks alive: a byte now and then would keep who waits for it
//! waiting for ever.

use std::time::Duration;

use tokio::time::{Instant, timeout};

/// Bytes in a second, at least.
const FLOOR: f64 = 1024.0;

/// Watches one transfer. Only waiting counts, not what the caller does with the bytes.
#[derive(Debug)]
pub struct StallDetector {
    idle: Duration,
    waited: Duration,
    bytes: u64,
}

/// Why a transfer is not waited for any longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Stalled {
    /// Nothing came.
    #[error("it went silent")]
    Silent,
    /// Less than 1024 bytes a second came.
    #[error("it sent less than 1 KiB/s")]
    Slow,
}

impl StallDetector {
    /// `idle` is how long nothing may come, and over how much waiting the pace is taken.
    #[must_use]
    pub fn new(idle: Duration) -> StallDetector {
        StallDetector { idle, waited: Duration::ZERO, bytes: 0 }
    }

    /// Waits for the next piece. `bytes` says how long it is; `None` is for what ends the transfer, and comes never too
    /// late.
    ///
    /// # Errors
    /// See [`Stalled`].
    pub async fn wait<T>(
        &mut self,
        next: impl Future<Output = T>,
        bytes: impl FnOnce(&T) -> Option<usize>,
    ) -> Result<T, Stalled> {
        let began = Instant::now();
        let piece = timeout(self.idle, next).await.map_err(|_| Stalled::Silent)?;
        match bytes(&piece) {
            Some(bytes) if !self.holds(began.elapsed(), bytes) => Err(Stalled::Slow),
            _ => Ok(piece),
        }
    }

    fn holds(&mut self, waited: Duration, bytes: usize) -> bool {
        self.waited += waited;
        self.bytes += bytes as u64;
        if self.waited < self.idle {
            return true;
        }
        let holds = self.bytes as f64 >= FLOOR * self.waited.as_secs_f64();
        (self.waited, self.bytes) = (Duration::ZERO, 0);
        holds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_is_not_stalled() {
        let second = Duration::from_secs(1);
        let lasts = |bytes, seconds| {
            let mut detector = StallDetector::new(10 * second);
            (0..seconds).take_while(|_| detector.holds(second, bytes)).count()
        };
        assert_eq!(lasts(1024, 1000), 1000);
        assert_eq!(lasts(1023, 1000), 9);
        // A burst pays for what follows in the same time, and not longer.
        let mut detector = StallDetector::new(10 * second);
        assert!(detector.holds(second, 1 << 20));
        assert_eq!((0..100).take_while(|_| detector.holds(second, 1)).count(), 18);
    }
}
