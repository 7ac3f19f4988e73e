//! What must always hold: one property a file, fed with facts.
//!
//! A fact is something that was seen to happen: an entry was applied, a container started, a caller was told that its
//! write is done. Whoever makes or watches a cluster (the simulation does) reports facts in the order in which they
//! happened; a property keeps what it needs of the past and objects to a fact that must not be. `at_rest` is the other
//! half: what must be so once faults have stopped and time has passed.

mod acknowledged;
mod addresses;
pub mod at_rest;
mod capacity;
mod older_set;
mod one_per_slot;
mod parallelism;
mod placement;
mod same_store;
mod starts_once;
mod state_grows;
#[cfg(test)]
pub(crate) mod testing;
mod unique;

use deploy::dispatcher::Stamp;
use deploy::model::{NetworkAttachment, NodeId, NodeState, Task, TaskId};
use deploy::store::{Key, Store};

pub use acknowledged::Acknowledged;
pub use addresses::Addresses;
pub use capacity::Capacity;
pub use older_set::OlderSet;
pub use one_per_slot::OnePerSlot;
pub use parallelism::Parallelism;
pub use placement::Placement;
pub use same_store::SameStore;
pub use starts_once::StartsOnce;
pub use state_grows::StateGrows;
pub use unique::Unique;

/// Something that happened.
#[derive(Clone, Copy, Debug)]
pub enum Fact<'a> {
    /// A caller was told that its write is done.
    Acknowledged {
        /// Log index of the entry that holds it.
        index: u64,
        /// What tells the entry's bytes from others.
        entry: u64,
    },
    /// A manager applied an entry.
    Applied(Applied<'a>),
    /// A manager took over a snapshot in place of the entries up to `index`.
    Restored {
        /// Which manager.
        manager: usize,
        /// Last index that the snapshot holds.
        index: u64,
        /// What it is.
        store: &'a Store,
    },
    /// An agent took over what a manager sent.
    TookSet {
        /// The agent's host.
        host: &'a NodeId,
        /// Stamp of the set that it has now.
        stamp: Stamp,
    },
    /// A container began to run.
    Started {
        /// Where.
        host: &'a NodeId,
        /// The task, as the host knew it.
        task: &'a Task,
        /// Which attempt of the task on that host, from 0.
        attempt: u32,
    },
    /// A plain container is on a network.
    Joined {
        /// Where it runs.
        host: &'a NodeId,
        /// What holds its place.
        place: &'a TaskId,
        /// Its addresses.
        attachments: &'a [NetworkAttachment],
    },
    /// It is not any more.
    Left {
        /// What held its place.
        place: &'a TaskId,
    },
    /// A container ended, one way or another.
    Ended {
        /// Its task.
        task: &'a TaskId,
    },
}

/// An entry that a manager applied.
#[derive(Clone, Copy, Debug)]
pub struct Applied<'a> {
    /// Which manager.
    pub manager: usize,
    /// Log index.
    pub index: u64,
    /// What tells the entry's bytes from others.
    pub entry: u64,
    /// The store took it; otherwise it refused it, and changed nothing.
    pub accepted: bool,
    /// No other manager applied this index before.
    pub first: bool,
    /// It may be several entries at once; what stood between them is not known.
    pub merged: bool,
    /// The manager's store before.
    pub before: &'a Store,
    /// And after.
    pub after: &'a Store,
    /// Objects that the entry changed.
    pub keys: &'a [Key],
}

/// One thing that managers promise.
pub trait Property: Send {
    /// What it demands, in a few words.
    fn name(&self) -> &'static str;

    /// Takes note of a fact.
    ///
    /// # Errors
    /// The fact must not be; the text says why.
    fn observe(&mut self, fact: &Fact<'_>) -> Result<(), String>;
}

/// A property that did not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{property}: {what}")]
pub struct Violation {
    /// The property's name.
    pub property: &'static str,
    /// What was wrong.
    pub what: String,
}

/// All safety properties at once.
pub struct Checker {
    properties: Vec<Box<dyn Property>>,
}

impl Default for Checker {
    fn default() -> Self {
        Self {
            properties: vec![
                Box::new(Acknowledged::default()),
                Box::new(SameStore::default()),
                Box::new(StateGrows::default()),
                Box::new(StartsOnce::default()),
                Box::new(OnePerSlot::default()),
                Box::new(Addresses::default()),
                Box::new(Unique),
                Box::new(Capacity),
                Box::new(Placement),
                Box::new(Parallelism::default()),
                Box::new(OlderSet::default()),
            ],
        }
    }
}

impl Checker {
    /// Shows a fact to every property.
    ///
    /// # Errors
    /// The first one that did not hold.
    pub fn observe(&mut self, fact: &Fact<'_>) -> Result<(), Violation> {
        for property in &mut self.properties {
            property.observe(fact).map_err(|what| Violation { property: property.name(), what })?;
        }
        Ok(())
    }
}

impl<'a> Fact<'a> {
    /// The entry, if it was applied for the first time: what looks at the cluster's state looks at each index once.
    fn first_applied(&self) -> Option<&Applied<'a>> {
        match self {
            Fact::Applied(applied) if applied.first && applied.accepted => Some(applied),
            _ => None,
        }
    }
}

/// Whether the cluster has given up on what runs on a host.
fn is_lost(store: &Store, host: &NodeId) -> bool {
    store.node(host).is_none_or(|n| matches!(n.status.state(), NodeState::Down | NodeState::Disconnected))
}

/// The slot of a task: its number, or its host for a global service.
fn slot_of(task: &Task) -> String {
    if task.slot > 0 { task.slot.to_string() } else { task.node_id.to_string() }
}
