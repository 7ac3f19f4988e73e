//! The networks that this host has of its own, as it tells the cluster: networks of tasks should not have the same
//! addresses.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use deploy::model::MAX_OWN_SUBNETS;
use ipnet::{Ipv4Net, Ipv6Net};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use overlay_net::is_own_link;
use overlay_net::plan::attachment::choose_egress;

/// The main routing table of the calling thread's network namespace; IPv4.
const ROUTES: &str = "/proc/thread-self/net/route";
/// The same for IPv6, with the kernel's own entries for addresses and groups.
const ROUTES_6: &str = "/proc/thread-self/net/ipv6_route";
/// A route that is in force (`RTF_UP`).
const UP: u32 = 0x1;
/// One that only refuses (`RTF_REJECT`): a network that is merely shut off is nobody's.
const REJECT: u32 = 0x200;
/// Entries for the host's own addresses (`RTF_LOCAL`, `RTF_ANYCAST`).
const ITSELF: u32 = 0x8010_0000;

/// What a host says of its networks; see `NodeDescription`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct OwnNetworks {
    /// Subnets that it has addresses in, in order.
    pub(crate) subnets: Vec<String>,
    /// Others that it has routes to, in order.
    pub(crate) routes: Vec<String>,
    /// The subnet through which tasks reach other networks.
    pub(crate) way_out: String,
    /// As `subnets`, for IPv6.
    pub(crate) subnets6: Vec<String>,
    /// As `routes`, for IPv6.
    pub(crate) routes6: Vec<String>,
}

/// An address of an interface.
struct Address<N = Ipv4Net> {
    interface: String,
    net: N,
}

/// Reads them. What cannot be read is left out: nothing but the choice of subnets depends on it. `taken` are subnets that
/// a way out which is not there yet will not have either.
pub(crate) fn read(egress_link: &str, taken: &[Ipv4Net]) -> OwnNetworks {
    let counts =
        |flags: InterfaceFlags| flags.contains(InterfaceFlags::IFF_UP) && !flags.contains(InterfaceFlags::IFF_LOOPBACK);
    let (mut addresses, mut addresses6) = (Vec::new(), Vec::new());
    for a in getifaddrs().into_iter().flatten().filter(|a| counts(a.flags)) {
        let (Some(address), Some(mask)) = (a.address, a.netmask) else { continue };
        let interface = a.interface_name;
        if let (Some(address), Some(mask)) = (address.as_sockaddr_in(), mask.as_sockaddr_in()) {
            addresses.extend(Ipv4Net::with_netmask(address.ip(), mask.ip()).map(|net| Address { interface, net }));
        } else if let (Some(address), Some(mask)) = (address.as_sockaddr_in6(), mask.as_sockaddr_in6()) {
            addresses6.extend(Ipv6Net::with_netmask(address.ip(), mask.ip()).map(|net| Address { interface, net }));
        }
    }
    let text = |path| std::fs::read_to_string(path).unwrap_or_default();
    let (subnets6, routes6) = own_networks6(addresses6, &text(ROUTES_6));
    OwnNetworks { subnets6, routes6, ..own_networks(addresses, &text(ROUTES), egress_link, taken) }
}

/// Subnets, and routes to others. What belongs to a single link is everybody's, and so nobody's.
fn own_networks6(addresses: Vec<Address<Ipv6Net>>, routes: &str) -> (Vec<String>, Vec<String>) {
    let counts = |interface: &str, net: &Ipv6Net| {
        let first = net.network();
        !is_own_link(interface) && !first.is_unicast_link_local() && !first.is_multicast() && !first.is_loopback()
    };
    let subnets = addresses.into_iter().filter(|a| counts(&a.interface, &a.net)).map(|a| a.net.trunc());
    let subnets: BTreeSet<Ipv6Net> = subnets.collect();
    let routes = routes.lines().filter_map(route6).filter(|(interface, net)| counts(interface, net));
    let routes = routes.map(|(_, net)| net.trunc()).filter(|net| net.prefix_len() > 0 && !subnets.contains(net));
    let routes: BTreeSet<Ipv6Net> = routes.collect();
    let told = |nets: BTreeSet<Ipv6Net>| nets.iter().take(MAX_OWN_SUBNETS).map(ToString::to_string).collect();
    (told(subnets), told(routes))
}

/// Interface and destination of a line of the kernel's table of IPv6: hexadecimal, addresses in the order of the network.
fn route6(line: &str) -> Option<(String, Ipv6Net)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let flags = u32::from_str_radix(fields.get(8)?, 16).ok()?;
    if flags & (UP | REJECT | ITSELF) != UP {
        return None;
    }
    let to = u128::from_str_radix(fields.first()?, 16).ok()?;
    let prefix = u8::from_str_radix(fields.get(1)?, 16).ok()?;
    Some(((*fields.get(9)?).to_owned(), Ipv6Net::new(to.into(), prefix).ok()?))
}

