//! Which addresses a node listens at and advertises, from what the user said and what the host has.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use nix::ifaddrs::getifaddrs;

/// Docker's port of the cluster.
pub(super) const DEFAULT_PORT: u16 = 2377;

/// Why no address could be chosen; the text is for the user.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum AddressError {
    /// Not an address, not an interface.
    #[error("{flag}: {text:?} is neither an IPv4 address of this host (with or without a port) nor an interface")]
    Unknown {
        /// The flag.
        flag: &'static str,
        /// What it was given.
        text: String,
    },
    /// Several would do.
    #[error(
        "could not choose an IP address to advertise since this system has multiple addresses ({0}); \
         name one with --advertise-addr"
    )]
    Ambiguous(String),
    /// Others would be sent to where this host is not.
    #[error(
        "{flag}: no interface of this host that is up has the address {addr}, so nobody would reach the node there; \
         it has {}",
        listed(.host)
    )]
    NotOfThisHost {
        /// The flag.
        flag: &'static str,
        /// What it was given.
        addr: IpAddr,
        /// What would do.
        host: Vec<(String, Ipv4Addr)>,
    },
    /// None would do.
    #[error("could not find an IP address to advertise: no interface but loopback has one")]
    None,
}

/// Addresses as a text for people.
fn listed(host: &[(String, Ipv4Addr)]) -> String {
    let names: Vec<String> = host.iter().map(|(name, ip)| format!("{ip} on interface {name}")).collect();
    if names.is_empty() { "none but loopback".into() } else { names.join(" and ") }
}

/// The host's addresses: interface and IPv4 address, loopback left out, interfaces that are down left out.
pub(super) fn host_addresses() -> Vec<(String, Ipv4Addr)> {
    use nix::net::if_::InterfaceFlags;
    let Ok(addresses) = getifaddrs() else { return Vec::new() };
    addresses
        .filter(|a| a.flags.contains(InterfaceFlags::IFF_UP) && !a.flags.contains(InterfaceFlags::IFF_LOOPBACK))
        .filter_map(|a| Some((a.interface_name.clone(), a.address?.as_sockaddr_in()?.ip())))
        // The node's own links to its tasks are no way to the host.
        .filter(|(name, _)| !overlay_net::is_own_link(name))
        .collect()
}

/// `--listen-addr`: `ip:port`, `ip`, `:port` or an interface; empty means every address at 2377.
pub(super) fn listen(text: &str, host: &[(String, Ipv4Addr)]) -> Result<SocketAddr, AddressError> {
    if text.is_empty() {
        return Ok(SocketAddr::from((Ipv4Addr::UNSPECIFIED, DEFAULT_PORT)));
    }
    resolve("--listen-addr", text, DEFAULT_PORT, host)
}

/// `--advertise-addr`: the same forms, but an address that this host has (or loopback, for a cluster of one host);
/// empty means the address listened at, or the only address of the host.
pub(super) fn advertise(
    text: &str,
    listen: SocketAddr,
    host: &[(String, Ipv4Addr)],
) -> Result<SocketAddr, AddressError> {
    if !text.is_empty() {
        return of_this_host("--advertise-addr", resolve("--advertise-addr", text, listen.port(), host)?, host);
    }
    if !listen.ip().is_unspecified() {
        return Ok(listen);
    }
    match host {
        [] => Err(AddressError::None),
        [(_, only)] => Ok(SocketAddr::from((*only, listen.port()))),
        several => Err(AddressError::Ambiguous(listed(several))),
    }
}

/// `--data-path-addr`: an address or an interface; empty means the advertised address.
pub(super) fn data_path(
    text: &str,
    advertise: SocketAddr,
    host: &[(String, Ipv4Addr)],
) -> Result<Ipv4Addr, AddressError> {
    let addr = if text.is_empty() {
        advertise
    } else {
        of_this_host("--data-path-addr", resolve("--data-path-addr", text, 0, host)?, host)?
    };
    match addr.ip() {
        IpAddr::V4(ip) => Ok(ip),
        IpAddr::V6(_) => Err(AddressError::Unknown { flag: "--data-path-addr", text: text.to_owned() }),
    }
}

