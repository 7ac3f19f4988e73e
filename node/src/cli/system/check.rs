//! `shoal system check`: tries out what a node needs of the kernel, in namespaces that are gone afterwards.
//!
//! Trying beats reading `/proc`: a module that is not loaded yet is loaded by the attempt, as it would be by the
//! daemon.

use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use overlay_net::Overlay;
use overlay_net::kernel::{Links, NetNs, Peer, Vxlan};
use serde_json::json;

use crate::cli::error::CliError;
use crate::cli::output::{self, List, ListFormat};

/// The oldest kernel that Shoal is made for.
const KERNEL: (u32, u32) = (6, 1);

/// One thing that was tried.
struct Finding {
    what: &'static str,
    /// What it is needed for.
    purpose: &'static str,
    /// A node without it is a good node.
    optional: bool,
    /// What was found, or what is wrong.
    result: Result<String, String>,
}

pub(super) fn run(as_json: bool) -> Result<(), CliError> {
    let findings = findings();
    if as_json {
        let lines: Vec<_> = findings
            .iter()
            .map(|f| {
                let (Ok(detail) | Err(detail)) = &f.result;
                json!({"Name": f.what, "Ok": f.result.is_ok(), "Optional": f.optional, "Detail": detail, "Purpose": f.purpose})
            })
            .collect();
        output::json(&lines)?;
    } else {
        let mut list = List::new(&[("", "Ok"), ("WHAT", "Name"), ("FOUND", "Detail"), ("NEEDED FOR", "Purpose")]);
        for f in &findings {
            let (Ok(detail) | Err(detail)) = &f.result;
            let mark = match &f.result {
                Ok(_) => "ok",
                Err(_) if f.optional => "no",
                Err(_) => "MISSING",
            };
            list.row([mark.to_owned(), f.what.to_owned(), detail.clone(), f.purpose.to_owned()]);
        }
        list.print(&ListFormat::default())?;
    }
    match findings.iter().filter(|f| f.result.is_err() && !f.optional).count() {
        0 => Ok(()),
        n => Err(CliError::Failed(format!("{n} of {} things that a node needs are missing here", findings.len()))),
    }
}

fn findings() -> Vec<Finding> {
    let finding = |what, purpose, result| Finding { what, purpose, optional: false, result };
    vec![
        finding("root", "namespaces, mounts, cgroups", root()),
        finding("kernel", "everything", kernel(&rustix::system::uname().release().to_string_lossy())),
        finding("namespaces", "containers", namespaces(Path::new("/proc/self/ns"))),
        finding("cgroups", "limits", cgroups()),
        finding("overlayfs", "images", on_thread(overlayfs)),
        finding("veth", "networks", network(veth)),
        finding("bridge", "networks", network(bridge)),
        finding("vxlan", "networks between hosts", network(vxlan)),
        finding("nftables", "virtual addresses and published ports", worked(Overlay::try_rules(false))),
        Finding { optional: true, ..finding("nftables, IPv6", "networks with IPv6", worked(Overlay::try_rules(true))) },
        Finding {
            optional: true,
            ..finding("nftables, egress", "clients' own addresses at published ports", worked(Overlay::try_returns()))
        },
        Finding { optional: true, ..finding("wireguard", "encrypted networks alone", worked(Overlay::try_sealing())) },
    ]
}

fn worked(tried: io::Result<()>) -> Result<String, String> {
    tried.map(|()| "works".to_owned()).map_err(|error| error.to_string())
}

fn root() -> Result<String, String> {
    if nix::unistd::geteuid().is_root() {
        Ok("yes".to_owned())
    } else {
        Err("not root, so most of what follows cannot be tried".to_owned())
    }
}

fn kernel(release: &str) -> Result<String, String> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) >= KERNEL => Ok(release.to_owned()),
        _ => Err(format!("{release} is older than {}.{}", KERNEL.0, KERNEL.1)),
    }
}

fn namespaces(dir: &Path) -> Result<String, String> {
    let missing: Vec<&str> =
        ["net", "mnt", "pid", "ipc", "uts", "cgroup"].into_iter().filter(|n| !dir.join(n).exists()).collect();
    if missing.is_empty() { Ok("all".to_owned()) } else { Err(format!("no {}", missing.join(", "))) }
}

