//! nf_tables over netlink: `Table` values in, one transaction out.
//!
//! A transaction puts whole tables in place of others, or changes what differs between two values of them; packets see
//! the old tables or the new ones and never anything between. Established connections keep their translation: it lives
//! in conntrack. No table of others is touched here.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;

use libc::{
    NFNL_SUBSYS_NFTABLES, NFT_MSG_DELCHAIN, NFT_MSG_DELRULE, NFT_MSG_DELSET, NFT_MSG_DELSETELEM, NFT_MSG_DELTABLE,
    NFT_MSG_GETGEN, NFT_MSG_GETTABLE, NFT_MSG_NEWCHAIN, NFT_MSG_NEWRULE, NFT_MSG_NEWSET, NFT_MSG_NEWSETELEM,
    NFT_MSG_NEWTABLE, NFT_SET_MAP,
};
use nix::sys::socket::SockProtocol;

use super::expressions::{DATA_VALUE, DATA_VERDICT, LIST_ELEM, Terms, VERDICT_CHAIN, VERDICT_CODE, lower, number};
use super::netlink::{APPEND, CREATE, DUMP, Message, Socket, attributes, be32_of, str_of};
use super::netns::NetNs;
use crate::plan::ruleset::{Chain, Family, Hook, Kind, Point, Rule, Set, Table};

pub(super) const NFPROTO_UNSPEC: u8 = 0;
pub(super) const NFPROTO_IPV4: u8 = 2;
pub(super) const NFPROTO_NETDEV: u8 = 5;
pub(super) const NFPROTO_IPV6: u8 = 10;
/// Attributes are at most 64 KiB, an element with a chain's name at most about 170 bytes.
const ELEMENTS_PER_MESSAGE: usize = 300;
// Attribute numbers of linux/netfilter/nf_tables.h.
pub(super) const TABLE_NAME: u16 = 1;
pub(super) const TABLE_FLAGS: u16 = 2;
/// `NFTA_GEN_ID`.
const GENERATION: u16 = 1;
/// `NF_ACCEPT`, as a chain's policy.
pub(super) const POLICY_ACCEPT: u32 = 1;
const TABLE_USERDATA: u16 = 6;
pub(super) const CHAIN_TABLE: u16 = 1;
pub(super) const CHAIN_NAME: u16 = 3;
pub(super) const CHAIN_HOOK: u16 = 4;
pub(super) const CHAIN_POLICY: u16 = 5;
pub(super) const CHAIN_TYPE: u16 = 7;
pub(super) const HOOK_NUM: u16 = 1;
pub(super) const HOOK_PRIORITY: u16 = 2;
const HOOK_DEVICE: u16 = 3;
pub(super) const RULE_TABLE: u16 = 1;
pub(super) const RULE_CHAIN: u16 = 2;
pub(super) const RULE_HANDLE: u16 = 3;
pub(super) const RULE_EXPRESSIONS: u16 = 4;
pub(super) const RULE_USERDATA: u16 = 7;
pub(super) const SET_TABLE: u16 = 1;
pub(super) const SET_NAME: u16 = 2;
pub(super) const SET_FLAGS: u16 = 3;
pub(super) const SET_KEY_TYPE: u16 = 4;
pub(super) const SET_KEY_LEN: u16 = 5;
pub(super) const SET_DATA_TYPE: u16 = 6;
const SET_DATA_LEN: u16 = 7;
const SET_ID: u16 = 10;
pub(super) const ELEMENTS_TABLE: u16 = 1;
pub(super) const ELEMENTS_SET: u16 = 2;
pub(super) const ELEMENTS: u16 = 3;
pub(super) const ELEM_KEY: u16 = 1;
pub(super) const ELEM_DATA: u16 = 2;
/// `NFT_GOTO`: where a map's chain ends, the packet's way in this base chain ends too.
pub(super) const GOTO: u32 = (-4i32).cast_unsigned();
/// `NFT_DATA_VERDICT`: the data type of maps to chains.
const TYPE_VERDICT: u32 = 0xffff_ff00;
/// `IFNAMSIZ`.
const INTERFACE_BYTES: usize = 16;
// What the nft tool calls these types; only tools that list the table read them.
const TYPE_INTEGER: u32 = 4;
const TYPE_IPV4: u32 = 7;
const TYPE_IPV6: u32 = 8;
const TYPE_PORT: u32 = 13;
const TYPE_INTERFACE: u32 = 41;
/// A number of four bytes. Types of keys that have parts are put together six bits a part.
const TYPE_MARK: u32 = 19;

