//! nf_tables over netlink: a `Table` value in, one transaction out.
//!
//! Replacing is delete and make anew inside one batch, so that packets see the old table or the new one and never
//! anything between. Established connections keep their translation: it lives in conntrack. No other table is ever
//! read or touched.

use std::io;

use libc::{
    NFNL_SUBSYS_NFTABLES, NFT_CMP_EQ, NFT_CMP_NEQ, NFT_CT_DIRECTION, NFT_CT_MARK, NFT_CT_STATE, NFT_CT_STATUS,
    NFT_META_IIFNAME, NFT_META_L4PROTO, NFT_META_MARK, NFT_META_OIFNAME, NFT_MSG_DELTABLE, NFT_MSG_GETTABLE,
    NFT_MSG_NEWCHAIN, NFT_MSG_NEWRULE, NFT_MSG_NEWSET, NFT_MSG_NEWSETELEM, NFT_MSG_NEWTABLE, NFT_NG_RANDOM,
    NFT_PAYLOAD_LL_HEADER, NFT_PAYLOAD_NETWORK_HEADER, NFT_PAYLOAD_TRANSPORT_HEADER, NFT_REG_1, NFT_REG_2,
    NFT_REG_VERDICT, NFT_REJECT_ICMP_UNREACH, NFT_REJECT_TCP_RST, NFT_SET_MAP,
};
use nix::sys::socket::SockProtocol;

use super::netlink::{CREATE, DUMP, Message, Socket, attributes, str_of};
use super::netns::NetNs;
use crate::plan::ruleset::{Action, Chain, Family, Hook, Kind, Match, Point, Rule, Set, Table};

const NFPROTO_UNSPEC: u8 = 0;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_NETDEV: u8 = 5;
/// Attributes are at most 64 KiB, an element with a chain's name at most about 170 bytes.
const ELEMENTS_PER_MESSAGE: usize = 300;
// Attribute numbers of linux/netfilter/nf_tables.h.
const TABLE_NAME: u16 = 1;
const TABLE_USERDATA: u16 = 6;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUM: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const HOOK_DEVICE: u16 = 3;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
const LIST_ELEM: u16 = 1;
const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LEN: u16 = 5;
const SET_DATA_TYPE: u16 = 6;
const SET_DATA_LEN: u16 = 7;
const SET_ID: u16 = 10;
const ELEMENTS_TABLE: u16 = 1;
const ELEMENTS_SET: u16 = 2;
const ELEMENTS: u16 = 3;
const ELEM_KEY: u16 = 1;
const ELEM_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
/// `NFT_GOTO`: where a map's chain ends, the packet's way in this base chain ends too.
const GOTO: u32 = (-4i32).cast_unsigned();
const NF_DROP: u32 = 0;
/// `NFT_DATA_VERDICT`: the data type of maps to chains.
const TYPE_VERDICT: u32 = 0xffff_ff00;
// What the nft tool calls these types; only tools that list the table read them.
const TYPE_INTEGER: u32 = 4;
const TYPE_IPV4: u32 = 7;
const TYPE_PORT: u32 = 13;
/// `RTN_LOCAL`.
const ADDRESS_LOCAL: u32 = 2;
/// `NFT_FIB_RESULT_ADDRTYPE`, `NFTA_FIB_F_DADDR`.
const FIB_ADDRESS_TYPE: u32 = 3;
const FIB_DESTINATION: u32 = 2;
/// `NF_CT_STATE_BIT(IP_CT_NEW)`, `IPS_DST_NAT`.
const STATE_NEW: u32 = 8;
const STATUS_DESTINATION_TRANSLATED: u32 = 32;
/// `NF_NAT_MANIP_DST`'s number in the nat expression.
const NAT_DESTINATION: u32 = 1;
/// ICMP code "port unreachable".
const PORT_UNREACHABLE: u8 = 3;
/// Byte offsets in the IPv4 header, and of the destination port in TCP, UDP and SCTP.
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;
const DESTINATION_PORT: u32 = 2;
/// Byte offsets in the Ethernet header: the source address, and the last four bytes of both.
const MAC_SOURCE: u32 = 6;
const STATION_SOURCE: u32 = 8;
const STATION_DESTINATION: u32 = 2;
/// The two bytes that every derived hardware address begins with.
const STATION_PREFIX: [u8; 2] = [0x02, 0x42];
/// `IP_CT_DIR_REPLY`.
const DIRECTION_REPLY: u8 = 1;

