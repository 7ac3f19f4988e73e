//! A hundred hosts that want one image at the same moment, played in virtual time: `course` decides for each blob of each
//! host, `manager::holdings` says who has what and who asks the registry. The same seed makes the same run.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::{Duration, Instant};

use deploy::model::NodeId;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use runtime::image::Digest;

use super::course::{Course, Next, Patience};
use super::fetch::{Claim, Pace, Peer};
use crate::manager::holdings::{CLAIM, Holdings, Telling};
use crate::rpc::pb;

const MB: u64 = 1_000_000;
/// Configuration and layers of the image; its manifest comes before them.
const LAYERS: [u64; 6] = [8_000, 30 * MB, 90 * MB, 5 * MB, 60 * MB, 2 * MB];
/// Blobs of up to so many bytes are given to anybody at any time.
const SMALL: u64 = 1 << 20;
/// Large blobs that a host gives at a time.
const GIVES: usize = 4;
/// Blobs that a host fetches at a time.
const AT_ONCE: usize = 3;
/// Bytes per second between two hosts, and from the registry.
const LINK: u64 = 25 * MB;
/// A question and its answer.
const ASK: Duration = Duration::from_millis(5);
/// From a blob's arrival until the managers know of it.
const HEARD: Duration = Duration::from_millis(60);
/// From a host's death until its session, or a transfer from it, has ended.
const SILENT: Duration = Duration::from_secs(15);

fn digest(blob: usize) -> Digest {
    Digest::of(&blob.to_be_bytes())
}

/// The image itself, the first blob.
const MANIFEST: usize = 0;

fn size(blob: usize) -> u64 {
    blob.checked_sub(1).map_or(2_000, |layer| LAYERS[layer])
}

/// What a run is about.
#[derive(Clone)]
struct Setting {
    hosts: usize,
    /// Bytes per second from the registry.
    registry: u64,
    /// Hosts that give other bytes than they were asked for.
    liars: BTreeSet<usize>,
    /// The host that asks the registry dies when it has got so many blobs.
    dies_after: Option<usize>,
    /// Nobody answers who may ask the registry.
    no_arbiter: bool,
}

impl Setting {
    fn hosts(hosts: usize) -> Self {
        Self { hosts, registry: LINK, liars: BTreeSet::new(), dies_after: None, no_arbiter: false }
    }
}

/// What came of it.
#[derive(Debug, PartialEq)]
struct Outcome {
    /// How often the registry was asked, by blob.
    asked: BTreeMap<usize, usize>,
    /// When the image was there, by host; without those that died.
    done: BTreeMap<usize, Duration>,
    /// Who asked the registry, in this order.
    pullers: Vec<usize>,
}

impl Outcome {
    fn most(&self) -> usize {
        self.asked.values().copied().max().unwrap_or_default()
    }

    fn last(&self) -> Duration {
        self.done.values().copied().max().unwrap_or_default()
    }
}

/// Something that happens at its time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A host looks who has a blob.
    Look { host: usize, blob: usize },
    /// It asks the next of those that it has chosen.
    Ask { host: usize, blob: usize },
    /// What `from` gave has come to its end.
    Given { host: usize, blob: usize, from: usize },
    /// It asks who may ask the registry.
    Claim { host: usize, blob: usize },
    /// A host that has the claim asks the registry for what nobody has.
    Pull { host: usize },
    /// A blob came to it, from the registry or while it asks there.
    Pulled { host: usize, blob: usize, from: Option<usize> },
    /// It says again that it asks the registry.
    Renew { host: usize },
    /// The managers hear that a host has a blob.
    Heard { host: usize, blob: usize },
    /// The managers notice that a host is dead.
    Silent { host: usize },
}

/// A blob on its way to a host.
struct Way {
    course: Course,
    chosen: Vec<Peer>,
    asked: usize,
    busy: bool,
    /// The next look decides whether the registry is asked.
    granted: bool,
}

