//! Limits, as the kernel has them.

use std::fs;
use std::process::{Command, Stdio};

use runtime::{CgroupError, ContainerConfig, LinuxResources, Resources, RuntimeError, Ulimit};

use super::fixture::{Fixture, alive, cgroup_mounts, chain};

pub const TESTS: &[(&str, fn())] = &[
    ("limits::cgroup_files", cgroup_files),
    ("limits::out_of_memory_is_told", out_of_memory_is_told),
    ("limits::too_many_processes", too_many_processes),
    ("limits::resource_limits", resource_limits),
    ("limits::too_small_for_anything", refused_limits),
    ("limits::of_a_running_container", of_a_running_container),
    ("limits::processors", processors),
    ("limits::block_devices", block_devices),
    ("limits::huge_pages", huge_pages),
    ("limits::files_of_version_2", files_of_version_2),
    ("limits::devices_by_rules", devices_by_rules),
    ("limits::what_cannot_be_had_is_named", what_cannot_be_had_is_named),
    ("limits::network_marks", network_marks),
    ("limits::a_container_without_its_cgroups", a_container_without_its_cgroups),
    ("limits::a_cgroup_that_is_taken", a_cgroup_that_is_taken),
];

/// Starts it, unless this host lacks a controller that its limits need: then that must be said.
fn start(fixture: &Fixture, config: ContainerConfig) -> Option<u32> {
    let (runtime, id) = (fixture.runtime(), config.id.clone());
    match fixture.tokio.block_on(runtime.create(config)) {
        Ok(created) => {
            fixture.tokio.block_on(runtime.start(&id)).unwrap();
            Some(created.pid)
        }
        Err(RuntimeError::Cgroup(error @ CgroupError::Controller { .. })) => {
            println!("skipping: {error}");
            assert_eq!(fixture.leftovers(), Default::default());
            None
        }
        Err(error) => panic!("create: {}", chain(&error)),
    }
}

fn cgroup_files() {
    let fixture = Fixture::new();
    let mut config = fixture.config("limited", "sleep");
    config.resources = Resources {
        cpu_limit_nanos: Some(500_000_000),
        cpu_reservation_nanos: Some(250_000_000),
        memory_limit: Some(64 << 20),
        memory_reservation: Some(32 << 20),
        pids_limit: Some(20),
        ..Resources::default()
    };
    let Some(pid) = start(&fixture, config) else { return };
    let file = |name: &str| fixture.cgroup_file("limited", name);
    if let Some(quota) = file("cpu.cfs_quota_us") {
        assert_eq!((quota.as_str(), file("cpu.cfs_period_us").as_deref()), ("50000", Some("100000")));
        assert_eq!(file("cpu.shares").as_deref(), Some("256"));
    } else {
        assert_eq!(file("cpu.max").as_deref(), Some("50000 100000"));
        assert_eq!(file("cpu.weight").as_deref(), Some("25"));
    }
    if let Some(limit) = file("memory.limit_in_bytes") {
        assert_eq!(limit, (64 << 20).to_string());
        assert_eq!(file("memory.memsw.limit_in_bytes").unwrap_or(limit.clone()), limit);
        assert_eq!(file("memory.soft_limit_in_bytes"), Some((32 << 20).to_string()));
    } else {
        assert_eq!(file("memory.max"), Some((64 << 20).to_string()));
    }
    assert_eq!(file("pids.max").as_deref(), Some("20"));
    if let Some(devices) = file("devices.list") {
        assert!(devices.contains("c 1:3 rwm") && !devices.contains("a *:* rwm"), "{devices}");
    }
    // In every hierarchy, and nowhere near the daemon's own.
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let place = format!("/shoal-{}/task/limited", fixture.config.engine_id);
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    for controller in ["cpu", "cpuacct", "cpuset", "memory", "pids", "devices", "blkio", "name=systemd", ""] {
        let fs = if controller.is_empty() { " cgroup2 " } else { " cgroup " };
        let is_mounted = mounts.lines().any(|line| line.contains(fs) && line.contains(controller));
        let line =
            groups.lines().find(|line| line.split(':').nth(1).is_some_and(|c| c.split(',').any(|c| c == controller)));
        if let Some(line) = line.filter(|_| is_mounted) {
            assert!(line.ends_with(&place), "{line}");
        }
    }
}

