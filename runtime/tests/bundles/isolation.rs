//! What a container sees and may do, as its configuration says.

use std::fs;
use std::process::Command;

use serde_json::json;

use crate::Test;
use crate::bundle::{Bundle, Killed, has, receive};

pub const TESTS: &[Test] = &[
    ("isolation::process", process),
    ("isolation::capabilities", capabilities),
    ("isolation::mounts", mounts),
    ("isolation::propagation", propagation),
    ("isolation::paths_and_devices", paths_and_devices),
    ("isolation::user_namespace", user_namespace),
    ("isolation::joined_namespaces", joined_namespaces),
    ("isolation::settings_are_not_the_hosts", settings_are_not_the_hosts),
    ("isolation::nobody_looks_into_what_is_made", nobody_looks_into_what_is_made),
    ("isolation::a_cgroup_of_others", a_cgroup_of_others),
    ("isolation::a_root_that_is_a_mount", a_root_that_is_a_mount),
    ("isolation::links_to_nothing", links_to_nothing),
    ("isolation::a_console_that_is_there", a_console_that_is_there),
    ("isolation::time_namespace", time_namespace),
    ("isolation::no_namespaces", no_namespaces),
    ("isolation::terminal", terminal),
    ("isolation::system_calls", system_calls),
    ("isolation::cgroups", cgroups),
    ("isolation::descriptors", descriptors),
];

fn process() {
    let mut bundle = Bundle::new(
        "cat /proc/self/status then cat /proc/self/limits then pwd then env A then env HOME \
         then cat /proc/self/oom_score_adj then cat /proc/sys/kernel/hostname then cat /proc/sys/kernel/domainname \
         then cat /proc/sys/net/ipv4/ip_forward",
    );
    bundle.config["process"]["user"] = json!({ "uid": 100, "gid": 101, "additionalGids": [5, 7], "umask": 0o27 });
    bundle.config["process"]["cwd"] = "/made/for/it".into();
    bundle.config["process"]["env"] = json!(["A=1", "PATH=/"]);
    bundle.config["process"]["oomScoreAdj"] = 123.into();
    bundle.config["process"]["noNewPrivileges"] = true.into();
    bundle.config["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 321, "hard": 654 }]);
    bundle.config["hostname"] = "a-host".into();
    bundle.config["domainname"] = "a-domain".into();
    bundle.config["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1" });
    let out = bundle.runs();
    let squeezed = out.split_whitespace().collect::<Vec<_>>().join(" ");
    has(&squeezed, "Uid: 100 100 100 100");
    has(&squeezed, "Gid: 101 101 101 101");
    has(&squeezed, "Groups: 5 7");
    has(&squeezed, "Umask: 0027");
    has(&squeezed, "NoNewPrivs: 1");
    has(&squeezed, "Max open files 321 654");
    has(&out, "/made/for/it\nA=1\nHOME=/srv\n123\na-host\na-domain\n1\n");
    // The command is found in the PATH of its own environment.
    bundle.config["process"]["args"] = json!(["payload", "payload", "out", "found"]);
    assert_eq!(bundle.runs(), "found\n");
}

fn capabilities() {
    let mut bundle = Bundle::new("cat /proc/self/status");
    let status = |bundle: &Bundle| bundle.runs().split_whitespace().collect::<Vec<_>>().join(" ");
    bundle.config["process"]["capabilities"] = json!({
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"], "effective": ["CAP_CHOWN"],
        "permitted": ["CAP_CHOWN", "CAP_KILL"], "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"]
    });
    // For root an exec gives what is in the bounding set; that is the kernel's rule.
    let root = status(&bundle);
    has(&root, "CapInh: 0000000000000020");
    has(&root, "CapPrm: 0000000000002021");
    has(&root, "CapBnd: 0000000000002021");
    bundle.config["process"]["user"] = json!({ "uid": 100, "gid": 101 });
    let other = status(&bundle);
    has(&other, "CapPrm: 0000000000000020 CapEff: 0000000000000020 CapBnd: 0000000000002021 CapAmb: 0000000000000020");
    bundle.config["process"]["capabilities"] = serde_json::Value::Null;
    has(&status(&bundle), "CapPrm: 0000000000000000 CapEff: 0000000000000000 CapBnd: 0000000000000000");
}

