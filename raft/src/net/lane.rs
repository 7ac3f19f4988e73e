//! The way of proposals from a member to the leader: one stream, many proposals a message, answers in order.
//!
//! A lane ends when its stream does. Proposals that are still queued then were never sent, and may be tried
//! elsewhere; the outcome of those that were sent is unknown.

use bytes::Bytes;
use futures_util::stream;
use tokio::sync::{mpsc, oneshot, watch};
use tonic::transport::Channel;

use super::MAX_MESSAGE;
use crate::status::Status;
use crate::wire::pb;
use crate::wire::pb::proposals_client::ProposalsClient;
use crate::wire::pb::propose_response::Outcome;

/// Proposals that wait to be sent.
const QUEUE: usize = 256;

/// Proposals that were sent and not answered.
pub(super) const IN_FLIGHT: usize = 4096;

/// A message is sent once it has this many bytes of payloads, or when no more wait.
const BATCH: usize = 1 << 20;

/// A proposal, and who waits for its outcome.
pub(super) struct Item {
    pub(super) payload: Bytes,
    /// Dropped without an answer when the payload was never sent.
    pub(super) reply: oneshot::Sender<Outcome>,
}

/// Who waits for the outcome of a proposal that was sent. Says `Unknown` unless told better.
struct Sent(Option<oneshot::Sender<Outcome>>);

impl Sent {
    fn answer(&mut self, outcome: Outcome) {
        if let Some(reply) = self.0.take() {
            // Whoever asked may have gone.
            drop(reply.send(outcome));
        }
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        self.answer(Outcome::Unknown(pb::Blank {}));
    }
}

/// Makes a lane to a leader over `channel`. The future carries it until the stream ends, another member leads, or
/// nobody proposes any more.
pub(super) fn lane(
    channel: Channel,
    envelope: pb::Envelope,
    mut status: watch::Receiver<Status>,
) -> (mpsc::Sender<Item>, impl Future<Output = ()> + Send) {
    let (propose, queue) = mpsc::channel(QUEUE);
    let leader = envelope.to;
    let carried = async move {
        let replaced = status.wait_for(move |now| now.leader.as_ref().is_some_and(|other| other.id != leader));
        tokio::select! {
            biased;
            // What a leader of old was sent may never be answered.
            _ = replaced => {}
            () = carry(channel, envelope, queue) => {}
        }
    };
    (propose, carried)
}

async fn carry(channel: Channel, envelope: pb::Envelope, queue: mpsc::Receiver<Item>) {
    let (sent, mut waiting) = mpsc::channel(IN_FLIGHT);
    let (opened, open) = oneshot::channel();
    let mut client =
        ProposalsClient::new(channel).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE);
    let first = (Some((envelope, open)), queue, sent);
    let messages = stream::unfold(first, |(first, mut queue, sent)| async move {
        let envelope = match first {
            Some((envelope, open)) => {
                // Until the leader says that it listens, nothing counts as sent.
                open.await.ok()?;
                Some(envelope)
            }
            None => None,
        };
        let payloads = batch(&mut queue, &sent).await?;
        Some((pb::ForwardRequest { envelope, payloads }, (None, queue, sent)))
    });
    let mut answers = match client.forward(messages).await {
        Ok(answers) => answers.into_inner(),
        Err(error) => return tracing::debug!(%error, "the leader takes no proposals from here"),
    };
    // Nobody waits any more when the stream is broken already, which the next lines find out.
    let _ = opened.send(());
    loop {
        match answers.message().await {
            Ok(Some(message)) => {
                for answer in message.answers {
                    let Ok(mut next) = waiting.try_recv() else {
                        return tracing::warn!("the leader answers what it was not asked");
                    };
                    if let Some(outcome) = answer.outcome {
                        next.answer(outcome);
                    }
                }
            }
            Ok(None) => return,
            Err(error) => return tracing::debug!(%error, "the way to the leader is cut"),
        }
    }
}

/// Takes what waits to be sent, as far as it may be in flight. `None` when nobody proposes any more.
async fn batch(queue: &mut mpsc::Receiver<Item>, sent: &mpsc::Sender<Sent>) -> Option<Vec<Bytes>> {
    let mut room = sent.reserve().await.ok()?;
    let mut item = queue.recv().await?;
    let (mut payloads, mut bytes) = (Vec::new(), 0);
    loop {
        bytes += item.payload.len();
        payloads.push(item.payload);
        room.send(Sent(Some(item.reply)));
        if bytes >= BATCH {
            break;
        }
        let Ok(more) = sent.try_reserve() else { break };
        let Ok(next) = queue.try_recv() else { break };
        (room, item) = (more, next);
    }
    Some(payloads)
}
