//! From a lost quorum to a cluster of one.

use raft::{JUMP, Role};

use crate::harness::{Cluster, until};
use crate::items;

fn bytes(items: &[String]) -> Vec<Vec<u8>> {
    items.iter().map(|item| item.clone().into_bytes()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_survivor_becomes_a_cluster_with_all_that_it_has() {
    let mut cluster = Cluster::with_voters(3).await;
    // Some of it in a snapshot, some in the log.
    cluster.snapshot_every = 20;
    for id in 1..=3 {
        cluster.kill(id).await;
        cluster.start(id).await;
    }
    let mut written = items(0..50);
    for item in &written {
        cluster.write(item).await;
    }
    for id in 1..=3 {
        cluster.has(id, &written).await;
    }
    let survivor = cluster.leader().await;
    let term = cluster.status(survivor).term;
    for id in (1..=3).filter(|id| *id != survivor) {
        cluster.kill(id).await;
    }
    // Nobody acknowledges this one; it is in the survivor's log all the same.
    let tail = cluster.raft(survivor).submit(b"tail".to_vec()).await.unwrap();
    until("the entry in the log of the survivor", || {
        let status = cluster.status(survivor);
        (status.last_log > status.committed).then_some(())
    })
    .await;
    cluster.kill(survivor).await;
    drop(tail);
    written.push("tail".into());

    let recovered = cluster.recover(survivor, 9).await;
    assert_eq!(recovered.state, bytes(&written));
    let found = recovered.found;
    assert_eq!((found.members.len(), found.last_term), (3, term));
    assert!(found.term >= term && found.last_index > found.committed, "{found:?}");

    cluster.start(9).await;
    assert_eq!(cluster.leader().await, 9);
    let status = cluster.status(9);
    assert!(status.term > found.term + JUMP && status.applied > found.last_index + JUMP, "{status:?}");
    assert_eq!(status.voters, [raft::Peer { node_id: format!("node-{survivor}"), ..cluster.peer(9) }]);
    cluster.has(9, &written).await;
    cluster.write("after").await;
    written.push("after".into());

    // It grows again, and the new members get all of it.
    cluster.start(10).await;
    cluster.join(10).await;
    cluster.has(10, &written).await;
    // And it is a member like any other: it restarts.
    cluster.kill(9).await;
    cluster.start(9).await;
    cluster.has(9, &written).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_were_given_up_do_not_disturb() {
    let mut cluster = Cluster::with_voters(3).await;
    cluster.write("first").await;
    cluster.has(1, &["first".into()]).await;
    for id in 1..=3 {
        cluster.kill(id).await;
    }
    cluster.recover(1, 9).await;
    cluster.start(9).await;
    assert_eq!(cluster.leader().await, 9);
    let before = cluster.status(9);
    // Two of the old three elect a leader of theirs: it speaks to raft id 1, which is nobody now.
    cluster.start(2).await;
    cluster.start(3).await;
    until("a leader among the old ones", || [2, 3].into_iter().find(|id| cluster.status(*id).role == Role::Leader))
        .await;
    cluster.raft(9).propose(b"second".to_vec()).await.unwrap();
    let after = cluster.status(9);
    assert_eq!((after.role, after.term), (Role::Leader, before.term));
    cluster.has(9, &["first".into(), "second".into()]).await;
}