fn mounts() {
    let mut bundle = Bundle::new("cat /proc/self/mountinfo then cat /file then write /file no then write /rw/new yes");
    fs::create_dir(bundle.path().join("shared")).unwrap();
    fs::write(bundle.path().join("one"), "bound").unwrap();
    let list = bundle.config["mounts"].as_array_mut().unwrap();
    list.push(json!({ "destination": "/file", "source": "one", "options": ["bind", "ro"] }));
    list.push(json!({ "destination": "relative/../rw", "type": "none", "source": "shared",
        "options": ["rbind", "nosuid", "noexec", "noatime", "rprivate"] }));
    list.push(json!({ "destination": "/t", "type": "tmpfs", "source": "t", "options": ["size=1m", "mode=700", "ro"] }));
    list.push(json!({ "destination": "/rw", "options": ["remount", "bind", "nodev"] }));
    let out = bundle.runs();
    let line = |place: &str| {
        let found = out.lines().find(|line| line.split(' ').nth(4) == Some(place));
        found.unwrap_or_else(|| panic!("no {place} in {out}"))
    };
    has(line("/file"), " ro,");
    for option in ["nosuid", "noexec", "noatime", "nodev"] {
        has(line("/rw"), option);
    }
    has(line("/t"), " ro,");
    has(line("/t"), "size=1024k,mode=700");
    has(&out, "boundwrite /file: Read-only file system");
    has(&out, "wrote /rw/new");
    assert_eq!(fs::read_to_string(bundle.path().join("shared/new")).unwrap(), "yes");
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}

fn propagation() {
    for (name, expected) in
        [("private", " - "), ("shared", " shared:"), ("unbindable", " unbindable "), ("slave", " - ")]
    {
        let mut bundle = Bundle::new("cat /proc/self/mountinfo");
        bundle.config["linux"]["rootfsPropagation"] = name.into();
        let out = bundle.runs();
        let root = out.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap();
        has(root, expected);
        assert_eq!(bundle.leftovers(), Vec::<String>::new());
    }
}

fn paths_and_devices() {
    let mut bundle = Bundle::new(
        "write /proc/sys/kernel/domainname no then cat /proc/kcore then write /new no then write /dev/null x \
         then cat /dev/made",
    );
    bundle.config["root"]["readonly"] = true.into();
    bundle.config["linux"]["devices"] = json!([
        { "path": "/dev/made", "type": "c", "major": 1, "minor": 3, "fileMode": 0o644, "uid": 3, "gid": 4 },
        { "path": "/dev/pipe", "type": "p" }
    ]);
    let out = bundle.runs();
    has(&out, "write /proc/sys/kernel/domainname: Read-only file system");
    has(&out, "write /new: Read-only file system");
    has(&out, "wrote /dev/null\n");
    assert!(!out.contains("/dev/made"), "{out}");
}

fn user_namespace() {
    let mut bundle =
        Bundle::new("cat /proc/self/uid_map then cat /proc/self/gid_map then cat /proc/self/status then write /x y");
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
    bundle.config["linux"]["uidMappings"] = json!([{ "containerID": 0, "hostID": 1000, "size": 2000 }]);
    bundle.config["linux"]["gidMappings"] = json!([{ "containerID": 0, "hostID": 2000, "size": 3000 }]);
    bundle.config["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 321, "hard": 654 }]);
    bundle.config["process"]["oomScoreAdj"] = 17.into();
    std::os::unix::fs::chown(bundle.rootfs(), Some(1000), Some(2000)).unwrap();
    let out = bundle.runs();
    let squeezed = out.split_whitespace().collect::<Vec<_>>().join(" ");
    has(&squeezed, "0 1000 2000 0 2000 3000");
    has(&squeezed, "Uid: 0 0 0 0");
    has(&out, "wrote /x");
    let made = fs::metadata(bundle.rootfs().join("x")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), 1000);
    bundle.config["linux"]["uidMappings"] = json!([]);
    bundle.refused("a user namespace needs uidMappings");
}

