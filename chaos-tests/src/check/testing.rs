//! Histories by hand, for the tests which prove that a property fires.

use deploy::model::{
    DesiredState, Node, NodeAvailability, NodeId, NodeState, Service, ServiceId, Task, TaskId, TaskState, Timestamp,
};
use deploy::store::{Key, Store, Txn};

use super::{Applied, Fact, Property};

/// A store after `change` of another one; no rule is looked at.
pub(crate) fn changed(before: &Store, change: impl FnOnce(&mut Txn)) -> Store {
    let mut txn = Txn::new(before, Timestamp::from_millis(1));
    change(&mut txn);
    txn.into_store()
}

/// Shows the property how one store became another, and returns what it says.
pub(crate) fn show(property: &mut dyn Property, before: &Store, after: &Store) -> Result<(), String> {
    let of = |s: &Store| -> Vec<Key> {
        let nodes = s.nodes().map(|n| Key::Node(n.id.clone()));
        let services = s.services().map(|n| Key::Service(n.id.clone()));
        let networks = s.networks().map(|n| Key::Network(n.id.clone()));
        nodes.chain(services).chain(networks).chain(s.tasks().map(|n| Key::Task(n.id.clone()))).collect()
    };
    let mut keys = of(before);
    keys.extend(of(after));
    keys.sort();
    keys.dedup();
    let applied = Applied {
        manager: 0,
        index: after.revision(),
        entry: after.revision(),
        accepted: true,
        first: true,
        merged: false,
        before,
        after,
        keys: &keys,
    };
    property.observe(&Fact::Applied(applied))
}

/// A ready host.
pub(crate) fn node(name: &str) -> Node {
    let mut node = Node { id: NodeId::new(name), ..Node::default() };
    node.status.set_state(NodeState::Ready);
    node.spec.set_availability(NodeAvailability::Active);
    node.description.resources.memory_bytes = 1 << 30;
    node
}

/// A service without anything special.
pub(crate) fn service(name: &str) -> Service {
    let mut service = Service { id: ServiceId::new(name), spec_version: 1, ..Service::default() };
    service.spec.name = name.to_owned();
    service
}

/// A running task of slot 1.
pub(crate) fn task(id: &str, service: &str, host: &str) -> Task {
    let mut task = Task {
        id: TaskId::new(id),
        service_id: ServiceId::new(service),
        node_id: NodeId::new(host),
        spec_version: 1,
        slot: 1,
        ordinal: 1,
        ..Task::default()
    };
    task.set_desired(DesiredState::Running);
    task.status.set_state(TaskState::Running);
    task
}