/// A handle on the nf_tables of one namespace.
#[derive(Debug)]
pub struct Tables {
    pub(super) socket: Socket,
}

impl Tables {
    /// Opens a handle on a namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the kernel has no nf_tables.
    pub fn open(namespace: &NetNs) -> io::Result<Tables> {
        Ok(Tables { socket: namespace.visit(|| Socket::open(SockProtocol::NetlinkNetFilter))? })
    }

    /// Puts a table in place of the one with its name, or makes it.
    ///
    /// # Errors
    /// What the kernel says and about what; the old table is untouched then.
    pub fn replace(&mut self, table: &Table) -> io::Result<()> {
        let mut batch = Batch::default();
        batch.whole(table);
        batch.send(&mut self.socket)
    }

    /// The number of the namespace's generation of rules: each transaction of anybody makes it another one.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn generation(&mut self) -> io::Result<u32> {
        let replies = self.socket.request(Message::new(kind(NFT_MSG_GETGEN), 0, &[NFPROTO_UNSPEC, 0, 0, 0]))?;
        let found = replies.iter().find_map(|reply| {
            attributes(reply.body.get(4..)?).find(|(kind, _)| *kind == GENERATION).map(|(_, value)| be32_of(value))
        });
        found.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the kernel does not say its generation"))
    }

    /// Removes the tables of these names of our families, in one transaction; missing ones are fine.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn delete(&mut self, names: &[&str]) -> io::Result<()> {
        let there = self.list_families()?;
        let mut batch = Batch::default();
        for family in Family::ALL {
            for name in names {
                if there.iter().any(|(number, found)| *number == protocol(family) && found == name) {
                    batch.delete(family, name);
                }
            }
        }
        batch.send(&mut self.socket)
    }

    /// The names of all tables of all families.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub fn list(&mut self) -> io::Result<Vec<String>> {
        Ok(self.list_families()?.into_iter().map(|(_, name)| name).collect())
    }

    pub(super) fn list_families(&mut self) -> io::Result<Vec<(u8, String)>> {
        let message = Message::new(kind(NFT_MSG_GETTABLE), DUMP, &[NFPROTO_UNSPEC, 0, 0, 0]);
        let replies = self.socket.request(message)?;
        Ok(replies
            .iter()
            .filter_map(|reply| {
                let (_, name) = attributes(reply.body.get(4..)?).find(|(kind, _)| *kind == TABLE_NAME)?;
                Some((reply.body[0], str_of(name)))
            })
            .collect())
    }
}

pub(super) fn kind(message: i32) -> u16 {
    let subsystem = u16::try_from(NFNL_SUBSYS_NFTABLES).expect("a subsystem is a byte");
    (subsystem << 8) | u16::try_from(message).expect("a message number is a byte")
}

pub(super) fn protocol(family: Family) -> u8 {
    match family {
        Family::Ip => NFPROTO_IPV4,
        Family::Ip6 => NFPROTO_IPV6,
        Family::Netdev => NFPROTO_NETDEV,
    }
}

/// One transaction under construction.
#[derive(Debug, Default)]
pub(super) struct Batch {
    messages: Vec<Message>,
    /// What each message is about, for error texts.
    about: Vec<String>,
    /// How many sets it makes; each has a number of its own in a transaction.
    sets: u32,
}

impl Batch {
    /// Puts a table in place of the one with its name and family, or makes it.
    pub(super) fn whole(&mut self, table: &Table) {
        self.table(table, NFT_MSG_NEWTABLE, "table");
        self.table(table, NFT_MSG_DELTABLE, "old table");
        self.table(table, NFT_MSG_NEWTABLE, "table");
        for (name, chain) in &table.chains {
            self.chain(table, name, chain);
        }
        for (name, set) in &table.sets {
            self.set(table, name, set);
        }
        for (name, chain) in &table.chains {
            self.rules(table, name, chain);
        }
    }

    /// Adds all that another one has.
    pub(super) fn append(&mut self, other: &Batch) {
        self.messages.extend_from_slice(&other.messages);
        self.about.extend_from_slice(&other.about);
    }

    /// Removes a table, which must be there.
    pub(super) fn delete(&mut self, family: Family, name: &str) {
        self.table(&Table::new(family, name, String::new()), NFT_MSG_DELTABLE, "table");
    }

