//! What is made of each kind of silence: that of the gossip, that of the session, and both.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use chaos_tests::hosts::{Cluster, Freshness, IMAGE, SOON, ServiceDraft, TaskView, Transport, rules_unusable};

use crate::{binaries, with};

/// A host whose session alone is silent is Down after this time.
const AGENT_SILENT: Duration = Duration::from_secs(15);

/// Waits until a host has this state and a message with this in it.
async fn wait_status(cluster: &Cluster, index: usize, state: &str, message: &str) -> Result<()> {
    let api = cluster.api(0);
    let what = format!("{} to be {state}, {message:?}", cluster.host(index).name());
    let limit = AGENT_SILENT + SOON;
    api.wait_for(&what, limit, || async {
        let nodes = api.nodes(Freshness::Linearizable).await.map_err(|error| error.to_string())?;
        let node = nodes.iter().find(|node| node["ID"] == cluster.id(index)).ok_or("no such node")?;
        let status = &node["Status"];
        let said = status["Message"].as_str().unwrap_or_default();
        let right =
            status["State"] == state && if message.is_empty() { said.is_empty() } else { said.contains(message) };
        if right { Ok(()) } else { Err(status.to_string()) }
    })
    .await?;
    Ok(())
}

async fn tasks_on_workers(cluster: &Cluster, count: u64) -> Result<Vec<TaskView>> {
    let api = cluster.api(0);
    let web = ServiceDraft::new("web", IMAGE, count).constraint("node.role==worker").publish(8080, 80);
    api.create_service(&web.build()).await?;
    Ok(api.wait_running("web", usize::try_from(count)?, &[], SOON).await?)
}

/// Waits until a request to another host's port is answered by one of these tasks.
async fn wait_served_by(cluster: &Cluster, door: usize, tasks: &[&TaskView]) -> Result<()> {
    let client = cluster.client()?;
    let wanted = || async {
        let answer = client.get(cluster.host(door).at(8080), "/json", Duration::from_secs(1)).await;
        let answer = answer.map_err(|error| error.to_string())?.body;
        let by_one = tasks.iter().any(|task| answer.contains(&task.container[..12]));
        if by_one { Ok(()) } else { Err(answer) }
    };
    cluster.api(0).wait_for("an answer of the host with the silent gossip", SOON, wanted).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_gossip_is_remarked_and_a_dead_host_is_down() {
    if let Some(reason) = rules_unusable() {
        return eprintln!("skipped: {reason}");
    }
    with(Cluster::start(&binaries(), 3, 2), async |cluster| {
        let before = tasks_on_workers(cluster, 4).await?;
        let api = cluster.api(0);
        ensure!(before.iter().any(|task| task.node == cluster.id(4)), "{before:?}");

        cluster.block(4, Transport::Udp)?;
        wait_status(cluster, 4, "ready", "gossip blocked").await?;
        // What the others' gossip took out of their load balancing is back in it, by the managers' word.
        let on_it: Vec<&TaskView> = before.iter().filter(|task| task.node == cluster.id(4)).collect();
        for door in [1, 3] {
            wait_served_by(cluster, door, &on_it).await?;
        }
        // And a write reaches it.
        api.scale("web", 6).await?;
        let more = api.wait_running("web", 6, &[], SOON).await?;
        ensure!(before.iter().all(|task| more.contains(task)), "tasks were replaced: {before:?} {more:?}");
        cluster.unblock()?;
        wait_status(cluster, 4, "ready", "").await?;

        let died = Instant::now();
        cluster.host(4).power_off()?;
        wait_status(cluster, 4, "down", "not reachable").await?;
        ensure!(died.elapsed() < AGENT_SILENT / 2, "a dead host was noticed after {:?}", died.elapsed());
        let lost = cluster.id(4).to_owned();
        let replaced = api.wait_running("web", 6, std::slice::from_ref(&lost), SOON).await?;
        cluster.host(4).power_on()?;
        cluster.host(4).wait_ready().await?;
        cluster.wait_ready(5).await?;
        cluster.wait_processes(&[0, 1, 2, 3, 4], &replaced).await
    })
    .await;
}

/// The session of one host cannot get through, and the agent of the other stands still. Their gossip goes on.
#[tokio::test(flavor = "multi_thread")]
async fn silent_agents_are_down_after_a_while_and_return() {
    if let Some(reason) = rules_unusable() {
        return eprintln!("skipped: {reason}");
    }
    with(Cluster::start(&binaries(), 3, 3), async |cluster| {
        let before = tasks_on_workers(cluster, 6).await?;
        let api = cluster.api(0);
        let (blocked, wedged) = (3, 4);
        let lost = [cluster.id(blocked).to_owned(), cluster.id(wedged).to_owned()];
        ensure!(lost.iter().all(|id| before.iter().any(|task| task.node == *id)), "{before:?}");

        let began = Instant::now();
        cluster.block(blocked, Transport::Tcp)?;
        cluster.host(wedged).hold_agent(true)?;
        wait_status(cluster, blocked, "down", "agent silent").await?;
        wait_status(cluster, wedged, "down", "agent silent").await?;
        let noticed = began.elapsed();
        ensure!(noticed > AGENT_SILENT - Duration::from_secs(1), "called Down after {noticed:?}");
        let replaced = api.wait_running("web", 6, &lost, SOON).await?;
        // The daemon itself is well.
        cluster.api(wedged).get("/info").await?;
        ensure!(!cluster.host(wedged).container_processes().is_empty(), "an agent that stands still stopped a task");

        cluster.unblock()?;
        cluster.host(wedged).hold_agent(false)?;
        cluster.wait_ready(6).await?;
        cluster.wait_processes(&[0, 1, 2, 3, 4, 5], &replaced).await
    })
    .await;
}