fn of_this_host(flag: &'static str, addr: SocketAddr, host: &[(String, Ipv4Addr)]) -> Result<SocketAddr, AddressError> {
    if addr.ip().is_loopback() || host.iter().any(|(_, ip)| IpAddr::V4(*ip) == addr.ip()) {
        return Ok(addr);
    }
    Err(AddressError::NotOfThisHost { flag, addr: addr.ip(), host: host.to_vec() })
}

fn resolve(flag: &'static str, text: &str, port: u16, host: &[(String, Ipv4Addr)]) -> Result<SocketAddr, AddressError> {
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return Ok(addr);
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port));
    }
    let (name, port) = match text.rsplit_once(':').map(|(name, digits)| (name, digits.parse::<u16>())) {
        Some((name, Ok(port))) => (name, port),
        _ => (text, port),
    };
    if name.is_empty() {
        return Ok(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)));
    }
    match host.iter().find(|(interface, _)| interface == name) {
        Some((_, ip)) => Ok(SocketAddr::from((*ip, port))),
        None => Err(AddressError::Unknown { flag, text: text.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(names: &[(&str, [u8; 4])]) -> Vec<(String, Ipv4Addr)> {
        names.iter().map(|(name, ip)| ((*name).to_owned(), Ipv4Addr::from(*ip))).collect()
    }

    #[test]
    fn one_address_is_chosen_several_are_named() {
        let any = listen("", &[]).unwrap();
        let one = host(&[("eth0", [10, 0, 0, 5])]);
        assert_eq!(advertise("", any, &one).unwrap().to_string(), "10.0.0.5:2377");
        let two = host(&[("eth0", [10, 0, 0, 5]), ("eth1", [10, 1, 0, 5])]);
        let error = advertise("", any, &two).unwrap_err().to_string();
        assert!(error.contains("10.0.0.5 on interface eth0") && error.contains("--advertise-addr"), "{error}");
        assert_eq!(advertise("eth1", any, &two).unwrap().to_string(), "10.1.0.5:2377");
        assert_eq!(advertise("", any, &[]), Err(AddressError::None));
    }

    #[test]
    fn an_address_of_another_host_is_refused() {
        let any = listen("", &[]).unwrap();
        let host = host(&[("eth0", [10, 0, 0, 5])]);
        for text in ["10.9.9.9", "10.9.9.9:7000", "0.0.0.0", ":7000", "2001:db8::1"] {
            let error = advertise(text, any, &host).unwrap_err().to_string();
            assert!(error.starts_with("--advertise-addr") && error.contains("10.0.0.5 on interface eth0"), "{error}");
        }
        assert_eq!(advertise("127.0.0.1", any, &host).unwrap().to_string(), "127.0.0.1:2377");
        let own = advertise("10.0.0.5:7000", any, &host).unwrap();
        assert_eq!(own.to_string(), "10.0.0.5:7000");
        assert!(data_path("10.9.9.9", own, &host).unwrap_err().to_string().starts_with("--data-path-addr"));
        assert_eq!(data_path("eth0", own, &host).unwrap(), Ipv4Addr::new(10, 0, 0, 5));
        assert_eq!(data_path("", own, &host).unwrap(), Ipv4Addr::new(10, 0, 0, 5));
    }

    #[test]
    fn every_form_that_docker_takes() {
        let host = host(&[("eth0", [10, 0, 0, 5])]);
        for (text, expected) in [
            ("0.0.0.0:2377", "0.0.0.0:2377"),
            ("10.9.9.9", "10.9.9.9:2377"),
            (":7000", "0.0.0.0:7000"),
            ("eth0", "10.0.0.5:2377"),
            ("eth0:7000", "10.0.0.5:7000"),
        ] {
            assert_eq!(listen(text, &host).unwrap().to_string(), expected, "{text}");
        }
        assert!(listen("nosuch", &host).is_err());
        assert!(listen("eth0:99999", &host).is_err());
    }
}
