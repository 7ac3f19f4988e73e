//! A cluster without any manager: what must go on, what must happen by itself, and what must not when they are back.
//! A test tells it in short, a benchmark for as long as one likes.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use futures_util::future::try_join_all;
use futures_util::stream::FuturesOrdered;
use tokio::time::MissedTickBehavior;

use super::{Client, Cluster, IMAGE, SOON, ServiceDraft, TaskView, encode};

/// Between two requests.
const LOOK: Duration = Duration::from_millis(20);
/// Between two rounds of requests to all hosts.
const ROUND: Duration = Duration::from_secs(1);
/// A request to a task that asks another one takes so long at the most.
const ANSWER: Duration = Duration::from_secs(4);
/// A request that took longer went astray at first: a lost first packet is sent again after a second, and then led to somebody
/// else.
const ASTRAY: Duration = Duration::from_millis(950);
/// Requests in a row that must succeed before a dead host counts as dropped: by chance, none of them would meet it.
const IN_A_ROW: usize = 30;
/// Requests of one host that are under way: as many as are begun while one of them goes astray, and more.
const UNANSWERED: usize = 200;
/// Between the beginnings of two of them.
const PACE: Duration = Duration::from_millis(40);
/// Tasks a host has of the service that is asked, and of the one that asks.
const EACH: usize = 2;
/// Where the service that asks is reached.
const DOOR: u16 = 8081;

/// What was seen of a cluster without managers.
#[derive(Debug, Clone)]
pub struct Seen {
    /// How long there was no manager.
    pub headless: Duration,
    /// From a task's end to its next attempt's process.
    pub restarted: Duration,
    /// From a host's death to the beginning of the last request that failed or was led there at first, by any of the living
    /// hosts; zero if none was. A request that goes astray takes seconds to fail, and others are made meanwhile.
    pub dropped: Duration,
    /// The same of another host that dies when there are managers again.
    pub dropped_led: Duration,
    /// Requests by name, through a virtual address, outside of that time. None of them failed.
    pub requests: usize,
    /// From the managers' boot to the replacement of what the dead host had.
    pub whole_again: Duration,
}

/// A process that was seen, and when it was started: its number may be given again.
type Process = (i32, String);

fn birth(pid: i32) -> Option<Process> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold blanks.
    Some((pid, stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.to_owned()))
}

fn processes(cluster: &Cluster, hosts: &[usize]) -> BTreeSet<Process> {
    hosts.iter().flat_map(|host| cluster.host(*host).container_processes()).filter_map(birth).collect()
}

/// Takes all managers of a cluster away for so long. The hosts behind them, three at least, are its workers; the last
/// one dies meanwhile.
///
/// # Errors
/// Says what did not hold.
pub async fn survive(cluster: &Cluster, managers: usize, headless: Duration) -> Result<Seen> {
    let (api, all) = (cluster.api(0), cluster.hosts().len());
    let workers: Vec<usize> = (managers..all).collect();
    let [living @ .., dying] = workers.as_slice() else { unreachable!("a cluster with workers") };
    ensure!(living.len() >= 2, "two workers must be left");
    let count = EACH * workers.len();
    api.create_overlay("net").await?;
    let spec = |name: &str| ServiceDraft::new(name, IMAGE, count as u64).network("net").constraint("node.role==worker");
    api.create_service(&spec("web").build()).await?;
    api.create_service(&spec("probe").publish(DOOR, 80).build()).await?;
    let web = api.wait_running("web", count, &[], SOON).await?;
    api.wait_running("probe", count, &[], SOON).await?;
    cluster.wait_port(DOOR).await?;
    let client = cluster.client()?;
    for host in &workers {
        wait_answers(cluster, &client, *host, 1).await?;
    }

    let began = Instant::now();
    for manager in 0..managers {
        cluster.host(manager).power_off()?;
    }
    let mut requests = ask_all(cluster, &client, &workers).await.context("right after the managers' loss")?;

    // A task ends.
    let victim = web.iter().find(|task| task.node == cluster.id(living[0])).context("a task on the first worker")?;
    let before = processes(cluster, &workers);
    let ended = Instant::now();
    cluster.host(living[0]).kill_in_container(i32::try_from(victim.pid)?)?;
    let restarted = loop {
        let now = processes(cluster, &workers);
        if now.len() == before.len() && now != before {
            break ended.elapsed();
        }
        ensure!(ended.elapsed() < SOON, "a task that ended was not started again: {} of {}", now.len(), before.len());
        tokio::time::sleep(LOOK).await;
    };
    let others = |all: &BTreeSet<Process>| all.iter().filter(|(pid, _)| i64::from(*pid) != victim.pid as i64).count();
    let kept = processes(cluster, &workers).intersection(&before).count();
    ensure!(kept == others(&before), "other tasks were touched: {kept} of {} are left", others(&before));

    // A host dies.
    let dropped = death(cluster, &client, living, *dying).await.context("after the death of a host")?;

    // The rest of the time.
    let running = processes(cluster, living);
    while began.elapsed() < headless {
        requests += ask_all(cluster, &client, living)
            .await
            .with_context(|| format!("{} s without managers", began.elapsed().as_secs()))?;
        tokio::time::sleep(ROUND).await;
    }
    ensure!(processes(cluster, living) == running, "tasks ended or began while nothing happened");
    let without = began.elapsed();

    // The managers are back.
    let back = Instant::now();
    for manager in 0..managers {
        cluster.host(manager).power_on()?;
    }
    for manager in 0..managers {
        cluster.host(manager).wait_ready().await?;
    }
    cluster.wait_ready_at(0, all - 1).await?;
    let lost = cluster.id(*dying).to_owned();
    let after = api.wait_running("web", count, std::slice::from_ref(&lost), SOON).await?;
    api.wait_running("probe", count, std::slice::from_ref(&lost), SOON).await?;
    let whole_again = back.elapsed();
    let now = processes(cluster, living);
    ensure!(running.is_subset(&now), "tasks were started again because managers came back");
    check_same_tasks(&web, &after, &lost, victim)?;
    for host in living {
        wait_answers(cluster, &client, *host, IN_A_ROW).await.context("with managers again")?;
    }
    let [asking, .., next] = living else { unreachable!("two workers are left") };
    let dropped_led = death(cluster, &client, &[*asking], *next).await.context("after a death under managers")?;
    Ok(Seen { headless: without, restarted, dropped, dropped_led, requests, whole_again })
}

