//! All managers have the same store at the same index.

use std::collections::BTreeMap;

use deploy::store::{Key, Store};

use super::{Fact, Property};

/// Indices that are remembered; a manager that lags further comes back by a snapshot, or is not compared.
const REMEMBERED: usize = 4096;

/// After so many indices, whole stores are compared; between, only what the entry changed.
const WHOLE: u64 = 32;

/// See the file's first line.
#[derive(Default)]
pub struct SameStore {
    /// What the first manager that got there had. A clone of a store costs nothing.
    known: BTreeMap<u64, Store>,
}

impl Property for SameStore {
    fn name(&self) -> &'static str {
        "all managers have the same store at the same index"
    }

    fn observe(&mut self, fact: &Fact<'_>) -> Result<(), String> {
        let (manager, index, store, keys) = match fact {
            Fact::Applied(applied) => {
                let whole = applied.index.is_multiple_of(WHOLE);
                (applied.manager, applied.index, applied.after, Some(applied.keys).filter(|_| !whole))
            }
            Fact::Restored { manager, index, store } => (*manager, *index, *store, None),
            _ => return Ok(()),
        };
        let Some(known) = self.known.get(&index) else {
            self.known.insert(index, store.clone());
            if self.known.len() > REMEMBERED {
                self.known.pop_first();
            }
            return Ok(());
        };
        let same = match keys {
            Some(keys) => {
                (known.revision(), known.now()) == (store.revision(), store.now())
                    && keys.iter().all(|key| same_object(known, store, key))
            }
            None => known == store,
        };
        if !same {
            return Err(format!("manager {manager} has another store than the others at index {index}"));
        }
        Ok(())
    }
}

fn same_object(a: &Store, b: &Store, key: &Key) -> bool {
    match key {
        Key::Cluster => a.cluster() == b.cluster(),
        Key::Node(id) => a.node(id) == b.node(id),
        Key::Service(id) => a.service(id) == b.service(id),
        Key::Task(id) => a.task(id) == b.task(id),
        Key::Network(id) => a.network(id) == b.network(id),
        Key::Secret(id) => a.secret(id) == b.secret(id),
        Key::Config(id) => a.config(id) == b.config(id),
        Key::Registry(id) => a.registry(id) == b.registry(id),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{changed, node, show};
    use super::*;

    #[test]
    fn managers_that_differ_are_found() {
        let before = Store::default();
        let one = changed(&before, |txn| txn.put_node(node("a")));
        let other = changed(&before, |txn| txn.put_node(node("b")));
        let mut property = SameStore::default();
        show(&mut property, &before, &one).unwrap();
        show(&mut property, &before, &one).unwrap();
        assert!(show(&mut property, &before, &other).is_err());
        assert!(property.observe(&Fact::Restored { manager: 2, index: 1, store: &other }).is_err());
    }
}