fn out_of_memory_is_told() {
    let fixture = Fixture::new();
    let mut config = fixture.config("hungry", "allocate 200");
    config.resources.memory_limit = Some(32 << 20);
    if start(&fixture, config).is_none() {
        return;
    }
    let (exit, output) = (fixture.wait("hungry"), fixture.output("hungry"));
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, Some(9), true), "{output}");
    // Killed just as dead, but not by the OOM killer.
    let mut config = fixture.config("killed", "sleep");
    config.resources.memory_limit = Some(32 << 20);
    fixture.start(config);
    let exit = fixture.tokio.block_on(fixture.runtime().stop("killed", None, std::time::Duration::ZERO)).unwrap();
    assert_eq!((exit.code, exit.oom_killed), (137, false));
}

fn too_many_processes() {
    let fixture = Fixture::new();
    let mut config = fixture.config("bomb", "forks 100");
    config.resources.pids_limit = Some(8);
    if start(&fixture, config).is_none() {
        return;
    }
    let (exit, output) = (fixture.wait("bomb"), fixture.output("bomb"));
    assert_eq!(exit.code, 0);
    let forked: usize = output.trim().strip_prefix("forked ").unwrap().parse().unwrap();
    assert!(forked < 8, "{output}");
}

fn resource_limits() {
    let fixture = Fixture::new();
    let mut config = fixture.config("ulimit", "cat /proc/self/limits then cat /proc/self/oom_score_adj");
    config.ulimits = vec![Ulimit { name: "nofile".into(), soft: 100, hard: 200 }];
    config.oom_score_adj = 300;
    let (_, output) = fixture.run(config);
    let files = output.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().collect::<Vec<_>>()[3..5], ["100", "200"]);
    let core = output.lines().find(|line| line.starts_with("Max core")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"));
    assert!(output.ends_with("\n300\n"), "{output}");
}

fn refused_limits() {
    let fixture = Fixture::new();
    let mut config = fixture.config("small", "sleep");
    config.resources.memory_limit = Some(1 << 20);
    let error = fixture.tokio.block_on(fixture.runtime().create(config)).unwrap_err();
    assert!(matches!(error, RuntimeError::InvalidConfig(_)), "{}", chain(&error));
    assert!(error.to_string().contains("resources.memory_limit"));
}

fn oci(json: &str) -> LinuxResources {
    serde_json::from_str(json).unwrap()
}

fn with(fixture: &Fixture, id: &str, words: &str, json: &str) -> ContainerConfig {
    let mut config = fixture.config(id, words);
    config.resources.oci = oci(json);
    config
}

/// The hierarchies of this host have files of version 2 alone.
fn is_v2() -> bool {
    cgroup_mounts().iter().all(|mount| mount.join("cgroup.controllers").exists())
}

fn update(fixture: &Fixture, id: &str, json: &str) -> Result<(), RuntimeError> {
    fixture.tokio.block_on(fixture.runtime().update(id, oci(json)))
}

