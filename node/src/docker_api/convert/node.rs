//! `Node`.

use deploy::model::{Node, NodeAvailability, NodeRole, NodeSpec, NodeState};

use super::{non_empty, time_to_wire, version};
use crate::docker_api::error::ApiError;
use crate::docker_api::wire;
use crate::engine::ManagerView;

/// What a client sent, as the model has it.
///
/// # Errors
/// An unknown role or availability.
pub fn node_spec_from_wire(w: wire::NodeSpec) -> Result<NodeSpec, ApiError> {
    let role = match w.role.as_deref() {
        Some("worker") => NodeRole::Worker,
        Some("manager") => NodeRole::Manager,
        other => return Err(ApiError::invalid(format!("invalid Role: {:?}", other.unwrap_or_default()))),
    };
    Ok(NodeSpec {
        name: w.name.unwrap_or_default(),
        labels: w.labels.unwrap_or_default(),
        role: role.into(),
        availability: match w.availability.as_deref() {
            Some("active") => NodeAvailability::Active,
            Some("pause") => NodeAvailability::Pause,
            Some("drain") => NodeAvailability::Drain,
            other => return Err(ApiError::invalid(format!("invalid Availability: {:?}", other.unwrap_or_default()))),
        }
        .into(),
    })
}

/// Docker's word for a node's role.
pub(crate) fn role_name(role: NodeRole) -> &'static str {
    match role {
        NodeRole::Worker => "worker",
        NodeRole::Manager => "manager",
    }
}

/// What an engine can do, in the form in which nodes announce it.
const PLUGINS: [(&str, &str); 6] = [
    ("Log", "journald"),
    ("Log", "json-file"),
    ("Log", "local"),
    ("Log", "none"),
    ("Log", "syslog"),
    ("Network", "overlay"),
];

/// A node as Docker's clients read it; `view` says how Raft stands, `tls` what it trusts.
pub fn node_to_wire(m: &Node, view: &ManagerView, tls: Option<wire::TlsInfo>) -> wire::Node {
    let leader = view.leader.as_ref() == Some(&m.id);
    let reachability = if leader || view.reachable.contains(&m.id) {
        "reachable"
    } else if view.leader.is_none() {
        // Without a leader nobody has asked the others lately.
        "unknown"
    } else {
        "unreachable"
    };
    let d = &m.description;
    wire::Node {
        id: Some(m.id.to_string()),
        version: version(&m.meta),
        created_at: Some(time_to_wire(m.meta.created_at)),
        updated_at: Some(time_to_wire(m.meta.updated_at)),
        spec: Some(wire::NodeSpec {
            name: non_empty(&m.spec.name),
            labels: Some(m.spec.labels.clone()),
            role: Some(role_name(m.spec.role()).to_owned()),
            availability: Some(
                match m.spec.availability() {
                    NodeAvailability::Active => "active",
                    NodeAvailability::Pause => "pause",
                    NodeAvailability::Drain => "drain",
                }
                .to_owned(),
            ),
        }),
        description: Some(wire::NodeDescription {
            hostname: Some(d.hostname.clone()),
            platform: Some(wire::Platform { architecture: Some(d.architecture.clone()), os: Some(d.os.clone()) }),
            resources: Some(wire::NodeResources {
                nano_cpus: Some(d.resources.nano_cpus),
                memory_bytes: Some(d.resources.memory_bytes),
            }),
            engine: Some(wire::EngineDescription {
                version: Some(d.engine_version.clone()),
                labels: Some(d.engine_labels.clone()),
                plugins: Some(
                    PLUGINS
                        .iter()
                        .map(|(kind, name)| wire::EnginePlugin {
                            kind: Some((*kind).to_owned()),
                            name: Some((*name).to_owned()),
                        })
                        .collect(),
                ),
            }),
            tls_info: tls,
        }),
        status: Some(wire::NodeStatus {
            state: Some(
                match m.status.state() {
                    NodeState::Unknown => "unknown",
                    NodeState::Down => "down",
                    NodeState::Ready => "ready",
                    NodeState::Disconnected => "disconnected",
                }
                .to_owned(),
            ),
            message: non_empty(&m.status.message),
            addr: Some(m.status.addr.clone()),
        }),
        manager_status: m.manager.as_ref().map(|manager| wire::ManagerStatus {
            leader: leader.then_some(true),
            reachability: Some(reachability.to_owned()),
            addr: Some(manager.addr.clone()),
        }),
    }
}
