//! What the overlay asks of a kernel's nf_tables, tried in namespaces of its own.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::config::{Beside, Protocol};
use crate::kernel::{NetNs, Tables};
use crate::plan::balance::{Balance, HostSide, IngressSide, Target};
use crate::plan::ruleset::Table;

const DNS_PORTS: (u16, u16) = (53, 53);

/// A namespace's nf_tables to try things in; it is gone with the value.
pub(crate) fn kernel() -> io::Result<Tables> {
    Tables::open(&NetNs::anonymous()?)
}

/// Whether this kernel takes the rules that every host has, and those of IPv6 networks with `six`; an error says why it
/// does not. A distribution may keep some of them in modules that are not there.
pub(crate) fn rules(kernel: &mut Tables, six: bool) -> io::Result<()> {
    let at = |last: u8| Ipv4Addr::new(10, 0, 0, last);
    let subnet = Ipv4Net::new_assert(at(0), 24);
    let subnet6 = Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0), 64);
    let beside = Beside::new(subnet, subnet6).filter(|_| six);
    let vips = BTreeMap::from([(at(2), vec![at(11), at(12)]), (at(3), Vec::new())]);
    let ports = [Protocol::Tcp, Protocol::Udp].map(|protocol| {
        let backends = vec![at(11), at(12)];
        ((protocol, 80), Target { port: 8080, backends })
    });
    let balance = Balance {
        vips: [("net".to_owned(), vips)].into(),
        ports: ports.into(),
        beside: beside.map(|beside| ("net".to_owned(), beside)).into_iter().collect(),
        ..Balance::default()
    };
    let host = HostSide {
        ingress: Some(("lo".into(), subnet)),
        egress: Some(("lo".into(), subnet)),
        tunnel: Some(4789),
        apart: vec!["lo".into()],
        ..HostSide::default()
    };
    let side = IngressSide { interface: "lo".into(), subnet };
    let networks = ["net".to_owned()];
    let tables: Vec<Table> = match beside {
        Some(beside) => {
            let task = balance.task_table6(&networks, None).into_iter().chain(balance.own_table6(&side));
            task.chain(balance.host_table6("trial", &host, beside)).collect()
        }
        None => {
            let task = [balance.task_table(&networks, None), Balance::own_table(DNS_PORTS, Some(&side), None)];
            task.into_iter().chain(balance.host_table("trial", &host)).collect()
        }
    };
    tables.iter().try_for_each(|table| kernel.replace(table))
}

/// Whether this kernel lets tasks answer clients of published ports through the host that they came by
/// (`NETFILTER_EGRESS`, since 5.16, and connection tracking with zones and marks); an error says why it does not. All hosts
/// of a cluster should agree: a task on a host that cannot does not find the way back to a client whose address another
/// host has kept.
pub(crate) fn returns(kernel: &mut Tables) -> io::Result<()> {
    let side = IngressSide { interface: "lo".into(), subnet: Ipv4Net::from(Ipv4Addr::LOCALHOST) };
    let own = Balance::own_table(DNS_PORTS, Some(&side), Some(Ipv4Addr::LOCALHOST));
    let tables = [Balance::default().task_table(&[], Some(&side)), own, Balance::frame_table(&side)];
    tables.iter().try_for_each(|table| kernel.replace(table))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_has_nf_tables_takes_what_is_tried() {
        if NetNs::anonymous().is_err() {
            return println!("skipped: cannot make a network namespace; root is needed");
        }
        let mut kernel = kernel().unwrap();
        rules(&mut kernel, false).unwrap();
        rules(&mut kernel, true).unwrap();
        returns(&mut kernel).unwrap();
    }
}
