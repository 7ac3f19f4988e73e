//! The receiving side: checks who is meant, decodes, and hands to openraft what cannot make it panic.

use std::future::ready;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, stream};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{Fatal, RaftError};
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderError, TransferLeaderRequest,
    VoteRequest,
};
use openraft::storage::Snapshot;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tonic::{Request, Response, Status, Streaming};

use super::contact::Contact;
use super::window::Window;
use super::{MAX_MESSAGE, MAX_SNAPSHOT, refusal};
use crate::RaftId;
use crate::counters::Meter;
use crate::handle::Core;
use crate::log::Log;
use crate::snapshot::{Image, SnapshotStore, Stored};
use crate::types::{self, SnapshotMeta, Types, Vote};
use crate::wire::pb::raft_transport_server::{RaftTransport, RaftTransportServer};
use crate::wire::{self, Malformed, pb};

/// The gRPC service of a member, to be mounted behind a check of the caller's certificate.
pub type Service = RaftTransportServer<Transport>;

/// How long the next chunk of a snapshot may take.
const CHUNK_PATIENCE: Duration = Duration::from_secs(30);

/// Answers the other members.
#[derive(Clone)]
pub struct Transport {
    pub(crate) core: Core,
    pub(crate) snapshots: Arc<SnapshotStore>,
    pub(crate) gate: Gate,
    /// Only one snapshot is received at a time, until it is installed or refused; whatever became of who sent it.
    pub(crate) receiving: Arc<Mutex<()>>,
}

/// Looks at requests before openraft does.
#[derive(Clone)]
pub(crate) struct Gate {
    pub(crate) log: Log,
    pub(crate) meter: Arc<Meter>,
    pub(crate) contact: Arc<Contact>,
    pub(crate) cluster_id: Arc<str>,
    pub(crate) me: RaftId,
}

impl Gate {
    pub(super) fn check(&self, envelope: Option<pb::Envelope>) -> Result<(), Status> {
        let envelope = envelope.ok_or(Malformed::Missing("envelope"))?;
        self.check_cluster(&envelope.cluster_id)?;
        if envelope.to != self.me {
            return Err(refusal("wrong-member", format!("the message is for raft id {}", envelope.to)));
        }
        Ok(())
    }

    /// What stands at the front of a message to another member.
    pub(super) fn envelope(&self, to: RaftId) -> pb::Envelope {
        pb::Envelope { cluster_id: self.cluster_id.to_string(), to, from: self.me }
    }

    pub(super) fn check_cluster(&self, cluster_id: &str) -> Result<(), Status> {
        if *cluster_id != *self.cluster_id {
            return Err(refusal("wrong-cluster", "the message is for another cluster".into()));
        }
        Ok(())
    }

    fn append(&self, request: pb::AppendRequest) -> Result<AppendEntriesRequest<Types>, Status> {
        self.check(request.envelope)?;
        if !request.entries.is_empty() && self.log.disk_short() {
            return Err(refusal("disk-full", "the disk is full".into()));
        }
        let vote = elected(request.leader)?;
        let prev_log_id = wire::some_log_id_in(request.previous)?;
        let entries = wire::entries_in(request.entries, prev_log_id, vote.leader_id.term)?;
        let leader_commit = wire::some_log_id_in(request.committed)?;
        if !entries.is_empty() {
            self.meter.appends_received.one();
            self.meter.entries_received.add(entries.len() as u64);
            self.meter.bytes_received.add(entries.iter().map(types::payload_len).sum());
        }
        Ok(AppendEntriesRequest { vote, prev_log_id, entries, leader_commit })
    }
}

impl Gate {
    /// Notes that a leader's word was taken.
    fn answered(&self, answer: &StreamAppendResult<Types>, leader: Option<RaftId>) {
        if let Some(leader) = leader
            && !matches!(answer, Err(StreamAppendError::HigherVote(_)))
        {
            self.contact.note(leader);
        }
    }
}