struct Host {
    id: NodeId,
    alive: bool,
    has: BTreeSet<usize>,
    ways: BTreeMap<usize, Way>,
    /// Blobs that wait for their turn.
    wanted: Vec<usize>,
    /// What it gets while it asks the registry.
    pulling: Option<BTreeSet<usize>>,
    gives: usize,
    session: Option<Telling>,
    done: Option<Duration>,
}

struct Crowd {
    setting: Setting,
    rng: StdRng,
    epoch: Instant,
    now: Duration,
    order: u64,
    events: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    holdings: Holdings,
    hosts: Vec<Host>,
    asked: BTreeMap<usize, usize>,
    pullers: Vec<usize>,
}

fn run(setting: &Setting, seed: u64) -> Outcome {
    let holdings = Holdings::default();
    let host = |n: usize| {
        let id = NodeId::new(format!("host-{n:03}"));
        let session = Some(holdings.session(id.clone()));
        let (has, ways, wanted) = (BTreeSet::new(), BTreeMap::new(), vec![MANIFEST]);
        Host { id, alive: true, has, ways, wanted, pulling: None, gives: 0, session, done: None }
    };
    let mut crowd = Crowd {
        hosts: (0..setting.hosts).map(host).collect(),
        setting: setting.clone(),
        rng: StdRng::seed_from_u64(seed),
        epoch: Instant::now(),
        now: Duration::ZERO,
        order: 0,
        events: BinaryHeap::new(),
        holdings,
        asked: BTreeMap::new(),
        pullers: Vec::new(),
    };
    for host in 0..setting.hosts {
        crowd.next_blobs(host);
    }
    while let Some(Reverse((at, _, event))) = crowd.events.pop() {
        assert!(at < Duration::from_secs(3600), "it never ends: {event:?}");
        crowd.now = at;
        crowd.happen(event);
    }
    let done = crowd.hosts.iter().enumerate().filter(|(_, host)| host.alive);
    let done = done.map(|(n, host)| (n, host.done.unwrap_or_else(|| panic!("host {n} never got it"))));
    Outcome { done: done.collect(), asked: crowd.asked, pullers: crowd.pullers }
}

impl Crowd {
    fn after(&mut self, wait: Duration, event: Event) {
        self.order += 1;
        // No two questions take equally long.
        let jitter = Duration::from_micros(self.rng.random_range(0..500));
        self.events.push(Reverse((self.now + wait + jitter, self.order, event)));
    }

    fn takes(bytes: u64, rate: u64) -> Duration {
        Duration::from_secs_f64(bytes as f64 / rate as f64)
    }

    fn peer(&self, host: usize) -> Peer {
        Peer { node_id: self.hosts[host].id.to_string(), addr: String::new() }
    }

    fn number(peer: &str) -> usize {
        peer.trim_start_matches("host-").parse().expect("a host")
    }

    fn happen(&mut self, event: Event) {
        let host = match &event {
            Event::Look { host, .. } | Event::Ask { host, .. } | Event::Claim { host, .. } => *host,
            Event::Pull { host } | Event::Pulled { host, .. } | Event::Renew { host } => *host,
            Event::Given { host, blob, from } => {
                self.hosts[*from].gives -= usize::from(size(*blob) > SMALL);
                *host
            }
            Event::Heard { .. } | Event::Silent { .. } => usize::MAX,
        };
        if host != usize::MAX && !self.hosts[host].alive {
            return;
        }
        match event {
            Event::Look { host, blob } => self.look(host, blob),
            Event::Ask { host, blob } => self.ask(host, blob),
            Event::Given { host, blob, from } => self.given(host, blob, from),
            Event::Claim { host, blob } => self.claim(host, blob),
            Event::Pull { host } => self.pull(host),
            Event::Pulled { host, blob, from } => self.pulled(host, blob, from),
            Event::Renew { host } => self.renew(host),
            Event::Heard { host, blob } => {
                let added = vec![digest(blob).as_bytes().to_vec()];
                let session = self.hosts[host].session.as_ref();
                session.iter().for_each(|s| s.tell(&pb::ContentHeld { added: added.clone(), ..Default::default() }));
            }
            Event::Silent { host } => self.hosts[host].session = None,
        }
    }

