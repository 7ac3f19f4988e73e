//! What this manager remembers of image content: which of the hosts whose agents are attached to it have which blobs
//! and names, and who was given the right to ask a registry for what nobody has. In memory only; agents tell it again to
//! whichever manager they attach to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use deploy::model::NodeId;
use runtime::image::Digest;

use crate::rpc::pb;

/// Blobs and names that one host may have told of; 1 MiB of memory. What is beyond that is not found through managers.
const MAX_OF_HOST: usize = 20_000;
/// Holders of a blob that one answer names.
const MAX_HOLDERS: usize = 16;
/// A claim that is not renewed within this time is free again. A host that has got what it claimed does not give it up
/// before: by then the managers know what it has.
pub(crate) const CLAIM: Duration = Duration::from_secs(10);
/// When all who have a claim on something have had it for so long, one more gets one: they may be slow by themselves.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// Claims at a time.
const MAX_CLAIMS: usize = 10_000;

/// Who has what. A clone is the same.
#[derive(Clone, Default)]
pub(crate) struct Holdings {
    inner: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    next: u64,
    hosts: BTreeMap<NodeId, Host>,
    claims: BTreeMap<Digest, BTreeMap<NodeId, Claim>>,
}

/// A host's right to ask a registry.
#[derive(Clone, Copy, Debug)]
struct Claim {
    since: Instant,
    until: Instant,
}

#[derive(Default)]
struct Host {
    session: u64,
    blobs: BTreeSet<Digest>,
    names: BTreeMap<String, Digest>,
}

/// A session's part of the holdings: forgotten when it is dropped.
pub(crate) struct Telling {
    holdings: Holdings,
    node: NodeId,
    session: u64,
}

impl Holdings {
    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session of that host begins; what an earlier one told is forgotten.
    pub(crate) fn session(&self, node: NodeId) -> Telling {
        let mut state = self.state();
        state.next += 1;
        let session = state.next;
        state.hosts.insert(node.clone(), Host { session, ..Host::default() });
        Telling { holdings: self.clone(), node, session }
    }

    /// Hosts that have a blob, without the one that asks; from the `turn`th on, so that each answer is another one.
    pub(crate) fn holders(&self, blob: &Digest, asking: &NodeId, turn: usize) -> Vec<NodeId> {
        let state = self.state();
        let first = turn % state.hosts.len().max(1);
        let around = state.hosts.iter().skip(first).chain(state.hosts.iter().take(first));
        around
            .filter(|(node, host)| *node != asking && host.blobs.contains(blob))
            .map(|(node, _)| node.clone())
            .take(MAX_HOLDERS)
            .collect()
    }

    /// What a name stands for, and on how many hosts.
    pub(super) fn meanings(&self, name: &str) -> BTreeMap<Digest, u32> {
        let mut meanings = BTreeMap::new();
        for manifest in self.state().hosts.values().filter_map(|host| host.names.get(name)) {
            *meanings.entry(*manifest).or_insert(0) += 1;
        }
        meanings
    }

    /// Whether that node may ask a registry for a blob, from now on for [`CLAIM`].
    pub(crate) fn claim(&self, blob: Digest, node: &NodeId, now: Instant) -> bool {
        let mut state = self.state();
        if state.claims.len() >= MAX_CLAIMS {
            state.claims.retain(|_, holders| holders.values().any(|claim| claim.until > now));
        }
        // Too many at a time do no harm but to the registry.
        if state.claims.len() >= MAX_CLAIMS && !state.claims.contains_key(&blob) {
            return true;
        }
        let holders = state.claims.entry(blob).or_default();
        holders.retain(|_, claim| claim.until > now);
        if let Some(own) = holders.get_mut(node) {
            own.until = now + CLAIM;
            return true;
        }
        let free = holders.values().all(|claim| now.saturating_duration_since(claim.since) >= PATIENCE);
        if free {
            holders.insert(node.clone(), Claim { since: now, until: now + CLAIM });
        }
        free
    }

    /// That node does not need its claim any more.
    pub(crate) fn release(&self, blob: &Digest, node: &NodeId) {
        let mut state = self.state();
        if let Some(holders) = state.claims.get_mut(blob) {
            holders.remove(node);
            if holders.is_empty() {
                state.claims.remove(blob);
            }
        }
    }
}

impl Telling {
    /// Takes what the host said. What is no digest, or too much, is left out.
    pub(crate) fn tell(&self, said: &pb::ContentHeld) {
        let mut state = self.holdings.state();
        let Some(host) = state.hosts.get_mut(&self.node).filter(|host| host.session == self.session) else { return };
        for blob in said.removed.iter().filter_map(|bytes| digest(bytes)) {
            host.blobs.remove(&blob);
        }
        for name in &said.unnamed {
            host.names.remove(name);
        }
        for blob in said.added.iter().filter_map(|bytes| digest(bytes)) {
            if host.blobs.len() < MAX_OF_HOST {
                host.blobs.insert(blob);
            }
        }
        for named in &said.named {
            // Docker's bound on names, tag included, with room.
            let Some(manifest) = digest(&named.manifest).filter(|_| named.name.len() <= 512) else { continue };
            if host.names.len() < MAX_OF_HOST || host.names.contains_key(&named.name) {
                host.names.insert(named.name.clone(), manifest);
            }
        }
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        let mut state = self.holdings.state();
        if state.hosts.get(&self.node).is_some_and(|host| host.session == self.session) {
            state.hosts.remove(&self.node);
        }
    }
}

