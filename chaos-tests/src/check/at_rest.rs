//! What must be so once faults have stopped and time has passed: replicas are as desired where there is room, every
//! agent runs exactly its set, nothing is pending, nothing is left behind.

use std::collections::{BTreeMap, BTreeSet};

use deploy::dispatcher::{self, AssignmentSet};
use deploy::model::{NodeAvailability, NodeId, NodeState, Service, ServiceMode, Task, TaskId, TaskState};
use deploy::scheduler;
use deploy::store::Store;

use super::is_lost;

/// What a host has.
#[derive(Clone, Debug, Default)]
pub struct HostState {
    /// What its agent was told.
    pub set: AssignmentSet,
    /// Tasks that its agent keeps.
    pub tasks: BTreeSet<TaskId>,
    /// Containers that run.
    pub running: BTreeSet<TaskId>,
    /// All containers, also those that ended.
    pub containers: BTreeSet<TaskId>,
    /// Plain containers on networks that run: what holds their places, and their names.
    pub plain: BTreeMap<TaskId, String>,
}

/// Everything that is not at rest, one sentence each. `hosts` are all that run; the store is the leader's.
pub fn at_rest(store: &Store, hosts: &BTreeMap<NodeId, HostState>) -> Vec<String> {
    let mut wrong = store.invariants();
    for service in store.services() {
        check_service(store, service, &mut wrong);
    }
    check_plain(store, hosts, &mut wrong);
    for task in store.tasks().filter(|task| !task.is_attachment()) {
        // What a lost host has not stopped is waited for.
        if is_lost(store, &task.node_id) && task.is_placed() && !hosts.contains_key(&task.node_id) {
            continue;
        }
        let pending = !task.is_wanted() && !task.has_ended() && task.is_placed();
        if pending || store.service(&task.service_id).is_none() {
            let (state, desired) = (task.state(), task.desired());
            wrong.push(format!("task {} on {} is left over: {state:?}, wanted {desired:?}", task.id, task.node_id));
        }
    }
    for (id, host) in hosts {
        check_host(store, id, host, &mut wrong);
    }
    wrong
}

fn check_service(store: &Store, service: &Service, wrong: &mut Vec<String>) {
    let tasks: Vec<&Task> = store.tasks_of_service(&service.id).map(|t| &**t).collect();
    let running = |t: &&&Task| t.is_wanted() && t.state() == TaskState::Running;
    let current = tasks.iter().filter(running).filter(|t| t.spec == service.spec.task).count();
    let all = tasks.iter().filter(running).count();
    let name = &service.spec.name;
    let wanted = match &service.spec.mode {
        Some(ServiceMode::Global(_)) => store.nodes().filter(|n| takes_global(service, n)).count(),
        _ => usize::try_from(service.spec.replicas().unwrap_or(1)).unwrap_or(usize::MAX),
    };
    if all == wanted && current == all {
        return;
    }
    // Only what no host has room for may wait, and it must say so. (A start-first update may wait like that for ever,
    // while the old tasks run.)
    let waiting: Vec<&&Task> = tasks.iter().filter(|t| t.is_wanted() && !t.is_placed()).collect();
    let verdicts = scheduler::explain(store, &service.id);
    let room = |task: &&&Task| {
        verdicts.iter().any(|v| v.reasons.is_empty() && (task.node_id.is_none() || task.node_id == v.node))
    };
    let missing = wanted.saturating_sub(current);
    let silent = waiting.iter().any(|t| t.status.err.is_empty());
    if waiting.is_empty() || waiting.len() > missing || all > wanted || waiting.iter().any(room) || silent {
        let states: Vec<_> = tasks.iter().map(|t| (t.slot, t.ordinal, t.state(), t.desired(), &t.status.err)).collect();
        wrong.push(format!(
            "service {name} has {all} of {wanted} tasks running, {current} of them up to date, {} wait: {states:?} {:?}",
            waiting.len(),
            service.update_status
        ));
    }
}

