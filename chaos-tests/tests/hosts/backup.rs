//! A backup taken from a running cluster, and what it brings back. See docs/recovery.md.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use anyhow::{Context, Result, ensure};
use chaos_tests::hosts::{Cluster, IMAGE, SOON, ServiceDraft, TaskView};
use serde_json::json;

use crate::members::wait_managers;
use crate::{binaries, with};

fn identities(tasks: &[TaskView]) -> BTreeSet<(String, String, u64)> {
    tasks.iter().map(|t| (t.id.clone(), t.container.clone(), t.pid)).collect()
}

/// Runs `shoal` on a host, against its own engine.
fn shoal(cluster: &Cluster, index: usize, args: &[&str]) -> Result<Output> {
    let engine = format!("unix://{}", cluster.api(index).socket().display());
    let mut all = vec!["-H", &engine];
    all.extend(args);
    Ok(cluster.host(index).run(&all)?)
}

#[track_caller]
fn check(output: &Output, code: i32, part: &str) -> Result<()> {
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(
        output.status.code() == Some(code) && text.contains(part),
        "{:?} instead of {code}, {part:?}: {text}",
        output.status
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_cluster_goes_back_and_its_tasks_go_on() {
    with(Cluster::start(&binaries(), 3, 1), async |cluster| {
        let api = cluster.api(0);
        api.create_service(&ServiceDraft::new("web", IMAGE, 4).publish(8080, 80).build()).await?;
        api.create_overlay("kept").await?;
        let before = api.wait_running("web", 4, &[], SOON).await?;
        let file = cluster.host(1).data_dir().join("../cluster.bak");
        let file = file.to_str().context("a path")?;

        // Through any manager, with all that was acknowledged through another.
        check(&shoal(cluster, 1, &["system", "backup", file])?, 0, "Wrote")?;
        ensure!(std::fs::metadata(file)?.permissions().mode() & 0o777 == 0o600, "others may read the backup");
        check(&shoal(cluster, 1, &["system", "backup", file])?, 2, "exists already")?;
        check(&shoal(cluster, 3, &["system", "backup", "/nowhere"])?, 3, "not a swarm manager")?;

        // What came later is undone, what was removed comes back.
        api.create_service(&ServiceDraft::new("later", IMAGE, 2).build()).await?;
        api.wait_running("later", 2, &[], SOON).await?;
        api.delete("/networks/kept").await?;
        let version = api.get("/swarm").await?["Version"]["Index"].as_u64().context("a version")?;

        let whole = std::fs::read(file)?;
        let cut = format!("{file}.cut");
        std::fs::write(&cut, &whole[..whole.len() - 1])?;
        check(&shoal(cluster, 2, &["system", "restore", &cut])?, 2, "damaged")?;
        let text = format!("{file}.text");
        std::fs::write(&text, "not a backup")?;
        check(&shoal(cluster, 2, &["system", "restore", &text])?, 2, "not a backup")?;
        ensure!(api.get("/networks/kept").await.is_err(), "a refused file has changed something");

        check(&shoal(cluster, 2, &["system", "restore", file])?, 0, "is restored to revision")?;
        let api = cluster.api(2);
        api.wait_for("the network of the backup", SOON, || async {
            api.get("/networks/kept").await.map(drop).map_err(|e| e.to_string())
        })
        .await?;
        ensure!(api.get("/services/later").await.is_err(), "what came after the backup is still there");
        let after = api.wait_running("web", 4, &[], SOON).await?;
        ensure!(identities(&before) == identities(&after), "{before:?} became {after:?}");
        cluster.wait_processes(&[0, 1, 2, 3], &after).await?;
        let jumped = api.get("/swarm").await?["Version"]["Index"].as_u64().context("a version")?;
        ensure!(jumped >= version + (1 << 20), "the revision went from {version} to {jumped}");

        // The others are managers of the new life by themselves.
        for index in 0..3 {
            wait_managers(&cluster.api(index), 3).await?;
        }
        cluster.api(0).create_overlay("through-the-first").await?;
        cluster.api(1).get("/networks/through-the-first").await?;
        let last = cluster.api(1).wait_running("web", 4, &[], SOON).await?;
        ensure!(identities(&before) == identities(&last), "{before:?} became {last:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_host_takes_the_place_of_the_managers() {
    let made = async {
        let mut cluster = Cluster::hosts_only(&binaries(), 3).await?;
        cluster.init().await?;
        cluster.join(1, false).await?;
        cluster.load_images().await?;
        Ok(cluster)
    };
    with(made, async |cluster| {
        let api = cluster.api(0);
        api.create_service(&ServiceDraft::new("web", IMAGE, 2).constraint("node.role==worker").build()).await?;
        let before = api.wait_running("web", 2, &[], SOON).await?;
        let file = cluster.host(2).data_dir().join("../cluster.bak");
        let file = file.to_str().context("a path")?;
        check(&shoal(cluster, 0, &["system", "backup", file])?, 0, "Wrote")?;
        cluster.host(0).power_off()?;

        let fresh = cluster.api(2);
        fresh.init(&cluster.host(2).address().to_string()).await?;
        check(&shoal(cluster, 2, &["system", "restore", file])?, 2, "the backup is of cluster")?;
        fresh.post("/swarm/leave?force=true", &json!(null)).await?;

        check(&shoal(cluster, 2, &["system", "restore", file])?, 0, "is its first manager")?;
        fresh
            .wait_for("a write", SOON, || async {
                fresh.create_overlay("after").await.map(drop).map_err(|e| e.to_string())
            })
            .await?;
        let id = fresh.node_id().await?;
        ensure!(id == cluster.id(0), "{id} is not the manager that wrote the backup");
        // The worker finds the host that has the place of its manager, and keeps what it runs.
        cluster.wait_ready_at(2, 2).await?;
        let after = fresh.wait_running("web", 2, &[], SOON).await?;
        ensure!(identities(&before) == identities(&after), "{before:?} became {after:?}");
        cluster.wait_processes(&[1], &after).await?;
        fresh.scale("web", 3).await?;
        fresh.wait_running("web", 3, &[], SOON).await?;
        Ok(())
    })
    .await;
}
