//! Static forwarding entries (FDB) and permanent neighbours.
//!
//! Three tables make an overlay that never floods: the VXLAN's own (which host has a hardware address), the bridge's
//! (which port), and the bridge's neighbours (which hardware address an IP address has), from which the bridge
//! answers ARP and neighbour solicitations itself.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use libc::{
    NDA_DST, NDA_LLADDR, NTF_MASTER, NTF_SELF, NUD_FAILED, NUD_NOARP, NUD_PERMANENT, RTM_DELNEIGH, RTM_GETNEIGH,
    RTM_NEWNEIGH,
};

use super::links::Links;
use super::netlink::{CREATE, DUMP, Message, REPLACE, Reply, attributes, ip_of, ipv4_of, u32_of};

/// One forwarding entry as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// The number of the link that it is on.
    pub link: u32,
    /// The hardware address that it is for.
    pub mac: [u8; 6],
    /// The host behind the tunnel; only in a VXLAN's own table.
    pub host: Option<Ipv4Addr>,
    /// It is in the bridge's table, not in the device's own.
    pub bridge: bool,
    /// It was set, not learned, and is not one of the link's own addresses.
    pub fixed: bool,
}

/// Changes of our own whose notices are told from those of others.
const EXPECTED_MAX: usize = 1024;

/// An entry of one of the three tables, as the kernel names it: address family, link, whether it is in the device's own
/// table, address.
type EntryName = (u8, u32, bool, Vec<u8>);

/// What entries should be after our own operations, and so what the kernel's notices of those say.
#[derive(Debug, Default)]
pub(super) struct Expected(BTreeMap<EntryName, Option<Vec<u8>>>);

impl Expected {
    /// An entry is to be what a message says; without a value, it is to be gone.
    fn note(&mut self, message: &Message) {
        // What does not fit is read from the kernel, as what others do.
        if let Some((name, value, _)) = entry_of(message.body()).filter(|_| self.0.len() < EXPECTED_MAX) {
            let value = if message.kind() == RTM_DELNEIGH { None } else { Some(value) };
            self.0.insert(name, value);
        }
    }

    /// Whether a notice says nothing but what is expected, or something that nobody cares about.
    pub(super) fn explains(&self, notice: &Reply) -> bool {
        if notice.kind != RTM_NEWNEIGH && notice.kind != RTM_DELNEIGH {
            return false;
        }
        let Some((name, value, state)) = entry_of(&notice.body) else { return false };
        let (family, _, own, _) = &name;
        // What a bridge has learned it will forget; ours and its links' own addresses are no such entries.
        if i32::from(*family) == libc::AF_BRIDGE && !own && state & (NUD_NOARP | NUD_PERMANENT) == 0 {
            return true;
        }
        // A neighbour that is removed is said to have failed first.
        let gone = notice.kind == RTM_DELNEIGH || state & NUD_FAILED != 0;
        match self.0.get(&name) {
            Some(Some(expected)) => !gone && *expected == value,
            Some(None) => gone,
            None => false,
        }
    }

    /// Forgets all of it: the notices were read.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// The name, value and state of an entry.
fn entry_of(body: &[u8]) -> Option<(EntryName, Vec<u8>, u16)> {
    let fixed = body.get(..12)?;
    let (family, link, own) = (fixed[0], u32_of(&fixed[4..8]), fixed[10] & NTF_SELF != 0);
    let state = u16::from_ne_bytes([fixed[8], fixed[9]]);
    let (mut mac, mut other) = (Vec::new(), Vec::new());
    for (kind, value) in attributes(&body[12..]) {
        match kind {
            NDA_LLADDR => mac = value.to_vec(),
            NDA_DST => other = value.to_vec(),
            _ => {}
        }
    }
    let is_forward = i32::from(family) == libc::AF_BRIDGE;
    let (key, value) = if is_forward { (mac, other) } else { (other, mac) };
    Some(((family, link, own, key), value, state))
}

/// `struct ndmsg`.
fn ndmsg(family: i32, link: u32, state: u16, flags: u8) -> [u8; 12] {
    let mut fixed = [0; 12];
    fixed[0] = u8::try_from(family).expect("address families are small");
    fixed[4..8].copy_from_slice(&link.to_ne_bytes());
    fixed[8..10].copy_from_slice(&state.to_ne_bytes());
    fixed[10] = flags;
    fixed
}

impl Links {
    /// Sends frames for a hardware address to a host: the VXLAN device's own table. Replaces an older entry.
    ///
    /// # Errors
    /// `NotFound` when the link is missing, or what the kernel says.
    pub fn set_tunnel(&mut self, vxlan: u32, mac: [u8; 6], host: Ipv4Addr) -> io::Result<()> {
        let fixed = ndmsg(libc::AF_BRIDGE, vxlan, NUD_NOARP | NUD_PERMANENT, NTF_SELF);
        let mut message = Message::new(RTM_NEWNEIGH, CREATE | REPLACE, &fixed);
        message.put(NDA_LLADDR, &mac).put(NDA_DST, &host.octets());
        self.change_entry(message)
    }

    /// Removes an entry of a VXLAN device's own table; a missing one is fine.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn delete_tunnel(&mut self, vxlan: u32, mac: [u8; 6]) -> io::Result<()> {
        let mut message = Message::new(RTM_DELNEIGH, 0, &ndmsg(libc::AF_BRIDGE, vxlan, 0, NTF_SELF));
        message.put(NDA_LLADDR, &mac);
        missing_is_fine(self.change_entry(message))
    }

