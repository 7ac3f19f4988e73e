//! What is in flight on a stream, bounded in number and in bytes: whoever sends waits for room.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The most messages in flight.
const MESSAGES: usize = 64;

/// More bytes than this are not in flight, unless they are one message's.
const BYTES: usize = 8 << 20;

/// What was sent and not yet answered, oldest first. Clones share it; one sends and one receives.
pub(super) struct Window<T> {
    shared: Arc<(Mutex<Flight<T>>, Notify)>,
}

struct Flight<T> {
    items: VecDeque<(T, usize)>,
    bytes: usize,
}

impl<T> Clone for Window<T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<T> Window<T> {
    pub(super) fn new() -> Self {
        let flight = Flight { items: VecDeque::new(), bytes: 0 };
        Self { shared: Arc::new((Mutex::new(flight), Notify::new())) }
    }

    fn flight(&self) -> MutexGuard<'_, Flight<T>> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until another message may be sent. Only one may wait.
    pub(super) async fn room(&self) {
        loop {
            {
                let flight = self.flight();
                if flight.items.len() < MESSAGES && flight.bytes < BYTES {
                    return;
                }
            }
            // Keeps a notice that comes before the wait.
            self.shared.1.notified().await;
        }
    }

    /// Notes what is sent now.
    pub(super) fn enter(&self, item: T, bytes: usize) {
        let mut flight = self.flight();
        flight.items.push_back((item, bytes));
        flight.bytes += bytes;
    }

    /// Takes out the oldest, which was answered.
    pub(super) fn leave(&self) -> Option<T> {
        let mut flight = self.flight();
        let full = flight.items.len() >= MESSAGES || flight.bytes >= BYTES;
        let (item, bytes) = flight.items.pop_front()?;
        flight.bytes -= bytes;
        drop(flight);
        if full {
            self.shared.1.notify_one();
        }
        Some(item)
    }

    /// Looks at the oldest.
    pub(super) fn oldest<R>(&self, look: impl FnOnce(&T) -> R) -> Option<R> {
        self.flight().items.front().map(|(item, _)| look(item))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn whoever_sends_waits_for_room() {
        let window = Window::new();
        window.enter(0, BYTES);
        let mut room = std::pin::pin!(window.room());
        assert!(room.as_mut().now_or_never().is_none(), "no room for more bytes");
        assert_eq!(window.leave(), Some(0));
        window.room().await;
        for item in 0..MESSAGES {
            assert!(window.room().now_or_never().is_some());
            window.enter(item, 1);
        }
        let mut room = std::pin::pin!(window.room());
        assert!(room.as_mut().now_or_never().is_none(), "no room for more messages");
        assert_eq!(window.oldest(|item| *item), Some(0));
        assert_eq!(window.leave(), Some(0));
        room.await;
    }
}
