//! A registry beside a cluster, which wants a password: who asks it for what, and what becomes of its password.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use chaos_tests::hosts::{Cluster, SOON, ServiceDraft, image};
use chaos_tests::noise::write_noise;
use serde_json::{Value, json};

use crate::{binaries, images, with};

/// On the wire, outside of all hosts. Each cluster has a wire of its own.
const ADDR: &str = "10.99.0.1:5000";
/// Of `secret`, as `htpasswd -B` writes it.
const HASH: &str = "$2y$05$52AT..VU5CdOGWp/ZskRau9TUlH26usvbmZDx1UM0B0ytSTrpOrRu";
/// `ann:secret` in base64.
const ANN: &str = "YW5uOnNlY3JldA==";

/// Debian's `docker-registry`.
struct Registry {
    process: Child,
    log: Arc<Mutex<Vec<String>>>,
}

impl Registry {
    /// Lets in one user.
    fn start(cluster: &Cluster, dir: &Path, user: &str) -> Result<Registry> {
        std::fs::write(dir.join("htpasswd"), format!("{user}:{HASH}\n"))?;
        let config = format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {0}/data\nhttp:\n  addr: \
             {ADDR}\nauth:\n  htpasswd:\n    realm: test\n    path: {0}/htpasswd\n",
            dir.display()
        );
        std::fs::write(dir.join("config.yml"), config)?;
        let mut process = Command::new("nsenter")
            .arg(format!("--net={}", cluster.switch_path().display()))
            .args(["docker-registry", "serve"])
            .arg(dir.join("config.yml"))
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("docker-registry cannot be started")?;
        let mut errors = BufReader::new(process.stderr.take().context("a pipe")?);
        loop {
            let mut line = String::new();
            ensure!(errors.read_line(&mut line)? > 0, "docker-registry has ended");
            if line.contains("listening on ") {
                break;
            }
        }
        let log = Arc::new(Mutex::new(Vec::new()));
        let (lines, kept) = (BufReader::new(process.stdout.take().context("a pipe")?).lines(), log.clone());
        std::thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| kept.lock().unwrap_or_else(PoisonError::into_inner).push(line));
        });
        // Somebody has to read what else it says.
        std::thread::spawn(move || for _ in errors.lines() {});
        Ok(Registry { process, log })
    }

    /// What was given of a repository: how often, and how many bytes at the most, by path.
    fn given(&self, repository: &str) -> BTreeMap<String, (usize, u64)> {
        let below = format!("/v2/{repository}/");
        let mut given = BTreeMap::new();
        for line in self.log.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let Some((path, rest)) = line.split_once("\"GET ").and_then(|(_, rest)| rest.split_once(' ')) else {
                continue;
            };
            let Some((_, bytes)) = rest.split_once("\" 200 ").filter(|_| path.starts_with(&below)) else { continue };
            let bytes: u64 = bytes.split(' ').next().and_then(|bytes| bytes.parse().ok()).unwrap_or_default();
            let (count, most) = given.entry(path.to_owned()).or_insert((0, 0));
            (*count, *most) = (*count + 1, bytes.max(*most));
        }
        given
    }

    /// How often the layer of an image was given.
    fn layer(&self, repository: &str) -> usize {
        let given = self.given(repository).into_values();
        given.filter(|(_, bytes)| *bytes > 1 << 20).map(|(count, _)| count).sum()
    }

    /// How often anything else was: manifest and configuration.
    fn documents(&self, repository: &str) -> usize {
        let given = self.given(repository).into_values();
        given.filter(|(_, bytes)| *bytes <= 1 << 20).map(|(count, _)| count).sum()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn login(user: &str) -> Value {
    json!({"username": user, "password": "secret", "serveraddress": ADDR})
}

/// Puts an image into the registry that no host has. It has one layer.
async fn publish(cluster: &Cluster, name: &str, noise: u64) -> Result<String> {
    let (api, image) = (cluster.api(0), format!("{ADDR}/{name}"));
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("noise");
    // Another content for each, so that none has the other's layer.
    write_noise(&file, cluster.whoami(), cluster.whoami().metadata()?.len() + noise)?;
    image::import(&api, &file, &image, &["/shoal"]).await?;
    api.post(&format!("/images/{image}/push?tag=latest"), &Value::Null).await?;
    api.get(&format!("/distribution/{image}:latest/json")).await.context("it was not pushed")?;
    api.delete(&format!("/images/{image}:latest")).await?;
    Ok(image)
}

fn is_installed() -> bool {
    let asked = Command::new("docker-registry").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if asked.is_err() {
        eprintln!("skipped: docker-registry is not installed");
    }
    asked.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hosts_ask_once_and_follow_the_password() {
    if !is_installed() {
        return;
    }
    with(images::bare(3, 2, &["--insecure-registry", ADDR]), async |cluster| {
        let dir = tempfile::tempdir()?;
        let registry = Registry::start(cluster, dir.path(), "ann")?;
        let api = cluster.api(0);
        api.post("/shoal/v1/registries", &login("ann")).await?;

        // All five want it at the same moment, and none has it.
        let web = publish(cluster, "web", 5 << 20).await?;
        ensure!(registry.layer("web") == 0, "to look at an image is no pull of it: {:?}", registry.given("web"));
        let before = registry.documents("web");
        api.create_service(&ServiceDraft::new("web", &web, 5).build()).await?;
        let tasks = api.wait_running("web", 5, &[], SOON).await?;
        let nodes: std::collections::BTreeSet<&str> = tasks.iter().map(|task| task.node.as_str()).collect();
        ensure!(nodes.len() == 5, "only {nodes:?} run it");
        ensure!(registry.layer("web") == 1, "{:?}", registry.given("web"));
        // Manifest and configuration: once to pin the service, once for the host that pulls.
        ensure!(registry.documents("web") - before <= 4, "{:?}", registry.given("web"));

        // A service that brings credentials with it, on a worker. Who pulls the same by hand gets it from there.
        let one = publish(cluster, "one", 4 << 20).await?;
        let file = dir.path().join("registries.json");
        std::fs::write(&file, json!({"auths": {(ADDR): {"auth": ANN}}}).to_string())?;
        let created = Command::new(binaries().shoal)
            .args(["-H", &format!("unix://{}", api.socket().display()), "service", "create", "--detach"])
            .args(["--with-registry-auth", "--name", "one", "--constraint", "node.role==worker", &one])
            .env("SHOAL_REGISTRY_FILE", &file)
            .output()?;
        ensure!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
        let first = api.wait_running("one", 1, &[], SOON).await?.remove(0);
        ensure!(registry.layer("one") == 1, "{:?}", registry.given("one"));
        api.post(&format!("/images/create?fromImage={one}&tag=latest"), &Value::Null).await?;
        api.get(&format!("/images/{one}:latest/json")).await.context("it was not pulled")?;
        ensure!(registry.layer("one") == 1, "what a host has was asked for: {:?}", registry.given("one"));
        api.delete(&format!("/images/{one}:latest")).await?;

        // Another password (here: another user), and nobody touches a task.
        drop(registry);
        let registry = Registry::start(cluster, dir.path(), "bob")?;
        api.post("/shoal/v1/registries", &login("bob")).await?;
        let after = api.wait_running("web", 5, &[], SOON).await?;
        let ids = |tasks: &[chaos_tests::hosts::TaskView]| {
            tasks.iter().map(|task| task.id.clone()).collect::<std::collections::BTreeSet<_>>()
        };
        ensure!(ids(&tasks) == ids(&after), "tasks were replaced");

        // The only host that has the image is gone, and what the service brought with it is refused.
        let victim = (0..5).find(|index| cluster.id(*index) == first.node).context("its host")?;
        cluster.host(victim).power_off()?;
        let moved = api.wait_running("one", 1, std::slice::from_ref(&first.node), SOON).await?;
        ensure!(moved[0].id != first.id, "it is the same task");
        ensure!(registry.layer("one") == 1, "{:?}", registry.given("one"));
        Ok(())
    })
    .await;
}