    /// Says that a hardware address is behind a port: the bridge's table. Replaces an older entry.
    ///
    /// # Errors
    /// `NotFound` when the link is missing, or what the kernel says.
    pub fn set_forward(&mut self, port: u32, mac: [u8; 6]) -> io::Result<()> {
        // NOARP without PERMANENT is "static": it stays, and is not one of the bridge's own addresses.
        let fixed = ndmsg(libc::AF_BRIDGE, port, NUD_NOARP, NTF_MASTER);
        let mut message = Message::new(RTM_NEWNEIGH, CREATE | REPLACE, &fixed);
        message.put(NDA_LLADDR, &mac);
        self.change_entry(message)
    }

    /// Removes an entry of the bridge's table; a missing one is fine.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn delete_forward(&mut self, port: u32, mac: [u8; 6]) -> io::Result<()> {
        let mut message = Message::new(RTM_DELNEIGH, 0, &ndmsg(libc::AF_BRIDGE, port, 0, NTF_MASTER));
        message.put(NDA_LLADDR, &mac);
        missing_is_fine(self.change_entry(message))
    }

    /// Says which hardware address an address has, for good. Replaces an older entry.
    ///
    /// # Errors
    /// `NotFound` when the link is missing, or what the kernel says: it knows no IPv6 neighbours on links without IPv6.
    pub fn set_neighbour(&mut self, link: u32, address: IpAddr, mac: [u8; 6]) -> io::Result<()> {
        let fixed = ndmsg(family_of(address), link, NUD_PERMANENT, 0);
        let mut message = Message::new(RTM_NEWNEIGH, CREATE | REPLACE, &fixed);
        put_address(&mut message, address).put(NDA_LLADDR, &mac);
        self.change_entry(message)
    }

    /// Forgets a neighbour; a missing one is fine.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn delete_neighbour(&mut self, link: u32, address: IpAddr) -> io::Result<()> {
        let mut message = Message::new(RTM_DELNEIGH, 0, &ndmsg(family_of(address), link, 0, 0));
        put_address(&mut message, address);
        missing_is_fine(self.change_entry(message))
    }

    /// Makes a change and notes what the kernel will tell of it.
    fn change_entry(&mut self, message: Message) -> io::Result<()> {
        self.expected.note(&message);
        self.socket.request(message).map(drop)
    }

    /// All forwarding entries of the namespace, of bridges and of VXLAN devices.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub fn forwards(&mut self) -> io::Result<Vec<Forward>> {
        let replies = self.socket.request(Message::new(RTM_GETNEIGH, DUMP, &ndmsg(libc::AF_BRIDGE, 0, 0, 0)))?;
        Ok(replies
            .iter()
            .filter_map(|reply| {
                let fixed = reply.body.get(..12)?;
                let state = u16::from_ne_bytes([fixed[8], fixed[9]]);
                let bridge = fixed[10] & NTF_SELF == 0;
                let (mut mac, mut host) = (None, None);
                for (kind, value) in attributes(&reply.body[12..]) {
                    match kind {
                        NDA_LLADDR => mac = value.get(0..6).and_then(|b| b.try_into().ok()),
                        NDA_DST => host = ipv4_of(value),
                        _ => {}
                    }
                }
                let fixed_entry =
                    if bridge { state & NUD_NOARP != 0 && state & NUD_PERMANENT == 0 } else { host.is_some() };
                Some(Forward { link: u32_of(&fixed[4..8]), mac: mac?, host, bridge, fixed: fixed_entry })
            })
            .collect())
    }

    /// All permanent neighbours of both families: link, address, hardware address.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub fn neighbours(&mut self) -> io::Result<Vec<(u32, IpAddr, [u8; 6])>> {
        let mut replies = self.socket.request(Message::new(RTM_GETNEIGH, DUMP, &ndmsg(libc::AF_INET, 0, 0, 0)))?;
        // (A kernel without IPv6 lists its IPv4 neighbours again; a neighbour listed twice is one neighbour.)
        replies.extend(self.socket.request(Message::new(RTM_GETNEIGH, DUMP, &ndmsg(libc::AF_INET6, 0, 0, 0)))?);
        Ok(replies
            .iter()
            .filter_map(|reply| {
                let fixed = reply.body.get(..12)?;
                if u16::from_ne_bytes([fixed[8], fixed[9]]) & NUD_PERMANENT == 0 {
                    return None;
                }
                let (mut mac, mut address) = (None, None);
                for (kind, value) in attributes(&reply.body[12..]) {
                    match kind {
                        NDA_LLADDR => mac = value.get(0..6).and_then(|b| b.try_into().ok()),
                        NDA_DST => address = ip_of(value),
                        _ => {}
                    }
                }
                Some((u32_of(&fixed[4..8]), address?, mac?))
            })
            .collect())
    }
}

fn family_of(address: IpAddr) -> i32 {
    if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }
}

fn put_address(message: &mut Message, address: IpAddr) -> &mut Message {
    match address {
        IpAddr::V4(address) => message.put(NDA_DST, &address.octets()),
        IpAddr::V6(address) => message.put(NDA_DST, &address.octets()),
    }
}

fn missing_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ESRCH)) => Err(error),
        _ => Ok(()),
    }
}
