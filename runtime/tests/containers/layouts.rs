//! The same tests on hosts that have only cgroup v1, or only v2, as far as this host can play them: in a mount
//! namespace in which the other generation is not mounted.

use std::fs;
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

pub const TESTS: &[(&str, fn())] =
    &[("layouts::version_1_only", version_1_only), ("layouts::version_2_only", version_2_only)];

fn version_1_only() {
    again("v1");
}

fn version_2_only() {
    again("v2");
}

fn mounted(fs: &str) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(2) == Some(fs))
}

/// Runs all other tests once more, in a process of their own.
fn again(layout: &str) {
    if !(mounted("cgroup") && mounted("cgroup2")) {
        println!("skipping: the host is not a hybrid, it runs its own layout already");
        return;
    }
    let modules = ["lifecycle", "limits", "logging", "isolation", "survival"];
    let output = Command::new("/proc/self/exe").arg(format!("layout={layout}")).args(modules).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains(" 0 failed"), "{text}");
}

/// Hides the other generation from this process and its children. Called before any thread exists.
pub fn pretend(layout: &str) {
    let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
    let hidden = if layout == "v1" { "cgroup2" } else { "cgroup" };
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    for line in mounts.lines().rev() {
        let mut fields = line.split(' ').skip(1);
        if let (Some(place), Some(fs)) = (fields.next(), fields.next())
            && (fs == hidden || (layout == "v2" && fs == "cgroup2"))
        {
            umount2(place, MntFlags::MNT_DETACH).unwrap();
        }
    }
    if layout == "v2" {
        // At its usual place.
        mount(Some("cgroup2"), "/sys/fs/cgroup", Some("cgroup2"), MsFlags::empty(), None::<&str>).unwrap();
    }
}
