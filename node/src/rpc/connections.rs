//! The connections that this node's server holds, by who is at their other end: one who is not to be talked to any more
//! is hung up on, in the middle of whatever was asked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

/// Open connections of known nodes. A clone is the same ones.
#[derive(Clone, Default)]
pub struct Connections {
    open: Arc<Mutex<Open>>,
}

#[derive(Default)]
struct Open {
    next: u64,
    by_number: BTreeMap<u64, (String, CancellationToken)>,
}

impl Connections {
    /// Notes a connection for as long as the answer lives.
    pub(super) fn admit(&self, node_id: String) -> Admitted {
        let end = CancellationToken::new();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let number = open.next;
        open.next += 1;
        open.by_number.insert(number, (node_id, end.clone()));
        Admitted { number, end, open: Arc::clone(&self.open) }
    }

    /// Ends every connection of these nodes; answers how many.
    pub fn close(&self, nodes: &BTreeSet<String>) -> usize {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let theirs = open.by_number.values().filter(|(node, _)| nodes.contains(node));
        theirs.map(|(_, end)| end.cancel()).count()
    }
}

/// A connection that is noted.
pub(super) struct Admitted {
    number: u64,
    pub(super) end: CancellationToken,
    open: Arc<Mutex<Open>>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).by_number.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_connections_of_the_named_nodes_end() {
        let connections = Connections::default();
        let (one, two, other) =
            (connections.admit("n1".into()), connections.admit("n1".into()), connections.admit("n2".into()));
        drop(two);
        assert_eq!(connections.close(&BTreeSet::from(["n1".to_owned()])), 1);
        assert!(one.end.is_cancelled() && !other.end.is_cancelled());
        drop((one, other));
        assert!(connections.open.lock().unwrap().by_number.is_empty());
    }
}
