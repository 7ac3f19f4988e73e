//! The planner, without a host.

use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;
use crate::config::{IdMappings, Mount, MountKind, Propagation, Ulimit};

fn config() -> ContainerConfig {
    ContainerConfig {
        id: "abc".into(),
        layers: vec!["/l/0".into(), "/l/1".into()],
        args: vec!["run".into(), "fast".into()],
        ..ContainerConfig::default()
    }
}

fn host() -> HostView {
    HostView { device_control: true, cgroups: CgroupView::Unified, machine: Machine::default() }
}

fn planned(config: &ContainerConfig) -> Result<Plan, PlanError> {
    plan(config, Path::new("/data/containers/abc"), &host())
}

/// One line a step: what, on what.
fn story(plan: &Plan) -> Vec<String> {
    let line = |action: &Action| {
        let subject = action.subject().to_string_lossy().into_owned();
        match action {
            Action::Filesystem { fs, attributes, options, .. } => {
                let options: Vec<String> = options
                    .iter()
                    .map(|(key, value)| {
                        let value = value.as_ref().map(|v| format!("={}", v.to_string_lossy())).unwrap_or_default();
                        format!("{}{value}", key.to_string_lossy())
                    })
                    .collect();
                format!("{} {subject} {attributes:#x} {}", fs.to_string_lossy(), options.join(","))
            }
            Action::Bind { source, attributes, .. } => {
                let readonly = (attributes.set | attributes.deep_set) & mount_attr::RDONLY != 0;
                format!("bind {} {subject}{}", source.to_string_lossy(), if readonly { " ro" } else { "" })
            }
            Action::Beneath { source, path, .. } => {
                format!("beneath {} {} {subject}", source.to_string_lossy(), path.to_string_lossy())
            }
            Action::Shared { source, propagation, .. } => {
                format!("shared {} {subject} {propagation:#x}", source.to_string_lossy())
            }
            Action::Remount { attributes, .. } => format!("remount {subject} {:#x}", attributes.set),
            Action::Device { major, minor, .. } => format!("device {subject} {major}:{minor}"),
            Action::Link { to, .. } => format!("link {subject} {}", to.to_string_lossy()),
            Action::Sysctl { value, .. } => format!("sysctl {subject} {}", value.to_string_lossy()),
            Action::Mask { .. } => format!("mask {subject}"),
            Action::ReadOnly { .. } => format!("readonly {subject}"),
            Action::Seal { .. } => format!("seal {subject}"),
        }
    };
    plan.setup.iter().map(|action| line(action).trim_end().to_owned()).collect()
}

#[test]
fn the_order_of_a_container() {
    let mut config = config();
    config.readonly_root = true;
    config.mounts = vec![Mount {
        kind: MountKind::Bind {
            source: "/srv".into(),
            recursive: true,
            readonly_below: true,
            propagation: Propagation::RSlave,
        },
        target: "/data//x/./y/".into(),
        readonly: true,
    }];
    let plan = planned(&config).unwrap();
    let options = c"lowerdir=l/1:l/0,upperdir=upper,workdir=work,volatile".to_owned();
    assert_eq!(plan.root, Root::Overlay { options, nodev: false });
    assert_eq!(
        story(&plan).join("\n"),
        "\
proc proc 0xe
tmpfs dev 0x22 mode=755,size=64k
device dev/null 1:3
device dev/zero 1:5
device dev/full 1:7
device dev/random 1:8
device dev/urandom 1:9
device dev/tty 5:0
devpts dev/pts 0xa ptmxmode=0666,mode=0620,gid=5
tmpfs dev/shm 0xe mode=1777,size=64m
mqueue dev/mqueue 0xe
link dev/ptmx pts/ptmx
link dev/fd /proc/self/fd
link dev/stdin /proc/self/fd/0
link dev/stdout /proc/self/fd/1
link dev/stderr /proc/self/fd/2
link dev/core /proc/kcore
sysfs sys 0xf
cgroup2 sys/fs/cgroup 0xf
sysctl proc/sys/net/ipv4/ip_unprivileged_port_start 0
sysctl proc/sys/net/ipv4/ping_group_range 0 2147483647
mask proc/acpi
mask proc/asound
mask proc/interrupts
mask proc/kcore
mask proc/keys
mask proc/latency_stats
mask proc/sched_debug
mask proc/scsi
mask proc/timer_list
mask proc/timer_stats
mask sys/devices/virtual/powercap
mask sys/firmware
readonly proc/bus
readonly proc/fs
readonly proc/irq
readonly proc/sys
readonly proc/sysrq-trigger
bind /data/containers/abc/etc/hosts etc/hosts ro
bind /data/containers/abc/etc/hostname etc/hostname ro
bind /data/containers/abc/etc/resolv.conf etc/resolv.conf ro
bind /srv data/x/y ro"
    );
}

