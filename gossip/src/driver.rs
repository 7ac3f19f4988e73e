//! The UDP loop: moves bytes between the socket, the sealer and the protocol, and decides nothing.
//!
//! One task owns all three. It handles commands first, then timers, then datagrams; it never waits for a reader of
//! events, nor for room in the socket's buffer (a datagram that does not fit is lost, as on any network).

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::event::{Event, Members, Stats};
use crate::keyring::Keyring;
use crate::seal::{MAX_DATAGRAM, OpenError, Sealer};
use crate::swim::{PacketError, Swim};

/// Datagrams that are read before timers get their turn.
const BATCH: usize = 32;
/// Events kept for a slow reader, beyond those in its channel.
const MAX_BACKLOG: usize = 4096;

/// What the owner's handle asks for.
#[derive(Debug)]
pub(crate) enum Command {
    Join(Vec<SocketAddr>),
    SetSeeds(Vec<SocketAddr>),
    SetKeys(Keyring),
    Forget(String),
    Silence(bool),
    Leave,
    Stop,
}

/// Why the loop woke up.
enum Wake {
    Command(Option<Command>),
    Timer,
    Reader,
    Socket(io::Result<()>),
}

/// What a batch of reads left behind.
#[derive(PartialEq, Eq)]
enum Socket {
    Empty,
    HasMore,
}

/// The state of the loop. The socket is first: it is closed before the command queue tells that the task ended.
pub(crate) struct Driver {
    socket: UdpSocket,
    sealer: Sealer,
    swim: Swim,
    events: mpsc::Sender<Event>,
    backlog: VecDeque<Event>,
    /// Says nothing and hears nothing.
    silent: bool,
    members: watch::Sender<Arc<Members>>,
    stats: Stats,
    stats_out: watch::Sender<Stats>,
    commands: mpsc::UnboundedReceiver<Command>,
}

/// The wall clock in microseconds, 0 if it is before 1970.
pub(crate) fn wall_clock_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX / 2)
}

impl Driver {
    pub(crate) fn new(
        socket: UdpSocket,
        sealer: Sealer,
        swim: Swim,
        commands: mpsc::UnboundedReceiver<Command>,
        events: mpsc::Sender<Event>,
        members: watch::Sender<Arc<Members>>,
        stats_out: watch::Sender<Stats>,
    ) -> Self {
        let (backlog, stats) = (VecDeque::new(), Stats::default());
        Self { socket, sealer, swim, events, backlog, silent: false, members, stats, stats_out, commands }
    }

    pub(crate) async fn run(mut self) {
        let node_id = self.swim.identity().node_id.clone();
        tracing::info!(node.id = node_id, addr = %self.swim.identity().addr, "gossip started");
        // One byte more than allowed, so that a cut datagram is seen as too large.
        let mut buffer = [0; MAX_DATAGRAM + 1];
        loop {
            self.flush();
            if self.swim.is_gone() {
                break;
            }
            // However much there is to do, others on this thread get their turn.
            tokio::task::coop::consume_budget().await;
            match self.wake().await {
                Wake::Command(None | Some(Command::Stop)) => break,
                Wake::Command(Some(command)) => self.obey(command),
                Wake::Timer => self.swim.handle_timer(now()),
                // There is room for events: the next flush uses it.
                Wake::Reader => {}
                Wake::Socket(Ok(())) => {
                    if self.read(&mut buffer) == Socket::HasMore {
                        tokio::task::yield_now().await;
                    }
                }
                Wake::Socket(Err(error)) => tracing::debug!(%error, "gossip socket not readable"),
            }
        }
        tracing::info!(node.id = node_id, "gossip stopped");
    }

