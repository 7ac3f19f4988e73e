//! Pausing, and what can be seen of a container from outside.

use std::time::Duration;

use runtime::{ExecConfig, Resources, RuntimeError, Signal, Status};

use super::fixture::{Fixture, until};

pub const TESTS: &[(&str, fn())] = &[
    ("pause::stands_still_and_goes_on", stands_still_and_goes_on),
    ("pause::is_remembered_and_ends", is_remembered_and_ends),
    ("pause::processes_are_listed", processes_are_listed),
    ("pause::usage_is_counted", usage_is_counted),
];

fn lines(fixture: &Fixture, id: &str) -> usize {
    fixture.output(id).lines().count()
}

fn stands_still_and_goes_on() {
    let fixture = Fixture::new();
    let runtime = fixture.runtime();
    fixture.start(fixture.config("still", "drip"));
    until("it drips", || lines(&fixture, "still") > 3);
    fixture.tokio.block_on(runtime.pause("still")).unwrap();
    let state = &fixture.tokio.block_on(runtime.list())[0];
    assert!(state.paused && state.status == Status::Running, "{state:?}");
    let again = fixture.tokio.block_on(runtime.pause("still"));
    assert!(matches!(again, Err(RuntimeError::WrongState { status: "paused", .. })), "{again:?}");
    let config = ExecConfig { args: vec!["/payload".into()], ..ExecConfig::default() };
    let exec = fixture.tokio.block_on(runtime.exec("still", config));
    assert!(matches!(exec, Err(RuntimeError::WrongState { status: "paused", .. })), "{exec:?}");
    // Its processor time stands still too.
    let used = || fixture.tokio.block_on(runtime.stats("still")).unwrap().usage.cpu.total;
    let (before, drops) = (used(), lines(&fixture, "still"));
    let other = fixture.start(fixture.config("other", "drip"));
    until("another one drips meanwhile", || lines(&fixture, "other") > 20);
    assert_eq!(lines(&fixture, "still"), drops, "beside {other}");
    // The last moment may have been counted only after it stood still.
    assert!(used() - before < 5_000_000, "{} ns", used() - before);
    fixture.tokio.block_on(runtime.resume("still")).unwrap();
    until("it drips again", || lines(&fixture, "still") > drops);
    let again = fixture.tokio.block_on(runtime.resume("still"));
    assert!(matches!(again, Err(RuntimeError::WrongState { status: "running", .. })), "{again:?}");
}

fn is_remembered_and_ends() {
    let mut fixture = Fixture::new();
    for id in ["killed", "stopped", "deleted"] {
        fixture.start(fixture.config(id, "trap"));
        fixture.until_output(id, "trapping");
        fixture.tokio.block_on(fixture.runtime().pause(id)).unwrap();
    }
    fixture.die();
    fixture.open();
    let runtime = fixture.runtime();
    assert!(fixture.tokio.block_on(runtime.list()).iter().all(|state| state.paused));
    fixture.tokio.block_on(runtime.signal("killed", Signal::KILL)).unwrap();
    assert_eq!(fixture.wait("killed").signal, Some(9));
    // It hears the signal, and ends as it would have.
    let exit = fixture.tokio.block_on(runtime.stop("stopped", None, Duration::from_secs(10))).unwrap();
    assert_eq!((exit.code, exit.signal), (7, None));
    fixture.tokio.block_on(runtime.delete("deleted")).unwrap();
    assert!(fixture.tokio.block_on(runtime.list()).iter().all(|state| !state.paused));
    fixture.tokio.block_on(runtime.create(fixture.config("unborn", "sleep"))).unwrap();
    assert!(fixture.tokio.block_on(runtime.pause("unborn")).is_err());
}

fn processes_are_listed() {
    let fixture = Fixture::new();
    let runtime = fixture.runtime();
    let mut config = fixture.config("family", "grandchild then out ready then sleep");
    config.user = "web".into();
    let first = fixture.start(config);
    fixture.until_output("family", "ready");
    let found = fixture.tokio.block_on(runtime.processes("family")).unwrap();
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!((found[0].pid, found[0].uid, found[0].threads), (first, 100, 1));
    assert_eq!(found[0].command, "/payload payload grandchild then out ready then sleep");
    assert_eq!((found[1].parent, found[1].command.as_str()), (first, "/payload payload sleep"));
    assert!(found.iter().all(|process| process.resident_bytes > 0 && process.name == "payload"), "{found:?}");
    let state = fixture.tokio.block_on(runtime.inspect("family")).unwrap();
    assert_eq!((state.config.user.as_str(), state.state.pid), ("web", Some(first)));
    assert!(state.log_dir.join("0000000001.log").exists());
    fixture.tokio.block_on(runtime.stop("family", None, Duration::ZERO)).unwrap();
    assert!(fixture.tokio.block_on(runtime.processes("family")).is_err());
}

fn usage_is_counted() {
    let fixture = Fixture::new();
    let runtime = fixture.runtime();
    let mut config = fixture.config("used", "allocate 20 then out ready then sleep");
    config.resources = Resources { memory_limit: Some(64 << 20), pids_limit: Some(20), ..Resources::default() };
    if let Err(error) = fixture.tokio.block_on(runtime.create(config)) {
        println!("skipping: {error}");
        return;
    }
    fixture.tokio.block_on(runtime.start("used")).unwrap();
    fixture.until_output("used", "ready");
    let stats = fixture.tokio.block_on(runtime.stats("used")).unwrap();
    assert!(stats.usage.cpu.total > 0 && stats.host_cpu > stats.usage.cpu.total, "{stats:?}");
    assert_eq!(stats.usage.memory.limit, Some(64 << 20));
    let peak = stats.usage.memory.max_usage.unwrap_or(stats.usage.memory.usage);
    assert!(peak > 16 << 20 && peak <= 64 << 20, "{stats:?}");
    assert_eq!((stats.usage.pids.current, stats.usage.pids.limit), (1, Some(20)));
    assert!(stats.online_cpus > 0 && stats.host_memory > 64 << 20 && !stats.usage.memory.stat.is_empty(), "{stats:?}");
    // It has a loopback, and nothing else.
    assert!(stats.networks.is_empty(), "{stats:?}");
    fixture.tokio.block_on(runtime.stop("used", None, Duration::ZERO)).unwrap();
    assert!(fixture.tokio.block_on(runtime.stats("used")).is_err());
}
