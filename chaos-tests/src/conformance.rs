//! What the validation programs of `opencontainers/runtime-tools` say, and what of it does not apply: pure.
//!
//! A program speaks TAP. Its complaints count, but for those of [`EXEMPTIONS`]: each names the program, the complaint and
//! the reason, and holds only on hosts of which its reason is true.

/// What one run of one program said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Said {
    /// Points that were found good.
    pub good: usize,
    /// The others, by their descriptions; and the program's own failure.
    pub complaints: Vec<String>,
}

impl Said {
    /// Reads the output of a program that ended with `code` (`None`: it had to be ended) and this on its standard error.
    #[must_use]
    pub fn read(output: &str, errors: &str, code: Option<i32>) -> Said {
        let mut said = Said::default();
        for line in output.lines() {
            if line.starts_with("ok ") {
                said.good += 1;
            } else if let Some(rest) = line.strip_prefix("not ok ") {
                let description = rest.split_once(" - ").map_or(rest, |(_, description)| description);
                said.complaints.push(description.trim().to_owned());
            } else if let Some(reason) = line.strip_prefix("Bail out!") {
                said.complaints.push(format!("bail out: {}", reason.trim()));
            }
        }
        let last = || {
            let told = errors.lines().rfind(|line| !line.trim().is_empty() && !line.starts_with("exit status"));
            told.unwrap_or("without a word").trim().to_owned()
        };
        match code {
            Some(0) if said.good == 0 && said.complaints.is_empty() => {
                // Some have no points: they tell an error, or are content when they end well.
                let told = output.lines().filter_map(|line| line.trim().strip_prefix("\"error\": \""));
                said.complaints.extend(told.filter(|text| *text != "\"").map(str::to_owned));
            }
            Some(0) => {}
            Some(code) => said.complaints.push(format!("exit {code}: {}", last())),
            None => said.complaints.push("it did not end in time".into()),
        }
        said
    }
}

/// What a reason for an exemption may depend on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Host {
    /// Controllers of cgroup v1 that are mounted.
    pub controllers: Vec<String>,
    /// It is enabled.
    pub apparmor: bool,
    /// It is enabled.
    pub selinux: bool,
    /// The capabilities that root has here.
    pub capabilities: u64,
}

/// A complaint that says nothing of the runtime.
#[derive(Debug, Clone, Copy)]
pub struct Exemption {
    /// The program's name.
    pub program: &'static str,
    /// Part of the complaint; empty for whatever the program says.
    pub complaint: &'static str,
    /// Why, for people.
    pub reason: &'static str,
    holds: fn(&Host) -> bool,
}

const SYS_RESOURCE: u64 = 1 << 24;
const ALWAYS: fn(&Host) -> bool = |_| true;

const fn exempt(program: &'static str, complaint: &'static str, reason: &'static str) -> Exemption {
    Exemption { program, complaint, reason, holds: ALWAYS }
}

const fn exempt_where(program: &'static str, reason: &'static str, holds: fn(&Host) -> bool) -> Exemption {
    Exemption { program, complaint: "", reason, holds }
}

const LEAF_WEIGHT: &str = "sets blockIO.leafWeight, whose scheduler (CFQ) left the kernel with 5.0; refused by name";
const KERNEL_MEMORY: &str = "sets memory.kernel, which the kernel takes and ignores since 5.16; refused by name";
const NO_HUGETLB: &str = "the cgroup controller hugetlb is not mounted on this host";
const NO_NET_CLS: &str = "the cgroup controllers net_cls and net_prio are not mounted on this host";
const NOT_STARTED: &str =
    "demands success where its own text, and the specification, demand an error (a start without process)";

/// All of them. What is not here counts.
pub const EXEMPTIONS: [Exemption; 19] = [
    exempt("hooks", "called in the listed order", "expects other words than its own hooks write"),
    exempt(
        "prestart",
        "after the `start` operation",
        "wants prestart hooks at the start; by the specification's lifecycle (step 3) they belong to the creation",
    ),
    exempt("start", "MUST generate an error if `process` was not set", NOT_STARTED),
    exempt(
        "start",
        "timeout in waiting for the container status",
        "waits for the end of the container of the line above",
    ),
    exempt("start", "exit status 1", NOT_STARTED),
    exempt("misc_props", "unknown annotation key", "starts /runtimetest, which it has not copied into its bundle"),
    exempt(
        "pidfile",
        "'--pid-file' option works",
        "kills a container that has ended already, for which the specification demands an error",
    ),
    exempt(
        "process_rlimits",
        "has expected soft RLIMIT_NOFILE",
        "looks from inside of a Go program, whose start raises this limit itself",
    ),
    exempt("linux_cgroups_blkio", "", LEAF_WEIGHT),
    exempt("linux_cgroups_relative_blkio", "", LEAF_WEIGHT),
    exempt("linux_cgroups_memory", "", KERNEL_MEMORY),
    exempt("linux_cgroups_relative_memory", "", KERNEL_MEMORY),
    exempt_where("linux_cgroups_hugetlb", NO_HUGETLB, |host| !host.has("hugetlb")),
    exempt_where("linux_cgroups_relative_hugetlb", NO_HUGETLB, |host| !host.has("hugetlb")),
    exempt_where("linux_cgroups_network", NO_NET_CLS, |host| !host.has("net_cls")),
    exempt_where("linux_cgroups_relative_network", NO_NET_CLS, |host| !host.has("net_cls")),
    exempt_where("linux_mount_label", "labels mounts for SELinux, which this host has not; refused by name", |host| {
        !host.selinux
    }),
    exempt_where("linux_process_apparmor_profile", "AppArmor is not enabled on this host", |host| !host.apparmor),
    exempt_where("process_capabilities", "wants all capabilities, and root has not all on this host", |host| {
        host.capabilities & SYS_RESOURCE == 0
    }),
];

