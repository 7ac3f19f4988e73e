//! Hosts on one machine: real daemons in network namespaces on a private bridge.
//!
//! ```text
//!   switch namespace        bridge "wire" 10.99.0.1
//!     port0 ── eth0 of host-1  10.99.0.11      each host: network namespace, host name, data and run directory,
//!     port1 ── eth0 of host-2  10.99.0.12      cgroups of its engine, one `shoal daemon`
//!     ...
//! ```
//!
//! Several sets of hosts can be on a machine at once: each lives below a directory of its own, has its own switch, and
//! nothing of it has a name that the machine shares (but cgroups, which carry the engine's id). The demo, the tests of
//! chaos-tests and benchmarks use the same code.
//!
//! Dropping [`Hosts`] removes everything: processes, cgroups, mounts, namespaces, files. What a killed process left is
//! removed by the next that makes hosts.

mod api;
mod error;
mod host;
mod leftovers;
mod wire;

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use overlay_net::kernel::NetNs;

pub use api::{Api, Body, Freshness, ServiceDraft, TaskView, encode};
pub use error::HostError;
pub use host::Host;
pub use wire::Client;

/// Names of directories that belong to sets of hosts begin with this.
const PREFIX: &str = "shoal-hosts-";
/// The switch's namespace is pinned as this file.
const SWITCH: &str = "switch";
/// The first host's last byte of the address.
const FIRST: usize = 11;
/// Addresses end at 254.
const MAX_HOSTS: usize = 200;

/// What hosts are to be made.
#[derive(Debug, Clone)]
pub struct HostsConfig {
    /// The executable that is run as `<exe> __enter ...` and `<exe> daemon ...`.
    pub exe: PathBuf,
    /// How many, 1 to 200.
    pub count: usize,
    /// Where their directory is made. It must be on a real file system: overlay roots cannot lie on overlayfs.
    pub parent: PathBuf,
    /// What daemons log, as `--log-level` takes it.
    pub log_level: String,
    /// Variables of the daemons' environment.
    pub env: Vec<(String, String)>,
    /// More flags of `shoal daemon`.
    pub args: Vec<String>,
}

impl HostsConfig {
    /// So many hosts below `/var/tmp` that run `exe`.
    #[must_use]
    pub fn new(exe: PathBuf, count: usize) -> HostsConfig {
        HostsConfig {
            exe,
            count,
            parent: PathBuf::from("/var/tmp"),
            log_level: "info,openraft=warn".into(),
            env: Vec::new(),
            args: Vec::new(),
        }
    }
}

/// A set of hosts on a wire. Dropping it removes everything.
#[derive(Debug)]
pub struct Hosts {
    base: PathBuf,
    switch: NetNs,
    hosts: Vec<Host>,
    cleaned: bool,
    /// Held as long as the directory has an owner.
    _lock: Flock<File>,
}

/// Why hosts cannot be made by this process; nothing when they can.
#[must_use]
pub fn unusable() -> Option<String> {
    (!nix::unistd::geteuid().is_root()).then(|| "making hosts (network namespaces, mounts, cgroups) needs root".into())
}

impl Hosts {
    /// Makes hosts, without daemons, and connects them.
    ///
    /// # Errors
    /// When this user may not, or the machine refuses; nothing is left then.
    pub fn create(config: &HostsConfig) -> Result<Hosts, HostError> {
        if let Some(reason) = unusable() {
            return Err(HostError::Unusable(reason));
        }
        if !(1..=MAX_HOSTS).contains(&config.count) {
            return Err(HostError::Unusable(format!("{} hosts: must be 1 to {MAX_HOSTS}", config.count)));
        }
        sweep(&config.parent);
        let (base, lock) = claim_directory(&config.parent)?;
        let made = wire::create_switch(&base.join(SWITCH))
            .map_err(HostError::io("cannot make the wire between the hosts"))
            .and_then(|switch| {
                let hosts: Result<Vec<Host>, HostError> =
                    (0..config.count).map(|index| Host::create(plan(config, &base, index), &switch)).collect();
                Ok((hosts?, switch))
            });
        match made {
            Ok((hosts, switch)) => Ok(Hosts { base, switch, hosts, cleaned: false, _lock: lock }),
            Err(error) => {
                leftovers::remove_all(&base);
                Err(error)
            }
        }
    }