fn joined_namespaces() {
    let first = Bundle::new("sleep");
    let _output = first.create();
    first.ok(&["start", &first.id]);
    let pid = first.state()["pid"].as_u64().unwrap();
    let kinds = [("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("pid", "pid")];
    let mut second = Bundle::new("sleep");
    second.config["linux"]["namespaces"] = json!([{ "type": "mount" }, { "type": "cgroup" }]);
    for (kind, file) in kinds {
        let path = format!("/proc/{pid}/ns/{file}");
        second.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": kind, "path": path }));
    }
    let _output = second.create();
    second.ok(&["start", &second.id]);
    let other = second.state()["pid"].as_u64().unwrap();
    for (_, file) in kinds {
        let of = |pid: u64| fs::read_link(format!("/proc/{pid}/ns/{file}")).unwrap();
        assert_eq!(of(pid), of(other), "{file}");
        assert_ne!(of(pid), fs::read_link(format!("/proc/self/ns/{file}")).unwrap(), "{file}");
    }
    second.ok(&["delete", "--force", &second.id]);
    second.config["linux"]["namespaces"][2]["path"] = "/proc/self/ns/uts".into();
    second.refused("join the namespace /proc/self/ns/uts");
}

fn settings_are_not_the_hosts() {
    let mut bundle = Bundle::new("out no");
    bundle.config["linux"]["sysctl"] = json!({ "net/ipv4/ip_forward": "1" });
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    for one in namespaces.iter_mut().filter(|one| one["type"] == "network") {
        one["path"] = "/proc/self/ns/net".into();
    }
    bundle.refused("net/ipv4/ip_forward needs a namespace of type network that is not the runtime's own");
}

/// In a pid namespace of others.
fn nobody_looks_into_what_is_made() {
    let first = Bundle::new("sleep");
    let _output = first.create();
    first.ok(&["start", &first.id]);
    let mut second = Bundle::new("sleep");
    let path = format!("/proc/{}/ns/pid", first.state()["pid"]);
    second.config["linux"]["namespaces"] = json!([{ "type": "mount" }, { "type": "cgroup" }, { "type": "ipc" }, { "type": "uts" }, { "type": "pid", "path": path }]);
    let _other = second.create();
    let status = fs::read_to_string(format!("/proc/{}/status", second.state()["pid"])).unwrap();
    let inside = status.lines().find(|line| line.starts_with("NSpid:")).unwrap().split_whitespace().last().unwrap();
    let look = || first.ok(&["exec", &first.id, "/payload", "payload", "cat", &format!("/proc/{inside}/environ")]);
    has(&look(), "Permission denied");
    // Its own program is for it to guard.
    second.ok(&["start", &second.id]);
    has(&look(), "PATH=/bin");
}

fn a_cgroup_of_others() {
    let path = format!("/shoal-oci-others-{}/it", std::process::id());
    let _parent = Parent(path.trim_start_matches('/').trim_end_matches("/it").to_owned());
    let (mut first, mut second) = (Bundle::new("sleep"), Bundle::new("sleep"));
    first.config["linux"]["cgroupsPath"] = path.clone().into();
    second.config["linux"]["cgroupsPath"] = path.into();
    let _output = first.create();
    first.ok(&["start", &first.id]);
    second.refused("is in use already");
    assert_eq!(first.state()["status"], "running");
    // Nor when it is refused before anybody has looked there.
    second.config["linux"]["resources"] = json!({ "unified": { "../x": "1" } });
    second.save();
    assert_ne!(second.call(&["create", "--bundle", second.path().to_str().unwrap(), &second.id]).code, 0);
    assert_eq!(first.state()["status"], "running");
}

/// Without a mount namespace of the container's, it is the caller's to unmount.
fn a_root_that_is_a_mount() {
    let mut bundle = Bundle::new("out here");
    let rootfs = bundle.rootfs();
    rustix::mount::mount_bind(&rootfs, &rootfs).unwrap();
    let mounts = || {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        mounts.lines().filter(|line| line.contains(rootfs.to_str().unwrap())).count()
    };
    bundle.config["hostname"] = "".into();
    bundle.config["linux"] = json!({ "namespaces": [{ "type": "network", "path": "/nowhere" }] });
    bundle.save();
    bundle.fails(&["create", "--bundle", bundle.path().to_str().unwrap(), &bundle.id], "open namespace /nowhere");
    let left = mounts();
    bundle.config["linux"] = json!({});
    let said = bundle.run();
    let also_left = mounts();
    rustix::mount::unmount(&rootfs, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert_eq!((said.code, said.out.as_str(), left, also_left), (0, "here\n", 1, 1), "{said:?}");
}

fn links_to_nothing() {
    let mut bundle = Bundle::new("cat /run/resolve/stub.conf then cat /etc/resolv.conf then pwd");
    fs::write(bundle.path().join("file"), "nameserver\n").unwrap();
    let link = |to: &str, at: &str| std::os::unix::fs::symlink(to, bundle.rootfs().join(at)).unwrap();
    link("../run/resolve/stub.conf", "etc/resolv.conf");
    link("/srv/data", "data");
    link("/work/here", "cwd");
    let source = bundle.path().join("file").to_str().unwrap().to_owned();
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.push(json!({ "destination": "/etc/resolv.conf", "source": source, "options": ["bind"] }));
    mounts.push(json!({ "destination": "/data/deep", "type": "tmpfs", "source": "tmpfs" }));
    bundle.config["process"]["cwd"] = "/cwd".into();
    assert_eq!(bundle.runs(), "nameserver\nnameserver\n/work/here\n");
    assert!(bundle.rootfs().join("srv/data/deep").is_dir());
}

fn a_console_that_is_there() {
    let mut bundle = Bundle::new("tty");
    fs::create_dir_all(bundle.rootfs().join("dev/pts")).unwrap();
    fs::write(bundle.rootfs().join("dev/console"), "").unwrap();
    bundle.config["mounts"].as_array_mut().unwrap().retain(|mount| mount["destination"] != "/dev");
    bundle.config["process"]["terminal"] = true.into();
    assert_eq!(bundle.runs(), "tty true\r\n");
    // A link could lead anywhere.
    fs::remove_file(bundle.rootfs().join("dev/console")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", bundle.rootfs().join("dev/console")).unwrap();
    let said = bundle.run();
    assert!(said.code != 0 && said.err.contains("make the terminal"), "{said:?}");
}

fn time_namespace() {
    let mut bundle = Bundle::new("cat /proc/uptime");
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "time" }));
    bundle.config["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 1_000_000_000 } });
    let seconds: f64 = bundle.runs().split(' ').next().unwrap().parse().unwrap();
    assert!(seconds > 1e9, "{seconds}");
}

fn no_namespaces() {
    let mut bundle = Bundle::new("out here then cat /etc/passwd then sleep");
    bundle.config["linux"] = json!({ "maskedPaths": ["/proc/kcore"] });
    bundle.config["hostname"] = "".into();
    let mut output = bundle.create();
    bundle.ok(&["start", &bundle.id]);
    assert_eq!((output.line().as_str(), output.line().as_str()), ("here", "root:x:0:0::/root:/bin/sh"));
    let pid = bundle.state()["pid"].as_u64().unwrap();
    for kind in ["mnt", "pid", "net", "cgroup"] {
        let of = |pid: String| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        assert_eq!(of(pid.to_string()), of("self".to_owned()));
    }
    bundle.ok(&["delete", "--force", &bundle.id]);
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}

fn system_calls() {
    let mut bundle = Bundle::new("write /x y then cat /proc/self/status");
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["openat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95,
            "args": [{ "index": 2, "value": 64, "valueTwo": 64, "op": "SCMP_CMP_MASKED_EQ" }] }]
    });
    let out = bundle.runs();
    has(&out, "write /x: Operation not supported (os error 95)");
    has(&out, "Seccomp:\t2");
    bundle.config["linux"]["seccomp"] = serde_json::Value::Null;
    let out = bundle.runs();
    has(&out, "wrote /x");
    has(&out, "Seccomp:\t0");
}

