//! What confines a container's processes: system calls, labels, process 1, and the lessons of other runtimes.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags};
use runtime::{AppArmor, ContainerConfig, Mount, MountKind, Propagation, RuntimeError, Seccomp, SelinuxLabel};

use super::fixture::{Fixture, chain};

pub const TESTS: &[(&str, fn())] = &[
    ("confinement::the_default_filter", the_default_filter),
    ("confinement::users_are_filtered_too", users_are_filtered_too),
    ("confinement::custom_filters", custom_filters),
    ("confinement::labels_that_the_host_lacks", labels_that_the_host_lacks),
    ("confinement::process_one_starts_reaps_and_forwards", process_one_starts_reaps_and_forwards),
    ("confinement::process_one_tells_why_a_command_cannot_run", process_one_tells_why_a_command_cannot_run),
    ("confinement::process_one_cannot_be_overwritten", process_one_cannot_be_overwritten),
    ("confinement::the_hosts_binary_cannot_be_overwritten", the_hosts_binary_cannot_be_overwritten),
    ("confinement::descriptors_lead_nowhere", descriptors_lead_nowhere),
    ("confinement::proc_cannot_be_covered", proc_cannot_be_covered),
    ("confinement::readonly_all_the_way_down", readonly_all_the_way_down),
    ("confinement::proc_stays_as_it_is", proc_stays_as_it_is),
    ("confinement::proc_is_no_link", proc_is_no_link),
    ("confinement::places_that_move", places_that_move),
];

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or("none").trim()
}

/// Every attempt that the default policy stops before the kernel would.
const ATTEMPTS: &str = "try mount then try alg then try vsock then try personality then try unshare \
    then cat /proc/self/status";

fn the_default_filter() {
    let fixture = Fixture::new();
    let (exit, output) = fixture.run(fixture.config("filtered", ATTEMPTS));
    assert_eq!(exit.code, 0, "{output}");
    for name in ["unshare", "personality", "alg", "vsock", "mount"] {
        assert!(output.contains(&format!("try {name}: EPERM\n")), "{name}: {output}");
    }
    assert_eq!((field(&output, "Seccomp"), field(&output, "Seccomp_filters")), ("2", "1"));
    assert_eq!(field(&output, "NoNewPrivs"), "0", "loading the filter needs none");
    // The same without a filter: what stopped it above was the filter.
    let open = ContainerConfig { seccomp: Seccomp::Unconfined, ..fixture.config("open", ATTEMPTS) };
    let (_, output) = fixture.run(open);
    for name in ["unshare", "personality"] {
        assert!(output.contains(&format!("try {name}: done\n")), "{name}: {output}");
    }
    for name in ["alg", "vsock"] {
        assert!(!output.contains(&format!("try {name}: EPERM\n")), "{name}: {output}");
    }
    assert_eq!(field(&output, "Seccomp"), "0");
    // With the capability, the calls that are useless without it.
    let mut able = fixture.config("able", ATTEMPTS);
    able.capabilities.add = vec!["SYS_ADMIN".into()];
    let (_, output) = fixture.run(able);
    assert!(output.contains("try mount: done\n") && output.contains("try unshare: done\n"), "{output}");
    assert_eq!(field(&output, "Seccomp"), "2");
}

