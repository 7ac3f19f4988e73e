//! Which cgroup hierarchies this host has.

use std::path::PathBuf;

use super::CgroupError;
use crate::plan::limits::Version;

/// The generation of cgroups that the host runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupLayout {
    /// All controllers in version 1 hierarchies.
    V1,
    /// Controllers in version 1, beside a version 2 hierarchy.
    Hybrid,
    /// One version 2 hierarchy.
    V2,
}

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    pub(crate) mount: PathBuf,
    pub(crate) version: Version,
    /// v1: the controllers, or `name=systemd`; v2: those that it offers at its root.
    pub(crate) controllers: Vec<String>,
}

/// The controllers of version 1 that containers are placed in. `name=systemd` too: systemd decides by it what belongs
/// to a unit and dies with it.
const USED: [&str; 13] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "pids",
    "devices",
    "blkio",
    "freezer",
    "hugetlb",
    "rdma",
    "net_cls",
    "net_prio",
    "name=systemd",
];

/// Reads the hierarchies out of `/proc/self/mountinfo`; `offered` answers with a v2 mount's `cgroup.controllers`.
pub(crate) fn parse(
    mountinfo: &str,
    offered: impl Fn(&PathBuf) -> String,
) -> Result<(CgroupLayout, Vec<Hierarchy>), CgroupError> {
    let mut hierarchies: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (Some(mount), mut fields) = (left.split(' ').nth(4), right.split(' ')) else { continue };
        let mount = PathBuf::from(unescape(mount));
        let (Some(fs), _, Some(options)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let hierarchy = match fs {
            "cgroup2" => {
                let controllers = offered(&mount).split_whitespace().map(str::to_owned).collect();
                Hierarchy { mount, version: Version::V2, controllers }
            }
            "cgroup" => {
                let controllers: Vec<String> =
                    options.split(',').filter(|option| USED.contains(option)).map(str::to_owned).collect();
                Hierarchy { mount, version: Version::V1, controllers }
            }
            _ => continue,
        };
        let known = hierarchies.iter().any(|known| {
            known.version == hierarchy.version
                && (hierarchy.version == Version::V2 || known.controllers == hierarchy.controllers)
        });
        let used = hierarchy.version == Version::V2 || !hierarchy.controllers.is_empty();
        if used && !known {
            hierarchies.push(hierarchy);
        }
    }
    let count = |version| hierarchies.iter().filter(|hierarchy| hierarchy.version == version).count();
    let layout = match (count(Version::V1), count(Version::V2)) {
        (0, 0) => return Err(CgroupError::None),
        (0, _) => CgroupLayout::V2,
        (_, 0) => CgroupLayout::V1,
        _ => CgroupLayout::Hybrid,
    };
    Ok((layout, hierarchies))
}

/// mountinfo writes blanks and backslashes in octal.
fn unescape(text: &str) -> String {
    let (mut out, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let Some((&first, tail)) = rest.split_first() {
        let octal = (first == b'\\').then(|| tail.get(..3)).flatten().and_then(|digits| {
            digits.iter().try_fold(0u32, |n, d| (b'0'..=b'7').contains(d).then(|| n * 8 + u32::from(d - b'0')))
        });
        match octal.and_then(|n| u8::try_from(n).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(mountinfo: &str, expected: CgroupLayout, mounts: &[(&str, &[&str])]) {
        let (layout, hierarchies) = parse(mountinfo, |_| "cpu memory pids\n".to_owned()).unwrap();
        assert_eq!(layout, expected);
        let seen: Vec<(String, Vec<&str>)> = hierarchies
            .iter()
            .map(|h| (h.mount.display().to_string(), h.controllers.iter().map(String::as_str).collect()))
            .collect();
        let expected: Vec<(String, Vec<&str>)> = mounts.iter().map(|(m, c)| ((*m).to_owned(), c.to_vec())).collect();
        assert_eq!(seen, expected);
    }

    #[test]
    fn layouts() {
        let v2 = "25 1 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        check(v2, CgroupLayout::V2, &[("/sys/fs/cgroup", &["cpu", "memory", "pids"])]);
        let hybrid = "32 31 0:29 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
            33 31 0:30 / /sys/fs/cgroup/cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
            34 31 0:31 / /sys/fs/cgroup/net rw - cgroup cgroup rw,net_cls\n\
            35 31 0:32 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
            36 31 0:33 / /sys/fs/cgroup/uni\\040fied rw - cgroup2 cgroup2 rw\n";
        check(
            hybrid,
            CgroupLayout::Hybrid,
            &[
                ("/sys/fs/cgroup/cpu", &["cpu", "cpuacct"]),
                ("/sys/fs/cgroup/net", &["net_cls"]),
                ("/sys/fs/cgroup/systemd", &["name=systemd"]),
                ("/sys/fs/cgroup/uni fied", &["cpu", "memory", "pids"]),
            ],
        );
        let v1 = "32 31 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        check(v1, CgroupLayout::V1, &[("/sys/fs/cgroup/memory", &["memory"])]);
        assert!(parse("1 2 0:3 / / rw - ext4 /dev/vda rw\n", |_| String::new()).is_err());
    }
}
