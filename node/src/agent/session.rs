//! The line to a manager: opened to whichever answers, kept alive, opened anew to another when it falls silent.

use std::pin::Pin;
use std::time::Duration;

use deploy::model::{self, NodeDescription, NodeSealing};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use overlay_net::SealingReport;
use prost::Message;
use runtime::image::ImageStore;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::clock;
use crate::datadir::ManagerRecord;
use crate::images::Announcer;
use crate::rpc::{Channels, MAX_MESSAGE, Refused, pb};
use crate::timing::Timing;

/// How often the line looks whether its manager still speaks.
const LOOK: Duration = Duration::from_millis(250);
/// A session must open within this time.
const OPEN: Duration = Duration::from_secs(5);
/// A manager that has not answered for so long is no reason not to ask the next one as well.
const STAGGER: Duration = Duration::from_millis(200);
/// Pause after every known manager was tried in vain, and the least between the beginnings of two sessions.
const PAUSE: Duration = Duration::from_millis(200);
/// A manager that has not taken note of this node's certificate, or of its part in encrypted networks, is told of it again
/// after this time.
const SAY_AGAIN: Duration = Duration::from_secs(1);
/// Bytes of the words for what stands in the way of encrypted networks.
const OBSTACLE: usize = 200;
/// The longest that is waited before a manager is told that again.
const SAY_SELDOM: Duration = Duration::from_secs(60);
/// Messages to the manager that wait for the network.
const BACKLOG: usize = 16;

/// What comes out of the line.
pub(super) enum SessionEvent {
    /// It is open; this is its number, never 0, and how to speak.
    Opened(u64, mpsc::Sender<pb::AgentMessage>),
    /// The manager said something.
    Assignments(pb::Assignments),
    /// A batch of statuses was committed.
    Committed(u64),
    /// Hosts have let go of tasks that drain.
    Drained(pb::Drained),
    /// A heartbeat of the manager came.
    Marked(Mark),
    /// It is closed; another one is being opened.
    Closed,
    /// Managers do not take this node's certificate; why.
    Uncertified(String),
    /// A manager refuses this node: another host has its identity, or a newer life of it was seen; the manager's words.
    Refused(String),
    /// The cluster has removed this node: no session will open again.
    Removed,
}

/// The mark of a manager's heartbeat, which its agent gives back.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    mark: u64,
    came: Instant,
}

/// A session that is open.
struct Session {
    manager: ManagerRecord,
    opened: Instant,
    sender: mpsc::Sender<pb::AgentMessage>,
    messages: tonic::Streaming<pb::ManagerMessage>,
}

/// Why no session was opened.
enum Unopened {
    /// Nobody answered.
    Failed,
    /// The cluster has removed this node.
    Removed,
}

/// A session that is asked for.
type Opening<'a> = Pin<Box<dyn Future<Output = Result<Session, Unopened>> + Send + 'a>>;

/// How a session ended.
enum End {
    /// It broke, or its manager is not believed.
    Broken,
    /// Its manager fell silent, and another one took over.
    Moved(Box<Session>),
    Removed,
}

