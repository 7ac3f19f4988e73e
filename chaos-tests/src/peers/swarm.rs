//! Docker Swarm on hosts of the same kind: the namespaces and the wire are those that Shoal's hosts use, and on each is
//! one `containerd` and one `dockerd`.
//!
//! A host is a process that is the first of its own pid namespace; killing it is the end of everything on the host.
//! What helps Swarm is given to it: images are taken from the host first, and containerd runs without what Kubernetes
//! needs of it.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Cable, Rig};
use crate::bench;
use crate::hosts::{Api, Client, Hosts, HostsConfig};
use anyhow::{Context, Result, ensure};

/// A daemon answers within this time.
const READY: Duration = Duration::from_secs(60);
/// What was killed is gone within this time.
const GONE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(20);

/// The first process of a host. `$1` is its directory, `$2` its name, `$3` the parent of its cgroups.
const FIRST_PROCESS: &str = r#"
set -eu
dir=$1 name=$2 group=$3
hostname "$name"
# A sysfs that belongs to this host's network, with the machine's cgroups in it.
mkdir -p "$dir/groups" "$dir/docker" "$dir/containerd"
mount --rbind /sys/fs/cgroup "$dir/groups"
mount -t sysfs none /sys
mount --rbind "$dir/groups" /sys/fs/cgroup
umount -l "$dir/groups"
mount -t proc none /proc
mount -t tmpfs none /run
echo nameserver 127.0.0.1 > /run/resolv.conf
mount --bind /run/resolv.conf /etc/resolv.conf
printf '%s\n' 'version = 2' 'disabled_plugins = ["io.containerd.grpc.v1.cri"]' > /run/containerd.toml
containerd --config /run/containerd.toml --root "$dir/containerd" --state /run/containerd \
    --address /run/containerd.sock > "$dir/containerd.log" 2>&1 &
tries=0
while [ ! -S /run/containerd.sock ] && [ $tries -lt 1000 ]; do sleep 0.01; tries=$((tries + 1)); done
rm -f "$dir/docker.sock"
export DOCKER_SERVICE_PREFER_OFFLINE_IMAGE=1
dockerd --containerd /run/containerd.sock --data-root "$dir/docker" --exec-root /run/docker --pidfile /run/docker.pid \
    --host "unix://$dir/docker.sock" --cgroup-parent "$group" --exec-opt native.cgroupdriver=cgroupfs \
    --storage-driver overlay2 --log-level warn > "$dir/dockerd.log" 2>&1 &
# The first process of a namespace has to wait for all that lose their parents.
while :; do wait; sleep 1; done
"#;

/// Which of the programs is not on this machine; nothing when all are.
#[must_use]
pub fn missing() -> Option<&'static str> {
    ["dockerd", "containerd", "runc", "nsenter", "unshare"].into_iter().find(|name| bench::installed(name).is_none())
}

/// Hosts of Docker Swarm. Dropping it ends and removes everything.
#[derive(Debug)]
pub struct Swarm {
    machines: Vec<Mutex<Option<Child>>>,
    group: String,
    /// Last: its directory goes when nothing is mounted there any more.
    hosts: Hosts,
}

impl Swarm {
    /// Hosts whose daemons are in no swarm.
    ///
    /// # Errors
    /// What the machine says, or a daemon that does not answer.
    pub async fn unformed(count: usize) -> Result<Swarm> {
        let hosts = Hosts::create(&HostsConfig::new(PathBuf::from("/nonexistent"), count))?;
        // As unlike any other's as the directory's name is.
        let name = hosts.dir().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let group = format!("/shoal-bench-swarm-{name}");
        let machines = (0..count).map(|_| Mutex::new(None)).collect();
        let swarm = Swarm { machines, group, hosts };
        for index in 0..count {
            swarm.start(index)?;
        }
        for index in 0..count {
            swarm.wait_ready(index).await?;
        }
        Ok(swarm)
    }

    fn dir(&self, index: usize) -> PathBuf {
        self.hosts.dir().join(self.hosts.all()[index].name())
    }

