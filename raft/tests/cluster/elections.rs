//! Who leads, and who must not disturb it: returning members, and members that are patient in different ways.

use std::time::{Duration, Instant};

use raft::{Role, Timing};

use crate::harness::{Cluster, until};

/// The term and the leader, as all of these see them; nothing while they differ.
fn agreed(cluster: &Cluster, members: &[u64]) -> Option<(u64, u64)> {
    let seen = |id: u64| cluster.status(id).leader.map(|leader| (cluster.status(id).term, leader.id));
    let first = seen(members[0])?;
    members.iter().all(|id| seen(*id) == Some(first)).then_some(first)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_cut_off_through_some_elections_changes_no_leader_and_no_term() {
    let mut cluster = Cluster::new();
    cluster.without_streams = true;
    cluster.form(3).await;
    let before = until("one leader", || agreed(&cluster, &[1, 2, 3])).await;
    let (term, leader) = before;
    let away = (1..=3).find(|id| *id != leader).unwrap();
    let stays = (1..=3).find(|id| *id != leader && *id != away).unwrap();

    cluster.cut_off(away);
    // Each of these is a vote that it asked for in vain, of both others.
    let failed = cluster.raft(away).counters().calls_failed;
    until("five elections of one that is alone", || {
        (cluster.raft(away).counters().calls_failed >= failed + 10).then_some(())
    })
    .await;
    assert_ne!(cluster.status(away).role, Role::Leader);
    cluster.write("meanwhile").await;
    assert_eq!(agreed(&cluster, &[leader, stays]), Some(before), "it was disturbed from afar");

    cluster.reconnect(away);
    cluster.has(away, &["meanwhile".into()]).await;
    for item in ["a", "b", "c"] {
        cluster.write(item).await;
    }
    let after = until("one leader", || agreed(&cluster, &[1, 2, 3])).await;
    assert_eq!(after, before, "it disturbed the others on its return");
    for id in [leader, stays] {
        assert_eq!(cluster.raft(id).counters().leader_changes, 1, "at {id} in term {term}");
    }
}

/// One whose host slept finds its election timeout run out when it wakes, with nothing heard for long.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_stood_still_changes_no_leader_and_no_term() {
    let cluster = Cluster::with_voters(3).await;
    let before = until("one leader", || agreed(&cluster, &[1, 2, 3])).await;
    let sleeper = (1..=3).find(|id| *id != before.1).unwrap();
    for _ in 0..3 {
        let asleep = cluster.pause(sleeper).await;
        let since = Instant::now();
        // Well past the longest election timeout.
        until("two seconds of sleep", || (since.elapsed() > Duration::from_secs(2)).then_some(())).await;
        drop(asleep);
        let item = format!("after {:?}", since.elapsed());
        cluster.write(&item).await;
        until("its news", || (cluster.applied(sleeper).last()? == item.as_bytes()).then_some(())).await;
        assert_eq!(until("one leader", || agreed(&cluster, &[1, 2, 3])).await, before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn patient_members_elect_a_leader_and_replace_it() {
    let mut cluster = Cluster::new();
    cluster.timing = Timing::wan();
    cluster.form(3).await;
    cluster.write("before").await;
    let old = cluster.leader().await;
    let lost = Instant::now();
    cluster.kill(old).await;
    let took_over = cluster.write("after").await;
    let took = lost.elapsed();
    assert_ne!(took_over, old);
    // Not before the lease of 3 s, counted from a heartbeat that was at most 0.5 s old, and the least random part.
    assert!(took > Duration::from_millis(4000), "{took:?}: the timing had no effect");
}

/// Hosts may be given another timing one after the other: the cluster works at each step.
#[tokio::test(flavor = "multi_thread")]
async fn members_of_different_patience_work_together() {
    for patient in [1, 2] {
        let mut cluster = Cluster::new();
        for id in 1..=3 {
            cluster.timing = if id <= patient { Timing::wan() } else { Timing::lan() };
            cluster.start(id).await;
            match id {
                1 => cluster.raft(1).bootstrap(cluster.peer(1)).await.unwrap(),
                _ => cluster.join(id).await,
            }
        }
        let mut written = Vec::new();
        for number in 0..20 {
            written.push(format!("item {number}"));
            cluster.write(&written[number]).await;
        }
        let old = cluster.leader().await;
        cluster.kill(old).await;
        written.push("after".into());
        cluster.write("after").await;
        cluster.timing = Timing::lan();
        cluster.start(old).await;
        for id in 1..=3 {
            cluster.has(id, &written).await;
        }
    }
}