/// Everything that the line needs.
pub(super) struct Line {
    pub(super) node_id: String,
    pub(super) generation: u64,
    /// Drawn when the daemon started, not 0.
    pub(super) boot: u64,
    pub(super) description: NodeDescription,
    /// Its part in encrypted networks.
    pub(super) sealing: watch::Receiver<SealingReport>,
    pub(super) channels: Channels,
    pub(super) managers: watch::Receiver<Vec<ManagerRecord>>,
    /// Where gossip has seen the other hosts last: a manager may have moved since the list was made.
    pub(super) members: watch::Receiver<std::sync::Arc<gossip::Members>>,
    /// The last session that the loop wants ended, because its manager's word cannot be used: by its number.
    pub(super) unwanted: watch::Receiver<u64>,
    pub(super) events: mpsc::Sender<SessionEvent>,
    pub(super) timing: Timing,
    /// What managers are told of, so that other hosts find it.
    pub(super) images: ImageStore,
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
        // The manager that was left last; it is asked last.
        let mut left = String::new();
        let mut number = 0;
        loop {
            turn = turn.wrapping_add(1);
            let mut session = match self.open_any(self.in_order(turn, &left)).await {
                Ok(session) => session,
                Err(Unopened::Failed) => {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                Err(Unopened::Removed) => return self.removed().await,
            };
            loop {
                let (manager, opened) = (session.manager.clone(), session.opened);
                tracing::info!(manager.id = manager.node_id, manager.addr, "session opened");
                number += 1;
                if self.events.send(SessionEvent::Opened(number, session.sender.clone())).await.is_err() {
                    return;
                }
                let end = self.converse(&mut session, number).await;
                tracing::info!(manager.id = manager.node_id, "session closed");
                let _ = self.events.send(SessionEvent::Closed).await;
                match end {
                    End::Moved(next) => session = *next,
                    End::Broken => {
                        left = manager.node_id;
                        // At once, unless it never worked.
                        tokio::time::sleep_until(opened + PAUSE).await;
                        break;
                    }
                    End::Removed => return self.removed().await,
                }
            }
        }
    }

    async fn removed(&self) {
        let _ = self.events.send(SessionEvent::Removed).await;
    }

    /// The known managers: this node itself first, the others from a different one each time, the one that was left
    /// last of all.
    fn in_order(&self, turn: usize, left: &str) -> Vec<ManagerRecord> {
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
        managers.sort_by_key(|manager| (manager.node_id == left, manager.node_id != self.node_id));
        managers
    }

    /// Opens a session with the first manager that does; a dead one is no reason to wait for long.
    async fn open_any(&self, managers: Vec<ManagerRecord>) -> Result<Session, Unopened> {
        let mut untried = managers.into_iter();
        let mut tries = FuturesUnordered::new();
        loop {
            match untried.next() {
                Some(manager) => tries.push(self.open(manager)),
                None if tries.is_empty() => return Err(Unopened::Failed),
                None => {}
            }
            let more = untried.len() > 0;
            tokio::select! {
                biased;
                Some(tried) = tries.next() => match tried {
                    Err(Unopened::Failed) => {}
                    opened_or_removed => return opened_or_removed,
                },
                () = tokio::time::sleep(STAGGER), if more => {}
            }
        }
    }

    /// Opens a session with one manager.
    async fn open(&self, manager: ManagerRecord) -> Result<Session, Unopened> {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        let hello =
            pb::Hello { generation: self.generation, description: self.description.encode_to_vec(), boot: self.boot };
        sender.try_send(message(pb::agent_message::Kind::Hello(hello))).map_err(|_| Unopened::Failed)?;
        let channel = self.channels.to(&manager.addr, &manager.node_id);
        let mut client = pb::sessions_client::SessionsClient::new(channel).max_decoding_message_size(4 * MAX_MESSAGE);
        match tokio::time::timeout(OPEN, client.open(ReceiverStream::new(receiver))).await {
            Ok(Ok(stream)) => Ok(Session { manager, opened: Instant::now(), sender, messages: stream.into_inner() }),
            Ok(Err(status)) if status.code() == Code::PermissionDenied => {
                tracing::error!(manager = manager.addr, reason = status.message(), "the cluster turned this node away");
                Err(Unopened::Removed)
            }
            Ok(Err(status)) if status.code() == Code::Unauthenticated => {
                self.events
                    .send(SessionEvent::Uncertified(status.message().to_owned()))
                    .await
                    .map_err(|_| Unopened::Failed)?;
                Err(Unopened::Failed)
            }
            Ok(Err(status)) if status.code() == Code::FailedPrecondition => {
                self.events
                    .send(SessionEvent::Refused(status.message().to_owned()))
                    .await
                    .map_err(|_| Unopened::Failed)?;
                Err(Unopened::Failed)
            }
            Ok(Err(status)) => {
                let refused = Refused { addr: manager.addr.clone(), status: Box::new(status) };
                tracing::debug!(error = %refused, "no session");
                Err(Unopened::Failed)
            }
            Err(_) => Err(Unopened::Failed),
        }
    }