    async fn wake(&mut self) -> Wake {
        // Asked of the clock, not of the timer below: tokio moves its timers only when a task waits, and while
        // datagrams come in this one never does.
        let deadline = self.swim.next_deadline().map(Instant::from_std);
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return self.commands.try_recv().map_or(Wake::Timer, |command| Wake::Command(Some(command)));
        }
        let has_backlog = !self.backlog.is_empty() && !self.events.is_closed();
        tokio::select! {
            biased;
            command = self.commands.recv() => Wake::Command(command),
            () = sleep_until(deadline) => Wake::Timer,
            _ = self.events.reserve(), if has_backlog => Wake::Reader,
            ready = self.socket.readable() => Wake::Socket(ready),
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Join(seeds) => self.swim.join(seeds, now()),
            Command::SetSeeds(seeds) => self.swim.set_seeds(seeds),
            Command::SetKeys(keys) => self.sealer.set_keys(keys),
            Command::Forget(node_id) => self.swim.forget(&node_id, now()),
            Command::Silence(silent) => self.silent = silent,
            Command::Leave => self.swim.leave(now()),
            Command::Stop => {}
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> Socket {
        for _ in 0..BATCH {
            if self.swim.next_deadline().is_some_and(|deadline| deadline <= now()) {
                return Socket::HasMore;
            }
            match self.socket.try_recv_from(buffer) {
                Ok((len, from)) => self.receive(&buffer[..len], from),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Socket::Empty,
                // An answer to something that was sent (port unreachable and the like): a matter of the probes.
                Err(error) => tracing::debug!(%error, "gossip socket reported"),
            }
            self.send();
        }
        Socket::HasMore
    }

    fn receive(&mut self, datagram: &[u8], from: SocketAddr) {
        self.stats.received += 1;
        self.stats.received_bytes += datagram.len() as u64;
        if self.silent {
            return;
        }
        let rejected = &mut self.stats.rejected;
        let packet = match self.sealer.open(datagram) {
            Ok(packet) => packet,
            Err(error) => {
                match error {
                    OpenError::TooLarge => rejected.too_large += 1,
                    OpenError::NotSealed => rejected.unsealed += 1,
                    OpenError::UnknownKey(_) => rejected.unknown_key += 1,
                    OpenError::Forged => rejected.forged += 1,
                    OpenError::Malformed => rejected.malformed += 1,
                    OpenError::Replayed => rejected.replayed += 1,
                }
                tracing::debug!(%from, %error, "datagram refused");
                return;
            }
        };
        match self.swim.handle_packet(&packet, now()) {
            // Our own announcement, sent to an address of ours among the seeds.
            Ok(()) | Err(PacketError::FromSelf) => {}
            Err(error) => {
                match error {
                    PacketError::TooLarge(_) => rejected.too_large += 1,
                    PacketError::Forgotten => rejected.forgotten += 1,
                    PacketError::TableFull => rejected.table_full += 1,
                    _ => rejected.malformed += 1,
                }
                tracing::debug!(%from, %error, "packet refused");
            }
        }
    }

    /// Everything that the protocol wants out: packets, events, the table, the counters.
    fn flush(&mut self) {
        self.send();
        while let Some(event) = self.swim.poll_event() {
            tracing::debug!(?event, "membership changed");
            self.backlog.push_back(event);
        }
        if !Arc::ptr_eq(self.swim.members(), &self.members.borrow()) {
            self.members.send_replace(Arc::clone(self.swim.members()));
        }
        let counters = self.swim.counters();
        self.stats.probes_failed = counters.probes_failed;
        self.stats.suspicions = counters.suspicions;
        self.stats.refutations = counters.refutations;
        self.stats.deaths = counters.deaths;
        self.stats.round_trips = counters.round_trips;
        self.stats.rejoins = counters.rejoins;
        self.stats.syncs = counters.syncs;
        self.stats.late = counters.late;
        self.stats.health = self.swim.health();
        self.stats_out.send_replace(self.stats);
        // The events last: who hears of one finds it in the table and counted.
        while let Some(event) = self.backlog.pop_front() {
            match self.events.try_send(event) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(event)) => {
                    self.backlog.push_front(event);
                    break;
                }
                Err(mpsc::error::TrySendError::Closed(_)) => self.backlog.clear(),
            }
        }
        while self.backlog.len() > MAX_BACKLOG {
            self.backlog.pop_front();
            self.stats.events_lost += 1;
        }
    }

    fn send(&mut self) {
        while let Some((to, packet)) = self.swim.poll_packet() {
            if self.silent {
                continue;
            }
            let datagram = match self.sealer.seal(&packet) {
                Ok(datagram) => datagram,
                Err(error) => {
                    tracing::error!(%to, %error, "packet not sealed");
                    self.stats.send_failed += 1;
                    continue;
                }
            };
            match self.socket.try_send_to(&datagram, to) {
                Ok(_) => {
                    self.stats.sent += 1;
                    self.stats.sent_bytes += datagram.len() as u64;
                }
                Err(error) => {
                    tracing::debug!(%to, %error, "datagram not sent");
                    self.stats.send_failed += 1;
                }
            }
        }
    }
}

/// Tokio's clock, so that tests can stop it.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
