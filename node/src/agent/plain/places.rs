//! Places of plain containers on the cluster's networks: asked for at the managers, given by what they assign to this
//! host, and given back when nobody uses them any more.

use std::time::Duration;

use deploy::agent::Given;
use deploy::model::{NetworkAttachment, TaskId};
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::datadir::ManagerRecord;
use crate::rpc::{Channels, pb};

/// One manager gets so long to answer before the next one is asked.
const CALL: Duration = Duration::from_secs(5);
/// All of them together.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause between two rounds.
const PAUSE: Duration = Duration::from_millis(100);

/// Why there is no place.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaceError {
    /// The managers say no.
    #[error("{reason}")]
    Refused {
        /// What kind of no.
        code: Code,
        /// Why.
        reason: String,
    },
    /// No manager could be asked.
    #[error("no manager could be asked for a place on the network: {0}")]
    Unavailable(String),
    /// It was promised, and did not come.
    #[error("no manager has told this host of its place on the network within 10 s")]
    Late,
}

impl PlaceError {
    /// What a client of Docker's managers is told beside the reason.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Refused { code, .. } => *code,
            Self::Unavailable(_) | Self::Late => Code::Unavailable,
        }
    }
}

/// Asks managers.
pub(in super::super) struct Places {
    pub(in super::super) channels: Channels,
    pub(in super::super) managers: watch::Receiver<Vec<ManagerRecord>>,
    pub(in super::super) given: watch::Receiver<Given>,
    /// This host's boot generation, and what this daemon has drawn, as its session says them: managers take requests of
    /// nobody else.
    pub(in super::super) generation: u64,
    pub(in super::super) boot: u64,
}

impl Places {
    /// Asks for a place until it is there.
    pub(super) async fn ask(&self, request: pb::AttachRequest) -> Result<TaskId, PlaceError> {
        let request = pb::AttachRequest { generation: self.generation, boot: self.boot, ..request };
        let asked = self.call(|channel| {
            let request = request.clone();
            async move { pb::sessions_client::SessionsClient::new(channel).attach(request).await }
        });
        Ok(TaskId::new(asked.await?.id))
    }

    /// The addresses of a place that is this host's.
    pub(super) fn given(&self, id: &TaskId) -> Option<Vec<NetworkAttachment>> {
        self.given.borrow().places.get(id).map(|place| place.attachments.clone())
    }

    /// The addresses of a place, once this host is told of them.
    pub(super) async fn told(&self, id: &TaskId) -> Result<Vec<NetworkAttachment>, PlaceError> {
        let mut given = self.given.clone();
        let told = tokio::time::timeout(PATIENCE, given.wait_for(|given| given.places.contains_key(id))).await;
        match told {
            Ok(Ok(given)) => Ok(given.places.get(id).map(|place| place.attachments.clone()).unwrap_or_default()),
            _ => Err(PlaceError::Late),
        }
    }

    /// Gives a place back. A retry is fine.
    pub(super) async fn give_back(&self, id: &TaskId) -> Result<(), PlaceError> {
        let done = self.call(|channel| {
            let request = pb::DetachRequest { id: id.to_string(), generation: self.generation, boot: self.boot };
            async move { pb::sessions_client::SessionsClient::new(channel).detach(request).await }
        });
        done.await.map(drop)
    }

    async fn call<T, F>(&self, call: impl Fn(Channel) -> F) -> Result<T, PlaceError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut last = "none is known".to_owned();
        let rounds = async {
            loop {
                let managers = self.managers.borrow().clone();
                for manager in managers {
                    let channel = self.channels.to(&manager.addr, &manager.node_id);
                    match tokio::time::timeout(CALL, call(channel)).await {
                        Ok(Ok(answer)) => return Ok(answer.into_inner()),
                        Ok(Err(status)) if is_an_answer(status.code()) => {
                            let reason = status.message().to_owned();
                            return Err(PlaceError::Refused { code: status.code(), reason });
                        }
                        Ok(Err(status)) => status.message().clone_into(&mut last),
                        Err(_) => last = format!("{} does not answer", manager.addr),
                    }
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        let asked = tokio::time::timeout(PATIENCE, rounds).await;
        asked.unwrap_or(Err(PlaceError::Unavailable(last)))
    }
}

/// Others may be no leader, or none yet, or of a release that knows no such call.
fn is_an_answer(code: Code) -> bool {
    matches!(
        code,
        Code::FailedPrecondition
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::ResourceExhausted
            | Code::Aborted
    )
}
