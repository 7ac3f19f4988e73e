//! How often something is tried, and how long to wait in between.

use std::time::Duration;

use super::error::RegistryError;

/// Tries of one request, the first included. With pauses of 0.5, 1, 2 and 4 s in between.
const ATTEMPTS: u32 = 5;
/// The longest pause that is made because a registry asks for it.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// The pause before the next try after `failed` ones, or `None` where another makes no sense.
/// `jitter` is a random byte: clients that failed together do not come back together.
fn pause(error: &RegistryError, failed: u32, first: Duration, jitter: u8) -> Option<Duration> {
    if failed >= ATTEMPTS || !error.is_transient() {
        return None;
    }
    let pause = first * 2_u32.saturating_pow(failed.saturating_sub(1));
    let pause = pause / 2 + (pause / 2) * u32::from(jitter) / 255;
    match error.retry_after() {
        Some(asked) if asked > MAX_RETRY_AFTER => None,
        Some(asked) => Some(pause.max(asked)),
        None => Some(pause),
    }
}

/// A random byte.
fn jitter() -> u8 {
    let mut byte = [0];
    // Without randomness all wait equally long.
    let _ = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut byte);
    byte[0]
}

/// The tries of one thing.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    failed: u32,
}

impl Backoff {
    /// `first` is the pause after the first failure.
    pub(super) fn new(first: Duration) -> Backoff {
        Backoff { first, failed: 0 }
    }

    /// Returns when it is time for another try, or the error where that makes no sense.
    pub(super) async fn again(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        self.failed += 1;
        let Some(pause) = pause(&error, self.failed, self.first, jitter()) else { return Err(error) };
        tracing::debug!(%error, failed = self.failed, ?pause, "a request to a registry failed; trying again");
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// What was tried came further than before.
    pub(super) fn progressed(&mut self) {
        self.failed = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(status: u16, retry_after: Option<u64>) -> RegistryError {
        let retry_after = retry_after.map(Duration::from_secs);
        RegistryError::Status { registry: "r".into(), status, message: String::new(), retry_after }
    }

    #[test]
    fn pauses_grow_and_end() {
        let first = Duration::from_secs(1);
        let pauses: Vec<_> = (1..=5).map(|failed| pause(&status(503, None), failed, first, 255)).collect();
        assert_eq!(
            pauses,
            [1, 2, 4, 8].map(|s| Some(Duration::from_secs(s))).into_iter().chain([None]).collect::<Vec<_>>()
        );
        assert_eq!(pause(&status(503, None), 1, first, 0), Some(Duration::from_millis(500)));
    }

    #[test]
    fn a_registry_may_ask_for_patience_but_not_for_ever() {
        let first = Duration::from_millis(1);
        assert_eq!(pause(&status(429, Some(7)), 1, first, 0), Some(Duration::from_secs(7)));
        assert_eq!(pause(&status(429, Some(3600)), 1, first, 0), None);
        assert_eq!(pause(&status(400, None), 1, first, 0), None);
    }
}
