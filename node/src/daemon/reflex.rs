//! Who is left out of this host's load balancing and names before any manager has decided. The part that decides; pure.
//!
//! Gossip's word makes a host doubtful, and never more than that: this host then asks the doubtful one itself, by
//! knocking on its control port. The kernel answers there for as long as the host lives, however busy the daemon is,
//! or whether it runs at all, and tasks outlive their daemon. Only who is called dead *and* says nothing is left out,
//! until there is any sign of life, or managers say that they hear from it.
//!
//! Doubts are of a node in one of its boots, not of an address, and end with the node. Knocking is bounded: so many
//! hosts at a time, and the doubtful are asked again the less often the larger the cluster is, so that one who only
//! cannot gossip is not run over by all the others.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use gossip::Members;

/// Hosts that are knocked at at the same time.
const AT_ONCE: usize = 128;
/// In clusters of up to so many hosts a suspicion is enough to knock, so that the answer is there when the suspicion has
/// run out. In larger ones there is always somebody suspected, and everybody would knock.
const EARLY: usize = 128;
/// The doubtful are asked again after this time at the least,
const AGAIN: Duration = Duration::from_secs(2);
/// and by all hosts together so often: an interval is this much longer for each host of the cluster.
const SHARE: Duration = Duration::from_millis(10);
/// Hosts of the cluster that gossip does not know may only not have been met yet. Asked after this time.
const UNMET: Duration = Duration::from_secs(5);
/// Who has said goodbye is asked at once, and again this much sooner than others: its daemon may only start again, or
/// its machine be on its way down, and the kernel is the last to go.
const GOODBYE: u32 = 4;

/// What a host said when it was knocked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// It took the connection.
    Opened,
    /// It refused: nobody listens there, and its kernel lives.
    Refused,
    /// Nothing came, or somebody else said that the host is not there.
    Nothing,
    /// This host itself could not ask, or was too late to tell.
    Unasked,
}

/// Why a host is doubtful.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    /// Somebody's probe failed.
    Suspect,
    /// It is called dead.
    Dead,
    /// Gossip does not know it, though it is one of the cluster's.
    Unmet,
    /// Gossip knew it, and does not any more.
    Left,
}

/// What this host found out by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Unasked,
    Lives,
    Silent,
}

#[derive(Debug)]
struct Doubt {
    word: Word,
    /// The boot that it is about; 0 if that is unknown.
    generation: u64,
    addr: SocketAddr,
    found: Found,
    /// When to knock next.
    due: Instant,
    /// The number of the knock that is under way.
    asking: Option<u64>,
}

/// Somebody to knock at. The answer goes to [`Reflex::answered`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Knock {
    pub(super) number: u64,
    pub(super) node_id: String,
    pub(super) addr: SocketAddr,
}

/// The doubts of this host.
#[derive(Debug)]
pub(super) struct Reflex {
    own_id: String,
    hosts: usize,
    doubts: BTreeMap<String, Doubt>,
    /// Hosts of the cluster that gossip has known.
    met: BTreeSet<String>,
    under_way: usize,
    knocks: u64,
}

impl Reflex {
    pub(super) fn new(own_id: String) -> Self {
        Self { own_id, hosts: 0, doubts: BTreeMap::new(), met: BTreeSet::new(), under_way: 0, knocks: 0 }
    }