#[test]
fn a_mount_over_etc_hides_no_names() {
    let mut config = config();
    config.mounts = ["/etc/hosts", "/etc/"].map(tmpfs).to_vec();
    let story = story(&planned(&config).unwrap());
    let at =
        |wanted: &str| story.iter().position(|line| line.starts_with(wanted)).unwrap_or_else(|| panic!("{wanted}"));
    let order = ["tmpfs etc ", "bind /data/containers/abc/etc/hosts ", "tmpfs etc/hosts "].map(at);
    assert!(order.is_sorted(), "{story:?}");
}

#[test]
fn split_cgroups_are_mounted_one_by_one() {
    let hierarchies = vec![
        ("memory".to_owned(), "cgroup", vec!["memory".to_owned()]),
        ("systemd".to_owned(), "cgroup", vec!["name=systemd".to_owned()]),
        ("unified".to_owned(), "cgroup2", vec![]),
    ];
    let host = HostView { device_control: false, cgroups: CgroupView::Split(hierarchies), ..host() };
    let plan = plan(&config(), Path::new("/d"), &host).unwrap();
    let nodev = matches!(plan.root, Root::Overlay { nodev: true, .. });
    assert!(nodev, "nodes of the image are dead where nothing guards devices");
    let story = story(&plan);
    let at = story.iter().position(|line| line == "tmpfs sys/fs/cgroup 0xe mode=755").unwrap();
    assert_eq!(
        story[at + 1..at + 5],
        [
            "cgroup sys/fs/cgroup/memory 0xf memory",
            "cgroup sys/fs/cgroup/systemd 0xf name=systemd",
            "cgroup2 sys/fs/cgroup/unified 0xf",
            "seal sys/fs/cgroup",
        ]
    );
}

#[test]
fn the_process() {
    let mut config = config();
    config.env = vec!["PATH=/a:b::/c/".into(), "X=1".into(), "HOME=/h".into()];
    config.ulimits = vec![Ulimit { name: "nofile".into(), soft: 5, hard: -1 }];
    config.user = "web:".into();
    let process = planned(&config).unwrap().process;
    let text = |list: &[CString]| list.iter().map(|c| c.to_string_lossy().into_owned()).collect::<Vec<_>>();
    assert_eq!(text(&process.candidates), ["/a/run", "/c/run"]);
    assert_eq!(text(&process.env), ["HOSTNAME=abc", "PATH=/a:b::/c/", "X=1", "HOME=/h"]);
    assert!(!process.home_from_passwd);
    let user = UserSpec { user: b"web".to_vec(), group: None };
    assert_eq!(process.who, Who::Named { user, groups: vec![] });
    let nofile = process.rlimits.iter().find(|limit| limit.resource == libc::RLIMIT_NOFILE).unwrap();
    assert_eq!((nofile.soft, nofile.hard, nofile.clamp), (5, u64::MAX, false));
    config.args[0] = "./here".into();
    assert_eq!(text(&planned(&config).unwrap().process.candidates), ["./here"]);
}

