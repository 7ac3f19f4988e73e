//! Addresses and subnets as the model writes them: `10.0.3.2`, `10.0.3.2/24`, `10.0.3.0/24`, `fd00:3::/64`.
//!
//! A network with IPv6 has a subnet of each family, and who has the nth address of one has the nth of the other:
//! 10.0.3.2 and fd00:3::2. So one search, one index and one promise that nobody has what another has serve both.
//!
//! `core::net` is arithmetic and text only; nothing here can reach a network.

use core::net::{Ipv4Addr, Ipv6Addr};
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

/// An IPv6 subnet: no bit is set below the prefix.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet6 {
    first: u128,
    prefix: u8,
}

impl Subnet6 {
    /// The subnet of `prefix` bits (0 to 128) that `address` is in; `None` for a longer prefix.
    pub fn containing(address: u128, prefix: u8) -> Option<Self> {
        (prefix <= 128).then(|| Self { first: address & mask6(prefix), prefix })
    }

    /// Reads `fd00:3::/64`; `None` for anything else, also when bits are set below the prefix.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let address = parse_ipv6(address)?;
        if prefix.is_empty() || prefix.len() > 3 || !prefix.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let subnet = Self::containing(address, prefix.parse().ok()?)?;
        (subnet.first == address).then_some(subnet)
    }

    /// Number of leading bits that all its addresses share.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Lowest address; routers' in general, and nobody's here.
    pub fn first(self) -> u128 {
        self.first
    }

    /// Whether `address` is one of it.
    pub fn contains(self, address: u128) -> bool {
        address & mask6(self.prefix) == self.first
    }

    /// Whether both have an address in common.
    pub fn overlaps(self, other: Subnet6) -> bool {
        self.contains(other.first) || other.contains(self.first)
    }

    /// Whether it has an address for each one of an IPv4 subnet.
    pub fn has_room_for(self, subnet: Subnet) -> bool {
        128 - self.prefix >= 32 - subnet.prefix
    }

    /// The address of who has `address` of an IPv4 subnet; `None` without room, or when it is none of that.
    pub fn beside(self, subnet: Subnet, address: u32) -> Option<u128> {
        let fits = self.has_room_for(subnet) && subnet.contains(address);
        fits.then(|| self.first | u128::from(address - subnet.first))
    }

    /// `address` with this subnet's prefix length: `fd00:3::2/64`.
    pub fn with_prefix(self, address: u128) -> String {
        format!("{}/{}", Ipv6Addr::from(address), self.prefix)
    }

    /// Whose address this is: the other way round.
    pub fn opposite(self, subnet: Subnet, address: u128) -> Option<u32> {
        let place = u32::try_from(self.contains(address).then(|| address - self.first)?).ok()?;
        subnet.first.checked_add(place).filter(|address| self.has_room_for(subnet) && subnet.contains(*address))
    }
}

impl fmt::Display for Subnet6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv6Addr::from(self.first), self.prefix)
    }
}

impl fmt::Debug for Subnet6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn mask6(prefix: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)
}

/// Reads `fd00:3::2`.
pub fn parse_ipv6(text: &str) -> Option<u128> {
    text.parse::<Ipv6Addr>().ok().map(u128::from)
}

/// Writes `fd00:3::2`.
pub fn format_ipv6(address: u128) -> String {
    Ipv6Addr::from(address).to_string()
}

/// Whether a text is meant to be of IPv6.
pub fn is_ipv6(text: &str) -> bool {
    text.contains(':')
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

    #[test]
    fn both_families_count_alike() {
        let (four, six) = (Subnet::parse("10.9.0.0/16").expect("one"), Subnet6::parse("fd00:3::/64").expect("one"));
        let address = parse_ipv4("10.9.1.2").expect("one");
        let beside = six.beside(four, address).expect("its other one");
        assert_eq!((format_ipv6(beside).as_str(), six.opposite(four, beside)), ("fd00:3::102", Some(address)));
        assert_eq!(six.beside(four, parse_ipv4("10.8.1.2").expect("one")), None);
        assert_eq!(six.opposite(four, beside + (1 << 16)), None);
        assert_eq!(six.opposite(four, beside + (1 << 64)), None);
        // A subnet that is too small has nobody's.
        let small = Subnet6::parse("fd00:3::/113").expect("one");
        assert_eq!((small.beside(four, address), small.opposite(four, beside)), (None, None));
        assert!(Subnet6::parse("fd00:3::/112").expect("one").has_room_for(four));
        for wrong in ["", "fd00::", "fd00::1/64", "::/129", "10.0.3.0/24", "::/+8", "::/"] {
            assert_eq!(Subnet6::parse(wrong), None, "{wrong}");
        }
        assert!(Subnet6::parse("::/0").expect("everything").contains(u128::MAX));
        assert!(six.overlaps(Subnet6::parse("fd00::/16").expect("one")));
        assert!(!six.overlaps(Subnet6::parse("fd00:4::/64").expect("one")));
    }
}
