//! What a node asks of managers while it is none itself: each known one is tried until one does it.

use std::time::Duration;

use deploy::control::{ControlError, Reply, Request};
use prost::Message;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::datadir::ManagerRecord;
use crate::engine::EngineError;
use crate::rpc::{Channels, Lane, MAX_MESSAGE, pb};

/// Rounds over the known managers before giving up; a round waits a little longer each time.
const ROUNDS: u32 = 40;
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// One manager gets so long to answer before the next one is asked.
const CALL: Duration = Duration::from_secs(10);
/// A new manager has to get the log first.
const JOIN: Duration = Duration::from_secs(20);
/// A goodbye must fit into [`GOODBYE`] also when the first manager that is asked is gone.
const LEAVE: Duration = Duration::from_secs(3);
/// All of a goodbye together.
const GOODBYE: Duration = Duration::from_secs(10);

/// Why no manager did it.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// They will not; asking again does not help before something else has changed.
    #[error("{}", .0.message())]
    Refused(Box<Status>),
    /// None could now.
    #[error("no manager could do it: {}", .0.message())]
    Unavailable(Box<Status>),
    /// Not within the time for it.
    #[error("no manager did it within {} s", .0.as_secs())]
    Late(Duration),
}

impl CallError {
    /// Whether the cluster said that this is not how things stand with this node.
    pub(super) fn contradicted(&self) -> bool {
        matches!(self, CallError::Refused(status) if status.code() == Code::FailedPrecondition)
    }

    /// Whether nobody has decided about this, one way or the other.
    pub(super) fn undecided(&self) -> bool {
        match self {
            CallError::Refused(_) => false,
            CallError::Unavailable(_) | CallError::Late(_) => true,
        }
    }

    /// Whether the cluster knows this node no more, or not in that role.
    fn turned_away(&self) -> bool {
        matches!(self, CallError::Refused(status) if status.code() == Code::PermissionDenied)
    }
}

impl From<CallError> for EngineError {
    fn from(error: CallError) -> Self {
        EngineError::Internal(error.to_string())
    }
}

