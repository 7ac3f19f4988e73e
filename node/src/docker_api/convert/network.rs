//! `Network`, as an object of its own and as tasks carry it.

use deploy::model::{IpamConfig, LOCAL_DRIVER, Network, NetworkId, NetworkSpec};
use deploy::store::Store;

use super::{non_default, non_empty, time_to_wire, version};
use crate::docker_api::error::ApiError;
use crate::docker_api::wire;

/// Where Docker's clients look for a network's VXLAN id.
const VXLAN_OPTION: &str = "com.docker.network.driver.overlay.vxlanid_list";

/// Whether a client wants a network of the asked host alone.
pub fn is_of_one_host(w: &wire::NetworkCreate) -> bool {
    let (driver, scope) = (w.driver.as_deref().unwrap_or_default(), w.scope.as_deref().unwrap_or_default());
    matches!((driver, scope), (LOCAL_DRIVER | "", "" | "local"))
}

/// What a client sent, as the model has it.
///
/// # Errors
/// Names what the model cannot carry.
pub fn network_spec_from_wire(w: wire::NetworkCreate) -> Result<NetworkSpec, ApiError> {
    let of_one_host = is_of_one_host(&w);
    let mut driver = w.driver.unwrap_or_default();
    match (driver.as_str(), w.scope.as_deref().unwrap_or_default()) {
        ("overlay", "" | "swarm") | (LOCAL_DRIVER, "swarm") => {}
        _ if of_one_host => LOCAL_DRIVER.clone_into(&mut driver),
        ("overlay" | LOCAL_DRIVER | "", other) => {
            let driver = if driver.is_empty() { LOCAL_DRIVER } else { &driver };
            return Err(ApiError::invalid(format!("invalid scope for a network of driver {driver}: {other:?}")));
        }
        (other, _) => {
            return Err(ApiError::not_supported(format!(
                "network driver {other:?} is not supported yet: overlay is, and bridge"
            )));
        }
    }
    if of_one_host && w.enable_ipv6 == Some(true) {
        return Err(ApiError::not_supported("EnableIPv6 is not supported yet for networks of one host alone"));
    }
    let config_from = w.config_from.and_then(|c| c.network).unwrap_or_default();
    if w.config_only.unwrap_or_default() || !config_from.is_empty() {
        return Err(ApiError::not_supported("ConfigOnly and ConfigFrom networks are not supported yet"));
    }
    if w.enable_ipv4 == Some(false) {
        return Err(ApiError::not_supported(
            "EnableIPv4 = false is not supported yet: a network with IPv6 has IPv4 addresses beside it",
        ));
    }
    let ipam = w.ipam.unwrap_or_default();
    match ipam.driver.as_deref() {
        None | Some("" | "default") => {}
        Some(other) => return Err(ApiError::not_supported(format!("IPAM.Driver {other:?} is not supported yet"))),
    }
    if ipam.options.is_some_and(|o| !o.is_empty()) {
        return Err(ApiError::not_supported("IPAM.Options is not supported yet"));
    }
    Ok(NetworkSpec {
        name: w.name.unwrap_or_default(),
        labels: w.labels.unwrap_or_default(),
        driver,
        driver_options: w.options.unwrap_or_default(),
        internal: w.internal.unwrap_or_default(),
        attachable: w.attachable.unwrap_or_default(),
        ingress: w.ingress.unwrap_or_default(),
        ipv6: w.enable_ipv6.unwrap_or_default(),
        ipam: ipam
            .config
            .unwrap_or_default()
            .into_iter()
            .map(|c| IpamConfig {
                subnet: c.subnet.unwrap_or_default(),
                ip_range: c.ip_range.unwrap_or_default(),
                gateway: c.gateway.unwrap_or_default(),
                auxiliary: c.auxiliary.unwrap_or_default(),
            })
            .collect(),
    })
}

