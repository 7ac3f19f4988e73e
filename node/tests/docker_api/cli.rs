//! The real docker command line against the server. Where it is not installed, the test says so and passes.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use node::engine::Engine;

use crate::fake::Served;

/// The docker client in `PATH`.
fn docker() -> Option<PathBuf> {
    let found = std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join("docker")).find(|p| p.is_file());
    if found.is_none() {
        println!("skipped: there is no docker client in PATH");
    }
    found
}

struct Cli {
    docker: PathBuf,
    socket: PathBuf,
    home: tempfile::TempDir,
}

impl Cli {
    fn new(docker: PathBuf, socket: &Path) -> Self {
        Self { docker, socket: socket.to_owned(), home: tempfile::tempdir().unwrap() }
    }

    async fn output(&self, args: &str) -> (bool, String, String) {
        let output = Command::new(&self.docker)
            .args(args.split_whitespace())
            .env_clear()
            .env("DOCKER_HOST", format!("unix://{}", self.socket.display()))
            .env("DOCKER_CONFIG", self.home.path())
            .env("HOME", self.home.path())
            .current_dir(self.home.path())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    }

    /// Must succeed; what it printed.
    async fn ok(&self, args: &str) -> String {
        let (success, out, err) = self.output(args).await;
        assert!(success, "docker {args}\n{out}\n{err}");
        out
    }