    /// All hosts, in order.
    #[must_use]
    pub fn all(&self) -> &[Host] {
        &self.hosts
    }

    /// The directory that everything is below.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.base
    }

    /// The pinned namespace that is outside of all hosts, with a cable to each; for `nsenter --net=`.
    #[must_use]
    pub fn switch_path(&self) -> PathBuf {
        self.base.join(SWITCH)
    }

    /// A client outside of all hosts, with a cable to each.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub fn client(&self) -> Result<Client, HostError> {
        self.switch.try_clone().map(Client::new).map_err(HostError::io("cannot keep a namespace"))
    }

    /// Starts a daemon on each host and waits until all answer.
    ///
    /// # Errors
    /// The first that does not.
    pub async fn start_daemons(&self) -> Result<(), HostError> {
        for host in &self.hosts {
            host.start_daemon()?;
        }
        for host in &self.hosts {
            host.wait_ready().await?;
        }
        Ok(())
    }

    /// Removes everything. Called again it does nothing.
    ///
    /// # Errors
    /// [`HostError::CleanUp`] with all that could not be removed.
    pub fn clean_up(&mut self) -> Result<(), HostError> {
        if std::mem::replace(&mut self.cleaned, true) {
            return Ok(());
        }
        let mut errors: Vec<String> =
            self.hosts.iter().filter_map(|host| host.abandon().err()).map(|e| crate::chain(&e)).collect();
        errors.extend(leftovers::remove_all(&self.base));
        if errors.is_empty() { Ok(()) } else { Err(HostError::CleanUp(errors)) }
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        if let Err(error) = self.clean_up() {
            eprintln!("{error}");
        }
    }
}

impl Host {
    /// Where a client finds a port of this host.
    #[must_use]
    pub fn at(&self, port: u16) -> SocketAddr {
        host::socket_address(self, port)
    }
}

fn plan(config: &HostsConfig, base: &Path, index: usize) -> host::Plan {
    let name = format!("host-{}", index + 1);
    host::Plan {
        index,
        address: wire::address(u8::try_from(FIRST + index).unwrap_or(u8::MAX)),
        dir: base.join(&name),
        name,
        exe: config.exe.clone(),
        log_level: config.log_level.clone(),
        env: config.env.clone(),
        args: config.args.clone(),
    }
}

/// Makes a directory whose lock says that it has an owner. It gets its final name when the lock is held.
fn claim_directory(parent: &Path) -> Result<(PathBuf, Flock<File>), HostError> {
    let cannot = || format!("cannot make a directory in {}", parent.display());
    // Without the process id, names of several runs could only be told apart by chance.
    let name = format!("{}-{:08x}", std::process::id(), rand::random::<u32>());
    let (young, base) = (parent.join(format!("shoal-young-{name}")), parent.join(format!("{PREFIX}{name}")));
    let make = || -> std::io::Result<Flock<File>> {
        fs::create_dir(&young)?;
        let file = File::create_new(young.join(leftovers::LOCK))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?;
        fs::rename(&young, &base)?;
        Ok(lock)
    };
    match make() {
        Ok(lock) => Ok((base, lock)),
        Err(error) => {
            let _ = fs::remove_dir_all(&young);
            Err(HostError::io(cannot())(error))
        }
    }
}

/// Removes what processes left that were killed before they could clean up.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let Ok(file) = File::open(entry.path().join(leftovers::LOCK)) else { continue };
        // Whoever made it holds the lock as long as it lives.
        if let Ok(_lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            leftovers::remove_all(&entry.path());
        }
    }
}
