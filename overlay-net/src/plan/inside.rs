//! What a task's namespace must hold, and what of it is not there.
//!
//! What is missing or bent is named, so that it can be repaired and logged; what a task with the right to do so has
//! added beside (other links, other routes, a default route of its own) is the task's business. So is it that it has
//! taken its default route away: who does that wants nothing to leave by it, as long as a tunnel of its own is down for
//! example. What is put back is a default route that went with its link.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::{Ipv4Net, Ipv6Net};

use super::attachment::{Interface, gateway};
use super::balance::IngressSide;
use super::names;

/// What a task's namespace must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inside {
    /// Its interfaces in order.
    pub interfaces: Vec<Interface>,
    /// The host's address on the way out, with its prefix, if the task has one.
    pub way_out: Option<Ipv4Net>,
    /// Its place on the ingress network, where it has to find the way back to clients.
    pub ingress: Option<IngressSide>,
}

/// What a namespace holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Its links by name.
    pub links: BTreeMap<String, FoundLink>,
    /// It has a default route.
    pub default_route: bool,
    /// All links check where packets come from.
    pub checks_sources: bool,
    /// Replies that carry a mark find their table, that table leads out by this link, and the gateway there is known.
    pub return_rule: bool,
    /// See `return_rule`.
    pub return_link: Option<String>,
    /// See `return_rule`.
    pub return_gateway: bool,
    /// All three for IPv6: the link that marked replies leave by, by a rule, a route and a known gateway.
    pub return6: Option<String>,
}

/// What is known of a task's default route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultRoute {
    /// It is there, ours or one of the task's own.
    Held,
    /// It is not there, and is to be set: it was not set yet, or went with its link.
    Lost,
    /// It is not there, and its link is: the task has taken it away.
    GivenUp,
}

impl DefaultRoute {
    /// What is known after a look that found such a route or not, and its link as it should be or not.
    #[must_use]
    pub fn after(self, there: bool, link_holds: bool) -> DefaultRoute {
        match self {
            _ if there => DefaultRoute::Held,
            DefaultRoute::Held if link_holds => DefaultRoute::GivenUp,
            DefaultRoute::Held => DefaultRoute::Lost,
            known => known,
        }
    }
}

/// A link in a namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FoundLink {
    /// `veth` for those of ours.
    pub kind: String,
    /// It is set up.
    pub up: bool,
    /// MTU in bytes.
    pub mtu: u32,
    /// Its hardware address.
    pub mac: Vec<u8>,
    /// Its IPv4 addresses.
    pub addresses: Vec<Ipv4Net>,
    /// Its IPv6 addresses.
    pub addresses6: Vec<Ipv6Net>,
    /// It checks where packets come from.
    pub checks_sources: bool,
}

impl Inside {
    /// The gateway of the default route, and the link that it is on. Who has no way out answers clients all the same,
    /// and what answers needs a route before anything looks at it.
    #[must_use]
    pub fn default_route(&self) -> Option<(Ipv4Addr, &str)> {
        match (self.way_out, &self.ingress) {
            (Some(way_out), _) => Some((gateway(way_out), &self.interfaces.last()?.name)),
            (None, Some(side)) => Some((names::RETURN_GATEWAY, &side.interface)),
            (None, None) => None,
        }
    }

    /// Whether the link of the default route is so that the kernel takes no route away from it.
    #[must_use]
    pub fn holds_route(&self, found: &Found) -> bool {
        let Some((_, name)) = self.default_route() else { return true };
        let interface = self.interfaces.iter().find(|interface| interface.name == name);
        interface.zip(found.links.get(name)).is_some_and(|(interface, link)| {
            link.kind == "veth" && link.up && link.mac == interface.mac && link.addresses.contains(&interface.address)
        })
    }

    /// Whether clients of published ports come over IPv6 as well.
    #[must_use]
    pub fn has_ingress6(&self) -> bool {
        let Some(side) = &self.ingress else { return false };
        self.interfaces.iter().any(|interface| interface.name == side.interface && interface.address6.is_some())
    }

    /// What is not as it must be, each as a text; `underlay` is the MTU of what carries the tunnels.
    #[must_use]
    pub fn lacks(&self, found: &Found, route: DefaultRoute, underlay: u32) -> Vec<String> {
        let mut lacks = Vec::new();
        if !found.links.get("lo").is_some_and(|link| link.up) {
            lacks.push("lo is down".to_owned());
        }
        for interface in &self.interfaces {
            let name = &interface.name;
            let Some(link) = found.links.get(name).filter(|link| link.kind == "veth") else {
                lacks.push(format!("{name} is missing"));
                continue;
            };
            for (wrong, what) in [
                (!link.up, "is down"),
                (link.mtu != interface.room.mtu(underlay), "has another MTU"),
                (link.mac != interface.mac, "has another hardware address"),
                (!link.addresses.contains(&interface.address), "has lost its address"),
                (
                    interface.address6.is_some_and(|address| !link.addresses6.contains(&address)),
                    "has lost its IPv6 address",
                ),
            ] {
                if wrong {
                    lacks.push(format!("{name} {what}"));
                }
            }
        }
        if self.default_route().is_some() && route == DefaultRoute::Lost {
            lacks.push("the default route is missing".to_owned());
        }
        if let Some(side) = &self.ingress {
            let link = found.links.get(&side.interface);
            for (wrong, what) in [
                (found.checks_sources || link.is_some_and(|link| link.checks_sources), "rp_filter is on"),
                (!found.return_rule, "the rule of marked replies is missing"),
                (found.return_link.as_ref() != Some(&side.interface), "the route of marked replies is missing"),
                (!found.return_gateway, "the gateway of marked replies is missing"),
                (
                    self.has_ingress6() && found.return6.as_ref() != Some(&side.interface),
                    "the way of marked IPv6 replies is missing",
                ),
            ] {
                if wrong {
                    lacks.push(what.to_owned());
                }
            }
        }
        lacks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_route_comes_back_with_its_link_and_is_the_tasks_to_take_away() {
        use DefaultRoute::{GivenUp, Held, Lost};
        // What is known, then: is one there, and does the link hold it.
        for (known, there, holds, expected) in [
            (Lost, false, false, Lost),
            (Lost, false, true, Lost),
            (Lost, true, true, Held),
            (Held, true, true, Held),
            // Another one, by a link of the task's own.
            (Held, true, false, Held),
            (Held, false, false, Lost),
            (Held, false, true, GivenUp),
            // Its link being made anew later changes nothing: it was given up before.
            (GivenUp, false, false, GivenUp),
            (GivenUp, false, true, GivenUp),
            (GivenUp, true, true, Held),
        ] {
            assert_eq!(known.after(there, holds), expected, "{known:?} {there} {holds}");
        }
    }
}
