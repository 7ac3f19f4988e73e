//! A new root of trust takes the place of the old one.
//!
//! While a rotation is under way every node trusts both roots and gets a certificate of the new one. It ends when every
//! host that is Ready has shown such a certificate: then the old root is trusted no more, its key is forgotten, and the
//! join tokens change. Hosts that are not there do not hold it up: what they trust has signed the new root, so they can
//! follow it when they are back. Everything is in the store, so it goes on under another leader.

use std::time::Duration;

use crate::cx::Cx;
use crate::model::{Cluster, NodeState, RetiredRoot, format_id};
use crate::store::{Store, Txn};

/// A node may renew its certificate so long after it ran out; managers refuse it later.
pub const LATE_RENEWAL: Duration = Duration::from_secs(90 * 24 * 3600);
/// Roots of before that are remembered; the oldest goes first.
const RETIRED: usize = 8;

/// Ends the rotation that is under way, if it is time, and forgets the roots that nobody can come back with.
pub(crate) fn reconcile(cx: &mut Cx<'_>, txn: &mut Txn) {
    let Some(cluster) = txn.cluster().cloned() else { return };
    let mut next = Cluster::clone(&cluster);
    let now = cx.now;
    next.status.retired_roots.retain(|root| root.until > now);
    if is_complete(txn) {
        finish(cx, &mut next);
    }
    if next != *cluster {
        txn.put_cluster(next);
    }
}

/// Whether every host that is there uses a certificate of the new root.
fn is_complete(store: &Store) -> bool {
    let rotation = store.cluster().and_then(|cluster| cluster.status.root_rotation.as_ref());
    let Some(rotation) = rotation else { return false };
    let mut there = store.nodes().filter(|node| node.status.state() == NodeState::Ready).peekable();
    there.peek().is_some()
        && there.all(|node| node.certificate.as_ref().is_some_and(|shown| shown.root == rotation.next_digest))
}

fn finish(cx: &mut Cx<'_>, cluster: &mut Cluster) {
    let life = cluster.spec.node_cert_life().max(Duration::from_nanos(cluster.status.longest_cert_life_ns));
    let status = &mut cluster.status;
    let Some(rotation) = status.root_rotation.take() else { return };
    let old = std::mem::replace(&mut status.root_ca, rotation.next);
    let retired = RetiredRoot {
        cert_pem: old.cert_pem,
        digest: rotation.digest,
        successor_pem: rotation.cross_signed_pem,
        until: cx.now.plus(life).plus(LATE_RENEWAL),
    };
    status.retired_roots.insert(0, retired);
    status.retired_roots.truncate(RETIRED);
    status.root_digest = rotation.next_digest;
    // The digest in the tokens is another one from here on; with fresh secrets an old one opens nothing either way.
    status.worker_token = format_id((cx.ids)());
    status.manager_token = format_id((cx.ids)());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cx::Limits;
    use crate::model::{Node, NodeCertificate, NodeId, RootCa, RootRotation, Timestamp};

    fn pass(store: &Store, second: u64) -> Store {
        let mut next = 1000;
        let mut ids = || {
            next += 1;
            next
        };
        let now = Timestamp::from_millis(second * 1000);
        let mut txn = Txn::new(store, now);
        reconcile(&mut Cx { now, ids: &mut ids, limits: Limits::default() }, &mut txn);
        txn.into_store()
    }

    fn root(name: &str) -> RootCa {
        RootCa { cert_pem: format!("cert {name}"), key_pem: format!("key {name}") }
    }

    /// A cluster in a rotation from root a to root b, with nodes of these states and roots.
    fn rotating(nodes: &[(&str, NodeState, &str)]) -> Store {
        let mut cluster = Cluster::default();
        cluster.status.root_ca = root("a");
        cluster.status.worker_token = "worker".into();
        cluster.status.manager_token = "manager".into();
        cluster.status.root_rotation = Some(RootRotation {
            next: root("b"),
            next_digest: "digest b".into(),
            digest: "digest a".into(),
            cross_signed_pem: "b by a".into(),
            ..RootRotation::default()
        });
        let mut txn = Txn::new(&Store::default(), Timestamp::from_millis(1000));
        txn.put_cluster(cluster);
        for (id, state, root) in nodes {
            let mut node = Node { id: NodeId::new(*id), ..Node::default() };
            node.status.set_state(*state);
            node.certificate = Some(NodeCertificate { root: format!("digest {root}"), ..NodeCertificate::default() });
            txn.put_node(node);
        }
        txn.into_store()
    }

    #[track_caller]
    fn check(nodes: &[(&str, NodeState, &str)], ends: bool) {
        let store = pass(&rotating(nodes), 5);
        let status = &store.cluster().unwrap().status;
        assert_eq!(status.root_rotation.is_none(), ends, "{nodes:?}");
        assert_eq!(status.root_ca.cert_pem, if ends { "cert b" } else { "cert a" }, "{nodes:?}");
        assert_eq!(status.worker_token == "worker", !ends, "{nodes:?}");
    }

    #[test]
    fn it_ends_when_every_host_that_is_there_has_a_new_certificate() {
        use NodeState::{Down, Ready, Unknown};
        check(&[("m", Ready, "a"), ("w", Ready, "b")], false);
        check(&[("m", Ready, "b"), ("w", Ready, "b")], true);
        check(&[("m", Ready, "b"), ("w", Down, "a"), ("x", Unknown, "a")], true);
        check(&[("m", Ready, "b"), ("w", Ready, "a"), ("x", Down, "a")], false);
        check(&[("m", Down, "a"), ("w", Down, "a")], false);
    }

    #[test]
    fn the_old_root_is_remembered_without_its_key_until_nobody_can_come_back_with_it() {
        let store = pass(&rotating(&[("m", NodeState::Ready, "b")]), 5);
        let status = store.cluster().unwrap().status.clone();
        let [retired] = status.retired_roots.as_slice() else { panic!("{:?}", status.retired_roots) };
        assert_eq!((retired.cert_pem.as_str(), retired.successor_pem.as_str()), ("cert a", "b by a"));
        assert_eq!((status.root_digest.as_str(), retired.digest.as_str()), ("digest b", "digest a"));
        assert!(!format!("{status:?}").contains("key a"));
        // 90 days of life and 90 of grace.
        let days = |days: u64| days * 24 * 3600;
        assert_eq!(pass(&store, days(180)).cluster().unwrap().status.retired_roots.len(), 1);
        assert!(pass(&store, days(180) + 6).cluster().unwrap().status.retired_roots.is_empty());
    }
}