    /// Takes in what gossip says of the cluster's hosts (`ip:port` by node id). To be called after each change of either.
    pub(super) fn look(&mut self, members: &Members, hosts: &BTreeMap<String, String>, now: Instant) {
        self.hosts = hosts.len();
        self.met.retain(|node_id| hosts.contains_key(node_id));
        let mut before = std::mem::take(&mut self.doubts);
        for (node_id, addr) in hosts.iter().filter(|(node_id, _)| **node_id != self.own_id) {
            let member = members.get(node_id);
            if member.is_some() {
                self.met.insert(node_id.clone());
            }
            let word = match member {
                Some(member) if member.alive && !member.suspect => continue,
                Some(member) if member.alive => Word::Suspect,
                Some(_) => Word::Dead,
                None if self.met.contains(node_id) => Word::Left,
                None => Word::Unmet,
            };
            let addr = member.map(|member| member.identity.addr).or_else(|| addr.parse().ok());
            let Some(addr) = addr else { continue };
            let generation = member.map_or(0, |member| member.identity.generation);
            let known = before.remove(node_id).filter(|doubt| doubt.generation == generation && doubt.addr == addr);
            let due = match word {
                Word::Suspect if self.hosts > EARLY => now + self.again(),
                Word::Suspect | Word::Dead | Word::Left => now,
                Word::Unmet => now + UNMET.max(self.again()),
            };
            let doubt = match known {
                // What it said to a suspicion may be old by now.
                Some(doubt) if doubt.word != word && word == Word::Dead && doubt.found != Found::Silent => {
                    Doubt { word, due, ..doubt }
                }
                Some(doubt) => Doubt { word, ..doubt },
                None => Doubt { word, generation, addr, found: Found::Unasked, due, asking: None },
            };
            self.doubts.insert(node_id.clone(), doubt);
        }
    }

    /// Whom to knock at now.
    pub(super) fn knocks(&mut self, now: Instant) -> Vec<Knock> {
        let mut knocks = Vec::new();
        let idle = self.doubts.iter_mut().filter(|(_, doubt)| doubt.asking.is_none() && doubt.due <= now);
        for (node_id, doubt) in idle.take(AT_ONCE.saturating_sub(self.under_way)) {
            self.knocks += 1;
            doubt.asking = Some(self.knocks);
            knocks.push(Knock { number: self.knocks, node_id: node_id.clone(), addr: doubt.addr });
        }
        self.under_way += knocks.len();
        knocks
    }

    /// Takes in what came of a knock; each is to be answered once.
    pub(super) fn answered(&mut self, knock: &Knock, answer: Answer, now: Instant) {
        self.under_way -= 1;
        let again = self.again();
        // Of an earlier doubt, it says nothing about this one.
        let asked = self.doubts.get_mut(&knock.node_id).filter(|doubt| doubt.asking == Some(knock.number));
        let Some(doubt) = asked else { return };
        doubt.asking = None;
        doubt.due = now + if doubt.word == Word::Left { again / GOODBYE } else { again };
        match answer {
            Answer::Opened => doubt.found = Found::Lives,
            // A host that was away and has only just started again has none of its tasks.
            Answer::Refused if doubt.found == Found::Silent => {}
            Answer::Refused => doubt.found = Found::Lives,
            Answer::Nothing => doubt.found = Found::Silent,
            Answer::Unasked => doubt.due = now + again / 8,
        }
    }

