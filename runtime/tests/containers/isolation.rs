//! What a container sees, may do, and cannot reach.

use std::fs;
use std::os::unix::fs::symlink;

use runtime::{Mount, MountKind, Propagation};

use super::fixture::Fixture;

pub const TESTS: &[(&str, fn())] = &[
    ("isolation::namespaces_and_files", namespaces_and_files),
    ("isolation::users_and_groups", users_and_groups),
    ("isolation::capabilities", capabilities),
    ("isolation::masked_and_readonly_paths", masked_and_readonly_paths),
    ("isolation::mounts", mounts),
    ("isolation::readonly_root", readonly_root),
    ("isolation::a_hostile_image_cannot_escape", a_hostile_image_cannot_escape),
    ("isolation::devices", devices),
    ("isolation::layers", layers),
    ("isolation::sysctls", sysctls),
];

fn bind(source: &std::path::Path, target: &str, readonly: bool) -> Mount {
    let kind = MountKind::Bind {
        source: source.to_owned(),
        recursive: true,
        readonly_below: true,
        propagation: Propagation::RPrivate,
    };
    Mount { kind, target: target.into(), readonly }
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or("none").trim()
}

fn namespaces_and_files() {
    let fixture = Fixture::new();
    let words = "cat /proc/sys/kernel/hostname then cat /etc/hostname then cat /etc/hosts then cat /etc/resolv.conf \
        then env HOSTNAME then env PATH then env HOME then env A then pwd then ls /dev then ls /proc/self/fd \
        then cat /proc/self/cgroup then ls /sys/class/net then cat /proc/1/comm then cat /proc/self/mountinfo";
    let mut config = fixture.config("seen", words);
    config.hostname = "web-1".into();
    config.cwd = "/made/for/me".into();
    config.env = vec!["A=1=2".into()];
    let (exit, output) = fixture.run(config);
    assert_eq!(exit.code, 0);
    let expected = "web-1\nweb-1\n127.0.0.1 localhost\nnameserver 127.0.0.11\nHOSTNAME=web-1\n\
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nHOME=/root\nA=1=2\n/made/for/me\n\
        ls /dev: core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero\n\
        ls /proc/self/fd: 0 1 2 3\n";
    assert!(output.starts_with(expected), "{output}");
    assert!(!output.contains("shoal-test"), "the host's cgroups are not seen: {output}");
    assert!(output.contains("ls /sys/class/net: lo\n"), "{output}");
    assert!(output.contains("\npayload\n"), "{output}");
    assert!(!output.contains("master:") && !output.contains("/data/containers/seen/rootfs"), "{output}");
}

fn users_and_groups() {
    let fixture = Fixture::new();
    // What the daemon's own umask is must not matter to users in containers.
    let umask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let check = |id: &str, user: &str, groups: &[&str], expected: (&str, &str, &str), home: &str| {
        let mut config = fixture.config(id, "cat /proc/self/status then env HOME then write /dev/stdout hello");
        config.user = user.to_owned();
        config.groups = groups.iter().map(|group| (*group).to_owned()).collect();
        let (_, output) = fixture.run(config);
        let ids = |name| field(&output, name).split_whitespace().next().unwrap_or_default().to_owned();
        let groups = field(&output, "Groups").to_owned();
        assert_eq!((ids("Uid").as_str(), ids("Gid").as_str(), groups.as_str()), expected, "{output}");
        assert!(output.contains(&format!("HOME={home}\n")), "{output}");
        assert!(output.contains("hello"), "/dev/stdout opens for every user: {output}");
        output
    };
    check("u1", "", &[], ("0", "0", ""), "/root");
    let status = check("u2", "web", &[], ("100", "101", "200"), "/srv");
    assert_eq!(field(&status, "CapEff"), "0000000000000000");
    assert_eq!(field(&status, "CapPrm"), "0000000000000000");
    check("u3", "web:logs", &["7"], ("100", "200", "7"), "/srv");
    check("u4", "1234:5678", &[], ("1234", "5678", ""), "/");
    rustix::process::umask(umask);
}

fn capabilities() {
    let fixture = Fixture::new();
    let status = |id: &str, change: &dyn Fn(&mut runtime::ContainerConfig)| {
        let mut config = fixture.config(id, "cat /proc/self/status");
        change(&mut config);
        fixture.run(config).1
    };
    let plain = status("c1", &|_| {});
    // Docker's number.
    let default = "00000000a80425fb";
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(field(&plain, set), default, "{set}");
    }
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(field(&plain, set), "0000000000000000", "{set}");
    }
    assert_eq!(field(&plain, "NoNewPrivs"), "0");
    assert_eq!(field(&plain, "SigIgn"), "0000000000001000", "the test program's own, SIGPIPE");
    assert_eq!(field(&plain, "SigBlk"), "0000000000000000");
    let none = status("c2", &|config| {
        config.capabilities.drop = vec!["ALL".into()];
        config.capabilities.add = vec!["NET_ADMIN".into()];
        config.no_new_privileges = true;
    });
    assert_eq!(field(&none, "CapEff"), "0000000000001000");
    assert_eq!(field(&none, "CapBnd"), "0000000000001000");
    assert_eq!(field(&none, "NoNewPrivs"), "1");
}

