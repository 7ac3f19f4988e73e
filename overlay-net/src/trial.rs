//! What the overlay asks of a kernel's nf_tables, tried in namespaces of its own.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::config::Protocol;
use crate::kernel::{NetNs, Tables};
use crate::plan::balance::{Balance, HostSide, IngressSide, Target};
use crate::plan::ruleset::Table;

const DNS_PORTS: (u16, u16) = (53, 53);

/// Whether this kernel takes rules of each kind that every host has; an error says why it does not. A distribution may
/// keep some of them in modules that are not there.
pub(crate) fn rules() -> io::Result<()> {
    let at = |last: u8| Ipv4Addr::new(10, 0, 0, last);
    let subnet = Ipv4Net::new_assert(at(0), 24);
    let vips = BTreeMap::from([(at(2), vec![at(11), at(12)]), (at(3), Vec::new())]);
    let ports = [Protocol::Tcp, Protocol::Udp].map(|protocol| {
        let backends = vec![at(11), at(12)];
        ((protocol, 80), Target { port: 8080, backends })
    });
    let balance = Balance { vips: [("net".to_owned(), vips)].into(), ports: ports.into(), ..Balance::default() };
    let host = HostSide {
        ingress: Some(("lo".into(), subnet)),
        egress: Some(("lo".into(), subnet)),
        tunnel: Some(4789),
        apart: vec!["lo".into()],
        ..HostSide::default()
    };
    let side = IngressSide { interface: "lo".into(), subnet };
    let task = [balance.task_table(&["net".into()], None), Balance::own_table(DNS_PORTS, Some(&side), None)];
    take(&task)?;
    take(balance.host_table("trial", &host).as_slice())
}

/// Whether this kernel lets tasks answer clients of published ports through the host that they came by
/// (`NETFILTER_EGRESS`, since 5.16, and connection tracking with zones and marks); an error says why it does not. All hosts
/// of a cluster should agree: a task on a host that cannot does not find the way back to a client whose address another
/// host has kept.
pub(crate) fn returns() -> io::Result<()> {
    let side = IngressSide { interface: "lo".into(), subnet: Ipv4Net::from(Ipv4Addr::LOCALHOST) };
    let own = Balance::own_table(DNS_PORTS, Some(&side), Some(Ipv4Addr::LOCALHOST));
    take(&[Balance::default().task_table(&[], Some(&side)), own, Balance::frame_table(&side)])
}

fn take(tables: &[Table]) -> io::Result<()> {
    let mut kernel = Tables::open(&NetNs::anonymous()?)?;
    tables.iter().try_for_each(|table| kernel.replace(table))
}
