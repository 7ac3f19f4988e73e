//! One pass of the cluster's brain: the reconcilers in their fixed order, on one transaction.
//!
//! Called by the leader after each request and whenever a pass asked to be woken. Every manager has the code, only the
//! leader runs it; what comes out is one log entry. A pass never fails, is bounded, and a second one at the same time
//! changes nothing: everything that it knows is in the store.

use std::collections::BTreeSet;

use crate::allocator;
use crate::cx::Cx;
use crate::model::{NodeId, ServiceId, ServiceMode};
use crate::store::{Key, Store, Txn};
use crate::{enforcer, gossip_keys, orchestrator, reaper, root_rotation, scheduler, sealing};

/// Looks at everything. For a leader's first pass, and for each time that a pass asked to be woken at.
pub fn pass(cx: &mut Cx<'_>, txn: &mut Txn) {
    let mut services: BTreeSet<ServiceId> = txn.services().map(|s| s.id.clone()).collect();
    let mut hosts: BTreeSet<NodeId> = txn.nodes().map(|n| n.id.clone()).collect();
    // Those that are gone, but of which tasks are left. Almost none, so that looking costs less than collecting.
    for task in txn.tasks() {
        if let Some(service) = task.service().filter(|service| !services.contains(*service)) {
            services.insert(service.clone());
        }
        if !hosts.contains(&task.node_id) {
            hosts.insert(task.node_id.clone());
        }
    }
    run(cx, txn, &Scope { services, hosts });
}

/// Looks at what the transaction has touched so far. Equals `pass` when the store under it had nothing left to do at
/// this time: then only what changed since can give work.
pub fn pass_touched(cx: &mut Cx<'_>, txn: &mut Txn) {
    match Scope::touched(txn) {
        Some(scope) => run(cx, txn, &scope),
        None => pass(cx, txn),
    }
}

/// The order is part of the design: what one reconciler decides, the later ones carry out in the same entry.
fn run(cx: &mut Cx<'_>, txn: &mut Txn, scope: &Scope) {
    gossip_keys::reconcile(cx, txn);
    root_rotation::reconcile(cx, txn);
    sealing::reconcile(cx, txn);
    enforcer::reconcile(cx, txn, &scope.hosts);
    for service in &scope.services {
        if txn.is_full() {
            break;
        }
        orchestrator::reconcile(cx, txn, service);
    }
    scheduler::reconcile(cx, txn);
    allocator::reconcile(cx, txn);
    for service in &scope.services {
        if txn.is_full() {
            break;
        }
        reaper::reconcile(txn, service);
    }
    for host in &scope.hosts {
        reaper::forget_places(txn, host);
    }
    if txn.is_full() {
        // Each of them stopped between two decisions; the next pass, a full one, comes at once.
        txn.wake_at(cx.now);
    }
}

/// What a pass looks at. The scheduler and the allocator need no scope: the store's indexes list what waits for them.
struct Scope {
    services: BTreeSet<ServiceId>,
    hosts: BTreeSet<NodeId>,
}

impl Scope {
    /// The services and hosts that a change may concern; `None` when that is all of them.
    fn touched(txn: &Txn) -> Option<Self> {
        let mut scope = Self { services: BTreeSet::new(), hosts: BTreeSet::new() };
        for key in txn.touched() {
            match key {
                Key::Cluster => return None,
                Key::Service(id) => {
                    scope.services.insert(id.clone());
                }
                Key::Task(id) => {
                    for task in [txn.base().task(id), txn.task(id)].into_iter().flatten() {
                        scope.services.extend(task.service().cloned());
                        scope.hosts.insert(task.node_id.clone());
                    }
                }
                Key::Node(id) => scope.add_host(txn, id),
                Key::Network(_) | Key::Secret(_) | Key::Config(_) | Key::Registry(_) => {}
            }
        }
        Some(scope)
    }

    fn add_host(&mut self, store: &Store, id: &NodeId) {
        self.hosts.insert(id.clone());
        self.services.extend(store.tasks_on_node(id).filter_map(|task| task.service().cloned()));
        // Any host may be a new or a lost place of a global service, and of a slot that waits for a stop there.
        let global = store.services().filter(|s| matches!(s.spec.mode, Some(ServiceMode::Global(_))));
        self.services.extend(global.map(|s| s.id.clone()));
    }
}