/// Carries out a request through whichever manager leads.
pub(super) async fn execute(
    channels: &Channels,
    managers: &[ManagerRecord],
    request: Request,
) -> Result<Reply, EngineError> {
    use pb::execute_reply::Outcome;
    let message = pb::ExecuteRequest { request: request.encode_to_vec() };
    let reply = try_each(channels, managers, CALL, |channel| {
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

/// Becomes a voter. [`CallError::contradicted`]: this node was not given that raft id.
pub(super) async fn join(
    channels: &Channels,
    managers: &[ManagerRecord],
    request: pb::JoinRaftRequest,
) -> Result<(), CallError> {
    // The limit is longer than that of other calls.
    try_each(&channels.lane(Lane::Raft), managers, JOIN, |channel| {
        let request = request.clone();
        async move { pb::managers_client::ManagersClient::new(channel).join_raft(request).await }
    })
    .await
    .map(drop)
}

/// Gets a new certificate within this time. Who has little asks each manager for no longer than lets it ask them all:
/// one that is dead must not keep it from hearing another one's no.
pub(super) async fn renew(
    channels: &Channels,
    managers: &[ManagerRecord],
    csr_pem: String,
    limit: Option<Duration>,
) -> Result<pb::RenewReply, CallError> {
    let each = limit.map_or(CALL, |all| all / u32::try_from(managers.len() + 1).unwrap_or(u32::MAX));
    let renewed = try_each(channels, managers, each, |channel| {
        let request = pb::RenewRequest { csr_pem: csr_pem.clone() };
        async move { pb::ca_client::CaClient::new(channel).renew(request).await.map(tonic::Response::into_inner) }
    });
    match limit {
        Some(limit) => tokio::time::timeout(limit, renewed).await.unwrap_or(Err(CallError::Late(limit))),
        None => renewed.await,
    }
}

/// Says goodbye: a node with a raft id (not 0) stops being a voter first. Who was removed already, or has said so
/// before, has nothing more to say.
pub(super) async fn goodbye(channels: &Channels, managers: &[ManagerRecord], raft_id: u64) -> Result<(), CallError> {
    let known_already = |done: Result<(), CallError>| match done {
        Err(error) if error.turned_away() => Ok(()),
        other => other,
    };
    let both = async {
        if raft_id != 0 {
            known_already(leave_raft(channels, managers, raft_id).await)?;
        }
        known_already(leave(channels, managers).await)
    };
    tokio::time::timeout(GOODBYE, both).await.unwrap_or(Err(CallError::Late(GOODBYE)))
}

async fn leave(channels: &Channels, managers: &[ManagerRecord]) -> Result<(), CallError> {
    try_each(channels, managers, LEAVE, |channel| async move {
        pb::sessions_client::SessionsClient::new(channel).leave(pb::LeaveRequest {}).await
    })
    .await
    .map(drop)
}

async fn leave_raft(channels: &Channels, managers: &[ManagerRecord], raft_id: u64) -> Result<(), CallError> {
    try_each(channels, managers, LEAVE, |channel| async move {
        pb::managers_client::ManagersClient::new(channel).leave_raft(pb::LeaveRaftRequest { raft_id }).await
    })
    .await
    .map(drop)
}

/// Calls each manager in turn, round after round, until one answers with something else than "not now". A manager that
/// lags may turn a node away that the others know; it has the last word only when all have been asked.
async fn try_each<T, F>(
    channels: &Channels,
    managers: &[ManagerRecord],
    limit: Duration,
    call: impl Fn(Channel) -> F,
) -> Result<T, CallError>
where
    F: Future<Output = Result<T, Status>>,
{
    let mut last = Status::unavailable("no manager is known");
    for round in 0..ROUNDS {
        let mut turned_away = None;
        for manager in managers {
            let answer = tokio::time::timeout(limit, call(channels.to(&manager.addr, &manager.node_id))).await;
            match answer {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(status)) if not_now(status.code()) => last = status,
                Ok(Err(status)) if status.code() == Code::PermissionDenied => turned_away = Some(status),
                Ok(Err(status)) => return Err(CallError::Refused(Box::new(status))),
                Err(_) => last = Status::unavailable(format!("{} does not answer", manager.addr)),
            }
        }
        if let Some(status) = turned_away {
            return Err(CallError::Refused(Box::new(status)));
        }
        tokio::time::sleep((PAUSE * (round + 1)).min(LONGEST_PAUSE)).await;
    }
    Err(CallError::Unavailable(Box::new(last)))
}

/// One that is known as a manager and runs none at the moment (this node may be among them) knows no such call.
fn not_now(code: Code) -> bool {
    matches!(code, Code::Unimplemented | Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded | Code::Unknown)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::SystemTime;

    use super::*;
    use crate::ca::{Issuer, KeyAndCsr, Role, TlsContext, new_root};

    fn channels() -> Channels {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (root, root_key) = new_root().unwrap();
        let own = KeyAndCsr::generate().unwrap();
        let (issuer, life) = (Issuer::new(&root, &root_key).unwrap(), Duration::from_secs(3600));
        let cert = issuer.issue(&own.csr_pem, "node", "cluster", Role::Manager, SystemTime::now(), life).unwrap();
        Channels::new(TlsContext::new(&root, &cert, &own.key_pem).unwrap())
    }

    fn managers(addrs: &[&str]) -> Vec<ManagerRecord> {
        addrs.iter().map(|addr| ManagerRecord { node_id: (*addr).to_owned(), addr: (*addr).to_owned() }).collect()
    }

    /// On this a manager whose certificate has run out issues its own or does not.
    #[tokio::test]
    async fn a_refusal_is_a_decision_also_behind_a_manager_that_does_not_answer() {
        let (channels, two) = (channels(), managers(&["a", "b"]));
        for code in [Code::PermissionDenied, Code::FailedPrecondition] {
            let asked = AtomicUsize::new(0);
            let answer = try_each(&channels, &two, Duration::from_millis(50), |_| {
                let first = asked.fetch_add(1, Ordering::Relaxed) == 0;
                async move {
                    if first {
                        std::future::pending::<()>().await;
                    }
                    Err::<(), _>(Status::new(code, "no"))
                }
            });
            let error = answer.await.unwrap_err();
            assert!(!error.undecided(), "{code:?}: {error}");
        }
    }

    #[tokio::test]
    async fn who_reaches_nobody_in_time_has_no_decision() {
        // A port that was free a moment ago: connections are refused.
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let limit = Some(Duration::from_millis(300));
        let error = renew(&channels(), &managers(&[&closed]), String::new(), limit).await.unwrap_err();
        assert!(error.undecided(), "{error}");
    }
}
