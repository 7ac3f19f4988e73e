//! Networks as the asked host has them: what its agent was told and its overlay keeps in force, not what managers have.
//!
//! So it can be asked of workers, and of hosts whose managers are gone; and where it differs from the managers' store,
//! one of the two is behind.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use axum::Json;
use axum::extract::State;
use deploy::dispatcher::AssignmentSet;
use deploy::model::{LOCAL_DRIVER, MTU_OPTION};
use overlay_net::kernel::mac_of;
use overlay_net::{AuditRecord, Network, Observation, Service};
use serde_json::{Map, Value, json};

use super::App;
use super::convert::time_to_wire;
use super::error::ApiError;
use super::extract::Params;
use super::local_networks;
use super::resolve::resolve;
use super::wire;
use crate::agent::TASK_LABEL;
use crate::engine::{AgentState, Engine};
use crate::network_check::{self, Report};

/// What this host believes.
pub(super) struct Here {
    agent: AgentState,
    seen: Observation,
    /// Ids of the containers of its tasks.
    containers: BTreeMap<String, String>,
    /// Ids of the networks of this host alone.
    local: Vec<String>,
}

impl Here {
    /// Nothing where no overlay runs: outside of clusters.
    pub(super) async fn read<E: Engine>(app: &App<E>) -> Option<Here> {
        let overlay = app.engine.overlay().ok()?;
        let agent = app.engine.agent().await.ok()?;
        let seen = overlay.observe().await.ok()?;
        let mut containers = BTreeMap::new();
        if let Some(here) = app.engine.containers() {
            for state in here.runtime.list().await {
                if let Some(task) = state.labels.get(TASK_LABEL) {
                    containers.insert(task.clone(), state.id.clone());
                }
            }
        }
        let plain = agent.set.tasks().map(|assignment| &assignment.task).filter(|task| task.is_attachment());
        containers.extend(plain.map(|task| (task.id.to_string(), task.container.clone())));
        let local = local_networks::all(app).into_iter().map(|view| view.record.id).collect();
        Some(Here { agent, seen, containers, local })
    }