impl Transport {
    pub(crate) fn into_service(self) -> Service {
        RaftTransportServer::new(self).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE)
    }

    fn vote_request(&self, request: pb::VoteRequest) -> Result<VoteRequest<Types>, Status> {
        self.gate.check(request.envelope)?;
        let mut out = VoteRequest::new(wire::vote_in(request.vote)?, wire::some_log_id_in(request.last_log)?);
        out.leadership_transfer = request.leadership_transfer;
        Ok(out)
    }

    /// Refuses a snapshot that no working cluster can produce, on which openraft would panic.
    fn check_snapshot(&self, leader: &Vote, meta: &SnapshotMeta) -> Result<(), Status> {
        let last = meta.last_log_id.ok_or(Malformed::Missing("last_log"))?;
        if types::term_of(&last) > leader.leader_id.term {
            return Err(Status::invalid_argument("the snapshot is of a later term than its leader"));
        }
        let committed = self.core.metrics().borrow_watched().local_committed;
        if committed.is_some_and(|committed| last > committed && last.index <= committed.index) {
            return Err(Status::invalid_argument("the snapshot contradicts what is committed here"));
        }
        Ok(())
    }

    async fn receive(&self, mut chunks: Streaming<pb::SnapshotChunk>) -> Result<pb::SnapshotResponse, Status> {
        use pb::snapshot_chunk::Part;
        let one_at_a_time = self.receiving.clone().lock_owned().await;
        let Some(Part::Start(start)) = next_part(&mut chunks).await? else {
            return Err(Malformed::Missing("start").into());
        };
        self.gate.check(start.envelope)?;
        let leader = elected(start.leader)?;
        let meta = wire::snapshot_meta_in(start.meta.ok_or(Malformed::Missing("meta"))?)?;
        self.check_snapshot(&leader, &meta)?;
        if start.size > MAX_SNAPSHOT {
            return Err(Status::resource_exhausted(format!("a snapshot of {} bytes is too large", start.size)));
        }
        let mut state = BytesMut::new();
        while let Some(part) = next_part(&mut chunks).await? {
            let Part::Data(data) = part else { return Err(Malformed::Missing("data").into()) };
            if (state.len() + data.len()) as u64 > start.size {
                return Err(Status::invalid_argument("the snapshot is longer than it said"));
            }
            state.extend_from_slice(&data);
        }
        let state = state.freeze();
        if state.len() as u64 != start.size || crc32fast::hash(&state) != start.crc32 {
            return Err(Status::data_loss("the snapshot did not arrive whole"));
        }
        self.store(one_at_a_time, leader, meta, state).await
    }

    /// Stores and installs a snapshot in a task of its own: a caller that no longer waits must not let the next one
    /// write the file over that is being written, or waits to be adopted.
    async fn store(
        &self,
        one_at_a_time: OwnedMutexGuard<()>,
        leader: Vote,
        meta: SnapshotMeta,
        state: Bytes,
    ) -> Result<pb::SnapshotResponse, Status> {
        let transport = self.clone();
        let stored = tokio::spawn(async move {
            let _until_installed = one_at_a_time;
            transport.install(leader, meta, state).await
        });
        stored.await.map_err(|error| Status::internal(error.to_string()))?
    }

    async fn install(&self, leader: Vote, meta: SnapshotMeta, state: Bytes) -> Result<pb::SnapshotResponse, Status> {
        let image = self.stage(&meta, state).await?;
        // Again, since time has passed.
        self.check_snapshot(&leader, &meta)?;
        let snapshot = Snapshot { meta, snapshot: image };
        let response = self.core.install_full_snapshot(leader, snapshot).await.map_err(stopped)?;
        self.gate.meter.snapshots_received.one();
        Ok(pb::SnapshotResponse { vote: Some(wire::vote_out(&response.vote)) })
    }

    /// Writes the snapshot before openraft sees it: a full disk is the sender's problem then, not fatal.
    async fn stage(&self, meta: &SnapshotMeta, state: Bytes) -> Result<Image, Status> {
        let (snapshots, for_file, bytes) = (self.snapshots.clone(), meta.clone(), state.clone());
        let staged = tokio::task::spawn_blocking(move || snapshots.stage(&for_file, &bytes)).await;
        match staged {
            Ok(Ok(())) => Ok(Image { state, stored: Stored::Staged }),
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot store a snapshot that the leader sends");
                Err(Status::resource_exhausted(error.to_string()))
            }
            Err(error) => Err(Status::internal(error.to_string())),
        }
    }
}

