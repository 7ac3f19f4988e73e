//! The public handle: [`Gossip`], started from a [`Config`].

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::driver::{self, Command};
use crate::event::{Event, Members, Stats};
use crate::identity::Identity;
use crate::keyring::Keyring;
use crate::seal::Sealer;
use crate::swim::{Settings, SettingsError, Swim};
use crate::timing::Timing;

/// The longest cluster id, in bytes.
pub const MAX_CLUSTER_ID_LEN: usize = 256;
/// Events that wait for their reader before the oldest are dropped.
const EVENTS: usize = 256;

/// What a node needs to take part.
#[derive(Debug)]
pub struct Config {
    /// This node. The generation must be higher than in all its earlier boots.
    pub identity: Identity,
    /// Bound already, to where `identity.addr` leads.
    pub socket: std::net::UdpSocket,
    /// The cluster's keys, as of now.
    pub keys: Keyring,
    /// The clockwork.
    pub timing: Timing,
    /// Bound into every packet: nodes of another cluster are not understood, even with the same key. At most
    /// [`MAX_CLUSTER_ID_LEN`] bytes.
    pub cluster_id: String,
}

/// Why gossip did not start. Nothing runs; the socket is closed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The identity or the timing.
    #[error("cannot start gossip with these settings")]
    Settings(#[source] SettingsError),
    /// The cluster id is too long.
    #[error("the cluster id has {0} bytes, at most {MAX_CLUSTER_ID_LEN} are allowed")]
    ClusterId(usize),
    /// The socket cannot be used.
    #[error("cannot use the gossip socket")]
    Socket(#[source] std::io::Error),
}

/// This node's membership. A cheap handle: when the last clone is dropped, gossip stops without a goodbye.
#[derive(Clone, Debug)]
pub struct Gossip {
    identity: Identity,
    commands: mpsc::UnboundedSender<Command>,
    members: watch::Receiver<Arc<Members>>,
    stats: watch::Receiver<Stats>,
    /// The task; it ends with the last handle at the latest.
    _driver: Arc<JoinSet<()>>,
}

impl Gossip {
    /// Starts the task that owns the socket and the protocol. It announces itself to nobody before
    /// [`Gossip::join`], but answers. The receiver yields `None` once gossip has ended.
    ///
    /// Events that are not fetched are dropped beyond some thousand, oldest first (see [`Stats::events_lost`]);
    /// the table of [`Gossip::members`] is always complete.
    pub async fn start(config: Config) -> Result<(Self, mpsc::Receiver<Event>), StartError> {
        let Config { identity, socket, keys, timing, cluster_id } = config;
        if cluster_id.len() > MAX_CLUSTER_ID_LEN {
            return Err(StartError::ClusterId(cluster_id.len()));
        }
        let settings = Settings { identity: identity.clone(), timing, seed: rand::random() };
        let now = tokio::time::Instant::now().into_std();
        let swim = Swim::new(settings, now).map_err(StartError::Settings)?;
        socket.set_nonblocking(true).map_err(StartError::Socket)?;
        let socket = tokio::net::UdpSocket::from_std(socket).map_err(StartError::Socket)?;
        // Without this, the first packets would be refused: nothing is known of the socket's buffer yet.
        socket.writable().await.map_err(StartError::Socket)?;
        let sealer = Sealer::new(keys, cluster_id, rand::random(), driver::wall_clock_us());

        // Unbounded, because its writers are the owner's own rare calls (join, keys, removals), which must not
        // block or fail; nothing from the network gets in here.
        let (commands, command_queue) = mpsc::unbounded_channel();
        let (events, event_queue) = mpsc::channel(EVENTS);
        let (members_out, members) = watch::channel(Arc::clone(swim.members()));
        let (stats_out, stats) = watch::channel(Stats::default());
        let driver = driver::Driver::new(socket, sealer, swim, command_queue, events, members_out, stats_out);
        // Ends with its handles or by a goodbye; its end is seen at the event receiver.
        let mut task = JoinSet::new();
        task.spawn(driver.run());
        Ok((Self { identity, commands, members, stats, _driver: Arc::new(task) }, event_queue))
    }

    /// This node.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Announces this node to `seeds`, with growing pauses of up to 5 s until somebody answers, and every 30 s
    /// afterwards, which also heals splits. At most 64 seeds are kept.
    pub fn join(&self, seeds: Vec<SocketAddr>) {
        self.command(Command::Join(seeds));
    }

    /// Replaces the seeds, for the next announcement.
    pub fn set_seeds(&self, seeds: Vec<SocketAddr>) {
        self.command(Command::SetSeeds(seeds));
    }

    /// Seals with the new primary and opens with the new keys from now on. See [`Keyring`] for the order of a
    /// rotation.
    pub fn set_keys(&self, keys: Keyring) {
        self.command(Command::SetKeys(keys));
    }

    /// Drops a node that was removed from the cluster: from the table, without an event, and for good. Node ids do
    /// not come back.
    pub fn forget(&self, node_id: &str) {
        self.command(Command::Forget(node_id.to_owned()));
    }

    /// Takes no part while `silent`: nothing is sent, nothing is heard, and what was known of the others grows old. For a
    /// node whose identity another one has: two that speak in one name would refute each other for ever.
    pub fn silence(&self, silent: bool) {
        self.command(Command::Silence(silent));
    }

    /// The other nodes as of now, without this one.
    pub fn members(&self) -> Arc<Members> {
        Arc::clone(&self.members.borrow())
    }

    /// The other nodes, with a wake-up at each change.
    pub fn watch(&self) -> watch::Receiver<Arc<Members>> {
        self.members.clone()
    }

    /// The counters as of now.
    pub fn stats(&self) -> Stats {
        *self.stats.borrow()
    }

    /// Tells the others that this node goes (they report [`Event::Left`]), and stops: after about 0.1 s, when the
    /// socket is closed. Other clones of this handle do nothing any more.
    pub async fn leave(self) {
        self.command(Command::Leave);
        self.commands.closed().await;
    }

    /// Stops without telling anybody: the others find out as of a crash. Done when the socket is closed.
    pub async fn stop(self) {
        self.command(Command::Stop);
        self.commands.closed().await;
    }

    fn command(&self, command: Command) {
        // After the end there is nobody to do it, and nothing that it could matter to.
        let _ = self.commands.send(command);
    }
}
