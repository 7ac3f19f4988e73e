//! From create to delete.

use std::time::Duration;

use runtime::{ContainerRuntime, RuntimeError, Signal, Status};

use super::fixture::{Fixture, alive, chain, until};

pub const TESTS: &[(&str, fn())] = &[
    ("lifecycle::a_container_lives", a_container_lives),
    ("lifecycle::exit_codes", exit_codes),
    ("lifecycle::stop_with_and_without_grace", stop_with_and_without_grace),
    ("lifecycle::signals", signals),
    ("lifecycle::exec_failures", exec_failures),
    ("lifecycle::create_failures_leave_nothing", create_failures_leave_nothing),
    ("lifecycle::deleting_leaves_nothing", deleting_leaves_nothing),
    ("lifecycle::deleting_is_idempotent", deleting_is_idempotent),
    ("lifecycle::start_latency", start_latency),
];

fn a_container_lives() {
    let fixture = Fixture::new();
    let runtime = fixture.runtime();
    let mut config = fixture.config("one", "out hello then err oops then sleep");
    config.labels.insert("task".into(), "t1".into());
    let created = fixture.tokio.block_on(runtime.create(config.clone())).unwrap();
    assert!(alive(created.pid));
    let state = &fixture.tokio.block_on(runtime.list())[0];
    assert_eq!((state.id.as_str(), &state.status, state.pid), ("one", &Status::Created, Some(created.pid)));
    assert_eq!(state.labels["task"], "t1");
    assert!(state.started_at.is_none());
    let again = fixture.tokio.block_on(runtime.create(config));
    assert!(matches!(again, Err(RuntimeError::Exists(_))), "{again:?}");
    assert_eq!(fixture.output("one"), "", "nothing runs before the start");
    fixture.tokio.block_on(runtime.start("one")).unwrap();
    fixture.until_output("one", "hello\n");
    let state = &fixture.tokio.block_on(runtime.list())[0];
    assert_eq!(state.status, Status::Running);
    assert!(state.started_at >= Some(state.created_at));
    assert!(matches!(fixture.tokio.block_on(runtime.start("one")), Err(RuntimeError::WrongState { .. })));
    let netns = std::fs::read_link(format!("/proc/{}/ns/net", created.pid)).unwrap();
    assert_ne!(netns, std::fs::read_link("/proc/self/ns/net").unwrap());
    let inode = rustix::fs::fstat(fixture.tokio.block_on(runtime.netns("one")).unwrap()).unwrap().st_ino;
    assert_eq!(netns.display().to_string(), format!("net:[{inode}]"));
    assert_eq!(inode, rustix::fs::fstat(&created.netns).unwrap().st_ino);
    fixture.tokio.block_on(runtime.delete("one")).unwrap();
    assert!(!alive(created.pid));
    assert!(fixture.tokio.block_on(runtime.list()).is_empty());
    drop(created.netns);
    assert_eq!(fixture.leftovers(), Default::default());
}

fn exit_codes() {
    let fixture = Fixture::new();
    for code in [0, 1, 42, 255] {
        let (exit, _) = fixture.run(fixture.config(&format!("c{code}"), &format!("exit {code}")));
        assert_eq!((exit.code, exit.signal, exit.oom_killed, exit.shim_lost), (code, None, false, false));
    }
    // What it leaves behind dies with it.
    let (exit, output) = fixture.run(fixture.config("parent", "grandchild then exit 3"));
    assert_eq!(exit.code, 3);
    assert!(output.starts_with("child "), "{output}");
    let runtime = fixture.runtime();
    assert!(matches!(
        fixture.tokio.block_on(runtime.signal("c1", Signal::TERM)),
        Err(RuntimeError::WrongState { status: "exited", .. })
    ));
    assert!(fixture.tokio.block_on(runtime.netns("c1")).is_err());
    assert!(matches!(fixture.tokio.block_on(runtime.wait("nosuch")), Err(RuntimeError::NotFound(_))));
}