/// The filter is loaded by a process that has given up root and all capabilities that its user does not get.
fn users_are_filtered_too() {
    let fixture = Fixture::new();
    for (id, no_new_privileges) in [("user", false), ("user-nnp", true)] {
        let mut config = fixture.config(id, "try unshare then cat /proc/self/status then write /x 1");
        config.user = "web".into();
        config.no_new_privileges = no_new_privileges;
        let (_, output) = fixture.run(config);
        assert!(output.contains("try unshare: EPERM\n"), "{output}");
        assert_eq!((field(&output, "Seccomp"), field(&output, "Seccomp_filters")), ("2", "1"));
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(field(&output, set), "0000000000000000", "{set} of {id}");
        }
        assert_eq!(field(&output, "NoNewPrivs"), if no_new_privileges { "1" } else { "0" });
        assert!(output.contains("write /x: Permission denied"), "{output}");
    }
    // Until the exec there is CAP_SYS_ADMIN, and nothing else that could open the program for its user.
    let program = fixture.path().join("program");
    fs::create_dir_all(program.join("secret")).unwrap();
    fs::copy("/proc/self/exe", program.join("secret/payload")).unwrap();
    let closed = PermissionsExt::from_mode(0o700);
    fs::set_permissions(program.join("secret"), closed).unwrap();
    let mut config = fixture.config("closed", "out reached");
    config.layers.push(program);
    config.user = "web".into();
    config.args[0] = "/secret/payload".into();
    let runtime = fixture.runtime();
    let error = fixture.tokio.block_on(async {
        runtime.create(config).await.unwrap();
        runtime.start("closed").await.unwrap_err()
    });
    assert!(chain(&error).contains("ermission denied"), "{}", chain(&error));
}