    /// When [`Reflex::knocks`] has something next; nothing while as many knocks as may be are under way.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let idle = self.doubts.values().filter(|doubt| doubt.asking.is_none());
        if self.under_way < AT_ONCE { idle.map(|doubt| doubt.due).min() } else { None }
    }

    /// The data path addresses that nothing more is sent to, but for last endpoints. `heard` are the hosts that managers
    /// hear from now. An address that a living host has as well is not among them.
    pub(super) fn left_out(
        &self,
        data_paths: &BTreeMap<String, Ipv4Addr>,
        heard: &BTreeSet<String>,
    ) -> BTreeSet<Ipv4Addr> {
        let silent = |node_id: &String| {
            let doubt = self.doubts.get(node_id);
            doubt.is_some_and(|doubt| doubt.word != Word::Suspect && doubt.found == Found::Silent)
                && !heard.contains(node_id)
        };
        let of_silent = |wanted: bool| data_paths.iter().filter(move |(id, _)| silent(id) == wanted).map(|(_, ip)| *ip);
        let mut left_out: BTreeSet<Ipv4Addr> = of_silent(true).collect();
        if !left_out.is_empty() {
            of_silent(false).for_each(|ip| _ = left_out.remove(&ip));
        }
        left_out
    }

    fn again(&self) -> Duration {
        AGAIN.max(SHARE * u32::try_from(self.hosts).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use gossip::{Identity, Member};

    use super::*;

    static START: LazyLock<Instant> = LazyLock::new(Instant::now);

    fn at(ms: u64) -> Instant {
        *START + Duration::from_millis(ms)
    }

    fn ip(number: usize) -> Ipv4Addr {
        Ipv4Addr::from(0x0a00_0000 + u32::try_from(number).unwrap())
    }

    /// A cluster of hosts n1, n2, … as n1 sees it.
    struct World {
        reflex: Reflex,
        members: Members,
        hosts: BTreeMap<String, String>,
        data_paths: BTreeMap<String, Ipv4Addr>,
        heard: BTreeSet<String>,
    }

    impl World {
        fn new(count: usize) -> World {
            let mut world = World {
                reflex: Reflex::new("n1".into()),
                members: Members::new(),
                hosts: BTreeMap::new(),
                data_paths: BTreeMap::new(),
                heard: BTreeSet::new(),
            };
            for number in 1..=count {
                world.hosts.insert(format!("n{number}"), format!("{}:2377", ip(number)));
                world.data_paths.insert(format!("n{number}"), ip(number));
                if number > 1 {
                    world.says(number, 1, true, false);
                }
            }
            world.look(0);
            world
        }

        fn says(&mut self, number: usize, generation: u64, alive: bool, suspect: bool) {
            let node_id = format!("n{number}");
            let addr = format!("{}:2377", ip(number)).parse().unwrap();
            let identity = Identity { node_id: node_id.clone(), addr, generation };
            self.members.insert(node_id, Member { identity: identity.into(), alive, suspect, since: at(0) });
        }

        fn look(&mut self, ms: u64) {
            self.reflex.look(&self.members, &self.hosts, at(ms));
        }

        fn knocks(&mut self, ms: u64) -> Vec<Knock> {
            self.reflex.knocks(at(ms))
        }

        /// Knocks at whom is due, and has all of them say this.
        fn all_say(&mut self, ms: u64, answer: Answer) -> usize {
            let knocks = self.knocks(ms);
            knocks.iter().for_each(|knock| self.reflex.answered(knock, answer, at(ms)));
            knocks.len()
        }

        #[track_caller]
        fn check(&self, expected: &[usize]) {
            let left_out: Vec<Ipv4Addr> = self.reflex.left_out(&self.data_paths, &self.heard).into_iter().collect();
            assert_eq!(left_out, expected.iter().map(|number| ip(*number)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn only_who_is_called_dead_and_is_silent_is_left_out() {
        for (answer, expected) in
            [(Answer::Nothing, &[2][..]), (Answer::Opened, &[]), (Answer::Refused, &[]), (Answer::Unasked, &[])]
        {
            let mut world = World::new(3);
            assert_eq!(world.knocks(0), []);
            world.says(2, 1, false, false);
            world.look(10);
            world.check(&[]);
            assert_eq!(world.all_say(10, answer), 1);
            world.check(expected);
            world.says(2, 1, true, false);
            world.look(20);
            world.check(&[]);
        }
    }

    #[test]
    fn a_suspicion_is_looked_into_and_decides_nothing() {
        let mut world = World::new(3);
        world.says(2, 1, true, true);
        world.look(0);
        assert_eq!(world.all_say(0, Answer::Nothing), 1);
        world.check(&[]);
        // The answer is there when it is called dead.
        world.says(2, 1, false, false);
        world.look(500);
        world.check(&[2]);
        assert_eq!(world.knocks(500), []);
    }

    #[test]
    fn what_was_said_to_a_suspicion_is_asked_again_at_the_death() {
        let mut world = World::new(3);
        world.says(2, 1, true, true);
        world.look(0);
        world.all_say(0, Answer::Opened);
        world.says(2, 1, false, false);
        world.look(500);
        assert_eq!(world.all_say(500, Answer::Nothing), 1);
        world.check(&[2]);
    }

    #[test]
    fn who_answered_and_dies_later_is_found_out_without_gossip() {
        let mut world = World::new(3);
        world.says(2, 1, false, false);
        world.look(0);
        // Its daemon was killed.
        world.all_say(0, Answer::Refused);
        world.check(&[]);
        assert_eq!(world.reflex.next_due(), Some(at(2000)));
        assert_eq!(world.knocks(1999), []);
        assert_eq!(world.all_say(2000, Answer::Nothing), 1);
        world.check(&[2]);
        // A machine that comes back without its tasks first refuses.
        world.all_say(4000, Answer::Refused);
        world.check(&[2]);
        world.all_say(6000, Answer::Opened);
        world.check(&[]);
    }

    #[test]
    fn managers_that_hear_it_are_believed() {
        let mut world = World::new(3);
        world.says(2, 1, false, false);
        world.look(0);
        world.all_say(0, Answer::Nothing);
        world.heard.insert("n2".into());
        world.check(&[]);
        world.heard.clear();
        world.check(&[2]);
    }

    #[test]
    fn a_death_of_an_earlier_boot_or_node_hits_nobody() {
        let mut world = World::new(3);
        world.says(2, 1, false, false);
        world.look(0);
        let late = world.knocks(0);
        // It has started again meanwhile, and is called dead anew.
        world.says(2, 2, false, false);
        world.look(10);
        world.reflex.answered(&late[0], Answer::Nothing, at(20));
        world.check(&[]);
        // Wiped and joined again at the same address, under another id.
        world.all_say(20, Answer::Nothing);
        world.check(&[2]);
        world.hosts.insert("n9".into(), format!("{}:2377", ip(2)));
        world.data_paths.insert("n9".into(), ip(2));
        world.says(9, 1, true, false);
        world.look(30);
        world.check(&[]);
        // The other way around: who was removed takes his doubt along.
        world.says(9, 1, false, false);
        world.look(40);
        world.all_say(40, Answer::Nothing);
        world.check(&[2]);
        for node_id in ["n2", "n9"] {
            world.hosts.remove(node_id);
            world.data_paths.remove(node_id);
        }
        world.look(50);
        world.check(&[]);
        assert_eq!(world.reflex.next_due(), None);
    }

    #[test]
    fn hosts_that_gossip_has_not_met_are_asked_after_a_while() {
        let mut world = World::new(3);
        world.hosts.insert("n4".into(), format!("{}:2377", ip(4)));
        world.data_paths.insert("n4".into(), ip(4));
        world.look(0);
        assert_eq!(world.knocks(4999), []);
        assert_eq!(world.all_say(5000, Answer::Nothing), 1);
        world.check(&[4]);
        world.says(4, 1, true, false);
        world.look(5010);
        world.check(&[]);
    }

    #[test]
    fn who_has_said_goodbye_is_asked_at_once_and_more_often() {
        let mut world = World::new(3);
        world.members.remove("n3");
        world.look(10);
        // Its kernel is still there.
        assert_eq!(world.all_say(10, Answer::Refused), 1);
        world.check(&[]);
        assert_eq!(world.knocks(509), []);
        assert_eq!(world.all_say(510, Answer::Nothing), 1);
        world.check(&[3]);
        world.says(3, 2, true, false);
        world.look(600);
        world.check(&[]);
        // Removed from the cluster, and back with the same id: not met.
        world.hosts.remove("n3");
        world.members.remove("n3");
        world.look(700);
        world.hosts.insert("n3".into(), format!("{}:2377", ip(3)));
        world.look(800);
        assert_eq!(world.knocks(800), []);
    }

    #[test]
    fn knocks_are_bounded() {
        let mut world = World::new(5000);
        world.says(2, 1, true, true);
        world.look(0);
        assert_eq!(world.knocks(0), [], "not at each suspect of so large a cluster");
        for number in 2..=5000 {
            world.says(number, 1, false, false);
        }
        world.look(10);
        let first = world.knocks(10);
        assert_eq!(first.len(), AT_ONCE);
        assert_eq!((world.knocks(10).len(), world.reflex.next_due()), (0, None));
        first.iter().for_each(|knock| world.reflex.answered(knock, Answer::Nothing, at(20)));
        let mut asked = first.len();
        while let Some(due) = world.reflex.next_due().filter(|due| *due <= at(20)) {
            assert!(due <= at(20));
            asked += world.all_say(20, Answer::Nothing);
        }
        assert_eq!(asked, 4999);
        // All of 5000 hosts together ask one of them a hundred times a second.
        assert_eq!(world.reflex.next_due(), Some(at(20 + 50_000)));
    }
}
