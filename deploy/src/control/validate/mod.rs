//! What may be in a spec: Docker's rules and texts, bounds on everything, and fields that have no effect yet refused by
//! name instead of being ignored.

mod container;
mod mount;
mod service;

use super::{ControlError, invalid, node::known_availability, unimplemented};
use crate::model::{
    ENCRYPTED_OPTION, Labels, MAX_OWN_PORTS, MAX_OWN_SUBNETS, MTU_OPTION, NetworkSpec, NodeDescription, NodeSpec,
    PayloadSpec, PortProtocol, Subnet, Subnet6, is_id, is_ipv6, parse_cidr, parse_ipv4, parse_ipv6,
};

pub use container::check_container;
pub(super) use container::registry_auth;
pub use service::check_resources;
pub(super) use service::service_spec;

/// Bytes of a text for which nothing else says how long it may be.
pub(super) const MAX_TEXT: usize = 4096;
/// Entries of a list for which nothing else says how long it may be.
const MAX_ITEMS: usize = 1024;
/// Bytes of all labels of an object together.
const MAX_LABEL_BYTES: usize = 64 << 10;
/// Docker's limit on a secret; the data must be shorter.
pub(super) const MAX_SECRET_BYTES: usize = 512_000;
/// Docker's limit on a config; the data must be shorter.
pub(super) const MAX_CONFIG_BYTES: usize = 1_024_000;
/// Characters of a DNS label.
const MAX_NAME: usize = 63;

/// A text of at most `max` bytes without control characters.
pub(super) fn text(field: &str, value: &str, max: usize) -> Result<(), ControlError> {
    if value.len() > max {
        return Err(invalid(format!("{field}: {} bytes are more than {max}", value.len())));
    }
    if value.chars().any(|c| c.is_control() && c != '\n' && c != '\t') {
        return Err(invalid(format!("{field}: control characters are not allowed")));
    }
    Ok(())
}

/// A text that one would put on a command line: no NUL, bounded.
fn argument(field: &str, value: &str) -> Result<(), ControlError> {
    if value.len() > 128 << 10 || value.contains('\0') {
        return Err(invalid(format!("{field}: longer than 128 KiB, or with a NUL character")));
    }
    Ok(())
}

/// A list of such texts.
fn arguments(field: &str, values: &[String]) -> Result<(), ControlError> {
    count(field, values.len())?;
    values.iter().try_for_each(|value| argument(field, value))
}

fn count(field: &str, items: usize) -> Result<(), ControlError> {
    if items > MAX_ITEMS {
        return Err(invalid(format!("{field}: {items} entries are more than {MAX_ITEMS}")));
    }
    Ok(())
}

pub(super) fn labels(field: &str, labels: &Labels) -> Result<(), ControlError> {
    count(field, labels.len())?;
    if labels.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() > MAX_LABEL_BYTES {
        return Err(invalid(format!("{field}: more than {MAX_LABEL_BYTES} bytes")));
    }
    if labels.keys().any(String::is_empty) {
        return Err(invalid(format!("{field}: an empty key")));
    }
    Ok(())
}

/// Refuses a field that has no effect yet, if it is set.
fn unsupported(field: &str, set: bool) -> Result<(), ControlError> {
    if set { Err(unimplemented(format!("{field} is not supported yet"))) } else { Ok(()) }
}

/// A name of letters, digits, `-`, `_` and `.` that begins and ends with a letter or a digit.
fn object_name(name: &str, what: &str, max: usize) -> Result<(), ControlError> {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let inside = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if name.len() > max || !inside || !edge(name.chars().next()) || !edge(name.chars().next_back()) {
        return Err(invalid(format!("invalid {what} name {:?}, only [a-zA-Z0-9-_.] are allowed", shorten(name))));
    }
    Ok(())
}

/// The start of a text, for a message about it.
pub(super) fn shorten(text: &str) -> String {
    text.chars().take(100).collect()
}

pub(super) fn payload(kind: &str, spec: &PayloadSpec, max: usize) -> Result<(), ControlError> {
    if spec.name.is_empty() {
        return Err(invalid("name must be provided"));
    }
    object_name(&spec.name, kind, 64)?;
    labels("Labels", &spec.labels)?;
    if spec.data.is_empty() || spec.data.len() >= max {
        return Err(invalid(format!("{kind} data must be larger than 0 and less than {max} bytes")));
    }
    Ok(())
}

pub(super) fn node_spec(spec: &NodeSpec) -> Result<(), ControlError> {
    if !known_availability(spec) {
        return Err(invalid("unknown node role or availability"));
    }
    text("Name", &spec.name, 255)?;
    labels("Labels", &spec.labels)
}

