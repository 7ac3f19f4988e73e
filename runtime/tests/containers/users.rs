//! Containers with users of their own: root there is nobody on the host, and everything else goes on as without.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags};
use runtime::{
    ContainerConfig, ExecConfig, IdMappings, IdRange, Mount, MountKind, PrivateFile, Propagation, RuntimeError,
    VolumeMount,
};

use super::fixture::{Fixture, chain};

pub const TESTS: &[(&str, fn())] = &[
    ("users::root_is_nobody_on_the_host", root_is_nobody_on_the_host),
    ("users::volumes_and_secrets_have_the_right_owners", volumes_and_secrets_have_the_right_owners),
    ("users::further_processes_come_in", further_processes_come_in),
    ("users::binds_are_the_hosts", binds_are_the_hosts),
    ("users::all_capabilities_are_not_the_hosts", all_capabilities_are_not_the_hosts),
    ("users::the_daemon_dies", the_daemon_dies),
    ("users::what_cannot_be_mapped_is_refused", what_cannot_be_mapped_is_refused),
];

const USERS: u32 = 400_000;
const GROUPS: u32 = 500_000;

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or("none").trim()
}

fn owner(path: &Path) -> (u32, u32) {
    let stat = fs::symlink_metadata(path).unwrap();
    (stat.uid(), stat.gid())
}

fn mapped(config: ContainerConfig) -> ContainerConfig {
    let range = |outside| vec![IdRange { inside: 0, outside, count: 65_536 }];
    ContainerConfig { id_mappings: Some(IdMappings { uids: range(USERS), gids: range(GROUPS) }), ..config }
}

fn bind(source: &Path, target: &str) -> Mount {
    let kind = MountKind::Bind {
        source: source.to_owned(),
        recursive: true,
        readonly_below: true,
        propagation: Propagation::RPrivate,
    };
    Mount { kind, target: target.into(), readonly: false }
}

fn volume(name: &str, target: &str) -> Mount {
    let kind = MountKind::Volume(VolumeMount { name: name.to_owned(), copy: true, ..VolumeMount::default() });
    Mount { kind, target: target.into(), readonly: false }
}

fn playing(words: &str) -> ExecConfig {
    let words = words.split(' ').map(str::to_owned);
    ExecConfig {
        args: ["/payload".to_owned(), "payload".to_owned()].into_iter().chain(words).collect(),
        stdout: true,
        stderr: true,
        ..ExecConfig::default()
    }
}

#[track_caller]
fn ran(fixture: &Fixture, id: &str, config: ExecConfig) -> String {
    let runtime = fixture.runtime();
    let done = fixture.tokio.block_on(runtime.exec_output(id, config, Duration::from_secs(15), 64 << 10));
    let done = done.unwrap_or_else(|error| panic!("exec: {}", chain(&error)));
    assert_eq!((done.exit.code, done.timed_out), (0, false), "{done:?}");
    String::from_utf8_lossy(&done.output).into_owned()
}

fn delete(fixture: &Fixture, id: &str) {
    fixture.tokio.block_on(fixture.runtime().delete(id)).unwrap_or_else(|error| panic!("{}", chain(&error)));
}

fn refused(fixture: &Fixture, config: ContainerConfig) -> String {
    let outcome = fixture.tokio.block_on(fixture.runtime().create(config));
    chain(&outcome.expect_err("it is refused"))
}

/// Whether layers can be mapped here at all; these tests say so where they skip.
fn possible(fixture: &Fixture) -> bool {
    let checked = fixture.tokio.block_on(fixture.runtime().check_id_mappings());
    if let Err(error) = &checked {
        println!("skipping: {}", chain(error));
    }
    checked.is_ok()
}

/// A mount of the test's own, taken away at its end.
struct Mounted(PathBuf);

