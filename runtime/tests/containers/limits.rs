//! Limits, as the kernel has them.

use runtime::{CgroupError, ContainerConfig, Resources, RuntimeError, Ulimit};

use super::fixture::{Fixture, chain};

pub const TESTS: &[(&str, fn())] = &[
    ("limits::cgroup_files", cgroup_files),
    ("limits::out_of_memory_is_told", out_of_memory_is_told),
    ("limits::too_many_processes", too_many_processes),
    ("limits::resource_limits", resource_limits),
    ("limits::too_small_for_anything", refused_limits),
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
    for controller in ["cpu", "memory", "pids", "devices", "freezer", "name=systemd", ""] {
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