fn of_a_running_container() {
    let fixture = Fixture::new();
    let mut config = fixture.config("changing", "sleep");
    config.resources.memory_limit = Some(64 << 20);
    config.resources.pids_limit = Some(20);
    config.resources.cpu_limit_nanos = Some(500_000_000);
    if start(&fixture, config).is_none() {
        return;
    }
    let file = |name: &str| fixture.cgroup_file("changing", name);
    // More of everything, and swap as before: none.
    update(
        &fixture,
        "changing",
        r#"{"memory": {"limit": 134217728}, "pids": {"limit": 30}, "cpu": {"period": 50000}}"#,
    )
    .unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(file("memory.limit_in_bytes").or_else(|| file("memory.max")).as_deref(), Some("134217728"));
    if let Some(both) = file("memory.memsw.limit_in_bytes") {
        assert_eq!(both, "134217728");
    }
    if let Some(swap) = file("memory.swap.max") {
        assert_eq!(swap, "0");
    }
    assert_eq!(file("pids.max").as_deref(), Some("30"));
    match file("cpu.max") {
        Some(max) => assert_eq!(max, "50000 50000"),
        None => assert_eq!(
            (file("cpu.cfs_quota_us").unwrap(), file("cpu.cfs_period_us").unwrap()),
            ("50000".into(), "50000".into())
        ),
    }
    // Less again, also below what memory and swap were together.
    update(&fixture, "changing", r#"{"memory": {"limit": 33554432, "swap": 67108864}}"#).unwrap();
    update(&fixture, "changing", r#"{"memory": {"limit": 100663296, "swap": 201326592}}"#).unwrap();
    assert_eq!(file("memory.limit_in_bytes").or_else(|| file("memory.max")).as_deref(), Some("100663296"));
    // One that cannot be had: the other is as it was.
    let error =
        update(&fixture, "changing", r#"{"pids": {"limit": 40}, "hugepageLimits": [{"pageSize": "3MB", "limit": 0}]}"#)
            .unwrap_err();
    assert!(
        matches!(error, RuntimeError::Cgroup(CgroupError::File { .. } | CgroupError::Controller { .. })),
        "{error}"
    );
    assert!(chain(&error).contains("hugepageLimits"), "{}", chain(&error));
    assert_eq!(file("pids.max").as_deref(), Some("30"));
    let error = update(&fixture, "changing", r#"{"memory": {"limit": 4096, "checkBeforeUpdate": true}}"#).unwrap_err();
    assert!(matches!(error, RuntimeError::Cgroup(CgroupError::InUse { limit: 4096, .. })), "{}", chain(&error));
    fixture.tokio.block_on(fixture.runtime().stop("changing", None, std::time::Duration::ZERO)).unwrap();
    assert!(matches!(update(&fixture, "changing", "{}"), Err(RuntimeError::WrongState { .. })));
}

fn processors() {
    let fixture = Fixture::new();
    let json = r#"{"cpu": {"cpus": "0", "mems": "0", "shares": 512}}"#;
    let config = with(&fixture, "placed", "cat /proc/self/status", json);
    if start(&fixture, config).is_none() {
        return;
    }
    fixture.wait("placed");
    let output = fixture.output("placed");
    assert!(output.contains("Cpus_allowed_list:\t0\n"), "{output}");
    match fixture.cgroup_file("placed", "cpu.shares") {
        Some(shares) => assert_eq!(shares, "512"),
        None => assert_eq!(fixture.cgroup_file("placed", "cpu.weight").as_deref(), Some("59")),
    }
}

/// A block device of this machine; only disks have bounds, not their parts.
fn disk() -> Option<(u32, u32)> {
    fs::read_dir("/sys/block").ok()?.flatten().find_map(|entry| {
        let number = fs::read_to_string(entry.path().join("dev")).ok()?;
        let (major, minor) = number.trim().split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    })
}

fn block_devices() {
    let Some((major, minor)) = disk() else {
        println!("skipping: this machine has no block device");
        return;
    };
    let fixture = Fixture::new();
    let rate = |rate: u32| format!(r#"[{{"major": {major}, "minor": {minor}, "rate": {rate}}}]"#);
    let json = format!(
        r#"{{"blockIO": {{"throttleReadBpsDevice": {}, "throttleWriteIOPSDevice": {}}}}}"#,
        rate(1_048_576),
        rate(77)
    );
    if start(&fixture, with(&fixture, "slow", "sleep", &json)).is_none() {
        return;
    }
    let file = |name: &str| fixture.cgroup_file("slow", name);
    match file("io.max") {
        Some(max) => assert_eq!(max, format!("{major}:{minor} rbps=1048576 wbps=max riops=max wiops=77")),
        None => {
            assert_eq!(file("blkio.throttle.read_bps_device"), Some(format!("{major}:{minor} 1048576")));
            assert_eq!(file("blkio.throttle.write_iops_device"), Some(format!("{major}:{minor} 77")));
        }
    }
    let json = format!(r#"{{"blockIO": {{"throttleReadBpsDevice": {}}}}}"#, rate(0));
    update(&fixture, "slow", &json).unwrap_or_else(|error| panic!("{}", chain(&error)));
    match file("io.max") {
        Some(max) => assert_eq!(max, format!("{major}:{minor} rbps=max wbps=max riops=max wiops=77")),
        None => assert_eq!(file("blkio.throttle.read_bps_device").as_deref(), Some("")),
    }
}

fn huge_pages() {
    let fixture = Fixture::new();
    let json = r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]}"#;
    if start(&fixture, with(&fixture, "huge", "sleep", json)).is_none() {
        return;
    }
    let file = |name: &str| fixture.cgroup_file("huge", name);
    let limit = file("hugetlb.2MB.limit_in_bytes").or_else(|| file("hugetlb.2MB.max"));
    assert_eq!(limit.as_deref(), Some("4194304"));
}

fn files_of_version_2() {
    let fixture = Fixture::new();
    let config =
        with(&fixture, "unified", "sleep", r#"{"unified": {"memory.high": "33554432", "cgroup.max.depth": "3"}}"#);
    match fixture.tokio.block_on(fixture.runtime().create(config)) {
        Ok(_) => {
            assert_eq!(fixture.cgroup_file("unified", "memory.high").as_deref(), Some("33554432"));
            assert_eq!(fixture.cgroup_file("unified", "cgroup.max.depth").as_deref(), Some("3"));
        }
        Err(error) => {
            let text = chain(&error);
            let has_v2 = cgroup_mounts().iter().any(|mount| mount.join("cgroup.controllers").exists());
            let expected = if has_v2 { "needs the cgroup controller \"memory\"" } else { "unified on cgroup v1" };
            assert!(text.contains(expected), "{text}");
            assert_eq!(fixture.leftovers(), Default::default());
        }
    }
}

fn devices_by_rules() {
    let fixture = Fixture::new();
    let words = "node /zero 1 5 r then node /log 1 11 w then node /log 1 11 r then node /memory 1 1 r";
    let (_, output) = fixture.run(fixture.config("usual", words));
    let denied = "permission denied";
    let lines = |log: &str| {
        format!(
            "node 1:5 made true r open\nnode 1:11 made true w {log}\nnode 1:11 made true r {denied}\nnode 1:1 made true r {denied}\n"
        )
    };
    assert_eq!(output, lines(denied));
    let json =
        r#"{"devices": [{"allow": false}, {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "w"}]}"#;
    let (_, output) = fixture.run(with(&fixture, "writer", words, json));
    assert_eq!(output, lines("open"));
}

fn what_cannot_be_had_is_named() {
    let fixture = Fixture::new();
    let refused = |json: &str| {
        let config = with(&fixture, "refused", "sleep", json);
        let error = fixture.tokio.block_on(fixture.runtime().create(config)).unwrap_err();
        assert_eq!(fixture.leftovers(), Default::default());
        chain(&error)
    };
    assert!(refused(r#"{"memory": {"kernel": 1048576}}"#).contains("memory.kernel is not supported"));
    assert!(refused(r#"{"rdma": {"mlx": {"hcaHandles": 1}}}"#).contains("rdma"));
    assert!(refused(r#"{"cpu": {"cpus": "4000"}}"#).contains("cpu.cpus"));
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    if is_v2() {
        assert!(refused(r#"{"memory": {"swappiness": 1}}"#).contains("memory.swappiness on cgroup v2"));
        assert!(refused(r#"{"network": {"classID": 1}}"#).contains("network.classID on cgroup v2"));
    } else if !mounts.contains("net_cls") {
        assert!(refused(r#"{"network": {"classID": 1}}"#).contains("network.classID"));
    }
}

/// A v1 hierarchy in which containers have no place until a limit asks for it. `.ci/machine containers` has one.
fn network_marks() {
    let groups = fs::read_to_string("/proc/self/mounts").unwrap();
    if !groups.lines().any(|line| line.contains(" cgroup ") && line.contains("net_cls")) {
        println!("skipping: this host has no hierarchy with net_cls");
        return;
    }
    let fixture = Fixture::new();
    let class = |id: &str| fixture.cgroup_file(id, "net_cls.classid");
    let pid = fixture.start(with(&fixture, "marked", "sleep", r#"{"network": {"classID": 1048577}}"#));
    assert_eq!(class("marked").as_deref(), Some("1048577"));
    let place = |pid: u32, id: &str| {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        groups.lines().any(|line| line.contains("net_cls") && line.ends_with(&format!("task/{id}")))
    };
    assert!(place(pid, "marked"));
    // One that runs already is moved there.
    let pid = fixture.start(fixture.config("later", "sleep"));
    assert!(!place(pid, "later") && class("later").is_none());
    update(&fixture, "later", r#"{"network": {"classID": 7}}"#).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert!(place(pid, "later"));
    assert_eq!(class("later").as_deref(), Some("7"));
    for id in ["marked", "later"] {
        fixture.tokio.block_on(fixture.runtime().delete(id)).unwrap();
    }
    assert_eq!(fixture.leftovers(), Default::default());
}

/// Somebody takes a running container out of its cgroups and removes them: it can still be stopped and deleted.
fn a_container_without_its_cgroups() {
    let fixture = Fixture::new();
    let pid = fixture.start(fixture.config("adrift", "sleep"));
    for mount in cgroup_mounts() {
        let dir = mount.join(format!("shoal-{}", fixture.config.engine_id)).join("task/adrift");
        if dir.is_dir() {
            fs::write(mount.join("cgroup.procs"), pid.to_string()).unwrap();
            super::fixture::until("an empty cgroup", || fs::remove_dir(&dir).is_ok());
        }
    }
    let error = update(&fixture, "adrift", r#"{"pids": {"limit": 3}}"#).unwrap_err();
    assert!(matches!(error, RuntimeError::Cgroup(_)), "{}", chain(&error));
    assert!(alive(pid));
    let exit = fixture.tokio.block_on(fixture.runtime().stop("adrift", None, std::time::Duration::ZERO)).unwrap();
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    assert!(!alive(pid));
    fixture.tokio.block_on(fixture.runtime().delete("adrift")).unwrap();
    assert_eq!(fixture.leftovers(), Default::default());
}

/// What a container that is no more has left under a name goes away when the name is given again.
fn a_cgroup_that_is_taken() {
    let fixture = Fixture::new();
    let mut stray = Command::new("/proc/self/exe").args(["payload", "sleep"]).stdout(Stdio::null()).spawn().unwrap();
    let mut places = 0;
    for mount in cgroup_mounts() {
        let tasks = mount.join(format!("shoal-{}", fixture.config.engine_id)).join("task");
        let dir = tasks.join("name");
        if !tasks.is_dir() || mount.join("cpuset.cpus").exists() {
            continue;
        }
        fs::create_dir_all(dir.join("below")).unwrap();
        fs::write(dir.join("below/cgroup.procs"), stray.id().to_string()).unwrap();
        places += 1;
    }
    assert!(places > 0);
    let pid = fixture.start(fixture.config("name", "sleep"));
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(stray.wait().unwrap().signal(), Some(9));
    assert!(alive(pid));
    fixture.tokio.block_on(fixture.runtime().delete("name")).unwrap();
    assert_eq!(fixture.leftovers(), Default::default());
}
