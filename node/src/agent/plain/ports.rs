//! Ports of plain containers on their host: which numbers they get, and what keeps them apart from those of tasks.
//!
//! Managers choose the numbers of tasks' ports, and know nothing of these. So the numbers that are chosen here are of
//! another range, and where a service is given one that a container has, the service's goes first.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::ops::RangeInclusive;

use deploy::model::{PortConfig, PortProtocol};
use overlay_net::{Protocol, PublishedPort};

/// Numbers for ports whose numbers are left open. Below those that managers choose from (30000 to 32767), and below those
/// that the kernel gives to the host's own connections.
const CHOSEN: RangeInclusive<u16> = 28_000..=29_999;

/// A port that cannot be had.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PortError {
    /// Somebody has it.
    #[error("Bind for 0.0.0.0:{0} failed: port is already allocated")]
    Taken(u32),
    /// All of those that are chosen from are somebody's.
    #[error("all ports between {} and {} are allocated", CHOSEN.start(), CHOSEN.end())]
    NoneLeft,
}

/// Numbers for the open ones of these ports, the search for them beginning at `begin`; none of the others may be taken.
pub(super) fn choose(
    ports: &[PortConfig],
    begin: u16,
    is_taken: impl Fn(PortProtocol, u16) -> bool,
) -> Result<Vec<u32>, PortError> {
    let fixed = ports.iter().filter(|port| port.published != 0);
    for port in fixed.clone() {
        if u16::try_from(port.published).is_ok_and(|number| is_taken(port.protocol(), number)) {
            return Err(PortError::Taken(port.published));
        }
    }
    let count = CHOSEN.end() - CHOSEN.start() + 1;
    let mut chosen: Vec<(PortProtocol, u32)> = fixed.map(|port| (port.protocol(), port.published)).collect();
    let own = chosen.len();
    for port in ports.iter().filter(|port| port.published == 0) {
        let protocol = port.protocol();
        let mut numbers = (0..count).map(|step| CHOSEN.start() + (begin % count + step) % count);
        let free = |number: &u16| !chosen.contains(&(protocol, u32::from(*number))) && !is_taken(protocol, *number);
        let number = numbers.find(free).ok_or(PortError::NoneLeft)?;
        chosen.push((protocol, u32::from(number)));
    }
    Ok(chosen.split_off(own).into_iter().map(|(_, number)| number).collect())
}

/// Whether a program of this host listens there, in its network namespace.
pub(super) fn is_listened_at(protocol: PortProtocol, number: u16) -> bool {
    let taken = |bound: std::io::Result<()>| bound.is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse);
    match protocol {
        PortProtocol::Tcp => taken(TcpListener::bind((Ipv4Addr::UNSPECIFIED, number)).map(drop)),
        PortProtocol::Udp => taken(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, number)).map(drop)),
        PortProtocol::Sctp => false,
    }
}

pub(super) fn same(protocol: PortProtocol, number: u16, port: &PublishedPort) -> bool {
    let protocol = match protocol {
        PortProtocol::Tcp => Protocol::Tcp,
        PortProtocol::Udp => Protocol::Udp,
        PortProtocol::Sctp => Protocol::Sctp,
    };
    (port.protocol, port.published) == (protocol, number)
}

/// Adds the ports of plain containers to those of services, but for those whose number a service has.
pub(super) fn add(ports: &mut Vec<PublishedPort>, plain: &[PublishedPort]) {
    let taken = |port: &&PublishedPort| {
        ports.iter().any(|other| (other.protocol, other.published) == (port.protocol, port.published))
    };
    let free: Vec<PublishedPort> = plain.iter().filter(|port| !taken(port)).cloned().collect();
    ports.extend(free);
}

#[cfg(test)]
mod tests {
    use overlay_net::PortMode;

    use super::*;

    fn ports(of: &[(PortProtocol, u32)]) -> Vec<PortConfig> {
        let one = |(protocol, published): &(PortProtocol, u32)| PortConfig {
            protocol: *protocol as i32,
            published: *published,
            target: 80,
            ..PortConfig::default()
        };
        of.iter().map(one).collect()
    }

    #[test]
    fn open_ports_get_numbers_that_nobody_has() {
        use PortProtocol::{Tcp, Udp};
        let none = |_, _| false;
        assert_eq!(choose(&ports(&[(Tcp, 8080), (Udp, 53)]), 0, none), Ok(vec![]));
        let wanted = ports(&[(Tcp, 0), (Tcp, 28_000), (Tcp, 0), (Udp, 0)]);
        assert_eq!(choose(&wanted, 0, none), Ok(vec![28_001, 28_002, 28_000]));
        assert_eq!(choose(&wanted, 1999, none), Ok(vec![29_999, 28_001, 29_999]));
        let taken = |protocol, number| protocol == Tcp && number < 29_999;
        assert_eq!(choose(&ports(&[(Tcp, 0)]), 0, taken), Ok(vec![29_999]));
        assert_eq!(choose(&ports(&[(Tcp, 0), (Tcp, 0)]), 0, taken), Err(PortError::NoneLeft));
        assert_eq!(choose(&ports(&[(Tcp, 8080)]), 0, taken), Err(PortError::Taken(8080)));
        assert_eq!(choose(&ports(&[(Udp, 8080)]), 0, taken), Ok(vec![]));
    }

    #[test]
    fn what_listens_is_seen() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let number = listener.local_addr().unwrap().port();
        assert!(is_listened_at(PortProtocol::Tcp, number));
        drop(listener);
        assert!(!is_listened_at(PortProtocol::Tcp, number));
    }

    #[test]
    fn services_go_first() {
        let port = |published, task: &str| PublishedPort {
            published,
            target: 80,
            protocol: Protocol::Tcp,
            mode: PortMode::Host,
            backends: Vec::new(),
            task: Some(task.to_owned()),
        };
        let mut all = vec![port(80, "task")];
        add(&mut all, &[port(80, "plain"), port(81, "plain")]);
        assert_eq!(all, [port(80, "task"), port(81, "plain")]);
        assert!(same(PortProtocol::Tcp, 80, &all[0]) && !same(PortProtocol::Udp, 80, &all[0]));
    }
}
