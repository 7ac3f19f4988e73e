//! Hosts that reach only some of the others, and hosts that stand still as a whole.

use anyhow::ensure;
use chaos_tests::hosts::{Cluster, Fault, IMAGE, SOON, ServiceDraft};

use crate::{binaries, with};

/// The smaller half loses its tasks to the larger one, and gives them up when it hears so.
#[tokio::test(flavor = "multi_thread")]
async fn the_half_with_a_quorum_goes_on_and_the_other_follows() {
    with(Cluster::start(&binaries(), 3, 2), async |cluster| {
        let api = cluster.api(0);
        api.create_service(&ServiceDraft::new("web", IMAGE, 5).build()).await?;
        api.wait_running("web", 5, &[], SOON).await?;
        let parted = Fault::Partition(vec![vec![0, 1, 3], vec![2, 4]]);
        let lost: Vec<String> = parted.victims().iter().map(|host| cluster.id(*host).to_owned()).collect();
        cluster.begin(&parted)?;
        let replaced = api.wait_running("web", 5, &lost, SOON).await?;
        ensure!(!cluster.host(4).container_processes().is_empty(), "a task ended because its host was cut off");
        cluster.end(&parted).await?;
        cluster.wait_ready(5).await?;
        cluster.wait_processes(&[0, 1, 2, 3, 4], &replaced).await
    })
    .await;
}

/// A host that hangs as a whole, a manager with the lead, is replaced; awake again, it stops what it had.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_hangs_is_replaced_and_gives_way() {
    with(Cluster::start(&binaries(), 3, 1), async |cluster| {
        let api = cluster.api(0);
        api.create_service(&ServiceDraft::new("web", IMAGE, 4).build()).await?;
        api.wait_running("web", 4, &[], SOON).await?;
        let leader = cluster.leader(0).await?;
        let frozen = Fault::Freeze(leader);
        cluster.begin(&frozen)?;
        let lost = cluster.id(leader).to_owned();
        let witness = cluster.api((leader + 1) % 3);
        let replaced = witness.wait_running("web", 4, std::slice::from_ref(&lost), SOON).await?;
        cluster.end(&frozen).await?;
        cluster.wait_ready_at((leader + 1) % 3, 4).await?;
        cluster.wait_processes(&[0, 1, 2, 3], &replaced).await
    })
    .await;
}