    /// Says yes to its question; must succeed.
    async fn agreed(&self, args: &str) -> String {
        let mut child = Command::new(&self.docker)
            .args(args.split_whitespace())
            .env_clear()
            .env("DOCKER_HOST", format!("unix://{}", self.socket.display()))
            .env("DOCKER_CONFIG", self.home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"y\n").await.unwrap();
        let output = child.wait_with_output().await.unwrap();
        assert!(output.status.success(), "docker {args}\n{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Must fail; what it said.
    async fn fails(&self, args: &str, text: &str) {
        let (success, out, err) = self.output(args).await;
        assert!(!success, "docker {args}\n{out}");
        assert!(err.contains(text), "docker {args}\n{err}");
    }
}

#[track_caller]
fn has(output: &str, parts: &[&str]) {
    for part in parts {
        assert!(output.contains(part), "{part:?} is not in\n{output}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn version_info_and_cluster() {
    let Some(docker) = docker() else { return };
    let served = Served::inactive().await;
    let cli = Cli::new(docker, &served.socket);
    has(&cli.ok("version").await, &["Server: Shoal", "API version:      1.50 (minimum version 1.24)", "linux/"]);
    has(&cli.ok("info").await, &["Swarm: inactive", "Storage Driver: overlayfs"]);
    cli.fails("node ls", "This node is not a swarm manager.").await;
    has(&cli.ok("swarm init").await, &["is now a manager", "docker swarm join --token SWMTKN-1-"]);
    cli.fails("swarm init", "This node is already part of a swarm").await;
    has(&cli.ok("info").await, &["Swarm: active", "Is Manager: true", "Managers: 1", "Nodes: 1", "10.0.0.0/8"]);
    has(&cli.ok("node ls").await, &["node-a", "Ready", "Active", "Leader", " *"]);
    has(&cli.ok("node inspect self --pretty").await, &["Hostname:", "node-a", "Leader:", "Yes"]);
    has(&cli.ok("node inspect node-a").await, &["\"TrustRoot\"", "BEGIN CERTIFICATE"]);
    let before = cli.ok("swarm join-token -q worker").await;
    let manager = cli.ok("swarm join-token -q manager").await;
    let after = cli.ok("swarm join-token --rotate -q worker").await;
    assert!(before.starts_with("SWMTKN-1-") && after.starts_with("SWMTKN-1-") && before != after);
    assert_eq!(cli.ok("swarm join-token -q manager").await, manager);
    has(&cli.ok("swarm update --task-history-limit 3").await, &["Swarm updated."]);
    has(&cli.ok("swarm ca").await, &["BEGIN CERTIFICATE"]);
    cli.fails("swarm unlock-key", "no unlock key is set").await;
    has(&cli.ok("swarm update --autolock=true").await, &["Swarm updated.", "docker swarm unlock", "SWMKEY-1-"]);
    let key = cli.ok("swarm unlock-key -q").await;
    let next = cli.ok("swarm unlock-key --rotate -q").await;
    assert!(key.starts_with("SWMKEY-1-") && next.starts_with("SWMKEY-1-") && key != next);
    assert!(!cli.ok("info").await.contains("SWMKEY"));
    served.engine.lock();
    has(&cli.ok("info").await, &["Swarm: locked"]);
    cli.fails("node ls", "Swarm is encrypted and needs to be unlocked before it can be used.").await;
    cli.fails("service ls", "Please use \"docker swarm unlock\" to unlock it.").await;
    served.engine.unlock(key.trim().to_owned()).await.unwrap_err();
    served.engine.unlock(next.trim().to_owned()).await.unwrap();
    has(&cli.ok("swarm update --autolock=false").await, &["Swarm updated."]);
    cli.fails("swarm unlock-key", "no unlock key is set").await;
    cli.ok("node update --label-add zone=a node-a").await;
    has(&cli.ok("node inspect node-a").await, &["\"zone\": \"a\""]);
    cli.fails("node demote node-a", "last manager").await;
    cli.fails("swarm leave", "participating as a manager").await;
    has(&cli.ok("swarm leave --force").await, &["Node left the swarm."]);
    cli.fails("swarm join --token SWMTKN-1-x-y 127.0.0.1:1", "invalid join token").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn services() {
    let Some(docker) = docker() else { return };
    let served = Served::cluster().await;
    let cli = Cli::new(docker, &served.socket);
    cli.ok("service create -d --name web --replicas 2 -p 8080:80 -e A=b --limit-memory 64M web:1").await;
    has(&cli.ok("service ls").await, &["web", "replicated", "2/2", "web:1", "*:8080->80/tcp"]);
    has(&cli.ok("service ps web").await, &["web.1", "web.2", "node-", "Running"]);
    has(&cli.ok("service inspect web --pretty").await, &["Replicas:\t2", "A=b", "PublishedPort = 8080"]);
    has(&cli.ok("service scale -d web=5").await, &["web scaled to 5"]);
    has(&cli.ok("service ls").await, &["5/5"]);
    // Attached: the progress display waits until the tasks run (and for the monitor period).
    has(&cli.ok("service update -q --env-add C=d --update-monitor 1s web").await, &["web"]);
    has(&cli.ok("service inspect web").await, &["\"C=d\"", "\"PreviousSpec\""]);
    has(&cli.ok("service rollback -d web").await, &["web"]);
    assert!(!cli.ok("service inspect web --format {{.Spec.TaskTemplate.ContainerSpec.Env}}").await.contains("C=d"));
    has(&cli.ok("node ps node-a node-b node-c").await, &["web.5"]);
    let (success, out, err) = cli.output("service logs web").await;
    has(&(out + &err), &["web.1.", "@node-", "| hello from 1", "oops from 2", "node-c cannot be reached"]);
    assert!(!success);
    has(&cli.ok("inspect web").await, &["\"TaskTemplate\""]);
    cli.fails("service create -d --name web web:1", "name conflicts with an existing object").await;
    cli.fails("service create -d --name x nope:1", "No such image: nope:1").await;
    cli.fails("service create -d --name x --constraint node.nope==1 web:1", "onstraint").await;
    cli.fails("service create -d --name x -p 8080:80 web:1", "port '8080' is already in use").await;
    cli.fails("service create -d --name x --generic-resource gpu=1 web:1", "GenericResources is not supported").await;
    cli.fails("service create -d --name x --health-cmd true --health-interval 1us web:1", "less than 1ms").await;
    cli.fails("service scale -d nosuch=3", "service nosuch not found").await;
    cli.fails("service scale -d web=-1", "invalid").await;
    cli.ok("service create -d web:1").await;
    assert_eq!(cli.ok("service ls -q").await.lines().count(), 2);
    has(&cli.ok("service rm web").await, &["web"]);
    has(&cli.output("service ps web").await.2, &["no such service: web"]);
    assert!(!cli.ok("service ls --format {{.Name}}").await.contains("web"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ingress_network_and_the_hosts_own() {
    let Some(docker) = docker() else { return };
    let served = Served::cluster().await;
    let cli = Cli::new(docker, &served.socket);
    cli.ok("service create -d --name web -p 8080:80 web:1").await;
    let kept = cli.output("network inspect -f {{.Id}} ingress").await.1;
    cli.ok("service rm web").await;
    has(&cli.agreed("network rm ingress").await, &["ingress"]);
    cli.fails("service create -d --name web -p 8080:80 web:1", "no ingress network is present").await;
    cli.ok("network create -d overlay --ingress --subnet 10.11.0.0/16 x").await;
    assert_ne!(cli.ok("network inspect -f {{.Id}} x").await, kept);
    cli.ok("service create -d --name web -p 8080:80 web:1").await;

    has(&cli.ok("network ls").await, &["bridge", "host", "none", "null", "local", "swarm"]);
    has(&cli.ok("network inspect host").await, &["\"Driver\": \"host\"", "\"Scope\": \"local\""]);
    cli.fails("network rm none", "none is a pre-defined network and cannot be removed").await;
    cli.ok("service create -d --name agent --mode global --network host web:1").await;
    has(&cli.ok("service inspect --pretty agent").await, &["Networks:", "host"]);
    cli.ok("service update -d --network-rm host --network-add none agent").await;
    has(&cli.ok("service inspect --pretty agent").await, &["Networks:", "none"]);
    cli.ok("service create -d --name b --network bridge -p mode=host,target=80 web:1").await;
    cli.fails("service create -d --name c --network host -p 80:80 web:1", "ports cannot be published").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_secrets_configs() {
    let Some(docker) = docker() else { return };
    let served = Served::cluster().await;
    let cli = Cli::new(docker, &served.socket);
    cli.ok("network create -d overlay --subnet 10.77.0.0/24 --label k=v ov1").await;
    has(&cli.ok("network ls").await, &["ingress", "ov1", "overlay", "swarm"]);
    has(&cli.ok("network inspect ov1").await, &["10.77.0.0/24", "\"Scope\": \"swarm\""]);
    cli.ok("network create -d overlay -o com.docker.network.driver.mtu=1400 narrow").await;
    has(&cli.ok("network inspect narrow").await, &["\"com.docker.network.driver.mtu\": \"1400\""]);
    cli.ok("network rm narrow").await;
    cli.fails("network create -d overlay -o com.docker.network.driver.mtu=90 x", "between 118 and 65535").await;
    cli.fails("network create -d overlay -o com.docker.network.bridge.name=x x", "bridge.name").await;
    let option = "name=ov1,driver-opt=com.docker.network.endpoint.sysctls=net.ipv4.ip_forward=1";
    cli.fails(&format!("service create -d --name o --network {option} web:1"), "endpoint.sysctls").await;
    cli.fails("network create br1", "no plain containers here").await;
    cli.fails("network create -d macvlan x", "network driver \"macvlan\" is not supported").await;
    cli.ok("network create -d bridge --scope swarm near").await;
    has(&cli.ok("network inspect near").await, &["\"Driver\": \"bridge\"", "\"Scope\": \"swarm\""]);
    has(&cli.ok("network ls -f driver=bridge").await, &["near", "swarm"]);
    cli.ok("service create -d --name local --network near -p mode=host,target=80 web:1").await;
    cli.ok("service rm local").await;
    cli.ok("network rm near").await;
    cli.fails("network create -d overlay ov1", "network with name ov1 already exists").await;
    cli.ok("service create -d --name web --network name=ov1,alias=w web:1").await;
    // What the host itself has of it: nothing, as there is no overlay here.
    has(&cli.ok("network inspect -v ov1").await, &["\"Name\": \"ov1\"", "\"10.77.0.0/24\""]);
    cli.fails("network rm ov1", "is in use by service").await;
    cli.ok("service rm web").await;
    cli.ok("network rm ov1").await;
    cli.ok("network create -d overlay ov2").await;
    has(&cli.ok("network prune -f").await, &["Deleted Networks:", "ov2"]);
    std::fs::write(cli.home.path().join("file"), "s1\n").unwrap();
    for kind in ["secret", "config"] {
        cli.ok(&format!("{kind} create -l a=b one file")).await;
        has(&cli.ok(&format!("{kind} ls")).await, &["one"]);
        has(&cli.ok(&format!("{kind} inspect one --pretty")).await, &["Name:", "one", "a=b"]);
        cli.fails(&format!("{kind} create one file"), "already exists").await;
        cli.ok(&format!("service create -d --name user-{kind} --{kind} source=one,target=/x web:1")).await;
        has(&cli.ok(&format!("service inspect user-{kind}")).await, &["\"/x\"", "\"one\""]);
        cli.fails(&format!("{kind} rm one"), "is in use by the following service").await;
        cli.ok(&format!("service rm user-{kind}")).await;
        cli.ok(&format!("{kind} rm one")).await;
        cli.fails(&format!("{kind} inspect one"), "not found").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes() {
    let Some(docker) = docker() else { return };
    let served = Served::cluster().await;
    let cli = Cli::new(docker, &served.socket);
    assert_eq!(cli.ok("volume create --label a=b data").await.trim(), "data");
    assert_eq!(cli.ok("volume create").await.trim().len(), 64);
    has(&cli.ok("volume ls").await, &["local", "data"]);
    has(&cli.ok("volume inspect data").await, &["\"Mountpoint\"", "volumes/data/_data", "\"a\": \"b\""]);
    cli.fails("volume inspect nope", "get nope: no such volume").await;
    cli.fails("volume create a/b", "includes invalid characters for a local volume name").await;
    cli.fails("volume create -d rexray x1", "error looking up volume plugin rexray").await;
    cli.fails("volume create -o type=nfs x1", "missing required option").await;
    // As with Docker, only what nobody gave a name; then all.
    has(&cli.ok("volume prune -f").await, &["Deleted Volumes:", "Total reclaimed space: 0B"]);
    assert_eq!(cli.ok("volume ls -q").await.trim(), "data");
    let line = "service create -d --name web --health-cmd true --health-interval 10s --health-retries 2 \
                --mount type=volume,src=data,dst=/d,volume-label=x=y --mount type=bind,src=/srv,dst=/s web:1";
    cli.ok(line).await;
    has(&cli.ok("service inspect web --pretty").await, &["Target:\t/d", "Source:\tdata"]);
    has(&cli.ok("service inspect web").await, &["\"CMD-SHELL\"", "10000000000"]);
    has(&cli.ok("volume rm data").await, &["data"]);
    cli.fails("volume rm data", "no such volume").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images() {
    let Some(docker) = docker() else { return };
    let served = Served::inactive().await;
    let cli = Cli::new(docker, &served.socket);
    std::fs::write(cli.home.path().join("app.tar"), crate::images::saved("app:1")).unwrap();
    std::fs::write(cli.home.path().join("root.tar"), crate::images::tar(&[("etc/x", b"1")])).unwrap();
    std::fs::write(cli.home.path().join("bad.tar"), &crate::images::saved("bad:1")[..2000]).unwrap();
    has(&cli.ok("load -i app.tar").await, &["Loaded image: app:1"]);
    has(&cli.ok("import root.tar root:7").await, &["sha256:"]);
    cli.fails("load -i bad.tar", "").await;
    let list = cli.ok("images").await;
    has(&list, &["app", "root", "7"]);
    assert!(!list.contains("bad"));
    has(&cli.ok("image inspect app:1").await, &["\"/bin/app\""]);
    has(&cli.ok("history app:1").await, &["COPY app"]);
    cli.ok("tag app:1 quay.io/a/app:2").await;
    has(&cli.ok("image ls quay.io/a/app").await, &["quay.io/a/app"]);
    cli.fails("pull -a busybox", "not supported yet").await;
    has(&cli.ok("images --digests app").await, &["sha256:"]);
    cli.ok("save -o saved.tar app:1 quay.io/a/app:2 root:7").await;
    has(&cli.ok("rmi app:1 quay.io/a/app:2").await, &["Untagged: app:1", "Deleted: sha256:"]);
    cli.fails("image inspect app:1", "No such image").await;
    has(&cli.ok("image prune -f").await, &["Total reclaimed space: 0B"]);
    has(&cli.ok("image prune -af").await, &["untagged: root:7", "deleted: sha256:"]);
    has(&cli.ok("load -i saved.tar").await, &["app:1", "quay.io/a/app:2", "root:7"]);
    cli.fails("save -o x.tar nope", "No such image").await;
    assert_eq!(cli.ok("ps -a -q").await, "");
}