impl Host {
    /// Out of the texts of `/proc/self/mounts` and `/proc/self/status`, and what `/sys` says.
    #[must_use]
    pub fn read(mounts: &str, status: &str, apparmor: bool, selinux: bool) -> Host {
        let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let v1 = fields.filter(|fields| fields.get(2) == Some(&"cgroup"));
        let options = v1.filter_map(|fields| fields.get(3).map(|options| options.split(',').map(str::to_owned)));
        let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
        let capabilities = bounding.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
        Host { controllers: options.flatten().collect(), apparmor, selinux, capabilities }
    }

    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }
}

/// What a program's words are worth on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Every point that applies is good.
    Passes,
    /// None applies.
    NotApplicable,
    /// Something that applies is not good.
    Fails,
}

/// Judges one program. Beside the verdict, the complaints that are exempt, each with its reason, and those that count.
#[must_use]
pub fn judge(program: &str, said: &Said, host: &Host) -> (Verdict, Vec<(String, &'static str)>, Vec<String>) {
    let (mut exempt, mut counted) = (Vec::new(), Vec::new());
    for complaint in &said.complaints {
        let known = EXEMPTIONS
            .iter()
            .find(|known| known.program == program && complaint.contains(known.complaint) && (known.holds)(host));
        match known {
            Some(known) => exempt.push((complaint.clone(), known.reason)),
            None => counted.push(complaint.clone()),
        }
    }
    let verdict = match (counted.is_empty(), exempt.is_empty(), said.good) {
        (false, ..) => Verdict::Fails,
        (true, false, 0) => Verdict::NotApplicable,
        _ => Verdict::Passes,
    };
    (verdict, exempt, counted)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAP: &str = "TAP version 13\nok 1 - one\n  ---\n  ok 7\n  ...\nnot ok 2 - has expected soft RLIMIT_NOFILE\nok 3 # SKIP x\n1..3\n";

    #[test]
    fn tap_is_read() {
        let said = Said::read(TAP, "", Some(0));
        assert_eq!(said, Said { good: 2, complaints: vec!["has expected soft RLIMIT_NOFILE".into()] });
        let said = Said::read("", "failed to create\nshoal: no\nexit status 1\n", Some(1));
        assert_eq!(said.complaints, ["exit 1: shoal: no"]);
        let said =
            Said::read("TAP version 13\n  ---\n  {\n    \"error\": \"Hooks MUST x\"\n  }\n  ...\n1..0\n", "", Some(0));
        assert_eq!(said.complaints, ["Hooks MUST x\""]);
        assert_eq!(Said::read("TAP version 13\n", "", Some(0)), Said::default());
        assert_eq!(Said::read("ok 1 - x\n", "", None).complaints, ["it did not end in time"]);
        assert_eq!(Said::read("TAP version 13\nBail out! why\n", "", Some(0)).complaints, ["bail out: why"]);
    }

    #[test]
    fn exemptions_are_narrow() {
        let host = Host::default();
        let said = Said::read(TAP, "", Some(0));
        assert_eq!(judge("process_rlimits", &said, &host).0, Verdict::Passes);
        assert_eq!(judge("process", &said, &host).0, Verdict::Fails);
        let other = Said { good: 1, complaints: vec!["has expected hard RLIMIT_NOFILE".into()] };
        assert_eq!(judge("process_rlimits", &other, &host).0, Verdict::Fails);
        let none = Said { good: 0, complaints: vec!["exit 1: x".into()] };
        assert_eq!(judge("linux_cgroups_hugetlb", &none, &host).0, Verdict::NotApplicable);
        let mounted = Host { controllers: vec!["hugetlb".into()], ..Host::default() };
        assert_eq!(judge("linux_cgroups_hugetlb", &none, &mounted).0, Verdict::Fails);
        let good = Said { good: 3, complaints: Vec::new() };
        assert_eq!(judge("linux_cgroups_hugetlb", &good, &host).0, Verdict::Passes);
    }

    #[test]
    fn hosts_are_read() {
        let mounts = "cgroup /sys/fs/cgroup/net cgroup rw,relatime,net_cls,net_prio 0 0\nproc /proc proc hugetlb 0 0\n";
        let host = Host::read(mounts, "Name:\tx\nCapBnd:\t000001fffeffffff\n", true, false);
        assert!(host.has("net_cls") && !host.has("hugetlb") && host.apparmor && !host.selinux);
        assert_eq!(host.capabilities & SYS_RESOURCE, 0);
    }
}