/// A handle on the nf_tables of one namespace.
#[derive(Debug)]
pub struct Tables {
    socket: Socket,
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
        batch.table(table, NFT_MSG_NEWTABLE, "table");
        batch.table(table, NFT_MSG_DELTABLE, "old table");
        batch.table(table, NFT_MSG_NEWTABLE, "table");
        for (name, chain) in &table.chains {
            batch.chain(table, name, chain);
        }
        for (id, (name, set)) in (1..).zip(&table.sets) {
            batch.set(table, id, name, set);
        }
        for (name, chain) in &table.chains {
            for rule in &chain.rules {
                batch.rule(table, name, rule);
            }
        }
        batch.send(&mut self.socket)
    }

    /// Removes the tables of this name of our families; missing ones are fine.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn delete(&mut self, name: &str) -> io::Result<()> {
        let there = self.list_families()?;
        let mut batch = Batch::default();
        for family in [Family::Ip, Family::Netdev] {
            if there.iter().any(|(number, found)| *number == protocol(family) && found == name) {
                batch.table(&Table::new(family, name, String::new()), NFT_MSG_DELTABLE, "table");
            }
        }
        if batch.messages.is_empty() { Ok(()) } else { batch.send(&mut self.socket) }
    }

    /// The names of all tables of all families.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub fn list(&mut self) -> io::Result<Vec<String>> {
        Ok(self.list_families()?.into_iter().map(|(_, name)| name).collect())
    }

    fn list_families(&mut self) -> io::Result<Vec<(u8, String)>> {
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

fn kind(message: i32) -> u16 {
    let subsystem = u16::try_from(NFNL_SUBSYS_NFTABLES).expect("a subsystem is a byte");
    (subsystem << 8) | u16::try_from(message).expect("a message number is a byte")
}

fn protocol(family: Family) -> u8 {
    match family {
        Family::Ip => NFPROTO_IPV4,
        Family::Netdev => NFPROTO_NETDEV,
    }
}

fn number(constant: i32) -> u32 {
    constant.cast_unsigned()
}

#[derive(Default)]
struct Batch {
    messages: Vec<Message>,
    /// What each message is about, for error texts.
    about: Vec<String>,
}

impl Batch {
    fn push(&mut self, about: String, message: Message) {
        self.messages.push(message);
        self.about.push(about);
    }

    fn send(self, socket: &mut Socket) -> io::Result<()> {
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

    fn start(table: &Table, message: i32, flags: u16) -> Message {
        Message::new(kind(message), flags, &[protocol(table.family), 0, 0, 0])
    }

    fn table(&mut self, table: &Table, message: i32, about: &str) {
        let mut m = Batch::start(table, message, if message == NFT_MSG_NEWTABLE { CREATE } else { 0 });
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

    fn chain(&mut self, table: &Table, name: &str, chain: &Chain) {
        let mut m = Batch::start(table, NFT_MSG_NEWCHAIN, CREATE);
        m.put_str(CHAIN_TABLE, &table.name).put_str(CHAIN_NAME, name);
        if let Some(Hook { kind, point, priority }) = &chain.hook {
            m.nest(CHAIN_HOOK, |m| {
                let number = match point {
                    Point::Prerouting => 0,
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
        }
        self.push(format!("chain {name}"), m);
    }

    fn set(&mut self, table: &Table, id: u32, name: &str, set: &Set) {
        let (key_type, key_length, data) = match set {
            Set::Addresses(_) => (TYPE_IPV4, 4, None),
            Set::Ports(_) => (TYPE_PORT, 2, None),
            Set::AddressChains(_) => (TYPE_IPV4, 4, Some((TYPE_VERDICT, 16))),
            Set::PortChains(_) => (TYPE_PORT, 2, Some((TYPE_VERDICT, 16))),
            Set::Backends(_) => (TYPE_INTEGER, 4, Some((TYPE_IPV4, 4))),
        };
        let mut m = Batch::start(table, NFT_MSG_NEWSET, CREATE);
        m.put_str(SET_TABLE, &table.name).put_str(SET_NAME, name);
        m.put_be32(SET_FLAGS, if data.is_some() { number(NFT_SET_MAP) } else { 0 });
        m.put_be32(SET_KEY_TYPE, key_type).put_be32(SET_KEY_LEN, key_length);
        if let Some((data_type, data_length)) = data {
            m.put_be32(SET_DATA_TYPE, data_type).put_be32(SET_DATA_LEN, data_length);
        }
        m.put_be32(SET_ID, id);
        self.push(format!("set {name}"), m);

        let elements: Vec<(Vec<u8>, Element<'_>)> = match set {
            Set::Addresses(all) => all.iter().map(|a| (a.octets().to_vec(), Element::Key)).collect(),
            Set::Ports(all) => all.iter().map(|p| (p.to_be_bytes().to_vec(), Element::Key)).collect(),
            Set::AddressChains(all) => all.iter().map(|(a, c)| (a.octets().to_vec(), Element::Chain(c))).collect(),
            Set::PortChains(all) => all.iter().map(|(p, c)| (p.to_be_bytes().to_vec(), Element::Chain(c))).collect(),
            // numgen's numbers are in host byte order.
            Set::Backends(all) => (0u32..)
                .zip(all)
                .map(|(n, a)| (n.to_ne_bytes().to_vec(), Element::Value(a.octets().to_vec())))
                .collect(),
        };
        for chunk in elements.chunks(ELEMENTS_PER_MESSAGE) {
            let mut m = Batch::start(table, NFT_MSG_NEWSETELEM, CREATE);
            m.put_str(ELEMENTS_TABLE, &table.name).put_str(ELEMENTS_SET, name);
            m.nest(ELEMENTS, |m| {
                for (key, element) in chunk {
                    m.nest(LIST_ELEM, |m| {
                        m.nest(ELEM_KEY, |m| {
                            m.put(DATA_VALUE, key);
                        });
                        match element {
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
                    });
                }
            });
            self.push(format!("elements of {name}"), m);
        }
    }

    fn rule(&mut self, table: &Table, chain: &str, rule: &Rule) {
        let mut m = Batch::start(table, NFT_MSG_NEWRULE, CREATE | super::netlink::APPEND);
        m.put_str(RULE_TABLE, &table.name).put_str(RULE_CHAIN, chain);
        m.nest(RULE_EXPRESSIONS, |m| {
            for condition in &rule.matches {
                lower_match(m, condition);
            }
            lower_action(m, &rule.action);
        });
        self.push(format!("rule {rule:?} of chain {chain}"), m);
    }
}

enum Element<'a> {
    Key,
    Value(Vec<u8>),
    Chain(&'a str),
}

fn expression(m: &mut Message, name: &str, fill: impl FnOnce(&mut Message)) {
    m.nest(LIST_ELEM, |m| {
        m.put_str(EXPR_NAME, name).nest(EXPR_DATA, fill);
    });
}

fn value(m: &mut Message, attribute: u16, bytes: &[u8]) {
    m.nest(attribute, |m| {
        m.put(DATA_VALUE, bytes);
    });
}

fn compare(m: &mut Message, operator: i32, bytes: &[u8]) {
    expression(m, "cmp", |m| {
        m.put_be32(1, number(NFT_REG_1)).put_be32(2, number(operator));
        value(m, 3, bytes);
    });
}

fn meta(m: &mut Message, key: i32) {
    expression(m, "meta", |m| {
        m.put_be32(1, number(NFT_REG_1)).put_be32(2, number(key));
    });
}

fn payload(m: &mut Message, base: i32, offset: u32, length: u32) {
    expression(m, "payload", |m| {
        m.put_be32(1, number(NFT_REG_1)).put_be32(2, number(base)).put_be32(3, offset).put_be32(4, length);
    });
}

fn mask(m: &mut Message, bits: &[u8]) {
    expression(m, "bitwise", |m| {
        let length = u32::try_from(bits.len()).expect("a register has 16 bytes");
        m.put_be32(1, number(NFT_REG_1)).put_be32(2, number(NFT_REG_1)).put_be32(3, length);
        value(m, 4, bits);
        value(m, 5, &vec![0; bits.len()]);
    });
}

fn look_up(m: &mut Message, set: &str, into: Option<i32>) {
    expression(m, "lookup", |m| {
        m.put_str(1, set).put_be32(2, number(NFT_REG_1));
        if let Some(register) = into {
            m.put_be32(3, number(register));
        }
    });
}

fn interface(m: &mut Message, key: i32, operator: i32, name: &str) {
    let mut bytes = [0; 16];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    meta(m, key);
    compare(m, operator, &bytes);
}

fn network(m: &mut Message, offset: u32, network: ipnet::Ipv4Net) {
    payload(m, NFT_PAYLOAD_NETWORK_HEADER, offset, 4);
    in_network(m, network);
}

fn in_network(m: &mut Message, network: ipnet::Ipv4Net) {
    if network.prefix_len() < 32 {
        mask(m, &network.netmask().octets());
    }
    compare(m, NFT_CMP_EQ, &network.network().octets());
}

fn connection(m: &mut Message, key: i32) {
    expression(m, "ct", |m| {
        m.put_be32(1, number(NFT_REG_1)).put_be32(2, number(key));
    });
}

fn connection_bit(m: &mut Message, key: i32, bit: u32) {
    connection(m, key);
    mask(m, &bit.to_ne_bytes());
    compare(m, NFT_CMP_NEQ, &[0; 4]);
}

fn lower_match(m: &mut Message, condition: &Match) {
    match condition {
        Match::From(name) => interface(m, NFT_META_IIFNAME, NFT_CMP_EQ, name),
        Match::To(name) => interface(m, NFT_META_OIFNAME, NFT_CMP_EQ, name),
        Match::NotTo(name) => interface(m, NFT_META_OIFNAME, NFT_CMP_NEQ, name),
        Match::Source(net) => network(m, SOURCE, *net),
        Match::Destination(net) => network(m, DESTINATION, *net),
        Match::DestinationIsLocal => {
            expression(m, "fib", |m| {
                m.put_be32(1, number(NFT_REG_1)).put_be32(2, FIB_ADDRESS_TYPE).put_be32(3, FIB_DESTINATION);
            });
            compare(m, NFT_CMP_EQ, &ADDRESS_LOCAL.to_ne_bytes());
        }
        Match::DestinationIn(set) => {
            payload(m, NFT_PAYLOAD_NETWORK_HEADER, DESTINATION, 4);
            look_up(m, set, None);
        }
        Match::Protocol(protocol) => {
            meta(m, NFT_META_L4PROTO);
            compare(m, NFT_CMP_EQ, &[protocol.number()]);
        }
        Match::Port(port) => {
            payload(m, NFT_PAYLOAD_TRANSPORT_HEADER, DESTINATION_PORT, 2);
            compare(m, NFT_CMP_EQ, &port.to_be_bytes());
        }
        Match::PortIn(set) => {
            payload(m, NFT_PAYLOAD_TRANSPORT_HEADER, DESTINATION_PORT, 2);
            look_up(m, set, None);
        }
        Match::New => connection_bit(m, NFT_CT_STATE, STATE_NEW),
        Match::Translated => connection_bit(m, NFT_CT_STATUS, STATUS_DESTINATION_TRANSLATED),
        Match::Reply => {
            connection(m, NFT_CT_DIRECTION);
            compare(m, NFT_CMP_EQ, &[DIRECTION_REPLY]);
        }
        Match::FromStation => {
            payload(m, NFT_PAYLOAD_LL_HEADER, MAC_SOURCE, 2);
            compare(m, NFT_CMP_EQ, &STATION_PREFIX);
        }
        // A mark is the address as it stands in the packet, so the network's bytes are compared as they are.
        Match::Marked(net) => {
            meta(m, NFT_META_MARK);
            in_network(m, *net);
        }
        Match::ConnectionMarked(net) => {
            connection(m, NFT_CT_MARK);
            in_network(m, *net);
        }
    }
}

fn translate(m: &mut Message, port: Option<u16>) {
    if let Some(port) = port {
        expression(m, "immediate", |m| {
            m.put_be32(1, number(NFT_REG_2));
            value(m, 2, &port.to_be_bytes());
        });
    }
    expression(m, "nat", |m| {
        m.put_be32(1, NAT_DESTINATION).put_be32(2, u32::from(NFPROTO_IPV4)).put_be32(3, number(NFT_REG_1));
        if port.is_some() {
            m.put_be32(5, number(NFT_REG_2));
        }
    });
}

fn lower_action(m: &mut Message, action: &Action) {
    match action {
        Action::Drop => expression(m, "immediate", |m| {
            m.put_be32(1, number(NFT_REG_VERDICT));
            m.nest(2, |m| {
                m.nest(DATA_VERDICT, |m| {
                    m.put_be32(VERDICT_CODE, NF_DROP);
                });
            });
        }),
        Action::RejectTcp => expression(m, "reject", |m| {
            m.put_be32(1, number(NFT_REJECT_TCP_RST));
        }),
        Action::RejectPort => expression(m, "reject", |m| {
            m.put_be32(1, number(NFT_REJECT_ICMP_UNREACH)).put(2, &[PORT_UNREACHABLE]);
        }),
        Action::Masquerade => expression(m, "masq", |_| {}),
        Action::Translate { address, port } => {
            expression(m, "immediate", |m| {
                m.put_be32(1, number(NFT_REG_1));
                value(m, 2, &address.octets());
            });
            translate(m, *port);
        }
        Action::Balance { map, count, port } => {
            expression(m, "numgen", |m| {
                m.put_be32(1, number(NFT_REG_1)).put_be32(2, *count).put_be32(3, number(NFT_NG_RANDOM));
            });
            look_up(m, map, Some(NFT_REG_1));
            translate(m, *port);
        }
        Action::RememberStation => {
            payload(m, NFT_PAYLOAD_LL_HEADER, STATION_SOURCE, 4);
            expression(m, "ct", |m| {
                m.put_be32(2, number(NFT_CT_MARK)).put_be32(4, number(NFT_REG_1));
            });
        }
        Action::RecallStation => {
            connection(m, NFT_CT_MARK);
            expression(m, "meta", |m| {
                m.put_be32(2, number(NFT_META_MARK)).put_be32(3, number(NFT_REG_1));
            });
        }
        Action::ToStation => {
            meta(m, NFT_META_MARK);
            expression(m, "payload", |m| {
                m.put_be32(5, number(NFT_REG_1)).put_be32(2, number(NFT_PAYLOAD_LL_HEADER));
                m.put_be32(3, STATION_DESTINATION).put_be32(4, 4);
                // No checksum covers the Ethernet header.
                m.put_be32(6, 0).put_be32(7, 0);
            });
        }
        Action::ChainOfAddress(map) => {
            payload(m, NFT_PAYLOAD_NETWORK_HEADER, DESTINATION, 4);
            look_up(m, map, Some(NFT_REG_VERDICT));
        }
        Action::ChainOfPort(map) => {
            payload(m, NFT_PAYLOAD_TRANSPORT_HEADER, DESTINATION_PORT, 2);
            look_up(m, map, Some(NFT_REG_VERDICT));
        }
    }
}
