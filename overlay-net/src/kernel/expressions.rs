//! How a rule is said in nf_tables' own words: matches and actions as expressions that load, compare and act.

use libc::{
    NFT_CMP_EQ, NFT_CMP_NEQ, NFT_CT_DIRECTION, NFT_CT_MARK, NFT_CT_STATE, NFT_CT_STATUS, NFT_CT_ZONE, NFT_META_IIFNAME,
    NFT_META_L4PROTO, NFT_META_MARK, NFT_META_OIFNAME, NFT_NG_RANDOM, NFT_PAYLOAD_LL_HEADER,
    NFT_PAYLOAD_NETWORK_HEADER, NFT_PAYLOAD_TRANSPORT_HEADER, NFT_REG_1, NFT_REG_2, NFT_REG_VERDICT,
    NFT_REJECT_ICMP_UNREACH, NFT_REJECT_TCP_RST,
};

use super::netlink::Message;
use crate::plan::ruleset::{Action, Family, Match, Rule, Table};

// Attribute numbers of linux/netfilter/nf_tables.h.
pub(super) const EXPR_NAME: u16 = 1;
pub(super) const EXPR_DATA: u16 = 2;
/// One of a list.
pub(super) const LIST_ELEM: u16 = 1;
pub(super) const DATA_VALUE: u16 = 1;
pub(super) const DATA_VERDICT: u16 = 2;
pub(super) const VERDICT_CODE: u16 = 1;
pub(super) const VERDICT_CHAIN: u16 = 2;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
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
/// ICMP codes "port unreachable" and "network unreachable", and ICMPv6's.
const PORT_UNREACHABLE: u8 = 3;
const NETWORK_UNREACHABLE: u8 = 0;
const PORT_UNREACHABLE_6: u8 = 4;
const NETWORK_UNREACHABLE_6: u8 = 0;
/// Byte offsets in the IPv4 header, in the IPv6 header, and of the destination port in TCP, UDP and SCTP.
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;
const SOURCE_6: u32 = 8;
const DESTINATION_6: u32 = 24;
const DESTINATION_PORT: u32 = 2;
/// Byte offsets in the Ethernet header: the source address, its last four and its last two bytes, and the last four of the
/// destination.
const MAC_SOURCE: u32 = 6;
const STATION_SOURCE: u32 = 8;
const STATION_SOURCE_END: u32 = 10;
const STATION_DESTINATION: u32 = 2;
/// The two bytes that every derived hardware address begins with.
const STATION_PREFIX: [u8; 2] = [0x02, 0x42];
/// `NFT_REG32_01`: the four bytes behind an address in the first register.
const BEHIND_ADDRESS: u32 = 9;
/// `IP_CT_DIR_ORIGINAL`, `IP_CT_DIR_REPLY`.
const DIRECTION_ORIGINAL: u8 = 0;
const DIRECTION_REPLY: u8 = 1;

pub(super) fn number(constant: i32) -> u32 {
    constant.cast_unsigned()
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

/// How addresses are said in a table.
#[derive(Clone, Copy)]
pub(super) struct Terms<'a> {
    /// The table, if its addresses stand for those beside them.
    six: Option<&'a Table>,
}

impl Terms<'_> {
    /// As they are, in four bytes.
    pub(super) const FOUR: Terms<'static> = Terms { six: None };

    pub(super) fn of(table: &Table) -> Terms<'_> {
        Terms { six: (table.family == Family::Ip6).then_some(table) }
    }

    /// The bytes of an address. One that has none beside it, which [`Table::six`] leaves no place for, is nobody's.
    pub(super) fn address(self, address: std::net::Ipv4Addr) -> Vec<u8> {
        match self.six {
            None => address.octets().to_vec(),
            Some(table) => table.address6(address).unwrap_or(std::net::Ipv6Addr::UNSPECIFIED).octets().to_vec(),
        }
    }

    /// The register behind that of an address: a longer one fills all of its own.
    fn behind_address(self) -> u32 {
        if self.six.is_some() { number(NFT_REG_2) } else { BEHIND_ADDRESS }
    }

    fn protocol(self) -> u8 {
        if self.six.is_some() { NFPROTO_IPV6 } else { NFPROTO_IPV4 }
    }

    /// Loads an address of the packet's: the one at these offsets in the headers of both families.
    fn load(self, m: &mut Message, four: u32, six: u32) {
        let (offset, length) = if self.six.is_some() { (six, 16) } else { (four, 4) };
        payload(m, NFT_PAYLOAD_NETWORK_HEADER, offset, length);
    }

    fn in_network(self, m: &mut Message, network: ipnet::Ipv4Net) {
        let Some(table) = self.six else { return in_network(m, network) };
        let network = table.network6(network).unwrap_or(std::net::Ipv6Addr::UNSPECIFIED.into());
        if network.prefix_len() < 128 {
            mask(m, &network.netmask().octets());
        }
        compare(m, NFT_CMP_EQ, &network.network().octets());
    }
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

fn connection_bit(m: &mut Message, key: i32, bit: u32, operator: i32) {
    connection(m, key);
    mask(m, &bit.to_ne_bytes());
    compare(m, operator, &[0; 4]);
}

/// Writes a rule's list of expressions.
pub(super) fn lower(m: &mut Message, terms: Terms<'_>, rule: &Rule) {
    for condition in &rule.matches {
        lower_match(m, terms, condition);
    }
    lower_action(m, terms, &rule.action);
}

