//! A network of [`Swim`]s in one thread: seeded latency and loss, crashes, pauses, cuts. The same seed is the same run.
//!
//! The tests of this crate use it, and the benchmark `membership` of chaos-tests, which includes this file: a thousand
//! nodes need the event queue to be a heap, and nothing else.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use gossip::swim::{Settings, Swim};
use gossip::{Event, Identity, Keyring, OVERHEAD, OpenError, Sealer, Timing};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

pub(crate) struct Net {
    rng: StdRng,
    origin: Instant,
    pub(crate) now: Duration,
    nodes: Vec<Node>,
    by_addr: BTreeMap<SocketAddr, usize>,
    queue: BinaryHeap<Reverse<Due>>,
    sequence: u64,
    /// Out of 1000 packets, this many are lost.
    pub(crate) loss: u32,
    /// Out of 1000 packets, this many are delivered once more, up to three seconds later.
    pub(crate) replayed: u32,
    /// Packets that are lost on their way to a node, whatever the dice say.
    pub(crate) loses: fn(usize, &[u8]) -> bool,
    /// Keeps what arrives anywhere, if it is there.
    pub(crate) tap: Option<Vec<Vec<u8>>>,
    /// Nodes of different sides do not hear each other.
    sides: Vec<u8>,
    pub(crate) events: Vec<(Duration, usize, Event)>,
    /// Which events are kept: five thousand hosts tell of each other twenty-five million times when they meet.
    pub(crate) keeps: fn(&Event) -> bool,
    pub(crate) packets: u64,
}

struct Node {
    swim: Swim,
    running: bool,
    /// Does nothing until then; packets wait in its socket.
    paused_until: Duration,
    inbox: Vec<Vec<u8>>,
    /// When the queue wakes it; entries for other times are stale.
    wakes_at: Option<Duration>,
    traffic: Traffic,
    /// Seals what the node sends, if the network is to be sealed at all.
    sealer: Option<Sealer>,
    /// Datagrams that were not opened.
    refused: Vec<OpenError>,
}

