//! Ports that the hosts' own daemons listen at. A published port takes every packet for its number that reaches a host,
//! so that publishing one of these would cut the host off from the cluster.

use std::collections::BTreeSet;

use crate::model::{Node, PortProtocol};
use crate::store::Store;

const CONTROL_PORT: &str = "control port";

/// Ports of a host's daemon, each with what it is for. A host of a release that does not name its ports has at least
/// the one that the others reach it at.
pub(crate) fn own_ports(node: &Node) -> impl Iterator<Item = (PortProtocol, u32, &str)> {
    let named = node.description.own_ports.iter().map(|own| (own.protocol(), own.port, own.purpose.as_str()));
    let advertised = [&node.description.control_addr].into_iter().chain(node.manager.as_ref().map(|m| &m.addr));
    let advertised = advertised.filter_map(|addr| addr.rsplit_once(':')?.1.parse::<u16>().ok());
    let both = [PortProtocol::Tcp, PortProtocol::Udp];
    let control = advertised.flat_map(move |port| both.map(|protocol| (protocol, u32::from(port), CONTROL_PORT)));
    named.chain(control).filter(|(_, port, _)| *port != 0)
}

/// Whose own port it is, for people: `node 'n1' (id) as its control port`.
pub(crate) fn reserved_port(store: &Store, protocol: PortProtocol, port: u32) -> Option<String> {
    if (protocol, Some(port)) == (PortProtocol::Udp, data_path_port(store)) {
        return Some("the cluster as its data path port".to_owned());
    }
    if protocol == PortProtocol::Udp && has_encrypted(store) && sealing_ports(store).any(|own| own == port) {
        return Some("the cluster for encrypted networks".to_owned());
    }
    store.nodes().find_map(|node| {
        let (_, _, purpose) = own_ports(node).find(|(p, number, _)| (*p, *number) == (protocol, port))?;
        Some(format!("node '{}' ({}) as its {purpose}", node.description.hostname, node.id))
    })
}

/// All of them, of all hosts.
pub(super) fn reserved_ports(store: &Store) -> BTreeSet<(PortProtocol, u32)> {
    let own = store.nodes().flat_map(|node| own_ports(node).map(|(protocol, port, _)| (protocol, port)));
    let sealing = sealing_ports(store).filter(|_| has_encrypted(store));
    own.chain(data_path_port(store).into_iter().chain(sealing).map(|port| (PortProtocol::Udp, port))).collect()
}

/// The UDP ports that hosts exchange what is of encrypted networks at: the two that follow the data path port.
pub(crate) fn sealing_ports(store: &Store) -> impl Iterator<Item = u32> + use<> {
    data_path_port(store).into_iter().flat_map(|port| [port + 1, port + 2])
}

fn has_encrypted(store: &Store) -> bool {
    store.networks().any(|network| network.spec.is_encrypted())
}

fn data_path_port(store: &Store) -> Option<u32> {
    store.cluster().map(|cluster| cluster.spec.data_path_port)
}
