//! What other runtimes have learnt the hard way: programs, images and other containers that work against the runtime.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::json;

use crate::Test;
use crate::bundle::Bundle;

pub const TESTS: &[Test] = &[
    ("attacks::the_binary_cannot_be_overwritten", the_binary_cannot_be_overwritten),
    ("attacks::descriptors_lead_nowhere", descriptors_lead_nowhere),
    ("attacks::proc_cannot_be_covered", proc_cannot_be_covered),
    ("attacks::proc_is_no_link", proc_is_no_link),
    ("attacks::masks_are_the_hosts", masks_are_the_hosts),
    ("attacks::a_console_in_the_way", a_console_in_the_way),
    ("attacks::places_that_move", places_that_move),
    ("attacks::nobodys_id_is_not_roots", nobodys_id_is_not_roots),
    ("attacks::rootless", rootless),
];

/// CVE-2019-5736: by way of `/proc/self/exe` the runtime's own binary could be replaced.
fn the_binary_cannot_be_overwritten() {
    let mut bundle = Bundle::new("write /proc/self/exe broken");
    let before = fs::metadata("/proc/self/exe").unwrap();
    bundle.config["process"]["args"][0] = "/proc/self/exe".into();
    // Not for being busy, which it will not always be: it cannot be written through this mount.
    assert_eq!(bundle.runs(), "write /proc/self/exe: Read-only file system (os error 30)\n");
    let after = fs::metadata("/proc/self/exe").unwrap();
    assert_eq!((before.len(), before.modified().unwrap()), (after.len(), after.modified().unwrap()));
}

/// CVE-2024-21626: a working directory or a command that goes through a descriptor which the runtime left open.
fn descriptors_lead_nowhere() {
    for number in 3..16 {
        let mut bundle = Bundle::new("pwd");
        bundle.config["process"]["cwd"] = format!("/proc/self/fd/{number}").into();
        bundle.refused("enter the working directory");
        bundle.config["process"]["cwd"] = "/".into();
        bundle.config["process"]["args"][0] = format!("/proc/self/fd/{number}/bin/true").into();
        let said = bundle.run();
        assert!(said.code != 0 && said.out.is_empty() && said.err.contains("exec"), "{number}: {said:?}");
        assert_eq!(bundle.leftovers(), Vec::<String>::new());
    }
}

/// CVE-2019-16884: a mount over `/proc`, or a link of the image's that leads one there, hides what labels are written to.
fn proc_cannot_be_covered() {
    for target in ["/proc", "/proc/", "/proc/self/attr", "//proc/./1", "/proc/sys/kernel", "/x/../proc/self"] {
        let mut bundle = Bundle::new("out no");
        let mount = json!({ "destination": target, "type": "tmpfs", "source": "tmpfs" });
        bundle.config["mounts"].as_array_mut().unwrap().push(mount);
        bundle.refused("is in /proc, where only a proc may be mounted");
        let source = bundle.path().join("source");
        fs::create_dir_all(&source).unwrap();
        let mount = json!({ "destination": target, "source": source, "options": ["rbind"] });
        *bundle.config["mounts"].as_array_mut().unwrap().last_mut().unwrap() = mount;
        bundle.refused("is in /proc, where only a proc may be mounted");
    }
    for target in ["/data", "/data/irq", "/data/sys/kernel"] {
        let mut bundle = Bundle::new("out no");
        symlink("/proc", bundle.rootfs().join("data")).unwrap();
        let mount = json!({ "destination": target, "type": "tmpfs", "source": "tmpfs" });
        bundle.config["mounts"].as_array_mut().unwrap().push(mount);
        bundle.refused("too many levels of symbolic links");
    }
    // What tools like lxcfs cover.
    let mut bundle = Bundle::new("cat /proc/uptime");
    fs::write(bundle.path().join("uptime"), "covered\n").unwrap();
    let mount = json!({ "destination": "/proc/uptime", "source": "uptime", "options": ["bind"] });
    bundle.config["mounts"].as_array_mut().unwrap().push(mount);
    assert_eq!(bundle.runs(), "covered\n");
}