/// What a user asks of a subnet, as clients read it.
pub(crate) fn ipam_config(m: &IpamConfig) -> wire::IpamConfig {
    wire::IpamConfig {
        subnet: non_empty(&m.subnet),
        ip_range: non_empty(&m.ip_range),
        gateway: non_empty(&m.gateway),
        auxiliary: non_default(&m.auxiliary),
    }
}

/// The subnets in force: what was allocated, with what the user asked for beside it.
fn subnets(m: &Network) -> Vec<wire::IpamConfig> {
    let Some(given) = &m.allocation else {
        return m.spec.ipam.iter().map(ipam_config).collect();
    };
    let in_force = |asked: Option<&IpamConfig>, subnet: &str, gateway: &str| wire::IpamConfig {
        subnet: non_empty(subnet),
        gateway: non_empty(gateway),
        ..asked.map(ipam_config).unwrap_or_default()
    };
    let four = in_force(m.spec.ipam4(), &given.subnet, &given.gateway);
    let six = (!given.subnet6.is_empty()).then(|| in_force(m.spec.ipam6(), &given.subnet6, &given.gateway6));
    std::iter::once(four).chain(six).collect()
}

/// The name of a network's driver.
pub fn driver_of(m: &Network) -> String {
    if m.spec.driver.is_empty() { "overlay".to_owned() } else { m.spec.driver.clone() }
}

fn options(m: &Network) -> wire::Map {
    let mut options = m.spec.driver_options.clone();
    if let Some(given) = m.allocation.as_ref().filter(|_| !m.spec.is_local()) {
        options.insert(VXLAN_OPTION.to_owned(), given.vni.to_string());
    }
    options
}

/// A network as Docker's clients read it, without containers, peers and services.
pub fn network_to_wire(m: &Network) -> wire::Network {
    wire::Network {
        name: Some(m.spec.name.clone()),
        id: Some(m.id.to_string()),
        created: Some(time_to_wire(m.meta.created_at)),
        scope: Some("swarm".to_owned()),
        driver: Some(driver_of(m)),
        enable_ipv4: Some(true),
        enable_ipv6: Some(m.spec.ipv6),
        ipam: Some(wire::Ipam { driver: Some("default".to_owned()), options: None, config: Some(subnets(m)) }),
        internal: Some(m.spec.internal),
        attachable: Some(m.spec.attachable),
        ingress: Some(m.spec.ingress),
        config_from: Some(wire::ConfigFrom { network: Some(String::new()) }),
        config_only: Some(false),
        containers: None,
        options: Some(options(m)),
        labels: Some(m.spec.labels.clone()),
        peers: None,
        services: None,
        host: None,
    }
}

/// A network as the attachments of tasks carry it; only its id when it is gone.
pub fn attached_network(id: &NetworkId, store: &Store) -> wire::AttachedNetwork {
    let Some(m) = store.network(id) else {
        return wire::AttachedNetwork { id: Some(id.to_string()), ..Default::default() };
    };
    let default_driver = wire::Driver { name: Some("default".to_owned()), options: None };
    wire::AttachedNetwork {
        id: Some(id.to_string()),
        version: version(&m.meta),
        created_at: Some(time_to_wire(m.meta.created_at)),
        updated_at: Some(time_to_wire(m.meta.updated_at)),
        spec: Some(wire::AttachedNetworkSpec {
            name: Some(m.spec.name.clone()),
            labels: Some(m.spec.labels.clone()),
            driver_configuration: Some(wire::Driver {
                name: Some(driver_of(m)),
                options: non_default(&m.spec.driver_options),
            }),
            internal: non_default(&m.spec.internal),
            attachable: non_default(&m.spec.attachable),
            ingress: non_default(&m.spec.ingress),
            scope: Some("swarm".to_owned()),
        }),
        driver_state: Some(wire::Driver { name: Some(driver_of(m)), options: Some(options(m)) }),
        ipam_options: Some(wire::AttachedIpam { driver: Some(default_driver), configs: Some(subnets(m)) }),
    }
}
