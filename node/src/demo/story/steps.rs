//! The story's steps, in order.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;

use super::recovery::Watch;
use super::report::{Report, seconds};
use crate::demo::hosts::{Api, Client, Freshness, Host, Hosts, ServiceDraft, TaskView};
use crate::demo::image;

const IMAGE: &str = "shoal/whoami";
pub(super) const WEB_PORT: u16 = 8080;
const PROBE_PORT: u16 = 8081;
/// Managers of the demo; one of them may be lost.
pub(super) const MANAGERS: usize = 3;
/// Tasks of a new service run within this time.
const START: Duration = Duration::from_secs(60);
/// What a service answers at all, it answers within this time.
const ANSWER: Duration = Duration::from_secs(3);
/// A door is reachable within this time after its tasks run.
const DOORS: Duration = Duration::from_secs(20);
/// A lost host is replaced within this time.
const RECOVERY: Duration = Duration::from_secs(30);
/// How long requests must go well before the demo believes it.
const CALM: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(5);

/// What the steps share.
pub(super) struct Story<'a> {
    hosts: &'a Hosts,
    report: &'a mut Report,
    client: Client,
    /// Node ids, in the order of the hosts.
    ids: Vec<String>,
}

impl<'a> Story<'a> {
    pub(super) fn new(hosts: &'a Hosts, report: &'a mut Report) -> Result<Story<'a>> {
        let client = hosts.client()?;
        Ok(Story { hosts, report, client, ids: Vec::new() })
    }

    pub(super) async fn tell(&mut self) -> Result<()> {
        self.start_daemons().await?;
        self.make_cluster().await?;
        self.load_image().await?;
        self.create_services().await?;
        self.reach_every_host().await?;
        self.reach_by_name().await?;
        self.scale().await?;
        self.lose_a_host().await?;
        self.report.end();
        Ok(())
    }

    fn first(&self) -> &'a Host {
        &self.hosts.all()[0]
    }

    fn host_of(&self, node: &str) -> Option<&'a Host> {
        let index = self.ids.iter().position(|id| id == node)?;
        self.hosts.all().get(index)
    }

    fn host_name(&self, node: &str) -> String {
        self.host_of(node).map_or_else(|| "nowhere".into(), |host| host.name().to_owned())
    }

    async fn start_daemons(&mut self) -> Result<()> {
        self.report.begin("starting a daemon on each host");
        self.hosts.start_daemons().await?;
        self.report.done("daemons", &format!("{} daemons run", self.hosts.all().len()));
        Ok(())
    }

    async fn make_cluster(&mut self) -> Result<()> {
        let first = self.first();
        self.report.begin("node init");
        let id = first.api().init(&first.address().to_string()).await.context("node init")?;
        self.ids.push(id);
        let (worker, manager) = first.api().tokens().await?;
        self.report.done("init", &format!("{} made a cluster: it is the first manager", first.name()));
        for host in &self.hosts.all()[1..] {
            let (role, token) = if host.index() < MANAGERS { ("manager", &manager) } else { ("worker", &worker) };
            self.report.begin(&format!("{} joins as {role}", host.name()));
            host.api().join(&host.address().to_string(), &first.node_address(), token).await.context("node join")?;
            self.ids.push(host.api().node_id().await?);
            self.report.done("join", &format!("{} joined as {role}, by token, over mutual TLS", host.name()));
        }
        self.report.begin("waiting for all nodes");
        let count = self.hosts.all().len();
        let api = first.api();
        api.wait_for("a cluster whose nodes are all ready", START, || async {
            let nodes = api.nodes(Freshness::Local).await.map_err(|e| e.to_string())?;
            let ready = nodes.iter().filter(|n| n["Status"]["State"] == "ready").count();
            let managers = nodes.iter().filter(|n| n["ManagerStatus"]["Reachability"] == "reachable").count();
            if ready == count && managers == MANAGERS {
                return Ok(());
            }
            Err(format!("{ready} of {count} nodes ready, {managers} of {MANAGERS} managers reachable"))
        })
        .await?;
        let leader = api.leader().await?.ok_or_else(|| anyhow!("the cluster has no leader"))?;
        self.report.done("cluster", &format!("{count} nodes ready, {MANAGERS} managers agree, {leader} leads"));
        Ok(())
    }

    async fn load_image(&mut self) -> Result<()> {
        let first = self.first();
        self.report.begin(&format!("loading an image on {}", first.name()));
        let exe = std::env::current_exe().context("cannot find the own executable")?;
        let size = std::fs::metadata(&exe).map_or(0, |meta| meta.len());
        let entrypoint = ["/shoal", "__whoami"];
        image::import(&first.api(), &exe, IMAGE, &entrypoint).await.context("image import")?;
        let text = format!(
            "image {IMAGE} on {}: this binary ({} MB) in an otherwise empty root; the others fetch it from there",
            first.name(),
            size >> 20
        );
        self.report.done("image", &text);
        Ok(())
    }

    async fn create_services(&mut self) -> Result<()> {
        self.report.begin("creating services web and probe");
        let api = self.first().api();
        api.create_overlay("demo").await.context("network create")?;
        let began = Instant::now();
        let web = ServiceDraft::new("web", IMAGE, 3).network("demo").publish(WEB_PORT, 80).build();
        api.create_service(&web).await.context("service create web")?;
        let probe = ServiceDraft::new("probe", IMAGE, 1).network("demo").publish(PROBE_PORT, 80).build();
        api.create_service(&probe).await.context("service create probe")?;
        let tasks = api.wait_running("web", 3, &[], START).await?;
        let took = began.elapsed();
        let text = format!("service web: 3 tasks run ({}), port {WEB_PORT} is published", self.places(&tasks));
        api.wait_running("probe", 1, &[], START).await?;
        self.report.timing("service_running", "service create → 3 tasks running", took);
        self.report.done("services", &text);
        Ok(())
    }

    /// How many tasks each host has.
    fn places(&self, tasks: &[TaskView]) -> String {
        let mut places: BTreeMap<String, usize> = BTreeMap::new();
        for task in tasks {
            *places.entry(self.host_name(&task.node)).or_default() += 1;
        }
        places.iter().map(|(host, n)| format!("{host}: {n}")).collect::<Vec<_>>().join(", ")
    }

    /// The task that answered: whoami tells its container's short id as its host name.
    fn who(body: &str) -> Result<String> {
        let who: Value = serde_json::from_str(body).with_context(|| format!("not an answer of whoami: {body:?}"))?;
        Ok(who["hostname"].as_str().unwrap_or_default().to_owned())
    }

    async fn ask(&self, host: &Host, port: u16, path: &str) -> Result<String, String> {
        match self.client.get(host.at(port), path, ANSWER).await {
            Ok(answer) if answer.status == 200 => Ok(answer.body),
            Ok(answer) => Err(format!("{}:{port} answered {}: {}", host.name(), answer.status, answer.body.trim())),
            Err(error) => Err(format!("{}:{port}: {error}", host.name())),
        }
    }

    async fn reach_every_host(&mut self) -> Result<()> {
        self.report.begin(&format!("asking port {WEB_PORT} of every host"));
        let api = self.first().api();
        let tasks = api.tasks("web", Freshness::Local).await?;
        let expected: BTreeSet<String> =
            tasks.iter().filter(|t| t.serves()).map(|t| t.container.chars().take(12).collect()).collect();
        let mut asked = 0;
        for host in self.hosts.all() {
            // Each host must lead to each task, wherever that is.
            let mut seen = BTreeSet::new();
            let deadline = Instant::now() + DOORS;
            while seen != expected {
                let trouble = match self.ask(host, WEB_PORT, "/json").await {
                    Ok(body) => {
                        asked += 1;
                        let who = Self::who(&body)?;
                        ensure!(expected.contains(&who), "{who} answered, which is no task of web");
                        seen.insert(who);
                        String::new()
                    }
                    Err(trouble) => trouble,
                };
                if Instant::now() > deadline {
                    bail!("port {WEB_PORT} of {} reached {} of 3 tasks. {trouble}", host.name(), seen.len());
                }
            }
        }
        let text = format!("port {WEB_PORT} of every host reaches every task of web ({asked} requests)");
        self.report.done("published_port", &text);
        Ok(())
    }

    async fn reach_by_name(&mut self) -> Result<()> {
        self.report.begin("asking web by its name, from a task of probe");
        let first = self.first();
        let api = first.api();
        let seen = api
            .wait_for("an answer of web to probe", DOORS, || async {
                self.ask(first, PROBE_PORT, "/fetch?url=http://web/json").await
            })
            .await?;
        let seen: Value = serde_json::from_str(&seen).context("not an answer of probe")?;
        let who = Self::who(seen["body"].as_str().unwrap_or_default())?;
        let tasks = api.tasks("web", Freshness::Local).await?;
        let task = tasks.iter().find(|t| t.serves() && !who.is_empty() && t.container.starts_with(&who));
        let task = task.ok_or_else(|| anyhow!("{who} answered, which is no task of web"))?;
        let resolved = seen["resolved"].as_str().unwrap_or_default();
        let place = format!("web.{} on {}", task.slot, self.host_name(&task.node));
        self.report.done("name", &format!("a task of probe asked http://web/ ({resolved}): {place} answered"));
        Ok(())
    }

    async fn scale(&mut self) -> Result<()> {
        self.report.begin("scaling web to 5");
        let api = self.first().api();
        let began = Instant::now();
        api.scale("web", 5).await.context("service scale")?;
        let tasks = api.wait_running("web", 5, &[], START).await?;
        self.report.timing("scale_running", "scale 3 → 5, all running", began.elapsed());
        self.report.done("scale", &format!("web has 5 running tasks ({})", self.places(&tasks)));
        Ok(())
    }

    /// The host to be lost: the leader if it runs a task of web, else one that does.
    async fn victim(&self, tasks: &[TaskView]) -> Result<(&'a Host, bool)> {
        let leader = self.first().api().leader().await?;
        let runs = |host: &&Host| tasks.iter().any(|t| self.ids.get(host.index()) == Some(&t.node));
        let leads = |host: &&Host| leader.as_deref() == Some(host.name());
        let all = self.hosts.all();
        let found = all.iter().filter(runs).find(leads).or_else(|| all.iter().find(runs));
        found.map(|host| (host, leads(&host))).ok_or_else(|| anyhow!("no host runs a task of web"))
    }

    async fn lose_a_host(&mut self) -> Result<()> {
        let api = self.first().api();
        let tasks = api.wait_running("web", 5, &[], START).await?;
        let (victim, led) = self.victim(&tasks).await?;
        let lost_id = self.ids[victim.index()].clone();
        let lost_tasks = tasks.iter().filter(|t| t.node == lost_id).count();
        let survivors: Vec<&Host> = self.hosts.all().iter().filter(|h| h.index() != victim.index()).collect();
        let witness = survivors[0].api();
        let role = if led { "the leader" } else { "not the leader" };
        self.report.begin(&format!("killing {}", victim.name()));
        let doors = survivors.iter().map(|host| (host.name().to_owned(), host.at(WEB_PORT))).collect();
        let watch = Watch::start(&self.client, doors)?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let before = watch.since(self.report_began());
        ensure!(
            before.iter().all(|seen| seen.requests > seen.failed),
            "web does not answer before the loss: {before:?}"
        );

        let lost_at = Instant::now();
        victim.power_off().context("kill a host")?;
        let text = format!(
            "killed {} ({role}, {lost_tasks} of 5 tasks of web): cable cut, daemon and tasks SIGKILLed",
            victim.name()
        );
        self.report.done("kill", &text);
        self.report.fact("killed", victim.name());
        self.report.fact("killed_leader", led);
        self.report.fact("lost_tasks", lost_tasks);

        self.report.begin("waiting for the cluster to notice and to replace what was lost");
        let not_on = [lost_id.clone()];
        let (noticed, replaced, served) = tokio::try_join!(
            noticed(&witness, &lost_id, lost_at),
            async {
                let tasks = witness.wait_running("web", 5, &not_on, RECOVERY).await?;
                anyhow::Ok((lost_at.elapsed(), tasks))
            },
            served(&watch, lost_at),
        )?;
        let (replaced, tasks) = replaced;
        self.report.done("recovery", &format!("all 5 tasks of web run again ({})", self.places(&tasks)));
        self.report.note(&format!("a surviving manager called {} down after {}", victim.name(), seconds(noticed)));

        self.report.begin("watching clients a little longer");
        let trouble = self.calm(&watch, lost_at).await?;
        let seen = watch.since(lost_at);
        let (requests, failed) = seen.iter().fold((0, 0), |(r, f), s| (r + s.requests, f + s.failed));
        drop(watch);
        let text =
            format!("clients at every surviving host are served: {failed} of {requests} requests failed meanwhile");
        self.report.done("served", &text);
        for door in &seen {
            let last = door.last_failed.map_or_else(|| "none".into(), seconds);
            self.report
                .note(&format!("{}: {} of {} failed, the last after {last}", door.host, door.failed, door.requests));
        }
        self.report.timing("noticed", "host lost → called down", noticed);
        self.report.timing("first_served", "host lost → first request served at every other host", served);
        self.report.timing("last_failed", "host lost → last request that failed", trouble);
        self.report.timing("all_running", "host lost → all 5 tasks running again", replaced);
        self.report.fact("requests", requests);
        self.report.fact("requests_failed", failed);
        Ok(())
    }

    /// A moment before all requests of the watch.
    fn report_began(&self) -> Instant {
        Instant::now().checked_sub(Duration::from_secs(60)).unwrap_or_else(Instant::now)
    }

    /// Waits until no request has failed for a while; answers when the last one failed (zero if none did).
    async fn calm(&self, watch: &Watch, lost_at: Instant) -> Result<Duration> {
        let deadline = Instant::now() + RECOVERY;
        loop {
            tokio::time::sleep(LOOK).await;
            let seen = watch.since(lost_at);
            let last = seen.iter().filter_map(|s| s.last_failed).max().unwrap_or_default();
            if lost_at.elapsed().saturating_sub(last) > CALM && self.hosts_calm(watch) {
                return Ok(last);
            }
            ensure!(
                Instant::now() < deadline,
                "requests go on failing {} after the loss: {seen:?}",
                seconds(lost_at.elapsed())
            );
        }
    }

    /// Whether each client was answered lately.
    fn hosts_calm(&self, watch: &Watch) -> bool {
        let moment = Instant::now().checked_sub(CALM).unwrap_or_else(Instant::now);
        watch.since(moment).iter().all(|seen| seen.failed == 0 && seen.requests > 0)
    }
}

/// Waits until the witness calls the lost node down.
async fn noticed(witness: &Api, lost: &str, lost_at: Instant) -> Result<Duration> {
    let path = format!("/nodes/{lost}?consistency=local");
    witness
        .wait_for("the loss of the host being noticed", RECOVERY, || async {
            let node = witness.get(&path).await.map_err(|e| e.to_string())?;
            match node["Status"]["State"].as_str() {
                Some("down") => Ok(lost_at.elapsed()),
                other => Err(format!("state {other:?}")),
            }
        })
        .await
        .map_err(Into::into)
}

/// Waits until a request that began after the loss was served at every door; answers when the last of them was.
async fn served(watch: &Watch, lost_at: Instant) -> Result<Duration> {
    let deadline = Instant::now() + RECOVERY;
    loop {
        let seen = watch.since(lost_at);
        let firsts: Option<Vec<Duration>> = seen.iter().map(|door| door.first_good).collect();
        if let Some(last) = firsts.and_then(|firsts| firsts.into_iter().max()) {
            return Ok(last);
        }
        ensure!(Instant::now() < deadline, "no request is served any more: {seen:?}");
        tokio::time::sleep(LOOK).await;
    }
}