    fn start(&self, index: usize) -> Result<()> {
        let (dir, host) = (self.dir(index), &self.hosts.all()[index]);
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", dir.join("netns").display()));
        command.args(["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"]);
        command.args(["--propagation", "private", "sh", "-c", FIRST_PROCESS, "sh"]);
        command.arg(&dir).arg(host.name()).arg(format!("{}/{}", self.group, host.name()));
        for proxy in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"] {
            command.env_remove(proxy);
        }
        let log = fs::File::create(dir.join("first.log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let child = command.spawn().context("starting a host of Docker Swarm")?;
        *self.machines[index].lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        Ok(())
    }

    async fn wait_ready(&self, index: usize) -> Result<()> {
        let (api, dir) = (self.api(index), self.dir(index));
        let deadline = Instant::now() + READY;
        while !matches!(tokio::time::timeout(READY, api.get("/_ping")).await, Ok(Ok(_))) {
            let said = || ["first.log", "containerd.log", "dockerd.log"].map(|log| tail(&dir.join(log))).join("\n");
            ensure!(Instant::now() < deadline, "dockerd does not answer\n{}", said());
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Kills a host and waits until nothing of it is left.
    fn kill(&self, index: usize) -> Result<()> {
        let child = self.machines[index].lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut child) = child else { return Ok(()) };
        child.kill()?;
        child.wait()?;
        let deadline = Instant::now() + GONE;
        // The sockets of the host are closed when its last process is gone.
        while !processes(&self.groups(index)).is_empty() {
            ensure!(Instant::now() < deadline, "processes of a killed host go on");
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// The cgroups of a host, one a hierarchy.
    fn groups(&self, index: usize) -> Vec<PathBuf> {
        let name = format!("{}/{}", self.group, self.hosts.all()[index].name());
        hierarchies().into_iter().map(|root| root.join(name.trim_start_matches('/'))).collect()
    }

    /// The network namespace of a process of a host, by the number that the host's daemon gives it: hosts have process
    /// numbers of their own.
    #[must_use]
    pub fn namespace_of(&self, index: usize, pid: u64) -> Option<PathBuf> {
        let machine = self.machines[index].lock().unwrap_or_else(PoisonError::into_inner);
        // The one that was started has entered the namespace with its child.
        let outer = machine.as_ref()?.id();
        let first = fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).ok()?;
        let first = first.split_whitespace().next()?;
        Some(PathBuf::from(format!("/proc/{first}/root/proc/{pid}/ns/net")))
    }

    /// A client outside of all hosts, with a cable to each.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub fn client(&self) -> Result<Client> {
        Ok(self.hosts.client()?)
    }

    /// Removes everything.
    ///
    /// # Errors
    /// What could not be removed.
    pub fn clean_up(mut self) -> Result<()> {
        self.end()?;
        Ok(self.hosts.clean_up()?)
    }

    fn end(&self) -> Result<()> {
        for index in 0..self.machines.len() {
            self.kill(index)?;
        }
        for root in hierarchies() {
            remove_groups(&root.join(self.group.trim_start_matches('/')));
        }
        Ok(())
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            bench::say(format_args!("{error:#}"));
        }
    }
}

impl Rig for Swarm {
    fn name(&self) -> &'static str {
        "swarm"
    }

    fn count(&self) -> usize {
        self.machines.len()
    }

    fn api(&self, index: usize) -> Api {
        Api::new(self.hosts.all()[index].name(), &self.dir(index).join("docker.sock"))
    }

    fn address(&self, index: usize) -> Ipv4Addr {
        self.hosts.all()[index].address()
    }

    fn lose(&self, index: usize, cable: Cable) -> Result<()> {
        if cable == Cable::Pulled {
            self.hosts.all()[index].link_down()?;
        }
        self.kill(index)
    }

    async fn boot(&self, index: usize) -> Result<()> {
        self.hosts.all()[index].link_up()?;
        self.start(index)?;
        self.wait_ready(index).await
    }
}

fn tail(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}

/// Where the machine's cgroups are.
fn hierarchies() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mounted = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (_, at, kind) = (words.next()?, words.next()?, words.next()?);
        matches!(kind, "cgroup" | "cgroup2").then(|| PathBuf::from(at))
    });
    mounted.collect()
}

fn below(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// The processes in cgroups and all below them.
fn processes(groups: &[PathBuf]) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = groups.to_vec();
    while let Some(dir) = open.pop() {
        found.extend(fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines().map(str::to_owned));
        open.extend(below(&dir));
    }
    found
}

/// Removes a cgroup with all below it; one that is still busy stays for the machine's next boot.
fn remove_groups(dir: &Path) {
    for child in below(dir) {
        remove_groups(&child);
    }
    let _ = fs::remove_dir(dir);
}
