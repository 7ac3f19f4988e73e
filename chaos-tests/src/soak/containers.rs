//! Processes of containers, as they are seen on the machine, against what managers want: a removed task never starts,
//! no attempt starts twice, and no two tasks of a slot run at the same time, unless the host of one was lost.
//!
//! A look at the processes and a look at a store are never of the same moment. So two of a slot are first a suspicion;
//! it is a violation when a store that is certainly newer does not excuse it either.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use deploy::model::{Node, NodeId, NodeState, Task, TaskId, Timestamp, UpdateOrder};
use deploy::store::Store;
use sha2::{Digest, Sha256};

/// Attempts of one task that containers are recognised of; more than any host makes while it is alone.
const ATTEMPTS: u32 = 24;
/// Stores that were looked at so long after something was seen on a host show what had been decided before.
const SETTLES: Duration = Duration::from_secs(3);

/// A host that boots has heard of a manager within this time after it was seen to be lost.
const BOOTS: Duration = Duration::from_secs(30);

/// The id that the agent gives to a container.
fn container_id(task: &TaskId, attempt: u32) -> String {
    Sha256::digest(format!("{task}/{attempt}").as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A process that runs in a container, at one look.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Running {
    /// The host, from 0.
    pub(super) host: usize,
    /// The container's id.
    pub(super) container: String,
    /// When the process was started, in ticks since boot.
    pub(super) started: u64,
    /// Its number.
    pub(super) pid: i32,
}

/// A container that runs.
#[derive(Debug, Clone)]
struct Known {
    task: Task,
    attempt: u32,
    first_seen: Instant,
    /// `since` of its host at that time: when this has changed, the host was lost in between.
    host_since: Option<Timestamp>,
}

#[derive(Debug, Clone)]
struct Suspicion {
    at: Instant,
    pair: [(TaskId, Option<Timestamp>); 2],
}

/// All containers of a run.
#[derive(Debug, Default)]
pub(super) struct Containers {
    tasks: BTreeMap<TaskId, Task>,
    ids: BTreeMap<String, (TaskId, u32)>,
    running: BTreeMap<Running, Known>,
    started: BTreeMap<String, Running>,
    start_first: BTreeSet<String>,
    /// When hosts were last seen to be lost.
    lost: BTreeMap<NodeId, Instant>,
    suspicions: Vec<Suspicion>,
    /// Starts that were seen.
    pub(super) starts: u64,
}

impl Containers {
    /// Takes note of a newer store, looked at when `now` was: learns of tasks, and decides what was suspected.
    pub(super) fn newer_store(&mut self, store: &Store, now: Instant) -> Vec<String> {
        for task in store.tasks() {
            if !self.tasks.contains_key(&task.id) {
                self.ids.extend((0..ATTEMPTS).map(|n| (container_id(&task.id, n), (task.id.clone(), n))));
            }
            self.tasks.insert(task.id.clone(), (**task).clone());
        }
        let lost = store.nodes().filter(|n| is_lost(n)).map(|n| (n.id.clone(), now));
        self.lost.extend(lost);
        for service in store.services() {
            let specs = [Some(&service.spec), service.previous_spec.as_ref()];
            let mut configs = specs.into_iter().flatten().flat_map(|s| [&s.update, &s.rollback]).flatten();
            if configs.any(|c| c.order() == UpdateOrder::StartFirst) {
                self.start_first.insert(service.id.to_string());
            }
        }
        let (old, young): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.suspicions).into_iter().partition(|s| s.at + SETTLES < now);
        self.suspicions = young;
        old.iter().filter_map(|suspicion| self.decide(store, suspicion)).collect()
    }

    fn decide(&self, store: &Store, suspicion: &Suspicion) -> Option<String> {
        for (id, since) in &suspicion.pair {
            let task = self.tasks.get(id)?;
            let node = store.node(&task.node_id);
            // Removed, lost now, or lost and back.
            if node.is_none_or(|n| is_lost(n) || Some(n.status.since) != *since) {
                return None;
            }
            // A host that boots starts what it remembers before any manager can tell it that this was replaced.
            let lately = self.lost.get(&task.node_id).is_some_and(|at| *at + BOOTS > suspicion.at);
            if lately && !task.is_wanted() {
                return None;
            }
        }
        let tell = |(id, _): &(TaskId, _)| match self.tasks.get(id) {
            Some(t) => format!("{id} of {} on {}, {:?}, wanted {:?}", t.name(), t.node_id, t.state(), t.desired()),
            None => id.to_string(),
        };
        let [one, other] = &suspicion.pair;
        Some(format!("two tasks of a slot ran at the same time: {} and {}", tell(one), tell(other)))
    }

    /// Judges what runs at one look, which began and ended while all of it ran.
    pub(super) fn look(
        &mut self,
        seen: &BTreeSet<Running>,
        store: &Store,
        removed: impl Fn(&TaskId) -> bool,
        now: Instant,
    ) -> Vec<String> {
        let mut wrong = Vec::new();
        self.running.retain(|running, _| seen.contains(running));
        for process in seen {
            if self.running.contains_key(process) {
                continue;
            }
            // A task is in the store long before it runs; one that is in no sample yet is found at the next look.
            let Some((id, attempt)) = self.ids.get(&process.container) else { continue };
            let Some(task) = self.tasks.get(id) else { continue };
            self.starts += 1;
            if removed(id) && store.node(&task.node_id).is_some() && !self.started.contains_key(&process.container) {
                wrong.push(format!("task {id} started on host {} after it was removed", process.host));
            }
            let before = self.started.insert(process.container.clone(), process.clone());
            if before.is_some_and(|before| before != *process) {
                wrong.push(format!("attempt {attempt} of task {id} was started a second time: {process:?}"));
            }
            let known = Known {
                task: task.clone(),
                attempt: *attempt,
                first_seen: now,
                host_since: store.node(&task.node_id).map(|n| n.status.since),
            };
            self.suspect(process, &known, now, &mut wrong);
            self.running.insert(process.clone(), known);
        }
        wrong
    }

    fn suspect(&mut self, process: &Running, new: &Known, now: Instant, wrong: &mut Vec<String>) {
        let slot = slot_of(&new.task);
        for (other, known) in &self.running {
            if slot_of(&known.task) != slot {
                continue;
            }
            if known.task.id == new.task.id {
                let (a, b) = (known.attempt, new.attempt);
                wrong.push(format!("attempts {a} and {b} of task {} run at once: {other:?} {process:?}", new.task.id));
            } else if !self.start_first.contains(new.task.service_id.as_str()) {
                let pair = [(known.task.id.clone(), known.host_since), (new.task.id.clone(), new.host_since)];
                self.suspicions.push(Suspicion { at: now.max(known.first_seen), pair });
            }
        }
    }

    /// The task whose container this is.
    pub(super) fn task_of(&self, container: &str) -> Option<&TaskId> {
        self.ids.get(container).map(|(task, _)| task)
    }
}

fn is_lost(node: &Node) -> bool {
    matches!(node.status.state(), NodeState::Down | NodeState::Disconnected)
}

fn slot_of(task: &Task) -> String {
    let place = if task.slot > 0 { task.slot.to_string() } else { task.node_id.to_string() };
    format!("{}/{place}", task.service_id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::testing::{changed, node, service, task};

    const MILLI: Duration = Duration::from_millis(1);

    fn store() -> Store {
        changed(&Store::default(), |txn| {
            txn.put_node(node("a"));
            txn.put_node(node("b"));
            txn.put_service(service("web"));
            txn.put_task(task("t1", "web", "a"));
            txn.put_task(task("t2", "web", "b"));
        })
    }

    fn process(host: usize, task: &str, attempt: u32, started: u64) -> Running {
        let pid = i32::try_from(started).unwrap();
        Running { host, container: container_id(&TaskId::new(task), attempt), started, pid }
    }

    fn look(containers: &mut Containers, store: &Store, seen: &[Running], now: Instant) -> Vec<String> {
        containers.look(&seen.iter().cloned().collect(), store, |id| *id == TaskId::new("gone"), now)
    }

    fn two_of_a_slot(after: impl FnOnce(&Store) -> Store) -> Vec<String> {
        let (mut containers, store, now) = (Containers::default(), store(), Instant::now());
        containers.newer_store(&store, now);
        let (one, two) = (process(0, "t1", 0, 5), process(1, "t2", 0, 6));
        assert!(look(&mut containers, &store, std::slice::from_ref(&one), now + MILLI).is_empty());
        assert!(look(&mut containers, &store, &[one, two], now + 2 * MILLI).is_empty(), "a suspicion at first");
        let after = after(&store);
        assert!(containers.newer_store(&after, now + 3 * MILLI).is_empty(), "too early to say");
        containers.newer_store(&after, now + 2 * SETTLES)
    }

    #[test]
    fn two_of_a_slot_are_found() {
        assert_eq!(two_of_a_slot(Store::clone).len(), 1);
        let lost = |store: &Store| {
            changed(store, |txn| {
                let mut down = node("a");
                down.status.set_state(NodeState::Down);
                txn.put_node(down);
            })
        };
        assert!(two_of_a_slot(lost).is_empty(), "the first is on a lost host");
        let back = |store: &Store| {
            changed(store, |txn| {
                let mut back = node("a");
                back.status.since = Timestamp::from_millis(77);
                txn.put_node(back);
            })
        };
        assert!(two_of_a_slot(back).is_empty(), "its host was lost and is back");
    }

    #[test]
    fn one_after_the_other_is_fine() {
        let (mut containers, store, now) = (Containers::default(), store(), Instant::now());
        containers.newer_store(&store, now);
        assert!(look(&mut containers, &store, &[process(0, "t1", 0, 5)], now).is_empty());
        assert!(look(&mut containers, &store, &[process(1, "t2", 0, 6)], now).is_empty());
        assert!(containers.newer_store(&store, now + 2 * SETTLES).is_empty());
        assert_eq!(containers.starts, 2);
    }

    #[test]
    fn a_second_start_is_found() {
        let (mut containers, store, now) = (Containers::default(), store(), Instant::now());
        containers.newer_store(&store, now);
        assert!(look(&mut containers, &store, &[process(0, "t1", 0, 5)], now).is_empty());
        assert_eq!(look(&mut containers, &store, &[process(0, "t1", 0, 9)], now).len(), 1, "the same attempt");
        assert_eq!(
            look(&mut containers, &store, &[process(0, "t1", 0, 9), process(0, "t1", 1, 10)], now).len(),
            1,
            "two attempts at once"
        );
    }

    #[test]
    fn a_start_after_the_removal_is_found() {
        let (mut containers, now) = (Containers::default(), Instant::now());
        let with = changed(&store(), |txn| txn.put_task(task("gone", "other", "a")));
        containers.newer_store(&with, now);
        containers.newer_store(&store(), now);
        assert_eq!(look(&mut containers, &store(), &[process(0, "gone", 0, 5)], now).len(), 1);
    }
}
