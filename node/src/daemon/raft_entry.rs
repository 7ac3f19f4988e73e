//! What a node asks of managers while it is none itself: each known one is tried until one does it.

use std::time::Duration;

use deploy::control::{ControlError, Reply, Request};
use prost::Message;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::datadir::ManagerRecord;
use crate::engine::EngineError;
use crate::rpc::{Channels, MAX_MESSAGE, pb};

/// Rounds over the known managers before giving up; a round waits a little longer each time.
const ROUNDS: u32 = 40;
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Carries out a request through whichever manager leads.
pub(super) async fn execute(
    channels: &Channels,
    managers: &[ManagerRecord],
    request: Request,
) -> Result<Reply, EngineError> {
    use pb::execute_reply::Outcome;
    let message = pb::ExecuteRequest { request: request.encode_to_vec() };
    let reply = try_each(channels, managers, |channel| {
        let message = message.clone();
        async move {
            let reply = pb::managers_client::ManagersClient::new(channel)
                .max_decoding_message_size(MAX_MESSAGE)
                .execute(message)
                .await?
                .into_inner();
            match reply.outcome {
                Some(Outcome::NotLeader(_)) => Err(Status::unavailable("does not lead")),
                other => Ok(other),
            }
        }
    })
    .await?;
    let unreadable = |_| EngineError::OutcomeUnknown("the leader's answer could not be read".into());
    match reply {
        Some(Outcome::Reply(bytes)) => Reply::decode(bytes.as_slice()).map_err(unreadable),
        Some(Outcome::Refused(bytes)) => {
            Err(EngineError::Refused(ControlError::decode(bytes.as_slice()).map_err(unreadable)?))
        }
        Some(Outcome::Unknown(reason)) => Err(EngineError::OutcomeUnknown(reason)),
        _ => Err(EngineError::OutcomeUnknown("the leader's answer could not be read".into())),
    }
}

/// Becomes a voter.
pub(super) async fn join(
    channels: &Channels,
    managers: &[ManagerRecord],
    request: pb::JoinRaftRequest,
) -> Result<(), EngineError> {
    try_each(channels, managers, |channel| {
        let mut request = tonic::Request::new(request.clone());
        request.set_timeout(Duration::from_secs(20));
        async move { pb::managers_client::ManagersClient::new(channel).join_raft(request).await }
    })
    .await
    .map(drop)
}

/// Gets a new certificate.
pub(super) async fn renew(
    channels: &Channels,
    managers: &[ManagerRecord],
    csr_pem: String,
) -> Result<pb::RenewReply, EngineError> {
    try_each(channels, managers, |channel| {
        let request = pb::RenewRequest { csr_pem: csr_pem.clone() };
        async move { pb::ca_client::CaClient::new(channel).renew(request).await.map(tonic::Response::into_inner) }
    })
    .await
}

/// Says goodbye.
pub(super) async fn leave(channels: &Channels, managers: &[ManagerRecord]) -> Result<(), EngineError> {
    try_each(channels, managers, |channel| async move {
        pb::sessions_client::SessionsClient::new(channel).leave(pb::LeaveRequest {}).await
    })
    .await
    .map(drop)
}

/// Stops being a voter.
pub(super) async fn leave_raft(
    channels: &Channels,
    managers: &[ManagerRecord],
    raft_id: u64,
) -> Result<(), EngineError> {
    try_each(channels, managers, |channel| async move {
        pb::managers_client::ManagersClient::new(channel).leave_raft(pb::LeaveRaftRequest { raft_id }).await
    })
    .await
    .map(drop)
}

/// Calls each manager in turn, round after round, until one answers with something else than "not now".
async fn try_each<T, F>(
    channels: &Channels,
    managers: &[ManagerRecord],
    call: impl Fn(Channel) -> F,
) -> Result<T, EngineError>
where
    F: Future<Output = Result<T, Status>>,
{
    let mut last = Status::unavailable("no manager is known");
    for round in 0..ROUNDS {
        for manager in managers {
            match call(channels.to(&manager.addr, &manager.node_id)).await {
                Ok(done) => return Ok(done),
                Err(status) if matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::Unknown) => {
                    last = status;
                }
                Err(status) => return Err(EngineError::Internal(status.message().to_owned())),
            }
        }
        tokio::time::sleep((PAUSE * (round + 1)).min(LONGEST_PAUSE)).await;
    }
    Err(EngineError::Internal(format!("no manager could do it: {}", last.message())))
}
