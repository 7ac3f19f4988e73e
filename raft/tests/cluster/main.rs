//! Whole members over loopback: elections, restarts, snapshots, membership.

#![allow(clippy::unwrap_used)]

mod elections;
mod harness;
mod pipeline;
mod proposals;
mod recovery;
mod storage;

use std::time::Duration;

use harness::{Cluster, until};
use raft::{BootstrapError, MembershipError, ProposeError, ReadError, Role};

fn items(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|n| format!("item {n}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_member_keeps_what_it_acknowledged() {
    let mut cluster = Cluster::with_voters(1).await;
    let written = items(0..20);
    for item in &written {
        cluster.write(item).await;
    }
    assert!(matches!(cluster.raft(1).bootstrap(cluster.peer(1)).await, Err(BootstrapError::AlreadyMember)));
    cluster.kill(1).await;
    cluster.start(1).await;
    cluster.has(1, &written).await;
    let leader = cluster.leader().await;
    assert!(cluster.raft(leader).linearizable().await.unwrap() > 20);
    assert_eq!(cluster.raft(leader).leads_in().await, Ok(cluster.status(leader).term));
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_proposals_keep_their_order() {
    let cluster = Cluster::with_voters(3).await;
    let raft = cluster.raft(cluster.leader().await);
    let written = items(0..500);
    let mut pending = Vec::new();
    for item in &written {
        pending.push(raft.submit(item.clone().into_bytes()).await.unwrap());
    }
    let mut last = 0;
    for (count, proposal) in pending.into_iter().enumerate() {
        let proposed = proposal.wait().await.unwrap();
        assert!(proposed.index > last, "{} after {last}", proposed.index);
        assert_eq!(proposed.response, (count as u64 + 1).to_le_bytes());
        last = proposed.index;
    }
    for id in 1..=3 {
        cluster.has(id, &written).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_is_counted() {
    let mut cluster = Cluster::with_voters(3).await;
    let leader = cluster.leader().await;
    for item in items(0..10) {
        cluster.write(&item).await;
    }
    let counters = cluster.raft(leader).counters();
    assert_eq!((counters.commit.count(), counters.not_committed), (10, 0));
    assert_eq!(counters.applied, 10);
    assert!(counters.sync.count() >= 10 && counters.log_bytes > 600, "{counters:?}");
    assert!(counters.appends_sent > 0 && counters.entries_sent >= 10 && counters.bytes_sent >= 60, "{counters:?}");
    assert_eq!((counters.elections, counters.leader_changes), (1, 1));
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    let received = until("the follower's entries", || {
        let counters = cluster.raft(follower).counters();
        (counters.applied == 10).then_some(counters)
    })
    .await;
    assert!(received.appends_received > 0 && received.entries_received >= 10 && received.bytes_received >= 60);
    assert_eq!((received.elections, received.leader_changes), (0, 1));
    cluster.kill(leader).await;
    let refused = cluster.raft(follower).propose(b"x".to_vec()).await;
    assert!(matches!(refused, Err(ProposeError::NotLeader { .. })), "{refused:?}");
    assert_eq!(cluster.raft(follower).counters().not_committed, 1);
    cluster.leader().await;
    until("the change to be seen", || (cluster.raft(follower).counters().leader_changes == 2).then_some(())).await;
    until("all to be applied", || (cluster.status(follower).apply_lag() == 0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_leader_is_replaced_and_all_may_restart() {
    let mut cluster = Cluster::with_voters(3).await;
    let mut written = items(0..10);
    for item in &written {
        cluster.write(item).await;
    }
    let old = cluster.leader().await;
    cluster.kill(old).await;
    for item in items(10..20) {
        cluster.write(&item).await;
        written.push(item);
    }
    assert_ne!(cluster.leader().await, old);
    cluster.start(old).await;
    cluster.has(old, &written).await;

    for id in 1..=3 {
        cluster.kill(id).await;
    }
    for id in 1..=3 {
        cluster.start(id).await;
    }
    for id in 1..=3 {
        cluster.has(id, &written).await;
    }
    cluster.write("after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_names_the_leader() {
    let cluster = Cluster::with_voters(2).await;
    let leader = cluster.leader().await;
    let follower = 3 - leader;
    until("the follower to know its leader", || cluster.status(follower).leader).await;
    let expected = Some(cluster.peer(leader));
    let refused = cluster.raft(follower).propose(b"x".to_vec()).await;
    assert_eq!(refused, Err(ProposeError::NotLeader { leader: expected.clone() }));
    let refused = cluster.raft(follower).linearizable().await;
    assert_eq!(refused, Err(ReadError::NotLeader { leader: expected.clone() }));
    let refused = cluster.raft(follower).remove(leader).await;
    assert_eq!(refused, Err(MembershipError::NotLeader { leader: expected }));
    assert_eq!(cluster.status(follower).role, Role::Follower);
    let refused = cluster.raft(leader).propose(vec![0; raft::MAX_PAYLOAD + 1]).await;
    assert!(matches!(refused, Err(ProposeError::TooLarge { .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_learner_gets_a_snapshot() {
    let mut cluster = Cluster::new();
    cluster.snapshot_every = 20;
    cluster.start(1).await;
    cluster.raft(1).bootstrap(cluster.peer(1)).await.unwrap();
    let mut written = items(0..100);
    for item in &written {
        cluster.write(item).await;
    }
    let dir = cluster.dir(1);
    let snapshots = || {
        let names = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("snapshot-")).collect::<Vec<_>>()
    };
    until("a snapshot", || (!snapshots().is_empty()).then_some(())).await;
    cluster.start(2).await;
    cluster.raft(1).add_learner(cluster.peer(2)).await.unwrap();
    cluster.has(2, &written).await;
    let got = std::fs::read_dir(cluster.dir(2))
        .unwrap()
        .any(|entry| entry.unwrap().file_name().into_string().unwrap().starts_with("snapshot-"));
    assert!(got, "the learner has no snapshot");
    assert_eq!(cluster.status(2).role, Role::Learner);
    cluster.raft(1).promote(2).await.unwrap();
    until("the vote", || cluster.status(2).is_voter(2).then_some(())).await;

    // A restart from snapshot and log.
    cluster.write("last").await;
    written.push("last".into());
    for id in [1, 2] {
        cluster.kill(id).await;
    }
    for id in [1, 2] {
        cluster.start(id).await;
    }
    for id in [1, 2] {
        cluster.has(id, &written).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_come_and_go() {
    let mut cluster = Cluster::with_voters(3).await;
    let leader = cluster.leader().await;
    let raft = cluster.raft(leader);
    assert_eq!(raft.promote(9).await, Err(MembershipError::UnknownMember(9)));
    assert_eq!(raft.remove(9).await, Err(MembershipError::UnknownMember(9)));
    let mut stolen = cluster.peer(leader);
    stolen.node_id = "someone-else".into();
    assert!(matches!(raft.set_peer(stolen).await, Err(MembershipError::IdTaken { .. })));

    let gone = (1..=3).find(|id| *id != leader).unwrap();
    let rest = (1..=3).find(|id| *id != leader && *id != gone).unwrap();
    cluster.kill(gone).await;
    until("the silence of the dead", || {
        let silent = cluster.status(leader).heard.get(&gone)?.elapsed();
        (silent > std::time::Duration::from_millis(1500)).then_some(())
    })
    .await;
    // Without the live one, the dead one would be half of the rest.
    assert!(matches!(raft.remove(rest).await, Err(MembershipError::QuorumAtRisk { reachable: 1, needed: 2, .. })));
    raft.remove(gone).await.unwrap();
    assert_eq!(cluster.status(leader).voters.len(), 2);
    raft.remove(rest).await.unwrap();
    assert_eq!(raft.remove(leader).await, Err(MembershipError::LastVoter(leader)));
    cluster.write("alone").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_may_leave() {
    let cluster = Cluster::with_voters(3).await;
    let leader = cluster.leader().await;
    cluster.raft(leader).remove(leader).await.unwrap();
    let next =
        until("another leader", || (1..=3).find(|id| *id != leader && cluster.status(*id).role == Role::Leader)).await;
    cluster.raft(next).propose(b"on".to_vec()).await.unwrap();
    assert_eq!(cluster.status(next).voters.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_handed_over() {
    let cluster = Cluster::with_voters(3).await;
    let leader = cluster.leader().await;
    let successor = (1..=3).find(|id| *id != leader).unwrap();
    until("a heartbeat", || cluster.status(leader).heard.get(&successor).copied()).await;
    cluster.raft(leader).transfer_leadership(successor).await.unwrap();
    assert_eq!(cluster.leader().await, successor);
    cluster.write("on").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_moves_to_another_address() {
    let mut cluster = Cluster::with_voters(3).await;
    let leader = cluster.leader().await;
    let moving = (1..=3).find(|id| *id != leader).unwrap();
    cluster.kill(moving).await;
    cluster.write("while away").await;
    cluster.change_port(moving);
    cluster.start(moving).await;
    let leader = cluster.leader().await;
    cluster.raft(leader).set_peer(cluster.peer(moving)).await.unwrap();
    cluster.has(moving, &["while away".into()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lonely_leader_accepts_nothing() {
    let mut cluster = Cluster::with_voters(3).await;
    cluster.write("before").await;
    let leader = cluster.leader().await;
    for id in (1..=3).filter(|id| *id != leader) {
        cluster.kill(id).await;
    }
    let raft = cluster.raft(leader);
    assert!(matches!(raft.linearizable().await, Err(ReadError::NoQuorum | ReadError::NotLeader { .. })));
    assert!(matches!(raft.leads_in().await, Err(ReadError::NoQuorum | ReadError::NotLeader { .. })));
    let refused = raft.propose(b"x".to_vec()).await;
    assert_eq!(refused, Err(ProposeError::NotLeader { leader: None }));
    raft.shutdown().await;
    assert_eq!(cluster.raft(leader).propose(b"x".to_vec()).await, Err(ProposeError::Stopped));
    assert_eq!(cluster.raft(leader).linearizable().await, Err(ReadError::Stopped));
}

#[tokio::test(flavor = "multi_thread")]
async fn large_entries_and_large_snapshots_arrive() {
    let mut cluster = Cluster::new();
    cluster.snapshot_every = 30;
    cluster.start(1).await;
    cluster.raft(1).bootstrap(cluster.peer(1)).await.unwrap();
    // More than one append request, and less than it takes for a snapshot.
    let mut written: Vec<String> = ["a", "b", "c", "d", "e", "f"].map(|letter| letter.repeat(raft::MAX_PAYLOAD)).into();
    for item in &written {
        cluster.write(item).await;
    }
    cluster.start(2).await;
    cluster.join(2).await;
    cluster.has(2, &written).await;
    // Now a snapshot of more than one chunk, which the third gets.
    for item in items(0..100) {
        cluster.write(&item).await;
        written.push(item);
    }
    cluster.start(3).await;
    cluster.join(3).await;
    cluster.has(3, &written).await;
}

/// Members die and come back while someone writes. What was acknowledged stays, once and in order, and all
/// members have the same.
#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_writes_survive_a_storm() {
    let mut cluster = Cluster::with_voters(3).await;
    cluster.snapshot_every = 50;
    let mut acknowledged: Vec<String> = Vec::new();
    let mut number = 0;
    for round in 0..6u64 {
        let victim = match round % 3 {
            2 => round % 3 + 1,
            _ => cluster.leader().await,
        };
        let raft = cluster.raft(cluster.leader().await);
        let mut pending = Vec::new();
        for _ in 0..40 {
            number += 1;
            let item = format!("storm {number}");
            match raft.submit(item.clone().into_bytes()).await {
                Ok(proposal) => pending.push((item, proposal)),
                Err(error) => assert!(matches!(error, ProposeError::NotLeader { .. }), "{error}"),
            }
        }
        // In the middle of it.
        let answers = tokio::spawn(async move {
            let mut good = Vec::new();
            for (item, proposal) in pending {
                match proposal.wait().await {
                    Ok(_) => good.push(item),
                    Err(ProposeError::OutcomeUnknown | ProposeError::NotLeader { .. }) => {}
                    Err(error) => panic!("{item}: {error}"),
                }
            }
            good
        });
        drop(raft);
        cluster.kill(victim).await;
        let answers = tokio::time::timeout(Duration::from_secs(20), answers).await;
        acknowledged.extend(answers.expect("every proposal is answered").unwrap());
        number += 1;
        let item = format!("storm {number}");
        cluster.write(&item).await;
        acknowledged.push(item);
        cluster.start(victim).await;
    }
    cluster.write("the end").await;
    for id in 1..=3 {
        until("the end", || (cluster.applied(id).last()? == b"the end").then_some(())).await;
    }
    let state = cluster.applied(1);
    for id in 2..=3 {
        assert!(cluster.applied(id) == state, "members 1 and {id} differ");
    }
    let mut kept = state.iter().map(|item| String::from_utf8_lossy(item).into_owned());
    for item in &acknowledged {
        // Each is behind the one before it, so none is lost or swapped.
        assert!(kept.any(|found| found == *item), "{item} is lost or out of order");
    }
    let unique: std::collections::BTreeSet<_> = state.iter().collect();
    assert_eq!(unique.len(), state.len(), "something was applied twice");
}