/// CVE-2019-19921, CVE-2023-27561: a `/proc` or `/sys` that leads to a place which others can change.
fn proc_is_no_link() {
    for name in ["proc", "sys"] {
        let mut bundle = Bundle::new("out no");
        fs::remove_dir(bundle.rootfs().join(name)).unwrap();
        fs::create_dir(bundle.rootfs().join("other")).unwrap();
        symlink("/other", bundle.rootfs().join(name)).unwrap();
        bundle.refused(&format!("mount /{name}: too many levels of symbolic links"));
        // Nor one of the directories above it.
        fs::remove_file(bundle.rootfs().join(name)).unwrap();
        symlink("/other", bundle.rootfs().join("link")).unwrap();
        let index = if name == "proc" { 0 } else { 4 };
        bundle.config["mounts"][index]["destination"] = format!("/link/{name}").into();
        bundle.refused("too many levels of symbolic links");
    }
}

/// CVE-2025-31133: what hides a file must not be what the image calls `/dev/null`.
fn masks_are_the_hosts() {
    let mut bundle = Bundle::new(
        "cat /secret then out 1 then cat /link then out 2 then cat /victim then write /secret x then cat /proc/self/mountinfo",
    );
    let outside = bundle.path().join("outside");
    fs::write(&outside, "of the host").unwrap();
    let root = bundle.rootfs();
    for (name, text) in [("secret", "first secret"), ("other", "second secret"), ("victim", "victim\n")] {
        fs::write(root.join(name), text).unwrap();
    }
    symlink("/other", root.join("link")).unwrap();
    symlink(format!("../../../../../../..{}", outside.display()), root.join("out")).unwrap();
    symlink("/victim", root.join("dev/null")).unwrap();
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    bundle.config["linux"]["maskedPaths"] = json!(["/secret", "/link", "/out", "/proc/version"]);
    let out = bundle.runs();
    assert!(out.starts_with("1\n2\nvictim\nwrote /secret\n"), "{out}");
    // A link is masked where it leads to inside of the root; where it leads to nothing there, nothing is.
    let places: Vec<&str> = out.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    assert!(places.contains(&"/other") && places.contains(&"/proc/version"), "{places:?}");
    assert!(!places.iter().any(|place| place.contains("outside")), "{places:?}");
    assert_eq!(fs::read_to_string(outside).unwrap(), "of the host");
    assert_eq!(fs::read_to_string(root.join("victim")).unwrap(), "victim\n");
}

/// CVE-2025-52565: a `/dev/console` that is a link, over whose target the terminal would be mounted.
fn a_console_in_the_way() {
    let mut bundle = Bundle::new("out no");
    let root = bundle.rootfs();
    fs::write(root.join("victim"), "victim\n").unwrap();
    fs::create_dir(root.join("dev/pts")).unwrap();
    symlink("/victim", root.join("dev/console")).unwrap();
    bundle.config["mounts"].as_array_mut().unwrap().retain(|mount| mount["destination"] != "/dev");
    bundle.config["process"]["terminal"] = true.into();
    let path = bundle.path().join("console");
    let _listener = UnixListener::bind(&path).unwrap();
    bundle.save();
    let dir = bundle.path().to_str().unwrap().to_owned();
    let words = ["create", "--bundle", &dir, "--console-socket", path.to_str().unwrap(), &bundle.id];
    bundle.fails(&words, "make the terminal: file exists");
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
    // A slave that is not the terminal's own: the name is never used.
    let mut bundle = Bundle::new("tty");
    bundle.config["process"]["terminal"] = true.into();
    let pts = bundle.config["mounts"].as_array_mut().unwrap().remove(2);
    assert_eq!(pts["destination"], "/dev/pts");
    bundle.config["mounts"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "destination": "/dev/pts", "type": "tmpfs", "source": "tmpfs" }));
    let path = bundle.path().join("console");
    let _listener = UnixListener::bind(&path).unwrap();
    bundle.save();
    let dir = bundle.path().to_str().unwrap().to_owned();
    let words = ["create", "--bundle", &dir, "--console-socket", path.to_str().unwrap(), &bundle.id];
    bundle.fails(&words, "make the terminal");
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}

