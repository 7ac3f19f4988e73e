//! A service with a volume, a secret and a health check: what stays, what is replaced, and what is left behind.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use chaos_tests::hosts::{Api, Cluster, Freshness, IMAGE, SOON, ServiceDraft, TaskView, encode};
use serde_json::{Value, json};

use crate::{binaries, with};

const SECRET: &str = "nobody else may read this";

async fn volumes(api: &Api) -> Result<Vec<String>> {
    let list = api.get("/volumes").await?;
    let names = list["Volumes"].as_array().context("a list")?.iter();
    Ok(names.map(|volume| volume["Name"].as_str().unwrap_or_default().to_owned()).collect())
}

/// Healthy while the file is in its volume.
fn spec(secret: &str, verb: &str) -> Value {
    let mut spec = ServiceDraft::new("web", IMAGE, 1).publish(8080, 80).build();
    let container = &mut spec["TaskTemplate"]["ContainerSpec"];
    container["Mounts"] = json!([
        {"Type": "volume", "Source": "data", "Target": "/data", "VolumeOptions": {"Labels": {"of": "web"}}},
        {"Type": "volume", "Target": "/scratch"},
    ]);
    container["Healthcheck"] = json!({
        "Test": ["CMD", "/shoal", "__whoami", verb, "/data/healthy"],
        "Interval": 300_000_000, "Timeout": 1_000_000_000, "Retries": 2,
    });
    let file = json!({"Name": "key", "UID": "0", "GID": "0", "Mode": 0o400});
    container["Secrets"] = json!([{"SecretID": secret, "SecretName": "key", "File": file}]);
    spec
}

/// The task that is wanted, once it is in this state.
async fn wait_state(api: &Api, state: &str) -> Result<TaskView> {
    let found = api
        .wait_for(&format!("a task that is {state}"), SOON, || async {
            let tasks = api.tasks("web", Freshness::Local).await.map_err(|e| e.to_string())?;
            let wanted: Vec<TaskView> = tasks.into_iter().filter(|task| task.desired == "running").collect();
            match &wanted[..] {
                [task] if task.state == state => Ok(task.clone()),
                other => Err(format!("{other:?}")),
            }
        })
        .await?;
    Ok(found)
}