#[tonic::async_trait]
impl RaftTransport for Transport {
    type AppendStreamStream = BoxStream<'static, Result<pb::AppendResponse, Status>>;

    async fn append(&self, request: Request<pb::AppendRequest>) -> Result<Response<pb::AppendResponse>, Status> {
        let request = self.gate.append(request.into_inner())?;
        let (previous, leader) = (request.prev_log_id, request.vote.leader_id.voted_for);
        let answer = self.core.append_entries(request).await.map_err(fatal)?.into_stream_result(previous, previous);
        self.gate.answered(&answer, Some(leader));
        Ok(Response::new(wire::append_response_out(&answer)))
    }

    async fn append_stream(
        &self,
        request: Request<Streaming<pb::AppendRequest>>,
    ) -> Result<Response<Self::AppendStreamStream>, Status> {
        let (gate, window, refused) = (self.gate.clone(), Window::new(), Arc::new(OnceLock::new()));
        let state = (request.into_inner(), gate, window.clone(), refused.clone());
        let requests = stream::unfold(state, |(mut requests, gate, window, refused)| async move {
            window.room().await;
            let request = match requests.message().await {
                Ok(request) => gate.append(request?),
                Err(status) => Err(status),
            };
            match request {
                Ok(request) => {
                    let bytes = request.entries.iter().map(wire::entry_size).sum();
                    window.enter(request.vote.leader_id.voted_for, bytes);
                    Some((request, (requests, gate, window, refused)))
                }
                // Those before it are answered first.
                Err(status) => {
                    let _ = refused.set(status);
                    None
                }
            }
        });
        let gate = self.gate.clone();
        let answers = self.core.stream_append(requests).map(move |answer| {
            let (leader, answer) = (window.leave(), answer.map_err(stopped)?);
            gate.answered(&answer, leader);
            Ok(wire::append_response_out(&answer))
        });
        let end = stream::once(async move { refused.get().cloned() }).filter_map(|refused| ready(refused.map(Err)));
        Ok(Response::new(answers.chain(end).boxed()))
    }

    async fn vote(&self, request: Request<pb::VoteRequest>) -> Result<Response<pb::VoteResponse>, Status> {
        let request = self.vote_request(request.into_inner())?;
        let response = self.core.vote(request).await.map_err(fatal)?;
        if !response.vote_granted {
            self.gate.meter.votes_refused.one();
        }
        Ok(vote_response(response))
    }

    async fn pre_vote(&self, request: Request<pb::VoteRequest>) -> Result<Response<pb::VoteResponse>, Status> {
        let request = self.vote_request(request.into_inner())?;
        let response = self.core.pre_vote(request).await.map_err(fatal)?;
        if !response.vote_granted {
            self.gate.meter.pre_votes_refused.one();
        }
        Ok(vote_response(response))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<pb::SnapshotChunk>>,
    ) -> Result<Response<pb::SnapshotResponse>, Status> {
        self.receive(request.into_inner()).await.map(Response::new)
    }

    async fn transfer_leader(
        &self,
        request: Request<pb::TransferRequest>,
    ) -> Result<Response<pb::TransferResponse>, Status> {
        use pb::transfer_response::Outcome;
        let request = request.into_inner();
        self.gate.check(request.envelope)?;
        let from = elected(request.from_leader)?;
        let last_log = wire::some_log_id_in(request.last_log)?;
        let request = TransferLeaderRequest::new(from, request.successor, last_log);
        let outcome = match self.core.handle_transfer_leader(request).await.map_err(stopped)? {
            Ok(()) => Outcome::Accepted(pb::Blank {}),
            Err(TransferLeaderError::VoteChanged { actual, .. }) => Outcome::VoteChanged(wire::vote_out(&actual)),
            Err(TransferLeaderError::LogNotFlushed { actual, .. }) => {
                Outcome::LogBehind(pb::LogBehind { actual: actual.as_ref().map(wire::log_id_out) })
            }
        };
        Ok(Response::new(pb::TransferResponse { outcome: Some(outcome) }))
    }
}