/// CVE-2021-30465: a directory that other containers share, and in which one of them swaps a mount's place for a link
/// while the mount is made.
fn places_that_move() {
    let mut bundle = Bundle::new("cat /proc/self/mountinfo");
    let (shared, outside) = (bundle.path().join("shared"), bundle.path().join("outside"));
    fs::create_dir_all(shared.join("x")).unwrap();
    fs::create_dir_all(&outside).unwrap();
    // It exists on the host, and inside of the root as well: the look-up may end there.
    let inside = bundle.rootfs().join(outside.strip_prefix("/").unwrap());
    fs::create_dir_all(&inside).unwrap();
    symlink(format!("../../../../../../../../..{}", outside.display()), shared.join("y")).unwrap();
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.push(json!({ "destination": "/vol", "source": "shared", "options": ["bind"] }));
    mounts.push(json!({ "destination": "/vol/x/made/here", "type": "tmpfs", "source": "tmpfs" }));
    mounts.push(json!({ "destination": "/vol/x/file", "source": "config.json", "options": ["bind", "ro"] }));
    bundle.config["linux"]["devices"] =
        json!([{ "path": "/vol/x/node", "type": "c", "major": 1, "minor": 3, "uid": 7, "gid": 7 }]);
    bundle.config["linux"]["maskedPaths"] = json!(["/vol/x/made"]);
    let done = AtomicBool::new(false);
    let (mut good, mut swaps) = (0, 0u64);
    std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            let mut count = 0u64;
            while !done.load(Ordering::Relaxed) {
                renameat_with(CWD, shared.join("x"), CWD, shared.join("y"), RenameFlags::EXCHANGE).unwrap();
                count += 1;
            }
            count
        });
        for _ in 0..40 {
            let said = bundle.run();
            // What moved at the wrong moment is an error; what was made is in the root.
            match said.code {
                0 => good += 1,
                _ => assert!(said.err.contains("shoal runtime: "), "{said:?}"),
            }
            let of_tmpfs = |line: &&str| line.contains("/made/here ");
            for line in said.out.lines().filter(of_tmpfs) {
                let place = line.split(' ').nth(4).unwrap();
                let at_home = place.starts_with("/vol/") || place.starts_with(outside.to_str().unwrap());
                assert!(at_home, "{line}");
            }
            assert_eq!(bundle.leftovers(), Vec::<String>::new());
        }
        done.store(true, Ordering::Relaxed);
        swaps = swapper.join().unwrap();
    });
    println!("{good} of 40 were made, {swaps} swaps");
    assert!(swaps > 100, "{swaps}");
    let found: Vec<_> = fs::read_dir(&outside).unwrap().flatten().map(|entry| entry.path()).collect();
    assert_eq!(found, Vec::<std::path::PathBuf>::new());
}

/// To the kernel this id means "leave as it is", which would be root.
fn nobodys_id_is_not_roots() {
    for field in ["uid", "gid"] {
        let mut bundle = Bundle::new("cat /proc/self/status");
        bundle.config["process"]["user"][field] = u32::MAX.into();
        bundle.refused("invalid process.user: 4294967295 is nobody's id");
    }
    let mut bundle = Bundle::new("cat /proc/self/status");
    bundle.config["process"]["user"]["additionalGids"] = json!([1, u32::MAX]);
    bundle.refused("invalid process.user: 4294967295 is nobody's id");
    bundle.config["process"]["user"]["additionalGids"] = json!([]);
    bundle.config["linux"]["devices"] =
        json!([{ "path": "/dev/x", "type": "c", "major": 1, "minor": 3, "uid": u32::MAX }]);
    bundle.refused("is nobody's id");
}

fn rootless() {
    let bundle = Bundle::new("out no");
    bundle.save();
    let called = |words: &[&str]| {
        let mut command = bundle.command(words);
        std::os::unix::process::CommandExt::uid(&mut command, 65_534);
        crate::bundle::Said::from(command.output().unwrap())
    };
    let dir = bundle.path().to_str().unwrap();
    for words in [&["create", "--bundle", dir, "x"][..], &["run", "--bundle", dir, "x"], &["state", "x"], &["list"]] {
        let said = called(words);
        let expected = "this runtime needs root: rootless containers are not supported";
        assert!(said.code == 1 && said.err.contains(expected), "{words:?}: {said:?}");
    }
    assert_eq!(called(&["features"]).code, 0);
    bundle.fails(&["--rootless", "true", "list"], "--rootless is not supported: this runtime needs root");
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}
