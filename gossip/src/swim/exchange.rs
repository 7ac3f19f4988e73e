//! This node's part in exchanges (see `sync`), and what it takes out of packets before foca sees them.

use std::time::{Duration, Instant};

use bytes::Bytes;
use foca::{Header, Identity as _, Member, Message, State};
use rand::RngExt;

use super::sync::{self, Budget, Digest, Verdict};
use super::timers::Task;
use super::{Leave, MAX_MEMBERS, PacketError, Swim, WARNINGS};
use crate::identity::PeerId;
use crate::wire::{self, Exchange, Packet};

/// Between two questions, if the last one brought nothing new. One that did is followed by the next one after the time
/// that a round trip may take (`Timing::probe_rtt`), doubled each time up to this.
const ASK_LAST: Duration = Duration::from_secs(1);
/// Packets of entries that answer one question: some 200 members.
const ENTRIES: u32 = 8;
/// Members that one packet of entries makes this node suspect, and members that it makes it call: more are those of
/// a split that has just healed, and most of them will have spoken for themselves until the next exchange.
const DOUBTS: usize = 4;
/// Pieces of news that foca still passes on, beyond which those about unknown nodes are not added. foca sorts all of
/// them for each packet that it sends, and some 25 fit into one, so that these take five packets and newer ones go
/// first: what is behind them would be told too late to be news. Exchanges spread it anyhow.
const CROWDED: usize = 128;

/// How long a node that was away keeps the deaths to itself that it saw then: until foca has forgotten to tell of them,
/// which takes this long for a thousand.
const MUTED: Duration = Duration::from_secs(30);

/// What is kept from one packet to the next.
#[derive(Debug, Default)]
pub(super) struct Exchanges {
    epoch: u64,
    wait: Duration,
    /// Who was asked and has not answered.
    asked: Option<PeerId>,
    /// Something new came since the last question.
    is_fruitful: bool,
    budget: Budget,
    /// Of the table as it is; made anew after changes, when it is needed.
    digest: Option<Digest>,
}

/// A packet for foca, without some of its news.
pub(super) struct Sifted {
    /// `None` if it is as it was.
    pub(super) packet: Option<Vec<u8>>,
    /// What is to be applied without being passed on, once foca has taken the packet.
    pub(super) quiet: Vec<Member<PeerId>>,
}

impl Exchanges {
    pub(super) fn table_changed(&mut self) {
        self.digest = None;
    }

    pub(super) fn is_current(&self, epoch: u64) -> bool {
        self.epoch == epoch
    }
}

impl Swim {
    /// Begins to ask soon: this node has found company.
    pub(super) fn begin_exchanges(&mut self) {
        self.exchanges.wait = self.timing.probe_rtt;
        self.plan_exchange();
    }

    fn plan_exchange(&mut self) {
        self.exchanges.epoch += 1;
        let wait = self.exchanges.wait.mul_f64(self.rng.random_range(0.75..1.25));
        self.io.timers.push(self.io.now + wait, Task::Ask { epoch: self.exchanges.epoch });
    }

    /// Asks one member, at random, whether it knows the same ones.
    pub(super) fn ask(&mut self) {
        let count = self.foca.num_members();
        if self.leave != Leave::No || !self.connected || count == 0 {
            return;
        }
        let at = self.rng.random_range(0..count);
        let chosen = self.foca.iter_members().nth(at).filter(|member| sync::is_active(member));
        if let Some(peer) = chosen.map(|member| member.id().clone()) {
            let (sum, count) = self.digest().root();
            self.say(&peer, Exchange::Root { sum, count });
            self.exchanges.asked = Some(peer);
        }
        self.exchanges.wait = (self.exchanges.wait * 2).min(ASK_LAST);
        self.exchanges.is_fruitful = false;
        self.plan_exchange();
    }

    /// Who is in the table as far as tables are compared: this node as well, whom the others have in theirs.
    fn digest(&mut self) -> &Digest {
        let (foca, view) = (&self.foca, &self.view);
        self.exchanges.digest.get_or_insert_with(|| {
            let others = foca.iter_members().filter(|member| sync::is_active(member)).map(Member::id);
            let others = others.filter(|peer| !view.is_forgotten(peer.node_id()));
            Digest::of(others.chain(std::iter::once(foca.identity())))
        })
    }

