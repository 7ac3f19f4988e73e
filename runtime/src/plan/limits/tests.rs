//! The whole table, in both generations.

use super::*;
use crate::config::Resources;

/// `file=value`, and `?` where a missing file is passed over.
fn story(resources: &LinuxResources, shape: &Shape) -> Result<String, String> {
    let list = writes(resources, shape).map_err(|error| error.to_string())?;
    let line = |write: &Write| {
        let other = match &write.absent {
            Absent::Refuse => String::new(),
            Absent::Skip => "?".to_owned(),
            Absent::Instead(file, value) => format!("|{file}={value}"),
        };
        format!("{}={}{other}", write.file, write.value)
    };
    Ok(list.iter().map(line).collect::<Vec<_>>().join("; "))
}

#[track_caller]
fn check(json: &str, v1: Result<&str, &str>, v2: Result<&str, &str>) {
    let resources: LinuxResources = serde_json::from_str(json).unwrap();
    for (shape, expected) in [(Shape::split(), v1), (Shape::unified(), v2)] {
        let seen = story(&resources, &shape);
        match (&seen, expected) {
            (Ok(seen), Ok(expected)) => assert_eq!(seen, expected, "{json}"),
            (Err(seen), Err(part)) => assert!(seen.contains(part), "{json}: {seen}"),
            _ => panic!("{json}: {seen:?} instead of {expected:?}"),
        }
    }
}

