//! A service with a health check: when it is served, what is replaced, and what the API tells of it.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use chaos_tests::hosts::{Api, Cluster, Freshness, IMAGE, SOON, ServiceDraft, TaskView, encode};
use serde_json::{Value, json};

use crate::{binaries, with};

/// Healthy while the file is in its volume.
fn spec(verb: &str) -> Value {
    let mut spec = ServiceDraft::new("web", IMAGE, 1).publish(8080, 80).build();
    let container = &mut spec["TaskTemplate"]["ContainerSpec"];
    container["Mounts"] = json!([{"Type": "volume", "Source": "data", "Target": "/data"}]);
    container["Healthcheck"] = json!({
        "Test": ["CMD", "/shoal", "__whoami", verb, "/data/healthy"],
        "Interval": 300_000_000, "Timeout": 1_000_000_000, "Retries": 2,
    });
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

async fn run(cluster: &mut Cluster, verb: &str) -> Result<()> {
    let api = cluster.api(0);
    let made = api.post("/volumes/create", &json!({"Name": "data"})).await?;
    let healthy = PathBuf::from(made["Mountpoint"].as_str().context("a mountpoint")?).join("healthy");
    api.create_service(&spec(verb)).await?;

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
    wait_state(&api, "running").await?;
    cluster.wait_port(8080).await?;
    let filter = encode(&json!({"health": ["healthy"]}).to_string());
    let listed = api.get(&format!("/containers/json?filters={filter}")).await?;
    let well_one = listed[0]["Id"].as_str().context("an id")?;
    ensure!(was_told(&api, &sick_one, "unhealthy").await? && was_told(&api, well_one, "healthy").await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sick_is_replaced() {
    with(Cluster::start(&binaries(), 1, 0), async |cluster| run(cluster, "check").await).await;
}

/// The same with a check that hangs when all is not well.
#[tokio::test(flavor = "multi_thread")]
async fn a_check_that_hangs_is_a_check_that_fails() {
    with(Cluster::start(&binaries(), 1, 0), async |cluster| run(cluster, "hang").await).await;
}