pub(super) fn node_description(description: &NodeDescription) -> Result<(), ControlError> {
    for (field, value) in [
        ("Hostname", &description.hostname),
        ("Architecture", &description.architecture),
        ("OS", &description.os),
        ("EngineVersion", &description.engine_version),
        ("DataPathAddr", &description.data_path_addr),
        ("ControlAddr", &description.control_addr),
        ("EngineID", &description.engine_id),
    ] {
        text(field, value, 256)?;
    }
    labels("EngineLabels", &description.engine_labels)?;
    let (subnets, routes) = (&description.own_subnets, &description.routes);
    let (subnets6, routes6) = (&description.own_subnets6, &description.routes6);
    let most = [subnets, routes, subnets6, routes6].into_iter().map(Vec::len).max();
    if most > Some(MAX_OWN_SUBNETS) || description.own_ports.len() > MAX_OWN_PORTS {
        return Err(invalid(format!(
            "more than {MAX_OWN_PORTS} own ports, {MAX_OWN_SUBNETS} own subnets or {MAX_OWN_SUBNETS} routes"
        )));
    }
    for own in &description.own_ports {
        text("OwnPorts.Purpose", &own.purpose, 64)?;
        if PortProtocol::try_from(own.protocol).is_err() || !(1..=65535).contains(&own.port) {
            return Err(invalid(format!("OwnPorts: {} is no port, or of an unknown protocol", own.port)));
        }
    }
    let way_out = Some(&description.way_out).filter(|text| !text.is_empty());
    if let Some(wrong) = subnets.iter().chain(routes).chain(way_out).find(|text| Subnet::parse(text).is_none()) {
        return Err(invalid(format!("OwnSubnets: {:?} is no IPv4 subnet", shorten(wrong))));
    }
    match subnets6.iter().chain(routes6).find(|text| Subnet6::parse(text).is_none()) {
        Some(wrong) => Err(invalid(format!("OwnSubnets6: {:?} is no IPv6 subnet", shorten(wrong)))),
        None => Ok(()),
    }
}

/// Checks what a user wants of a network.
///
/// # Errors
/// Names the field, or the field that has no effect yet.
pub fn check_network(spec: &NetworkSpec) -> Result<(), ControlError> {
    if spec.name.is_empty() {
        return Err(invalid("name must be provided"));
    }
    object_name(&spec.name, "network", 255)?;
    if ["host", "bridge", "none", "docker_gwbridge"].contains(&spec.name.as_str()) {
        return Err(invalid(format!("operation is not permitted on predefined {} network", spec.name)));
    }
    // A name that looks like an id would be taken for one.
    if is_id(&spec.name) {
        return Err(invalid(format!("network name {} looks like an id", spec.name)));
    }
    labels("Labels", &spec.labels)?;
    if spec.driver != "overlay" && !spec.is_local() {
        return Err(invalid(format!(
            "network driver {:?} cannot span the cluster, \"overlay\" can",
            shorten(&spec.driver)
        )));
    }
    if spec.ingress && spec.is_local() {
        return Err(invalid("ingress network spans the cluster, and so is of the driver \"overlay\""));
    }
    if spec.ingress && spec.internal {
        return Err(invalid("ingress network cannot be internal"));
    }
    if spec.ingress && spec.attachable {
        return Err(invalid("ingress network cannot be attachable"));
    }
    spec.driver_options.iter().try_for_each(|(option, value)| driver_option(spec, option, value))?;
    let of6 = spec.ipam.iter().filter(|config| is_ipv6(&config.subnet)).count();
    unsupported("IPAM.Config with several subnets of a family", of6.max(spec.ipam.len() - of6) > 1)?;
    if of6 > 0 && !spec.ipv6 {
        return Err(invalid("IPAM.Config: an IPv6 subnet needs EnableIPv6"));
    }
    spec.ipam.iter().try_for_each(|config| if is_ipv6(&config.subnet) { ipam6(config) } else { ipam(config) })
}

/// What VXLAN adds to each packet.
const TUNNEL_BYTES: u32 = 50;

/// What WireGuard adds to each packet of an encrypted network.
const SEAL_BYTES: u32 = 60;

/// Docker takes any value for a yes; nobody is to believe that "false" is a no here or a yes there.
fn encrypted(spec: &NetworkSpec, value: &str) -> Result<(), ControlError> {
    if !["", "true", "1"].contains(&value) {
        let value = shorten(value);
        return Err(invalid(format!("Options[{ENCRYPTED_OPTION:?}]: {value:?} is neither nothing nor \"true\"")));
    }
    if spec.is_local() {
        return Err(invalid("a network that ends at each host cannot be encrypted: nothing of it leaves one"));
    }
    if spec.ingress {
        let why = "every host has a place on it, also without WireGuard";
        return Err(invalid(format!("ingress network cannot be encrypted: {why}")));
    }
    Ok(())
}

fn driver_option(spec: &NetworkSpec, option: &str, value: &str) -> Result<(), ControlError> {
    if option == ENCRYPTED_OPTION {
        return encrypted(spec, value);
    }
    if option != MTU_OPTION {
        return unsupported(&format!("Options[{:?}] of a network", shorten(option)), true);
    }
    // The least that a link may have, of which IPv6 makes more.
    let added = match (spec.is_local(), spec.is_encrypted()) {
        (true, _) => 0,
        (false, true) => TUNNEL_BYTES + SEAL_BYTES,
        (false, false) => TUNNEL_BYTES,
    };
    let least = added + if spec.ipv6 { 1280 } else { 68 };
    if spec.mtu().is_none_or(|mtu| !(least..=65535).contains(&mtu)) {
        let with = if spec.ipv6 { "a network with IPv6" } else { "a network" };
        return Err(invalid(format!(
            "invalid {MTU_OPTION} {:?}: between {least} and 65535 for {with}. It is the MTU of the interfaces between \
             the hosts; tasks get {added} bytes less",
            shorten(value)
        )));
    }
    Ok(())
}

