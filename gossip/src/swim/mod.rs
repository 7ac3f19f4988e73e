//! The protocol without sockets or clocks: SWIM (foca), with what it leaves to its user.
//!
//! [`Swim`] takes packets, instants and wishes, and yields packets, events and the next deadline. It never looks at
//! a clock, a socket or a random number of its own, so that a thousand of them run in one simulation, the same each
//! time. The driver owns one and seals what it sends; simulations may leave the sealing out.
//!
//! Around foca, this adds: announcements that are repeated until they are heard, and now and then afterwards (they
//! heal splits), as seldom as the cluster is large; comparisons of the table with others', so that what gossip lost
//! is found within seconds (`sync`); pings that are repeated before others are asked to help; a direct word to
//! whoever this node suspects, so that a living one refutes within a round trip at any cluster size; local health
//! (`health`); the way back for a living node that was declared dead, at a bounded rate; goodbyes that can be told from
//! deaths; and bounds on what a packet can do, and on what is passed on (`exchange`).

mod exchange;
mod health;
mod sync;
mod timers;
mod view;

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroUsize};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use foca::{Config as FocaConfig, Foca, Header, Message, NoCustomBroadcast, OwnedNotification, PeriodicParams, State};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use crate::event::{Event, Members, RoundTrips};
use crate::identity::{Identity, IdentityError, PeerId};
use crate::seal::MAX_PACKET;
use crate::timing::{Timing, TimingError};
use crate::wire::{self, Packet, WireCodec, WireError};

use self::exchange::{Exchanges, Sifted};
use self::health::Health;
use self::timers::{Task, Timers};
use self::view::View;

/// Nodes, dead ones included, that one table holds. Packets from or about more are refused.
const MAX_MEMBERS: usize = 16 * 1024;
/// How long foca remembers a dead identity. Living ones come back by a new one, so this only bounds memory.
const REMEMBER_DOWN: Duration = Duration::from_secs(3600);
/// Seeds that are kept.
const MAX_SEEDS: usize = 64;
/// While nobody answers: the first wait after an announcement, doubled up to the last one.
const ANNOUNCE_FIRST: Duration = Duration::from_millis(200);
const ANNOUNCE_LAST: Duration = Duration::from_secs(5);
/// With members: how often seeds are announced to, in case that there are two clusters where there should be one.
/// This is for up to ten members; in larger clusters each does so less often, so that the seeds hear the same number
/// of announcements altogether: one that gets across is enough, gossip does the rest.
const ANNOUNCE_AGAIN: Duration = Duration::from_secs(30);
const ANNOUNCE_TOGETHER: usize = 10;
/// Between two returns to life that others asked for by a packet of their own. Without it, two nodes that disagree
/// on an identity for good would do nothing else.
const REJOIN_EVERY: Duration = Duration::from_millis(500);
const CONFLICT_EVERY: Duration = Duration::from_secs(60);
/// Goodbyes: how often, how far apart, and to how many members.
const LEAVE_ROUNDS: u8 = 3;
const LEAVE_EVERY: Duration = Duration::from_millis(40);
const LEAVE_FANOUT: usize = 32;
/// Words to a suspect within the time that it has.
const WARNINGS: u8 = 4;
/// Pings of a probe that are sent again within the time of a round trip. On a network that loses 5 % of all packets,
/// one ping fails every tenth time, three together once in a thousand: nearly all of the suspicions, and of the
/// packets of indirect probes, come from such a network and not from the dead.
const PINGS_AGAIN: u8 = 2;

/// What a [`Swim`] is made from.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node.
    pub identity: Identity,
    /// The clockwork.
    pub timing: Timing,
    /// Where the choice of whom to probe and to tell starts. Nothing secret depends on it.
    pub seed: u64,
}