fn masked_and_readonly_paths() {
    let fixture = Fixture::new();
    let words = "cat /proc/kcore then cat /proc/keys then ls /sys/firmware then write /proc/sys/kernel/hostname x \
        then write /sys/kernel/profiling 1 then write /proc/sysrq-trigger h then write /sys/fs/cgroup/x y \
        then ls /sys/fs/cgroup then out end";
    let (_, output) = fixture.run(fixture.config("masked", words));
    assert!(output.contains("ls /sys/firmware: \n"), "{output}");
    assert!(!output.contains("keyring"), "{output}");
    for path in ["/proc/sys/kernel/hostname", "/sys/kernel/profiling", "/sys/fs/cgroup/x"] {
        assert!(output.contains(&format!("write {path}: Read-only file system")), "{output}");
    }
    assert!(!output.contains("wrote"), "{output}");
    assert!(output.ends_with("end\n"), "{output}");
}

fn mounts() {
    let fixture = Fixture::new();
    let host = fixture.path().join("host");
    fs::create_dir_all(host.join("deep")).unwrap();
    fs::write(host.join("file"), "from the host\n").unwrap();
    let mut config = fixture.config(
        "mounted",
        "cat /data/file then write /data/new 1 then write /ro/new 1 then cat /etc/one.conf then ls /data \
        then write /scratch/x 1 then cat /proc/self/mountinfo",
    );
    config.mounts = vec![
        bind(&host, "/data", false),
        bind(&host, "/ro", true),
        bind(&host.join("file"), "/etc/one.conf", true),
        Mount {
            kind: MountKind::Tmpfs { size: Some(1 << 20), mode: Some(0o700) },
            target: "/scratch".into(),
            readonly: false,
        },
    ];
    let (_, output) = fixture.run(config);
    let expected = "from the host\nwrote /data/new\nwrite /ro/new: Read-only file system (os error 30)\n\
        from the host\nls /data: deep file new\nwrote /scratch/x\n";
    assert!(output.starts_with(expected), "{output}");
    let scratch = output.lines().find(|line| line.contains(" /scratch ")).unwrap();
    assert!(scratch.contains("nosuid,nodev,noexec") && scratch.contains("size=1024k,mode=700"), "{scratch}");
    assert!(host.join("new").exists());
    // The mount point was made in the container's own layer, not in the image or on the host.
    let own = fixture.config.data_dir.join("containers/mounted/upper");
    assert!(own.join("data").is_dir() && own.join("etc/one.conf").is_file());
}

fn readonly_root() {
    let fixture = Fixture::new();
    let words = "write /x 1 then write /etc/hosts 1 then write /dev/shm/x 1 then write /tmp/x 1 then pwd";
    let mut config = fixture.config("sealed", words);
    config.readonly_root = true;
    config.cwd = "/work".into();
    config.mounts =
        vec![Mount { kind: MountKind::Tmpfs { size: None, mode: None }, target: "/tmp".into(), readonly: false }];
    let (_, output) = fixture.run(config);
    let sealed = "Read-only file system (os error 30)";
    assert_eq!(
        output,
        format!("write /x: {sealed}\nwrite /etc/hosts: {sealed}\nwrote /dev/shm/x\nwrote /tmp/x\n/work\n")
    );
}

/// Everything that the runtime touches in the image is a link to the host.
fn a_hostile_image_cannot_escape() {
    let fixture = Fixture::new();
    let victim = fixture.path().join("victim");
    fs::create_dir_all(&victim).unwrap();
    fs::write(victim.join("hosts"), "untouched").unwrap();
    let evil = fixture.path().join("evil");
    fs::create_dir_all(evil.join("etc")).unwrap();
    let up = "../../../../../../../../..";
    symlink(&victim, evil.join("data")).unwrap();
    symlink(format!("{up}{}", victim.display()), evil.join("relative")).unwrap();
    symlink(victim.join("hosts"), evil.join("etc/resolv.conf")).unwrap();
    symlink("/proc/1/root", evil.join("magic")).unwrap();
    symlink(format!("{up}{}", victim.display()), evil.join("home")).unwrap();
    let before = tree(&victim);
    let run = |id: &str, target: &str, cwd: &str| {
        let mut config = fixture.config(id, "ls /");
        config.layers.push(evil.clone());
        config.mounts = vec![bind(&fixture.path().join("src"), target, false)];
        config.cwd = cwd.into();
        let runtime = fixture.runtime();
        fixture.tokio.block_on(async {
            let outcome = match runtime.create(config).await {
                Ok(_) => runtime.start(id).await,
                Err(error) => Err(error),
            };
            if outcome.is_ok() {
                runtime.wait(id).await.unwrap();
            }
            outcome.err().map(|error| error.to_string())
        })
    };
    fs::create_dir_all(fixture.path().join("src")).unwrap();
    fs::write(fixture.path().join("src/marker"), "").unwrap();
    // What links lead to is made inside of the root, but for the kernel's own links; none ever leads out.
    for (number, (target, cwd)) in
        [("/data/sub", "/"), ("/relative/sub", "/"), ("/magic/sub", "/"), ("/ok", "/home/deep"), ("/ok", "/magic/x")]
            .into_iter()
            .enumerate()
    {
        let error = run(&format!("e{number}"), target, cwd);
        assert_eq!(error.is_some(), target.contains("magic") || cwd.contains("magic"), "{target} {cwd}: {error:?}");
        assert_eq!(tree(&victim), before, "{target} {cwd}: {error:?}");
    }
    assert_eq!(fs::read_to_string(victim.join("hosts")).unwrap(), "untouched");
    let inside = |id: &str| fixture.config.data_dir.join(format!("containers/{id}/upper{}", victim.display()));
    assert!(
        inside("e0").join("sub").is_dir() && inside("e1").join("sub").is_dir() && inside("e3").join("deep").is_dir()
    );
    // A place that exists inside: the link is followed, but there.
    fs::create_dir_all(evil.join("real")).unwrap();
    symlink("/../../../real", evil.join("inside")).unwrap();
    fs::remove_file(evil.join("etc/resolv.conf")).unwrap();
    assert_eq!(run("e9", "/inside/sub", "/"), None);
    assert!(fixture.config.data_dir.join("containers/e9/upper/real/sub").is_dir());
}