fn terminal() {
    let mut bundle = Bundle::new("tty then out hello");
    bundle.config["process"]["terminal"] = true.into();
    bundle.config["process"]["consoleSize"] = json!({ "height": 33, "width": 77 });
    bundle.refused("needs --console-socket");
    let path = bundle.path().join("console");
    let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let _output = bundle.create_with(&["--console-socket", path.to_str().unwrap()]);
    let master = receive(&socket.accept().unwrap().0);
    let size = rustix::termios::tcgetwinsize(&master).unwrap();
    assert_eq!((size.ws_row, size.ws_col), (33, 77));
    bundle.ok(&["start", &bundle.id]);
    let mut text = String::new();
    let mut buffer = [0u8; 256];
    // The last writer's end is an error on a terminal.
    while let Ok(count @ 1..) = rustix::io::read(&master, &mut buffer) {
        text.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    assert_eq!(text, "tty true\r\nhello\r\n");
}

/// The cgroup above the bundle's own, which stays when a bundle is deleted: goes with the test, however that ends.
struct Parent(String);

impl Drop for Parent {
    fn drop(&mut self) {
        for mount in crate::bundle::cgroup_mounts() {
            let _ = fs::remove_dir(mount.join(&self.0));
        }
    }
}

fn cgroups() {
    let path = format!("/shoal-oci-test-{}/deeper", std::process::id());
    let _parent = Parent(path.trim_start_matches('/').trim_end_matches("/deeper").to_owned());
    // Declared after what must go after it.
    let mut bundle = Bundle::new("cat /proc/self/cgroup then sleep");
    bundle.config["linux"]["cgroupsPath"] = path.clone().into();
    bundle.config["linux"]["resources"] = json!({
        "memory": { "limit": 64 << 20 }, "pids": { "limit": 33 }, "cpu": { "shares": 512 },
        "devices": [{ "allow": false, "access": "rwm" }]
    });
    let _output = bundle.create();
    let read = |file: &str| {
        let found = crate::bundle::cgroup_mounts()
            .into_iter()
            .find_map(|mount| fs::read_to_string(mount.join(path.trim_start_matches('/')).join(file)).ok());
        found.map(|text| text.trim().to_owned())
    };
    let memory = read("memory.limit_in_bytes").or_else(|| read("memory.max"));
    assert_eq!(memory.as_deref(), Some("67108864"));
    assert_eq!(read("pids.max").as_deref(), Some("33"));
    bundle.ok(&["delete", "--force", &bundle.id]);
    assert_eq!(read("pids.max"), None);
}

fn descriptors() {
    let mut bundle = Bundle::new("cat /proc/self/fd/3");
    fs::write(bundle.path().join("passed"), "passed").unwrap();
    bundle.save();
    let run = |bundle: &Bundle, more: &str| {
        let exe = std::env::current_exe().unwrap();
        let (dir, root) = (bundle.path().display(), bundle.path().join("state"));
        let line = format!(
            "exec {} runtime --root {} run {more} --bundle {dir} {} 3<{dir}/passed",
            exe.display(),
            root.display(),
            bundle.id
        );
        let child = Command::new("sh").args(["-c", &line]).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut child = Killed(child);
        let mut text = String::new();
        std::io::Read::read_to_string(&mut child.0.stdout.take().unwrap(), &mut text).unwrap();
        text
    };
    assert_eq!(run(&bundle, "--preserve-fds 1"), "passed");
    // Not passed on by chance.
    bundle.plays("cat /proc/self/fd/3 then cat /proc/self/fd/4");
    bundle.save();
    let text = run(&bundle, "");
    assert!(!text.contains("passed"), "{text}");
}