/// Settings that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// See [`Identity::validate`].
    #[error("invalid identity")]
    Identity(#[source] IdentityError),
    /// See [`Timing::validate`].
    #[error("invalid timing")]
    Timing(#[source] TimingError),
}

/// A packet that was not taken. The member table has not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// Not a packet of this format, or one that makes no sense.
    #[error("malformed packet")]
    Malformed(#[source] WireError),
    /// Well formed, but the protocol has no use for it in this state.
    #[error("unexpected packet")]
    Unexpected,
    /// Larger than [`MAX_PACKET`].
    #[error("a packet of {0} bytes is too large")]
    TooLarge(usize),
    /// From this node itself, or from somebody who uses its id.
    #[error("the packet has this node's own id as its sender")]
    FromSelf,
    /// From a node that was forgotten.
    #[error("the sender was removed from the cluster")]
    Forgotten,
    /// From or about somebody unknown, with the table full.
    #[error("the member table is full")]
    TableFull,
}

/// What the protocol itself counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Own probes that nobody answered.
    pub probes_failed: u64,
    /// Times that a member became suspect in this node's eyes.
    pub suspicions: u64,
    /// Suspects that said that they live.
    pub refutations: u64,
    /// Members declared dead.
    pub deaths: u64,
    /// Round trips of own probes that were answered directly.
    pub round_trips: RoundTrips,
    /// Returns after this node was declared dead.
    pub rejoins: u64,
    /// Comparisons with another's table that brought something new.
    pub syncs: u64,
    /// Pauses of this process.
    pub late: u64,
}

/// One node's side of the protocol.
pub struct Swim {
    foca: Foca<PeerId, WireCodec, StdRng, NoCustomBroadcast>,
    foca_config: FocaConfig,
    timing: Timing,
    rng: StdRng,
    io: Io,
    view: View,
    health: Health,
    counters: Counters,
    origin: Instant,
    /// How long this process did not run, altogether; see [`health`].
    paused: Duration,
    seeds: Vec<SocketAddr>,
    /// Somebody alive is known and the protocol runs.
    connected: bool,
    attempt: u32,
    announce_epoch: u64,
    /// How long the next announcement was put off when it was planned.
    announce_wait: Duration,
    exchanges: Exchanges,
    last_rejoin: Option<Duration>,
    last_conflict: Option<Duration>,
    leave: Leave,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    No,
    Going,
    Gone,
}

/// What foca wants done.
#[derive(Debug, Default)]
struct Io {
    now: Duration,
    timers: Timers,
    packets: VecDeque<(SocketAddr, Bytes)>,
    notes: Vec<OwnedNotification<PeerId>>,
    /// Members whom this node has begun to suspect, with the incarnation that it knows.
    suspected: Vec<(PeerId, u16)>,
    /// This node's own incarnation, as of the last packet: foca does not tell otherwise.
    incarnation: u16,
    refuted: bool,
    /// The direct probe whose answer is awaited.
    probe: Option<Awaited>,
    /// Until a ping is repeated.
    ping_again: Duration,
    /// Lives whose end is not told until then; see `Swim::mute_deaths`.
    muted: BTreeSet<u64>,
    muted_until: Duration,
}

#[derive(Debug)]
struct Awaited {
    peer: PeerId,
    number: u8,
    sent: Duration,
    /// Sent more than once: nobody knows which one is answered.
    repeated: bool,
}

impl foca::Runtime<PeerId> for Io {
    fn notify(&mut self, notification: foca::Notification<'_, PeerId>) {
        self.notes.push(notification.to_owned());
    }

    fn send_to(&mut self, to: PeerId, data: &[u8]) {
        let incarnation = wire::sender_incarnation(data);
        self.refuted |= incarnation > self.incarnation;
        self.incarnation = incarnation;
        if let Some(number) = wire::ping_number(data) {
            self.probe = Some(Awaited { peer: to.clone(), number, sent: self.now, repeated: false });
            self.timers.push(self.now + self.ping_again, Task::Ping { number, again: PINGS_AGAIN - 1 });
        }
        if self.now >= self.muted_until {
            self.muted.clear();
        }
        let muted = wire::without_deaths(data, &self.muted);
        self.packets.push_back((to.identity.addr, muted.map_or_else(|| Bytes::copy_from_slice(data), Bytes::from)));
    }

    fn submit_after(&mut self, event: foca::Timer<PeerId>, after: Duration) {
        if let foca::Timer::ChangeSuspectToDown { member_id, incarnation, .. } = &event {
            self.suspected.push((member_id.clone(), *incarnation));
        }
        self.timers.push(self.now + after, Task::Foca(event));
    }
}