fn cgroups() -> Result<String, String> {
    let unified = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").ok();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    controllers(unified.as_deref(), &mounts)
}

/// `unified`: the controllers of a host with version 2 only; `mounts`: where those of version 1 are.
fn controllers(unified: Option<&str>, mounts: &str) -> Result<String, String> {
    const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];
    let has = |name: &str| match unified {
        Some(list) => list.split_whitespace().any(|c| c == name),
        None => mounts.lines().any(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            fields.get(2) == Some(&"cgroup") && fields.get(3).is_some_and(|o| o.split(',').any(|c| c == name))
        }),
    };
    let version = if unified.is_some() { "version 2" } else { "version 1" };
    let missing: Vec<&str> = NEEDED.into_iter().filter(|name| !has(name)).collect();
    match missing.is_empty() {
        true => Ok(format!("{version} with {}", NEEDED.join(", "))),
        false => Err(format!("{version} without {}", missing.join(", "))),
    }
}

/// A thread of its own, whose namespaces end with it.
fn on_thread(attempt: fn() -> io::Result<()>) -> Result<String, String> {
    match std::thread::spawn(attempt).join() {
        Ok(Ok(())) => Ok("works".to_owned()),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err("the attempt panicked".to_owned()),
    }
}

/// Mounts an overlay on a tmpfs in a mount namespace that nobody else sees.
fn overlayfs() -> io::Result<()> {
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    let dir = tempfile::tempdir()?;
    mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some("size=64k"))?;
    let at = |name: &str| dir.path().join(name);
    for name in ["lower", "upper", "work", "merged"] {
        std::fs::create_dir(at(name))?;
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        at("lower").display(),
        at("upper").display(),
        at("work").display()
    );
    let merged = at("merged");
    let mounted =
        mount(Some("overlay"), &merged, Some("overlay"), MsFlags::empty(), Some(options.as_str())).map_err(Into::into);
    let _ = nix::mount::umount(&merged);
    // Lets the directory below be removed from the real file system, which sees none of these mounts.
    let _ = nix::mount::umount(dir.path());
    mounted
}

fn network(attempt: fn(&NetNs, &mut Links) -> io::Result<()>) -> Result<String, String> {
    worked(NetNs::anonymous().and_then(|namespace| {
        let mut links = Links::open(&namespace)?;
        attempt(&namespace, &mut links)
    }))
}

fn veth(namespace: &NetNs, links: &mut Links) -> io::Result<()> {
    links.create_veth_into("probe0", None, 1500, &Peer { namespace, name: "probe1", mac: None })
}

fn bridge(_: &NetNs, links: &mut Links) -> io::Result<()> {
    links.create_bridge("probe0")
}

fn vxlan(namespace: &NetNs, links: &mut Links) -> io::Result<()> {
    let vxlan = Vxlan { vni: 1, local: Ipv4Addr::LOCALHOST, port: 4789, mtu: 1450 };
    links.create_vxlan_into(namespace, "probe0", &vxlan)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels() {
        assert!(kernel("6.1.0-18-amd64").is_ok());
        assert!(kernel("6.18").is_ok());
        assert!(kernel("7.0-rc1").is_ok());
        assert!(kernel("5.15.0").is_err());
        assert!(kernel("weird").is_err());
    }

    #[test]
    fn controllers_of_both_versions() {
        assert!(controllers(Some("cpuset cpu io memory pids"), "").is_ok());
        assert_eq!(controllers(Some("cpu io"), "").unwrap_err(), "version 2 without memory, pids");
        let mounts = "cgroup /c/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\ncgroup /c/memory cgroup rw,memory 0 0\n\
                      cgroup /c/pids cgroup rw,pids 0 0\n";
        assert!(controllers(None, mounts).is_ok());
        assert_eq!(controllers(None, "").unwrap_err(), "version 1 without cpu, memory, pids");
    }

    #[test]
    fn the_attempts_leave_nothing_behind() {
        let mounts = || std::fs::read_to_string("/proc/self/mounts").unwrap().matches("/merged").count();
        let before = mounts();
        // Whatever this machine can do, every attempt comes to an end.
        assert_eq!(findings().len(), 12);
        assert_eq!(mounts(), before);
    }
}
