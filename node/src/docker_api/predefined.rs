//! The networks that every host has of its own: `host`, `none` and `bridge`, as Docker shows them.
//!
//! They are no objects of the cluster. A service's wish for one is kept by its name; clients see an id in its place, the
//! same on every host, since a client may ask one manager for it and send it to another.

use deploy::model::{BRIDGE_NETWORK, HOST_NETWORK, NONE_NETWORK, NetworkMode, Task, Timestamp};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::convert::time_to_wire;
use super::wire;

/// Name and driver.
pub(super) const ALL: [(&str, &str); 3] = [(BRIDGE_NETWORK, "bridge"), (HOST_NETWORK, "host"), (NONE_NETWORK, "null")];

/// Id of a predefined network: 64 hexadecimal characters, as Docker's local networks have them.
pub(crate) fn id(name: &str) -> String {
    let digest = Sha256::digest(format!("shoal predefined network {name}").as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The predefined network that a client means by a name, an id, or the beginning of an id as tools show it.
pub(super) fn find(wanted: &str) -> Option<&'static str> {
    const SHOWN: usize = 12;
    let fits = |name: &str| name == wanted || wanted.len() >= SHOWN && id(name).starts_with(wanted);
    ALL.iter().map(|(name, _)| *name).find(|name| fits(name))
}

/// As Docker's clients read it, with those of this host's tasks that are on it.
pub(super) fn to_wire<'a>(name: &str, scope: &str, tasks: impl Iterator<Item = &'a Task>) -> wire::Network {
    let driver = ALL.iter().find(|(known, _)| *known == name).map(|(_, driver)| (*driver).to_owned());
    let mode = match name {
        HOST_NETWORK => Some(NetworkMode::Host),
        NONE_NETWORK => Some(NetworkMode::None),
        _ => None,
    };
    let here = tasks.filter(|task| Some(task.spec.network_mode()) == mode && !task.has_ended());
    let containers: Map<String, Value> = here
        .filter_map(|task| {
            let endpoint = json!({
                "Name": task.name(),
                "EndpointID": task.id.as_str(),
                "MacAddress": "",
                "IPv4Address": "",
                "IPv6Address": "",
            });
            Some((task.status.container.as_ref()?.id.clone(), endpoint))
        })
        .collect();
    wire::Network {
        name: Some(name.to_owned()),
        id: Some(id(name)),
        created: Some(time_to_wire(Timestamp::default())),
        scope: Some(scope.to_owned()),
        driver,
        enable_ipv4: Some(true),
        enable_ipv6: Some(false),
        ipam: Some(wire::Ipam { driver: Some("default".to_owned()), options: None, config: Some(Vec::new()) }),
        internal: Some(false),
        attachable: Some(false),
        ingress: Some(false),
        config_from: Some(wire::ConfigFrom { network: Some(String::new()) }),
        config_only: Some(false),
        containers: Some(Value::Object(containers)),
        options: Some(wire::Map::new()),
        labels: Some(wire::Map::new()),
        peers: None,
        services: None,
        host: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_found_by_name_and_id() {
        for (name, _) in ALL {
            let id = id(name);
            assert_eq!(id.len(), 64);
            assert_eq!([find(name), find(&id), find(&id[..12])], [Some(name); 3]);
            assert_eq!([find(&id[..11]), find(&name[..3])], [None; 2]);
        }
        assert_eq!([find(""), find("ingress")], [None; 2]);
    }
}