#[test]
fn processors() {
    check(
        r#"{"cpu": {"shares": 512, "quota": 20000, "period": 50000, "burst": 1000}}"#,
        Ok("cpu.cfs_period_us=50000; cpu.cfs_quota_us=20000; cpu.cfs_burst_us=1000; cpu.shares=512"),
        Ok("cpu.max=20000 50000; cpu.max.burst=1000; cpu.weight=59"),
    );
    check(r#"{"cpu": {"quota": -1}}"#, Ok("cpu.cfs_quota_us=-1"), Ok("cpu.max=max"));
    check(r#"{"cpu": {"period": 50000}}"#, Ok("cpu.cfs_period_us=50000"), Ok("cpu.max=max 50000"));
    check(r#"{"cpu": {"shares": 0, "quota": 0, "period": 0, "cpus": "", "mems": " "}}"#, Ok(""), Ok(""));
    check(
        r#"{"cpu": {"cpus": " 0-1,3 ", "mems": "0", "idle": 1}}"#,
        Ok("cpu.idle=1; cpuset.cpus=0-1,3; cpuset.mems=0"),
        Ok("cpu.idle=1; cpuset.cpus=0-1,3; cpuset.mems=0"),
    );
    check(r#"{"cpu": {"cpus": "all"}}"#, Err("invalid cpu.cpus"), Err("invalid cpu.cpus"));
    check(
        r#"{"cpu": {"realtimeRuntime": 950000, "realtimePeriod": 1000000}}"#,
        Ok("cpu.rt_period_us=1000000; cpu.rt_runtime_us=950000"),
        Err("cpu.realtimeRuntime on cgroup v2 is not supported"),
    );
}

#[test]
fn memory() {
    check(
        r#"{"memory": {"limit": 1000, "swap": 3000, "reservation": 500}}"#,
        Ok("memory.limit_in_bytes=1000; memory.memsw.limit_in_bytes=3000; memory.soft_limit_in_bytes=500"),
        Ok("memory.max=1000; memory.swap.max=2000; memory.low=500"),
    );
    check(
        r#"{"memory": {"limit": 1000, "swap": 1000}}"#,
        Ok("memory.limit_in_bytes=1000; memory.memsw.limit_in_bytes=1000?"),
        Ok("memory.max=1000; memory.swap.max=0?"),
    );
    check(
        r#"{"memory": {"limit": 1000, "swap": -1}}"#,
        Ok("memory.limit_in_bytes=1000; memory.memsw.limit_in_bytes=-1"),
        Ok("memory.max=1000; memory.swap.max=max"),
    );
    check(
        r#"{"memory": {"limit": -1, "reservation": -1}}"#,
        Ok("memory.limit_in_bytes=-1; memory.memsw.limit_in_bytes=-1?; memory.soft_limit_in_bytes=-1"),
        Ok("memory.max=max; memory.swap.max=max?; memory.low=max"),
    );
    check(r#"{"memory": {"limit": 0, "swap": 0, "kernel": 0, "useHierarchy": true}}"#, Ok(""), Ok(""));
    check(r#"{"memory": {"limit": 2000, "swap": 1000}}"#, Err("less than the memory limit"), Err("less than"));
    check(r#"{"memory": {"swap": 1000}}"#, Err("needs a memory limit"), Err("needs a memory limit"));
    check(r#"{"memory": {"limit": -2}}"#, Err("invalid memory.limit"), Err("invalid memory.limit"));
    check(
        r#"{"memory": {"swappiness": 10, "disableOOMKiller": true}}"#,
        Ok("memory.swappiness=10; memory.oom_control=1"),
        Err("memory.swappiness on cgroup v2 is not supported"),
    );
    check(r#"{"memory": {"swappiness": 101}}"#, Err("must be 0 to 100"), Err("not supported"));
    check(
        r#"{"memory": {"disableOOMKiller": true}}"#,
        Ok("memory.oom_control=1"),
        Err("memory.disableOOMKiller on cgroup v2"),
    );
    check(r#"{"memory": {"disableOOMKiller": false}}"#, Ok("memory.oom_control=0"), Ok(""));
    check(r#"{"memory": {"kernel": 1}}"#, Err("memory.kernel is not"), Err("memory.kernel is not"));
    check(r#"{"memory": {"kernelTCP": 1}}"#, Err("memory.kernelTCP is not"), Err("memory.kernelTCP is not"));
    check(r#"{"memory": {"useHierarchy": false}}"#, Err("useHierarchy"), Err("useHierarchy"));
}

#[test]
fn processes_and_huge_pages() {
    check(r#"{"pids": {"limit": 7}}"#, Ok("pids.max=7"), Ok("pids.max=7"));
    check(r#"{"pids": {"limit": -1}}"#, Ok("pids.max=max"), Ok("pids.max=max"));
    check(r#"{"pids": null, "unheardOf": {}, "devices": null}"#, Ok(""), Ok(""));
    check(
        r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]}"#,
        Ok("hugetlb.2MB.limit_in_bytes=4194304; hugetlb.2MB.rsvd.limit_in_bytes=4194304?"),
        Ok("hugetlb.2MB.max=4194304; hugetlb.2MB.rsvd.max=4194304?"),
    );
    for size in ["", "2", "MB", "02MB", "2mb", "../2MB", "2PB", "-2MB"] {
        let json = format!(r#"{{"hugepageLimits": [{{"pageSize": "{size}", "limit": 1}}]}}"#);
        check(&json, Err("invalid hugepageLimits"), Err("invalid hugepageLimits"));
    }
}

#[test]
fn block_devices() {
    check(
        r#"{"blockIO": {"weight": 500, "weightDevice": [{"major": 8, "minor": 0, "weight": 100}]}}"#,
        Ok("blkio.bfq.weight=500|blkio.weight=500; \
            blkio.bfq.weight_device=8:0 100|blkio.weight_device=8:0 100"),
        Ok("io.bfq.weight=500|io.weight=4950; io.bfq.weight=8:0 100|io.weight=8:0 910"),
    );
    check(
        r#"{"blockIO": {
            "throttleReadBpsDevice": [{"major": 8, "minor": 1, "rate": 600}],
            "throttleWriteBpsDevice": [{"major": 8, "minor": 1, "rate": 0}],
            "throttleReadIOPSDevice": [{"major": 8, "minor": 1, "rate": 7}],
            "throttleWriteIOPSDevice": [{"major": 8, "minor": 1, "rate": 8}]}}"#,
        Ok("blkio.throttle.read_bps_device=8:1 600; blkio.throttle.write_bps_device=8:1 0; \
            blkio.throttle.read_iops_device=8:1 7; blkio.throttle.write_iops_device=8:1 8"),
        Ok("io.max=8:1 rbps=600; io.max=8:1 wbps=max; io.max=8:1 riops=7; io.max=8:1 wiops=8"),
    );
    check(r#"{"blockIO": {"weight": 5}}"#, Err("must be 10 to 1000"), Err("must be 10 to 1000"));
    check(r#"{"blockIO": {"leafWeight": 50}}"#, Err("blockIO.leafWeight"), Err("blockIO.leafWeight"));
    check(r#"{"blockIO": {"weight": 0, "leafWeight": 0}}"#, Ok(""), Ok(""));
    let bad = r#"{"blockIO": {"throttleReadBpsDevice": [{"major": -1, "minor": 0, "rate": 1}]}}"#;
    check(bad, Err("-1:0 is no device"), Err("-1:0 is no device"));
}

#[test]
fn network_and_rdma() {
    check(
        r#"{"network": {"classID": 1048577, "priorities": [{"name": "eth0", "priority": 500}]}}"#,
        Ok("net_cls.classid=1048577; net_prio.ifpriomap=eth0 500"),
        Err("network.classID on cgroup v2"),
    );
    check(
        r#"{"network": {"priorities": [{"name": "eth0\nlo", "priority": 5}]}}"#,
        Err("is no name"),
        Err("network.priorities on cgroup v2"),
    );
    check(
        r#"{"rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10000}, "none": {}}}"#,
        Ok("rdma.max=mlx5_1 hca_handle=3 hca_object=10000"),
        Ok("rdma.max=mlx5_1 hca_handle=3 hca_object=10000"),
    );
}

#[test]
fn files_of_version_2() {
    check(
        r#"{"unified": {"memory.high": "1000", "io.max": "8:0 rbps=1\n8:1 rbps=2\n", "cgroup.max.depth": "3"}}"#,
        Err("unified on cgroup v1 is not supported"),
        Ok("cgroup.max.depth=3; io.max=8:0 rbps=1; io.max=8:1 rbps=2; memory.high=1000"),
    );
    for file in ["cgroup.procs", "cgroup.kill", "memory", ".x", "../memory.max", "a/memory.max", "memory..max", ""] {
        let json = format!(r#"{{"unified": {{"{file}": "1"}}}}"#);
        check(&json, Err("unified"), Err("invalid unified"));
    }
    // On a hybrid host, v2's files are v2's, and the rest is where its controller is.
    let hybrid = Shape { v1: vec!["memory".into(), "cpu".into()], v2: true };
    let json = r#"{"cpu": {"shares": 2}, "pids": {"limit": 3}, "unified": {"memory.high": "1"}}"#;
    let list = writes(&serde_json::from_str(json).unwrap(), &hybrid).unwrap();
    let seen: Vec<(Version, &str, &str)> = list.iter().map(|w| (w.on, &*w.controller, &*w.file)).collect();
    assert_eq!(
        seen,
        [(Version::V1, "cpu", "cpu.shares"), (Version::V2, "pids", "pids.max"), (Version::V2, "memory", "memory.high")]
    );
}

#[test]
fn a_task_of_shoal() {
    let resources = Resources {
        cpu_limit_nanos: Some(1_500_000_000),
        cpu_reservation_nanos: Some(1_000_000_000),
        memory_limit: Some(100 << 20),
        memory_reservation: Some(1 << 20),
        pids_limit: Some(7),
        oci: LinuxResources::default(),
    };
    assert_eq!(
        story(&common(&resources), &Shape::split()).unwrap(),
        "cpu.cfs_period_us=100000; cpu.cfs_quota_us=150000; cpu.shares=1024; memory.limit_in_bytes=104857600; \
        memory.memsw.limit_in_bytes=104857600?; memory.soft_limit_in_bytes=1048576; pids.max=7"
    );
    assert_eq!(
        story(&common(&resources), &Shape::unified()).unwrap(),
        "cpu.max=150000 100000; cpu.weight=100; memory.max=104857600; memory.swap.max=0?; memory.low=1048576; \
        pids.max=7"
    );
    let quarter = Resources { cpu_reservation_nanos: Some(250_000_000), ..Resources::default() };
    assert_eq!(story(&common(&quarter), &Shape::unified()).unwrap(), "cpu.weight=25");
    let tiny = Resources { cpu_limit_nanos: Some(1_000_000), cpu_reservation_nanos: Some(1), ..Resources::default() };
    assert_eq!(
        story(&common(&tiny), &Shape::split()).unwrap(),
        "cpu.cfs_period_us=100000; cpu.cfs_quota_us=1000; cpu.shares=2"
    );
    // The rest, with Shoal's own fields over it.
    let oci = r#"{"cpu": {"cpus": "0", "quota": 1}, "memory": {"limit": 5, "swap": 209715200}}"#;
    let both = Resources {
        cpu_limit_nanos: Some(1_000_000_000),
        memory_limit: Some(100 << 20),
        oci: serde_json::from_str(oci).unwrap(),
        ..Resources::default()
    };
    assert_eq!(validate(&both), Ok(()));
    assert_eq!(
        story(&common(&both), &Shape::unified()).unwrap(),
        "cpu.max=100000 100000; cpuset.cpus=0; memory.max=104857600; memory.swap.max=104857600"
    );
    let wrong =
        Resources { oci: serde_json::from_str(r#"{"memory": {"limit": -7}}"#).unwrap(), ..Resources::default() };
    assert!(validate(&wrong).is_err());
    let old =
        Resources { oci: serde_json::from_str(r#"{"memory": {"swappiness": 7}}"#).unwrap(), ..Resources::default() };
    assert_eq!(validate(&old), Ok(()), "it can be had on hosts with version 1");
}

#[test]
fn the_json_of_the_specification_comes_back() {
    let json = r#"{
        "devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 10, "minor": 229}],
        "memory": {"limit": 536870912, "disableOOMKiller": false},
        "cpu": {"shares": 1024, "realtimeRuntime": 950000, "cpus": "2-3"},
        "blockIO": {"weight": 10, "throttleReadIOPSDevice": [{"major": 8, "minor": 16, "rate": 300}]},
        "hugepageLimits": [{"pageSize": "64KB", "limit": 64000}],
        "network": {"classID": 1048577},
        "pids": {"limit": 32771}
    }"#;
    let resources: LinuxResources = serde_json::from_str(json).unwrap();
    assert_eq!(resources.devices[1].major, Some(10));
    let again: LinuxResources = serde_json::from_str(&serde_json::to_string(&resources).unwrap()).unwrap();
    assert_eq!(again, resources);
    assert!(serde_json::from_str::<LinuxResources>(r#"{"memory": {"limit": "many"}}"#).is_err());
}