impl Mounted {
    fn new(fs: &str, at: PathBuf) -> Mounted {
        fs::create_dir_all(&at).unwrap();
        nix::mount::mount(Some(fs), &at, Some(fs), MsFlags::empty(), None::<&str>).unwrap();
        Mounted(at)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// And layers are shared with containers of other ids.
fn root_is_nobody_on_the_host() {
    let fixture = Fixture::new();
    if !possible(&fixture) {
        return;
    }
    let layer = fixture.path().join("layer");
    fs::create_dir_all(&layer).unwrap();
    fs::write(layer.join("secret"), "for root alone\n").unwrap();
    fs::set_permissions(layer.join("secret"), PermissionsExt::from_mode(0o600)).unwrap();
    let with_layer = |id: &str, words: &str| {
        let mut config = mapped(fixture.config(id, words));
        config.layers.push(layer.clone());
        config
    };
    let words = "cat /proc/self/uid_map then cat /secret then write /made 1 then write /etc/hosts 1 \
        then write /dev/null 1 then write /dev/stdout hello then mknod /disk then ls /dev then try unshare \
        then cat /proc/self/status";
    let mut config = with_layer("mapped", words);
    config.sysctls = BTreeMap::from([("kernel.shmmax".into(), "4096".into())]);
    config.ulimits = vec![runtime::Ulimit { name: "nofile".into(), soft: 100, hard: 200 }];
    let runtime = fixture.runtime();
    let created = fixture.tokio.block_on(runtime.create(config));
    let pid = created.unwrap_or_else(|error| panic!("{}", chain(&error))).pid;
    let outside = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert_eq!(field(&outside, "Uid"), "400000\t400000\t400000\t400000");
    assert_eq!(field(&outside, "Gid"), "500000\t500000\t500000\t500000");
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().collect::<Vec<_>>()[3..5], ["100", "200"]);
    fixture.tokio.block_on(runtime.start("mapped")).unwrap();
    let exit = fixture.wait("mapped");
    let output = fixture.output("mapped");
    assert_eq!(exit.code, 0, "{output}");
    let map: Vec<&str> = output.lines().next().unwrap_or_default().split_whitespace().collect();
    assert_eq!(map, ["0", "400000", "65536"]);
    let expected = "for root alone\nwrote /made\nwrote /etc/hosts\nwrote /dev/null\nhellowrote /dev/stdout\n";
    assert!(output.contains(expected), "{output}");
    assert!(output.contains("mknod Err") || output.contains("open Err(PermissionDenied)"), "{output}");
    assert!(output.contains("ls /dev: core fd full mqueue null ptmx pts random shm "), "{output}");
    assert!(output.contains("try unshare: EPERM\n"), "{output}");
    assert_eq!(field(&output, "Uid"), "0\t0\t0\t0");
    assert_eq!(field(&output, "Seccomp"), "2");
    let dir = fixture.config.data_dir.join("containers/mapped");
    assert_eq!((owner(&dir.join("upper/made")), owner(&dir.join("etc/hosts"))), ((USERS, GROUPS), (USERS, GROUPS)));
    assert_eq!(owner(&layer.join("secret")), (0, 0), "the layer is as it was");
    // A user of the image, with a process 1 before it.
    let mut config = with_layer("user", "cat /proc/self/status then write /made 1 then write /dev/stdout mine");
    (config.init, config.user) = (true, "web".into());
    let (_, output) = fixture.run(config);
    assert_eq!((field(&output, "Uid"), field(&output, "CapEff")), ("100\t100\t100\t100", "0000000000000000"));
    assert!(output.contains("write /made: Permission denied (os error 13)\nminewrote /dev/stdout\n"), "{output}");
    // The same image without users of its own.
    let mut config = fixture.config("plain", "cat /secret then cat /proc/self/uid_map");
    config.layers.push(layer.clone());
    assert!(fixture.run(config).1.starts_with("for root alone\n         0          0 "));
    ["mapped", "user", "plain"].into_iter().for_each(|id| delete(&fixture, id));
    assert_eq!(fixture.leftovers(), Default::default());
}

fn volumes_and_secrets_have_the_right_owners() {
    let fixture = Fixture::new();
    if !possible(&fixture) {
        return;
    }
    let layer = fixture.path().join("layer");
    fs::create_dir_all(layer.join("data/sub")).unwrap();
    fs::write(layer.join("data/mine"), "of web\n").unwrap();
    fs::set_permissions(layer.join("data/mine"), PermissionsExt::from_mode(0o600)).unwrap();
    for path in ["data/mine", "data/sub", "data"] {
        std::os::unix::fs::chown(layer.join(path), Some(100), Some(101)).unwrap();
    }
    let words = "cat /data/mine then stat /data/mine then write /data/new 1 then stat /data/new then write /data/sub/x 1 \
        then cat /run/secrets/key then stat /run/secrets/key then write /run/secrets/key 1";
    let with_data = |config: ContainerConfig| {
        let mut config = ContainerConfig { user: "web".into(), mounts: vec![volume("data", "/data")], ..config };
        config.layers.push(layer.clone());
        config
    };
    let mut config = with_data(mapped(fixture.config("first", words)));
    let key =
        |uid| PrivateFile { target: "/run/secrets/key".into(), uid, gid: 101, mode: 0o400, data: b"key\n".to_vec() };
    config.private_files = vec![key(100)];
    let (_, output) = fixture.run(config.clone());
    let expected = "of web\nstat /data/mine: 100:101 600\nwrote /data/new\nstat /data/new: 100:101 644\n\
        wrote /data/sub/x\nkey\nstat /run/secrets/key: 100:101 400\nwrite /run/secrets/key: Read-only file system";
    assert!(output.starts_with(expected), "{output}");
    // On the disk they are what the container sees, so a container without users of its own sees the same.
    let data = fixture.runtime().volumes().get("data").unwrap().mountpoint;
    assert_eq!((owner(&data.join("mine")), owner(&data.join("new"))), ((100, 101), (100, 101)));
    let (_, output) = fixture.run(with_data(fixture.config("second", "cat /data/mine then stat /data/new")));
    assert_eq!(output, "of web\nstat /data/new: 100:101 644\n");
    // A part of it, and as root.
    let mut part = mapped(fixture.config("third", "ls /part then write /part/y 1 then stat /part/y"));
    let kind = VolumeMount { name: "data".into(), subpath: "sub".into(), ..VolumeMount::default() };
    part.mounts = vec![Mount { kind: MountKind::Volume(kind), target: "/part".into(), readonly: false }];
    assert_eq!(fixture.run(part).1, "ls /part: x\nwrote /part/y\nstat /part/y: 0:0 644\n");
    assert_eq!(owner(&data.join("sub/y")), (0, 0));
    // Whom the container does not have can own no secret in it.
    config.id = "fourth".into();
    config.private_files = vec![key(70_000)];
    assert!(refused(&fixture, config).contains("the container has no user 70000"));
    ["first", "second", "third"].into_iter().for_each(|id| delete(&fixture, id));
    assert_eq!(fixture.leftovers(), Default::default());
}

fn further_processes_come_in() {
    let fixture = Fixture::new();
    if !possible(&fixture) {
        return;
    }
    let mut config = mapped(fixture.config("host", "sleep"));
    config.oom_score_adj = 321;
    let first = fixture.start(config);
    let runtime = fixture.runtime();
    let mut exec = fixture
        .tokio
        .block_on(runtime.exec("host", ExecConfig { stdin: true, ..playing("line") }))
        .unwrap_or_else(|error| panic!("exec: {}", chain(&error)));
    for kind in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
        let of = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        assert_eq!(of(exec.pid), of(first), "{kind}");
        assert_ne!(of(first), of(std::process::id()), "{kind}");
    }
    let processes = fixture.tokio.block_on(runtime.processes("host")).unwrap();
    assert_eq!(processes.iter().map(|process| process.uid).collect::<Vec<_>>(), [USERS, USERS]);
    drop(exec.io.stdin.take());
    fixture.tokio.block_on(exec.handle().wait());
    let words =
        "cat /proc/self/status then write /made 1 then write /dev/stdout hello then cat /proc/self/oom_score_adj";
    let seen = ran(&fixture, "host", playing(words));
    assert_eq!((field(&seen, "Uid"), field(&seen, "Gid")), ("0\t0\t0\t0", "0\t0\t0\t0"));
    assert_eq!((field(&seen, "CapEff"), field(&seen, "Seccomp")), ("00000000a80425fb", "2"));
    assert!(seen.ends_with("wrote /made\nhellowrote /dev/stdout\n321\n"), "{seen}");
    assert_eq!(owner(&fixture.config.data_dir.join("containers/host/upper/made")), (USERS, GROUPS));
    let user = ExecConfig { user: Some("web".into()), ..playing("cat /proc/self/status then write /dev/stdout hello") };
    let seen = ran(&fixture, "host", user);
    assert_eq!((field(&seen, "Uid"), field(&seen, "Groups")), ("100\t100\t100\t100", "200"));
    assert!(seen.ends_with("hellowrote /dev/stdout\n"), "{seen}");
    // With a terminal, which is the user's own.
    let tty = ExecConfig { tty: true, user: Some("web".into()), ..playing("tty then stat /dev/pts/0 then out end") };
    let exec = fixture.tokio.block_on(runtime.exec("host", tty)).unwrap_or_else(|error| panic!("{}", chain(&error)));
    let seen = fixture.tokio.block_on(async {
        let (terminal, mut seen) = (exec.io.stdout.as_ref().unwrap(), String::new());
        let mut chunk = [0u8; 4096];
        while !seen.contains("end\r\n") {
            let count = terminal.read(&mut chunk).await.unwrap();
            assert!(count > 0, "{seen}");
            seen.push_str(&String::from_utf8_lossy(&chunk[..count]));
        }
        exec.handle().wait().await;
        seen
    });
    assert!(seen.contains("controlling true") && seen.contains("stat /dev/pts/0: 100:"), "{seen}");
    let stats = fixture.tokio.block_on(runtime.stats("host")).unwrap();
    assert!(stats.usage.pids.current >= 1 && stats.host_memory > 0, "{stats:?}");
    // Somebody whom the container does not have.
    let nobody = ExecConfig { user: Some("70000".into()), ..playing("out no") };
    let outcome = fixture.tokio.block_on(runtime.exec_output("host", nobody, Duration::from_secs(15), 1024));
    assert!(matches!(outcome, Err(RuntimeError::Exec { exit_code: 126, .. })), "{outcome:?}");
    // A container with a terminal of its own.
    let mut config = mapped(fixture.config("terminal", "tty then write /dev/console hello"));
    (config.tty, config.user) = (true, "web".into());
    let (_, output) = fixture.run(config);
    assert!(output.contains("controlling true") && output.contains("hellowrote /dev/console"), "{output}");
    ["host", "terminal"].into_iter().for_each(|id| delete(&fixture, id));
    assert_eq!(fixture.leftovers(), Default::default());
}

