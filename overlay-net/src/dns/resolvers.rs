//! The host's own name servers, as its `resolv.conf` has them now.

use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::config::Resolvers;

/// How often the file is looked at while names are asked for: the host may have moved to another network.
const LOOK: Duration = Duration::from_secs(1);
/// Bytes of a file that are read at the most.
const FILE_MAX: u64 = 64 << 10;
/// Servers of a file that are used; the C library takes three.
const SERVERS_MAX: usize = 4;

/// What tells two states of a file apart.
type Stamp = (u64, u64, i64, i64, u64);

/// Where the host asks for names.
#[derive(Debug)]
pub(crate) struct HostResolvers {
    source: Resolvers,
    servers: Vec<IpAddr>,
    looked: Option<Instant>,
    stamp: Option<Stamp>,
}

impl HostResolvers {
    pub(crate) fn new(source: Resolvers) -> HostResolvers {
        let servers = match &source {
            Resolvers::Fixed(servers) => servers.clone(),
            Resolvers::File(_) => Vec::new(),
        };
        HostResolvers { source, servers, looked: None, stamp: None }
    }

    /// The servers, in order. A file that cannot be read for the moment (it is being replaced) leaves them as they were.
    pub(crate) fn servers(&mut self, now: Instant) -> &[IpAddr] {
        if let Resolvers::File(path) = &self.source
            && self.looked.is_none_or(|looked| now.saturating_duration_since(looked) >= LOOK)
        {
            self.looked = Some(now);
            let stamp = stamp(path);
            if stamp.is_some()
                && stamp != self.stamp
                && let Some(servers) = read(path)
            {
                tracing::info!(path = %path.display(), ?servers, "the host's name servers");
                (self.servers, self.stamp) = (servers, stamp);
            }
        }
        &self.servers
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let file = std::fs::metadata(path).ok()?;
    Some((file.dev(), file.ino(), file.mtime(), file.mtime_nsec(), file.len()))
}

fn read(path: &Path) -> Option<Vec<IpAddr>> {
    let mut text = Vec::new();
    let file = std::fs::File::open(path).ok()?;
    std::io::Read::read_to_end(&mut std::io::Read::take(file, FILE_MAX), &mut text).ok()?;
    Some(name_servers(&String::from_utf8_lossy(&text)))
}

/// The servers of a `resolv.conf`. One on loopback is not reachable as such from elsewhere, but they are asked from the
/// host's own namespace, so it may stay. An address with a scope is left out.
fn name_servers(text: &str) -> Vec<IpAddr> {
    let words = text.lines().map(str::split_ascii_whitespace);
    let servers = words.filter_map(|mut words| (words.next()? == "nameserver").then(|| words.next())?);
    let usable = |ip: &IpAddr| *ip != IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    servers.filter_map(|server| server.parse().ok()).filter(usable).take(SERVERS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn servers_are_read() {
        let text = "# nameserver 1.1.1.1\nnameserver 10.0.0.1 \nnameserver\t2001:db8::1\nsearch nameserver\n\
                    nameserver 0.0.0.0\nnameservers 9.9.9.9\nnameserver fe80::1%eth0\nnameserver\nnameserver x\n\
                    nameserver 127.0.0.53 # here\n";
        assert_eq!(name_servers(text), [ip("10.0.0.1"), ip("2001:db8::1"), ip("127.0.0.53")]);
        assert_eq!(name_servers(&"nameserver 10.0.0.1\n".repeat(9)).len(), SERVERS_MAX);
    }

    #[test]
    fn a_file_that_changes_is_followed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        let mut resolvers = HostResolvers::new(Resolvers::File(path.clone()));
        let start = Instant::now();
        assert!(resolvers.servers(start).is_empty());
        std::fs::write(&path, "nameserver 10.0.0.1\n").unwrap();
        assert!(resolvers.servers(start).is_empty(), "not at each question");
        assert_eq!(resolvers.servers(start + LOOK), [ip("10.0.0.1")]);
        // Replaced, as programs do it; gone for a moment.
        std::fs::remove_file(&path).unwrap();
        assert_eq!(resolvers.servers(start + LOOK * 2), [ip("10.0.0.1")]);
        std::fs::write(directory.path().join("new"), "nameserver 10.0.0.2\nnameserver 10.0.0.3\n").unwrap();
        std::fs::rename(directory.path().join("new"), &path).unwrap();
        assert_eq!(resolvers.servers(start + LOOK * 3), [ip("10.0.0.2"), ip("10.0.0.3")]);
    }
}