    /// Begins with as many blobs as come at a time.
    fn next_blobs(&mut self, host: usize) {
        let pace = Pace::default();
        let patience = Patience { pauses: pace.pauses, help_yourself: pace.help_yourself };
        while self.hosts[host].ways.len() < AT_ONCE
            && let Some(blob) = self.hosts[host].wanted.pop()
        {
            let course = Course::new(patience, true);
            let way = Way { course, chosen: Vec::new(), asked: 0, busy: false, granted: false };
            self.hosts[host].ways.insert(blob, way);
            self.after(ASK, Event::Look { host, blob });
        }
        let it = &mut self.hosts[host];
        if it.ways.is_empty() && it.wanted.is_empty() && it.has.len() == LAYERS.len() + 1 {
            it.done.get_or_insert(self.now);
        }
    }

    /// A blob is there.
    fn have(&mut self, host: usize, blob: usize) {
        if self.hosts[host].has.insert(blob) {
            self.after(HEARD, Event::Heard { host, blob });
        }
        if self.hosts[host].ways.remove(&blob).is_some() && blob == MANIFEST {
            // Layers in their order.
            self.hosts[host].wanted = (1..=LAYERS.len()).rev().collect();
        }
        self.next_blobs(host);
    }

    fn holders(&mut self, host: usize, blob: usize) -> Vec<Peer> {
        let turn = self.rng.random::<u32>() as usize;
        let holders = self.holdings.holders(&digest(blob), &self.hosts[host].id, turn);
        holders.into_iter().map(|id| self.peer(Self::number(id.as_str()))).collect()
    }

    fn look(&mut self, host: usize, blob: usize) {
        if self.hosts[host].has.contains(&blob) {
            return self.have(host, blob);
        }
        let found = self.holders(host, blob);
        let rng = &mut self.rng;
        let Some(way) = self.hosts[host].ways.get_mut(&blob) else { return };
        let chosen = way.course.choose(found, rng);
        if std::mem::take(&mut way.granted) && chosen.is_empty() {
            return self.begin_pull(host);
        }
        (way.chosen, way.asked, way.busy) = (chosen, 0, false);
        self.after(ASK, Event::Ask { host, blob });
    }

    fn ask(&mut self, host: usize, blob: usize) {
        let Some(way) = self.hosts[host].ways.get_mut(&blob) else { return };
        let Some(peer) = way.chosen.get(way.asked).cloned() else {
            let (asked, busy) = (way.chosen.len(), way.busy);
            let next = way.course.after_round(asked, busy, &mut self.rng);
            return self.go_on(host, blob, next);
        };
        way.asked += 1;
        let from = Self::number(&peer.node_id);
        let giver = &mut self.hosts[from];
        if !giver.alive {
            // A connection that nobody answers.
            return self.after(Duration::from_secs(5), Event::Ask { host, blob });
        }
        if size(blob) > SMALL && giver.gives >= GIVES {
            self.hosts[host].ways.entry(blob).and_modify(|way| way.busy = true);
            return self.after(ASK, Event::Ask { host, blob });
        }
        giver.gives += usize::from(size(blob) > SMALL);
        self.after(Self::takes(size(blob), LINK), Event::Given { host, blob, from });
    }

    fn given(&mut self, host: usize, blob: usize, from: usize) {
        let liar = self.setting.liars.contains(&from);
        if self.hosts[from].alive && !liar {
            return self.have(host, blob);
        }
        let peer = self.peer(from);
        if let Some(way) = self.hosts[host].ways.get_mut(&blob)
            && liar
        {
            way.course.lied(&peer.node_id);
        }
        self.after(if liar { ASK } else { SILENT }, Event::Ask { host, blob });
    }

