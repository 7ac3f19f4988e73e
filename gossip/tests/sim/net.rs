//! A network of [`Swim`]s in one thread: seeded latency and loss, crashes, pauses, cuts. The same seed is the same run.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use gossip::swim::{Settings, Swim};
use gossip::{Event, Identity, Timing};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

pub(crate) struct Net {
    rng: StdRng,
    origin: Instant,
    pub(crate) now: Duration,
    nodes: Vec<Node>,
    by_addr: BTreeMap<SocketAddr, usize>,
    queue: BinaryHeap<Reverse<Flight>>,
    sequence: u64,
    /// Out of 1000 packets, this many are lost.
    pub(crate) loss: u32,
    /// Nodes of different sides do not hear each other.
    sides: Vec<u8>,
    pub(crate) events: Vec<(Duration, usize, Event)>,
    pub(crate) packets: u64,
}

struct Node {
    swim: Swim,
    running: bool,
    /// Does nothing until then; packets wait in its socket.
    paused_until: Duration,
    inbox: Vec<Vec<u8>>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Flight {
    at: Duration,
    sequence: u64,
    from: usize,
    to: usize,
    packet: Vec<u8>,
}

pub(crate) fn identity(at: usize, generation: u64) -> Identity {
    let addr = SocketAddr::from(([10, 0, (at / 200) as u8, (at % 200) as u8 + 1], 2377));
    Identity { node_id: format!("node{at:021}"), addr, generation }
}

impl Net {
    pub(crate) fn new(nodes: usize, seed: u64) -> Self {
        let origin = Instant::now();
        let mut net = Self {
            rng: StdRng::seed_from_u64(seed),
            origin,
            now: Duration::ZERO,
            nodes: Vec::new(),
            by_addr: BTreeMap::new(),
            queue: BinaryHeap::new(),
            sequence: 0,
            loss: 0,
            sides: vec![0; nodes],
            events: Vec::new(),
            packets: 0,
        };
        for at in 0..nodes {
            let swim = net.boot(at, 1);
            net.by_addr.insert(swim.identity().addr, at);
            net.nodes.push(Node { swim, running: true, paused_until: Duration::ZERO, inbox: Vec::new() });
        }
        net
    }

    fn boot(&mut self, at: usize, generation: u64) -> Swim {
        let seed = self.rng.random();
        let settings = Settings { identity: identity(at, generation), timing: Timing::lan(), seed };
        Swim::new(settings, self.origin + self.now).unwrap()
    }

    fn instant(&self) -> Instant {
        self.origin + self.now
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn swim(&self, at: usize) -> &Swim {
        &self.nodes[at].swim
    }

    pub(crate) fn with<T>(&mut self, at: usize, act: impl FnOnce(&mut Swim, Instant) -> T) -> T {
        let now = self.instant();
        let result = act(&mut self.nodes[at].swim, now);
        self.collect(at);
        result
    }

    pub(crate) fn join(&mut self, at: usize, seeds: &[usize]) {
        let seeds = seeds.iter().map(|seed| identity(*seed, 1).addr).collect();
        self.with(at, |swim, now| swim.join(seeds, now));
    }

    pub(crate) fn crash(&mut self, at: usize) {
        self.nodes[at].running = false;
        self.nodes[at].inbox.clear();
    }

    pub(crate) fn restart(&mut self, at: usize, generation: u64) {
        let swim = self.boot(at, generation);
        self.nodes[at].swim = swim;
        self.nodes[at].running = true;
    }

    pub(crate) fn pause(&mut self, at: usize, length: Duration) {
        self.nodes[at].paused_until = self.now + length;
    }

    pub(crate) fn cut(&mut self, away: &[usize]) {
        self.sides.fill(0);
        for at in away {
            self.sides[*at] = 1;
        }
    }

    fn collect(&mut self, at: usize) {
        while let Some(event) = self.nodes[at].swim.poll_event() {
            self.events.push((self.now, at, event));
        }
        while let Some((to, packet)) = self.nodes[at].swim.poll_packet() {
            self.packets += 1;
            let Some(to) = self.by_addr.get(&to).copied() else { continue };
            if self.rng.random_range(0..1000) < self.loss {
                continue;
            }
            let at_time = self.now + Duration::from_micros(self.rng.random_range(200..2_000));
            self.sequence += 1;
            let packet = packet.to_vec();
            self.queue.push(Reverse(Flight { at: at_time, sequence: self.sequence, from: at, to, packet }));
        }
    }

    fn wake_at(&self, at: usize) -> Option<Duration> {
        let node = &self.nodes[at];
        if !node.running {
            return None;
        }
        let deadline = node.swim.next_deadline().map(|deadline| deadline - self.origin);
        let inbox = (!node.inbox.is_empty()).then_some(self.now);
        let next = deadline.into_iter().chain(inbox).min()?;
        Some(next.max(node.paused_until))
    }

    /// Runs until `until`, or until `done` says so; whether it did.
    pub(crate) fn run(&mut self, until: Duration, mut done: impl FnMut(&Net) -> bool) -> bool {
        while !done(self) {
            let timer = (0..self.len()).filter_map(|at| Some((self.wake_at(at)?, at))).min();
            let flight = self.queue.peek().map(|Reverse(flight)| flight.at);
            let timer_first = timer.is_some_and(|(at, _)| flight.is_none_or(|flight| at <= flight));
            let next = timer.map(|(at, _)| at).into_iter().chain(flight).min();
            let Some(next) = next.filter(|next| *next <= until) else {
                self.now = until;
                return done(self);
            };
            self.now = self.now.max(next);
            match timer {
                Some((_, at)) if timer_first => self.wake(at),
                _ => self.deliver(),
            }
        }
        true
    }

    fn wake(&mut self, at: usize) {
        let now = self.instant();
        // As the driver does it: timers first, then what waits in the socket.
        self.nodes[at].swim.handle_timer(now);
        for packet in std::mem::take(&mut self.nodes[at].inbox) {
            let _ = self.nodes[at].swim.handle_packet(&packet, now);
        }
        self.collect(at);
    }

    fn deliver(&mut self) {
        let Some(Reverse(flight)) = self.queue.pop() else { return };
        if !self.nodes[flight.to].running || self.sides[flight.from] != self.sides[flight.to] {
            return;
        }
        if self.nodes[flight.to].paused_until > self.now {
            self.nodes[flight.to].inbox.push(flight.packet);
            return;
        }
        let now = self.instant();
        let _ = self.nodes[flight.to].swim.handle_packet(&flight.packet, now);
        self.collect(flight.to);
    }

    pub(crate) fn alive(&self, at: usize) -> usize {
        self.swim(at).members().values().filter(|member| member.alive).count()
    }

    pub(crate) fn sees(&self, at: usize, other: usize) -> bool {
        self.swim(at).members().get(&identity(other, 1).node_id).is_some_and(|member| member.alive)
    }

    /// Every running node knows every other running one, and nobody else, to be alive.
    pub(crate) fn is_whole(&self) -> bool {
        let running = self.nodes.iter().filter(|node| node.running).count();
        (0..self.len()).all(|at| !self.nodes[at].running || self.alive(at) == running - 1)
    }
}