    /// Leads from one value of a table to another by what differs alone. New things come before what refers to them,
    /// and references go before what they refer to. False, with nothing added, where that cannot be.
    pub(super) fn difference(&mut self, old: &Table, new: &Table) -> bool {
        let remade = |(name, old): (&String, &Set)| {
            new.sets.get(name).is_some_and(|changed| types(new.family, old) != types(new.family, changed))
        };
        if old.comment != new.comment || old.beside != new.beside || old.sets.iter().any(remade) {
            return false;
        }
        let moved = |name: &String, chain: &Chain| old.chains.get(name).is_some_and(|old| old.hook != chain.hook);
        for (name, chain) in &new.chains {
            if moved(name, chain) {
                self.named(new, NFT_MSG_DELCHAIN, (CHAIN_TABLE, CHAIN_NAME), name, "chain");
            }
            if moved(name, chain) || !old.chains.contains_key(name) {
                self.chain(new, name, chain);
            }
        }
        for (name, set) in &new.sets {
            match old.sets.get(name) {
                None => self.set(new, name, set),
                Some(old) if old == set => {}
                Some(old) => self.changed_elements(new, name, old, set),
            }
        }
        for (name, chain) in &new.chains {
            match old.chains.get(name) {
                Some(old) if old == chain => {}
                Some(old) if old.hook == chain.hook => {
                    self.named(new, NFT_MSG_DELRULE, (RULE_TABLE, RULE_CHAIN), name, "rules of chain");
                    self.rules(new, name, chain);
                }
                _ => self.rules(new, name, chain),
            }
        }
        // Rules refer to sets, and sets to chains.
        let gone = || old.chains.keys().filter(|name| !new.chains.contains_key(*name));
        for name in gone() {
            self.named(new, NFT_MSG_DELRULE, (RULE_TABLE, RULE_CHAIN), name, "rules of chain");
        }
        for name in old.sets.keys().filter(|name| !new.sets.contains_key(*name)) {
            self.named(new, NFT_MSG_DELSET, (SET_TABLE, SET_NAME), name, "set");
        }
        for name in gone() {
            self.named(new, NFT_MSG_DELCHAIN, (CHAIN_TABLE, CHAIN_NAME), name, "chain");
        }
        true
    }

    /// A message about something of a table that has a name.
    fn named(&mut self, table: &Table, message: i32, (of, name): (u16, u16), called: &str, what: &str) {
        let mut m = Batch::start(table.family, message, 0);
        m.put_str(of, &table.name).put_str(name, called);
        self.push(format!("old {what} {called}"), m);
    }

    fn changed_elements(&mut self, table: &Table, name: &str, old: &Set, new: &Set) {
        let (old, new) = (without(old, new), without(new, old));
        let (before, after) = (elements(table, &old), elements(table, &new));
        let gone = before.iter().filter(|(key, element)| after.get(*key) != Some(element));
        self.elements(table, name, NFT_MSG_DELSETELEM, gone.map(|(key, _)| (key, &Element::Key)));
        let added = after.iter().filter(|(key, element)| before.get(*key) != Some(element));
        self.elements(table, name, NFT_MSG_NEWSETELEM, added);
    }

