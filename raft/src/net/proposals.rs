//! Takes proposals at any member, and carries those of a follower to the leader.
//!
//! A proposal is tried again only while it was surely not accepted. What was accepted and then lost sight of is
//! answered as unknown.
//!
//! For those who keep plain bytes in a Raft log and want to write at any member: the benchmark that writes beside etcd
//! does, and the tests. Shoal's managers do not mount it: their changes are decided on the leader's speculative store,
//! and `node` carries whole requests to it.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::{Request, Response, Status, Streaming};

use super::lane::{IN_FLIGHT, Item, lane};
use super::server::Gate;
use super::{AddressBook, MAX_MESSAGE};
use crate::handle::Pending;
use crate::status::Role;
use crate::wire::pb::proposals_server::{Proposals as Service, ProposalsServer};
use crate::wire::pb::propose_response::Outcome;
use crate::wire::{Malformed, pb};
use crate::{MAX_PAYLOAD, ProposeError, Proposed, Raft, RaftId};

/// The gRPC service that takes proposals, to be mounted where those may reach it who may change the state, and
/// on all members alike.
pub type Proposals = ProposalsServer<Desk>;

/// So long a proposal looks for a leader, or for six of the longest election timeouts.
const FIND_LEADER: Duration = Duration::from_secs(10);

/// The outcome of what was accepted is called unknown after this.
const COMMIT: Duration = Duration::from_secs(30);

/// Pause after a refusal, unless the status changes before.
const RETRY: Duration = Duration::from_millis(25);

/// Payload bytes that callers may have here at a time, in KiB; more are refused. A message is in memory before anything
/// here sees it, so to let it wait would bound nothing.
const ROOM_KIB: usize = 64 << 10;

/// Takes the proposals of one member.
pub struct Desk {
    raft: Raft,
    gate: Gate,
    book: Arc<AddressBook>,
    room: Semaphore,
    way: Mutex<Way>,
}

/// The lane to the present leader.
#[derive(Default)]
struct Way {
    to: Option<(RaftId, mpsc::Sender<Item>)>,
    lanes: JoinSet<()>,
}

/// Where a proposal goes.
enum Route {
    Here,
    To(mpsc::Sender<Item>),
    Nowhere,
}

impl Desk {
    pub(crate) fn new(raft: Raft, gate: Gate, book: Arc<AddressBook>) -> Self {
        Self { raft, gate, book, room: Semaphore::new(ROOM_KIB), way: Mutex::default() }
    }

    pub(crate) fn into_service(self) -> Proposals {
        ProposalsServer::new(self).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE)
    }

    fn route(&self) -> Route {
        let leader = {
            let status = self.raft.borrow_status();
            match (&status.leader, status.role) {
                (_, Role::Leader) => return Route::Here,
                (Some(leader), _) if leader.id != status.id && !status.stopped => leader.id,
                _ => return Route::Nowhere,
            }
        };
        let mut way = self.way.lock().unwrap_or_else(PoisonError::into_inner);
        match &way.to {
            Some((id, lane)) if *id == leader && !lane.is_closed() => Route::To(lane.clone()),
            _ => {
                let Some(channel) = self.book.get(leader) else { return Route::Nowhere };
                // Lanes that have ended are forgotten; one to a leader of old ends by itself.
                while way.lanes.try_join_next().is_some() {}
                let (propose, carried) = lane(channel, self.gate.envelope(leader), self.raft.watch());
                way.lanes.spawn(carried);
                way.to = Some((leader, propose.clone()));
                Route::To(propose)
            }
        }
    }

    /// Carries a proposal to its end.
    async fn carry(&self, payload: Bytes) -> Outcome {
        let give_up = Instant::now() + FIND_LEADER.max(self.raft.election_max() * 6);
        let mut status = self.raft.watch();
        loop {
            let outcome = match self.route() {
                Route::Here => match self.raft.submit_bytes(payload.clone()).await {
                    Ok(pending) => match timeout(COMMIT, pending.wait()).await {
                        Ok(result) => Some(outcome(result)),
                        Err(_) => Some(Outcome::Unknown(pb::Blank {})),
                    },
                    Err(refused) => Some(outcome(Err(refused))),
                },
                Route::To(lane) => {
                    let (reply, answer) = oneshot::channel();
                    let queued = timeout_at(give_up, lane.send(Item { payload: payload.clone(), reply })).await;
                    match queued {
                        Ok(Ok(())) => match timeout(COMMIT, answer).await {
                            Ok(answer) => answer.ok(),
                            Err(_) => Some(Outcome::Unknown(pb::Blank {})),
                        },
                        _ => None,
                    }
                }
                Route::Nowhere => None,
            };
            match outcome {
                Some(Outcome::NotLeader(_)) | None if Instant::now() < give_up => {}
                Some(outcome) => return outcome,
                None => return Outcome::NotLeader(pb::Blank {}),
            }
            if self.raft.borrow_status().stopped {
                return Outcome::Stopped(pb::Blank {});
            }
            let _ = timeout(RETRY, status.changed()).await;
        }
    }
}