impl Swim {
    /// A node that knows nobody yet. `now` is the first instant; later ones never go back before earlier ones.
    pub fn new(settings: Settings, now: Instant) -> Result<Self, SettingsError> {
        let Settings { identity, timing, seed } = settings;
        identity.validate().map_err(SettingsError::Identity)?;
        timing.validate().map_err(SettingsError::Timing)?;
        let mut rng = StdRng::seed_from_u64(seed);
        let foca_rng = StdRng::from_rng(&mut rng);
        let foca_config = foca_config(&timing);
        Ok(Self {
            foca: Foca::new(PeerId::new(identity), foca_config.clone(), foca_rng, WireCodec),
            foca_config,
            health: Health::new(timing.probe_period, timing.probe_rtt),
            timing,
            rng,
            io: Io { ping_again: timing.probe_rtt / u32::from(PINGS_AGAIN + 1), ..Io::default() },
            view: View::default(),
            counters: Counters::default(),
            origin: now,
            paused: Duration::ZERO,
            seeds: Vec::new(),
            connected: false,
            attempt: 0,
            announce_epoch: 0,
            announce_wait: Duration::ZERO,
            exchanges: Exchanges::default(),
            last_rejoin: None,
            last_conflict: None,
            leave: Leave::No,
        })
    }

    /// This node.
    pub fn identity(&self) -> &Identity {
        &self.foca.identity().identity
    }

    /// The other nodes. Cheap; a change makes a new map.
    pub fn members(&self) -> &Arc<Members> {
        self.view.members()
    }

    /// What was counted so far.
    pub fn counters(&self) -> Counters {
        let told = self.view.told;
        Counters { suspicions: told.suspicions, refutations: told.refutations, deaths: told.deaths, ..self.counters }
    }

    /// Nodes that the protocol remembers: the members, and the dead and the left for an hour. At most 16 384.
    pub fn remembered(&self) -> usize {
        self.foca.iter_membership_state().len()
    }

    /// Pieces of news that this node still passes on.
    pub fn backlog(&self) -> usize {
        self.foca.updates_backlog()
    }

    /// How much this node distrusts itself, 0 to 4.
    pub fn health(&self) -> u8 {
        self.health.score()
    }

    /// Announces this node to `seeds` until somebody answers, and now and then afterwards. At most 64 are kept.
    pub fn join(&mut self, seeds: Vec<SocketAddr>, now: Instant) {
        self.set_seeds(seeds);
        self.tick(now);
        self.attempt = 0;
        self.announce();
        self.settle(now);
    }

    /// Replaces the seeds without announcing at once.
    pub fn set_seeds(&mut self, mut seeds: Vec<SocketAddr>) {
        let own = self.identity().addr;
        seeds.retain(|seed| *seed != own && seed.port() != 0 && !seed.ip().is_unspecified());
        seeds.sort_unstable();
        seeds.dedup();
        // A random choice of them, should they be too many: the first ones would be the same on all hosts.
        while seeds.len() > MAX_SEEDS {
            let at = self.rng.random_range(0..seeds.len());
            seeds.swap_remove(at);
        }
        let had_none = self.seeds.is_empty();
        self.seeds = seeds;
        if had_none && !self.seeds.is_empty() {
            self.schedule_announce(ANNOUNCE_FIRST);
        }
    }