    pub(super) fn push(&mut self, about: String, message: Message) {
        self.messages.push(message);
        self.about.push(about);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Its messages in order.
    pub(super) fn messages(&self) -> impl Iterator<Item = &Message> {
        self.messages.iter()
    }

    /// Carries it out; an empty one is done.
    pub(super) fn send(self, socket: &mut Socket) -> io::Result<()> {
        if self.messages.is_empty() {
            return Ok(());
        }
        // The batch's own header carries the subsystem, in network byte order.
        let fixed = [0, 0, 0, 10];
        let begin = Message::new(u16::try_from(libc::NFNL_MSG_BATCH_BEGIN).expect("a small number"), 0, &fixed);
        let end = Message::new(u16::try_from(libc::NFNL_MSG_BATCH_END).expect("a small number"), 0, &fixed);
        let messages = std::iter::once(begin).chain(self.messages).chain(std::iter::once(end)).collect();
        let about = self.about;
        // The kernel reports what it finds only at the end, for the batch's first message.
        socket.batch(messages, |place| match place.checked_sub(1) {
            Some(place) => about.get(place).cloned().unwrap_or_else(|| "commit".into()),
            None => "commit".into(),
        })
    }

    fn start(family: Family, message: i32, flags: u16) -> Message {
        Message::new(kind(message), flags, &[protocol(family), 0, 0, 0])
    }

    fn table(&mut self, table: &Table, message: i32, about: &str) {
        let mut m = Batch::start(table.family, message, if message == NFT_MSG_NEWTABLE { CREATE } else { 0 });
        m.put_str(TABLE_NAME, &table.name);
        if message == NFT_MSG_NEWTABLE && !table.comment.is_empty() {
            // What libnftnl writes for a comment: type 0, length, text with its closing zero.
            let text: Vec<u8> = table.comment.bytes().take(120).chain([0]).collect();
            let mut data = vec![0, u8::try_from(text.len()).expect("cut above")];
            data.extend(text);
            m.put(TABLE_USERDATA, &data);
        }
        self.push(format!("{about} {}", table.name), m);
    }

    pub(super) fn chain(&mut self, table: &Table, name: &str, chain: &Chain) {
        let mut m = Batch::start(table.family, NFT_MSG_NEWCHAIN, CREATE);
        m.put_str(CHAIN_TABLE, &table.name).put_str(CHAIN_NAME, name);
        if let Some(Hook { kind, point, priority }) = &chain.hook {
            m.nest(CHAIN_HOOK, |m| {
                let number = match point {
                    Point::Prerouting => 0,
                    Point::Forward => 2,
                    Point::Output => 3,
                    Point::Postrouting => 4,
                    // `NF_NETDEV_EGRESS`: numbers are of the family.
                    Point::Egress(_) => 1,
                };
                m.put_be32(HOOK_NUM, number).put_be32(HOOK_PRIORITY, priority.cast_unsigned());
                if let Point::Egress(device) = point {
                    m.put_str(HOOK_DEVICE, device);
                }
            });
            m.put_str(
                CHAIN_TYPE,
                match kind {
                    Kind::Filter => "filter",
                    Kind::Nat => "nat",
                    Kind::Route => "route",
                },
            );
            // What nothing decides about passes; said, since somebody may change it.
            m.put_be32(CHAIN_POLICY, POLICY_ACCEPT);
        }
        self.push(format!("chain {name}"), m);
    }

    fn set(&mut self, table: &Table, name: &str, set: &Set) {
        let (key_type, key_length, data) = types(table.family, set);
        let mut m = Batch::start(table.family, NFT_MSG_NEWSET, CREATE);
        m.put_str(SET_TABLE, &table.name).put_str(SET_NAME, name);
        m.put_be32(SET_FLAGS, if data.is_some() { number(NFT_SET_MAP) } else { 0 });
        m.put_be32(SET_KEY_TYPE, key_type).put_be32(SET_KEY_LEN, key_length);
        if let Some((data_type, data_length)) = data {
            m.put_be32(SET_DATA_TYPE, data_type).put_be32(SET_DATA_LEN, data_length);
        }
        self.sets += 1;
        m.put_be32(SET_ID, self.sets);
        self.push(format!("set {name}"), m);

        self.elements(table, name, NFT_MSG_NEWSETELEM, &elements(table, set));
    }

    fn elements<'a, 'b: 'a>(
        &mut self,
        table: &Table,
        set: &str,
        message: i32,
        elements: impl IntoIterator<Item = (&'a Vec<u8>, &'a Element<'b>)>,
    ) {
        let all: Vec<_> = elements.into_iter().collect();
        for chunk in all.chunks(ELEMENTS_PER_MESSAGE) {
            let flags = if message == NFT_MSG_NEWSETELEM { CREATE } else { 0 };
            let mut m = Batch::start(table.family, message, flags);
            m.put_str(ELEMENTS_TABLE, &table.name).put_str(ELEMENTS_SET, set);
            m.nest(ELEMENTS, |m| {
                for (key, element) in chunk {
                    m.nest(LIST_ELEM, |m| {
                        m.nest(ELEM_KEY, |m| {
                            m.put(DATA_VALUE, key);
                        });
                        element.write(m);
                    });
                }
            });
            self.push(format!("elements of {set}"), m);
        }
    }

    pub(super) fn rules(&mut self, table: &Table, name: &str, chain: &Chain) {
        for rule in &chain.rules {
            self.rule(table, name, rule);
        }
    }

    fn rule(&mut self, table: &Table, chain: &str, rule: &Rule) {
        let mut m = Batch::start(table.family, NFT_MSG_NEWRULE, CREATE | APPEND);
        m.put_str(RULE_TABLE, &table.name).put_str(RULE_CHAIN, chain);
        m.nest(RULE_EXPRESSIONS, |m| lower(m, Terms::of(table), rule));
        self.push(format!("rule {rule:?} of chain {chain}"), m);
    }
}

/// What an element of a set or map leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Element<'a> {
    /// Nothing: it is in the set.
    Key,
    /// A value.
    Value(Vec<u8>),
    /// A chain.
    Chain(&'a str),
}

impl Element<'_> {
    fn write(&self, m: &mut Message) {
        match self {
            Element::Key => {}
            Element::Value(value) => {
                m.nest(ELEM_DATA, |m| {
                    m.put(DATA_VALUE, value);
                });
            }
            Element::Chain(chain) => {
                m.nest(ELEM_DATA, |m| {
                    m.nest(DATA_VERDICT, |m| {
                        m.put_be32(VERDICT_CODE, GOTO).put_str(VERDICT_CHAIN, chain);
                    });
                });
            }
        }
    }
}