#[tonic::async_trait]
impl Service for Desk {
    type ForwardStream = BoxStream<'static, Result<pb::ForwardResponse, Status>>;

    async fn propose(&self, request: Request<pb::ProposeRequest>) -> Result<Response<pb::ProposeResponse>, Status> {
        let request = request.into_inner();
        self.gate.check_cluster(&request.cluster_id)?;
        let outcome = if request.payload.len() > MAX_PAYLOAD {
            Outcome::TooLarge(MAX_PAYLOAD as u64)
        } else {
            let kib = request.payload.len() as u32 / 1024 + 1;
            let Ok(_room) = self.room.try_acquire_many(kib) else { return Err(full()) };
            self.carry(request.payload.into()).await
        };
        Ok(Response::new(pb::ProposeResponse { outcome: Some(outcome) }))
    }

    async fn forward(
        &self,
        request: Request<Streaming<pb::ForwardRequest>>,
    ) -> Result<Response<Self::ForwardStream>, Status> {
        let intake = Intake {
            raft: self.raft.clone(),
            gate: self.gate.clone(),
            requests: Some(request.into_inner()),
            checked: false,
            slots: VecDeque::new(),
        };
        let answers = stream::unfold(Some(intake), |intake| async {
            let mut intake = intake?;
            match intake.next().await {
                Ok(Some(answer)) => Some((Ok(answer), Some(intake))),
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(answers.boxed()))
    }
}

fn full() -> Status {
    let limit = ROOM_KIB >> 10;
    Status::resource_exhausted(format!("proposals of {limit} MiB are under way; this one was not taken, try again"))
}

/// What another member has passed on.
struct Intake {
    raft: Raft,
    gate: Gate,
    /// `None` when no more come.
    requests: Option<Streaming<pb::ForwardRequest>>,
    /// Whether the envelope of the stream was seen and right.
    checked: bool,
    slots: VecDeque<Slot>,
}

/// The answer to one proposal.
enum Slot {
    Waiting(Pending),
    Refused(ProposeError),
}

impl Slot {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Outcome> {
        match self {
            Slot::Waiting(pending) => pending.poll_wait(context).map(outcome),
            Slot::Refused(error) => Poll::Ready(outcome(Err(error.clone()))),
        }
    }
}

impl Intake {
    /// The next answers, all that are ready; takes in proposals meanwhile.
    async fn next(&mut self) -> Result<Option<pb::ForwardResponse>, Status> {
        loop {
            let takes = self.requests.is_some() && self.slots.len() < IN_FLIGHT;
            let message = tokio::select! {
                biased;
                answers = ready(&mut self.slots), if !self.slots.is_empty() => {
                    return Ok(Some(pb::ForwardResponse { answers }));
                }
                message = next_message(&mut self.requests), if takes => message?,
                else => return Ok(None),
            };
            match message {
                Some(message) => self.take(message).await?,
                None => self.requests = None,
            }
        }
    }

    async fn take(&mut self, message: pb::ForwardRequest) -> Result<(), Status> {
        if !self.checked {
            self.gate.check(message.envelope)?;
            self.checked = true;
        }
        if message.payloads.len() > IN_FLIGHT {
            return Err(Malformed::TooLarge.into());
        }
        for payload in message.payloads {
            self.slots.push_back(match self.raft.submit_bytes(payload).await {
                Ok(pending) => Slot::Waiting(pending),
                Err(error) => Slot::Refused(error),
            });
        }
        Ok(())
    }
}

async fn next_message(
    requests: &mut Option<Streaming<pb::ForwardRequest>>,
) -> Result<Option<pb::ForwardRequest>, Status> {
    match requests {
        Some(requests) => requests.message().await,
        None => Ok(None),
    }
}

/// Waits for the oldest, and takes along all behind it that are ready too.
async fn ready(slots: &mut VecDeque<Slot>) -> Vec<pb::ProposeResponse> {
    poll_fn(|context| {
        let mut answers = Vec::new();
        while let Some(slot) = slots.front_mut() {
            let Poll::Ready(outcome) = slot.poll(context) else { break };
            answers.push(pb::ProposeResponse { outcome: Some(outcome) });
            slots.pop_front();
        }
        if answers.is_empty() { Poll::Pending } else { Poll::Ready(answers) }
    })
    .await
}

fn outcome(result: Result<Proposed, ProposeError>) -> Outcome {
    let blank = pb::Blank {};
    match result {
        Ok(Proposed { index, term, response }) => Outcome::Accepted(pb::Accepted { index, term, response }),
        Err(ProposeError::NotLeader { .. }) => Outcome::NotLeader(blank),
        Err(ProposeError::OutcomeUnknown) => Outcome::Unknown(blank),
        Err(ProposeError::TooLarge { limit, .. }) => Outcome::TooLarge(limit as u64),
        Err(ProposeError::Stopped) => Outcome::Stopped(blank),
        Err(ProposeError::StorageFull { .. }) => Outcome::StorageFull(blank),
    }
}