/// Only a leader that a quorum has granted sends entries, snapshots and successions.
fn elected(vote: Option<pb::Ballot>) -> Result<Vote, Malformed> {
    let vote = wire::vote_in(vote)?;
    if !vote.committed {
        return Err(Malformed::NotElected);
    }
    Ok(vote)
}

async fn next_part(chunks: &mut Streaming<pb::SnapshotChunk>) -> Result<Option<pb::snapshot_chunk::Part>, Status> {
    let next = tokio::time::timeout(CHUNK_PATIENCE, chunks.message()).await;
    let chunk = next.map_err(|_| Status::deadline_exceeded("the snapshot stopped coming"))??;
    chunk.map(|chunk| chunk.part.ok_or_else(|| Malformed::Missing("part").into())).transpose()
}

fn vote_response(response: openraft::raft::VoteResponse<Types>) -> Response<pb::VoteResponse> {
    Response::new(pb::VoteResponse {
        vote: Some(wire::vote_out(&response.vote)),
        granted: response.vote_granted,
        last_log: response.last_log_id.as_ref().map(wire::log_id_out),
    })
}

fn fatal(error: RaftError<Types>) -> Status {
    Status::unavailable(format!("raft has stopped: {error}"))
}

fn stopped(error: Fatal<Types>) -> Status {
    Status::unavailable(format!("raft has stopped: {error}"))
}

#[cfg(test)]
mod tests {
    use tonic::Code;
    use tonic::transport::{Channel, Endpoint};

    use super::*;
    use crate::disk::Disk;
    use crate::disk::fault::FaultDisk;
    use crate::net::{Dial, REFUSAL};
    use crate::{Committed, Config, Peer, Raft, RestoreError, StateMachine, Timing};

    struct Nothing;

    impl StateMachine for Nothing {
        fn apply(&mut self, _: Committed<'_>) -> Vec<u8> {
            Vec::new()
        }
        fn applied(&mut self, _: u64, _: u64) {}
        fn view(&self) -> Box<dyn FnOnce() -> Vec<u8> + Send> {
            Box::new(Vec::new)
        }
        fn restore(&mut self, _: &[u8]) -> Result<(), RestoreError> {
            Ok(())
        }
    }

    impl Dial for Nothing {
        fn channel(&self, _: &Peer) -> Channel {
            Endpoint::from_static("http://127.0.0.1:1").connect_lazy()
        }
    }

    async fn member(dir: &std::path::Path) -> Raft {
        let config = Config {
            dir: dir.to_owned(),
            id: 1,
            cluster_id: "ours".into(),
            timing: Timing::lan(),
            snapshot_every: 100,
            keys: crate::Keyring::clear(),
            had_log: false,
        };
        Raft::start(config, Nothing, Nothing).await.unwrap()
    }

    fn envelope(cluster: &str, to: u64) -> Option<pb::Envelope> {
        Some(pb::Envelope { cluster_id: cluster.into(), to, from: 2 })
    }

    fn leader(committed: bool) -> Option<pb::Ballot> {
        Some(pb::Ballot { term: 5, node: 2, committed })
    }

    fn heartbeat() -> pb::AppendRequest {
        pb::AppendRequest { envelope: envelope("ours", 1), leader: leader(true), ..Default::default() }
    }