#[track_caller]
fn refused(change: impl FnOnce(&mut ContainerConfig), expected: &str) {
    let mut config = config();
    change(&mut config);
    match planned(&config) {
        Ok(_) => panic!("accepted, wanted {expected:?}"),
        Err(error) => assert!(error.to_string().contains(expected), "{error} has no {expected:?}"),
    }
}

fn tmpfs(target: &str) -> Mount {
    Mount { kind: MountKind::Tmpfs { size: None, mode: None }, target: target.into(), readonly: false }
}

#[test]
fn refusals_name_the_field() {
    refused(|c| c.id = "../x".into(), "invalid id");
    refused(|c| c.id = String::new(), "invalid id");
    refused(|c| c.id = ".hidden".into(), "invalid id");
    refused(|c| c.hostname = "a b".into(), "invalid hostname");
    refused(|c| c.layers.clear(), "invalid layers");
    refused(|c| c.layers = vec!["relative".into()], "invalid layers: relative is not absolute");
    refused(|c| c.layers = vec![PathBuf::from("/l"); 128], "invalid layers");
    // As many as an image may have.
    let mut most = config();
    most.layers = vec![PathBuf::from("/l"); crate::image::Limits::default().max_layers];
    validate(&most).unwrap();
    assert!(overlay_options(most.layers.len(), false, None).unwrap().as_bytes().len() < 1024);
    refused(|c| c.args.clear(), "no command specified");
    refused(|c| c.args[0] = "a\0b".into(), "invalid args: contains a NUL byte");
    refused(|c| c.args = vec!["x".repeat(200_000)], "invalid args: too long");
    refused(|c| c.env = vec!["=x".into()], "invalid env: \"=x\" is not NAME=value");
    refused(|c| c.env = vec!["novalue".into()], "invalid env");
    refused(|c| c.cwd = "relative".into(), "invalid cwd");
    refused(|c| c.cwd = "/a/../b".into(), "contains \"..\"");
    refused(|c| c.user = "a b".into(), "invalid user");
    refused(|c| c.user = "a:b:c".into(), "invalid user");
    refused(|c| c.groups = vec![String::new()], "invalid groups");
    refused(|c| c.mounts = vec![tmpfs("/")], "cannot be the root itself");
    refused(|c| c.mounts = vec![tmpfs("data")], "invalid mounts.target");
    refused(|c| c.mounts = vec![tmpfs("/x/../../etc")], "invalid mounts.target");
    refused(|c| c.mounts = vec![tmpfs("/x"); 300], "invalid mounts");
    refused(|c| _ = c.sysctls.insert("kernel.core_pattern".into(), "|/x".into()), "namespaced kernel setting");
    refused(|c| _ = c.sysctls.insert("net...x".into(), "1".into()), "namespaced kernel setting");
    refused(|c| _ = c.sysctls.insert("net.a/../../b".into(), "1".into()), "namespaced kernel setting");
    let on_host = |c: &mut ContainerConfig, name: &str| {
        c.host_network = true;
        c.sysctls.insert(name.into(), "1".into());
    };
    refused(|c| on_host(c, "net.ipv4.ip_forward"), "not allowed with the host's network");
    refused(
        |c| {
            c.host_network = true;
            c.id_mappings = Some(IdMappings::default());
        },
        "cannot share the host's network namespace",
    );
    refused(|c| c.ulimits = vec![Ulimit { name: "x".into(), soft: 1, hard: 1 }], "invalid ulimits");
    refused(|c| c.ulimits = vec![Ulimit { name: "nofile".into(), soft: 2, hard: 1 }], "soft is above hard");
    refused(|c| c.oom_score_adj = 2000, "invalid oom_score_adj");
    refused(|c| c.stop_signal = Some("SIGNOPE".into()), "invalid stop_signal: invalid signal: SIGNOPE");
    refused(|c| c.log.max_files = 0, "invalid log");
    refused(|c| c.resources.pids_limit = Some(0), "invalid resources.pids_limit");
    refused(|c| c.resources.memory_limit = Some(-1), "invalid resources.memory_limit");
    refused(|c| c.resources.cpu_limit_nanos = Some(0), "invalid resources.cpu_limit_nanos");
    refused(|c| c.capabilities.add = vec!["FLY".into()], "unknown capability");
}

