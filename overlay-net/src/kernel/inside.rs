//! A task's namespace: what is in it, and the way back to clients of published ports.
//!
//! A task with the right to do so may fill it with as many links, addresses and routes as it likes. Whoever reads them
//! has other things to do, and so reads no more than ours could ever be.

use std::io;
use std::net::IpAddr;

use super::links::Links;
use super::mac_of;
use super::netlink::is_too_much;
use super::netns::NetNs;
use super::routes::RoutingRule;
use crate::plan::balance::IngressSide;
use crate::plan::inside::{Found, FoundLink};
use crate::plan::names;

/// What all lists of a task's namespace may come to, in bytes: those of ours are some hundred a link, route or neighbour,
/// and two thousand a link in the list of links.
const INSIDE_MAX: usize = 1 << 20;

impl Links {
    /// What the namespace, which these are the links of, holds of what `plan::inside` asks for.
    ///
    /// # Errors
    /// When a list is refused; when there is too much to look through.
    pub(crate) fn inside(&mut self, namespace: &NetNs) -> io::Result<Found> {
        self.socket.allow(Some(INSIDE_MAX));
        let found = self.look_inside();
        self.socket.allow(None);
        if found.as_ref().is_err_and(is_too_much) {
            // The kernel is in the middle of a list, and begins no other one for this socket.
            self.socket = Links::open(namespace)?.socket;
        }
        found
    }

    fn look_inside(&mut self) -> io::Result<Found> {
        let mut found = Found::default();
        let links = self.list()?;
        let (addresses, checking) = (self.addresses()?, self.checking_sources()?);
        let addresses6 = self.addresses6()?;
        let name = |index: u32| links.iter().find(|link| link.index == index).map(|link| &link.name);
        for link in &links {
            let own = addresses.iter().filter(|(index, _)| *index == link.index).map(|(_, net)| *net);
            let known = FoundLink {
                kind: link.kind.clone(),
                up: link.up,
                mtu: link.mtu,
                mac: link.address.clone(),
                addresses: own.collect(),
                addresses6: addresses6.iter().filter(|(index, _)| *index == link.index).map(|(_, net)| *net).collect(),
                checks_sources: checking.contains(&link.index),
            };
            found.links.insert(link.name.clone(), known);
        }
        found.checks_sources = checking.contains(&0);
        let routes = self.all_routes()?;
        let mut defaults = routes.iter().filter(|route| route.destination.prefix_len() == 0);
        found.return_link = defaults
            .clone()
            .find(|route| route.table == names::RETURN_TABLE)
            .and_then(|route| name(route.link))
            .cloned();
        found.default_route = defaults.any(|route| route.table != names::RETURN_TABLE);
        let returns = |rule: &RoutingRule| rule.table == names::RETURN_TABLE;
        found.return_rule = self.routing_rules(libc::AF_INET)?.iter().any(|rule| returns(rule) && rule.by_mark);
        let nobody = mac_of(std::net::Ipv4Addr::UNSPECIFIED);
        let neighbours = self.neighbours()?;
        let known = |gateway: IpAddr| neighbours.iter().any(|(_, address, mac)| (*address, *mac) == (gateway, nobody));
        found.return_gateway = known(names::RETURN_GATEWAY.into());
        let rules6 = self.routing_rules(libc::AF_INET6)?;
        let mut rules6 = rules6.iter().filter(|rule| returns(rule));
        let ruled6 = rules6.clone().any(|rule| rule.by_mark) && rules6.any(|rule| rule.for_all);
        if known(names::RETURN_GATEWAY_6.into()) && ruled6 {
            let mut routes = self.routes6()?.into_iter();
            let link = routes.find(|(table, net, _)| *table == names::RETURN_TABLE && net.prefix_len() == 0);
            found.return6 = link.and_then(|(_, _, link)| name(link)).cloned();
        }
        Ok(found)
    }

    /// Gives answers to clients a route where there is no other: see [`Links::remember_stations`].
    pub(crate) fn route_of_replies(&mut self, gateway: std::net::Ipv4Addr, interface: &str) -> io::Result<()> {
        self.route_through(libc::RT_TABLE_MAIN.into(), gateway, interface)
    }

    /// Lets a task answer clients through the host that they came by: replies that carry a mark leave by the ingress
    /// interface, to a gateway that stands for all hosts.
    pub(crate) fn remember_stations(&mut self, namespace: &NetNs, side: &IngressSide, six: bool) -> io::Result<()> {
        // A client's packets come in where no route to the client leads out.
        for scope in ["all", side.interface.as_str()] {
            namespace.set_sysctl(&format!("ipv4/conf/{scope}/rp_filter"), "0")?;
        }
        let index = self.index(&side.interface)?;
        let nobody = mac_of(std::net::Ipv4Addr::UNSPECIFIED);
        self.set_neighbour(index, names::RETURN_GATEWAY.into(), nobody)?;
        self.route_marked(side.subnet, names::RETURN_TABLE, names::RETURN_GATEWAY, &side.interface)?;
        if six {
            self.set_neighbour(index, names::RETURN_GATEWAY_6.into(), nobody)?;
            self.route_marked6(side.subnet, names::RETURN_TABLE, names::RETURN_GATEWAY_6, &side.interface)?;
        }
        Ok(())
    }
}
