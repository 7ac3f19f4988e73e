//! What a host is told of others, in the words of the rest of the daemon. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use deploy::dispatcher::AssignmentSet;

use crate::datadir::ManagerRecord;

/// The cluster's managers.
pub(super) fn managers(set: &AssignmentSet) -> Vec<ManagerRecord> {
    let managers = set.peers().filter(|peer| peer.manager && !peer.control_addr.is_empty());
    managers.map(|peer| ManagerRecord { node_id: peer.id.to_string(), addr: peer.control_addr.clone() }).collect()
}

/// Where each host is reached.
pub(super) fn hosts(set: &AssignmentSet) -> BTreeMap<String, String> {
    let reached = set.peers().filter(|peer| !peer.control_addr.is_empty());
    reached.map(|peer| (peer.id.to_string(), peer.control_addr.clone())).collect()
}

/// Hosts that were removed and whose certificates have not run out.
pub(super) fn removed_nodes(set: &AssignmentSet) -> Vec<String> {
    set.removed().map(|removed| removed.id.to_string()).collect()
}

/// Where VXLAN packets to each host go.
pub(super) fn data_paths(set: &AssignmentSet) -> BTreeMap<String, Ipv4Addr> {
    set.peers().filter_map(|peer| Some((peer.id.to_string(), peer.data_path_addr.parse().ok()?))).collect()
}

/// Hosts that managers hear from though gossip calls them dead.
pub(super) fn gossip_blocked(set: &AssignmentSet) -> BTreeSet<String> {
    set.peers().filter(|peer| peer.is_gossip_blocked()).map(|peer| peer.id.to_string()).collect()
}