fn stop_with_and_without_grace() {
    let fixture = Fixture::new();
    let runtime = fixture.runtime();
    fixture.start(fixture.config("polite", "trap"));
    fixture.until_output("polite", "trapping");
    let exit = fixture.tokio.block_on(runtime.stop("polite", None, Duration::from_secs(20))).unwrap();
    assert_eq!((exit.code, exit.signal), (7, None));
    assert!(fixture.output("polite").ends_with("terminated\n"));
    // Again: nothing changes.
    assert_eq!(fixture.tokio.block_on(runtime.stop("polite", None, Duration::ZERO)).unwrap(), exit);
    let pid = fixture.start(fixture.config("deaf", "grandchild then out ready then sleep"));
    fixture.until_output("deaf", "ready");
    let exit = fixture.tokio.block_on(runtime.stop("deaf", None, Duration::from_millis(50))).unwrap();
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, Some(9), false));
    assert!(!alive(pid));
    assert_eq!(fixture.cgroup_file("deaf", "cgroup.procs").as_deref(), Some(""));
    // Never started.
    fixture.tokio.block_on(runtime.create(fixture.config("unborn", "sleep"))).unwrap();
    let exit = fixture.tokio.block_on(runtime.stop("unborn", None, Duration::from_secs(5))).unwrap();
    assert_eq!(exit.code, 137);
}

fn signals() {
    let fixture = Fixture::new();
    let runtime = fixture.runtime();
    let mut config = fixture.config("sig", "trap");
    config.stop_signal = Some("SIGUSR1".into());
    fixture.start(config);
    fixture.until_output("sig", "trapping");
    fixture.tokio.block_on(runtime.signal("sig", "CONT".parse().unwrap())).unwrap();
    fixture.tokio.block_on(runtime.signal("sig", Signal::TERM)).unwrap();
    assert_eq!(fixture.wait("sig").code, 7);
    fixture.tokio.block_on(runtime.create(fixture.config("early", "sleep"))).unwrap();
    let early = fixture.tokio.block_on(runtime.signal("early", Signal::TERM));
    assert!(matches!(early, Err(RuntimeError::WrongState { status: "created", .. })));
    fixture.tokio.block_on(runtime.signal("early", Signal::KILL)).unwrap();
    assert_eq!(fixture.wait("early").signal, Some(9));
}

fn exec_failures() {
    let fixture = Fixture::new();
    let runtime = fixture.runtime();
    let mut number = 0;
    let mut check = |command: &str, text: &str, code: i32| {
        number += 1;
        let mut config = fixture.config(&format!("x{number}"), "");
        config.args = vec![command.to_owned()];
        let id = config.id.clone();
        fixture.tokio.block_on(runtime.create(config)).unwrap();
        let error = fixture.tokio.block_on(runtime.start(&id)).unwrap_err();
        assert_eq!(error.to_string(), format!("starting container failed: exec {command:?}: {text}"));
        assert!(matches!(error, RuntimeError::Start { exit_code, .. } if exit_code == code), "{error:?}");
        assert_eq!(fixture.wait(&id).code, code);
    };
    check("/nosuch", "no such file or directory", 127);
    check("nosuch", "executable file not found in $PATH: no such file or directory", 127);
    check("/bin/plain", "permission denied", 126);
    check("plain", "permission denied", 126);
    check("/etc", "permission denied", 126);
    check("/payload/x", "not a directory", 127);
    // Found by PATH.
    let mut config = fixture.config("found", "out by-path");
    config.args[0] = "tool".into();
    assert_eq!(fixture.run(config).1, "by-path\n");
}

fn create_failures_leave_nothing() {
    let fixture = Fixture::new();
    let runtime = fixture.runtime();
    let fails = |change: &dyn Fn(&mut runtime::ContainerConfig), text: &str| {
        let mut config = fixture.config("broken", "sleep");
        change(&mut config);
        let error = fixture.tokio.block_on(runtime.create(config)).unwrap_err();
        let message = chain(&error);
        assert!(message.contains(text), "{message:?} has no {text:?}");
        assert_eq!(fixture.leftovers(), Default::default(), "after {message}");
    };
    fails(&|config| config.args.clear(), "no command specified");
    fails(&|config| config.layers = vec!["/nosuch/layer".into()], "/nosuch/layer: No such file");
    fails(&|config| config.user = "nobody-here".into(), "find user nobody-here: no matching entries in passwd file");
    fails(&|config| config.user = "web:nogroup".into(), "no matching entries in group file");
    fails(
        &|config| {
            config.mounts.push(runtime::Mount {
                kind: runtime::MountKind::Bind {
                    source: "/nosuch/source".into(),
                    readonly_below: true,
                    recursive: true,
                    propagation: runtime::Propagation::RPrivate,
                },
                target: "/data".into(),
                readonly: false,
            });
        },
        "bind source path does not exist: /nosuch/source",
    );
    fails(&|config| config.cwd = "/payload/dir".into(), "enter the working directory /payload/dir: not a directory");
    fails(&|config| _ = config.sysctls.insert("net.no.such".into(), "1".into()), "set /proc/sys/net/no/such: no such");
    assert!(fixture.tokio.block_on(runtime.list()).is_empty());
}

