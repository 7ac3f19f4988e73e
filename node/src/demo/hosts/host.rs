//! One host: a network namespace, directories, and a daemon that is started, killed, stopped and paused.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use overlay_net::kernel::{Links, NetNs, Peer, Tables};

use super::wire::{Client, UPLINK, port_name};
use super::{Api, HostError, leftovers};

/// A daemon serves its API within this time; a debug build on a busy machine takes its time.
const READY: Duration = Duration::from_secs(20);
/// A daemon that was told to stop has ended within this time (it gives itself ten seconds).
const STOP: Duration = Duration::from_secs(15);
/// Where a daemon serves its metrics: on the host's own loopback, for clients that stand there.
const METRICS: &str = "127.0.0.1:9323";
const LOOK: Duration = Duration::from_millis(5);
/// MTU of the wire between hosts, in bytes.
const MTU: u32 = 1500;

/// What a host is made of.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) index: usize,
    pub(super) name: String,
    pub(super) address: Ipv4Net,
    pub(super) dir: PathBuf,
    pub(super) exe: PathBuf,
    pub(super) log_level: String,
    pub(super) env: Vec<(String, String)>,
    pub(super) args: Vec<String>,
}

/// A machine that runs a daemon. All methods take `&self`, so that a host can be used from several tasks.
#[derive(Debug)]
pub struct Host {
    plan: Plan,
    switch: NetNs,
    /// Made anew by [`Host::power_on`].
    namespace: Mutex<NetNs>,
    daemon: Mutex<Option<Child>>,
    address: Mutex<Ipv4Net>,
    env: Mutex<Vec<(String, String)>>,
    api: Api,
}