    fn go_on(&mut self, host: usize, blob: usize, next: Next) {
        match next {
            Next::Look(pause) => self.after(pause, Event::Look { host, blob }),
            Next::Claim => self.after(ASK, Event::Claim { host, blob }),
            Next::LookThenRegistry => {
                self.hosts[host].ways.entry(blob).and_modify(|way| way.granted = true);
                self.after(ASK, Event::Look { host, blob });
            }
            Next::Registry => self.begin_pull(host),
            Next::GiveUp => panic!("host {host} gives up {blob}"),
        }
    }

    fn claim(&mut self, host: usize, blob: usize) {
        let now = self.now;
        let granted = self.granted(host);
        let helps_itself = self.hosts[host].ways.get(&blob).is_some_and(|way| way.course.helps_itself(now));
        let claim = match granted {
            _ if helps_itself || self.setting.no_arbiter => Claim::Unknown,
            true => Claim::Granted(CLAIM / 3),
            false => Claim::Taken,
        };
        let Some(way) = self.hosts[host].ways.get_mut(&blob) else { return };
        let next = way.course.claimed(claim, now, &mut self.rng);
        self.go_on(host, blob, next);
    }

    fn granted(&self, host: usize) -> bool {
        self.holdings.claim(digest(MANIFEST), &self.hosts[host].id, self.epoch + self.now)
    }

    fn begin_pull(&mut self, host: usize) {
        if self.hosts[host].pulling.is_some() {
            // Another blob's turn of the same host: there is one pull.
            return;
        }
        self.hosts[host].pulling = Some(BTreeSet::new());
        self.pullers.push(host);
        self.after(CLAIM / 3, Event::Renew { host });
        self.after(ASK, Event::Pull { host });
    }

    fn renew(&mut self, host: usize) {
        if self.hosts[host].pulling.is_some() {
            self.granted(host);
            self.after(CLAIM / 3, Event::Renew { host });
        }
    }

    /// Asks for what is missing, the manifest first; other hosts are asked once before the registry is.
    fn pull(&mut self, host: usize) {
        let it = &self.hosts[host];
        let Some(under_way) = it.pulling.clone() else { return };
        let mut missing: Vec<usize> = (0..=LAYERS.len()).filter(|blob| !it.has.contains(blob)).collect();
        if missing.is_empty() {
            self.hosts[host].pulling = None;
            for blob in 0..=LAYERS.len() {
                self.have(host, blob);
            }
            return;
        }
        if missing[0] == MANIFEST {
            missing.truncate(1);
        }
        missing.retain(|blob| !under_way.contains(blob));
        for blob in missing.into_iter().take(AT_ONCE.saturating_sub(under_way.len())) {
            let holders = self.holders(host, blob);
            let gives = |peer: &Peer| {
                let giver = Self::number(&peer.node_id);
                let free = size(blob) <= SMALL || self.hosts[giver].gives < GIVES;
                (self.hosts[giver].alive && free && !self.setting.liars.contains(&giver)).then_some(giver)
            };
            let from = holders.iter().find_map(gives);
            let rate = match from {
                Some(giver) => {
                    self.hosts[giver].gives += usize::from(size(blob) > SMALL);
                    LINK
                }
                None => {
                    *self.asked.entry(blob).or_default() += 1;
                    self.setting.registry
                }
            };
            self.hosts[host].pulling.iter_mut().for_each(|under_way| {
                under_way.insert(blob);
            });
            self.after(Self::takes(size(blob), rate), Event::Pulled { host, blob, from });
        }
    }