fn deleting_leaves_nothing() {
    let fixture = Fixture::new();
    let runtime = fixture.runtime();
    let pids: Vec<u32> = (0..6)
        .map(|number| {
            let words = if number % 2 == 0 { "grandchild then sleep" } else { "exit 0" };
            fixture.start(fixture.config(&format!("d{number}"), words))
        })
        .collect();
    fixture.tokio.block_on(async {
        let deletions = (0..6).map(|number| {
            let runtime = runtime.clone();
            tokio::spawn(async move { runtime.delete(&format!("d{number}")).await })
        });
        for deletion in deletions.collect::<Vec<_>>() {
            deletion.await.unwrap().unwrap();
        }
    });
    assert_eq!(fixture.leftovers(), Default::default());
    assert!(pids.iter().all(|pid| !alive(*pid)));
    fixture.tokio.block_on(runtime.destroy()).unwrap();
    for mount in super::fixture::cgroup_mounts() {
        assert!(!mount.join(format!("shoal-{}", fixture.config.engine_id)).exists());
    }
}

fn deleting_is_idempotent() {
    let fixture = Fixture::new();
    let runtime = fixture.runtime();
    fixture.tokio.block_on(async {
        runtime.delete("never-was").await.unwrap();
        assert!(runtime.delete("../escape").await.is_err());
        runtime.create(fixture.config("a", "sleep")).await.unwrap();
        runtime.delete("a").await.unwrap();
        runtime.delete("a").await.unwrap();
        // The id is free again.
        runtime.create(fixture.config("a", "sleep")).await.unwrap();
        let played: &dyn ContainerRuntime = &runtime;
        played.delete("a").await.unwrap();
        // Many at once, for one id: each is answered, and nothing half-made stays.
        let racers = (0..12).map(|number| {
            let (runtime, config) = (runtime.clone(), fixture.config("a", "sleep"));
            tokio::spawn(async move {
                match number % 3 {
                    0 => runtime.create(config).await.map(drop),
                    1 => runtime.start("a").await,
                    _ => runtime.delete("a").await,
                }
            })
        });
        for racer in racers.collect::<Vec<_>>() {
            let _ = racer.await.unwrap();
        }
        runtime.delete("a").await.unwrap();
        assert!(runtime.list().await.is_empty());
    });
    assert_eq!(fixture.leftovers(), Default::default());
}

/// Not a benchmark: it shows the number, and fails when something is badly wrong.
fn start_latency() {
    let fixture = Fixture::new();
    let (mut times, mut pid) = (Vec::new(), 0);
    for number in 0..10 {
        let config = fixture.config(&format!("l{number}"), "sleep");
        let begin = std::time::Instant::now();
        pid = fixture.start(config);
        times.push(begin.elapsed());
    }
    times.sort();
    println!("create and start: median {:?}, worst {:?}", times[5], times[9]);
    assert!(times[5] < Duration::from_secs(2));
    let pss = super::survival::shim_of(pid).and_then(|shim| {
        let rollup = std::fs::read_to_string(format!("/proc/{shim}/smaps_rollup")).ok()?;
        rollup.lines().find(|line| line.starts_with("Pss:")).map(str::to_owned)
    });
    println!("a shim here: {pss:?} (the test binary's, debug)");
    until("all ten run", || {
        fixture.tokio.block_on(fixture.runtime().list()).iter().all(|c| c.status == Status::Running)
    });
}
