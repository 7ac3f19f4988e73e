//! Images without a registry: what one host has, all can run.

use anyhow::{Context, Result, ensure};
use chaos_tests::hosts::{Cluster, Freshness, HostsConfig, IMAGE, SOON, ServiceDraft, image, refused};
use chaos_tests::noise::write_noise;

use crate::{binaries, with};

/// A cluster without any image, whose daemons have these flags.
pub(crate) async fn bare(managers: usize, workers: usize, args: &[&str]) -> Result<Cluster> {
    let mut config = HostsConfig::new(binaries().shoal, managers + workers);
    config.log_level = "info,openraft=warn,node::images=debug".to_owned();
    config.args = args.iter().map(|arg| (*arg).to_owned()).collect();
    let mut cluster = Cluster::hosts_of(&binaries(), &config).await?;
    cluster.init().await?;
    for index in 1..managers + workers {
        cluster.join(index, index < managers).await?;
    }
    cluster.wait_ready(managers + workers).await?;
    Ok(cluster)
}

async fn images_of(cluster: &Cluster, index: usize) -> Result<Vec<String>> {
    let images = cluster.api(index).get("/images/json").await?;
    let ids = images.as_array().context("no list")?.iter().filter_map(|image| image["Id"].as_str());
    Ok(ids.map(str::to_owned).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_host_has_the_image_and_all_run_it() {
    with(bare(3, 2, &[]), async |cluster| {
        // A worker has it; a manager that does not takes the service.
        let id = image::import(&cluster.api(4), cluster.whoami(), IMAGE, &["/shoal"]).await?;
        let api = cluster.api(1);
        api.create_service(&ServiceDraft::new("web", IMAGE, 10).build()).await?;
        let tasks = api.wait_running("web", 10, &[], SOON).await?;
        let nodes: std::collections::BTreeSet<&str> = tasks.iter().map(|task| task.node.as_str()).collect();
        ensure!(nodes.len() == 5, "only {nodes:?} run it");
        for index in 0..5 {
            ensure!(images_of(cluster, index).await? == [id.clone()], "host {index} has something else");
        }
        let service = api.get("/services/web").await?;
        let pinned = service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"].as_str().unwrap_or_default();
        ensure!(pinned.starts_with(&format!("{IMAGE}:latest@sha256:")), "it is not pinned: {pinned}");
        let unknown = api.create_service(&ServiceDraft::new("other", "no/such:image", 1).build()).await;
        refused(unknown, 404, "No host of the cluster has it")?;
        // What runs cannot be removed; what only came for it, it can be when it does not run any more.
        refused(cluster.api(0).delete(&format!("/images/{id}?force=1")).await, 409, "a container is using it")?;
        api.delete("/services/web").await?;
        let path = format!("/images/{id}");
        let first = cluster.api(0);
        first
            .wait_for("the image to be free", SOON, || async { first.delete(&path).await.map_err(|e| e.to_string()) })
            .await?;
        ensure!(images_of(cluster, 0).await?.is_empty(), "it is still there");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_dies_while_it_gives_is_replaced() {
    // Slow enough to be killed in the middle.
    with(bare(1, 4, &["--image-serve-rate", "12m"]), async |cluster| {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("noise");
        write_noise(&file, cluster.whoami(), 12 << 20)?;
        for index in [1, 2] {
            image::import(&cluster.api(index), &file, "big", &["/shoal"]).await?;
        }
        let api = cluster.api(0);
        let draft =
            ServiceDraft::new("big", "big", 3).constraint("node.hostname!=host-2").constraint("node.hostname!=host-3");
        api.create_service(&draft.build()).await?;
        // Whoever of the two gives the layer is killed while it does.
        let gives = |index: &usize| {
            let log = cluster.host(*index).log_tail(2000);
            let given = log.lines().filter(|line| line.contains("a blob is given to another host"));
            let sizes =
                given.filter_map(|line| line.split("size=").nth(1)?.split_whitespace().next()?.parse::<u64>().ok());
            sizes.into_iter().any(|size| size > 1 << 20)
        };
        let victim = api
            .wait_for("a host that gives the layer", SOON, || async {
                [1, 2].into_iter().find(gives).ok_or_else(|| "none".to_owned())
            })
            .await?;
        cluster.host(victim).kill_daemon()?;
        let tasks = api.wait_running("big", 3, &[], SOON).await?;
        ensure!(tasks.iter().all(|task| task.err.is_empty()), "{tasks:?}");
        let all = api.tasks("big", Freshness::Local).await?;
        ensure!(all.len() == 3, "a task had to be tried again: {all:?}");
        cluster.host(victim).start_daemon()?;
        Ok(())
    })
    .await;
}