    /// Speaks with a manager until it is over. One that falls silent is kept until another has taken over, and for good
    /// when it speaks again before.
    async fn converse(&self, session: &mut Session, number: u64) -> End {
        let mut unwanted = self.unwanted.clone();
        let mut sealing = Sealing::new(self.sealing.clone());
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        let mut other: Option<Opening<'_>> = None;
        let mut ask_at = heard + self.timing.doubt();
        // What the cluster thinks that this node's certificate is; nothing is said to one that does not ask.
        let mut known_key = Vec::new();
        let mut said: Option<Instant> = None;
        // Nothing is said of images either to one that does not ask.
        let mut announcer: Option<Announcer> = None;
        // There was no room for the news; after a moment there may be.
        let mut crowded = false;
        loop {
            tokio::select! {
                biased;
                () = self.events.closed() => return End::Broken,
                () = is_unwanted(&mut unwanted, number) => return End::Broken,
                received = session.messages.message() => {
                    heard = Instant::now();
                    (other, ask_at) = (None, heard + self.timing.doubt());
                    let event = match received {
                        Ok(Some(pb::ManagerMessage { kind: Some(kind) })) => match kind {
                            pb::manager_message::Kind::Assignments(a) => {
                                known_key.clone_from(&a.certificate_key);
                                sealing.known(&a);
                                if a.wants_content && announcer.is_none() {
                                    announcer = Some(Announcer::new(self.images.clone()));
                                }
                                SessionEvent::Assignments(a)
                            }
                            pb::manager_message::Kind::StatusesCommitted(c) => SessionEvent::Committed(c.sequence),
                            pb::manager_message::Kind::Drained(drained) => SessionEvent::Drained(drained),
                            pb::manager_message::Kind::Heartbeat(beat) => {
                                // One that does not fit is followed by others.
                                let _ = self.events.try_send(SessionEvent::Marked(Mark { mark: beat.mark, came: heard }));
                                continue;
                            }
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
                opened = opened(&mut other) => {
                    other = None;
                    match opened {
                        Ok(next) => return End::Moved(Box::new(next)),
                        Err(Unopened::Removed) => return End::Removed,
                        // Between two leaders all of them may have refused; that is soon over.
                        Err(Unopened::Failed) => ask_at = Instant::now() + PAUSE,
                    }
                }
                () = tokio::time::sleep_until(ask_at), if other.is_none() => {
                    let managers = self.in_order(rand::random::<u32>() as usize, &session.manager.node_id);
                    let others = managers.into_iter().filter(|m| m.node_id != session.manager.node_id).collect();
                    other = Some(Box::pin(self.open_any(others)));
                }
                () = sealing.news() => sealing.say(&session.sender),
                () = news(&mut announcer), if !crowded => crowded = !announce(&mut announcer, &session.sender),
                _ = look.tick() => {
                    crowded = false;
                    if heard.elapsed() > self.timing.silence() {
                        return End::Broken;
                    }
                    if !known_key.is_empty() && said.is_none_or(|at| at.elapsed() > SAY_AGAIN) {
                        let own = self.channels.tls().own();
                        if own.key[..] != known_key[..] {
                            said = Some(Instant::now());
                            let used = pb::CertificateInUse { cert_pem: own.pem() };
                            let _ = session.sender.try_send(message(pb::agent_message::Kind::Certificate(used)));
                        }
                    }
                }
            }
        }
    }
}

/// A sign of life. With the manager's last mark, it says what this host's clock says.
pub(super) fn heartbeat(applied_revision: u64, marked: Option<Mark>) -> pb::Heartbeat {
    match marked {
        Some(Mark { mark, came }) => pb::Heartbeat {
            applied_revision,
            mark,
            kept_ns: u64::try_from(came.elapsed().as_nanos()).unwrap_or(u64::MAX),
            clock_ns: clock::unix_nanos(),
        },
        None => pb::Heartbeat { applied_revision, ..pb::Heartbeat::default() },
    }
}

/// The outcome of asking others; never, if nobody is asked.
async fn opened(other: &mut Option<Opening<'_>>) -> Result<Session, Unopened> {
    match other {
        Some(opening) => opening.await,
        None => std::future::pending().await,
    }
}

/// Until the loop wants this session ended. That it wanted an earlier one ended, which was over by itself before it heard
/// of that, means nothing.
async fn is_unwanted(unwanted: &mut watch::Receiver<u64>, number: u64) {
    let _ = unwanted.wait_for(|unwanted| *unwanted == number).await;
}

/// What one manager is told of this host's part in encrypted networks.
struct Sealing {
    own: watch::Receiver<SealingReport>,
    /// What the manager knows, if it wants to know anything.
    known: Option<Option<NodeSealing>>,
    /// What it was told last, when, and after what time it is told that again.
    said: Option<(NodeSealing, Instant, Duration)>,
}

impl Sealing {
    fn new(own: watch::Receiver<SealingReport>) -> Sealing {
        Sealing { own, known: None, said: None }
    }

    fn own(&self) -> NodeSealing {
        let report = self.own.borrow();
        let key = |key: &overlay_net::SealingKey| model::SealingKey { epoch: key.epoch, key: key.key.to_vec() };
        let mut obstacle = report.obstacle.clone().unwrap_or_default().replace(char::is_control, " ");
        obstacle.truncate(obstacle.floor_char_boundary(OBSTACLE));
        NodeSealing { obstacle, keys: report.keys.iter().map(key).collect() }
    }

    fn known(&mut self, told: &pb::Assignments) {
        // What cannot be read is not what this host has said.
        let known = || told.sealing.as_ref().and_then(|bytes| NodeSealing::decode(bytes.as_slice()).ok());
        self.known = told.wants_sealing.then(known);
    }

    /// Until there is something to say: at once when it has changed, and again after a while if the manager has not taken
    /// note of it.
    async fn news(&mut self) {
        let own = self.own();
        match (&self.known, &self.said) {
            (Some(known), Some((said, at, pause))) if known.as_ref() != Some(&own) && *said == own => {
                let again = *at + *pause;
                tokio::select! {
                    biased;
                    Ok(()) = self.own.changed() => {}
                    () = tokio::time::sleep_until(again) => {}
                }
            }
            (Some(known), _) if known.as_ref() != Some(&own) => {}
            // An overlay that has ended says nothing new.
            _ => {
                if self.own.changed().await.is_err() {
                    std::future::pending().await
                }
            }
        }
    }

    fn say(&mut self, sender: &mpsc::Sender<pb::AgentMessage>) {
        self.own.mark_unchanged();
        let own = self.own();
        if self.known.as_ref().is_some_and(|known| known.as_ref() != Some(&own)) {
            // What the cluster does not take is said ever less often.
            let before = self.said.take().filter(|(said, ..)| *said == own);
            let pause = before.map_or(SAY_AGAIN, |(_, _, pause)| SAY_SELDOM.min(pause * 2));
            let said = pb::SealingSaid { sealing: own.encode_to_vec() };
            // One that does not fit is followed by another.
            let _ = sender.try_send(message(pb::agent_message::Kind::Sealing(said)));
            self.said = Some((own, Instant::now(), pause));
        }
    }
}

/// Until there may be news of this host's images for the manager; never, if it does not ask.
async fn news(announcer: &mut Option<Announcer>) {
    match announcer {
        Some(announcer) => announcer.changed().await,
        None => std::future::pending().await,
    }
}

/// Says the news, unless there is no room for them.
fn announce(announcer: &mut Option<Announcer>, sender: &mpsc::Sender<pb::AgentMessage>) -> bool {
    let mut taken = true;
    if let Some(announcer) = announcer {
        announcer.tell(|held| {
            taken = sender.try_send(message(pb::agent_message::Kind::Content(held))).is_ok();
            taken
        });
    }
    taken
}

pub(super) fn message(kind: pb::agent_message::Kind) -> pb::AgentMessage {
    pb::AgentMessage { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn told(sealing: Option<&NodeSealing>) -> pb::Assignments {
        let sealing = sealing.map(Message::encode_to_vec);
        pb::Assignments { wants_sealing: true, sealing, ..pb::Assignments::default() }
    }

    fn next(said: &mut mpsc::Receiver<pb::AgentMessage>) -> Option<NodeSealing> {
        match said.try_recv().ok()?.kind {
            Some(pb::agent_message::Kind::Sealing(said)) => NodeSealing::decode(said.sealing.as_slice()).ok(),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_manager_is_told_of_keys_when_it_wants_to_know_and_until_it_does() {
        let (overlay, own) = watch::channel(SealingReport::default());
        let (sender, mut said) = mpsc::channel(4);
        let mut sealing = Sealing::new(own);
        // An older one would not know what to do with it.
        assert!(sealing.news().now_or_never().is_none());
        sealing.known(&pb::Assignments::default());
        assert!(sealing.news().now_or_never().is_none());
        // One that knows nothing yet is told that there is nothing.
        sealing.known(&told(None));
        sealing.news().now_or_never().expect("news");
        sealing.say(&sender);
        let nothing = next(&mut said).expect("said");
        assert_eq!(nothing, NodeSealing::default());
        assert!(sealing.news().now_or_never().is_none(), "it takes a moment to be known");
        sealing.known(&told(Some(&nothing)));
        assert!(sealing.news().now_or_never().is_none());
        // New keys are said at once, and again until they are known.
        let keys = vec![overlay_net::SealingKey { epoch: 3, key: [7; 32] }];
        overlay.send_replace(SealingReport { obstacle: Some("x\ny".repeat(100)), keys });
        for pause in [SAY_AGAIN, 2 * SAY_AGAIN, 4 * SAY_AGAIN] {
            tokio::time::timeout(10 * SAY_AGAIN, sealing.news()).await.expect("news");
            sealing.say(&sender);
            let report = next(&mut said).expect("said");
            assert_eq!(report.keys, [model::SealingKey { epoch: 3, key: vec![7; 32] }]);
            assert!(report.obstacle.starts_with("x y") && report.obstacle.len() <= OBSTACLE);
            assert!(sealing.news().now_or_never().is_none());
            let (_, at, said_again) = sealing.said.as_mut().expect("said");
            assert_eq!(*said_again, pause);
            *at = at.checked_sub(pause).expect("the clock began long ago");
        }
        let own = sealing.own();
        sealing.known(&told(Some(&own)));
        assert!(sealing.news().now_or_never().is_none());
        // An overlay that has ended leaves the session alone.
        drop(overlay);
        assert!(sealing.news().now_or_never().is_none());
    }

    #[test]
    fn what_is_said_of_a_session_that_is_over_does_not_end_the_next() {
        let (loop_side, mut line) = watch::channel(0);
        assert!(is_unwanted(&mut line, 1).now_or_never().is_none());
        // The first one broke by itself at the same moment.
        loop_side.send_replace(1);
        assert!(is_unwanted(&mut line.clone(), 1).now_or_never().is_some());
        assert!(is_unwanted(&mut line, 2).now_or_never().is_none());
        loop_side.send_replace(2);
        assert!(is_unwanted(&mut line, 2).now_or_never().is_some());
    }
}