fn custom_filters() {
    let fixture = Fixture::new();
    let custom = |id: &str, profile: &str| {
        let config = fixture.config(id, "try mkdir then out after");
        fixture.run(ContainerConfig { seccomp: Seccomp::Custom(profile.to_owned()), ..config })
    };
    let rule = |action: &str| {
        format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{"names":["mkdir","mkdirat"],{action}}}]}}"#)
    };
    let (_, output) = custom("errno", &rule(r#""action":"SCMP_ACT_ERRNO","errnoRet":95"#));
    assert_eq!(output, "try mkdir: EOPNOTSUPP\nafter\n");
    let (exit, output) = custom("kill", &rule(r#""action":"SCMP_ACT_KILL_PROCESS""#));
    assert_eq!((exit.code, exit.signal, output.as_str()), (128 + 31, Some(31), ""));
    let (_, output) = custom("caps", &rule(r#""action":"SCMP_ACT_ERRNO","includes":{"caps":["CAP_SYS_ADMIN"]}"#));
    assert_eq!(output, "try mkdir: done\nafter\n");
    let refused = ContainerConfig {
        seccomp: Seccomp::Custom(r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#.into()),
        ..fixture.config("notify", "sleep")
    };
    let error = fixture.tokio.block_on(fixture.runtime().create(refused)).unwrap_err();
    assert!(error.to_string().contains("SCMP_ACT_NOTIFY is not supported"), "{error}");
    assert!(!fixture.config.data_dir.join("containers/notify").exists());
}

fn labels_that_the_host_lacks() {
    let fixture = Fixture::new();
    let create = |config: ContainerConfig| fixture.tokio.block_on(fixture.runtime().create(config)).unwrap_err();
    let named = AppArmor::Named("shoal-test-not-loaded".into());
    let error = create(ContainerConfig { apparmor: named, ..fixture.config("apparmor", "sleep") });
    assert!(matches!(error, RuntimeError::InvalidConfig(_)) && error.to_string().contains("apparmor"), "{error}");
    if !Path::new("/sys/fs/selinux/enforce").exists() {
        let label = Some(SelinuxLabel { kind: "container_t".into(), ..SelinuxLabel::default() });
        let error = create(ContainerConfig { selinux: label, ..fixture.config("selinux", "sleep") });
        assert!(error.to_string().contains("selinux (not enabled on this host) is not supported"), "{error}");
    }
}

fn process_one_starts_reaps_and_forwards() {
    let fixture = Fixture::new();
    let with_init = |id: &str, words: &str| ContainerConfig { init: true, ..fixture.config(id, words) };
    let words = "cat /proc/1/comm then cat /proc/1/status then out end of 1 then cat /proc/self/status then exit 5";
    let (exit, output) = fixture.run(with_init("told", words));
    assert_eq!((exit.code, exit.signal), (5, None));
    assert!(output.starts_with("init\n"), "{output}");
    let (one, own) = output.split_once("end of 1").unwrap();
    assert_eq!((field(one, "Seccomp"), field(own, "Seccomp")), ("2", "2"));
    assert_eq!((field(one, "CapEff"), field(own, "SigBlk")), (field(own, "CapEff"), "0000000000000000"));
    let anonymous: u64 = field(one, "RssAnon").trim_end_matches(" kB").trim().parse().unwrap();
    assert!(anonymous <= 32, "process 1 has {anonymous} KiB of its own");
    // A user's process 1 is the user's.
    let (_, output) = fixture.run(ContainerConfig { user: "web".into(), ..with_init("user", "cat /proc/1/status") });
    assert_eq!((field(&output, "Uid"), field(&output, "CapPrm")), ("100\t100\t100\t100", "0000000000000000"));
    // What is left behind is collected, though nobody waits for it; then the command itself is told to end.
    let (_, output) = fixture.run(fixture.config("left", "orphans 5 then with-zombies 5"));
    assert_eq!(output, "5 zombies\n", "without process 1 they stay");
    fixture.start(with_init("orphans", "orphans 20 then without-zombies then trap"));
    fixture.until_output("orphans", "no zombies\ntrapping");
    let runtime = fixture.runtime();
    let exit = fixture.tokio.block_on(runtime.stop("orphans", None, Duration::from_secs(10))).unwrap();
    assert_eq!((exit.code, exit.signal), (7, None), "the signal reached the command: {}", fixture.output("orphans"));
    // Death by a signal shows in the code, as with Docker.
    let (exit, _) = fixture.run(with_init("dies", "try abort"));
    assert_eq!((exit.code, exit.signal), (134, None));
}

fn process_one_tells_why_a_command_cannot_run() {
    let fixture = Fixture::new();
    let runtime = fixture.runtime();
    let start = |id: &str, command: &str| {
        let mut config = ContainerConfig { init: true, ..fixture.config(id, "out x") };
        config.args[0] = command.to_owned();
        config.env = vec!["PATH=relative:/bin".into()];
        let outcome = fixture.tokio.block_on(async {
            runtime.create(config).await.unwrap();
            runtime.start(id).await
        });
        (outcome.map_err(|error| error.to_string()), fixture.wait(id).code)
    };
    let (outcome, code) = start("missing", "nosuch");
    assert!(outcome.unwrap_err().contains("executable file not found in $PATH"));
    assert_eq!(code, 127);
    let (outcome, code) = start("plain", "plain");
    assert!(outcome.unwrap_err().to_lowercase().contains("permission denied"));
    assert_eq!(code, 126);
    // Found through PATH, and called by the name that was asked for.
    assert_eq!(start("found", "tool"), (Ok(()), 0));
    assert_eq!(fixture.output("found"), "x\n");
}

fn process_one_cannot_be_overwritten() {
    let fixture = Fixture::new();
    let config = fixture.config("sealed", "write /proc/1/exe broken then cat /proc/1/comm");
    let (_, output) = fixture.run(ContainerConfig { init: true, ..config });
    assert!(output.starts_with("write /proc/1/exe: ") && output.ends_with("init\n"), "{output}");
}

/// CVE-2019-5736: an image whose command is `/proc/self/exe` executes the runtime's own binary, and through the same
/// link it could be replaced, for the host and for every later container.
fn the_hosts_binary_cannot_be_overwritten() {
    let fixture = Fixture::new();
    let before = fs::metadata(&fixture.config.shim_exe).unwrap();
    let mut config = fixture.config("overwriter", "write /proc/self/exe broken");
    config.args[0] = "/proc/self/exe".into();
    config.capabilities.add = vec!["SYS_ADMIN".into()];
    let (_, output) = fixture.run(config);
    // Not for being busy, which it will not always be: it cannot be written through this mount.
    assert_eq!(output, "write /proc/self/exe: Read-only file system (os error 30)\n");
    let after = fs::metadata(&fixture.config.shim_exe).unwrap();
    assert_eq!((before.len(), before.modified().unwrap()), (after.len(), after.modified().unwrap()));
}

/// CVE-2024-21626: a working directory or a command that goes through a descriptor which the runtime left open.
fn descriptors_lead_nowhere() {
    let fixture = Fixture::new();
    let runtime = fixture.runtime();
    for number in 3..16 {
        let id = format!("cwd-{number}");
        let mut config = fixture.config(&id, "pwd");
        config.cwd = format!("/proc/self/fd/{number}");
        let error = fixture.tokio.block_on(runtime.create(config)).unwrap_err();
        assert!(matches!(error, RuntimeError::Create { .. }), "{}", chain(&error));
        let id = format!("exe-{number}");
        let mut config = fixture.config(&id, "out escaped");
        config.args[0] = format!("/proc/self/fd/{number}/bin/true");
        let outcome = fixture.tokio.block_on(async {
            runtime.create(config).await.unwrap();
            runtime.start(&id).await
        });
        assert!(outcome.is_err(), "{number}");
        assert_eq!(fixture.output(&id), "");
    }
    let (_, output) = fixture.run(fixture.config("open", "ls /proc/self/fd"));
    assert_eq!(output, "ls /proc/self/fd: 0 1 2 3\n", "3 is the directory that is read");
}

fn bind(source: &Path, target: &str, readonly_below: bool) -> Mount {
    let kind = MountKind::Bind {
        source: source.to_owned(),
        recursive: true,
        readonly_below,
        propagation: Propagation::RPrivate,
    };
    Mount { kind, target: target.into(), readonly: true }
}

/// CVE-2019-16884: a volume over `/proc`, or a link of the image's that leads one there.
fn proc_cannot_be_covered() {
    let fixture = Fixture::new();
    let source = fixture.path().join("source");
    fs::create_dir_all(&source).unwrap();
    fs::write(source.join("file"), "covered\n").unwrap();
    let runtime = fixture.runtime();
    for target in ["/proc", "/proc/", "/proc/self/attr", "//proc/./1", "/proc/sys/kernel"] {
        let mut config = fixture.config("cover", "sleep");
        config.mounts = vec![bind(&source, target, true)];
        let error = fixture.tokio.block_on(runtime.create(config)).unwrap_err();
        assert!(error.to_string().contains("is in /proc"), "{target}: {error}");
    }
    let evil = fixture.path().join("evil");
    fs::create_dir_all(&evil).unwrap();
    symlink("/proc", evil.join("data")).unwrap();
    for target in ["/data", "/data/irq", "/data/sys/kernel"] {
        let mut config = fixture.config("link", "sleep");
        config.layers.push(evil.clone());
        config.mounts = vec![bind(&source, target, true)];
        let error = fixture.tokio.block_on(runtime.create(config)).unwrap_err();
        assert!(matches!(error, RuntimeError::Create { .. }), "{target}: {}", chain(&error));
    }
    // What tools like lxcfs cover.
    let mut config = fixture.config("lxcfs", "cat /proc/uptime");
    config.mounts = vec![bind(&source.join("file"), "/proc/uptime", true)];
    assert_eq!(fixture.run(config).1, "covered\n");
}

/// A new `/proc` without masks, the masked one made writable, a mask taken away: none of it without the capability,
/// whether the filter says so or the kernel.
fn proc_stays_as_it_is() {
    let fixture = Fixture::new();
    let words = "try new-proc then try open-proc then try unmask then write /proc/sys/kernel/hostname x";
    for (id, seccomp) in [("filtered", Seccomp::Default), ("open", Seccomp::Unconfined)] {
        let (_, output) = fixture.run(ContainerConfig { seccomp, ..fixture.config(id, words) });
        let expected = "try new-proc: EPERM\ntry open-proc: EPERM\ntry unmask: EPERM\n\
            write /proc/sys/kernel/hostname: Read-only file system (os error 30)\n";
        assert_eq!(output, expected, "{id}");
    }
}

/// CVE-2019-19921, CVE-2023-27561: a `/proc` or `/sys` that leads to a place which others can change.
fn proc_is_no_link() {
    let fixture = Fixture::new();
    for name in ["proc", "sys"] {
        let evil = fixture.path().join(format!("evil-{name}"));
        fs::create_dir_all(evil.join("other")).unwrap();
        symlink("/other", evil.join(name)).unwrap();
        let mut config = fixture.config("link", "sleep");
        config.layers.push(evil);
        let error = fixture.tokio.block_on(fixture.runtime().create(config)).unwrap_err();
        assert!(chain(&error).contains(&format!("/{name}: too many levels of symbolic links")), "{}", chain(&error));
    }
    assert_eq!(fixture.leftovers(), Default::default());
}

/// CVE-2021-30465: a volume that containers share, and in which one of them swaps a mount's place for a link while the
/// mount is made.
fn places_that_move() {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let fixture = Fixture::new();
    let (shared, outside) = (fixture.path().join("shared"), fixture.path().join("outside"));
    fs::create_dir_all(shared.join("x")).unwrap();
    fs::create_dir_all(&outside).unwrap();
    fs::write(fixture.path().join("file"), "").unwrap();
    symlink(format!("../../../../../../../../..{}", outside.display()), shared.join("y")).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    let swaps = std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            let mut count = 0u64;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                renameat_with(CWD, shared.join("x"), CWD, shared.join("y"), RenameFlags::EXCHANGE).unwrap();
                count += 1;
            }
            count
        });
        for number in 0..40 {
            let id = format!("moved-{number}");
            let mut config = fixture.config(&id, "sleep");
            let mut volume = bind(&shared, "/vol", true);
            volume.readonly = false;
            let made = |target: &str| Mount {
                kind: MountKind::Tmpfs { size: None, mode: None },
                target: target.into(),
                readonly: false,
            };
            let file = bind(&fixture.path().join("file"), "/vol/x/file", true);
            config.mounts = vec![volume, made("/vol/x/made/here"), file];
            config.cwd = "/vol/x/work".into();
            let runtime = fixture.runtime();
            // What moves at the wrong moment is an error of the creation's.
            match fixture.tokio.block_on(runtime.create(config)) {
                Ok(_) => fixture.tokio.block_on(runtime.delete(&id)).unwrap(),
                Err(error) => assert!(matches!(error, RuntimeError::Create { .. }), "{}", chain(&error)),
            }
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        swapper.join().unwrap()
    });
    assert!(swaps > 100, "{swaps}");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert_eq!(fixture.leftovers(), Default::default());
}

/// Docker's rule since release 25: read-only goes for the mounts below a bind as well.
fn readonly_all_the_way_down() {
    struct Mounted(std::path::PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = nix::mount::umount2(&self.0, MntFlags::MNT_DETACH);
        }
    }
    let fixture = Fixture::new();
    let below = fixture.path().join("host/below");
    fs::create_dir_all(&below).unwrap();
    nix::mount::mount(Some("tmpfs"), &below, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    let _mounted = Mounted(below.clone());
    let mut config = fixture
        .config("deep", "write /all/x 1 then write /all/below/x 1 then write /top/x 1 then write /top/below/x 1");
    let host = fixture.path().join("host");
    config.mounts = vec![bind(&host, "/all", true), bind(&host, "/top", false)];
    let (_, output) = fixture.run(config);
    let refused = "Read-only file system (os error 30)";
    let expected = format!("write /all/x: {refused}\nwrite /all/below/x: {refused}\nwrite /top/x: {refused}\n");
    assert_eq!(output, format!("{expected}wrote /top/below/x\n"));
    assert!(below.join("x").exists() && !host.join("x").exists());
}