/// What of a set is not the same in another one, at least.
fn without(set: &Set, other: &Set) -> Set {
    match (set, other) {
        (Set::Addresses(all), Set::Addresses(others)) => {
            let others: BTreeSet<&Ipv4Addr> = others.iter().collect();
            Set::Addresses(all.iter().filter(|address| !others.contains(address)).copied().collect())
        }
        (Set::BackendsOf(all), Set::BackendsOf(others)) => {
            let differs = |(of, list): &(&Ipv4Addr, &Vec<Ipv4Addr>)| others.get(*of) != Some(*list);
            Set::BackendsOf(all.iter().filter(differs).map(|(of, list)| (*of, list.clone())).collect())
        }
        _ => set.clone(),
    }
}

/// Type and length of a set's keys, and of what they lead to.
pub(super) fn types(family: Family, set: &Set) -> (u32, u32, Option<(u32, u32)>) {
    let (address, length) = if family == Family::Ip6 { (TYPE_IPV6, 16) } else { (TYPE_IPV4, 4) };
    match set {
        Set::Addresses(_) => (address, length, None),
        Set::Ports(_) => (TYPE_PORT, 2, None),
        Set::Links(_) => (TYPE_INTERFACE, INTERFACE_BYTES as u32, None),
        Set::BackendsOf(_) => (address << 6 | TYPE_MARK, length + 4, Some((address, length))),
        Set::PortChains(_) => (TYPE_PORT, 2, Some((TYPE_VERDICT, 16))),
        Set::Backends(_) => (TYPE_INTEGER, 4, Some((address, length))),
    }
}

/// An interface's name as it is compared.
fn padded(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(INTERFACE_BYTES, 0);
    bytes
}

/// The elements of a set as they are on the wire.
pub(super) fn elements<'a>(table: &Table, set: &'a Set) -> BTreeMap<Vec<u8>, Element<'a>> {
    let octets = |address: &std::net::Ipv4Addr| Terms::of(table).address(*address);
    match set {
        Set::Addresses(all) => all.iter().map(|a| (octets(a), Element::Key)).collect(),
        Set::Links(all) => all.iter().map(|name| (padded(name), Element::Key)).collect(),
        Set::Ports(all) => all.iter().map(|p| (p.to_be_bytes().to_vec(), Element::Key)).collect(),
        Set::PortChains(all) => all.iter().map(|(p, c)| (p.to_be_bytes().to_vec(), Element::Chain(c))).collect(),
        // numgen's numbers are in host byte order.
        Set::Backends(all) => {
            (0u32..).zip(all).map(|(n, a)| (n.to_ne_bytes().to_vec(), Element::Value(octets(a)))).collect()
        }
        Set::BackendsOf(all) => {
            let numbered = |of: &Ipv4Addr, all: &Vec<Ipv4Addr>| -> Vec<(Vec<u8>, Element<'a>)> {
                let key = |n: u32| [octets(of), n.to_ne_bytes().to_vec()].concat();
                (0u32..).zip(all).map(|(n, a)| (key(n), Element::Value(octets(a)))).collect()
            };
            all.iter().flat_map(|(of, all)| numbered(of, all)).collect()
        }
    }
}
