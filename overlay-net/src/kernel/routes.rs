//! Addresses of links, and where a namespace's packets go: routes, rules that lead to tables of them, and which links
//! check where packets come from.
//!
//! All of it belongs to the handle `Links`. Which routes there should be its callers say: the host's side for the host,
//! `seal` for the namespace of encrypted networks, `inside` for a task's.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use libc::{RTM_DELADDR, RTM_DELROUTE, RTM_GETADDR, RTM_GETROUTE, RTM_NEWADDR, RTM_NEWROUTE};

use super::links::Links;
use super::netlink::{
    CREATE, DUMP, EXCL, Message, REPLACE, Reply, attributes, gone_is_not_found, ipv4_of, ipv6_of, u32_of,
};

// `IFA_*` of linux/if_addr.h.
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// `IFA_F_NODAD`: an address is used at once, without asking whether somebody else has it.
const IFA_F_NODAD: u8 = 2;
/// `RTPROT_UNSPEC`: from anybody.
const RTPROT_UNSPEC: u8 = 0;
/// `RTPROT_STATIC`: what an administrator's tool would say.
const RTPROT_STATIC: u8 = 4;
/// `RTPROT_KERNEL`: what comes with an address, and goes with it.
const RTPROT_KERNEL: u8 = 2;
/// `IP6_RT_PRIO_ADDRCONF`: the metric of IPv6 routes that come with an address.
const CONNECTED_METRIC_6: u32 = 256;
const RT_TABLE_MAIN: u8 = 254;
const RTN_UNICAST: u8 = 1;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
/// `RTNH_F_ONLINK`: the gateway is on the link, whatever the link's addresses say.
const ONLINK: u32 = 4;
// `FRA_*` and `FR_ACT_TO_TBL` of linux/fib_rules.h.
const FRA_SRC: u16 = 2;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const TO_TABLE: u8 = 1;
/// Behind the main table (32766) and the default one.
const AFTER_ALL: u32 = 32_800;
// `NETCONFA_*` of linux/netconf.h, and its number for what holds for all links.
const NETCONF_LINK: u16 = 1;
const NETCONF_RP_FILTER: u16 = 3;
const NETCONF_ALL: i32 = -1;

/// What leads packets to a table of routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RoutingRule {
    pub(super) table: u32,
    /// Those with a mark.
    pub(super) by_mark: bool,
    /// All that no other table leads anywhere.
    pub(super) for_all: bool,
}

/// One IPv4 route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Route {
    /// The table that it is in.
    pub(super) table: u32,
    /// Where it leads.
    pub(super) destination: Ipv4Net,
    /// The number of its link.
    pub(super) link: u32,
}

impl Links {
    /// Gives a link an IPv4 address with its prefix; an address that is there already is fine.
    ///
    /// # Errors
    /// `NotFound`, or what the kernel says.
    pub fn add_address(&mut self, name: &str, address: Ipv4Net) -> io::Result<()> {
        let message = self.address_message(RTM_NEWADDR, CREATE | REPLACE, name, address)?;
        self.socket.request(message).map(drop)
    }

    /// Takes an IPv4 address from a link.
    ///
    /// # Errors
    /// `NotFound` when the link is missing, or what the kernel says.
    pub fn delete_address(&mut self, name: &str, address: Ipv4Net) -> io::Result<()> {
        let message = self.address_message(RTM_DELADDR, 0, name, address)?;
        self.socket.request(message).map(drop)
    }

    fn address_message(&mut self, kind: u16, flags: u16, name: &str, address: Ipv4Net) -> io::Result<Message> {
        let index = self.index(name)?;
        let mut fixed = [libc::AF_INET as u8, address.prefix_len(), 0, 0, 0, 0, 0, 0];
        fixed[4..8].copy_from_slice(&index.to_ne_bytes());
        let mut message = Message::new(kind, flags, &fixed);
        message.put(IFA_LOCAL, &address.addr().octets()).put(IFA_ADDRESS, &address.addr().octets());
        Ok(message)
    }

