//! Agents without their manager, and clusters without any.

use std::time::Duration;

use anyhow::{Context, ensure};
use chaos_tests::hosts::{Cluster, Fault, IMAGE, SOON, ServiceDraft, headless};

use crate::{binaries, with};

/// The long form is `cargo bench -p chaos-tests --bench failover -- --only headless`.
#[tokio::test(flavor = "multi_thread")]
async fn without_managers_everything_goes_on() {
    with(Cluster::start(&binaries(), 1, 3), async |cluster| {
        let seen = headless::survive(cluster, 1, Duration::from_secs(30)).await?;
        println!("{seen:?}");
        ensure!(seen.requests > 10, "{seen:?}");
        // 1.5 s where nothing else runs, which the benchmark measures.
        ensure!(seen.dropped.max(seen.dropped_led) < Duration::from_secs(3), "{seen:?}");
        Ok(())
    })
    .await;
}

/// The manager that a worker is attached to stands still, then wakes up with what it knew: the worker is attached to
/// another one by then, has news from there, and does not go back to the old state.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_leaves_a_silent_manager_and_never_believes_it_again() {
    with(Cluster::start(&binaries(), 3, 1), async |cluster| {
        let witness = cluster.api(0);
        let spec = ServiceDraft::new("web", IMAGE, 2).constraint("node.role==worker").build();
        witness.create_service(&spec).await?;
        let before = witness.wait_running("web", 2, &[], SOON).await?;

        let manager = |log: &str| {
            let line = log.lines().rfind(|line| line.contains("agent::session") && line.contains("session opened"))?;
            (0..3).find(|index| line.contains(cluster.id(*index)))
        };
        let attached = manager(&cluster.host(3).log_tail(400)).context("the worker is attached to nobody")?;
        let frozen = Fault::Freeze(attached);
        cluster.begin(&frozen)?;
        let other = cluster.api((attached + 1) % 3);
        // Only a worker that is attached elsewhere can carry that out and say so.
        other
            .wait_for("a write without the manager", SOON, || async {
                other.scale("web", 3).await.map_err(|e| e.to_string())
            })
            .await?;
        let after = other.wait_running("web", 3, &[], SOON).await?;
        ensure!(before.iter().all(|task| after.contains(task)), "tasks noticed: {before:?} {after:?}");
        let now = manager(&cluster.host(3).log_tail(400));
        ensure!(now != Some(attached), "the worker did not leave the manager that stands still");

        cluster.end(&frozen).await?;
        cluster.wait_ready_at((attached + 1) % 3, 4).await?;
        let settled = other.wait_running("web", 3, &[], SOON).await?;
        ensure!(settled == after, "tasks changed when the manager woke up: {after:?} {settled:?}");
        cluster.wait_processes(&[3], &after).await
    })
    .await;
}
