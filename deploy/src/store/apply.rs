//! Applies an entry: checks versions and unique keys, then puts or removes. The same on every manager, for ever.

use std::collections::BTreeSet;

use super::{Entry, Held, Key, Store};

/// What an entry changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The objects that were put or removed, in order.
    pub keys: Vec<Key>,
}

/// Why an entry was refused. The store is unchanged; the leader that proposed it computes it again on the new state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// It was computed in another term than that of its place in the log.
    #[error("apply entry: computed in term {computed}, but its log entry has term {log}")]
    Term {
        /// Term in the entry.
        computed: u64,
        /// Term of its log id.
        log: u64,
    },
    /// It was computed on another revision.
    #[error("apply entry: makes revision {entry}, but the store is at {store}")]
    Revision {
        /// Revision in the entry.
        entry: u64,
        /// The store's.
        store: u64,
    },
    /// A change names no object, or holds another than it names, or two changes name the same.
    #[error("apply entry: change {at} is malformed")]
    Malformed {
        /// Position among the changes.
        at: usize,
    },
    /// An object was read at another version.
    #[error("apply entry: {key} was read at version {read}, but is at {found}")]
    Version {
        /// The object.
        key: Key,
        /// Version that the entry was computed on; 0 means that there was none.
        read: u64,
        /// Version in the store; 0 means that there is none.
        found: u64,
    },
    /// A name, port, VNI or address belongs to another object.
    #[error("apply entry: {key} cannot have {what}, it belongs to {holder}")]
    Taken {
        /// The object that wants it.
        key: Key,
        /// What it wants.
        what: String,
        /// The object that has it.
        holder: Key,
    },
}

impl Store {
    /// Applies `entry`, whose log id has the term `raft_term`.
    ///
    /// # Errors
    /// A conflict; then the store is as it was.
    pub fn apply(&mut self, raft_term: u64, entry: &Entry) -> Result<Applied, Conflict> {
        if entry.term != raft_term {
            return Err(Conflict::Term { computed: entry.term, log: raft_term });
        }
        if Some(entry.revision) != self.revision.checked_add(1) {
            return Err(Conflict::Revision { entry: entry.revision, store: self.revision });
        }
        let mut changes: Vec<(Key, Option<Held>)> = Vec::with_capacity(entry.changes.len());
        let mut seen = BTreeSet::new();
        for (at, change) in entry.changes.iter().enumerate() {
            let malformed = Conflict::Malformed { at };
            let Some(key) = change.key() else { return Err(malformed) };
            let object = change.object.as_ref().map(Held::from);
            if object.as_ref().is_some_and(|object| object.key() != key) || !seen.insert(key.clone()) {
                return Err(malformed);
            }
            let found = self.version_of(&key);
            if found != change.read_version {
                return Err(Conflict::Version { key, read: change.read_version, found });
            }
            changes.push((key, object));
        }
        // On a clone, which costs nothing: a key may move between two objects of one entry in any order, so it is
        // looked at only when all are in place.
        let mut next = self.clone();
        for (key, object) in &changes {
            match object {
                Some(object) => {
                    let mut object = object.clone();
                    let mut meta = object.meta();
                    meta.version = entry.revision;
                    object.set_meta(meta);
                    next.put(object);
                }
                None => next.remove(key),
            }
        }
        for (key, object) in &changes {
            if let Some(taken) = object.as_ref().and_then(|object| next.index.taken(object)) {
                return Err(Conflict::Taken { key: key.clone(), what: taken.what, holder: taken.by });
            }
        }
        next.revision = entry.revision;
        next.now = next.now.max(entry.now);
        next.note_released(self, changes.iter().map(|(key, _)| key));
        *self = next;
        Ok(Applied { keys: changes.into_iter().map(|(key, _)| key).collect() })
    }
}
