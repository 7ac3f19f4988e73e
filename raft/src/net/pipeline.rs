//! Replication without waiting: one gRPC stream a session carries many appends to a follower, and their answers come
//! back in order. A follower stores what has come together in one sync.
//!
//! A stream that breaks, stands still or is answered with anything but success ends the session with an error;
//! openraft then finds out what the follower has and starts another.

use std::future::ready;
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use openraft::base::BoxStream;
use openraft::entry::RaftEntry;
use openraft::errors::{NetworkError, RPCError};
use openraft::network::{RPCOption, RPCTypes, RaftNetworkV2};
use openraft::raft::{AppendEntriesRequest, StreamAppendResult};
use tonic::{Code, Streaming};

use super::client::{Failure, Link, malformed};
use super::hold::Hold;
use super::window::Window;
use crate::types::{LogId, Types};
use crate::wire::{self, Malformed, pb};

/// What answers a request: up to where the follower has the log.
type Answer = Result<StreamAppendResult<Types>, Failure>;
type Answers = BoxStream<'static, Answer>;

/// Runs a session. Requests without entries at its start, a heartbeat above all, are calls of their own.
pub(super) async fn replicate(
    mut link: Link,
    mut input: impl Stream<Item = AppendEntriesRequest<Types>> + Send + Unpin + 'static,
    option: RPCOption,
) -> Result<Answers, Failure> {
    let Some(first) = input.next().await else { return Ok(stream::empty().boxed()) };
    if !first.entries.is_empty() {
        return open(link, stream::once(ready(first)).chain(input), option.soft_ttl()).await;
    }
    let previous = first.prev_log_id;
    let answer = link.append_entries(first, option.clone()).await?.into_stream_result(previous, previous);
    let goes_on = answer.is_ok();
    let rest = async move {
        let Some(next) = (if goes_on { input.next().await } else { None }) else { return stream::empty().boxed() };
        open(link, stream::once(ready(next)).chain(input), option.soft_ttl())
            .await
            .unwrap_or_else(|error| stream::once(ready(Err(error))).boxed())
    };
    Ok(stream::once(ready(Ok(answer))).chain(stream::once(rest).flatten()).boxed())
}

/// An append that was sent and not yet answered.
struct Sent {
    previous: Option<LogId>,
    last: Option<LogId>,
    /// How long the follower may take for it, once it is the oldest.
    limit: Duration,
}

/// Opens the stream and gives the answers. `limit` is the time for an answer to a request without entries.
async fn open(
    link: Link,
    input: impl Stream<Item = AppendEntriesRequest<Types>> + Send + Unpin + 'static,
    limit: Duration,
) -> Result<Answers, Failure> {
    let window = Window::new();
    let input = Hold::new(input, link.urgent.clone());
    let requests = stream::unfold((input, link.clone(), window.clone()), move |(mut input, link, window)| async move {
        window.room().await;
        let request = input.next().await?;
        let limit = if request.entries.is_empty() { limit } else { limit.max(link.store_patience) };
        let last = request.entries.last().map(RaftEntry::log_id).or(request.prev_log_id);
        let bytes = request.entries.iter().map(wire::entry_size).sum();
        window.enter(Sent { previous: request.prev_log_id, last, limit }, bytes);
        Some((link.append_request(&request), (input, link, window)))
    });
    // The follower says at once that it listens; its answers take their time.
    let mut client = link.client()?;
    let opening = tokio::time::timeout(limit, client.append_stream(requests));
    let answers = match opening.await {
        Ok(Ok(answers)) => answers.into_inner(),
        Ok(Err(status)) => {
            if status.code() == Code::Unimplemented {
                tracing::info!(raft.id = link.target, "the member knows no append streams; it gets one by one");
                link.no_streams();
            }
            return Err(link.failed(RPCTypes::AppendEntries, limit, &status));
        }
        Err(_) => return Err(link.timed_out(RPCTypes::AppendEntries, limit)),
    };
    let reader = Reader { link, answers, window, idle: limit };
    Ok(stream::unfold(Some(reader), |reader| async {
        let mut reader = reader?;
        let answer = reader.next().await?;
        // Nothing comes after a failure or a refusal.
        let goes_on = matches!(answer, Ok(Ok(_)));
        Some((answer, goes_on.then_some(reader)))
    })
    .boxed())
}

/// Reads the answers.
struct Reader {
    link: Link,
    answers: Streaming<pb::AppendResponse>,
    window: Window<Sent>,
    /// How long to wait, while nothing is in flight, before looking again whether something is.
    idle: Duration,
}

impl Reader {
    /// The next answer; `None` when all was sent and answered.
    async fn next(&mut self) -> Option<Answer> {
        loop {
            let oldest = self.window.oldest(|sent| sent.limit);
            let limit = oldest.unwrap_or(self.idle);
            match tokio::time::timeout(limit, self.answers.message()).await {
                Ok(Ok(Some(answer))) => return Some(self.judge(answer)),
                Ok(Ok(None)) => {
                    self.window.oldest(|_| ())?;
                    return Some(Err(RPCError::Network(NetworkError::from_string("the append stream ended early"))));
                }
                Ok(Err(status)) => return Some(Err(self.link.failed(RPCTypes::AppendEntries, limit, &status))),
                Err(_) if oldest.is_none() => {}
                Err(_) => return Some(Err(self.link.timed_out(RPCTypes::AppendEntries, limit))),
            }
        }
    }

    fn judge(&self, answer: pb::AppendResponse) -> Answer {
        let sent = self.window.leave().ok_or_else(|| malformed(Malformed::Missing("request")))?;
        let answer = wire::append_response_in(answer, sent.previous).map_err(malformed)?;
        Ok(answer.into_stream_result(sent.previous, sent.last))
    }
}