fn tree(dir: &std::path::Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().flatten().map(|entry| entry.path().display().to_string()).collect();
    names.sort();
    names
}

fn devices() {
    let fixture = Fixture::new();
    let words = "mknod /disk then write /dev/null x then cat /dev/null then write /dev/full x";
    let (_, output) = fixture.run(fixture.config("dev", words));
    assert!(output.contains("mknod Ok(()) open Err(PermissionDenied)"), "{output}");
    assert!(output.contains("wrote /dev/null\nwrite /dev/full: No space left"), "{output}");
    // As Docker makes it.
    let expected = "/dev/null 1:3 20666\n/dev/zero 1:5 20666\n/dev/full 1:7 20666\n/dev/random 1:8 20666\n\
        /dev/urandom 1:9 20666\n/dev/tty 5:0 20666\n/dev/console 136:0 20620\n/dev/ptmx -> pts/ptmx\n\
        /dev/pts/ptmx 5:2 20666\n/dev/fd -> /proc/self/fd\n/dev/stdin -> /proc/self/fd/0\n\
        /dev/stdout -> /proc/self/fd/1\n/dev/stderr -> /proc/self/fd/2\n/dev/core -> /proc/kcore\n/dev/shm 0:0 41777\n";
    let paths = expected.lines().map(|line| format!("what {}", line.split(' ').next().unwrap()));
    let mut config = fixture.config("like-docker", &paths.collect::<Vec<_>>().join(" then "));
    config.tty = true;
    assert_eq!(fixture.run(config).1.replace("\r\n", "\n"), expected);
}

fn layers() {
    let fixture = Fixture::new();
    let (lower, upper) = (fixture.path().join("lower"), fixture.path().join("upper"));
    for (dir, text) in [(&lower, "lower"), (&upper, "upper")] {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("both"), text).unwrap();
        fs::write(dir.join(text), text).unwrap();
    }
    let mut config = fixture.config("layered", "cat /both then cat /lower then cat /upper then write /both changed");
    config.layers.extend([lower.clone(), upper.clone()]);
    let (_, output) = fixture.run(config.clone());
    assert_eq!(output, "upperlowerupperwrote /both\n");
    // Images are shared: a container writes to its own layer only.
    assert_eq!(fs::read_to_string(upper.join("both")).unwrap(), "upper");
    config.id = "many".into();
    config.layers = vec![config.layers[0].clone()];
    for number in 0..119 {
        let layer = fixture.path().join(format!("a-layer-with-a-rather-long-name-to-fill-the-page-{number}"));
        fs::create_dir_all(&layer).unwrap();
        fs::write(layer.join("both"), format!("{number}")).unwrap();
        fs::write(layer.join("lower"), "").unwrap();
        fs::write(layer.join("upper"), "").unwrap();
        config.layers.push(layer);
    }
    assert!(fixture.run(config).1.starts_with("118wrote"));
}

fn sysctls() {
    let fixture = Fixture::new();
    let mut config =
        fixture.config("sysctl", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start then cat /proc/sys/kernel/shmmni");
    config.sysctls.insert("kernel.shmmni".into(), "1234".into());
    assert_eq!(fixture.run(config).1, "0\n1234\n");
    let mut config = fixture.config("forbidden", "sleep");
    config.sysctls.insert("kernel.panic".into(), "1".into());
    let error = fixture.tokio.block_on(fixture.runtime().create(config)).unwrap_err();
    assert!(error.to_string().contains("\"kernel.panic\" is not a namespaced kernel setting"), "{error}");
}
