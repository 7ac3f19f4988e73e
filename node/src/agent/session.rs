//! The line to a manager: opened to whichever answers, kept alive, opened anew to another when it falls silent.

use std::time::Duration;

use deploy::model::NodeDescription;
use prost::Message;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::datadir::ManagerRecord;
use crate::rpc::{Channels, MAX_MESSAGE, pb};

/// How often the manager hears from this agent.
const HEARTBEAT: Duration = Duration::from_millis(250);
/// A manager that says nothing for so long (it sends something every 500 ms) is left for another.
const SILENCE: Duration = Duration::from_millis(2000);
/// A session must open within this time.
const OPEN: Duration = Duration::from_secs(5);
/// Pause after every known manager was tried in vain.
const PAUSE: Duration = Duration::from_millis(200);
/// Messages to the manager that wait for the network.
const BACKLOG: usize = 16;

/// What comes out of the line.
pub(super) enum SessionEvent {
    /// It is open; this is how to speak.
    Opened(mpsc::Sender<pb::AgentMessage>),
    /// The manager said something.
    Assignments(pb::Assignments),
    /// A batch of statuses was committed.
    Committed(u64),
    /// It is closed; another one is being opened.
    Closed,
    /// The cluster has removed this node: no session will open again.
    Removed,
}

/// How a session ended.
enum End {
    Broken,
    Removed,
}

/// Everything that the line needs.
pub(super) struct Line {
    pub(super) node_id: String,
    pub(super) generation: u64,
    pub(super) description: NodeDescription,
    pub(super) channels: Channels,
    pub(super) managers: watch::Receiver<Vec<ManagerRecord>>,
    /// Where gossip has seen the other hosts last: a manager may have moved since the list was made.
    pub(super) members: watch::Receiver<std::sync::Arc<gossip::Members>>,
    pub(super) applied: watch::Receiver<u64>,
    /// Told by the loop when this manager's word cannot be used.
    pub(super) drop_session: std::sync::Arc<tokio::sync::Notify>,
    pub(super) events: mpsc::Sender<SessionEvent>,
}

impl Line {
    /// Runs for as long as somebody listens.
    pub(super) async fn run(self) {
        // A dead manager that is being asked is no reason to wait.
        tokio::select! {
            biased;
            () = self.events.closed() => {}
            () = self.seek() => {}
        }
    }

    async fn seek(&self) {
        let mut turn = rand::random::<u32>() as usize;
        loop {
            let managers = self.in_order(turn);
            turn = turn.wrapping_add(1);
            for manager in managers {
                match self.session(&manager).await {
                    // A session that worked and broke is opened elsewhere at once.
                    Some(End::Broken) => break,
                    Some(End::Removed) => {
                        let _ = self.events.send(SessionEvent::Removed).await;
                        return;
                    }
                    None => {}
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The known managers: this node itself first, the others from a different one each time.
    fn in_order(&self, turn: usize) -> Vec<ManagerRecord> {
        let mut managers = self.managers.borrow().clone();
        for manager in &mut managers {
            if manager.node_id == self.node_id {
                manager.addr.clone_from(&self.description.control_addr);
            } else if let Some(seen) = self.members.borrow().get(&manager.node_id).filter(|member| member.alive) {
                // Whoever answers there must show that node's certificate.
                manager.addr = seen.identity.addr.to_string();
            }
        }
        managers.sort();
        if !managers.is_empty() {
            let first = turn % managers.len();
            managers.rotate_left(first);
        }
        managers.sort_by_key(|manager| manager.node_id != self.node_id);
        managers
    }

    /// One session with one manager; `None` if it did not open.
    async fn session(&self, manager: &ManagerRecord) -> Option<End> {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        let hello = pb::Hello { generation: self.generation, description: self.description.encode_to_vec() };
        sender.try_send(message(pb::agent_message::Kind::Hello(hello))).ok()?;
        let channel = self.channels.to(&manager.addr, &manager.node_id);
        let mut client = pb::sessions_client::SessionsClient::new(channel).max_decoding_message_size(4 * MAX_MESSAGE);
        let mut messages = match tokio::time::timeout(OPEN, client.open(ReceiverStream::new(receiver))).await {
            Ok(Ok(stream)) => stream.into_inner(),
            Ok(Err(status)) if status.code() == Code::PermissionDenied => {
                tracing::error!(manager = manager.addr, reason = status.message(), "the cluster turned this node away");
                return Some(End::Removed);
            }
            Ok(Err(status)) => {
                tracing::debug!(manager = manager.addr, error = status.message(), "no session");
                return None;
            }
            Err(_) => return None,
        };
        tracing::info!(manager.id = manager.node_id, manager.addr, "session opened");
        self.events.send(SessionEvent::Opened(sender.clone())).await.ok()?;
        let end = self.converse(&sender, &mut messages).await;
        tracing::info!(manager.id = manager.node_id, "session closed");
        let _ = self.events.send(SessionEvent::Closed).await;
        Some(end)
    }

    async fn converse(
        &self,
        sender: &mpsc::Sender<pb::AgentMessage>,
        messages: &mut tonic::Streaming<pb::ManagerMessage>,
    ) -> End {
        let mut beat = tokio::time::interval(HEARTBEAT);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                biased;
                () = self.events.closed() => return End::Broken,
                () = self.drop_session.notified() => return End::Broken,
                received = messages.message() => {
                    heard = Instant::now();
                    let event = match received {
                        Ok(Some(pb::ManagerMessage { kind: Some(kind) })) => match kind {
                            pb::manager_message::Kind::Assignments(a) => SessionEvent::Assignments(a),
                            pb::manager_message::Kind::StatusesCommitted(c) => SessionEvent::Committed(c.sequence),
                            pb::manager_message::Kind::Heartbeat(_) => continue,
                        },
                        Ok(Some(_)) => continue,
                        Ok(None) => return End::Broken,
                        Err(status) if status.code() == Code::PermissionDenied => return End::Removed,
                        Err(_) => return End::Broken,
                    };
                    if self.events.send(event).await.is_err() {
                        return End::Broken;
                    }
                }
                _ = beat.tick() => {
                    if heard.elapsed() > SILENCE {
                        return End::Broken;
                    }
                    let applied_revision = *self.applied.borrow();
                    // A full queue is no reason to wait: what is in it is a sign of life as well.
                    let _ = sender.try_send(message(pb::agent_message::Kind::Heartbeat(pb::Heartbeat { applied_revision })));
                }
            }
        }
    }
}

pub(super) fn message(kind: pb::agent_message::Kind) -> pb::AgentMessage {
    pb::AgentMessage { kind: Some(kind) }
}