/// Whether it was told, and once, that this container became so.
async fn was_told(api: &Api, container: &str, health: &str) -> Result<bool> {
    let action = format!("health_status: {health}");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let filters = encode(&json!({"event": [action], "container": [container]}).to_string());
    // One line is one object.
    let told = api.get(&format!("/events?since=0&until={}&filters={filters}", now + 1)).await?;
    Ok(told["Action"] == action.as_str() && told["Type"] == "container")
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

async fn run(cluster: &mut Cluster, verb: &str) -> Result<()> {
    let api = cluster.api(0);
    let secret =
        api.post("/secrets/create", &json!({"Name": "key", "Data": "bm9ib2R5IGVsc2UgbWF5IHJlYWQgdGhpcw=="})).await?;
    let secret = secret["ID"].as_str().context("an id")?.to_owned();
    let made = api.post("/volumes/create", &json!({"Name": "data"})).await?;
    let data = PathBuf::from(made["Mountpoint"].as_str().context("a mountpoint")?);
    let healthy = data.join("healthy");
    std::fs::write(data.join("kept"), "for ever")?;
    api.create_service(&spec(&secret, verb)).await?;

    // Not healthy yet: it runs, and nothing leads to it.
    let first = wait_state(&api, "starting").await?;
    api.wait_for("its process", SOON, || async {
        let task = wait_state(&api, "starting").await.map_err(|e| e.to_string())?;
        if task.pid > 0 { Ok(()) } else { Err(format!("{task:?}")) }
    })
    .await?;
    let client = cluster.client()?;
    let door = cluster.host(0).at(8080);
    let answer = client.get(door, "/json", Duration::from_millis(300)).await;
    ensure!(answer.is_err(), "a task that is not healthy answers: {answer:?}");
    std::fs::write(&healthy, "")?;
    let healthy_one = wait_state(&api, "running").await?;
    ensure!(verb == "hang" || healthy_one.id == first.id, "replaced before it was healthy: {healthy_one:?}");
    cluster.wait_port(8080).await?;
    let filter = encode(&json!({"health": ["healthy"]}).to_string());
    let listed = api.get(&format!("/containers/json?filters={filter}")).await?;
    ensure!(listed[0]["Status"].as_str().is_some_and(|status| status.ends_with(" (healthy)")), "{listed}");
    let sick_one = listed[0]["Id"].as_str().context("an id")?.to_owned();
    let shown = api.get(&format!("/containers/{sick_one}/json")).await?;
    let last = shown["State"]["Health"]["Log"].as_array().and_then(|log| log.last()).context("a result")?;
    ensure!((&last["ExitCode"], &last["Output"]) == (&json!(0), &json!("/data/healthy is there\n")), "{last}");
    ensure!(shown["Config"]["Healthcheck"]["Test"][0] == "CMD", "{shown}");
    ensure!(std::fs::read_to_string(seen_by(&healthy_one, "/data/kept"))? == "for ever");
    ensure!(std::fs::read_to_string(seen_by(&healthy_one, "/run/secrets/key"))? == SECRET);
    ensure!(volumes(&api).await?.len() >= 2, "{:?}", volumes(&api).await?);
    let private = cluster.host(0).run_dir().canonicalize()?.join("private");
    ensure!(mounts_below(&private) == [private.display().to_string()], "secrets are on a disk");
    let kept = cluster.host(0).data_dir().join("agent");
    ensure!(!holds(&kept, SECRET)? && !holds(&cluster.host(0).data_dir().join("containers"), SECRET)?);

    // The daemon is killed, and its successor goes on with the same container.
    cluster.host(0).kill_daemon()?;
    cluster.host(0).start_daemon()?;
    cluster.host(0).wait_ready().await?;
    cluster.wait_ready(1).await?;
    let same = wait_state(&api, "running").await?;
    ensure!((&same.id, same.pid) == (&healthy_one.id, healthy_one.pid), "{same:?} was {healthy_one:?}");

    // It falls ill, and another one takes its place, which runs only once it is healthy.
    std::fs::remove_file(&healthy)?;
    api.wait_for("the sick task to have failed", SOON, || async {
        let tasks = api.tasks("web", Freshness::Local).await.map_err(|e| e.to_string())?;
        let sick = tasks.iter().find(|task| task.id == same.id && task.state == "failed");
        sick.filter(|task| task.err.contains("unhealthy container")).map(drop).ok_or_else(|| format!("{tasks:?}"))
    })
    .await?;
    let next = wait_state(&api, "starting").await?;
    ensure!(next.id != same.id);
    std::fs::write(&healthy, "")?;
    let well = wait_state(&api, "running").await?;
    cluster.wait_port(8080).await?;
    ensure!(std::fs::read_to_string(seen_by(&well, "/data/kept"))? == "for ever");
    let filter = encode(&json!({"health": ["healthy"]}).to_string());
    let listed = api.get(&format!("/containers/json?filters={filter}")).await?;
    let well_one = listed[0]["Id"].as_str().context("an id")?;
    ensure!(was_told(&api, &sick_one, "unhealthy").await? && was_told(&api, well_one, "healthy").await?);

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
async fn volumes_stay_and_what_is_sick_is_replaced() {
    with(Cluster::start(&binaries(), 1, 0), async |cluster| run(cluster, "check").await).await;
}

/// The same with a check that hangs when all is not well.
#[tokio::test(flavor = "multi_thread")]
async fn a_check_that_hangs_is_a_check_that_fails() {
    with(Cluster::start(&binaries(), 1, 0), async |cluster| run(cluster, "hang").await).await;
}
