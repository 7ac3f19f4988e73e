//! What somebody would make by hand with the same parts: on each of two hosts a VXLAN device and a bridge, and a namespace
//! that is connected to it. No addresses are translated, no connections are followed, nothing is filtered.

use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use chaos_tests::hosts::{Host, Hosts, HostsConfig};
use overlay_net::kernel::NetNs;

/// Two hosts, with what stands for a task on each.
pub(crate) struct HandMade {
    hosts: Hosts,
}

impl HandMade {
    /// Makes them.
    ///
    /// # Errors
    /// What the machine or `ip` says.
    pub(crate) fn create() -> Result<HandMade> {
        let made = HandMade { hosts: Hosts::create(&HostsConfig::new(PathBuf::from("/nonexistent"), 2))? };
        for index in 0..2 {
            let task = made.task(index);
            // Removed with the hosts' directory.
            NetNs::create(&task)?;
            let (local, remote) = (made.host(index).address(), made.host(1 - index).address());
            ip(
                &made.underlay(index),
                &format!(
                    "link set lo up
                    link add br0 type bridge
                    link set br0 up
                    link add vx0 type vxlan id 7 local {local} remote {remote} dstport 4789 dev eth0
                    link set vx0 master br0
                    link set vx0 up
                    link add port0 mtu 1450 type veth peer name eth0 mtu 1450 netns {}
                    link set port0 master br0
                    link set port0 up",
                    task.display()
                ),
            )?;
            ip(&task, &format!("link set lo up\naddr add {}/24 dev eth0\nlink set eth0 up", made.address(index)))?;
        }
        Ok(made)
    }

    fn host(&self, index: usize) -> &Host {
        &self.hosts.all()[index]
    }

    /// The namespace of a host itself.
    pub(crate) fn underlay(&self, index: usize) -> PathBuf {
        self.hosts.dir().join(self.host(index).name()).join("netns")
    }

    /// The address of a host itself.
    pub(crate) fn underlay_address(&self, index: usize) -> Ipv4Addr {
        self.host(index).address()
    }

    /// The namespace of what stands for a task.
    pub(crate) fn task(&self, index: usize) -> PathBuf {
        self.hosts.dir().join(self.host(index).name()).join("task")
    }

    /// Its address.
    pub(crate) fn address(&self, index: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 88, 0, if index == 0 { 1 } else { 2 })
    }

    /// Removes everything.
    ///
    /// # Errors
    /// What could not be removed.
    pub(crate) fn clean_up(mut self) -> Result<()> {
        Ok(self.hosts.clean_up()?)
    }
}

/// Has `ip` do this in a namespace.
fn ip(namespace: &Path, script: &str) -> Result<()> {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", namespace.display())).args(["ip", "-batch", "-"]);
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().context("ip")?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(script.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "ip: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
