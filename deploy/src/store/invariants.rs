//! What must hold of every store, checked by tests and simulations after every step.

use std::collections::BTreeMap;

use super::index::Index;
use super::{Held, Holder, Key, Store};
use crate::model::{DesiredState, NetworkId, Subnet, Task, format_ipv4, parse_cidr};

impl Store {
    /// Everything that is wrong with the store, one sentence each; empty if all is well.
    pub fn invariants(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        self.check_index(&mut wrong);
        self.check_unique(&mut wrong);
        self.check_networks(&mut wrong);
        self.check_tasks(&mut wrong);
        wrong
    }

    fn all(&self) -> impl Iterator<Item = Held> {
        (self.cluster.iter().cloned().map(Held::Cluster))
            .chain(self.nodes().cloned().map(Held::Node))
            .chain(self.services().cloned().map(Held::Service))
            .chain(self.tasks().cloned().map(Held::Task))
            .chain(self.networks().cloned().map(Held::Network))
            .chain(self.secrets().cloned().map(Held::Secret))
            .chain(self.configs().cloned().map(Held::Config))
            .chain(self.registries().cloned().map(Held::Registry))
    }

    pub(super) fn check_index(&self, wrong: &mut Vec<String>) {
        let mut rebuilt = Index::default();
        for object in self.all() {
            rebuilt.add(&object);
            let version = object.meta().version;
            if version == 0 || version > self.revision {
                wrong.push(format!("{} has version {version} at revision {}", object.key(), self.revision));
            }
        }
        if rebuilt != self.index {
            wrong.push(format!("the indexes differ from a rebuild: {:?} instead of {rebuilt:?}", self.index));
        }
    }

    pub(super) fn check_unique(&self, wrong: &mut Vec<String>) {
        for object in self.all() {
            if let Some(taken) = self.index.taken(&object) {
                wrong.push(format!("{} and {} both have {}", object.key(), taken.by, taken.what));
            }
        }
    }

    fn check_networks(&self, wrong: &mut Vec<String>) {
        let mut subnets: BTreeMap<Subnet, NetworkId> = BTreeMap::new();
        for network in self.networks() {
            let Some(allocation) = &network.allocation else { continue };
            let Some(subnet) = Subnet::parse(&allocation.subnet) else {
                wrong.push(format!("network {} has the subnet {:?}", network.id, allocation.subnet));
                continue;
            };
            for (other, id) in subnets.iter().filter(|(other, _)| other.overlaps(subnet)) {
                wrong.push(format!("networks {} ({subnet}) and {id} ({other}) overlap", network.id));
            }
            subnets.insert(subnet, network.id.clone());
            for (address, holder) in self.addresses_on_network(&network.id) {
                if address <= subnet.first() || address >= subnet.last() {
                    wrong.push(format!("{} is outside of {subnet}, but {} has it", format_ipv4(address), holder.key()));
                }
                if format_ipv4(address) == allocation.gateway {
                    wrong.push(format!("{} has the gateway's address {}", holder.key(), allocation.gateway));
                }
            }
        }
        for (network, address, holder) in &self.index.addresses {
            if self.network(network).is_none_or(|network| network.allocation.is_none()) {
                let address = format_ipv4(*address);
                wrong.push(format!("{} has {address} on network {network}, which has no subnet", holder.key()));
            }
        }
    }

    fn check_tasks(&self, wrong: &mut Vec<String>) {
        for task in self.tasks() {
            if task.service().is_some_and(|service| self.service(service).is_none())
                && task.desired() < DesiredState::Shutdown
                && task.holds_addresses()
            {
                wrong.push(format!("task {} is wanted, but its service {} is gone", task.id, task.service_id));
            }
            self.check_attachments(task, wrong);
            self.check_chosen_ports(task, wrong);
        }
    }

    /// A number that was chosen is nobody else's on that host.
    fn check_chosen_ports(&self, task: &Task, wrong: &mut Vec<String>) {
        for (protocol, port) in task.chosen().filter(|_| task.holds_addresses()) {
            let has = |other: &Task| other.host_ports().any(|p| (p.protocol(), p.published) == (protocol, port));
            let others =
                self.tasks_on_node(&task.node_id).filter(|other| other.id != task.id && other.holds_addresses());
            for other in others.filter(|other| has(other)) {
                wrong
                    .push(format!("tasks {} and {} both have port {port} on node {}", task.id, other.id, task.node_id));
            }
            if let Some(service) = self.published_port_owner(protocol, port) {
                wrong.push(format!("task {} and service {} both have port {port}", task.id, service.id));
            }
        }
    }

    fn check_attachments(&self, task: &Task, wrong: &mut Vec<String>) {
        for attachment in &task.attachments {
            let held = parse_cidr(&attachment.address)
                .and_then(|(address, _)| self.address_holder(&attachment.network, address));
            let mine = held == Some(&Holder::Task(task.id.clone()));
            if task.holds_addresses() && !mine {
                let key = Key::Task(task.id.clone());
                wrong.push(format!("{key} has {:?}, which the index does not know", attachment.address));
            }
        }
    }
}