    /// Takes a packet. The caller has authenticated it and seen to it that it is new.
    pub fn handle_packet(&mut self, packet: &[u8], now: Instant) -> Result<(), PacketError> {
        self.tick(now);
        if packet.len() > MAX_PACKET {
            return Err(PacketError::TooLarge(packet.len()));
        }
        let mut read = Packet::read(packet).map_err(PacketError::Malformed)?;
        self.admit(&read)?;
        if let Some(exchange) = read.exchange.take() {
            return self.handle_exchange(read, exchange, now);
        }
        if read.header.message == Message::TurnUndead && read.header.dst == *self.foca.identity() {
            let again = self.last_rejoin.is_some_and(|last| self.io.now.saturating_sub(last) < REJOIN_EVERY);
            if again {
                return Ok(());
            }
        }
        if let Message::Ack(number) = read.header.message
            && let Some(awaited) = self.io.probe.take_if(|it| it.number == number && it.peer == read.header.src)
            && !awaited.repeated
        {
            self.counters.round_trips.add(self.io.now.saturating_sub(awaited.sent));
        }
        let Sifted { packet: sifted, quiet } = self.sift(&read)?;
        let result = self.foca.handle_data(sifted.as_deref().unwrap_or(packet), &mut self.io);
        // As foca does: what is said to another life of this node, or by somebody dead, is not heard.
        if !quiet.is_empty() && read.header.dst == *self.foca.identity() && self.is_member(&read.header.src) {
            self.apply(quiet, false);
        }
        self.settle(now);
        let suspects = read.members.iter().any(|member| member.state() == State::Suspect);
        if suspects || self.view.has_suspects() {
            self.refresh_suspects();
        }
        result.map_err(|error| {
            tracing::debug!(%error, sender = read.header.src.node_id(), "packet not taken");
            PacketError::Unexpected
        })
    }

    /// Does what is due. Late calls are noticed: the time that this process did not run is taken out of all timers.
    pub fn handle_timer(&mut self, now: Instant) {
        self.tick(now);
        let Some(due) = self.io.timers.next() else { return };
        if due > self.io.now {
            return;
        }
        if let Some(pause) = self.health.pause(self.io.now - due, self.io.now) {
            tracing::warn!(late_ms = (self.io.now - due).as_millis() as u64, "this process was late");
            self.counters.late += 1;
            self.paused += pause;
            self.tick(now);
            self.tune();
            return;
        }
        while let Some(task) = self.io.timers.pop_due(self.io.now) {
            self.run(task);
            self.settle(now);
        }
        self.health.recover(self.io.now);
        self.tune();
    }

