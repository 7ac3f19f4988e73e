//! Holds back news without entries, which is that something is committed, so that it goes with the next entries if they
//! come soon. A message of its own costs all members as much as a proposal does, at the very moment at which the
//! proposer, who has his answer, sends the next one.

use std::pin::Pin;
use std::time::Duration;

use futures_util::stream::{Fuse, Stream, StreamExt};
use openraft::raft::AppendEntriesRequest;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

use crate::types::Types;

/// So long news waits at most, give or take the millisecond of the timer. Longer than a proposer takes for his next
/// proposal, and nothing to those who look at a follower.
const HOLD: Duration = Duration::from_millis(2);

/// The requests of an append stream, fewer than openraft makes. It needs no answer to each: an answer is for all that
/// was sent before.
pub(super) struct Hold<S> {
    input: Fuse<S>,
    /// Somebody waits until followers know that everything up to here is committed.
    urgent: watch::Receiver<u64>,
    /// Up to where the follower was told that everything is committed.
    told: u64,
    /// Runs on when news went with entries, and then cuts the next hold short: setting a timer costs too.
    timer: Pin<Box<Sleep>>,
}

impl<S: Stream<Item = AppendEntriesRequest<Types>> + Unpin> Hold<S> {
    pub(super) fn new(input: S, urgent: watch::Receiver<u64>) -> Self {
        Self { input: input.fuse(), urgent, told: 0, timer: Box::pin(tokio::time::sleep(Duration::ZERO)) }
    }

    /// The next request to send.
    pub(super) async fn next(&mut self) -> Option<AppendEntriesRequest<Types>> {
        let mut request = self.input.next().await?;
        if request.entries.is_empty() {
            request = self.hold(request).await;
        }
        self.told = request.leader_commit.map_or(0, |id| id.index);
        Some(request)
    }

    async fn hold(&mut self, mut news: AppendEntriesRequest<Types>) -> AppendEntriesRequest<Types> {
        let now = Instant::now();
        if self.timer.deadline() <= now {
            self.timer.as_mut().reset(now + HOLD);
        }
        loop {
            tokio::select! {
                biased;
                next = self.input.next() => match next {
                    Some(next) if next.entries.is_empty() => news = next,
                    Some(entries) => return entries,
                    None => return news,
                },
                // The sender is gone only when the whole member is stopping.
                _ = self.urgent.wait_for(|index| *index > self.told) => return news,
                () = &mut self.timer => return news,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, stream};
    use openraft::entry::RaftEntry;

    use super::*;
    use crate::types::{Entry, EntryPayload, Vote, log_id};

    /// After `previous` entries, of which those up to `committed` are known to be so.
    fn request(previous: u64, committed: u64, entries: u64) -> AppendEntriesRequest<Types> {
        AppendEntriesRequest {
            vote: Vote::new_committed(1, 1),
            prev_log_id: Some(log_id(1, previous)),
            leader_commit: Some(log_id(1, committed)),
            entries: (1..=entries).map(|n| Entry::new(log_id(1, previous + n), EntryPayload::Blank)).collect(),
        }
    }

    fn commit(request: Option<AppendEntriesRequest<Types>>) -> (u64, usize) {
        let request = request.unwrap();
        (request.leader_commit.unwrap().index, request.entries.len())
    }

    #[tokio::test]
    async fn news_goes_with_the_entries_that_follow() {
        let requests = [request(4, 3, 1), request(5, 4, 0), request(5, 5, 0), request(5, 5, 2), request(7, 7, 0)];
        let (_urgent, hurry) = watch::channel(0);
        let mut hold = Hold::new(stream::iter(requests), hurry);
        assert_eq!(commit(hold.next().await), (3, 1));
        assert_eq!(commit(hold.next().await), (5, 2));
        assert_eq!(commit(hold.next().await), (7, 0), "the last news is not lost with the stream's end");
        assert!(hold.next().await.is_none());
        assert!(hold.next().await.is_none());
    }

    #[tokio::test]
    async fn news_that_nothing_follows_goes_alone_and_a_little_later() {
        let (_urgent, hurry) = watch::channel(0);
        let requests = stream::iter([request(5, 5, 0)]).chain(stream::pending());
        let mut hold = Hold::new(requests, hurry);
        let mut next = std::pin::pin!(hold.next());
        assert!(next.as_mut().now_or_never().is_none());
        assert_eq!(commit(next.await), (5, 0));
    }

    #[tokio::test]
    async fn urgent_news_does_not_wait() {
        let (urgent, hurry) = watch::channel(0);
        let requests = stream::iter([request(5, 5, 0), request(5, 6, 0)]).then(|request| async {
            tokio::task::yield_now().await;
            request
        });
        let mut hold = Hold::new(Box::pin(requests.chain(stream::pending())), hurry);
        urgent.send_replace(6);
        let mut told = 0;
        while told < 6 {
            told = commit(hold.next().await).0;
        }
        // What was told is not urgent any more.
        assert!(hold.next().now_or_never().is_none());
    }
}
