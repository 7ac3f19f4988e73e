//! Which subnets networks of this host get, pure.

use deploy::model::{NetworkSpec, Subnet, parse_ipv4};

/// Where networks without a subnet of their own get theirs from. Tasks' way out takes 172.30.0.0/16 or one behind or
/// before that, Docker's first bridge 172.17.0.0/16, and Docker's further ones those after it: so ours come from the end
/// of what lies between.
const POOLS: [([u8; 4], u8); 7] = [
    ([172, 23, 0, 0], 16),
    ([172, 22, 0, 0], 16),
    ([172, 21, 0, 0], 16),
    ([172, 20, 0, 0], 16),
    ([172, 19, 0, 0], 16),
    ([172, 18, 0, 0], 16),
    ([192, 168, 0, 0], 16),
];
/// Their prefix length: room for as many containers as a host may have.
const PREFIX: u8 = 20;

/// What a network is not to have addresses of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Around {
    /// The host's own networks, and what it has routes to.
    pub(crate) host: Vec<Subnet>,
    /// What containers reach other networks through.
    pub(crate) way_out: Option<Subnet>,
    /// The cluster's networks, and the pools that it takes further ones from.
    pub(crate) cluster: Vec<Subnet>,
}

/// Why a network gets no subnet. Docker's words, which clients look for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SubnetError {
    /// Another one of this host has addresses of it.
    #[error("invalid pool request: Pool overlaps with other one on this address space")]
    Overlaps,
    /// Containers would not find the way out any more.
    #[error("invalid pool request: {subnet} overlaps {way_out}, through which containers reach other networks")]
    WayOut {
        /// What was asked for.
        subnet: String,
        /// What it overlaps.
        way_out: String,
    },
    /// Everything that networks get theirs from is somebody's.
    #[error("all predefined address pools have been fully subnetted: name a subnet, or remove networks")]
    Dry,
}

/// The subnet and the gateway of a new network. `others` are the subnets of those that there are.
pub(super) fn plan(spec: &NetworkSpec, others: &[Subnet], around: &Around) -> Result<(Subnet, u32), SubnetError> {
    let asked = spec.ipam4().and_then(|ipam| Some((Subnet::parse(&ipam.subnet)?, ipam)));
    let Some((subnet, ipam)) = asked else {
        let subnet = free(others, around).ok_or(SubnetError::Dry)?;
        return Ok((subnet, subnet.first() + 1));
    };
    if others.iter().any(|other| other.overlaps(subnet)) {
        return Err(SubnetError::Overlaps);
    }
    if let Some(way_out) = around.way_out.filter(|way_out| way_out.overlaps(subnet)) {
        return Err(SubnetError::WayOut { subnet: subnet.to_string(), way_out: way_out.to_string() });
    }
    Ok((subnet, parse_ipv4(&ipam.gateway).unwrap_or(subnet.first() + 1)))
}

/// What becomes of a subnet that the host has too.
pub(super) fn warning(subnet: Subnet, around: &Around) -> Option<String> {
    let own = around.host.iter().find(|own| own.overlaps(subnet))?;
    Some(format!(
        "{subnet} has addresses of the network {own} of this host: containers on this network will not reach those"
    ))
}

fn free(others: &[Subnet], around: &Around) -> Option<Subnet> {
    let taken = || others.iter().chain(&around.host).chain(&around.way_out).chain(&around.cluster);
    let pieces = POOLS.iter().flat_map(|(first, prefix)| {
        let first = u32::from_be_bytes(*first);
        (0..1u32 << (PREFIX - prefix))
            .filter_map(move |number| Subnet::containing(first + (number << (32 - PREFIX)), PREFIX))
    });
    pieces.into_iter().find(|piece| !taken().any(|other| other.overlaps(*piece)))
}

#[cfg(test)]
mod tests {
    use deploy::model::IpamConfig;

    use super::*;

    fn subnets(of: &[&str]) -> Vec<Subnet> {
        of.iter().map(|text| Subnet::parse(text).unwrap()).collect()
    }

    fn asking(subnet: &str, gateway: &str) -> NetworkSpec {
        let ipam = IpamConfig { subnet: subnet.into(), gateway: gateway.into(), ..IpamConfig::default() };
        NetworkSpec { ipam: vec![ipam], ..NetworkSpec::default() }
    }

    #[track_caller]
    fn check(spec: &NetworkSpec, others: &[&str], around: &Around, expected: Result<(&str, &str), SubnetError>) {
        let got = plan(spec, &subnets(others), around);
        let got = got.map(|(subnet, gateway)| (subnet.to_string(), deploy::model::format_ipv4(gateway)));
        assert_eq!(got, expected.map(|(subnet, gateway)| (subnet.to_owned(), gateway.to_owned())));
    }

    #[test]
    fn a_subnet_that_nobody_has_is_chosen() {
        let (none, nothing) = (Around::default(), NetworkSpec::default());
        check(&nothing, &[], &none, Ok(("172.23.0.0/20", "172.23.0.1")));
        check(&nothing, &["172.23.0.0/20", "172.23.20.0/24"], &none, Ok(("172.23.32.0/20", "172.23.32.1")));
        let around = Around {
            host: subnets(&["172.16.0.0/14", "172.20.0.0/15", "172.22.5.0/24"]),
            way_out: Subnet::parse("172.22.128.0/17"),
            cluster: subnets(&["172.23.0.0/16"]),
        };
        check(&nothing, &["172.22.16.0/20"], &around, Ok(("172.22.32.0/20", "172.22.32.1")));
        let all = Around { cluster: subnets(&["172.16.0.0/12"]), ..Around::default() };
        check(&nothing, &[], &all, Ok(("192.168.0.0/20", "192.168.0.1")));
        check(&nothing, &["192.168.0.0/16"], &all, Err(SubnetError::Dry));
    }

    #[test]
    fn pieces_do_not_run_out_soon() {
        let mut taken = Vec::new();
        while let Ok((subnet, _)) = plan(&NetworkSpec::default(), &taken, &Around::default()) {
            assert!(!taken.iter().any(|other: &Subnet| other.overlaps(subnet)));
            taken.push(subnet);
        }
        assert_eq!(taken.len(), 7 * 16);
    }

    #[test]
    fn a_subnet_that_is_asked_for_is_refused_only_where_it_harms() {
        let around = Around {
            host: subnets(&["10.1.0.0/16"]),
            way_out: Subnet::parse("172.30.0.0/16"),
            cluster: subnets(&["10.0.0.0/8"]),
        };
        check(&asking("10.1.2.0/24", ""), &[], &around, Ok(("10.1.2.0/24", "10.1.2.1")));
        check(&asking("10.1.2.0/24", "10.1.2.254"), &[], &around, Ok(("10.1.2.0/24", "10.1.2.254")));
        check(&asking("10.1.2.0/24", ""), &["10.1.0.0/20"], &around, Err(SubnetError::Overlaps));
        let way_out = SubnetError::WayOut { subnet: "172.30.7.0/24".into(), way_out: "172.30.0.0/16".into() };
        check(&asking("172.30.7.0/24", ""), &[], &around, Err(way_out));
        assert!(warning(subnets(&["10.1.2.0/24"])[0], &around).unwrap().contains("10.1.0.0/16"));
        assert_eq!(warning(subnets(&["10.2.2.0/24"])[0], &around), None);
    }
}