    fn pulled(&mut self, host: usize, blob: usize, from: Option<usize>) {
        if let Some(giver) = from {
            self.hosts[giver].gives -= usize::from(size(blob) > SMALL);
        }
        if let Some(under_way) = &mut self.hosts[host].pulling {
            under_way.remove(&blob);
        }
        if self.hosts[host].has.insert(blob) {
            self.after(HEARD, Event::Heard { host, blob });
        }
        if self.setting.dies_after == Some(self.hosts[host].has.len()) {
            self.setting.dies_after = None;
            self.hosts[host].alive = false;
            return self.after(SILENT, Event::Silent { host });
        }
        self.pull(host);
    }
}

const SEEDS: std::ops::Range<u64> = 0..4;

/// How long one host needs that is alone with the registry.
fn alone() -> Duration {
    let outcome = run(&Setting::hosts(1), 0);
    assert_eq!((outcome.most(), outcome.asked.len()), (1, LAYERS.len() + 1));
    outcome.last()
}

#[test]
fn a_hundred_hosts_ask_the_registry_once() {
    let alone = alone();
    for seed in SEEDS {
        let outcome = run(&Setting::hosts(100), seed);
        assert_eq!(outcome.asked, (0..=LAYERS.len()).map(|blob| (blob, 1)).collect(), "seed {seed}");
        // The first has it as soon as if it were alone; a hundred not much later than it takes to pass it on.
        let first = outcome.done.values().min().copied().unwrap_or_default();
        assert!(first < alone + Duration::from_millis(500), "seed {seed}: {first:?} instead of {alone:?}");
        assert!(outcome.last() < 8 * alone, "seed {seed}: {:?} instead of {alone:?}", outcome.last());
        assert_eq!(outcome.done.len(), 100);
    }
    // The same seed is the same run.
    assert_eq!(run(&Setting::hosts(100), 7), run(&Setting::hosts(100), 7));
}

#[test]
fn the_next_goes_on_where_the_host_that_asked_has_died() {
    let alone = alone();
    for (seed, dies_after) in (1..=LAYERS.len()).map(|blobs| (blobs as u64, blobs)) {
        let outcome = run(&Setting { dies_after: Some(dies_after), ..Setting::hosts(100) }, seed);
        assert_eq!(outcome.done.len(), 99);
        // What was under way then, or had come and reached nobody, comes once more.
        assert!(outcome.most() <= 2, "seed {seed}, after {dies_after}: {:?}", outcome.asked);
        let bound = 8 * alone + CLAIM + 2 * SILENT + Duration::from_secs(10);
        assert!(outcome.last() < bound, "seed {seed}, after {dies_after}: {:?}", outcome.last());
    }
}

#[test]
fn liars_cost_no_more_than_their_own_questions_to_the_registry() {
    // With this seed, liars are the first two who may ask.
    for seed in SEEDS.chain([18]) {
        let liars: BTreeSet<usize> = (0..100).filter(|host| host % 10 == 3).collect();
        let outcome = run(&Setting { liars: liars.clone(), ..Setting::hosts(100) }, seed);
        assert_eq!(outcome.done.len(), 100, "seed {seed}");
        let honest = outcome.pullers.iter().filter(|host| !liars.contains(host)).count();
        assert!(honest == 1 && outcome.most() <= outcome.pullers.len(), "seed {seed}: {:?}", outcome.pullers);
    }
}

#[test]
fn a_slow_registry_is_asked_by_one_more_every_two_minutes() {
    // The largest layer takes a quarter of an hour.
    let outcome = run(&Setting { registry: 100_000, ..Setting::hosts(20) }, 3);
    assert_eq!(outcome.done.len(), 20);
    assert!((2..=9).contains(&outcome.pullers.len()), "{:?}", outcome.pullers);
    assert!(outcome.most() <= outcome.pullers.len(), "{:?}", outcome.asked);
}

#[test]
fn without_a_manager_everybody_helps_itself() {
    let alone = alone();
    let outcome = run(&Setting { no_arbiter: true, ..Setting::hosts(10) }, 1);
    assert_eq!((outcome.done.len(), outcome.asked[&MANIFEST]), (10, 10));
    assert!(outcome.last() < 2 * alone);
}