    /// When [`Swim::handle_timer`] has to be called at the latest. May change with every other call.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.io.timers.next().map(|at| self.origin + self.paused + at)
    }

    /// The next packet to send, and where to.
    pub fn poll_packet(&mut self) -> Option<(SocketAddr, Bytes)> {
        self.io.packets.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.view.events.pop_front()
    }

    /// Drops a node that was removed from the cluster, without an event. Its packets are refused from now on, and
    /// what others still say of it does not bring it back.
    pub fn forget(&mut self, node_id: &str, now: Instant) {
        self.tick(now);
        self.view.forget(node_id);
        let known = self.foca.iter_membership_state().find(|member| member.id().node_id() == node_id);
        // Not passed on: a removed node that still lives would only answer with a new identity, and everybody else
        // hears of the removal by the same way as this node.
        if let Some(known) = known.map(|member| member.id().clone()) {
            self.apply(vec![foca::Member::down(known)], false);
        }
        self.exchanges.table_changed();
        self.settle(now);
    }

    /// Tells the others that this node goes. [`Swim::is_gone`] says when that was said often enough.
    pub fn leave(&mut self, now: Instant) {
        self.tick(now);
        if self.leave != Leave::No {
            return;
        }
        self.leave = Leave::Going;
        let Some(leaving) = self.foca.identity().leaving().filter(|_| self.foca.num_members() > 0) else {
            self.leave = Leave::Gone;
            return;
        };
        // The goodbye goes to many at once: nobody carries it on for a node that is away.
        self.foca_config.num_indirect_probes = NonZeroUsize::MIN.saturating_add(LEAVE_FANOUT - 1);
        let config = self.foca.set_config(self.foca_config.clone());
        self.note_failure(config);
        let changed = self.foca.change_identity(leaving, &mut self.io);
        self.note_failure(changed);
        let left = self.foca.leave_cluster(&mut self.io);
        self.note_failure(left);
        self.io.timers.push(self.io.now + LEAVE_EVERY, Task::Leave { again: LEAVE_ROUNDS - 1 });
        self.settle(now);
    }

    /// Whether a [`Swim::leave`] is finished.
    pub fn is_gone(&self) -> bool {
        self.leave == Leave::Gone
    }

    fn tick(&mut self, now: Instant) {
        self.io.now = now.saturating_duration_since(self.origin).saturating_sub(self.paused);
    }

    /// Refuses what foca would take, but should not.
    fn admit(&mut self, packet: &Packet) -> Result<(), PacketError> {
        let src = &packet.header.src;
        if src.node_id() == self.identity().node_id {
            let src = Arc::clone(&src.identity);
            self.note_conflict(&src);
            return Err(PacketError::FromSelf);
        }
        if self.view.is_forgotten(src.node_id()) {
            return Err(PacketError::Forgotten);
        }
        let claims = packet.members.iter().filter(|member| member.state() == State::Alive);
        let claim = claims.map(|member| &member.id().identity).find(|id| id.node_id == self.identity().node_id);
        if let Some(claim) = claim.cloned() {
            self.note_conflict(&claim);
        }
        if self.foca.iter_membership_state().len() >= MAX_MEMBERS {
            // Entries of others' tables are sifted one by one.
            let told = if packet.exchange.is_some() { &[][..] } else { &packet.members };
            let known: BTreeSet<&str> = self.foca.iter_membership_state().map(|m| m.id().node_id()).collect();
            let own = self.identity().node_id.as_str();
            let mut others = told.iter().map(|member| member.id().node_id());
            if !known.contains(src.node_id()) || others.any(|id| id != own && !known.contains(id)) {
                return Err(PacketError::TableFull);
            }
        }
        Ok(())
    }

    fn note_conflict(&mut self, other: &Identity) {
        let own = self.identity();
        let later = (other.generation, other.addr) != (own.generation, own.addr) && other.generation >= own.generation;
        let recent = self.last_conflict.is_some_and(|last| self.io.now.saturating_sub(last) < CONFLICT_EVERY);
        if later && !recent {
            self.last_conflict = Some(self.io.now);
            self.view.events.push_back(Event::Conflict(other.clone()));
        }
    }

    fn run(&mut self, task: Task) {
        match task {
            // foca would tell a suspect that it is dead even if it has refuted that, and so make it take a new life.
            Task::Foca(foca::Timer::ChangeSuspectToDown { member_id, incarnation, .. })
                if !self.is_suspect(&member_id, incarnation) => {}
            Task::Foca(timer) => {
                let result = self.foca.handle_timer(timer, &mut self.io);
                if matches!(result, Err(foca::Error::IncompleteProbeCycle)) {
                    self.health.trouble(self.io.now);
                }
                self.note_failure(result);
            }
            Task::Announce { epoch } if epoch == self.announce_epoch => self.announce_due(),
            Task::Announce { .. } => {}
            Task::Ask { epoch } if self.exchanges.is_current(epoch) => self.ask(),
            Task::Ask { .. } => {}
            Task::Doubt { suspect, incarnation, again } => self.go_on_doubting(suspect, incarnation, again),
            Task::Ping { number, again } => self.ping_again(number, again),
            Task::Warn { suspect, incarnation, again } => self.warn(suspect, incarnation, again),
            Task::Leave { again: 0 } => self.leave = Leave::Gone,
            Task::Leave { again } => {
                let result = self.foca.gossip(&mut self.io);
                self.note_failure(result);
                self.io.timers.push(self.io.now + LEAVE_EVERY, Task::Leave { again: again - 1 });
            }
        }
    }

    /// The cluster may have grown since this was planned: a thousand hosts that joined together would come back to
    /// their seeds together.
    fn announce_due(&mut self) {
        let missing = self.announce_again().saturating_sub(self.announce_wait);
        if self.connected && missing > self.announce_wait / 2 {
            let waited = self.announce_wait;
            self.schedule_announce(missing);
            self.announce_wait += waited;
        } else {
            self.announce();
        }
    }

    fn announce(&mut self) {
        if self.leave != Leave::No {
            return;
        }
        // Alone, everybody who may answer is asked; in company, a few seeds are enough to find a split.
        let (seeds, known) = if self.connected { (3, 0) } else { (8, 4) };
        let mut targets: BTreeSet<SocketAddr> = self.seeds.sample(&mut self.rng, seeds).copied().collect();
        let members: Vec<SocketAddr> = self.view.members().values().map(|member| member.identity.addr).collect();
        targets.extend(members.sample(&mut self.rng, known).copied());
        for target in targets {
            let result = self.foca.announce(PeerId::anyone_at(target), &mut self.io);
            self.note_failure(result);
        }
        let wait = if self.connected {
            self.announce_again()
        } else {
            let wait = ANNOUNCE_FIRST * 2_u32.saturating_pow(self.attempt.min(10));
            self.attempt = self.attempt.saturating_add(1);
            wait.min(ANNOUNCE_LAST)
        };
        self.schedule_announce(wait);
    }

    /// `wait`, give or take a quarter, so that hosts which start together do not speak together for ever.
    fn schedule_announce(&mut self, wait: Duration) {
        self.announce_epoch += 1;
        self.announce_wait = wait;
        let wait = wait.mul_f64(self.rng.random_range(0.75..1.25));
        self.io.timers.push(self.io.now + wait, Task::Announce { epoch: self.announce_epoch });
    }

    fn announce_again(&self) -> Duration {
        let members = u32::try_from(self.foca.num_members().max(ANNOUNCE_TOGETHER)).unwrap_or(u32::MAX);
        ANNOUNCE_AGAIN.saturating_mul(members) / ANNOUNCE_TOGETHER as u32
    }

    /// Repeats the ping of a probe that goes on and was not answered.
    fn ping_again(&mut self, number: u8, again: u8) {
        let Some(awaited) = self.io.probe.as_mut().filter(|awaited| awaited.number == number) else { return };
        awaited.repeated = true;
        let peer = awaited.peer.clone();
        self.ping(peer, number, Vec::new());
        if again > 0 {
            self.io.timers.push(self.io.now + self.io.ping_again, Task::Ping { number, again: again - 1 });
        }
    }

    /// A ping that foca knows nothing of.
    fn ping(&mut self, to: PeerId, number: u8, members: Vec<foca::Member<PeerId>>) {
        let header = self.header(&to, Message::Ping(number));
        self.push(&to, Packet { header, members, exchange: None });
    }

    fn header(&self, to: &PeerId, message: Message<PeerId>) -> Header<PeerId> {
        let src_incarnation = self.io.incarnation;
        Header { src: self.foca.identity().clone(), src_incarnation, dst: to.clone(), message }
    }

    /// Sends a packet that foca knows nothing of.
    fn push(&mut self, to: &PeerId, packet: Packet) {
        if let Ok(packet) = packet.write() {
            self.io.packets.push_back((to.identity.addr, Bytes::from(packet)));
        }
    }

    /// Pings a suspect with the suspicion itself in the packet: if it lives, its answer refutes it.
    fn warn(&mut self, suspect: PeerId, incarnation: u16, again: u8) {
        if !self.is_suspect(&suspect, incarnation) {
            return;
        }
        let members = vec![foca::Member::new(suspect.clone(), incarnation, State::Suspect)];
        // The number belongs to no probe: the answer counts by what it says of its sender's incarnation.
        self.ping(suspect.clone(), u8::MAX, members);
        if again > 0 {
            let wait = self.timing.suspect / u32::from(WARNINGS);
            self.io.timers.push(self.io.now + wait, Task::Warn { suspect, incarnation, again: again - 1 });
        }
    }

    fn is_suspect(&self, peer: &PeerId, incarnation: u16) -> bool {
        let member = self.foca.iter_members().find(|member| member.id() == peer);
        member.is_some_and(|member| member.state() == State::Suspect && member.incarnation() == incarnation)
    }

    /// Turns what foca reported into the view, events and follow-up work.
    fn settle(&mut self, now: Instant) {
        let mut membership_changed = false;
        if !self.io.notes.is_empty() {
            self.exchanges.table_changed();
        }
        for note in std::mem::take(&mut self.io.notes) {
            match note {
                OwnedNotification::MemberUp(peer) => {
                    membership_changed = true;
                    self.view.up(&peer, now);
                }
                OwnedNotification::MemberDown(peer) => {
                    membership_changed = true;
                    self.view.down(&peer, now);
                }
                OwnedNotification::Rename(_, peer) => self.view.renamed(&peer),
                OwnedNotification::Active => {
                    self.connected = true;
                    self.attempt = 0;
                    self.schedule_announce(self.announce_again());
                    self.begin_exchanges();
                }
                OwnedNotification::Idle => self.seek_company(),
                OwnedNotification::Rejoin(_) => {
                    self.counters.rejoins += 1;
                    self.last_rejoin = Some(self.io.now);
                    self.mute_deaths();
                    // A new identity starts at incarnation 0, which is no refutation.
                    self.io.incarnation = 0;
                    self.io.refuted = false;
                    self.health.trouble(self.io.now);
                    let identity = self.identity().clone();
                    self.view.events.push_back(Event::Rejoined(identity));
                    self.seek_company();
                }
                OwnedNotification::Defunct => {
                    self.connected = false;
                    if self.leave == Leave::No {
                        tracing::error!("this node was declared dead and has no identity left to return with");
                    }
                }
            }
        }
        if std::mem::take(&mut self.io.refuted) {
            self.health.trouble(self.io.now);
        }
        let suspected = std::mem::take(&mut self.io.suspected);
        if !suspected.is_empty() {
            for (peer, incarnation) in suspected {
                self.counters.probes_failed += 1;
                self.view.events.push_back(Event::ProbeFailed(Identity::clone(&peer.identity)));
                self.warn(peer, incarnation, WARNINGS - 1);
            }
            self.refresh_suspects();
        }
        if membership_changed {
            self.tune();
        }
    }

    fn seek_company(&mut self) {
        self.connected = false;
        self.attempt = 0;
        self.schedule_announce(ANNOUNCE_FIRST / 10);
    }

    fn refresh_suspects(&mut self) {
        let suspects = self.foca.iter_membership_state().filter(|member| member.state() == State::Suspect);
        self.view.set_suspects(suspects.map(|member| member.id().node_id().to_owned()).collect());
    }

    /// Fits what depends on the cluster's size and on this node's health.
    fn tune(&mut self) {
        if self.leave != Leave::No {
            return;
        }
        let transmissions = transmissions(self.foca.num_members());
        let suspicion = self.health.suspicion(self.timing.suspect);
        let config = &mut self.foca_config;
        if (config.max_transmissions, config.suspect_to_down_after) == (transmissions, suspicion) {
            return;
        }
        config.max_transmissions = transmissions;
        config.suspect_to_down_after = suspicion;
        let result = self.foca.set_config(config.clone());
        self.note_failure(result);
    }

    /// foca's failures outside of a packet leave it working; they are ours to explain.
    fn note_failure(&self, result: Result<(), foca::Error>) {
        if let Err(error) = result {
            tracing::warn!(%error, "membership step failed");
        }
    }
}

