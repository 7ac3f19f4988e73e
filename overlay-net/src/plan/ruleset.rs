//! An nf_tables table as one value.
//!
//! `plan` builds it, `kernel` brings the kernel's table to it in one transaction. A rule says what it means
//! (`Match`, `Action`); how nf_tables expresses that is the kernel module's business.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::config::{Beside, Protocol};

/// What a table's chains see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4 packets.
    Ip,
    /// IPv6 packets. An IPv4 address in such a table stands for the IPv6 address beside it.
    Ip6,
    /// Frames of one device.
    Netdev,
}

impl Family {
    /// All of them.
    pub const ALL: [Family; 3] = [Family::Ip, Family::Ip6, Family::Netdev];
}

/// A whole table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// What its chains see.
    pub family: Family,
    /// The table's name, at most 31 bytes.
    pub name: String,
    /// A text that is kept with the table and says whose it is.
    pub comment: String,
    /// Sets and maps by name.
    pub sets: BTreeMap<String, Set>,
    /// Chains by name. Those without a hook are jumped to.
    pub chains: BTreeMap<String, Chain>,
    /// Which IPv6 addresses are beside which; for [`Family::Ip6`].
    pub beside: Vec<Beside>,
}

impl Table {
    /// How many things it is made of: sets with their elements, chains with their rules.
    #[must_use]
    pub fn parts(&self) -> usize {
        let elements: usize = self.sets.values().map(|set| 1 + set.len()).sum();
        elements + self.chains.values().map(|chain| 1 + chain.rules.len()).sum::<usize>()
    }
}

impl Set {
    fn len(&self) -> usize {
        match self {
            Set::Addresses(all) | Set::Backends(all) => all.len(),
            Set::Ports(all) => all.len(),
            Set::Links(all) => all.len(),
            Set::BackendsOf(all) => all.values().map(Vec::len).sum(),
            Set::PortChains(all) => all.len(),
        }
    }
}

/// A named set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Set {
    /// IPv4 addresses.
    Addresses(Vec<Ipv4Addr>),
    /// Port numbers.
    Ports(Vec<u16>),
    /// Names of interfaces.
    Links(Vec<String>),
    /// IPv4 address and the numbers 0, 1, 2, … to IPv4 addresses.
    BackendsOf(BTreeMap<Ipv4Addr, Vec<Ipv4Addr>>),
    /// Port to the chain that handles it.
    PortChains(BTreeMap<u16, String>),
    /// The numbers 0, 1, 2, … to IPv4 addresses.
    Backends(Vec<Ipv4Addr>),
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chain {
    /// Where it is attached; nothing for a chain that others jump to.
    pub hook: Option<Hook>,
    /// Its rules in order.
    pub rules: Vec<Rule>,
}

/// Where and when a chain runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// What its rules may do.
    pub kind: Kind,
    /// The point in a packet's way.
    pub point: Point,
    /// The order among chains of that point; smaller is earlier.
    pub priority: i32,
}

/// The type of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Accepts, drops, marks.
    Filter,
    /// Translates addresses; sees the first packet of a connection.
    Nat,
    /// Marks packets, which are then routed anew.
    Route,
}

/// A point in a packet's way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Point {
    /// As it arrives.
    Prerouting,
    /// On its way from one link to another.
    Forward,
    /// From a local process.
    Output,
    /// As it leaves.
    Postrouting,
    /// As a frame on this device, at the very last. Only in tables of family `Netdev`.
    Egress(String),
}

/// One rule: all matches hold, then the action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What must hold, in order.
    pub matches: Vec<Match>,
    /// What happens then.
    pub action: Action,
}

/// A condition on a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// It came by this interface.
    From(String),
    /// It leaves by this interface.
    To(String),
    /// It leaves by another interface.
    NotTo(String),
    /// It leaves by one of a set of interfaces.
    ToIn(String),
    /// Its source is in this network.
    Source(Ipv4Net),
    /// Its destination is in this network.
    Destination(Ipv4Net),
    /// Its destination is one of this host's own addresses.
    DestinationIsLocal,
    /// Its destination is in a set of addresses.
    DestinationIn(String),
    /// Its transport protocol.
    Protocol(Protocol),
    /// Its destination port (the protocol must have been matched before).
    Port(u16),
    /// Its destination port is in a set of ports.
    PortIn(String),
    /// It starts a connection.
    New,
    /// Its connection's destination was translated.
    Translated,
    /// Its connection's destination was not translated.
    Untranslated,
    /// It goes back to who started its connection.
    Reply,
    /// It came in a frame from a station of ours: a hardware address that was derived from an IPv4 address.
    FromStation,
    /// Its mark is a remembered address in this network.
    Marked(Ipv4Net),
    /// Its connection has such a mark.
    ConnectionMarked(Ipv4Net),
}