    /// All IPv4 addresses with the number of their link.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub fn addresses(&mut self) -> io::Result<Vec<(u32, Ipv4Net)>> {
        let fixed = [libc::AF_INET as u8, 0, 0, 0, 0, 0, 0, 0];
        let replies = self.socket.request(Message::new(RTM_GETADDR, DUMP, &fixed))?;
        Ok(replies.iter().filter_map(parse_address).collect())
    }

    /// Gives a link an IPv6 address with its prefix, for use at once; an address that is there already is fine.
    ///
    /// # Errors
    /// `NotFound`, or what the kernel says: a link without IPv6 takes none.
    pub fn add_address6(&mut self, name: &str, address: Ipv6Net) -> io::Result<()> {
        let index = self.index(name)?;
        let mut fixed = [libc::AF_INET6 as u8, address.prefix_len(), IFA_F_NODAD, 0, 0, 0, 0, 0];
        fixed[4..8].copy_from_slice(&index.to_ne_bytes());
        let mut message = Message::new(RTM_NEWADDR, CREATE | REPLACE, &fixed);
        message.put(IFA_LOCAL, &address.addr().octets()).put(IFA_ADDRESS, &address.addr().octets());
        self.socket.request(message).map(drop)
    }

    /// All IPv6 addresses with the number of their link, but for those that each link makes for itself (`fe80::`).
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub fn addresses6(&mut self) -> io::Result<Vec<(u32, Ipv6Net)>> {
        let fixed = [libc::AF_INET6 as u8, 0, 0, 0, 0, 0, 0, 0];
        let replies = self.socket.request(Message::new(RTM_GETADDR, DUMP, &fixed))?;
        let address = |reply: &Reply| {
            let fixed = reply.body.get(..8)?;
            let address = attributes(&reply.body[8..]).find(|(kind, _)| *kind == IFA_ADDRESS)?.1;
            let net = Ipv6Net::new(ipv6_of(address)?, fixed[1]).ok()?;
            let counts = i32::from(fixed[0]) == libc::AF_INET6 && !net.addr().is_unicast_link_local();
            counts.then_some((u32_of(&fixed[4..8]), net))
        };
        Ok(replies.iter().filter_map(address).collect())
    }

    /// Adds a route in the main table, or replaces the one to the same destination.
    ///
    /// # Errors
    /// `NotFound` when the link is missing; `NetworkUnreachable` when the gateway is not on a link.
    pub fn add_route(&mut self, destination: Ipv4Net, via: Option<Ipv4Addr>, name: &str) -> io::Result<()> {
        let message = self.route_message(RTM_NEWROUTE, CREATE | REPLACE, destination, via, name)?;
        self.socket.request(message).map(drop)
    }

    /// Removes a route of the main table.
    ///
    /// # Errors
    /// `NotFound` when the link or the route is missing.
    pub fn delete_route(&mut self, destination: Ipv4Net, via: Option<Ipv4Addr>, name: &str) -> io::Result<()> {
        let message = self.route_message(RTM_DELROUTE, 0, destination, via, name)?;
        self.socket.request(message).map(drop).map_err(gone_is_not_found)
    }

    fn route_message(
        &mut self,
        kind: u16,
        flags: u16,
        destination: Ipv4Net,
        via: Option<Ipv4Addr>,
        name: &str,
    ) -> io::Result<Message> {
        let index = self.index(name)?;
        let scope = if via.is_some() { RT_SCOPE_UNIVERSE } else { RT_SCOPE_LINK };
        // Whoever set it, it is removed.
        let protocol = if kind == RTM_NEWROUTE { RTPROT_STATIC } else { RTPROT_UNSPEC };
        let fixed = [
            libc::AF_INET as u8,
            destination.prefix_len(),
            0,
            0,
            RT_TABLE_MAIN,
            protocol,
            scope,
            RTN_UNICAST,
            0,
            0,
            0,
            0,
        ];
        let mut message = Message::new(kind, flags, &fixed);
        if destination.prefix_len() > 0 {
            message.put(libc::RTA_DST, &destination.network().octets());
        }
        if let Some(via) = via {
            message.put(libc::RTA_GATEWAY, &via.octets());
        }
        message.put_u32(libc::RTA_OIF, index);
        Ok(message)
    }

    /// Sends packets whose mark is an address in `marks` (as it stands in a packet) out of a link, to a gateway that
    /// need not exist there: a rule and a default route in a table of their own. What is there already is fine.
    ///
    /// # Errors
    /// `NotFound` when the link is missing, or what the kernel says.
    pub fn route_marked(&mut self, marks: Ipv4Net, table: u32, via: Ipv4Addr, name: &str) -> io::Result<()> {
        self.route_through(table, via, name)?;
        self.rule_of_marks(libc::AF_INET, marks, table)
    }

    fn rule_of_marks(&mut self, family: i32, marks: Ipv4Net, table: u32) -> io::Result<()> {
        let mut fixed = [0; 12];
        (fixed[0], fixed[7]) = (u8::try_from(family).expect("address families are small"), TO_TABLE);
        let mut rule = Message::new(libc::RTM_NEWRULE, CREATE | EXCL, &fixed);
        rule.put_u32(FRA_PRIORITY, table).put_u32(FRA_TABLE, table);
        rule.put(FRA_FWMARK, &marks.network().octets()).put(FRA_FWMASK, &marks.netmask().octets());
        self.add_rule(rule)
    }

    /// The same for IPv6 packets. `marks` are IPv4 addresses here too: those of hosts. Packets that no other route leads
    /// anywhere take this one: the kernel asks for the way of a reply, and for the address to send it from, before anybody
    /// could mark it, and where there is no default route it would not be sent. What is no reply is to be refused by rules.
    ///
    /// # Errors
    /// `NotFound` when the link is missing, or what the kernel says.
    pub fn route_marked6(&mut self, marks: Ipv4Net, table: u32, via: Ipv6Addr, name: &str) -> io::Result<()> {
        let index = self.index(name)?;
        let mut fixed = [0; 12];
        (fixed[0], fixed[5], fixed[7]) = (libc::AF_INET6 as u8, RTPROT_STATIC, RTN_UNICAST);
        fixed[8..12].copy_from_slice(&ONLINK.to_ne_bytes());
        let mut route = Message::new(RTM_NEWROUTE, CREATE | REPLACE, &fixed);
        route.put(libc::RTA_GATEWAY, &via.octets()).put_u32(libc::RTA_OIF, index).put_u32(libc::RTA_TABLE, table);
        self.socket.request(route)?;
        self.rule_of_marks(libc::AF_INET6, marks, table)?;
        let mut fixed = [0; 12];
        (fixed[0], fixed[7]) = (libc::AF_INET6 as u8, TO_TABLE);
        let mut rule = Message::new(libc::RTM_NEWRULE, CREATE | EXCL, &fixed);
        rule.put_u32(FRA_PRIORITY, AFTER_ALL).put_u32(FRA_TABLE, table);
        self.add_rule(rule)
    }

    /// Adds a rule; one that is there already is fine.
    fn add_rule(&mut self, rule: Message) -> io::Result<()> {
        match self.socket.request(rule) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }

    /// The default route of a table, through a gateway that is on the link although no address of the link says so.
    pub(super) fn route_through(&mut self, table: u32, via: Ipv4Addr, name: &str) -> io::Result<()> {
        let index = self.index(name)?;
        let mut fixed = [0; 12];
        (fixed[0], fixed[5], fixed[7]) = (libc::AF_INET as u8, RTPROT_STATIC, RTN_UNICAST);
        fixed[8..12].copy_from_slice(&ONLINK.to_ne_bytes());
        let mut route = Message::new(RTM_NEWROUTE, CREATE | REPLACE, &fixed);
        route.put(libc::RTA_GATEWAY, &via.octets()).put_u32(libc::RTA_OIF, index).put_u32(libc::RTA_TABLE, table);
        self.socket.request(route).map(drop)
    }

    /// Puts back the route that the kernel made when a link got this address, if somebody has taken it away; says whether
    /// it was. A link that has not got the address, or is down, gets no route.
    pub(super) fn restore_connected(&mut self, link: u32, address: Ipv4Net) -> io::Result<bool> {
        let net = address.trunc();
        let mut fixed = [0; 12];
        (fixed[0], fixed[1], fixed[4]) = (libc::AF_INET as u8, net.prefix_len(), RT_TABLE_MAIN);
        (fixed[5], fixed[6], fixed[7]) = (RTPROT_KERNEL, RT_SCOPE_LINK, RTN_UNICAST);
        let mut route = Message::new(RTM_NEWROUTE, CREATE | EXCL, &fixed);
        route.put(libc::RTA_DST, &net.addr().octets()).put(libc::RTA_PREFSRC, &address.addr().octets());
        route.put_u32(libc::RTA_OIF, link);
        self.restore_route(route)
    }

    /// The same for IPv6.
    pub(super) fn restore_connected6(&mut self, link: u32, address: Ipv6Net) -> io::Result<bool> {
        let net = address.trunc();
        let mut fixed = [0; 12];
        (fixed[0], fixed[1], fixed[4]) = (libc::AF_INET6 as u8, net.prefix_len(), RT_TABLE_MAIN);
        (fixed[5], fixed[7]) = (RTPROT_KERNEL, RTN_UNICAST);
        let mut route = Message::new(RTM_NEWROUTE, CREATE | EXCL, &fixed);
        route.put(libc::RTA_DST, &net.addr().octets()).put_u32(libc::RTA_OIF, link);
        route.put_u32(libc::RTA_PRIORITY, CONNECTED_METRIC_6);
        self.restore_route(route)
    }

    fn restore_route(&mut self, route: Message) -> io::Result<bool> {
        match self.socket.request(route) {
            Ok(_) => Ok(true),
            Err(error) => match error.raw_os_error() {
                // It is there; or the link is not as it should be, and gets the route with its repair.
                Some(libc::EEXIST | libc::EINVAL | libc::ENETDOWN | libc::ENODEV) => Ok(false),
                _ => Err(error),
            },
        }
    }

    /// All IPv4 destinations in the main table, with the number of their link; the default route is `0.0.0.0/0`.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub fn routes(&mut self) -> io::Result<Vec<(Ipv4Net, u32)>> {
        let all = self.all_routes()?.into_iter();
        Ok(all.filter(|route| route.table == u32::from(RT_TABLE_MAIN)).map(|r| (r.destination, r.link)).collect())
    }

    /// The IPv4 routes of all tables.
    pub(super) fn all_routes(&mut self) -> io::Result<Vec<Route>> {
        let mut fixed = [0; 12];
        fixed[0] = libc::AF_INET as u8;
        let replies = self.socket.request(Message::new(RTM_GETROUTE, DUMP, &fixed))?;
        Ok(replies.iter().filter_map(parse_route).collect())
    }

    /// The IPv6 destinations of all tables, with the table and the number of the link.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub fn routes6(&mut self) -> io::Result<Vec<(u32, Ipv6Net, u32)>> {
        let mut fixed = [0; 12];
        fixed[0] = libc::AF_INET6 as u8;
        let replies = self.socket.request(Message::new(RTM_GETROUTE, DUMP, &fixed))?;
        let route = |reply: &Reply| {
            let fixed = reply.body.get(..12)?;
            let (mut to, mut link, mut table) = (Ipv6Addr::UNSPECIFIED, 0, u32::from(fixed[4]));
            for (kind, value) in attributes(&reply.body[12..]) {
                match kind {
                    libc::RTA_DST => to = ipv6_of(value)?,
                    libc::RTA_OIF => link = u32_of(value),
                    libc::RTA_TABLE => table = u32_of(value),
                    _ => {}
                }
            }
            let net = Ipv6Net::new(to, fixed[1]).ok()?;
            (i32::from(fixed[0]) == libc::AF_INET6).then_some((table, net, link))
        };
        Ok(replies.iter().filter_map(route).collect())
    }

    /// The rules of a family that lead to a table.
    pub(super) fn routing_rules(&mut self, family: i32) -> io::Result<Vec<RoutingRule>> {
        let mut fixed = [0; 12];
        fixed[0] = u8::try_from(family).expect("address families are small");
        let replies = self.socket.request(Message::new(libc::RTM_GETRULE, DUMP, &fixed))?;
        let rule = |reply: &Reply| {
            if i32::from(*reply.body.first()?) != family {
                return None;
            }
            let value = |of: u16| {
                attributes(reply.body.get(12..).unwrap_or_default())
                    .find(|(kind, _)| *kind == of)
                    .map(|(_, value)| value)
            };
            let by_mark = value(FRA_FWMARK).is_some();
            let last = value(FRA_PRIORITY).is_some_and(|priority| u32_of(priority) == AFTER_ALL);
            let for_all = last && !by_mark && value(FRA_SRC).is_none();
            Some(RoutingRule { table: u32_of(value(FRA_TABLE)?), by_mark, for_all })
        };
        Ok(replies.iter().filter_map(rule).collect())
    }

    /// Which links, by number, check where packets come from (`rp_filter`); 0 stands for the value for all links.
    pub(super) fn checking_sources(&mut self) -> io::Result<Vec<u32>> {
        let mut fixed = [0; 4];
        fixed[0] = libc::AF_INET as u8;
        let replies = self.socket.request(Message::new(libc::RTM_GETNETCONF, DUMP, &fixed))?;
        let link = |reply: &Reply| {
            let (mut link, mut checks) = (None, false);
            for (kind, value) in attributes(reply.body.get(4..)?) {
                match kind {
                    NETCONF_LINK => link = Some(u32_of(value).cast_signed()),
                    NETCONF_RP_FILTER => checks = u32_of(value) != 0,
                    _ => {}
                }
            }
            let number = match link? {
                NETCONF_ALL => 0,
                number => u32::try_from(number).ok()?,
            };
            checks.then_some(number)
        };
        Ok(replies.iter().filter_map(link).collect())
    }
}