impl std::fmt::Debug for Swim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Swim")
            .field("identity", self.identity())
            .field("members", &self.members().len())
            .finish_non_exhaustive()
    }
}

/// How often each update is sent on: enough that a lossy network loses none, growing with the logarithm of the size.
fn transmissions(members: usize) -> NonZeroU8 {
    let doublings = (usize::BITS - members.leading_zeros()) as u8;
    NonZeroU8::MIN.saturating_add(4 + doublings * 3 / 2)
}

fn foca_config(timing: &Timing) -> FocaConfig {
    let every = |frequency, members: usize| {
        Some(PeriodicParams { frequency, num_members: NonZeroUsize::MIN.saturating_add(members - 1) })
    };
    FocaConfig {
        probe_period: timing.probe_period,
        probe_rtt: timing.probe_rtt,
        num_indirect_probes: NonZeroUsize::MIN.saturating_add(timing.indirect_probes.saturating_sub(1)),
        max_transmissions: transmissions(0),
        suspect_to_down_after: timing.suspect,
        remove_down_after: Some(REMEMBER_DOWN),
        max_packet_size: NonZeroUsize::MIN.saturating_add(MAX_PACKET - 1),
        notify_down_members: true,
        // Exchanges do this.
        periodic_announce: None,
        // What brings the two sides of a healed split together: 2 s on a LAN.
        periodic_announce_to_down_members: every(timing.probe_period * 7, 2),
        periodic_gossip: every(timing.probe_period / 3, 3),
    }
}