/// Files of the host are not given away, and no directory on the way to them needs to be open to others.
fn binds_are_the_hosts() {
    let fixture = Fixture::new();
    if !possible(&fixture) {
        return;
    }
    let host = fixture.path().join("closed/host");
    let below = Mounted::new("tmpfs", host.join("below"));
    fs::set_permissions(fixture.path().join("closed"), PermissionsExt::from_mode(0o700)).unwrap();
    fs::write(host.join("file"), "of the host\n").unwrap();
    fs::write(host.join("below/file"), "below\n").unwrap();
    let words = "cat /all/file then stat /all/file then write /all/new 1 then cat /all/below/file \
        then cat /top/below/file then write /read/file 1";
    let mut config = mapped(fixture.config("binds", words));
    let mut top = bind(&host, "/top");
    if let MountKind::Bind { recursive, .. } = &mut top.kind {
        *recursive = false;
    }
    config.mounts = vec![bind(&host, "/all"), top, Mount { readonly: true, ..bind(&host, "/read") }];
    let (_, output) = fixture.run(config);
    let expected = "of the host\nstat /all/file: 65534:65534 644\n\
        write /all/new: Permission denied (os error 13)\nbelow\n\
        cat /top/below/file: No such file or directory (os error 2)\n\
        write /read/file: Read-only file system (os error 30)\n";
    assert_eq!(output, expected);
    delete(&fixture, "binds");
    drop(below);
    assert_eq!(fixture.leftovers(), Default::default());
}

