//! Daemons that are killed again and again, in the middle of work.

use std::time::Duration;

use anyhow::ensure;
use chaos_tests::hosts::{Cluster, Freshness, IMAGE, SOON, ServiceDraft};

use crate::{binaries, with};

/// Kills of one daemon after the other, while tasks come and go.
const KILLS: usize = 12;

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_kills_ends_in_what_was_asked_for() {
    with(Cluster::start(&binaries(), 3, 1), async |cluster| {
        let api = cluster.api(0);
        api.create_overlay("net").await?;
        api.create_service(&ServiceDraft::new("web", IMAGE, 2).network("net").publish(8080, 80).build()).await?;
        api.wait_running("web", 2, &[], SOON).await?;
        let mut wanted = 2;
        for round in 0..KILLS {
            // Up and down, so that tasks are at every stage of their lives when a daemon dies.
            wanted = if round % 2 == 0 { 12 } else { 3 };
            let writer = cluster.api((round + 1) % 3);
            writer
                .wait_for("scaling between two kills", SOON, || async {
                    writer.scale("web", wanted).await.map_err(|e| e.to_string())
                })
                .await?;
            tokio::time::sleep(Duration::from_millis(40 * (round as u64 % 7))).await;
            let host = cluster.host(round % 4);
            host.kill_daemon()?;
            host.start_daemon()?;
            host.wait_ready().await?;
        }
        cluster.wait_ready(4).await?;
        let count = usize::try_from(wanted)?;
        let tasks = api.wait_running("web", count, &[], SOON).await?;
        cluster.wait_processes(&[0, 1, 2, 3], &tasks).await?;
        let mut slots: Vec<u64> = tasks.iter().map(|t| t.slot).collect();
        slots.dedup();
        ensure!(slots.len() == count, "two tasks of one slot run: {tasks:?}");
        cluster.wait_port(8080).await?;
        // The managers agree on every task, also on those that are still on their way out.
        api.wait_for("the same tasks at each manager", SOON, || async {
            let mut views = Vec::new();
            for index in 0..3 {
                let tasks = cluster.api(index).tasks("web", Freshness::Linearizable).await;
                views.push(tasks.map_err(|e| e.to_string())?);
            }
            if views[0] == views[1] && views[1] == views[2] { Ok(()) } else { Err(format!("{views:?}")) }
        })
        .await?;
        api.delete("/services/web").await?;
        cluster.wait_processes(&[0, 1, 2, 3], &[]).await
    })
    .await;
}