/// What a node has sent and received: sealed datagrams, without the headers of UDP and IP.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    at: Duration,
    sequence: u64,
    what: What,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Wake(usize),
    Flight { from: usize, to: usize, packet: Vec<u8> },
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
            replayed: 0,
            loses: |_, _| false,
            tap: None,
            sides: vec![0; nodes],
            events: Vec::new(),
            keeps: |_| true,
            packets: 0,
        };
        for at in 0..nodes {
            let swim = net.boot(at, 1);
            net.by_addr.insert(swim.identity().addr, at);
            net.nodes.push(Node {
                swim,
                running: true,
                paused_until: Duration::ZERO,
                inbox: Vec::new(),
                wakes_at: None,
                traffic: Traffic::default(),
                sealer: None,
                refused: Vec::new(),
            });
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

    /// What a node has sent and received so far.
    pub(crate) fn traffic(&self, at: usize) -> Traffic {
        self.nodes[at].traffic
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
        self.schedule(at);
    }

    pub(crate) fn pause(&mut self, at: usize, length: Duration) {
        self.nodes[at].paused_until = self.now + length;
        self.schedule(at);
    }

    /// Seals what all nodes say from now on.
    #[allow(dead_code, reason = "not for the benchmark")]
    pub(crate) fn seal(&mut self, keys: &Keyring) {
        for (at, node) in self.nodes.iter_mut().enumerate() {
            let session = [u8::try_from(at).unwrap(); 16];
            node.sealer = Some(Sealer::new(keys.clone(), "cluster".to_owned(), session, 1_000_000));
        }
    }

    #[allow(dead_code, reason = "not for the benchmark")]
    pub(crate) fn set_keys(&mut self, at: usize, keys: &Keyring) {
        self.nodes[at].sealer.as_mut().unwrap().set_keys(keys.clone());
    }

    /// What a node did not open.
    #[allow(dead_code, reason = "not for the benchmark")]
    pub(crate) fn refused(&self, at: usize) -> &[OpenError] {
        &self.nodes[at].refused
    }

    /// Somebody sends these bytes to a node.
    #[allow(dead_code, reason = "not for the benchmark")]
    pub(crate) fn inject(&mut self, at: usize, packet: Vec<u8>) {
        self.deliver(at, at, packet);
    }

    pub(crate) fn cut(&mut self, away: &[usize]) {
        self.sides.fill(0);
        for at in away {
            self.sides[*at] = 1;
        }
    }

    fn push(&mut self, at: Duration, what: What) {
        self.sequence += 1;
        self.queue.push(Reverse(Due { at, sequence: self.sequence, what }));
    }

    /// Takes out what a node has to say, and asks when it wants to be woken.
    fn collect(&mut self, at: usize) {
        while let Some(event) = self.nodes[at].swim.poll_event() {
            if (self.keeps)(&event) {
                self.events.push((self.now, at, event));
            }
        }
        while let Some((to, packet)) = self.nodes[at].swim.poll_packet() {
            self.packets += 1;
            self.nodes[at].traffic.count(packet.len());
            let Some(to) = self.by_addr.get(&to).copied() else { continue };
            if self.rng.random_range(0..1000) < self.loss || (self.loses)(to, &packet) {
                continue;
            }
            let packet = match &mut self.nodes[at].sealer {
                Some(sealer) => sealer.seal(&packet).unwrap(),
                None => packet.to_vec(),
            };
            let arrives = self.now + Duration::from_micros(self.rng.random_range(200..2_000));
            if self.replayed > 0 && self.rng.random_range(0..1000) < self.replayed {
                let again = arrives + Duration::from_millis(self.rng.random_range(0..3_000));
                self.push(again, What::Flight { from: at, to, packet: packet.clone() });
            }
            self.push(arrives, What::Flight { from: at, to, packet });
        }
        self.schedule(at);
    }

    fn schedule(&mut self, at: usize) {
        let node = &self.nodes[at];
        let deadline = node.swim.next_deadline().map(|deadline| deadline.saturating_duration_since(self.origin));
        let inbox = (!node.inbox.is_empty()).then_some(self.now);
        let next = deadline.into_iter().chain(inbox).min().map(|next| next.max(node.paused_until).max(self.now));
        if next != node.wakes_at {
            self.nodes[at].wakes_at = next;
            if let Some(next) = next {
                self.push(next, What::Wake(at));
            }
        }
    }

    /// Runs until `until`, or until `done` says so; whether it did.
    pub(crate) fn run(&mut self, until: Duration, mut done: impl FnMut(&Net) -> bool) -> bool {
        while !done(self) {
            if self.queue.peek().is_none_or(|Reverse(due)| due.at > until) {
                self.now = until;
                return done(self);
            }
            self.step();
        }
        true
    }

    /// Runs until `until` and asks `done` only every `every`: what is asked of a thousand nodes takes its time.
    #[allow(dead_code, reason = "for large networks only")]
    pub(crate) fn run_asking(&mut self, until: Duration, every: Duration, mut done: impl FnMut(&Net) -> bool) -> bool {
        loop {
            if done(self) {
                return true;
            }
            if self.now >= until {
                return false;
            }
            let next = (self.now + every).min(until);
            self.run(next, |_| false);
        }
    }

    fn step(&mut self) {
        let Some(Reverse(due)) = self.queue.pop() else { return };
        self.now = self.now.max(due.at);
        match due.what {
            What::Wake(at) if self.nodes[at].wakes_at == Some(due.at) => self.wake(at),
            // The node wanted another time since.
            What::Wake(_) => {}
            What::Flight { from, to, packet } => self.deliver(from, to, packet),
        }
    }

    fn wake(&mut self, at: usize) {
        self.nodes[at].wakes_at = None;
        if !self.nodes[at].running {
            return;
        }
        let now = self.instant();
        // As the driver does it: timers first, then what waits in the socket.
        self.nodes[at].swim.handle_timer(now);
        for packet in std::mem::take(&mut self.nodes[at].inbox) {
            self.nodes[at].take(packet, now);
        }
        self.collect(at);
    }

    fn deliver(&mut self, from: usize, to: usize, packet: Vec<u8>) {
        if !self.nodes[to].running || self.sides[from] != self.sides[to] {
            return;
        }
        self.nodes[to].traffic.count(packet.len());
        if let Some(tap) = &mut self.tap {
            tap.push(packet.clone());
        }
        if self.nodes[to].paused_until > self.now {
            self.nodes[to].inbox.push(packet);
            return self.schedule(to);
        }
        let now = self.instant();
        self.nodes[to].take(packet, now);
        self.collect(to);
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

impl Node {
    fn take(&mut self, mut packet: Vec<u8>, now: Instant) {
        if let Some(sealer) = &mut self.sealer {
            match sealer.open(&packet) {
                Ok(opened) => packet = opened,
                Err(error) => return self.refused.push(error),
            }
        }
        let _ = self.swim.handle_packet(&packet, now);
    }
}

impl Traffic {
    fn count(&mut self, packet: usize) {
        self.packets += 1;
        self.bytes += (packet + OVERHEAD) as u64;
    }
}