/// With every capability and no filter, the container's root may undo what hides its `/proc`, and gains nothing by it.
fn all_capabilities_are_not_the_hosts() {
    let fixture = Fixture::new();
    if !possible(&fixture) {
        return;
    }
    let words = "try open-proc then try unmask then write /proc/sysrq-trigger h \
        then write /proc/sys/kernel/printk_ratelimit_burst 10 then write /proc/1/oom_score_adj -999 \
        then write /sys/kernel/profiling 0 then node /null 1 3 w then cat /proc/keys";
    let mut config = mapped(fixture.config("able", words));
    config.capabilities.add = vec!["ALL".into()];
    config.seccomp = runtime::Seccomp::Unconfined;
    let (_, output) = fixture.run(config);
    assert!(!output.contains("wrote") && !output.contains("made true"), "{output}");
    assert!(output.contains("write /proc/sysrq-trigger: "), "{output}");
    delete(&fixture, "able");
    assert_eq!(fixture.leftovers(), Default::default());
}

fn the_daemon_dies() {
    let mut fixture = Fixture::new();
    if !possible(&fixture) {
        return;
    }
    let mut config = mapped(fixture.config("kept", "write /data/x 1 then trap"));
    config.mounts = vec![volume("data", "/data")];
    fixture.start(config);
    fixture.until_output("kept", "trapping");
    fixture.die();
    fixture.open();
    assert_eq!(field(&ran(&fixture, "kept", playing("cat /proc/self/status")), "Uid"), "0\t0\t0\t0");
    let runtime = fixture.runtime();
    let exit = fixture.tokio.block_on(runtime.stop("kept", None, Duration::from_secs(10))).unwrap();
    assert_eq!((exit.code, exit.signal), (7, None), "{}", fixture.output("kept"));
    delete(&fixture, "kept");
    assert_eq!(fixture.leftovers(), Default::default());
}

