//! Handshakes between nodes whose certificates are of one root, of several, of now and of another time.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use tokio::net::TcpListener;

use super::*;

const DAY: Duration = Duration::from_secs(86_400);

/// A root: certificate and key, PEM.
struct Root(String, String);

impl Root {
    fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (cert, key) = new_root().unwrap();
        Self(cert, key)
    }

    /// This root, signed by an older one.
    fn signed_by(&self, old: &Root) -> String {
        cross_sign(&old.0, &old.1, &self.0, &self.1).unwrap()
    }

    fn issue(&self, node: &str, role: Role, at: SystemTime) -> (String, String) {
        let own = KeyAndCsr::generate().unwrap();
        let issuer = Issuer::new(&self.0, &self.1).unwrap();
        (issuer.issue(&own.csr_pem, node, "cluster1", role, at, DAY).unwrap(), own.key_pem)
    }

    fn node(&self, node: &str, role: Role) -> TlsContext {
        self.node_at(node, role, SystemTime::now())
    }

    fn node_at(&self, node: &str, role: Role, at: SystemTime) -> TlsContext {
        let (cert, key) = self.issue(node, role, at);
        TlsContext::new(&self.0, &cert, &key).unwrap()
    }
}

/// A handshake: what the client says of it, and the server.
async fn meet(client: &TlsContext, server: &TlsContext, name: &str) -> (Result<(), String>, Option<Caller>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let accepted = async {
        let (stream, _) = listener.accept().await.unwrap();
        server.accept(stream).await.map(|(_, caller)| caller).ok()
    };
    let (connected, caller) = tokio::join!(client.connect(&addr, name), accepted);
    (connected.map(drop).map_err(|error| crate::chain(&error)), caller)
}

fn known(caller: Option<Caller>) -> String {
    match caller {
        Some(Caller::Known(shown)) => shown.identity.node_id,
        other => panic!("not known: {other:?}"),
    }
}

#[track_caller]
fn stale(caller: Option<Caller>, reason: &str) {
    match caller {
        Some(Caller::Stale(_, said)) => assert!(said.contains(reason), "{said:?} does not say {reason:?}"),
        other => panic!("not stale: {other:?}"),
    }
}

#[test]
fn a_certificate_says_how_long_it_holds() {
    let now = crate::clock::unix_seconds();
    let validity = Root::new().node("worker1", Role::Worker).validity();
    assert!((now - 10..=now + 10).contains(&(validity.not_before + 3600)), "{validity:?} at {now}");
    assert!((now - 10..=now + 10).contains(&(validity.not_after - 86_400)), "{validity:?} at {now}");
}

#[tokio::test]
async fn both_ends_learn_who_the_other_is_and_a_foreign_root_is_refused() {
    let root = Root::new();
    let manager = root.node("manager1", Role::Manager);
    let worker = root.node("worker1", Role::Worker);
    let stranger = Root::new().node("worker1", Role::Worker);
    for name in ["manager1", "swarm-manager"] {
        let (connected, caller) = meet(&worker, &manager, name).await;
        assert_eq!((connected, known(caller).as_str()), (Ok(()), "worker1"));
    }
    let (connected, _) = meet(&worker, &manager, "manager2").await;
    assert!(connected.is_err(), "another node's name was accepted");
    let (connected, caller) = meet(&stranger, &manager, "manager1").await;
    assert!(connected.unwrap_err().contains("of a root that this node does not trust"));
    assert_eq!(caller, None);

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let server = tokio::spawn(async move {
        let mut seen = Vec::new();
        for _ in 0..2 {
            let (stream, _) = listener.accept().await.unwrap();
            seen.push(manager.accept(stream).await.unwrap().1);
        }
        seen
    });
    TlsContext::connect_without_certificate(&root.0, &addr, "manager1").await.unwrap();
    fetch_identity(&addr).await.unwrap();
    assert_eq!(server.await.unwrap(), [Caller::Nobody, Caller::Nobody]);
}

#[tokio::test]
async fn a_certificate_of_another_time_is_good_for_nothing_and_says_whose_clock_to_look_at() {
    let root = Root::new();
    let now = SystemTime::now();
    let good = root.node("manager1", Role::Manager);
    let expired = root.node_at("worker1", Role::Worker, now - 3 * DAY);
    let early = root.node_at("worker2", Role::Worker, now + DAY);
    let (connected, caller) = meet(&expired, &good, "manager1").await;
    assert_eq!(connected, Ok(()), "a node that needs another certificate must be able to ask");
    stale(caller, "ran out at");
    let (_, caller) = meet(&early, &good, "manager1").await;
    stale(caller, "one of the two clocks is wrong");
    // An hour is forgiven.
    let (_, caller) = meet(&root.node_at("w", Role::Worker, now + DAY / 25), &good, "manager1").await;
    assert_eq!(known(caller), "w");
    // The other way round, who connects does not believe it.
    let (connected, _) = meet(&good, &expired, "worker1").await;
    assert!(connected.clone().unwrap_err().contains("by this host's clock"), "{connected:?}");
    let (connected, _) = meet(&good, &early, "worker2").await;
    assert!(connected.clone().unwrap_err().contains("does not hold yet"), "{connected:?}");
}