fn takes_global(service: &Service, node: &deploy::model::Node) -> bool {
    let placement = &service.spec.task.placement;
    let matches = |text: &String| scheduler::Constraint::parse(text).is_ok_and(|c| c.matches(node));
    node.status.state() == NodeState::Ready
        && node.spec.availability() == NodeAvailability::Active
        && placement.constraints.iter().all(matches)
}

fn check_host(store: &Store, id: &NodeId, host: &HostState, wrong: &mut Vec<String>) {
    if host.set != dispatcher::assignment(store, id) {
        wrong.push(format!("{id} has another assignment set than the store gives it"));
    }
    check_networks(store, id, host, wrong);
    let told: BTreeSet<TaskId> =
        host.set.tasks().filter(|a| !a.task.is_attachment()).map(|a| a.task.id.clone()).collect();
    if host.tasks != told {
        wrong.push(format!("{id} keeps the tasks {:?}, but was told of {told:?}", host.tasks));
    }
    let wanted: BTreeSet<TaskId> = host
        .set
        .tasks()
        .filter(|a| a.task.is_wanted() && told.contains(&a.task.id))
        .map(|a| a.task.id.clone())
        .collect();
    if host.running != wanted {
        wrong.push(format!("{id} runs {:?} instead of {wanted:?}", host.running));
    }
    if let Some(left) = host.containers.difference(&told).next() {
        wrong.push(format!("{id} still has the container of {left}"));
    }
}

/// Whether places on networks are those of the plain containers that run, and others find just these by their names: those of
/// hosts that are there.
fn check_plain(store: &Store, hosts: &BTreeMap<NodeId, HostState>, wrong: &mut Vec<String>) {
    let mut places = BTreeSet::new();
    for task in store.tasks().filter(|task| task.is_attachment() && !task.has_ended()) {
        // What a host that is away has is not known.
        if hosts.contains_key(&task.node_id) || !is_lost(store, &task.node_id) {
            places.insert((&task.node_id, &task.id, task.service_name.as_str()));
        }
    }
    let running: BTreeSet<_> = hosts
        .iter()
        .flat_map(|(host, state)| state.plain.iter().map(move |(place, name)| (host, place, name.as_str())))
        .collect();
    if places != running {
        wrong.push(format!("plain containers have the places {places:?}, and those that run are {running:?}"));
    }
    for (id, host) in hosts {
        let networks: BTreeSet<_> = host.set.networks().map(|network| &network.id).collect();
        let on = |place: &TaskId| store.task(place).into_iter().flat_map(|task| &task.attachments);
        let there = running.iter().filter(|(other, ..)| !is_lost(store, other));
        let expected: BTreeSet<_> = there
            .flat_map(|(_, place, name)| on(place).map(move |at| (&at.network, *name, at.address.as_str())))
            .filter(|(network, ..)| networks.contains(*network))
            .collect();
        let told = host.set.endpoints().filter(|endpoint| endpoint.service.is_none());
        let told: BTreeSet<_> =
            told.map(|e| (&e.network, e.names.first().map_or("", String::as_str), e.address.as_str())).collect();
        if told != expected {
            wrong.push(format!("{id} finds the plain containers {told:?}, and those that run are {expected:?}"));
        }
    }
}

