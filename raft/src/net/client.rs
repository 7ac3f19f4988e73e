//! The sending side: one cached channel a peer, one deadline a call.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::Stream;
use openraft::OptionalSend;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{RPCOption, RPCTypes, RaftNetworkFactory, RaftNetworkV2, stream_append_sequential};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderError,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::storage::Snapshot;
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use super::{CHUNK, MAX_MESSAGE, pipeline};
use crate::counters::Meter;
use crate::snapshot::Image;
use crate::status::peer;
use crate::types::{self, CommittedLeaderId, Member, Types, Vote};
use crate::wire::pb::raft_transport_client::RaftTransportClient;
use crate::wire::{self, Malformed, pb};
use crate::{Peer, RaftId};

/// How to reach a peer.
pub trait Dial: Send + Sync + 'static {
    /// A channel that connects when first used and again after a failure. It must authenticate the peer as
    /// `peer.node_id`. Called once for each address of a peer, and must not block.
    fn channel(&self, peer: &Peer) -> Channel;
}

/// The members' channels. Kept apart from openraft's per-peer clients, so that a changed address reaches
/// those that exist.
pub(crate) struct AddressBook {
    dial: Box<dyn Dial>,
    channels: Mutex<BTreeMap<RaftId, (Member, Channel)>>,
}

impl AddressBook {
    pub(crate) fn new(dial: impl Dial) -> Self {
        Self { dial: Box::new(dial), channels: Mutex::default() }
    }

    /// Makes the book agree with a membership: new addresses are dialled, members that left are dropped.
    pub(crate) fn update<'a>(&self, members: impl Iterator<Item = (RaftId, &'a Member)>) {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left: Vec<RaftId> = channels.keys().copied().collect();
        for (id, member) in members {
            left.retain(|known| *known != id);
            self.enter(&mut channels, id, member);
        }
        for id in left {
            channels.remove(&id);
        }
    }

    fn enter(&self, channels: &mut BTreeMap<RaftId, (Member, Channel)>, id: RaftId, member: &Member) {
        if channels.get(&id).is_none_or(|(known, _)| known != member) {
            channels.insert(id, (member.clone(), self.dial.channel(&peer(id, member))));
        }
    }

    pub(super) fn get(&self, id: RaftId) -> Option<Channel> {
        let channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.get(&id).map(|(_, channel)| channel.clone())
    }
}

/// Makes openraft's clients.
pub(crate) struct Dialer {
    pub(crate) book: Arc<AddressBook>,
    pub(crate) cluster_id: Arc<str>,
    pub(crate) me: RaftId,
    /// How long a follower may take to store entries. openraft gives all appends the time of a heartbeat,
    /// which a slow disk would exceed again and again.
    pub(crate) store_patience: Duration,
    pub(crate) meter: Arc<Meter>,
    /// Up to where somebody waits for followers to know of commits.
    pub(crate) urgent: watch::Receiver<u64>,
}

impl RaftNetworkFactory<Types> for Dialer {
    type Network = Link;

    async fn new_client(&mut self, target: RaftId, member: &Member) -> Link {
        let mut channels = self.book.channels.lock().unwrap_or_else(PoisonError::into_inner);
        self.book.enter(&mut channels, target, member);
        drop(channels);
        Link {
            book: self.book.clone(),
            cluster_id: self.cluster_id.clone(),
            me: self.me,
            target,
            store_patience: self.store_patience,
            meter: self.meter.clone(),
            urgent: self.urgent.clone(),
            streams: Arc::new(AtomicBool::new(true)),
        }
    }
}

/// Calls one peer.
#[derive(Clone)]
pub(crate) struct Link {
    book: Arc<AddressBook>,
    cluster_id: Arc<str>,
    me: RaftId,
    pub(super) target: RaftId,
    pub(super) store_patience: Duration,
    meter: Arc<Meter>,
    pub(super) urgent: watch::Receiver<u64>,
    /// Whether the peer is taken to know append streams.
    streams: Arc<AtomicBool>,
}

type Client = RaftTransportClient<Channel>;
pub(super) type Failure = RPCError<Types>;

impl Link {
    fn envelope(&self) -> Option<pb::Envelope> {
        Some(pb::Envelope { cluster_id: self.cluster_id.to_string(), to: self.target, from: self.me })
    }

    pub(super) fn client(&self) -> Result<Client, Failure> {
        let channel = self
            .book
            .get(self.target)
            .ok_or_else(|| RPCError::Unreachable(Unreachable::from_string("the peer is no member any more")))?;
        Ok(Client::new(channel).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE))
    }

    /// Awaits an answer until the deadline, which the peer is told as well.
    async fn within<T>(
        &self,
        action: RPCTypes,
        limit: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(limit, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.failed(action, limit, &status)),
            Err(_) => Err(self.timed_out(action, limit)),
        }
    }

    /// What openraft makes of a refused or failed call.
    pub(super) fn failed(&self, action: RPCTypes, limit: Duration, status: &Status) -> Failure {
        let failure = match status.code() {
            Code::DeadlineExceeded | Code::Cancelled => return self.timed_out(action, limit),
            Code::Unavailable | Code::Unknown => RPCError::Unreachable(Unreachable::new(status)),
            _ => RPCError::Network(NetworkError::new(status)),
        };
        self.meter.calls_failed.one();
        failure
    }

    pub(super) fn timed_out(&self, action: RPCTypes, timeout: Duration) -> Failure {
        self.meter.calls_failed.one();
        RPCError::Timeout(Timeout { action, id: self.me, target: self.target, timeout })
    }

    /// The peer is of a release that has no append streams.
    pub(super) fn no_streams(&self) {
        self.streams.store(false, Ordering::Relaxed);
    }

    /// Encodes an append, and counts it.
    pub(super) fn append_request(&self, request: &AppendEntriesRequest<Types>) -> pb::AppendRequest {
        self.count(request);
        pb::AppendRequest {
            envelope: self.envelope(),
            leader: Some(wire::vote_out(&request.vote)),
            previous: request.prev_log_id.as_ref().map(wire::log_id_out),
            committed: request.leader_commit.as_ref().map(wire::log_id_out),
            entries: request.entries.iter().map(wire::entry_out).collect(),
        }
    }

    fn count(&self, request: &AppendEntriesRequest<Types>) {
        if !request.entries.is_empty() {
            self.meter.appends_sent.one();
            self.meter.entries_sent.add(request.entries.len() as u64);
            self.meter.bytes_sent.add(request.entries.iter().map(types::payload_len).sum());
        }
    }

    fn vote_request(&self, request: VoteRequest<Types>, limit: Duration) -> Request<pb::VoteRequest> {
        timed(
            limit,
            pb::VoteRequest {
                envelope: self.envelope(),
                vote: Some(wire::vote_out(&request.vote)),
                last_log: request.last_log_id.as_ref().map(wire::log_id_out),
                leadership_transfer: request.leadership_transfer,
            },
        )
    }
}