#[tokio::test]
async fn who_trusts_only_an_old_root_follows_the_chain_to_the_new_one_and_is_not_followed() {
    let (first, second, third) = (Root::new(), Root::new(), Root::new());
    let old = first.node("worker1", Role::Worker);
    let (cert, key) = third.issue("manager1", Role::Manager, SystemTime::now());
    let chain = format!("{cert}{}{}", third.signed_by(&second), second.signed_by(&first));
    // After two rotations, that the worker slept through.
    let manager = TlsContext::new(&third.0, &chain, &key).unwrap();
    let (connected, caller) = meet(&old, &manager, "manager1").await;
    assert_eq!(connected, Ok(()));
    stale(caller, "of a root that is not trusted (any more)");
    let (connected, _) = meet(&manager, &old, "worker1").await;
    assert!(connected.is_err(), "a certificate of a root that is gone was taken");

    // While a rotation is under way both are taken, in both directions.
    let both = format!("{}{}", second.0, third.0);
    let middle = TlsContext::new(&both, &chain, &key).unwrap();
    let second_only = second.node("worker2", Role::Worker);
    let (connected, caller) = meet(&second_only, &middle, "manager1").await;
    assert_eq!((connected, known(caller).as_str()), (Ok(()), "worker2"));
    let (connected, caller) = meet(&middle, &second_only, "worker2").await;
    assert_eq!((connected, known(caller).as_str()), (Ok(()), "manager1"));
    assert_eq!(middle.issuer(), Some(digest_of_root(&third.0).unwrap()));
    assert!(was_issued_by(&middle.own(), &third.0) && !was_issued_by(&middle.own(), &second.0));
    // Somebody else's root that signs itself into the chain opens nothing.
    let intruder = Root::new();
    let (cert, key) = intruder.issue("manager1", Role::Manager, SystemTime::now());
    let forged = format!("{cert}{}", second.signed_by(&first));
    let forged = TlsContext::new(&intruder.0, &forged, &key).unwrap();
    let (connected, _) = meet(&old, &forged, "manager1").await;
    assert!(connected.is_err(), "a forged chain was taken");
}

#[test]
fn a_key_can_be_certified_again() {
    let root = Root::new();
    let (cert, key) = root.issue("n", Role::Manager, SystemTime::now());
    let again = KeyAndCsr::again(&key).unwrap();
    let issuer = Issuer::new(&root.0, &root.1).unwrap();
    let next = issuer.issue(&again.csr_pem, "n", "cluster1", Role::Manager, SystemTime::now(), DAY).unwrap();
    assert_eq!(read_certificate(&next).unwrap().key, read_certificate(&cert).unwrap().key);
    TlsContext::new(&root.0, &next, &again.key_pem).unwrap();
    assert!(KeyAndCsr::again("no key").is_err());
}

#[tokio::test]
async fn a_removed_node_is_not_talked_to() {
    let root = Root::new();
    let manager = root.node("manager1", Role::Manager);
    let worker = root.node("worker1", Role::Worker);
    worker.revoke(BTreeSet::from(["manager1".to_owned()]));
    let (connected, _) = meet(&worker, &manager, "swarm-manager").await;
    assert!(connected.clone().unwrap_err().contains("was removed from the cluster"), "{connected:?}");
    worker.revoke(BTreeSet::new());
    assert_eq!(meet(&worker, &manager, "swarm-manager").await.0, Ok(()));
}

#[test]
fn credentials_that_are_none_are_refused() {
    let root = Root::new();
    let (cert, key) = root.issue("n", Role::Worker, SystemTime::now());
    let many = root.0.repeat(17);
    for (roots, chain, key) in [("", &cert, &key), (&root.0, &key, &key), (&many, &cert, &key), (&root.0, &cert, &cert)]
    {
        assert!(TlsContext::new(roots, chain, key).is_err(), "{roots} {chain}");
    }
    let (_, other_key) = root.issue("n", Role::Worker, SystemTime::now());
    assert!(TlsContext::new(&root.0, &cert, &other_key).is_err(), "a key of another certificate");
}

#[test]
fn a_given_root_is_checked() {
    let (root, other) = (Root::new(), Root::new());
    check_root(&root.0, &root.1).unwrap();
    let (leaf, leaf_key) = root.issue("n", Role::Worker, SystemTime::now());
    for (cert, key, why) in [
        (root.0.as_str(), other.1.as_str(), "the key of another root"),
        (leaf.as_str(), leaf_key.as_str(), "a certificate of a node"),
        ("no PEM", root.1.as_str(), "no certificate"),
        (&format!("{}{}", root.0, other.0), root.1.as_str(), "two certificates"),
    ] {
        assert!(check_root(cert, key).is_err(), "{why} was taken for a root");
    }
}
