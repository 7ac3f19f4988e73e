//! How many neighbours the kernel remembers.
//!
//! It has one table for each address family, and the limits of that table hold for all namespaces of a machine together:
//! for every task, and for each whom it has spoken to lately. Where the table is full, nobody new is reached for seconds,
//! and who asks sees a timeout. The kernel's own limit of 1024 is ten tasks that speak to a hundred others each.
//! Permanent neighbours, as those on our bridges, do not count (`neigh_alloc` in the kernel's `net/core/neighbour.c`).
//!
//! The owner raises the limits when it starts and when it looks after the host's values. They are never lowered, nor put
//! back at the end: others may have come to need them.

use std::fmt;
use std::io;
use std::path::Path;

/// The limits, and what they are raised to; Docker's overlay has the same. An entry takes about 400 bytes.
const LIMITS: [(&str, u32); 3] = [("gc_thresh1", 8192), ("gc_thresh2", 49_152), ("gc_thresh3", 65_536)];

/// A limit that is too low.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Low {
    name: String,
    is: u32,
    wanted: u32,
}

impl fmt::Display for Low {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}, less than {}", self.name, self.is, self.wanted)
    }
}

/// Raises the limits of this machine that are too low, for good; gives those, for people. Where the calling thread's
/// namespace is not the machine's first one, the kernel does not show them, and there is nothing to do.
///
/// # Errors
/// When one of them cannot be written, for example since `/proc/sys` is read-only.
pub fn raise_neighbour_limits() -> io::Result<Vec<String>> {
    raise(Path::new("/proc/sys"))
}

/// The limits that are too low, as far as the kernel shows them here.
pub(crate) fn low_neighbour_limits() -> Vec<Low> {
    low(Path::new("/proc/sys"))
}

fn low(root: &Path) -> Vec<Low> {
    let names = ["net/ipv4", "net/ipv6"].into_iter().flat_map(|family| LIMITS.map(|limit| (family, limit)));
    let low = |(family, (limit, wanted))| {
        let name = format!("{family}/neigh/default/{limit}");
        let is = std::fs::read_to_string(root.join(&name)).ok()?.trim().parse().ok()?;
        (is < wanted).then_some(Low { name, is, wanted })
    };
    names.filter_map(low).collect()
}

fn raise(root: &Path) -> io::Result<Vec<String>> {
    let mut raised = Vec::new();
    for low in low(root) {
        std::fs::write(root.join(&low.name), low.wanted.to_string())
            .map_err(|error| io::Error::new(error.kind(), format!("{low}: {error}")))?;
        raised.push(format!("{} was {}", low.name, low.is));
    }
    Ok(raised)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_raised_and_never_lowered() {
        let root = tempfile::tempdir().unwrap();
        let four = root.path().join("net/ipv4/neigh/default");
        std::fs::create_dir_all(&four).unwrap();
        let value = |name: &str| std::fs::read_to_string(four.join(name)).unwrap();
        for (name, is) in [("gc_thresh1", "128\n"), ("gc_thresh2", "60000\n"), ("gc_thresh3", "what?\n")] {
            std::fs::write(four.join(name), is).unwrap();
        }
        // No limits of IPv6 are shown here: that is none of our business.
        let found: Vec<String> = low(root.path()).iter().map(Low::to_string).collect();
        assert_eq!(found, ["net/ipv4/neigh/default/gc_thresh1 is 128, less than 8192"]);
        assert_eq!(raise(root.path()).unwrap(), ["net/ipv4/neigh/default/gc_thresh1 was 128"]);
        assert_eq!([value("gc_thresh1"), value("gc_thresh2"), value("gc_thresh3")], ["8192", "60000\n", "what?\n"]);
        assert_eq!(raise(root.path()).unwrap(), [""; 0]);
    }
}