fn timed<T>(limit: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}

pub(super) fn malformed(error: Malformed) -> Failure {
    RPCError::Network(NetworkError::new(&error))
}

fn vote_response(response: pb::VoteResponse) -> Result<VoteResponse<Types>, Failure> {
    let vote = wire::vote_in(response.vote).map_err(malformed)?;
    let last_log = wire::some_log_id_in(response.last_log).map_err(malformed)?;
    Ok(VoteResponse::new(vote, last_log, response.granted))
}

impl RaftNetworkV2<Types> for Link {
    type SnapshotData = Image;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, Failure> {
        let limit = match request.entries.is_empty() {
            true => option.soft_ttl(),
            false => option.soft_ttl().max(self.store_patience),
        };
        let message = timed(limit, self.append_request(&request));
        let mut client = self.client()?;
        let response = self.within(RPCTypes::AppendEntries, limit, client.append(message)).await?;
        wire::append_response_in(response, request.prev_log_id).map_err(malformed)
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<Types>, Failure>>, Failure>>
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        if self.streams.load(Ordering::Relaxed) {
            let answers = pipeline::replicate(self.clone(), input, option);
            Box::pin(async move { Ok(answers.await? as BoxStream<'s, _>) })
        } else {
            stream_append_sequential(self, input, option)
        }
    }

    async fn vote(&mut self, request: VoteRequest<Types>, option: RPCOption) -> Result<VoteResponse<Types>, Failure> {
        let limit = option.soft_ttl();
        let message = self.vote_request(request, limit);
        let mut client = self.client()?;
        vote_response(self.within(RPCTypes::Vote, limit, client.vote(message)).await?)
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, Failure> {
        let limit = option.soft_ttl();
        let message = self.vote_request(request, limit);
        let mut client = self.client()?;
        vote_response(self.within(RPCTypes::Vote, limit, client.pre_vote(message)).await?)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<CommittedLeaderId, RaftId, Member, Image>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        use pb::snapshot_chunk::Part;
        let state = snapshot.snapshot.state;
        let start = pb::SnapshotStart {
            envelope: self.envelope(),
            leader: Some(wire::vote_out(&vote)),
            meta: Some(wire::snapshot_meta_out(&snapshot.meta)),
            size: state.len() as u64,
            crc32: crc32fast::hash(&state),
        };
        // Besides the time to store it, the time to carry it over a poor link.
        let limit = option.soft_ttl() + Duration::from_secs(state.len() as u64 >> 20);
        let chunks = (0..state.len()).step_by(CHUNK).map({
            let state = state.clone();
            move |at| Part::Data(state.slice(at..state.len().min(at + CHUNK)))
        });
        let parts = std::iter::once(Part::Start(start)).chain(chunks);
        let messages = tokio_stream::iter(parts.map(|part| pb::SnapshotChunk { part: Some(part) }));
        let mut client = self.client()?;
        let sending = self.within(RPCTypes::InstallSnapshot, limit, client.install_snapshot(timed(limit, messages)));
        let response = tokio::select! {
            biased;
            closed = cancel => return Err(StreamingError::Closed(closed)),
            response = sending => response?,
        };
        self.meter.snapshots_sent.one();
        Ok(SnapshotResponse::new(wire::vote_in(response.vote).map_err(malformed)?))
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, Failure> {
        use pb::transfer_response::Outcome;
        let limit = option.soft_ttl();
        let (expected, last_log) = (*request.from_leader(), request.last_log_id().copied());
        let message = timed(
            limit,
            pb::TransferRequest {
                envelope: self.envelope(),
                from_leader: Some(wire::vote_out(&expected)),
                successor: *request.to_node_id(),
                last_log: last_log.as_ref().map(wire::log_id_out),
            },
        );
        let mut client = self.client()?;
        let response = self.within(RPCTypes::TransferLeader, limit, client.transfer_leader(message)).await?;
        Ok(match response.outcome.ok_or_else(|| malformed(Malformed::Missing("outcome")))? {
            Outcome::Accepted(_) => Ok(()),
            Outcome::VoteChanged(vote) => {
                let actual = wire::vote_in(Some(vote)).map_err(malformed)?;
                Err(TransferLeaderError::VoteChanged { expected, actual })
            }
            Outcome::LogBehind(behind) => {
                let actual = wire::some_log_id_in(behind.actual).map_err(malformed)?;
                Err(TransferLeaderError::LogNotFlushed { expected: last_log, actual })
            }
        })
    }
}