/// Lets a host die, and lets others ask from that moment on; answers how long after it the last request was begun that
/// went astray.
async fn death(cluster: &Cluster, client: &Client, living: &[usize], dying: usize) -> Result<Duration> {
    let dead = Instant::now();
    // To the others it is dead without its cable. Killing what it runs takes a while, in which nobody would be asked.
    cluster.host(dying).link_down()?;
    let failures = try_join_all(living.iter().map(|host| last_failure(cluster, client, *host))).await;
    cluster.host(dying).power_off()?;
    let last = failures?.into_iter().flatten().max();
    Ok(last.map_or(Duration::ZERO, |last| last.saturating_duration_since(dead)))
}

/// The tasks of living hosts are those from before, the one that ended with another container.
fn check_same_tasks(before: &[TaskView], after: &[TaskView], lost: &str, victim: &TaskView) -> Result<()> {
    for task in before.iter().filter(|task| task.node != lost) {
        let now = after.iter().find(|now| now.id == task.id).with_context(|| format!("{task:?} was replaced"))?;
        let same = now.container == task.container;
        ensure!(same != (task.id == victim.id), "{task:?} has become {now:?}");
    }
    Ok(())
}

/// Asks one task of each host for the service's name; each must answer.
async fn ask_all(cluster: &Cluster, client: &Client, hosts: &[usize]) -> Result<usize> {
    for host in hosts {
        ask(cluster, client, *host).await.with_context(|| format!("at {}", cluster.host(*host).name()))?;
    }
    Ok(hosts.len())
}

/// A task of the one service asks the other one by its name.
async fn ask(cluster: &Cluster, client: &Client, host: usize) -> Result<()> {
    let path = format!("/fetch?url={}", encode("http://web/json"));
    let answer = client.get(cluster.host(host).at(DOOR), &path, ANSWER).await?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
    // What the task saw is told in the answer.
    ensure!(answer.body.contains("\"status\":200"), "{}", answer.body);
    Ok(())
}

/// Asks again and again, without waiting for answers, until so many requests in a row were answered; answers when the
/// last one that went astray was begun.
async fn last_failure(cluster: &Cluster, client: &Client, host: usize) -> Result<Option<Instant>> {
    let began = Instant::now();
    let (mut asked, mut good, mut failed) = (FuturesOrdered::new(), 0, None);
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while good < IN_A_ROW {
        tokio::select! {
            Some((at, answer)) = asked.next() => match answer {
                Ok(took) if took < ASTRAY => good += 1,
                Ok(took) => {
                    (good, failed) = (0, Some(at));
                    let name = cluster.host(host).name();
                    ensure!(began.elapsed() < SOON, "{name} still reaches the service only after {took:?}");
                }
                Err(error) => {
                    (good, failed) = (0, Some(at));
                    let name = cluster.host(host).name();
                    ensure!(began.elapsed() < SOON, "{name} does not reach the service: {error:#}");
                }
            },
            _ = pace.tick(), if asked.len() < UNANSWERED => {
                let at = Instant::now();
                asked.push_back(async move { (at, ask(cluster, client, host).await.map(|()| at.elapsed())) });
            }
        }
    }
    Ok(failed)
}

/// Asks until so many requests in a row were answered; answers when the last one failed.
async fn wait_answers(cluster: &Cluster, client: &Client, host: usize, in_a_row: usize) -> Result<Option<Instant>> {
    let deadline = Instant::now() + SOON;
    let (mut good, mut failed) = (0, None);
    while good < in_a_row {
        match ask(cluster, client, host).await {
            Ok(()) => good += 1,
            Err(error) => {
                good = 0;
                failed = Some(Instant::now());
                ensure!(
                    Instant::now() < deadline,
                    "{} does not reach the service: {error:#}",
                    cluster.host(host).name()
                );
                tokio::time::sleep(LOOK).await;
            }
        }
    }
    Ok(failed)
}
