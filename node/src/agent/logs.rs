//! Output of tasks: each host reads its own, a manager gathers them from the hosts.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use deploy::model::{Node, TaskId};
use deploy::store::Store;
use futures_util::Stream;
use runtime::{LogOptions, Runtime};
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

use super::AgentView;
use super::container::TASK_LABEL;
use crate::ca::{PeerIdentity, Role};
use crate::engine::{EngineError, LogRecord, LogRequest};
use crate::rpc::{Channels, Lane, caller, pb};

/// Records on their way to a client that is slow to read.
const BACKLOG: usize = 256;

/// Reads logs of this host's containers.
pub(super) struct LogsService {
    pub(super) runtime: Runtime,
    /// Says who the managers are.
    pub(super) view: watch::Receiver<AgentView>,
}

/// Whether the caller is a manager. A certificate outlives a demotion and a removal, so what counts is the store's word;
/// the certificate's only while this host was told nothing.
fn is_manager(caller: &PeerIdentity, view: &AgentView) -> bool {
    match view.told {
        true => view.managers.iter().any(|manager| manager.node_id == caller.node_id),
        false => caller.role == Role::Manager,
    }
}

#[tonic::async_trait]
impl pb::logs_server::Logs for LogsService {
    type ReadStream = Pin<Box<dyn Stream<Item = Result<pb::LogChunk, Status>> + Send>>;

    async fn read(&self, request: Request<pb::LogsRequest>) -> Result<Response<Self::ReadStream>, Status> {
        if !is_manager(&caller(&request)?, &self.view.borrow()) {
            return Err(Status::permission_denied("only managers may read logs"));
        }
        let request = request.into_inner();
        let containers = self.runtime.list().await;
        let Some(container) = containers
            .into_iter()
            .filter(|c| c.labels.get(TASK_LABEL) == Some(&request.task_id))
            .max_by_key(|c| c.created_at)
        else {
            return Err(Status::not_found(format!("task {} has no container on this host", request.task_id)));
        };
        let at = |ns: u64| (ns > 0).then(|| UNIX_EPOCH + Duration::from_nanos(ns));
        let options = LogOptions {
            stdout: request.stdout,
            stderr: request.stderr,
            follow: request.follow,
            since: at(request.since_ns),
            until: at(request.until_ns),
            tail: request.tail.map(|tail| usize::try_from(tail).unwrap_or(usize::MAX)),
        };
        let records =
            self.runtime.logs(&container.id, options).await.map_err(|e| Status::internal(crate::chain(&e)))?;
        let chunks = ReceiverStream::new(records).map(|record| {
            Ok(pb::LogChunk {
                at_ns: nanos(record.at),
                stderr: record.stream == runtime::LogStream::Stderr,
                data: record.data,
            })
        });
        Ok(Response::new(Box::pin(chunks)))
    }
}

fn nanos(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

/// Who owns what reads from the hosts.
pub(crate) struct Readers {
    /// Where it runs.
    pub(crate) tasks: TaskTracker,
    /// Ends it.
    pub(crate) stop: CancellationToken,
}

/// Reads the output of tasks from the hosts that they ran on. A host that cannot be reached is an error in the stream,
/// after which the others go on.
pub(crate) async fn gather(
    channels: &Channels,
    store: &Store,
    tasks: Vec<TaskId>,
    request: LogRequest,
    readers: &Readers,
) -> Result<mpsc::Receiver<Result<LogRecord, EngineError>>, EngineError> {
    let (sender, receiver) = mpsc::channel(BACKLOG);
    let request = Arc::new(request);
    for task_id in tasks {
        // A task that was never placed has said nothing.
        let Some(node) = store.task(&task_id).and_then(|task| store.node(&task.node_id)).cloned() else { continue };
        let channel = channels.lane(Lane::Bulk).to(&node.description.control_addr, node.id.as_str());
        let (sender, request) = (sender.clone(), request.clone());
        let stop = readers.stop.clone();
        // Ends with the stream, or as soon as nobody reads any more.
        readers.tasks.spawn(async move {
            let closed = sender.clone();
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = closed.closed() => {}
                () = read_one(channel, &node, &task_id, &request, &sender) => {}
            }
        });
    }
    Ok(receiver)
}

async fn read_one(
    channel: tonic::transport::Channel,
    node: &Node,
    task_id: &TaskId,
    request: &LogRequest,
    sender: &mpsc::Sender<Result<LogRecord, EngineError>>,
) {
    let message = pb::LogsRequest {
        task_id: task_id.to_string(),
        stdout: request.stdout,
        stderr: request.stderr,
        follow: request.follow,
        tail: request.tail,
        since_ns: request.since_ns,
        until_ns: request.until_ns,
    };
    let failed = |status: Status| {
        EngineError::Internal(format!(
            "incomplete log stream: task {task_id} on node {}: {}",
            node.description.hostname,
            status.message()
        ))
    };
    let mut stream = match pb::logs_client::LogsClient::new(channel).read(message).await {
        Ok(stream) => stream.into_inner(),
        // It may not have begun yet, or its container is gone already.
        Err(status) if status.code() == tonic::Code::NotFound => return,
        Err(status) => {
            let _ = sender.send(Err(failed(status))).await;
            return;
        }
    };
    loop {
        let record = match stream.message().await {
            Ok(Some(chunk)) => Ok(LogRecord {
                task_id: task_id.clone(),
                node_id: node.id.clone(),
                at_ns: chunk.at_ns,
                stderr: chunk.stderr,
                data: chunk.data,
            }),
            Ok(None) => return,
            Err(status) => Err(failed(status)),
        };
        let end = record.is_err();
        if sender.send(record).await.is_err() || end {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datadir::ManagerRecord;

    #[test]
    fn only_managers_that_the_cluster_knows_read_logs() {
        let caller = |node_id: &str, role| PeerIdentity { node_id: node_id.into(), role, cluster_id: "c".into() };
        let (manager, demoted) = (caller("m", Role::Manager), caller("d", Role::Manager));
        let worker = caller("w", Role::Worker);
        let mut view = AgentView::default();
        view.managers.push(ManagerRecord { node_id: "x".into(), addr: "10.0.0.1:2377".into() });
        for (caller, before, told) in [(&manager, true, true), (&demoted, true, false), (&worker, false, false)] {
            view.told = false;
            assert_eq!(is_manager(caller, &view), before, "{caller:?}");
            view.told = true;
            view.managers[0].node_id = "m".into();
            assert_eq!(is_manager(caller, &view), told, "{caller:?}");
        }
    }
}