proptest! {
    /// Whatever a caller sends, the planner answers, and no target ever holds a way out.
    #[test]
    fn never_panics_never_escapes(
        id in ".{0,70}", target in "[/.a-z\\x00]{0,20}", cwd in "[/.a-z]{0,12}", arg in ".{0,20}", env in ".{0,20}",
        user in ".{0,12}", key in "[a-z./]{0,30}", nanos in any::<i64>(), bytes in any::<i64>(),
    ) {
        let mut config = config();
        config.mounts = vec![tmpfs(&target)];
        config.cwd = cwd;
        config.args = vec![arg];
        config.env = vec![env];
        config.user = user;
        let _ = planned(&ContainerConfig { id, ..config.clone() });
        let _ = planned(&ContainerConfig { sysctls: [(key, "1".to_owned())].into(), ..config.clone() });
        config.resources.cpu_limit_nanos = Some(nanos);
        config.resources.memory_limit = Some(bytes);
        let _ = planned(&config);
        if let Ok(target) = Target::new("x", &target) {
            for name in target.path().to_bytes().split(|byte| *byte == b'/') {
                prop_assert!(!name.is_empty() && name != b".." && (name != b"." || target.is_root()));
            }
        }
    }
}

#[test]
fn volumes_and_shared_binds() {
    let volume = |source: &str, subpath: &str| {
        MountKind::Volume(crate::VolumeMount {
            name: "data".into(),
            source: source.into(),
            subpath: subpath.into(),
            ..crate::VolumeMount::default()
        })
    };
    let bind = MountKind::Bind {
        source: "/srv".into(),
        recursive: true,
        readonly_below: true,
        propagation: Propagation::RShared,
    };
    let mount = |kind: MountKind, target: &str| Mount { kind, target: target.into(), readonly: false };
    let mut config = config();
    config.mounts = vec![mount(volume("/v", ""), "/a"), mount(volume("/v", "x/y"), "/b"), mount(bind, "/c")];
    let story = story(&planned(&config).unwrap());
    assert_eq!(story[story.len() - 3..], ["bind /v a", "beneath /v x/y b", "shared /srv c 0x104000"]);
    for subpath in ["/x", "..", "x/../.."] {
        config.mounts = vec![mount(volume("/v", subpath), "/a")];
        assert!(planned(&config).unwrap_err().to_string().contains("relative path within the volume"), "{subpath}");
    }
    let shared = MountKind::Bind {
        source: "/srv".into(),
        recursive: false,
        readonly_below: true,
        propagation: Propagation::Shared,
    };
    config.mounts = (0..33).map(|n| mount(shared.clone(), &format!("/m{n}"))).collect();
    assert!(planned(&config).unwrap_err().to_string().contains("more than 32 with shared propagation"));
    config.mounts.clear();
    for (target, mode) in [("/", 0o444), ("relative", 0o444), ("/x", 0o10000)] {
        let file = crate::PrivateFile { target: target.into(), mode, ..crate::PrivateFile::default() };
        config.private_files = vec![file];
        assert!(planned(&config).is_err(), "{target} {mode:o}");
    }
}

#[test]
fn the_hosts_network_is_neither_left_nor_changed() {
    let own = planned(&config()).unwrap();
    let shared = planned(&ContainerConfig { host_network: true, ..config() }).unwrap();
    assert_eq!(own.namespaces & !shared.namespaces, namespace::NETWORK);
    assert_eq!(shared.namespaces & !own.namespaces, 0);
    let settings = |plan: &Plan| story(plan).iter().filter(|line| line.starts_with("sysctl")).count();
    assert_eq!((settings(&own), settings(&shared)), (2, 0));
    let kernels = [("kernel.shmmax".to_owned(), "1".to_owned())].into();
    let set = planned(&ContainerConfig { host_network: true, sysctls: kernels, ..config() }).unwrap();
    assert_eq!(settings(&set), 1);
}
