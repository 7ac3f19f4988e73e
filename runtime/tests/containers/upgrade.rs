//! A daemon is replaced by another release under containers that log all the time: none is restarted, no line is lost.
//!
//! `cargo test -p runtime --test containers -- upgrade:: containers=100`; without the number there are a few. With
//! `before=/path/to/an/older/shoal` the first shims are that binary's: they speak the protocol of its release.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use runtime::{LogConfig, LogOptions};

use super::engine::Engine;
use super::fixture::{Fixture, image, until};
use super::{option, option_text};

pub const TESTS: &[(&str, fn())] = &[
    ("upgrade::containers_live_through_releases", containers_live_through_releases),
    ("upgrade::shims_of_an_older_release", shims_of_an_older_release),
];

/// Another binary at the same path: the same program with something behind its end.
fn install(path: &Path, release: u64) {
    let next = path.with_extension("next");
    fs::copy("/proc/self/exe", &next).unwrap();
    let mut bytes = fs::OpenOptions::new().append(true).open(&next).unwrap();
    std::io::Write::write_all(&mut bytes, format!("release {release}").as_bytes()).unwrap();
    drop(bytes);
    fs::rename(next, path).unwrap();
}

/// A container's shim, by the container's first process.
fn exe_of_shim(pid: u32) -> u64 {
    let shim = super::survival::shim_of(pid).unwrap();
    fs::metadata(format!("/proc/{shim}/exe")).unwrap().ino()
}

fn pids(list: &str) -> BTreeMap<String, (u32, String)> {
    let containers = list.split(' ').filter_map(|container| container.split_once('='));
    containers
        .map(|(id, state)| {
            let pid = state.split('/').nth(1).unwrap().parse().unwrap();
            (id.to_owned(), (pid, state.to_owned()))
        })
        .collect()
}

fn containers_live_through_releases() {
    let count = option("containers").unwrap_or(6);
    let mut fixture = Fixture::new();
    fixture.die();
    let exe = fixture.path().join("shoal");
    let log = |id: &str| {
        let mut lines = 0;
        for entry in fs::read_dir(fixture.config.data_dir.join("containers").join(id).join("log")).unwrap() {
            lines += fs::read(entry.unwrap().path()).unwrap_or_default().iter().filter(|b| **b == b'\n').count();
        }
        lines
    };
    install(&exe, 0);
    let mut engine = Engine::start(&exe, &fixture.config, image());
    let ids: Vec<String> = (0..count).map(|number| format!("t{number}")).collect();
    for id in &ids {
        engine.must(&format!("create {id} tick 20"));
        engine.must(&format!("start {id}"));
    }
    let before = pids(&engine.must("list"));
    assert!(before.values().all(|(_, state)| state.starts_with("running/")), "{before:?}");
    for release in 1..=2 {
        let seen: Vec<usize> = ids.iter().map(|id| log(id)).collect();
        until("all of them go on logging", || ids.iter().zip(&seen).all(|(id, seen)| log(id) > seen + 10));
        // The package manager replaces the file; then the old daemon ends, the hard way.
        install(&exe, release);
        engine.kill();
        let while_away: Vec<usize> = ids.iter().map(|id| log(id)).collect();
        until("they log without a daemon", || ids.iter().zip(&while_away).all(|(id, seen)| log(id) > seen + 5));
        engine = Engine::start(&exe, &fixture.config, image());
        assert_eq!(pids(&engine.must("list")), before, "the same processes, started when they were started");
    }
    // A new one is of the new release, the old ones stay what they were.
    engine.must("create new tick 20");
    engine.must("start new");
    let after = pids(&engine.must("list"));
    let (new, old) = (exe_of_shim(after["new"].0), exe_of_shim(after["t0"].0));
    assert_eq!(new, fs::metadata(&exe).unwrap().ino());
    assert_ne!(new, old);
    assert!(ids.iter().all(|id| exe_of_shim(after[id].0) == old));
    for id in &ids {
        engine.must(&format!("signal {id} TERM"));
    }
    until("all have ended", || {
        pids(&engine.must("list")).values().filter(|(_, s)| s.starts_with("exited-0")).count() == ids.len()
    });
    drop(engine);
    fixture.open();
    let mut lines = 0;
    for id in &ids {
        let output = fixture.output(id);
        let mut numbers =
            output.lines().filter_map(|line| line.strip_prefix("tick ")).map(|n| n.parse::<u64>().unwrap());
        let total: u64 = output.lines().last().unwrap().strip_prefix("total ").unwrap().parse().unwrap();
        assert!((0..total).all(|number| numbers.next() == Some(number)) && numbers.next().is_none(), "{id}: {output}");
        assert_eq!(fixture.dropped(id), 0);
        lines += total;
    }
    println!("{count} containers under 2 upgrades: none restarted, all of {lines} lines there");
}

/// Only with `before=`: the shims that run are those of the release before, and are adopted, asked and ended.
fn shims_of_an_older_release() {
    let Some(before) = option_text("before").map(PathBuf::from) else {
        println!("(before=/path/to/an/older/shoal is not given: nothing to do)");
        return;
    };
    let mut fixture = Fixture::with_shim(before);
    let mut config = fixture.config("old", "out hello then trap");
    config.log = LogConfig { max_size: 1 << 20, ..LogConfig::default() };
    let pid = fixture.start(config);
    fixture.until_output("old", "trapping");
    fixture.die();
    fixture.config.shim_exe = std::env::current_exe().unwrap();
    fixture.open();
    let list = fixture.tokio.block_on(fixture.runtime().list());
    assert_eq!((list.len(), list[0].pid, list[0].started_at.is_some()), (1, Some(pid), true));
    assert_eq!(fixture.dropped("old"), 0);
    fixture.signal("old", runtime::Signal::TERM);
    assert_eq!(fixture.wait("old").code, 7);
    assert_eq!(fixture.logs("old", LogOptions { tail: Some(1), ..LogOptions::default() })[0].1, b"terminated\n");
    fixture.tokio.block_on(fixture.runtime().delete("old")).unwrap();
    assert_eq!(fixture.leftovers(), Default::default());
}