/// Whether the host was told of its networks what the objects of the store say, counted here from these alone: behind
/// which host each address is, and which tasks serve at which one.
fn check_networks(store: &Store, id: &NodeId, host: &HostState, wrong: &mut Vec<String>) {
    let there = || store.tasks().filter(|task| task.is_placed() && !task.has_ended());
    let own = there().filter(|task| task.node_id == *id).flat_map(|task| &task.attachments);
    let mut carried: BTreeSet<&str> = own.map(|attachment| attachment.network.as_str()).collect();
    carried.extend(store.networks().filter(|network| network.spec.ingress).map(|network| network.id.as_str()));
    carried.retain(|network| store.networks().any(|n| n.id.as_str() == *network && n.allocation.is_some()));

    let (mut places, mut serving) = (BTreeSet::new(), BTreeSet::new());
    for task in there() {
        for at in task.attachments.iter().filter(|at| carried.contains(at.network.as_str())) {
            places.insert((at.network.as_str(), at.address.as_str(), task.node_id.as_str()));
            if task.is_attachment() && is_lost(store, &task.node_id) {
                continue;
            }
            let serves = task.state() == TaskState::Running && !task.status.unhealthy && task.is_wanted();
            serving.insert((at.network.as_str(), at.address.as_str(), task.id.as_str(), serves));
        }
    }
    for node in store.nodes() {
        for at in node.attachments.iter().filter(|at| carried.contains(at.network.as_str())) {
            places.insert((at.network.as_str(), at.address.as_str(), node.id.as_str()));
        }
    }
    let networks: BTreeSet<&str> = host.set.networks().map(|network| network.id.as_str()).collect();
    let stations = host.set.stations().map(|s| (s.network.as_str(), s.address.as_str(), s.node.as_str()));
    let endpoints = host.set.endpoints().map(|e| (e.network.as_str(), e.address.as_str(), e.task.as_str(), e.serving));
    let (stations, endpoints): (BTreeSet<_>, BTreeSet<_>) = (stations.collect(), endpoints.collect());
    if (&networks, &stations, &endpoints) != (&carried, &places, &serving) {
        wrong.push(format!(
            "{id} was told of networks {networks:?}, addresses {stations:?} and tasks {endpoints:?}; the store has \
             {carried:?}, {places:?} and {serving:?}"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{changed, node, service, task};
    use super::*;
    use deploy::model::DesiredState;

    fn quiet() -> (Store, BTreeMap<NodeId, HostState>) {
        let store = changed(&Store::default(), |txn| {
            txn.put_node(node("a"));
            txn.put_service(service("web"));
            txn.put_task(task("t", "web", "a"));
        });
        let hosts = hosts_of(&store);
        (store, hosts)
    }

    fn hosts_of(store: &Store) -> BTreeMap<NodeId, HostState> {
        let id = NodeId::new("a");
        let ids = BTreeSet::from([TaskId::new("t")]);
        let set = dispatcher::assignment(store, &id);
        let host = HostState { set, tasks: ids.clone(), running: ids.clone(), containers: ids, ..HostState::default() };
        BTreeMap::from([(id, host)])
    }

    #[test]
    fn rest_is_rest() {
        let (store, hosts) = quiet();
        assert_eq!(at_rest(&store, &hosts), Vec::<String>::new());
    }

    #[test]
    fn a_missing_replica_is_found() {
        let (store, hosts) = quiet();
        let store = changed(&store, |txn| txn.remove_task(&TaskId::new("t")));
        assert!(!at_rest(&store, &hosts).is_empty());
    }

    #[test]
    fn a_task_that_should_be_over_is_found() {
        let (store, _) = quiet();
        let mut over = task("t", "web", "a");
        over.set_desired(DesiredState::Shutdown);
        let store = changed(&store, |txn| txn.put_task(over));
        assert!(at_rest(&store, &hosts_of(&store)).iter().any(|w| w.contains("left over")));
    }

    #[track_caller]
    fn check_host_fires(change: impl FnOnce(&mut HostState)) {
        let (store, mut hosts) = quiet();
        change(hosts.get_mut(&NodeId::new("a")).expect("the host"));
        assert_eq!(at_rest(&store, &hosts).len(), 1);
    }

    #[test]
    fn a_host_that_differs_is_found() {
        check_host_fires(|host| host.running.clear());
        check_host_fires(|host| host.tasks.extend([TaskId::new("other")]));
        check_host_fires(|host| host.containers.extend([TaskId::new("other")]));
    }
}