fn ipam6(config: &crate::model::IpamConfig) -> Result<(), ControlError> {
    let Some(subnet) = Subnet6::parse(&config.subnet) else {
        return Err(invalid(format!("invalid subnet {:?}: an IPv6 subnet like fd00:9::/64", shorten(&config.subnet))));
    };
    if !(16..=120).contains(&subnet.prefix()) {
        return Err(invalid(format!("invalid subnet {subnet}: between 16 and 120 bits")));
    }
    // Unspecified, loopback and mapped IPv4 addresses; those of one link; groups.
    let special = [(0, 8), (0xfe80 << 112, 10), (0xff << 120, 8)];
    if special.into_iter().filter_map(|(first, prefix)| Subnet6::containing(first, prefix)).any(|s| s.overlaps(subnet))
    {
        return Err(invalid(format!("invalid subnet {subnet}: these addresses have another meaning")));
    }
    let inside = |address: u128| subnet.contains(address) && address != subnet.first();
    if !config.gateway.is_empty() && !parse_ipv6(&config.gateway).is_some_and(inside) {
        return Err(invalid(format!("invalid gateway {:?}: not in subnet {subnet}", shorten(&config.gateway))));
    }
    // Tasks have the IPv6 address that goes with their IPv4 address; the range of those is the range of these.
    unsupported("IPAM.Config: a range of IPv6 addresses", !config.ip_range.is_empty())?;
    labels("AuxiliaryAddresses", &config.auxiliary)?;
    if let Some(wrong) = config.auxiliary.values().find(|text| !parse_ipv6(text).is_some_and(inside)) {
        return Err(invalid(format!("invalid auxiliary address {:?}: not in subnet {subnet}", shorten(wrong))));
    }
    Ok(())
}

fn ipam(config: &crate::model::IpamConfig) -> Result<(), ControlError> {
    if config.subnet.is_empty() {
        // Docker's CLI sends an entry without a subnet when only a gateway was given, and refuses that itself.
        let alone = config.ip_range.is_empty() && config.gateway.is_empty() && config.auxiliary.is_empty();
        return if alone { Ok(()) } else { Err(invalid("IPAM.Config: a gateway or a range needs a subnet")) };
    }
    let Some(subnet) = Subnet::parse(&config.subnet) else {
        return Err(invalid(format!("invalid subnet {:?}: an IPv4 subnet like 10.0.9.0/24", shorten(&config.subnet))));
    };
    if !(8..=29).contains(&subnet.prefix()) {
        return Err(invalid(format!("invalid subnet {subnet}: between 8 and 29 bits")));
    }
    // This network, loopback, one link (our own way back to clients is there), groups and what is reserved.
    let special = [([0, 0, 0, 0], 8), ([127, 0, 0, 0], 8), ([169, 254, 0, 0], 16), ([224, 0, 0, 0], 3)];
    let special = special.map(|(first, prefix)| Subnet::containing(u32::from_be_bytes(first), prefix));
    if special.into_iter().flatten().any(|special| special.overlaps(subnet)) {
        return Err(invalid(format!("invalid subnet {subnet}: these addresses have another meaning")));
    }
    let inside = |address: u32| address > subnet.first() && address < subnet.last();
    if !config.gateway.is_empty() && !parse_ipv4(&config.gateway).is_some_and(inside) {
        return Err(invalid(format!("invalid gateway {:?}: not in subnet {subnet}", shorten(&config.gateway))));
    }
    let range = |text: &str| {
        let (address, prefix) = parse_cidr(text)?;
        Subnet::containing(address, prefix).filter(|r| r.prefix() >= subnet.prefix() && subnet.overlaps(*r))
    };
    if !config.ip_range.is_empty() && range(&config.ip_range).is_none() {
        return Err(invalid(format!("invalid ip range {:?}: not in subnet {subnet}", shorten(&config.ip_range))));
    }
    labels("AuxiliaryAddresses", &config.auxiliary)?;
    if let Some(wrong) = config.auxiliary.values().find(|text| !parse_ipv4(text).is_some_and(inside)) {
        return Err(invalid(format!("invalid auxiliary address {:?}: not in subnet {subnet}", shorten(wrong))));
    }
    Ok(())
}

/// A service's name: Docker's rule, letters, digits, `-` and `_`, 63 at the most, neither first nor last a sign.
fn service_name(name: &str) -> Result<(), ControlError> {
    if name.is_empty() {
        return Err(invalid("name must be provided"));
    }
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let inside = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
    if !inside || !edge(name.chars().next()) || !edge(name.chars().next_back()) {
        return Err(invalid("name must be valid as a DNS name component"));
    }
    if name.len() > MAX_NAME {
        return Err(invalid("name must be 63 characters or fewer"));
    }
    Ok(())
}