    /// Takes a packet of an exchange. foca hears only that its sender lives, and answers those that it thinks dead.
    pub(super) fn handle_exchange(
        &mut self,
        read: Packet,
        exchange: Exchange,
        now: Instant,
    ) -> Result<(), PacketError> {
        let Packet { header, members, .. } = read;
        if header.dst != *self.foca.identity() {
            return Ok(());
        }
        self.hush(&header);
        let sender = header.src.clone();
        let greeting = Packet { header, members: Vec::new(), exchange: None }.write();
        let result = self.foca.handle_data(&greeting.map_err(PacketError::Malformed)?, &mut self.io);
        self.settle(now);
        result.map_err(|_| PacketError::Unexpected)?;
        if self.leave != Leave::No || !self.connected || !self.is_member(&sender) {
            return Ok(());
        }
        match exchange {
            Exchange::Root { sum, count } => {
                if self.digest().root() != (sum, count) && self.exchanges.budget.take(1, self.io.now) == 1 {
                    let buckets = self.digest().buckets();
                    self.say(&sender, Exchange::Buckets(buckets));
                }
            }
            Exchange::Buckets(theirs) => {
                if self.exchanges.asked.take_if(|asked| *asked == sender).is_some() {
                    let wanted = self.digest().differing(&theirs);
                    if !wanted.is_empty() {
                        self.say(&sender, Exchange::Want(wanted));
                    }
                }
            }
            Exchange::Want(wanted) => {
                let most = self.exchanges.budget.take(ENTRIES, self.io.now);
                if most == 0 {
                    return Ok(());
                }
                let table = self.foca.iter_membership_state();
                let view = &self.view;
                let table = table.filter(|member| !view.is_forgotten(member.id().node_id()));
                let picked = sync::pick(table, &wanted, &mut self.rng);
                let header = self.header(&sender, Message::Gossip);
                let packets = wire::write_entries(&header, picked.into_iter(), most as usize).unwrap_or_default();
                self.exchanges.budget.give_back(most - packets.len() as u32);
                for packet in packets {
                    self.io.packets.push_back((sender.identity.addr, Bytes::from(packet)));
                }
            }
            Exchange::Entries => self.learn(members, now),
        }
        Ok(())
    }

    /// Applies what another's table has.
    fn learn(&mut self, mut told: Vec<Member<PeerId>>, now: Instant) {
        let own = self.foca.identity().clone();
        // Of this node, only a suspicion is of interest, to be refuted.
        told.retain(|member| match member.id().addr() == own.addr() {
            true => *member.id() == own && member.state() == State::Suspect,
            false => !self.view.is_forgotten(member.id().node_id()),
        });
        let room = MAX_MEMBERS.saturating_sub(self.foca.iter_membership_state().len());
        let (mut new, mut news, mut doubted, mut unheard) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let known = sync::known(self.foca.iter_membership_state(), &told);
        for (told, known) in told.iter().zip(known) {
            if *told.id() == own {
                news.push(told.clone());
                continue;
            }
            match sync::judge(known, told) {
                Verdict::Ignore => {}
                Verdict::Join if new.len() < room => new.push(told.clone()),
                Verdict::Join => {}
                Verdict::Apply(member) => news.push(member),
                Verdict::Doubt(member) => doubted.push(member),
                Verdict::Tell(peer) => unheard.push(peer),
            }
        }
        let is_fruitful = !new.is_empty() || !news.is_empty();
        self.apply(new, false);
        self.apply(news, true);
        unheard.truncate(self.exchanges.budget.take(unheard.len().min(DOUBTS) as u32, self.io.now) as usize);
        for peer in unheard {
            let header = self.header(&peer, Message::TurnUndead);
            self.push(&peer, Packet { header, members: Vec::new(), exchange: None });
        }
        doubted.truncate(self.exchanges.budget.take(doubted.len().min(DOUBTS) as u32, self.io.now) as usize);
        self.settle(now);
        self.doubt(doubted);
        self.settle(now);
        self.refresh_suspects();
        if is_fruitful && !self.exchanges.is_fruitful {
            self.exchanges.is_fruitful = true;
            self.counters.syncs += 1;
            self.begin_exchanges();
        }
    }