    #[tokio::test]
    async fn strangers_and_nonsense_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let raft = member(dir.path()).await;
        let transport = raft.transport();
        let check = async |request: pb::AppendRequest| {
            let refused = transport.append(Request::new(request)).await.unwrap_err();
            let reason = refused.metadata().get(REFUSAL).map(|reason| reason.to_str().unwrap().to_owned());
            (refused.code(), reason)
        };
        let for_another = pb::AppendRequest { envelope: envelope("theirs", 1), ..heartbeat() };
        assert_eq!(check(for_another).await, (Code::FailedPrecondition, Some("wrong-cluster".into())));
        let for_another = pb::AppendRequest { envelope: envelope("ours", 7), ..heartbeat() };
        assert_eq!(check(for_another).await, (Code::FailedPrecondition, Some("wrong-member".into())));
        let not_elected = pb::AppendRequest { leader: leader(false), ..heartbeat() };
        assert_eq!(check(not_elected).await.0, Code::InvalidArgument);
        let nothing = pb::AppendRequest { envelope: None, ..heartbeat() };
        assert_eq!(check(nothing).await.0, Code::InvalidArgument);
        let hole = pb::Entry {
            log_id: Some(pb::LogId { term: 5, index: 9 }),
            payload: Some(pb::entry::Payload::Blank(pb::Blank {})),
        };
        assert_eq!(check(pb::AppendRequest { entries: vec![hole], ..heartbeat() }).await.0, Code::InvalidArgument);
        assert_eq!(raft.status().term, 0);
        assert_eq!(raft.last_leader(), None);
        transport.append(Request::new(heartbeat())).await.unwrap();
        assert_eq!(raft.last_leader().map(|(leader, _)| leader), Some(2));

        let meta = |term, index| SnapshotMeta {
            last_log_id: Some(types::log_id(term, index)),
            last_membership: Default::default(),
        };
        let vote = Vote::new_committed(5, 2);
        assert!(transport.check_snapshot(&vote, &meta(6, 1)).is_err());
        assert!(transport.check_snapshot(&vote, &meta(5, 1)).is_ok());
        raft.shutdown().await;
    }

    /// The file of a snapshot is nobody else's until it is installed or refused, though who sent it has gone.
    #[tokio::test]
    async fn a_sender_that_gives_up_leaves_the_turn_to_what_it_sent() {
        let dir = tempfile::tempdir().unwrap();
        let raft = member(dir.path()).await;
        let disk = FaultDisk::default();
        let store = SnapshotStore::new(Arc::new(disk.clone()), 1, "ours".into(), crate::Keyring::clear());
        let transport = Transport { snapshots: Arc::new(store), ..raft.transport() };
        let meta = SnapshotMeta { last_log_id: Some(types::log_id(5, 9)), last_membership: Default::default() };
        disk.hold_creates();
        let sender = tokio::spawn({
            let transport = transport.clone();
            async move {
                let turn = transport.receiving.clone().lock_owned().await;
                transport.store(turn, Vote::new_committed(5, 2), meta, Bytes::from_static(b"state")).await
            }
        });
        let held = disk.clone();
        tokio::task::spawn_blocking(move || held.wait_for_held_create()).await.unwrap();
        sender.abort();
        assert!(sender.await.unwrap_err().is_cancelled());
        assert!(transport.receiving.try_lock().is_err(), "the next one may write the same file");
        assert!(raft.transport().receiving.try_lock().is_err(), "each service has a turn of its own");
        disk.release_creates();
        drop(
            tokio::time::timeout(Duration::from_secs(10), transport.receiving.lock()).await.expect("the turn is over"),
        );
        assert_eq!(disk.list().unwrap(), ["snapshot-00000000000000000009.staged"], "nothing came of what was sent");
        raft.shutdown().await;
    }

    #[tokio::test]
    async fn data_of_another_member_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        member(dir.path()).await.shutdown().await;
        let config = Config {
            dir: dir.path().to_owned(),
            id: 2,
            cluster_id: "ours".into(),
            timing: Timing::wan(),
            snapshot_every: 100,
            keys: crate::Keyring::clear(),
            had_log: false,
        };
        let refused = Raft::start(config.clone(), Nothing, Nothing).await.unwrap_err();
        assert!(matches!(refused, crate::StartError::Log(crate::LogError::Foreign { found: 1, .. })), "{refused}");
        let config = Config { id: 1, cluster_id: "theirs".into(), ..config };
        let refused = Raft::start(config, Nothing, Nothing).await.unwrap_err();
        assert!(matches!(refused, crate::StartError::Log(crate::LogError::Foreign { .. })), "{refused}");
        member(dir.path()).await.shutdown().await;
    }
}
