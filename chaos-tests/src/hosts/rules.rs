//! Rules in the hosts' own firewalls: packets that are lost on the way, and ways that are closed.
//!
//! Losses are made where packets arrive: a sender is not told of a packet that the network lost, but it is of one that
//! its own host dropped. Needs `nft`, which the daemons do not.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::{Cluster, Host};

/// The table of these rules; gone when they are.
const TABLE: &str = "chaos";

/// What carries the words of nodes to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// The gossip.
    Udp,
    /// Raft, sessions, requests.
    Tcp,
}

/// Why rules cannot be made on this machine; nothing when they can.
#[must_use]
pub fn rules_unusable() -> Option<String> {
    let run = Command::new("nft").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    (!run.is_ok_and(|status| status.success())).then(|| "losing packets needs the command nft".to_owned())
}

impl Cluster {
    /// Every host loses this many of 100 packets that come over the wire, whatever they are.
    ///
    /// # Errors
    /// What `nft` says.
    pub fn lose_packets(&self, percent: u8) -> Result<()> {
        let rule = format!("iifname eth0 meta l4proto {{ tcp, udp }} numgen random mod 100 < {percent} drop");
        self.hosts().iter().try_for_each(|host| replace(host, &rule))
    }

    /// Nothing that nodes say over this transport reaches the host, or comes from it.
    ///
    /// # Errors
    /// What `nft` says.
    pub fn block(&self, index: usize, transport: Transport) -> Result<()> {
        let kind = match transport {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
        };
        let victim = self.host(index).address();
        for host in self.hosts() {
            let from = if host.index() == index { String::new() } else { format!("ip saddr {victim}") };
            replace(
                host,
                &format!("iifname eth0 {from} {kind} sport 2377 drop; iifname eth0 {from} {kind} dport 2377 drop"),
            )?;
        }
        Ok(())
    }

    /// Removes all rules.
    ///
    /// # Errors
    /// What `nft` says.
    pub fn unblock(&self) -> Result<()> {
        self.hosts().iter().try_for_each(|host| nft(host, &format!("table inet {TABLE}\ndelete table inet {TABLE}\n")))
    }
}

/// Makes these the only rules of ours on a host.
fn replace(host: &Host, rules: &str) -> Result<()> {
    let chain = format!("chain in {{ type filter hook prerouting priority -300; {rules}; }}");
    nft(host, &format!("table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n{chain}\n}}\n"))
}

/// Has `nft` do this in the host's network namespace.
pub(crate) fn nft(host: &Host, script: &str) -> Result<()> {
    let output = host.client()?.visit(|| {
        let mut command = Command::new("nft");
        command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(script.as_bytes())?;
        }
        child.wait_with_output()
    });
    let output = output.with_context(|| format!("nft on {}", host.name()))?;
    ensure!(output.status.success(), "nft on {}: {}", host.name(), String::from_utf8_lossy(&output.stderr));
    Ok(())
}