fn parse_address(reply: &Reply) -> Option<(u32, Ipv4Net)> {
    let fixed = reply.body.get(..8)?;
    let local = attributes(&reply.body[8..]).find(|(kind, _)| *kind == IFA_LOCAL)?.1;
    Some((u32_of(&fixed[4..8]), Ipv4Net::new(ipv4_of(local)?, fixed[1]).ok()?))
}

fn parse_route(reply: &Reply) -> Option<Route> {
    let fixed = reply.body.get(..12)?;
    let (mut destination, mut link, mut table) = (Ipv4Addr::UNSPECIFIED, 0, u32::from(fixed[4]));
    for (kind, value) in attributes(&reply.body[12..]) {
        match kind {
            libc::RTA_DST => destination = ipv4_of(value)?,
            libc::RTA_OIF => link = u32_of(value),
            libc::RTA_TABLE => table = u32_of(value),
            _ => {}
        }
    }
    Some(Route { table, destination: Ipv4Net::new(destination, fixed[1]).ok()?, link })
}

#[cfg(test)]
mod tests {
    use super::super::netns::NetNs;
    use super::*;

    #[test]
    fn a_route_that_came_with_an_address_is_put_back_as_it_was() {
        let namespace = match NetNs::anonymous() {
            Ok(namespace) => namespace,
            Err(error) => return println!("skipped: cannot make a network namespace ({error}); root is needed"),
        };
        let mut links = Links::open(&namespace).unwrap();
        links.create_bridge("b").unwrap();
        let (address, address6) = ("10.7.0.1/24".parse().unwrap(), "fd00:7::1/64".parse().unwrap());
        let index = links.index("b").unwrap();
        assert!(!links.restore_connected(index, address).unwrap(), "a link that is down gets none");
        links.add_address("b", address).unwrap();
        links.set_up("b").unwrap();
        assert!(!links.restore_connected(index, address).unwrap(), "it is there");
        let listed = |links: &mut Links| {
            let mut fixed = [0; 12];
            fixed[0] = libc::AF_INET as u8;
            let all = links.socket.request(Message::new(RTM_GETROUTE, DUMP, &fixed)).unwrap();
            all.into_iter().map(|reply| reply.body).collect::<Vec<_>>()
        };
        let before = listed(&mut links);
        links.delete_route(address.trunc(), None, "b").unwrap();
        assert_ne!(listed(&mut links), before);
        assert!(links.restore_connected(index, address).unwrap());
        assert_eq!(listed(&mut links), before, "the kernel's own, in every respect");

        if links.add_address6("b", address6).is_err() {
            return println!("not checked with IPv6: this kernel has none");
        }
        assert!(!links.restore_connected6(index, address6).unwrap(), "it is there");
        let net = address6.trunc();
        let mut fixed = [0; 12];
        (fixed[0], fixed[1], fixed[4]) = (libc::AF_INET6 as u8, 64, RT_TABLE_MAIN);
        let mut gone = Message::new(RTM_DELROUTE, 0, &fixed);
        gone.put(libc::RTA_DST, &net.addr().octets()).put_u32(libc::RTA_OIF, index);
        links.socket.request(gone).unwrap();
        let main = (u32::from(RT_TABLE_MAIN), net, index);
        assert!(!links.routes6().unwrap().contains(&main));
        assert!(links.restore_connected6(index, address6).unwrap());
        assert!(links.routes6().unwrap().contains(&main));
    }
}