    /// Suspects members that another host holds dead, and tells them. Who does not refute it in the usual time is dead.
    fn doubt(&mut self, suspects: Vec<Member<PeerId>>) {
        for suspect in suspects {
            let (peer, incarnation) = (suspect.id().clone(), suspect.incarnation());
            self.apply(vec![suspect], true);
            self.warn(peer.clone(), incarnation, WARNINGS - 1);
            self.plan_doubt(peer, incarnation, WARNINGS - 1);
        }
    }

    fn plan_doubt(&mut self, suspect: PeerId, incarnation: u16, again: u8) {
        let wait = self.health.suspicion(self.timing.suspect) / u32::from(WARNINGS);
        self.io.timers.push(self.io.now + wait, Task::Doubt { suspect, incarnation, again });
    }

    /// A quarter of the time that a suspect has is over. What was said to him by his name may have been said to a life
    /// that he has left behind, so he is asked who he is now.
    pub(super) fn go_on_doubting(&mut self, suspect: PeerId, incarnation: u16, again: u8) {
        if self.leave != Leave::No || !self.is_suspect(&suspect, incarnation) {
            return;
        }
        if again == 0 {
            return self.apply(vec![Member::new(suspect, incarnation, State::Down)], true);
        }
        let result = self.foca.announce(PeerId::anyone_at(suspect.identity.addr), &mut self.io);
        self.note_failure(result);
        self.plan_doubt(suspect, incarnation, again - 1);
    }

    /// This node was away, as the others know. The deaths that it saw meanwhile are none, mostly, and not to be passed on.
    pub(super) fn mute_deaths(&mut self) {
        let dead =
            self.foca.iter_membership_state().filter(|member| member.state() == State::Down && !member.id().left);
        self.io.muted = dead.map(|member| member.id().life_hash()).collect();
        self.io.muted_until = self.io.now + MUTED;
        for (_, packet) in &mut self.io.packets {
            if let Some(muted) = wire::without_deaths(packet, &self.io.muted) {
                *packet = Bytes::from(muted);
            }
        }
    }

    /// Takes out of a packet for foca what would change nothing, and what is not to be passed on.
    pub(super) fn sift(&mut self, read: &Packet) -> Result<Sifted, PacketError> {
        let is_crowded = self.hush(&read.header);
        // What an announcement is answered with is no news to anybody but this node.
        let is_quiet = is_crowded || read.header.message == Message::Feed;
        let (mut kept, mut quiet) = (Vec::new(), Vec::new());
        let known = sync::known(self.foca.iter_membership_state(), &read.members);
        for (member, known) in read.members.iter().zip(known) {
            let is_own = member.id().addr() == self.foca.identity().addr();
            if is_own || known.is_some_and(|known| sync::changes(known, member)) {
                kept.push(member.clone());
            } else if known.is_none() && !self.view.is_forgotten(member.id().node_id()) {
                if is_quiet { &mut quiet } else { &mut kept }.push(member.clone());
            }
        }
        if kept.len() == read.members.len() {
            return Ok(Sifted { packet: None, quiet });
        }
        let packet = Packet { header: read.header.clone(), members: kept, exchange: None };
        Ok(Sifted { packet: Some(packet.write().map_err(PacketError::Malformed)?), quiet })
    }

    /// Whether there is too much to pass on. foca passes on that a sender is new; this takes care that it is not.
    fn hush(&mut self, header: &Header<PeerId>) -> bool {
        let is_crowded = self.foca.updates_backlog() > CROWDED;
        let is_for_us = header.dst == *self.foca.identity() || header.dst.is_anyone();
        if is_crowded && is_for_us && !self.view.members().contains_key(header.src.node_id()) {
            self.apply(vec![Member::new(header.src.clone(), header.src_incarnation, State::Alive)], false);
        }
        is_crowded
    }

    pub(super) fn apply(&mut self, members: Vec<Member<PeerId>>, passed_on: bool) {
        if !members.is_empty() {
            let result = self.foca.apply_many(members.into_iter(), passed_on, &mut self.io);
            self.note_failure(result);
        }
    }

    /// Whether this very life of a node is in the table, and active.
    pub(super) fn is_member(&self, peer: &PeerId) -> bool {
        self.foca.iter_members().any(|member| member.id() == peer)
    }

    fn say(&mut self, to: &PeerId, exchange: Exchange) {
        let header = self.header(to, Message::Gossip);
        self.push(to, Packet { header, members: Vec::new(), exchange: Some(exchange) });
    }
}