    /// The network that is meant, if this host carries it.
    ///
    /// # Errors
    /// When several fit.
    pub(super) fn find(&self, wanted: &str) -> Result<Option<&Network>, ApiError> {
        let networks = self.seen.desired.networks.iter();
        match resolve("network", wanted, networks, |n| &n.id, |n| &n.name) {
            Ok(found) => Ok(Some(&**found)),
            Err(error) if error.status == hyper::StatusCode::NOT_FOUND => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The networks of the cluster that this host carries: ids and names.
    pub(super) fn of_cluster(&self) -> impl Iterator<Item = (&str, &str)> {
        let local: BTreeSet<&str> = self.local.iter().map(String::as_str).collect();
        let networks = self.seen.desired.networks.iter().filter(move |network| !local.contains(network.id.as_str()));
        networks.map(|network| (network.id.as_str(), network.name.as_str()))
    }

    /// What is said of a network that only managers know.
    pub(super) fn not_carried(&self, wanted: &str) -> String {
        let names: Vec<&str> = self.seen.desired.networks.iter().map(|network| network.name.as_str()).collect();
        format!(
            "this host does not carry the network {wanted}: a host carries the networks of its own tasks, and the \
             ingress network; at the moment {}",
            if names.is_empty() { "none".to_owned() } else { names.join(", ") }
        )
    }

    /// What is said of a network that this host cannot carry as it was asked for.
    pub(super) fn narrower(&self, network: &Network) -> Option<String> {
        let underlay = self.seen.underlay_mtu;
        let asked = network.room().lacks(underlay)?;
        Some(format!(
            "made for an MTU of {asked} bytes, and the interface with {} has {underlay}: on this host its links have {}",
            self.seen.data_path_addr,
            network.room().mtu(underlay)
        ))
    }

    /// What is said of an encrypted network that this host cannot carry, or not to all hosts.
    pub(super) fn unsealed(&self, network: &Network) -> Option<String> {
        if let Some(obstacle) = self.seen.sealing_obstacle.as_ref().filter(|_| network.encrypted) {
            return Some(format!("it is encrypted, and this host cannot carry such a network: {obstacle}"));
        }
        let without = self.without_key(network);
        (!without.is_empty()).then(|| format!("no key is known of {}: nothing is sent there", without.join(", ")))
    }

    /// The other hosts on an encrypted network that nothing can be encrypted for.
    fn without_key(&self, network: &Network) -> Vec<String> {
        let hosts = self.seen.desired.without_key(network).into_iter();
        hosts.filter(|host| *host != self.seen.data_path_addr).map(|host| host.to_string()).collect()
    }

    /// A network without what managers alone know of it: labels, options, when it was made.
    pub(super) fn base(&self, network: &Network) -> wire::Network {
        let config = |subnet: String, gateway: Option<String>| wire::IpamConfig {
            subnet: Some(subnet),
            gateway,
            ..wire::IpamConfig::default()
        };
        let four = config(network.subnet.to_string(), Some(network.gateway.to_string()));
        let six = network.beside().map(|beside| {
            config(beside.subnet().to_string(), beside.address(network.gateway).map(|gateway| gateway.to_string()))
        });
        let configs = std::iter::once(four).chain(six).collect();
        let vni = ("com.docker.network.driver.overlay.vxlanid_list".to_owned(), network.vni.to_string());
        let mtu = network.mtu.map(|mtu| (MTU_OPTION.to_owned(), mtu.to_string()));
        wire::Network {
            name: Some(network.name.clone()),
            id: Some(network.id.clone()),
            created: Some(time_to_wire(Default::default())),
            scope: Some("swarm".to_owned()),
            driver: Some(if network.local { LOCAL_DRIVER } else { "overlay" }.to_owned()),
            enable_ipv4: Some(true),
            enable_ipv6: Some(network.subnet6.is_some()),
            ipam: Some(wire::Ipam { driver: Some("default".to_owned()), options: None, config: Some(configs) }),
            internal: Some(network.internal),
            attachable: Some(false),
            ingress: Some(network.ingress),
            config_from: Some(wire::ConfigFrom { network: Some(String::new()) }),
            config_only: Some(false),
            options: Some(std::iter::once(vni).filter(|_| !network.local).chain(mtu).collect()),
            labels: Some(wire::Map::new()),
            ..wire::Network::default()
        }
    }

    /// This host's tasks on a network, by container.
    pub(super) fn containers(&self, network: &Network) -> Value {
        let names: BTreeMap<&str, &str> = network
            .services
            .iter()
            .flat_map(|service| &service.endpoints)
            .map(|endpoint| (endpoint.task.as_str(), endpoint.name.as_str()))
            .collect();
        let mut containers = Map::new();
        for task in &self.seen.tasks {
            let id = &task.config.task;
            for interface in task.interfaces.iter().filter(|interface| interface.network == network.id) {
                let six = network.beside().and_then(|beside| beside.interface(interface.address.addr()));
                let endpoint = json!({
                    "Name": names.get(id.as_str()).copied().unwrap_or_default(),
                    "EndpointID": id,
                    "MacAddress": mac(mac_of(interface.address.addr())),
                    "IPv4Address": interface.address.to_string(),
                    "IPv6Address": six.map(|six| six.to_string()).unwrap_or_default(),
                });
                containers.insert(self.containers.get(id).unwrap_or(id).clone(), endpoint);
            }
        }
        Value::Object(containers)
    }

    /// The hosts that this one knows on a network, itself included.
    pub(super) fn peers(&self, network: &Network) -> Vec<wire::Peer> {
        let known = |address: &IpAddr| {
            let text = address.to_string();
            self.agent.set.peers().find(|peer| peer.data_path_addr == text).map(|peer| peer.id.to_string())
        };
        let mut hosts: BTreeSet<IpAddr> = network.stations.iter().map(|station| IpAddr::from(station.host)).collect();
        hosts.insert(self.seen.data_path_addr.into());
        let peer = |host: &IpAddr| wire::Peer {
            name: Some(known(host).unwrap_or_default().chars().take(12).collect()),
            ip: Some(host.to_string()),
        };
        hosts.iter().map(peer).collect()
    }

    /// What `verbose` adds: services of the network with their tasks.
    pub(super) fn services(&self, network: &Network) -> Value {
        let hosts = network.hosts();
        let mut services = Map::new();
        for service in &network.services {
            let tasks: Vec<Value> = service
                .endpoints
                .iter()
                .map(|endpoint| {
                    let host = hosts.get(&endpoint.address).map(ToString::to_string).unwrap_or_default();
                    json!({
                        "Name": endpoint.name,
                        "EndpointID": endpoint.task,
                        "EndpointIP": endpoint.address.to_string(),
                        "Info": {"Host IP": host, "Serving": endpoint.serving.to_string()},
                    })
                })
                .collect();
            services.insert(
                service.name.clone(),
                json!({
                    "VIP": service.vip.map(|vip| vip.to_string()).unwrap_or_default(),
                    "Ports": published(&self.agent.set, network, service),
                    "LocalLBIndex": 0,
                    "Tasks": tasks,
                }),
            );
        }
        Value::Object(services)
    }

    /// How this host stands to what it was told, and to its kernel, and to a network if it carries that. `message` says
    /// why it does not carry it, or not as it should.
    pub(super) fn standing(&self, network: Option<&Network>, message: Option<String>) -> Value {
        let stamp = self.agent.stamp;
        let left_out: Vec<String> = self.seen.left_out.iter().map(ToString::to_string).collect();
        let refused: Vec<String> = self.seen.refused.iter().map(ToString::to_string).collect();
        json!({
            "NodeID": self.agent.node_id.as_str(),
            "Carried": network.is_some(),
            "Message": message.unwrap_or_default(),
            "Connected": self.agent.connected,
            "Told": {"Incarnation": stamp.incarnation, "Term": stamp.term, "Revision": stamp.revision},
            "AppliedRevision": self.seen.applied_revision,
            "DataPath": format!("{}:{}", self.seen.data_path_addr, self.seen.data_path_port),
            "UnderlayMTU": self.seen.underlay_mtu,
            "MTU": network.map(|network| network.room().mtu(self.seen.underlay_mtu)),
            "WithoutKey": network.filter(|network| network.encrypted).map(|network| self.without_key(network)),
            "LeftOut": left_out,
            "Refused": refused,
            "Audit": audit(self.seen.audit.as_ref()),
        })
    }
}

/// `GET /shoal/v1/network/check`: whether the networks of this host work, or the one that `network` names.
pub(super) async fn check<E: Engine>(State(app): State<App<E>>, params: Params) -> Result<Json<Report>, ApiError> {
    Ok(Json(network_check::check(&app.engine, params.get("network").filter(|name| !name.is_empty())).await?))
}

/// The last round of looking whether the kernel has what it should; null before the first.
fn audit(record: Option<&AuditRecord>) -> Value {
    record.map_or(Value::Null, |record| {
        json!({
            "SecondsAgo": record.ago.as_secs_f64(),
            "Agreed": record.agreed(),
            "Repaired": record.repaired,
            "Wrong": record.wrong,
        })
    })
}

/// A hardware address as Docker writes it.
pub(super) fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

/// The ports that a service publishes in the mesh, as Docker writes them.
fn published(set: &AssignmentSet, network: &Network, service: &Service) -> Vec<String> {
    let known = set.services().find(|info| info.network.as_str() == network.id && info.name == service.name);
    let Some(known) = known else { return Vec::new() };
    set.ports()
        .filter(|port| port.service == known.id)
        .map(|port| format!("Target: {}, Publish: {}", port.target, port.published))
        .collect()
}