fn what_cannot_be_mapped_is_refused() {
    let fixture = Fixture::new();
    if !possible(&fixture) {
        return;
    }
    let mut config = mapped(fixture.config("bad", "sleep"));
    config.id_mappings = Some(IdMappings { uids: vec![], gids: vec![] });
    assert!(refused(&fixture, config).contains("invalid id_mappings.uids"));
    let mut config = mapped(fixture.config("bad", "sleep"));
    config.user = "70000".into();
    assert!(refused(&fixture, config).contains("assume the user: invalid argument"));
    // A filesystem that cannot map ids, below the image and in a volume.
    let rigid = Mounted::new("ramfs", fixture.path().join("rigid"));
    fs::create_dir(rigid.0.join("layer")).unwrap();
    let mut config = mapped(fixture.config("bad", "sleep"));
    config.layers.push(rigid.0.join("layer"));
    let text = refused(&fixture, config);
    assert!(text.contains("the filesystem of the image's layers, cannot map ids in a mount"), "{text}");
    drop(rigid);
    let mut config = mapped(fixture.config("bad", "sleep"));
    let options = BTreeMap::from([("type".into(), "ramfs".into()), ("device".into(), "ramfs".into())]);
    let kind = VolumeMount { name: "rigid".into(), options, ..VolumeMount::default() };
    config.mounts = vec![Mount { kind: MountKind::Volume(kind), target: "/rigid".into(), readonly: false }];
    let text = refused(&fixture, config);
    assert!(text.contains("map the ids of the files at /rigid: this kernel, or the filesystem of what"), "{text}");
    assert_eq!(fixture.leftovers(), Default::default());
}
