//! Many appends in flight, and what becomes of them when a member stands still, dies, disagrees or stops.

use std::collections::BTreeSet;
use std::time::Duration;

use raft::{MAX_PAYLOAD, Pending, ProposeError, RaftId, Timing};

use crate::harness::{Cluster, PATIENCE, until};
use crate::items;

/// Queues items at the leader.
async fn submit(cluster: &Cluster, leader: RaftId, items: &[String]) -> Vec<Pending> {
    let mut pending = Vec::new();
    for item in items {
        pending.push(cluster.raft(leader).submit(item.clone().into_bytes()).await.unwrap());
    }
    pending
}

async fn all_applied(pending: Vec<Pending>) {
    for proposal in pending {
        tokio::time::timeout(PATIENCE, proposal.wait()).await.expect("an answer").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_may_stand_still_or_die_in_the_middle() {
    let mut cluster = Cluster::with_voters(3).await;
    let leader = cluster.leader().await;
    let slow = (1..=3).find(|id| *id != leader).unwrap();
    let written = items(0..900);
    let mut pending = submit(&cluster, leader, &written[..100]).await;

    let paused = cluster.pause(slow).await;
    let failed = || cluster.raft(leader).counters().calls_failed;
    let before = failed();
    pending.extend(submit(&cluster, leader, &written[100..300]).await);
    until("the leader to give up on what stands still", || (failed() > before).then_some(())).await;
    pending.extend(submit(&cluster, leader, &written[300..500]).await);
    all_applied(pending).await;
    drop(paused);
    cluster.has(slow, &written[..500]).await;

    let pending = submit(&cluster, leader, &written[500..700]).await;
    cluster.kill(slow).await;
    let more = submit(&cluster, leader, &written[700..]).await;
    all_applied(pending).await;
    all_applied(more).await;
    cluster.start(slow).await;
    for id in 1..=3 {
        cluster.has(id, &written).await;
    }
    assert_eq!(cluster.leader().await, leader, "nobody had a reason to stand for election");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deposed_leaders_tail_gives_way_in_the_middle_of_a_pipeline() {
    let mut cluster = Cluster::with_voters(3).await;
    let mut written = items(0..20);
    let deposed = cluster.leader().await;
    all_applied(submit(&cluster, deposed, &written).await).await;
    for id in 1..=3 {
        cluster.has(id, &written).await;
    }

    // A tail that nobody else has, and that was never acknowledged.
    let others: Vec<RaftId> = (1..=3).filter(|id| *id != deposed).collect();
    for id in &others {
        cluster.kill(*id).await;
    }
    let last = cluster.status(deposed).last_log;
    let lost = submit(&cluster, deposed, &items(1000..1050)).await;
    until("the tail", || (cluster.status(deposed).last_log >= last + 50).then_some(())).await;
    cluster.kill(deposed).await;
    drop(lost);

    for id in &others {
        cluster.start(*id).await;
    }
    let leader = cluster.leader().await;
    written.extend(items(20..40));
    all_applied(submit(&cluster, leader, &written[20..]).await).await;
    let rest = items(40..640);
    let pending = submit(&cluster, leader, &rest[..300]).await;
    cluster.start(deposed).await;
    let more = submit(&cluster, leader, &rest[300..]).await;
    all_applied(pending).await;
    all_applied(more).await;
    written.extend(rest);
    for id in 1..=3 {
        cluster.has(id, &written).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_and_small_entries_share_a_pipeline() {
    // Its entries keep a slow machine busy for longer than members on a LAN wait for their leader.
    let mut cluster = Cluster::new();
    cluster.timing = Timing::wan();
    cluster.form(3).await;
    let leader = cluster.leader().await;
    let sized = |n: u32, size: usize| format!("{n}{}", "x".repeat(size - n.to_string().len()));
    let written: Vec<String> = (0..32)
        .map(|n| match n % 8 {
            0 => sized(n, MAX_PAYLOAD),
            4 => sized(n, MAX_PAYLOAD - 1),
            _ => sized(n, 200),
        })
        .collect();
    let late = (1..=3).find(|id| *id != leader).unwrap();
    let pending = submit(&cluster, leader, &written[..6]).await;
    cluster.kill(late).await;
    let more = submit(&cluster, leader, &written[6..]).await;
    all_applied(pending).await;
    all_applied(more).await;
    // It has to be sent more than fits into a window.
    cluster.start(late).await;
    for id in 1..=3 {
        cluster.has(id, &written).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_may_stop_with_requests_in_flight() {
    let mut cluster = Cluster::with_voters(3).await;
    let leader = cluster.leader().await;
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    let first = items(0..300);
    let pending = submit(&cluster, leader, &first).await;
    cluster.raft(follower).shutdown().await;
    all_applied(pending).await;
    cluster.kill(follower).await;
    cluster.start(follower).await;
    cluster.has(follower, &first).await;

    let second = items(300..600);
    let pending = submit(&cluster, leader, &second).await;
    let stopping = cluster.raft(leader);
    let stopped = tokio::spawn(stopping.shutdown());
    let mut acknowledged = first;
    for (item, proposal) in second.iter().zip(pending) {
        match tokio::time::timeout(PATIENCE, proposal.wait()).await.expect("an answer") {
            Ok(_) => acknowledged.push(item.clone()),
            Err(ProposeError::OutcomeUnknown | ProposeError::NotLeader { .. }) => {}
            Err(error) => panic!("{item}: {error}"),
        }
    }
    tokio::time::timeout(PATIENCE, stopped).await.expect("the end").unwrap();
    assert!(matches!(cluster.raft(leader).submit(b"x".to_vec()).await, Err(ProposeError::Stopped)));
    cluster.kill(leader).await;
    let successor = cluster.leader().await;
    cluster.start(leader).await;
    cluster.write("last").await;
    until("the last write", || cluster.applied(successor).last().filter(|item| *item == b"last").map(|_| ())).await;
    let state: Vec<String> =
        cluster.applied(successor).into_iter().map(|item| String::from_utf8(item).unwrap()).collect();
    let kept: BTreeSet<&String> = state.iter().collect();
    assert_eq!(kept.len(), state.len(), "nothing is applied twice");
    assert!(acknowledged.iter().all(|item| kept.contains(item)), "what was acknowledged is kept");
    for id in 1..=3 {
        cluster.has(id, &state).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_without_append_streams_are_asked_one_by_one() {
    let mut cluster = Cluster::new();
    cluster.without_streams = true;
    cluster.form(3).await;
    let leader = cluster.leader().await;
    let written = items(0..200);
    all_applied(submit(&cluster, leader, &written).await).await;
    for id in 1..=3 {
        cluster.has(id, &written).await;
    }
    // Found out once for each member and session, not again and again.
    let failed = cluster.raft(leader).counters().calls_failed;
    assert!(failed < 30, "{failed} calls failed");
    let late = (1..=3).find(|id| *id != leader).unwrap();
    cluster.kill(late).await;
    cluster.without_streams = false;
    cluster.start(late).await;
    tokio::time::timeout(Duration::from_secs(30), cluster.write("after the upgrade")).await.unwrap();
}