fn lower_match(m: &mut Message, terms: Terms<'_>, condition: &Match) {
    match condition {
        Match::From(name) => interface(m, NFT_META_IIFNAME, NFT_CMP_EQ, name),
        Match::To(name) => interface(m, NFT_META_OIFNAME, NFT_CMP_EQ, name),
        Match::NotTo(name) => interface(m, NFT_META_OIFNAME, NFT_CMP_NEQ, name),
        Match::ToIn(set) => {
            meta(m, NFT_META_OIFNAME);
            look_up(m, set, None);
        }
        Match::Source(net) => {
            terms.load(m, SOURCE, SOURCE_6);
            terms.in_network(m, *net);
        }
        Match::Destination(net) => {
            terms.load(m, DESTINATION, DESTINATION_6);
            terms.in_network(m, *net);
        }
        Match::DestinationIsLocal => {
            expression(m, "fib", |m| {
                m.put_be32(1, number(NFT_REG_1)).put_be32(2, FIB_ADDRESS_TYPE).put_be32(3, FIB_DESTINATION);
            });
            compare(m, NFT_CMP_EQ, &ADDRESS_LOCAL.to_ne_bytes());
        }
        Match::DestinationIn(set) => {
            terms.load(m, DESTINATION, DESTINATION_6);
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
        Match::New => connection_bit(m, NFT_CT_STATE, STATE_NEW, NFT_CMP_NEQ),
        Match::Translated => connection_bit(m, NFT_CT_STATUS, STATUS_DESTINATION_TRANSLATED, NFT_CMP_NEQ),
        Match::Untranslated => connection_bit(m, NFT_CT_STATUS, STATUS_DESTINATION_TRANSLATED, NFT_CMP_EQ),
        Match::Reply => {
            connection(m, NFT_CT_DIRECTION);
            compare(m, NFT_CMP_EQ, &[DIRECTION_REPLY]);
        }
        Match::FromStation => {
            payload(m, NFT_PAYLOAD_LL_HEADER, MAC_SOURCE, 2);
            compare(m, NFT_CMP_EQ, &STATION_PREFIX);
        }
        // A mark is a host's IPv4 address as it stands in a packet, also for IPv6, so the network's bytes are compared as they are.
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

fn translate(m: &mut Message, terms: Terms<'_>, port: Option<u16>) {
    if let Some(port) = port {
        expression(m, "immediate", |m| {
            m.put_be32(1, number(NFT_REG_2));
            value(m, 2, &port.to_be_bytes());
        });
    }
    expression(m, "nat", |m| {
        m.put_be32(1, NAT_DESTINATION).put_be32(2, u32::from(terms.protocol())).put_be32(3, number(NFT_REG_1));
        if port.is_some() {
            m.put_be32(5, number(NFT_REG_2));
        }
    });
}

fn verdict(m: &mut Message, code: u32) {
    expression(m, "immediate", |m| {
        m.put_be32(1, number(NFT_REG_VERDICT));
        m.nest(2, |m| {
            m.nest(DATA_VERDICT, |m| {
                m.put_be32(VERDICT_CODE, code);
            });
        });
    });
}

fn reject(m: &mut Message, code: u8) {
    expression(m, "reject", |m| {
        m.put_be32(1, number(NFT_REJECT_ICMP_UNREACH)).put(2, &[code]);
    });
}

fn lower_action(m: &mut Message, terms: Terms<'_>, action: &Action) {
    let six = terms.six.is_some();
    match action {
        Action::Drop => verdict(m, NF_DROP),
        Action::Accept => verdict(m, NF_ACCEPT),
        // It takes no data, not even none: the kernel would list it otherwise.
        Action::Untracked => {
            m.nest(LIST_ELEM, |m| {
                m.put_str(EXPR_NAME, "notrack");
            });
        }
        Action::RejectTcp => expression(m, "reject", |m| {
            m.put_be32(1, number(NFT_REJECT_TCP_RST));
        }),
        Action::RejectPort => reject(m, if six { PORT_UNREACHABLE_6 } else { PORT_UNREACHABLE }),
        Action::RejectNetwork => reject(m, if six { NETWORK_UNREACHABLE_6 } else { NETWORK_UNREACHABLE }),
        Action::Masquerade => expression(m, "masq", |_| {}),
        Action::Translate { address, port } => {
            expression(m, "immediate", |m| {
                m.put_be32(1, number(NFT_REG_1));
                value(m, 2, &terms.address(*address));
            });
            translate(m, terms, *port);
        }
        Action::Balance { map, count, port } => {
            expression(m, "numgen", |m| {
                m.put_be32(1, number(NFT_REG_1)).put_be32(2, *count).put_be32(3, number(NFT_NG_RANDOM));
            });
            look_up(m, map, Some(NFT_REG_1));
            translate(m, terms, *port);
        }
        // A zone, which takes 16 bits, of one direction alone: answers are told apart by their addresses and ports.
        Action::TrackByStation => {
            payload(m, NFT_PAYLOAD_LL_HEADER, STATION_SOURCE_END, 2);
            expression(m, "ct", |m| {
                m.put_be32(2, number(NFT_CT_ZONE)).put(3, &[DIRECTION_ORIGINAL]).put_be32(4, number(NFT_REG_1));
            });
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
        Action::BalanceOf { map, count } => {
            terms.load(m, DESTINATION, DESTINATION_6);
            expression(m, "numgen", |m| {
                m.put_be32(1, terms.behind_address()).put_be32(2, *count).put_be32(3, number(NFT_NG_RANDOM));
            });
            look_up(m, map, Some(NFT_REG_1));
            translate(m, terms, None);
        }
        Action::ChainOfPort(map) => {
            payload(m, NFT_PAYLOAD_TRANSPORT_HEADER, DESTINATION_PORT, 2);
            look_up(m, map, Some(NFT_REG_VERDICT));
        }
    }
}
