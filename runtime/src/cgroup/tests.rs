//! Groups for real, on whatever this host has mounted: needs root, and says so where it skips.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::*;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

/// A place of this test's own; `None` where no cgroup can be made.
fn place(name: &str) -> Option<Cgroups> {
    let parent = PathBuf::from(format!("shoal.unit-{}-{name}", std::process::id()));
    if !rustix::process::geteuid().is_root() {
        println!("skipping: not root");
        return None;
    }
    match Cgroups::at(&parent) {
        Ok(cgroups) => Some(cgroups),
        Err(error) => {
            println!("skipping: {error}");
            None
        }
    }
}

/// A process that lives in this group.
fn inhabitant(group: &Group) -> Child {
    let child = Command::new("sleep").arg("1000").stdout(Stdio::null()).spawn().unwrap();
    let (tasks, unified) = group.entrances();
    let procs = tasks.iter().map(|path| path.with_file_name("cgroup.procs"));
    for path in procs.chain(unified.map(|dir| dir.join("cgroup.procs"))) {
        put(&path, &child.id().to_string()).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    child
}

fn state_of(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().rsplit_once(") ").unwrap().1[..1].to_owned()
}

fn gone(cgroups: &Cgroups, name: &str) -> bool {
    cgroups.host.hierarchies().iter().all(|hierarchy| !hierarchy.mount.join(&cgroups.tasks).join(name).exists())
}

#[test]
fn the_life_of_a_group() {
    let Some(cgroups) = place("life") else { return };
    let resources: LinuxResources = serde_json::from_str(r#"{"devices": [{"allow": true}]}"#).unwrap();
    cgroups.create_for_bundle("web", &resources).unwrap();
    let group = cgroups.group("web");
    let mut child = inhabitant(&group);
    assert_eq!(group.processes(), [child.id()]);
    // Somebody lives there now.
    let taken = cgroups.create_for_bundle("web", &resources);
    assert!(matches!(taken, Err(CgroupError::Taken(_))), "{taken:?}");
    assert!(group.usage().pids.current <= 1);
    assert!(matches!(group.remove(Instant::now()), Err(CgroupError::Busy(_))));
    assert!(child.try_wait().unwrap().is_none());

    // What is frozen does not run, and can be killed.
    group.freeze().unwrap();
    assert!(group.is_frozen());
    group.thaw().unwrap();
    assert!(!group.is_frozen());
    group.freeze().unwrap();
    let killed = group.clone();
    let reaper = std::thread::spawn(move || child.wait().unwrap());
    assert!(killed.kill_all(soon()));
    assert!(!reaper.join().unwrap().success());

    // One that is there and empty is taken over, with what is left in it.
    for (hierarchy, dir) in cgroups.host.homes().map(|hierarchy| (hierarchy, group.dir(hierarchy))) {
        assert!(!host::make(hierarchy, &dir).unwrap());
        host::make(hierarchy, &dir.join("below")).unwrap();
    }
    group.thaw().unwrap();
    cgroups.create_for_bundle("web", &resources).unwrap();
    group.remove(soon()).unwrap();
    group.remove(soon()).unwrap();
    assert!(gone(&cgroups, "web"));
    cgroups.remove_engine(soon()).unwrap();
}

#[test]
fn a_frozen_process_stands_still() {
    let Some(cgroups) = place("frozen") else { return };
    cgroups.create_for_bundle("web", &LinuxResources::default()).unwrap();
    let group = cgroups.group("web");
    let mut child = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
    let (tasks, unified) = group.entrances();
    for path in
        tasks.iter().map(|path| path.with_file_name("cgroup.procs")).chain(unified.map(|d| d.join("cgroup.procs")))
    {
        put(&path, &child.id().to_string()).unwrap();
    }
    group.freeze().unwrap();
    let used = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        stat.rsplit_once(") ").unwrap().1.split(' ').skip(11).take(2).map(|n| n.parse::<u64>().unwrap()).sum::<u64>()
    };
    assert_ne!(state_of(child.id()), "R");
    let before = used();
    assert_eq!(used(), before);
    group.thaw().unwrap();
    let deadline = soon();
    while used() == before {
        assert!(Instant::now() < deadline, "it goes on after the thaw");
    }
    group.kill();
    child.wait().unwrap();
    assert!(group.usage().cpu.total > 0);
    group.remove(soon()).unwrap();
    cgroups.remove_engine(soon()).unwrap();
}

#[test]
fn a_refused_limit_leaves_nothing_after_its_removal() {
    let Some(cgroups) = place("refused") else { return };
    let resources = serde_json::from_str(r#"{"cpu": {"cpus": "4000-4001"}}"#).unwrap();
    let error = cgroups.create_for_bundle("web", &resources).unwrap_err();
    assert!(error.to_string().contains("cpu.cpus"), "{error}");
    cgroups.remove("web", soon()).unwrap();
    assert!(gone(&cgroups, "web"));
    let resources = serde_json::from_str(r#"{"memory": {"kernelTCP": 7}}"#).unwrap();
    assert!(matches!(cgroups.create_for_bundle("web", &resources), Err(CgroupError::Refused(_))));
    assert!(gone(&cgroups, "web"));
    assert!(cgroups.named_dirs("web").iter().all(|(_, dir)| dir.ends_with(cgroups.tasks.join("web"))));
    cgroups.remove_engine(soon()).unwrap();
}

#[test]
fn who_has_processes_hands_nothing_down() {
    let Some(cgroups) = place("inner") else { return };
    let offered = |h: &&layout::Hierarchy| h.controllers.iter().any(|name| name == "hugetlb");
    let Some(hierarchy) = cgroups.host.v2().filter(offered) else {
        println!("skipping: no cgroup v2 with hugetlb");
        return;
    };
    // Only v2's part of it: a child process sits where a parent should be.
    let parent = hierarchy.mount.join(&cgroups.tasks);
    host::make_all(hierarchy, &cgroups.tasks).unwrap();
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    put(&parent.join("cgroup.procs"), &child.id().to_string()).unwrap();
    let resources = serde_json::from_str(r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]}"#).unwrap();
    let error = cgroups.create_for_bundle("web", &resources).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("hugepageLimits needs the cgroup controller \"hugetlb\", which /"), "{text}");
    assert!(text.contains("cannot hand down: it has processes of its own"), "{text}");
    cgroups.remove("web", soon()).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    // Now it can.
    cgroups.create_for_bundle("web", &resources).unwrap();
    assert!(!cgroups.group("web").remove_if_empty() || gone(&cgroups, "web"));
    cgroups.remove("web", soon()).unwrap();
    cgroups.remove_engine(soon()).unwrap();
}

#[test]
fn the_kernel_takes_device_programs() {
    let Some(cgroups) = place("devices") else { return };
    if cgroups.host.v2().is_none() || cgroups.program().is_none() {
        println!("skipping: no cgroup v2, or a kernel that takes no device programs");
        return;
    }
    // All shapes of rules, so that the verifier sees them all.
    let json = r#"[{"allow": true, "type": "b", "access": "r"}, {"allow": false, "type": "c", "major": 4, "access": "wm"},
        {"allow": true, "major": 9, "minor": 7, "access": "rw"}, {"allow": false}, {"allow": true, "type": "c", "minor": 3}]"#;
    let asked: Vec<crate::plan::limits::oci::DeviceRule> = serde_json::from_str(json).unwrap();
    for count in 0..=asked.len() {
        let rules = limits::devices::rules(&asked[..count]).unwrap();
        devices::load(&rules).unwrap_or_else(|error| panic!("{count} rules: {error}"));
    }
    let many = limits::devices::rules(&vec![asked[2].clone(); 500]).unwrap();
    let program = devices::load(&many).unwrap();
    let group = cgroups.group("web");
    let hierarchy = cgroups.host.v2().unwrap();
    host::make_all(hierarchy, &cgroups.tasks.join("web")).unwrap();
    let count = || {
        let dir = fs::File::open(group.dir(hierarchy)).unwrap();
        crate::sys::device_programs(dir.as_fd()).unwrap()
    };
    assert_eq!(count(), 0);
    devices::attach(&cgroups.host, &group, program.as_fd()).unwrap();
    assert_eq!(count(), 1);
    group.remove(soon()).unwrap();
    cgroups.remove_engine(soon()).unwrap();
    assert!(!Path::new(&hierarchy.mount).join(&cgroups.tasks).exists());
}
