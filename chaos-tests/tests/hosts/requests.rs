//! Requests that make no sense: refused with a reason, or explained in `service ps`, and nothing changed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_tests::hosts::{Api, Body, Cluster, Freshness, HostError, IMAGE, SOON, ServiceDraft, refused};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

use crate::{binaries, with};

#[tokio::test(flavor = "multi_thread")]
async fn services_that_cannot_be_are_refused() {
    with(Cluster::start(&binaries(), 1, 0), async |cluster| {
        let api = cluster.api(0);
        for name in ["-web", "we b", "web_1/x", &"x".repeat(70)] {
            let created = api.create_service(&ServiceDraft::new(name, IMAGE, 1).build()).await;
            refused(created, 400, "name").with_context(|| format!("service name {name:?}"))?;
        }
        refused(api.create_service(&ServiceDraft::new("web", "no/such:image", 1).build()).await, 404, "No such image")?;
        refused(api.create_service(&ServiceDraft::new("web", "UPPER CASE", 1).build()).await, 400, "")?;
        let mut negative = ServiceDraft::new("web", IMAGE, 1).build();
        negative["Mode"]["Replicated"]["Replicas"] = json!(-1);
        refused(api.create_service(&negative).await, 400, "")?;
        let nonsense = ServiceDraft::new("web", IMAGE, 1).constraint("nonsense").build();
        refused(api.create_service(&nonsense).await, 400, "constraint")?;
        let nowhere = ServiceDraft::new("web", IMAGE, 1).network("nosuch").build();
        refused(api.create_service(&nowhere).await, 404, "nosuch")?;
        ensure!(api.get("/services").await? == json!([]), "a refused service is there");

        api.create_service(&ServiceDraft::new("web", IMAGE, 1).publish(8080, 80).build()).await?;
        refused(api.create_service(&ServiceDraft::new("web", IMAGE, 1).build()).await, 409, "name conflicts")?;
        let taken = ServiceDraft::new("other", IMAGE, 1).publish(8080, 81).build();
        refused(api.create_service(&taken).await, 400, "8080")?;
        refused(api.scale("nosuch", 3).await, 404, "nosuch")?;
        scale_below_zero(&api).await?;
        refused(api.delete("/services/nosuch").await, 404, "nosuch")?;
        let services = api.get("/services").await?;
        ensure!(services.as_array().is_some_and(|all| all.len() == 1), "{services}");
        api.wait_running("web", 1, &[], SOON).await?;
        unplaceable(&api).await
    })
    .await;
}

async fn scale_below_zero(api: &Api) -> Result<()> {
    let mut found = api.get("/services/web").await?;
    let version = found["Version"]["Index"].as_u64().context("no version")?;
    found["Spec"]["Mode"]["Replicated"]["Replicas"] = json!(-1);
    refused(api.post(&format!("/services/web/update?version={version}"), &found["Spec"]).await, 400, "")
}

/// A constraint that no host fits is no error: the task waits and says why.
async fn unplaceable(api: &Api) -> Result<()> {
    let spec = ServiceDraft::new("lost", IMAGE, 1).constraint("node.hostname==nowhere").build();
    api.create_service(&spec).await?;
    api.wait_for("a reason in service ps", SOON, || async {
        let tasks = api.tasks("lost", Freshness::Local).await.map_err(|e| e.to_string())?;
        let explained = tasks.iter().any(|t| t.state == "pending" && t.err.contains("no suitable node"));
        if explained { Ok(()) } else { Err(format!("{tasks:?}")) }
    })
    .await?;
    api.delete("/services/lost").await?;
    Ok(())
}

fn body(bytes: Vec<u8>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// One file of a tar archive.
fn entry(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644\0");
    put(124, &format!("{:011o}\0", content.len()));
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().copied().map(u32::from).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header.extend_from_slice(content);
    header.resize(header.len().next_multiple_of(512), 0);
    header
}

/// What `docker save` writes of an image with one layer, whose digest the configuration names.
fn archive(layer: &[u8], diff_id: &str) -> Vec<u8> {
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/x"]},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": ["bad:latest"], "Layers": ["layer.tar"]}]);
    let mut out = Vec::new();
    for (name, content) in [
        ("config.json", config.to_string().into_bytes()),
        ("layer.tar", layer.to_vec()),
        ("manifest.json", manifest.to_string().into_bytes()),
    ] {
        out.extend(entry(name, &content));
    }
    out.resize(out.len() + 1024, 0);
    out
}

async fn load(api: &Api, bytes: Vec<u8>) -> Result<Value, HostError> {
    api.upload("/images/load", body(bytes), Duration::from_secs(20)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_that_lie_are_refused() {
    with(Cluster::hosts_only(&binaries(), 1), async |cluster| {
        let api = cluster.api(0);
        let mut layer = entry("x", b"content");
        layer.resize(layer.len() + 1024, 0);
        let wrong = format!("sha256:{}", "0".repeat(64));
        let mut escape = entry("../../escaped", b"content");
        escape.resize(escape.len() + 1024, 0);
        let whole = archive(&layer, &wrong);

        refused(load(&api, whole.clone()).await, 400, "")?;
        refused(load(&api, whole[..whole.len() / 2].to_vec()).await, 400, "")?;
        refused(load(&api, b"this is no archive".to_vec()).await, 400, "")?;
        let path = "/images/create?fromSrc=-&repo=bad&tag=latest";
        let escaped = api.upload(path, body(escape), Duration::from_secs(20)).await;
        refused(escaped, 400, "")?;
        ensure!(api.get("/images/json").await? == json!([]), "a refused image is there");
        for up in [cluster.host(0).data_dir(), cluster.host(0).data_dir().join("images")] {
            for dir in up.ancestors().take(4) {
                ensure!(!dir.join("escaped").exists(), "a layer wrote {}", dir.join("escaped").display());
            }
        }
        // The store is of use after all that.
        cluster.load_images().await?;
        let images = api.get("/images/json").await?;
        ensure!(images.as_array().is_some_and(|all| all.len() == 1), "{images}");
        Ok(())
    })
    .await;
}
