//! A service with volumes, a secret and a config: what stays when daemons and tasks go, and what is left behind.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use chaos_tests::hosts::{Api, Cluster, IMAGE, SOON, ServiceDraft, TaskView};
use serde_json::{Value, json};

use crate::{binaries, with};

const SECRET: &str = "nobody else may read this";

async fn volumes(api: &Api) -> Result<Vec<String>> {
    let list = api.get("/volumes").await?;
    let names = list["Volumes"].as_array().context("a list")?.iter();
    Ok(names.map(|volume| volume["Name"].as_str().unwrap_or_default().to_owned()).collect())
}

fn spec(secret: &str, config: &str) -> Value {
    let mut spec = ServiceDraft::new("web", IMAGE, 1).publish(8080, 80).build();
    let container = &mut spec["TaskTemplate"]["ContainerSpec"];
    container["Mounts"] = json!([
        {"Type": "volume", "Source": "data", "Target": "/data", "VolumeOptions": {"Labels": {"of": "web"}}},
        {"Type": "volume", "Target": "/scratch"},
    ]);
    let file = json!({"Name": "key", "UID": "0", "GID": "0", "Mode": 0o400});
    container["Secrets"] = json!([{"SecretID": secret, "SecretName": "key", "File": file}]);
    let file = json!({"Name": "/etc/app/conf", "UID": "7", "GID": "8", "Mode": 0o644});
    container["Configs"] = json!([{"ConfigID": config, "ConfigName": "conf", "File": file}]);
    spec
}

fn mounts_below(dir: &Path) -> Vec<String> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let point = |line: &str| line.split(' ').nth(4).unwrap_or_default().to_owned();
    mounts.lines().map(point).filter(|point| Path::new(point).starts_with(dir)).collect()
}

/// What a process sees at a path.
fn seen_by(task: &TaskView, path: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root{path}", task.pid))
}

/// The only task, and what it must see.
async fn running(api: &Api) -> Result<TaskView> {
    let tasks = api.wait_running("web", 1, &[], SOON).await?;
    let task = tasks.into_iter().next().context("one task")?;
    ensure!(std::fs::read_to_string(seen_by(&task, "/data/kept"))? == "for ever");
    ensure!(std::fs::read_to_string(seen_by(&task, "/run/secrets/key"))? == SECRET);
    let conf = seen_by(&task, "/etc/app/conf");
    let meta = std::fs::metadata(&conf)?;
    ensure!((meta.uid(), meta.gid(), meta.mode() & 0o777) == (7, 8, 0o644));
    ensure!(std::fs::read_to_string(conf)? == "level=3");
    Ok(task)
}

async fn run(cluster: &mut Cluster) -> Result<()> {
    let api = cluster.api(0);
    let create = async |kind: &str, name: &str, data: &str| -> Result<String> {
        let made = api.post(&format!("/{kind}/create"), &json!({"Name": name, "Data": data})).await?;
        Ok(made["ID"].as_str().context("an id")?.to_owned())
    };
    let secret = create("secrets", "key", "bm9ib2R5IGVsc2UgbWF5IHJlYWQgdGhpcw==").await?;
    let config = create("configs", "conf", "bGV2ZWw9Mw==").await?;
    let made = api.post("/volumes/create", &json!({"Name": "data"})).await?;
    let data = PathBuf::from(made["Mountpoint"].as_str().context("a mountpoint")?);
    std::fs::write(data.join("kept"), "for ever")?;
    api.create_service(&spec(&secret, &config)).await?;
    let first = running(&api).await?;
    ensure!(volumes(&api).await?.len() == 2, "{:?}", volumes(&api).await?);
    let private = cluster.host(0).run_dir().canonicalize()?.join("private");
    ensure!(mounts_below(&private) == [private.display().to_string()], "secrets are on a disk");
    for dir in ["agent", "containers"] {
        ensure!(!holds(&cluster.host(0).data_dir().join(dir), SECRET)?, "the secret is in {dir}");
    }

    // The daemon is killed, and its successor goes on with the same container.
    cluster.host(0).kill_daemon()?;
    cluster.host(0).start_daemon()?;
    cluster.host(0).wait_ready().await?;
    cluster.wait_ready(1).await?;
    let same = running(&api).await?;
    ensure!((&same.id, same.pid) == (&first.id, first.pid), "{same:?} was {first:?}");

    // What comes after a container that ended (another task, or without a manager in reach another attempt of this one)
    // has all that it had, but the anonymous volume.
    std::fs::write(seen_by(&same, "/scratch/x"), "")?;
    cluster.host(0).kill_in_container(i32::try_from(same.pid)?)?;
    api.wait_for("another container", SOON, || async {
        let tasks = api.wait_running("web", 1, &[], SOON).await.map_err(|e| e.to_string())?;
        if tasks[0].container == same.container { Err(format!("{tasks:?}")) } else { Ok(()) }
    })
    .await?;
    let next = running(&api).await?;
    ensure!(!seen_by(&next, "/scratch/x").exists());

    // Nothing stays but what has a name.
    let refused = api.delete("/volumes/data").await.expect_err("it is in use").to_string();
    ensure!(refused.contains("volume is in use"), "{refused}");
    api.delete("/services/web").await?;
    api.wait_for("all but the named volume to go", SOON, || async {
        let volumes = volumes(&api).await.map_err(|e| e.to_string())?;
        let mounts = mounts_below(&private);
        if volumes == ["data"] && mounts.is_empty() { Ok(()) } else { Err(format!("{volumes:?} {mounts:?}")) }
    })
    .await?;
    cluster.wait_processes(&[0], &[]).await?;
    ensure!(std::fs::read_dir(cluster.host(0).data_dir().join("containers"))?.next().is_none());
    ensure!(std::fs::read_to_string(data.join("kept"))? == "for ever");
    // Its last container lets go of it after that container's directory is gone.
    api.wait_for("the volume to be nobody's", SOON, || async {
        api.delete("/volumes/data").await.map_err(|e| e.to_string())
    })
    .await?;
    ensure!(!data.exists());
    Ok(())
}

/// Whether a file below holds the text. Logs do not count.
fn holds(dir: &Path, text: &str) -> Result<bool> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let meta = path.symlink_metadata()?;
        if meta.is_dir() {
            if !path.ends_with("log") && !path.ends_with("rootfs") && holds(&path, text)? {
                return Ok(true);
            }
        } else if meta.is_file() && std::fs::read(&path)?.windows(text.len()).any(|part| part == text.as_bytes()) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_and_secrets_stay_as_long_as_they_should() {
    with(Cluster::start(&binaries(), 1, 0), async |cluster| run(cluster).await).await;
}