/// What to do with a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Throw it away without a word.
    Drop,
    /// Let it pass this chain.
    Accept,
    /// Do not follow its connection; only before connection tracking.
    Untracked,
    /// Answer with a TCP reset.
    RejectTcp,
    /// Answer with ICMP port unreachable.
    RejectPort,
    /// Answer with ICMP network unreachable.
    RejectNetwork,
    /// Translate the source to the address of the interface that it leaves by.
    Masquerade,
    /// Translate the destination.
    Translate {
        /// The new address.
        address: Ipv4Addr,
        /// The new port, or the old one.
        port: Option<u16>,
    },
    /// Translate the destination to a random one of a `Backends` map.
    Balance {
        /// The map.
        map: String,
        /// How many it has; not 0.
        count: u32,
        /// The new port, or the old one.
        port: Option<u16>,
    },
    /// Follow its connection apart from those that come by other stations, also where the rest is the same; only before
    /// connection tracking. Stations count as one where the last 16 bits of their addresses are the same.
    TrackByStation,
    /// Remember the station that its frame came from (the address in the hardware address) as the connection's mark.
    RememberStation,
    /// Give the packet its connection's mark.
    RecallStation,
    /// Send the frame to the station that is its mark.
    ToStation,
    /// Translate the destination to a random one of those that a `BackendsOf` map has for it.
    BalanceOf {
        /// The map.
        map: String,
        /// How many it has for this destination; not 0.
        count: u32,
    },
    /// Look the destination port up in a `PortChains` map and go on there.
    ChainOfPort(String),
}

impl Table {
    /// An empty table.
    #[must_use]
    pub fn new(family: Family, name: &str, comment: String) -> Table {
        Table {
            family,
            name: name.to_owned(),
            comment,
            sets: BTreeMap::new(),
            chains: BTreeMap::new(),
            beside: Vec::new(),
        }
    }

    /// The same for IPv6: every address stands for the one beside it, and what is said of an address that has none
    /// beside it is left out.
    #[must_use]
    pub fn six(mut self, beside: Vec<Beside>) -> Table {
        (self.family, self.beside) = (Family::Ip6, beside);
        let mut chains = std::mem::take(&mut self.chains);
        for chain in chains.values_mut() {
            chain.rules.retain(|rule| self.can_say(rule));
        }
        self.chains = chains;
        let has_one = |address: &Ipv4Addr| self.beside.iter().any(|beside| beside.address(*address).is_some());
        for set in self.sets.values_mut() {
            match set {
                Set::Addresses(all) | Set::Backends(all) => all.retain(has_one),
                Set::BackendsOf(all) => all.retain(|address, list| has_one(address) && list.iter().all(has_one)),
                Set::Ports(_) | Set::PortChains(_) | Set::Links(_) => {}
            }
        }
        self
    }

    fn can_say(&self, rule: &Rule) -> bool {
        let matches = rule.matches.iter().all(|condition| match condition {
            Match::Source(net) | Match::Destination(net) => self.network6(*net).is_some(),
            _ => true,
        });
        matches
            && match &rule.action {
                Action::Translate { address, .. } => self.address6(*address).is_some(),
                _ => true,
            }
    }

    /// The address beside this one.
    #[must_use]
    pub fn address6(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        self.beside.iter().find_map(|beside| beside.address(address))
    }

    /// The network beside this one: that of a whole network of ours, and what a host is to itself.
    #[must_use]
    pub fn network6(&self, net: Ipv4Net) -> Option<Ipv6Net> {
        if net.network().is_loopback() && net.prefix_len() == 8 {
            return Some(Ipv6Net::from(Ipv6Addr::LOCALHOST));
        }
        self.beside.iter().find(|beside| beside.is_of(net)).map(|beside| beside.subnet())
    }

    /// Adds a base chain.
    pub fn hook(&mut self, name: &str, kind: Kind, point: Point, priority: i32, rules: Vec<Rule>) {
        let chain = Chain { hook: Some(Hook { kind, point, priority }), rules };
        self.chains.insert(name.to_owned(), chain);
    }

    /// Adds a chain that balances to these addresses, and its map; not empty.
    pub fn balance(&mut self, chain: &str, backends: &[Ipv4Addr], protocol: Option<Protocol>, port: Option<u16>) {
        assert!(!backends.is_empty(), "a chain that balances has somewhere to go: {chain}");
        // The transport protocol must be known to nf_tables before a port is translated.
        let matches: Vec<Match> = protocol.into_iter().map(Match::Protocol).collect();
        let action = if let [address] = backends {
            Action::Translate { address: *address, port }
        } else {
            let map = format!("to-{chain}");
            let count = u32::try_from(backends.len()).expect("endpoints are bounded far below 2^32");
            self.sets.insert(map.clone(), Set::Backends(backends.to_vec()));
            Action::Balance { map, count, port }
        };
        self.chains.insert(chain.to_owned(), Chain { hook: None, rules: vec![Rule { matches, action }] });
    }
}

impl Rule {
    /// A rule.
    #[must_use]
    pub fn new(matches: impl Into<Vec<Match>>, action: Action) -> Rule {
        Rule { matches: matches.into(), action }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table {:?} {} # {}", self.family, self.name, self.comment)?;
        for (name, set) in &self.sets {
            writeln!(f, "  set {name} {set:?}")?;
        }
        for (name, chain) in &self.chains {
            writeln!(f, "  chain {name} {:?}", chain.hook)?;
            for rule in &chain.rules {
                writeln!(f, "    {:?} => {:?}", rule.matches, rule.action)?;
            }
        }
        Ok(())
    }
}
