//! Joins that cannot work: a clear error each, and nothing half-made.

use anyhow::{Result, ensure};
use chaos_tests::hosts::{Cluster, Freshness, HostError, refused};

use crate::{binaries, with};

/// The host is in no cluster and nothing of one is there; the cluster knows its members and nobody else.
async fn unchanged(cluster: &Cluster, index: usize, members: usize) -> Result<()> {
    let info = cluster.api(index).get("/info").await?;
    ensure!(info["Swarm"]["LocalNodeState"] == "inactive", "{}", info["Swarm"]);
    ensure!(info["Swarm"]["NodeID"] == "", "{}", info["Swarm"]);
    ensure!(!cluster.host(index).data_dir().join("identity/membership").exists(), "a membership was written");
    let left = cluster.host(index).leftovers()?;
    ensure!(left.is_empty(), "a failed join left {left:?}");
    let nodes = cluster.api(0).nodes(Freshness::Linearizable).await?;
    ensure!(nodes.len() == members, "{} nodes instead of {members}", nodes.len());
    Ok(())
}

/// The token with one character of one of its parts changed: 2 is the root's digest, 3 the secret.
fn spoilt(token: &str, part: usize) -> String {
    let mut parts: Vec<String> = token.split('-').map(str::to_owned).collect();
    let flipped = if parts[part].ends_with('0') { "1" } else { "0" };
    let cut = parts[part].len() - 1;
    parts[part].replace_range(cut.., flipped);
    parts.join("-")
}

#[tokio::test(flavor = "multi_thread")]
async fn joins_that_are_refused_leave_nothing() {
    with(Cluster::hosts_only(&binaries(), 3), async |cluster| {
        cluster.init().await?;
        let (worker, manager) = cluster.api(0).tokens().await?;
        ensure!(worker != manager && worker.starts_with("SWMTKN-1-"), "{worker} {manager}");
        let (own, remote) = (cluster.host(1).address().to_string(), cluster.host(0).node_address());
        let join = async |remote: &str, token: &str| cluster.api(1).join(&own, remote, token).await;

        let wrong_secret = join(&remote, &spoilt(&worker, 3)).await;
        ensure!(text(&wrong_secret).contains("token"), "{wrong_secret:?}");
        unchanged(cluster, 1, 1).await?;

        let wrong_digest = join(&remote, &spoilt(&worker, 2)).await;
        ensure!(text(&wrong_digest).contains("fingerprint"), "{wrong_digest:?}");
        unchanged(cluster, 1, 1).await?;

        refused(join(&remote, "SWMTKN-2-x").await, 400, "token")?;
        unchanged(cluster, 1, 1).await?;

        // Nobody is there: no such host, and a host that listens to nobody.
        for nobody in ["10.99.0.200:2377".to_owned(), cluster.host(2).node_address()] {
            let unreachable = join(&nobody, &worker).await;
            ensure!(text(&unreachable).contains(&nobody), "{unreachable:?}");
            unchanged(cluster, 1, 1).await?;
        }

        // After all that, the right way works.
        cluster.join(1, false).await?;
        cluster.wait_ready(2).await?;
        let already = "This node is already part of a swarm";
        let (again, init) = (cluster.api(1).join(&own, &remote, &worker).await, cluster.api(1).init(&own).await);
        refused(again, 503, already)?;
        refused(init, 503, already)?;
        let id = cluster.api(1).node_id().await?;
        ensure!(id == cluster.id(1), "a refused join changed the identity");
        let not_manager = "This node is not a swarm manager";
        refused(cluster.api(1).nodes(Freshness::Linearizable).await, 503, not_manager)?;
        Ok(())
    })
    .await;
}

/// What a failed join said; empty when it did not fail.
fn text<T>(done: &Result<T, HostError>) -> String {
    match done {
        Err(HostError::Refused { message, .. }) => message.clone(),
        _ => String::new(),
    }
}
