//! Hosts and daemons that end from one moment to the next.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_tests::hosts::{Cluster, Freshness, HostError, IMAGE, SOON, ServiceDraft, TaskView};
use serde_json::json;

use crate::{binaries, with};

/// Ids of tasks, their containers and their processes.
fn identities(tasks: &[TaskView]) -> BTreeSet<(String, String, u64)> {
    tasks.iter().map(|t| (t.id.clone(), t.container.clone(), t.pid)).collect()
}

/// When a process was started, in ticks since boot; nothing when there is none. Tells it from one that got its number.
fn started(pid: u64) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold blanks.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19).map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_worker_is_replaced_and_finds_back() {
    with(Cluster::start(&binaries(), 3, 2), async |cluster| {
        let api = cluster.api(0);
        let spec = ServiceDraft::new("web", IMAGE, 4).constraint("node.role==worker").publish(8080, 80).build();
        api.create_service(&spec).await?;
        let before = api.wait_running("web", 4, &[], SOON).await?;
        ensure!(before.iter().any(|t| t.node == cluster.id(4)), "the last worker has no task: {before:?}");

        cluster.host(4).power_off()?;
        let lost = cluster.id(4).to_owned();
        let after = api.wait_running("web", 4, std::slice::from_ref(&lost), SOON).await?;
        ensure!(after.iter().all(|t| t.node == cluster.id(3)), "tasks on a host that is no worker: {after:?}");
        let node = api.get(&format!("/nodes/{lost}")).await?;
        ensure!(node["Status"]["State"] == "down", "the lost host is not down: {node}");

        cluster.host(4).power_on()?;
        cluster.host(4).wait_ready().await?;
        cluster.wait_ready(5).await?;
        // What ran there before is gone, and nothing runs twice.
        let now = api.wait_running("web", 4, &[], SOON).await?;
        ensure!(identities(&now) == identities(&after), "tasks moved when the host came back: {now:?}");
        // (The old tasks' containers stay for their logs, as with Docker; but nothing of them runs.)
        let running: Vec<String> =
            cluster.host(4).leftovers()?.into_iter().filter(|what| what.contains("process")).collect();
        ensure!(running.is_empty(), "on the host that came back: {running:?}");
        // The host is of use again.
        api.scale("web", 8).await?;
        let spread = api.wait_running("web", 8, &[], SOON).await?;
        ensure!(spread.iter().any(|t| t.node == lost), "no new task on the host that came back: {spread:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loss_of_the_leader_loses_nothing() {
    with(Cluster::start(&binaries(), 3, 0), async |cluster| {
        let api = cluster.api(0);
        api.create_service(&ServiceDraft::new("web", IMAGE, 3).publish(8080, 80).build()).await?;
        api.wait_running("web", 3, &[], SOON).await?;
        let leader = cluster.leader(0).await?;
        let witness = (leader + 1) % 3;
        for n in 0..20 {
            cluster.api(leader).create_overlay(&format!("before-{n}")).await?;
        }

        cluster.host(leader).power_off()?;
        let api = cluster.api(witness);
        // The first write that a survivor takes; until there is a leader again, requests are refused or hang.
        api.wait_for("a write after the loss", SOON, || async {
            match api.create_overlay("after").await {
                Ok(_) => Ok(()),
                // The write whose outcome was not known had been carried out.
                Err(HostError::Refused { status: 409, .. }) => Ok(()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await?;
        let lost = cluster.id(leader).to_owned();
        api.wait_running("web", 3, std::slice::from_ref(&lost), SOON).await?;
        for n in 0..20 {
            api.get(&format!("/networks/before-{n}")).await.context("an acknowledged write is lost")?;
        }

        cluster.host(leader).power_on()?;
        cluster.host(leader).wait_ready().await?;
        cluster.wait_ready_at(witness, 3).await?;
        // It has all that happened meanwhile, and takes writes.
        let back = cluster.api(leader);
        back.wait_for("the news at the old leader", SOON, || async {
            back.get("/networks/after").await.map(drop).map_err(|e| e.to_string())
        })
        .await?;
        back.create_overlay("again").await?;
        cluster.api(witness).get("/networks/again").await?;
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_daemons_killed_at_once_carry_on() {
    with(Cluster::start(&binaries(), 3, 1), async |cluster| {
        let api = cluster.api(0);
        api.create_overlay("net").await?;
        api.create_service(&ServiceDraft::new("web", IMAGE, 6).network("net").publish(8080, 80).build()).await?;
        let before = api.wait_running("web", 6, &[], SOON).await?;
        let births: Vec<(u64, Option<String>)> = before.iter().map(|t| (t.pid, started(t.pid))).collect();
        ensure!(births.iter().all(|(_, birth)| birth.is_some()), "a task has no process: {births:?}");
        let client = cluster.client()?;
        let limit = Duration::from_secs(3);
        cluster.wait_port(8080).await?;

        // Writes go on until the daemons die in the middle of them.
        let stop = AtomicBool::new(false);
        let writer = async {
            let mut acknowledged = Vec::new();
            for n in 0.. {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                match api.post("/configs/create", &json!({"Name": format!("c{n}"), "Data": "eA=="})).await {
                    Ok(_) => acknowledged.push(format!("c{n}")),
                    Err(_) => break,
                }
            }
            acknowledged
        };
        let killer = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let killed: Result<Vec<()>, HostError> = cluster.hosts().iter().map(|host| host.kill_daemon()).collect();
            stop.store(true, Ordering::SeqCst);
            killed
        };
        let (acknowledged, killed) = tokio::join!(writer, killer);
        killed?;
        ensure!(!acknowledged.is_empty(), "no write was acknowledged before the daemons died");

        // Without any daemon, tasks run and are reached: what they need is in the kernel.
        for host in cluster.hosts() {
            let answer = client.get(host.at(8080), "/json", limit).await;
            let answer = answer.with_context(|| format!("port 8080 of {} without daemons", host.name()))?;
            ensure!(answer.status == 200, "{answer:?}");
        }
        for host in cluster.hosts() {
            host.start_daemon()?;
        }
        for host in cluster.hosts() {
            host.wait_ready().await?;
        }
        cluster.wait_ready(4).await?;
        for (index, host) in cluster.hosts().iter().enumerate() {
            let api = host.api();
            // Empty while the daemon takes its membership up.
            let find =
                || async { api.node_id().await.ok().filter(|id| !id.is_empty()).ok_or_else(|| "none".to_owned()) };
            let id = api.wait_for(&format!("the identity of {}", host.name()), SOON, find).await?;
            ensure!(id == cluster.id(index), "{} has another identity", host.name());
        }
        for name in &acknowledged {
            api.get(&format!("/configs/{name}")).await.context("an acknowledged write is lost")?;
        }
        // A mark that only a working brain and working agents pass: everything new runs, everything old is the same.
        api.scale("web", 7).await?;
        let after = api.wait_running("web", 7, &[], SOON).await?;
        ensure!(
            identities(&before).is_subset(&identities(&after)),
            "tasks were replaced\nbefore {:?}\nafter {:?}",
            identities(&before),
            identities(&after)
        );
        for (pid, birth) in births {
            ensure!(started(pid) == birth, "process {pid} is not the one that ran before");
        }
        cluster.wait_port(8080).await?;
        // None ended.
        let all = api.tasks("web", Freshness::Linearizable).await?;
        ensure!(all.len() == 7, "there are other tasks than the seven: {all:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_told_to_stop_leaves_its_tasks() {
    with(Cluster::start(&binaries(), 1, 0), async |cluster| {
        let api = cluster.api(0);
        api.create_service(&ServiceDraft::new("web", IMAGE, 2).build()).await?;
        let before = api.wait_running("web", 2, &[], SOON).await?;
        let status = cluster.host(0).stop_daemon().await?.context("there was no daemon")?;
        ensure!(status.success(), "the daemon ended with {status}");
        ensure!(before.iter().all(|t| started(t.pid).is_some()), "a task ended with the daemon");
        cluster.host(0).start_daemon()?;
        cluster.host(0).wait_ready().await?;
        cluster.wait_ready(1).await?;
        let after = api.wait_running("web", 2, &[], SOON).await?;
        ensure!(identities(&before) == identities(&after), "tasks were replaced: {before:?} {after:?}");
        Ok(())
    })
    .await;
}
