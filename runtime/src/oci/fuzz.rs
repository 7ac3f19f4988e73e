//! Target: a bundle's `config.json`, from its bytes to the plan and to the values of its limits.
//!
//! Asked of each: an error that names what is wrong, or a plan that never leaves the container's root and stays within
//! its own bounds.

use std::path::Path;

use serde_json::{Value, json};

use super::plan::{Context, cgroup_place, plan, valid_id};
use super::spec::Spec;
use crate::fuzz::{Source, fuzz, json as documents};
use crate::plan::limits::{Shape, devices, writes};
use crate::plan::{CgroupView, HostView, Machine};

/// Everything that a bundle can say.
fn sample() -> Value {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    let hook = json!({ "path": "/bin/hook", "args": ["hook", "x"], "env": ["A=b"], "timeout": 5 });
    let ids = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
    let capabilities = ["CAP_KILL", "CAP_NET_BIND_SERVICE"];
    let namespaces = ["pid", "network", "ipc", "uts", "mount", "cgroup", "user", "time"];
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "terminal": true, "consoleSize": { "height": 25, "width": 80 },
            "user": { "uid": 0, "gid": 0, "umask": 18, "additionalGids": [1, 2] },
            "args": ["sh", "-c", "true"], "env": ["PATH=/bin:/usr/bin", "TERM=xterm"], "cwd": "/srv",
            "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
                "inheritable": [], "ambient": [] },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096 }, { "type": "RLIMIT_AS", "soft": 1, "hard": u64::MAX }],
            "noNewPrivileges": true, "apparmorProfile": "", "oomScoreAdj": 100, "selinuxLabel": ""
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "bundle", "domainname": "example",
        "mounts": [
            mount("/proc", "proc", &[]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/sys/fs/cgroup", "cgroup", &["ro", "nosuid"]),
            { "destination": "/data/../x", "source": "data", "options": ["rbind", "rro", "rslave"] },
            mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        ],
        "hooks": { "prestart": [hook], "createRuntime": [hook], "createContainer": [hook], "startContainer": [hook],
            "poststart": [hook], "poststop": [hook] },
        "annotations": { "org.example.key": "value" },
        "linux": {
            "namespaces": namespaces.map(|kind| json!({ "type": kind })),
            "uidMappings": ids, "gidMappings": ids,
            "timeOffsets": { "monotonic": { "secs": 5, "nanosecs": 1 }, "boottime": { "secs": -5 } },
            "devices": [{ "type": "c", "path": "/dev/fuse", "major": 10, "minor": 229, "fileMode": 438, "uid": 0, "gid": 0 }],
            "cgroupsPath": "/a/b",
            "resources": {
                "devices": [{ "allow": false, "access": "rwm" }, { "allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw" }],
                "memory": { "limit": 67_108_864, "reservation": 33_554_432, "swap": 134_217_728, "kernel": -1, "swappiness": 10 },
                "cpu": { "shares": 1024, "quota": 50_000, "period": 100_000, "cpus": "0", "mems": "0", "idle": 0, "burst": 10 },
                "pids": { "limit": 100 },
                "blockIO": { "weight": 10, "throttleReadBpsDevice": [{ "major": 8, "minor": 0, "rate": 1000 }],
                    "weightDevice": [{ "major": 8, "minor": 0, "weight": 100 }] },
                "hugepageLimits": [{ "pageSize": "2MB", "limit": 0 }],
                "network": { "classID": 1, "priorities": [{ "name": "eth0", "priority": 1 }] },
                "rdma": { "mlx5_1": { "hcaHandles": 3 } },
                "unified": { "memory.high": "7" }
            },
            "rootfsPropagation": "rslave",
            "seccomp": { "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{ "names": ["read", "write"], "action": "SCMP_ACT_ALLOW",
                    "args": [{ "index": 0, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_EQ" }] }] },
            "sysctl": { "net.ipv4.ip_forward": "1", "kernel.shmmax": "1000" },
            "maskedPaths": ["/proc/kcore"], "readonlyPaths": ["/proc/sys"]
        }
    })
}

fn check(bytes: &[u8], host: &HostView) -> bool {
    let Ok(spec) = serde_json::from_slice::<Spec>(bytes) else { return false };
    for shape in [Shape::unified(), Shape::split()] {
        if let Ok(writes) = writes(&spec.linux.resources, &shape) {
            // A file of its own cgroup, whatever a key of `unified` says.
            assert!(writes.iter().all(|write| !write.file.contains('/') && !write.file.starts_with('.')), "{writes:?}");
        }
    }
    if let Ok(rules) = devices::rules(&spec.linux.resources.devices) {
        let _ = devices::v1_lines(&rules);
    }
    if let Ok(place) = cgroup_place(&spec.linux.cgroups_path, "c1") {
        let path = place.parent.join(&place.name);
        assert!(path.is_relative() && !path.components().any(|part| part.as_os_str() == ".."), "{path:?}");
        assert!(!place.name.is_empty());
    }
    let context = Context { bundle: Path::new("/bundle"), host, cgroup_dirs: &[] };
    let Ok(bundle) = plan(&spec, &context) else { return false };
    for action in &bundle.plan.setup {
        let subject = action.subject().to_str().unwrap_or_default();
        let climbs = subject.starts_with('/') || subject.split('/').any(|part| part == "..");
        assert!(!climbs, "{action:?}");
    }
    assert!(bundle.plan.setup.len() < 10_000);
    true
}

fn hosts() -> [HostView; 2] {
    let hierarchies = vec![("memory".to_owned(), "cgroup", vec!["memory".to_owned()])];
    let host = |cgroups| HostView { device_control: true, cgroups, machine: Machine::default() };
    [host(CgroupView::Unified), host(CgroupView::Split(hierarchies))]
}

fn input(source: &mut Source, sample: &Value) -> Vec<u8> {
    let mut document = sample.clone();
    // Much of it at once would hardly ever be taken.
    let parts: Vec<String> = document["linux"].as_object().into_iter().flat_map(|map| map.keys().cloned()).collect();
    for part in parts {
        if source.one_in(4) && part != "namespaces" {
            document["linux"].as_object_mut().map(|map| map.remove(&part));
        }
    }
    documents::change(source, &mut document);
    let mut bytes = document.to_string().into_bytes();
    if source.one_in(20) {
        source.mangle(&mut bytes);
    }
    bytes
}

#[test]
fn bundles() {
    let (sample, hosts) = (sample(), hosts());
    assert!(hosts.iter().all(|host| check(sample.to_string().as_bytes(), host)), "the sample itself is taken");
    let (mut whole, mut count) = (0, 0);
    fuzz("bundles", 3000, |source| {
        let bytes = input(source, &sample);
        whole += u64::from(check(&bytes, &hosts[source.below(2)]));
        count += 1;
    });
    assert!(count < 1000 || whole * 10 > count, "only {whole} of {count} were planned");
}

/// Ids and paths become names of directories.
#[test]
fn bundle_names() {
    let pieces = ["a", ".", "..", "/", "shoal.", ":", "\0", "x_y+z@-", "é", "\n", "a/b", "//", "n".repeat(200).leak()];
    fuzz("bundle_names", 10_000, |source| {
        let text: String = (0..source.below(6)).map(|_| source.pick(&pieces)).collect();
        if valid_id(&text).is_ok() {
            assert!(Path::new("/root").join(&text).parent() == Some(Path::new("/root")), "{text:?}");
        }
        if let Ok(place) = cgroup_place(&text, "c1") {
            let path = Path::new("/sys/fs/cgroup").join(&place.parent).join(&place.name);
            let plain = |part: std::path::Component<'_>| !matches!(part, std::path::Component::ParentDir);
            assert!(path.starts_with("/sys/fs/cgroup") && path.components().all(plain), "{text:?}");
            assert!(path.components().count() > 4, "{text:?}");
        }
    });
}
