//! What this host remembers of a network of its own.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use deploy::model::{NetworkSpec, Subnet, Timestamp, parse_cidr, parse_ipv4};
use prost::Message;

use super::addresses::Addresses;

/// A network of this host alone, as its user wants it, and what it was given.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct NetworkRecord {
    /// Its id: 64 hexadecimal characters, as Docker's networks of one host have them.
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    /// When it was made.
    #[prost(message, required, tag = "2")]
    pub(crate) created: Timestamp,
    /// What its user asked for.
    #[prost(message, required, tag = "3")]
    pub(crate) spec: NetworkSpec,
    /// Its number in the overlay's namespace, where networks of the cluster have their VXLAN ids. Managers give none
    /// below [`NUMBERS_END`].
    #[prost(uint32, tag = "4")]
    pub(crate) number: u32,
    /// Its subnet, CIDR.
    #[prost(string, tag = "5")]
    pub(crate) subnet: String,
    /// Its gateway address; reserved, nothing of ours answers there.
    #[prost(string, tag = "6")]
    pub(crate) gateway: String,
}

/// Numbers of networks of this host are below.
pub(in super::super) const NUMBERS_END: u32 = 0x10_0000;

/// What is read out of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) subnet: Subnet,
    pub(super) gateway: u32,
}

impl NetworkRecord {
    /// Nothing where it makes no sense.
    pub(super) fn frame(&self) -> Option<Frame> {
        let subnet = Subnet::parse(&self.subnet).filter(|subnet| (8..=29).contains(&subnet.prefix()))?;
        let gateway = parse_ipv4(&self.gateway).filter(|gateway| subnet.contains(*gateway))?;
        let is_sound = is_id(&self.id) && !self.spec.name.is_empty() && (1..NUMBERS_END).contains(&self.number);
        is_sound.then_some(Frame { subnet, gateway })
    }

    /// Its addresses, all of them free.
    pub(super) fn addresses(&self, frame: Frame) -> Addresses {
        let ipam = self.spec.ipam4();
        let range = ipam.and_then(|ipam| parse_cidr(&ipam.ip_range));
        let range = range.and_then(|(address, prefix)| Subnet::containing(address, prefix));
        let auxiliary = ipam.into_iter().flat_map(|ipam| ipam.auxiliary.values());
        let reserved: BTreeSet<u32> = auxiliary.filter_map(|text| parse_ipv4(text)).chain([frame.gateway]).collect();
        Addresses::new(frame.subnet, range, reserved)
    }

    /// An address of it with its prefix length.
    pub(super) fn with_prefix(frame: Frame, address: Ipv4Addr) -> String {
        frame.subnet.with_prefix(address.into())
    }
}

/// Whether a text has the form of such a network's id.
pub(super) fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}