fn digest(bytes: &[u8]) -> Option<Digest> {
    <[u8; 32]>::try_from(bytes).ok().map(Digest::from_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(n: u8) -> Digest {
        Digest::from_bytes([n; 32])
    }

    fn held(added: &[u8], removed: &[u8]) -> pb::ContentHeld {
        let bytes = |of: &[u8]| of.iter().map(|n| vec![*n; 32]).collect();
        pb::ContentHeld { added: bytes(added), removed: bytes(removed), ..pb::ContentHeld::default() }
    }

    #[test]
    fn a_host_is_known_by_what_its_last_session_said() {
        let holdings = Holdings::default();
        let [one, two, me] = ["one", "two", "me"].map(NodeId::new);
        let first = holdings.session(one.clone());
        let other = holdings.session(two.clone());
        first.tell(&held(&[1, 2], &[]));
        other.tell(&held(&[1], &[]));
        assert_eq!(holdings.holders(&blob(1), &me, 0), [one.clone(), two.clone()]);
        assert_eq!(holdings.holders(&blob(1), &me, 3), [two.clone(), one.clone()]);
        assert_eq!(holdings.holders(&blob(1), &one, 0), std::slice::from_ref(&two));
        first.tell(&held(&[3], &[1]));
        assert_eq!(holdings.holders(&blob(1), &me, 0), std::slice::from_ref(&two));
        // A later session replaces it, and the end of the earlier one means nothing any more.
        let again = holdings.session(one.clone());
        again.tell(&held(&[4], &[]));
        first.tell(&held(&[5], &[]));
        drop(first);
        assert_eq!(holdings.holders(&blob(3), &me, 0), []);
        assert_eq!(holdings.holders(&blob(5), &me, 0), []);
        assert_eq!(holdings.holders(&blob(4), &me, 0), [one]);
        drop((again, other));
        assert_eq!(holdings.holders(&blob(4), &me, 0), []);
    }

    #[test]
    fn nonsense_is_left_out_and_too_much_is_cut() {
        let holdings = Holdings::default();
        let session = holdings.session(NodeId::new("one"));
        let named = |name: String, bytes: usize| pb::ImageName { name, manifest: vec![7; bytes] };
        session.tell(&pb::ContentHeld {
            added: (0..2 * MAX_OF_HOST).map(|n| [&n.to_be_bytes()[..], &[0; 24]].concat()).collect(),
            removed: vec![vec![1]],
            named: vec![named("a".into(), 32), named("b".into(), 31), named("c".repeat(600), 32)],
            unnamed: vec!["d".into()],
        });
        assert_eq!(holdings.state().hosts[&NodeId::new("one")].blobs.len(), MAX_OF_HOST);
        assert_eq!(holdings.meanings("a"), BTreeMap::from([(blob(7), 1)]));
        assert!(holdings.meanings("b").is_empty() && holdings.meanings(&"c".repeat(600)).is_empty());
    }

    #[test]
    fn one_at_a_time_asks_the_registry() {
        let holdings = Holdings::default();
        let (one, two, now) = (NodeId::new("one"), NodeId::new("two"), Instant::now());
        assert!(holdings.claim(blob(1), &one, now));
        assert!(!holdings.claim(blob(1), &two, now) && holdings.claim(blob(2), &two, now));
        assert!(holdings.claim(blob(1), &one, now + CLAIM / 2));
        assert!(!holdings.claim(blob(1), &two, now + CLAIM), "it was renewed");
        holdings.release(&blob(1), &two);
        assert!(!holdings.claim(blob(1), &two, now + CLAIM), "it is not theirs to give up");
        assert!(holdings.claim(blob(1), &two, now + 2 * CLAIM), "it ran out");
        holdings.release(&blob(1), &two);
        assert!(holdings.claim(blob(1), &one, now));
    }

    #[test]
    fn one_more_asks_where_those_who_do_are_slow() {
        let holdings = Holdings::default();
        let [one, two, three] = ["one", "two", "three"].map(NodeId::new);
        let began = Instant::now();
        let mut granted = Vec::new();
        // All three ask each second, and the registry gives nothing to anybody.
        for second in 0..300 {
            let now = began + Duration::from_secs(second);
            for host in [&one, &two, &three] {
                if holdings.claim(blob(1), host, now) && !granted.iter().any(|(_, known)| known == host) {
                    granted.push((second, host.clone()));
                }
            }
        }
        assert_eq!(granted, [(0, one), (120, two), (240, three)]);
    }
}