fn own_networks(addresses: Vec<Address>, routes: &str, egress_link: &str, taken: &[Ipv4Net]) -> OwnNetworks {
    let way_out = addresses.iter().find(|a| a.interface == egress_link).map(|a| a.net.trunc());
    let foreign = |interface: &str| !is_own_link(interface);
    // Ordered by address, so that a host that has not changed says the same again.
    let subnets: BTreeSet<Ipv4Net> =
        addresses.into_iter().filter(|a| foreign(&a.interface)).map(|a| a.net.trunc()).collect();
    // The default route leads nowhere in particular.
    let routes =
        routes.lines().skip(1).filter_map(route).filter(|(interface, net)| foreign(interface) && net.prefix_len() > 0);
    let routes: BTreeSet<Ipv4Net> = routes.map(|(_, net)| net.trunc()).filter(|net| !subnets.contains(net)).collect();
    let all = || subnets.iter().chain(&routes).chain(taken).copied().collect::<Vec<_>>();
    let way_out = way_out.or_else(|| choose_egress(&all()));
    let told = |nets: BTreeSet<Ipv4Net>| nets.iter().take(MAX_OWN_SUBNETS).map(ToString::to_string).collect();
    OwnNetworks {
        subnets: told(subnets),
        routes: told(routes),
        way_out: way_out.map(|net| net.to_string()).unwrap_or_default(),
        ..OwnNetworks::default()
    }
}

/// Interface and destination of a line of the kernel's table; its numbers are hexadecimal, their bytes in the order of
/// the network as they lie in memory.
fn route(line: &str) -> Option<(String, Ipv4Net)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let number = |at: usize| u32::from_str_radix(fields.get(at)?, 16).ok();
    let address = |at: usize| number(at).map(|n| Ipv4Addr::from(n.to_ne_bytes()));
    if number(3)? & (UP | REJECT) != UP {
        return None;
    }
    Some(((*fields.first()?).to_owned(), Ipv4Net::with_netmask(address(1)?, address(7)?).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(interface: &str, net: &str) -> Address {
        Address { interface: interface.into(), net: net.parse().unwrap() }
    }

    /// A line as the kernel writes it on this machine.
    fn line(interface: &str, net: &str, flags: u32) -> String {
        let net: Ipv4Net = net.parse().unwrap();
        let hex = |address: Ipv4Addr| format!("{:08X}", u32::from_ne_bytes(address.octets()));
        format!(
            "{interface}\t{}\t00000000\t{flags:04X}\t0\t0\t0\t{}\t0\t0\t0\n",
            hex(net.network()),
            hex(net.netmask())
        )
    }

    #[test]
    fn addresses_and_routes_are_told_and_what_the_node_made_is_not() {
        let routes = [
            "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n".to_owned(),
            line("eth0", "0.0.0.0/0", 3),
            line("eth0", "10.0.0.0/24", 1),
            line("tun0", "10.7.0.0/16", 3),
            line("eth0", "10.8.0.0/16", 0x201),
            line("shi-abc", "10.0.9.0/24", 1),
            "garbage\n".to_owned(),
        ];
        let addresses =
            vec![address("eth0", "10.0.0.5/24"), address("she-abc", "172.29.0.1/16"), address("wg0", "10.6.0.1/32")];
        let found = own_networks(addresses, &routes.concat(), "she-abc", &[]);
        assert_eq!(found.subnets, ["10.0.0.0/24", "10.6.0.1/32"]);
        assert_eq!(found.routes, ["10.7.0.0/16"]);
        assert_eq!(found.way_out, "172.29.0.0/16");
    }

    #[test]
    fn ipv6_networks_are_told_without_what_is_of_one_link() {
        let address = |interface: &str, net: &str| Address { interface: interface.into(), net: net.parse().unwrap() };
        // As the kernel writes them on this machine: to, from, by way of, metric, counts, flags, link.
        let line = |to: &str, prefix: &str, flags: &str, link: &str| {
            format!(
                "{to} {prefix} {zero} 00 {zero} 00000100 00000001 00000000 {flags}     {link}\n",
                zero = "0".repeat(32)
            )
        };
        let routes = [
            line("20010db8000000000000000000000000", "40", "00000001", "eth0"),
            line("20010db8000100000000000000000000", "30", "00000003", "tun0"),
            line("fe800000000000000000000000000000", "40", "00000001", "eth0"),
            line("00000000000000000000000000000000", "00", "00000003", "eth0"),
            line("20010db8000000000000000000000005", "80", "80200001", "eth0"),
            line("20010db8000200000000000000000000", "30", "00200201", "lo"),
            line("ff000000000000000000000000000000", "08", "00000001", "eth0"),
            line("fd000000000000000000000000000000", "40", "00000001", "shi-abc"),
            "garbage\n".to_owned(),
        ];
        let addresses = vec![
            address("eth0", "2001:db8::5/64"),
            address("eth0", "fe80::1/64"),
            address("shi-abc", "fd00::2/64"),
            address("wg0", "fd07::1/128"),
        ];
        let (subnets, others) = own_networks6(addresses, &routes.concat());
        assert_eq!(subnets, ["2001:db8::/64", "fd07::1/128"]);
        assert_eq!(others, ["2001:db8:1::/48"]);
    }

    #[test]
    fn without_a_way_out_the_one_that_would_be_made_is_told() {
        let taken = ["172.29.0.0/24".parse().unwrap()];
        let found = own_networks(vec![address("eth0", "172.30.4.5/20")], "", "she-abc", &taken);
        assert_eq!(found.way_out, "172.28.0.0/16");
        let found = own_networks(vec![address("eth0", "172.30.4.5/20")], "", "she-abc", &[]);
        assert_eq!((found.subnets, found.way_out), (vec!["172.30.0.0/20".to_owned()], "172.29.0.0/16".to_owned()));
    }

    #[test]
    fn no_more_subnets_are_told_than_the_cluster_takes() {
        let many = (0..=255).map(|n| address("eth0", &format!("10.1.{n}.1/24"))).collect();
        assert_eq!(own_networks(many, "", "", &[]).subnets.len(), MAX_OWN_SUBNETS);
    }
}