/// The state stays usable after a panic of another test thread: it is a handle, not an invariant.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Host {
    /// Makes the host and connects it to the switch. On failure the caller removes what is below its directory.
    pub(super) fn create(plan: Plan, switch: &NetNs) -> Result<Host, HostError> {
        for dir in [plan.dir.clone(), plan.dir.join("data"), plan.dir.join("run")] {
            fs::create_dir_all(&dir).map_err(HostError::io(format!("cannot make {}", dir.display())))?;
        }
        let namespace =
            connect(&plan, plan.address, switch).map_err(HostError::io(format!("cannot connect {}", plan.name)))?;
        let switch = switch.try_clone().map_err(HostError::io("cannot keep the switch"))?;
        let api = Api::new(&plan.name, &plan.dir.join("run/shoal.sock"));
        let (address, env) = (Mutex::new(plan.address), Mutex::new(plan.env.clone()));
        Ok(Host { plan, switch, namespace: Mutex::new(namespace), daemon: Mutex::new(None), address, env, api })
    }

    /// Its hostname.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.plan.name
    }

    /// Its place among the hosts, from 0.
    #[must_use]
    pub fn index(&self) -> usize {
        self.plan.index
    }

    /// Its address on the wire between hosts.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        lock(&self.address).addr()
    }

    /// Where it listens for other nodes.
    #[must_use]
    pub fn node_address(&self) -> String {
        format!("{}:2377", self.address())
    }

    /// A client of its API.
    #[must_use]
    pub fn api(&self) -> Api {
        self.api.clone()
    }

    /// The daemon's data directory.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.plan.dir.join("data")
    }

    /// The daemon's run directory.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.plan.dir.join("run")
    }

    /// What its daemons wrote to standard error, all of them one after another.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.plan.dir.join("daemon.log")
    }

    /// The last lines of its daemons' log.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        /// Enough for the lines that anybody asks for.
        const WINDOW: u64 = 64 << 10;
        let read = || -> std::io::Result<String> {
            let mut file = File::open(self.log_path())?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(WINDOW)))?;
            let mut bytes = Vec::new();
            file.take(WINDOW).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        match read() {
            Ok(text) => {
                let all: Vec<&str> = text.lines().collect();
                all[all.len().saturating_sub(lines)..].join("\n")
            }
            Err(error) => format!("(no log: {error})"),
        }
    }

    /// A client that stands on this host.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub fn client(&self) -> Result<Client, HostError> {
        lock(&self.namespace).try_clone().map(Client::new).map_err(HostError::io("cannot keep a namespace"))
    }

    /// The page of metrics that the daemon serves. Blocks.
    ///
    /// # Errors
    /// When it does not answer within ten seconds.
    pub fn metrics(&self) -> Result<String, HostError> {
        let cannot = || format!("cannot read the metrics of {}", self.name());
        let address = METRICS.parse().map_err(std::io::Error::other).map_err(HostError::io(cannot()))?;
        let page = self.client()?.get_blocking(address, "/metrics", Duration::from_secs(10));
        page.map(|answer| answer.body).map_err(HostError::io(cannot()))
    }

    /// The engine's id; nothing before the daemon's first start.
    #[must_use]
    pub fn engine_id(&self) -> Option<String> {
        leftovers::engine_id(&self.data_dir())
    }

    /// The daemon's process id while it was started and not yet seen to end.
    #[must_use]
    pub fn daemon_pid(&self) -> Option<u32> {
        lock(&self.daemon).as_ref().map(Child::id)
    }

    /// Starts a daemon and returns at once; [`Host::wait_ready`] waits for it.
    ///
    /// # Errors
    /// When one runs already, or the process cannot be started.
    pub fn start_daemon(&self) -> Result<(), HostError> {
        let mut daemon = lock(&self.daemon);
        if let Some(child) = daemon.as_mut() {
            match child.try_wait() {
                Ok(Some(_)) => {}
                _ => return Err(HostError::Unusable(format!("a daemon runs on {} already", self.name()))),
            }
        }
        let cannot = || format!("cannot start a daemon on {}", self.name());
        let log = OpenOptions::new().create(true).append(true).open(self.log_path());
        let log = log.map_err(HostError::io(cannot()))?;
        let out = log.try_clone().map_err(HostError::io(cannot()))?;
        let mut command = Command::new(&self.plan.exe);
        command.arg("__enter").arg(self.netns_path()).arg(self.name()).arg("--");
        command.arg(&self.plan.exe).arg("daemon");
        command.arg("--data-dir").arg(self.data_dir()).arg("--run-dir").arg(self.run_dir());
        command.arg("-H").arg(format!("unix://{}", self.api.socket().display()));
        command.arg("--log-level").arg(&self.plan.log_level).args(&self.plan.args);
        command.envs(lock(&self.env).iter().map(|(key, value)| (key, value)));
        // Only the daemon that tests run looks at it.
        command.env("CHAOS_CLOCK_FILE", self.clock_path());
        command.arg("--metrics-addr").arg(METRICS);
        command.stdin(Stdio::null()).stdout(out).stderr(log);
        // Ctrl-C on the terminal is for who made the hosts.
        command.process_group(0);
        *daemon = Some(command.spawn().map_err(HostError::io(cannot()))?);
        Ok(())
    }

    fn clock_path(&self) -> PathBuf {
        self.plan.dir.join("clock")
    }

    /// Lets the host's clock be so many milliseconds ahead of this machine's (behind, where negative), now and for later
    /// daemons. Only the daemon that tests run follows it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_clock(&self, ahead_ms: i64) -> Result<(), HostError> {
        let (path, beside) = (self.clock_path(), self.plan.dir.join("clock.tmp"));
        let written = fs::write(&beside, ahead_ms.to_string()).and_then(|()| fs::rename(&beside, &path));
        written.map_err(HostError::io(format!("cannot set the clock of {}", self.name())))
    }

    /// Lets the agent of the host's daemon stand still, or go on, now and for later daemons, while the rest of the daemon
    /// works. Only the daemon that tests run does so.
    ///
    /// # Errors
    /// When the file that says so cannot be made or removed.
    pub fn hold_agent(&self, held: bool) -> Result<(), HostError> {
        let path = self.clock_path().with_extension("held");
        let done = if held { fs::write(&path, "") } else { fs::remove_file(&path) };
        done.map_err(HostError::io(format!("cannot hold the agent of {}", self.name())))
    }

    /// Waits until the daemon answers.
    ///
    /// # Errors
    /// [`HostError::Ended`] when it ends, [`HostError::Late`] after 20 s.
    pub async fn wait_ready(&self) -> Result<(), HostError> {
        let deadline = Instant::now() + READY;
        loop {
            if let Some(child) = lock(&self.daemon).as_mut()
                && let Ok(Some(status)) = child.try_wait()
            {
                let (status, words) = (status.to_string(), self.log_tail(20));
                return Err(HostError::Ended { host: self.name().to_owned(), status, words });
            }
            let seen = match self.api.get("/_ping").await {
                Ok(_) => return Ok(()),
                Err(error) => error.to_string(),
            };
            if Instant::now() > deadline {
                return Err(HostError::Late { what: format!("the daemon of {}", self.name()), limit: READY, seen });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn signal(&self, signal: Signal) -> Result<(), HostError> {
        let Some(pid) = self.daemon_pid() else { return Ok(()) };
        match kill(Pid::from_raw(pid.cast_signed()), signal) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
            Err(error) => Err(HostError::io(format!("cannot send {signal} to {}", self.name()))(error.into())),
        }
    }

    /// Kills the daemon (SIGKILL) and waits for its end. Its tasks go on.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn kill_daemon(&self) -> Result<(), HostError> {
        self.signal(Signal::SIGKILL)?;
        if let Some(mut child) = lock(&self.daemon).take() {
            child.wait().map_err(HostError::io("cannot wait for a daemon"))?;
        }
        Ok(())
    }

    /// Tells the daemon to stop (SIGTERM) and waits for it; nothing when none runs. Its tasks go on.
    ///
    /// # Errors
    /// [`HostError::Late`] after 15 s.
    pub async fn stop_daemon(&self) -> Result<Option<ExitStatus>, HostError> {
        self.signal(Signal::SIGTERM)?;
        let deadline = Instant::now() + STOP;
        loop {
            {
                let mut daemon = lock(&self.daemon);
                let Some(child) = daemon.as_mut() else { return Ok(None) };
                if let Some(status) = child.try_wait().map_err(HostError::io("cannot wait for a daemon"))? {
                    *daemon = None;
                    return Ok(Some(status));
                }
            }
            if Instant::now() > deadline {
                let what = format!("the end of the daemon of {}", self.name());
                return Err(HostError::Late { what, limit: STOP, seen: "it runs".into() });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Stops the daemon's clockwork (SIGSTOP): it holds its connections and answers nothing.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn pause(&self) -> Result<(), HostError> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets a paused daemon go on.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn resume(&self) -> Result<(), HostError> {
        self.signal(Signal::SIGCONT)
    }

    /// Gives the host another address on the wire, as a lease that was not renewed does; the daemon is not told.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn move_to(&self, last: u8) -> Result<(), HostError> {
        let cannot = || format!("cannot give {} another address", self.name());
        let moved = super::wire::address(last);
        let mut address = lock(&self.address);
        let change = || -> std::io::Result<()> {
            let mut links = Links::open(&lock(&self.namespace))?;
            // Behind the first address of a subnet, a second one goes when the first does.
            links.delete_address(UPLINK, *address)?;
            links.add_address(UPLINK, moved)
        };
        change().map_err(HostError::io(cannot()))?;
        *address = moved;
        Ok(())
    }

    /// Runs the executable on this host with these arguments, to its end. Blocks.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn run(&self, args: &[&str]) -> Result<std::process::Output, HostError> {
        let mut command = Command::new(&self.plan.exe);
        command.arg("__enter").arg(self.netns_path()).arg(self.name()).arg("--").arg(&self.plan.exe).args(args);
        command.stdin(Stdio::null());
        command.output().map_err(HostError::io(format!("cannot run a command on {}", self.name())))
    }

    /// Sets the environment of the daemons that are started from now on.
    pub fn set_env(&self, env: Vec<(String, String)>) {
        *lock(&self.env) = env;
    }

    /// Pulls the host's cable.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn link_down(&self) -> Result<(), HostError> {
        let down = Links::open(&self.switch).and_then(|mut links| links.set_down(&port_name(self.plan.index)));
        down.map_err(HostError::io(format!("cannot take the link of {} down", self.name())))
    }

    /// Plugs the host's cable in again.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn link_up(&self) -> Result<(), HostError> {
        let up = Links::open(&self.switch).and_then(|mut links| links.set_up(&port_name(self.plan.index)));
        up.map_err(HostError::io(format!("cannot take the link of {} up", self.name())))
    }

    /// The host is gone from one moment to the next: the cable, the daemon, and every process of its tasks.
    ///
    /// # Errors
    /// What the kernel says; processes that survive SIGKILL.
    pub fn power_off(&self) -> Result<(), HostError> {
        self.link_down()?;
        self.kill_all()
    }

    /// Kills (SIGKILL) the daemon, the shims and the tasks. The cable stays: peers see their connections break.
    ///
    /// # Errors
    /// What the kernel says; processes that survive SIGKILL.
    pub fn kill_all(&self) -> Result<(), HostError> {
        self.kill_daemon()?;
        match self.engine_id() {
            Some(engine) => leftovers::kill_engine(&engine).map_err(|error| HostError::CleanUp(vec![error])),
            None => Ok(()),
        }
    }

    /// Stops the clockwork of the daemon and of every process of its tasks (SIGSTOP), as on a machine that hangs.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn freeze(&self) -> Result<(), HostError> {
        self.pause()?;
        self.signal_tasks(Signal::SIGSTOP);
        Ok(())
    }

    /// Lets a frozen host go on.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn thaw(&self) -> Result<(), HostError> {
        self.signal_tasks(Signal::SIGCONT);
        self.resume()
    }

    fn signal_tasks(&self, signal: Signal) {
        for pid in self.engine_id().iter().flat_map(|engine| leftovers::processes(engine)) {
            // One that has ended meanwhile needs no signal.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Plugs the host's cable into the wire of a group of hosts: 0 is the one that all begin at, and the only one that
    /// is reached from outside.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn connect_to_side(&self, side: usize) -> Result<(), HostError> {
        super::wire::plug_into(&self.switch, self.plan.index, side)
            .map_err(HostError::io(format!("cannot move the cable of {}", self.name())))
    }

    /// Boots the host after [`Host::power_off`] or [`Host::kill_all`] and starts its daemon: disk as it was, all else as new.
    ///
    /// # Errors
    /// What the machine refuses.
    pub fn power_on(&self) -> Result<(), HostError> {
        let cannot = || format!("cannot boot {}", self.name());
        if let Some(engine) = self.engine_id() {
            leftovers::remove_cgroups(&engine).map_err(|error| HostError::CleanUp(vec![error]))?;
        }
        for dir in [self.data_dir(), self.run_dir()] {
            leftovers::unmount_below(&dir).map_err(|error| HostError::CleanUp(vec![error]))?;
        }
        let fresh = || -> std::io::Result<NetNs> {
            fs::remove_dir_all(self.run_dir())?;
            fs::create_dir(self.run_dir())?;
            // A namespace lives as long as anything holds it; its end of the cable goes now.
            Links::open(&self.switch)?.delete(&port_name(self.plan.index))?;
            NetNs::delete(&self.netns_path())?;
            connect(&self.plan, *lock(&self.address), &self.switch)
        };
        *lock(&self.namespace) = fresh().map_err(HostError::io(cannot()))?;
        self.start_daemon()
    }

    fn netns_path(&self) -> PathBuf {
        netns_path(&self.plan.dir)
    }

    /// Everything on this machine that belongs to tasks and networks of this host: containers, mounts (with
    /// pinned namespaces), cgroups, processes, links and nf_tables tables. Empty when nothing of a cluster is there.
    ///
    /// # Errors
    /// When the host's namespace cannot be looked at.
    pub fn leftovers(&self) -> Result<Vec<String>, HostError> {
        let mut found = Vec::new();
        let names = |dir: &Path| -> Vec<String> {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
        };
        found.extend(names(&self.data_dir().join("containers")).into_iter().map(|name| format!("container {name}")));
        for dir in [self.data_dir(), self.run_dir()] {
            found.extend(leftovers::mounts_below(&dir).iter().map(|mount| format!("mount {}", mount.display())));
        }
        if let Some(engine) = self.engine_id() {
            found.extend(leftovers::processes(&engine).iter().map(|pid| format!("process {pid}")));
            let groups = leftovers::cgroups(&engine);
            found.extend(
                groups.iter().flat_map(|root| leftovers::tree(root)).map(|d| format!("cgroup {}", d.display())),
            );
        }
        let namespace = lock(&self.namespace).try_clone().map_err(HostError::io("cannot keep a namespace"))?;
        let seen = || -> std::io::Result<Vec<String>> {
            let links = Links::open(&namespace)?.list()?;
            let links = links.into_iter().filter(|link| link.name != "lo" && link.name != UPLINK);
            let tables = Tables::open(&namespace)?.list()?;
            Ok(links.map(|l| format!("link {}", l.name)).chain(tables.iter().map(|t| format!("table {t}"))).collect())
        };
        found.extend(seen().map_err(HostError::io(format!("cannot look at {}", self.name())))?);
        Ok(found.into_iter().map(|what| format!("{}: {what}", self.name())).collect())
    }

    /// All processes in containers of this host, whatever its daemon knows of them.
    #[must_use]
    pub fn container_processes(&self) -> Vec<i32> {
        let Some(engine) = self.engine_id() else { return Vec::new() };
        leftovers::processes_in(&engine, Some("task"))
    }

    /// Kills a process in a container of this host (SIGKILL); no other process of the machine.
    ///
    /// # Errors
    /// When it is none of them.
    pub fn kill_in_container(&self, pid: i32) -> Result<(), HostError> {
        if !self.container_processes().contains(&pid) {
            return Err(HostError::Unusable(format!("{pid} is no process in a container of {}", self.name())));
        }
        kill(Pid::from_raw(pid), Signal::SIGKILL)
            .map_err(|errno| HostError::io(format!("cannot kill {pid} on {}", self.name()))(errno.into()))
    }

    /// Ends the daemon for good; used when all is cleaned up.
    pub(super) fn abandon(&self) -> Result<(), HostError> {
        self.thaw()?;
        self.kill_daemon()
    }
}

fn netns_path(dir: &Path) -> PathBuf {
    dir.join("netns")
}

/// Where clients on the host's own machine find it.
pub(super) fn socket_address(host: &Host, port: u16) -> SocketAddr {
    SocketAddr::from((host.address(), port))
}

/// Makes the host's namespace and its cable to the switch.
fn connect(plan: &Plan, address: Ipv4Net, switch: &NetNs) -> std::io::Result<NetNs> {
    let namespace = NetNs::create(&netns_path(&plan.dir))?;
    let port = port_name(plan.index);
    let mut links = Links::open(switch)?;
    links.create_veth_into(&port, None, MTU, &Peer { namespace: &namespace, name: UPLINK, mac: None })?;
    links.set_controller(&port, Some(super::wire::BRIDGE))?;
    links.set_up(&port)?;
    let mut inside = Links::open(&namespace)?;
    inside.set_up("lo")?;
    inside.add_address(UPLINK, address)?;
    inside.set_up(UPLINK)?;
    Ok(namespace)
}
