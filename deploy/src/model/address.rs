//! IPv4 addresses and subnets as the model writes them: `10.0.3.2`, `10.0.3.2/24`, `10.0.3.0/24`.
//!
//! `core::net` is arithmetic and text only; nothing here can reach a network.

use core::net::Ipv4Addr;
use std::fmt;

/// An IPv4 subnet: no bit is set below the prefix.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet {
    first: u32,
    prefix: u8,
}

impl Subnet {
    /// The subnet of `prefix` bits (0 to 32) that `address` is in; `None` for a longer prefix.
    pub fn containing(address: u32, prefix: u8) -> Option<Self> {
        (prefix <= 32).then(|| Self { first: address & mask(prefix), prefix })
    }

    /// Reads `10.0.3.0/24`; `None` for anything else, also when bits are set below the prefix.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = parse_cidr(text)?;
        let subnet = Self::containing(address, prefix)?;
        (subnet.first == address).then_some(subnet)
    }

    /// Number of leading bits that all its addresses share.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Lowest address: the network's own.
    pub fn first(self) -> u32 {
        self.first
    }

    /// Highest address: the broadcast address.
    pub fn last(self) -> u32 {
        self.first | !mask(self.prefix)
    }

    /// Whether `address` is one of it.
    pub fn contains(self, address: u32) -> bool {
        address & mask(self.prefix) == self.first
    }

    /// Whether both have an address in common.
    pub fn overlaps(self, other: Subnet) -> bool {
        self.contains(other.first) || other.contains(self.first)
    }

    /// `address` with this subnet's prefix length, as attachments are written: `10.0.3.2/24`.
    pub fn with_prefix(self, address: u32) -> String {
        format!("{}/{}", Ipv4Addr::from(address), self.prefix)
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.first), self.prefix)
    }
}

impl fmt::Debug for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

/// Reads `10.0.3.2`.
pub fn parse_ipv4(text: &str) -> Option<u32> {
    text.parse::<Ipv4Addr>().ok().map(u32::from)
}

/// Writes `10.0.3.2`.
pub fn format_ipv4(address: u32) -> String {
    Ipv4Addr::from(address).to_string()
}

/// Reads `10.0.3.2/24`: an address and a prefix length of at most 32.
pub fn parse_cidr(text: &str) -> Option<(u32, u8)> {
    let (address, prefix) = text.split_once('/')?;
    if prefix.is_empty() || prefix.len() > 2 || !prefix.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let prefix: u8 = prefix.parse().ok()?;
    (prefix <= 32).then_some((parse_ipv4(address)?, prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_are_read_and_written() {
        let subnet = Subnet::parse("10.0.3.0/24").expect("a subnet");
        assert_eq!(subnet.to_string(), "10.0.3.0/24");
        assert_eq!(subnet.with_prefix(subnet.first() + 2), "10.0.3.2/24");
        assert_eq!(format_ipv4(subnet.last()), "10.0.3.255");
        assert!(Subnet::parse("0.0.0.0/0").expect("everything").contains(u32::MAX));
        for wrong in ["", "10.0.3.0", "10.0.3.1/24", "10.0.3.0/33", "10.0.3/24", "10.0.3.0/+8", "10.0.3.0/", "::/0"] {
            assert_eq!(Subnet::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn overlap_is_mutual() {
        let wide = Subnet::parse("10.0.0.0/8").expect("a subnet");
        let narrow = Subnet::parse("10.9.0.0/16").expect("a subnet");
        let other = Subnet::parse("11.0.0.0/16").expect("a subnet");
        assert!(wide.overlaps(narrow) && narrow.overlaps(wide));
        assert!(!wide.overlaps(other) && !other.overlaps(wide));
    }
}
